"""Bit flips in a buffer: exact Bernoulli draws at a cost that follows the flips, not the bits.

Bit ``k`` of a buffer is bit ``k % 8`` of byte ``k // 8``, least significant first, as cells are numbered
(`profiles.geometry`). Draws come from a counter-based generator (SplitMix64), so that the same seed gives the same
flips on every machine; the *stored* bit decides the probability, as in Error Model 3.

Uniform flips skip from flip to flip: the gap between successes of independent trials is geometric, and memoryless, so
it is drawn in digits of base 1024: each digit is an independent geometric variable, looked up in an alias table (one
random number, no logarithm). The skip is as exact as the tables' 53-bit thresholds.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numba import njit

from profiles.cells import WeakCells
from profiles.errors import NetworkError

Bytes = npt.NDArray[np.uint8]

_DIGIT_BITS = 10
_DIGIT = 1 << _DIGIT_BITS
_MOST_DIGITS = 4  # a top digit then steps 2**30 bits
_TO_UNIT = 2.0**-53


@dataclass(frozen=True)
class Flips:
    """Bits that one read changed, by direction."""

    zero_to_one: int
    one_to_zero: int

    @property
    def total(self) -> int:
        return self.zero_to_one + self.one_to_zero


def flip_uniform(buffer: Bytes, rate_zero: float, rate_one: float, seed: int) -> Flips:
    """Flip each stored 0 of ``buffer`` with probability ``rate_zero`` and each stored 1 with ``rate_one``, in place.

    Every bit is drawn independently. Cost follows ``8 * buffer.size * max(rate_zero, rate_one)``.

    Raises:
        NetworkError: a rate is not a probability.
    """
    for rate in (rate_zero, rate_one):
        if not 0 <= rate <= 1:
            raise NetworkError(f"bit error rate {rate} is not within 0..1; give a probability")
    highest = max(rate_zero, rate_one)
    if highest == 0:
        return Flips(0, 0)
    thresholds, aliases = _skip_tables(highest)
    keep_zero, keep_one = rate_zero / highest, rate_one / highest
    up, down = _flip_skipping(buffer, thresholds, aliases, keep_zero, keep_one, np.uint64(seed))
    return Flips(int(up), int(down))


def flip_weak_cells(buffer: Bytes, weak: WeakCells, seed: int) -> Flips:
    """Flip the weak cells of ``buffer`` (cell = bit number in the buffer) by their probabilities, in place.

    Cost follows the number of weak cells. Raises NetworkError where a cell lies outside the buffer.
    """
    if weak.cell.size and (weak.cell[0] < 0 or weak.cell[-1] >= buffer.size * 8):
        raise NetworkError(
            f"weak cells {weak.cell[0]}..{weak.cell[-1]} reach outside a tensor of {buffer.size * 8} bits; "
            "select them with WeakCells.within"
        )
    up, down = _flip_weak(buffer, weak.cell, weak.flip_zero, weak.flip_one, np.uint64(seed))
    return Flips(int(up), int(down))


def warm_up() -> None:
    """Compile the kernels now, so that the first read does not wait for it."""
    flip_uniform(np.zeros(8, np.uint8), 0.5, 0.25, 0)
    flip_weak_cells(np.zeros(8, np.uint8), WeakCells(np.zeros(1, np.int64), np.ones(1), np.ones(1)), 0)


@lru_cache(maxsize=256)
def _skip_tables(rate: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Alias tables (thresholds, aliases), each [digits, _DIGIT], of the digits of a geometric gap at ``rate``.

    Digit ``d`` is geometric with ratio ``(1 - rate) ** (_DIGIT ** d)``, given that it is below ``_DIGIT``. The top
    digit is not so conditioned: its last outcome stands for "this much or more, draw on from there". Digits are as
    few as make drawing on the exception.
    """
    digits = 1
    while digits < _MOST_DIGITS and rate * _DIGIT**digits < 1:
        digits += 1
    log_survival = np.log1p(-rate) if rate < 1 else -np.inf
    steps = np.arange(_DIGIT)
    tables = []
    for digit in range(digits):
        exponent = float(log_survival) * _DIGIT**digit
        weights = np.exp(exponent * steps) if np.isfinite(exponent) else (steps == 0).astype(np.float64)
        if digit == digits - 1:
            weights *= -np.expm1(exponent)
            weights[-1] = np.exp(exponent * (_DIGIT - 1))
        tables.append(_alias_table(weights / weights.sum()))
    return np.stack([threshold for threshold, _ in tables]), np.stack([alias for _, alias in tables])


def _alias_table(probability: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Vose's alias method: outcome = i if u < threshold[i] else alias[i], for a uniform slot i."""
    slots = probability.size
    scaled = probability * slots
    alias = np.arange(slots)
    small = [i for i in range(slots) if scaled[i] < 1]
    large = [i for i in range(slots) if scaled[i] >= 1]
    while small and large:
        low, high = small.pop(), large[-1]
        alias[low] = high
        scaled[high] -= 1 - scaled[low]
        if scaled[high] < 1:
            small.append(large.pop())
    for left in small + large:
        scaled[left] = 1.0
    return scaled, alias


@njit(cache=True, inline="always")
def _random_bits(seed: np.uint64, counter: np.uint64) -> np.uint64:
    """SplitMix64: 64 random bits for position ``counter`` of the stream ``seed``."""
    z = seed + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, inline="always")
def _scrambled(seed: np.uint64) -> np.uint64:
    """A stream start far from that of neighbouring seeds: SplitMix64 streams of close seeds overlap."""
    return _random_bits(seed ^ np.uint64(0xD1B54A32D192ED03), np.uint64(0))


@njit(cache=True, nogil=True)
def _flip_skipping(buffer, thresholds, aliases, keep_zero, keep_one, seed):  # type: ignore[no-untyped-def]
    """Visit Bernoulli successes by geometric gaps and flip each with the share that its stored bit asks for."""
    start = _scrambled(seed)
    counter = np.uint64(0)
    one = np.uint64(1)
    top = thresholds.shape[0] - 1
    bits = np.int64(buffer.size) * 8
    position = np.int64(0)  # the next bit to decide
    up = down = 0
    thin = keep_zero < 1.0 or keep_one < 1.0
    slot_mask = np.uint64(_DIGIT - 1)
    while position < bits:
        gap = np.int64(0)
        beyond = False
        for digit in range(top, -1, -1):
            random = _random_bits(start, counter)
            counter += one
            slot = np.int64(random & slot_mask)
            unit = np.float64(random >> np.uint64(11)) * _TO_UNIT
            outcome = slot if unit < thresholds[digit, slot] else aliases[digit, slot]
            gap = (gap << _DIGIT_BITS) + outcome
            if digit == top and outcome == _DIGIT - 1:
                gap <<= _DIGIT_BITS * top
                beyond = True
                break
        position += gap
        if beyond:
            continue
        if position >= bits:
            break
        byte = position >> 3
        mask = np.uint8(1 << (position & 7))
        position += 1
        stored_one = (buffer[byte] & mask) != 0
        if thin:
            unit = np.float64(_random_bits(start, counter) >> np.uint64(11)) * _TO_UNIT
            counter += one
            if unit >= (keep_one if stored_one else keep_zero):
                continue
        buffer[byte] ^= mask
        if stored_one:
            down += 1
        else:
            up += 1
    return up, down


@njit(cache=True, nogil=True)
def _flip_weak(buffer, cell, flip_zero, flip_one, seed):  # type: ignore[no-untyped-def]
    """Draw every weak cell once, cell ``i`` of the list with random number ``i``."""
    start = _scrambled(seed)
    up = down = 0
    for index in range(cell.size):
        byte = cell[index] >> 3
        mask = np.uint8(1 << (cell[index] & 7))
        stored_one = (buffer[byte] & mask) != 0
        unit = np.float64(_random_bits(start, np.uint64(index)) >> np.uint64(11)) * _TO_UNIT
        if unit < (flip_one[index] if stored_one else flip_zero[index]):
            buffer[byte] ^= mask
            if stored_one:
                down += 1
            else:
                up += 1
    return up, down
