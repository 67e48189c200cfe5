"""The simulated board's DRAM: what its gateware's commands do to the chip model, as a C function that Verilator calls.

Each command goes first to the monitor (`host.jedec_monitor`), then to the same functions of `host.chip` that the mock
board calls. A command that finds its bank in the wrong state, or an address that the module does not have, is refused
and counted; a row that is precharged before tRAS has not been restored and loses its data.
"""

from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from gateware.engine.parameters import EngineParameters
from gateware.isa import Command
from host import chip as dram
from host import jedec_monitor as jedec
from host.chip import I64, Chip
from host.chip_presets import (
    PRESETS,
    REFERENCE_TEMPERATURE_C,
    Preset,
    build_chip,
    set_conditions,
    with_more_memory,
)
from host.compiled import inlined, njit
from host.jedec_monitor import Fault, Monitor, Rule, Spacing, Violation
from host.timings import DDR3_1600K, Timings
from profiles.errors import BoardError
from profiles.geometry import Geometry
from profiles.pattern import PatternKind

# answers of the command function; one that failed in Python returns 0
FAILED, DONE, WANTS_MEMORY = range(3)

# pins of a command: RAS#, CAS# and WE#, then
ENABLED, DRIVEN = 8, 16  # CKE and RESET# high; wrdata_en in the same system clock
DATA = 32  # no command: the data of the oldest WRITE
_A10 = 1 << 10  # auto-precharge, all banks, long calibration

Words = Any  # a C pointer to 32-bit words

_LOST = 1  # index into Chip.specs of what unrestored rows hold
_PENDING = 64  # WRITEs whose data may be under way

# indices into Dram.parameters
NPHASES, READ_PHASE, WRITE_PHASE, TRAS, FIRST_PENDING, PENDING = range(6)
# columns of Dram.pending; the bank is -1 for a WRITE that was refused
_BANK, _BURST, _CLOCK, _CLOSES = range(4)

_RD, _WR, _PRE, _ACT, _REF = (int(Command[name]) for name in ("RD", "WR", "PRE", "ACT", "REF"))
_ZQCS, _ZQCL, _MRS, _NONE = (int(Command[name]) for name in ("ZQCS", "ZQCL", "MRS", "NONE"))
_ADDRESS, _CLOCK_ENABLE = int(Fault.ADDRESS), int(Fault.CLOCK_ENABLE)
_PHASE, _WRITE_DATA = int(Fault.PHASE), int(Fault.WRITE_DATA)


class Dram(NamedTuple):
    """State of the DRAM, for compiled code.

    Attributes:
        chip, monitor: the chip model and the monitor.
        parameters: int64[6], indexed by the names above.
        pending: int64[_PENDING, 4], a ring of WRITEs that wait for their data: bank, burst, DRAM clock, auto-precharge.
        flips: int64[words a burst], scratch.
        data: uint32[words a burst], scratch.
    """

    chip: Chip
    monitor: Monitor
    parameters: I64
    pending: I64
    flips: I64
    data: dram.U32


# command by pins, least significant bit first RAS#, CAS#, WE#
_COMMANDS = np.array([_MRS, _WR, _PRE, _ZQCS, _REF, _RD, _ACT, _NONE])


@inlined()
def _burst(chip: Chip, address: int) -> int:
    """Burst number of a column address as on the pins, which skip A10; -1 if the module does not have it."""
    p = chip.parameters
    column = (address & 0x3FF) | (address >> 1 & 0x400)
    if column >= p[dram.COLUMNS] or column & (p[dram.BURST] - 1):
        return -1
    return column * p[dram.WIDTH] >> p[dram.BURST_SHIFT]


@inlined()
def _activate(d: Dram, bank: int, row: int, clock: int) -> None:
    if row >= d.chip.parameters[dram.ROWS]:
        jedec.report(d.monitor, _ADDRESS, clock, _ACT, bank)
    elif d.chip.open_row[bank] < 0:
        dram.activate(d.chip, bank, row, clock)


@inlined()
def _lose_row(chip: Chip, bank: int) -> None:
    """Leave in the open row what sense amplifiers that were cut off leave behind: nothing of what it held."""
    settled = chip.act_clock[bank] + dram.ELAPSED_LIMIT
    for burst in range(chip.burst_tag.shape[1]):
        dram.write_pattern(chip, bank, burst, settled, _LOST)


@inlined()
def _precharge(d: Dram, bank: int, clock: int) -> None:
    chip = d.chip
    if chip.open_row[bank] < 0:
        return
    if clock - chip.act_clock[bank] < d.parameters[TRAS]:
        _lose_row(chip, bank)
    for k in range(d.parameters[PENDING]):
        write = d.pending[(d.parameters[FIRST_PENDING] + k) % _PENDING]
        if write[_BANK] == bank:
            write[_BANK] = -1
            jedec.report(d.monitor, _WRITE_DATA, clock, _PRE, bank)
    dram.precharge(chip, bank)


@inlined()
def _read(d: Dram, bank: int, burst: int, clock: int, words: Words) -> None:
    """RD: fill ``words`` with what the open row gives, or with nothing that anyone wrote if the RD is refused."""
    chip, held, flips = d.chip, d.chip.held, d.flips
    row = chip.open_row[bank]
    if row < 0 or burst < 0:
        for w in range(flips.size):
            words[w] = np.uint32(dram.mix64(np.uint64(clock + w)) & np.uint64(0xFFFFFFFF))
        return
    dram.words_of(chip, dram.tag_of(chip, bank, row, burst), bank, row, burst, held)  # the read may change the cells
    if not dram.read_flips(chip, bank, burst, clock, flips):
        flips[:] = 0
    for w in range(flips.size):
        words[w] = np.uint32(held[w] ^ flips[w])


@inlined()
def _write(d: Dram, bank: int, burst: int, clock: int, closes: int) -> None:
    """WR: remember it until its data come (`_take_data`)."""
    p = d.parameters
    accepted = burst >= 0 and d.chip.open_row[bank] >= 0
    write = d.pending[(p[FIRST_PENDING] + p[PENDING]) % _PENDING]
    write[_BANK], write[_BURST], write[_CLOCK], write[_CLOSES] = bank if accepted else -1, burst, clock, closes
    p[PENDING] += 1


@inlined()
def _take_data(d: Dram, words: Words, mask: Words) -> None:
    """Carry out the oldest WR, as of the clock of its command; bytes whose bit in ``mask`` is 1 stay as they are."""
    chip, p, held = d.chip, d.parameters, d.flips
    bank, burst, clock, closes = d.pending[p[FIRST_PENDING] % _PENDING]
    p[FIRST_PENDING] += 1
    p[PENDING] -= 1
    if bank < 0:
        return
    row = chip.open_row[bank]
    dram.words_of(chip, dram.tag_of(chip, bank, row, burst), bank, row, burst, held)
    for w in range(held.size):
        keep = np.int64(0)
        for byte in range(4):
            if mask[w >> 3] >> np.uint32((w & 7) * 4 + byte) & np.uint32(1):
                keep |= 0xFF << (8 * byte)
        d.data[w] = np.uint32((held[w] & keep) | (np.int64(words[w]) & ~keep))
    dram.write_words(chip, bank, burst, clock, d.data)
    if closes:
        dram.precharge(chip, bank)


@inlined()
def _access(d: Dram, command: int, bank: int, address: int, clock: int, driven: int, words: Words) -> None:
    """RD or WR."""
    burst = _burst(d.chip, address)
    if burst < 0:
        jedec.report(d.monitor, _ADDRESS, clock, command, bank)
    if clock % d.parameters[NPHASES] != d.parameters[READ_PHASE if command == _RD else WRITE_PHASE]:
        jedec.report(d.monitor, _PHASE, clock, command, bank)
    closes = address & _A10
    if closes:
        jedec.observe_auto_precharge(d.monitor, command, bank, clock)
    if command == _WR:
        if not driven:
            jedec.report(d.monitor, _WRITE_DATA, clock, command, bank)
        _write(d, bank, burst if driven else -1, clock, closes)
        return
    _read(d, bank, burst, clock, words)
    if closes:
        dram.precharge(d.chip, bank)


@inlined()
def _obey(d: Dram, pins: int, bank: int, address: int, clock: int, words: Words) -> None:
    """One command, as the pins say it."""
    command = _COMMANDS[pins & 7]
    if not pins & ENABLED:
        jedec.report(d.monitor, _CLOCK_ENABLE, clock, command, bank)
        if command == _WR:
            _write(d, bank, -1, clock, 0)
        return
    if command == _PRE and address & _A10:
        jedec.observe_precharge_all(d.monitor, clock)
        for each in range(d.chip.open_row.size):
            _precharge(d, each, clock)
        return
    if command == _ZQCS and address & _A10:
        command = _ZQCL
    jedec.observe(d.monitor, command, bank, clock)
    if command == _ACT:
        _activate(d, bank, address, clock)
    elif command == _PRE:
        _precharge(d, bank, clock)
    elif command in (_RD, _WR):
        _access(d, command, bank, address, clock, pins & DRIVEN, words)


def build_dram(
    build: EngineParameters, preset: Preset, seed: int, timings: Timings, spacing: Spacing
) -> tuple[Dram, tuple[Rule, ...]]:
    """A DRAM at rest, watched by a monitor with the rules that are returned beside it."""
    chip = build_chip(build.geometry, preset, seed)
    lost = (int(PatternKind.RANDOM), ~seed & 0xFFFFFFFF, 0)
    rules = jedec.rules(timings, spacing)
    words = build.geometry.burst_bits // 32
    state = Dram(
        chip=chip._replace(specs=np.vstack([chip.specs, np.array([lost], np.int64)])),
        monitor=jedec.build_monitor(rules, build.geometry.banks, timings, spacing),
        parameters=np.array([build.nphases, build.read_phase, build.write_phase, timings.tras, 0, 0], np.int64),
        pending=np.zeros((_PENDING, 4), np.int64),
        flips=np.zeros(words, np.int64),
        data=np.zeros(words, np.uint32),
    )
    return state, rules


# ---- the way from C: a `Dram` lies in memory as numba's own struct, and the C function loads it from there --------


@cache
def _dram_type() -> Any:
    """numba's type of every `Dram`."""
    geometry = Geometry(banks=1, rows=1, columns=8, data_width=8)
    clocks: dict[str, Any] = {"read_latency": 8, "write_latency": 1, "cas_latency": 7, "cas_write_latency": 6}
    build = EngineParameters(geometry, tck_ps=2000, nphases=4, read_phase=1, write_phase=2, **clocks)
    state, _ = build_dram(build, PRESETS["A"], 0, Timings.of(DDR3_1600K, 2000, 6), Spacing.ddr3(2000, 7))
    return numba.typeof(state)


@intrinsic
def _store(_context: Any, value: Any, address: Any) -> Any:
    """Lay a `Dram` down at an address."""

    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        struct, where = arguments
        builder.store(struct, builder.inttoptr(where, struct.type.as_pointer()))
        return context.get_dummy_value()

    return types.void(value, address), emit


@intrinsic
def _load(_context: Any, address: Any) -> Any:
    """The `Dram` that lies at an address."""
    kind = _dram_type()

    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], context.get_value_type(kind).as_pointer()))

    return kind(address), emit


@intrinsic
def _words_at(_context: Any, address: Any) -> Any:
    """The 32-bit words at an address, a C pointer."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.uint32)(address), emit


@njit()
def _lay_down(state: Dram, address: int) -> None:
    _store(state, address)  # type: ignore[call-arg]  # numba gives the typing context


def _command(state: int, pins: int, bank: int, address: int, clock: int, burst: int, mask: int) -> int:
    """What Verilator calls for each command, and for the data of each WRITE (``pins`` is DATA).

    Args:
        state: address of the `Dram`.
        pins, bank, address: as on the DFI; see ENABLED, DRIVEN, DATA.
        clock: DRAM clock.
        burst: address of the burst's words, which a RD fills.
        mask: address of the data mask's words, of DATA.

    Returns:
        DONE; WANTS_MEMORY if nothing was done because the chip model's pools are used up: enlarge them and ask again.
    """
    d: Dram = _load(state)  # type: ignore[call-arg]
    p = d.chip.parameters
    if p[dram.FREE_BLOCKS] == 0 or p[dram.FREE_SLOTS] == 0:
        return WANTS_MEMORY
    words = _words_at(burst)
    if pins == DATA:
        _take_data(d, words, _words_at(mask))
    else:
        _obey(d, pins, bank, address, clock, words)
    return DONE


@cache
def command_function() -> Any:
    """`_command` compiled for C; ``.address`` is its address."""
    options: dict[str, Any] = {"cache": True, "_nrt": False, "error_model": "numpy"}
    return numba.cfunc(types.int64(*[types.int64] * 7), **options)(_command)


class SimulatedDram:
    """The DRAM of one simulated board and what surrounds it.

    Args:
        build: the gateware build that drives it.
        preset: vendor of its chips.
        seed: which chips; the same seed gives the mock's weak cells.
        timings, spacing: what its monitor asks of commands.

    Attributes:
        address: of the state, for `command_function`.
    """

    def __init__(self, build: EngineParameters, preset: Preset, seed: int, timings: Timings, spacing: Spacing) -> None:
        self._preset, self._tck_ps = preset, build.tck_ps
        self._state, self._rules = build_dram(build, preset, seed, timings, spacing)
        self._struct = np.zeros(_dram_size(self._state), np.int64)
        self.address = self._struct.ctypes.data
        _lay_down(self._state, self.address)
        self._environment = (0, REFERENCE_TEMPERATURE_C)
        self._conditions: dict[tuple[int, float], tuple[I64, I64]] = {}
        self._applied: tuple[int, float] | None = None

    def grow(self) -> None:
        """Enlarge the chip model's pools that are used up."""
        self._state = self._state._replace(chip=with_more_memory(self._state.chip))
        _lay_down(self._state, self.address)

    def set_environment(self, vdd_uv: int, temperature_c: float) -> None:
        """Supply the DRAM with ``vdd_uv`` microvolts at ``temperature_c`` degrees Celsius."""
        self._environment = (vdd_uv, temperature_c)

    @property
    def environment(self) -> tuple[int, float]:
        """Supply in microvolts and temperature in degrees Celsius."""
        return self._environment

    def begin_epoch(self, epoch: int) -> None:
        """Draw reads from here on as epoch ``epoch`` does."""
        dram.begin_epoch(self._state.chip, epoch)

    def apply_environment(self) -> None:
        """Bring the chip's condition tables to the present supply and temperature; call it before clocks pass.

        Raises:
            BoardError: there is no supply, or less than the chip model covers.
        """
        key, chip = self._environment, self._state.chip
        if key == self._applied:
            return
        if key[0] == 0:
            raise BoardError("the simulated DRAM has no supply; call set_environment first")
        if key not in self._conditions:
            set_conditions(chip, self._preset, *key, self._tck_ps)
            self._conditions[key] = (chip.rate.copy(), chip.flip.copy())
        chip.rate[:], chip.flip[:] = self._conditions[key]
        self._applied = key

    def allow_trcd(self, clocks: int) -> None:
        """Let RD and WR come ``clocks`` DRAM clocks after their ACT; nominal tRCD at the start."""
        for k, rule in enumerate(self._rules):
            if rule.name == "tRCD":
                self._state.monitor.rules[k, jedec.DISTANCE] = clocks

    def violation_counts(self) -> dict[str, int]:
        """How often each rule of `host.jedec_monitor` was broken since the start; those never broken are left out."""
        return jedec.violation_counts(self._state.monitor, self._rules)

    def first_violations(self) -> list[Violation]:
        """The first violations, in order."""
        return jedec.first_violations(self._state.monitor, self._rules)


def _dram_size(state: Dram) -> int:
    """Words of a `Dram` as numba lays it out: each array has 5, and 2 more a dimension."""
    arrays = (*state.chip, *state.monitor, *state[2:])
    return sum(5 + 2 * array.ndim for array in arrays)
