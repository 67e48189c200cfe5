"""The profile folder: round trips, resuming, and every injected fault named in one sentence."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.cells import CellCounts
from profiles.errors import ProfileError
from profiles.pattern import Pattern, stored_bits
from profiles.schema import FORMAT_VERSION, OperatingPoint, Region, WriteCondition
from profiles.storage import Profile, appending, is_growing


@pytest.fixture
def stored(planted: ModuleType, tmp_path: Path) -> Profile:
    geometry = planted.small_geometry()
    return planted.profile(tmp_path / "dimm", geometry, planted.random_weak(geometry, 500))


def equal(left: CellCounts, right: CellCounts) -> bool:
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ("cell", "errors", "stored"))


def test_round_trip_of_header_records_and_cells(stored: Profile, planted: ModuleType) -> None:
    again = Profile.open(stored.path)
    assert again.header == stored.header
    assert again.points == stored.points
    assert again.complete
    for record in stored.points:
        cells = again.cells(record.index)
        assert cells.cell.dtype == np.int64
        assert cells.errors.dtype == np.uint16
        assert cells.stored.dtype == np.uint8
        assert equal(cells, stored.cells(record.index))
        assert cells.errors.sum() == record.errors


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_cells_come_back_as_they_went_in(planted: ModuleType, tmp_path_factory, data: st.DataObject) -> None:
    geometry = planted.small_geometry()
    chosen = sorted(data.draw(st.sets(st.integers(0, geometry.cells - 1), max_size=60)))
    errors = data.draw(st.lists(st.integers(1, 65535), min_size=len(chosen), max_size=len(chosen)))
    cell = np.array(chosen, np.int64)
    pattern = Pattern.parse(data.draw(st.sampled_from(("0xAA", "walking/invert", "random:3"))))
    cells = CellCounts(cell, np.array(errors, np.uint16), stored_bits(pattern, geometry, cell))
    profile = Profile.create(tmp_path_factory.mktemp("any") / "dimm", planted.header(geometry, 1))
    profile.append(planted.record(geometry, cells, pattern=pattern, rounds=65535), cells)
    assert equal(Profile.open(profile.path).cells(0), cells)


def test_one_bank_is_read_alone(stored: Profile) -> None:
    cells = stored.cells(0)
    banks = [stored.cells(0, bank) for bank in range(stored.geometry.banks)]
    assert np.array_equal(np.concatenate([bank.cell for bank in banks]), cells.cell)
    assert all((stored.geometry.bank(part.cell) == bank).all() for bank, part in enumerate(banks))


def test_missing_points_are_what_a_resumed_scan_still_measures(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    rng = np.random.default_rng(2)
    weak = planted.random_weak(geometry, 50)
    profile = Profile.create(tmp_path / "dimm", planted.header(geometry, 4))
    for index in (2, 0):
        cells = planted.counts(geometry, weak, Pattern.parse("0xAA"), planted.whole(geometry), 4, rng)
        profile.append(planted.record(geometry, cells, index), cells)
    again = Profile.open(profile.path)
    assert again.missing == [1, 3]
    assert not again.complete
    assert [record.index for record in again.points] == [0, 2]
    with pytest.raises(ProfileError, match="already holds point 2"):
        again.append(planted.record(geometry, cells, 2), cells)
    with pytest.raises(ProfileError, match="outside the 4 planned"):
        again.append(planted.record(geometry, cells, 4), cells)
    with pytest.raises(ProfileError, match="no point 1"):
        again.cells(1)


def test_find_by_conditions(stored: Profile, planted: ModuleType) -> None:
    assert len(stored.find(planted.POINT)) == 4
    assert len(stored.find(planted.POINT, WriteCondition.NOMINAL, Pattern.parse("0xAA"))) == 1
    assert stored.find(planted.POINT, WriteCondition.OPERATING_POINT) == []
    assert stored.find(OperatingPoint(vdd_mv=1200, trcd_ps=7500)) == []
    assert stored.operating_points() == [planted.POINT]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"errors_zero_to_one": 7}, "errors .* in the cells"),
        ({"rounds": 1}, "outside 1..1 rounds"),
        ({"region": Region(banks=(0,), row_start=0, row_count=1), "stored_ones": (0,)}, "are more than|outside"),
        ({"region": Region(banks=(5,), row_start=0, row_count=64), "stored_ones": (0,)}, "bank 5"),
        ({"stored_ones": (1,)}, "stored_ones has 1 entries for 2 banks"),
        ({"stored_ones": (-1, 1 << 40)}, "stored_ones"),
    ],
)
def test_points_that_do_not_reconcile_are_refused(planted: ModuleType, tmp_path: Path, change, message: str) -> None:
    geometry = planted.small_geometry()
    cells = CellCounts(np.array([3, 70000]), np.array([2, 4], np.uint16), np.array([1, 0], np.uint8))
    profile = Profile.create(tmp_path / "dimm", planted.header(geometry, 1))
    record = planted.record(geometry, cells).model_copy(update=change)
    with pytest.raises(ProfileError, match=message):
        profile.append(record, cells)
    assert Profile.open(profile.path).missing == [0]


def test_create_refuses_what_is_there(stored: Profile, planted: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="already holds a profile"):
        Profile.create(stored.path, stored.header)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ProfileError, match="not empty"):
        Profile.create(tmp_path / "other", stored.header)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ProfileError, match="is a file"):
        Profile.create(tmp_path / "file", stored.header)
    (tmp_path / "empty").mkdir()
    assert Profile.create(tmp_path / "empty", stored.header).missing == [0, 1, 2, 3]


def test_points_of_another_process_are_taken_in(stored: Profile, planted: ModuleType, tmp_path: Path) -> None:
    geometry = stored.geometry
    mine = Profile.create(tmp_path / "growing", planted.header(geometry, 3))
    seen = Profile.open(mine.path)
    rng = np.random.default_rng(2)
    for index in (1, 0):
        cells = planted.counts(
            geometry, planted.random_weak(geometry, 50), Pattern.parse("0xAA"), planted.whole(geometry), 4, rng
        )
        mine.append(planted.record(geometry, cells, index), cells)
        assert len(seen.points) < len(mine.points)
        seen.refresh()
        assert seen.points == mine.points
    assert equal(seen.cells(0), mine.cells(0))
    damaged = mine.path / "points" / "00002.parquet"
    damaged.write_bytes((mine.path / "points" / "00001.parquet").read_bytes()[:-9])
    with pytest.raises(ProfileError, match=r"00002\.parquet"):
        seen.refresh()
    assert seen.points == mine.points
    damaged.unlink()
    (mine.path / "points" / "00000.parquet").unlink()  # to be measured again
    seen.refresh()
    assert [record.index for record in seen.points] == [1]
    again = Profile.open(mine.path)
    again.append(planted.record(geometry, cells, 0, rounds=5), cells)
    again.plan_more({"points": 4}, 4)
    seen.refresh()
    assert (seen.points, seen.header) == (again.points, again.header)
    assert seen.points[0].rounds == 5


HOLD = """
import sys
from pathlib import Path
from profiles.storage import appending
with appending(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_appends_at_a_time_and_others_can_tell(stored: Profile, tmp_path: Path) -> None:
    for folder in (stored.path, tmp_path / "new"):
        assert not is_growing(folder)
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert is_growing(folder)
        with pytest.raises(ProfileError, match="another process scans into"), appending(folder):
            pytest.fail("the folder was had twice")
        holder.kill()  # however it ends, the lock ends with it
        holder.communicate()
        assert not is_growing(folder)
        with appending(folder):
            assert is_growing(folder)
    assert Profile.create(tmp_path / "new", stored.header).missing == [0, 1, 2, 3]


def test_a_foreign_folder_gets_no_lock(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ProfileError, match="not empty"), appending(tmp_path):
        pytest.fail("a foreign folder was taken")
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


def test_foreign_folders_and_headers(stored: Profile, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="does not exist"):
        Profile.open(tmp_path / "nowhere")
    (tmp_path / "foreign").mkdir()
    with pytest.raises(ProfileError, match=r"holds no profile\.json"):
        Profile.open(tmp_path / "foreign")
    header = stored.path / "profile.json"
    good = json.loads(header.read_text())
    for content, message in (
        ("{}", "not the header"),
        ("[" * 100_000, "not valid JSON"),
        (json.dumps(good)[:-40], "not valid JSON"),
        (json.dumps(good | {"version": FORMAT_VERSION + 1}), "update the toolkit"),
        (json.dumps(good | {"surprise": 1}), "surprise"),
        (json.dumps(good | {"geometry": {**good["geometry"], "rows": 63}}), "power of two"),
        (json.dumps(good | {"geometry": {**good["geometry"], "rows": 32}}), "checksum does not match"),
        (json.dumps(good | {"planned_points": 2}), "checksum does not match"),
    ):
        header.write_text(content)
        with pytest.raises(ProfileError, match=message) as caught:
            Profile.open(stored.path)
        assert str(stored.path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_points_of_another_profile_do_not_fit(stored: Profile, planted: ModuleType, tmp_path: Path) -> None:
    geometry = stored.geometry
    for header, message in (
        (planted.header(geometry.model_copy(update={"rows": 32}), 4), "does not fit"),
        (planted.header(geometry, 2), "outside the 2 planned"),
    ):
        other = Profile.create(tmp_path / str(message), header)
        shutil.copytree(stored.path / "points", other.path / "points")
        with pytest.raises(ProfileError, match=message):
            Profile.open(other.path)


def test_header_size_is_bounded(stored: Profile) -> None:
    with (stored.path / "profile.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(ProfileError, match="larger than 64 MiB"):
        Profile.open(stored.path)


def test_foreign_and_misnamed_point_files(stored: Profile) -> None:
    points = stored.path / "points"
    good = (points / "00001.parquet").read_bytes()
    (points / "00001.parquet").write_bytes((points / "00002.parquet").read_bytes())
    with pytest.raises(ProfileError, match="holds point 2"):
        Profile.open(stored.path)
    pq.write_table(pa.table({"a": [1]}), points / "00001.parquet")
    with pytest.raises(ProfileError, match="no point of a profile"):
        Profile.open(stored.path)
    (points / "00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ProfileError, match="truncated or damaged"):
        Profile.open(stored.path)
    (points / "00001.parquet").write_bytes(good)
    assert Profile.open(stored.path).complete


def test_a_row_count_beyond_the_record_is_refused_before_reading(stored: Profile) -> None:
    file = stored.path / "points" / "00000.parquet"
    metadata = pq.read_metadata(file).metadata
    table = pa.table({"cell": np.arange(5000), "errors": np.ones(5000, np.int32)}).cast(pq.read_schema(file))
    pq.write_table(table.replace_schema_metadata(metadata), file)
    with pytest.raises(ProfileError, match="claims 5000 entries"):
        Profile.open(stored.path)


def read_all(path: Path) -> list[CellCounts]:
    profile = Profile.open(path)
    return [profile.cells(record.index) for record in profile.points]


def test_truncation_anywhere_is_found(stored: Profile) -> None:
    file = stored.path / "points" / "00001.parquet"
    good = file.read_bytes()
    for length in np.random.default_rng(3).integers(0, len(good), 60):
        file.write_bytes(good[:length])
        with pytest.raises(ProfileError, match=r"00001\.parquet"):
            read_all(stored.path)


def test_a_flipped_bit_is_found_or_harmless(stored: Profile) -> None:
    """Some bits of a Parquet footer mean nothing to us; a flip may leave the content as it was, never change it."""
    file = stored.path / "points" / "00001.parquet"
    good = file.read_bytes()
    truth = read_all(stored.path)
    rng = np.random.default_rng(4)
    harmless = 0
    for position in rng.integers(0, len(good), 400):
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        with contextlib.suppress(ProfileError):
            found = read_all(stored.path)
            harmless += 1
            assert all(equal(left, right) for left, right in zip(found, truth, strict=True))
    assert harmless < 200


def test_full_disk_keeps_finished_points(stored: Profile, planted: ModuleType, monkeypatch) -> None:
    geometry = stored.geometry
    profile = Profile.create(stored.path.with_name("full"), planted.header(geometry, 2))
    profile.append(stored.points[0], stored.cells(0))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ProfileError, match=r"disk is full.*every finished point is safe"):
            profile.append(stored.points[1], stored.cells(1))
    assert [file.name for file in (profile.path / "points").iterdir()] == ["00000.parquet"]
    assert profile.missing == [1]
    profile.append(stored.points[1], stored.cells(1))
    assert Profile.open(profile.path).complete


def test_full_disk_inside_the_parquet_writer(stored: Profile, planted: ModuleType, monkeypatch) -> None:
    profile = Profile.create(stored.path.with_name("full"), planted.header(stored.geometry, 1))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(ProfileError, match="disk is full"):
        profile.append(stored.points[0], stored.cells(0))
    assert list((profile.path / "points").iterdir()) == []


def test_kill_between_write_and_rename(stored: Profile, planted: ModuleType, monkeypatch) -> None:
    """What a kill leaves is a temporary file: it is ignored, and swept away by the next append."""
    profile = Profile.create(stored.path.with_name("killed"), planted.header(stored.geometry, 1))
    leftover = profile.path / "points" / ".00000.parquet.0123456789abcdef.part"

    def kill(source: Path, target: Path) -> None:
        shutil.copy(source, leftover)  # the real temporary file is removed on the way out, a killed one is not
        raise KeyboardInterrupt

    record = stored.points[0]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            profile.append(record, stored.cells(0))
    assert leftover.exists()
    resumed = Profile.open(profile.path)
    assert resumed.missing == [0]
    resumed.append(record, stored.cells(0))
    assert not leftover.exists()
    assert equal(Profile.open(profile.path).cells(0), stored.cells(0))


def test_an_unwritable_folder_is_named(stored: Profile, monkeypatch) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(ProfileError, match="Permission denied"):
        Profile.create(stored.path.with_name("elsewhere"), stored.header)
