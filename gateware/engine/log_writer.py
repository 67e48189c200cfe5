"""Writes the error log: failing words in, sealed blocks in a ring of block RAM out (format: `gateware.errorlog`)."""

from migen import (
    FSM,
    READ_FIRST,
    Case,
    Cat,
    Constant,
    If,
    Memory,
    Module,
    Mux,
    NextState,
    Record,
    Signal,
    bits_for,
    log2_int,
)

from gateware.engine.crc import INITIAL, contribution, next_crc
from gateware.engine.failing import WORD_BITS, BitWalker, FailingSum, FailingWord
from gateware.engine.parameters import EngineParameters
from gateware.engine.queue import Queue
from gateware.engine.window import WindowPort
from gateware.errorlog import (
    BIT,
    BLOCK_WORDS,
    DELTA_BITS,
    DELTA_SHIFT,
    HEADER_WORDS,
    KIND_SHIFT,
    MAGIC,
    MASK,
    SEQUENCE_BITS,
    SKIP,
)

_POSITION_BITS = log2_int(BLOCK_WORDS)
_LENGTH_WORD, _CHECK_WORD = 1, BLOCK_WORDS - 1
_QUEUE_DEPTH = 32  # what a LUT's RAM holds


class _Entries(Module):
    """Works out, burst by burst, how it goes into the log.

    Attributes:
        burst: in, ``read_index`` and number of ``failing`` bits, valid while `waiting`.  take: out, it is taken.
        entry, valid: out; what is still to be written of a burst:
            read_index;  mask: it is a MASK, not BITs;  latest: last position in a block that it may begin at;
            delta, skip: distance from the burst before, low and high bits;  skips: SKIP comes first.
        afresh: in; a block was opened for it, where no burst is before it.
        skipped: in; SKIP is written.  placed: in; a word with the delta is written.  next: in; so is its last word.
        busy: out; there is a burst inside.
    """

    def __init__(self, burst_words: int) -> None:
        self.burst = Record([("read_index", 64), ("failing", bits_for(burst_words + 1))])
        self.waiting, self.take = Signal(), Signal()
        distance_fields = [("delta", DELTA_BITS), ("skip", KIND_SHIFT), ("skips", 1)]
        self.entry = Record([("read_index", 64), ("mask", 1), ("latest", _POSITION_BITS), *distance_fields])
        self.valid, self.busy = Signal(), Signal()
        self.afresh, self.skipped, self.placed, self.next = Signal(), Signal(), Signal(), Signal()

        # # #

        measured, measured_valid, distance = Record(self.burst.layout), Signal(), Signal(DELTA_BITS + KIND_SHIFT)
        move_on, skips, mask = Signal(), Signal(), Signal()
        entry = self.entry
        self.comb += [
            move_on.eq(~self.valid | self.next),
            self.take.eq(self.waiting & (~measured_valid | move_on)),
            skips.eq(distance[DELTA_BITS:] != 0),
            mask.eq(measured.failing > burst_words),
            self.busy.eq(measured_valid | self.valid),
        ]
        self.sync += [
            If(self.skipped | self.placed | self.afresh, entry.skips.eq(0), entry.latest.eq(_CHECK_WORD)),
            If(self.placed | self.afresh, entry.delta.eq(0)),
            If(
                move_on,
                self.valid.eq(measured_valid),
                measured_valid.eq(0),
                If(
                    measured_valid,
                    entry.read_index.eq(measured.read_index),
                    entry.mask.eq(mask),
                    entry.latest.eq(_CHECK_WORD - Mux(mask, 1 + burst_words, measured.failing) - skips),
                    Cat(entry.delta, entry.skip).eq(distance),
                    entry.skips.eq(skips),
                ),
            ),
            If(
                self.take,
                measured_valid.eq(1),
                measured.eq(self.burst),
                distance.eq(self.burst.read_index - measured.read_index),  # which is still that of the burst before
            ),
        ]


class _Ring(Module):
    """The log's memory, and the CRC of what goes into it.

    Attributes:
        put: in; `data` goes to `position` of block `block`, one clock later.  covered: in; and into the CRC.
        crc: out, remainder of the covered words of this block, two clocks after the last of them was put.
        busy: out; a word is on its way.
    """

    def __init__(self, log_blocks: int) -> None:
        self.put, self.covered, self.data = Signal(), Signal(), Signal(WORD_BITS)
        self.position, self.block = Signal(_POSITION_BITS), Signal(max=log_blocks)
        self.crc, self.busy = Signal(WORD_BITS, reset=INITIAL), Signal()
        self.window = WindowPort(log_blocks * BLOCK_WORDS, follows=True)

        # # #

        memory = Memory(WORD_BITS, self.window.words)
        write, read = memory.get_port(write_capable=True, mode=READ_FIRST), memory.get_port(mode=READ_FIRST)
        self.specials += memory, write, read
        position, block, covered, data = (Signal.like(s) for s in (self.position, self.block, self.covered, self.data))
        self.comb += [
            write.we.eq(self.busy),
            write.adr.eq(Cat(position, block)),
            write.dat_w.eq(data),
            read.adr.eq(self.window.address),
            self.window.data.eq(read.dat_r),
        ]
        self.sync += [
            self.busy.eq(self.put),
            If(
                self.put,
                *[position.eq(self.position), block.eq(self.block)],
                *[covered.eq(self.covered), data.eq(self.data)],
            ),
            If(self.busy & covered, self.crc.eq(next_crc(self.crc, data))),
            If(self.busy & (position == _CHECK_WORD), self.crc.eq(INITIAL)),
        ]


class LogWriter(Module):
    """Packs failing bursts into blocks: a word a clock, and 8 clocks plus the unused words for each block.

    Attributes:
        word, put_word: in, the failing words of bursts.  sum, put_sum: in, after the last of them, their sum.
        room: out; a word and a sum may be put.
        close: in; nothing more comes: seal the open block once everything is written.
        consumed: in, blocks drained by the host (32 bits).
        produced: out, blocks sealed (32 bits).
        open: out; a block has been begun.
        overflow: out, latched; the ring was full. Bursts are dropped from then on.
        free_blocks: out, blocks that are neither open nor wait for the host (32 bits); a clock behind `consumed`.
        busy: out; something is not written yet.
    """

    def __init__(self, parameters: EngineParameters) -> None:
        self.word, self.put_word = FailingWord(parameters), Signal()
        self.sum, self.put_sum = FailingSum(parameters), Signal()
        self.room, self.close, self.busy = Signal(), Signal(), Signal()
        self.consumed, self.produced, self.free_blocks = Signal(32), Signal(32), Signal(32)
        self.open, self.overflow = Signal(), Signal()

        # # #

        burst_words = parameters.geometry.burst_bits // WORD_BITS
        self.submodules.entries = _Entries(burst_words)
        self.submodules.ring = _Ring(parameters.log_blocks)
        self.submodules.fsm = FSM("ENTRIES")
        self.window = self.ring.window
        self._add_queues(burst_words)
        self._add_blocks(parameters.log_blocks)
        self._add_entry_states(burst_words)
        self._add_block_states()

    def _add_queues(self, burst_words: int) -> None:
        """Hold words until their burst's sum is known."""
        entries = self.entries
        depth = max(_QUEUE_DEPTH, 2 * burst_words)  # a burst at the outlet, the next one at the inlet
        layout = [field for field in self.word.layout if field[0] in ("flips", "failing", "index", "last")]
        self.submodules.words = words = Queue(layout, depth)
        self.submodules.sums = sums = Queue(entries.burst.layout, depth)
        self.submodules.walker = walker = BitWalker(layout)
        many = self.sum.failing > burst_words  # how many then makes no difference
        self._waiting = Signal()
        self.comb += [
            self.room.eq(words.room & sums.room),
            words.tail.eq(self.word),
            words.put.eq(self.put_word),
            sums.tail.read_index.eq(self.sum.read_index),
            sums.tail.failing.eq(Mux(many, burst_words + 1, self.sum.failing)),
            sums.put.eq(self.put_sum),
            walker.word.eq(words.head),
            walker.waiting.eq(words.waiting),
            words.take.eq(walker.ready),
            entries.burst.eq(sums.head),
            entries.waiting.eq(sums.waiting),
            sums.take.eq(entries.take),
            self._waiting.eq(words.waiting | walker.valid | sums.waiting | entries.busy),
            self.busy.eq(self._waiting | ~self.fsm.ongoing("ENTRIES") | self.ring.busy),
        ]

    def _add_blocks(self, log_blocks: int) -> None:
        """Which block is written, how far it is, and how many are free."""
        self._begin_block, self._seal_block, self._full = Signal(), Signal(), Signal()
        self._position = position = Signal.like(self.ring.position)
        used = Signal((32, True))  # below 0 if the host claims more than there was
        self.comb += [
            used.eq(self.produced - self.consumed),
            self._full.eq(used >= log_blocks),
            self.ring.block.eq(self.produced),
            self.ring.position.eq(position),
            self.ring.covered.eq(1),
        ]
        self.sync += [
            If(self._begin_block, If(self._full, self.overflow.eq(1)).Else(self.open.eq(1))),
            If(self._seal_block, self.open.eq(0), self.produced.eq(self.produced + 1)),
            If(self.ring.put & self.ring.covered, position.eq(position + 1)),
            self.free_blocks.eq(log_blocks - used - self.open),
        ]

    def _add_entry_states(self, burst_words: int) -> None:
        """Write entries where they fit. A sum comes after its words and takes longer, so they are at the walker."""
        ring, entries, entry = self.ring, self.entries, self.entries.entry
        walker, word = self.walker, self.walker.here
        bit = Signal(DELTA_SHIFT)
        self.comb += bit.eq(Cat(walker.bit, word.index))
        self.fsm.act(
            "ENTRIES",
            If(self.overflow, walker.skip.eq(1), entries.next.eq(1))
            .Elif(entries.valid & ~self.open, self._begin_block.eq(1), If(~self._full, NextState("HEADER")))
            .Elif(entries.valid & (self._position > entry.latest), NextState("PADDING"))
            .Elif(entries.valid & entry.skips, _put(ring, entry.skip, SKIP), entries.skipped.eq(1))
            .Elif(
                entries.valid & entry.mask,
                *[_put(ring, Cat(Constant(0, DELTA_SHIFT), entry.delta), MASK), entries.placed.eq(1)],
                NextState("MASK"),
            )
            .Elif(
                entries.valid,
                *[_put(ring, Cat(bit, entry.delta), BIT), entries.placed.eq(1)],
                *[walker.step.eq(1), entries.next.eq(word.last & (word.failing == 1))],
            )
            .Elif(self.close & self.open & ~self._waiting, NextState("PADDING")),
        )
        index, finished, here = Signal.like(word.index), Signal(), Signal()
        self.comb += here.eq(walker.valid & (word.index == index) & ~finished)
        self.fsm.act(
            "MASK",
            ring.put.eq(1),
            If(here, ring.data.eq(word.flips), walker.skip.eq(1)),
            If(index == burst_words - 1, entries.next.eq(1), NextState("ENTRIES")),
        )
        self.sync += If(self.fsm.ongoing("MASK"), index.eq(index + 1), If(here, finished.eq(word.last))).Else(
            index.eq(0), finished.eq(0)
        )

    def _add_block_states(self) -> None:
        """Begin a block; seal it: the length comes into word 1 last, so its share of the CRC is added at the end."""
        ring, position, length = self.ring, self._position, Signal(_POSITION_BITS)
        base = self.entries.entry.read_index
        header = {
            0: ring.data.eq(Cat(self.produced[:SEQUENCE_BITS], Constant(MAGIC, 8))),
            _LENGTH_WORD: ring.data.eq(0),
            2: ring.data.eq(base[:32]),
            3: [ring.data.eq(base[32:]), NextState("ENTRIES")],
        }
        self.fsm.act("HEADER", ring.put.eq(1), self.entries.afresh.eq(1), Case(position[:2], header))
        self.fsm.act("PADDING", If(position == _CHECK_WORD, NextState("LENGTH")).Else(ring.put.eq(1)))
        self.fsm.act(
            "LENGTH",
            *[ring.put.eq(1), ring.covered.eq(0), ring.position.eq(_LENGTH_WORD), ring.data.eq(length)],
            NextState("CHECK"),
        )
        words_after = _CHECK_WORD - 1 - _LENGTH_WORD
        self.fsm.act(
            "CHECK",
            *[ring.put.eq(1), ring.data.eq(~(ring.crc ^ contribution(length, words_after)))],
            *[self._seal_block.eq(1), NextState("ENTRIES")],
        )
        self.sync += If(self.fsm.ongoing("ENTRIES"), length.eq(position - HEADER_WORDS))


def _put(ring: _Ring, payload: Signal, kind: int) -> list:
    """Statements that put an entry's word."""
    return [ring.put.eq(1), ring.data.eq(Cat(payload, Constant(kind, 2)))]
