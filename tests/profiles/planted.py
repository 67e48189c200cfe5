"""Synthetic profiles whose weak cells are known: the truth that storage, fits and statistics must give back."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from profiles.cells import CellCounts, LineCounts, WeakCells
from profiles.geometry import CellArray, Geometry
from profiles.pattern import Pattern, stored_bits
from profiles.schema import (
    AccessMode,
    ModuleIdentity,
    OperatingPoint,
    PointRecord,
    ProfileHeader,
    Region,
    WriteCondition,
)
from profiles.storage import Profile

POINT = OperatingPoint(vdd_mv=1100, trcd_ps=7500)
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def small_geometry() -> Geometry:
    """131,072 cells: 2 banks of 64 rows, 64 columns, 16 data lines, subarrays of 32 rows."""
    return Geometry(banks=2, rows=64, columns=64, data_width=16, subarray_rows=32)


def whole(geometry: Geometry) -> Region:
    return Region(banks=tuple(range(geometry.banks)), row_start=0, row_count=geometry.rows)


def header(geometry: Geometry, planned_points: int) -> ProfileHeader:
    return ProfileHeader(
        module=ModuleIdentity(
            manufacturer="Example",
            part_number="EX-1",
            serial_number="0001",
            dram_type="DDR3L",
            nominal_vdd_mv=1350,
            nominal_trcd_ps=13750,
        ),
        geometry=geometry,
        board="mock:example",
        tck_ps=1250,
        seed=1,
        plan={"points": planned_points},
        planned_points=planned_points,
        tools={"eden": "0.1.0"},
        created=STARTED,
    )


def region_cells(geometry: Geometry, region: Region, bank: int) -> CellArray:
    first = bank * geometry.bank_bits + region.row_start * geometry.row_bits
    return np.arange(first, first + region.row_count * geometry.row_bits, dtype=np.int64)


def counts(
    geometry: Geometry, weak: WeakCells, pattern: Pattern, region: Region, rounds: int, rng: np.random.Generator
) -> CellCounts:
    """Draw ``rounds`` reads of every weak cell that lies in ``region``."""
    bank, row = geometry.bank(weak.cell), geometry.row(weak.cell)
    inside = np.isin(bank, region.banks) & (row >= region.row_start) & (row < region.row_start + region.row_count)
    stored = stored_bits(pattern, geometry, weak.cell)
    errors = rng.binomial(rounds, np.where(stored == 1, weak.flip_one, weak.flip_zero)) * inside
    failed = errors > 0
    return CellCounts(weak.cell[failed], errors[failed].astype(np.uint16), stored[failed])


def record(
    geometry: Geometry,
    cells: CellCounts,
    index: int = 0,
    *,
    pattern: Pattern | None = None,
    region: Region | None = None,
    rounds: int = 4,
    point: OperatingPoint = POINT,
    write_condition: WriteCondition = WriteCondition.NOMINAL,
) -> PointRecord:
    """A record that reconciles with ``cells``."""
    pattern = pattern or Pattern.parse("0xAA")
    region = region or whole(geometry)
    ones = tuple(
        int(stored_bits(pattern, geometry, region_cells(geometry, region, bank)).sum()) for bank in region.banks
    )
    return PointRecord(
        index=index,
        epoch=index + 1,
        point=point,
        trcd_clocks=max(1, point.trcd_ps // 1250),
        vdd_measured_mv=point.vdd_mv + 0.4,
        vdd_uncertainty_mv=1.0,
        temperature_c=25.0,
        write_condition=write_condition,
        write_vdd_mv=1350,
        write_trcd_ps=13750,
        pattern=pattern,
        access_mode=AccessMode.BURST_PER_ACTIVATION,
        rewritten_each_round=True,
        refresh="kept",
        region=region,
        rounds=rounds,
        stored_ones=ones,
        errors_zero_to_one=cells.errors_zero_to_one,
        errors_one_to_zero=cells.errors_one_to_zero,
        started=STARTED,
        duration_s=0.25,
    )


def profile(
    path: Path,
    geometry: Geometry,
    weak: WeakCells,
    patterns: Sequence[str] = ("0xFF", "0x00", "0xAA", "0x55"),
    *,
    rounds: int = 8,
    region: Region | None = None,
    point: OperatingPoint = POINT,
    seed: int = 1,
) -> Profile:
    """A complete profile of one operating point: each pattern read ``rounds`` times from a module with ``weak``."""
    rng = np.random.default_rng(seed)
    region = region or whole(geometry)
    made = Profile.create(path, header(geometry, len(patterns)))
    for index, text in enumerate(patterns):
        pattern = Pattern.parse(text)
        cells = counts(geometry, weak, pattern, region, rounds, rng)
        made.append(record(geometry, cells, index, pattern=pattern, region=region, rounds=rounds, point=point), cells)
    return made


def random_weak(geometry: Geometry, count: int, seed: int = 1) -> WeakCells:
    """``count`` weak cells anywhere in the module, each with probabilities of its own."""
    rng = np.random.default_rng(seed)
    cell = np.sort(rng.choice(geometry.cells, count, replace=False)).astype(np.int64)
    return WeakCells(cell, rng.uniform(0.2, 0.9, count), rng.uniform(0.2, 0.9, count))


def inside(geometry: Geometry, region: Region, cells: CellCounts) -> CellCounts:
    """Those of ``cells`` that lie in ``region``."""
    rows = np.isin(geometry.row(cells.cell), np.arange(region.row_start, region.row_end))
    here = rows & np.isin(geometry.bank(cells.cell), region.banks)
    return CellCounts(cells.cell[here], cells.errors[here], cells.stored[here])


def lines(geometry: Geometry, region: Region, bank: int, cells: CellCounts) -> LineCounts:
    """The counters that ``cells`` would have left in one bank of ``region``."""
    here = inside(geometry, region.model_copy(update={"banks": (bank,)}), cells)

    def summed(line: CellArray, size: int) -> np.ndarray:
        counts = np.bincount(line * 2 + here.stored, weights=here.errors, minlength=2 * size)
        return counts.reshape(-1, 2).astype(np.int64)

    return LineCounts(
        bank,
        summed(geometry.row(here.cell) - region.row_start, region.row_count),
        summed(here.cell % geometry.row_bits, geometry.row_bits),
        summed(geometry.dq(here.cell), geometry.data_width),
    )
