"""Recordings: a replayed board gives the very same results, errors included, and says where a host departs from it."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from host.boards import open_board, open_mock
from host.bus import Bus, Words
from host.plan import ScanPlan
from host.recording import record, replay
from host.scan import scan
from profiles.errors import BoardError, LinkError
from profiles.geometry import Geometry
from profiles.storage import Profile

GEOMETRY = Geometry(banks=2, rows=64, columns=64, data_width=64)
PLAN = {
    "grid": [{"trcd_ps": 8000, "vdd_mv": [1150, 1100]}, {"trcd_ps": 10000, "vdd_mv": [1050]}],
    "patterns": ["0x00", "random:1"],
    "rounds": 2,
    "banks": [0, 1],
    "rows": {"start": 0, "count": 16},
    "write": ["nominal", "operating_point"],
}


def plan(**changes: object) -> ScanPlan:
    return ScanPlan.model_validate(PLAN | changes)


def measured(profile: Profile) -> list[dict[str, object]]:
    """All but when it was."""
    return [point.model_dump(exclude={"started", "duration_s"}) for point in profile.points]


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Profile, Path]:
    board = record(open_mock("B", 7, GEOMETRY), tmp_path / "recording")
    profile = scan(board, plan(), tmp_path / "profile")
    board.close()
    return profile, tmp_path / "recording"


def test_a_replayed_scan_is_the_recorded_one(recorded: tuple[Profile, Path], tmp_path: Path) -> None:
    profile, file = recorded
    again = scan(open_board(f"replay:{file}"), plan(), tmp_path / "again")
    assert sum(point.errors for point in profile.points) > 1000
    assert measured(again) == measured(profile)
    for point in profile.points:
        ours, theirs = again.cells(point.index), profile.cells(point.index)
        assert np.array_equal(ours.cell, theirs.cell)
        assert np.array_equal(ours.errors, theirs.errors)


def test_another_command_is_told_where_it_departs(recorded: tuple[Profile, Path], tmp_path: Path) -> None:
    with pytest.raises(BoardError, match=r"transfer \d+ of .* the host now asks for .* that it was recorded with"):
        scan(replay(recorded[1]), plan(patterns=["0xFF"]), tmp_path / "other")


def test_more_than_was_recorded_is_refused(recorded: tuple[Profile, Path], tmp_path: Path) -> None:
    board = replay(recorded[1])
    scan(board, plan(), tmp_path / "again")
    with pytest.raises(BoardError, match=r"ends after \d+ transfers"):
        board.register("state")


class FailingBus:
    """Gives up at the ``after``-th read."""

    def __init__(self, bus: Bus, after: int) -> None:
        self._bus, self._left = bus, after

    def read(self, address: int, count: int) -> Words:
        self._left -= 1
        if not self._left:
            raise LinkError("the cable was pulled")
        return self._bus.read(address, count)

    def write(self, address: int, words: Words) -> None:
        self._bus.write(address, words)

    def close(self) -> None:
        self._bus.close()


def test_errors_come_back_where_they_were(tmp_path: Path) -> None:
    board = open_mock("B", 7, GEOMETRY)
    board.bus = FailingBus(board.bus, 100)
    board = record(board, tmp_path / "recording")
    with pytest.raises(LinkError, match="pulled"):
        scan(board, plan(), tmp_path / "profile")
    board.close()
    with pytest.raises(LinkError, match="pulled"):
        scan(replay(tmp_path / "recording"), plan(), tmp_path / "again")
    ours, theirs = Profile.open(tmp_path / "profile"), Profile.open(tmp_path / "again")
    assert measured(ours) == measured(theirs)
    assert 0 < len(ours.points) < 12


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_recording_serves_as_far_as_it_goes(
    recorded: tuple[Profile, Path], tmp_path: Path, kept: float
) -> None:
    whole = recorded[1].read_bytes()
    (tmp_path / "part").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(BoardError, match=r"transfers; what came next was not recorded|is damaged"):
        scan(replay(tmp_path / "part"), plan(), tmp_path / "again")


def test_killed_after_a_second_it_holds_what_was_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.recording.SAVED_EVERY_S", 0.0)
    board = record(open_mock("B", 7, GEOMETRY), tmp_path / "recording")  # and is never closed
    state = board.register("state")
    (tmp_path / "copy").write_bytes((tmp_path / "recording").read_bytes())
    assert replay(tmp_path / "copy").register("state") == state


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no recording"),
        (b"PK\x03\x04", "cannot read the recording"),
        (gzip.compress(b"{}\n", mtime=0), "is no recording"),
        (gzip.compress(b"\xff\xfe\n", mtime=0), "is no recording"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(BoardError, match=words):
        replay(tmp_path / "file")
    with pytest.raises(BoardError, match=r"there is no|cannot read"):
        replay(tmp_path / "none")


@pytest.mark.parametrize("damage", [{"words": "!"}, {"words": "AAAA"}, {"kind": "shout"}, {"error": ["x"]}, {"t": "?"}])
def test_damaged_lines_are_one_clear_error(
    recorded: tuple[Profile, Path], tmp_path: Path, damage: dict[str, object]
) -> None:
    lines = gzip.decompress(recorded[1].read_bytes()).splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | damage).encode()
    (tmp_path / "damaged").write_bytes(gzip.compress(b"\n".join(lines)))
    with pytest.raises(BoardError, match="is damaged"):
        replay(tmp_path / "damaged")


def test_a_recording_is_not_written_over(recorded: tuple[Profile, Path]) -> None:
    with pytest.raises(BoardError, match="is there already"):
        record(open_mock("B", 7, GEOMETRY), recorded[1])
