"""Boosting follows its curriculum, leaves the baseline alone, repeats by seed, and its control sees no errors."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eden import boosting
from eden.approximate import ApproximateNetwork
from eden.boosting import INTEGER_BOOSTING, Boosting, boost, crossing, curriculum
from eden.checkpoint import Checkpoint
from eden.datasets import Dataset, Split, mnist5000
from eden.memory import ApproximateMemory, BitErrorMemory, ReliableMemory
from eden.networks import build
from eden.precision import Precision
from eden.tolerance import AccuracyMeter, CurvePoint, Sampling
from eden.training import Training, train_baseline
from profiles.errors import NetworkError
from profiles.progress import silent

SHORT = replace(INTEGER_BOOSTING, training=Training(epochs=3, learning_rate=1e-3))


@pytest.fixture(scope="module")
def data() -> Dataset:
    full = mnist5000()
    return Dataset("small", full.train.first(320), full.validation.first(100), full.test.first(10))


def test_the_rate_starts_at_zero_and_rises_in_small_steps() -> None:
    rates = curriculum(1e-3, replace(INTEGER_BOOSTING, training=Training(12, 1e-3), highest=8.0))
    assert rates[0] == 0.0
    assert rates[1] == pytest.approx(2.5e-4)
    assert rates[-1] == rates[-3] == pytest.approx(8e-3)
    assert all(1 <= later / earlier < 2 for earlier, later in itertools.pairwise(rates[1:]))


def test_without_a_curriculum_the_rate_is_the_highest_from_the_start() -> None:
    assert curriculum(1e-3, replace(INTEGER_BOOSTING, training=Training(3, 1e-3), highest=8.0, ramp=0.0)) == [8e-3] * 3


def test_boosting_repeats_and_leaves_the_baseline_as_it_was(data: Dataset) -> None:
    baseline = train_baseline("lenet", Precision.INT8, data, 0, Training(2, 3e-3), Training(1, 5e-4))
    before = {name: value.clone() for name, value in baseline.module.state_dict().items()}
    asked: list[float] = []

    def memory_at(ber: float, seed: int) -> ApproximateMemory:
        asked.append(ber)
        return BitErrorMemory(ber, seed)

    def run() -> tuple[list[torch.Tensor], object]:
        result = boost(baseline, memory_at, data, 1e-3, 0.5, 0.5, 7, SHORT)
        control = boost(baseline, memory_at, data, 1e-3, 0.5, 0.5, 7, SHORT, control=True)
        assert result.history[0].ber == 0
        assert [record.ber for record in control.history] == [0.0] * 3
        assert len(result.history) == 3
        assert not torch.equal(next(result.network.parameters()), next(control.network.parameters()))
        return [*result.network.parameters(), *control.network.parameters()], result.history

    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert first[1] == second[1]
    assert set(asked) >= set(curriculum(1e-3, SHORT)[1:])
    assert all(torch.equal(value, before[name]) for name, value in baseline.module.state_dict().items())


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP32])
@pytest.mark.parametrize("done", [1, 2])
def test_stopped_after_any_epoch_it_goes_on_to_the_same_network(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int, precision: Precision
) -> None:
    """The second of three epochs is kept by what it tolerates; what comes later must know that."""
    few = Dataset("few", data.train.first(130), data.validation.first(10), data.test)
    baseline = train_baseline("lenet", precision, few, 0, Training(1, 3e-3), Training(1, 5e-4))
    settings, estimates = replace(SHORT, ramp=0.0), [1e-3, 4e-3, 1e-3]
    checkpoint = Checkpoint(tmp_path / "boost.safetensors", "these")

    class Stopped(BaseException):
        pass

    def run(checkpoint: Checkpoint | None, first: int = 0, last: int = 3) -> boosting.Retrained:
        left = estimates[first:]
        monkeypatch.setattr(boosting._Retraining, "_estimate", lambda *_: left.pop(0))

        def stop(epoch: int, _: int) -> None:
            if epoch == last:
                raise Stopped

        how = (1e-3, 1.0, 1.0, 7, settings, stop if last < 3 else silent)
        return boost(baseline, BitErrorMemory, few, *how, checkpoint=checkpoint)

    whole = run(None)
    with pytest.raises(Stopped):
        run(checkpoint, last=done)
    resumed = run(checkpoint, first=done)
    assert (resumed.history, resumed.kept_epoch) == (whole.history, 1)
    assert resumed.network.formats == whole.network.formats
    assert all(torch.equal(a, b) for a, b in zip(resumed.network.parameters(), whole.network.parameters(), strict=True))


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_no_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "there" / "state.safetensors"
    checkpoint = Checkpoint(file, "a")
    assert checkpoint.kept() is None
    checkpoint.keep(({"x": torch.arange(3)[::2]}, {"epoch": 1}))
    kept = checkpoint.kept()
    assert kept is not None
    assert (kept[0]["x"].tolist(), kept[1]) == ([0, 2], {"epoch": 1})
    assert Checkpoint(file, "b").kept() is None
    file.write_bytes(file.read_bytes()[:-9])
    assert checkpoint.kept() is None
    checkpoint.remove()
    assert not file.exists()


def test_the_baseline_is_kept_where_no_epoch_keeps_the_clean_accuracy(data: Dataset) -> None:
    baseline = train_baseline("lenet", Precision.INT8, data, 0, Training(1, 3e-3), Training(1, 5e-4))
    result = boost(baseline, BitErrorMemory, data, 1e-3, 0.0, 1.01, 7, SHORT)
    assert result.kept_epoch == -1
    assert all(torch.equal(a, b) for a, b in zip(result.network.parameters(), baseline.parameters(), strict=True))
    assert result.network.formats == baseline.formats


def test_the_whole_validation_split_decides_what_is_kept_and_few_of_its_images_estimate(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Counting(AccuracyMeter):
        def __init__(self, network: ApproximateNetwork, split: Split, sampling: Sampling) -> None:
            seen.append(len(split))
            super().__init__(network, split, sampling)

    monkeypatch.setattr(boosting, "AccuracyMeter", Counting)
    monkeypatch.setattr(boosting, "PROBE_IMAGES", 10)
    baseline = train_baseline("lenet", Precision.INT8, data, 0, Training(2, 3e-3), Training(1, 5e-4))
    last = boost(
        baseline, BitErrorMemory, data, 1e-4, 1.0, 1.0, 7, replace(SHORT, ramp=0.0, training=Training(2, 1e-3))
    )
    assert seen == [100, 10] * 2
    assert all(epoch.estimated_ber > 0 for epoch in last.history)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP32])
def test_guarded_signs_go_with_a_network_that_is_retrained_with_them(
    data: Dataset, tmp_path: Path, precision: Precision
) -> None:
    baseline = train_baseline("lenet", precision, data, 0, Training(2, 3e-3), Training(1, 5e-4))
    how = replace(SHORT, training=Training(2, 1e-3), guarded_signs=True)
    network = boost(baseline, BitErrorMemory, data, 1e-4, 1.0, 1.0, 7, how).network
    images = data.test.images
    network.save(tmp_path / "boosted.safetensors", "lenet")
    guarded = {name for name, found in network.formats.items() if found.sign_copies[0]}
    assert guarded == {name for name in network.formats if name not in ("3.ifm", "7.ifm", "9.ifm", "11.ifm")}
    assert not any(found.sign_copies[0] for found in baseline.formats.values())
    again = ApproximateNetwork(build("lenet", 1), precision)
    again.load(tmp_path / "boosted.safetensors")
    for memory in (lambda: ReliableMemory(), lambda: BitErrorMemory(1e-3, 3)):
        again.memory, network.memory = memory(), memory()
        assert torch.equal(again(images), network(images))
    assert again.formats == network.formats
    nothing = boost(baseline, BitErrorMemory, data, 1e-4, 0.0, 1.01, 7, how)
    assert (nothing.kept_epoch, nothing.network.guarded_signs) == (-1, False)
    assert torch.equal(nothing.network(images), baseline(images))


def test_epochs_that_tolerate_far_more_than_the_baseline_are_told_apart(data: Dataset) -> None:
    """The baseline is said to tolerate next to nothing, so that every epoch tolerates hundreds of times more."""
    baseline = train_baseline("lenet", Precision.INT8, data, 0, Training(10, 4e-3), Training(1, 5e-4))
    asked: list[float] = []

    def memory_at(ber: float, seed: int) -> ApproximateMemory:
        asked.append(ber)
        return BitErrorMemory(ber, seed)

    result = boost(baseline, memory_at, data, 1e-6, 0.2, 0.5, 7, replace(SHORT, ramp=0.4))
    estimates = [record.estimated_ber for record in result.history if record.estimated_ber]
    assert len(set(estimates)) > 1
    assert estimates[-1] > 64e-6
    assert result.history[result.kept_epoch].estimated_ber * 2 > max(estimates)
    assert max(asked) > max(estimates)


@pytest.mark.parametrize(
    ("estimates", "kept"),
    [((3e-3, 2e-3, 1.6e-3), 2), ((1e-3, 4e-3, 1.9e-3), 1), ((4e-3, 1e-3, 1.5e-3), 0), ((0.0, 1e-3, 0.0), 1)],
)
def test_the_last_epoch_is_kept_unless_one_before_tolerates_twice_as_much(
    estimates: tuple[float, ...], kept: int, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Dataset("few", data.train.first(50), data.validation.first(10), data.test)
    baseline = train_baseline("lenet", Precision.INT8, few, 0, Training(1, 1e-3), Training(0, 1e-3))
    left = list(estimates)
    monkeypatch.setattr(boosting._Retraining, "_estimate", lambda *_: left.pop(0))
    result = boost(baseline, BitErrorMemory, few, 1e-3, 1.0, 1.0, 7, replace(SHORT, ramp=0.0))
    assert result.kept_epoch == kept


def test_the_network_that_is_kept_has_the_mean_weights_of_the_steps(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = train_baseline("lenet", Precision.INT8, data, 0, Training(1, 3e-3), Training(0, 1e-3))
    steps: list[torch.Tensor] = []

    def record(retraining: boosting._Retraining) -> None:
        steps.append(retraining.network.module.get_parameter("7.weight").detach().clone())

    monkeypatch.setattr(boosting._Retraining, "_limit_weights", record)
    kept = boost(baseline, BitErrorMemory, data, 1e-4, 1.0, 1.0, 7, replace(SHORT, training=Training(1, 1e-3)))
    assert len(steps) == 5
    assert float((steps[0] - steps[-1]).abs().max()) > 1e-3
    found = kept.network.module.get_parameter("7.weight")
    assert torch.allclose(found, torch.stack(steps).mean(dim=0), rtol=0, atol=1e-6)


def test_where_nothing_is_out_of_reach_the_last_epoch_is_kept(data: Dataset) -> None:
    baseline = train_baseline("lenet", Precision.INT8, data, 0, Training(1, 3e-3), Training(1, 5e-4))
    result = boost(baseline, BitErrorMemory, data, 0.1, 1.0, 1.0, 7, replace(SHORT, ramp=0.0))
    assert result.kept_epoch == len(result.history) - 1


def test_ranges_follow_the_weights_as_retraining_moves_them(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start of each epoch they are those of the weights as they are then."""
    baseline = train_baseline("lenet", Precision.INT8, data, 0, Training(1, 3e-3), Training(1, 5e-4))
    set_errors, scales = boosting._Retraining._set_errors, []

    def checked(retraining: boosting._Retraining, epoch: int) -> None:
        set_errors(retraining, epoch)
        anew = retraining.network.twin()
        anew.calibrate(data.train.batches(500), SHORT.ifm_quantile)
        assert {name: retraining.network.formats[name] for name in anew.formats if name.endswith("ifm")} == {
            name: found for name, found in anew.formats.items() if name.endswith("ifm")
        }
        scales.append(anew.formats["7.ifm"].scale)

    monkeypatch.setattr(boosting._Retraining, "_set_errors", checked)
    boost(baseline, BitErrorMemory, data, 1e-3, 1.0, 1.0, 7, SHORT)
    assert len(set(scales)) == 3


def test_weights_and_ranges_are_tightened(data: Dataset) -> None:
    baseline = train_baseline("lenet", Precision.INT8, data, 0, Training(1, 3e-3), Training(1, 5e-4))
    tight = Boosting(Training(2, 1e-3), highest=2.0, weight_limit=1.5, ifm_quantile=0.95)
    result = boost(baseline, BitErrorMemory, data, 1e-4, 1.0, 1.0, 7, tight)
    weight = result.network.module.get_parameter("7.weight").detach()
    assert float(weight.abs().max() / weight.std()) < 1.7
    assert result.network.formats["7.ifm"].scale < baseline.formats["7.ifm"].scale


def test_tolerance_is_interpolated_between_rates() -> None:
    def points(*pairs: tuple[float, float]) -> list[CurvePoint]:
        return [CurvePoint(ber, accuracy, accuracy, accuracy) for ber, accuracy in pairs]

    assert crossing(points((0, 1.0), (1e-3, 0.98), (1e-2, 0.96)), 0.97) == pytest.approx(10**-2.5)
    assert crossing(points((0, 1.0), (1e-3, 0.9)), 0.95) == pytest.approx(5e-4)
    assert crossing(points((0, 1.0), (1e-3, 0.99)), 0.95) == 1e-3


def test_a_baseline_that_tolerates_nothing_is_refused(data: Dataset) -> None:
    baseline = train_baseline("lenet", Precision.INT8, data, 0, Training(0, 1e-3), Training(0, 1e-3))
    with pytest.raises(NetworkError, match="tolerated BER 0 gives no scale"):
        boost(baseline, BitErrorMemory, data, 0, 0.01, 0.9, 0)
