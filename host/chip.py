"""The chip model: what approximate DRAM does to data, without storing a cell.

One piece of code serves the mock board (which calls it directly) and a simulated one (through function pointers).
Everything that decides a bit is integer arithmetic on tables that `host.chip_presets` prepares, so two machines agree.

Weak cells
    A row is one Poisson process of unit rate on an axis of *stress*. A point of the process is a cell of the row that
    fails once the row's stress exceeds the point's coordinate, so harsher conditions only ever add cells. The process
    is generated in parcels from the weakest end, each from a counter-based hash, up to the present stress: cost follows
    weak cells, not cells, and nothing is remembered. With rate r a cell is weak with probability 1 - exp(-r / cells of
    the row), independently.

    Stress of a row = rate(VDD, time since ACT, temperature) x bank factor x row factor. A point's position follows
    bitline and DQ lane factors: a share of the points falls on a few weak bitlines of the (bank, subarray).

Reads
    A weak cell flips with a probability that depends on the time since ACT, the stored bit and how many of its
    neighbours on the adjacent data lines of its chip hold the other value. The draw is a hash of (seed, epoch, bank,
    activation index of the bank within the epoch, cell). A flip may be restored into the cell, where it persists until
    the cell is rewritten.

Writes
    A second, independent process gives the cells that a WRITE at this stress fails to change; they keep their old bit.

Assumptions (no public measurement gives them): the joint effect of VDD and time is one of effective time (see
`host.chip_presets`); bitline, DQ and write factors; persistence; neighbours are adjacent data lines of one chip.
Retention, tRP and tRAS violations and disturbance are not modelled.

Contents
    Rows hold a pattern by number (`row_tag`), bursts that differ from it hold a tag each, and only bursts with data of
    their own (tensors, restored or unwritten bits) hold bytes.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit as _njit

from profiles import pattern

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]

# Chip and Engine hold dozens of arrays; numba counts references to each at every call unless told that nothing is
# allocated.
njit = partial(_njit, cache=True, _nrt=False, error_model="numpy")
inlined = partial(njit, forceinline=True)

READ, WRITE = 0, 1
ELAPSED_LIMIT = 64  # DRAM clocks since ACT that the condition tables cover; later accesses see the last entry
PARCELS = 18  # means 2^-12, 2^-12, 2^-11 .. 2^3, then 2^4 for every further parcel
POISSON_TERMS = 64
UNIT = 32  # fixed point of stress
FACTOR_UNIT = 8  # fixed point of row and bank factors

# indices into Chip.parameters
SEED, EPOCH, ROWS, COLUMNS, WIDTH, BURST, CHIP_WIDTH, SUBARRAY_ROWS = range(8)
WEAK_ROW_SHARE, WEAK_ROW_FACTOR, STRONG_ROW_FACTOR, WEAK_BITLINE_SHARE, WEAK_BITLINES = range(8, 13)
PERSISTENCE, WRITE_FLIP, FREE_BLOCKS, FREE_SLOTS, BURST_SHIFT = range(13, 18)  # BURST_SHIFT: log2 of a burst's bits
PARAMETERS = 18


class Chip(NamedTuple):
    """State and tables of one module. `parameters` is indexed by the names above; factors are fixed point, 8 bits.

    Attributes:
        rate: int64[2, ELAPSED_LIMIT], expected weak cells a row for READ and WRITE, fixed point 32 bits.
        flip: int64[ELAPSED_LIMIT, 2, 3], flip probability x 2^32 by stored bit and number of differing neighbours.
        bank_factor: int64[banks]; row_factor: int64[64], quantiles that a hash picks from.
        lane_threshold, lane_alias: int64[data_width], Walker's alias table over data lines (16 bits).
        poisson: int64[PARCELS, POISSON_TERMS], cumulative probabilities x 2^63.
        open_row, act_clock, act_index: int64[banks], -1 where closed.
        row_tag: int32[banks * rows]; >= 0 a pattern number, < 0 the burst tag block -1 - tag.
        burst_tag: int32[blocks, bursts a row]; >= 0 a pattern number, < 0 the data slot -1 - tag.
        block_spec, block_same: the pattern last written to a block, and how many of its bursts hold it.
        slots: uint32[slots, words a burst]; free_blocks, free_slots: stacks of unused numbers.
        specs: int64[n, 3], patterns (kind, parameter, invert); 0 is the content at power-up.
        cache_key, cache_first, cache_cell: weak cells of the last row looked at, by bank and READ or WRITE, by burst.
    """

    parameters: I64
    rate: I64
    flip: I64
    bank_factor: I64
    row_factor: I64
    lane_threshold: I64
    lane_alias: I64
    poisson: I64
    open_row: I64
    act_clock: I64
    act_index: I64
    row_tag: I32
    burst_tag: I32
    block_spec: I32
    block_same: I32
    slots: U32
    free_blocks: I32
    free_slots: I32
    specs: I64
    cache_key: I64
    cache_first: I32
    cache_cell: I32
    scratch: I32


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S1, _S27, _S30, _S31, _S32, _S40 = (np.uint64(n) for n in (1, 27, 30, 31, 32, 40))
_MASK16 = np.uint64(0xFFFF)
_DE_BRUIJN = np.array(
    [
        0,
        1,
        28,
        2,
        29,
        14,
        24,
        3,
        30,
        22,
        20,
        15,
        25,
        17,
        4,
        8,
        31,
        27,
        13,
        23,
        21,
        19,
        16,
        7,
        26,
        12,
        18,
        6,
        11,
        5,
        10,
        9,
    ],
    dtype=np.int64,
)


@inlined()
def mix64(value):  # type: ignore[no-untyped-def]
    """SplitMix64's finaliser on a uint64."""
    x = np.uint64(value)
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@inlined()
def _chain(state, value):  # type: ignore[no-untyped-def]
    return mix64((state + np.uint64(value)) * _GOLDEN + _GOLDEN)


@inlined()
def lowest_bit(mask: int) -> int:
    """Number of the lowest 1 of a non-zero 32-bit mask."""
    return _DE_BRUIJN[(((mask & -mask) * 0x077CB531) & 0xFFFFFFFF) >> 27]


@njit()
def _place(chip: Chip, h, bitline_seed):  # type: ignore[no-untyped-def]
    """Cell of the row that the hash ``h`` points at, following bitline and DQ lane factors."""
    p = chip.parameters
    if np.int64(h & _MASK16) < p[WEAK_BITLINE_SHARE]:
        which = np.int64((h >> np.uint64(16)) & _MASK16) & (p[WEAK_BITLINES] - 1)
        h = _chain(bitline_seed, which)
    else:
        h = mix64(h)
    column = np.int64(h & _MASK16) & (p[COLUMNS] - 1)
    lane = np.int64((h >> np.uint64(16)) & _MASK16) & (p[WIDTH] - 1)
    if np.int64((h >> np.uint64(32)) & _MASK16) >= chip.lane_threshold[lane]:
        lane = chip.lane_alias[lane]
    return column * p[WIDTH] + lane


@inlined()
def _row_stress(chip: Chip, kind: int, bank: int, row: int, elapsed: int) -> int:
    p = chip.parameters
    rate = chip.rate[kind, min(elapsed, ELAPSED_LIMIT - 1)]
    if rate == 0:
        return 0
    h = _chain(_chain(np.uint64(p[SEED]) ^ np.uint64(0x526F77), bank), row)
    factor = chip.row_factor[np.int64(h & np.uint64(63))] * chip.bank_factor[bank] >> FACTOR_UNIT
    weak = np.int64((h >> np.uint64(16)) & _MASK16) < p[WEAK_ROW_SHARE]
    factor = factor * (p[WEAK_ROW_FACTOR] if weak else p[STRONG_ROW_FACTOR]) >> FACTOR_UNIT
    limit = 4 * p[COLUMNS] * p[WIDTH] << UNIT
    return min((rate >> FACTOR_UNIT) * factor, limit)


@njit()
def _generate(chip: Chip, kind: int, bank: int, row: int, stress: int) -> None:
    """Fill the cache of (bank, kind) with the weak cells of ``row`` at ``stress``, grouped by burst."""
    p = chip.parameters
    bursts = p[COLUMNS] // p[BURST]
    shift = p[BURST_SHIFT]
    first = chip.cache_first[bank, kind]
    first[:] = 0
    salt = np.uint64(0x52656164) if kind == READ else np.uint64(0x57726974)
    seed = np.uint64(p[SEED])
    row_seed = _chain(_chain(seed ^ salt, bank), row)
    bitline_seed = _chain(_chain(seed ^ np.uint64(0x4269746C), bank), row // p[SUBARRAY_ROWS])
    found = 0
    low, width, parcel = 0, 1 << (UNIT - 12), 0
    while low < stress:
        h = _chain(row_seed, parcel)
        u = np.int64(h >> _S1)
        cumulative = chip.poisson[min(parcel, PARCELS - 1)]
        count = 0
        while count < POISSON_TERMS - 1 and u >= cumulative[count]:
            count += 1
        for k in range(count):
            point = _chain(h, k + 1)
            if low + (np.int64(point >> _S40) * width >> 24) < stress and found < chip.scratch.size:
                cell = _place(chip, mix64(point + _GOLDEN), bitline_seed)
                chip.scratch[found] = cell
                first[(cell >> shift) + 1] += 1
                found += 1
        low += width
        if parcel > 0 and parcel < PARCELS - 1:
            width <<= 1
        parcel += 1
    for b in range(bursts):
        first[b + 1] += first[b]
    cells = chip.cache_cell[bank, kind]
    for k in range(found - 1, -1, -1):  # downwards, with `first` as the running end of each group
        cell = chip.scratch[k]
        b = cell >> shift
        first[b + 1] -= 1
        cells[first[b + 1]] = cell
    for b in range(bursts):  # first[b + 1] is now the start of group b; shift back
        first[b] = first[b + 1]
    first[bursts] = found
    chip.cache_key[bank, kind, 0] = row
    chip.cache_key[bank, kind, 1] = stress


@inlined()
def _weak_in_row(chip: Chip, kind: int, bank: int, row: int, elapsed: int) -> bool:
    """Bring the cache of (bank, kind) to this row and stress; False if the row has no weak cell."""
    stress = _row_stress(chip, kind, bank, row, elapsed)
    if stress == 0:
        return False
    if chip.cache_key[bank, kind, 0] != row or chip.cache_key[bank, kind, 1] != stress:
        _generate(chip, kind, bank, row, stress)
    return chip.cache_first[bank, kind, chip.cache_first.shape[2] - 1] > 0


@inlined()
def tag_of(chip: Chip, bank: int, row: int, burst: int) -> int:
    """What a burst holds: a pattern number, or -1 - slot."""
    tag = chip.row_tag[bank * chip.parameters[ROWS] + row]
    return tag if tag >= 0 else chip.burst_tag[-1 - tag, burst]


@inlined()
def stored_word(chip: Chip, tag: int, bank: int, row: int, burst: int, index: int) -> int:
    """Word ``index`` of a burst whose tag is ``tag``."""
    if tag < 0:
        return np.int64(chip.slots[-1 - tag, index])
    p = chip.parameters
    kind, parameter, invert = chip.specs[tag]
    return pattern.word(kind, parameter, invert, bank, row, burst * p[BURST], index, p[WIDTH])


@njit()
def _release(chip: Chip, tag: int) -> None:
    if tag < 0:
        p = chip.parameters
        chip.free_slots[p[FREE_SLOTS]] = -1 - tag
        p[FREE_SLOTS] += 1


@njit()
def _set_tag(chip: Chip, bank: int, row: int, burst: int, tag: int) -> None:
    """Make a burst hold ``tag``; rows that hold one pattern throughout collapse to a single number."""
    p = chip.parameters
    where = bank * p[ROWS] + row
    row_tag = chip.row_tag[where]
    if row_tag == tag and tag >= 0:
        return
    if row_tag >= 0:
        p[FREE_BLOCKS] -= 1
        block = chip.free_blocks[p[FREE_BLOCKS]]
        for k in range(chip.burst_tag.shape[1]):
            chip.burst_tag[block, k] = row_tag
        chip.block_spec[block], chip.block_same[block] = row_tag, chip.burst_tag.shape[1]
        chip.row_tag[where] = -1 - block
    block = -1 - chip.row_tag[where]
    old = chip.burst_tag[block, burst]
    if old != tag:
        _release(chip, old)
    chip.burst_tag[block, burst] = tag
    if tag >= 0 and chip.block_spec[block] != tag:
        chip.block_spec[block] = tag
        chip.block_same[block] = 0
        for k in range(chip.burst_tag.shape[1]):
            chip.block_same[block] += chip.burst_tag[block, k] == tag
    elif old != tag and tag == chip.block_spec[block]:
        chip.block_same[block] += 1
    elif old != tag and old == chip.block_spec[block]:
        chip.block_same[block] -= 1
    if chip.block_same[block] == chip.burst_tag.shape[1]:
        chip.row_tag[where] = chip.block_spec[block]
        chip.free_blocks[p[FREE_BLOCKS]] = block
        p[FREE_BLOCKS] += 1


@njit()
def _own_data(chip: Chip, bank: int, row: int, burst: int) -> int:
    """Give a burst a data slot of its own, holding what it held; returns the slot."""
    tag = tag_of(chip, bank, row, burst)
    if tag < 0:
        return -1 - tag
    p = chip.parameters
    p[FREE_SLOTS] -= 1
    slot = chip.free_slots[p[FREE_SLOTS]]
    for w in range(chip.slots.shape[1]):
        chip.slots[slot, w] = np.uint32(stored_word(chip, tag, bank, row, burst, w))
    _set_tag(chip, bank, row, burst, -1 - slot)
    return slot


@inlined()
def activate(chip: Chip, bank: int, row: int, clock: int) -> None:
    """ACT: open a row; ``clock`` is the DRAM clock. Counts the bank's activations within the epoch."""
    chip.open_row[bank] = row
    chip.act_clock[bank] = clock
    chip.act_index[bank] += 1


@inlined()
def precharge(chip: Chip, bank: int) -> None:
    """PRE: close a bank."""
    chip.open_row[bank] = -1


@inlined()
def read_flips(chip: Chip, bank: int, burst: int, clock: int, flips: I64) -> bool:
    """RD: which bits of a burst of the open row read wrong now.

    Args:
        flips: int64[words a burst], overwritten with a 1 for each wrong bit if there is any.

    Returns:
        True if any bit is wrong; otherwise ``flips`` is untouched.
    """
    row = chip.open_row[bank]
    elapsed = clock - chip.act_clock[bank]
    if not _weak_in_row(chip, READ, bank, row, elapsed):
        return False
    low, high = chip.cache_first[bank, READ, burst], chip.cache_first[bank, READ, burst + 1]
    if low == high:
        return False
    p = chip.parameters
    tag = tag_of(chip, bank, row, burst)
    table = chip.flip[min(elapsed, ELAPSED_LIMIT - 1)]
    draw = _chain(_chain(_chain(np.uint64(p[SEED]), p[EPOCH]), bank), chip.act_index[bank])
    bits, edge = (1 << p[BURST_SHIFT]) - 1, p[CHIP_WIDTH] - 1
    flips[:] = 0
    wrong, restored = False, False
    for k in range(low, high):
        cell = np.int64(chip.cache_cell[bank, READ, k])
        bit = cell & bits
        word = stored_word(chip, tag, bank, row, burst, bit >> 5)
        shift = bit & 31
        value = (word >> shift) & 1
        lane = bit & edge
        neighbours = 0
        if lane > 0:
            neighbours += ((word >> (shift - 1)) & 1) != value
        if lane < edge:
            neighbours += ((word >> (shift + 1)) & 1) != value
        h = _chain(draw, cell)
        if np.int64(h >> _S32) < table[value, neighbours]:
            flips[bit >> 5] |= 1 << shift
            wrong = True
            restored |= np.int64(h & np.uint64(0xFFFFFFFF)) < p[PERSISTENCE]
    if restored:
        _restore(chip, bank, row, burst, draw, flips)
    return wrong


@njit()
def _restore(chip: Chip, bank: int, row: int, burst: int, draw, flips: I64) -> None:  # type: ignore[no-untyped-def]
    """Store those wrong bits that the sense amplifiers wrote back."""
    slot = _own_data(chip, bank, row, burst)
    base = burst << chip.parameters[BURST_SHIFT]
    for w in range(flips.size):
        mask = flips[w]
        while mask:
            bit = lowest_bit(mask)
            mask &= mask - 1
            h = _chain(draw, base + w * 32 + bit)
            if np.int64(h & np.uint64(0xFFFFFFFF)) < chip.parameters[PERSISTENCE]:
                chip.slots[slot, w] ^= np.uint32(1 << bit)


@inlined()
def _write_kept(chip: Chip, bank: int, burst: int, clock: int, kept: I64) -> bool:
    """WR: which bits of a burst of the open row this WRITE fails to change; as `read_flips`."""
    row = chip.open_row[bank]
    if not _weak_in_row(chip, WRITE, bank, row, clock - chip.act_clock[bank]):
        return False
    low, high = chip.cache_first[bank, WRITE, burst], chip.cache_first[bank, WRITE, burst + 1]
    if low == high:
        return False
    p = chip.parameters
    seed = _chain(np.uint64(p[SEED]) ^ np.uint64(0x5772), p[EPOCH])
    draw = _chain(_chain(seed, bank), chip.act_index[bank])
    kept[:] = 0
    for k in range(low, high):
        cell = np.int64(chip.cache_cell[bank, WRITE, k])
        if np.int64(_chain(draw, cell) >> _S32) < p[WRITE_FLIP]:
            bit = cell & ((1 << p[BURST_SHIFT]) - 1)
            kept[bit >> 5] |= 1 << (bit & 31)
    return True


@inlined()
def write_pattern(chip: Chip, bank: int, burst: int, clock: int, spec: int, kept: I64) -> None:
    """WR of pattern number ``spec`` to a burst of the open row; ``kept`` is scratch, int64[words a burst]."""
    row = chip.open_row[bank]
    fails = _write_kept(chip, bank, burst, clock, kept)
    if fails:
        tag = tag_of(chip, bank, row, burst)
        differs = False
        for w in range(kept.size):
            if kept[w]:
                new = stored_word(chip, spec, bank, row, burst, w)
                kept[w] &= stored_word(chip, tag, bank, row, burst, w) ^ new
                differs |= kept[w] != 0
        fails = differs
    _set_tag(chip, bank, row, burst, spec)
    if fails:
        slot = _own_data(chip, bank, row, burst)
        for w in range(kept.size):
            chip.slots[slot, w] ^= np.uint32(kept[w])


@inlined()
def write_words(chip: Chip, bank: int, burst: int, clock: int, words: U32, kept: I64) -> None:
    """WR of given data, uint32[words a burst], to a burst of the open row; ``kept`` is scratch."""
    row = chip.open_row[bank]
    fails = _write_kept(chip, bank, burst, clock, kept)
    slot = _own_data(chip, bank, row, burst)
    for w in range(words.size):
        keep = np.uint32(kept[w]) if fails else np.uint32(0)
        chip.slots[slot, w] = (chip.slots[slot, w] & keep) | (words[w] & ~keep)
