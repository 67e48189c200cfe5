"""Exported tables hold the profile's counts, in pandas too; archives come back, and hostile ones are refused."""

import json
import zipfile
from pathlib import Path
from types import ModuleType

import duckdb
import numpy as np
import pandas as pd
import polars
import pytest

from profiles.cells import WeakCells
from profiles.errors import ProfileError
from profiles.exchange import export, import_profile
from profiles.pattern import Pattern
from profiles.schema import ProfileHeader, Region, json_schema
from profiles.storage import Profile


@pytest.fixture
def stored(planted: ModuleType, tmp_path: Path) -> Profile:
    geometry = planted.small_geometry()
    return planted.profile(tmp_path / "dimm", geometry, planted.random_weak(geometry, 400))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_flat_tables_hold_every_count(stored: Profile, tmp_path: Path, suffix: str) -> None:
    written = export(stored, tmp_path / "out" / f"dimm{suffix}")
    assert [file.name for file in written] == [f"dimm{suffix}", f"dimm.points{suffix}", "dimm.profile.json"]
    read = pd.read_csv if suffix == ".csv" else pd.read_parquet
    cells, points = read(written[0]), read(written[1])
    assert ProfileHeader.model_validate_json(written[2].read_bytes()) == stored.header
    for record in stored.points:
        rows = cells[cells.point_index == record.index]
        truth = stored.cells(record.index)
        found = stored.geometry.cell(rows.bank, rows.row, rows.column, rows.dq)
        assert np.array_equal(found, truth.cell)
        assert np.array_equal(rows.errors, truth.errors)
        assert np.array_equal(rows.stored, truth.stored)
        assert set(rows.pattern) == {str(record.pattern)}
        assert set(rows.trials) == {record.rounds}
        assert set(rows.vdd_mv) == {1100}
        point = points[points.point_index == record.index].iloc[0]
        assert point.errors_zero_to_one + point.errors_one_to_zero == record.errors
        assert point.tested_cells == stored.geometry.cells
        assert point.banks == "0 1"


def counted_profile(planted: ModuleType, path: Path) -> Profile:
    """Two points of the same cells: all of them stored, and counted with the cells of some rows of bank 1."""
    geometry = planted.small_geometry()
    pattern = Pattern.parse("checker")
    region, area = planted.whole(geometry), Region(banks=(1,), row_start=10, row_count=20)
    cells = planted.counts(geometry, planted.random_weak(geometry, 3000), pattern, region, 8, np.random.default_rng(1))
    profile = Profile.create(path, planted.header(geometry, 2))
    record = planted.record(geometry, cells, pattern=pattern, rounds=8)
    profile.append(record, cells)
    with profile.writing(1, region, pattern, 8, (area,)) as point:
        known = planted.inside(geometry, area, cells)
        point.add(1, 10, 20, known.cell, known.errors)
        for bank in region.banks:
            point.count(planted.lines(geometry, region, bank, cells))
        point.finish(record.model_copy(update={"index": 1, "cell_regions": (area,)}))
    return profile


PARQUET_READERS = {
    "pandas": pd.read_parquet,
    "polars": lambda path: polars.read_parquet(path).to_pandas(),
    "duckdb": lambda path: duckdb.sql(f"select * from read_parquet('{path}')").df(),
}
CSV_READERS = {
    "pandas": pd.read_csv,
    "polars": lambda path: polars.read_csv(path).to_pandas(),
    "duckdb": lambda path: duckdb.sql(f"select * from read_csv('{path}')").df(),
}


@pytest.mark.parametrize("reader", PARQUET_READERS)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_others_read_the_tables_without_our_code(planted: ModuleType, tmp_path: Path, suffix: str, reader: str) -> None:
    profile = counted_profile(planted, tmp_path / "dimm")
    geometry = profile.geometry
    files = export(profile, tmp_path / f"dimm{suffix}")
    assert [file.name for file in files] == [
        *(f"dimm{suffix}", f"dimm.points{suffix}", f"dimm.lines{suffix}", "dimm.profile.json")
    ]
    read = (CSV_READERS if suffix == ".csv" else PARQUET_READERS)[reader]
    cells, points, lines = (read(file) for file in files[:3])
    assert points.counted.tolist() == [False, True]
    assert points.cell_regions.tolist() == ["banks 0 1 rows 0..63", "banks 1 rows 10..29"]
    every = cells[cells.point_index == 0]
    assert np.array_equal(geometry.cell(every.bank, every.row, every.column, every.dq), profile.cells(0).cell)
    known = cells[cells.point_index == 1]
    assert set(known.bank) == {1}
    assert known.row.between(10, 29).all()
    assert np.array_equal(known.errors, profile.cells(1).errors)
    # The counters are sums over the cells of the other point, which are the same cells.
    failed = lines[(lines.kind == "rows") & (lines.bank == 1)].set_index("line")
    expected = every[every.bank == 1].groupby("row").errors.sum()
    assert (failed.errors_zero_to_one + failed.errors_one_to_zero).loc[expected.index].tolist() == expected.tolist()
    by_kind = lines.groupby("kind")[["errors_zero_to_one", "errors_one_to_zero", "trials_zero", "trials_one"]].sum()
    assert (by_kind.nunique() == 1).all()
    assert by_kind.trials_zero.iloc[0] + by_kind.trials_one.iloc[0] == geometry.cells * 8


@pytest.mark.parametrize("reader", PARQUET_READERS)
def test_others_read_the_profile_itself(planted: ModuleType, tmp_path: Path, reader: str) -> None:
    profile = counted_profile(planted, tmp_path / "dimm")
    read = PARQUET_READERS[reader]
    assert np.array_equal(read(profile.path / "points" / "00000.parquet").cell, profile.cells(0).cell)
    lines = read(profile.path / "points" / "00001.counters.parquet")
    assert np.array_equal(
        lines[(lines.kind == "lanes") & (lines.bank == 1)].errors_one_to_zero, profile.lines(1, 1).lanes[:, 1]
    )


def test_numpy_reads_the_arrays_without_our_code(planted: ModuleType, tmp_path: Path) -> None:
    profile = counted_profile(planted, tmp_path / "dimm")
    (file,) = export(profile, tmp_path / "dimm.npz")
    with np.load(file) as arrays:
        assert json.loads(str(arrays["header"]))["geometry"]["rows"] == 64
        assert arrays["points/vdd_mv"].tolist() == [1100, 1100]
        assert arrays["points/pattern"].tolist() == ["checker", "checker"]
        assert np.array_equal(arrays["00000/cell"], profile.cells(0).cell)
        assert np.array_equal(arrays["00001/errors"], profile.cells(1).errors)
        assert np.array_equal(arrays["00001/bitlines_errors"][1], profile.lines(1, 1).bitlines)
        assert arrays["00001/rows_trials"].shape == (2, 64, 2)
        assert arrays["00001/rows_trials"].sum() == profile.geometry.cells * 8


def test_a_counted_profile_comes_back_from_its_archive(planted: ModuleType, tmp_path: Path) -> None:
    profile = counted_profile(planted, tmp_path / "dimm")
    (file,) = export(profile, tmp_path / "dimm.zip")
    again = import_profile(file, tmp_path / "again")
    assert again.points == profile.points
    assert np.array_equal(again.lines(1, 0).rows, profile.lines(1, 0).rows)


def test_the_schema_describes_header_and_record(stored: Profile) -> None:
    described = json_schema()
    for name, content in (("header", stored.header), ("point", stored.points[0])):
        dumped = json.loads(content.model_dump_json())
        assert set(dumped) == set(described[name]["properties"])
        assert described[name]["additionalProperties"] is False


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_points_without_errors_are_in_the_points_table(planted: ModuleType, tmp_path: Path, suffix: str) -> None:
    none = WeakCells(np.empty(0, np.int64), np.empty(0), np.empty(0))
    clean = planted.profile(tmp_path / "clean", planted.small_geometry(), none, ("0xFF",))
    cells, points, _ = export(clean, tmp_path / f"clean{suffix}")
    read = pd.read_csv if suffix == ".csv" else pd.read_parquet
    assert len(read(cells)) == 0
    assert read(points).rounds.tolist() == [8]


def test_an_archive_comes_back(stored: Profile, tmp_path: Path) -> None:
    (file,) = export(stored, tmp_path / "dimm.zip")
    again = import_profile(file, tmp_path / "again")
    assert again.header == stored.header
    assert again.points == stored.points
    assert np.array_equal(again.cells(2).cell, stored.cells(2).cell)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["again", "dimm", "dimm.zip"]
    with pytest.raises(ProfileError, match="exists already"):
        import_profile(file, tmp_path / "again")


def test_other_suffixes_and_missing_files(stored: Profile, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"end its name in one of \.parquet, \.csv, \.npz, \.zip"):
        export(stored, tmp_path / "dimm.xlsx")
    with pytest.raises(ProfileError, match="does not exist"):
        import_profile(tmp_path / "nothing.zip", tmp_path / "again")
    with pytest.raises(ProfileError, match="no intact profile archive"):
        import_profile(stored.path / "profile.json", tmp_path / "again")


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil", "points/../../evil", "points/evil.sh", "profile.json/x"])
def test_strange_names_never_leave_the_archive(stored: Profile, tmp_path: Path, name: str) -> None:
    (file,) = export(stored, tmp_path / "dimm.zip")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, b"evil")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ProfileError, match="not an exported profile"):
        import_profile(file, tmp_path / "again")
    assert sorted(tmp_path.rglob("*")) == before


def test_bombs_and_doubles_are_refused(stored: Profile, tmp_path: Path) -> None:
    (file,) = export(stored, tmp_path / "dimm.zip")
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points/00009.parquet", bytes(30 << 20))
    with pytest.raises(ProfileError, match=r"claims 31457280 bytes"):
        import_profile(file, tmp_path / "again")
    (file,) = export(stored, tmp_path / "dimm.zip")
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("points/00001.parquet", b"")
    with pytest.raises(ProfileError, match="twice"):
        import_profile(file, tmp_path / "again")


def test_damaged_archives_leave_nothing_behind(stored: Profile, tmp_path: Path) -> None:
    (file,) = export(stored, tmp_path / "dimm.zip")
    good = file.read_bytes()
    rng = np.random.default_rng(1)
    for length in rng.integers(0, len(good), 30):
        file.write_bytes(good[:length])
        with pytest.raises(ProfileError):
            import_profile(file, tmp_path / "again")
    for position in rng.integers(0, len(good), 60):
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        try:
            again = import_profile(file, tmp_path / f"again{position}")
        except ProfileError:
            assert not (tmp_path / f"again{position}").exists()
        else:  # a bit of the archive that says nothing, such as a file's date
            assert again.points == stored.points
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]
