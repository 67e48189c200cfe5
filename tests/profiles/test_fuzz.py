"""Damaged profiles by the thousand: each opens as it was, or is refused by an `EdenError`, in bounded memory and time.

The mutations run in a child process, so that a crash or an allocation beyond its limit is seen and survived.
"""

import contextlib
import faulthandler
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from profiles.cells import LINE_KINDS, CellCounts, LineCounts
from profiles.errors import EdenError
from profiles.exchange import export, import_profile
from profiles.geometry import CellArray, Geometry
from profiles.pattern import Pattern
from profiles.population import stored_ones
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

GEOMETRY = Geometry(banks=2, rows=16, columns=64, data_width=64, subarray_rows=16)
MEMORY_LIMIT = 1 << 30  # more than the child holds when it begins
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF)

Bytes = bytearray


def small_profile(path: Path) -> Profile:
    """Two points, one with a few hundred failing cells; a third is counted, and dense where it has cells."""
    rng = np.random.default_rng(1)
    module = ModuleIdentity(
        manufacturer="m",
        part_number="p",
        serial_number="s",
        dram_type="DDR3L",
        nominal_vdd_mv=1350,
        nominal_trcd_ps=14000,
    )
    header = ProfileHeader(
        module=module,
        geometry=GEOMETRY,
        board="mock:B:1",
        tck_ps=2000,
        seed=1,
        plan={"rounds": 4, "banks": [0, 1]},
        planned_points=4,
        tools={"python": "3"},
        created=datetime(2020, 1, 1, tzinfo=UTC),
    )
    profile = Profile.create(path, header)
    region = Region(banks=(0, 1), row_start=0, row_count=16)
    pattern = Pattern.parse("0xFF")
    for index, count in enumerate((300, 2)):
        cell = np.sort(rng.choice(GEOMETRY.cells, count, replace=False)).astype(np.int64)
        cells = CellCounts(cell, rng.integers(1, 5, count).astype(np.uint16), np.ones(count, np.uint8))
        profile.append(small_record(index, pattern, region, cells), cells)
    area = Region(banks=(1,), row_start=4, row_count=4)
    cell = np.sort(rng.choice(GEOMETRY.cells, GEOMETRY.cells // 3, replace=False)).astype(np.int64)
    cells = CellCounts(cell, rng.integers(1, 5, cell.size).astype(np.uint16), np.ones(cell.size, np.uint8))
    with profile.writing(2, region, pattern, 4, (area,)) as point:
        low, high = np.searchsorted(cell, GEOMETRY.cell(1, [4, 7], [0, 63], [0, 63]) + np.arange(2))
        point.add(1, 4, 4, cell[low:high], cells.errors[low:high])
        for bank in region.banks:
            point.count(lines(bank, cells))
        point.finish(small_record(2, pattern, region, cells, (area,)))
    return profile


def lines(bank: int, cells: CellCounts) -> LineCounts:
    """The counters that ``cells``, which all store a 1, leave in a bank."""
    here = GEOMETRY.bank(cells.cell) == bank
    cell, errors = cells.cell[here], cells.errors[here]

    def summed(line: CellArray, size: int) -> np.ndarray:
        ones = np.bincount(line, weights=errors, minlength=size).astype(np.int64)
        return np.stack([np.zeros_like(ones), ones], axis=1)

    return LineCounts(
        bank,
        summed(GEOMETRY.row(cell), GEOMETRY.rows),
        summed(cell % GEOMETRY.row_bits, GEOMETRY.row_bits),
        summed(GEOMETRY.dq(cell), GEOMETRY.data_width),
    )


def small_record(
    index: int, pattern: Pattern, region: Region, cells: CellCounts, parts: tuple[Region, ...] | None = None
) -> PointRecord:
    return PointRecord(
        index=index,
        epoch=index,
        point=OperatingPoint(vdd_mv=1100 - index, trcd_ps=10000),
        trcd_clocks=5,
        vdd_measured_mv=1100.0,
        vdd_uncertainty_mv=0.5,
        temperature_c=20.0,
        write_condition=WriteCondition.NOMINAL,
        write_vdd_mv=1350,
        write_trcd_ps=14000,
        pattern=pattern,
        access_mode=AccessMode.BURST_PER_ACTIVATION,
        rewritten_each_round=True,
        refresh="kept",
        region=region,
        rounds=4,
        stored_ones=tuple(stored_ones(pattern, GEOMETRY, bank, 0, 16) for bank in region.banks),
        cell_regions=parts,
        errors_zero_to_one=0,
        errors_one_to_zero=cells.errors_one_to_zero,
        started=datetime(2020, 1, 1, tzinfo=UTC),
        duration_s=1.0,
    )


# ---- mutations -------------------------------------------------------------------------------------------------------


def flip_a_bit(data: Bytes, rng: np.random.Generator) -> None:
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def set_bytes(data: Bytes, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 8))):
        data[int(rng.integers(len(data)))] = int(rng.choice(NUMBERS))


def scramble_the_end(data: Bytes, rng: np.random.Generator) -> None:
    """Parquet's metadata lie there."""
    for _ in range(int(rng.integers(1, 5))):
        data[-1 - int(rng.integers(min(len(data), 2000)))] = int(rng.integers(256))


def truncate(data: Bytes, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


def cut_out(data: Bytes, rng: np.random.Generator) -> None:
    first = int(rng.integers(len(data)))
    del data[first : first + int(rng.integers(1, 64))]


def repeat(data: Bytes, rng: np.random.Generator) -> None:
    first = int(rng.integers(len(data)))
    data[first:first] = data[first : first + int(rng.integers(1, 64))]


def zero_a_sector(data: Bytes, rng: np.random.Generator) -> None:
    first = int(rng.integers(len(data)))
    data[first : first + 512] = bytes(len(data[first : first + 512]))


def huge_number(data: Bytes, rng: np.random.Generator) -> None:
    """A run of 0xFF, a variable-length integer of the metadata at its largest."""
    first = int(rng.integers(len(data)))
    data[first : first + 9] = b"\xff" * 8 + b"\x01"


MUTATIONS: tuple[Callable[[Bytes, np.random.Generator], None], ...] = (
    *(flip_a_bit, set_bytes, scramble_the_end, truncate, cut_out, repeat, zero_a_sector, huge_number),
)


def content(profile: Profile) -> tuple[object, ...]:
    """All of a profile, comparable."""
    found = [profile.cells(record.index) for record in profile.points]
    return (
        profile.header,
        profile.points,
        [(c.cell.tolist(), c.errors.tolist(), c.stored.tolist()) for c in found],
        profile.cells(0, bank=1).cell.tolist(),
        profile.cells(2, 1, (5, 2)).cell.tolist(),
        [
            [getattr(profile.lines(record.index, bank), kind).tolist() for kind in LINE_KINDS]
            for record in profile.points
            if record.counted
            for bank in record.region.banks
        ],
    )


def damage_headers_field_by_field(header: Path, expected: tuple[object, ...]) -> int:
    """Every field of the header missing, and of every wrong kind; returns how many were tried."""
    whole = json.loads(header.read_text())
    wrong = (None, True, -1, 10**30, 1.5, "", "x" * 10_000, [], {}, [[[]]], "NaN")
    tried = 0

    def places(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        if not isinstance(value, dict):
            return [path]
        return [path, *(p for key, inner in value.items() for p in places(inner, (*path, key)))]

    for path in places(whole)[1:]:
        for value in ("missing", *wrong):
            changed = json.loads(json.dumps(whole))
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            if value == "missing":
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
            header.write_text(json.dumps(changed))
            with contextlib.suppress(EdenError):
                assert content(Profile.open(header.parent)) == expected, (path, value)
            tried += 1
    header.write_text(json.dumps(whole))
    return tried


def attack(folder: Path, count: int) -> str:
    """Mutate ``count`` files; returns what happened."""
    profile = small_profile(folder / "profile")
    expected = content(profile)
    archive = folder / "profile.zip"
    export(profile, archive)
    header, *points = [profile.path / "profile.json", *sorted((profile.path / "points").iterdir())]
    originals = {file: file.read_bytes() for file in (header, *points, archive)}
    rng = np.random.default_rng(20190613)
    limit = _address_space() + MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    fields = damage_headers_field_by_field(header, expected)
    accepted = refused = 0
    for turn in range(count):
        file = list(originals)[int(rng.integers(len(originals)))]
        mutate = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        data = bytearray(originals[file])
        mutate(data, rng)
        file.write_bytes(data)
        try:
            if file == archive:
                copy = folder / "copy"
                shutil.rmtree(copy, ignore_errors=True)
                found = content(import_profile(archive, copy))
            else:
                found = content(Profile.open(profile.path))
            assert found == expected, f"turn {turn}: {mutate.__name__} of {file.name} changed data"
            accepted += 1
        except EdenError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"turn {turn}: {mutate.__name__} of {file.name}: {error!r}") from error
        finally:
            file.write_bytes(originals[file])
    assert content(Profile.open(profile.path)) == expected
    return f"fields {fields} accepted {accepted} refused {refused}"


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def run_attack(count: int, timeout_s: float) -> str:
    command = [sys.executable, __file__, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by Linux means")
def test_hundreds_of_damaged_files_never_crash_nor_change_data() -> None:
    words = run_attack(400, 120).split()
    assert int(words[5]) > 200


@pytest.mark.prove
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by Linux means")
def test_thousands_of_damaged_files_never_crash_nor_change_data() -> None:
    words = run_attack(20_000, 3000).split()
    assert int(words[5]) > 10_000


if __name__ == "__main__":
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as temporary:
        print(attack(Path(temporary), int(sys.argv[1])))
