"""A PMBus rail is found by reading, moved without tripping, and back at nominal whatever becomes of host and link."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from fractions import Fraction
from itertools import pairwise
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from migen import run_simulation

from gateware.rail import RailSequencer, RailState
from host import boards, pmbus, smbus
from host.board import Board
from host.boards import FollowedSupply, MockEnvironment
from host.bus import Bus, SharedBus, Words
from host.chip_presets import PRESETS
from host.mock import MockBoard
from host.pmbus import PmbusSupply, RailRegisters, exponent_of, linear11, linear16_to_mv, mv_to_linear16
from host.rail import Rail
from host.scan import scan
from host.supplies import rail_of
from host.supply_file import PmbusSettings
from host.timings import DDR3_1600K
from profiles.errors import LinkError, RailError, UnacknowledgedError
from profiles.geometry import Geometry
from tests.gateware.pmbus_target import PmbusTarget
from tests.host import pmbus_stand_in
from tests.host.pmbus_stand_in import ADDRESSES, NAMES, PAGE, PHASE, RESTORED, RailStandIn, Routed, Ucd9248
from tests.host.test_scan import plan_of

FLOOR_MV, NOMINAL_MV = 1140, 1500
SETTINGS = PmbusSettings(
    **{"kind": "pmbus", "board": "etherbone:192.168.1.50", "dram": "DDR3", "floor_mv": FLOOR_MV},
    **{"uncertainty_mv": 4.0, "slew_mv_per_s": 10_000, "settle_s": 0.2},
)
DOWN = [pmbus_stand_in.PG_OFF, pmbus_stand_in.PG_ON, pmbus_stand_in.UV_FAULT, pmbus_stand_in.UV_WARN]
VOUT = pmbus_stand_in.VOUT_COMMAND


def supply_of(bus: Bus, wanted: PmbusSettings = SETTINGS) -> PmbusSupply:
    return PmbusSupply(RailRegisters(SharedBus(bus), ADDRESSES), wanted)


def opened(bus: RailStandIn, wanted: PmbusSettings = SETTINGS) -> Rail:
    return rail_of(wanted, supply_of(bus, wanted))


def go(rail: Rail, *voltages: int) -> None:
    with rail.guarded():
        for millivolts in voltages:
            rail.set(millivolts)


def assert_nominal(bus: RailStandIn, fresh: RailStandIn | None = None) -> None:
    """Every register of every rail but PHASE is as it was, nothing has tripped, and nothing was ever stored."""
    bus.pass_time(0.1)
    fresh = fresh or RailStandIn()
    for address, regulator in bus.regulators.items():
        for output, before in zip(regulator.outputs, fresh.regulators[address].outputs, strict=True):
            assert {**output.registers, PHASE: 0} == before.registers
            assert not output.tripped
            assert output.out == before.out
    assert not [each for each in bus.transactions if each[1] in pmbus_stand_in.STORE and each[2] is not None]


# ---- numbers ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 65535), st.integers(-16, 15))
def test_linear16_is_exact(raw: int, exponent: int) -> None:
    assert exponent_of(exponent & 0x1F) == exponent
    assert linear16_to_mv(raw, exponent) == Fraction(raw * 1000) * Fraction(2) ** exponent
    assert mv_to_linear16(linear16_to_mv(raw, exponent), exponent) == raw


@given(st.integers(0, 3000))
def test_a_voltage_becomes_the_nearest_number(millivolts: int) -> None:
    off = linear16_to_mv(mv_to_linear16(millivolts, -12), -12) - millivolts
    assert abs(off) <= Fraction(1000, 2 * 4096)


def test_linear11_of_every_word() -> None:
    words = np.arange(1 << 16, dtype=np.uint32)
    mantissa = (words << 5).astype(np.uint16).view(np.int16) >> 5
    exponent = words.astype(np.uint16).view(np.int16) >> 11
    expected = mantissa.astype(np.float64) * np.exp2(exponent.astype(np.float64))
    assert [float(linear11(int(word))) for word in words] == expected.tolist()


def test_known_numbers() -> None:
    """1.5 V with VOUT_MODE 0x14 is 0x1800; LINEAR11 0xE832 is 50 / 8."""
    assert (exponent_of(0x14), mv_to_linear16(1500, -12), linear16_to_mv(0x1800, -12)) == (-12, 0x1800, 1500)
    assert linear11(0xE832) == Fraction(25, 4)
    with pytest.raises(RailError, match="linear format"):
        exponent_of(0x40)
    with pytest.raises(RailError, match="LINEAR16"):
        mv_to_linear16(3000, -15)


class Memory:
    """A bus of 64 words that notes its accesses."""

    def __init__(self) -> None:
        self.words, self.accesses = np.zeros(64, np.uint32), list[tuple[str, int, int]]()

    def read(self, address: int, count: int) -> Words:
        self.accesses.append(("read", address, count))
        return self.words[address // 4 :][:count].copy()

    def write(self, address: int, words: Words) -> None:
        self.accesses.append(("write", address, words.size))
        self.words[address // 4 :][: words.size] = words

    def close(self) -> None:
        pass


@given(st.integers(0, 20), st.integers(0, 40), st.integers(1, 9))
def test_a_shared_bus_moves_the_same_words_in_pieces(start: int, count: int, piece: int) -> None:
    memory = Memory()
    shared = SharedBus(memory, piece)
    content = np.arange(1, count + 1, dtype=np.uint32)
    shared.write(4 * start, content)
    assert memory.words.tolist() == [0] * start + content.tolist() + [0] * (64 - start - count)
    assert shared.read(4 * start, count).tolist() == content.tolist()
    assert all(size <= piece for _, _, size in memory.accesses)


# ---- finding it ------------------------------------------------------------------------------------------------------


def test_the_rail_is_found_by_reading_and_nothing_but_page_is_written() -> None:
    bus = RailStandIn()
    supply = supply_of(bus)
    assert (supply.rail.address, supply.rail.page, supply.rail.nominal) == (53, 1, 0x1800)
    assert supply.identity == "page 1 of UCD9248-64 at SMBus address 53"
    written = [command for _, command, value, _ in bus.transactions if value is not None]
    assert (set(written), written[-1], written.count(PHASE)) == ({PAGE, PHASE}, PHASE, 1)
    measured = supply.measure()
    assert (measured.millivolts, measured.milliamperes, measured.milliwatts) == (1500.0, 6250.0, 9375.0)
    supply.close()
    assert_nominal(bus)


def another_device(bus: RailStandIn) -> None:
    bus.regulator.device = b"UCD90120A|2.3.4.0000|110309"


def no_device(bus: RailStandIn) -> None:
    del bus.regulators[53]


def a_second_rail_of_that_voltage(bus: RailStandIn) -> None:
    bus.regulators[54] = Ucd9248((2.0, 1.49, 1.8, 3.3))


def another_voltage(bus: RailStandIn) -> None:
    bus.regulators[53] = Ucd9248((2.5, 1.35, 1.0, 1.2))


def an_output_that_is_off(bus: RailStandIn) -> None:
    bus.regulator.outputs[1].tripped = True


def limits_in_disorder(bus: RailStandIn) -> None:
    bus.regulator.outputs[1].registers[pmbus_stand_in.UV_WARN] = 0x1900


def another_format(bus: RailStandIn) -> None:
    bus.regulator.outputs[1].registers[pmbus_stand_in.VOUT_MODE] = 0x40


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (another_device, "53: 'UCD90120A', not of the UCD92xx family"),
        (no_device, "53: nothing"),
        (a_second_rail_of_that_voltage, "2 rails at nominal"),
        (another_voltage, "no rail at nominal, 1500 mV"),
        (an_output_that_is_off, "53 page 1: set to 1500 mV, reads 0 mV"),
        (limits_in_disorder, "contradict each other"),
        (another_format, "not the linear format"),
    ],
)
def test_anything_else_is_refused_and_left_alone(spoil: Callable[[RailStandIn], None], says: str) -> None:
    bus = RailStandIn()
    spoil(bus)
    with pytest.raises(RailError, match=says) as caught:
        supply_of(bus)
    assert "\n" not in str(caught.value)
    assert {command for _, command, value, _ in bus.transactions if value is not None} <= {PAGE}


def test_the_registers_are_the_gatewares() -> None:
    sizes = {csr.name: csr.size for csr in RailSequencer(100e6).get_csrs()}
    assert sorted(sizes) == sorted(NAMES)
    assert [name for name, size in sizes.items() if size > 32] == ["host_block"]
    assert sizes["host_block"] == 256


def test_a_build_without_pmbus_says_so() -> None:
    with pytest.raises(RailError, match="no PMBus master"):
        RailRegisters(RailStandIn(), {"engine_control": 0})


# ---- moving it -------------------------------------------------------------------------------------------------------


def assert_in_order(log: list[tuple[int, int, int]]) -> None:
    """Each move is the limits and then the output, or the output and then the limits, and no prefix is in disorder."""
    fresh = Ucd9248(pmbus_stand_in.KC705_VOLTS[53])
    registers = dict(fresh.outputs[1].registers)
    assert all(page == 1 for page, command, _ in log if command != PAGE)
    moves = [(command, value) for _, command, value in log if command not in (PAGE, PHASE)]
    while moves:
        move, moves = moves[:5], moves[5:]
        down = move[-1][0] == VOUT
        assert [command for command, _ in move] == ([*DOWN, VOUT] if down else [VOUT, *DOWN[::-1]])
        for command, value in move:
            registers[command] = value
            off, on, fault, warn = (registers[each] for each in DOWN)
            assert off <= on < registers[VOUT]
            assert fault <= warn < registers[VOUT]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(FLOOR_MV - 30, 1580), max_size=6))
def test_any_sequence_of_voltages_keeps_order_and_ends_at_nominal(voltages: list[int]) -> None:
    bus = RailStandIn()
    rail = opened(bus)
    with rail.guarded():
        for millivolts in voltages:
            if FLOOR_MV <= millivolts <= 1575:
                measured = rail.set(millivolts)
                assert abs(bus.regulator.out_mv - millivolts) < 0.5
                assert measured.millivolts == pytest.approx(bus.regulator.out_mv)
            else:
                before = len(bus.regulator.log)
                with pytest.raises(RailError, match=r"outside 1140\.\.1575 mV"):
                    rail.set(millivolts)
                assert len(bus.regulator.log) == before
    rail.close()
    assert_in_order(bus.regulator.log)
    outs = [0x1800, *(value for _, command, value in bus.regulator.log if command == VOUT)]
    assert all(abs(a - b) <= 103 for a, b in pairwise(outs) if b != 0x1800)  # 25 mV are 102.4
    assert_nominal(bus)
    assert bus.state == RailState.DISARMED


def test_the_overvoltage_warning_is_a_limit_too() -> None:
    bus = RailStandIn()
    bus.regulator.outputs[1].registers[pmbus_stand_in.OV_WARN] = pmbus_stand_in.raw(1.53)
    rail = opened(bus)
    with pytest.raises(RailError, match="overvoltage warning, 1530 mV"), rail.guarded():
        rail.set(1550)
    rail.close()
    assert bus.regulator.out_mv == 1500


@pytest.mark.parametrize(
    ("rate", "says"), [(0xD001, r"0\.0156 mV/µs"), (0, "moves 0 mV/µs"), (0x07FF, "moves -1 mV/µs")]
)
def test_a_regulator_too_slow_for_the_way_back_is_never_moved(rate: int, says: str) -> None:
    """0xD001 is 2^-6 mV/µs; what no rate at all means is unknown."""
    bus = RailStandIn()
    bus.regulator.outputs[1].registers[pmbus_stand_in.TRANSITION_RATE] = rate
    rail = opened(bus)
    with pytest.raises(RailError, match=says), rail.guarded():
        rail.set(1200)
    assert {command for _, command, _ in bus.regulator.log} == {PAGE, PHASE}


# ---- what goes wrong -------------------------------------------------------------------------------------------------


class Interrupted(BaseException):
    """Something the code under test cannot catch by name."""


@pytest.mark.parametrize("error", [None, ValueError, Interrupted, KeyboardInterrupt])
def test_every_end_is_nominal_and_disarmed(error: type[BaseException] | None) -> None:
    bus = RailStandIn()
    rail = opened(bus)

    def work() -> None:
        with rail.guarded():
            rail.set(1200)
            assert bus.state == RailState.ARMED
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(error):
            work()
    rail.close()
    assert_nominal(bus)
    assert bus.state == RailState.DISARMED


class LookedAtTime:
    """`time` for host and stand-in; a look takes 0.1 ms, and so a session has the same accesses on any machine."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += 1e-4
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.mark.parametrize("seed", range(8))
def test_a_link_that_dies_anywhere_ends_at_nominal_by_the_gateware(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The access at which it dies is drawn from all of a session's; heartbeats would be accesses too."""
    monkeypatch.setattr(pmbus, "BEAT_S", 1e6)

    def begun() -> tuple[RailStandIn, Rail]:
        clock = LookedAtTime()
        monkeypatch.setattr("host.pmbus.time", clock)
        monkeypatch.setattr("host.rail.time", clock)
        bus = RailStandIn(clock.monotonic)
        return bus, opened(bus)

    whole, rail = begun()
    first = whole.accesses
    go(rail, 1250, 1400)
    for when in np.random.default_rng(seed).integers(first, whole.accesses, 8):
        bus, rail = begun()
        bus.dies_at = int(when)
        with pytest.raises(LinkError):
            go(rail, 1250, 1400)
        bus.pass_time(pmbus.WATCHDOG_MS / 1000)
        assert_nominal(bus)


def test_a_host_that_hangs_loses_the_rail_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = RailStandIn()
    rail = opened(bus)
    with rail.guarded():
        rail.set(1200)
        bus.pass_time(pmbus.WATCHDOG_MS / 1000 + 0.1)
        assert bus.state == RESTORED
        with pytest.raises(RailError, match=r"void: run the same command again"):
            rail.hold()
        with pytest.raises(RailError, match="heard nothing"):
            rail.set(1190)
    rail.close()
    assert_nominal(bus)
    with opened(bus).guarded() as again:
        again.set(1400)
    assert bus.regulator.out_mv == 1500


def test_an_overshooting_or_stuck_output_is_sent_back() -> None:
    for fault in ("overshoot", "sticks"):
        bus = RailStandIn()
        rail = opened(bus)
        setattr(bus.regulator, fault, 200)
        with pytest.raises(RailError, match="back at nominal"):
            go(rail, 1300)
        bus.regulator.sticks = False
        rail.close()
        assert_nominal(bus)


def test_a_regulator_that_is_busy_now_and_then_is_asked_again() -> None:
    bus = RailStandIn()
    rail = opened(bus)
    with rail.guarded():
        for millivolts in (1400, 1300, 1425):
            bus.regulator.busy = smbus.ATTEMPTS - 1
            rail.set(millivolts)
            assert bus.regulator.busy == 0
    rail.close()
    assert_nominal(bus)


class Forgetful:
    """A link that loses acknowledges: the board has done what was written, or has not."""

    def __init__(self, bus: RailStandIn, seed: int) -> None:
        self._bus, self._random = bus, np.random.default_rng(seed)
        self.lost, self._in_a_row = 0, 0

    def read(self, address: int, count: int) -> Words:
        return self._bus.read(address, count)

    def write(self, address: int, words: Words) -> None:
        loses = self._in_a_row < smbus.ATTEMPTS - 1 and self._random.random() < 0.2
        self._in_a_row = self._in_a_row + 1 if loses else 0
        if not loses or self._random.random() < 0.5:
            self._bus.write(address, words)
        if loses:
            self.lost += 1
            raise UnacknowledgedError("no answer")

    def close(self) -> None:
        self._bus.close()


@pytest.mark.parametrize("seed", range(4))
def test_lost_acknowledges_change_nothing(seed: int) -> None:
    bus = RailStandIn()
    link = Forgetful(bus, seed)
    rail = rail_of(SETTINGS, supply_of(link))
    with rail.guarded():
        assert rail.set(1250).millivolts == pytest.approx(1250, abs=0.2)
        rail.set(1400)
    rail.close()
    assert link.lost > 20
    assert_in_order([each for each, after in pairwise([*bus.regulator.log, (0, 0, 0)]) if each != after])
    assert_nominal(bus)
    assert bus.state == RailState.DISARMED


def test_a_move_that_failed_half_way_is_taken_back_from_below() -> None:
    """VOUT_COMMAND is taken, but not read back: the limits must not be raised before the output."""
    bus = RailStandIn()
    supply = supply_of(bus)
    supply.set_millivolts(1500 - 25)
    supply.set_millivolts(1500)
    read = bus.regulator.read
    bus.regulator.read = lambda command: None if command == VOUT else read(command)  # type: ignore[method-assign]
    with pytest.raises(RailError, match="VOUT_COMMAND"):
        supply.set_millivolts(1475)
    bus.regulator.read = read  # type: ignore[method-assign]
    begun = len(bus.regulator.log)
    supply.set_millivolts(1500)
    supply.close()
    assert [command for _, command, _ in bus.regulator.log[begun:] if command != PAGE] == [VOUT, *DOWN[::-1]]
    assert_nominal(bus)


@pytest.mark.parametrize("command", [VOUT, *DOWN, PAGE, pmbus_stand_in.READ_VOUT])
def test_a_regulator_that_refuses_for_a_while_is_brought_back_by_the_gateware(command: int) -> None:
    bus = RailStandIn()
    rail = opened(bus)
    rail.set(1300)
    bus.regulator.deaf = frozenset({command})
    with pytest.raises(RailError):
        go(rail, 1200)
    bus.pass_time(pmbus.WATCHDOG_MS / 1000 + 1.0)
    bus.regulator.deaf = frozenset()
    bus.pass_time(1.0)
    assert_nominal(bus)


def test_the_next_host_waits_until_the_gateware_is_done() -> None:
    bus = RailStandIn()
    first = supply_of(bus)
    first.set_millivolts(1475)
    assert first._heartbeat is not None
    first._heartbeat.stop()  # as if it were killed
    bus._registers["watchdog_ms"] = 300
    bus.write(ADDRESSES["rail_control"], np.array([1], np.uint32))
    begun = time.monotonic()
    second = supply_of(bus)
    assert time.monotonic() - begun > 0.2
    assert second.rail.nominal == 0x1800
    assert bus.regulator.out_mv == 1500


SCRIPT = """
import sys, time
from multiprocessing.connection import Client
from tests.host.test_pmbus import RemoteBus, opened
rail = opened(RemoteBus(Client(sys.argv[1], "AF_UNIX")))
with rail.guarded():
    rail.set(1200)
    print("low", flush=True)
    time.sleep(60)
"""


class RemoteBus:
    """A bus in another process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(self, address: int, count: int) -> Words:
        self._connection.send(("read", address, count))
        return self._connection.recv()

    def write(self, address: int, words: Words) -> None:
        self._connection.send(("write", address, words))
        self._connection.recv()

    def close(self) -> None:
        self._connection.close()


def serve(bus: Bus, listener: Listener) -> None:
    with listener.accept() as connection:
        try:
            while True:
                what, *arguments = connection.recv()
                connection.send(getattr(bus, what)(*arguments))
        except EOFError:
            return


@pytest.mark.slow
def test_a_killed_host_loses_the_rail_to_the_gateware(tmp_path: Path) -> None:
    bus = RailStandIn()
    address = str(tmp_path / "bus")
    with Listener(address, "AF_UNIX") as listener:
        threading.Thread(target=serve, args=(bus, listener), daemon=True).start()
        child = subprocess.Popen([sys.executable, "-c", SCRIPT, address], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"low\n"
        bus.pass_time(0)
        assert bus.regulator.out_mv == pytest.approx(1200, abs=0.2)
        time.sleep(1.5)  # heartbeats, or the watchdog would have begun when it was armed
        os.kill(child.pid, signal.SIGKILL)
        killed = time.monotonic()
        child.wait()
        while bus.state != RESTORED:
            assert time.monotonic() - killed < 60, "the gateware never restored the rail"
            time.sleep(0.02)
    took = time.monotonic() - killed
    assert took > pmbus.WATCHDOG_MS / 2000  # the watchdog's doing: not at once, however late the last heartbeat was
    assert_nominal(bus)


# ---- a scan, and the gateware itself ---------------------------------------------------------------------------------


PLAN = """
banks = [0]
patterns = ["0x00"]
rounds = 2
rows = { count = 8 }
[[grid]]
trcd_ps = 10_000
vdd_mv = [1350, 1040]
"""


def test_a_scan_over_pmbus_records_what_was_measured(tmp_path: Path) -> None:
    stand_in = RailStandIn()
    stand_in.regulators[53] = Ucd9248((2.5, 1.35, 1.0, 1.2))
    geometry = Geometry(banks=4, rows=64, columns=256, data_width=64, subarray_rows=16)
    chip = MockBoard(boards.mock_build(geometry), PRESETS["B"], 5)
    chip.set_environment(1_350_000, 20.0)
    bus = SharedBus(Routed(chip, stand_in))
    wanted = SETTINGS.model_copy(update={"dram": "DDR3L", "floor_mv": 1000})
    supply = PmbusSupply(RailRegisters(bus, ADDRESSES), wanted)
    rail = rail_of(wanted, FollowedSupply(supply, chip))
    module = boards.open_mock("B", 5, geometry).module
    board = Board(bus, rail, MockEnvironment(chip), module, DDR3_1600K, 8, "mock:B:5", 5)
    nominal, low = scan(board, plan_of(PLAN, tmp_path), tmp_path / "profile").points
    board.close()
    assert low.errors > 100 > nominal.errors == 0
    assert abs(low.vdd_measured_mv - 1040) < 0.3
    assert low.vdd_measured_mv != 1040  # in steps of 2^-12 V
    assert low.vdd_uncertainty_mv == 4.0
    assert low.current_ma == 6250.0
    assert low.power_mw == pytest.approx(6250 * low.vdd_measured_mv / 1000)
    assert stand_in.regulator.out_mv == pytest.approx(1350, abs=0.2)
    assert stand_in.state == RailState.DISARMED


class Mirroring(PmbusTarget):
    """Its output is what it is set to."""

    def _stop(self) -> None:
        super()._stop()
        if (self.page, VOUT) in self.registers:
            self.registers[self.page, pmbus_stand_in.READ_VOUT] = self.registers[self.page, VOUT]


class SimulatedRail:
    """A `host.bus.Bus` into a Migen simulation of the gateware with a regulator on its wires, in a thread."""

    def __init__(self) -> None:
        self.sequencer = RailSequencer(100e3)  # a millisecond is 100 clocks
        self.target = Mirroring(self.sequencer.smbus, 53)
        device = b"UCD9248-64|4.36"
        for page in range(4):
            self.target.registers[page, pmbus_stand_in.DEVICE_ID] = int.from_bytes(
                bytes([len(device)]) + device, "little"
            )
        for command, value in Ucd9248((1.5,)).outputs[0].registers.items():
            self.target.registers[2, command] = value
        self.target.registers[2, pmbus_stand_in.READ_VOUT] = 0x1800
        self._asked: queue.Queue[tuple[str, int | None] | None] = queue.Queue()
        self._answers: queue.Queue[int] = queue.Queue()
        self._thread = threading.Thread(target=self._simulate, daemon=True)
        self._thread.start()

    def read(self, address: int, count: int) -> Words:
        name = next(name for name, at in ADDRESSES.items() if at == address).removeprefix("rail_")
        self._asked.put((name, None))
        value = self._answers.get(timeout=60)
        return np.frombuffer(value.to_bytes(4 * count, "little"), "<u4").astype(np.uint32)

    def write(self, address: int, words: Words) -> None:
        name = next(name for name, at in ADDRESSES.items() if at == address).removeprefix("rail_")
        self._asked.put((name, int(words[0])))
        self._answers.get(timeout=60)

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join()

    def _simulate(self) -> None:
        run_simulation(self.sequencer, [self._host(), self.target.wires()])

    @staticmethod
    def _value(register: Any) -> Generator:
        """What LiteX' bus would read: fields put together."""
        if not hasattr(register, "fields"):
            return (yield register.status)
        value = 0
        for field in register.fields.fields:
            value |= (yield getattr(register.fields, field.name)) << field.offset
        return value

    def _host(self) -> Generator:
        while True:
            try:
                asked = self._asked.get_nowait()
            except queue.Empty:
                yield
                continue
            if asked is None:
                return
            name, value = asked
            owner = self.sequencer.host if name.startswith("host_") else self.sequencer
            register = getattr(owner, f"_{name.removeprefix('host_')}")
            if value is None:
                self._answers.put((yield from self._value(register)))
            else:
                yield from register.write(value)
                yield
                yield
                self._answers.put(0)


@pytest.mark.slow
def test_host_and_gateware_move_a_regulator_on_its_wires(monkeypatch: pytest.MonkeyPatch) -> None:
    """Down and half way up by the host, then left alone: the gateware's own way back, bit by bit."""
    monkeypatch.setattr("gateware.smbus.BUS_FREQUENCY", 12.5e3)
    monkeypatch.setattr("gateware.smbus.STRETCH_MS", 5)
    monkeypatch.setattr(pmbus, "WATCHDOG_MS", 120)
    monkeypatch.setattr(pmbus, "BEAT_S", 0.05)
    monkeypatch.setattr(smbus, "TRANSACTION_S", 60.0)
    bus = SimulatedRail()
    supply = supply_of(bus, SETTINGS.model_copy(update={"addresses": (53,)}))
    assert (supply.rail.address, supply.rail.page, supply.rail.device) == (53, 2, "UCD9248-64")
    begun = len(bus.target.writes)
    supply.set_millivolts(1475)
    supply.set_millivolts(1490)
    supply._fall_silent()
    while supply._sequencer.state != RailState.RESTORED:
        time.sleep(0.05)
    bus.close()
    at_nominal = Ucd9248((1.5,)).outputs[0].registers

    def written(output_mv: int, *order: int) -> list[tuple[int, int, bytes]]:
        down = mv_to_linear16(output_mv, -12) - 0x1800
        return [(2, each, (at_nominal[each] + down).to_bytes(2, "little")) for each in order]

    back = written(1500, *[VOUT] * 11, *DOWN[::-1])
    page = (2, PAGE, b"\x02")
    assert [each for each in bus.target.writes[begun:] if each != page] == [
        *written(1475, *DOWN, VOUT),
        *written(1490, VOUT, *DOWN[::-1]),
        *back,
    ]
    assert bus.target.writes[begun:][-len(back) - 1] == page
