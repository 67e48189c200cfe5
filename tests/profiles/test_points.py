"""Points written in parts: what goes in comes out, whole or by bank and rows; what does not reconcile is refused."""

from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.cells import CellCounts
from profiles.counting import FailureCounts
from profiles.errors import ProfileError
from profiles.geometry import Geometry
from profiles.pattern import Pattern, PatternKind, ones_by_line, stored_bits
from profiles.population import collect
from profiles.schema import PointRecord, Region, WriteCondition
from profiles.statistics import ber_by
from profiles.storage import Profile

ROUNDS = 5


def failing(geometry: Geometry, region: Region, density: float, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Cells of ``region`` that failed, and how often."""
    parts = []
    for bank in region.banks:
        first = (bank * geometry.rows + region.row_start) * geometry.row_bits
        parts.append(first + np.flatnonzero(rng.random(region.row_count * geometry.row_bits) < density))
    cell = np.concatenate(parts).astype(np.int64)
    return cell, rng.integers(1, ROUNDS + 1, cell.size).astype(np.uint16)


def record_of(
    planted: ModuleType, geometry: Geometry, cells: CellCounts, region: Region, **more: object
) -> PointRecord:
    made = planted.record(geometry, cells, region=region, rounds=ROUNDS)
    return PointRecord.model_validate(made.model_dump() | more)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_cut_into_parts_gives_the_same(
    planted: ModuleType, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    geometry = planted.small_geometry()
    region = Region(banks=(0, 1), row_start=5, row_count=50)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    cell, errors = failing(geometry, region, data.draw(st.sampled_from((0.0, 0.001, 0.05, 0.2, 1.0))), rng)
    stored = stored_bits(Pattern.parse("0xAA"), geometry, cell)
    cells = CellCounts(cell, errors, stored)
    cuts = sorted({5, 55, *data.draw(st.lists(st.integers(6, 54), max_size=5))})
    profile = Profile.create(tmp_path_factory.mktemp("parts") / "dimm", planted.header(geometry, 1))
    with profile.writing(0, region, Pattern.parse("0xAA"), ROUNDS) as point:
        for low, high in pairwise(cuts):
            for bank in region.banks:
                at = (geometry.bank(cell) == bank) & (low <= geometry.row(cell)) & (geometry.row(cell) < high)
                point.add(bank, low, high - low, cell[at], errors[at])
        assert point.errors == (cells.errors_zero_to_one, cells.errors_one_to_zero)
        point.finish(record_of(planted, geometry, cells, region))
    again = Profile.open(profile.path)
    found = again.cells(0)
    assert np.array_equal(found.cell, cell)
    assert np.array_equal(found.errors, errors)
    assert np.array_equal(found.stored, stored)
    row, count = data.draw(st.integers(0, 60)), data.draw(st.integers(1, 20))
    part = again.cells(0, 1, (row, count))
    inside = (geometry.bank(cell) == 1) & (row <= geometry.row(cell)) & (geometry.row(cell) < row + count)
    assert np.array_equal(part.cell, cell[inside])
    assert [bank for bank, _ in again.cells_by_bank(0)] == [0, 1]
    again.verify()


def counted(planted: ModuleType, path: Path, density: float = 0.1, **spoil: object) -> tuple[Profile, CellCounts]:
    """A counted point with the cells of two areas; and all of its cells."""
    geometry = planted.small_geometry()
    region = Region(banks=(0, 1), row_start=8, row_count=40)
    areas = (Region(banks=(1,), row_start=10, row_count=4), Region(banks=(0, 1), row_start=30, row_count=18))
    cell, errors = failing(geometry, region, density, np.random.default_rng(3))
    cells = CellCounts(cell, errors, stored_bits(Pattern.parse("0xAA"), geometry, cell))
    profile = Profile.create(path, planted.header(geometry, 1))
    with profile.writing(0, region, Pattern.parse("0xAA"), ROUNDS, areas) as point:
        for area in areas:
            for bank in area.banks:
                rows = np.isin(geometry.row(cell), np.arange(area.row_start, area.row_end))
                at = (geometry.bank(cell) == bank) & rows
                if "drop_a_cell" in spoil:
                    at[np.flatnonzero(at)[:1]] = False
                if spoil.get("no_cells_in") != bank:
                    point.add(bank, area.row_start, area.row_count, cell[at], errors[at])
        for bank in region.banks:
            if spoil.get("no_counters_in") != bank:
                point.count(planted.lines(geometry, region, bank, cells))
        made = record_of(planted, geometry, cells, region, cell_regions=[area.model_dump() for area in areas])
        point.finish(made.model_copy(update=spoil.get("record", {})))  # type: ignore[arg-type]
    return Profile.open(path), cells


@pytest.mark.parametrize("density", [0.002, 0.02, 0.3])
def test_counters_and_cells_of_areas(planted: ModuleType, tmp_path: Path, density: float) -> None:
    profile, cells = counted(planted, tmp_path / "dimm", density)
    geometry, (record,) = profile.geometry, profile.points
    profile.verify()
    for bank in (0, 1):
        truth, found = planted.lines(geometry, record.region, bank, cells), profile.lines(0, bank)
        for kind in ("rows", "bitlines", "lanes"):
            assert np.array_equal(getattr(found, kind), getattr(truth, kind))
    row, bank = geometry.row(cells.cell), geometry.bank(cells.cell)
    known = (row >= 30) | ((bank == 1) & (row >= 10) & (row < 14))
    known &= row < 48
    assert np.array_equal(profile.cells(0).cell, cells.cell[known])
    # Statistics take the counters, models the cells: both know what was tested.
    by_bank = ber_by(profile, [record], "bank")
    assert by_bank.trials.tolist() == [40 * geometry.row_bits * ROUNDS] * 2
    assert by_bank.errors.sum() == cells.errors.sum()
    assert ber_by(profile, [record], "dq").errors.sum() == cells.errors.sum()
    by_row = ber_by(profile, [record], "wordline_block", block_rows=1)
    assert len(by_row) == 80
    by_bitline = ber_by(profile, [record], "bitline")
    assert by_bitline.errors.sum() == cells.errors[known].sum()
    assert by_bitline.trials.sum() == (18 + 18 + 4) * geometry.row_bits * ROUNDS
    pooled = collect(profile, planted.POINT, WriteCondition.NOMINAL)
    assert pooled.tested_cells == (18 + 18 + 4) * geometry.row_bits
    assert np.array_equal(pooled.cell, cells.cell[known])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"drop_a_cell": True}, "row counters of bank . and its cells do not reconcile"),
        ({"no_cells_in": 1}, "rows of bank 1 were not tested"),
        ({"no_counters_in": 0}, "bank 0 has no counters"),
        ({"record": {"errors_zero_to_one": 1}}, "in the counters and .* in the record"),
        ({"record": {"rounds": 9}}, "its rounds is 9"),
        ({"record": {"cell_regions": None}}, "its cell_regions"),
    ],
)
def test_what_does_not_reconcile_is_refused(planted: ModuleType, tmp_path: Path, spoil, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        counted(planted, tmp_path / "dimm", **spoil)
    assert list((tmp_path / "dimm" / "points").iterdir()) == []
    assert Profile.open(tmp_path / "dimm").missing == [0]


def test_rows_twice_backwards_or_foreign_are_refused(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    profile = Profile.create(tmp_path / "dimm", planted.header(geometry, 1))
    none, no = np.empty(0, np.int64), np.empty(0, np.uint16)
    one = np.ones(1, np.uint16)
    region = Region(banks=(1,), row_start=8, row_count=40)
    for bank, row, count, cell, errors, message in (
        (1, 8, 10, none, no, "came after row"),
        (0, 20, 10, none, no, "outside the tested region"),
        (1, 40, 9, none, no, "outside the tested region"),
        (1, 20, 1, np.array([3]), one, "outside the tested region"),
        (1, 20, 1, geometry.cell(1, 20, [5, 5], 1), np.ones(2, np.uint16), "ascending and unique"),
        (1, 20, 1, geometry.cell(1, 20, [5], 1), one * 6, r"outside 1\.\.5 rounds"),
        (1, 20, 1, geometry.cell(1, 20, [5], 1), no, "1 cells have 0 counts"),
    ):
        with profile.writing(0, region, Pattern.parse("0xAA"), 5) as point:
            point.add(1, 8, 12, none, no)
            with pytest.raises(ProfileError, match=message):
                point.add(bank, row, count, cell, errors)
    assert Profile.open(profile.path).missing == [0]
    with (
        pytest.raises(ProfileError, match="no known trials"),
        profile.writing(0, region, Pattern(kind=PatternKind.BUFFER), 5, (region,)),
    ):
        pass


def test_dense_rows_are_bitmaps_and_sparse_rows_are_not(planted: ModuleType, tmp_path: Path) -> None:
    dense, _ = counted(planted, tmp_path / "dense", 0.3)
    sparse, _ = counted(planted, tmp_path / "sparse", 0.02)
    assert sorted(file.name for file in dense.files(0)) == [
        "00000.bitmaps.parquet",
        "00000.counters.parquet",
        "00000.parquet",
    ]
    assert sorted(file.name for file in sparse.files(0)) == ["00000.counters.parquet", "00000.parquet"]
    # Tables are plain Parquet: the bits of a row, the lowest first, and the counts of those that are set.
    bitmap = pq.read_table(dense.path / "points" / "00000.bitmaps.parquet").to_pylist()[0]
    cells = dense.cells(0, bitmap["bank"], (bitmap["row"], 1))
    bits = np.unpackbits(np.frombuffer(bitmap["failed"], np.uint8), bitorder="little")
    assert np.array_equal(np.flatnonzero(bits), cells.cell % dense.geometry.row_bits)
    assert bitmap["errors"] == cells.errors.tolist()
    counters = pq.read_table(dense.path / "points" / "00000.counters.parquet").to_pandas()
    assert set(counters.kind) == {"rows", "bitlines", "lanes"}
    reads = counters.trials_zero + counters.trials_one
    assert reads.groupby(counters.kind).sum().nunique() == 1
    assert reads[counters.kind == "rows"].sum() == dense.points[0].region.cells(dense.geometry) * ROUNDS


@pytest.mark.parametrize("table", ["bitmaps", "counters"])
def test_a_lost_or_foreign_table_is_named(planted: ModuleType, tmp_path: Path, table: str) -> None:
    profile, _ = counted(planted, tmp_path / "dimm", 0.3)
    other, _ = counted(planted, tmp_path / "other", 0.31)
    file = profile.path / "points" / f"00000.{table}.parquet"
    good = file.read_bytes()
    file.write_bytes((other.path / "points" / file.name).read_bytes())
    with pytest.raises(ProfileError, match=rf"00000\.{table}\.parquet"):
        Profile.open(profile.path).verify()
    for length in np.random.default_rng(3).integers(0, len(good), 20):
        file.write_bytes(good[:length])
        with pytest.raises(ProfileError, match=rf"00000\.{table}\.parquet"):
            Profile.open(profile.path).verify()
    file.unlink()
    with pytest.raises(ProfileError, match=rf"00000\.{table}\.parquet is missing"):
        Profile.open(profile.path)


def test_what_a_kill_leaves_of_a_counted_point_is_swept(
    planted: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the counters were in place and the point's own file was not."""
    rename = Path.replace

    def kill(source: Path, target: Path) -> Path:
        if target.name == "00000.parquet":
            raise KeyboardInterrupt
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            counted(planted, tmp_path / "dimm")
    points = tmp_path / "dimm" / "points"
    assert (points / "00000.counters.parquet").exists()
    resumed = Profile.open(tmp_path / "dimm")
    assert resumed.missing == [0]
    none = CellCounts(np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0, np.uint8))
    resumed.append(planted.record(resumed.geometry, none), none)
    assert [file.name for file in points.iterdir()] == ["00000.parquet"]


@settings(max_examples=30, deadline=None)
@given(batches=st.lists(st.lists(st.integers(0, 60), max_size=40), max_size=8), fold=st.integers(1, 50))
def test_failures_are_counted_whatever_their_order(batches: list[list[int]], fold: int) -> None:
    counts = FailureCounts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("profiles.counting._FOLD_READS", fold)
        for batch in batches:
            counts.add(np.array(batch, np.int64))
        cell, errors = counts.take()
    expected = np.unique(np.array([c for batch in batches for c in batch], np.int64), return_counts=True)
    assert np.array_equal(cell, expected[0])
    assert np.array_equal(errors, expected[1])
    assert counts.take()[0].size == 0


@settings(max_examples=40, deadline=None)
@given(
    text=st.sampled_from(("0xA7", "checker", "row_stripe", "column_stripe/invert", "walking/invert", "random:5")),
    shape=st.sampled_from(((2, 64, 8), (4, 4, 16), (16, 64, 64), (32, 8, 32))),
    data=st.data(),
)
def test_ones_by_line_are_the_stored_bits(text: str, shape: tuple[int, int, int], data: st.DataObject) -> None:
    rows, columns, width = shape
    geometry = Geometry(banks=2, rows=rows, columns=columns, data_width=width, burst_length=4, chip_width=4)
    start = data.draw(st.integers(0, rows - 1))
    count = data.draw(st.integers(1, rows - start))
    first = (geometry.rows + start) * geometry.row_bits
    bits = stored_bits(Pattern.parse(text), geometry, np.arange(first, first + count * geometry.row_bits))
    by_row, by_bitline = ones_by_line(Pattern.parse(text), geometry, 1, start, count)
    assert np.array_equal(by_row, bits.reshape(count, -1).sum(axis=1))
    assert np.array_equal(by_bitline, bits.reshape(count, -1).sum(axis=0))


@pytest.mark.parametrize("count", [255, 256, 511])
def test_ones_of_more_rows_than_a_byte_counts(count: int) -> None:
    geometry = Geometry(banks=2, rows=512, columns=8, data_width=8)
    pattern = Pattern.parse("random:9/invert")
    bits = stored_bits(pattern, geometry, np.arange(geometry.row_bits, (count + 1) * geometry.row_bits))
    by_row, by_bitline = ones_by_line(pattern, geometry, 0, 1, count)
    assert np.array_equal(by_row, bits.reshape(count, -1).sum(axis=1))
    assert np.array_equal(by_bitline, bits.reshape(count, -1).sum(axis=0))
