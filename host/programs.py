"""Test-engine programs: fill, test, write and read regions of DRAM.

Every program walks a `Traversal` with three address pointers (one for ACT, one for RD or WR, one for PRE) that take the
same steps, so commands to several banks overlap as a software pipeline while each bank sees its own timing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

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
def _cells(reads, bits, first_cells, row_bits, out):  # type: ignore[no-untyped-def]
    """Fill ``out``; ``first_cells`` are those of the bursts of every bank's first row, in the order of the reads."""
    turn, begun, period = 0, 0, first_cells.size
    for k in range(reads.size):
        burst = reads[k] - begun
        if burst < 0 or burst >= period:
            turn = reads[k] // period
            begun = turn * period
            burst = reads[k] - begun
        out[k] = first_cells[burst] + turn * row_bits + bits[k]


ACT_POINTER, DATA_POINTER, PRE_POINTER = 0, 1, 2
# Between two YIELDs: long against the pipeline's drain, a few tREFI at most, and for reads no more than a YIELD covers.
_SEGMENT_BURSTS = isa.YIELD_READS
_SEGMENT_WRITES = 2048


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
        cells = np.empty(reads.size, np.int64)
        _cells(reads, bits, _first_cells(self, geometry), geometry.row_bits, cells)
        return cells


@lru_cache(maxsize=1)
def _first_cells(traversal: Traversal, geometry: Geometry) -> CellArray:
    """First cells of the bursts of a traversal's first row in every bank, in the order visited."""
    g, bursts = geometry, np.arange(traversal.first_burst, traversal.first_burst + traversal.bursts, dtype=np.int64)
    cells = np.array(traversal.banks, np.int64) * g.bank_bits + bursts[:, None] * g.burst_bits
    cells += traversal.row_start * g.row_bits
    return cells.T.ravel() if traversal.whole_rows else cells.ravel()


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
    entries = [set_(Setting.BANK_ORDER, k | bank << 8) for k, bank in enumerate(traversal.banks) if k != bank]
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
    """How the commands of consecutive bursts interleave, window after window.

    Attributes:
        window: its length in system clocks.
        starts: DRAM clock within the window at which each of its bursts begins.
        slots: commands of a burst (DRAM clock from its begin, slot without phase).
    """

    window: int
    starts: tuple[int, ...]
    slots: tuple[tuple[int, Slot], ...]

    def part(self, nphases: int, stages: range) -> list[tuple[int, Slot]]:
        """Slots of a window, of those commands that belong to bursts begun ``stages`` windows ago."""
        span, out = self.window * nphases, []
        for start in self.starts:
            for offset, slot in self.slots:
                stage, clock = divmod(start + offset, span)
                if stage in stages:
                    system, phase = divmod(clock, nphases)
                    out.append((system, replace(slot, phase=phase, step=True)))
        return out

    def depth(self, nphases: int) -> int:
        """Windows from a burst's ACT to its PRE."""
        return (self.starts[-1] + max(clock for clock, _ in self.slots)) // (self.window * nphases)


def _starts(trcd: int, n: int, spacing: int) -> tuple[int, tuple[int, ...]]:
    """Window and begins of its bursts, in system clocks, such that no ACT wants the DRAM clock of another burst's data.

    They want one where tRCD is a whole number of system clocks, and of spacings: then runs of bursts alternate, ACTs
    first, data later.
    """
    system, rest = divmod(trcd, n)
    if rest or system % spacing:
        return spacing, (0,)
    return 2 * system, tuple(range(0, system, spacing))


def _pipeline(build: EngineBuild, data: Slot, trcd: int, banks: int, single: bool = False) -> _Pipeline:
    """Fit ACT, ``data`` (RD or WR) and PRE of each burst into a repeating window, ``trcd`` DRAM clocks apart.

    The window is the shortest that keeps tRRD, tFAW and the data bus between bursts and tRC within a bank. ``single``
    asks for one burst a window.
    """
    t, n, burst = build.timings, build.nphases, build.geometry.burst_length // 2
    phase = build.read_phase if data.command == Command.RD else build.write_phase
    act = (phase - trcd) % n
    recovery = t.trtp if data.command == Command.RD else t.write_latency + burst + t.twr
    spacing = -(-max(t.trrd, -(-t.tfaw // 4), t.tccd, 3) // n)
    while True:
        window, begins = _starts(trcd, n, spacing)
        begins = begins[:1] if single else begins
        span, starts = window * n, [begin * n for begin in begins]
        taken = {(start + at) % span for start in starts for at in (act, act + trcd)}
        pre = max(act + trcd + recovery, act + t.tras)
        while (
            clash := any((start + pre) % span in taken for start in starts)
        ) and pre < act + t.tras + recovery + span:
            pre += 1
        # a bank's next burst begins ``banks`` bursts later
        turns = [starts[k % len(starts)] + span * (k // len(starts)) for k in range(len(starts) + banks)]
        again = min(after - before for before, after in zip(turns, turns[banks:], strict=False))
        if not clash and pre - act + t.trp <= again:
            break
        spacing += 1
    slots = ((act, Slot(Command.ACT, 0, ACT_POINTER)), (act + trcd, data), (pre, Slot(Command.PRE, 0, PRE_POINTER)))
    return _Pipeline(window, tuple(starts), slots)


def _pipelined(pipeline: _Pipeline, n: int, windows: int) -> list[Instruction]:
    """So many windows' bursts: filling, steady (a loop), draining."""
    depth, body = pipeline.depth(n), []
    for begun in range(min(depth, windows)):
        body += _window(pipeline.part(n, range(0, begun + 1)), pipeline.window)
    if windows > depth:
        body += _window(pipeline.part(n, range(0, depth + 1)), pipeline.window, loop=windows - depth)
    for drained in range(windows, windows + depth):
        oldest = range(max(0, drained - windows + 1), min(depth, drained) + 1)
        body += _window(pipeline.part(n, oldest), pipeline.window)
    return body


def _burst_per_activation(build: EngineBuild, traversal: Traversal, data: Slot, trcd: int) -> list[Instruction]:
    """ACT, one burst, PRE for every burst of the traversal, in segments that end with a YIELD."""
    n, segment = build.nphases, _segment(build, traversal)
    banks = len(traversal.banks)
    pipeline = _pipeline(build, data, trcd, banks)
    single = _pipeline(build, data, trcd, banks, single=True)
    body = _pointers(traversal, build.geometry, (BANK, COLUMN, ROW))
    settle = issue(wait=-(-build.timings.trp // n))
    whole, rest = divmod(traversal.length, segment)
    for passes, bursts in ((whole, segment), (1, rest)):
        windows, left = divmod(bursts, len(pipeline.starts))
        if passes and bursts:
            body += [issue(loop_begin=passes), *_pipelined(pipeline, n, windows)]
            body += [settle, *_pipelined(single, n, left)] if left else []
            body += [settle, Instruction(Opcode.YIELD, loop_end=True)]
    return body


@dataclass(frozen=True)
class _RowStream:
    """Open rows one after the other with the data bus never idle: the next row's ACT and the last one's PRE in passing.

    Attributes:
        data: the data command of every burst, with its phase.
        period: system clocks a burst takes.
        span: DRAM clocks a row takes.
        activate: DRAM clocks from a row's ACT to its first data command.
        precharge: DRAM clocks from the next row's first data command to a row's PRE.
    """

    data: Slot
    period: int
    span: int
    activate: int
    precharge: int

    def fits(self, timings: Timings, banks: int) -> bool:
        """Whether rows are long enough, and banks enough, for all the distances that JEDEC asks for."""
        t = timings
        return (
            banks > 1
            and self.span >= max(t.trrd, -(-t.tfaw // 4), t.tras)
            and self.data.phase < self.activate <= self.span
            and self.data.phase + self.precharge < self.span
            and (banks - 1) * self.span - self.activate - self.precharge >= t.trp
        )

    def row(self, n: int, last_closes: bool, next_opens: bool, loop: int = 0) -> list[Instruction]:
        """A row's bursts, with the PRE of the row before and the ACT of the next one; ``loop`` passes if not 0."""
        extras: dict[int, list[tuple[int, Slot]]] = {}
        wanted = [(self.precharge, Command.PRE, PRE_POINTER)] if last_closes else []
        wanted += [(self.span - self.activate, Command.ACT, ACT_POINTER)] if next_opens else []
        for clock, command, pointer in wanted:
            system, phase = divmod(clock + self.data.phase, n)
            burst, system = divmod(system, self.period)
            extras.setdefault(burst, []).append((system, Slot(command, phase, pointer, step=True)))
        bursts = self.span // (self.period * n)
        alone = sorted({0, bursts - 1, *extras})  # the row's loop begins and ends on instructions of their own
        body: list[Instruction] = []
        for burst, following in zip(alone, [*alone[1:], bursts], strict=True):
            body += _window([(0, self.data), *extras.get(burst, [])], self.period)
            if run := following - burst - 1:
                body.append(issue(self.data, wait=self.period - 1, loop_begin=run, loop_end=True))
        if loop:
            body[0] = replace(body[0], loop_begin=loop)
            body[-1] = replace(body[-1], loop_end=True)
        return body


def _row_stream(build: EngineBuild, traversal: Traversal, data: Slot) -> _RowStream:
    """Place ACT and PRE on DRAM clocks that no data command wants."""
    t, n, burst = build.timings, build.nphases, build.geometry.burst_length // 2
    phase = build.read_phase if data.command == Command.RD else build.write_phase
    recovery = t.trtp if data.command == Command.RD else t.write_latency + burst + t.twr
    period = -(-t.tccd // n)
    turn = period * n

    def is_free(clock: int) -> bool:
        return clock % turn != 0

    activate = next(clocks for clocks in range(t.trcd, t.trcd + 3) if is_free(clocks))
    span = traversal.bursts * turn
    earliest = max(0, recovery - turn, t.tras - activate - span)
    wanted = (clock for clock in range(earliest, earliest + 5) if is_free(clock) and (clock + activate) % span)
    precharge = next(wanted)
    return _RowStream(replace(data, phase=phase, step=True), period, span, activate, precharge)


def _streamed_rows(build: EngineBuild, stream: _RowStream, rows: int) -> list[Instruction]:
    """ACT of the first row, the rows, PRE of the last one."""
    t, n, phase = build.timings, build.nphases, stream.data.phase
    act_phase = (phase - stream.activate) % n
    act = Slot(Command.ACT, act_phase, ACT_POINTER, step=True)
    clocks = (act_phase + stream.activate - phase) // n
    body = _window([(0, act)], clocks) if clocks else []
    first = stream.row(n, last_closes=False, next_opens=rows > 1)
    if not clocks:
        first[0] = issue(*first[0].slots, act, wait=first[0].wait)
    body += first
    if rows > 2:
        body += stream.row(n, last_closes=True, next_opens=True, loop=rows - 2)
    if rows > 1:
        body += stream.row(n, last_closes=True, next_opens=False)
    clock, pre_phase = divmod(phase + stream.precharge, n)
    close = Slot(Command.PRE, pre_phase, PRE_POINTER, step=True)
    return [*body, *_window([(clock, close)], clock + 1 + -(-t.trp // n))]


def _open_rows(build: EngineBuild, traversal: Traversal, data: Slot) -> list[Instruction]:
    """ACT, every burst of the row at bus speed, PRE; at nominal tRCD."""
    row_pointer = Pointer(
        bank=Digit(0, 1, len(traversal.banks)),
        row=Digit(traversal.row_start, 1, traversal.row_count),
        order=(BANK, ROW, COLUMN),
    )
    body = _pointers(traversal, build.geometry, (COLUMN, BANK, ROW))
    body += row_pointer.settings(ACT_POINTER) + row_pointer.settings(PRE_POINTER)
    stream, rows = _row_stream(build, traversal, data), traversal.row_count * len(traversal.banks)
    segment = _rows_a_segment(build, traversal, data) if stream.fits(build.timings, len(traversal.banks)) else 1
    for passes, count in ((rows // segment, segment), (1, rows % segment)):
        if passes and count:
            body += [issue(loop_begin=passes), *_streamed_rows(build, stream, count)]
            body.append(Instruction(Opcode.YIELD, loop_end=True))
    return body


def _rows_a_segment(build: EngineBuild, traversal: Traversal, data: Slot) -> int:
    """Rows between two YIELDs; for reads no more than log and recorder take if every bit fails."""
    if data.command == Command.WR:
        return max(1, _SEGMENT_WRITES // traversal.bursts)
    fit = reads_that_fit(build.log_blocks - 1, build.geometry.burst_bits)
    return max(1, min(_SEGMENT_BURSTS, fit) // traversal.bursts)


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
    walk = _open_rows(build, traversal, data) if trcd is None else _burst_per_activation(build, traversal, data, trcd)
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
    reserve = _rows_a_segment(build, traversal, data) * traversal.bursts if trcd is None else _segment(build, traversal)
    walk = _open_rows(build, traversal, data) if trcd is None else _burst_per_activation(build, traversal, data, trcd)
    settings = [*_preamble(build, pattern, refresh, reserve), set_(Setting.COUNTERS, counters)]
    settings += [set_(Setting.ROW_BASE, traversal.row_start)] if counters & isa.COUNT_ROWS else []
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
    walk: list[Instruction] = []
    for piece in pieces:
        # what follows sets the entries that differ from a new engine's; the others may differ from the piece before
        walk += [set_(Setting.BANK_ORDER, k | bank << 8) for k, bank in enumerate(piece.banks) if k == bank and walk]
        walk += _burst_per_activation(build, piece, data, trcd)
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
