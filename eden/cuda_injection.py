"""Bit flips in a tensor on a CUDA device, which it does not leave: the same bits as `eden.injection` flips on a CPU.

Kernels draw flips and apply them in one pass over the tensor. A block of threads takes a block of bits, each thread a
word of 64: positions are drawn side by side instead of one after the other, never more at once than are missing, so
that the same ones are found. Counts of flips stay on the device until somebody asks for them.

Where there is no device, numba's simulator runs the same kernels over numpy's arrays (NUMBA_ENABLE_CUDASIM=1).
"""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import cuda
from numba.core.errors import NumbaPerformanceWarning

from eden.injection import BLOCK_BITS, BLOCK_WORDS, POSITION_BITS, TO_UNIT, Draw, random_bits, scrambled
from profiles.cells import WeakCells

WORD_BYTES = 8
COUNTERS = 64  # blocks add their flips to one of so many: to a single one they would wait for each other
_CELLS_A_BLOCK = 256

warnings.filterwarnings("ignore", "Grid size", NumbaPerformanceWarning)  # small tensors are what they are


def runs_on(tensor: torch.Tensor) -> bool:
    """Whether these kernels take ``tensor``: AMD's devices have the same name in torch. Warns without the compiler."""
    return tensor.is_cuda and torch.version.cuda is not None and _has_compiler()


@lru_cache
def _has_compiler() -> bool:
    found = importlib.util.find_spec("numba_cuda") is not None
    if not found:
        warnings.warn(
            "what a network on the GPU stores goes to the CPU and back on every pass, which is slow; "
            "pip install -r requirements-cuda.txt, and errors are drawn on the GPU",
            stacklevel=2,
        )
    return found


class Counters:
    """Counts flips on a device; nobody waits for them before `total` is asked."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(COUNTERS, dtype=torch.int64, device=device)
        with _launching_on(self._counts):
            self.array = _array(self._counts)

    @property
    def total(self) -> int:
        return int(self._counts.sum())


class DeviceCells:
    """Weak cells (`profiles.cells.WeakCells`) on a device; they must lie within the tensor that they are flipped in.

    Attributes:
        count: how many.
        columns: as kernels take them: bit numbers in the tensor, probabilities that a stored 0 and a stored 1 flip.
    """

    def __init__(self, weak: WeakCells, device: torch.device) -> None:
        self.count, self.device = weak.cell.size, device
        columns = map(np.ascontiguousarray, (weak.cell, weak.flip_zero, weak.flip_one))
        tensors = [torch.from_numpy(column).to(device) for column in columns]
        with _launching_on(tensors[0]):
            self.columns = [_array(tensor) for tensor in tensors]


def with_whole_words(data: torch.Tensor) -> torch.Tensor:
    """``data`` (uint8, flat) where whole words hold it, with room after its last byte: perhaps itself."""
    rest = -data.numel() % WORD_BYTES
    aligned = data.storage_offset() % WORD_BYTES == 0 and data.data_ptr() % WORD_BYTES == 0
    if not rest and data.is_contiguous() and aligned:
        return data
    words = torch.empty(data.numel() + rest, dtype=torch.uint8, device=data.device)
    words[: data.numel()] = data
    return words[: data.numel()]


def flip_uniform(
    stored: torch.Tensor, rate_zero: float, rate_one: float, seed: int, counters: Counters
) -> torch.Tensor:
    """What a read of ``stored`` returns, in a new buffer, as by `eden.injection.flip_uniform`.

    Args:
        stored: uint8, flat, `with_whole_words`.
        rate_zero, rate_one: probabilities.
        seed: 0 .. 2^64 - 1.
        counters: that the flips are added to, of the same device.
    """
    words, bits = _words(stored), stored.numel() * 8
    read, blocks = torch.empty_like(words), -(-bits // BLOCK_BITS)
    zero, one = Draw.of(rate_zero), Draw.of(rate_one)
    if blocks:
        with _launching_on(stored) as stream:
            thresholds = (_thresholds(rate, stored.device) for rate in (rate_zero, rate_one))
            draws = (*thresholds, zero.inverted, one.inverted, rate_zero == rate_one, np.uint64(seed))
            _flip_blocks[blocks, BLOCK_WORDS, stream](_array(words), _array(read), bits, *draws, counters.array)
    return read.view(torch.uint8)[: stored.numel()]


def flip_weak_cells(stored: torch.Tensor, weak: DeviceCells, seed: int, counters: Counters) -> torch.Tensor:
    """What a read of ``stored`` returns, as by `eden.injection.flip_weak_cells`: arguments as of `flip_uniform`.

    Cost follows the number of weak cells, but for the copy.
    """
    read, blocks = _words(stored).clone(), -(-weak.count // _CELLS_A_BLOCK)
    if blocks:
        with _launching_on(stored) as stream:
            arguments = (_array(read), *weak.columns, np.uint64(seed), counters.array)
            _flip_weak[blocks, _CELLS_A_BLOCK, stream](*arguments)
    return read.view(torch.uint8)[: stored.numel()]


def _words(stored: torch.Tensor) -> torch.Tensor:
    """The words that hold ``stored``, and what lies behind it in the last."""
    return stored.as_strided((-(-stored.numel() // WORD_BYTES) * WORD_BYTES,), (1,)).view(torch.uint64)


@contextmanager
def _launching_on(tensor: torch.Tensor) -> Iterator[Any]:
    """The stream that torch uses for ``tensor``'s device, while that is the current one."""
    with torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext():
        yield _stream(torch.cuda.current_stream(tensor.device).cuda_stream) if tensor.is_cuda else 0


@lru_cache
def _stream(pointer: int) -> Any:
    """Kept, for numba keeps what it needs for a launch by the stream's identity."""
    return cuda.external_stream(pointer) if pointer else 0


def _array(tensor: torch.Tensor) -> Any:
    """``tensor`` as kernels take it: those of the simulator, on a CPU, numpy's arrays."""
    return cuda.as_cuda_array(tensor, sync=False) if tensor.is_cuda else tensor.numpy()


@lru_cache(maxsize=256)
def _thresholds(rate: float, device: torch.device) -> Any:
    """The thresholds of `Draw.counts`: a rate is used over and over."""
    return _array(torch.from_numpy(Draw.of(rate).counts).to(device))


@cuda.jit(device=True)
def _drawn_at_most(thresholds, random):  # type: ignore[no-untyped-def]
    """How many of the ascending ``thresholds`` are not above ``random``."""
    first, last = 0, thresholds.size
    while first < last:
        middle = (first + last) >> 1
        if thresholds[middle] <= random:
            first = middle + 1
        else:
            last = middle
    return first


@cuda.jit(device=True)
def _draw_block(mask, thresholds, stream):  # type: ignore[no-untyped-def]
    """Set the bits of ``mask`` that `eden.injection` sets there: all threads of a block, together."""
    thread = cuda.threadIdx.x
    missing = _drawn_at_most(thresholds, np.uint64(random_bits(stream, np.uint64(0))))
    drawn = 0
    while missing > 0:
        together = min(missing, BLOCK_WORDS)
        new = 0
        if thread < together:
            index = drawn + thread
            random = np.uint64(random_bits(stream, np.uint64(1 + (index >> 2))))
            position = (random >> np.uint64(POSITION_BITS * (index & 3))) & np.uint64(BLOCK_BITS - 1)
            bit = np.uint64(1) << (position & np.uint64(63))
            before = cuda.atomic.or_(mask, np.int64(position >> np.uint64(6)), bit)
            new = 1 if before & bit == 0 else 0
        drawn += together
        missing -= cuda.syncthreads_count(new)


@cuda.jit(cache=True)
def _flip_blocks(stored, read, bits, zeros, ones, invert_zeros, invert_ones, alike, seed, flips):  # type: ignore[no-untyped-def]
    """One block of bits for each block of threads, one word for each thread."""
    flip_zeros = cuda.shared.array(BLOCK_WORDS, np.uint64)
    flip_ones = cuda.shared.array(BLOCK_WORDS, np.uint64)
    together = cuda.shared.array(1, np.int32)
    thread, block = cuda.threadIdx.x, cuda.blockIdx.x
    word = np.int64(block) * BLOCK_WORDS + thread
    value = stored[word] if word < stored.size else np.uint64(0)  # it comes while positions are drawn
    flip_zeros[thread] = 0
    flip_ones[thread] = 0
    if thread == 0:
        together[0] = 0
    cuda.syncthreads()
    start = np.uint64(scrambled(seed))
    _draw_block(flip_zeros, zeros, np.uint64(random_bits(start, np.uint64(2 * block))))
    if not alike:
        _draw_block(flip_ones, ones, np.uint64(random_bits(start, np.uint64(2 * block + 1))))
    if word < stored.size:
        zero = flip_zeros[thread]
        one = zero if alike else flip_ones[thread]
        flipped = ((zero ^ invert_zeros) & ~value) | ((one ^ invert_ones) & value)
        left = bits - word * 64
        if left < 64:
            flipped &= (np.uint64(1) << np.uint64(left)) - np.uint64(1)
        read[word] = value ^ flipped
        if flipped:
            cuda.atomic.add(together, 0, np.int32(cuda.popc(flipped)))
    cuda.syncthreads()
    if thread == 0 and together[0]:
        cuda.atomic.add(flips, block % COUNTERS, np.int64(together[0]))


@cuda.jit(cache=True)
def _flip_weak(words, cell, flip_zero, flip_one, seed, flips):  # type: ignore[no-untyped-def]
    """A cell for each thread. Others of its word may change meanwhile; its own bit is its own."""
    index = cuda.grid(1)
    if index < cell.size:
        word, shift = cell[index] >> 6, np.uint64(cell[index] & 63)
        stored_one = (words[word] >> shift) & np.uint64(1) != 0
        unit = (
            np.float64(np.uint64(random_bits(np.uint64(scrambled(seed)), np.uint64(index))) >> np.uint64(11)) * TO_UNIT
        )
        if unit < (flip_one[index] if stored_one else flip_zero[index]):
            cuda.atomic.xor(words, word, np.uint64(1) << shift)
            cuda.atomic.add(flips, cuda.blockIdx.x % COUNTERS, 1)
