"""The test engine a second time, from its contract alone (`gateware.isa`, `gateware.errorlog`): plain Python, no speed.

It drives a DRAM that makes no errors of its own; bits differ only where a program compares with what it did not write.
Its by-product, the stream of DRAM commands with their clocks, is what the JEDEC monitor checks.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np

from gateware import isa
from gateware.isa import Command, Instruction, Opcode, Setting, Slot
from gateware.registers import Fault
from profiles.geometry import Geometry
from profiles.pattern import PatternKind, word

Burst = tuple[int, ...]


@dataclass(frozen=True)
class Issued:
    """One DRAM command: its DRAM clock and address. REF of a YIELD has phase 0 of the clock it begins at."""

    clock: int
    command: Command
    bank: int = 0
    row: int = 0
    column: int = 0


class EngineFaultError(Exception):
    """The program stopped at a fault."""

    def __init__(self, code: Fault) -> None:
        super().__init__(code.name)
        self.code = code


@dataclass
class _Digit:
    start: int = 0
    step: int = 0
    count: int = 0
    index: int = 0

    @property
    def value(self) -> int:
        return (self.start + self.step * self.index) % (1 << 20)

    def advance(self) -> bool:
        """Step; True if it went past its end and starts again."""
        self.index += 1
        if self.index < self.count:
            return False
        self.index = 0
        return True


@dataclass
class _Pointer:
    digits: list[_Digit] = field(default_factory=lambda: [_Digit(), _Digit(), _Digit()])
    order: tuple[int, ...] = (0, 1, 2)

    def advance(self) -> None:
        for which in self.order:
            if not self.digits[which].advance():
                return


class ReferenceEngine:
    """Runs programs; keeps the DRAM between them.

    Attributes:
        issued: commands of the last program, in order.
        mismatches: (read index, bit) of the last program's failing bits while the log was on, in order.
        errors: (bank, row, column of the burst, bit, right value) of every failing bit.
        clocks, reads, refreshes, captured: what the registers of those names say.
    """

    def __init__(self, geometry: Geometry, phases: tuple[int, int, int], seed: int, write_buffer: list[Burst]) -> None:
        self.geometry, self.seed = geometry, seed
        self.nphases, self.read_phase, self.write_phase = phases
        self.write_buffer = write_buffer
        self.memory: dict[tuple[int, int, int], Burst] = {}
        self.row_counters = min(4096, geometry.rows)

    def run(self, program: list[Instruction], log_blocks: int = 256, buffer_bursts: int = 4096) -> Fault:
        """Run to END or fault, as with a host that drains the log at every halt."""
        self.issued: list[Issued] = []
        self.mismatches: list[tuple[int, int]] = []
        self.errors: list[tuple[int, int, int, int, int]] = []
        self.counting: list[tuple[int, int]] = []  # COUNTERS and ROW_BASE at each error
        self.captured: list[Burst] = []
        self.clocks = self.reads = self.refreshes = self.pc = 0
        self._log_blocks, self._buffer_bursts = log_blocks, buffer_bursts
        self._pattern: tuple[int, int, int] | None = (0, 0, 0)
        self._cursor = self._interval = self._trfc = self._due = self._row_base = self._reserve = 0
        self._counters = isa.COUNT_LOG
        self._pointers = [_Pointer() for _ in range(isa.POINTERS)]
        self._bank_order = list(range(isa.BANK_ORDER_ENTRIES))
        self._open: dict[int, int] = {}
        self._loops: list[list[int]] = []
        jumped = False
        try:
            while True:
                if self.pc >= len(program):
                    raise EngineFaultError(Fault.BAD_INSTRUCTION)
                instruction = program[self.pc]
                if instruction.loop_begin and not jumped:
                    if len(self._loops) == isa.LOOP_DEPTH:
                        raise EngineFaultError(Fault.LOOP)
                    self._loops.append([self.pc, instruction.loop_begin])
                jumped = False
                self._execute(instruction)
                self.clocks += 1 + instruction.wait
                if instruction.opcode == Opcode.END:
                    return Fault.NONE
                if instruction.loop_end:
                    if not self._loops:
                        raise EngineFaultError(Fault.LOOP)
                    self._loops[-1][1] -= 1
                    if self._loops[-1][1]:
                        self.pc, jumped = self._loops[-1][0], True
                        continue
                    self._loops.pop()
                self.pc += 1
        except EngineFaultError as fault:
            return fault.code

    def _execute(self, instruction: Instruction) -> None:
        if instruction.opcode == Opcode.ISSUE:
            self._issue_all(instruction)
        elif instruction.opcode == Opcode.SET:
            self._set(instruction.setting, instruction.value)
        elif instruction.opcode == Opcode.YIELD:
            if self._open:
                raise EngineFaultError(Fault.OPEN_BANK)
            if self._reserve > self._log_blocks - 1:
                raise EngineFaultError(Fault.RESERVE)
            while self._interval and self.clocks + 1 >= self._due:
                self.issued.append(Issued((self.clocks + 1) * self.nphases, Command.REF))
                self.refreshes += 1
                self.clocks += self._trfc
                self._due += self._interval

    def _issue_all(self, instruction: Instruction) -> None:
        slots = instruction.slots
        home = {Command.RD: self.read_phase, Command.WR: self.write_phase}
        phases = [slot.phase for slot in slots]
        data = [slot for slot in slots if slot.command in home]
        if phases != sorted(set(phases)) or max(phases, default=0) >= self.nphases or len(data) > 1:
            raise EngineFaultError(Fault.BAD_INSTRUCTION)
        if any(slot.phase != home[slot.command] for slot in data):
            raise EngineFaultError(Fault.BAD_INSTRUCTION)
        for slot in slots:
            self._issue(instruction, slot)
        for pointer in {slot.address for slot in slots if slot.step and slot.address < isa.IMMEDIATE}:
            self._pointers[pointer].advance()

    def _issue(self, instruction: Instruction, slot: Slot) -> None:
        if slot.address == isa.IMMEDIATE or slot.address > isa.IMMEDIATE:
            bank, row, column = instruction.immediate_bank, instruction.immediate_row, instruction.immediate_row
        else:
            pointer = self._pointers[slot.address]
            which, row, column = (digit.value for digit in pointer.digits)
            bank = self._bank_order[which % isa.BANK_ORDER_ENTRIES]
        g, command = self.geometry, slot.command
        clock = self.clocks * self.nphases + slot.phase
        if command in (Command.ACT, Command.RD, Command.WR, Command.PRE) and bank >= g.banks:
            raise EngineFaultError(Fault.ADDRESS)
        if command == Command.ACT:
            if bank in self._open:
                raise EngineFaultError(Fault.OPEN_BANK)
            if row >= g.rows:
                raise EngineFaultError(Fault.ADDRESS)
            self._open[bank] = row
        elif command in (Command.RD, Command.WR):
            if bank not in self._open:
                raise EngineFaultError(Fault.CLOSED_BANK)
            if column % g.burst_length or column + g.burst_length > g.columns:
                raise EngineFaultError(Fault.ADDRESS)
            row = self._open[bank]
            if command == Command.WR:
                self.memory[bank, row, column] = self._data(bank, row, column)
            else:
                self._read(bank, row, column, slot)
            if slot.auto_precharge:
                del self._open[bank]
        elif command == Command.PRE:
            self._open.pop(bank, None)
        elif command == Command.PREA:
            self._open.clear()
        elif command == Command.REF and self._open:
            raise EngineFaultError(Fault.OPEN_BANK)
        self.issued.append(Issued(clock, command, bank, row, column))

    def _read(self, bank: int, row: int, column: int, slot: Slot) -> None:
        held = self.holds(bank, row, column)
        if slot.capture:
            if len(self.captured) == self._buffer_bursts:
                raise EngineFaultError(Fault.CAPTURE_OVERFLOW)
            self.captured.append(held)
        if not slot.compare:
            return
        right = self._data(bank, row, column)
        for w, (a, b) in enumerate(zip(held, right, strict=True)):
            for bit in range(32):
                if (a ^ b) >> bit & 1:
                    self.errors.append((bank, row, column, 32 * w + bit, b >> bit & 1))
                    self.counting.append((self._counters, self._row_base))
                    if self._counters & isa.COUNT_LOG:
                        self.mismatches.append((self.reads, 32 * w + bit))
        self.reads += 1

    def _data(self, bank: int, row: int, column: int) -> Burst:
        """What WR sends and a compared RD expects next."""
        if self._pattern is None:
            self._cursor += 1
            return self.write_buffer[(self._cursor - 1) % len(self.write_buffer)]
        return self._words(*self._pattern, bank, row, column)

    def _words(self, kind: int, parameter: int, invert: int, bank: int, row: int, column: int) -> Burst:
        g = self.geometry
        return tuple(
            word(kind, parameter, invert, bank, row, column, w, g.data_width) for w in range(g.burst_bits // 32)
        )

    def holds(self, bank: int, row: int, column: int) -> Burst:
        """Content of a burst; at power-up, noise by the chip's seed."""
        if (bank, row, column) not in self.memory:
            return self._words(int(PatternKind.RANDOM), self.seed, 0, bank, row, column)
        return self.memory[bank, row, column]

    def _set(self, setting: int, value: int) -> None:
        if setting == Setting.PATTERN:
            if value & 0xFF > PatternKind.BUFFER:
                raise EngineFaultError(Fault.BAD_INSTRUCTION)
            is_buffer = value & 0xFF == PatternKind.BUFFER
            self._pattern = None if is_buffer else (value & 0xFF, value >> 32, value >> 8 & 1)
        elif setting == Setting.BANK_ORDER:
            self._bank_order[(value & 0xFF) % isa.BANK_ORDER_ENTRIES] = value >> 8 & 0xFF
        elif setting == Setting.BUFFER_CURSOR:
            self._cursor = value & 0xFFFFFFFF
        elif setting == Setting.REFRESH:
            interval, trfc = value & 0xFFFFFFFF, value >> 32
            if interval and not 0 < trfc < interval:
                raise EngineFaultError(Fault.BAD_INSTRUCTION)
            self._interval, self._trfc, self._due = interval, trfc, self.clocks + interval
        elif setting == Setting.COUNTERS:
            self._counters = value
        elif setting == Setting.ROW_BASE:
            self._row_base = value
        elif setting == Setting.LOG_RESERVE:
            self._reserve = value & 0xFFFFFFFF
        elif Setting.POINTER_BANK <= setting < Setting.POINTER_BANK + 4 * isa.POINTERS:
            pointer, which = self._pointers[(setting - 16) // 4], (setting - 16) % 4
            if which < 3:
                digit = pointer.digits[which]
                digit.start, digit.step, digit.count = value & 0xFFFFF, value >> 20 & 0xFFFFF, value >> 40
            else:
                order = tuple(value >> 2 * k & 3 for k in range(3))
                if sorted(order) != [0, 1, 2]:
                    raise EngineFaultError(Fault.BAD_INSTRUCTION)
                pointer.order = order
            for digit in pointer.digits:
                digit.index = 0
        else:
            raise EngineFaultError(Fault.BAD_INSTRUCTION)

    # ---- what the engine's counters must hold ------------------------------------------------------------------------

    def bank_errors(self) -> np.ndarray:
        counts = np.zeros((self.geometry.banks, 2), np.int64)
        for bank, _, _, _, value in self.errors:
            counts[bank, value] += 1
        return counts

    def place_errors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, bitline and DQ counters: [place, direction], counted while each was on."""
        g = self.geometry
        rows = np.zeros((self.row_counters, 2), np.int64)
        bitlines, lanes = np.zeros((g.row_bits, 2), np.int64), np.zeros((g.data_width, 2), np.int64)
        for (_, row, column, bit, value), (modes, base) in zip(self.errors, self.counting, strict=True):
            if modes & isa.COUNT_ROWS and 0 <= row - base < self.row_counters:
                rows[row - base, value] += 1
            if modes & isa.COUNT_BITLINES:
                bitlines[column * g.data_width + bit, value] += 1
            if modes & isa.COUNT_DQ:
                lanes[bit % g.data_width, value] += 1
        return rows, bitlines, lanes


def parse_log(blocks: np.ndarray, burst_words: int) -> list[tuple[int, int]]:
    """(read index, bit) entries of log blocks, from the format's description; asserts whatever it promises."""
    out: list[tuple[int, int]] = []
    for number, block in enumerate(blocks.tolist()):
        assert block[0] == 0xED << 24 | number & 0xFFFFFF
        assert block[255] == zlib.crc32(np.array(block[:255], "<u4").tobytes())
        used, index = block[1], block[2] | block[3] << 32
        payload, high = block[4 : 4 + used], 0
        assert used <= 251
        assert not any(block[4 + used : 255])
        while payload:
            value = payload.pop(0)
            kind, delta, bit = value >> 30, value >> 10 & 0xFFFFF, value & 0x3FF
            if kind == 2:
                high = (value & 0x3FFFFFFF) << 20
                continue
            index, high = index + high + delta, 0
            if kind == 0:
                out.append((index, bit))
            else:
                assert kind == 1
                assert bit == 0
                assert len(payload) >= burst_words
                masks, payload = payload[:burst_words], payload[burst_words:]
                bits = [32 * w + k for w, mask in enumerate(masks) for k in range(32) if mask >> k & 1]
                assert len(bits) > burst_words
                out += [(index, k) for k in bits]
    return out
