"""A KC705's three UCD9248 and the gateware's registers before them, at the level of SMBus transactions.

The registers behave as `gateware.rail` and `gateware.smbus` do, which `tests/host/test_pmbus.py` holds them to with the
gateware itself; the regulators as the PMBus specification says: an output below its undervoltage limit trips and stays
off. Their limits and their transition rate are a KC705's, as E. Billauer read them ("Power supply parameters of
Xilinx' KC705 board"): limits at 110, 90 and 85 % of the output, 0.2505 V/ms.

Time is the host's, so that watchdog and heartbeats, outputs and patience run by one clock; `pass_time` skips some.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np

from gateware.boards.base import DramRail
from gateware.engine.parameters import EngineParameters
from host.boards import mock_build
from host.bus import Bus, Words
from host.chip_presets import PRESETS
from host.mock import MockBoard
from profiles.errors import LinkError
from profiles.geometry import Geometry
from tests.host.etherbone_peer import EtherboneServer

EXPONENT = -12
STORE = (0x11, 0x13, 0x15, 0x17)
PAGE, PHASE, VOUT_MODE, VOUT_COMMAND, TRANSITION_RATE, OV_WARN, UV_WARN, UV_FAULT = (
    0x00,
    0x04,
    0x20,
    0x21,
    0x27,
    0x42,
    0x43,
    0x44,
)
PG_ON, PG_OFF, STATUS, READ_VOUT, READ_IOUT, DEVICE_ID = 0x5E, 0x5F, 0x79, 0x8B, 0x8C, 0xFD
THRESHOLDS = (OV_WARN, UV_WARN, UV_FAULT, PG_ON, PG_OFF)
KC705_VOLTS = {52: (1.0, 1.8, 3.3, 1.0), 53: (2.5, 1.5, 1.0, 1.2), 54: (2.0, 1.0, 1.8, 3.3)}
OK, NOT_ACKNOWLEDGED, STUCK, REFUSED = range(4)
TRANSACTION_S = 0.5e-3
TRANSITION = 0xAA01  # LINEAR11: 513 * 2^-11 V/ms


def raw(volts: float) -> int:
    return round(volts * 2**-EXPONENT)


@dataclass
class Output:
    """One output: registers by command, what comes out of it now (LINEAR16), and whether it has tripped."""

    registers: dict[int, int]
    out: float
    tripped: bool = False


@dataclass
class Ucd9248:
    """One regulator.

    Attributes:
        log: (page, command, value) of every write that it took.
        slew: LINEAR16 steps a second that its outputs move by.
        deaf: commands that it does not acknowledge.
        busy: how many of the next accesses it does not acknowledge.
        overshoot: added to what comes out of page 1 below nominal, LINEAR16 steps.
        sticks: its output does not move any more.
    """

    volts: tuple[float, ...]
    device: bytes = b"UCD9248-64|4.36.0.9540|100823"
    log: list[tuple[int, int, int]] = field(default_factory=list)
    slew: float = 513 / 2048 * 1e3 * 2**-EXPONENT
    deaf: frozenset[int] = frozenset()
    busy: int = 0
    overshoot: int = 0
    sticks: bool = False
    page: int = 0

    def __post_init__(self) -> None:
        self.outputs = []
        for volts in self.volts:
            of_nominal = {VOUT_COMMAND: 1.0, OV_WARN: 1.1, UV_WARN: 0.9, UV_FAULT: 0.85, PG_ON: 0.9, PG_OFF: 0.85}
            registers = {command: raw(share * volts) for command, share in of_nominal.items()}
            constant = {VOUT_MODE: 0x14, TRANSITION_RATE: TRANSITION, PHASE: 0}
            self.outputs.append(Output({**registers, **constant}, float(raw(volts))))
        self.nominal = [output.registers[VOUT_COMMAND] for output in self.outputs]

    def pass_time(self, seconds: float) -> None:
        for page, output in enumerate(self.outputs):
            target = output.registers[VOUT_COMMAND] + (self.overshoot if self._is_low(page) else 0)
            reach = 0.0 if self.sticks else self.slew * seconds
            output.out += max(-reach, min(reach, target - output.out))
            output.tripped |= output.out < output.registers[UV_FAULT] - 1e-9
            if output.tripped:
                output.out = 0.0

    def _is_low(self, page: int) -> bool:
        return self.outputs[page].registers[VOUT_COMMAND] < self.nominal[page]

    def _refuses(self, command: int) -> bool:
        self.busy, busy = max(0, self.busy - 1), self.busy > 0
        return busy or command in self.deaf

    def write(self, command: int, value: int) -> int:
        if self._refuses(command):
            return NOT_ACKNOWLEDGED
        assert command not in STORE, "a STORE command reached the regulator"
        if command == PAGE:
            if value >= len(self.outputs):
                return NOT_ACKNOWLEDGED
            self.page = value
        else:
            self.outputs[self.page].registers[command] = value
        self.log.append((self.page, command, value))
        return OK

    def read(self, command: int) -> int | bytes | None:
        output = self.outputs[self.page]
        if self._refuses(command):
            return None
        if command == PAGE:
            return self.page
        if command == DEVICE_ID:
            return self.device
        if command == READ_VOUT:
            return round(output.out)
        if command == READ_IOUT:  # 50 · 2^-3 = 6.25 A of all phases, 2 A of the first
            return 0xE832 if output.registers[PHASE] == 0xFF else 0xE810
        return output.registers.get(command)

    @property
    def out_mv(self) -> float:
        """Of the DRAM's rail, page 1 of the KC705's regulator at 53."""
        return self.outputs[1].out * 1000 / 2**-EXPONENT


NAMES = (
    *("host_data", "host_transaction", "host_result", "host_block", "control", "watchdog_ms", "select", "entry"),
    *("length", "check", "state", "failures", "restarts"),
)
BASE = 0xF0010000
ADDRESSES = {}
_at = BASE
for _name in NAMES:
    ADDRESSES[f"rail_{_name}"] = _at
    _at += 32 if _name == "host_block" else 4
DISARMED, CHECKING, ARMED, RESTORING, RESTORED = range(5)


class RailStandIn:
    """A `host.bus.Bus` with the registers of `gateware.rail` at ``ADDRESSES``, and regulators behind them.

    Args:
        clock: seconds.

    Attributes:
        regulators: by SMBus address.
        transactions: (address, command, value or None for a read, status) of each that began, the sequencer's included.
        accesses: register accesses so far.
        dies_at: the access from which on the link is dead: LinkError.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.regulators = {address: Ucd9248(volts) for address, volts in KC705_VOLTS.items()}
        self.transactions: list[tuple[int, int, int | None, int]] = []
        self.accesses, self.dies_at = 0, 1 << 60
        self._clock, self._skipped, self._now = clock, 0.0, clock()
        self._registers = dict.fromkeys(NAMES, 0) | {"watchdog_ms": 1000}
        self._block = b""
        self._entries, self._sequence = [0] * 16, list[int]()
        self._state, self._fired, self._bad_check, self._deadline = DISARMED, False, False, 0.0

    @property
    def regulator(self) -> Ucd9248:
        """The one with the DRAM's rail."""
        return self.regulators[53]

    @property
    def state(self) -> int:
        self._catch_up()
        return self._state

    # ---- time ------------------------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass at once."""
        self._skipped += seconds
        self._catch_up()

    def _catch_up(self) -> None:
        end = max(self._now, self._clock() + self._skipped)
        if self._state == ARMED and self._deadline <= end:
            self._move_to(self._deadline)
            self._state, self._fired = RESTORING, True
        self._restore(end)
        self._move_to(end)

    def _move_to(self, then: float) -> None:
        for regulator in self.regulators.values():
            regulator.pass_time(max(0.0, then - self._now))
        self._now = max(self._now, then)

    def _restore(self, end: float) -> None:
        """Each write until it is acknowledged, all anew after eight refusals; at most until ``end``."""
        while self._state == RESTORING and self._now < end:
            for entry in self._sequence:
                attempts = 0
                while attempts < 8 and self._now < end:
                    self._move_to(self._now + TRANSACTION_S)
                    if self._write(entry >> 24 & 0x7F, entry >> 16 & 0xFF, entry & 0xFFFF) == OK:
                        break
                    attempts += 1
                    self._registers["failures"] += 1
                else:
                    self._registers["restarts"] += 1
                    break
            else:
                self._state = RESTORED

    # ---- the bus ---------------------------------------------------------------------------------------------------

    def read(self, address: int, count: int) -> Words:
        self._access()
        if address == ADDRESSES["rail_host_block"]:
            return np.frombuffer(self._block.rjust(32, b"\0"), "<u4")[:count].astype(np.uint32)
        assert count == 1
        name = next(name for name, at in ADDRESSES.items() if at == address).removeprefix("rail_")
        if name == "state":
            return np.array([self._state | self._bad_check << 3 | self._fired << 4], np.uint32)
        return np.array([self._registers[name]], np.uint32)

    def write(self, address: int, words: Words) -> None:
        self._access()
        name, value = next(name for name, at in ADDRESSES.items() if at == address).removeprefix("rail_"), int(words[0])
        if name == "control":
            self._command(value)
        elif name == "entry":
            if self._state == DISARMED:
                self._entries[self._registers["select"] & 15] = value
        elif name == "host_transaction":
            self._transact(value)
        else:
            self._registers[name] = value

    def close(self) -> None:
        """Nothing to release."""

    def _access(self) -> None:
        self.accesses += 1
        if self.accesses > self.dies_at:
            raise LinkError("the board did not answer within 1 s; check the cable")
        self._catch_up()

    def _command(self, value: int) -> None:
        length = self._registers["length"]
        if value & 1 or self._state != ARMED:
            self._deadline = self._now + self._registers["watchdog_ms"] / 1000
        if value & 2 and self._state == DISARMED:
            self._sequence = self._entries[:length]
            check = crc32(np.array(self._sequence, "<u4").tobytes())
            stores = any(entry >> 16 & 0xFF in STORE for entry in self._sequence)
            self._bad_check = stores or not 0 < length <= 16 or check != self._registers["check"]
            self._fired, self._registers["failures"], self._registers["restarts"] = False, 0, 0
            self._state = DISARMED if self._bad_check else ARMED
        if value & 4 and self._state in (ARMED, RESTORED):
            self._state = DISARMED

    def _transact(self, value: int) -> None:
        command, address, word, read, block = (
            value & 0xFF,
            value >> 8 & 0x7F,
            value >> 15 & 1,
            value >> 16 & 1,
            value >> 17,
        )
        if self._state == RESTORING or (not read and command in STORE):
            self._registers["host_result"] = REFUSED << 16
            return
        if not read:
            data = self._registers["host_data"]
            self._registers["host_result"] = self._write(address, command, data if word else data & 0xFF) << 16
            return
        regulator = self.regulators.get(address)
        answer = None if regulator is None else regulator.read(command)
        self.transactions.append((address, command, None, NOT_ACKNOWLEDGED if answer is None else OK))
        if answer is None:
            self._registers["host_result"] = NOT_ACKNOWLEDGED << 16
        elif block:
            assert isinstance(answer, bytes)
            self._block = answer[:32]
            self._registers["host_result"] = len(answer) | answer[-1] << 8
        else:
            assert isinstance(answer, int)
            self._registers["host_result"] = answer if word else answer & 0xFF

    def _write(self, address: int, command: int, value: int) -> int:
        status = self.regulators[address].write(command, value) if address in self.regulators else NOT_ACKNOWLEDGED
        self.transactions.append((address, command, value, status))
        return status


class Routed:
    """Rail registers here, everything else on the board."""

    def __init__(self, board: Bus, rail: RailStandIn) -> None:
        self._board, self._rail = board, rail

    def _of(self, address: int) -> Bus:
        return self._rail if BASE <= address < BASE + 0x1000 else self._board

    def read(self, address: int, count: int) -> Words:
        return self._of(address).read(address, count)

    def write(self, address: int, words: Words) -> None:
        self._of(address).write(address, words)

    def close(self) -> None:
        self._board.close()


class Stamped(MockBoard):
    """A board of a build that has a description, of CRC-32 ``stamp``."""

    def __init__(self, build: EngineParameters, stamp: int) -> None:
        super().__init__(build, PRESETS["B"], 5)
        self._constants = {**self._constants, "build": stamp}


@contextmanager
def board_with_regulators(folder: Path, rail: DramRail, regulators: RailStandIn) -> Iterator[EtherboneServer]:
    """A board with a PMBus master on an Ethernet cable, and its build's files below ``folder``."""
    build = mock_build(Geometry(banks=4, rows=64, columns=256, data_width=64, subarray_rows=16))
    about = {
        "title": "Xilinx KC705 (stand-in)",
        "engine": {**asdict(build), "geometry": build.geometry.model_dump()},
        "rail": asdict(rail),
    }
    home = folder / "build" / "gateware" / "kc705"
    home.mkdir(parents=True)
    (home / "board.json").write_text(json.dumps(about))
    (home / "csr.json").write_text(
        json.dumps({"csr_registers": {name: {"addr": address, "size": 1} for name, address in ADDRESSES.items()}})
    )
    board = Routed(Stamped(build, crc32((home / "board.json").read_bytes())), regulators)
    with EtherboneServer(board) as server:
        yield server
