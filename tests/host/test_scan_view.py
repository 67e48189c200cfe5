"""What a running scan shows: rates of what was measured, never of what was not; time left; resumed scans."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from host.boards import open_mock
from host.cli import scan_view
from host.cli.scan_view import ScanView
from host.plan import PlannedPoint, ScanPlan
from host.scan import scan
from profiles.geometry import Geometry
from profiles.storage import Profile

GEOMETRY = Geometry(banks=1, rows=16, columns=64, data_width=64)
PLAN = ScanPlan.model_validate(
    {
        "grid": [{"trcd_ps": 8000, "vdd_mv": [1350, 1100]}, {"trcd_ps": 10000, "vdd_mv": [1100]}],
        "patterns": ["0x00", "0xFF"],
        "rounds": 1,
        "banks": [0],
        "rows": {"start": 0, "count": 16},
    }
)


class StopError(Exception):
    pass


def picture(view: ScanView) -> str:
    console = Console(width=120, record=True, file=StringIO())
    console.print(view.picture())
    return console.export_text()


def test_each_test_has_its_line_and_each_point_its_rate(tmp_path: Path) -> None:
    points, lines, pictures = list(PLAN.points()), [], []
    view = ScanView(PLAN)

    def watch(profile: Profile, planned: PlannedPoint | None) -> None:
        lines.append(view.look(profile, planned))
        pictures.append(picture(view))

    profile = scan(open_mock("B", 3, GEOMETRY), PLAN, tmp_path / "p", watch)
    assert [len(each) for each in lines] == [0, 1, 1, 1, 1, 1, 1]
    for number, record in enumerate(profile.points, 1):
        (line,) = lines[number]
        assert line.startswith(f"[{number}/6] {record.point}, {record.pattern}, written at nominal: BER ")
        assert f"({record.errors} errors)" in line
        assert ("left" in line) == (number < 6)
    assert pictures[0].count("testing") == 1
    assert pictures[0].count("·") == 2
    assert "0 of 6 tests; now 1350 mV, 8 ns, 0x00" in pictures[0]
    pooled = sum(record.errors for record in profile.points if record.point == points[2].point)
    assert pooled > 100
    assert f"{pooled / (2 * GEOMETRY.bank_bits):.1e}" in pictures[-1]
    assert "·" not in pictures[-1]
    assert "6 of 6 tests; " in pictures[-1]


def test_a_resumed_scan_counts_what_was_there_but_not_its_time(tmp_path: Path) -> None:
    def stop(profile: Profile, planned: PlannedPoint | None) -> None:
        if len(profile.points) == 4:
            raise StopError

    with pytest.raises(StopError):
        scan(open_mock("B", 3, GEOMETRY), PLAN, tmp_path / "p", stop)
    view = ScanView(PLAN)
    lines: list[str] = []
    scan(open_mock("B", 3, GEOMETRY), PLAN, tmp_path / "p", lambda *now: lines.extend(view.look(*now)))
    assert lines[0] == "4 of 6 tests were there already"
    assert [line.split("]")[0] for line in lines[1:]] == ["[5/6", "[6/6"]


def test_on_a_terminal_it_is_a_live_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "screen").open("w+") as screen:
        monkeypatch.setattr(scan_view, "console", Console(file=screen, force_terminal=True, width=100))
        with scan_view.scan_view(PLAN) as watch:
            scan(open_mock("B", 3, GEOMETRY), PLAN, tmp_path / "p", watch)
        screen.seek(0)
        shown = screen.read()
    assert "8 ns" in shown
    assert "6 of 6 tests" in shown
