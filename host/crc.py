"""CRC-32 (zlib's) over 32-bit words, for code that numba compiles: eight bytes a step instead of a call a block."""

import numpy as np

from host.bus import Words
from host.compiled import inlined


def _tables() -> Words:
    """``tables[k][b]``: what byte ``b``, followed by ``k`` zero bytes, adds to the remainder."""
    tables = np.zeros((8, 256), np.uint32)
    first = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = np.where(first & 1, first >> 1 ^ 0xEDB88320, first >> 1).astype(np.uint32)
    tables[0] = first
    for k in range(1, 8):
        tables[k] = tables[0][tables[k - 1] & 0xFF] ^ tables[k - 1] >> 8
    return tables


TABLES = _tables()


@inlined()
def crc32(words: Words, tables: Words) -> int:
    """CRC-32 of little-endian ``words``; ``tables`` is `TABLES` (an argument, so that numba does not copy it in)."""
    crc = np.uint32(0xFFFFFFFF)
    byte = np.uint32(0xFF)
    s8, s16, s24 = np.uint32(8), np.uint32(16), np.uint32(24)
    pairs = words.size // 2
    for k in range(pairs):
        a, b = np.uint32(words[2 * k] ^ crc), np.uint32(words[2 * k + 1])
        crc = (
            tables[7, a & byte]
            ^ tables[6, a >> s8 & byte]
            ^ tables[5, a >> s16 & byte]
            ^ tables[4, a >> s24]
            ^ tables[3, b & byte]
            ^ tables[2, b >> s8 & byte]
            ^ tables[1, b >> s16 & byte]
            ^ tables[0, b >> s24]
        )
    if words.size & 1:
        a = np.uint32(words[words.size - 1] ^ crc)
        crc = tables[3, a & byte] ^ tables[2, a >> s8 & byte] ^ tables[1, a >> s16 & byte] ^ tables[0, a >> s24]
    return np.int64(crc ^ np.uint32(0xFFFFFFFF))
