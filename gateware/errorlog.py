"""The error log's format: how the engine tells the host which bits failed.

The log is a ring of blocks of `BLOCK_WORDS` 32-bit words. A block stands by itself::

    word 0        0xED << 24 | sequence number (24 bits, from 0 at program start)
    word 1        payload words in use
    word 2, 3     base: read index that the first entry's delta counts from (low, high)
    word 4..254   payload, unused words 0
    word 255      CRC-32 (zlib's) of words 0..254, little endian

The *read index* counts the compared READs of the program from 0, so together with the program's address order it places
every entry. Entries are in order of the read index, then of the bit within the burst (``beat * data_width + dq``):

    BIT   00 | delta (20) | bit (10)        one failing bit
    MASK  01 | delta (20) | 0 (10)          followed by burst_bits / 32 words, a 1 for each failing bit
    SKIP  10 | high (30)                    adds high << 20 to the next entry's delta

``delta`` is the read index minus that of the entry before (0 for further bits of one burst). A burst with more than
burst_bits / 32 failing bits is one MASK, any other a BIT for each. A burst's entry never straddles blocks: what does
not fit closes the block.
"""

BLOCK_WORDS = 256
HEADER_WORDS = 4
PAYLOAD_WORDS = BLOCK_WORDS - HEADER_WORDS - 1
MAGIC = 0xED
SEQUENCE_BITS = 24

KIND_SHIFT = 30
BIT, MASK, SKIP = 0, 1, 2
DELTA_SHIFT = 10
DELTA_BITS = 20


def _reads_per_block(burst_bits: int) -> int:
    """Bursts that a block holds at least: each may need a SKIP, a MASK and its words."""
    return PAYLOAD_WORDS // (2 + burst_bits // 32)


def reads_that_fit(blocks: int, burst_bits: int) -> int:
    """Compared bursts that ``blocks`` blocks hold even if every bit fails; the inverse of `worst_case_blocks`."""
    return (blocks - 1) * _reads_per_block(burst_bits)


def worst_case_blocks(reads: int, burst_bits: int) -> int:
    """Blocks that ``reads`` compared bursts can fill if every bit fails; what LOG_RESERVE must be for that many."""
    return -(-reads // _reads_per_block(burst_bits)) + 1
