"""Test-engine programs: fill, test, write and read regions of DRAM.

Every program walks a `Traversal` with three address pointers (one for ACT, one for RD or WR, one for PRE) that take the
same steps, so commands to several banks overlap as a software pipeline while each bank sees its own timing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gateware import isa
from gateware.errorlog import reads_that_fit, worst_case_blocks
from gateware.isa import BANK, COLUMN, ROW, Command, Digit, Instruction, Opcode, Pointer, Setting, Slot, issue, set_
from host.compiled import njit
from host.timings import Timings
from profiles.errors import ProgramError
from profiles.geometry import CellArray, Geometry
from profiles.pattern import Pattern, PatternKind


@njit()
def _cells(reads, bits, banks, bursts, whole_rows, start, bank_bits, row_bits, burst_bits, out):  # type: ignore[no-untyped-def]
    last, base = np.int64(-1), np.int64(0)
    for k in range(reads.size):
        if reads[k] != last:
            last = reads[k]
            if whole_rows:
                turn, burst = last // bursts, last % bursts
                row, position = turn // banks.size, turn % banks.size
            else:
                turn, position = last // banks.size, last % banks.size
                row, burst = turn // bursts, turn % bursts
            base = start + banks[position] * bank_bits + row * row_bits + burst * burst_bits
        out[k] = base + bits[k]


ACT_POINTER, DATA_POINTER, PRE_POINTER = 0, 1, 2
_SEGMENT_BURSTS = 256  # between two YIELDs: long against the pipeline's drain; a few tREFI at most, as JEDEC allows


@dataclass(frozen=True)
class Traversal:
    """Bursts in the order that programs visit them: bank fastest, then burst within the row, then row.

    Attributes:
        banks: banks in the order they take turns.
        row_start, row_count: rows of each bank.
        first_burst, bursts: bursts of each row.
        whole_rows: the order of open rows instead: burst within the row fastest, then bank, then row.
    """

    banks: tuple[int, ...]
    row_start: int
    row_count: int
    first_burst: int
    bursts: int
    whole_rows: bool = False

    @property
    def length(self) -> int:
        """Number of bursts visited."""
        return len(self.banks) * self.row_count * self.bursts

    def cells(self, geometry: Geometry, reads: npt.NDArray[np.int64], bits: npt.NDArray[np.int64]) -> CellArray:
        """The cells behind entries of the error log: bit ``bits[k]`` of the ``reads[k]``-th burst visited."""
        g, banks = geometry, np.asarray(self.banks, np.int64)
        start = self.row_start * g.row_bits + self.first_burst * g.burst_bits
        places = (start, g.bank_bits, g.row_bits, g.burst_bits)
        cells = np.empty(reads.size, np.int64)
        _cells(reads, bits, banks, self.bursts, self.whole_rows, *places, cells)
        return cells


@dataclass(frozen=True)
class EngineBuild:
    """What a program must know of the gateware it runs on."""

    nphases: int
    read_phase: int
    write_phase: int
    log_blocks: int
    geometry: Geometry
    timings: Timings


def _pointers(traversal: Traversal, geometry: Geometry, order: tuple[int, int, int]) -> list[Instruction]:
    length = geometry.burst_length
    pointer = Pointer(
        bank=Digit(0, 1, len(traversal.banks)),
        row=Digit(traversal.row_start, 1, traversal.row_count),
        column=Digit(traversal.first_burst * length, length, traversal.bursts),
        order=order,
    )
    entries = [set_(Setting.BANK_ORDER, k | bank << 8) for k, bank in enumerate(traversal.banks)]
    return entries + [i for which in (ACT_POINTER, DATA_POINTER, PRE_POINTER) for i in pointer.settings(which)]


def _segment(build: EngineBuild, traversal: Traversal) -> int:
    """Bursts between two YIELDs: few enough that the error log has room for all their bits, in whole turns of banks."""
    fit = reads_that_fit(build.log_blocks - 1, build.geometry.burst_bits)
    banks = len(traversal.banks)
    return min(traversal.length, max(1, min(_SEGMENT_BURSTS, fit) // banks) * banks)


def _window(slots: Sequence[tuple[int, Slot]], clocks: int, loop: int = 0) -> list[Instruction]:
    """Instructions of ``clocks`` system clocks that carry ``slots`` (clock, slot); ``loop`` passes if not 0."""
    busy = sorted({0, *(clock for clock, _ in slots)})
    out = []
    for clock, after in zip(busy, [*busy[1:], clocks], strict=True):
        here = [slot for at, slot in slots if at == clock]
        first, last = clock == busy[0], clock == busy[-1]
        begins = loop if first else 0
        out.append(issue(*here, wait=after - clock - 1, loop_begin=begins, loop_end=bool(loop) and last))
    return out


@dataclass(frozen=True)
class _Pipeline:
    """One burst's commands in DRAM clocks from the start of its window, and the window's length in system clocks."""

    window: int
    slots: tuple[tuple[int, Slot], ...]  # (DRAM clock, slot without phase)

    def part(self, nphases: int, stages: range) -> list[tuple[int, Slot]]:
        """Slots of the window, of those commands that belong to bursts begun ``stages`` windows ago."""
        span, out = self.window * nphases, []
        for clock, slot in self.slots:
            if clock // span in stages:
                system, phase = divmod(clock % span, nphases)
                out.append((system, Slot(slot.command, phase, slot.address, True, False, slot.compare, slot.capture)))
        return out

    def depth(self, nphases: int) -> int:
        """Windows from a burst's ACT to its PRE."""
        return max(clock for clock, _ in self.slots) // (self.window * nphases)


def _pipeline(build: EngineBuild, data: Slot, trcd: int, banks: int) -> _Pipeline:
    """Fit ACT, ``data`` (RD or WR) and PRE of one burst into a repeating window, ``trcd`` DRAM clocks apart.

    The window is the shortest that keeps tRRD, tFAW and the data bus between bursts and tRC within a bank, with the
    three commands, which belong to bursts of different windows, on different DRAM clocks of it.
    """
    t, n, burst = build.timings, build.nphases, build.geometry.burst_length // 2
    phase = build.read_phase if data.command == Command.RD else build.write_phase
    act = (phase - trcd) % n
    recovery = t.trtp if data.command == Command.RD else t.write_latency + burst + t.twr
    window = -(-max(t.trrd, -(-t.tfaw // 4), burst, 3) // n)
    while True:
        span = window * n
        pre = max(act + trcd + recovery, act + t.tras)
        while pre % span in (act, (act + trcd) % span):
            pre += 1
        if trcd % span and pre - act + t.trp <= span * banks:
            break
        window += 1
    act_slot, pre_slot = Slot(Command.ACT, 0, ACT_POINTER), Slot(Command.PRE, 0, PRE_POINTER)
    return _Pipeline(window, ((act, act_slot), (act + trcd, data), (pre, pre_slot)))


def _pipelined(pipeline: _Pipeline, n: int, bursts: int) -> list[Instruction]:
    """The windows of ``bursts`` bursts: filling, steady (a loop), draining."""
    depth, body = pipeline.depth(n), []
    for begun in range(min(depth, bursts)):
        body += _window(pipeline.part(n, range(0, begun + 1)), pipeline.window)
    if bursts > depth:
        body += _window(pipeline.part(n, range(0, depth + 1)), pipeline.window, loop=bursts - depth)
    for drained in range(bursts, bursts + depth):
        oldest = range(max(0, drained - bursts + 1), min(depth, drained) + 1)
        body += _window(pipeline.part(n, oldest), pipeline.window)
    return body


def _burst_per_activation(build: EngineBuild, traversal: Traversal, data: Slot, trcd: int) -> list[Instruction]:
    """ACT, one burst, PRE for every burst of the traversal, in segments that end with a YIELD."""
    n, segment = build.nphases, _segment(build, traversal)
    pipeline = _pipeline(build, data, trcd, len(traversal.banks))
    body = _pointers(traversal, build.geometry, (BANK, COLUMN, ROW))
    whole, rest = divmod(traversal.length, segment)
    for passes, bursts in ((whole, segment), (1, rest)):
        if bursts:
            body += [
                issue(loop_begin=passes),
                *_pipelined(pipeline, n, bursts),
                issue(wait=-(-build.timings.trp // n)),
                Instruction(Opcode.YIELD, loop_end=True),
            ]
    return body


def _open_row(build: EngineBuild, traversal: Traversal, data: Slot) -> list[Instruction]:
    """ACT, every burst of the row at bus speed, PRE; at nominal tRCD."""
    t, n = build.timings, build.nphases
    burst = build.geometry.burst_length // 2
    phase = build.read_phase if data.command == Command.RD else build.write_phase
    recovery = t.trtp if data.command == Command.RD else t.write_latency + burst + t.twr
    act_phase = (phase - t.trcd) % n
    wait = max(1, (act_phase + t.trcd - phase) // n) - 1  # exactly tRCD, unless that is shorter than a system clock
    act = issue(Slot(Command.ACT, act_phase, ACT_POINTER, step=True), wait=wait, loop_begin=_rows(traversal))
    slot = Slot(data.command, phase, DATA_POINTER, True, False, data.compare, data.capture)
    transfer = issue(slot, wait=-(-burst // n) - 1, loop_begin=traversal.bursts, loop_end=True)
    settle = issue(wait=-(-max(recovery, t.tras) // n))
    precharge = issue(Slot(Command.PRE, phase, PRE_POINTER, step=True), wait=-(-t.trp // n))
    row_pointer = Pointer(
        bank=Digit(0, 1, len(traversal.banks)),
        row=Digit(traversal.row_start, 1, traversal.row_count),
        order=(BANK, ROW, COLUMN),
    )
    settings = _pointers(traversal, build.geometry, (COLUMN, BANK, ROW))
    settings += row_pointer.settings(ACT_POINTER) + row_pointer.settings(PRE_POINTER)
    return [*settings, act, transfer, settle, precharge, Instruction(Opcode.YIELD, loop_end=True)]


def _rows(traversal: Traversal) -> int:
    return traversal.row_count * len(traversal.banks)


def pattern_setting(pattern: Pattern) -> Instruction:
    """SET PATTERN."""
    value = int(pattern.kind) | int(pattern.invert_odd_rows) << 8 | pattern.parameter << 32
    return set_(Setting.PATTERN, value)


def _preamble(build: EngineBuild, pattern: Pattern, refresh: bool, reserve_reads: int) -> list[Instruction]:
    t, n = build.timings, build.nphases
    reserve = worst_case_blocks(reserve_reads, build.geometry.burst_bits) if reserve_reads else 0
    return [
        set_(Setting.REFRESH, (t.trefi // n | -(-t.trfc // n) << 32) if refresh else 0),
        set_(Setting.LOG_RESERVE, reserve),
        pattern_setting(pattern),
    ]


def fill(
    build: EngineBuild, traversal: Traversal, pattern: Pattern, trcd: int | None, refresh: bool = True
) -> list[Instruction]:
    """Write a pattern: with open rows at nominal timing (``trcd`` None), or one burst per activation at ``trcd``."""
    data = Slot(Command.WR, 0, DATA_POINTER)
    walk = _open_row(build, traversal, data) if trcd is None else _burst_per_activation(build, traversal, data, trcd)
    return [*_preamble(build, pattern, refresh, 0), *walk, Instruction(Opcode.END)]


def test(
    build: EngineBuild,
    traversal: Traversal,
    pattern: Pattern,
    trcd: int | None,
    refresh: bool = True,
    counters: int = isa.COUNT_LOG,
) -> list[Instruction]:
    """Read and compare: one burst per activation at ``trcd`` clocks, or with open rows at nominal timing (None).

    Raises:
        ProgramError: the order of ``traversal`` is not that of the access mode.
    """
    if (trcd is None) != traversal.whole_rows:
        raise ProgramError("open rows are read row by row, single bursts bank by bank; set the traversal's whole_rows")
    data = Slot(Command.RD, 0, DATA_POINTER, compare=True)
    reserve = traversal.bursts if trcd is None else _segment(build, traversal)
    walk = _open_row(build, traversal, data) if trcd is None else _burst_per_activation(build, traversal, data, trcd)
    settings = [*_preamble(build, pattern, refresh, reserve), set_(Setting.COUNTERS, counters)]
    return [*settings, *walk, Instruction(Opcode.END)]


def transfer(build: EngineBuild, pieces: Sequence[Traversal], write: bool, trcd: int) -> list[Instruction]:
    """Move the buffers' bursts: write them to ``pieces`` in order, or read those into the capture buffer.

    One burst per activation at ``trcd`` clocks, the access mode that tests at ``trcd`` characterise.
    """
    data = Slot(Command.WR if write else Command.RD, 0, DATA_POINTER, capture=not write)
    settings = [
        set_(Setting.REFRESH, build.timings.trefi // build.nphases | -(-build.timings.trfc // build.nphases) << 32)
    ]
    settings += [pattern_setting(Pattern(kind=PatternKind.BUFFER))] if write else []
    walk = [i for piece in pieces for i in _burst_per_activation(build, piece, data, trcd)]
    return [*settings, *walk, Instruction(Opcode.END)]


def pieces(geometry: Geometry, first_cell: int, bursts: int) -> list[Traversal]:
    """Traversals that cover ``bursts`` consecutive bursts from ``first_cell`` (burst aligned), in order."""
    per_row, out = geometry.bursts_per_row, []
    index = first_cell // geometry.burst_bits
    while bursts:
        wordline, burst = divmod(index, per_row)
        bank, row = divmod(wordline, geometry.rows)
        whole = min(bursts // per_row, geometry.rows - row) if burst == 0 else 0
        length = whole * per_row or min(bursts, per_row - burst)
        out.append(Traversal((bank,), row, max(1, whole), burst, per_row if whole else length))
        index, bursts = index + length, bursts - length
    return out
