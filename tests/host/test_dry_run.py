"""What a dry run says against what the scan then takes: DRAM time to the clock, the profile's size within a factor."""

import re
from pathlib import Path

import numpy as np
import pytest

import host.scan
from gateware import isa
from host import programs
from host.board import Board
from host.boards import open_mock
from host.chip_presets import PRESETS
from host.cli import dry_run as cli
from host.duration import duration
from host.plan import ScanPlan
from host.programs import Traversal
from host.rehearsal import Load, rehearse
from host.scan import scan
from profiles.errors import EdenError, PlanError, ProfileError, RailError
from profiles.geometry import Geometry
from profiles.pattern import Pattern
from profiles.storage import Profile

GEOMETRY = Geometry(banks=4, rows=64, columns=256, data_width=64, subarray_rows=64)
PLAN = {
    "grid": [{"trcd_ps": 6000, "vdd_mv": [1350, 1250]}, {"trcd_ps": 10_000, "vdd_mv": [1040]}],
    "patterns": ["0x00", "random:3/invert"],
    "rounds": 3,
    "banks": [0, 2, 3],
    "rows": {"start": 3, "count": 24},
    "write": ["nominal", "operating_point"],
}
SIZE_FACTOR = 1.6


def board(vendor: str = "B") -> Board:
    return open_mock(vendor, 5, GEOMETRY)


def plan(**changes: object) -> ScanPlan:
    return ScanPlan.model_validate(PLAN | changes)


def size(profile: Profile) -> int:
    return sum(file.stat().st_size for file in (profile.path / "points").iterdir())


def only(vendor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.rehearsal.PRESETS", {vendor: PRESETS[vendor]})


class Steps:
    """Counts what a board's supply is set to."""

    def __init__(self, opened: Board) -> None:
        self.count, supply = 0, opened.rail._supply
        self._set = supply.set_millivolts
        supply.set_millivolts = self.set_millivolts  # type: ignore[method-assign]

    def set_millivolts(self, millivolts: int) -> None:
        self.count += 1
        self._set(millivolts)


@pytest.mark.parametrize("linear", [False, True])
def test_dram_time_is_exact_and_size_near(linear: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"access_mode": "linear", "grid": [{"trcd_ps": 14_000, "vdd_mv": [1350, 1100]}]} if linear else {}
    opened, planned = board(), plan(**changes)
    only("B", monkeypatch)
    least, most = rehearse(opened, planned, None)
    assert least == most
    assert opened.usage.programs == 0
    steps = Steps(opened)
    profile = scan(opened, planned, tmp_path / "p")
    assert least.tests == len(profile.points)
    assert least.clocks == opened.usage.clocks
    assert abs(least.ramp_steps - steps.count) <= 2 * 20  # the way back to nominal at the end, and the guard's own
    assert 1 / SIZE_FACTOR < least.stored_bytes / size(profile) < SIZE_FACTOR


def test_counters_and_their_banks_are_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first rows decide how a large region is tested, bank by bank."""
    monkeypatch.setattr(host.scan, "ONE_PART_CELLS", 0)
    only("B", monkeypatch)
    planned = plan(grid=PLAN["grid"][:1], cells=[{"banks": [2], "rows": {"start": 5, "count": 7}}])  # type: ignore[index]
    opened = board()
    load, _ = rehearse(opened, planned, None)
    profile = scan(opened, planned, tmp_path / "p")
    assert all(record.counted for record in profile.points)
    assert load.clocks == opened.usage.clocks
    assert 1 / SIZE_FACTOR < load.stored_bytes / size(profile) < SIZE_FACTOR


def test_what_is_there_already_is_not_foreseen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only("B", monkeypatch)
    profile = scan(board(), plan(), tmp_path / "p")
    assert rehearse(board(), plan(), profile) == (Load(), Load())
    larger, opened = plan(rounds=5, grid=[*PLAN["grid"], {"trcd_ps": 8000, "vdd_mv": [1200]}]), board()  # type: ignore[misc]
    load, _ = rehearse(opened, larger, profile)
    scan(opened, larger, tmp_path / "p", extend=True)
    assert load.clocks == opened.usage.clocks
    assert load.tests == 3 * 4 + 4


def test_three_vendors_give_a_range_around_each_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    least, most = rehearse(board(), plan(), None)
    assert least.clocks == most.clocks  # in one part, errors cost no DRAM time
    assert least.stored_bytes < most.stored_bytes
    stored = size(scan(board("C"), plan(), tmp_path / "p"))
    assert least.stored_bytes / SIZE_FACTOR < stored < most.stored_bytes * SIZE_FACTOR


def test_a_search_for_cliffs_stays_within_what_was_foreseen(tmp_path: Path) -> None:
    cliff = {"trcd_ps": 10_000, "vdd_mv": {"from": 1100, "to": 1000, "step": 4}, "ber": [1e-3]}
    opened, planned = board(), plan(grid=[], cliff=[cliff], rows={"start": 0, "count": 16})
    least, most = rehearse(opened, planned, None)
    profile = scan(opened, planned, tmp_path / "p")
    assert least.clocks <= opened.usage.clocks <= most.clocks
    assert least.tests <= len(profile.points) <= most.tests
    assert rehearse(opened, planned, profile)[1].clocks == 0
    further = {"vdd_mv": 1350, "trcd_ps": [14_000, 10_000, 8000, 6000], "ber": [1e-2]}
    both, again = plan(grid=[], cliff=[cliff, further], rows={"start": 0, "count": 16}), board()
    least, most = rehearse(again, both, profile)
    before = len(profile.points)
    extended = scan(again, both, tmp_path / "p", extend=True)
    assert least.tests <= len(extended.points) - before <= most.tests
    assert most.tests <= 4 * 3 * 2 * 2  # every step in every bank, with every pattern, written both ways


@pytest.mark.parametrize("refresh", [True, False])
@pytest.mark.parametrize("trcd", [None, 2, 4, 5])
def test_a_program_takes_as_long_as_it_says(trcd: int | None, refresh: bool) -> None:
    opened = board()
    walk = Traversal((0, 1, 3), 2, 40, 0, GEOMETRY.bursts_per_row, whole_rows=trcd is None)
    pattern = Pattern.parse("0xAA")
    fill = programs.fill(opened.build, walk, pattern, trcd, refresh)
    read = programs.test(opened.build, walk, pattern, trcd, refresh, isa.COUNT_ROWS)
    for program in (fill, read):
        result, foreseen = opened.run(program), duration(program)
        assert (foreseen.clocks, foreseen.refreshes, foreseen.reads) == (result.clocks, result.refreshes, result.reads)
        assert (result.refreshes > 0) == refresh
    assert duration(read).reads == walk.length


def test_it_says_what_would_be_done_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = board()
    monkeypatch.setattr(cli, "open_board", lambda *_arguments, **_options: opened)
    steps = Steps(opened)
    cliff = {"vdd_mv": 1350, "trcd_ps": [14_000, 10_000, 8000], "ber": [1e-3]}
    cli.dry_run("mock:B:5", None, plan(cliff=[cliff]), tmp_path / "p", False)
    said = capsys.readouterr().out
    for line in (
        "mock:B:5: vendor B (model)",
        "900..1425",
        "6 ns: 1350, 1250 mV",
        "10 ns: 1040 mV",
        "BER 0.001, 3 steps from 1350 mV, 14 ns to 1350 mV, 8 ns",
        "banks 0, 2, 3; rows 3..26",
        "3 rounds",
        "0x00, random:3/invert",
        "nominal, operating point",
        "DRAM time",
        "MB",
    ):
        assert line in said
    assert re.search(r"^tests +\d+", said, re.MULTILINE)
    assert (steps.count, opened.usage.programs) == (0, 0)
    assert not (tmp_path / "p").exists()


def test_it_refuses_what_the_scan_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "open_board", lambda *_arguments, **_options: board())
    scan(board(), plan(), tmp_path / "p")
    refused: list[tuple[type[EdenError], ScanPlan, bool]] = [
        (RailError, plan(grid=[{"trcd_ps": 6000, "vdd_mv": [800]}]), False),
        (PlanError, plan(grid=[{"trcd_ps": 7000, "vdd_mv": [1350]}]), False),
        (PlanError, plan(banks=[0, 4]), False),
        (ProfileError, plan(rounds=4), False),
        (ProfileError, plan(patterns=["0x00"]), True),
    ]
    for error, wrong, extend in refused:
        with pytest.raises(error):
            cli.dry_run("mock:B:5", None, wrong, tmp_path / "p", extend)
    assert np.all([record.rounds == 3 for record in Profile.open(tmp_path / "p").points])
