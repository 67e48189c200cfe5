"""Benchmark: reading tensors with flipped bits, against the floor and against what others do.

The floor is torch's exclusive-or, out of place and on as many threads, with a mask made beforehand. The others are one
random number for every bit (torch's Bernoulli), and pytorchfi, which injects into elements one by one.

A pass of ResNet-18 (He et al., CVPR 2016; for small images with a stem of one 3 x 3 convolution and no pooling) reads
every weight and IFM with errors, and is held against the same pass of the same quantised network without.

Where there is a CUDA device, both are measured on it as well, to the same goals.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from eden import cuda_injection
from eden.approximate import ApproximateNetwork
from eden.injection import flip_uniform, flip_weak_cells, warm_up
from eden.memory import BitErrorMemory, ProfileMemory, ReliableMemory
from eden.networks import ConvNorm, ResidualBlock, folded
from eden.placement import Placement
from eden.precision import Precision
from profiles.cells import WeakCells
from profiles.schema import OperatingPoint

ELEMENTS = 25_000_000
REPEATS = 21
GOALS = {1e-6: 1.2, 1e-4: 1.2, 1e-2: 3.0}  # ratio to the exclusive-or, by bit error rate
WIDTHS = {"fp32": 4, "int8": 1}
SHARE = 20  # what is slow is measured on one element in so many, and so is what it is compared with
SPEED_UP = 100.0  # over one random number a bit
PYTORCHFI_SPEED_UP = 1000.0
PYTORCHFI_FAULTS = 500
PASSES = {224: 1.15, 32: 1.25}  # ratio to a pass without errors, by width of the images
PASS_BER, PASS_BATCH, PASS_REPEATS = 1e-4, 32, 7
DEVICE_CALLS = 20  # on a device, one after another: to wait for one takes longer than the call
WEAK_CELLS = 100_000
BYTES_APART = 32  # a tensor so many times as large must not cost more


class Figure(TypedDict):
    """One line of a benchmark: ``ratio`` is value over bound, ``goal`` what the ratio must not exceed."""

    bench: str
    name: str
    value: float
    unit: str
    bound: float
    ratio: float
    goal: float
    met: bool


def figures(
    elements: int = ELEMENTS, repeats: int = REPEATS, batch: int = PASS_BATCH, pass_repeats: int = PASS_REPEATS
) -> Iterator[Figure]:
    """Each value and its bound are the shortest of times taken in turn: the least disturbed by whatever else runs."""
    warm_up()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for name, width in WIDTHS.items():
                for ber, goal in GOALS.items():
                    label = f"{name}, BER {ber:g}, {elements * width} bytes, {_threads(threads)}"
                    yield _against_exclusive_or(label, elements * width, ber, goal, repeats)
            for width, goal in PASSES.items():
                yield _resnet_pass(width, torch.device("cpu"), _threads(threads), batch, goal, pass_repeats)
        torch.set_num_threads(1)
        for name, width in WIDTHS.items():
            yield _against_one_draw_a_bit(name, elements * width // SHARE, repeats)
        yield _weak_cells(elements * 4, repeats)
        yield _loaded_from_cells(elements * 4, repeats)
        yield from _against_pytorchfi(repeats)
        if torch.cuda.is_available() and cuda_injection.runs_on(torch.empty(0, device="cuda")):
            yield from on_device(torch.device("cuda"), elements, repeats)
            for width, goal in PASSES.items():
                yield _resnet_pass(width, torch.device("cuda"), "CUDA", batch, goal, pass_repeats)
    finally:
        torch.set_num_threads(before)


def _against_exclusive_or(name: str, size: int, ber: float, goal: float, repeats: int) -> Figure:
    stored = _random_bytes(size)
    read, mask = np.zeros_like(stored), np.zeros_like(stored)
    flip_uniform(mask, mask, ber, ber, 0)
    seeds, buffers = itertools.count(), [torch.from_numpy(each).view(torch.int64) for each in (stored, mask, read)]
    value, bound = _in_turn(
        lambda: flip_uniform(stored, read, ber, ber, next(seeds)),
        lambda: torch.bitwise_xor(buffers[0], buffers[1], out=buffers[2]),
        repeats,
    )
    return _figure(name, value, bound, goal)


def on_device(device: torch.device, elements: int = ELEMENTS, repeats: int = REPEATS) -> Iterator[Figure]:
    """Flips on a CUDA device against the exclusive-or there."""
    for name, width in WIDTHS.items():
        for ber, goal in GOALS.items():
            yield _against_exclusive_or_on(device, f"{name}, BER {ber:g}", elements * width, ber, goal, repeats)


def _against_exclusive_or_on(
    device: torch.device, name: str, size: int, ber: float, goal: float, repeats: int
) -> Figure:
    stored = cuda_injection.with_whole_words(torch.from_numpy(_random_bytes(size)).to(device))
    counters, seeds = cuda_injection.Counters(device), itertools.count()
    mask = stored ^ cuda_injection.flip_uniform(stored, ber, ber, 0, counters)
    read = torch.empty_like(stored)

    def finished(call: Callable[[], object]) -> Callable[[], None]:
        def calls() -> None:
            for _ in range(DEVICE_CALLS):
                call()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return calls

    value, bound = _in_turn(
        finished(lambda: cuda_injection.flip_uniform(stored, ber, ber, next(seeds), counters)),
        finished(lambda: torch.bitwise_xor(stored, mask, out=read)),
        repeats,
    )
    return _figure(f"{name}, {size} bytes, CUDA", value / DEVICE_CALLS, bound / DEVICE_CALLS, goal)


def _resnet_pass(width: int, device: torch.device, where: str, batch: int, goal: float, repeats: int) -> Figure:
    """Weights, stored at the first pass, and images are random: what they are changes no time."""
    network = ApproximateNetwork(folded(_resnet18(small=width < 64)).to(device), Precision.INT8)
    images = torch.randn(batch, 3, width, width, generator=torch.Generator().manual_seed(0)).to(device)
    network.calibrate([images])
    erring, reliable = (network.twin(memory) for memory in (BitErrorMemory(PASS_BER, 1), ReliableMemory()))

    def one_pass(network: ApproximateNetwork) -> None:
        with torch.no_grad():
            network(images)
        if device.type == "cuda":
            torch.cuda.synchronize()

    value, bound = _in_turn(lambda: one_pass(erring.eval()), lambda: one_pass(reliable.eval()), repeats)
    return _figure(f"ResNet-18, int8, {width} px, batch {batch}, BER {PASS_BER:g}, {where}", value, bound, goal)


def _resnet18(small: bool) -> nn.Module:
    stem = [ConvNorm(3, 64, 3)] if small else [ConvNorm(3, 64, 7, stride=2)]
    channels, layers = 64, list[nn.Module]([*stem, nn.ReLU(), *([] if small else [nn.MaxPool2d(3, 2, padding=1)])])
    for wider, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [ResidualBlock(channels, wider, stride), ResidualBlock(wider, wider, 1)]
        channels = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10 if small else 1000)).eval()


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _against_one_draw_a_bit(precision: str, size: int, repeats: int) -> Figure:
    """``bound`` is the time of torch's Bernoulli for every bit, 2^20 bytes at a time; the goal is how often faster."""
    stored = torch.from_numpy(_random_bytes(size))
    read, ber = torch.zeros_like(stored), 1e-3
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)

    def one_draw_a_bit() -> None:
        for start in range(0, size, 1 << 20):
            piece, out = (each[start : start + (1 << 20)] for each in (stored, read))
            flips = torch.empty(piece.numel(), 8, dtype=torch.uint8).bernoulli_(ber, generator=generator)
            torch.bitwise_xor(piece, (flips * weights).sum(1, dtype=torch.uint8), out=out)

    value, bound = _in_turn(
        lambda: flip_uniform(stored.numpy(), read.numpy(), ber, ber, 0), one_draw_a_bit, min(3, repeats)
    )
    return _figure(f"{precision}, BER {ber:g}, {size} bytes, against one draw a bit", value, bound, 1 / SPEED_UP)


def _weak_cells(size: int, repeats: int) -> Figure:
    """Cells of a profile in a large tensor against as many in a small one, both spread evenly: cost follows cells."""
    sizes = (max(size, WEAK_CELLS), max(size // BYTES_APART, WEAK_CELLS))
    large, small = (_flipping_weak_cells(each) for each in sizes)
    value, bound = _in_turn(large, small, repeats)
    name = f"{WEAK_CELLS} profile cells in {sizes[0]} bytes, against as many in {sizes[1]}"
    return _figure(name, value, bound, 3.0)


def _loaded_from_cells(size: int, repeats: int) -> Figure:
    """A whole read of a tensor at a profile's cells against one in reliable memory, which copies it as well."""
    size = max(size, WEAK_CELLS) // 64 * 64
    point = OperatingPoint(vdd_mv=1040, trcd_ps=10_000)
    place = Placement(tensor="a", partition="bank 0", first_cell=0, cells=size * 8, point=point)
    erring, reliable = ProfileMemory(_weak_cells_in(size), {"a": place}, 1), ReliableMemory()
    for memory in (erring, reliable):
        memory.store("a", torch.from_numpy(_random_bytes(size)))
    value, bound = _in_turn(lambda: erring.load("a"), lambda: reliable.load("a"), repeats)
    return _figure(f"a read of {size} bytes with {WEAK_CELLS} profile cells, against a reliable one", value, bound, 1.2)


def _flipping_weak_cells(size: int) -> Callable[[], object]:
    buffer, weak = np.zeros(size, np.uint8), _weak_cells_in(size)
    return lambda: flip_weak_cells(buffer, weak, 0)


def _weak_cells_in(size: int) -> WeakCells:
    half = np.full(WEAK_CELLS, 0.5)
    return WeakCells(np.linspace(0, size * 8 - 1, WEAK_CELLS).astype(np.int64), half, half)


def _against_pytorchfi(repeats: int) -> Iterator[Figure]:
    """A flip here against a fault of pytorchfi, each set and injected by its own interface; none if not installed."""
    try:
        from pytorchfi.core import fault_injection
    except ImportError:
        return
    side = 64
    convolution = nn.Conv2d(side, side, 3, padding=1)
    injector = fault_injection(convolution, 1, [side, 8, 8])
    chosen = np.random.default_rng(0).integers(0, (side, side, 3, 3), (PYTORCHFI_FAULTS, 4)).T
    layers, (k, c, h, w) = [0] * PYTORCHFI_FAULTS, (list(map(int, axis)) for axis in chosen)

    def faults() -> None:
        injector.declare_weight_fi(layer_num=layers, k=k, dim1=c, dim2=h, dim3=w, value=[0.0] * PYTORCHFI_FAULTS)

    ber, stored = 1e-2, _random_bytes(1 << 22)
    read = np.zeros_like(stored)
    flips = flip_uniform(stored, read, ber, ber, 0).total
    value, bound = _in_turn(lambda: flip_uniform(stored, read, ber, ber, 0), faults, min(3, repeats))
    name = f"a flip at BER {ber:g}, against a fault of pytorchfi"
    yield _figure(name, value / flips, bound / PYTORCHFI_FAULTS, 1 / PYTORCHFI_SPEED_UP)


def _random_bytes(size: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


def _in_turn(action: Callable[[], object], bound: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Shortest milliseconds of both, after one call of each to warm caches."""
    action()
    bound()
    times = [(_milliseconds(bound), _milliseconds(action)) for _ in range(repeats)]
    return min(value for _, value in times), min(floor for floor, _ in times)


def _figure(name: str, value: float, bound: float, goal: float) -> Figure:
    ratio = value / bound
    return Figure(
        bench="injection", name=name, value=value, unit="ms", bound=bound, ratio=ratio, goal=goal, met=ratio <= goal
    )


def _milliseconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3
