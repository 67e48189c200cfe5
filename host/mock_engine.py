"""The test engine in software: interprets its programs over the chip model, command by command.

This is the mock's stand-in for the gateware and has its meaning in every bit: log, counters, clock count and memory
contents (`gateware.isa`, `gateware.errorlog`, `gateware.registers` say what they must be). `run` is one numba function
that can be left and entered again between any two commands.
"""

from typing import NamedTuple

import numpy as np

from gateware import errorlog, isa
from gateware.registers import Fault, State
from host import chip as dram
from host.chip import I64, U32, Chip
from host.compiled import inlined, njit
from host.crc import crc32
from profiles.pattern import PatternKind

# columns of a decoded program
OPCODE, WAIT, LOOP_BEGIN, LOOP_END, SLOT_COUNT, IMMEDIATE_BANK, IMMEDIATE_ROW, SETTING, VALUE_LOW, VALUE_HIGH, MORE = (
    range(11)
)
FIRST_SLOT, SLOT_COLUMNS = 11, 7
COMMAND, PHASE, ADDRESS, STEP, AUTO_PRECHARGE, COMPARE, CAPTURE = range(SLOT_COLUMNS)
PROGRAM_COLUMNS = FIRST_SLOT + isa.SLOTS * SLOT_COLUMNS
UNDEFINED = 255  # opcode of an instruction that cannot be decoded, command of a slot that the engine refuses

# indices into Engine.state
(PC, NEXT_SLOT, CLOCKS, LOOPS, JUMPED, STATE, FAULT, STOP_REQUESTED, NPHASES) = range(9)
(SPEC, BUFFER, BUFFER_CURSOR, REFRESH_INTERVAL, REFRESH_CLOCKS, NEXT_REFRESH, REFRESHES) = range(9, 16)
(COUNTERS, ROW_BASE, LOG_RESERVE, READS, CAPTURED, WANT_MEMORY, WANT_SPEC) = range(16, 23)
(LOG_PRODUCED, LOG_CONSUMED, BLOCK_FILL, BLOCK_OPEN, LAST_READ) = range(23, 28)
(BEGUN, PATTERN_LOW, PATTERN_HIGH) = range(28, 31)
STATE_WORDS = 31

# a pointer digit: start, step, count, index, start + step * index
START, STEP_BY, COUNT, INDEX, VALUE = range(5)


class Engine(NamedTuple):
    """State of the engine.

    Attributes:
        state: int64[STATE_WORDS], indexed by the names above.
        loops: int64[LOOP_DEPTH, 2], first instruction and passes left.
        digits: uint32[POINTERS, 3, 5]; order: uint32[POINTERS, 3].
        bank_order: uint32[BANK_ORDER_ENTRIES].
        log: uint32[blocks, BLOCK_WORDS]; write_buffer, capture: uint32[bursts, words a burst].
        bank_errors: int64[banks, 2]; row_errors: int64[rows covered, 2]; bitline_errors: int64[row bits, 2];
        dq_errors: int64[data_width, 2].
        flips, expected: int64[words a burst], scratch; `expected` is the chip's `held`.
        crc_tables: `host.crc.TABLES`.
    """

    state: I64
    loops: I64
    digits: U32
    order: U32
    bank_order: U32
    log: U32
    write_buffer: U32
    capture: U32
    bank_errors: I64
    row_errors: I64
    bitline_errors: I64
    dq_errors: I64
    flips: I64
    expected: I64
    crc_tables: U32


_HEADER, _BLOCK, _PAYLOAD = errorlog.HEADER_WORDS, errorlog.BLOCK_WORDS, errorlog.PAYLOAD_WORDS
_BIT, _MASK, _SKIP = errorlog.BIT << 30, errorlog.MASK << 30, errorlog.SKIP << 30
_SHIFT, _DELTA_BITS, _DELTA_MASK = errorlog.DELTA_SHIFT, errorlog.DELTA_BITS, (1 << errorlog.DELTA_BITS) - 1
_MAGIC, _SEQUENCE_MASK = errorlog.MAGIC << errorlog.SEQUENCE_BITS, (1 << errorlog.SEQUENCE_BITS) - 1

_ISSUE, _SET, _YIELD, _END = (int(isa.Opcode[n]) for n in ("ISSUE", "SET", "YIELD", "END"))
_ACT, _RD, _WR, _PRE, _PREA, _REF = (int(isa.Command[n]) for n in ("ACT", "RD", "WR", "PRE", "PREA", "REF"))
_RUNNING, _HALTED, _DONE = int(State.RUNNING), int(State.HALTED), int(State.DONE)
_CHUNK, _FAULTED = int(State.CHUNK), int(State.FAULT)
_F_INSTRUCTION, _F_LOG, _F_CAPTURE = int(Fault.BAD_INSTRUCTION), int(Fault.LOG_OVERFLOW), int(Fault.CAPTURE_OVERFLOW)
_F_CLOSED, _F_OPEN, _F_ADDRESS = int(Fault.CLOSED_BANK), int(Fault.OPEN_BANK), int(Fault.ADDRESS)
_F_LOOP, _F_RESERVE = int(Fault.LOOP), int(Fault.RESERVE)
_P_BUFFER = int(PatternKind.BUFFER)
_S_PATTERN, _S_BANK_ORDER, _S_CURSOR = (
    int(isa.Setting.PATTERN),
    int(isa.Setting.BANK_ORDER),
    int(isa.Setting.BUFFER_CURSOR),
)
_S_REFRESH, _S_COUNTERS = int(isa.Setting.REFRESH), int(isa.Setting.COUNTERS)
_S_ROW_BASE, _S_RESERVE, _S_POINTER = (
    int(isa.Setting.ROW_BASE),
    int(isa.Setting.LOG_RESERVE),
    int(isa.Setting.POINTER_BANK),
)
_SATURATED = (1 << 32) - 1


@inlined()
def _any_open(chip: Chip) -> bool:
    for bank in range(chip.open_row.size):  # noqa: SIM110 (a generator would allocate)
        if chip.open_row[bank] >= 0:
            return True
    return False


@inlined()
def _fault(engine: Engine, code: int) -> None:
    engine.state[STATE], engine.state[FAULT] = _FAULTED, code


@njit()
def _close_block(engine: Engine) -> None:
    """Seal the open log block with its length and CRC-32, and count it as produced."""
    s = engine.state
    block = engine.log[s[LOG_PRODUCED] % engine.log.shape[0]]
    fill = s[BLOCK_FILL]
    block[1] = np.uint32(fill)
    block[_HEADER + fill : _BLOCK - 1] = 0
    block[_BLOCK - 1] = np.uint32(crc32(block, engine.crc_tables))
    s[LOG_PRODUCED] += 1
    s[BLOCK_OPEN] = 0


@inlined()
def _room(engine: Engine, words: int) -> bool:
    """Have a block open with room for ``words``; False (and a fault) if the ring is full."""
    s = engine.state
    if s[BLOCK_OPEN] and s[BLOCK_FILL] + words > _PAYLOAD:
        _close_block(engine)
    if not s[BLOCK_OPEN]:
        if s[LOG_PRODUCED] - s[LOG_CONSUMED] >= engine.log.shape[0]:
            _fault(engine, _F_LOG)
            return False
        block = engine.log[s[LOG_PRODUCED] % engine.log.shape[0]]
        block[0] = np.uint32(_MAGIC | (s[LOG_PRODUCED] & _SEQUENCE_MASK))
        block[2], block[3] = np.uint32(s[READS] & 0xFFFFFFFF), np.uint32(s[READS] >> 32)
        s[BLOCK_FILL], s[BLOCK_OPEN], s[LAST_READ] = 0, 1, s[READS]
    return True


@inlined()
def _log_burst(engine: Engine, flips: I64, busy: int, failing: int) -> None:
    """Log one burst's failing bits (format: `gateware.errorlog`); uses ``flips`` up."""
    s = engine.state
    dense = failing > flips.size
    words = 1 + flips.size if dense else failing
    skip = s[BLOCK_OPEN] == 1 and (s[READS] - s[LAST_READ]) >> _DELTA_BITS != 0
    if not _room(engine, words + skip):
        return
    block = engine.log[s[LOG_PRODUCED] % engine.log.shape[0]]
    at = _HEADER + s[BLOCK_FILL]
    delta = s[READS] - s[LAST_READ]
    if delta >> _DELTA_BITS:
        block[at] = np.uint32(_SKIP | delta >> _DELTA_BITS)
        at += 1
    s[LAST_READ] = s[READS]
    delta = (delta & _DELTA_MASK) << _SHIFT
    if dense:
        block[at] = np.uint32(_MASK | delta)
        for w in range(flips.size):
            block[at + 1 + w] = np.uint32(flips[w])
        at += 1 + flips.size
    else:
        while busy:  # one branch only that is hard to guess
            w = dram.lowest_bit(busy)
            mask = flips[w]
            block[at] = np.uint32(_BIT | delta | w * 32 + dram.lowest_bit(mask))
            at += 1
            delta = 0
            mask &= mask - 1
            flips[w] = mask
            busy &= ~(np.int64(mask == 0) << w)
    s[BLOCK_FILL] = at - _HEADER


@inlined()
def _count_places(engine: Engine, chip: Chip, row: int, burst: int, flips: I64) -> None:
    """Add a burst's failing bits to those of the row, bitline and DQ counters that are on."""
    s = engine.state
    modes, lanes = s[COUNTERS], chip.parameters[dram.WIDTH] - 1
    row -= s[ROW_BASE]
    by_row = modes & isa.COUNT_ROWS and row >= 0 and row < engine.row_errors.shape[0]
    for w in range(flips.size):
        mask = flips[w]
        while mask:
            bit = dram.lowest_bit(mask)
            mask &= mask - 1
            direction = (engine.expected[w] >> bit) & 1
            cell = (burst << chip.parameters[dram.BURST_SHIFT]) + w * 32 + bit
            if by_row and engine.row_errors[row, direction] < _SATURATED:
                engine.row_errors[row, direction] += 1
            if modes & isa.COUNT_BITLINES and engine.bitline_errors[cell, direction] < _SATURATED:
                engine.bitline_errors[cell, direction] += 1
            if modes & isa.COUNT_DQ and engine.dq_errors[cell & lanes, direction] < _SATURATED:
                engine.dq_errors[cell & lanes, direction] += 1


@inlined()
def _count(engine: Engine, chip: Chip, bank: int, row: int, burst: int, flips: I64, busy: int) -> int:
    """Add a burst's failing bits to the counters; returns how many there are."""
    ones = total = 0
    while busy:
        w = dram.lowest_bit(busy)
        busy &= busy - 1
        ones += dram.popcount(flips[w] & engine.expected[w])
        total += dram.popcount(flips[w])
    engine.bank_errors[bank, 0] += total - ones
    engine.bank_errors[bank, 1] += ones
    if engine.state[COUNTERS] & (isa.COUNT_ROWS | isa.COUNT_BITLINES | isa.COUNT_DQ):
        _count_places(engine, chip, row, burst, flips)
    return total


@inlined()
def _expect(engine: Engine, chip: Chip, bank: int, row: int, burst: int) -> None:
    """Fill ``engine.expected`` with what the data source gives for an address."""
    s = engine.state
    if s[BUFFER]:
        data = engine.write_buffer[s[BUFFER_CURSOR] % engine.write_buffer.shape[0]]
        for w in range(engine.expected.size):
            engine.expected[w] = np.int64(data[w])
    else:
        dram.words_of(chip, s[SPEC], bank, row, burst, engine.expected)


@inlined()
def _settle(engine: Engine, chip: Chip, bank: int, row: int, burst: int, flips: I64, busy: int) -> None:
    """Count and log the failing bits ``flips`` of a compared burst whose right words are ``engine.expected``.

    ``busy`` has a 1 for each word that has failing bits.
    """
    failing = _count(engine, chip, bank, row, burst, flips, busy)
    if engine.state[COUNTERS] & isa.COUNT_LOG and failing:
        _log_burst(engine, flips, busy, failing)


@inlined()
def _compare_words(engine: Engine, chip: Chip, bank: int, burst: int, busy: int, compare: int, capture: int) -> int:
    """Capture a burst that holds ``engine.expected`` and read wrong where ``engine.flips`` (if ``busy``) says so.

    Turns both into what the burst is compared with and where it differs; returns a 1 for each word that does.
    """
    s, flips, row = engine.state, engine.flips, chip.open_row[bank]
    for w in range(flips.size):
        flips[w] = engine.expected[w] ^ (flips[w] if busy else 0)
    if capture:
        for w in range(flips.size):
            engine.capture[s[CAPTURED], w] = np.uint32(flips[w])
        s[CAPTURED] += 1
    if not compare:
        return 0
    _expect(engine, chip, bank, row, burst)
    s[BUFFER_CURSOR] += s[BUFFER]
    busy = 0
    for w in range(flips.size):
        flips[w] ^= engine.expected[w]
        busy |= np.int64(flips[w] != 0) << w
    return busy


@inlined()
def _read(engine: Engine, chip: Chip, bank: int, column: int, clock: int, compare: int, capture: int) -> None:
    """RD; word by word where the burst is captured or does not hold the pattern that it is compared with."""
    s, burst, row = engine.state, _burst(chip, column), chip.open_row[bank]
    if capture and s[CAPTURED] >= engine.capture.shape[0]:
        _fault(engine, _F_CAPTURE)
        return
    tag = dram.tag_of(chip, bank, row, burst)
    by_word = capture or s[BUFFER] or tag != s[SPEC]
    if by_word:
        dram.words_of(chip, tag, bank, row, burst, engine.expected)  # the read may change the cells
    busy = dram.read_flips(chip, bank, burst, clock, engine.flips)
    if by_word:
        busy = _compare_words(engine, chip, bank, burst, busy, compare, capture)
    if busy and compare:
        _settle(engine, chip, bank, row, burst, engine.flips, busy)  # `Chip.held` is `Engine.expected`
    s[READS] += compare


@inlined()
def _write(engine: Engine, chip: Chip, bank: int, column: int, clock: int) -> None:
    s = engine.state
    burst = _burst(chip, column)
    if s[BUFFER]:
        data = engine.write_buffer[s[BUFFER_CURSOR] % engine.write_buffer.shape[0]]
        dram.write_words(chip, bank, burst, clock, data)
        s[BUFFER_CURSOR] += 1
    else:
        dram.write_pattern(chip, bank, burst, clock, s[SPEC])


@inlined()
def _burst(chip: Chip, column: int) -> int:
    p = chip.parameters
    return column * p[dram.WIDTH] >> p[dram.BURST_SHIFT]


@inlined()
def _step(engine: Engine, pointer: int) -> None:
    """Advance a pointer's odometer, fastest digit first."""
    for k in range(3):
        which = engine.order[pointer, k]
        index = engine.digits[pointer, which, INDEX] + 1
        if index < engine.digits[pointer, which, COUNT]:
            engine.digits[pointer, which, INDEX] = index
            value = np.int64(engine.digits[pointer, which, VALUE]) + engine.digits[pointer, which, STEP_BY]
            engine.digits[pointer, which, VALUE] = value & 0xFFFFF
            return
        engine.digits[pointer, which, INDEX] = 0
        engine.digits[pointer, which, VALUE] = engine.digits[pointer, which, START]


@inlined()
def _command(engine: Engine, chip: Chip, program: U32, pc: int, low: int) -> None:
    """Issue one slot's command; the slot is in columns ``low`` and up of instruction ``pc``."""
    s, p = engine.state, chip.parameters
    command, address = program[pc, low + COMMAND], program[pc, low + ADDRESS]
    clock = s[CLOCKS] * s[NPHASES] + program[pc, low + PHASE]
    if address >= isa.POINTERS:
        bank, row, column = program[pc, IMMEDIATE_BANK], program[pc, IMMEDIATE_ROW], program[pc, IMMEDIATE_ROW]
    else:
        bank = engine.bank_order[engine.digits[address, isa.BANK, VALUE] & (isa.BANK_ORDER_ENTRIES - 1)]
        row, column = engine.digits[address, isa.ROW, VALUE], engine.digits[address, isa.COLUMN, VALUE]
        if program[pc, low + STEP]:
            _step(engine, address)
    if command >= _ACT and command <= _PRE:
        if bank >= chip.open_row.size:
            _fault(engine, _F_ADDRESS)
        elif command == _PRE:
            dram.precharge(chip, bank)
        elif command == _ACT:
            if chip.open_row[bank] >= 0:
                _fault(engine, _F_OPEN)
            elif row >= p[dram.ROWS]:
                _fault(engine, _F_ADDRESS)
            else:
                dram.activate(chip, bank, row, clock)
        elif chip.open_row[bank] < 0:
            _fault(engine, _F_CLOSED)
        elif column + p[dram.BURST] > p[dram.COLUMNS] or column & (p[dram.BURST] - 1):
            _fault(engine, _F_ADDRESS)
        else:
            if command == _RD:
                _read(engine, chip, bank, column, clock, program[pc, low + COMPARE], program[pc, low + CAPTURE])
            else:
                _write(engine, chip, bank, column, clock)
            if program[pc, low + AUTO_PRECHARGE]:
                dram.precharge(chip, bank)
    elif command == _PREA:
        chip.open_row[:] = -1
    elif command == UNDEFINED:
        _fault(engine, _F_INSTRUCTION)
    elif command == _REF and _any_open(chip):
        _fault(engine, _F_OPEN)


@inlined()
def _yield(engine: Engine, chip: Chip) -> None:
    """Refresh what is due, and halt if the log has less room than the program needs until the next YIELD."""
    s = engine.state
    if _any_open(chip):
        _fault(engine, _F_OPEN)
        return
    if s[LOG_RESERVE] > engine.log.shape[0] - 1:
        _fault(engine, _F_RESERVE)
        return
    s[CLOCKS] += 1
    while s[REFRESH_INTERVAL] and s[CLOCKS] >= s[NEXT_REFRESH]:
        s[REFRESHES] += 1
        s[CLOCKS] += s[REFRESH_CLOCKS]
        s[NEXT_REFRESH] += s[REFRESH_INTERVAL]
    free = engine.log.shape[0] - (s[LOG_PRODUCED] - s[LOG_CONSUMED]) - s[BLOCK_OPEN]
    if free < s[LOG_RESERVE] or s[STOP_REQUESTED]:
        s[STATE], s[STOP_REQUESTED] = _HALTED, 0


@inlined()
def _set_pointer(engine: Engine, pointer: int, which: int, low: int, high: int) -> None:
    """Apply a pointer's SET, which also returns the pointer to its start."""
    if which < 3:
        digit = engine.digits[pointer, which]
        digit[START], digit[STEP_BY] = low & 0xFFFFF, (low >> 20 | (high & 0xFF) << 12) & 0xFFFFF
        digit[COUNT] = high >> 8
    else:
        if 1 << (low & 3) | 1 << (low >> 2 & 3) | 1 << (low >> 4 & 3) != 0b111:
            _fault(engine, _F_INSTRUCTION)
            return
        for k in range(3):
            engine.order[pointer, k] = low >> (2 * k) & 3
    for k in range(3):
        engine.digits[pointer, k, INDEX], engine.digits[pointer, k, VALUE] = 0, engine.digits[pointer, k, START]


@inlined()
def _set(engine: Engine, setting: int, low: int, high: int) -> None:
    """Apply a SET; asks the caller for a pattern number through WANT_SPEC."""
    s = engine.state
    if setting == _S_PATTERN:
        if (low & 0xFF) > _P_BUFFER:
            _fault(engine, _F_INSTRUCTION)
            return
        s[BUFFER] = (low & 0xFF) == _P_BUFFER
        s[WANT_SPEC], s[PATTERN_LOW], s[PATTERN_HIGH] = not s[BUFFER], low, high
    elif setting == _S_BANK_ORDER:
        engine.bank_order[(low & 0xFF) % isa.BANK_ORDER_ENTRIES] = low >> 8 & 0xFF
    elif setting == _S_CURSOR:
        s[BUFFER_CURSOR] = low
    elif setting == _S_REFRESH:
        if low and (high == 0 or high >= low):
            _fault(engine, _F_INSTRUCTION)
            return
        s[REFRESH_INTERVAL], s[REFRESH_CLOCKS] = low, high
        s[NEXT_REFRESH] = s[CLOCKS] + low
    elif setting == _S_COUNTERS:
        s[COUNTERS] = low
    elif setting == _S_ROW_BASE:
        s[ROW_BASE] = low
    elif setting == _S_RESERVE:
        s[LOG_RESERVE] = low
    elif setting >= _S_POINTER and setting < _S_POINTER + 4 * isa.POINTERS:
        _set_pointer(engine, (setting - _S_POINTER) // 4, (setting - _S_POINTER) % 4, low, high)
    else:
        _fault(engine, _F_INSTRUCTION)


@inlined()
def _begin(engine: Engine, line: U32) -> None:
    """Open a loop on first reaching its first instruction (not when jumping back to it)."""
    s = engine.state
    if s[BEGUN]:
        return
    if line[LOOP_BEGIN] and not s[JUMPED]:
        if s[LOOPS] == isa.LOOP_DEPTH:
            _fault(engine, _F_LOOP)
            return
        engine.loops[s[LOOPS], 0], engine.loops[s[LOOPS], 1] = s[PC], line[LOOP_BEGIN]
        s[LOOPS] += 1
    s[JUMPED], s[BEGUN] = 0, 1


@inlined()
def _advance(engine: Engine, line: U32) -> None:
    """Move to the next instruction, following the loop that ends here."""
    s = engine.state
    s[NEXT_SLOT] = s[BEGUN] = 0
    if line[LOOP_END]:
        if s[LOOPS] == 0:
            _fault(engine, _F_LOOP)
            return
        top = engine.loops[s[LOOPS] - 1]
        top[1] -= 1
        if top[1] > 0:
            s[PC], s[JUMPED] = top[0], 1
            return
        s[LOOPS] -= 1
    s[PC] += 1


@njit()
def run(engine: Engine, chip: Chip, program: U32, budget: int) -> None:
    """Run until the program halts, ends or faults, needs something of the caller, or has spent ``budget`` instructions.

    On return ``state[STATE]`` tells which; WANT_MEMORY or WANT_SPEC is set where the caller must enlarge the chip's
    pools or number a pattern before calling again.
    """
    s, p = engine.state, chip.parameters
    while s[STATE] == _RUNNING and budget > 0:
        budget -= 1
        pc = s[PC]
        if pc >= program.shape[0]:
            _fault(engine, _F_INSTRUCTION)
            return
        _begin(engine, program[pc])
        if s[STATE] != _RUNNING:
            return
        opcode = program[pc, OPCODE]
        if opcode == _ISSUE:
            while s[NEXT_SLOT] < program[pc, SLOT_COUNT]:
                if p[dram.FREE_BLOCKS] == 0 or p[dram.FREE_SLOTS] == 0:
                    s[WANT_MEMORY] = 1
                    return
                low = FIRST_SLOT + s[NEXT_SLOT] * SLOT_COLUMNS
                s[NEXT_SLOT] += 1
                _command(engine, chip, program, pc, low)
                if s[STATE] != _RUNNING:
                    return
            s[CLOCKS] += 1 + program[pc, WAIT]
            _advance(engine, program[pc])
        elif opcode == _YIELD:
            _yield(engine, chip)
            if s[STATE] == _FAULTED:
                return
            s[CLOCKS] += program[pc, WAIT]
            _advance(engine, program[pc])
        elif opcode == _SET:
            _set(engine, program[pc, SETTING], program[pc, VALUE_LOW], program[pc, VALUE_HIGH])
            if s[STATE] == _FAULTED:
                return
            s[CLOCKS] += 1 + program[pc, WAIT]
            _advance(engine, program[pc])
            if s[WANT_SPEC]:
                return
        elif opcode == _END:
            s[CLOCKS] += 1 + program[pc, WAIT]
            if s[BLOCK_OPEN] and not program[pc, MORE]:
                _close_block(engine)
            s[STATE] = _CHUNK if program[pc, MORE] else _DONE
            s[PC] = s[BEGUN] = s[LOOPS] = 0
            return
        else:
            _fault(engine, _F_INSTRUCTION)
