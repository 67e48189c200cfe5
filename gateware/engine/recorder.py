"""Records what fails: takes one compared burst a clock, and keeps error log and counters as `host.mock_engine` does.

::

    compared burst → backlog → splitter ─┬→ counters of banks, rows, bitlines, DQs
                                         └→ log writer → ring of blocks

Only failing bursts come as far as the backlog, in block RAM. The splitter sends a failing word a clock, the log takes a
clock a failing bit or 1 + words for a MASK, counting by bitline or DQ a clock a failing bit. These go on side by side:
a burst costs the longest of them, and a block of the log 8 clocks more.
"""

from migen import If, Module, ResetInserter, Signal
from migen.genlib.fifo import SyncFIFOBuffered

from gateware.engine.counters import Counters
from gateware.engine.failing import BurstSplitter, FailingBurst, counted_rows, words_of
from gateware.engine.log_writer import LogWriter
from gateware.engine.parameters import EngineParameters
from gateware.isa import COUNT_BITLINES, COUNT_DQ, COUNT_LOG, COUNT_ROWS


class _Backlog(Module):
    """Numbers compared bursts, and keeps the failing ones in block RAM until the splitter has time.

    Attributes:
        read, flips, expected, bank, row, burst, counters, row_base: in; reads: out; see `Recorder`.
        head: out, the first of those that wait, valid while `waiting`.  take: in, the splitter takes it.
        level: out, how many wait.  overflow: out, latched; one found no room and is lost.
        busy: out; there are bursts inside.
    """

    def __init__(self, parameters: EngineParameters) -> None:
        geometry = parameters.geometry
        self.read, self.flips, self.expected = Signal(), Signal(geometry.burst_bits), Signal(geometry.burst_bits)
        self.bank, self.row = Signal(max=geometry.banks), Signal(max=geometry.rows)
        self.burst, self.counters, self.row_base = Signal(max=geometry.bursts_per_row), Signal(4), Signal(20)
        self.reads = Signal(64)
        self.head, self.waiting, self.take = FailingBurst(parameters), Signal(), Signal()
        self.level, self.overflow, self.busy = Signal(max=parameters.backlog + 2), Signal(), Signal()

        # # #

        compared, compared_valid = FailingBurst(parameters), Signal()
        self._number(compared, counted_rows(parameters))
        self.submodules.fifo = fifo = SyncFIFOBuffered(len(compared.raw_bits()), parameters.backlog)
        self.comb += [
            fifo.din.eq(compared.raw_bits()),
            fifo.we.eq(compared_valid & (compared.words != 0)),
            self.head.raw_bits().eq(fifo.dout),
            self.waiting.eq(fifo.readable),
            fifo.re.eq(self.take),
            self.level.eq(fifo.level),
            self.busy.eq(compared_valid | (fifo.level != 0)),
        ]
        self.sync += [compared_valid.eq(self.read), If(fifo.we & ~fifo.writable, self.overflow.eq(1))]

    def _number(self, compared: FailingBurst, rows: int) -> None:
        row_counter = Signal((21, True))
        self.comb += row_counter.eq(self.row - self.row_base)
        flags = {
            "count_row": (self.counters & COUNT_ROWS != 0) & (row_counter >= 0) & (row_counter < rows),
            "count_bitlines": self.counters & COUNT_BITLINES != 0,
            "count_dq": self.counters & COUNT_DQ != 0,
            "log": self.counters & COUNT_LOG != 0,
        }
        self.sync += If(
            self.read,
            self.reads.eq(self.reads + 1),
            compared.read_index.eq(self.reads),
            *[getattr(compared, name).eq(getattr(self, name)) for name in ("flips", "expected", "bank", "burst")],
            *[bit.eq(word != 0) for bit, word in zip(compared.words, words_of(self.flips), strict=True)],
            compared.row_counter.eq(row_counter),
            *[getattr(compared, name).eq(on) for name, on in flags.items()],
        )


class Recorder(Module):
    """See the module's text.

    Attributes:
        begin: in, pulse; a program starts. Everything is forgotten and cleared; no burst may come until `busy` falls.
        read: in; a compared burst is here in this clock, and with it
            flips, expected: 1s are wrong bits; what they should have been (burst_bits each);
            bank, row, burst: where it lies, ``burst`` counting bursts of the row;
            counters, row_base: `isa.Setting` COUNTERS and ROW_BASE in force for it.
        finish: in, pulse; no more bursts come: seal the open block, if there is one, after all that came.
        log_consumed: in, blocks drained by the host (32 bits).
        reads: out, bursts compared since `begin` (64 bits).
        log_produced: out, blocks sealed since `begin` (32 bits).
        busy: out, from the clock after `read`, `begin` or `finish`; something is not recorded, sealed or cleared yet.
        backlog: out, failing bursts that wait. At most 40 more are past that, on their way to the log.
        free_blocks: out, blocks neither open nor waiting for the host (32 bits); exact while not busy, from the second
            clock after `log_consumed` changed.
        overflow: out, latched until `begin`; ring or backlog was full, and bursts are lost.
        windows: a `WindowPort` for each of log, bank_errors, row_errors, bitline_errors and dq_errors.
    """

    def __init__(self, parameters: EngineParameters) -> None:
        reset = ResetInserter()
        self.submodules.waiting = waiting = reset(_Backlog(parameters))
        self.submodules.splitter = splitter = reset(BurstSplitter(parameters))
        self.submodules.counts = counts = reset(Counters(parameters))
        self.submodules.log = log = reset(LogWriter(parameters))
        self.begin, self.finish = Signal(), Signal()
        self.read, self.flips, self.expected = waiting.read, waiting.flips, waiting.expected
        self.bank, self.row, self.burst = waiting.bank, waiting.row, waiting.burst
        self.counters, self.row_base = waiting.counters, waiting.row_base
        self.reads, self.backlog = waiting.reads, waiting.level
        self.log_consumed, self.log_produced, self.free_blocks = log.consumed, log.produced, log.free_blocks
        self.busy, self.overflow = Signal(), Signal()
        self.windows = {"log": log.window, **counts.windows}

        # # #

        advance, finishing, upstream = Signal(), Signal(), Signal()
        self.comb += [
            *[stage.reset.eq(self.begin) for stage in (waiting, splitter, counts, log)],
            splitter.burst.eq(waiting.head),
            splitter.waiting.eq(waiting.waiting),
            waiting.take.eq(splitter.take),
            advance.eq(counts.room & log.room),
            splitter.advance.eq(advance),
            *[counts.word.eq(splitter.word), counts.word_valid.eq(splitter.word_valid)],
            *[counts.sum.eq(splitter.sum), counts.sum_valid.eq(splitter.sum_valid), counts.advance.eq(advance)],
            *[log.word.eq(splitter.word), log.put_word.eq(splitter.word_valid & splitter.word.log & advance)],
            *[log.sum.eq(splitter.sum), log.put_sum.eq(splitter.sum_valid & splitter.sum.log & advance)],
            upstream.eq(waiting.busy | splitter.busy),
            log.close.eq(finishing & ~upstream),
            self.overflow.eq(waiting.overflow | log.overflow),
            self.busy.eq(upstream | counts.busy | log.busy | finishing),
        ]
        self.sync += [
            If(log.close & ~log.open & ~log.busy, finishing.eq(0)),
            If(self.finish, finishing.eq(1)),
            If(self.begin, finishing.eq(0)),
        ]
