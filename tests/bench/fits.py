"""Benchmark: fitting every error model to a DIMM-sized point, 1e8 tested cells of which a million failed.

Weak cells follow wordlines and stored bits at once, four patterns are read eight times each, as a scan does. The fit
runs in a process of its own, by wall clock, on data that are already collected; peak memory is that process's, its
interpreter, libraries and data included. The data come from a file, so that making them costs that process nothing.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from profiles.fit import fit_population
from profiles.geometry import CellArray, Geometry
from profiles.pattern import Pattern
from profiles.population import Integers, Population, Section
from profiles.schema import AccessMode, OperatingPoint, PointRecord, Region, WriteCondition

SECONDS, GIB = 10.0, 2.0
GEOMETRY = Geometry(banks=8, rows=2048, columns=1024, data_width=64)
ROWS = 192  # of each bank: 1.007e8 cells
PATTERNS, ROUNDS = ("0x00", "0xFF", "0xAA", "0x55"), 8
WEAK_FRACTION, FLIP_ZERO, FLIP_ONE = 0.01, 0.2, 0.5
POINT = OperatingPoint(vdd_mv=1100, trcd_ps=7500)


def figures() -> Iterator[dict[str, Any]]:
    """Seconds and peak memory of one fit."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cells.npz"
        np.savez(file, *_cells())
        child = subprocess.run(
            [sys.executable, "-m", "tests.bench.fits", str(file)], check=True, capture_output=True, text=True
        )
    seconds, kib, failing = (float(value) for value in child.stdout.split())
    yield _figure("failing_cells", failing, "cells", 1e6, at_most=False)
    yield _figure("fit_all_models", seconds, "s", SECONDS)
    yield _figure("fit_all_models_peak_memory", kib / (1 << 20), "GiB", GIB)


def _figure(name: str, value: float, unit: str, goal: float, at_most: bool = True) -> dict[str, Any]:
    head = {"bench": "fits", "name": name, "value": value, "unit": unit, "bound": None, "ratio": None}
    return {**head, "goal": goal, "met": value <= goal if at_most else value >= goal}


def _cells() -> tuple[CellArray, Integers, Integers]:
    """Cells that failed, and their failures while storing 0 and 1, of `ROUNDS` x 2 reads each."""
    rng = np.random.default_rng(1)
    found = []
    for bank in range(GEOMETRY.banks):
        for row, factor in enumerate(rng.gamma(1.5, 1 / 1.5, ROWS).tolist()):
            weak = np.flatnonzero(rng.random(GEOMETRY.row_bits) < WEAK_FRACTION * 1.07 * factor)
            found.append((bank * GEOMETRY.rows + row) * GEOMETRY.row_bits + weak)
    cell = np.concatenate(found).astype(np.int64)
    errors = [rng.binomial(2 * ROUNDS, flip, cell.size) for flip in (FLIP_ZERO, FLIP_ONE)]
    failed = sum(errors) > 0
    return cell[failed], errors[0][failed], errors[1][failed]


def _population(file: Path) -> Population:
    with np.load(file) as arrays:
        cell, errors_zero, errors_one = (arrays[f"arr_{k}"] for k in range(3))
    banks = tuple(range(GEOMETRY.banks))
    region = Region(banks=banks, row_start=0, row_count=ROWS)
    records = tuple(_record(index, Pattern.parse(text), region) for index, text in enumerate(PATTERNS))
    reads = ROUNDS * len(records)
    sections = tuple(Section(bank, 0, ROWS, tuple(range(len(records))), reads) for bank in banks)
    trials = np.full(cell.size, reads // 2)
    return Population(GEOMETRY, banks, records, sections, cell, trials, trials, errors_zero, errors_one)


def _record(index: int, pattern: Pattern, region: Region) -> PointRecord:
    return PointRecord(
        index=index,
        epoch=index,
        point=POINT,
        trcd_clocks=6,
        vdd_measured_mv=POINT.vdd_mv,
        vdd_uncertainty_mv=1.0,
        temperature_c=None,
        write_condition=WriteCondition.NOMINAL,
        write_vdd_mv=1350,
        write_trcd_ps=13750,
        pattern=pattern,
        access_mode=AccessMode.BURST_PER_ACTIVATION,
        rewritten_each_round=True,
        refresh="kept",
        region=region,
        rounds=ROUNDS,
        stored_ones=(0,) * len(region.banks),
        errors_zero_to_one=0,
        errors_one_to_zero=0,
        started=datetime(2026, 1, 1, tzinfo=UTC),
        duration_s=0.0,
    )


if __name__ == "__main__":
    data = _population(Path(sys.argv[1]))
    begun = time.perf_counter()
    fit_population(data, POINT, WriteCondition.NOMINAL)
    seconds = time.perf_counter() - begun
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, data.cell.size)
