"""Failing bursts on their way through the recorder, and what takes them apart: into words, and those into bits."""

from collections.abc import Sequence

from migen import Case, Cat, If, Module, Mux, Record, Signal, bits_for

from gateware.engine.parameters import EngineParameters

WORD_BITS = 32


def counted_rows(parameters: EngineParameters) -> int:
    """Rows that the row counters cover."""
    return min(parameters.row_counters, parameters.geometry.rows)


class _Failing(Record):
    """Fields of its own, then where the burst lies and what is to be recorded of it."""

    def __init__(self, parameters: EngineParameters, fields: list[tuple[str, int]]) -> None:
        geometry = parameters.geometry
        self.place = [
            ("read_index", 64),
            ("bank", bits_for(geometry.banks - 1)),
            ("row_counter", bits_for(counted_rows(parameters) - 1)),
            ("burst", bits_for(geometry.bursts_per_row - 1)),
            *((flag, 1) for flag in ("count_row", "count_bitlines", "count_dq", "log")),
        ]
        Record.__init__(self, [*fields, *self.place])

    def take_place(self, other: "_Failing") -> list:
        """Statements that copy all but the fields of its own."""
        return [getattr(self, name).eq(getattr(other, name)) for name, _ in self.place]


class FailingBurst(_Failing):
    """A burst: the wrong bits, the right bits, and a 1 in ``words`` for each 32-bit word with wrong bits."""

    def __init__(self, parameters: EngineParameters) -> None:
        bits = parameters.geometry.burst_bits
        _Failing.__init__(self, parameters, [("flips", bits), ("expected", bits), ("words", bits // WORD_BITS)])


class FailingWord(_Failing):
    """Word number ``index`` of a burst, with ``failing`` wrong bits; ``last``: no later word has any."""

    def __init__(self, parameters: EngineParameters) -> None:
        index_bits = bits_for(parameters.geometry.burst_bits // WORD_BITS - 1)
        fields = [("flips", WORD_BITS), ("expected", WORD_BITS), ("index", index_bits), ("failing", 6), ("last", 1)]
        _Failing.__init__(self, parameters, fields)


class FailingSum(_Failing):
    """A burst's number of wrong bits, and how many of them should have been 1."""

    def __init__(self, parameters: EngineParameters) -> None:
        bits = bits_for(parameters.geometry.burst_bits)
        _Failing.__init__(self, parameters, [("failing", bits), ("should_be_one", bits)])


def words_of(bits: Signal) -> list[Signal]:
    """The 32-bit words of a burst, lowest first."""
    return [bits[low : low + WORD_BITS] for low in range(0, len(bits), WORD_BITS)]


def lowest(bits: Signal) -> Signal:
    """The lowest 1 of ``bits`` alone."""
    return bits & ~(bits - 1)


def position(one_hot: Signal) -> Signal:
    """Where the only 1 is."""
    width = len(one_hot)
    masks = [sum(1 << i for i in range(width) if i >> k & 1) for k in range(bits_for(width - 1))]
    return Cat(*((one_hot & mask) != 0 for mask in masks))


def population(bits: Sequence[Signal]) -> Signal:
    """How many 1s there are, by a balanced tree of adders."""
    half = len(bits) // 2
    return population(bits[:half]) + population(bits[half:]) if half else bits[0]


class BurstSplitter(Module):
    """Sends each burst's failing words, one a clock without a gap between bursts, and their sum a clock after the last.

    Attributes:
        burst: in, valid while `waiting`.  take: out, it is taken in this clock.
        word, word_valid: out, `FailingWord`.  sum, sum_valid: out, `FailingSum`.
        advance: in; whoever needs `word` and `sum` takes them in this clock. Without it nothing moves.
        busy: out; there is a burst inside.
    """

    def __init__(self, parameters: EngineParameters) -> None:
        self.burst, self.waiting, self.take = FailingBurst(parameters), Signal(), Signal()
        self.word, self.word_valid = FailingWord(parameters), Signal()
        self.sum, self.sum_valid = FailingSum(parameters), Signal()
        self.advance, self.busy = Signal(), Signal()

        # # #

        self._held, self._held_valid = FailingBurst(parameters), Signal()
        self._picked, self._picked_valid = FailingWord(parameters), Signal()
        self._add_choice()
        self._add_counts()
        self.comb += self.busy.eq(self._held_valid | self._picked_valid | self.word_valid | self.sum_valid)

    def _add_choice(self) -> None:
        """Hold a burst and pick its failing words one by one."""
        held, picked = self._held, self._picked
        rest, index = Signal.like(held.words), Signal.like(picked.index)
        self.comb += [
            rest.eq(held.words & (held.words - 1)),
            index.eq(position(lowest(held.words))),
            self.take.eq(self.waiting & self.advance & (~self._held_valid | (rest == 0))),
        ]
        pairs = enumerate(zip(words_of(held.flips), words_of(held.expected), strict=True))
        pick = {w: [picked.flips.eq(flips), picked.expected.eq(expected)] for w, (flips, expected) in pairs}
        self.sync += If(
            self.advance,
            If(
                self._held_valid,
                Case(index, pick),
                picked.index.eq(index),
                picked.last.eq(rest == 0),
                *picked.take_place(held),
                held.words.eq(rest),
            ),
            If(~self._held_valid | (rest == 0), self._held_valid.eq(self.waiting)),
            If(self.take, held.eq(self.burst)),
            self._picked_valid.eq(self._held_valid),
        )

    def _add_counts(self) -> None:
        """Count each word's wrong bits, then add up a burst's."""
        picked, word, total = self._picked, self.word, self.sum
        should_be_one, goes_on = Signal.like(word.failing), Signal()
        self.sync += If(
            self.advance,
            If(
                self._picked_valid,
                word.eq(picked),
                word.failing.eq(population(list(picked.flips))),
                should_be_one.eq(population([f & e for f, e in zip(picked.flips, picked.expected, strict=True)])),
            ),
            self.word_valid.eq(self._picked_valid),
            If(
                self.word_valid,
                total.failing.eq(Mux(goes_on, total.failing, 0) + word.failing),
                total.should_be_one.eq(Mux(goes_on, total.should_be_one, 0) + should_be_one),
                *total.take_place(word),
                goes_on.eq(~word.last),
            ),
            self.sum_valid.eq(self.word_valid & word.last),
        )


class BitWalker(Module):
    """Walks the wrong bits of failing words, from the lowest on.

    Args:
        layout: what travels with a word; at least ``flips`` and ``failing`` (see `FailingWord`).

    Attributes:
        word: in, valid while `waiting`.  ready: out, it is taken in this clock.
        here, valid: out, the word under way; ``flips`` and ``failing`` tell of the bits left.
        one: out, the lowest bit left alone.  bit: out, its position.
        step: in, go on to the next bit.  skip: in, go on to the next word.
    """

    def __init__(self, layout: list[tuple[str, int]]) -> None:
        self.word, self.waiting, self.ready = Record(layout), Signal(), Signal()
        self.here, self.valid = Record(layout), Signal()
        self.one, self.bit = Signal(WORD_BITS), Signal(max=WORD_BITS)
        self.step, self.skip = Signal(), Signal()

        # # #

        here = self.here
        self.comb += [
            self.one.eq(lowest(here.flips)),
            self.bit.eq(position(self.one)),
            self.ready.eq(~self.valid | self.skip | (self.step & (here.failing == 1))),
        ]
        self.sync += [
            If(self.step, here.flips.eq(here.flips & ~self.one), here.failing.eq(here.failing - 1)),
            If(self.ready, self.valid.eq(self.waiting), If(self.waiting, here.eq(self.word))),
        ]
