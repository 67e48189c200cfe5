"""The pattern source: a burst's data from its address, as `profiles.pattern.word` defines them, one burst a clock."""

from itertools import pairwise

from migen import Case, Cat, If, Module, Replicate, Signal

from gateware.engine.banks import DataCommand
from gateware.engine.delay import Delay
from gateware.engine.parameters import EngineParameters
from profiles.pattern import PatternKind

MIX_CLOCKS = 4
LATENCY = 1 + MIX_CLOCKS + 1 + MIX_CLOCKS
_KIND = {kind: int(kind) for kind in PatternKind}


class Mix32(Module):
    """`profiles.pattern.mix32` in `MIX_CLOCKS` clocks. ``valid`` goes along; without it nothing moves."""

    def __init__(self) -> None:
        self.i, self.valid = Signal(32), Signal()
        self.o, self.valid_out = Signal(32), Signal()

        # # #

        a, b, c, before_b, before_o = (Signal(32) for _ in range(5))
        valid = [self.valid, Signal(), Signal(), Signal(), self.valid_out]
        self.comb += [
            before_b.eq(a ^ 0xC761C23C ^ (a >> 19)),
            before_o.eq(c + 0xFD7046C5 + (c << 3)),
        ]
        self.sync += [
            *[valid[k + 1].eq(valid[k]) for k in range(MIX_CLOCKS)],
            If(valid[0], a.eq(self.i + 0x7ED55D16 + (self.i << 12))),
            If(valid[1], b.eq(before_b + 0x165667B1 + (before_b << 5))),
            If(valid[2], c.eq((b + 0xD3A2646C) ^ (b << 9))),
            If(valid[3], self.o.eq(before_o ^ 0xB55A4F09 ^ (before_o >> 16))),
        ]


class PatternSource(Module):
    """Right data for a `DataCommand`.

    Attributes:
        data: in, the command.
        buffer_address, buffer_read: out, burst of the write buffer to read; buffer_data: in, it, one clock later.
        words: out, burst_bits wide, `LATENCY` clocks after ``data``; means nothing where the command uses none.
    """

    def __init__(self, parameters: EngineParameters) -> None:
        self._geometry = g = parameters.geometry
        assert g.burst_length == 8, "column patterns take the lowest three column bits for the beat"
        self.data = DataCommand()
        self.buffer_address = Signal(max=max(2, parameters.buffer_bursts))
        self.buffer_read = Signal()
        self.buffer_data, self.words = Signal(g.burst_bits), Signal(g.burst_bits)

        # # #

        data, cursor_bits = self.data, len(self.buffer_address)
        plain = Cat(data.kind, data.invert_odd_rows, data.row[:3], data.parameter[:8])
        self.submodules.delay = delay = Delay(len(plain) + cursor_bits, LATENCY - 1)
        kind, invert, row, byte, cursor = Signal(3), Signal(), Signal(3), Signal(8), Signal(cursor_bits)
        self.comb += [
            delay.i.eq(Cat(plain, data.cursor[:cursor_bits])),
            self.buffer_address.eq(cursor),
            self.buffer_read.eq(kind == _KIND[PatternKind.BUFFER]),
        ]
        late = [Signal.like(each) for each in (kind, invert, row, byte)]
        self.comb += Cat(kind, invert, row, byte, cursor).eq(delay.o)
        self.sync += [after.eq(each) for after, each in zip(late, (kind, invert, row, byte), strict=True)]
        self._add_words(*late, self._random())

    def _add_words(self, kind: Signal, invert: Signal, row: Signal, byte: Signal, random: Signal) -> None:
        g, words, flip = self._geometry, Signal.like(self.words), Signal()
        cases = {_KIND[PatternKind.RANDOM]: words.eq(random), _KIND[PatternKind.BUFFER]: words.eq(self.buffer_data)}
        for each in (k for k in PatternKind if _KIND[k] not in cases):
            values = [self._byte(each, byte, row, 8 * k // g.data_width) for k in range(g.burst_bits // 8)]
            cases[_KIND[each]] = words.eq(Cat(*values))
        self.comb += [
            Case(kind, cases),
            flip.eq(invert & row[0] & (kind != _KIND[PatternKind.BUFFER])),
            self.words.eq(words ^ Replicate(flip, g.burst_bits)),
        ]

    def _byte(self, kind: PatternKind, byte: Signal, row: Signal, beat: int) -> Signal:
        """Eight data lines of one beat; burst columns are multiples of eight, so the beat is the column's low bits."""
        out = Signal(8)
        odd = row[0] ^ (beat & 1)
        values = {
            PatternKind.SOLID: byte,
            PatternKind.CHECKER: Cat(odd, ~odd, odd, ~odd, odd, ~odd, odd, ~odd),
            PatternKind.ROW_STRIPE: Replicate(row[0], 8),
            PatternKind.COLUMN_STRIPE: 0xFF * (beat & 1),
            PatternKind.WALKING: 1 << (row + beat)[:3],
        }
        self.comb += out.eq(values[kind])
        return out

    def _random(self) -> Signal:
        """All words of pattern RANDOM, `LATENCY` clocks after ``data``."""
        g, data = self._geometry, self.data
        words = g.burst_bits // 32
        active, offset, out = Signal(), Signal(32), Signal(g.burst_bits)
        base = Mix32()
        self.submodules += base
        offsets = [Signal(32) for _ in range(1 + MIX_CLOCKS)]
        active_later = Signal()
        self.comb += active.eq((data.kind == _KIND[PatternKind.RANDOM]) & (data.read | data.write))
        self.sync += [
            base.valid.eq(active),
            If(active, base.i.eq(data.parameter ^ (data.row << 8) ^ data.bank), offsets[0].eq(data.burst * words)),
            *[late.eq(early) for early, late in pairwise(offsets)],
            active_later.eq(base.valid_out),
            offset.eq(base.o + offsets[-1]),
        ]
        for w in range(words):
            mix = Mix32()
            self.submodules += mix
            self.comb += [
                mix.valid.eq(active_later),
                mix.i.eq(offset + w),
                out[32 * w : 32 * w + 32].eq(mix.o),
            ]
        return out
