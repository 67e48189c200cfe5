"""When the host goes quiet, the rail comes back: the right writes, in order, whatever the bus does."""

from collections.abc import Generator, Sequence
from zlib import crc32

import pytest
from migen import run_simulation

from gateware.rail import ATTEMPTS, ENTRIES, RailSequencer, RailState
from gateware.smbus import STORE_COMMANDS
from tests.gateware.pmbus_target import PAGE, PmbusTarget

CLK_FREQ, BUS_FREQUENCY = 100e3, 12.5e3  # two clocks a quarter bit, and a short millisecond: to be simulated in seconds
MILLISECOND = 100  # clocks
ADDRESS = 0x34
VOUT_COMMAND, POWER_GOOD_ON, VOUT_UV_FAULT_LIMIT, READ_VOUT = 0x21, 0x5E, 0x44, 0x8B
WATCHDOG_MS = 6
REFUSED = 3


def entry(command: int, data: int, word: bool = True) -> int:
    return data | command << 16 | ADDRESS << 24 | word << 31


RESTORE = [
    entry(PAGE, 2, word=False),
    entry(VOUT_COMMAND, 0x1800),
    entry(VOUT_UV_FAULT_LIMIT, 0x1500),
    entry(POWER_GOOD_ON, 0x1600),
]
RESTORED = [
    (2, PAGE, b"\x02"),
    (2, VOUT_COMMAND, b"\x00\x18"),
    (2, VOUT_UV_FAULT_LIMIT, b"\x00\x15"),
    (2, POWER_GOOD_ON, b"\x00\x16"),
]


class Host:
    """The host's side of the registers, as simulation steps."""

    def __init__(self) -> None:
        self.sequencer = RailSequencer(CLK_FREQ)
        self.target = PmbusTarget(self.sequencer.smbus, ADDRESS)

    def run(self, *steps: Generator) -> None:
        run_simulation(self.sequencer, [self._all(steps), self.target.wires()])

    def _all(self, steps: Sequence[Generator]) -> Generator:
        yield from [None] * 5
        for step in steps:
            yield from step

    def load(self, entries: list[int], check: int | None = None) -> Generator:
        s = self.sequencer
        for k, word in enumerate(entries):
            yield from s._select.write(k)
            yield from s._entry.write(word)
        good = crc32(b"".join(word.to_bytes(4, "little") for word in entries))
        yield from s._length.write(len(entries))
        yield from s._check.write(good if check is None else check)
        yield from s._watchdog_ms.write(WATCHDOG_MS)

    def control(self, kick: int = 0, arm: int = 0, disarm: int = 0) -> Generator:
        yield from self.sequencer._control.write(kick | arm << 1 | disarm << 2)

    def wait(self, clocks: int) -> Generator:
        yield from [None] * clocks

    def expect(self, state: RailState, **fields: int) -> Generator:
        """Check the state, and fields of it and counters by name."""
        s = self.sequencer
        assert (yield s._state.fields.state) == state
        for name, value in fields.items():
            signal = getattr(s._state.fields, name, None)
            signal = getattr(s, f"_{name}").status if signal is None else signal
            assert (yield signal) == value, name

    def until(self, state: RailState, clocks: int) -> Generator:
        for _ in range(clocks):
            if (yield self.sequencer._state.fields.state) == state:
                return
            yield
        raise AssertionError(f"no {state.name} within {clocks} clocks")

    def ask(self, command: int, data: int = 0, read: bool = False, word: bool = True) -> Generator:
        s = self.sequencer.host
        yield from s._data.write(data)
        yield from s._transaction.write(command | ADDRESS << 8 | word << 15 | read << 16)

    def answer(self, status: int, data: int = 0) -> Generator:
        fields = self.sequencer.host._result.fields
        for _ in range(5000):
            if not (yield fields.busy):
                break
            yield
        assert ((yield fields.status), (yield fields.data)) == (status, data)

    def say(self, *argument: object, status: int = 0, data: int = 0, **options: object) -> Generator:
        yield from self.ask(*argument, **options)
        yield
        yield
        yield from self.answer(status, data)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr("gateware.smbus.BUS_FREQUENCY", BUS_FREQUENCY)
    monkeypatch.setattr("gateware.smbus.STRETCH_MS", 5)
    return Host()


def test_a_quiet_host_brings_the_rail_back(host: Host) -> None:
    host.run(
        host.load(RESTORE),
        host.control(arm=1),
        host.until(RailState.ARMED, 100),
        host.wait(WATCHDOG_MS * MILLISECOND - 20),
        host.expect(RailState.ARMED, fired=0),
        host.until(RailState.RESTORED, 5000),
        host.expect(RailState.RESTORED, fired=1, failures=0, restarts=0),
        host.wait(500),
        host.control(disarm=1),
        host.wait(3),
        host.expect(RailState.DISARMED, fired=1),
    )
    assert host.target.writes == RESTORED


def test_a_host_that_kicks_is_left_alone(host: Host) -> None:
    steps = [host.load(RESTORE), host.control(arm=1)]
    for _ in range(3):
        steps += [host.wait(WATCHDOG_MS * MILLISECOND - 50), host.control(kick=1)]
    host.run(
        *steps,
        host.expect(RailState.ARMED, fired=0),
        host.control(disarm=1),
        host.wait(2 * WATCHDOG_MS * MILLISECOND),
        host.expect(RailState.DISARMED, fired=0),
    )
    assert host.target.writes == []


def test_nothing_is_armed_that_fails_its_check(host: Host) -> None:
    damaged = [*RESTORE[:1], RESTORE[1] ^ 1, *RESTORE[2:]]
    good_check = crc32(b"".join(word.to_bytes(4, "little") for word in RESTORE))
    stores = [[entry(command, 0, word=False), *RESTORE] for command in STORE_COMMANDS]
    loads = [host.load(damaged, good_check), *map(host.load, stores), host.load([])]
    steps = []
    for load in loads:
        steps += [load, host.control(arm=1), host.wait(60), host.expect(RailState.DISARMED, bad_check=1)]
    host.run(*steps, host.load(RESTORE), host.control(arm=1), host.wait(60), host.expect(RailState.ARMED, bad_check=0))


@pytest.mark.slow
def test_the_longest_sequence_is_checked_and_run_whole(host: Host) -> None:
    entries = [entry(VOUT_COMMAND, 100 + k, word=False) for k in range(ENTRIES)]
    host.run(host.load(entries), host.control(arm=1), host.until(RailState.RESTORED, 20_000))
    assert [int.from_bytes(data, "little") for _, _, data in host.target.writes] == list(range(100, 100 + ENTRIES))


def test_an_armed_sequence_cannot_be_changed(host: Host) -> None:
    host.run(
        host.load(RESTORE),
        host.control(arm=1),
        host.until(RailState.ARMED, 100),
        host.load([entry(VOUT_COMMAND, 1)]),
        host.until(RailState.RESTORED, 10_000),
    )
    assert host.target.writes == RESTORED


def test_a_write_that_is_refused_is_repeated_until_it_is_acknowledged(host: Host) -> None:
    host.target.refuse = ATTEMPTS - 1
    host.run(
        host.load(RESTORE),
        host.control(arm=1),
        host.until(RailState.RESTORED, 30_000),
        host.expect(RailState.RESTORED, failures=ATTEMPTS - 1, restarts=0),
    )
    assert host.target.writes == RESTORED


@pytest.mark.slow
def test_no_write_is_left_out_the_sequence_starts_anew(host: Host) -> None:
    """VOUT_COMMAND is refused so often that another page could have been set meanwhile."""
    target = host.target
    target.refused_commands = frozenset({VOUT_COMMAND})

    def relent() -> Generator:
        while len(target.writes) < 3:
            yield
        target.refused_commands = frozenset()

    host.run(
        host.load(RESTORE),
        host.control(arm=1),
        relent(),
        host.until(RailState.RESTORED, 30_000),
        host.expect(RailState.RESTORED, failures=2 * ATTEMPTS, restarts=2),
    )
    assert target.writes == [RESTORED[0], RESTORED[0], *RESTORED]


def test_a_stuck_bus_is_tried_until_it_is_free(host: Host) -> None:
    host.target.hold_scl = 2 * WATCHDOG_MS * MILLISECOND
    host.run(host.load(RESTORE), host.control(arm=1), host.until(RailState.RESTORED, 40_000))
    assert host.target.writes == RESTORED


def test_the_hosts_transactions_work_and_never_store(host: Host) -> None:
    host.target.registers[0, READ_VOUT] = 0x1234
    host.run(
        host.say(VOUT_COMMAND, 0x1800),
        host.say(READ_VOUT, read=True, data=0x1234),
        host.say(READ_VOUT, read=True, word=False, data=0x34),
        *[host.say(command, 0, word=False, status=REFUSED) for command in STORE_COMMANDS],
        host.say(VOUT_COMMAND, 0x1700),
    )
    assert host.target.writes == [(0, VOUT_COMMAND, b"\x00\x18"), (0, VOUT_COMMAND, b"\x00\x17")]


@pytest.mark.parametrize("early", [5, 150, 290, 330])
def test_a_transaction_of_the_hosts_is_never_torn_and_none_gets_between_the_sequences(host: Host, early: int) -> None:
    """The host writes page 0 of another rail around the moment when the watchdog runs out, and goes on writing."""
    steps = [host.load(RESTORE), host.control(arm=1), host.until(RailState.ARMED, 100)]
    host.run(
        *steps,
        host.wait((WATCHDOG_MS + 1) * MILLISECOND - early - 20),
        host.ask(PAGE, 0, word=False),
        host.until(RailState.RESTORING, 2000),
        *[step for _ in range(2) for step in (host.wait(400), host.ask(PAGE, 7, word=False))],
        host.until(RailState.RESTORED, 10_000),
        host.say(PAGE, 5, word=False),
    )
    writes = host.target.writes
    assert writes[:-1] in (RESTORED, [(0, PAGE, b"\x00"), *RESTORED])
    assert writes[-1] == (5, PAGE, b"\x05")
