"""Benchmark: error profiles at the size of a DIMM: appended while scanning, loaded in part, and against other formats.

Cells fail at random positions, with flip probabilities between never and always as those of weak cells are. What such
data must take at least is their entropy: log2 of the number of ways to choose the failing cells and to give them their
counts. All times are of this process, files synced to disk, by wall clock; medians over `REPEATS`.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.special import gammaln

from profiles import points
from profiles.cells import CellCounts, LineCounts
from profiles.counting import FailureCounts
from profiles.geometry import Geometry
from profiles.pattern import Pattern, stored_bits
from profiles.population import stored_ones
from profiles.schema import AccessMode, ModuleIdentity, OperatingPoint, PointRecord, ProfileHeader, Region
from profiles.storage import Profile

REPEATS = 5
DIMM = Geometry(banks=16, rows=65536, columns=1024, data_width=64)  # 8 GiB
PATTERN, ROUNDS = Pattern.parse("checker"), 8
FAILING_CELLS = 2_000_000  # of a region, at the rates of `SIZE_RATES`
SIZE_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 5e-2, 0.2)
APPEND_RATES = (1e-5, 1e-3, 5e-2)
APPENDED_READS = 16_000_000
LOG_READS = 1 << 15  # failing bits that the host drains from the log at a time
LOADED_RATE, COUNTED_RATE = 1e-3, 5e-2
ERRORS_PER_S, LOAD_S, LOAD_SHARE, ENTROPY = 20e6, 0.2, 1.5, 1.35


def figures() -> Iterator[dict[str, Any]]:
    """About half a minute; needs some 300 MB of temporary disk."""
    with tempfile.TemporaryDirectory() as folder:
        for part in (_appending, _sizes, _other_formats, _loading, _counters):
            yield from part(Path(folder))


def _figure(
    name: str, value: float, unit: str, bound: float | None, goal: float | None, at_most: bool = True
) -> dict[str, Any]:
    ratio = None if bound is None else value / bound
    reached = value if ratio is None else ratio
    met = None if goal is None else (reached <= goal if at_most else reached >= goal)
    head = {"bench": "profiles", "name": name, "value": value, "unit": unit, "bound": bound, "ratio": ratio}
    return {**head, "goal": goal, "met": met}


# ---- data ------------------------------------------------------------------------------------------------------------


def _region(rate: float, failing: int) -> Region:
    """As many rows of all banks as have about ``failing`` failing cells."""
    rows = round(failing / rate / DIMM.row_bits / DIMM.banks)
    return Region(banks=tuple(range(DIMM.banks)), row_start=0, row_count=min(DIMM.rows, max(1, rows)))


def _bank(region: Region, bank: int, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cells of one bank that fail at ``rate``, and the flip probability of each, given that it failed once."""
    size = region.row_count * DIMM.row_bits
    gaps = rng.geometric(rate, int(size * rate * 1.1) + 100)
    cell = np.cumsum(gaps) - 1
    cell = cell[cell < size] + (bank * DIMM.rows + region.row_start) * DIMM.row_bits
    return cell, rng.beta(0.6, 0.6, cell.size)


def _counts(flip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.maximum(1, rng.binomial(ROUNDS, flip)).astype(np.uint16)


def _cells(region: Region, rate: float, seed: int) -> CellCounts:
    rng = np.random.default_rng(seed)
    found = [_bank(region, bank, rate, rng) for bank in region.banks]
    cell = np.concatenate([cell for cell, _ in found])
    errors = _counts(np.concatenate([flip for _, flip in found]), rng)
    return CellCounts(cell, errors, stored_bits(PATTERN, DIMM, cell))


def _log(region: Region, rate: float, seed: int) -> list[np.ndarray]:
    """Failing cells in the order and the pieces in which a board reports them: by round, row, burst, then bank."""
    rng = np.random.default_rng(seed)
    found = [_bank(region, bank, rate, rng) for bank in region.banks]
    cell, flip = (np.concatenate([each[k] for each in found]) for k in (0, 1))
    order = np.argsort(DIMM.row(cell) * DIMM.bursts_per_row + DIMM.column(cell) // DIMM.burst_length, kind="stable")
    cell, flip = cell[order], flip[order]
    pieces = []
    for _ in range(ROUNDS):
        failed = cell[rng.random(cell.size) < flip]
        pieces += np.array_split(failed, max(1, failed.size // LOG_READS))
    return pieces


def _profile(path: Path, count: int = 1) -> Profile:
    module = ModuleIdentity(
        manufacturer="bench",
        part_number="8 GiB",
        serial_number="0",
        dram_type="DDR3L",
        nominal_vdd_mv=1350,
        nominal_trcd_ps=13750,
    )
    return Profile.create(
        path,
        ProfileHeader(
            module=module,
            geometry=DIMM,
            board="bench",
            tck_ps=1250,
            seed=1,
            plan={},
            planned_points=count,
            tools={},
            created=datetime.now(UTC),
        ),
    )


def _record(
    index: int, region: Region, errors: tuple[int, int], parts: tuple[Region, ...] | None = None
) -> PointRecord:
    return PointRecord(
        index=index,
        epoch=index,
        point=OperatingPoint(vdd_mv=1100, trcd_ps=7500),
        trcd_clocks=6,
        vdd_measured_mv=1100.0,
        vdd_uncertainty_mv=1.0,
        temperature_c=50.0,
        write_condition="nominal",
        write_vdd_mv=1350,
        write_trcd_ps=13750,
        pattern=PATTERN,
        access_mode=AccessMode.BURST_PER_ACTIVATION,
        rewritten_each_round=True,
        refresh="kept",
        region=region,
        rounds=ROUNDS,
        stored_ones=_stored_ones(region),
        cell_regions=parts,
        errors_zero_to_one=errors[0],
        errors_one_to_zero=errors[1],
        started=datetime.now(UTC),
        duration_s=1.0,
    )


@lru_cache
def _stored_ones(region: Region) -> tuple[int, ...]:
    return tuple(stored_ones(PATTERN, DIMM, bank, region.row_start, region.row_count) for bank in region.banks)


def _entropy_bytes(cells: CellCounts, region: Region) -> float:
    """Of positions and counts, given how many cells failed how often: log2 of the multinomial coefficient, in bytes."""
    times = np.bincount(cells.errors, minlength=1)
    times[0] = region.cells(DIMM) - cells.cell.size
    bits = (gammaln(times.sum() + 1.0) - gammaln(times + 1.0).sum()) / np.log(2)
    return float(bits / 8)


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _size(profile: Profile, index: int) -> int:
    return sum(file.stat().st_size for file in profile.files(index))


# ---- what is measured ------------------------------------------------------------------------------------------------


def _appending(folder: Path) -> Iterator[dict[str, Any]]:
    """From failing cells as the log delivers them to a finished point on disk."""
    for rate in APPEND_RATES:
        region = _region(rate, APPENDED_READS // ROUNDS * 2)
        pieces = _log(region, rate, 1)
        reads = sum(piece.size for piece in pieces)
        profile = _profile(folder / f"append_{rate:g}", REPEATS + 1)

        def append(index: int, profile=profile, region=region, pieces=pieces) -> None:  # type: ignore[no-untyped-def]
            with profile.writing(index, region, PATTERN, ROUNDS) as point:
                failures = FailureCounts()
                for piece in pieces:
                    failures.add(piece)
                cell, errors = failures.take()
                edges = np.searchsorted(cell, np.arange(DIMM.banks + 1) * DIMM.bank_bits)
                for bank in region.banks:
                    part = slice(int(edges[bank]), int(edges[bank + 1]))
                    point.add(bank, region.row_start, region.row_count, cell[part], errors[part])
                point.finish(_record(index, region, point.errors))

        append(0)  # numba compiles
        seconds = statistics.median(_seconds(lambda k=k: append(k)) for k in range(1, REPEATS + 1))
        yield _figure(f"append_ber_{rate:g}", reads / seconds, "errors/s", None, ERRORS_PER_S, at_most=False)


def _sizes(folder: Path) -> Iterator[dict[str, Any]]:
    """Everything on disk, metadata included."""
    profile = _profile(folder / "sizes", len(SIZE_RATES))
    for index, rate in enumerate(SIZE_RATES):
        region = _region(rate, FAILING_CELLS)
        cells = _cells(region, rate, 2)
        profile.append(_record(index, region, (cells.errors_zero_to_one, cells.errors_one_to_zero)), cells)
        yield _figure(f"size_ber_{rate:g}", _size(profile, index), "bytes", _entropy_bytes(cells, region), ENTROPY)


def _other_formats(folder: Path) -> Iterator[dict[str, Any]]:
    """The same columns, cell and errors, in HDF5 as its users compress it, in HDF5 uncompressed, and in CSV."""
    region = _region(1e-3, FAILING_CELLS)
    cells = _cells(region, 1e-3, 3)
    record = _record(0, region, (cells.errors_zero_to_one, cells.errors_one_to_zero))
    table = pd.DataFrame({"cell": cells.cell, "errors": cells.errors})

    def ours_write(path: Path) -> None:
        _profile(path, 1).append(record, cells)

    def hdf5_write(path: Path, **options: Any) -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset("cell", data=cells.cell, **options)
            file.create_dataset("errors", data=cells.errors, **options)
        _sync(path)

    def hdf5_read(path: Path) -> None:
        with h5py.File(path, "r") as file:
            assert file["cell"][:].size == file["errors"][:].size == cells.cell.size

    def csv_write(path: Path) -> None:
        table.to_csv(path, index=False)
        _sync(path)

    ways: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
        "ours": (ours_write, lambda path: Profile.open(path).cells(0)),
        "hdf5": (lambda path: hdf5_write(path, compression="gzip", shuffle=True), hdf5_read),
        "hdf5_uncompressed": (hdf5_write, hdf5_read),
        "csv": (csv_write, pd.read_csv),
    }
    found: dict[str, tuple[float, float, int]] = {}
    for name, (write, read) in ways.items():
        paths = [folder / f"{name}{k}" for k in range(REPEATS)]
        written = statistics.median(_seconds(lambda path=path, write=write: write(path)) for path in paths)
        loaded = statistics.median(_seconds(lambda path=path, read=read: read(path)) for path in paths)
        files = [paths[0]] if paths[0].is_file() else [file for file in paths[0].rglob("*") if file.is_file()]
        found[name] = (written, loaded, sum(file.stat().st_size for file in files))
    for name in ("hdf5", "hdf5_uncompressed", "csv"):
        for what, unit, ours, theirs in zip(
            ("write", "read", "size"), ("s", "s", "bytes"), found["ours"], found[name], strict=True
        ):
            # Uncompressed, HDF5 is a copy of memory: it is faster, and several times larger. Reported, not aimed at.
            goal = None if name == "hdf5_uncompressed" and what != "size" else 1.0
            yield _figure(f"{what}_against_{name}", ours, unit, theirs, goal)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _loading(folder: Path) -> Iterator[dict[str, Any]]:
    """One bank of sixteen, at the highest rate at which every cell of a DIMM is kept."""
    region = Region(banks=tuple(range(DIMM.banks)), row_start=0, row_count=DIMM.rows)
    profile = _profile(folder / "dimm")
    rng = np.random.default_rng(4)
    sizes = []
    with profile.writing(0, region, PATTERN, ROUNDS) as point:
        for bank in region.banks:
            cell, flip = _bank(region, bank, LOADED_RATE, rng)
            point.add(bank, 0, DIMM.rows, cell, _counts(flip, rng))
            sizes.append(cell.size)
        point.finish(_record(0, region, point.errors))
    bank = 7
    opened = Profile.open(profile.path)
    seconds = statistics.median(_seconds(lambda: opened.cells(0, bank)) for _ in range(REPEATS))
    read = _bytes_read(lambda: opened.cells(0, bank))
    share = _size(profile, 0) * sizes[bank] / sum(sizes)
    yield _figure("load_bank", seconds, "s", None, LOAD_S)
    script = "import sys; from profiles.storage import Profile; Profile.open(sys.argv[1]).cells(0, int(sys.argv[2]))"
    command = [sys.executable, "-c", script, str(profile.path), str(bank)]
    seconds = statistics.median(_seconds(lambda: subprocess.run(command, check=True)) for _ in range(REPEATS))
    yield _figure("load_bank_in_a_new_process", seconds, "s", None, None)  # Python, imports and compiled code included
    yield _figure("load_bank_bytes", read, "bytes", share, LOAD_SHARE)
    read = _bytes_read(lambda: opened.cells(0, bank, (30_000, 2048)))
    yield _figure("load_2048_rows_bytes", read, "bytes", share, LOAD_SHARE)


def _bytes_read(work: Callable[[], Any]) -> int:
    """Bytes that pass through the file objects that points are read by."""
    total = 0

    class Counting:
        def __init__(self, path: Path) -> None:
            self._file = path.open("rb")

        def read(self, size: int = -1) -> bytes:
            nonlocal total
            content = self._file.read(size)
            total += len(content)
            return content

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    original = points.open_source
    points.open_source = lambda path: pa.PythonFile(Counting(path), mode="r")
    try:
        work()
    finally:
        points.open_source = original
    return total


def _counters(folder: Path) -> Iterator[dict[str, Any]]:
    """A point at which a DIMM is counted by row, bitline and DQ."""
    region = Region(banks=tuple(range(DIMM.banks)), row_start=0, row_count=DIMM.rows)
    rng = np.random.default_rng(5)
    profile = _profile(folder / "counted")
    lines = [_lines(bank, rng) for bank in region.banks]
    begun = time.perf_counter()
    with profile.writing(0, region, PATTERN, ROUNDS, ()) as point:
        for each in lines:
            point.count(each)
        point.finish(_record(0, region, point.errors, ()))
    yield _figure("counted_point_write", time.perf_counter() - begun, "s", None, None)
    yield _figure("counted_point_size", _size(profile, 0), "bytes", None, None)
    opened = Profile.open(profile.path)
    seconds = statistics.median(_seconds(lambda: opened.lines(0, 7)) for _ in range(REPEATS))
    yield _figure("load_bank_counters", seconds, "s", None, LOAD_S)
    read = _bytes_read(lambda: opened.lines(0, 7))
    yield _figure("load_bank_counters_bytes", read, "bytes", _size(profile, 0) / DIMM.banks, LOAD_SHARE)


def _lines(bank: int, rng: np.random.Generator) -> LineCounts:
    """Counters at `COUNTED_RATE`, rows more uneven than bitlines, that sum to the same."""
    reads = ROUNDS * DIMM.row_bits // 2
    rows = np.stack([rng.binomial(reads, COUNTED_RATE * rng.gamma(4, 0.25, DIMM.rows).clip(0, 5)) for _ in (0, 1)], 1)
    bitlines = np.stack([rng.multinomial(total, np.full(DIMM.row_bits, 1 / DIMM.row_bits)) for total in rows.sum(0)], 1)
    return LineCounts(bank, rows, bitlines, bitlines.reshape(-1, DIMM.data_width, 2).sum(axis=0))
