"""`eden run` on a small plan: a whole report, the same again, the same after kill -9, and one line where files are bad.

Networks are trained on few images for few epochs, in this process: what is tested is the run, not the method.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from eden import boosting, training
from eden.approximate import ApproximateNetwork
from eden.datasets import Dataset, Split
from eden.inference import predict_accuracy
from eden.mapping import DramMapping
from host.cli import main as cli
from host.cli import run as run_command
from host.cli import search, stages
from host.cli.inference import moved_to
from host.cli.modules import Modules
from host.cli.search import DRAM_RESULTS, MAPPING, NETWORK, RESULTS, SearchTask
from profiles.errors import PlanError
from profiles.progress import Progress, silent
from profiles.schema import OperatingPoint

PLAN = """
board = "mock:B:1"
output = "{output}"
[scan]
banks = [0, 1]
rows = {{ start = 0, count = 16 }}
patterns = ["0x00", "0xFF"]
rounds = 4
write = ["nominal", "operating_point"]
[[scan.grid]]
trcd_ps = 14000
vdd_mv = [1350]
[[scan.grid]]
trcd_ps = 10000
vdd_mv = [1100, 1050, 1044, 1036, 1028, 1010]
[network]
precisions = ["int8"]
target_drop_pct = 5
draws = 2
batch = 25
"""
KEYS = {"target_drop_pct", "n_test", "nominal_vdd_mv", "nominal_trcd_ps"}
PRECISION_KEYS = {
    *("baseline_accuracy", "accuracy_on_dram", "vdd_mv", "trcd_ps", "ber", "ber_tolerated_before"),
    *("ber_tolerated_after", "error_model", "accuracy_predicted", "flips_read", "next_point_accuracy"),
}


def make_it_small(patch: pytest.MonkeyPatch) -> None:
    """Few images, few epochs, no worker processes."""
    whole = stages.dataset()
    few = Dataset(whole.name, whole.train.first(1000), part(whole.validation), part(whole.test))
    patch.setattr(stages, "dataset", lambda network="lenet": few)
    short = replace(training.FLOAT_TRAINING, epochs=4)
    train_baseline = search.train_baseline

    def train_shortly(*arguments: Any, **named: Any) -> ApproximateNetwork:
        quantised = replace(training.QUANTISED_TRAINING, epochs=1)
        return train_baseline(*arguments, **named, float_training=short, quantised_training=quantised)

    patch.setattr(search, "train_baseline", train_shortly)
    settings = boosting.INTEGER_BOOSTING
    quick = replace(settings, training=replace(settings.training, epochs=3))
    patch.setattr(boosting, "INTEGER_BOOSTING", quick)
    patch.setattr(run_command, "search_all", search_here)


def part(split: Split) -> Split:
    return split.first(100)


def search_here(tasks: list[SearchTask]) -> list[dict[str, Any]]:
    found = []
    for task in tasks:
        kept = stages.kept_results(task.folder / RESULTS, task.key)
        if kept is None:
            kept = search.search(task, tell)
            stages.keep_results(task.folder / RESULTS, task.key, kept)
        found.append(kept)
    return found


def tell(title: str) -> Progress:
    print(f"searching: {title}", flush=True)
    return silent


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        make_it_small(patch)
        yield


def eden(*arguments: str | Path) -> None:
    """The command in this process."""
    typer.main.get_command(cli.app).main(list(map(str, arguments)), standalone_mode=False)


def written_plan(folder: Path) -> Path:
    file = folder / "plan.toml"
    file.write_text(PLAN.format(output=folder / "run"))
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a plan and its finished run."""
    folder = tmp_path_factory.mktemp("finished")
    eden("run", written_plan(folder))
    return folder


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "report.json").read_text())
    return found


@pytest.mark.slow
def test_the_report_holds_what_it_must(finished: Path) -> None:
    report = content(finished)
    assert report.keys() >= KEYS
    assert set(report["precisions"]) == {"int8"}
    results = report["precisions"]["int8"]
    assert results.keys() >= PRECISION_KEYS
    assert report["n_test"] == 100
    assert 0 < results["vdd_mv"] < report["nominal_vdd_mv"]
    assert 0 < results["trcd_ps"] < report["nominal_trcd_ps"]
    assert results["flips_read"] == sum(tensor["flips_read"] for tensor in results["tensors"])
    assert results["accuracy_low"] <= results["accuracy_on_dram"] <= results["accuracy_high"]
    platforms = [row["platform"] for row in results["savings"]]
    assert platforms == ["CPU, DDR3L", "CPU without prefetch, DDR3L", "GPU, DDR3L", "Eyeriss, DDR3L", "TPU, DDR3L"]
    for row in results["savings"]:
        assert (row["vdd_cut_mv"], row["operating_point"]) == (1350 - results["vdd_mv"], "measured")
        assert 0 < row["energy_saved_low"] <= row["energy_saved"] <= row["energy_saved_high"] < 1
    assert results["target_met"] == (results["accuracy_on_dram"] >= results["baseline_accuracy"] - 0.05)
    shown = results["certificate"]
    assert (shown["population"], shown["images"], shown["draws"], shown["batch"]) == ("this DIMM's map", 100, 1, 1)
    assert shown["rungs"][0]["drop"] < shown["rungs"][0]["drop_high"]
    assert "95 % confidence" in results["certificate_sentence"]
    unshown = "Validation images showed it at no operating point" in results["certificate_sentence"]
    assert unshown == (results["shown_on_validation"] is False)
    assert results["certificate_sentence"].replace("'", "&#x27;") in (finished / "run" / "report.html").read_text()


@pytest.mark.slow
def test_the_page_needs_nothing_from_elsewhere(finished: Path) -> None:
    page = (finished / "run" / "report.html").read_text()
    references = re.findall(r"""(?:src|href|url|action|srcset)\s*[=(]\s*["']?([^"'\s>)]+)""", page)
    assert references
    assert all(reference.startswith("data:image/") for reference in references)
    assert "@import" not in page
    assert not re.search(r"<(script|link|iframe|object)\b", page)


@pytest.mark.slow
def test_running_again_makes_nothing_anew(finished: Path) -> None:
    def state() -> dict[str, int]:
        made = [*(finished / "run" / "profile").rglob("*.parquet"), *(finished / "run" / "int8").iterdir()]
        return {str(file): file.stat().st_mtime_ns for file in made}

    before, report = state(), content(finished)
    eden("run", finished / "plan.toml")
    assert content(finished) == report
    assert state() == before


@pytest.mark.slow
def test_report_writes_the_page_again(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished / "run", copy)
    (copy / "report.html").unlink()
    eden("report", copy)
    assert (copy / "report.html").read_text() == (finished / "run" / "report.html").read_text()


DAMAGE = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "list": lambda text: "[]",
    "foreign": lambda text: '{"hello": "world"}',
}


@pytest.mark.slow
def test_a_damaged_check_on_dram_is_made_anew(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    file = tmp_path / "run" / "int8" / DRAM_RESULTS
    file.write_text(DAMAGE["truncated"](file.read_text()))
    eden("run", finished / "plan.toml", "--out", tmp_path / "run")
    assert content(tmp_path) == content(finished)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [*DAMAGE, "hollow"])
def test_damaged_reports_are_one_line(
    finished: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    file = tmp_path / "run" / "report.json"
    hollow = {"hollow": lambda text: '{"format": "eden-run", "version": 2}'}
    file.write_text({**DAMAGE, **hollow}[damage](file.read_text()))
    monkeypatch.setattr(sys, "argv", ["eden", "report", str(tmp_path / "run")])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit):
        cli.main()
    error = capsys.readouterr().err
    assert error.startswith("eden: ")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_point_without_errors_is_reported_without_an_error_model(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    folder, safe = tmp_path / "run" / "int8", OperatingPoint(vdd_mv=1100, trcd_ps=10000)
    mapping = DramMapping.load(folder / MAPPING)
    moved_to(mapping, lambda _: safe).save(folder / MAPPING)
    (folder / DRAM_RESULTS).unlink()
    eden("run", written_plan(tmp_path))
    results = content(tmp_path)["precisions"]["int8"]
    assert (results["vdd_mv"], results["flips_read"], results["error_model"]) == (1100, 0, None)
    assert results["accuracy_predicted"] == results["accuracy_predicted_cells"] == results["accuracy_on_dram"]
    assert "No error model is determined there" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_a_run_that_places_by_significance_loses_less(finished: Path, tmp_path: Path) -> None:
    """By a profile of more rounds: of few, too much is unseen of the cells that bits which matter lie on."""
    plan = written_plan(tmp_path)
    plan.write_text(plan.read_text().replace("rounds = 4", "rounds = 12") + "significance = true\n")
    eden("run", plan)
    before, placed = (content(each)["precisions"]["int8"] for each in (finished, tmp_path))
    assert DramMapping.load(tmp_path / "run" / "int8" / MAPPING).significance is not None
    assert placed["vdd_mv"] <= before["vdd_mv"]
    assert placed["flips_read"] > 10_000
    folder, modules = tmp_path / "run" / "int8", Modules.open([tmp_path / "run" / "profile"])
    network, data = stages.load_network(folder / NETWORK), stages.dataset("lenet")
    harsh, images = OperatingPoint(vdd_mv=1010, trcd_ps=10000), DramMapping.load(folder / MAPPING).images
    anywhere = {tensor.name: 1.0 for tensor in network.tensors()}
    by_significance = stages.by_significance(network, data.validation, modules, images)(harsh)
    as_it_comes = stages.by_tolerances(network, anywhere, modules, images)(harsh)
    means = [
        predict_accuracy(network, each.memory, data.test.images, data.test.labels, 4, images).mean
        for each in (by_significance, as_it_comes)
    ]
    assert means[0] > means[1] + 0.05
    assert placed["cells_prediction_agrees"]
    assert placed["target_met"]
    notes = " ".join(content(tmp_path)["notes"])
    assert "weak cells ages" in notes
    assert "tolerances guide the placement" not in notes
    assert any(", " in tensor["partition"] for tensor in placed["tensors"])


@pytest.mark.slow
def test_a_run_of_a_plan_that_reads_row_by_row_is_refused_before_it_scans(tmp_path: Path) -> None:
    plan = written_plan(tmp_path)
    text = plan.read_text().replace("rounds = 4", 'rounds = 4\naccess_mode = "linear"')
    plan.write_text(re.sub(r"\[\[scan.grid\]\]\ntrcd_ps = 10000\n.*\n", "", text))
    with pytest.raises(PlanError, match="reads row by row"):
        eden("run", plan)
    assert not (tmp_path / "run" / "profile").exists()


@pytest.mark.slow
def test_a_run_killed_in_mid_search_whose_results_are_damaged_ends_in_the_same_report(
    finished: Path, tmp_path: Path
) -> None:
    plan = written_plan(tmp_path)
    shutil.copytree(finished / "run" / "profile", tmp_path / "run" / "profile")  # scans have kill tests of their own
    child = subprocess.Popen([sys.executable, __file__, "run", plan], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert "searching: boost\n" in iter(child.stdout.readline, "")
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    results = tmp_path / "run" / "int8" / RESULTS
    assert not results.exists()
    results.parent.mkdir(exist_ok=True)
    results.write_text(DAMAGE["truncated"]((finished / "run" / "int8" / RESULTS).read_text()))
    eden("run", plan)
    assert content(tmp_path) == content(finished)


if __name__ == "__main__":
    make_it_small(pytest.MonkeyPatch())
    cli.main()
