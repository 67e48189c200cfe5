"""The study of networks writes a row for each, leaves out what is not installed, and goes on where it was."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eden import training
from eden.datasets import Dataset, mnist5000
from eden.training import Recipe, Training
from host.cli import networks_study
from host.cli.main import app
from profiles.errors import NetworkError, PlanError


def few_digits() -> Dataset:
    data = mnist5000()
    return Dataset("few", data.train.first(600), data.validation.first(80), data.test.first(100))


@pytest.mark.slow
def test_networks_writes_a_row_for_each_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs on a few digits: FP32 loses its accuracy at rates that it bears with bounding."""
    monkeypatch.setitem(training.RECIPES, "lenet", Recipe(few_digits, Training(2, 4e-3), Training(1, 5e-4)))
    monkeypatch.setattr(networks_study, "TARGET_DROP", 0.05)
    monkeypatch.setattr(networks_study, "RATIO", 3.0)
    monkeypatch.setattr(networks_study, "SEARCH_IMAGES", 80)
    monkeypatch.setattr(networks_study, "SHARES", (0.1, 0.5))
    arguments = [
        "study",
        "networks",
        "--out",
        str(tmp_path),
        "--network",
        "lenet",
        "--precision",
        "fp32",
        "--seeds",
        "1",
    ]
    arguments += ["--workers", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "networks.json").read_text())["rows"]
    assert [(row["network"], row["precision"], row["bounding"]) for row in rows] == [
        ("lenet", "fp32", "zero"),
        ("lenet", "fp32", "off"),
    ]
    bounded, unbounded = rows
    assert bounded["figure"] > 10 * unbounded["figure"]
    assert bounded["accuracy"] == unbounded["accuracy"] > 0.5
    low, high = bounded["accuracy_intervals"][0]
    assert low < bounded["accuracy"] < high
    for row in rows:
        assert (row["certified"], row["data"], row["images"], row["goal"], row["met"]) == (True, "few", 100, None, None)
        assert row["seeds"] == [1]
    assert (tmp_path / "networks.png").stat().st_size > 1000

    monkeypatch.setattr(networks_study.Task, "measured", lambda task: pytest.fail("measured again"))
    assert CliRunner().invoke(app, arguments).exit_code == 0
    refused = CliRunner().invoke(app, ["study", "networks", "--out", str(tmp_path), "--network", "vgg"])
    assert isinstance(refused.exception, PlanError)


def test_networks_leaves_out_what_is_not_installed_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there() -> Dataset:
        raise NetworkError("no clips; install them")

    monkeypatch.setattr(networks_study, "NETWORKS", {"lenet": None, "speaker": None})
    monkeypatch.setitem(training.RECIPES, "lenet", Recipe(few_digits))
    monkeypatch.setitem(training.RECIPES, "speaker", Recipe(not_there))
    done: list[str] = []

    def measured(task: networks_study.Task) -> Any:
        done.append(task.network)
        ber = 1e-3 if task.seed == 1 else 4e-3
        shared = {"network": task.network, "precision": task.precision.value, "bounding": task.bounding.value}
        counts = {"correct": 90, "total": 100, "accuracy_interval": [0.8, 0.95], "ber": ber, "certified": False}
        return shared | counts | {"seed": task.seed, "data": "few"}

    monkeypatch.setattr(networks_study.Task, "measured", measured)
    arguments = ["study", "networks", "--out", str(tmp_path), "--precision", "int8", "--seeds", "2", "--workers", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "without speaker: no clips; install them" in result.output
    assert done == ["lenet", "lenet"]
    (row,) = json.loads((tmp_path / "networks.json").read_text())["rows"]
    assert row["figure"] == pytest.approx(2e-3)
    assert row["interval"][0] < 1e-3 < 4e-3 < row["interval"][1]
    assert "smoke test" in result.output
