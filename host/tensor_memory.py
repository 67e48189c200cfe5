"""Tensors held in a board's DRAM: the approximate memory of `eden` with nothing modelled."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from host.board import Board
from profiles.errors import CapacityError, NetworkError
from profiles.geometry import Geometry
from profiles.schema import OperatingPoint


class Stretch(Protocol):
    """Cells one after another that hold part of a tensor: `eden.placement.Piece`."""

    @property
    def first_cell(self) -> int:
        """Module cell index of the first bit, at the start of a burst."""

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


class BoardMemory:
    """Stores tensors in DRAM at their mapped addresses and reads them back at their operating points.

    Weights are written at nominal VDD and tRCD; IFMs (names in ``written_at_point``) at the operating point they are
    read at, as the profile's write condition says. Both are accessed one burst per activation, as they were
    characterised.
    Use inside ``board.rail.guarded()``.

    Attributes:
        flips, bits_read: bits returned wrong and bits returned, by tensor; the host keeps what was stored to tell.
    """

    def __init__(self, board: Board, placements: Mapping[str, Placed], written_at_point: frozenset[str]) -> None:
        self.flips: dict[str, int] = {}
        self.bits_read: dict[str, int] = {}
        self._board, self._placements, self._written_at_point = board, placements, written_at_point
        self._stored: dict[str, torch.Tensor] = {}
        _check_places(placements, board.geometry)

    def clear(self) -> None:
        """Write zeros to every place, at nominal: a WRITE that fails keeps what lay there before."""
        self._supply(self._board.rail.nominal_mv)
        for place in self._placements.values():
            for piece in place.pieces:
                zeros = torch.zeros(piece.cells // 8, dtype=torch.uint8)
                self._board.write_bursts(piece.first_cell, self._bursts(zeros), self._board.timings.trcd)

    def store(self, tensor: str, data: torch.Tensor) -> None:
        """Write ``data`` (uint8, flat) as ``tensor``.

        Raises:
            NetworkError: the tensor has no place.
            CapacityError: it is larger than its place.
        """
        place = self._place(tensor)
        room = sum(piece.cells for piece in place.pieces)
        if data.numel() * 8 > room:
            raise CapacityError(
                f"{tensor} has {data.numel() * 8} bits, its place holds {room}; map the network with this batch size"
            )
        at_point = tensor in self._written_at_point
        for piece, part in _parts(place, data):
            self._supply(piece.point.vdd_mv if at_point else self._board.rail.nominal_mv)
            trcd = self._clocks(piece.point) if at_point else self._board.timings.trcd
            self._board.write_bursts(piece.first_cell, self._bursts(part), trcd)
        self._stored[tensor] = data

    def load(self, tensor: str) -> torch.Tensor:
        """Read ``tensor`` once at its operating point: uint8, flat."""
        if tensor not in self._stored:
            raise NetworkError(f"{tensor} is read before it was stored; store it first")
        stored, place = self._stored[tensor], self._place(tensor)
        read = [np.empty(0, np.uint8)]
        for piece, part in _parts(place, stored):
            self._supply(piece.point.vdd_mv)
            count = -(-part.numel() * 8 // self._board.geometry.burst_bits)
            words = self._board.read_bursts(piece.first_cell, count, self._clocks(piece.point))
            read.append(words.view(np.uint8).reshape(-1)[: part.numel()])
        data = torch.from_numpy(np.concatenate(read))
        wrong = int(np.bitwise_count(np.bitwise_xor(data.numpy(), stored.numpy())).sum())
        self.flips[tensor] = self.flips.get(tensor, 0) + wrong
        self.bits_read[tensor] = self.bits_read.get(tensor, 0) + stored.numel() * 8
        return data

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

    def _clocks(self, point: OperatingPoint) -> int:
        return self._board.timings.trcd_clocks(point.trcd_ps)

    def _supply(self, millivolts: int) -> None:
        if self._board.rail.present_mv != millivolts:
            self._board.rail.set(millivolts)

    def _bursts(self, data: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint32]]:
        """``data`` as uint32[bursts, words a burst], the last burst filled up with zeros."""
        size = self._board.geometry.burst_bits // 8
        padded = np.zeros(-(-data.numel() // size) * size, np.uint8)
        padded[: data.numel()] = data.numpy()
        return padded.view(np.uint32).reshape(-1, size // 4)


def _parts(place: Placed, data: torch.Tensor) -> Iterator[tuple[Stretch, torch.Tensor]]:
    """The bytes of ``data`` that lie in each piece; pieces that it does not reach are left out."""
    start = 0
    for piece in place.pieces:
        part = data[start : start + piece.cells // 8]
        if part.numel():
            yield piece, part
        start += piece.cells // 8


def _check_places(placements: Mapping[str, Placed], geometry: Geometry) -> None:
    """Raises CapacityError where a place is off a burst's start, outside the module, or over another."""
    end, before = 0, ""
    pieces = [(tensor, piece) for tensor, placed in placements.items() for piece in placed.pieces]
    for tensor, place in sorted(pieces, key=lambda item: item[1].first_cell):
        last = place.first_cell + place.cells - 1
        if place.first_cell % geometry.burst_bits or place.first_cell < 0 or last >= geometry.cells:
            raise CapacityError(
                f"{tensor} is mapped to cells {place.first_cell}..{last}; places start at a burst "
                f"({geometry.burst_bits} cells) and end within the module's {geometry.cells}: map the network again"
            )
        if place.first_cell < end:
            raise CapacityError(f"{tensor} is mapped over {before}; map the network again")
        end, before = last + 1, tensor
