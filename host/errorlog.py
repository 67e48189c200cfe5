"""Reads the engine's error log: blocks in, failing bits out (format: `gateware.errorlog`)."""

import numpy as np
import numpy.typing as npt

from gateware import errorlog
from host.bus import Words
from host.chip import lowest_bit, popcount
from host.compiled import njit
from host.crc import TABLES, crc32
from profiles.errors import LinkError

_HEADER, _PAYLOAD = errorlog.HEADER_WORDS, errorlog.PAYLOAD_WORDS
_KIND, _SHIFT = errorlog.KIND_SHIFT, errorlog.DELTA_SHIFT
_BIT, _MASK, _SKIP, _DELTA_BITS = errorlog.BIT, errorlog.MASK, errorlog.SKIP, errorlog.DELTA_BITS
_MAGIC, _SEQUENCE_MASK = errorlog.MAGIC, (1 << errorlog.SEQUENCE_BITS) - 1
_UNGUESSED = 4  # a word of a MASK writes so many places at least, most of them in vain: quicker than a branch on each
_DELTA_MASK, _BIT_MASK, _SKIP_MASK = (1 << _DELTA_BITS) - 1, (1 << _SHIFT) - 1, (1 << _KIND) - 1


@njit()
def _check(blocks, first_sequence, tables):  # type: ignore[no-untyped-def]
    """Number of the first block that is foreign, out of sequence or damaged; how many there are if none is."""
    for b in range(blocks.shape[0]):
        expected = _MAGIC << errorlog.SEQUENCE_BITS | (first_sequence + b) & _SEQUENCE_MASK
        if np.int64(blocks[b, 0]) != expected or crc32(blocks[b], tables) != np.int64(blocks[b, -1]):
            return b
    return blocks.shape[0]


@njit()
def _most(blocks):  # type: ignore[no-untyped-def]
    """No fewer than the failing bits in ``blocks``: one a word, and a word of a MASK as many as it has 1s."""
    most = 0
    for b in range(blocks.shape[0]):
        for k in range(_HEADER, _HEADER + _PAYLOAD):
            most += max(1, popcount(np.int64(blocks[b, k])))
    return most


@njit()
def _unpack(blocks, burst_words, reads, bits):  # type: ignore[no-untyped-def]
    """Fill ``reads`` and ``bits``; returns the number of failing bits, or -1 - block where one is malformed."""
    found, one = np.uint64(0), np.uint64(1)  # unsigned, so that numba does not look for negative indices
    for b in range(blocks.shape[0]):
        block = blocks[b]
        fill, index = np.int64(block[1]), np.int64(block[2]) | np.int64(block[3]) << 32
        if fill > _PAYLOAD:
            return -1 - b
        beyond = 0  # negative once a bit lies beyond the burst
        word = burst_words  # of the MASK under way
        for k in range(_HEADER, _HEADER + fill):
            value = np.int64(block[k])
            if word < burst_words:
                count = popcount(value)
                for n in range(max(_UNGUESSED, count)):
                    reads[found + np.uint64(n)], bits[found + np.uint64(n)] = index, word * 32 + lowest_bit(value)
                    value &= value - 1
                found += np.uint64(count)
                word += 1
            elif value >> _KIND == _BIT:
                index += value >> _SHIFT
                bit = value & _BIT_MASK
                beyond |= burst_words * 32 - 1 - bit
                reads[found], bits[found] = index, bit
                found += one
            elif value >> _KIND == _SKIP:
                index += (value & _SKIP_MASK) << _DELTA_BITS
            elif value >> _KIND == _MASK:
                index += value >> _SHIFT & _DELTA_MASK
                word = 0
            else:
                return -1 - b
        if beyond < 0 or word < burst_words:
            return -1 - b
    return np.int64(found)


def check_blocks(blocks: Words, first_sequence: int) -> None:
    """Check magic, sequence and CRC-32 of uint32[n, BLOCK_WORDS] blocks.

    Raises:
        LinkError: a block is foreign, out of sequence or damaged.
    """
    bad = int(_check(blocks, first_sequence, TABLES))
    if bad == blocks.shape[0]:
        return
    expected, word = (first_sequence + bad) & _SEQUENCE_MASK, int(blocks[bad, 0])
    if word >> errorlog.SEQUENCE_BITS != _MAGIC:
        raise LinkError(
            f"error log block {expected} begins with {word:#010x}; the link lost its place, reset the board"
        )
    if word & _SEQUENCE_MASK != expected:
        raise LinkError(f"error log block {word & _SEQUENCE_MASK} came where {expected} was due; entries were lost")
    raise LinkError(f"error log block {expected} fails its CRC; read it again or check the link")


def unpack(blocks: Words, burst_bits: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Failing bits of checked blocks.

    Returns:
        (read index, bit within the burst), int64[n] each, in the order they were read.

    Raises:
        LinkError: a block holds what no engine writes.
    """
    burst_words = burst_bits // 32
    size = int(_most(blocks)) + _UNGUESSED
    reads, bits = np.empty(size, np.int64), np.empty(size, np.int64)
    found = int(_unpack(blocks, burst_words, reads, bits))
    if found < 0:
        raise LinkError(
            f"error log block {int(blocks[-1 - found, 0]) & _SEQUENCE_MASK} is malformed; gateware and host differ"
        )
    return reads[:found], bits[:found]
