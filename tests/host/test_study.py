"""Studies write rows, say what they depend on, and go on where they were."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from eden.approximate import ApproximateNetwork
from eden.boosting import INTEGER_BOOSTING, Boosting, boost
from eden.datasets import Dataset, Split, mnist5000
from eden.mapping import Partition
from eden.memory import BitErrorMemory
from eden.precision import Precision
from eden.training import Training, train_baseline
from host.cli import boost_study, fine_study, headline_study, models_study, placement_study, sweep_study, tasks
from host.cli.main import app
from host.cli.placement_study import BATCH
from profiles.errors import ModelError, PlanError
from profiles.schema import OperatingPoint


def test_headline_prints_and_writes_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["study", "headline", "--out", str(tmp_path), "--network", "SqueezeNet1.1", "--workers", "1"]
    chosen = [*arguments, "--platform", "GPU", "--law", "linear"]
    result = CliRunner().invoke(app, chosen)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "headline.json").read_text())
    assert [(row["network"], row["platform"], row["precision"]) for row in written["rows"]] == [
        ("SqueezeNet1.1", "GPU", "fp32"),
        ("SqueezeNet1.1", "GPU", "int8"),
    ]
    assert all(row["law"] == "linear, I/O unscaled" for row in written["rows"])
    assert "37.0 %" in result.output
    assert "GDDR5" in result.output

    monkeypatch.setattr(headline_study.Task, "measured", lambda task: pytest.fail("measured again"))
    assert CliRunner().invoke(app, chosen).exit_code == 0
    assert json.loads((tmp_path / "headline.json").read_text()) == written
    refused = CliRunner().invoke(app, [*arguments, "--platform", "FPGA"])
    assert isinstance(refused.exception, ModelError)
    assert "no platform 'FPGA'; choose from CPU" in str(refused.exception)


def few_digits() -> Dataset:
    data = mnist5000()
    return Dataset("few", data.train.first(1500), data.validation.first(300), data.test)


@pytest.mark.slow
def test_placement_writes_rows_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred images and a network of two epochs: the figures are rough, what is counted is not."""

    def quickly(*arguments: Any) -> ApproximateNetwork:
        return train_baseline(*arguments, Training(2, 4e-3), Training(1, 5e-4))

    monkeypatch.setattr(placement_study, "train_baseline", quickly)
    monkeypatch.setattr(placement_study, "IMAGES", {Precision.INT8: 100})
    monkeypatch.setattr(placement_study, "RATIO", 2.0)
    monkeypatch.setattr(placement_study, "STUDIED_IN_DETAIL", ())
    arguments = [
        "study",
        "placement",
        "--out",
        str(tmp_path),
        "--precision",
        "int8",
        "--memory",
        "model 0",
        "--seeds",
        "2",
        "--workers",
        "1",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "placement.json").read_text())["rows"]
    assert (row["network"], row["precision"], row["memory"], row["placement"]) == ("lenet", "int8", "model 0", "all")
    assert row["seeds"] == [1, 2]
    assert row["figure"] > 3
    assert row["interval"][0] <= row["figure"] <= row["interval"][1]
    assert 0.0097 < row["metadata_share"] <= 0.01
    assert row["occupancy"] >= 0.9
    assert (tmp_path / "placement.png").stat().st_size > 1000

    monkeypatch.setattr(placement_study.Task, "measured", lambda task: pytest.fail("measured again"))
    assert CliRunner().invoke(app, arguments).exit_code == 0
    refused = CliRunner().invoke(app, [*arguments, "--memory", "model 9"])
    assert isinstance(refused.exception, PlanError)
    assert "choose from" in str(refused.exception)


@pytest.mark.prove
def test_boost_writes_rows_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few digits and epochs: the figures are rough, what is trained, measured and kept is not."""
    short = replace(INTEGER_BOOSTING, training=Training(3, 2e-3, batch=BATCH, shift_pixels=0))
    ablation = "boosted without curriculum"
    monkeypatch.setattr(boost_study, "study_data", few_digits)
    monkeypatch.setattr(boost_study, "BOOSTING", {("lenet", True): short})
    monkeypatch.setattr(boost_study, "ABLATIONS", {ablation: boost_study.ABLATIONS[ablation]})
    monkeypatch.setattr(boost_study, "FIELDS", {})  # what errors cost by field has a test of its own
    monkeypatch.setattr(boost_study, "RATIO", 2.0)
    monkeypatch.setattr(boost_study, "TARGET_DROP", 0.1)
    monkeypatch.setattr(boost_study, "FLOAT_TRAINING", Training(3, 4e-3, shift_pixels=0))
    arguments = ["study", "boost", "--out", str(tmp_path), "--network", "lenet", "--precision", "int8", "--seeds", "2"]
    arguments += ["--workers", "1"]  # what is patched is patched in this process
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "boost.json").read_text())["rows"]
    assert [(row["memory"], row["arm"], row["goal"]) for row in rows] == [
        ("fresh maps", "boosted", 5),
        ("the DIMM's own map", "boosted on its map", 5),
        ("fresh maps", "boosted", 10),
        ("the DIMM's own map", "boosted on its map", 10),
        ("fresh maps", ablation, None),
    ]
    for row in rows:
        assert (row["network"], row["precision"], row["seeds"], row["met"]) == ("lenet", "int8", [1, 2], None)
        assert row["interval"][0] <= row["figure"] <= row["interval"][1]
        ratios = [after / before for after, before in zip(row["ber"][row["arm"]], row["ber"]["baseline"], strict=True)]
        assert row["figure"] == pytest.approx(math.prod(ratios) ** 0.5)
    assert (tmp_path / "boost.png").stat().st_size > 1000
    for arm, starts in (
        ("control", [0, 0]),
        ("boosted", [0]),
        ("boosted-on-its-map", [0]),
        ("boosted-without-curriculum", []),
    ):
        notes = json.loads((tmp_path / f"boost/lenet-int8-1-{arm}.training.json").read_text())["results"]
        rates = [epoch["ber"] for epoch in notes["history"]]
        assert rates[: len(starts)] == starts
        assert (max(rates) == 0) == (arm == "control")

    (tmp_path / "boost/lenet-int8-2-boosted.json").write_text("{")  # damaged: its task alone runs again
    again: list[str] = []

    def measured(task: boost_study.Task) -> Any:
        again.append(f"{task.seed} {task.arm}")
        return measure(task)

    measure = boost_study.Task.measured
    monkeypatch.setattr(boost_study.Task, "measured", measured)
    monkeypatch.setattr(boost_study.Task, "_train", lambda *_: pytest.fail("trained again"))
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert again == ["2 boosted"]
    assert json.loads((tmp_path / "boost.json").read_text())["rows"] == rows
    refused = CliRunner().invoke(app, [*arguments, "--network", "vgg"])
    assert isinstance(refused.exception, PlanError)
    assert "choose from lenet, resnet8" in str(refused.exception)


@pytest.mark.slow
def test_boost_says_what_errors_cost_by_field_and_by_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained networks but for the baseline; most errors lie in the mantissa, and cost next to nothing."""
    monkeypatch.setattr(boost_study, "study_data", few_digits)
    monkeypatch.setattr(boost_study, "FLOAT_TRAINING", Training(3, 4e-3, shift_pixels=0))
    monkeypatch.setattr(boost_study, "LOSS_IMAGES", 200)
    monkeypatch.setattr(boost_study, "LOSS_BER", 1e-2)
    train = boost_study.Task._train
    monkeypatch.setattr(boost_study.Task, "_train", lambda task, _, checkpoint: train(task, "baseline", checkpoint))
    result = boost_study.LossTask(tmp_path, "lenet", Precision.FP32, 1).measured()
    lost = result["lost"]["boosted"]
    fields = [
        "all",
        "sign",
        "exponent",
        "mantissa's first three bits",
        "mantissa's fourth bit",
        "lower bits",
        "0.weight",
    ]
    assert list(lost)[: len(fields)] == fields
    assert "0.ifm" in lost
    assert lost["all"] > lost["exponent"] > 0.02 > lost["lower bits"]
    assert lost["all"] > 2 * max(loss for part, loss in lost.items() if part.endswith(("weight", "ifm")))
    row, *_ = boost_study._rows([result])
    assert (row["arm"], row["errors_in"], row["figure"], row["goal"]) == ("losses", "all", lost["all"], None)
    boost_study._show([row])
    boost_study._plot([row])


def test_nothing_that_boosting_is_tested_on_is_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def numbered(train_images: int, validation_images: int) -> Dataset:
        sizes = [train_images, validation_images, 10_000]
        parts = torch.arange(sum(sizes)).split(sizes)
        return Dataset("numbered", *(Split(part, part) for part in parts))

    monkeypatch.setattr(boost_study, "fashion_mnist", numbered)
    data = boost_study.study_data.__wrapped__()
    splits = [set(split.images.tolist()) for split in (data.train, data.validation, data.test)]
    assert [len(split) for split in splits] == [20_000, 10_000, 30_000]
    assert len(set.union(*splits)) == 60_000


@pytest.mark.parametrize(("precision", "mask"), [(Precision.FP32, 0x7F80_0000), (Precision.INT8, 0x40)])
def test_errors_in_one_field_are_those_of_all_fields_there(precision: Precision, mask: int) -> None:
    word = {32: torch.int32, 8: torch.uint8}[precision.bits]
    numbers = torch.arange(16_000).to(word).view(torch.uint8)
    memories = [BitErrorMemory(1e-2, 1), boost_study.FieldMemory(BitErrorMemory(1e-2, 1), mask, precision)]
    for memory in memories:
        memory.store("a", numbers)
    everywhere, there = (memory.load("a").view(word) ^ numbers.view(word) for memory in memories)
    assert torch.equal(there, everywhere & mask)
    assert 0 < there.count_nonzero() < everywhere.count_nonzero()


def test_points_of_a_sweep_that_differ_in_the_last_digit_of_their_rate_are_kept_apart(tmp_path: Path) -> None:
    here, there = (sweep_study.Point(tmp_path, "lenet", Precision.INT8, ber, 1) for ber in (1.2345678e-4, 1.2345679e-4))
    assert here.file != there.file


@pytest.mark.slow
def test_sweep_measures_each_point_once_and_adds_what_is_asked_besides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quickly(*arguments: Any, **trained: Any) -> ApproximateNetwork:
        return train_baseline(*arguments, Training(2, 4e-3), Training(1, 5e-4), **trained)

    monkeypatch.setattr(tasks, "train_baseline", quickly)
    monkeypatch.setattr(sweep_study, "IMAGES", 200)

    def rows(*more: str) -> list[dict[str, Any]]:
        arguments = ["study", "sweep", "--out", str(tmp_path), "--precision", "int8", "--seeds", "2", "--workers", "1"]
        result = CliRunner().invoke(app, [*arguments, "--ber", "0", "--ber", "0.2", *more])
        assert result.exit_code == 0, result.output
        found: list[dict[str, Any]] = json.loads((tmp_path / "sweep.json").read_text())["rows"]
        return found

    clean, ruined = rows()
    assert [row["ber"] for row in (clean, ruined)] == [0, 0.2]
    assert clean["figure"] == pytest.approx(clean["clean_accuracy"])
    assert clean["figure"] > 0.5 > ruined["figure"]  # of ten digits
    assert ruined["seeds"] == [1, 2]
    assert ruined["interval"][0] <= ruined["figure"] <= ruined["interval"][1]
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    monkeypatch.setattr(tasks, "train_baseline", lambda *_, **__: pytest.fail("trained again"))
    assert [row["ber"] for row in rows("--ber", "0.01")] == [0, 0.01, 0.2]
    refused = CliRunner().invoke(app, ["study", "sweep", "--network", "vgg"])
    assert isinstance(refused.exception, PlanError)
    assert "choose from lenet" in str(refused.exception)


@pytest.mark.prove
def test_fine_saves_more_than_coarse_where_the_joint_rates_are_certified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few digits and supplies: the figures are rough, what is certified, mapped and checked is not."""

    def few_digits() -> Dataset:
        data = mnist5000()
        return Dataset("few", data.train.first(1500), data.validation.first(500), data.test.first(400))

    monkeypatch.setattr(fine_study, "study_data", few_digits)
    monkeypatch.setattr(fine_study, "FLOAT_TRAINING", Training(3, 4e-3, shift_pixels=0))
    monkeypatch.setattr(fine_study, "SEARCH_IMAGES", 100)
    monkeypatch.setattr(fine_study, "TARGET_DROP", 0.2)
    monkeypatch.setattr(fine_study, "CERTIFIED_DROP", 0.15)
    monkeypatch.setattr(fine_study, "SHARES", (0.25, 1.0))
    monkeypatch.setattr(fine_study, "ROWS", 8)
    monkeypatch.setattr(fine_study, "TRCDS_PS", (10_000,))
    monkeypatch.setattr(fine_study, "LADDER_STEP", 3.0)
    arguments = ["study", "fine", "--out", str(tmp_path), "--network", "lenet", "--seeds", "2", "--workers", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "fine.json").read_text())["rows"]
    assert [(row["network"], row["objective"]) for row in rows] == [
        ("lenet", "energy"),
        ("lenet", "energy and latency"),
    ]
    for row in rows:
        assert (row["precision"], row["seeds"], row["goal"], row["met"]) == ("int8", [1, 2], 0, None)
        gained = [more - less for more, less in zip(row["saved"]["fine"], row["saved"]["coarse"], strict=True)]
        assert row["figure"] == pytest.approx(sum(gained) / 2)
        for coarse, exact in zip(row["saved"]["coarse"], row["saved"][fine_study.EXACT], strict=True):
            assert 0 < coarse <= exact + 1e-9  # the same rates, solved exactly
        for by_claim in row["certified_ber"]:
            for name, ber in by_claim[fine_study.ALONE].items():
                assert 0 < by_claim[fine_study.CHOSEN][name] <= ber < 0.25  # of two claims each must hold more surely
    assert (tmp_path / "fine.png").stat().st_size > 1000
    monkeypatch.setattr(fine_study.Task, "measured", lambda task: pytest.fail("measured again"))
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_the_fine_mapping_is_the_cheapest_of_those_that_are_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bank, where a tolerance for all may be the better one: certified higher than each tensor's least."""
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
    network = ApproximateNetwork(module, Precision.INT8)
    network.calibrate([torch.rand(8, 1, 28, 28)])
    points = [OperatingPoint(vdd_mv=mv, trcd_ps=14_000) for mv in (1350, 1100, 1000)]
    part = Partition("bank 0", 0, 0, 1 << 22, dict(zip(points, (0.0, 1e-4, 1e-3), strict=True)))
    monkeypatch.setattr(fine_study, "Modules", lambda profiles: SimpleNamespace(partitions=lambda: [part]))
    mapped, cost = fine_study._Mapped(network, None), fine_study.OBJECTIVES["energy"]  # type: ignore[arg-type]
    one = dict.fromkeys((tensor.name for tensor in network.tensors()), 2e-3)
    each = one | {"0.weight": 1e-4}

    def lowest(rates: list[dict[str, float]]) -> list[int]:
        found = mapped.cheapest(rates, cost)
        return sorted({piece.point.vdd_mv for piece in found.pieces}) if found else []

    assert lowest([one, each]) == lowest([each, one]) == lowest([one]) == [1000]
    assert lowest([each]) == [1100]  # one rail
    assert lowest([{}, each]) == [1100]
    assert lowest([{}, {}]) == []


@pytest.mark.prove
def test_models_retrains_with_fitting_and_other_models_and_tests_on_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def few_digits() -> Dataset:
        data = mnist5000()
        return Dataset("few", data.train.first(1500), data.validation.first(200), data.test.first(200))

    def quickly(*arguments: Any) -> ApproximateNetwork:
        return train_baseline(*arguments[:4], Training(3, 4e-3, shift_pixels=0), Training(1, 5e-4))

    short = replace(INTEGER_BOOSTING, training=Training(2, 2e-3, shift_pixels=0))
    controls: list[bool] = []
    settings: list[Boosting] = []
    highest: list[float] = []

    def boosted(*arguments: Any, control: bool) -> Any:
        tolerated, how = arguments[3], arguments[-1]
        controls.append(control)
        settings.append(how)
        highest.append(how.highest if how.highest == short.highest else how.highest * tolerated)
        return boost(*arguments, control=control)

    monkeypatch.setattr(models_study, "boost", boosted)
    monkeypatch.setattr(models_study, "study_data", few_digits)
    monkeypatch.setattr(models_study, "train_baseline", quickly)
    monkeypatch.setattr(models_study, "RETRAINING", short)
    monkeypatch.setattr(models_study, "RATIO", 2.5)
    monkeypatch.setattr(models_study, "DRAWS", 2)
    arguments = ["study", "models", "--out", str(tmp_path), "--seeds", "2", "--workers", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "models.json").read_text())["rows"]
    assert [row["compared"] for row in rows] == [
        "good fit over bad fit",
        "good fit over another vendor's",
        "good fit over good fit, no curriculum",
        "good fit over no errors",
        "good fit over baseline",
        "good fit, as EDEN retrains over bad fit, as EDEN retrains",
        "good fit, as EDEN retrains over good fit, no curriculum, as EDEN retrains",
        "good fit, up to 3.2e-02 over bad fit, up to 3.2e-02",
        "good fit, up to 3.2e-02 over another vendor's, up to 3.2e-02",
        "good fit, up to 3.2e-02 over good fit, no curriculum, up to 3.2e-02",
        "good fit, up to 6.4e-02 over good fit, no curriculum, up to 6.4e-02",
        "good fit over good fit, up to 3.2e-02",
    ]
    assert controls == [False, False, False, False, True, False, False, False, *[False] * 6] * 2
    assert [each.guarded_signs for each in settings] == ([True] * 5 + [False] * 3 + [True] * 6) * 2
    assert [each.ramp for each in settings[:14]] == [0.7, 0.7, 0.7, 0, 0.7, 0.7, 0.7, 0, 0.7, 0.7, 0.7, 0, 0.7, 0]
    assert highest == pytest.approx(([short.highest] * 8 + [3.2e-2] * 4 + [6.4e-2] * 2) * 2)
    for row in rows:
        assert (row["seeds"], row["goal"], row["met"]) == ([1, 2], None if row["ablation"] else 0, None)
        assert row["ablation"] == row["compared"].endswith(("no errors", "over good fit, up to 3.2e-02"))
        assert row["figure"] == pytest.approx(sum(gain[0] for gain in row["accuracy_gained"]) / len(models_study.RATES))
        assert len(row["accuracy_gained"]) == len(row["at_ber"]) == len(models_study.RATES)
    good, bad = rows[0]["models"].values()
    assert set(good) <= set(models_study.EDENS)
    assert all(a != b for a, b in zip(good, bad, strict=True))
    assert (tmp_path / "models.png").stat().st_size > 1000


def test_models_reads_tolerated_rates_off_the_curve_and_counts_gains_beyond_chance() -> None:
    """By hand: between 0.86 at 1e-3 and 0.82 at 1e-2 lies 0.84, half a decade above 1e-3; 0.89 lies nowhere."""
    rates = [1e-4, 1e-3, 1e-2]
    curve = {"baseline_accuracy": 0.9, "clean_accuracy": 0.9, "at_ber": rates, "model": 0}
    one = curve | {"accuracy": [0.88, 0.86, 0.82]}
    assert models_study._tolerated(one, 0.06) == pytest.approx(10**-2.5)
    assert models_study._tolerated(one, 0.01) is None
    assert models_study._tolerated(one, 0.2) is None

    def arms(seed: int, gained: float) -> list[dict[str, Any]]:
        better = curve | {"accuracy": [accuracy + gained for accuracy in one["accuracy"]]}
        return [
            one | {"seed": seed, "arm": models_study.BAD},
            better | {"seed": seed, "arm": models_study.GOOD},
        ]

    (surely,) = models_study._rows([*arms(1, 0.010), *arms(2, 0.011), *arms(3, 0.012)])
    (by_chance,) = models_study._rows([*arms(1, 0.03), *arms(2, -0.01), *arms(3, 0.01)])
    assert surely["figure"] == pytest.approx(0.011)
    assert (surely["met"], by_chance["met"]) == (True, False)
    assert surely["tolerated"]["0.01"] is None
    assert models_study._rows(arms(1, 0.01)[:1]) == []


def mapped(seed: int, coarse: float, fine: float, holds: bool = True) -> dict[str, Any]:
    """A result of `eden study fine` with these shares saved, of either objective."""
    shares = {"coarse": coarse, "fine": fine, fine_study.EXACT: coarse, fine_study.EACH: fine}
    arms = {
        arm: {"saved": saved, "points": [], "ber": 1e-3, "lost": 0.001, "lost_high": 0.008, "holds": holds}
        for arm, saved in shares.items()
    }
    objectives = dict.fromkeys(fine_study.OBJECTIVES, arms)
    return {"network": "lenet", "seed": seed, "certified_ber": {}, "objectives": objectives}


def test_fine_meets_its_goal_only_where_it_saves_more_beyond_chance_and_holds_on_the_module() -> None:
    better = [mapped(1, 0.30, 0.33), mapped(2, 0.31, 0.335), mapped(3, 0.30, 0.32)]
    for row in fine_study._rows(better):
        assert row["figure"] == pytest.approx(0.025)
        assert 0 < row["interval"][0] < row["figure"] < row["interval"][1]
        assert row["met"] is True
    by_chance = [mapped(1, 0.30, 0.40), mapped(2, 0.31, 0.30), mapped(3, 0.30, 0.30)]
    lost = [*better[:2], mapped(3, 0.30, 0.32, holds=False)]
    for results in (by_chance, lost):
        assert [row["met"] for row in fine_study._rows(results)] == [False, False]
    assert [row["met"] for row in fine_study._rows(better[:2])] == [None, None]
    nothing_certified = mapped(1, 0.30, 0.33)
    nothing_certified["objectives"] = {name: dict.fromkeys(fine_study.ARMS) for name in fine_study.OBJECTIVES}
    for row in fine_study._rows([*better[1:], nothing_certified]):
        assert (row["seeds"], row["met"]) == ([2, 3, 1], False)  # it counts, as saving nothing
        assert row["saved"]["fine"] == [0.335, 0.32, 0]


def test_the_better_of_two_claims_is_chosen_among_surer_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A certificate that holds two rungs at 97.5 % and one more at 95 %: the mapping by one of two has two."""
    asked: list[tuple[int, float]] = []

    def certify(*arguments: Any) -> Any:
        ladder, confidence = arguments[1], arguments[-1]
        asked.append((len(ladder), confidence))
        held = {0.975: 2, 0.95: 1}[round(confidence, 3)]
        return SimpleNamespace(rungs=[SimpleNamespace(holds=rung < held) for rung in range(min(len(ladder), held + 1))])

    rates, images = {"a": 1e-3, "b": 1e-3}, Split(torch.zeros(2, 1), torch.zeros(2))
    model = SimpleNamespace(highest_ber=0.1)
    monkeypatch.setattr(fine_study, "certify", certify)
    monkeypatch.setattr(fine_study, "SHARES", (0.25, 0.5, 1.0, 2.0))
    monkeypatch.setattr(fine_study, "fit", lambda *_: SimpleNamespace(anywhere=model))
    for name in ("reference_point", "model_memory", "any_map_memory"):
        monkeypatch.setattr(fine_study.stages, name, lambda _: None)
    monkeypatch.setattr(fine_study, "study_data", lambda: Dataset("none", images, images, images))
    monkeypatch.setattr(
        fine_study, "evaluate", lambda *_: SimpleNamespace(accuracy=1.0, correct_images=torch.ones(2, dtype=torch.bool))
    )
    monkeypatch.setattr(fine_study, "coarse", lambda *_, **__: SimpleNamespace(ber=1e-3))
    monkeypatch.setattr(fine_study, "fine_tolerances", lambda *_, **__: SimpleNamespace(ber=rates))
    found = fine_study.Task(tmp_path, "lenet", 1)._certified(None, None)  # type: ignore[arg-type]
    assert [(rungs, round(confidence, 3)) for rungs, confidence in asked] == [(4, 0.975), (2, 0.95)] * 2
    for name in ("one", "each"):
        assert found[fine_study.CHOSEN][name] == pytest.approx({"a": 5e-4, "b": 5e-4})
        assert found[fine_study.ALONE][name] == pytest.approx({"a": 1e-3, "b": 1e-3})
