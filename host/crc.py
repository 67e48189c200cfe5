"""CRC-32 (zlib's) of an error log block's words, for code that numba compiles: five stretches of it at a time.

A table look-up waits for the one before, so that a processor does several such chains in the time of one.
"""

import numpy as np

from gateware.errorlog import BLOCK_WORDS
from host.bus import Words
from host.compiled import inlined

CHAINS = 5
_STRETCH = (BLOCK_WORDS - 1) // CHAINS
if _STRETCH * CHAINS != BLOCK_WORDS - 1:
    raise ValueError(f"{BLOCK_WORDS - 1} words do not divide into {CHAINS} stretches")


def _tables() -> Words:
    """What byte ``b`` adds to the remainder if ``k`` zero bytes follow: rows for the four least and greatest ``k``."""
    row = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        row = np.where(row & 1, row >> 1 ^ 0xEDB88320, row >> 1).astype(np.uint32)
    rows = [row]
    while len(rows) < 4 * _STRETCH:
        rows.append(row[rows[-1] & 0xFF] ^ rows[-1] >> 8)
    return np.array(rows[:4] + rows[-4:])


TABLES = _tables()


@inlined()
def _passed(crc, tables, first):  # type: ignore[no-untyped-def]
    """The remainder ``crc`` after a word of zeros (``first`` is 0) or a stretch of them (4)."""
    byte = np.uint32(0xFF)
    return (
        tables[first + 3, crc & byte]
        ^ tables[first + 2, crc >> np.uint32(8) & byte]
        ^ tables[first + 1, crc >> np.uint32(16) & byte]
        ^ tables[first, crc >> np.uint32(24)]
    )


@inlined()
def crc32(block: Words, tables: Words) -> int:
    """CRC-32 of the little-endian words of a block but its last; ``tables`` is `TABLES`.

    The tables are an argument so that numba does not copy them in.
    """
    a, b, c, d, e = np.uint32(0xFFFFFFFF), np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
    for k in range(_STRETCH):
        a = _passed(a ^ block[k], tables, 0)
        b = _passed(b ^ block[k + _STRETCH], tables, 0)
        c = _passed(c ^ block[k + 2 * _STRETCH], tables, 0)
        d = _passed(d ^ block[k + 3 * _STRETCH], tables, 0)
        e = _passed(e ^ block[k + 4 * _STRETCH], tables, 0)
    for follows in (b, c, d, e):
        a = _passed(a, tables, 4) ^ follows
    return np.int64(a ^ np.uint32(0xFFFFFFFF))
