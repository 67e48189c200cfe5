"""Exported tables hold the profile's counts, in pandas too; archives come back, and hostile ones are refused."""

import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from profiles.cells import WeakCells
from profiles.errors import ProfileError
from profiles.exchange import export, import_profile
from profiles.schema import ProfileHeader
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
    with pytest.raises(ProfileError, match=r"end its name in one of \.parquet, \.csv, \.zip"):
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
