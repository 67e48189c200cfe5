"""The instruction set's table gives an encoder and a decoder that agree, and says where they refuse."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateware import isa
from gateware.isa import Command, Instruction, Opcode, Slot
from profiles.errors import ProgramError

_BOOLEANS = st.booleans()
_COMMANDS = st.sampled_from([command for command in Command if command != Command.NONE])


def _in(where: isa.Field) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << where.width) - 1)


@st.composite
def _slots(draw: st.DrawFn, with_immediate: bool) -> tuple[Slot, ...]:
    phases = sorted(draw(st.sets(st.integers(0, 7), max_size=isa.SLOTS)))
    addresses = st.integers(0, isa.IMMEDIATE if with_immediate else isa.POINTERS - 1)
    return tuple(
        Slot(draw(_COMMANDS), phase, draw(addresses), *(draw(_BOOLEANS) for _ in range(4))) for phase in phases
    )


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    """Any instruction that can be encoded."""
    opcode = draw(st.sampled_from(Opcode))
    common: dict[str, Any] = {
        "wait": draw(_in(isa.COMMON_FIELDS["wait"])),
        "loop_begin": draw(st.one_of(st.just(0), st.integers(1, (1 << 32) - 1))),
        "loop_end": draw(_BOOLEANS),
    }
    if opcode == Opcode.ISSUE:
        common["slots"] = draw(_slots(with_immediate=not common["loop_begin"]))
        if not common["loop_begin"]:
            common |= {name: draw(_in(where)) for name, where in isa.IMMEDIATE_FIELDS.items()}
    elif opcode == Opcode.SET:
        common |= {name: draw(_in(where)) for name, where in isa.SET_FIELDS.items()}
    elif opcode == Opcode.END:
        common["more"] = draw(_BOOLEANS)
    return Instruction(opcode, **common)


@given(instructions())
def test_decode_inverts_encode(instruction: Instruction) -> None:
    word = isa.encode(instruction)
    assert 0 <= word < 1 << 128
    assert isa.decode(word) == instruction


@given(st.lists(instructions().filter(lambda i: not i.loop_begin and not i.loop_end), max_size=20))
def test_disassemble_inverts_assemble(body: list[Instruction]) -> None:
    program = [*body, Instruction(Opcode.END)]
    words = isa.assemble(program)
    assert words.dtype == np.uint32
    assert words.size == len(program) * isa.INSTRUCTION_WORDS
    assert isa.disassemble(words) == program


def _bits(where: isa.Field, offset: int = 0) -> set[int]:
    return set(range(where.low + offset, where.low + offset + where.width))


def test_fields_share_no_bits_but_the_documented_ones() -> None:
    common = {name: _bits(where) for name, where in isa.COMMON_FIELDS.items()}
    slots = {
        f"slot {k} {name}": _bits(where, isa.SLOT_LOW + k * isa.SLOT_WIDTH)
        for k in range(isa.SLOTS)
        for name, where in isa.SLOT_FIELDS.items()
    }
    for extra in (isa.IMMEDIATE_FIELDS, isa.SET_FIELDS, isa.END_FIELDS):
        own = {name: _bits(where) for name, where in extra.items()}
        fields = common | own | (slots if extra is isa.IMMEDIATE_FIELDS else {})
        shared = {frozenset(pair) for pair in combinations(fields, 2) if fields[pair[0]] & fields[pair[1]]}
        # a loop's count and an immediate row share bits: `encode` refuses both in one instruction
        assert shared == ({frozenset({"count", "immediate_row"})} if extra is isa.IMMEDIATE_FIELDS else set())
        assert max(max(bits) for bits in fields.values()) < 128


_ACT = Slot(Command.ACT, 0, 0)
_BAD = {
    "wait of 17 bits": isa.issue(_ACT, wait=1 << 16),
    "negative wait": isa.issue(_ACT, wait=-1),
    "phase of 4 bits": isa.issue(Slot(Command.ACT, 8, 0)),
    "two commands on one phase": isa.issue(_ACT, Slot(Command.PRE, 0, 0)),
    "five commands": isa.issue(*(Slot(Command.PRE, phase, 0) for phase in range(5))),
    "slots out of order": Instruction(Opcode.ISSUE, slots=(Slot(Command.PRE, 1, 0), _ACT)),
    "immediate address at a loop's begin": isa.issue(Slot(Command.ACT, 0), loop_begin=2),
    "setting of 9 bits": isa.set_(256, 0),
    "value of 65 bits": isa.set_(0, 1 << 64),
    "count of 33 bits": isa.issue(_ACT, loop_begin=1 << 32),
}


@pytest.mark.parametrize("instruction", _BAD.values(), ids=_BAD.keys())
def test_what_cannot_be_encoded_is_refused(instruction: Instruction) -> None:
    with pytest.raises(ProgramError):
        isa.encode(instruction)


@pytest.mark.parametrize(
    "word",
    [15, 10 << isa.SLOT_LOW | int(Opcode.ISSUE)],
    ids=["opcode", "command"],
)
def test_undefined_words_are_refused(word: int) -> None:
    with pytest.raises(ProgramError, match="not defined"):
        isa.decode(word)


_NOP, _END = isa.issue(), Instruction(Opcode.END)
_UNASSEMBLED = {
    "no END": [_NOP],
    "empty": [],
    "open loop": [isa.issue(loop_begin=2), _END],
    "end without begin": [isa.issue(loop_end=True), _END],
    "too deep": [isa.issue(loop_begin=2)] * 5 + [isa.issue(loop_end=True)] * 5 + [_END],
}


@pytest.mark.parametrize("program", _UNASSEMBLED.values(), ids=_UNASSEMBLED.keys())
def test_programs_that_do_not_hold_together_are_refused(program: list[Instruction]) -> None:
    with pytest.raises(ProgramError):
        isa.assemble(program)


def test_loops_nest_as_deep_as_the_engine_does() -> None:
    depth = isa.LOOP_DEPTH
    isa.assemble([isa.issue(loop_begin=2)] * depth + [isa.issue(loop_end=True)] * depth + [_END])


@given(
    st.lists(
        st.builds(
            isa.Digit, st.integers(0, (1 << 20) - 1), st.integers(0, (1 << 20) - 1), st.integers(0, (1 << 24) - 1)
        ),
        min_size=3,
        max_size=3,
    ),
    st.permutations([isa.BANK, isa.ROW, isa.COLUMN]),
    st.integers(0, isa.POINTERS - 1),
)
def test_a_pointers_settings_hold_its_digits(digits: list[isa.Digit], order: list[int], index: int) -> None:
    pointer = isa.Pointer(digits[0], digits[1], digits[2], (order[0], order[1], order[2]))
    *values, last = [isa.decode(isa.encode(i)) for i in pointer.settings(index)]
    assert [i.setting for i in values] == [isa.Setting.POINTER_BANK + 4 * index + k for k in range(3)]
    assert [(v.value & 0xFFFFF, v.value >> 20 & 0xFFFFF, v.value >> 40) for v in values] == [
        (d.start, d.step, d.count) for d in digits
    ]
    assert [last.value >> 2 * k & 3 for k in range(3)] == order


def test_documentation_names_every_field() -> None:
    text = isa.documentation()
    tables = (isa.COMMON_FIELDS, isa.SLOT_FIELDS, isa.IMMEDIATE_FIELDS, isa.SET_FIELDS, isa.END_FIELDS)
    for table in tables:
        for name, where in table.items():
            assert f"| {name} | {where.low + where.width - 1}:{where.low} | {where.text} |" in text
