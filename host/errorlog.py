"""Reads the engine's error log: blocks in, failing bits out (format: `gateware.errorlog`)."""

import zlib

import numpy as np
import numpy.typing as npt
from numba import njit

from gateware import errorlog
from host.bus import Words
from profiles.errors import LinkError

_HEADER, _PAYLOAD = errorlog.HEADER_WORDS, errorlog.PAYLOAD_WORDS
_KIND, _SHIFT = errorlog.KIND_SHIFT, errorlog.DELTA_SHIFT
_BIT, _MASK, _SKIP, _DELTA_BITS = errorlog.BIT, errorlog.MASK, errorlog.SKIP, errorlog.DELTA_BITS
_DELTA_MASK, _BIT_MASK, _SKIP_MASK = (1 << _DELTA_BITS) - 1, (1 << _SHIFT) - 1, (1 << _KIND) - 1


@njit(cache=True)
def _unpack(blocks, burst_words, reads, bits):  # type: ignore[no-untyped-def]
    """Fill ``reads`` and ``bits``; returns the number of failing bits, or -1 - block where one is malformed."""
    found = 0
    for b in range(blocks.shape[0]):
        fill = np.int64(blocks[b, 1])
        index = np.int64(blocks[b, 2]) | np.int64(blocks[b, 3]) << 32
        high, k = 0, 0
        if fill > _PAYLOAD:
            return -1 - b
        while k < fill:
            value = np.int64(blocks[b, _HEADER + k])
            k += 1
            kind = value >> _KIND
            if kind == _SKIP:
                high = (value & _SKIP_MASK) << _DELTA_BITS
                continue
            index += high + (value >> _SHIFT & _DELTA_MASK)
            high = 0
            if kind == _BIT:
                reads[found], bits[found] = index, value & _BIT_MASK
                found += 1
            elif kind == _MASK and k + burst_words <= fill:
                for w in range(burst_words):
                    mask = np.int64(blocks[b, _HEADER + k + w])
                    for bit in range(32):
                        if mask >> bit & 1:
                            reads[found], bits[found] = index, w * 32 + bit
                            found += 1
                k += burst_words
            else:
                return -1 - b
    return found


def check_blocks(blocks: Words, first_sequence: int) -> None:
    """Check magic, sequence and CRC-32 of uint32[n, BLOCK_WORDS] blocks.

    Raises:
        LinkError: a block is foreign, out of sequence or damaged.
    """
    for k, block in enumerate(blocks):
        expected = (first_sequence + k) & ((1 << errorlog.SEQUENCE_BITS) - 1)
        word = int(block[0])
        if word >> errorlog.SEQUENCE_BITS != errorlog.MAGIC:
            raise LinkError(
                f"error log block {expected} begins with {word:#010x}; the link lost its place, reset the board"
            )
        if word & ((1 << errorlog.SEQUENCE_BITS) - 1) != expected:
            raise LinkError(f"error log block {word & 0xFFFFFF} came where {expected} was due; entries were lost")
        if zlib.crc32(block[:-1].tobytes()) != int(block[-1]):
            raise LinkError(f"error log block {expected} fails its CRC; read it again or check the link")


def unpack(blocks: Words, burst_bits: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Failing bits of checked blocks.

    Returns:
        (read index, bit within the burst), int64[n] each, in the order they were read.

    Raises:
        LinkError: a block holds what no engine writes.
    """
    limit = blocks.shape[0] * _PAYLOAD * 32
    words = burst_bits // 32
    # a MASK word yields at most 32 bits, any other word one
    masks = int(np.count_nonzero(blocks[:, _HEADER:-1] >> _KIND == _MASK))
    size = min(limit, blocks.shape[0] * _PAYLOAD + masks * burst_bits)
    reads, bits = np.empty(size, np.int64), np.empty(size, np.int64)
    found = _unpack(blocks, words, reads, bits)
    if found < 0:
        raise LinkError(
            f"error log block {int(blocks[-1 - found, 0]) & 0xFFFFFF} is malformed; gateware and host differ"
        )
    return reads[:found], bits[:found]
