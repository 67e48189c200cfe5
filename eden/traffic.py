"""What a platform reads and writes in DRAM when it runs a network: the bursts of one inference, in order.

A platform's dataflow cuts each layer into passes (`Cut`): some filters against some of the input, read from memory.
Behind a cache, what hits stays there; an accelerator's buffers hold exactly one pass, and its DMA reads ahead.

Sizes and tilings are fields; the presets follow the EDEN paper's systems (Koppula et al., MICRO-52, 2019, section 7),
quoted from memory, with a DDR4-2400 for its DDR4: ``note`` says what the paper leaves open of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numba import njit

from eden.commands import I64
from eden.dram_specs import DramSpec, load
from eden.layers import Layer
from eden.precision import Precision
from eden.replay import BACK_TO_BACK, Bools, Bursts, RowPolicy, place_one
from profiles.errors import ModelError

Floats = npt.NDArray[np.float64]
Entries = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Cut:
    """How a layer is cut into passes: every part of its filters meets every strip of its input.

    Attributes:
        filter_parts: parts of the output channels.
        strips: of the output's rows.
        rereads_input: whether each part of the filters reads the input anew.
        overlap: input rows that neighbouring strips both read.
    """

    filter_parts: int
    strips: int
    rereads_input: bool
    overlap: int


class Dataflow(Protocol):
    """Which cut of a layer a platform makes."""

    def cut(self, layer: Layer, precision: Precision) -> Cut: ...


@dataclass(frozen=True)
class Blocked:
    """A CPU's or GPU's blocked loops: ``filters`` output channels at a time against all of the input."""

    filters: int

    def cut(self, layer: Layer, precision: Precision) -> Cut:
        return Cut(-(-layer.outputs // self.filters), 1, True, 0)


@dataclass(frozen=True)
class RowStationary:
    """Eyeriss (Chen et al., ISCA 2016): strips of one input channel and their partial sums share the buffer.

    Of all cuts that fit, the one that moves least: filters are read once a strip, the input once a part of the filters.
    """

    buffer_bytes: int
    partial_bytes: int

    def cut(self, layer: Layer, precision: Precision) -> Cut:
        best: tuple[float, Cut] | None = None
        overlap = max(0, layer.kernel[0] - layer.stride)
        for strips in sorted({-(-layer.rows // height) for height in range(1, layer.rows + 1)}):
            rows = -(-layer.rows // strips)
            strip = ((rows - 1) * layer.stride + layer.kernel[0]) * layer.width * precision.bits / 8
            filters = int((self.buffer_bytes - strip) // (rows * layer.columns * self.partial_bytes))
            if filters < 1:
                continue
            parts = max(1, -(-layer.outputs // filters))
            cut = Cut(parts, strips, layer.groups == 1, overlap)
            moved = layer.weights * strips + layer.ifm * (parts if layer.groups == 1 else 1)
            moved += (strips - 1) * overlap * layer.width * layer.inputs * parts
            if best is None or moved < best[0]:
                best = moved, cut
        if best is None:
            raise ModelError(
                f"a row of {layer.name} does not fit a buffer of {self.buffer_bytes} bytes; give a larger buffer"
            )
        return best[1]


@dataclass(frozen=True)
class WeightStationary:
    """A systolic array (TPU: Jouppi et al., ISCA 2017) that holds weights of ``columns`` output channels.

    The input stays in the buffer (double buffered) over all of them if it fits; where a layer has more positions than
    accumulators, its weights are read once for each stretch of positions that do.
    """

    columns: int
    buffer_bytes: int
    accumulator_positions: int

    def cut(self, layer: Layer, precision: Precision) -> Cut:
        fits = 2 * precision.stored_bytes(layer.ifm) <= self.buffer_bytes
        rows = max(1, self.accumulator_positions // layer.columns)
        parts = -(-layer.outputs // self.columns)
        return Cut(
            parts, -(-layer.rows // rows), not fits and layer.groups == 1, max(0, layer.kernel[0] - layer.stride)
        )


@dataclass(frozen=True)
class Cache:
    """The last level of a cache hierarchy: set associative, least recently used, write back; whole lines are written
    without being read. ``prefetched``: lines fetched ahead when a miss follows on a line that is there."""

    size_bytes: int
    ways: int
    prefetched: int


@dataclass(frozen=True)
class Platform:
    """What runs a network.

    Attributes:
        dataflow: how layers are cut.
        cache: None where buffers are managed by the dataflow.
        multiplications: a second, of FP32; ``int8_gain`` times as many of int8.
        dram, channels: bursts go to channels in turn.
        outstanding: bursts of one channel under way at once.
        policy: of rows.
        chunk: bursts read from one tensor before the next one's turn.
        note: what the paper leaves open of it, in a sentence.
    """

    name: str
    dataflow: Dataflow
    cache: Cache | None
    multiplications: float
    int8_gain: float
    dram: str
    channels: int
    outstanding: int
    policy: RowPolicy
    chunk: int
    note: str


_CPU = "The paper does not say how its loops are blocked, nor which rows its controller keeps open."
_GPU = "The paper's GPU has GDDR5, whose IDD no vendor publishes; DDR4 stands in for it, at as many channels."
_ARRAY = "The paper does not say whether its trace is paced by the array's computing, or runs at the DRAM's speed."


def _cpu(name: str, prefetched: int, outstanding: int) -> Platform:
    cache = Cache(8 << 20, 16, prefetched)
    return Platform(name, Blocked(64), cache, 128e9, 4, "ddr4-2400", 2, outstanding, RowPolicy.OPEN, 1, _CPU)


def _array(name: str, dataflow: Dataflow, multiplications: float, dram: str) -> Platform:
    policy = RowPolicy.OPEN
    return Platform(name, dataflow, None, multiplications, 1, dram, 1, BACK_TO_BACK, policy, 64, _ARRAY)


_EYERISS, _TPU = RowStationary(324 << 10, 4), WeightStationary(256, 24 << 20, 4096)

PLATFORMS = {
    platform.name: platform
    for platform in (
        _cpu("CPU", 4, 8),
        _cpu("CPU without prefetch", 0, 1),
        Platform("GPU", Blocked(128), Cache(3 << 20, 16, 0), 5.08e12, 4, "ddr4-2400", 12, 32, RowPolicy.OPEN, 4, _GPU),
        _array("Eyeriss, DDR4", _EYERISS, 168 * 200e6, "ddr4-2400"),
        _array("Eyeriss, LPDDR3", _EYERISS, 168 * 200e6, "lpddr3-1600"),
        _array("TPU, DDR4", _TPU, 256 * 256 * 700e6, "ddr4-2400"),
        _array("TPU, LPDDR3", _TPU, 256 * 256 * 700e6, "lpddr3-1600"),
    )
}


@dataclass(frozen=True)
class Traffic:
    """One inference, as one of ``platform.channels`` alike channels sees it.

    Attributes:
        bursts: with the clock at which computing asks for each, did DRAM take no time.
        compute_clocks: DRAM clocks that computing alone takes.
        read_bytes, written_bytes: of all channels.
    """

    bursts: Bursts
    compute_clocks: int
    read_bytes: int
    written_bytes: int


def traffic(layers: Sequence[Layer], platform: Platform, precision: Precision, dram: DramSpec | None = None) -> Traffic:
    """The bursts of one inference, of ``dram`` or else of the platform's own.

    Raises:
        ModelError: a layer does not fit the platform's buffers, or there is no layer.
    """
    if not layers:
        raise ModelError("a network of no layers moves nothing; give at least one")
    spec = dram or load(platform.dram)
    passes = _passes(layers, platform, precision, spec)
    bursts, compute, read, written = _bursts_of(passes, platform.chunk, platform.cache, platform.channels, spec)
    return Traffic(bursts, compute, read * spec.burst_bytes, written * spec.burst_bytes)


# columns of a pass: first line and lines of the weights, the input and the output, and clocks that it computes
_PASS = 7


def _passes(layers: Sequence[Layer], platform: Platform, precision: Precision, spec: DramSpec) -> I64:
    """int64[passes, 7]. Weights lie one layer after another, then feature maps, an output where the next input is."""
    per_second = platform.multiplications * (platform.int8_gain if precision is Precision.INT8 else 1)
    row = spec.row_bursts * spec.bank_groups * platform.channels

    def lines(elements: int) -> int:
        return -(-precision.stored_bytes(elements) // spec.burst_bytes)

    def whole_rows(count: int) -> int:
        return -(-count // row) * row

    weights_at, maps_at = 0, whole_rows(sum(lines(layer.weights) for layer in layers))
    found = []
    for layer in layers:
        next_at = maps_at + whole_rows(max(lines(layer.ifm), 1))
        clocks = layer.multiplications / per_second / (spec.tck_ps * 1e-12)
        sizes = lines(layer.weights), lines(layer.ifm), lines(layer.ofm)
        found.append(
            _layer_passes(layer, platform.dataflow.cut(layer, precision), (weights_at, maps_at, next_at), sizes, clocks)
        )
        weights_at, maps_at = weights_at + sizes[0], next_at
    return np.concatenate(found)


def _layer_passes(layer: Layer, cut: Cut, at: tuple[int, int, int], sizes: tuple[int, int, int], clocks: float) -> I64:
    strip, part = (grid.ravel() for grid in np.mgrid[: cut.strips, : cut.filter_parts])
    out = np.empty((strip.size, _PASS), np.int64)
    out[:, 0], out[:, 1] = _share(at[0], sizes[0], part, cut.filter_parts)
    if layer.groups > 1:  # a part of the filters meets its own channels only
        out[:, 2], out[:, 3] = _share(at[1], sizes[1], part * cut.strips + strip, cut.strips * cut.filter_parts)
    else:
        halo = sizes[1] * cut.overlap // max(1, layer.height) if cut.strips > 1 else 0
        begin, count = _share(at[1], sizes[1], strip, cut.strips)
        again = np.where(strip + 1 < cut.strips, halo, 0)
        out[:, 2] = begin
        out[:, 3] = np.where(cut.rereads_input | (part == 0), np.minimum(count + again, at[1] + sizes[1] - begin), 0)
    out[:, 4], out[:, 5] = _share(at[2], sizes[2], part * cut.strips + strip, cut.strips * cut.filter_parts)
    edges = np.round(clocks * np.arange(strip.size + 1) / strip.size).astype(np.int64)
    out[:, 6] = np.diff(edges)
    return out


def _share(at: int, size: int, index: I64, parts: int) -> tuple[I64, I64]:
    """First line, and lines, of each of ``parts`` equal shares; a line that two of them share belongs to the later."""
    begin = at + size * index // parts
    return begin, at + size * (index + 1) // parts - begin


def _bursts_of(
    passes: I64, chunk: int, cache: Cache | None, channels: int, spec: DramSpec
) -> tuple[Bursts, int, int, int]:
    """The first channel's bursts, clocks at the end of the last pass, and bursts read and written of all channels."""
    behind = cache or Cache(0, 1, 0)
    sets = behind.size_bytes // (spec.burst_bytes * behind.ways)
    lines, written = int(passes[:, 1:6:2].sum()), int(passes[:, 5].sum())
    room = lines * (1 + behind.prefetched) + written + sets * behind.ways  # of address space: what is unused costs none
    out = Bursts(
        *(np.empty(room, np.uint8), np.empty(room, np.int32), np.empty(room, np.int32)),
        *(np.empty(room, np.bool_), np.empty(room, np.int64)),
    )
    end = int((passes[:, 0:6:2] + passes[:, 1:6:2]).max()) + behind.prefetched
    entry: type[np.signedinteger[Any]] = (
        np.int32 if end < 1 << 30 else np.int64
    )  # half as large, a cache's lines stay in this computer's cache
    caught = (np.full((sets, behind.ways), -1, entry), np.zeros(sets, entry), np.zeros(end, np.bool_))
    organisation = (channels, *spec.address_bits)
    counts = np.zeros(3, np.int64)
    columns = (out.bank, out.row, out.column, out.write, out.arrival)
    compute = _stream(passes, chunk, behind.prefetched, *caught, organisation, columns, counts)
    used, read, stored = counts.tolist()
    return Bursts(**{name: values[:used] for name, values in vars(out).items()}), compute, read, stored


@njit(cache=True, error_model="numpy")
def _stream(
    passes: I64, chunk: int, prefetched: int, held: Entries, heads: Entries, there: Bools, organisation: Any, out: Any,
    counts: I64,
) -> int:  # fmt: skip
    """Sends on the lines of each pass, its three tensors in proportion; returns the clock at its end.

    Args:
        held, heads, there: the cache, none if it has no sets: a set is a ring, the most recently used line at its head,
            so that a miss overwrites the oldest and moves nothing. An entry is twice the line, and one more if it was
            written. ``there`` tells hits from misses without a search.
        organisation, out, counts: see `_send`.
    """
    begun = latest = 0
    done, behind = np.zeros(3, np.int64), np.zeros(3, np.float64)  # lines of each tensor, and the share that they are
    for p in range(passes.shape[0]):
        clocks, size = passes[p, 6], passes[p, 1] + passes[p, 3] + passes[p, 5]
        for t in range(3):
            done[t], behind[t] = 0, 0.0 if passes[p, 2 * t + 1] else np.inf
        now, rest, emitted = begun, 0, 0  # now + rest / size is begun + clocks * emitted / size
        step, part = clocks // max(size, 1), clocks % max(size, 1)
        while emitted < size:
            tensor = 0 if behind[0] <= behind[1] else 1
            tensor = tensor if behind[tensor] <= behind[2] else 2
            first, length = passes[p, 2 * tensor] + done[tensor], passes[p, 2 * tensor + 1]
            count = min(chunk, length - done[tensor])
            for line in range(first, first + count):
                if heads.size:
                    _reach(line, tensor == 2, now, prefetched, held, heads, there, organisation, out, counts)
                else:
                    _send(line, tensor == 2, now, organisation, out, counts)
                latest, now, rest = now, now + step, rest + part
                if rest >= size:
                    now, rest = now + 1, rest - size
            emitted += count
            done[tensor] += count
            behind[tensor] = done[tensor] / length if done[tensor] < length else np.inf
        begun += clocks
    _flush(latest, held, heads, organisation, out, counts)
    return begun


# Arrays are passed to compiled functions whole, many words each: what is called for every line is inlined.


@njit(cache=True, error_model="numpy", inline="always")
def _reach(
    line: int, write: bool, clock: int, prefetched: int, held: Entries, heads: Entries, there: Bools, organisation: Any,
    out: Any, counts: I64,
) -> None:  # fmt: skip
    """A line that is read or written by way of the cache: what misses is sent on, and what must go is written back."""
    ahead, k = 0, 0
    while k <= ahead:
        wanted, marks = line + k, np.int64(k == 0 and write)
        which = np.int64(np.uint32(wanted) % np.uint32(heads.size))
        head = heads[which]
        if not there[wanted]:
            if k == 0 and prefetched and not marks and wanted and there[wanted - 1]:
                ahead = prefetched
            oldest = held.shape[1] - 1 if head == 0 else head - 1
            victim = held[which, oldest]
            if victim >= 0:
                there[victim >> 1] = False
                if victim & 1:
                    _send(victim >> 1, True, clock, organisation, out, counts)
            if not marks:
                _send(wanted, False, clock, organisation, out, counts)
            there[wanted] = True
            held[which, oldest], heads[which] = wanted << 1 | marks, oldest
        elif k == 0:
            at, entry = head, held[which, head]
            while entry >> 1 != wanted:  # all that was used since moves one back
                at = 0 if at + 1 == held.shape[1] else at + 1
                entry, held[which, at] = held[which, at], entry
            held[which, head] = entry | marks
        k += 1


@njit(cache=True, error_model="numpy")
def _flush(clock: int, held: Entries, heads: Entries, organisation: Any, out: Any, counts: I64) -> None:
    """Write back all that was written, set by set, what was used most recently first."""
    for which in range(heads.size):
        for k in range(held.shape[1]):
            entry = held[which, (heads[which] + k) % held.shape[1]]
            if entry >= 0 and entry & 1:
                _send(entry >> 1, True, clock, organisation, out, counts)


@njit(cache=True, error_model="numpy", inline="always")
def _send(line: int, write: bool, clock: int, organisation: Any, out: Any, counts: I64) -> None:
    """A burst to DRAM. ``counts`` are those of the first channel in ``out``, and of all read and written."""
    channels, group_bits, burst_bits, bank_bits = organisation
    counts[2 if write else 1] += 1
    number = np.uint32(line) // np.uint32(channels)
    if number * np.uint32(channels) == np.uint32(line):
        k = counts[0]
        out[0][k], out[1][k], out[2][k] = place_one(int(number), group_bits, burst_bits, bank_bits)
        out[3][k], out[4][k] = write, clock
        counts[0] += 1
