"""The chip model: what approximate DRAM does to data, without storing a cell.

One piece of code serves the mock board (which calls it directly) and a simulated one (through function pointers).
Everything that decides a bit is integer arithmetic on tables that `host.chip_presets` prepares, so two machines agree.

Weak cells
    A burst is one Poisson process of unit rate on an axis of *stress*. A point of the process is a cell of the burst
    that is weak once the stress exceeds the point's coordinate, so harsher conditions only ever add cells. Points come
    weakest first, up to the present stress: cost follows weak cells, not cells, and nothing is remembered. One 64-bit
    hash of (seed, bank, row, burst, point) gives both the distance from the point before and the place. At rate r a
    cell, a cell is weak with probability 1 - exp(-r), independently of the others.

    Stress = rate(VDD, time since ACT, temperature) x bank factor x row factor. Rows are of two classes, weak and
    strong. Where in its burst a point falls follows DQ lane factors, and a share of the points falls on the few weak
    bitlines of the (bank, subarray).

Reads
    A weak cell flips with a probability that depends on the time since ACT, the stored bit and how many of its
    neighbours on the adjacent data lines of its chip hold the other value. The draw is a hash of (seed, epoch, bank,
    activation index of the bank within the epoch, burst, bit). A flip may be restored into the cell, where it persists
    until the cell is rewritten.

Writes
    A second, independent process gives the cells that a WRITE at this stress may fail to change; they keep their old
    bit.

Assumptions (no public measurement gives them): the joint effect of VDD and time is one of effective time (see
`host.chip_presets`); bitline, DQ and write factors; persistence; neighbours are adjacent data lines of one chip.
Retention, tRP and tRAS violations and disturbance are not modelled.

Hashes
    Seed, epoch, bank and row are mixed with SplitMix64's finaliser. From there a wyrand generator, whose n-th number is
    a function of n and its seed, serves each row's points, each epoch's activations and each activation's draws.

Contents
    Rows hold a pattern by number (`row_tag`), bursts that differ from it hold a tag each, and only bursts with data of
    their own (tensors, restored or unwritten bits) hold bytes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from host.compiled import inlined, njit
from profiles import pattern

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

READ, WRITE = 0, 1
ELAPSED_LIMIT = 64  # DRAM clocks since ACT that the condition tables cover; later accesses see the last entry
UNIT = 40  # fixed point of stress: bits after the point
FACTOR_UNIT = 8  # fixed point of row and bank factors
LOG_BITS = 9  # the table of logarithms has 2^9 steps
LANE_BITS = 12  # the table of data lines has 2^12 entries
BURST_BITS = 12  # no row has more than 2^12 bursts
MAX_STRESS_PER_CELL = 4
WEAK_BITLINE_SPACING = 64  # one bitline in so many is a weak one
ROW_CLASSES = 64  # entries of Chip.row_factor

# indices into Chip.parameters; BURST_SHIFT is log2 of a burst's bits
SEED, EPOCH, ROWS, COLUMNS, WIDTH, BURST, CHIP_WIDTH, SUBARRAY_SHIFT, BURST_SHIFT = range(9)
WEAK_ROW_SHARE, WEAK_ROW_FACTOR, STRONG_ROW_FACTOR, WEAK_BITLINE_SHARE = range(9, 13)
PERSISTENCE, WRITE_FLIP, FREE_BLOCKS, FREE_SLOTS, BEAT_SHIFT = range(13, 18)
PARAMETERS = 18

# columns of Chip.near
NEAR_ROW, NEAR_FACTOR = 0, 1
# columns of Chip.near_hash
NEAR_ROW_HASH, NEAR_BITLINE_HASH = 0, 1


class Chip(NamedTuple):
    """State and tables of one module. `parameters` is indexed by the names above; factors are fixed point, 8 bits.

    Attributes:
        rate: int64[2, ELAPSED_LIMIT], expected weak cells a burst for READ and WRITE, fixed point `UNIT` bits.
        flip: int64[ELAPSED_LIMIT, 8 * chip_width], flip probability x 2^32 by data line of the chip (times 8) and by
            what the line below (bit 0), the line itself (bit 1) and the line above (bit 2) hold.
        bank_factor: int64[banks]; row_factor: int64[ROW_CLASSES], quantiles that a hash picks from.
        lane: uint8[2^LANE_BITS], data lines, each as often as points fall on it.
        logarithm: int64[2^LOG_BITS + 1], -ln of 1/2 .. 1, fixed point `UNIT` bits.
        open_row, act_clock, act_index: int64[banks]; open_row is -1 where closed.
        bank_hash, epoch_hash: uint64[banks], where the hashes of a bank's cells and draws begin.
        near, near_hash: int64[banks, 2], uint64[banks, 2]; what was worked out for the row last looked at.
        row_tag: int32[banks * rows]; >= 0 a pattern number, < 0 the burst tag block -1 - tag.
        burst_tag: int32[blocks, bursts a row]; >= 0 a pattern number, < 0 the data slot -1 - tag.
        block_spec, block_same: the pattern last written to a block, and how many of its bursts hold it.
        slots: uint32[slots, words a burst]; free_blocks, free_slots: stacks of unused numbers.
        specs: int64[n, 3], patterns (kind, parameter, invert); 0 is the content at power-up.
        held, kept, fresh: int64[words a burst]; scratch.
    """

    parameters: I64
    rate: I64
    flip: I64
    bank_factor: I64
    row_factor: I64
    lane: U8
    logarithm: I64
    open_row: I64
    act_clock: I64
    act_index: I64
    bank_hash: U64
    epoch_hash: U64
    near: I64
    near_hash: U64
    row_tag: I32
    burst_tag: I32
    block_spec: I32
    block_same: I32
    slots: U32
    free_blocks: I32
    free_slots: I32
    specs: I64
    held: I64
    kept: I64
    fresh: I64


_FALSE = ir.Constant(ir.IntType(1), 0)  # "a zero has 64 zeros" rather than "is undefined"


def _machine_instruction(emit: Callable[[Any, Any], Any]) -> Any:
    """A function from int64 to int64 that compiles to what ``emit(builder, value)`` emits."""

    def typed(_context: Any, value: Any) -> Any:
        return types.int64(types.int64), lambda _c, builder, _s, values: emit(builder, values[0])

    return intrinsic(typed)


popcount = _machine_instruction(lambda builder, value: builder.ctpop(value))
lowest_bit = _machine_instruction(lambda builder, value: builder.cttz(value, _FALSE))  # number of the lowest 1
_leading_zeros = _machine_instruction(lambda builder, value: builder.ctlz(value, _FALSE))


@intrinsic
def _folded_product(_context: Any, a: Any, b: Any) -> Any:
    """Upper half of the 128-bit product of two uint64, exclusive-or its lower half."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(value, wide) for value in arguments))
        upper = builder.lshr(product, ir.Constant(wide, 64))
        return builder.trunc(builder.xor(product, upper), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), emit


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S16, _S27, _S30, _S31, _S32 = (np.uint64(n) for n in (16, 27, 30, 31, 32))
_MASK16, _MASK32 = np.uint64(0xFFFF), np.uint64(0xFFFFFFFF)
_STEP, _WYRAND = np.uint64(0x2D358DCCAA6C78A5), np.uint64(0x8BB84B93962EACC9)
_BURST_STEP = np.uint64(0x4B33A62ED433D4A3)  # from a burst's points to the next one's, without meeting on the way
_LN2 = 762_123_384_785  # ln 2 in fixed point, UNIT bits
_SALTS = (np.uint64(0x5265616452656164), np.uint64(0x5772697457726974))  # READ and WRITE have weak cells of their own
_BITLINE_SALT = np.uint64(0x4269746C)
_SOLID = int(pattern.PatternKind.SOLID)


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
def _scattered(state):  # type: ignore[no-untyped-def]
    """wyrand's number at a state (Wang Yi, 2019); states follow each other in steps of `_STEP`."""
    return _folded_product(state, state ^ _WYRAND)  # type: ignore[call-arg]  # numba gives the typing context


@njit()
def begin_epoch(chip: Chip, epoch: int) -> None:
    """Tag reads from here on with ``epoch`` and count activations from 0: draws repeat exactly when an epoch does."""
    p = chip.parameters
    p[EPOCH] = epoch
    for bank in range(chip.open_row.size):
        chip.act_index[bank] = 0
        chip.bank_hash[bank] = _chain(np.uint64(p[SEED]) ^ np.uint64(0x526F77), bank)
        chip.epoch_hash[bank] = _chain(_chain(np.uint64(p[SEED]), epoch), bank)


@inlined()
def _exponential(chip: Chip, h):  # type: ignore[no-untyped-def]
    """An exponential variate of mean 1 from a hash: -ln of its upper half (to 31 digits) as a fraction, fixed point."""
    x = np.int64(h) | 1
    zeros = _leading_zeros(x)
    x <<= zeros
    k = (x >> (63 - LOG_BITS)) & ((1 << LOG_BITS) - 1)
    below = (x >> 32) & ((1 << (31 - LOG_BITS)) - 1)
    high = chip.logarithm[k]
    return zeros * _LN2 + high - ((high - chip.logarithm[k + 1]) * below >> (31 - LOG_BITS))


@inlined()
def _look_at(chip: Chip, bank: int, row: int) -> None:
    """Work out what the weak cells of a row have in common."""
    p = chip.parameters
    h = _chain(chip.bank_hash[bank], row)
    weak = np.int64((h >> _S16) & _MASK16) < p[WEAK_ROW_SHARE]
    factor = chip.row_factor[np.int64(h & np.uint64(ROW_CLASSES - 1))] * chip.bank_factor[bank] >> FACTOR_UNIT
    chip.near[bank, NEAR_ROW] = row
    chip.near[bank, NEAR_FACTOR] = factor * (p[WEAK_ROW_FACTOR] if weak else p[STRONG_ROW_FACTOR]) >> FACTOR_UNIT
    chip.near_hash[bank, NEAR_ROW_HASH] = mix64(h)
    chip.near_hash[bank, NEAR_BITLINE_HASH] = _chain(chip.bank_hash[bank] ^ _BITLINE_SALT, row >> p[SUBARRAY_SHIFT])


@inlined()
def _places(chip: Chip, bank: int, burst: int):  # type: ignore[no-untyped-def]
    """What `_place` needs for a burst of the row last looked at: hash of the weak bitlines, shape of the burst."""
    p = chip.parameters
    size = 1 << p[BURST_SHIFT]
    bitlines = _scattered(chip.near_hash[bank, NEAR_BITLINE_HASH] + np.uint64(burst) * _STEP)
    return bitlines, max(1, size // WEAK_BITLINE_SPACING) - 1, p[WEAK_BITLINE_SHARE], p[BEAT_SHIFT], size - p[WIDTH]


@inlined()
def _place(chip: Chip, places, h):  # type: ignore[no-untyped-def]
    """Bit of the burst that the point with hash ``h`` falls on, following bitline and DQ lane factors; no branches.

    It takes the lower 32 bits of the hash, `_exponential` the upper: 12 for the lane, 6 for the beat, 8 for the choice
    of a weak bitline, 6 for which of these. The weak bitlines are odd multiples of a hash.
    """
    bitlines, which, share, beat_shift, beats = places
    low = np.int64(h & _MASK32)
    weak = np.int64(bitlines * np.uint64(2 * (low >> 26 & which) + 1) >> _S32)
    low = weak if (low >> 18 & 0xFF) < share else low
    return (low >> beat_shift) & beats | chip.lane[low & ((1 << LANE_BITS) - 1)]


@inlined()
def _stress(chip: Chip, kind: int, bank: int, row: int, elapsed: int) -> int:
    """Stress of the cells of a row ``elapsed`` clocks after ACT; what they have in common is in `Chip.near` then."""
    rate = chip.rate[kind, min(elapsed, ELAPSED_LIMIT - 1)]
    if rate == 0:
        return 0
    if chip.near[bank, NEAR_ROW] != row:
        _look_at(chip, bank, row)
    limit = MAX_STRESS_PER_CELL << (UNIT + chip.parameters[BURST_SHIFT])
    return min((rate >> FACTOR_UNIT) * chip.near[bank, NEAR_FACTOR], limit)


@inlined()
def _first_point(chip: Chip, kind: int, bank: int, burst: int):  # type: ignore[no-untyped-def]
    """State whose number is the weakest point of a burst of the row last looked at; the others' follow."""
    return (chip.near_hash[bank, NEAR_ROW_HASH] ^ _SALTS[kind]) + np.uint64(burst) * _BURST_STEP


@inlined()
def tag_of(chip: Chip, bank: int, row: int, burst: int) -> int:
    """What a burst holds: a pattern number, or -1 - slot."""
    tag = chip.row_tag[bank * chip.parameters[ROWS] + row]
    return tag if tag >= 0 else chip.burst_tag[-1 - tag, burst]


@inlined()
def words_of(chip: Chip, tag: int, bank: int, row: int, burst: int, words: I64) -> None:
    """Fill ``words``, int64[words a burst], with what a burst whose tag is ``tag`` holds."""
    if tag < 0:
        for w in range(words.size):
            words[w] = np.int64(chip.slots[-1 - tag, w])
        return
    p = chip.parameters
    kind, parameter, invert = chip.specs[tag]
    if kind == _SOLID:
        word = pattern.word(kind, parameter, invert, bank, row, 0, 0, p[WIDTH])
        for w in range(words.size):
            words[w] = word
    else:
        _pattern_words(kind, parameter, invert, bank, row, burst * p[BURST], p[WIDTH], words)


@njit()
def _pattern_words(
    kind: int, parameter: int, invert: int, bank: int, row: int, column: int, width: int, words: I64
) -> None:
    for w in range(words.size):
        words[w] = pattern.word(kind, parameter, invert, bank, row, column, w, width)


@inlined()
def _release(chip: Chip, tag: int) -> None:
    if tag < 0:
        p = chip.parameters
        chip.free_slots[p[FREE_SLOTS]] = -1 - tag
        p[FREE_SLOTS] += 1


@inlined()
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


@inlined()
def _own_slot(chip: Chip, bank: int, row: int, burst: int) -> int:
    """Give a burst a data slot of its own, whose words the caller fills; returns the slot."""
    tag = tag_of(chip, bank, row, burst)
    if tag < 0:
        return -1 - tag
    p = chip.parameters
    p[FREE_SLOTS] -= 1
    slot = chip.free_slots[p[FREE_SLOTS]]
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
def read_flips(chip: Chip, bank: int, burst: int, clock: int, flips: I64) -> int:
    """RD: which bits of a burst of the open row read wrong now.

    Args:
        flips: int64[words a burst], overwritten with a 1 for each wrong bit if there is any.

    Returns:
        A 1 for each word that has wrong bits; ``chip.held`` then holds the right words. If 0, ``flips`` means nothing.
    """
    elapsed = clock - chip.act_clock[bank]
    stress = _stress(chip, READ, bank, chip.open_row[bank], elapsed)
    if stress == 0:
        return 0
    state = _first_point(chip, READ, bank, burst)
    reached = _exponential(chip, _scattered(state))
    if reached >= stress:
        return 0
    return _draw_flips(chip, bank, burst, elapsed, state, reached, stress, flips)


@inlined()
def _draw_flips(chip: Chip, bank: int, burst: int, elapsed: int, state, reached, stress, flips: I64) -> int:  # type: ignore[no-untyped-def]
    """Draw which of a burst's weak bits flip; see `read_flips`."""
    p, held, row = chip.parameters, chip.held, chip.open_row[bank]
    words_of(chip, tag_of(chip, bank, row, burst), bank, row, burst, held)
    for w in range(flips.size):
        flips[w] = 0
    flip_below = chip.flip[min(elapsed, ELAPSED_LIMIT - 1)]
    draw = _draws(chip, chip.epoch_hash[bank], bank, burst)
    places = _places(chip, bank, burst)
    edge, persistence = p[CHIP_WIDTH] - 1, p[PERSISTENCE]
    wrong = restored = 0
    h = _scattered(state)
    while reached < stress:
        bit = _place(chip, places, h)
        word, shift = bit >> 5, bit & 31
        d = _scattered(draw + np.uint64(bit) * _STEP)
        around = held[word] << 1 >> shift & 7
        flip = np.int64(np.int64(d >> _S32) < flip_below[(bit & edge) << 3 | around])
        sticks = flip & (np.int64(d & _MASK32) - persistence >> 63)
        flips[word] |= (flip | sticks << 32) << shift  # the upper half has room for what is written back
        wrong |= flip << word
        restored |= sticks
        state += _STEP
        h = _scattered(state)
        reached += _exponential(chip, h)
    if restored:
        slot = _own_slot(chip, bank, row, burst)
        for w in range(flips.size):
            chip.slots[slot, w] = np.uint32(held[w] ^ flips[w] >> 32)
            flips[w] &= 0xFFFFFFFF
    return wrong


@inlined()
def _draws(chip: Chip, hash_of_epoch, bank: int, burst: int):  # type: ignore[no-untyped-def]
    """State from which a burst's draws in the present activation lie in steps of `_STEP`, by bit."""
    return _scattered(hash_of_epoch + np.uint64(chip.act_index[bank] << BURST_BITS | burst) * _STEP)


@inlined()
def _unchanged(chip: Chip, bank: int, burst: int, clock: int) -> bool:
    """WR: put a 1 into ``chip.kept`` for each bit of the burst that this WRITE fails to change; False if none."""
    stress = _stress(chip, WRITE, bank, chip.open_row[bank], clock - chip.act_clock[bank])
    if stress == 0:
        return False
    state = _first_point(chip, WRITE, bank, burst)
    h = _scattered(state)
    reached = _exponential(chip, h)
    if reached >= stress:
        return False
    draw = _draws(chip, chip.epoch_hash[bank] ^ _SALTS[WRITE], bank, burst)
    places = _places(chip, bank, burst)
    for w in range(chip.kept.size):
        chip.kept[w] = 0
    while reached < stress:
        bit = _place(chip, places, h)
        if np.int64(_scattered(draw + np.uint64(bit) * _STEP) >> _S32) < chip.parameters[WRITE_FLIP]:
            chip.kept[bit >> 5] |= 1 << (bit & 31)
        state += _STEP
        h = _scattered(state)
        reached += _exponential(chip, h)
    return True


@inlined()
def _marks_that_show(chip: Chip, bank: int, row: int, burst: int, spec: int) -> bool:
    """Leave in ``chip.kept`` only the bits that a clean write of pattern ``spec`` would change; False if none."""
    words_of(chip, tag_of(chip, bank, row, burst), bank, row, burst, chip.held)
    words_of(chip, spec, bank, row, burst, chip.fresh)
    left = 0
    for w in range(chip.kept.size):
        chip.kept[w] &= chip.held[w] ^ chip.fresh[w]
        left |= chip.kept[w]
    return left != 0


@inlined()
def write_pattern(chip: Chip, bank: int, burst: int, clock: int, spec: int) -> None:
    """WR of pattern number ``spec`` to a burst of the open row."""
    row = chip.open_row[bank]
    if _unchanged(chip, bank, burst, clock) and _marks_that_show(chip, bank, row, burst, spec):
        slot = _own_slot(chip, bank, row, burst)
        for w in range(chip.kept.size):
            chip.slots[slot, w] = np.uint32(chip.fresh[w] ^ chip.kept[w])
    else:
        _set_tag(chip, bank, row, burst, spec)


@inlined()
def write_words(chip: Chip, bank: int, burst: int, clock: int, words: U32) -> None:
    """WR of given data, uint32[words a burst], to a burst of the open row."""
    row = chip.open_row[bank]
    fails = _unchanged(chip, bank, burst, clock)
    if fails:
        words_of(chip, tag_of(chip, bank, row, burst), bank, row, burst, chip.held)
    slot = _own_slot(chip, bank, row, burst)
    for w in range(words.size):
        keep = np.uint32(chip.kept[w]) if fails else np.uint32(0)
        chip.slots[slot, w] = (np.uint32(chip.held[w]) & keep) | (words[w] & ~keep)
