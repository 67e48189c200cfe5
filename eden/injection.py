"""Bit flips in a tensor: exact Bernoulli draws at a cost of about a nanosecond a flip, on any number of threads.

Bit ``k`` of a buffer is bit ``k % 8`` of byte ``k // 8``, least significant first, as cells are numbered
(`profiles.geometry`). Draws come from a counter-based generator (SplitMix64; Steele, Lea and Flood, OOPSLA 2014) and
are decided by integers alone, so that the same seed gives the same flips on every machine; the *stored* bit decides the
probability, as in Error Model 3.

Uniform flips are drawn by blocks of `BLOCK_BITS`: independent trials of one probability are a binomial number of
successes at positions that are a uniform subset. The number comes from one 64-bit draw through the binomial's
cumulative distribution, computed in decimal arithmetic; positions that were drawn before are drawn again. Each block
has a random stream of its own, so that threads may share the blocks in any way.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from profiles.cells import WeakCells
from profiles.errors import NetworkError

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

POSITION_BITS = 14  # four positions in one 64-bit random number
BLOCK_BITS = 1 << POSITION_BITS
BLOCK_WORDS = BLOCK_BITS // 64
_BLOCKS_A_THREAD = 512  # 1 MiB: below that a thread costs more than it saves
_PIECES_A_THREAD = 8  # so that a thread that is held up leaves more to the others
_DIGITS = 50  # decimal digits of a cumulative probability; a 64-bit draw tells 20 apart
TO_UNIT = 2.0**-53


@dataclass(frozen=True)
class Flips:
    """Bits that one read changed, by direction."""

    zero_to_one: int
    one_to_zero: int

    @property
    def total(self) -> int:
        return self.zero_to_one + self.one_to_zero


def flip_uniform(stored: Bytes, read: Bytes, rate_zero: float, rate_one: float, seed: int) -> Flips:
    """Write to ``read`` what a read of ``stored`` returns: each 0 flips with ``rate_zero``, each 1 with ``rate_one``.

    Every bit is drawn independently. Large tensors are shared by as many threads as torch uses; the flips do not depend
    on how many.

    Args:
        stored, read: uint8[n] each, contiguous; ``read`` may be ``stored`` itself.
        rate_zero, rate_one: probabilities.
        seed: 0 .. 2^64 - 1.

    Raises:
        NetworkError: a rate is not a probability, or the buffers differ in size or have gaps.
    """
    for rate in (rate_zero, rate_one):
        if not 0 <= rate <= 1:
            raise NetworkError(f"bit error rate {rate} is not within 0..1; give a probability")
    if stored.shape != read.shape or not (stored.flags.c_contiguous and read.flags.c_contiguous):
        raise NetworkError(
            f"what is stored has shape {stored.shape}, the buffer for its read {read.shape}; give two flat buffers of "
            "one size, without gaps"
        )
    zero, one = Draw.of(rate_zero), Draw.of(rate_one)
    whole = stored.size // 8 * 8
    buffers = (stored[:whole].view(np.uint64), read[:whole].view(np.uint64), stored[whole:], read[whole:])
    draws = (zero.counts, one.counts, zero.inverted, one.inverted, rate_zero == rate_one)
    stream = np.uint64(seed)

    def flip_blocks(first: int, last: int) -> tuple[int, int]:
        up, down = _flip_blocks(*buffers, *draws, stream, first, last)
        return int(up), int(down)

    return Flips(*_in_threads(-(-stored.size * 8 // BLOCK_BITS), flip_blocks))


def flip_weak_cells(buffer: Bytes, weak: WeakCells, seed: int) -> Flips:
    """Flip the weak cells of ``buffer`` (cell = bit number in the buffer) by their probabilities, in place.

    Cost follows the number of weak cells. Raises NetworkError where a cell lies outside the buffer.
    """
    check_within(weak, buffer.size)
    up, down = _flip_weak(buffer, weak.cell, weak.flip_zero, weak.flip_one, np.uint64(seed))
    return Flips(int(up), int(down))


def check_within(weak: WeakCells, size: int) -> None:
    """Raises NetworkError where a weak cell lies outside a tensor of ``size`` bytes."""
    if weak.cell.size and (weak.cell[0] < 0 or weak.cell[-1] >= size * 8):
        raise NetworkError(
            f"weak cells {weak.cell[0]}..{weak.cell[-1]} reach outside a tensor of {size * 8} bits; "
            "select them with WeakCells.within"
        )


def warm_up() -> None:
    """Compile the kernels now, so that the first read does not wait for it."""
    flip_uniform(np.zeros(8, np.uint8), np.zeros(8, np.uint8), 0.5, 0.25, 0)
    flip_weak_cells(np.zeros(8, np.uint8), WeakCells(np.zeros(1, np.int64), np.ones(1), np.ones(1)), 0)


@dataclass(frozen=True)
class Draw:
    """How the flips of one rate are drawn: above one half, those that do not flip are.

    Attributes:
        counts: uint64[n], 2^64 times the chance that a block has at most ``k`` draws, for k = 0, 1, ...
        inverted: all ones where what is drawn does not flip, else 0.
    """

    counts: Words
    inverted: np.uint64

    @classmethod
    def of(cls, rate: float) -> "Draw":
        return cls(_binomial_thresholds(rate), np.uint64(0xFFFFFFFFFFFFFFFF if rate > 0.5 else 0))


@lru_cache(maxsize=256)
def _binomial_thresholds(rate: float) -> Words:
    """2^64 times the cumulative distribution of what is drawn in a block, up to where it rounds to 2^64.

    Decimal arithmetic is specified to the last digit: libraries' exp and log are not, and differ between machines.
    """
    thresholds = []
    with localcontext(Context(prec=_DIGITS)):
        drawn, left = sorted((Decimal(rate), 1 - Decimal(rate)))
        odds = drawn / left
        chance = cumulative = left**BLOCK_BITS
        successes = 0
        while (threshold := int(cumulative * 2**64)) < 2**64 - 1 and successes < BLOCK_BITS:
            thresholds.append(threshold)
            successes += 1
            chance *= odds * (BLOCK_BITS + 1 - successes) / successes
            cumulative += chance
    return np.array(thresholds, np.uint64)


def _in_threads(blocks: int, work: Callable[[int, int], tuple[int, int]]) -> tuple[int, int]:
    """The sums of ``work`` over pieces of ``blocks``, which this thread and its helpers take as they come to them."""
    threads = min(torch.get_num_threads(), blocks // _BLOCKS_A_THREAD)
    if threads < 2:
        return work(0, blocks)
    pieces = threads * _PIECES_A_THREAD
    bounds = pairwise(blocks * piece // pieces for piece in range(pieces + 1))
    left = iter(list(bounds))

    def take() -> list[tuple[int, int]]:
        return [work(*piece) for piece in left]

    pool = _helpers(torch.get_num_threads() - 1)
    helpers = [pool.submit(take) for _ in range(threads - 1)]
    parts = [*take(), *(part for helper in helpers for part in helper.result())]
    return sum(up for up, _ in parts), sum(down for _, down in parts)


@lru_cache
def _helpers(count: int) -> ThreadPoolExecutor:
    """They are kept: to start a thread takes as long as a megabyte's flips."""
    return ThreadPoolExecutor(count, "eden flips")


os.register_at_fork(after_in_child=_helpers.cache_clear)  # threads do not come along


@njit(cache=True, inline="always")
def random_bits(seed: np.uint64, counter: np.uint64) -> np.uint64:
    """SplitMix64: 64 random bits for position ``counter`` of the stream ``seed``."""
    z = seed + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, inline="always")
def scrambled(seed: np.uint64) -> np.uint64:
    """A stream start far from that of neighbouring seeds: SplitMix64 streams of close seeds overlap."""
    return random_bits(seed ^ np.uint64(0xD1B54A32D192ED03), np.uint64(0))


@njit(cache=True, inline="always")
def _ones(word: np.uint64) -> np.uint64:
    """Bits set in ``word``; LLVM knows the pattern and uses the processor's own count."""
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)


@njit(cache=True, nogil=True)
def _draw_block(mask, counts, stream):  # type: ignore[no-untyped-def]
    """Set a binomial number of bits of ``mask`` (all clear before), every subset of that size alike; the number."""
    one, position_bits = np.uint64(1), np.uint64(POSITION_BITS)
    wanted = np.int64(np.searchsorted(counts, random_bits(stream, np.uint64(0)), side="right"))
    missing, counter = wanted, one
    while missing > 0:
        random = random_bits(stream, counter)
        counter += one
        for _ in range(4):
            position = random & np.uint64(BLOCK_BITS - 1)
            random >>= position_bits
            before = mask[position >> np.uint64(6)]
            after = before | (one << (position & np.uint64(63)))
            mask[position >> np.uint64(6)] = after
            missing -= np.int64(after != before)
            if missing == 0:
                break
    return wanted


@njit(cache=True, nogil=True)
def _flip_blocks(  # type: ignore[no-untyped-def]
    stored, read, stored_rest, read_rest, zeros, ones, invert_zeros, invert_ones, alike, seed, first, last
):
    """Flip blocks ``first .. last - 1``; the ``rest`` is the bytes of a last word that is not whole."""
    flip_zeros = np.zeros(BLOCK_WORDS, np.uint64)
    flip_ones = flip_zeros if alike else np.zeros(BLOCK_WORDS, np.uint64)
    start = scrambled(seed)
    up = down = np.uint64(0)
    for block in range(first, last):
        drawn = _draw_block(flip_zeros, zeros, random_bits(start, np.uint64(2 * block)))
        if not alike:
            drawn += _draw_block(flip_ones, ones, random_bits(start, np.uint64(2 * block + 1)))
        begin = block * BLOCK_WORDS
        source, target = stored[begin : begin + BLOCK_WORDS], read[begin : begin + BLOCK_WORDS]
        for word in range(source.size):
            value = source[word]
            rising = (flip_zeros[word] ^ invert_zeros) & ~value
            falling = (flip_ones[word] ^ invert_ones) & value
            up += _ones(rising)
            down += _ones(falling)
            target[word] = value ^ rising ^ falling
        if stored_rest.size and block == stored.size // BLOCK_WORDS:
            word = stored.size - begin
            for byte in range(stored_rest.size):
                shift = np.uint64(8 * byte)
                value = np.uint64(stored_rest[byte])
                rising = ((flip_zeros[word] ^ invert_zeros) >> shift) & ~value & np.uint64(0xFF)
                falling = ((flip_ones[word] ^ invert_ones) >> shift) & value
                up += _ones(rising)
                down += _ones(falling)
                read_rest[byte] = np.uint8(value ^ rising ^ falling)
        if drawn:
            flip_zeros[:] = np.uint64(0)
            flip_ones[:] = np.uint64(0)
    return up, down


@njit(cache=True, nogil=True)
def _flip_weak(buffer, cell, flip_zero, flip_one, seed):  # type: ignore[no-untyped-def]
    """Draw every weak cell once, cell ``i`` of the list with random number ``i``."""
    start = scrambled(seed)
    up = down = 0
    for index in range(cell.size):
        byte = cell[index] >> 3
        mask = np.uint8(1 << (cell[index] & 7))
        stored_one = (buffer[byte] & mask) != 0
        unit = np.float64(random_bits(start, np.uint64(index)) >> np.uint64(11)) * TO_UNIT
        if unit < (flip_one[index] if stored_one else flip_zero[index]):
            buffer[byte] ^= mask
            if stored_one:
                down += 1
            else:
                up += 1
    return up, down
