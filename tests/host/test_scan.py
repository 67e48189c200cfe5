"""A scan loses nothing and invents nothing: killed, interrupted, misplanned, or over a bad link."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from host import boards
from host.board import Board
from host.boards import MockEnvironment, MockSupply, open_board, open_mock
from host.bus import Bus, Words
from host.chip_presets import PRESETS
from host.mock import MockBoard
from host.plan import ScanPlan
from host.rail import Measurement, Rail
from host.scan import complement, scan
from host.timings import DDR3_1600K
from host.toml_file import load_toml
from profiles.errors import BoardError, EdenError, LinkError, PlanError, ProfileError, RailError
from profiles.geometry import Geometry
from profiles.pattern import Pattern
from profiles.schema import AccessMode
from profiles.storage import Profile

GEOMETRY = Geometry(banks=4, rows=64, columns=256, data_width=64, subarray_rows=16)
PLAN = """
banks = [0, 2, 3]
patterns = ["0x00", "random:3/invert"]
rounds = 2
write = ["nominal", "operating_point"]
rows = { start = 3, count = 5 }
[[grid]]
trcd_ps = 6000
vdd_mv = { from = 1350, to = 1150, step = 100 }
[[grid]]
trcd_ps = 10_000
vdd_mv = [1100, 1040]
"""


def plan_of(text: str, folder: Path) -> ScanPlan:
    path = folder / "plan.toml"
    path.write_text(text)
    return load_toml(path, ScanPlan)


@pytest.fixture
def plan(tmp_path: Path) -> ScanPlan:
    return plan_of(PLAN, tmp_path)


def board(seed: int = 5) -> Board:
    return open_mock("B", seed, GEOMETRY)


def supply_mv(opened: Board) -> float:
    return opened.rail._supply.measure().millivolts


def assert_same(a: Profile, b: Profile) -> None:
    """Equal in everything but when it happened."""
    when = {"started", "duration_s"}
    assert [r.model_dump(exclude=when) for r in a.points] == [r.model_dump(exclude=when) for r in b.points]
    assert a.header.model_dump(exclude={"created"}) == b.header.model_dump(exclude={"created"})
    for record in a.points:
        x, y = a.cells(record.index), b.cells(record.index)
        np.testing.assert_array_equal(x.cell, y.cell)
        np.testing.assert_array_equal(x.errors, y.errors)
        np.testing.assert_array_equal(x.stored, y.stored)


@pytest.fixture
def undisturbed(plan: ScanPlan, tmp_path: Path) -> Profile:
    return scan(board(), plan, tmp_path / "undisturbed")


def test_a_scan_is_reproducible_and_full(plan: ScanPlan, undisturbed: Profile, tmp_path: Path) -> None:
    assert undisturbed.complete
    assert len(undisturbed.points) == 5 * 2 * 2
    assert_same(scan(board(), plan, tmp_path / "again"), undisturbed)
    assert sum(record.errors for record in undisturbed.points) > 1000
    clean = [r for r in undisturbed.points if r.point.trcd_ps == 10_000 and r.point.vdd_mv == 1100]
    assert sum(record.errors for record in clean) == 0
    for record in undisturbed.points:
        cells = undisturbed.cells(record.index)
        assert set(np.unique(GEOMETRY.bank(cells.cell)).tolist()) <= {0, 2, 3}
        assert cells.errors.sum() == record.errors
        assert cells.errors.max(initial=0) <= 2


def test_a_profile_says_under_which_conditions_it_was_measured(undisturbed: Profile) -> None:
    opened, header = board(), undisturbed.header
    assert header.engine["row_counters"] == opened.row_counters
    assert (header.timings_clocks["tras"], header.row_order) == (opened.timings.tras, "unknown")
    assert header.licence == "CC-BY-4.0"
    for record in undisturbed.points:
        at_point = record.write_condition == "operating_point"
        assert record.overwritten == (complement(record.pattern) if at_point else None)
        assert record.vdd_range_mv is not None
        assert record.vdd_range_mv[0] <= record.vdd_measured_mv <= record.vdd_range_mv[1]
        assert record.temperature_range_c == (20.0, 20.0)
        # tREFI of 7.8 us at 2 ns; a test takes 480 bursts of at least 32 ns, in two rounds
        assert record.refresh_interval_ps == 7_800_000
        assert record.refreshes is not None
        assert 2 <= record.refreshes <= 40


def test_writes_at_the_point_add_errors(undisturbed: Profile) -> None:
    def errors(write: str) -> int:
        return sum(r.errors for r in undisturbed.points if r.write_condition == write and r.point.trcd_ps == 6000)

    assert errors("operating_point") > errors("nominal") > 0


def test_open_rows_are_placed_right(tmp_path: Path) -> None:
    """Far below nominal VDD the first burst of a row sees too short a time even at nominal tRCD, later ones do not."""
    plan = plan_of(
        'banks = [1, 3]\npatterns = ["0x00"]\nrounds = 1\naccess_mode = "linear"\nrows = { start = 8, count = 32 }\n'
        "[[grid]]\ntrcd_ps = 14_000\nvdd_mv = [1030]",
        tmp_path,
    )
    cells = scan(open_mock("C", 5, GEOMETRY), plan, tmp_path / "linear").cells(0).cell
    assert cells.size > 20
    assert set(GEOMETRY.column(cells) // 8) == {0}
    assert set(GEOMETRY.bank(cells).tolist()) == {1, 3}
    assert 8 <= GEOMETRY.row(cells).min() <= GEOMETRY.row(cells).max() < 40
    per_burst = plan.model_copy(update={"access_mode": AccessMode.BURST_PER_ACTIVATION})
    closed = scan(open_mock("C", 5, GEOMETRY), per_burst, tmp_path / "closed").cells(0).cell
    assert np.isin(cells, closed).mean() > 0.8  # the same weak cells, other draws
    assert closed.size > 10 * cells.size


# ---- interrupted -----------------------------------------------------------------------------------------------------


class Interrupted(BaseException):
    """Something the code under test cannot catch by name."""


class Proxy:
    """A bus that lets a hook see, change or refuse every access."""

    def __init__(self, bus: Bus, hook: Callable[[int, str, int, Words | None], Words | None]) -> None:
        self._bus, self._hook, self.accesses = bus, hook, 0

    def read(self, address: int, count: int) -> Words:
        self.accesses += 1
        words = self._bus.read(address, count)
        changed = self._hook(self.accesses, "read", address, words)
        return words if changed is None else changed

    def write(self, address: int, words: Words) -> None:
        self.accesses += 1
        changed = self._hook(self.accesses, "write", address, words)
        if changed is None:
            self._bus.write(address, words)
        elif changed.size:
            self._bus.write(address, changed)

    def close(self) -> None:
        self._bus.close()


def quiet(number: int, kind: str, address: int, words: Words | None) -> None:
    return None


def proxied(hook: Callable[[int, str, int, Words | None], Words | None], seed: int = 5) -> Board:
    bus = MockBoard(boards.mock_build(GEOMETRY), PRESETS["B"], seed)
    bus.set_environment(1_350_000, 20.0)
    module = board(seed).module
    rail = Rail(MockSupply(bus), module.dram_type, module.nominal_vdd_mv)
    return Board(Proxy(bus, hook), rail, MockEnvironment(bus), module, DDR3_1600K, 8, f"mock:B:{seed}", seed)


def test_interrupted_anywhere_it_resumes_to_the_same(plan: ScanPlan, undisturbed: Profile, tmp_path: Path) -> None:
    path, rng = tmp_path / "profile", np.random.default_rng(1)
    interruptions = 0
    while not (path / "profile.json").exists() or not Profile.open(path).complete:
        when = int(rng.integers(15, 220))

        def hook(number: int, kind: str, address: int, words: Words | None, when: int = when) -> None:
            if number == when:
                raise Interrupted

        opened = proxied(hook)
        try:
            scan(opened, plan, path)
        except Interrupted:
            interruptions += 1
        assert supply_mv(opened) == 1350
    assert interruptions > 4
    assert_same(Profile.open(path), undisturbed)


SCRIPT = """
import sys
from pathlib import Path
from host.boards import open_mock
from host.plan import ScanPlan
from host.toml_file import load_toml
from host.scan import complement, scan
from profiles.geometry import Geometry
geometry = Geometry(banks=4, rows=64, columns=256, data_width=64, subarray_rows=16)
folder = Path(sys.argv[1])
board = open_mock("B", 5, geometry)
print("ready", flush=True)
try:
    scan(board, load_toml(folder / "plan.toml", ScanPlan), folder / "profile", lambda done, _: print(done, flush=True))
except BaseException as error:
    print("supply", board.rail._supply.measure().millivolts, type(error).__name__, flush=True)
    raise
"""


def start(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
def test_killed_it_resumes_to_the_same(plan: ScanPlan, undisturbed: Profile, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for _ in range(3):
        process = start(tmp_path)
        assert process.stdout is not None
        for _ in range(int(rng.integers(1, 5))):
            process.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.02)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 0 < len(Profile.open(tmp_path / "profile").points) < 20
    process = start(tmp_path)
    assert process.wait() == 0
    assert_same(Profile.open(tmp_path / "profile"), undisturbed)


@pytest.mark.slow
def test_ctrl_c_leaves_the_supply_at_nominal(plan: ScanPlan, tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    for _ in range(4):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait() != 0
    assert "supply 1350.0" in rest


def test_a_second_ctrl_c_does_not_stop_the_way_back() -> None:
    class Slow:
        volts: list[int]

        def __init__(self) -> None:
            self.volts = []

        def set_millivolts(self, millivolts: int) -> None:
            if self.volts and self.volts[-1] == 1100:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
            self.volts.append(millivolts)

        def measure(self) -> Measurement:
            return Measurement(float(self.volts[-1]), 0.1)

        def set_point_mv(self) -> float:
            return 1350.0

    supply = Slow()
    rail = Rail(supply, "DDR3L", 1350)
    with pytest.raises(ZeroDivisionError), rail.guarded():
        _ = rail.set(1100).uncertainty_mv / 0
    assert supply.volts[-1] == 1350
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_plan_or_module_on_the_same_folder_is_refused(
    plan: ScanPlan, undisturbed: Profile, tmp_path: Path
) -> None:
    path = tmp_path / "undisturbed"
    with pytest.raises(ProfileError, match="another plan"):
        scan(board(), plan.model_copy(update={"rounds": 3}), path)
    with pytest.raises(ProfileError, match="another module"):
        scan(board(seed=6), plan, path)
    assert_same(scan(board(), plan, path), undisturbed)


# ---- bad plans -------------------------------------------------------------------------------------------------------

BAD = {
    "unknown key": (PLAN.replace("rounds = 2", "rounds = 2\nround = 3"), "round"),
    "unknown key in the grid": (PLAN + "vddmv = 3", "vddmv"),
    "voltage too high": (PLAN.replace("[1100, 1040]", "[1100, 1500]"), "1500 mV"),
    "voltage too low": (PLAN.replace("[1100, 1040]", "[100]"), "100 mV"),
    "negative voltage": (PLAN.replace("[1100, 1040]", "[-1100]"), "-1100"),
    "no multiple of tCK": (PLAN.replace("6000", "7500"), "6 or 8 ns"),
    "tRCD of zero": (PLAN.replace("6000", "0"), "trcd_ps"),
    "rows outside": (PLAN.replace("count = 5", "count = 62"), "outside 0..63"),
    "bank outside": (PLAN.replace("[0, 2, 3]", "[0, 4]"), "bank 4"),
    "banks twice": (PLAN.replace("[0, 2, 3]", "[0, 0]"), "ascend"),
    "no banks": (PLAN.replace("[0, 2, 3]", "[]"), "banks"),
    "no patterns": (PLAN.replace('["0x00", "random:3/invert"]', "[]"), "patterns"),
    "foreign pattern": (PLAN.replace("random:3/invert", "plaid"), "plaid"),
    "buffer pattern": (PLAN.replace('"random:3/invert"', "{ kind = 6 }"), "buffer"),
    "no rounds": (PLAN.replace("rounds = 2", "rounds = 0"), "rounds"),
    "no grid": (PLAN.partition("[[grid]]")[0], "grid"),
    "no voltages": (PLAN.replace("[1100, 1040]", "[]"), "vdd_mv"),
    "step of zero": (PLAN.replace("step = 100", "step = 0"), "step"),
    "text for a number": (PLAN.replace("rounds = 2", 'rounds = "two"'), "two"),
    "linear below nominal": (PLAN.replace("rounds = 2", 'rounds = 2\naccess_mode = "linear"'), "nominal tRCD"),
    "no TOML": ("banks = [", "not valid TOML"),
    "empty": ("", "grid"),
}


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD.keys())
def test_bad_plans_are_one_clear_line_and_touch_nothing(text: str, says: str, tmp_path: Path) -> None:
    opened = board()
    with pytest.raises((PlanError, RailError)) as caught:
        scan(opened, plan_of(text, tmp_path), tmp_path / "profile")
    assert "\n" not in str(caught.value)
    assert says in str(caught.value)
    assert not (tmp_path / "profile").exists()
    assert supply_mv(opened) == 1350


def test_plans_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot read"):
        load_toml(tmp_path / "none.toml", ScanPlan)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="cannot read"):
        load_toml(tmp_path / "binary.toml", ScanPlan)


@pytest.mark.parametrize("text", ["mock", "mock:D", "mock:A:x", "mock:A:-1", f"mock:A:{1 << 40}", "usb:/dev/null", ""])
def test_boards_that_do_not_exist_are_one_clear_line(text: str) -> None:
    with pytest.raises(BoardError, match="names no board"):
        open_board(text)


def test_spans_include_both_ends(plan: ScanPlan) -> None:
    assert plan.grid[0].vdd_mv == (1350, 1250, 1150)
    assert [p.index for p in plan.points()] == list(range(20))
    assert Pattern.parse("random:3/invert") in {p.pattern for p in plan.points()}


# ---- a bad link ------------------------------------------------------------------------------------------------------

TINY = """
banks = [0, 1]
patterns = ["0x00"]
rounds = 1
rows = { count = 2 }
[[grid]]
trcd_ps = 4000
vdd_mv = [1250]
"""


def drop(words: Words, rng: np.random.Generator) -> Words:
    return words[:0]


def flip(words: Words, rng: np.random.Generator) -> Words:
    changed = words.copy()
    changed[rng.integers(words.size)] ^= np.uint32(1 << int(rng.integers(32)))
    return changed


def zero(words: Words, rng: np.random.Generator) -> Words:
    return np.zeros_like(words)


def time_out(words: Words, rng: np.random.Generator) -> Words:
    raise LinkError("the board did not answer within 1 s; check the cable")


@pytest.mark.parametrize(
    ("kind", "damage"),
    [("write", drop), ("write", flip), ("read", flip), ("read", zero), ("read", time_out), ("write", time_out)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_bad_link_never_gives_a_wrong_map(
    kind: str, damage: Callable[[Words, np.random.Generator], Words], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every access of a scan in turn goes wrong once: an error that says so, or the right result all the same."""
    monkeypatch.setattr("host.board.SILENCE_S", 0.2)
    plan, rng = plan_of(TINY, tmp_path), np.random.default_rng(2)
    clean = proxied(quiet)
    opening = clean.bus.accesses  # type: ignore[attr-defined]
    right = scan(clean, plan, tmp_path / "right")
    accesses = clean.bus.accesses  # type: ignore[attr-defined]
    assert right.points[0].errors > 100
    refused = 0
    for when in range(1, accesses + 1):
        path = tmp_path / str(when)

        def hook(number: int, what: str, _: int, words: Words | None, when: int = when) -> Words | None:
            return damage(words, rng) if number == when and what == kind and words is not None else None

        try:
            opened = proxied(hook)
            result = scan(opened, plan, path)
        except EdenError:
            refused += 1
            if when > opening:
                assert supply_mv(opened) == 1350
                assert not Profile.open(path).points
        else:
            np.testing.assert_array_equal(result.cells(0).cell, right.cells(0).cell)
            assert result.points[0].errors == right.points[0].errors
    assert refused > (0 if kind == "write" else accesses // 10)


def test_a_silent_board_is_given_up_on(plan: ScanPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.board.SILENCE_S", 0.05)
    stuck = board()
    monkeypatch.setattr(stuck.bus, "_go_on", lambda: None)
    with pytest.raises(LinkError, match="stands at clock"):
        scan(stuck, plan, tmp_path / "profile")
    assert supply_mv(stuck) == 1350


def test_what_is_no_test_engine_is_not_driven() -> None:
    def hook(number: int, kind: str, address: int, words: Words | None) -> Words | None:
        return np.zeros_like(words) if words is not None and kind == "read" else None

    with pytest.raises(LinkError, match="test engine"):
        proxied(hook)


@pytest.mark.parametrize("damage", [drop, flip], ids=["drop", "flip"])
def test_tensors_do_not_cross_a_bad_link_unnoticed(damage: Callable[[Words, np.random.Generator], Words]) -> None:
    """One access of a write and a read goes wrong: an error, or the data as they are."""
    rng = np.random.default_rng(7)
    data = rng.integers(0, 1 << 32, (40, 16)).astype(np.uint32)
    opening = proxied(quiet).bus.accesses  # type: ignore[attr-defined]
    refused = 0
    for when in range(opening + 1, opening + 90):

        def hook(number: int, kind: str, _: int, words: Words | None, when: int = when) -> Words | None:
            applies = number == when and words is not None and (kind == "write" or damage is flip)
            return damage(words, rng) if applies and words is not None else None

        opened = proxied(hook)
        try:
            opened.write_bursts([(0, len(data))], data, opened.timings.trcd)
            back = opened.read_bursts([(0, 40)], opened.timings.trcd)
        except EdenError:
            refused += 1
        else:
            np.testing.assert_array_equal(back, data)
    assert refused > 5


def test_a_board_that_was_reset_between_two_programs_is_noticed_and_used_again() -> None:
    opened, data = proxied(quiet), np.arange(64, dtype=np.uint32).reshape(4, 16)
    opened.write_bursts([(0, 4)], data, opened.timings.trcd)
    opened.bus._bus._held["starts"] = 0  # type: ignore[attr-defined]
    with pytest.raises(LinkError, match=r"counts 1 started programs, 1 before this one: .* was reset"):
        opened.read_bursts([(0, 4)], opened.timings.trcd)
    np.testing.assert_array_equal(opened.read_bursts([(0, 4)], opened.timings.trcd), data)


def test_a_program_takes_few_ways_to_the_board() -> None:
    """Buffer, program, its check, start; status, counters, status, and for what was captured two more."""
    opened, data, took = proxied(quiet), np.arange(64, dtype=np.uint32).reshape(4, 16), []
    for _ in range(2):
        before = opened.bus.accesses  # type: ignore[attr-defined]
        opened.write_bursts([(0, 4)], data, opened.timings.trcd)
        between = opened.bus.accesses  # type: ignore[attr-defined]
        opened.read_bursts([(0, 4)], opened.timings.trcd)
        took = [between - before, opened.bus.accesses - between]  # type: ignore[attr-defined]
    assert took == [7, 8]


# ---- the rail --------------------------------------------------------------------------------------------------------


class Sagging:
    """A supply whose output, once it is to leave nominal, reads ``offset`` off."""

    def __init__(self, offset: float) -> None:
        self.history: list[int] = []
        self._offset = offset

    def set_millivolts(self, millivolts: int) -> None:
        self.history.append(millivolts)

    def measure(self) -> Measurement:
        off = self._offset if self.history[-1] != 1350 else 0.0
        return Measurement(self.history[-1] + off, 0.1)

    def set_point_mv(self) -> float:
        return self.history[-1] if self.history else 1350.0


@pytest.mark.parametrize("offset", [5.5, -6.0, float("nan"), -1200.0])
def test_a_rail_out_of_tolerance_goes_back_to_nominal(offset: float, plan: ScanPlan, tmp_path: Path) -> None:
    opened = board()
    supply = Sagging(offset)
    opened.rail = Rail(supply, "DDR3L", 1350)
    with pytest.raises(RailError, match="back at nominal"):
        scan(opened, plan, tmp_path / "profile")
    assert supply.history[-1] == 1350
    finished = Profile.open(tmp_path / "profile").points
    assert all(record.point.vdd_mv == 1350 for record in finished)


def test_the_rail_ramps_in_steps_and_never_leaves_its_limits() -> None:
    supply = Sagging(0.0)
    rail = Rail(supply, "DDR3L", 1350)
    with rail.guarded():
        rail.set(1040)
        rail.set(1100)
        for wrong in (899, 1426, 0, -5):
            with pytest.raises(RailError):
                rail.set(wrong)
    steps = np.abs(np.diff(supply.history[:-1]))
    assert steps.max() <= 25
    assert min(supply.history) == 1040
    assert supply.history[-1] == 1350


def test_a_supply_that_fails_midway_is_still_asked_to_return() -> None:
    class Failing(Sagging):
        def set_millivolts(self, millivolts: int) -> None:
            if millivolts == 1225:
                raise BoardError("the supply did not answer")
            super().set_millivolts(millivolts)

    supply = Failing(0.0)
    with pytest.raises(BoardError, match="did not answer"), Rail(supply, "DDR3L", 1350).guarded() as rail:
        rail.set(1100)
    assert supply.history[-1] == 1350
