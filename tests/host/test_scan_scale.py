"""Scans of a module in parts: the same cells however they are cut, and counters that are the sums of those cells."""

from pathlib import Path

import numpy as np
import pytest

import host.scan
from host.board import Board
from host.boards import open_mock
from host.plan import ScanPlan
from host.scan import scan
from profiles.errors import LinkError, PlanError
from profiles.geometry import Geometry
from profiles.schema import PointRecord
from profiles.storage import Profile

GEOMETRY = Geometry(banks=4, rows=64, columns=256, data_width=64, subarray_rows=16)
PLAN = {
    "grid": [{"trcd_ps": 6000, "vdd_mv": [1350, 1150]}, {"trcd_ps": 8000, "vdd_mv": [1350]}],
    "patterns": ["0x00", "random:3/invert"],
    "rounds": 3,
    "banks": [0, 2, 3],
    "rows": {"start": 3, "count": 40},
    "write": ["nominal", "operating_point"],
    "cells": [
        {"banks": [2], "rows": {"start": 5, "count": 7}},
        {"banks": [0, 3], "rows": {"start": 40, "count": 3}},
    ],
}


def board() -> Board:
    return open_mock("B", 5, GEOMETRY)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the error rate first, as with a whole module."""
    monkeypatch.setattr(host.scan, "ONE_PART_CELLS", 0)


@pytest.fixture
def logged(tmp_path: Path) -> Profile:
    """Every cell of every point, in one part."""
    return scan(board(), ScanPlan.model_validate(PLAN), tmp_path / "logged")


def by_line(profile: Profile, record: PointRecord, bank: int, lines: int, line: np.ndarray) -> np.ndarray:
    cells = profile.cells(record.index, bank)
    at = line[cells.cell % GEOMETRY.bank_bits] * 2 + cells.stored
    return np.bincount(at, weights=cells.errors, minlength=2 * lines).reshape(-1, 2).astype(np.int64)


def test_counters_are_the_sums_of_the_cells(logged: Profile, tmp_path: Path, small_parts: None) -> None:
    counted = scan(board(), ScanPlan.model_validate(PLAN), tmp_path / "counted")
    every = np.arange(GEOMETRY.bank_bits)
    modes = set()
    for whole, record in zip(logged.points, counted.points, strict=True):
        assert (record.errors_zero_to_one, record.errors_one_to_zero) == (
            whole.errors_zero_to_one,
            whole.errors_one_to_zero,
        )
        modes.add(record.counted)
        if not record.counted:
            assert np.array_equal(counted.cells(record.index).cell, logged.cells(whole.index).cell)
            continue
        for bank in record.region.banks:
            lines = counted.lines(record.index, bank)
            rows = by_line(logged, whole, bank, GEOMETRY.rows, GEOMETRY.row(every))
            assert np.array_equal(lines.rows, rows[3:43])
            assert np.array_equal(
                lines.bitlines, by_line(logged, whole, bank, GEOMETRY.row_bits, every % GEOMETRY.row_bits)
            )
            assert np.array_equal(lines.lanes, by_line(logged, whole, bank, 64, every % 64))
        for area in record.known_cells:
            for bank in area.banks:
                rows = (area.row_start, area.row_count)
                found, truth = counted.cells(record.index, bank, rows), logged.cells(whole.index, bank, rows)
                assert np.array_equal(found.cell, truth.cell)
                assert np.array_equal(found.errors, truth.errors)
        assert counted.cells(record.index, 1).cell.size == 0
    assert modes == {False, True}
    counted.verify()


def test_parts_give_every_cell_once(
    logged: Profile, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut in many parts, reads come in another order and draw anew; the same cells fail at much the same rate."""
    monkeypatch.setattr(host.scan, "COUNTED_BER", 1.0)
    monkeypatch.setattr(host.scan, "PART_READS", 2000)
    plan = ScanPlan.model_validate(PLAN)
    parts = scan(board(), plan, tmp_path / "parts")
    parts.verify()
    for whole, record in zip(logged.points, parts.points, strict=True):
        assert not record.counted
        assert record.errors == pytest.approx(whole.errors, rel=0.05, abs=50)
        assert parts.cells(record.index).errors.sum() == record.errors
    # The first part is smaller for the harsher points: the rest of a point does not remember what came before.
    assert scan(board(), plan, tmp_path / "again").points[3].errors == parts.points[3].errors


def test_resumed_it_is_the_same(tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ScanPlan.model_validate(PLAN)
    whole = scan(board(), plan, tmp_path / "whole")
    measured = Board.line_counts
    calls = []

    def interrupted(self: Board, bank: int, rows: int) -> object:
        calls.append(bank)
        if len(calls) in (3, 20):
            raise KeyboardInterrupt
        return measured(self, bank, rows)

    monkeypatch.setattr(Board, "line_counts", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            scan(board(), plan, tmp_path / "resumed")
    resumed = scan(board(), plan, tmp_path / "resumed")
    for a, b in zip(whole.points, resumed.points, strict=True):
        when = {"started", "duration_s"}
        assert a.model_dump(exclude=when) == b.model_dump(exclude=when)
        assert np.array_equal(whole.cells(a.index).cell, resumed.cells(b.index).cell)
        if a.counted:
            assert np.array_equal(whole.lines(a.index, 2).bitlines, resumed.lines(b.index, 2).bitlines)
    assert not [file for file in (tmp_path / "resumed" / "points").iterdir() if file.name.startswith(".")]


def test_a_counter_read_wrong_is_found(tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = board()
    read = opened.memory

    def flipped(name: str, start: int, count: int) -> np.ndarray:
        words = read(name, start, count)
        if name == "bitline_errors":
            words = words.copy()
            words[7] ^= 4
        return words

    monkeypatch.setattr(opened, "memory", flipped)
    with pytest.raises(LinkError, match="do not reconcile"):
        scan(opened, ScanPlan.model_validate(PLAN), tmp_path / "profile")


def test_cells_outside_the_region_or_twice_are_refused(tmp_path: Path) -> None:
    for cells, says in (
        ([{"banks": [1], "rows": {"start": 5, "count": 7}}], "outside the region"),
        ([{"banks": [2], "rows": {"start": 5, "count": 70}}], "outside the region"),
        (
            [{"banks": [2], "rows": {"start": 5, "count": 3}}, {"banks": [0, 2], "rows": {"start": 7, "count": 3}}],
            "twice",
        ),
    ):
        with pytest.raises(PlanError, match=says):
            scan(board(), ScanPlan.model_validate(PLAN | {"cells": cells}), tmp_path / "profile")


def test_by_default_room_for_a_network_is_kept() -> None:
    dimm = Geometry(banks=16, rows=65536, columns=1024, data_width=64)
    everything = PLAN | {"banks": list(range(16)), "rows": {"count": 65536}, "cells": []}
    (region,) = ScanPlan.model_validate(everything).cell_regions(dimm)
    assert region.cells(dimm) == 8 * 64 << 20
