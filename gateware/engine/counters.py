"""Error counters in block RAM, of banks, rows, bitlines and DQs: an addition to each of the four kinds a clock."""

from functools import reduce
from itertools import pairwise
from operator import or_

from migen import READ_FIRST, Array, Cat, Constant, If, Memory, Module, Mux, Record, Replicate, Signal, log2_int

from gateware.engine.failing import WORD_BITS, BitWalker, FailingSum, FailingWord, counted_rows
from gateware.engine.parameters import EngineParameters
from gateware.engine.queue import Queue
from gateware.engine.window import WindowPort

_LANE_BIT = log2_int(WORD_BITS)
_QUEUE_DEPTH = 8


class ErrorCounters(Module):
    """A pair of counters for each of ``places``: of failed bits that should have been 0, and that should have been 1.

    An addition takes four clocks, one behind the other: read, select, add, write. The next one may be to the same
    place: sums that came too late to be read are handed on. A counter stops at its highest value. After a reset all are
    cleared in ``places / lanes`` clocks, or in one if nothing was added since the last time.

    Args:
        places: how many; place p is in lane ``p // 32 % lanes``.
        amount_bits: width of what can be added at once.
        width: of a counter.

    Attributes:
        addition, put: in, ``place`` and ``amount_0``, ``amount_1`` to add; not without `room`.
        window: pairs, counters low word first. The host's reads go before additions.
        busy: out; clearing, or additions are under way.
    """

    def __init__(self, places: int, amount_bits: int, width: int = 32, lanes: int = 1) -> None:
        layout = [("place", (places - 1).bit_length()), ("amount_0", amount_bits), ("amount_1", amount_bits)]
        self.submodules.queue = queue = Queue(layout, _QUEUE_DEPTH)
        self.addition, self.put, self.room = queue.tail, queue.put, queue.room
        self.window = WindowPort(places * 2 * width // 32, follows=False)
        self.busy = Signal()

        # # #

        self._lanes, self._width = lanes, width
        memory = Memory(2 * width * lanes, places // lanes)
        self._read = memory.get_port(has_re=True, mode=READ_FIRST)
        self._write = memory.get_port(write_capable=True, we_granularity=2 * width, mode=READ_FIRST)
        self.specials += memory, self._read, self._write
        self._pairs = Array(self._read.dat_r[low : low + 2 * width] for low in range(0, memory.width, 2 * width))
        self._sums = Signal(2 * width)
        self._reading, self._selecting, self._adding = (Record([("valid", 1), *layout]) for _ in range(3))
        self._add_reads()
        self._add_additions()
        self._add_writes(memory.depth)

    def _address(self, place: Signal) -> Signal:
        lane = range(_LANE_BIT, _LANE_BIT + log2_int(self._lanes))
        return Cat(*[place[k] for k in range(len(place)) if k not in lane])

    def _lane(self, place: Signal) -> Signal:
        return place[_LANE_BIT : _LANE_BIT + log2_int(self._lanes)] if self._lanes > 1 else Constant(0)

    def _add_reads(self) -> None:
        """The host reads first."""
        window, head, reading = self.window, self.queue.head, self._reading
        word_bits = log2_int(2 * self._width // 32)
        place, looked_at, pair = Signal.like(head.place), Signal.like(window.address), Signal(2 * self._width)
        self.comb += [
            place.eq(Mux(window.read, window.address[word_bits:], head.place)),
            self._read.adr.eq(self._address(place)),
            self._read.re.eq(window.read | self.queue.waiting),
            self.queue.take.eq(~window.read),
            pair.eq(self._pairs[self._lane(looked_at[word_bits:])]),
            window.data.eq(Array(pair[low : low + 32] for low in range(0, len(pair), 32))[looked_at[:word_bits]]),
        ]
        self.sync += [
            looked_at.eq(window.address),
            reading.valid.eq(self.queue.waiting & ~window.read),
            reading.eq(head),
        ]

    def _add_additions(self) -> None:
        """Select what to add to, and add."""
        selecting, adding, width = self._selecting, self._adding, self._width
        pairs = [Signal(2 * width) for _ in self._pairs]  # registers right behind the block RAM, which is slow
        before, carries = Signal(2 * width), [Signal(width + 1) for _ in range(2)]
        written = [(Record(adding.layout), Signal(2 * width)) for _ in range(2)]
        for k, amount in enumerate((adding.amount_0, adding.amount_1)):
            part = slice(k * width, (k + 1) * width)
            self.comb += [
                carries[k].eq(before[part] + amount),
                self._sums[part].eq(carries[k] | Replicate(carries[k][width], width)),
            ]
        select = before.eq(Array(pairs)[self._lane(selecting.place)])
        for later, sums in reversed([(adding, self._sums), *written]):
            select = If(later.valid & (later.place == selecting.place), before.eq(sums)).Else(select)
        (first, first_sums), (second, second_sums) = written
        self.sync += [
            If(self._reading.valid, *[pair.eq(read) for pair, read in zip(pairs, self._pairs, strict=True)]),
            If(selecting.valid, select),
            *[later.eq(earlier) for earlier, later in pairwise((self._reading, selecting, adding, first, second))],
            *[first_sums.eq(self._sums), second_sums.eq(first_sums)],
        ]

    def _add_writes(self, depth: int) -> None:
        """Write sums; after a reset, zeros. `used` tells what the memory holds, so no reset touches it."""
        adding, write = self._adding, self._write
        used, cleared, address = Signal(reset=1, reset_less=True), Signal(), Signal.like(write.adr)
        clear = used & ~cleared
        self.comb += [
            write.adr.eq(Mux(clear, address, self._address(adding.place))),
            write.dat_w.eq(Mux(clear, 0, Replicate(self._sums, self._lanes))),
            write.we.eq(Mux(clear, (1 << self._lanes) - 1, adding.valid << self._lane(adding.place))),
            self.busy.eq(~cleared | self.queue.waiting | self._reading.valid | self._selecting.valid | adding.valid),
        ]
        self.sync += [
            If(adding.valid, used.eq(1)),
            If(
                ~cleared,
                address.eq(address + 1),
                If(~used | (address == depth - 1), cleared.eq(1), used.eq(0)),
            ),
        ]


class Counters(Module):
    """Counts what fails: by bank and row when a burst's sum comes, by bitline and DQ bit by bit.

    Attributes:
        word, word_valid, sum, sum_valid: in, from a `BurstSplitter`.
        room: out; they may be taken in this clock.  advance: in; they are.
        windows: of bank_errors, row_errors, bitline_errors and dq_errors.
        busy: out; something is not counted yet, or counters are being cleared.
    """

    def __init__(self, parameters: EngineParameters) -> None:
        geometry = parameters.geometry
        self.word, self.word_valid = FailingWord(parameters), Signal()
        self.sum, self.sum_valid = FailingSum(parameters), Signal()
        self.room, self.advance, self.busy = Signal(), Signal(), Signal()

        # # #

        sum_bits, lanes = len(self.sum.failing), geometry.burst_bits // WORD_BITS
        self.submodules.banks = ErrorCounters(geometry.banks, sum_bits, width=64)
        self.submodules.rows = ErrorCounters(counted_rows(parameters), sum_bits)
        self.submodules.bitlines = ErrorCounters(geometry.row_bits, 1, lanes=lanes)
        self.submodules.dqs = ErrorCounters(geometry.data_width, 1)
        kinds = (self.banks, self.rows, self.bitlines, self.dqs)
        names = ("bank_errors", "row_errors", "bitline_errors", "dq_errors")
        self.windows = {name: kind.window for name, kind in zip(names, kinds, strict=True)}
        fields = ("flips", "expected", "failing", "index", "burst", "count_bitlines", "count_dq")
        self.submodules.walker = BitWalker([field for field in self.word.layout if field[0] in fields])
        by_bit = Signal()
        self.comb += [
            by_bit.eq(self.word_valid & (self.word.count_bitlines | self.word.count_dq)),
            self.walker.word.eq(self.word),
            self.walker.waiting.eq(by_bit & self.advance),
            self.room.eq(self.banks.room & self.rows.room & (self.walker.ready | ~by_bit)),
            self.busy.eq(self.walker.valid | reduce(or_, [kind.busy for kind in kinds])),
        ]
        self._add_sums()
        self._add_bits()

    def _add_sums(self) -> None:
        burst, counts = self.sum, self.sum_valid & self.advance
        for kind, place, on in ((self.banks, burst.bank, 1), (self.rows, burst.row_counter, burst.count_row)):
            self.comb += [
                kind.put.eq(counts & on),
                kind.addition.place.eq(place),
                kind.addition.amount_0.eq(burst.failing - burst.should_be_one),
                kind.addition.amount_1.eq(burst.should_be_one),
            ]

    def _add_bits(self) -> None:
        walker, word = self.walker, self.walker.here
        cell, should_be_one = Signal.like(self.bitlines.addition.place), Signal()
        self.comb += [
            cell.eq(Cat(walker.bit, word.index, word.burst)),
            should_be_one.eq((walker.one & word.expected) != 0),
            walker.step.eq(walker.valid & self.bitlines.room & self.dqs.room),
        ]
        for kind, on in ((self.bitlines, word.count_bitlines), (self.dqs, word.count_dq)):
            self.comb += [
                kind.put.eq(walker.step & on),
                kind.addition.place.eq(cell),
                kind.addition.amount_0.eq(~should_be_one),
                kind.addition.amount_1.eq(should_be_one),
            ]
