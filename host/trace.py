"""Traces of DRAM commands on a board: programs that issue each command at its own clock, and check what is read.

The engine keeps program time, so that a trace takes on the board what its commands' clocks say, its refreshes included.
A refresh ends a chunk of the program: no bank is open there, and while the host loads the next chunk the engine
refreshes on its own, which is no program time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gateware import isa
from gateware.isa import Command, Instruction, Opcode, Setting, Slot, issue, set_
from host import programs
from host.board import Board
from host.programs import EngineBuild, Traversal
from profiles.errors import CapacityError, LinkError, ProgramError
from profiles.pattern import Pattern

Integers = npt.NDArray[np.int64]
DATA = Pattern.parse("random:1")  # what every cell that a trace reads holds, and what its WRs write


@dataclass(frozen=True)
class Trace:
    """Commands in the order of their clocks, in each system clock of the board one at most.

    Attributes:
        clock: int64[n], DRAM clocks.
        command: int64[n], `gateware.isa.Command`: ACT, RD, WR, PRE, PREA or REF.
        bank: int64[n].
        address: int64[n], the row of an ACT, the column address of a RD or WR; 0 for others.
        length: DRAM clocks of it all.
    """

    clock: Integers
    command: Integers
    bank: Integers
    address: Integers
    length: int


@dataclass(frozen=True)
class Replayed:
    """What a trace did on a board.

    Attributes:
        clocks: DRAM clocks that it took by the engine's counter, in whole system clocks.
        bits_read, bits_wrong: bits that its READs returned, and those that were not what had been written.
    """

    clocks: int
    bits_read: int
    bits_wrong: int


def replay(board: Board, trace: Trace, vdd_mv: int) -> Replayed:
    """Fill the rows of ``trace`` at nominal supply and timing, and issue its commands at ``vdd_mv``.

    What was in these rows is lost. Use it inside ``board.rail.guarded()``.

    Raises:
        CapacityError: it reaches rows that the module does not have.
        ProgramError: two commands share a system clock, or stand off their phase, or find a bank in the wrong state; or
            errors come faster than the engine counts them.
    """
    g = board.geometry
    rows = int(trace.address[trace.command == Command.ACT].max(initial=0)) + 1
    if rows > g.rows:
        raise CapacityError(f"the trace reaches row {rows - 1}, the module has {g.rows}; replay fewer bursts of it")
    everything = Traversal(tuple(range(g.banks)), 0, rows, 0, g.bursts_per_row, whole_rows=True)
    board.rail.set(board.rail.nominal_mv)
    board.run(programs.fill(board.build, everything, DATA, None))
    board.rail.set(vdd_mv)
    chunks = program(board.build, trace)
    result = board.run(next(chunks), following=chunks)
    asked = int(np.count_nonzero(trace.command == Command.RD))
    if result.reads != asked:
        raise LinkError(f"{result.reads} bursts were compared of {asked}; the replay is void, run it again")
    clocks = (result.clocks - overhead(board.build)) * board.build.nphases
    return Replayed(clocks, asked * g.burst_bits, int(result.errors.sum()))


def program(build: EngineBuild, trace: Trace) -> Iterator[list[Instruction]]:
    """The chunks of a program that issues ``trace``, from the clock after its settings on."""
    turn = trace.clock // build.nphases
    if trace.clock.size == 0 or np.any(np.diff(turn) < 1):
        raise ProgramError("a trace has commands, one in each system clock at most; give the model this board's phases")
    end = max(-(-trace.length // build.nphases), int(turn[-1]) + 1)
    gaps = np.diff(turn, append=end).tolist()
    columns = (trace.clock % build.nphases, trace.command, trace.bank, trace.address)
    commands = list(zip(*(values.tolist() for values in columns), strict=True))
    chunk = _settings(build) + ([issue(wait=int(turn[0]) - 1)] if turn[0] else [])
    for (phase, code, bank, address), gap, left in zip(commands, gaps, range(len(gaps) - 1, -1, -1), strict=True):
        slot = Slot(Command(code), phase, compare=code == Command.RD)
        closes = code == Command.REF and left
        wait = 0 if closes else gap - 1
        chunk.append(Instruction(Opcode.ISSUE, wait, slots=(slot,), immediate_bank=bank, immediate_row=address))
        if closes:
            yield [*chunk, Instruction(Opcode.END, wait=gap - 2, more=True)]
            chunk = []
    yield chunk + _tail(build)


def overhead(build: EngineBuild) -> int:
    """System clocks of `program` that are not the trace's."""
    return isa.clocks([*_settings(build), *_tail(build)])


def _settings(build: EngineBuild) -> list[Instruction]:
    t, n = build.timings, build.nphases
    return [
        set_(Setting.REFRESH, t.trefi // n | -(-t.trfc // n) << 32),  # nowhere but between chunks: there is no YIELD
        set_(Setting.COUNTERS, 0),
        programs.pattern_setting(DATA),
    ]


def _tail(build: EngineBuild) -> list[Instruction]:
    """Whatever came last, all banks are closed."""
    t, n = build.timings, build.nphases
    recovery = max(t.tras, t.trtp, t.write_latency + build.geometry.burst_length // 2 + t.twr)
    close = issue(Slot(Command.PREA, 0), wait=-(-t.trp // n))
    return [issue(wait=-(-recovery // n)), close, Instruction(Opcode.END)]
