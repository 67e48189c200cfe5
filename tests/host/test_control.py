"""Control reads tell what the cells hold, and what the way between DRAM and FPGA does, from what was read wrong."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import host.mock
import host.scan
from host import chip as model
from host.board import Board
from host.boards import open_mock
from host.chip_presets import PRESETS, Preset
from host.cli.main import app
from host.plan import ScanPlan
from host.scan import scan
from profiles.geometry import Geometry
from profiles.schema import ControlReads, WriteCondition
from profiles.storage import Profile

GEOMETRY = Geometry(banks=2, rows=64, columns=256, data_width=64, subarray_rows=64)
PLAN = {
    "grid": [{"trcd_ps": 6000, "vdd_mv": [1350]}, {"trcd_ps": 14_000, "vdd_mv": [1350, 1200]}],
    "patterns": ["0x00", "random:3"],
    "rounds": 1,
    "banks": [0, 1],
    "rows": {"start": 8, "count": 32},
    "write": ["nominal", "operating_point"],
    "control": True,
}
CELLS = 2 * 32 * GEOMETRY.row_bits


def board() -> Board:
    return open_mock("B", 5, GEOMETRY)


def scanned(folder: Path, **changes: object) -> Profile:
    return scan(board(), ScanPlan.model_validate(PLAN | changes), folder)


def controls(profile: Profile, trcd_ps: int, write: WriteCondition) -> list[tuple[int, ControlReads]]:
    """Errors and control reads of the points there."""
    found = []
    for record in profile.points:
        if record.point.trcd_ps == trcd_ps and record.write_condition == write:
            assert record.control is not None
            found.append((record.errors, record.control))
    return found


def test_what_reads_restored_and_writes_left_is_told_from_read_errors(tmp_path: Path) -> None:
    profile = scanned(tmp_path / "p")
    persistence = PRESETS["B"].persistence
    for errors, control in controls(profile, 6000, WriteCondition.NOMINAL):
        assert errors > 10_000
        assert control.corrupted == pytest.approx(persistence * errors, rel=0.1)
    for errors, control in controls(profile, 6000, WriteCondition.OPERATING_POINT):
        # a cell that kept its old bit reads wrong at nominal too; those are the larger part of what is added
        assert control.corrupted > 0.2 * errors
        assert control.corrupted < errors
    for errors, control in controls(profile, 14_000, WriteCondition.NOMINAL):
        assert (errors, control.corrupted, control.path_errors) == (0, 0, 0)
    for record in profile.points:
        assert record.control is not None
        assert record.control.path_reads == 2 * 8 * (GEOMETRY.row_bits - GEOMETRY.burst_bits)


def test_what_is_measured_is_what_it_is_without_them(tmp_path: Path) -> None:
    with_them, without = scanned(tmp_path / "with"), scanned(tmp_path / "without", control=False)
    for a, b in zip(with_them.points, without.points, strict=True):
        np.testing.assert_array_equal(with_them.cells(a.index).cell, without.cells(b.index).cell)
        assert (a.errors, b.control) == (b.errors, None)
        assert a.refreshes == b.refreshes


def test_corrupted_cells_are_those_that_hold_the_wrong_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the chip's own contents, at the moment when the last round is over."""
    opened, plan = board(), ScanPlan.model_validate(PLAN | {"grid": PLAN["grid"][:1], "patterns": ["0x00"]})  # type: ignore[index]
    held: list[int] = []
    read_controls = host.scan.read_controls

    def look(*arguments: object) -> ControlReads:
        words = np.zeros(GEOMETRY.burst_bits // 32, np.int64)
        wrong = 0
        for bank in (0, 1):
            for row in range(8, 40):
                for burst in range(GEOMETRY.bursts_per_row):
                    chip = opened.bus._chip  # type: ignore[attr-defined]
                    model.words_of(chip, model.tag_of(chip, bank, row, burst), bank, row, burst, words)
                    wrong += sum(int(word).bit_count() for word in words)
        held.append(wrong)
        return read_controls(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(host.scan, "read_controls", look)
    profile = scan(opened, plan, tmp_path / "p")
    assert [record.control.corrupted for record in profile.points if record.control] == held
    assert min(held) > 100


def test_errors_between_dram_and_fpga_are_told_from_short_activation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below 1250 mV one cell in some thousand is weak however long a row has been open."""
    at_conditions = host.mock.set_conditions

    def noisy(chip: model.Chip, preset: Preset, vdd_uv: int, *rest: object) -> None:
        at_conditions(chip, preset, vdd_uv, *rest)  # type: ignore[arg-type]
        if vdd_uv < 1_250_000:
            chip.rate[model.READ] = np.maximum(chip.rate[model.READ], GEOMETRY.burst_bits * (1 << model.UNIT) // 1_000)

    monkeypatch.setattr(host.mock, "set_conditions", noisy)
    profile = scanned(tmp_path / "p")
    for record in profile.points:
        assert record.control is not None
        assert (record.control.path_errors > 20) == (record.point.vdd_mv == 1200)
    shown = CliRunner().invoke(app, ["profile", "show", str(tmp_path / "p")]).output
    assert "corrupted" in shown
    named = [line for line in shown.splitlines() if "between DRAM and FPGA" in line]
    assert [line.split(":")[0] for line in named] == ["1200 mV, 14 ns"]


def test_more_rounds_bring_control_reads_of_their_own(tmp_path: Path) -> None:
    scanned(tmp_path / "p")
    larger = ScanPlan.model_validate(PLAN | {"rounds": 3})
    extended, whole = scan(board(), larger, tmp_path / "p", extend=True), scan(board(), larger, tmp_path / "whole")
    assert [record.control for record in extended.points] == [record.control for record in whole.points]
