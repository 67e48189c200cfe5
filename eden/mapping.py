"""Where each tensor lies in DRAM, and at which operating point (EDEN, section 3).

The objective is explicit, a `Cost`. By default a lower VDD comes first, since DRAM energy goes with VDD and hardly with
tRCD; among points of one VDD, the shorter tRCD. VDD is one for each rail; tRCD can differ by partition.

Here are EDEN's own mappings; `eden.optimal` finds the cheapest.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eden.approximate import TensorSpec
from eden.placement import Piece, Placement
from eden.precision import Precision
from profiles.errors import CapacityError, NetworkError
from profiles.files import atomic_file
from profiles.geometry import Geometry
from profiles.schema import AccessMode, ModuleIdentity, OperatingPoint

DEFAULT_ALIGNMENT_BITS = 512
MAPPING_VERSION: Literal[4] = 4


@dataclass(frozen=True)
class Partition:
    """A stretch of cells that is operated at one tRCD: a bank, a subarray, or part of one.

    Attributes:
        name: unique among the partitions.
        bank: the bank it lies in.
        first_cell, cells: cells ``first_cell .. first_cell + cells - 1``, numbered over all modules.
        ber_by_point: bit error rate of data written at nominal conditions, by operating point of the read.
        ifm_ber_by_point: the same for data written at the operating point, as IFMs are; None where it is not known to
            differ.
        rows: rates of each row, so that tensors find the rows that hold; None where only the whole was measured.
        rail: the supply that it shares with the other partitions of that name; each module's own.
        access_mode: how it was read when the rates were measured; they hold for no other.
    """

    name: str
    bank: int
    first_cell: int
    cells: int
    ber_by_point: Mapping[OperatingPoint, float]
    ifm_ber_by_point: Mapping[OperatingPoint, float] | None = None
    rows: "RowRates | None" = None
    rail: str = "module"
    access_mode: AccessMode = AccessMode.BURST_PER_ACTIVATION

    def points(self) -> list[OperatingPoint]:
        """Operating points that every kind of tensor was characterised at."""
        known = self.ber_by_point.keys()
        return [p for p in known if self.ifm_ber_by_point is None or p in self.ifm_ber_by_point]

    def ber(self, kind: str, point: OperatingPoint) -> float:
        """Bit error rate that a "weight" or an "ifm" meets here at ``point``."""
        rates = self.ifm_ber_by_point if kind == "ifm" and self.ifm_ber_by_point is not None else self.ber_by_point
        return rates[point]


@dataclass(frozen=True)
class RowRates:
    """Bit error rates of a partition row by row; DRAM's weak cells cluster by rows.

    Attributes:
        row_cells: cells of a row; the partition starts at the start of one.
        ber: float64[rows] by kind ("weight" or "ifm") and operating point.
    """

    row_cells: int
    ber: Mapping[tuple[str, OperatingPoint], npt.NDArray[np.float64]]

    def window(self, kind: str, point: OperatingPoint, start: int, cells: int) -> float:
        """Mean rate of ``cells`` cells from ``start``, counted from the partition's first cell."""
        first, last = start // self.row_cells, (start + cells - 1) // self.row_cells
        weights = np.full(last - first + 1, float(self.row_cells))
        weights[0] -= start - first * self.row_cells
        weights[-1] -= (last + 1) * self.row_cells - start - cells
        return float(np.average(self.ber[kind, point][first : last + 1], weights=weights))


class Significance(BaseModel):
    """How tensors that are placed by significance are laid out (`eden.significance`): with their formats, all of it.

    Attributes:
        precision: of the tensors.
        costly_bits: how many bits of each value lie in a tensor's first cells: those whose flips cost most.
        order_bits: metadata that the order of rows and this split take, in reliable memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision
    costly_bits: int = Field(ge=1, le=32)
    order_bits: int = Field(ge=0)


class MappedModule(BaseModel):
    """A module that tensors may lie in.

    Attributes:
        identity: which one it is.
        geometry: by which its cells are numbered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: ModuleIdentity
    geometry: Geometry


class DramMapping(BaseModel):
    """Every tensor's place and operating point; what the runtime and the board use.

    Attributes:
        images: batch size that IFMs have room for.
        alignment_bits: every tensor starts at a multiple of it, a burst.
        placements: by tensor; they do not overlap.
        vdd_mv: the lowest supply in use.
        trcd_ps: activation latency of each partition in use.
        modules: whose cells it was made for, in the order that their cells are numbered in, one after the other
            (`profiles.geometry.first_cells`); empty where it was made for none in particular.
        significance: where bits that matter were placed on cells that hold; None where tensors lie as they come.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[4] = MAPPING_VERSION
    images: int = Field(gt=0)
    alignment_bits: int = Field(gt=0)
    vdd_mv: int = Field(gt=0)
    placements: dict[str, Placement]
    modules: tuple[MappedModule, ...] = ()
    significance: Significance | None = None

    @property
    def trcd_ps(self) -> dict[str, int]:
        return {piece.partition: piece.point.trcd_ps for piece in self.pieces}

    @property
    def pieces(self) -> list[Piece]:
        """Every piece of every tensor."""
        return [piece for placement in self.placements.values() for piece in placement.pieces]

    @property
    def cells(self) -> int:
        """Cells reserved."""
        return sum(piece.cells for piece in self.pieces)

    def save(self, path: Path) -> None:
        """Write the mapping as JSON. Raises ProfileError where the disk is full or cannot be written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(self.model_dump_json(indent=1, exclude_none=True).encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> "DramMapping":
        """Read what `save` wrote. Raises NetworkError where that is missing, damaged, or of another version."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise NetworkError(f"no mapping at {path}; run eden map first") from error
        except (ValidationError, ValueError) as error:
            raise NetworkError(
                f"{path} is no mapping of version {MAPPING_VERSION}, or is damaged; run eden map again"
            ) from error


Cost = Callable[[Partition, OperatingPoint], float]
"""What an access to one bit of a partition costs at an operating point; not negative. The objective of a mapping."""


def vdd_then_trcd(partition: Partition, point: OperatingPoint) -> float:
    """The default objective: millivolts, and among equals picoseconds (a shorter tRCD never outweighs a millivolt)."""
    return point.vdd_mv + point.trcd_ps * 1e-6


def weighted(energy: float, latency: float, nominal: OperatingPoint) -> Cost:
    """Energy and latency relative to ``nominal``, by these weights; energy goes with the square of VDD (CMOS's law)."""

    def cost(partition: Partition, point: OperatingPoint) -> float:
        return energy * (point.vdd_mv / nominal.vdd_mv) ** 2 + latency * point.trcd_ps / nominal.trcd_ps

    return cost


def mapping_cost(
    mapping: DramMapping,
    partitions: Sequence[Partition],
    cost: Cost = vdd_then_trcd,
    accesses: Mapping[str, float] | None = None,
) -> float:
    """Cost of reading every tensor: of each piece, the cost of its place and point, times its bits and accesses."""
    by_name = {partition.name: partition for partition in partitions}
    return sum(
        cost(by_name[piece.partition], piece.point) * piece.cells * (accesses or {}).get(name, 1.0)
        for name, placement in mapping.placements.items()
        for piece in placement.pieces
    )


@dataclass(frozen=True)
class _Window:
    """A free place for a tensor, in cells from the partition's first, and the bit error rate it would meet there."""

    start: int
    cells: int
    ber: float


class _Room:
    """What is free in one partition, and the point that its first tensor set."""

    def __init__(self, partition: Partition, alignment: int) -> None:
        self.partition = partition
        self.alignment = alignment
        self.point: OperatingPoint | None = None
        start = -partition.first_cell % alignment
        self._free = [(start, partition.cells)] if start < partition.cells else []

    @property
    def free(self) -> int:
        """Cells of the longest free stretch."""
        return max((end - start for start, end in self._free), default=0)

    def best_window(self, tensor: TensorSpec, images: int, point: OperatingPoint) -> _Window | None:
        """The free window with the fewest errors, the first of equals; None where the tensor does not fit."""
        cells = aligned_bits(tensor, images, self.alignment)
        windows = [_Window(start, cells, self._ber(tensor.kind, point, start, cells)) for start in self._starts(cells)]
        return min(windows, key=lambda window: window.ber, default=None)

    def place(self, tensor: TensorSpec, window: _Window, point: OperatingPoint) -> Placement:
        end = window.start + window.cells
        rest = [
            piece
            for low, high in self._free
            for piece in ((low, min(high, window.start)), (max(low, end), high))
            if piece[0] < piece[1]
        ]
        self._free = rest
        self.point = point
        return Placement(
            tensor=tensor.name,
            partition=self.partition.name,
            first_cell=self.partition.first_cell + window.start,
            cells=window.cells,
            point=point,
        )

    def _starts(self, cells: int) -> Iterator[int]:
        """Where a window may begin: at the start of a free stretch, and at each row in it."""
        rows = self.partition.rows
        for low, high in self._free:
            if high - low >= cells:
                yield low
                if rows is not None:
                    yield from range(-(-(low + 1) // rows.row_cells) * rows.row_cells, high - cells + 1, rows.row_cells)

    def _ber(self, kind: str, point: OperatingPoint, start: int, cells: int) -> float:
        rows = self.partition.rows
        return self.partition.ber(kind, point) if rows is None else rows.window(kind, point, start, cells)


def aligned_bits(tensor: TensorSpec, images: int, alignment: int) -> int:
    """Cells that ``tensor`` takes: its bits at a batch of ``images``, rounded up to whole bursts."""
    return -(-tensor.bits(images) // alignment) * alignment


def aggressiveness(point: OperatingPoint) -> tuple[int, int]:
    """Sorts operating points by the objective, the most aggressive first."""
    return point.vdd_mv, point.trcd_ps


def coarse_mapping(
    tensors: Sequence[TensorSpec],
    tolerated_ber: float,
    partitions: Sequence[Partition],
    images: int,
    alignment_bits: int = DEFAULT_ALIGNMENT_BITS,
    cost: Cost = vdd_then_trcd,
) -> DramMapping:
    """The whole network at one operating point: the cheapest at which it fits where BER is tolerable.

    By default the lowest VDD, then the shortest tRCD. Partitions with the fewest errors are filled first.
    Deterministic.

    Raises:
        CapacityError: no operating point has room enough at ``tolerated_ber``; names the first tensor left over.
    """
    failure: CapacityError | None = None
    for point in sorted(_all_points(partitions), key=lambda point: _highest_cost(partitions, point, cost)):
        fit = [p for p in partitions if point in p.points() and _worst_ber(p, point) <= tolerated_ber]
        rooms = [_Room(p, alignment_bits) for p in sorted(fit, key=lambda p: _worst_ber(p, point))]
        try:
            placements = {tensor.name: _first_fit(tensor, images, rooms, point) for tensor in _largest_first(tensors)}
        except CapacityError as error:
            failure = error
            continue
        return made_mapping(tensors, placements, images, alignment_bits)
    raise failure or nothing_tested(tensors)


def fine_mapping(
    tensors: Sequence[TensorSpec],
    tolerated_ber: Mapping[str, float],
    partitions: Sequence[Partition],
    images: int,
    alignment_bits: int = DEFAULT_ALIGNMENT_BITS,
    cost: Cost = vdd_then_trcd,
    accesses: Mapping[str, float] | None = None,
) -> DramMapping:
    """EDEN's greedy Algorithm 1, at the cheapest VDD at which all tensors find a place; by default the lowest.

    At each VDD the least tolerant tensor goes first (the larger of equals), to the cheapest partition and tRCD among
    those with enough room and BER within its tolerance; it sets that partition's tRCD for those that follow. Of equals,
    the partition with the fewest errors. Where there are several rails, it is tried likewise with a VDD for each, which
    the first tensor sets. Deterministic; greedy, so no proof that nothing cheaper works.

    Args:
        accesses: how often each bit of a tensor is accessed; once, where it is not given.

    Raises:
        CapacityError: no VDD has a place for all; names the tensor, its size, its tolerance and what is free.
        NetworkError: a tensor without a tolerance.
    """
    check_tolerances(tensors, tolerated_ber)
    order = sorted(tensors, key=lambda tensor: (tolerated_ber[tensor.name], -tensor.bits(images), tensor.name))
    total = sum(aligned_bits(t, images, alignment_bits) * (accesses or {}).get(t.name, 1.0) for t in tensors)
    failure: CapacityError | None = None
    best, lowest_cost = None, math.inf
    supplies: list[int | None] = list(sorted({point.vdd_mv for point in _all_points(partitions)}))
    if len({partition.rail for partition in partitions}) > 1:
        supplies.append(None)
    for vdd_mv in supplies:
        usable = [cost(p, k) for p in partitions for k in p.points() if vdd_mv in (None, k.vdd_mv)]
        if min(usable) * total >= lowest_cost:
            continue
        rooms = [_Room(partition, alignment_bits) for partition in partitions]
        try:
            placements = {
                tensor.name: _best_fit(tensor, tolerated_ber[tensor.name], images, rooms, vdd_mv, cost)
                for tensor in order
            }
        except CapacityError as error:
            failure = error
            continue
        mapping = made_mapping(tensors, placements, images, alignment_bits)
        if (found := mapping_cost(mapping, partitions, cost, accesses)) < lowest_cost:
            best, lowest_cost = mapping, found
    if best is None:
        raise failure or nothing_tested(tensors)
    return best


def check_tolerances(tensors: Sequence[TensorSpec], tolerated_ber: Mapping[str, float]) -> None:
    """Raises NetworkError for a tensor without a tolerance."""
    for tensor in tensors:
        if tensor.name not in tolerated_ber:
            raise NetworkError(f"no tolerated BER is known for {tensor.name}; run the fine tolerance search for it")


def _first_fit(tensor: TensorSpec, images: int, rooms: Sequence[_Room], point: OperatingPoint) -> Placement:
    for room in rooms:
        window = room.best_window(tensor, images, point)
        if window is not None:
            return room.place(tensor, window, point)
    raise _no_room(tensor, images, rooms, f"at {point}")


def _best_fit(
    tensor: TensorSpec, tolerated: float, images: int, rooms: Sequence[_Room], vdd_mv: int | None, cost: Cost
) -> Placement:
    """``vdd_mv``: of all rails; None where each may have its own."""
    set_mv = {room.partition.rail: room.point.vdd_mv for room in rooms if room.point is not None}
    candidates = [
        (cost(room.partition, point), window.ber, index, room, point, window)
        for index, room in enumerate(rooms)
        for point in _points_of(room, set_mv.get(room.partition.rail) if vdd_mv is None else vdd_mv)
        if (window := room.best_window(tensor, images, point)) is not None
    ]
    usable = [candidate for candidate in candidates if candidate[1] <= tolerated]
    if not usable:
        where = "with a VDD for each rail" if vdd_mv is None else f"at {vdd_mv} mV"
        where += f" and BER <= {tolerated:.2e}" if tolerated < 1 else ""
        if candidates:
            where += f" (the best place has {min(candidate[1] for candidate in candidates):.2e})"
        raise _no_room(tensor, images, [] if candidates else rooms, where)
    *_, room, point, window = min(usable, key=lambda candidate: candidate[:3])
    return room.place(tensor, window, point)


def _points_of(room: _Room, vdd_mv: int | None) -> Iterator[OperatingPoint]:
    """Points at ``vdd_mv``, or at any, that the partition can still be operated at."""
    if room.point is not None:
        yield room.point
        return
    yield from (point for point in room.partition.points() if vdd_mv in (None, point.vdd_mv))


def _all_points(partitions: Iterable[Partition]) -> list[OperatingPoint]:
    return sorted({point for partition in partitions for point in partition.points()}, key=aggressiveness)


def _worst_ber(partition: Partition, point: OperatingPoint) -> float:
    return max(partition.ber("weight", point), partition.ber("ifm", point))


def _highest_cost(partitions: Iterable[Partition], point: OperatingPoint, cost: Cost) -> float:
    return max(cost(partition, point) for partition in partitions if point in partition.points())


def _largest_first(tensors: Iterable[TensorSpec]) -> list[TensorSpec]:
    return sorted(tensors, key=lambda tensor: (-tensor.bits(), tensor.name))


def made_mapping(
    tensors: Sequence[TensorSpec], placements: Mapping[str, Placement], images: int, alignment_bits: int
) -> DramMapping:
    """The mapping of ``tensors`` to ``placements``, in the order of ``tensors``."""
    ordered = {tensor.name: placements[tensor.name] for tensor in tensors}
    vdd_mv = min(piece.point.vdd_mv for placement in ordered.values() for piece in placement.pieces)
    return DramMapping(images=images, alignment_bits=alignment_bits, vdd_mv=vdd_mv, placements=ordered)


def _no_room(tensor: TensorSpec, images: int, rooms: Sequence[_Room], where: str) -> CapacityError:
    largest = max((room.free for room in rooms), default=0)
    total = sum(room.free for room in rooms)
    return CapacityError(
        f"{tensor.name} needs {tensor.bits(images)} bits; {where} the largest free stretch of tolerable cells is "
        f"{largest} of {total} bits in {len(rooms)} partitions: use smaller batches, more banks, or boost the network"
    )


def nothing_tested(tensors: Sequence[TensorSpec]) -> Exception:
    """What to raise where there is no operating point to map to, or nothing to map."""
    if not tensors:
        return NetworkError("there are no tensors to map; calibrate the network first")
    return CapacityError("no partition was tested at any operating point; scan the module first")
