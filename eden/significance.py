"""Placement by significance: with known weak cells, the bits that matter lie in cells that hold. No retraining.

Whoever stores a tensor knows its values, and the weak cells of the place it goes to; so it knows what each possible
flip would do. What is free to choose is where each bit lies and how it is written:

- **rows**: all tensors' costly bits fill the rows with the fewest weak cells, the others the rest, and the worst rows
  stay empty where there is room to spare (`plan_significance`). Clusters are avoided so.
- **values**: integers are stored as sign and magnitude, unless their signs are guarded, and a sign that says nothing as
  a second copy of the highest bit (`to_words`). This needs no map.
- **cells**: each unit of 512 cells (a burst of a 64-bit bus) is written in one of `CHOICES` ways, each a permutation of
  its bits, half of them inverted as well: the way that costs least (`SignificanceMemory`). Single weak cells are
  avoided so, and the value that a cell does not hold.

A choice of 32 ways among 512 cells is 5 bits: 0.98 % of what is stored; nothing else is kept but the order of rows. To
choose each unit's way on its own would waste some of that: most units have several good ways, a few have none. Here the
permutations of a unit depend on the choice made in the unit before it (`STATES` sets of `CHOICES`), and Viterbi's
algorithm finds the cheapest way through all units together, as in trellis-coded quantisation (Marcellin and Fischer,
IEEE Trans. Communications, 1990): the same bits choose among many more combinations. A reader looks up one permutation
a unit; it needs neither the map of weak cells nor the search.

What a flip costs is the square of the change of the value that the network gets to see, after known bits and guarded
signs are put right and implausible values zeroed (`eden.bounding`). Squares of changes add up where errors are
independent, and are what a layer's output feels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from eden.approximate import ApproximateNetwork, TensorSpec
from eden.bounding import Bounding, correct
from eden.mapping import DramMapping, Partition, Significance, made_mapping
from eden.memory import ApproximateMemory, ReliableMemory, gathered
from eden.placement import Piece, Placement
from eden.precision import Precision
from eden.tensor_format import STORED_TYPE, TINY, TensorFormat, pack
from profiles.cells import WeakCells
from profiles.errors import CapacityError, NetworkError
from profiles.schema import OperatingPoint

UNIT_BITS = 512
CHOICE_BITS = 5
CHOICES = 1 << CHOICE_BITS
STATES = 16
SPLITS = (1.0, 0.875, 0.75, 0.625, 0.5)  # shares of a value's bits that are tried as its costly ones
_PROBES = 256  # numbers over the range that say which bits are costly
_SEED = 20191012
_BITS_IN_TABLE = 8  # of words that are few enough to look up
_SEGMENT = 1 << 16  # elements encoded at a time, whole units at any number of bits: bounds the memory it takes

Bits = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger[Any]]
Costs = npt.NDArray[np.float32]


# ---- the ways to write a unit ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Codebook:
    """Ways to write a unit: way ``choice * STATES + state``; the next unit's state is ``choice % STATES``.

    Attributes:
        source: uint16[ways, 512], which of the unit's bits each cell holds.
        by_cell: uint16[512, ways], the same, to look up one cell in all ways.
        inverted: uint8[ways], 1 where bits are written inverted: the second half.
    """

    source: npt.NDArray[np.uint16]
    by_cell: npt.NDArray[np.uint16]
    inverted: Bits


@lru_cache(maxsize=1)
def codebook() -> Codebook:
    """The one codebook: random permutations, but for way 0, which leaves the unit as it is."""
    generator = np.random.Generator(np.random.Philox(_SEED))
    ways = STATES * CHOICES
    source = np.argsort(generator.integers(0, 1 << 62, (ways, UNIT_BITS)), axis=1, kind="stable").astype(np.uint16)
    source[0] = np.arange(UNIT_BITS)
    return Codebook(source, np.ascontiguousarray(source.T), (np.arange(ways) >= ways // 2).astype(np.uint8))


# ---- how a value is written, and what a flip of a bit of it costs ----------------------------------------------------


def to_words(data: Bits, tensor_format: TensorFormat) -> Words:
    """Stored bytes as words that errors cost less in; of int4 both nibbles of each byte.

    Integers become sign and magnitude: a flipped sign then costs twice a small value, not half of the range. Where no
    number is negative, the sign says nothing, and its bit is a second copy of the highest bit. Guarded signs are left
    as they are, three copies. Floating point has sign and magnitude already.

    Returns:
        Unsigned words of the precision's bits, uint8 for int4.
    """
    precision = tensor_format.precision
    words = _stored_words(data, precision)
    if not precision.is_integer or tensor_format.sign_copies[0]:
        return words
    sign, highest = (words.dtype.type(1 << (precision.bits - back)) for back in (1, 2))
    if tensor_format.low >= 0:
        return cast(Words, words | ((words & highest) << 1))
    return cast(Words, np.where(words & sign, sign | (-words & (sign - 1)), words))


def from_words(words: Words, tensor_format: TensorFormat) -> Words:
    """What `to_words` was given, as words. Where the two copies of a highest bit differ it is 0, as it mostly is."""
    precision = tensor_format.precision
    if not precision.is_integer or tensor_format.sign_copies[0]:
        return words
    sign, highest = (words.dtype.type(1 << (precision.bits - back)) for back in (1, 2))
    if tensor_format.low >= 0:
        return cast(Words, words & ((sign - 1) ^ highest | words >> 1 & highest))
    return cast(Words, np.where(words & sign, sign | (-words & (sign - 1)), words))


def flip_costs(words: Words, tensor_format: TensorFormat, bits: Sequence[int]) -> Costs:
    """What a flip of each of some bits costs: squared change of what a bounded network gets to see, in stored numbers.

    Scales do not count: neither is a tensor held to another, nor a channel of integers.

    Args:
        words: as `to_words` made them.
        tensor_format: what a reader goes by; costs are relative to its larger magnitude's square.
        bits: which bits of each word, from 0, the least significant.

    Returns:
        float32[words, len(bits)].
    """
    if tensor_format.precision.bits <= _BITS_IN_TABLE:
        return _flip_cost_table(tensor_format, tuple(bits))[words]
    return _flip_costs(words, tensor_format, bits)


@lru_cache(maxsize=1024)
def _flip_cost_table(tensor_format: TensorFormat, bits: tuple[int, ...]) -> Costs:
    """`flip_costs` of every word."""
    every = np.arange(1 << tensor_format.precision.bits, dtype=np.uint8)
    return _flip_costs(every, tensor_format, bits)


def _flip_costs(words: Words, tensor_format: TensorFormat, bits: Sequence[int]) -> Costs:
    half_unit = np.float32(_magnitude(tensor_format) / 2)

    def half_seen(read: Words) -> npt.NDArray[np.float32]:  # half, so that a difference cannot overflow
        stored = _stored(from_words(read, tensor_format), tensor_format.precision)
        return correct(stored, tensor_format, Bounding.ZERO).to(torch.float32).numpy() * np.float32(0.5)

    clean = half_seen(words)
    costs = np.empty((words.size, len(bits)), np.float32)
    for column, bit in enumerate(bits):
        costs[:, column] = ((half_seen(words ^ words.dtype.type(1 << bit)) - clean) / half_unit) ** 2
    return costs


@lru_cache(maxsize=1024)
def costly_first(tensor_format: TensorFormat) -> tuple[int, ...]:
    """Bits of a word, those first whose flips cost most, in the mean over all codes, or numbers spread over the range.

    A reader finds this order by the format alone. Bits whose flips it puts right come last.
    """
    precision = tensor_format.precision
    if precision.is_integer:  # at the ends any flip is implausible: as few of many codes, they must not count for more
        numbers = torch.arange(int(tensor_format.low), int(tensor_format.high) + 1)
    else:
        numbers = torch.linspace(tensor_format.low, tensor_format.high, _PROBES, dtype=torch.float64)
    words = to_words(pack(numbers.to(STORED_TYPE[precision]), precision).numpy(), tensor_format)
    costs = flip_costs(words, tensor_format, range(precision.bits)).mean(axis=0, dtype=np.float64)
    highest_first = np.arange(precision.bits)[::-1]
    return tuple(int(bit) for bit in highest_first[np.argsort(-costs[highest_first], kind="stable")])


def _magnitude(tensor_format: TensorFormat) -> float:
    """The larger magnitude, in the stored domain; 1 where nothing is larger than the smallest normal number."""
    largest = max(abs(end - tensor_format.offset) for end in (tensor_format.low, tensor_format.high))
    return largest if largest > 2 * TINY else 1.0


def _stored_words(data: Bits, precision: Precision) -> Words:
    if precision is Precision.INT4:
        return cast(Words, np.stack([data & 0x0F, data >> 4], axis=1).ravel())
    return data.view({8: np.uint8, 16: np.uint16, 32: np.uint32}[precision.bits])


def _stored_bytes(words: Words, precision: Precision) -> Bits:
    if precision is Precision.INT4:
        return cast(Bits, words[0::2] | words[1::2] << 4)
    return words.view(np.uint8)


def _stored(words: Words, precision: Precision) -> torch.Tensor:
    """Stored words as numbers of the precision's `STORED_TYPE`."""
    if precision is Precision.INT4:
        return torch.from_numpy((words ^ 8) - np.uint8(8)).view(torch.int8)
    return torch.from_numpy(words).view(STORED_TYPE[precision])


def _bits_of(words: Words, bits: Sequence[int]) -> Bits:
    """uint8[words, len(bits)]."""
    return np.stack([(words >> words.dtype.type(bit) & words.dtype.type(1)).astype(np.uint8) for bit in bits], axis=1)


# ---- one tensor ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How a tensor's bits are laid out before the ways are chosen: costly bits of all values, then the others.

    Attributes:
        tensor_format: what a reader of the tensor goes by.
        costly_bits: bits of each value in the first stream, the first of `costly_first`; all of them where nothing is
            split.
    """

    tensor_format: TensorFormat
    costly_bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.costly_bits <= self.precision.bits:
            raise NetworkError(
                f"{self.costly_bits} costly bits of an {self.precision} value; give 1 to {self.precision.bits}"
            )

    @property
    def precision(self) -> Precision:
        return self.tensor_format.precision

    def streams(self) -> list[tuple[int, ...]]:
        """The bits of each value that each stream holds, each stream's in ascending order."""
        bits = costly_first(self.tensor_format)
        parts = (bits[: self.costly_bits], bits[self.costly_bits :])
        return [tuple(sorted(part)) for part in parts if part]

    def elements(self, size: int) -> int:
        """Values in ``size`` bytes, a half-filled byte of int4 counting as two."""
        return size * 8 // self.precision.bits

    def stream_units(self, size: int) -> list[int]:
        """Units that each stream of a tensor of ``size`` bytes takes."""
        return [-(-self.elements(size) * len(bits) // UNIT_BITS) for bits in self.streams()]

    def stored_bits(self, size: int) -> int:
        """Cells that a tensor of ``size`` bytes takes: whole units."""
        return sum(self.stream_units(size)) * UNIT_BITS


@dataclass(frozen=True)
class Encoded:
    """A tensor as it is stored.

    Attributes:
        data: uint8[n], whole units.
        choices: uint8[m], choice of each unit, packed `CHOICE_BITS` a unit: with the layout, all that a reader needs.
        size: bytes of the tensor.
        cost: expected sum of squared changes of one read, relative to the largest magnitude's square.
        energy: sum of the squared values, relative to the same.
    """

    data: Bits
    choices: Bits
    size: int
    cost: float
    energy: float

    @property
    def metadata_bits(self) -> int:
        return self.data.size * 8 // UNIT_BITS * CHOICE_BITS


def encode(data: Bits, layout: Layout, weak: WeakCells) -> Encoded:
    """Write ``data`` the way that its errors cost least.

    Args:
        data: uint8[n], the tensor's stored bytes: whole values.
        weak: weak cells of the place that it goes to, numbered by the encoded tensor's bits; cells beyond it are
            ignored.
    """
    precision, tensor_format = layout.precision, layout.tensor_format
    numbers = _stored(_stored_words(data, precision), precision).to(torch.float32)
    numbers = numbers[numbers.isfinite()]
    words = to_words(data, tensor_format)
    units = sum(layout.stream_units(data.size))
    stored = np.empty((units, UNIT_BITS), np.uint8)
    choice = np.empty(units, np.uint8)
    cost, first = 0.0, 0
    for bits in layout.streams():
        for start in range(0, words.size, _SEGMENT):
            part = words[start : start + _SEGMENT]
            unit_bits = _in_units(_bits_of(part, bits))
            costs = _in_units(flip_costs(part, tensor_format, bits))
            last = first + unit_bits.shape[0]
            state = int(choice[first - 1]) % STATES if first else 0
            choice[first:last], cheapest = _cheapest(costs, unit_bits, weak, first, state)
            stored[first:last] = unit_bits
            cost, first = cost + cheapest, last
    book = codebook()
    _write(stored, _ways(choice), book.source, book.inverted)
    energy = float((((numbers - tensor_format.offset) / _magnitude(tensor_format)) ** 2).sum(dtype=torch.float64))
    return Encoded(np.packbits(stored, bitorder="little"), _pack(choice), data.size, cost, energy)


def decode(data: Bits, encoded: Encoded, layout: Layout) -> Bits:
    """The bytes of a tensor of which ``data`` was read; of ``encoded`` it looks at choices and size only.

    Raises:
        NetworkError: ``data`` is not as long as such a tensor is when stored.
    """
    size, precision = encoded.size, layout.precision
    if data.size * 8 != layout.stored_bits(size):
        raise NetworkError(
            f"a tensor of {size} bytes is stored in {layout.stored_bits(size) // 8}, not {data.size}; the memory "
            "returned a different tensor than was stored"
        )
    book = codebook()
    read = np.unpackbits(data, bitorder="little").reshape(-1, UNIT_BITS)
    _restore(read, _ways(_unpack(encoded.choices, read.shape[0])), book.source, book.inverted)
    words = np.zeros(layout.elements(size), _stored_words(np.empty(0, np.uint8), precision).dtype)
    first = 0
    for bits, units in zip(layout.streams(), layout.stream_units(size), strict=True):
        flat = read[first : first + units].reshape(-1)[: words.size * len(bits)].reshape(words.size, len(bits))
        for column, bit in enumerate(bits):
            words |= flat[:, column].astype(words.dtype) << words.dtype.type(bit)
        first += units
    return _stored_bytes(from_words(words, layout.tensor_format), precision)


def _in_units(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[n, 512] of ``values`` in order, the last unit filled up with zeros."""
    units = np.zeros((-(-values.size // UNIT_BITS), UNIT_BITS), values.dtype)
    units.reshape(-1)[: values.size] = values.reshape(-1)
    return units


def _ways(choice: Bits) -> npt.NDArray[np.int64]:
    """The way of each unit: its choice, in the state that the unit before left."""
    ways = choice.astype(np.int64) * STATES
    ways[1:] += choice[:-1] % STATES
    return ways


def _pack(choice: Bits) -> Bits:
    return np.packbits(np.unpackbits(choice[:, None], axis=1, bitorder="little")[:, :CHOICE_BITS])


def _unpack(choices: Bits, units: int) -> Bits:
    bits = np.unpackbits(choices)[: units * CHOICE_BITS].reshape(units, CHOICE_BITS)
    return np.packbits(bits, axis=1, bitorder="little").ravel()


def _cheapest(costs: Costs, bits: Bits, weak: WeakCells, first: int, state: int) -> tuple[Bits, float]:
    """The choices of units ``first`` .. that cost least from ``state`` on, and what they cost."""
    here = weak.within(first * UNIT_BITS, bits.size)
    start = np.searchsorted(here.cell, np.arange(bits.shape[0] + 1) * UNIT_BITS)
    mean = ((here.flip_zero + here.flip_one) / 2).astype(np.float32)
    skew = ((here.flip_one - here.flip_zero) / 2).astype(np.float32)
    by_bit = costs * (2 * bits.astype(np.float32) - 1)
    cell = here.cell % UNIT_BITS
    choice, cost = _viterbi(costs, by_bit, start, cell, mean, skew, codebook().by_cell, state)
    return choice, float(cost)


@njit(cache=True, nogil=True)
def _viterbi(costs, by_bit, start, cell, mean, skew, by_cell, state):  # type: ignore[no-untyped-def]
    """Costs of all ways of each unit, and the cheapest path through them.

    A weak cell flips with probability ``mean + skew`` if it stores a 1 and ``mean - skew`` if a 0; ``by_bit`` is the
    cost with the sign of the bit as it would be stored upright.
    """
    units, ways = costs.shape[0], by_cell.shape[1]
    half = ways // 2
    came_from = np.zeros((units, STATES), np.uint8)
    chosen = np.zeros((units, STATES), np.uint8)
    so_far = np.full(STATES, np.inf)
    so_far[state] = 0.0
    way_cost = np.empty(ways, np.float32)
    if_upright, if_inverted = np.empty(UNIT_BITS, np.float32), np.empty(UNIT_BITS, np.float32)
    for unit in range(units):
        way_cost[:] = np.float32(0)
        upright, inverted = way_cost[:half], way_cost[half:]
        here, signed = costs[unit], by_bit[unit]
        for index in range(start[unit], start[unit + 1]):
            rate, by_sign = mean[index], skew[index]
            for bit in range(UNIT_BITS):
                if_upright[bit] = rate * here[bit] + by_sign * signed[bit]
                if_inverted[bit] = rate * here[bit] - by_sign * signed[bit]
            first, second = by_cell[cell[index], :half], by_cell[cell[index], half:]
            for way in range(half):
                upright[way] += if_upright[first[way]]
            for way in range(half):
                inverted[way] += if_inverted[second[way]]
        after = np.full(STATES, np.inf)
        for choice in range(CHOICES):
            state = choice % STATES
            for before in range(STATES):
                total = so_far[before] + way_cost[choice * STATES + before]
                if total < after[state]:
                    after[state] = total
                    came_from[unit, state] = before
                    chosen[unit, state] = choice
        so_far = after
    path = np.empty(units, np.uint8)
    at = np.argmin(so_far)
    cost = so_far[at]
    for unit in range(units - 1, -1, -1):
        path[unit] = chosen[unit, at]
        at = came_from[unit, at]
    return path, cost


@njit(cache=True, nogil=True)
def _write(units, ways, source, inverted):  # type: ignore[no-untyped-def]
    """Write each unit of bits its way, in place."""
    kept = np.empty(UNIT_BITS, np.uint8)
    for unit in range(units.shape[0]):
        way = ways[unit]
        kept[:] = units[unit]
        for cell in range(UNIT_BITS):
            units[unit, cell] = kept[source[way, cell]] ^ inverted[way]


@njit(cache=True, nogil=True)
def _restore(units, ways, source, inverted):  # type: ignore[no-untyped-def]
    """Undo `_write`."""
    kept = np.empty(UNIT_BITS, np.uint8)
    for unit in range(units.shape[0]):
        way = ways[unit]
        kept[:] = units[unit]
        for cell in range(UNIT_BITS):
            units[unit, source[way, cell]] = kept[cell] ^ inverted[way]


# ---- a memory --------------------------------------------------------------------------------------------------------


class SignificanceMemory:
    """Encodes what it stores in another memory, and decodes what it loads from there.

    Args:
        inner: any approximate memory; it stores whole units, `Layout.stored_bits` of each tensor.
        layouts: layout by tensor.
        weak_cells_of: weak cells that a tensor meets in ``inner``, numbered by its stored bits; asked, with the number
            of bits, whenever it is given other data than last.

    Attributes:
        encoded: what was stored last, by tensor; a load uses its metadata only.
    """

    def __init__(
        self,
        inner: ApproximateMemory,
        layouts: Mapping[str, Layout],
        weak_cells_of: Callable[[str, int], WeakCells],
    ) -> None:
        self.inner = inner
        self.encoded: dict[str, Encoded] = {}
        self._data: dict[str, torch.Tensor] = {}
        self._layouts = layouts
        self._weak_cells_of = weak_cells_of

    def store(self, tensor: str, data: torch.Tensor) -> None:
        """See `ApproximateMemory.store`. Raises NetworkError where a tensor has no layout, or no whole values."""
        layout, data = self._layouts.get(tensor), data.cpu()
        if layout is None:
            raise NetworkError(f"{tensor} has no layout; map the network again")
        if data.numel() * 8 % max(8, layout.precision.bits):
            raise NetworkError(f"{tensor} has {data.numel()} bytes, which are no whole {layout.precision} values")
        if tensor not in self._data or not torch.equal(data, self._data[tensor]):
            weak = self._weak_cells_of(tensor, layout.stored_bits(data.numel()))
            self.encoded[tensor] = encode(data.numpy(), layout, weak)
            self._data[tensor] = data
        self.inner.store(tensor, torch.from_numpy(self.encoded[tensor].data))

    def load(self, tensor: str) -> torch.Tensor:
        """See `ApproximateMemory.load`."""
        return self.load_all([tensor])[0]

    def load_all(self, tensors: Sequence[str]) -> list[torch.Tensor]:
        """See `ApproximateMemory.load_all`."""
        for tensor in tensors:
            if tensor not in self.encoded:
                raise NetworkError(f"{tensor} is read before it was stored; store it first")
        return [
            torch.from_numpy(decode(read.cpu().numpy(), self.encoded[tensor], self._layouts[tensor]))
            for tensor, read in zip(tensors, self.inner.load_all(tensors), strict=True)
        ]

    @property
    def stored_bits(self) -> int:
        """Bits of all tensors, as the network knows them."""
        return sum(kept.size for kept in self.encoded.values()) * 8

    @property
    def metadata_bits(self) -> int:
        """Bits that a reader of all tensors needs, besides those of `Significance.order_bits`."""
        return sum(kept.metadata_bits for kept in self.encoded.values())


# ---- a network -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignificancePlan:
    """Where a network's tensors lie and how they are laid out.

    Attributes:
        mapping: places; those of costly bits first in each tensor.
        layouts: by tensor.
        weak_cells: that each tensor meets, by its name, numbered as places are.
    """

    mapping: DramMapping
    layouts: Mapping[str, Layout]
    weak_cells: Mapping[str, WeakCells]

    @classmethod
    def of(
        cls, mapping: DramMapping, network: ApproximateNetwork, weak_cells: Mapping[str, WeakCells]
    ) -> "SignificancePlan":
        """The plan that a mapping of ``network`` that is placed by significance stands for.

        Raises:
            NetworkError: it was not placed so, or is of another network or precision.
        """
        if mapping.significance is None:
            raise NetworkError("the mapping was not placed by significance; run eden map --significance")
        network.encode_weights()
        bytes_of = {tensor.name: tensor.bits(mapping.images) // 8 for tensor in network.tensors()}
        costly_bits = min(mapping.significance.costly_bits, network.precision.bits)
        layouts = {name: Layout(network.formats[name], costly_bits) for name in bytes_of}
        taken = {name: layout.stored_bits(bytes_of[name]) for name, layout in layouts.items()}
        reserved = {name: place.reserved for name, place in mapping.placements.items()}
        if taken != reserved or mapping.significance.precision != network.precision:
            raise NetworkError("the mapping is of another network or precision than this one; map it again")
        return cls(mapping, layouts, weak_cells)

    @property
    def order_bits(self) -> int:
        """See `Significance`; `SignificanceMemory.metadata_bits` is the rest."""
        assert self.mapping.significance is not None
        return self.mapping.significance.order_bits

    def metadata_bits(self, tensors: Sequence[TensorSpec]) -> int:
        """What a reader of ``tensors`` needs besides their formats, at the batch size planned for."""
        images = self.mapping.images
        stored = sum(self.layouts[tensor.name].stored_bits(tensor.bits(images) // 8) for tensor in tensors)
        return stored // UNIT_BITS * CHOICE_BITS + self.order_bits

    def memory(self, inner: ApproximateMemory) -> SignificanceMemory:
        """Placement by significance around ``inner``, which keeps tensors at the places of `mapping`."""
        kept: dict[tuple[str, int], WeakCells] = {}

        def weak_cells_of(tensor: str, bits: int) -> WeakCells:
            if (tensor, bits) not in kept:
                place = self.mapping.placements[tensor]
                if bits > place.reserved:
                    raise CapacityError(
                        f"{tensor} takes {bits} cells, its place holds {place.reserved}; plan it with this batch size"
                    )
                kept[tensor, bits] = gathered(self.weak_cells[tensor], place, bits)
            return kept[tensor, bits]

        return SignificanceMemory(inner, self.layouts, weak_cells_of)


def plan_significance(
    tensors: Sequence[TensorSpec],
    stored: Mapping[str, Bits],
    formats: Mapping[str, TensorFormat],
    weak_cells: Mapping[str, WeakCells],
    partitions: Sequence[Partition],
    point: OperatingPoint,
    images: int,
) -> SignificancePlan:
    """Place a network at one operating point, with the split of `SPLITS` at which its tensors fare best.

    Args:
        tensors: the network's, those to be given the best rows first.
        stored: bytes that tensors hold, of IFMs for so many images: they decide the split. Where it was decided by
            weights alone, which have the best rows anyhow, IFMs were left with whole words in the worst: on modules of
            vendor A at int8 placement was then worth 6.7 and 9.3 times the BER instead of 15 and 33 (seeds 1 and 2).
        formats: of the tensors.
        weak_cells: of each kind, "weight" and "ifm", numbered as partitions are.
        partitions: where to place; rows with fewer errors are filled first.
        point: operating point of all.
        images: batch size that IFMs get room for.

    Raises:
        CapacityError: the partitions are too small.
    """
    by_tensor = {tensor.name: weak_cells[tensor.kind] for tensor in tensors}

    def split(share: float) -> SignificancePlan:
        return _plan(tensors, formats, by_tensor, partitions, point, images, share)

    def noise(plan: SignificancePlan) -> float:
        memory = plan.memory(ReliableMemory())
        for name, data in stored.items():
            memory.store(name, torch.from_numpy(data))
        return sum(kept.cost / kept.energy for kept in memory.encoded.values() if kept.energy)

    return min(map(split, SPLITS), key=noise) if stored else split(SPLITS[0])


def stored_tensors(
    network: ApproximateNetwork, inputs: torch.Tensor
) -> tuple[dict[str, Bits], dict[str, TensorFormat]]:
    """The stored bytes of a network's tensors, by name, IFMs as ``inputs`` make them, and the formats of all.

    IFMs of layers that ``inputs`` do not reach, though those of the calibration did, have none.
    """
    memory = ReliableMemory()
    stored = network.twin(memory).eval()
    with torch.no_grad():
        stored(inputs.to(stored.device))
    return {name: memory.load(name).cpu().numpy() for name in list(memory.bits_read)}, stored.formats


def _plan(
    tensors: Sequence[TensorSpec],
    formats: Mapping[str, TensorFormat],
    weak_cells: Mapping[str, WeakCells],
    partitions: Sequence[Partition],
    point: OperatingPoint,
    images: int,
    costly_share: float,
) -> SignificancePlan:
    costly_bits = max(1, round(costly_share * tensors[0].precision.bits))  # a network has one precision
    layouts = {tensor.name: Layout(formats[tensor.name], costly_bits) for tensor in tensors}
    rows = sorted((row for partition in partitions for row in _rows(partition, point)), key=lambda row: row.ber)
    free = _Rows(rows, point)
    pieces: dict[str, list[Piece]] = {tensor.name: [] for tensor in tensors}
    for stream in range(2):
        for tensor in tensors:
            units = layouts[tensor.name].stream_units(tensor.bits(images) // 8)
            if stream < len(units):
                free.fill(pieces[tensor.name], tensor.name, units[stream] * UNIT_BITS)
    placements = {
        name: Placement(tensor=name, **dict(parts[0]), more=tuple(parts[1:])) for name, parts in pieces.items()
    }
    order = free.touched * (len(rows) - 1).bit_length() + (len(SPLITS) - 1).bit_length()
    mapping = made_mapping(tensors, placements, images, UNIT_BITS)
    significance = Significance(precision=tensors[0].precision, costly_bits=costly_bits, order_bits=order)
    return SignificancePlan(mapping.model_copy(update={"significance": significance}), layouts, weak_cells)


@dataclass(frozen=True)
class _Row:
    """Whole units of one row, or of a partition whose rows were not measured apart."""

    partition: str
    first_cell: int
    cells: int
    ber: float


def _rows(partition: Partition, point: OperatingPoint) -> list[_Row]:
    """The rows of a partition, with the mean of the rates that weights and IFMs meet there."""
    if partition.rows is None:
        rate = (partition.ber("weight", point) + partition.ber("ifm", point)) / 2
        return [_Row(partition.name, partition.first_cell, partition.cells // UNIT_BITS * UNIT_BITS, rate)]
    size = partition.rows.row_cells
    weights = partition.rows.ber["weight", point]
    rates = (weights + partition.rows.ber.get(("ifm", point), weights)) / 2
    return [
        _Row(partition.name, partition.first_cell + row * size, size // UNIT_BITS * UNIT_BITS, float(rate))
        for row, rate in enumerate(rates)
    ]


class _Rows:
    """Rows that are filled one after the other; ``touched`` of them so far."""

    def __init__(self, rows: Sequence[_Row], point: OperatingPoint) -> None:
        self.touched = 0
        self._rows = list(reversed(rows))
        self._used = 0  # of the last of them
        self._point = point

    def fill(self, pieces: list[Piece], tensor: str, cells: int) -> None:
        """Append the next ``cells`` cells to ``pieces``. Raises CapacityError where there are not as many."""
        wanted = cells
        while wanted:
            if not self._rows:
                raise CapacityError(
                    f"{wanted} of {cells} cells of {tensor} find no room; give more rows, or use smaller batches"
                )
            row = self._rows[-1]
            taken = min(wanted, row.cells - self._used)
            if taken:
                self.touched += not self._used
                self._append(pieces, row.partition, row.first_cell + self._used, taken)
            self._used += taken
            wanted -= taken
            if self._used == row.cells:
                self._rows.pop()
                self._used = 0

    def _append(self, pieces: list[Piece], partition: str, first_cell: int, cells: int) -> None:
        last = pieces[-1] if pieces else None
        if last is not None and last.partition == partition and last.first_cell + last.cells == first_cell:
            pieces[-1] = last.model_copy(update={"cells": last.cells + cells})
        else:
            pieces.append(Piece(partition=partition, first_cell=first_cell, cells=cells, point=self._point))
