"""What a weekend brings: a full disk, a clock that jumps, a supply that fails. What was measured is kept, the rail goes
back to nominal by the supply's own log, and the same command goes on to the result of a scan that nobody disturbed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from host import boards
from host.board import Board
from host.boards import FollowedSupply, MockEnvironment, open_board
from host.bus import SharedBus
from host.chip_presets import PRESETS
from host.mock import MockBoard
from host.pmbus import WATCHDOG_MS, PmbusSupply, RailRegisters
from host.scan import scan
from host.supplies import rail_of
from host.timings import DDR3_1600K
from profiles.errors import BoardError, EdenError
from profiles.geometry import Geometry
from profiles.storage import Profile
from tests.host.hostile import build_hostile, hostile
from tests.host.pmbus_stand_in import ADDRESSES, READ_VOUT, VOUT_COMMAND, RailStandIn, Routed, Ucd9248
from tests.host.scpi_stand_in import Faults, ScpiStandIn
from tests.host.test_bench_supply import RESTORED_S
from tests.host.test_pmbus import SETTINGS, assert_nominal
from tests.host.test_scan import assert_same, plan_of

SCAN = """
banks = [0, 1]
patterns = ["0x00", "random:3"]
rounds = 2
rows = { count = 8 }
[[grid]]
trcd_ps = 10_000
vdd_mv = [1350, 1100, 1060, 1050, 1045, 1040]
"""
POINTS = 12
RUN = 'board = "mock:B:5"\noutput = "run"\n[scan]\n' + SCAN.replace("[[grid]]", "[[scan.grid]]")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def supply() -> Iterator[ScpiStandIn]:
    with ScpiStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def folder(supply: ScpiStandIn, tmp_path: Path) -> Path:
    supply.file(tmp_path / "eden.toml", timeout_s=2.0)
    (tmp_path / "plan.toml").write_text(RUN)
    return tmp_path


def eden_scan(folder: Path, out: str, environment: dict[str, str] | None = None, *more: str) -> tuple[int, str]:
    """`eden scan` in a process of its own: exit status, and what it said on standard error."""
    command = [sys.executable, "-m", "host.cli.main", "scan", str(folder / "plan.toml")]
    command += ["--supply", str(folder / "eden.toml"), "--out", str(folder / out), *more]
    environment = {**(environment or os.environ), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def undisturbed(folder: Path) -> Profile:
    board = open_board("mock:B:5", folder / "eden.toml")
    try:
        return scan(board, plan_of(SCAN, folder / "whole"), folder / "whole" / "profile")
    finally:
        board.close()


def bytes_in(profile: Path) -> int:
    return sum(file.stat().st_size for file in profile.rglob("*") if file.is_file())


# ---- disk and clock --------------------------------------------------------------------------------------------------


def fill_the_disk(folder: Path, library: Path, supply: ScpiStandIn, shares: np.ndarray) -> set[int]:
    """Scans that run out of disk after each of ``shares`` of what a profile takes; how many points each had."""
    (folder / "whole").mkdir()
    expected = undisturbed(folder)
    size, kept = bytes_in(expected.path), set()
    for number, share in enumerate(shares):
        out = f"full-{number}"
        status, said = eden_scan(folder, out, hostile(library, disk_bytes=int(share * size)))
        assert status == 1
        assert re.fullmatch(r"eden: the disk is full while writing [^\n]*: free some space and run again\n", said), said
        assert supply.settings_sent()[-1] == supply.out_mv() == 1350
        assert not list((folder / out).rglob("*.part"))
        if (folder / out / "profile.json").exists():
            kept.add(len(Profile.open(folder / out).points))
        assert eden_scan(folder, out) == (0, "")
        assert_same(Profile.open(folder / out), expected)
    return kept


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_measured(folder: Path, library: Path, supply: ScpiStandIn) -> None:
    kept = fill_the_disk(folder, library, supply, np.array([0.7]))
    assert max(kept) > POINTS / 2
    assert min(supply.settings_sent()) < 1060


@pytest.mark.prove
def test_a_disk_that_is_full_at_any_moment_keeps_what_was_measured(
    folder: Path, library: Path, supply: ScpiStandIn
) -> None:
    kept = fill_the_disk(folder, library, supply, np.random.default_rng(8).uniform(0, 0.99, 60))
    assert len(kept) > POINTS / 2


@pytest.mark.slow
def test_a_recording_that_fills_the_disk_leaves_the_rail_at_nominal(
    folder: Path, library: Path, supply: ScpiStandIn
) -> None:
    recording = str(folder / "recording")
    status, said = eden_scan(folder, "out", hostile(library, disk_bytes=20_000), "--record", recording)
    assert status == 1
    assert re.fullmatch(r"eden: cannot write the recording [^\n]*No space left[^\n]*\n", said), said
    assert min(supply.settings_sent()) < 1350
    assert supply.settings_sent()[-1] == supply.out_mv() == 1350
    assert eden_scan(folder, "out") == (0, "")


@pytest.mark.slow
def test_a_wall_clock_that_jumps_changes_nothing_but_dates(folder: Path, library: Path, supply: ScpiStandIn) -> None:
    """By up to ten days either way at each look, for the scan and for the supply's guardian."""
    (folder / "whole").mkdir()
    expected = undisturbed(folder)
    assert eden_scan(folder, "jumping", hostile(library, clock_s=864_000)) == (0, "")
    found = Profile.open(folder / "jumping")
    assert_same(found, expected)
    jumps = [after.started - before.started for before, after in pairwise(found.points)]
    assert max(jumps) > timedelta(days=1)
    assert min(jumps) < timedelta(days=-1)
    assert all(0 < point.duration_s < 86_400 for point in found.points)
    assert supply.out_mv() == 1350


# ---- supplies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"overshoot_from_mv": 1055},
        pytest.param({"silent_from_mv": 1055, "silent_s": 1.5}, marks=pytest.mark.prove),
        pytest.param({"reads_wrong_mv": -30.0}, marks=pytest.mark.prove),
        pytest.param({"deaf_below_mv": 1055.0}, marks=pytest.mark.prove),
        {"hangs_up": True},
        pytest.param({"garbled": True}, marks=pytest.mark.prove),
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_a_bench_supply_that_fails_in_mid_scan(fault: dict[str, float], supply: ScpiStandIn, folder: Path) -> None:
    supply.file(folder / "eden.toml", timeout_s=0.5)
    (folder / "whole").mkdir()
    expected, plan = undisturbed(folder), plan_of(SCAN, folder)
    board = open_board("mock:B:5", folder / "eden.toml")

    def fail(profile: Profile, _planned: object) -> None:
        if len(profile.points) == 5:
            supply.faults = Faults(**fault)  # type: ignore[arg-type]

    with pytest.raises(EdenError):
        scan(board, plan, folder / "out", fail)
    supply.faults = Faults()
    with suppress(EdenError):
        board.close()
    supply.wait_for(1350, RESTORED_S)
    assert supply.settings_sent()[-1] == 1350
    assert 5 <= len(Profile.open(folder / "out").points) < POINTS
    board = open_board("mock:B:5", folder / "eden.toml")
    try:
        assert_same(scan(board, plan, folder / "out"), expected)
    finally:
        board.close()
    assert supply.out_mv() == 1350


def pmbus_board(regulators: RailStandIn) -> Board:
    """A mock DRAM on the rail that the regulators feed."""
    geometry = Geometry(banks=4, rows=64, columns=256, data_width=64, subarray_rows=16)
    chip = MockBoard(boards.mock_build(geometry), PRESETS["B"], 5)
    chip.set_environment(1_350_000, 20.0)
    bus = SharedBus(Routed(chip, regulators))
    wanted = SETTINGS.model_copy(update={"dram": "DDR3L", "floor_mv": 1000})
    supply = PmbusSupply(RailRegisters(bus, ADDRESSES), wanted)
    module = boards.open_mock("B", 5, geometry).module
    rail = rail_of(wanted, FollowedSupply(supply, chip))
    return Board(bus, rail, MockEnvironment(chip), module, DDR3_1600K, 8, "mock:B:5", 5)


def regulators_at(millivolts: int) -> RailStandIn:
    stand_in = RailStandIn()
    stand_in.regulators[53] = Ucd9248((2.5, millivolts / 1000, 1.0, 1.2))
    return stand_in


def stop_acknowledging(stand_in: RailStandIn) -> None:
    stand_in.regulator.deaf = frozenset({VOUT_COMMAND, READ_VOUT})


def overshoot(stand_in: RailStandIn) -> None:
    stand_in.regulator.overshoot = 200


def stick(stand_in: RailStandIn) -> None:
    stand_in.regulator.sticks = True


@pytest.mark.parametrize("fail", [stop_acknowledging, overshoot, stick], ids=lambda fail: fail.__name__)
def test_a_regulator_that_fails_in_mid_scan(fail: Callable[[RailStandIn], None], tmp_path: Path) -> None:
    plan = plan_of(SCAN, tmp_path)
    expected = scan(pmbus_board(regulators_at(1350)), plan, tmp_path / "whole")
    stand_in = regulators_at(1350)
    board = pmbus_board(stand_in)

    def broken(profile: Profile, _planned: object) -> None:
        if len(profile.points) == 5:
            fail(stand_in)

    with pytest.raises(BoardError):
        scan(board, plan, tmp_path / "out", broken)
    with suppress(BoardError):
        board.close()
    stand_in.regulator.deaf, stand_in.regulator.overshoot, stand_in.regulator.sticks = frozenset(), 0, False
    stand_in.pass_time(WATCHDOG_MS / 1000 + 1.0)  # from where it cannot be moved the gateware brings it back
    assert_nominal(stand_in, regulators_at(1350))
    assert 5 <= len(Profile.open(tmp_path / "out").points) < POINTS
    board = pmbus_board(stand_in)
    assert_same(scan(board, plan, tmp_path / "out"), expected)
    board.close()
    assert_nominal(stand_in, regulators_at(1350))
