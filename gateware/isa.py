"""The test engine's instruction set: one table gives the encoder, the decoder and the documentation.

The engine issues DRAM commands at times of the program's own choosing. An instruction is 128 bits (four 32-bit words,
least significant first) and takes one *system clock*, plus ``wait`` more. A system clock holds ``nphases`` DRAM clocks
(tCK); a command slot names the phase it goes out on, so tRCD moves in steps of one tCK by moving ACT's phase, and one
instruction can carry an ACT, a RD and a PRE to three banks.

Time
    Instruction k starts at system clock T(k); T(k + 1) = T(k) + 1 + wait. A slot's command is issued at DRAM clock
    ``T * nphases + phase``. Loops cost nothing. The counter stands still while the engine is halted, so a program's
    clock count does not depend on the host.

Slots
    They stand in order of phase, each below nphases and no two the same; at most one is a RD or a WR, and it goes out
    on the build's read_phase or write_phase. An instruction that says otherwise is not issued at all: BAD_INSTRUCTION.
    A command that finds its bank in the wrong state stops the program there; slots before it have been issued.

Loops
    ``loop_begin`` marks the first instruction of a loop and carries its ``count``; ``loop_end`` marks the last one.
    Both may stand on one instruction. Loops nest `LOOP_DEPTH` deep; END closes those that are open.

Addresses
    A slot takes its address from one of `POINTERS` address pointers or from the instruction's immediate field. A
    pointer is an odometer of three digits (bank, row, column), each ``start + step * i`` for i in 0..count-1; the digit
    named first in ``order`` turns fastest. All slots of an instruction see a pointer at the same address; ``step`` in
    any of them advances it once, afterwards, and past its end it starts again. The bank digit indexes the bank order
    table, which holds any list of banks (and alternates bank groups on DDR4).

Yield
    YIELD asserts that all banks are closed. There, and only there, the engine refreshes (when refresh is kept and one
    is due), halts because the error log has less room than ``LOG_RESERVE`` blocks or the host asked, and goes on later
    as if nothing had happened. Log and counters stop together. YIELD takes one clock; while the counter has then
    reached the time of the next refresh, it refreshes, which takes tRFC, and the next one is due an interval later. The
    first is due an interval after SET REFRESH, which wants 0 < tRFC < interval. While it is halted with refresh kept,
    the engine refreshes in real time; that is no program time and not counted.
    YIELD also waits, with the counter held, for the recording of errors to catch up: up to `YIELD_READS` bursts may be
    compared between two YIELDs whatever fails; more may fault (LOG_OVERFLOW) if most of them fail.

Data
    WR sends, and a RD with ``compare`` expects, the pattern that PATTERN names (`profiles.pattern`). With pattern
    BUFFER, each WR and each compared RD takes the next burst of the write buffer, which starts again past its end. A RD
    with ``capture`` also appends the burst to the capture buffer. Bits that differ are logged and counted as the
    settings say; bank counters always count.

Start
    Every setting is 0 at start but these: bank order entry k is bank k, COUNTERS has the error log on, pointers turn in
    the order bank, row, column. A pointer whose settings are 0 stays at 0; a digit with count 0 counts as 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from profiles.errors import ProgramError

POINTERS = 4
LOOP_DEPTH = 4
SLOTS = 4
INSTRUCTION_WORDS = 4
BANK_ORDER_ENTRIES = 32
YIELD_READS = 512
IMMEDIATE = 4  # value of a slot's address field that selects the immediate address


class Opcode(IntEnum):
    """What an instruction does."""

    ISSUE = 0  # issue up to four DRAM commands
    SET = 1  # write one of the engine's settings (`Setting`)
    YIELD = 2  # all banks are closed: refresh, halt or go on
    END = 3  # stop; with `more`, wait for the next chunk with the clock counter held


class Command(IntEnum):
    """DRAM command of a slot."""

    NONE = 0
    ACT = 1
    RD = 2
    WR = 3
    PRE = 4
    PREA = 5
    REF = 6
    ZQCS = 7
    ZQCL = 8
    MRS = 9


class Setting(IntEnum):
    """Targets of SET. The value field's layout is given beside each; pointer settings add 4 * pointer."""

    PATTERN = 0  # kind | invert_odd_rows << 8 | parameter << 32
    BANK_ORDER = 1  # entry | bank << 8
    BUFFER_CURSOR = 2  # burst index into the write buffer
    REFRESH = 3  # interval in system clocks (0: withheld) | tRFC in system clocks << 32
    COUNTERS = 4  # bit 0 rows, bit 1 bitlines, bit 2 DQ, bit 3 error log
    ROW_BASE = 5  # row whose errors row counter 0 holds
    LOG_RESERVE = 6  # blocks that must be free for the program to pass a YIELD
    POINTER_BANK = 16  # start | step << 20 | count << 40, also for ROW and COLUMN; returns the pointer to its start
    POINTER_ROW = 17
    POINTER_COLUMN = 18
    POINTER_ORDER = 19  # digits from fastest to slowest, each once, two bits each: 0 bank, 1 row, 2 column


COUNT_ROWS, COUNT_BITLINES, COUNT_DQ, COUNT_LOG = 1, 2, 4, 8


@dataclass(frozen=True)
class Field:
    """One bit field of an instruction: position, width and meaning."""

    low: int
    width: int
    text: str


COMMON_FIELDS = {
    "opcode": Field(0, 4, "see Opcode"),
    "wait": Field(4, 16, "system clocks to wait after this one"),
    "loop_begin": Field(20, 1, "first instruction of a loop of `count` passes"),
    "loop_end": Field(21, 1, "last instruction of the innermost loop"),
    "count": Field(96, 32, "passes, with loop_begin"),
}
SLOT_FIELDS = {
    "command": Field(0, 4, "see Command"),
    "phase": Field(4, 3, "DRAM clock within the system clock"),
    "address": Field(7, 3, "pointer 0..3, or 4 for the immediate address"),
    "step": Field(10, 1, "advance the pointer after the instruction"),
    "auto_precharge": Field(11, 1, "RD and WR: precharge afterwards"),
    "compare": Field(12, 1, "RD: compare with the pattern"),
    "capture": Field(13, 1, "RD: append to the capture buffer"),
}
SLOT_LOW, SLOT_WIDTH = 24, 16
IMMEDIATE_FIELDS = {
    "immediate_bank": Field(88, 8, "bank of slots with address 4; MRS: mode register"),
    "immediate_row": Field(96, 18, "row or column of slots with address 4; MRS: value. Not with loop_begin"),
}
SET_FIELDS = {"setting": Field(24, 8, "see Setting"), "value": Field(32, 64, "as the setting defines")}
END_FIELDS = {"more": Field(24, 1, "another chunk follows")}


@dataclass(frozen=True)
class Slot:
    """One DRAM command of an ISSUE instruction."""

    command: Command
    phase: int
    address: int = IMMEDIATE
    step: bool = False
    auto_precharge: bool = False
    compare: bool = False
    capture: bool = False


@dataclass(frozen=True)
class Instruction:
    """One decoded instruction; fields that its opcode does not have stay at their defaults."""

    opcode: Opcode
    wait: int = 0
    loop_begin: int = 0
    loop_end: bool = False
    slots: tuple[Slot, ...] = ()
    immediate_bank: int = 0
    immediate_row: int = 0
    setting: int = 0
    value: int = 0
    more: bool = False


def _place(word: int, where: Field, value: int, name: str, offset: int = 0) -> int:
    if not 0 <= value < 1 << where.width:
        raise ProgramError(f"{name} is {value}; it must be 0..{(1 << where.width) - 1}")
    return word | value << (where.low + offset)


def _take(word: int, where: Field, offset: int = 0) -> int:
    return word >> (where.low + offset) & ((1 << where.width) - 1)


def encode(instruction: Instruction) -> int:
    """The 128-bit word of an instruction.

    Raises:
        ProgramError: a field does not hold its value, or fields that share bits are both used.
    """
    i = instruction
    word = _place(0, COMMON_FIELDS["opcode"], int(i.opcode), "opcode")
    word = _place(word, COMMON_FIELDS["wait"], i.wait, "wait")
    word = _place(word, COMMON_FIELDS["loop_end"], int(i.loop_end), "loop_end")
    if i.loop_begin:
        if any(slot.address == IMMEDIATE and slot.command != Command.NONE for slot in i.slots):
            raise ProgramError("an instruction that begins a loop cannot carry an immediate address; use a pointer")
        word = _place(word, COMMON_FIELDS["loop_begin"], 1, "loop_begin")
        word = _place(word, COMMON_FIELDS["count"], i.loop_begin, "loop count")
    if i.opcode == Opcode.ISSUE:
        word = _encode_slots(word, i)
    elif i.opcode == Opcode.SET:
        word = _place(word, SET_FIELDS["setting"], i.setting, "setting")
        word = _place(word, SET_FIELDS["value"], i.value, "value")
    elif i.opcode == Opcode.END:
        word = _place(word, END_FIELDS["more"], int(i.more), "more")
    return word


def _encode_slots(word: int, i: Instruction) -> int:
    if len(i.slots) > SLOTS:
        raise ProgramError(f"an instruction has {len(i.slots)} commands; it holds {SLOTS}")
    if len({slot.phase for slot in i.slots}) != len(i.slots):
        raise ProgramError(f"two commands of one instruction share a phase: {i.slots}")
    if list(i.slots) != sorted(i.slots, key=lambda slot: slot.phase):
        raise ProgramError(f"slots must be in order of phase: {i.slots}")
    for k, slot in enumerate(i.slots):
        for name, where in SLOT_FIELDS.items():
            word = _place(word, where, int(getattr(slot, name)), name, SLOT_LOW + k * SLOT_WIDTH)
    if not i.loop_begin:
        for name, where in IMMEDIATE_FIELDS.items():
            word = _place(word, where, int(getattr(i, name)), name)
    return word


def decode(word: int) -> Instruction:
    """The instruction of a 128-bit word; the inverse of `encode`.

    Raises:
        ProgramError: the opcode or a command is not defined.
    """
    try:
        opcode = Opcode(_take(word, COMMON_FIELDS["opcode"]))
        begins = _take(word, COMMON_FIELDS["loop_begin"])
        common = Instruction(
            opcode,
            wait=_take(word, COMMON_FIELDS["wait"]),
            loop_begin=_take(word, COMMON_FIELDS["count"]) if begins else 0,
            loop_end=bool(_take(word, COMMON_FIELDS["loop_end"])),
        )
        if opcode == Opcode.SET:
            setting, value = (_take(word, SET_FIELDS[name]) for name in ("setting", "value"))
            return replace(common, setting=setting, value=value)
        if opcode == Opcode.END:
            return replace(common, more=bool(_take(word, END_FIELDS["more"])))
        if opcode == Opcode.YIELD:
            return common
        bank, row = (0 if begins else _take(word, IMMEDIATE_FIELDS[f"immediate_{name}"]) for name in ("bank", "row"))
        return replace(common, slots=_decode_slots(word), immediate_bank=bank, immediate_row=row)
    except ValueError as error:
        raise ProgramError(f"instruction {word:#034x} is not defined: {error}") from error


def _decode_slots(word: int) -> tuple[Slot, ...]:
    slots = []
    for k in range(SLOTS):
        values = {name: _take(word, where, SLOT_LOW + k * SLOT_WIDTH) for name, where in SLOT_FIELDS.items()}
        command = Command(values.pop("command"))
        if command != Command.NONE:
            phase, address = values.pop("phase"), values.pop("address")
            slots.append(Slot(command, phase, address, **{name: bool(value) for name, value in values.items()}))
    return tuple(slots)


def documentation() -> str:
    """The instruction formats as a Markdown table, generated from the tables above."""
    groups = {
        "any": COMMON_FIELDS,
        "ISSUE, slot k at 24 + 16 k": SLOT_FIELDS,
        "ISSUE": IMMEDIATE_FIELDS,
        "SET": SET_FIELDS,
        "END": END_FIELDS,
    }
    lines = ["| instruction | field | bits | meaning |", "|---|---|---|---|"]
    for group, fields in groups.items():
        lines += [f"| {group} | {name} | {f.low + f.width - 1}:{f.low} | {f.text} |" for name, f in fields.items()]
    return "\n".join(lines)


@dataclass(frozen=True)
class Digit:
    """One digit of an address pointer: values ``start + step * i`` for i in 0..count-1."""

    start: int = 0
    step: int = 1
    count: int = 1


BANK, ROW, COLUMN = 0, 1, 2


@dataclass(frozen=True)
class Pointer:
    """An address pointer. `order` lists the digits from the fastest to the slowest (BANK, ROW, COLUMN)."""

    bank: Digit = field(default_factory=Digit)
    row: Digit = field(default_factory=Digit)
    column: Digit = field(default_factory=Digit)
    order: tuple[int, int, int] = (BANK, COLUMN, ROW)

    def settings(self, index: int) -> list[Instruction]:
        """The SET instructions that load this pointer as pointer ``index``."""
        digits = (
            (Setting.POINTER_BANK, self.bank),
            (Setting.POINTER_ROW, self.row),
            (Setting.POINTER_COLUMN, self.column),
        )
        out = [set_(base + 4 * index, d.start | d.step << 20 | d.count << 40) for base, d in digits]
        order = self.order[0] | self.order[1] << 2 | self.order[2] << 4
        return [*out, set_(Setting.POINTER_ORDER + 4 * index, order)]


def issue(*slots: Slot, wait: int = 0, loop_begin: int = 0, loop_end: bool = False) -> Instruction:
    """An ISSUE instruction; slots may be given in any order."""
    ordered = tuple(sorted(slots, key=lambda slot: slot.phase))
    return Instruction(Opcode.ISSUE, wait=wait, loop_begin=loop_begin, loop_end=loop_end, slots=ordered)


def set_(setting: int, value: int) -> Instruction:
    """A SET instruction."""
    return Instruction(Opcode.SET, setting=int(setting), value=value)


def assemble(program: Iterable[Instruction]) -> npt.NDArray[np.uint32]:
    """The program as uint32[4 * n], ready for the program memory.

    Raises:
        ProgramError: an instruction cannot be encoded, loops do not nest, or the program does not end with END.
    """
    instructions = list(program)
    depth = 0
    for number, instruction in enumerate(instructions):
        depth += bool(instruction.loop_begin)
        if depth > LOOP_DEPTH:
            raise ProgramError(f"instruction {number} nests loops {depth} deep; the engine nests {LOOP_DEPTH}")
        depth -= instruction.loop_end
        if depth < 0:
            raise ProgramError(f"instruction {number} ends a loop that was not begun")
    if depth or not instructions or instructions[-1].opcode != Opcode.END:
        raise ProgramError(f"a program must close its loops ({depth} open) and end with END")
    words = [word >> shift & 0xFFFFFFFF for word in map(encode, instructions) for shift in (0, 32, 64, 96)]
    return np.array(words, dtype=np.uint32)


def clocks(program: Iterable[Instruction]) -> int:
    """System clocks of program time that the program takes, the refreshes of its YIELDs apart."""
    passes, spent = [1], [0]  # of the loops that are open, the innermost last
    for instruction in program:
        if instruction.loop_begin:
            passes.append(instruction.loop_begin)
            spent.append(0)
        spent[-1] += 1 + instruction.wait
        if instruction.loop_end:
            inner = passes.pop() * spent.pop()
            spent[-1] += inner
    return spent[0]


def disassemble(words: npt.NDArray[np.uint32]) -> list[Instruction]:
    """The instructions of a program memory image; the inverse of `assemble`."""
    rows = words.reshape(-1, INSTRUCTION_WORDS)
    return [decode(sum(int(word) << (32 * k) for k, word in enumerate(row))) for row in rows]
