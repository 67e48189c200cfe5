"""The CRC in hardware is zlib's."""

import zlib
from collections.abc import Generator

import numpy as np
from migen import If, Module, Signal, run_simulation

from gateware.engine.crc import INITIAL, contribution, next_crc

_WORDS = np.random.default_rng(7).integers(0, 1 << 32, 40, dtype=np.uint32)


class _Crc(Module):
    """Takes in a word a clock; ``mended`` is the remainder as if ``late`` had gone in 5 words ago instead of a 0."""

    def __init__(self) -> None:
        self.word, self.take, self.late = Signal(32), Signal(), Signal(9)
        self.crc, self.mended = Signal(32, reset=INITIAL), Signal(32)
        self.sync += If(self.take, self.crc.eq(next_crc(self.crc, self.word)))
        self.comb += self.mended.eq(self.crc ^ contribution(self.late, 5))


def _simulated(words: list[int], late: int = 0) -> tuple[int, int]:
    """CRC-32 of words, and the one mended by ``late``."""
    dut, seen = _Crc(), []

    def drive() -> Generator:
        yield dut.take.eq(1)
        yield dut.late.eq(late)
        for word in words:
            yield dut.word.eq(word)
            yield
        yield dut.take.eq(0)
        yield
        seen.extend([(yield dut.crc), (yield dut.mended)])

    run_simulation(dut, drive())
    return seen[0] ^ INITIAL, seen[1] ^ INITIAL


def test_it_is_zlibs() -> None:
    for words in ([0], [1], [1 << 31], [INITIAL] * 3, _WORDS.tolist()):
        assert _simulated(words)[0] == zlib.crc32(np.array(words, "<u4").tobytes())


def test_a_word_that_comes_late_can_be_added() -> None:
    for late in (0, 1, 256, 0x1A5):
        before, after = _WORDS[:20].tolist(), _WORDS[20:25].tolist()
        expected = zlib.crc32(np.array([*before, late, *after], "<u4").tobytes())
        assert _simulated([*before, 0, *after], late)[1] == expected
