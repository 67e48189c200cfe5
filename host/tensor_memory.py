"""Tensors held in the DRAM of boards: the approximate memory of `eden` with nothing modelled."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from host.board import Board
from host.bus import Words
from profiles.errors import BoardError, CapacityError, NetworkError
from profiles.geometry import Geometry, first_cells, in_one_module
from profiles.schema import OperatingPoint

Bytes = npt.NDArray[np.uint8]


class Stretch(Protocol):
    """Cells one after another that hold part of a tensor: `eden.placement.Piece`."""

    @property
    def first_cell(self) -> int:
        """Cell index of the first bit over all modules (`profiles.geometry.first_cells`), at the start of a burst."""

    @property
    def cells(self) -> int:
        """Cells reserved; whole bursts."""

    @property
    def point(self) -> OperatingPoint:
        """Operating point that they are read at."""


class Placed(Protocol):
    """Where a tensor lies: `eden.placement.Placement`."""

    @property
    def pieces(self) -> Sequence[Stretch]:
        """Stretches of cells, in the order of the tensor's bits."""


class Listener(Protocol):
    """Who wants to know what becomes of tensors: `host.expectation.FlipExpectation`."""

    def stored(self, tensor: str, data: Bytes) -> None:
        """``tensor`` was written as ``data``."""

    def loaded(self, tensor: str, data: Bytes, wrong: int) -> None:
        """``tensor``, stored as ``data``, was read once with ``wrong`` wrong bits."""


class BoardMemory:
    """Stores tensors in DRAM at their mapped addresses and reads them back at their operating points.

    Weights are written at nominal VDD and tRCD; IFMs (names in ``written_at_point``) at the operating point they are
    read at, as the profile's write condition says. Both are accessed one burst per activation, as they were
    characterised.
    Use inside ``board.rail.guarded()`` of every board.

    Args:
        boards: where they lie, in the order that their modules' cells are numbered in; of one burst size.
        placements: where each lies there.
        written_at_point: names of IFMs.
        weight_reuse: loads of a weight that one read of the DRAM serves: its draw of errors is then shared by as many
            batches. 1 reads the DRAM for each load.
        listener: told of every write and read.

    Attributes:
        flips, bits_read: bits that the DRAM returned wrong and bits that it returned, by tensor; the host keeps what
            was stored to tell.

    Raises:
        CapacityError: places that are off a burst's start, outside a module, or one over another.
        NetworkError: ``weight_reuse`` is less than 1.
        BoardError: the boards' bursts differ in size.
    """

    def __init__(
        self,
        boards: Sequence[Board],
        placements: Mapping[str, Placed],
        written_at_point: frozenset[str],
        weight_reuse: int = 1,
        listener: Listener | None = None,
    ) -> None:
        if weight_reuse < 1:
            raise NetworkError(f"a read cannot serve {weight_reuse} batches; give 1 to read weights for each batch")
        self.flips: dict[str, int] = {}
        self.bits_read: dict[str, int] = {}
        self._boards, self._placements, self._written_at_point = boards, placements, written_at_point
        self._reuse, self._listener = weight_reuse, listener
        self._stored: dict[str, torch.Tensor] = {}
        self._kept: dict[str, tuple[torch.Tensor, int]] = {}  # read before, and the loads that it still serves
        geometries = [board.geometry for board in boards]
        self._first_cells, self._burst_bytes = first_cells(geometries), _burst_bits(geometries) // 8
        _check_places(placements, geometries)

    def clear(self) -> None:
        """Write zeros to every place, at nominal: a WRITE that fails keeps what lay there before."""
        sizes = {tensor: sum(piece.cells for piece in place.pieces) // 8 for tensor, place in self._placements.items()}
        by_board: dict[int, list[tuple[int, int]]] = {}
        for at, _, stretches in self._runs(list(sizes), sizes):
            by_board.setdefault(at, []).extend(stretches)
        for at, stretches in by_board.items():
            board = self._boards[at]
            _supply(board, board.rail.nominal_mv)
            zeros = np.zeros((sum(count for _, count in stretches), self._burst_bytes // 4), np.uint32)
            board.write_bursts(stretches, zeros, board.timings.trcd)

    def store(self, tensor: str, data: torch.Tensor) -> None:
        """Write ``data`` (uint8, flat, from any device) as ``tensor``.

        Raises:
            NetworkError: the tensor has no place.
            CapacityError: it is larger than its place.
        """
        place, data = self._place(tensor), data.cpu()
        room = sum(piece.cells for piece in place.pieces)
        if data.numel() * 8 > room:
            raise CapacityError(
                f"{tensor} has {data.numel() * 8} bits, its place holds {room}; map the network with this batch size"
            )
        at_point = tensor in self._written_at_point
        start = 0
        words = self._bursts(data)
        for at, point, stretches in self._runs([tensor], {tensor: data.numel()}):
            board, count = self._boards[at], sum(size for _, size in stretches)
            _supply(board, point.vdd_mv if at_point else board.rail.nominal_mv)
            trcd = board.timings.trcd_clocks(point.trcd_ps) if at_point else board.timings.trcd
            board.write_bursts(stretches, words[start : start + count], trcd)
            start += count
        self._stored[tensor] = data
        self._kept.pop(tensor, None)
        if self._listener is not None:
            self._listener.stored(tensor, data.numpy())

    def load(self, tensor: str) -> torch.Tensor:
        """Read ``tensor`` once at its operating point: uint8, flat."""
        return self.load_all([tensor])[0]

    def load_all(self, tensors: Sequence[str]) -> list[torch.Tensor]:
        """Read each of ``tensors`` once, in order, at its operating point: uint8, flat.

        Those that follow one another in one board at one operating point are read by one program.

        Raises:
            NetworkError: a tensor was not stored.
        """
        for tensor in tensors:
            if tensor not in self._stored:
                raise NetworkError(f"{tensor} is read before it was stored; store it first")
        served = {tensor for tensor in tensors if tensor in self._kept}
        fresh = self._read([tensor for tensor in tensors if tensor not in served])
        return [self._reused(tensor) if tensor in served else fresh[tensor] for tensor in tensors]

    def _reused(self, tensor: str) -> torch.Tensor:
        data, uses = self._kept.pop(tensor)
        if uses > 1:
            self._kept[tensor] = (data, uses - 1)
        return data.clone()

    def _read(self, tensors: Sequence[str]) -> dict[str, torch.Tensor]:
        sizes = {tensor: self._stored[tensor].numel() for tensor in tensors}
        parts = [np.empty(0, np.uint8)]
        for at, point, stretches in self._runs(tensors, sizes):
            board = self._boards[at]
            _supply(board, point.vdd_mv)
            words = board.read_bursts(stretches, board.timings.trcd_clocks(point.trcd_ps))
            parts.append(words.view(np.uint8).reshape(-1))
        everything, found, start = np.concatenate(parts), {}, 0
        for tensor, size in sizes.items():
            found[tensor] = torch.from_numpy(everything[start : start + size].copy())
            start += (
                sum(-(-part // self._burst_bytes) for _, part in _parts(self._place(tensor), size)) * self._burst_bytes
            )
            self._account(tensor, found[tensor])
        return found

    def _account(self, tensor: str, data: torch.Tensor) -> None:
        """Count what a read of ``tensor`` returned wrong, and keep it if it serves further loads."""
        stored = self._stored[tensor].numpy()
        wrong = int(np.bitwise_count(np.bitwise_xor(data.numpy(), stored)).sum())
        self.flips[tensor] = self.flips.get(tensor, 0) + wrong
        self.bits_read[tensor] = self.bits_read.get(tensor, 0) + stored.size * 8
        if self._reuse > 1 and tensor not in self._written_at_point:
            self._kept[tensor] = (data.clone(), self._reuse - 1)
        if self._listener is not None:
            self._listener.loaded(tensor, stored, wrong)

    def _runs(
        self, tensors: Sequence[str], sizes: Mapping[str, int]
    ) -> Iterator[tuple[int, OperatingPoint, list[tuple[int, int]]]]:
        """The bursts of tensors of ``sizes`` bytes, in order, cut where the board or the operating point changes."""
        pieces = [
            (*in_one_module(self._first_cells, piece.first_cell), piece.point, -(-part // self._burst_bytes))
            for tensor in tensors
            for piece, part in _parts(self._place(tensor), sizes[tensor])
        ]
        for (board, point), run in groupby(pieces, key=lambda piece: (piece[0], piece[2])):
            yield board, point, [(cell, bursts) for _, cell, _, bursts in run]

    @property
    def total_flips(self) -> int:
        return sum(self.flips.values())

    @property
    def total_bits_read(self) -> int:
        return sum(self.bits_read.values())

    def _place(self, tensor: str) -> Placed:
        if tensor not in self._placements:
            raise NetworkError(f"{tensor} has no place in DRAM; map the network again")
        return self._placements[tensor]

    def _bursts(self, data: torch.Tensor) -> Words:
        """``data`` as uint32[bursts, words a burst], the last burst filled up with zeros."""
        size = self._burst_bytes
        padded = np.zeros(-(-data.numel() // size) * size, np.uint8)
        padded[: data.numel()] = data.numpy()
        return padded.view(np.uint32).reshape(-1, size // 4)


def _supply(board: Board, millivolts: int) -> None:
    if board.rail.present_mv != millivolts:
        board.rail.set(millivolts)


def _parts(place: Placed, size: int) -> Iterator[tuple[Stretch, int]]:
    """How many of ``size`` bytes lie in each piece, which all but the last fill; pieces not reached are left out."""
    for piece in place.pieces:
        part = min(size, piece.cells // 8)
        if part <= 0:
            return
        yield piece, part
        size -= part


def _burst_bits(geometries: Sequence[Geometry]) -> int:
    sizes = {geometry.burst_bits for geometry in geometries}
    if len(sizes) != 1:
        raise BoardError(f"boards with bursts of {sorted(sizes)} bits hold no network together; use boards of one kind")
    return sizes.pop()


def _check_places(placements: Mapping[str, Placed], geometries: Sequence[Geometry]) -> None:
    """Raises CapacityError where a place is off a burst's start, outside a module, or over another."""
    end, before, starts = 0, "", first_cells(geometries)
    pieces = [(tensor, piece) for tensor, placed in placements.items() for piece in placed.pieces]
    for tensor, place in sorted(pieces, key=lambda item: item[1].first_cell):
        last = place.first_cell + place.cells - 1
        module, cell = in_one_module(starts, place.first_cell)
        geometry = geometries[module]
        if cell < 0 or cell % geometry.burst_bits or cell + place.cells > geometry.cells:
            raise CapacityError(
                f"{tensor} is mapped to cells {place.first_cell}..{last}; places start at a burst "
                f"({geometry.burst_bits} cells) and end within a module's cells, here "
                f"{starts[module]}..{starts[module] + geometry.cells - 1}: map the network again"
            )
        if place.first_cell < end:
            raise CapacityError(f"{tensor} is mapped over {before}; map the network again")
        end, before = last + 1, tensor
