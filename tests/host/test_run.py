"""`eden run` on a small plan: a whole report, the same again, the same after kill -9, and one line where files are bad.

Networks are trained on few images for few epochs, in this process: what is tested is the run, not the method.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eden import boosting, training
from eden.datasets import Dataset, Split
from host.cli import main as cli
from host.cli import run as run_command
from host.cli import search, stages
from host.cli.search import RESULTS, SearchTask

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
vdd_mv = [1100, 1050, 1044, 1040, 1036, 1032, 1028, 1020, 1010]
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


def make_it_small() -> None:
    """Few images, few epochs, no worker processes."""
    whole = stages.dataset()
    few = Dataset(whole.name, whole.train.first(1500), part(whole.validation), part(whole.test))
    stages.dataset = lambda network="lenet": few  # type: ignore[assignment]
    short = replace(training.FLOAT_TRAINING, epochs=4)
    train_baseline = search.train_baseline
    search.train_baseline = lambda *a, **k: train_baseline(  # type: ignore[assignment]
        *a, **k, float_training=short, quantised_training=replace(training.QUANTISED_TRAINING, epochs=1)
    )
    settings = boosting.INTEGER_BOOSTING
    boosting.INTEGER_BOOSTING = replace(settings, training=replace(settings.training, epochs=3))  # type: ignore[misc]
    run_command.search_all = search_here  # type: ignore[assignment]


def part(split: Split) -> Split:
    return split.first(200)


def search_here(tasks: list[SearchTask]) -> list[dict[str, Any]]:
    found = []
    for task in tasks:
        kept = stages.kept_results(task.folder / RESULTS, task.key)
        if kept is None:
            kept = search.search(task, lambda _: lambda *_: None)
            stages.keep_results(task.folder / RESULTS, task.key, kept)
        found.append(kept)
    return found


def eden(*arguments: str | Path, wait: bool = True) -> "subprocess.Popen[str]":
    """The command in a process of its own, small."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    if wait:
        child.wait()
    return child


def written_plan(folder: Path) -> Path:
    file = folder / "plan.toml"
    file.write_text(PLAN.format(output=folder / "run"))
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a plan and its finished run."""
    folder = tmp_path_factory.mktemp("finished")
    child = eden("run", written_plan(folder))
    assert child.returncode == 0, child.communicate()[1]
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
    assert report["n_test"] == 200
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
    assert (shown["population"], shown["images"], shown["draws"], shown["batch"]) == ("this DIMM's map", 200, 1, 1)
    assert shown["rungs"][0]["drop"] < shown["rungs"][0]["drop_high"]
    assert "95 % confidence" in results["certificate_sentence"]
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
    child = eden("run", finished / "plan.toml")
    assert child.returncode == 0, child.communicate()[1]
    assert content(finished) == report
    assert state() == before


@pytest.mark.slow
def test_report_writes_the_page_again(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished / "run", copy)
    (copy / "report.html").unlink()
    child = eden("report", copy)
    assert child.returncode == 0, child.communicate()[1]
    assert (copy / "report.html").read_text() == (finished / "run" / "report.html").read_text()


DAMAGE = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "list": lambda text: "[]",
    "foreign": lambda text: '{"hello": "world"}',
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "foreign"])
@pytest.mark.parametrize("name", ["search.json", "dram.json"])
def test_damaged_results_are_one_line_or_made_anew(finished: Path, tmp_path: Path, name: str, damage: str) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    file = tmp_path / "run" / "int8" / name
    file.write_text(DAMAGE[damage](file.read_text()))
    child = eden("run", finished / "plan.toml", "--out", tmp_path / "run")
    error = child.communicate()[1]
    assert "Traceback" not in error
    if child.returncode == 0:
        assert content(tmp_path) == content(finished)
    else:
        assert error.startswith("eden: ")
        assert error.count("\n") == 1
        assert name in error


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
def test_a_run_killed_in_mid_search_ends_in_the_same_report(finished: Path, tmp_path: Path) -> None:
    plan = written_plan(tmp_path)
    shutil.copytree(finished / "run" / "profile", tmp_path / "run" / "profile")  # scans have kill tests of their own
    child = eden("run", plan, wait=False)
    while child.poll() is None and not (tmp_path / "run" / "model.parquet").exists():
        time.sleep(0.01)
    time.sleep(2)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "int8" / RESULTS).exists()
    again = eden("run", plan)
    assert again.returncode == 0, again.communicate()[1]
    assert content(tmp_path) == content(finished)


if __name__ == "__main__":
    make_it_small()
    cli.main()
