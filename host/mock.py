"""The software mock board: a bus in front of the engine interpreter and the chip model.

It answers at the same register and memory addresses as the gateware. The world around the board (supply, temperature)
is set on the object itself, as `MockSupply` and tests do.
"""

import zlib
from functools import lru_cache
from itertools import pairwise

import numpy as np

from gateware import isa
from gateware.engine.parameters import EngineParameters
from gateware.errorlog import BLOCK_WORDS
from gateware.registers import (
    CSR_BASE,
    REGISTERS,
    RESUME,
    START,
    STOP,
    Fault,
    State,
    memory_bases,
    register_offsets,
)
from host import chip as dram
from host import mock_engine as model
from host.bus import Words
from host.chip_presets import Preset, build_chip, set_conditions, with_more_memory
from host.crc import TABLES
from profiles.errors import LinkError, ProgramError

_LIVE = {
    **{"state": model.STATE, "fault": model.FAULT, "clocks": model.CLOCKS, "reads_compared": model.READS},
    **{"refreshes": model.REFRESHES, "captured": model.CAPTURED},
    **{"log_produced": model.LOG_PRODUCED, "log_consumed": model.LOG_CONSUMED},
}
_SLICE = 2_000_000  # instructions between two looks at the bus, so that Ctrl-C is felt


def _refused(slots: tuple[isa.Slot, ...], build: EngineParameters) -> bool:
    """True if the engine does not issue these slots together (`gateware.isa`, Slots)."""
    taken = [slot.phase for slot in slots]
    data = [slot for slot in slots if slot.command in (isa.Command.RD, isa.Command.WR)]
    home = {isa.Command.RD: build.read_phase, isa.Command.WR: build.write_phase}
    return (
        any(late <= early for early, late in pairwise(taken))
        or any(phase >= build.nphases for phase in taken)
        or len(data) > 1
        or any(slot.phase != home[slot.command] for slot in data)
    )


def _steps(slots: tuple[isa.Slot, ...], k: int) -> bool:
    """True if slot ``k``'s pointer advances after it: some slot of the instruction asks, and no later one uses it."""
    same = [slot for slot in slots if slot.address == slots[k].address]
    return same[-1] is slots[k] and any(slot.step for slot in same)


def _decoded(words: Words, build: EngineParameters) -> Words:
    """Program words as the interpreter's columns; what the engine refuses becomes `UNDEFINED`."""
    rows = words.reshape(-1, isa.INSTRUCTION_WORDS)
    out = np.zeros((rows.shape[0], model.PROGRAM_COLUMNS), np.uint32)
    for line, row in zip(out, rows, strict=True):
        try:
            (i,) = isa.disassemble(row)
        except ProgramError:
            line[model.OPCODE] = model.UNDEFINED
            continue
        if _refused(i.slots, build):
            line[model.OPCODE] = model.UNDEFINED
            continue
        line[: model.FIRST_SLOT] = (
            *(int(i.opcode), i.wait, i.loop_begin, i.loop_end, len(i.slots), i.immediate_bank, i.immediate_row),
            *(i.setting, i.value & 0xFFFFFFFF, i.value >> 32, i.more),
        )
        for k, slot in enumerate(i.slots):
            low = model.FIRST_SLOT + k * model.SLOT_COLUMNS
            line[low : low + model.SLOT_COLUMNS] = (
                *(int(slot.command), slot.phase, slot.address, _steps(i.slots, k)),
                *(slot.auto_precharge, slot.compare, slot.capture),
            )
    return out


class MockBoard:
    """A board in software; a `host.bus.Bus`.

    Args:
        build: the gateware build it stands in for.
        preset: vendor of its chips.
        seed: which chips; the same seed gives the same weak cells.
    """

    def __init__(self, build: EngineParameters, preset: Preset, seed: int) -> None:
        self._build, self._preset = build, preset
        g = build.geometry
        self._chip = build_chip(g, preset, seed)
        self._vdd_uv, self._temperature_c = 0, 20.0
        words = g.burst_bits // 32
        self._engine = model.Engine(
            state=np.zeros(model.STATE_WORDS, np.int64),
            loops=np.zeros((isa.LOOP_DEPTH, 2), np.int64),
            digits=np.zeros((isa.POINTERS, 3, 5), np.uint32),
            order=np.zeros((isa.POINTERS, 3), np.uint32),
            bank_order=np.zeros(isa.BANK_ORDER_ENTRIES, np.uint32),
            log=np.zeros((build.log_blocks, BLOCK_WORDS), np.uint32),
            write_buffer=np.zeros((build.buffer_bursts, words), np.uint32),
            capture=np.zeros((build.buffer_bursts, words), np.uint32),
            bank_errors=np.zeros((g.banks, 2), np.int64),
            row_errors=np.zeros((build.row_counters, 2), np.int64),
            bitline_errors=np.zeros((g.row_bits, 2), np.int64),
            dq_errors=np.zeros((g.data_width, 2), np.int64),
            flips=np.zeros(words, np.int64),
            expected=self._chip.held,
            crc_tables=TABLES,
        )
        self._program_words = np.zeros(build.program_depth * isa.INSTRUCTION_WORDS, np.uint32)
        self._program = np.zeros((0, model.PROGRAM_COLUMNS), np.uint32)
        self._held = dict.fromkeys(
            ("program_length", "program_check", "buffer_length", "buffer_check", "fault_pc", "starts"), 0
        )
        self._constants = build.constants()
        self._engine.state[model.NPHASES] = build.nphases
        self._offsets = {offset: name for name, offset in register_offsets().items()}
        self._widths = {register.name: register.words for register in REGISTERS}
        self._resets = {register.name: register.reset for register in REGISTERS}
        self._bases = memory_bases()
        self._conditions: dict[tuple[int, float], tuple[dram.I64, dram.I64]] = {}
        self._applied: tuple[int, float] | None = None
        self._patterns: dict[tuple[int, int, int], int] = {}
        self._decode = lru_cache(maxsize=256)(lambda image: _decoded(np.frombuffer(image, np.uint32), build))

    # ---- the world around the board -------------------------------------------------------------------------------

    def set_environment(self, vdd_uv: int, temperature_c: float) -> None:
        """Supply the DRAM with ``vdd_uv`` microvolts at ``temperature_c`` degrees Celsius."""
        self._vdd_uv, self._temperature_c = vdd_uv, temperature_c

    @property
    def environment(self) -> tuple[int, float]:
        """Supply in microvolts and temperature in degrees Celsius."""
        return self._vdd_uv, self._temperature_c

    def begin_epoch(self, epoch: int, activations: int = 0) -> None:
        """Draw reads from here on as epoch ``epoch`` does (DESIGN: a resumed run repeats them)."""
        dram.begin_epoch(self._chip, epoch)
        self._chip.act_index[:] = activations

    # ---- the bus ---------------------------------------------------------------------------------------------------

    def read(self, address: int, count: int) -> Words:
        """See `host.bus.Bus.read`."""
        if address >= CSR_BASE:
            offset = (address - CSR_BASE) // 4
            return np.array([self._register_word(offset + k) for k in range(count)], np.uint32)
        name, words = self._memory(address)
        start = (address - self._bases[name]) // 4
        if start + count > words.size:
            raise LinkError(f"bus error: {count} words from {address:#x} run past the end of memory '{name}'")
        return words[start : start + count].astype(np.uint32)

    def write(self, address: int, words: Words) -> None:
        """See `host.bus.Bus.write`."""
        words = np.atleast_1d(words)
        if address >= CSR_BASE:
            for k, value in enumerate(words):
                self._write_register((address - CSR_BASE) // 4 + k, int(value))
            return
        name, memory = self._memory(address)
        start = (address - self._bases[name]) // 4
        if name not in ("program", "write_buffer") or start + words.size > memory.size:
            raise LinkError(f"bus error: cannot write {words.size} words at {address:#x} (memory '{name}')")
        memory[start : start + words.size] = words

    def close(self) -> None:
        """Nothing to release."""

    def _memory(self, address: int) -> tuple[str, Words]:
        """The window that holds ``address`` and its content as words (a view where it is writable)."""
        for name, base in reversed(self._bases.items()):
            if address >= base:
                if name == "program":
                    return name, self._program_words
                if name == "write_buffer":
                    return name, self._engine.write_buffer.reshape(-1)
                values = getattr(self._engine, name).reshape(-1)
                if name == "bank_errors":
                    values = np.stack([values & 0xFFFFFFFF, values >> 32], axis=1).reshape(-1)
                return name, values
        raise LinkError(f"bus error: nothing answers at address {address:#x}")

    def _register_word(self, offset: int) -> int:
        for back in (0, 1):
            name = self._offsets.get(offset - back)
            if name is not None and back < self._widths[name]:
                return self._register(name) >> (32 * back) & 0xFFFFFFFF
        raise LinkError(f"bus error: no register at address {CSR_BASE + 4 * offset:#x}")

    def _register(self, name: str) -> int:
        if name == "state":
            self._go_on()
        if name in _LIVE:
            return int(self._engine.state[_LIVE[name]])
        if name == "capture_check":
            return zlib.crc32(self._engine.capture[: self._engine.state[model.CAPTURED]].tobytes())
        for values in (self._held, self._constants):
            if name in values:
                return values[name]
        return self._resets[name]

    def _write_register(self, offset: int, value: int) -> None:
        s, name = self._engine.state, self._offsets.get(offset)
        if name in ("program_length", "program_check", "buffer_length", "buffer_check"):
            self._held[name] = value
        elif name == "log_consumed":
            s[model.LOG_CONSUMED] = value
        elif name == "control" and value == START:
            self._start()
        elif name == "control" and value == RESUME:  # ignored where there is nothing to resume
            if s[model.STATE] == State.CHUNK:
                self._load_program()
            if s[model.STATE] in (State.HALTED, State.CHUNK):
                s[model.STATE] = State.RUNNING
        elif name == "control" and value == STOP:
            s[model.STOP_REQUESTED] = 1
        else:
            raise LinkError(f"bus error: cannot write {value:#x} to register '{name}' now")

    # ---- the engine ------------------------------------------------------------------------------------------------

    def _load_program(self) -> None:
        length = self._held["program_length"]
        words = self._program_words[: length * isa.INSTRUCTION_WORDS]
        data = self._engine.write_buffer[: self._held["buffer_length"]]
        image = words.tobytes()
        checks = (zlib.crc32(image), zlib.crc32(data.tobytes()) if data.size else self._held["buffer_check"])
        if checks != (self._held["program_check"], self._held["buffer_check"]):
            self._engine.state[model.STATE], self._engine.state[model.FAULT] = State.FAULT, Fault.BAD_CHECK
            self._held["fault_pc"] = 0
            return
        self._program = self._decode(image)

    def _start(self) -> None:
        e = self._engine
        e.state[:] = 0
        e.state[model.NPHASES], e.state[model.STATE] = self._build.nphases, State.RUNNING
        e.state[model.COUNTERS] = isa.COUNT_LOG
        for values in (e.bank_errors, e.row_errors, e.bitline_errors, e.dq_errors, e.digits):
            values[:] = 0
        e.order[:] = np.arange(3)
        e.bank_order[:] = np.arange(isa.BANK_ORDER_ENTRIES)
        self._chip.open_row[:] = -1
        self._held["starts"] = (self._held["starts"] + 1) & 0xFFFFFFFF
        self._number_pattern()
        self._load_program()

    def _go_on(self) -> None:
        """Let a running program run a slice further."""
        s = self._engine.state
        if s[model.STATE] != State.RUNNING:
            return
        self._apply_environment()
        while True:
            model.run(self._engine, self._chip, self._program, _SLICE)
            if s[model.WANT_MEMORY]:
                self._chip, s[model.WANT_MEMORY] = with_more_memory(self._chip), 0
            elif s[model.WANT_SPEC]:
                self._number_pattern()
            else:
                break
        if s[model.STATE] == State.FAULT:
            self._held["fault_pc"] = int(s[model.PC])

    def _apply_environment(self) -> None:
        """Bring the chip's condition tables to the present supply and temperature, which ramps change often."""
        key = (self._vdd_uv, self._temperature_c)
        if key not in self._conditions:
            if self._vdd_uv == 0:
                raise LinkError("the mock board has no supply; call set_environment first")
            set_conditions(self._chip, self._preset, *key, self._build.tck_ps)
            self._conditions[key] = (self._chip.rate.copy(), self._chip.flip.copy())
        elif key != self._applied:
            self._chip.rate[:], self._chip.flip[:] = self._conditions[key]
        self._applied = key

    def _number_pattern(self) -> None:
        s = self._engine.state
        low, parameter = int(s[model.PATTERN_LOW]), int(s[model.PATTERN_HIGH])
        key = (low & 0xFF, parameter, low >> 8 & 1)
        if key not in self._patterns:
            self._patterns[key] = self._chip.specs.shape[0]
            self._chip = self._chip._replace(specs=np.vstack([self._chip.specs, np.array([key], np.int64)]))
        s[model.SPEC], s[model.WANT_SPEC] = self._patterns[key], 0
