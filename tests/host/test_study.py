"""Studies write rows, say what they depend on, and go on where they were."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eden.approximate import ApproximateNetwork
from eden.precision import Precision
from eden.training import Training, train_baseline
from host.cli import placement_study
from host.cli.main import app
from profiles.errors import PlanError


def test_headline_prints_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "study/headline.json"
    chosen = ["--network", "SqueezeNet1.1", "--platform", "GPU", "--law", "linear"]
    result = CliRunner().invoke(app, ["study", "headline", "--out", str(out), *chosen])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert [(row["network"], row["platform"], row["precision"]) for row in written["rows"]] == [
        ("SqueezeNet1.1", "GPU", "fp32"),
        ("SqueezeNet1.1", "GPU", "int8"),
    ]
    assert all(row["law"] == "linear, I/O unscaled" for row in written["rows"])
    assert "37.0 %" in result.output
    assert "GDDR5" in result.output


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

    monkeypatch.setattr(placement_study.Task, "_measured", lambda task: pytest.fail("measured again"))
    assert CliRunner().invoke(app, arguments).exit_code == 0
    refused = CliRunner().invoke(app, [*arguments, "--memory", "model 9"])
    assert isinstance(refused.exception, PlanError)
    assert "choose from" in str(refused.exception)
