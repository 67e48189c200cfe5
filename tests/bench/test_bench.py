"""The benchmark runner prints and keeps one line of JSON a figure."""

import json
from pathlib import Path

import pytest

from tests.bench import __main__ as runner
from tests.bench import mock

KEYS = ["bench", "name", "value", "unit", "bound", "ratio", "goal", "met"]


def test_figures_are_printed_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mock, "ROWS", 8)
    monkeypatch.setattr(mock, "REPEATS", 1)
    assert runner.main(["mock"]) == 0
    assert runner.main(["mock"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (tmp_path / "build/bench/mock.jsonl").read_text().splitlines() == lines
    assert len(lines) == 2 * len(mock.POINTS)
    for figure in map(json.loads, lines):
        assert list(figure) == KEYS
        reached = figure["value"] if figure["bound"] is None else figure["ratio"]
        assert figure["met"] == (reached >= figure["goal"])


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["speed"]) == 2
    assert "no benchmark is named speed" in capsys.readouterr().err
