"""Folders to serve: a mock's profiles, whole and half-way, a report, and what nobody should trust."""

import json
from pathlib import Path

import pytest

from host.board import Board
from host.boards import open_mock
from host.plan import PlannedPoint, ScanPlan
from host.scan import scan
from profiles.geometry import Geometry
from profiles.storage import Profile

GEOMETRY = Geometry(banks=2, rows=64, columns=64, data_width=64)
PLAN = ScanPlan.model_validate(
    {
        "grid": [{"trcd_ps": 10000, "vdd_mv": [1100, 1060, 1040]}, {"trcd_ps": 8000, "vdd_mv": [1350, 1200]}],
        "patterns": ["0x00", "0xFF"],
        "rounds": 2,
        "banks": [0, 1],
        "rows": {"start": 0, "count": 64},
        "write": ["nominal", "operating_point"],
    }
)
ALL, HALF = 20, 7
HOSTILE = "<img src=x onerror=\"document.title='had'\"><script>document.title='had'</script>$\\frac{\u202e"


class StopError(Exception):
    pass


def stopped_scan(path: Path, tests: int = HALF, board: Board | None = None, plan: ScanPlan = PLAN) -> Profile:
    """A scan that ended after so many tests."""

    def stop(profile: Profile, planned: PlannedPoint | None) -> None:
        if len(profile.points) == tests:
            raise StopError

    with pytest.raises(StopError):
        scan(board or open_mock("B", 3, GEOMETRY), plan, path, stop)
    return Profile.open(path)


def whole_scan(path: Path) -> Profile:
    return scan(open_mock("B", 3, GEOMETRY), PLAN, path)


def hostile_scan(path: Path) -> Profile:
    """A profile that says of itself what neither browser nor plot must obey."""
    board = open_mock("B", 4, GEOMETRY)
    board.name = HOSTILE
    says = {name: HOSTILE for name in ("manufacturer", "part_number", "serial_number")}
    board.module = board.module.model_copy(update=says)
    return stopped_scan(path, HALF, board, PLAN.model_copy(update={"licence": HOSTILE}))


def damaged_header(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "profile.json").write_text(json.dumps({"format": "eden-profile", "version": 2, "board": HOSTILE}))


def damaged_point(path: Path) -> None:
    stopped_scan(path)
    point = path / "points" / "00003.parquet"
    point.write_bytes(point.read_bytes()[:-100])
