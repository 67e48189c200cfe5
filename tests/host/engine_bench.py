"""A board's test engine as the tests drive it, and random programs for it: mock and simulated board alike."""

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from gateware import isa, registers
from gateware.engine.parameters import EngineParameters
from gateware.errorlog import BLOCK_WORDS
from gateware.isa import Command, Digit, Instruction, Opcode, Pointer, Setting, Slot, issue, set_
from gateware.registers import CSR_BASE, RESUME, START, STOP, Fault, State
from host.bus import Bus
from profiles.pattern import PatternKind

END = Instruction(Opcode.END)
_PATIENCE = 40  # looks at a running engine; a simulated one goes on for up to 50,000 clocks in each
OFFSETS, BASES = registers.register_offsets(), registers.memory_bases()


class EngineBench:
    """A board behind its bus, its write buffer filled at random, with the few moves the tests need."""

    def __init__(self, bus: Bus, build: EngineParameters) -> None:
        self.bus, self.build = bus, build
        self.geometry, self.log_blocks = build.geometry, build.log_blocks
        self.burst_words = build.geometry.burst_bits // 32
        rng = np.random.default_rng(1)
        shape = (build.buffer_bursts, self.burst_words)
        self.buffer = rng.integers(0, 1 << 32, shape).astype(np.uint32)
        self.bus.write(BASES["write_buffer"], self.buffer.reshape(-1))
        self.halts = 0

    def get(self, name: str) -> int:
        width = {r.name: r.words for r in registers.REGISTERS}[name]
        words = self.bus.read(CSR_BASE + 4 * OFFSETS[name], width)
        return sum(int(word) << 32 * k for k, word in enumerate(words))

    def put(self, name: str, value: int) -> None:
        self.bus.write(CSR_BASE + 4 * OFFSETS[name], np.array([value], np.uint32))

    def load(self, program: list[Instruction]) -> None:
        words = np.array([w >> s & 0xFFFFFFFF for w in map(isa.encode, program) for s in (0, 32, 64, 96)], np.uint32)
        self.bus.write(BASES["program"], words)
        self.put("program_length", len(program))
        self.put("program_check", zlib.crc32(words.tobytes()))

    def run(self, program: list[Instruction]) -> tuple[Fault, np.ndarray]:
        """Run to the end; the fault, and every block of the log."""
        return self.run_chunks([program])

    def run_chunks(self, chunks: list[list[Instruction]], stop: bool = False) -> tuple[Fault, np.ndarray]:
        """As `run`, in chunks that end with END and `more`; ``stop``: asking for a halt at every look at the board."""
        self.load(chunks[0])
        self.put("control", START)
        blocks: list[np.ndarray] = []
        following, clocks, patience = iter(chunks[1:]), -1, _PATIENCE
        while (state := self.get("state")) in (State.RUNNING, State.HALTED, State.CHUNK):
            self.drain(blocks)
            patience = patience - 1 if self.get("clocks") == clocks else _PATIENCE
            clocks = self.get("clocks")
            assert patience or state != State.RUNNING, f"the engine does not end; it stands at clock {clocks}"
            if state == State.HALTED:
                self.halts += 1
            if state == State.CHUNK:
                self.load(next(following))
            if state != State.RUNNING:
                self.put("control", RESUME)
            if stop:
                self.put("control", STOP)
        self.drain(blocks)
        return Fault(self.get("fault")), np.array(blocks, np.uint32).reshape(-1, BLOCK_WORDS)

    def drain(self, blocks: list[np.ndarray]) -> None:
        produced = self.get("log_produced")
        for number in range(len(blocks), produced):
            where = number % self.log_blocks * BLOCK_WORDS * 4
            blocks.append(self.bus.read(BASES["log"] + where, BLOCK_WORDS))
        self.put("log_consumed", produced)

    def counters(self, name: str, places: int) -> np.ndarray:
        if name == "bank_errors":
            words = self.bus.read(BASES[name], 4 * places).astype(np.int64).reshape(places, 2, 2)
            return words[:, :, 0] | words[:, :, 1] << 32
        return self.bus.read(BASES[name], 2 * places).astype(np.int64).reshape(places, 2)

    def content(self) -> dict[tuple[int, int, int], tuple[int, ...]]:
        """Every burst of the DRAM, read through captures."""
        g, size, out = self.geometry, self.build.buffer_bursts, {}
        for bank in range(g.banks):
            for row in range(g.rows):
                for first in range(0, g.bursts_per_row, size):
                    columns = [g.burst_length * b for b in range(first, min(first + size, g.bursts_per_row))]
                    phase = self.build.read_phase
                    act = replace(issue(Slot(Command.ACT, 0), wait=100), immediate_bank=bank, immediate_row=row)
                    read = issue(Slot(Command.RD, phase, capture=True))
                    reads = [replace(read, immediate_bank=bank, immediate_row=column) for column in columns]
                    fault, _ = self.run([act, *reads, issue(wait=8), issue(Slot(Command.PREA, 0), wait=8), END])
                    assert fault == Fault.NONE
                    words = self.bus.read(BASES["capture"], len(columns) * self.burst_words).reshape(
                        -1, self.burst_words
                    )
                    out |= {(bank, row, c): tuple(w) for c, w in zip(columns, words.tolist(), strict=True)}
        return out


# ---- random programs -------------------------------------------------------------------------------------------------

_SMALL = st.integers(0, 3)
_DIGITS = {
    isa.BANK: st.builds(Digit, _SMALL, st.sampled_from([1, 2, (1 << 20) - 1]), st.integers(0, 3)),
    isa.ROW: st.builds(Digit, st.integers(0, 7), st.sampled_from([0, 1, (1 << 20) - 1]), st.integers(0, 4)),
    isa.COLUMN: st.builds(Digit, st.sampled_from([0, 8, 16]), st.sampled_from([0, 8]), st.integers(0, 2)),
}
_PATTERNS = st.builds(
    lambda kind, parameter, invert: set_(Setting.PATTERN, int(kind) | invert << 8 | parameter << 32),
    st.sampled_from(PatternKind),
    st.integers(0, 3),
    st.integers(0, 1),
)


@st.composite
def _pointer(draw: st.DrawFn) -> Pointer:
    digits = [draw(_DIGITS[which]) for which in (isa.BANK, isa.ROW, isa.COLUMN)]
    order = draw(st.permutations([isa.BANK, isa.ROW, isa.COLUMN]))
    return Pointer(digits[0], digits[1], digits[2], (order[0], order[1], order[2]))


@st.composite
def _access(draw: st.DrawFn, build: EngineParameters) -> list[Instruction]:
    """ACT, accesses, PRE: through pointers in a loop, or at an immediate address."""
    wait, settle = draw(st.integers(0, 40)), draw(st.integers(8, 12))  # longer than tRAS, and WL + tWR
    homes = {Command.RD: build.read_phase, Command.WR: build.write_phase}
    flags: dict[str, Any] = {"compare": draw(st.booleans()), "capture": draw(st.integers(0, 9)) == 0}
    command = draw(st.sampled_from([Command.RD, Command.RD, Command.WR]))
    data = Slot(command, homes[command], auto_precharge=draw(st.booleans()))
    data = replace(data, **flags) if data.command == Command.RD else data
    close = Slot(draw(st.sampled_from([Command.PRE, Command.PREA])), draw(st.integers(0, build.nphases - 1)))
    if draw(st.booleans()):
        bank, row = draw(st.integers(0, 2)), draw(st.integers(0, 7))
        column = draw(st.sampled_from([0, 8, 16, 24, 24, 4, 32]))
        act = replace(issue(Slot(Command.ACT, 0), wait=wait), immediate_bank=bank, immediate_row=row)
        access = replace(issue(data, wait=settle), immediate_bank=bank, immediate_row=column)
        return [act, access, replace(issue(close, wait=8), immediate_bank=bank)]
    pointer = draw(_pointer())
    settings = [i for which in (0, 1, 2) for i in pointer.settings(which)]
    act, data, close = (
        replace(slot, address=which, step=True) for which, slot in enumerate((Slot(Command.ACT, 0), data, close))
    )
    loop = draw(st.integers(1, 6))
    return [
        *settings,
        issue(act, wait=wait, loop_begin=loop),
        issue(data, wait=settle),
        issue(close, wait=8, loop_end=True),
    ]


@st.composite
def random_programs(draw: st.DrawFn, build: EngineParameters) -> list[Instruction]:
    """Loops, settings, accesses through pointers and immediate addresses, and now and then what the engine refuses."""
    pieces = st.one_of(
        _access(build),
        _access(build),
        _access(build),
        st.builds(lambda p: [p], _PATTERNS),
        st.builds(lambda wait: [Instruction(Opcode.YIELD, wait=wait)], _SMALL),
        st.builds(lambda modes: [set_(Setting.COUNTERS, modes)], st.integers(0, 15)),
        st.builds(lambda at: [set_(Setting.BUFFER_CURSOR, at)], st.integers(0, 9)),
        st.builds(lambda base: [set_(Setting.ROW_BASE, base)], st.integers(0, 4)),
        st.builds(lambda entry, bank: [set_(Setting.BANK_ORDER, entry | bank << 8)], _SMALL, st.integers(0, 2)),
        st.builds(lambda i, t: [set_(Setting.REFRESH, i | t << 32)], st.integers(0, 200), st.integers(0, 9)),
        st.builds(lambda r: [set_(Setting.LOG_RESERVE, r)], st.sampled_from([0, 1, 5, 255, 256])),
    )

    def block(depth: int) -> list[Instruction]:
        body = [i for piece in draw(st.lists(pieces, min_size=1, max_size=4)) for i in piece]
        if depth and draw(st.booleans()):
            body += block(depth - 1)
        if draw(st.booleans()):
            body = [issue(loop_begin=draw(st.integers(1, 3))), *body, issue(loop_end=True)]
        return body

    body = [*block(2), *block(0)]
    if draw(st.integers(0, 5)) == 0:  # anything at all, to meet the faults, but tRAS is kept: rows are not to be lost
        anything = Slot(
            draw(st.sampled_from([c for c in Command if c])), draw(st.integers(0, 4)), draw(st.integers(0, 4))
        )
        where, quiet = draw(st.integers(0, len(body))), issue(wait=12)
        body[where:where] = [quiet, issue(anything, wait=12)]
    return [*body, END]
