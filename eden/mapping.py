"""Where each tensor lies in DRAM, and at which operating point (EDEN, section 3).

The objective is explicit: a lower VDD comes first, since DRAM energy goes with VDD and hardly with tRCD; among points
of one VDD, the shorter tRCD. VDD is one rail for the whole module; tRCD can differ by partition.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eden.approximate import TensorSpec
from eden.placement import Placement
from profiles.errors import CapacityError, NetworkError
from profiles.files import atomic_file
from profiles.schema import ModuleIdentity, OperatingPoint

DEFAULT_ALIGNMENT_BITS = 512
MAPPING_VERSION = 2


@dataclass(frozen=True)
class Partition:
    """A stretch of cells that is operated at one tRCD: a bank, a subarray, or part of one.

    Attributes:
        name: unique among the partitions.
        bank: the bank it lies in.
        first_cell, cells: module cells ``first_cell .. first_cell + cells - 1``.
        ber_by_point: bit error rate of data written at nominal conditions, by operating point of the read.
        ifm_ber_by_point: the same for data written at the operating point, as IFMs are; None where it is not known to
            differ.
        rows: rates of each row, so that tensors find the rows that hold; None where only the whole was measured.
    """

    name: str
    bank: int
    first_cell: int
    cells: int
    ber_by_point: Mapping[OperatingPoint, float]
    ifm_ber_by_point: Mapping[OperatingPoint, float] | None = None
    rows: "RowRates | None" = None

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


class DramMapping(BaseModel):
    """Every tensor's place and operating point; what the runtime and the board use.

    Attributes:
        images: batch size that IFMs have room for.
        alignment_bits: every tensor starts at a multiple of it, a burst.
        placements: by tensor; they do not overlap.
        trcd_ps: activation latency of each partition in use.
        module: whose cells it was made for; None where it was made for none in particular.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = MAPPING_VERSION
    images: int = Field(gt=0)
    alignment_bits: int = Field(gt=0)
    vdd_mv: int = Field(gt=0)
    placements: dict[str, Placement]
    module: ModuleIdentity | None = None

    @property
    def trcd_ps(self) -> dict[str, int]:
        return {placement.partition: placement.point.trcd_ps for placement in self.placements.values()}

    @property
    def cells(self) -> int:
        """Cells reserved."""
        return sum(placement.cells for placement in self.placements.values())

    def save(self, path: Path) -> None:
        """Write the mapping as JSON. Raises ProfileError where the disk is full or cannot be written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> "DramMapping":
        """Read what `save` wrote. Raises NetworkError where that is missing, damaged, or of another version."""
        try:
            mapping = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise NetworkError(f"no mapping at {path}; run eden map first") from error
        except (ValidationError, ValueError) as error:
            raise NetworkError(f"{path} is no mapping of this toolkit, or is damaged; run eden map again") from error
        if mapping.version != MAPPING_VERSION:
            raise NetworkError(f"{path} has version {mapping.version}, not {MAPPING_VERSION}; run eden map again")
        return mapping


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
) -> DramMapping:
    """The whole network at one operating point: the most aggressive at which it fits where BER is tolerable.

    Partitions with the fewest errors are filled first. Deterministic.

    Raises:
        CapacityError: no operating point has room enough at ``tolerated_ber``; names the first tensor left over.
    """
    failure: CapacityError | None = None
    for point in _all_points(partitions):
        fit = [p for p in partitions if point in p.points() and _worst_ber(p, point) <= tolerated_ber]
        rooms = [_Room(p, alignment_bits) for p in sorted(fit, key=lambda p: _worst_ber(p, point))]
        try:
            placements = {tensor.name: _first_fit(tensor, images, rooms, point) for tensor in _largest_first(tensors)}
        except CapacityError as error:
            failure = error
            continue
        return _mapping(tensors, placements, images, alignment_bits)
    raise failure or _nothing_tested(tensors)


def fine_mapping(
    tensors: Sequence[TensorSpec],
    tolerated_ber: Mapping[str, float],
    partitions: Sequence[Partition],
    images: int,
    alignment_bits: int = DEFAULT_ALIGNMENT_BITS,
) -> DramMapping:
    """EDEN's greedy Algorithm 1, at the lowest VDD at which all tensors find a place.

    At each VDD the least tolerant tensor goes first (the larger of equals), to the partition with the largest tRCD
    reduction among those with enough room and BER within its tolerance; it sets that partition's tRCD for those that
    follow. Of equals, the partition with the fewest errors. Deterministic; greedy, so no proof that no lower VDD works.

    Raises:
        CapacityError: no VDD has a place for all; names the tensor, its size, its tolerance and what is free.
        NetworkError: a tensor without a tolerance.
    """
    for tensor in tensors:
        if tensor.name not in tolerated_ber:
            raise NetworkError(f"no tolerated BER is known for {tensor.name}; run the fine tolerance search for it")
    order = sorted(tensors, key=lambda tensor: (tolerated_ber[tensor.name], -tensor.bits(images), tensor.name))
    failure: CapacityError | None = None
    for vdd_mv in sorted({point.vdd_mv for point in _all_points(partitions)}):
        rooms = [_Room(partition, alignment_bits) for partition in partitions]
        try:
            placements = {
                tensor.name: _best_fit(tensor, tolerated_ber[tensor.name], images, rooms, vdd_mv) for tensor in order
            }
        except CapacityError as error:
            failure = error
            continue
        return _mapping(tensors, placements, images, alignment_bits)
    raise failure or _nothing_tested(tensors)


def _first_fit(tensor: TensorSpec, images: int, rooms: Sequence[_Room], point: OperatingPoint) -> Placement:
    for room in rooms:
        window = room.best_window(tensor, images, point)
        if window is not None:
            return room.place(tensor, window, point)
    raise _no_room(tensor, images, rooms, f"at {point}")


def _best_fit(tensor: TensorSpec, tolerated: float, images: int, rooms: Sequence[_Room], vdd_mv: int) -> Placement:
    candidates = [
        (aggressiveness(point), window.ber, index, room, point, window)
        for index, room in enumerate(rooms)
        for point in _points_of(room, vdd_mv)
        if (window := room.best_window(tensor, images, point)) is not None
    ]
    usable = [candidate for candidate in candidates if candidate[1] <= tolerated]
    if not usable:
        where = f"at {vdd_mv} mV" + (f" and BER <= {tolerated:.2e}" if tolerated < 1 else "")
        if candidates:
            where += f" (the best place has {min(candidate[1] for candidate in candidates):.2e})"
        raise _no_room(tensor, images, [] if candidates else rooms, where)
    *_, room, point, window = min(usable, key=lambda candidate: candidate[:3])
    return room.place(tensor, window, point)


def _points_of(room: _Room, vdd_mv: int) -> Iterator[OperatingPoint]:
    """Points at ``vdd_mv`` that the partition can still be operated at."""
    if room.point is not None:
        yield room.point
        return
    yield from (point for point in room.partition.points() if point.vdd_mv == vdd_mv)


def _all_points(partitions: Iterable[Partition]) -> list[OperatingPoint]:
    return sorted({point for partition in partitions for point in partition.points()}, key=aggressiveness)


def _worst_ber(partition: Partition, point: OperatingPoint) -> float:
    return max(partition.ber("weight", point), partition.ber("ifm", point))


def _largest_first(tensors: Iterable[TensorSpec]) -> list[TensorSpec]:
    return sorted(tensors, key=lambda tensor: (-tensor.bits(), tensor.name))


def _mapping(
    tensors: Sequence[TensorSpec], placements: Mapping[str, Placement], images: int, alignment_bits: int
) -> DramMapping:
    ordered = {tensor.name: placements[tensor.name] for tensor in tensors}
    vdd_mv = next(iter(ordered.values())).point.vdd_mv
    return DramMapping(images=images, alignment_bits=alignment_bits, vdd_mv=vdd_mv, placements=ordered)


def _no_room(tensor: TensorSpec, images: int, rooms: Sequence[_Room], where: str) -> CapacityError:
    largest = max((room.free for room in rooms), default=0)
    total = sum(room.free for room in rooms)
    return CapacityError(
        f"{tensor.name} needs {tensor.bits(images)} bits; {where} the largest free stretch of tolerable cells is "
        f"{largest} of {total} bits in {len(rooms)} partitions: use smaller batches, more banks, or boost the network"
    )


def _nothing_tested(tensors: Sequence[TensorSpec]) -> Exception:
    if not tensors:
        return NetworkError("there are no tensors to map; calibrate the network first")
    return CapacityError("no partition was tested at any operating point; scan the module first")
