"""CRC-32 (zlib's) in hardware: a word a clock, from the linear map that a zero word applies to the remainder.

Start from `INITIAL` and take words in with `next_crc`; the CRC-32 is the complement of what that leaves.
"""

from functools import cache, reduce
from operator import xor

from migen import Constant, Replicate, Signal

INITIAL = 0xFFFFFFFF
_POLYNOMIAL = 0xEDB88320


@cache
def _after_zeros(remainder: int, words: int) -> int:
    """What 32-bit zero words make of a remainder."""
    for _ in range(32 * words):
        remainder = remainder >> 1 ^ _POLYNOMIAL * (remainder & 1)
    return remainder


def _moved(bits: list[Signal], words: int) -> Signal:
    """The remainder ``bits`` (lowest first) after that many zero words."""
    return reduce(xor, (Replicate(b, 32) & Constant(_after_zeros(1 << i, words), 32) for i, b in enumerate(bits)))


def next_crc(crc: Signal, word: Signal) -> Signal:
    """The remainder ``crc`` (32 bits) with ``word`` (32 bits) taken in: XORs of at most 34 bits."""
    return _moved([crc[i] ^ word[i] for i in range(32)], 1)


def contribution(word: Signal, words_after: int) -> Signal:
    """What a remainder lacks if ``words_after`` words ago 0 went in instead of ``word``: XOR the two.

    The CRC is linear: a bit of a word adds to the remainder what it adds, whatever the other bits are.
    """
    return _moved([word[i] for i in range(len(word))], 1 + words_after)
