"""The one approximate memory: stores tensors and gives them back, perhaps with errors.

Networks see `ApproximateMemory` only. Behind it lies an error model, a profile's cells at real addresses, or a board
(in `host`, by structure: nothing to inherit). Every load is a fresh read: it draws its errors anew and leaves what is
stored as it was. Same seed, same stores and loads: same bits.

The memories here keep a tensor on the device that it comes from, a CPU or a CUDA device, and corrupt it there.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from eden import cuda_injection
from eden.injection import check_within, flip_uniform, flip_weak_cells
from eden.placement import Placement
from eden.seeds import derive_seed
from profiles.cells import WeakCells
from profiles.errors import CapacityError, NetworkError
from profiles.geometry import Geometry

UNIFORM_MODELS = (0, 3)  # error models whose weak cells lie anywhere with the same probability
MAP_ALIGNMENT_BITS = 512


class ApproximateMemory(Protocol):
    """What a network needs of a memory."""

    def store(self, tensor: str, data: torch.Tensor) -> None:
        """Write ``data`` (uint8, flat, on any device) as ``tensor``; the memory may keep it, and nobody changes it."""

    def load(self, tensor: str) -> torch.Tensor:
        """Read tensor ``tensor`` once: uint8, flat, in a buffer of the caller's own, on any device."""

    def load_all(self, tensors: Sequence[str]) -> list[torch.Tensor]:
        """Read each of ``tensors`` once, in order, as `load` does; a board does it in one go."""


class ErrorModel(Protocol):
    """What injection needs of an error model (`profiles.error_models`)."""

    @property
    def number(self) -> int:
        """Which of EDEN's error models, 0 to 3."""

    @property
    def geometry(self) -> Geometry:
        """The module's."""

    @property
    def banks(self) -> tuple[int, ...]:
        """Banks that the model describes."""

    def ber(self, ones_fraction: float = 0.5) -> float:
        """Expected bit error rate of data with this share of ones."""

    def sample_weak_cells(self, first_cell: int, cells: int, seed: int) -> WeakCells:
        """The weak cells in ``cells`` cells from ``first_cell`` on, numbered from 0, of the module set by ``seed``."""


class StoredTensors:
    """Stores bytes by name; counts bits read and flipped. Subclasses say what a read does by `_read`.

    Attributes:
        bits_read: bits that reads returned, by tensor.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.bits_read: dict[str, int] = {}
        self._data: dict[str, torch.Tensor] = {}
        self._loads: dict[str, int] = {}
        self._flips: dict[str, int] = {}
        self._counters: dict[tuple[str, torch.device], cuda_injection.Counters] = {}
        self._cells: dict[str, tuple[WeakCells, cuda_injection.DeviceCells]] = {}

    def store(self, tensor: str, data: torch.Tensor) -> None:
        """See `ApproximateMemory.store`. Raises NetworkError where ``data`` is not flat, or not of bytes."""
        if data.dtype != torch.uint8 or data.dim() != 1:
            raise NetworkError(
                f"{tensor} is {data.dtype} of shape {tuple(data.shape)}; a memory stores bytes: flat uint8"
            )
        self._data[tensor] = cuda_injection.with_whole_words(data) if cuda_injection.runs_on(data) else data.cpu()

    def load(self, tensor: str) -> torch.Tensor:
        """See `ApproximateMemory.load`. Raises NetworkError where nothing was stored by that name."""
        if tensor not in self._data:
            raise NetworkError(f"{tensor} is read before it was stored; store it first")
        data = self._data[tensor]
        turn = self._loads.get(tensor, 0)
        self._loads[tensor] = turn + 1
        read = self._read(tensor, data, turn)
        self.bits_read[tensor] = self.bits_read.get(tensor, 0) + data.numel() * 8
        return read

    def load_all(self, tensors: Sequence[str]) -> list[torch.Tensor]:
        """See `ApproximateMemory.load_all`."""
        return [self.load(tensor) for tensor in tensors]

    @property
    def flips(self) -> dict[str, int]:
        """Bits that reads returned wrong, by tensor."""
        flips = dict.fromkeys(self.bits_read, 0) | self._flips
        for (tensor, _), counters in self._counters.items():
            flips[tensor] = flips.get(tensor, 0) + counters.total
        return flips

    @property
    def total_flips(self) -> int:
        return sum(self.flips.values())

    @property
    def total_bits_read(self) -> int:
        return sum(self.bits_read.values())

    @property
    def measured_ber(self) -> float:
        """Flips a bit over everything read so far; 0 before the first read."""
        return self.total_flips / max(1, self.total_bits_read)

    def _read(self, tensor: str, data: torch.Tensor, turn: int) -> torch.Tensor:
        """What read number ``turn`` (from 0) of ``tensor``, stored as ``data``, returns in a new buffer."""
        raise NotImplementedError

    def _with_uniform_flips(
        self, tensor: str, data: torch.Tensor, rate_zero: float, rate_one: float, seed: int
    ) -> torch.Tensor:
        if cuda_injection.runs_on(data):
            return cuda_injection.flip_uniform(data, rate_zero, rate_one, seed, self._counters_of(tensor, data.device))
        read = torch.empty_like(data)
        self._count(tensor, flip_uniform(data.numpy(), read.numpy(), rate_zero, rate_one, seed).total)
        return read

    def _with_weak_cells(
        self, tensor: str, data: torch.Tensor, weak: WeakCells, seed: int, once: bool = False
    ) -> torch.Tensor:
        """``once`` says that no other read meets these cells."""
        if cuda_injection.runs_on(data):
            cells, counters = self._cells_on(tensor, data, weak, once), self._counters_of(tensor, data.device)
            return cuda_injection.flip_weak_cells(data, cells, seed, counters)
        read = data.clone()
        self._count(tensor, flip_weak_cells(read.numpy(), weak, seed).total)
        return read

    def _count(self, tensor: str, flips: int) -> None:
        self._flips[tensor] = self._flips.get(tensor, 0) + flips

    def _counters_of(self, tensor: str, device: torch.device) -> cuda_injection.Counters:
        if (tensor, device) not in self._counters:
            self._counters[tensor, device] = cuda_injection.Counters(device)
        return self._counters[tensor, device]

    def _cells_on(self, tensor: str, data: torch.Tensor, weak: WeakCells, once: bool) -> cuda_injection.DeviceCells:
        if tensor in self._cells:
            kept, cells = self._cells[tensor]
            if kept is weak and cells.device == data.device:
                return cells
        check_within(weak, data.numel())
        cells = cuda_injection.DeviceCells(weak, data.device)
        if not once:
            self._cells[tensor] = (weak, cells)
        return cells


class ReliableMemory(StoredTensors):
    """Memory without errors."""

    def _read(self, tensor: str, data: torch.Tensor, turn: int) -> torch.Tensor:
        return data.clone()


class BitErrorMemory(StoredTensors):
    """Every bit of every read flips with probability ``ber``: Error Model 0 when each read meets another map.

    Raises:
        NetworkError: ``ber`` is not a probability.
    """

    def __init__(self, ber: float, seed: int) -> None:
        super().__init__(seed)
        if not 0 <= ber <= 1:
            raise NetworkError(f"bit error rate {ber} is not within 0..1; give a probability")
        self.ber = ber

    def _read(self, tensor: str, data: torch.Tensor, turn: int) -> torch.Tensor:
        return self._with_uniform_flips(tensor, data, self.ber, self.ber, derive_seed(self.seed, tensor, turn))


class ErrorModelMemory(StoredTensors):
    """Errors drawn from a fitted error model (EDEN, "offloading").

    Each tensor lies at a virtual address of its own in the model's banks, given at its first store. With ``fresh_map``
    every read meets a new map of weak cells, any map of the model; without, ``seed`` fixes one map of the whole module,
    and each read draws anew which of its weak cells fail.
    """

    def __init__(self, error_model: ErrorModel, seed: int, fresh_map: bool) -> None:
        super().__init__(seed)
        self.error_model = error_model
        self.fresh_map = fresh_map
        self._uniform_rates: tuple[float, float] | None = None
        if fresh_map and error_model.number in UNIFORM_MODELS:
            self._uniform_rates = (error_model.ber(0.0), error_model.ber(1.0))
        self._first_cell: dict[str, int] = {}
        self._reserved: dict[str, int] = {}
        self._next_bank = 0
        self._next_free = 0  # in that bank
        self._maps: dict[str, tuple[int, WeakCells]] = {}

    def store(self, tensor: str, data: torch.Tensor) -> None:
        """See `ApproximateMemory.store`. Raises CapacityError where the tensor exceeds a bank."""
        super().store(tensor, data)
        bits = data.numel() * 8
        if self._reserved.get(tensor, 0) < bits:
            self._first_cell[tensor] = self._allocate(tensor, bits)
            self._reserved[tensor] = bits

    def _read(self, tensor: str, data: torch.Tensor, turn: int) -> torch.Tensor:
        draw = derive_seed(self.seed, tensor, turn)
        if self._uniform_rates is not None:
            return self._with_uniform_flips(tensor, data, *self._uniform_rates, draw)
        weak = self._weak_cells(tensor, data.numel() * 8, turn)
        return self._with_weak_cells(tensor, data, weak, draw, once=self.fresh_map)

    def _allocate(self, tensor: str, bits: int) -> int:
        """The next cell with ``bits`` cells after it in one bank; when all banks are full, the first is used again."""
        bank_bits = self.error_model.geometry.bank_bits
        if bits > bank_bits:
            raise CapacityError(
                f"{tensor} has {bits} bits but a bank of the error model has {bank_bits} cells; use smaller batches"
            )
        if self._next_free + bits > bank_bits:
            self._next_free = 0
            self._next_bank = (self._next_bank + 1) % len(self.error_model.banks)
        first = self.error_model.banks[self._next_bank] * bank_bits + self._next_free
        self._next_free += -(-bits // MAP_ALIGNMENT_BITS) * MAP_ALIGNMENT_BITS
        return first

    def _weak_cells(self, tensor: str, bits: int, turn: int) -> WeakCells:
        if self.fresh_map:
            return self._sample(tensor, bits, derive_seed(self.seed, "map", tensor, turn))
        if self._maps.get(tensor, (0, None))[0] != bits:
            self._maps[tensor] = (bits, self._sample(tensor, bits, derive_seed(self.seed, "map")))
        return self._maps[tensor][1]

    def _sample(self, tensor: str, bits: int, seed: int) -> WeakCells:
        return self.error_model.sample_weak_cells(self._first_cell[tensor], bits, seed)


def gathered(weak: WeakCells, placement: Placement, bits: int) -> WeakCells:
    """The weak cells that the first ``bits`` bits of a tensor meet, numbered by its bits; ``weak`` as places are."""
    parts, start = [], 0
    for piece in placement.pieces:
        here = weak.within(piece.first_cell, max(0, min(piece.cells, bits - start)))
        parts.append(WeakCells(here.cell + start, here.flip_zero, here.flip_one))
        start += piece.cells
    return joined(parts)


def joined(parts: Sequence[WeakCells]) -> WeakCells:
    """Weak cells of places that follow one another, as one map."""
    columns = zip(*((part.cell, part.flip_zero, part.flip_one) for part in parts), strict=True)
    return WeakCells(*(np.concatenate(column) for column in columns))


class ProfileMemory(StoredTensors):
    """Tensors at real addresses of a characterised module: bit ``k`` lies in the ``k``-th cell of its placement.

    Args:
        weak_cells: weak cells as placements number them; one map for all, or one by tensor where tensors have operating
            points or write conditions of their own.
        placements: where each tensor lies.
        seed: seed of the draws; the map itself is the profile's.
        unseen: by tensor, how often any cell fails besides, storing 0 and storing 1 (`profiles.population`).
    """

    def __init__(
        self,
        weak_cells: WeakCells | Mapping[str, WeakCells],
        placements: Mapping[str, Placement],
        seed: int,
        unseen: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        super().__init__(seed)
        self.placements = placements
        self._weak_cells = weak_cells
        self._unseen = unseen or {}
        self._selected: dict[str, tuple[int, WeakCells]] = {}

    def store(self, tensor: str, data: torch.Tensor) -> None:
        """See `ApproximateMemory.store`.

        Raises:
            NetworkError: the tensor has no placement, or no weak cells were given for it.
            CapacityError: the tensor is larger than its placement.
        """
        placement = self.placements.get(tensor)
        if placement is None:
            raise NetworkError(f"{tensor} has no place in DRAM; map the network again")
        bits = data.numel() * 8
        if bits > placement.reserved:
            raise CapacityError(
                f"{tensor} has {bits} bits but its placement in {placement.partition} holds {placement.reserved}; "
                "map it with the batch size in use"
            )
        super().store(tensor, data)
        if tensor not in self._selected or self._selected[tensor][0] != bits:
            self._selected[tensor] = (bits, gathered(self._map_of(tensor), placement, bits))

    def _map_of(self, tensor: str) -> WeakCells:
        if isinstance(self._weak_cells, WeakCells):
            return self._weak_cells
        if tensor not in self._weak_cells:
            raise NetworkError(f"no weak cells are known for {tensor}; give its operating point's")
        return self._weak_cells[tensor]

    def _read(self, tensor: str, data: torch.Tensor, turn: int) -> torch.Tensor:
        read = self._with_weak_cells(tensor, data, self._selected[tensor][1], derive_seed(self.seed, tensor, turn))
        rates = self._unseen.get(tensor, (0.0, 0.0))
        if not any(rates):
            return read
        return self._with_uniform_flips(tensor, read, *rates, derive_seed(self.seed, "unseen", tensor, turn))


class PerTensorMemory:
    """Reads each tensor from a memory of its own, such as one of the bit error rate that this tensor is to meet.

    All memories store all tensors, so that each lies at the same address in any: which one a tensor is read from
    changes nothing for the others.

    Args:
        memories: memory by tensor name; tensors may share one.
    """

    def __init__(self, memories: Mapping[str, ApproximateMemory]) -> None:
        self.memories = memories
        self._all = list({id(memory): memory for memory in memories.values()}.values())

    def store(self, tensor: str, data: torch.Tensor) -> None:
        """See `ApproximateMemory.store`."""
        self._memory_of(tensor)
        for memory in self._all:
            memory.store(tensor, data)

    def load(self, tensor: str) -> torch.Tensor:
        """See `ApproximateMemory.load`."""
        return self._memory_of(tensor).load(tensor)

    def load_all(self, tensors: Sequence[str]) -> list[torch.Tensor]:
        """See `ApproximateMemory.load_all`."""
        return [self.load(tensor) for tensor in tensors]

    def _memory_of(self, tensor: str) -> ApproximateMemory:
        if tensor not in self.memories:
            raise NetworkError(f"no memory was given for {tensor}; give one for each tensor of the network")
        return self.memories[tensor]
