"""Shared fixtures of the method's tests: one thread, small networks, a small DRAM and its error models."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from eden.placement import Placement
from profiles.cells import WeakCells
from profiles.error_models import BitlineModel, DataDependentModel, ErrorModel, UniformModel, WordlineModel
from profiles.geometry import Geometry
from profiles.schema import OperatingPoint


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def geometry() -> Geometry:
    return Geometry(banks=2, rows=256, columns=1024, data_width=64)


@pytest.fixture(scope="session")
def error_models(geometry: Geometry) -> dict[int, Callable[[float], ErrorModel]]:
    """Error models by number, each a function of the bit error rate."""
    uniform = UniformModel(geometry=geometry, banks=(0, 1), weak_fraction=0.1, flip_probability=0.5)
    data_dependent = DataDependentModel(geometry=geometry, banks=(0, 1), weak_fraction=0.1, flip_zero=0.2, flip_one=0.8)
    measured, pooled = np.arange(0, 256, 2), {"pooled_weak_fraction": 0.02, "pooled_flip_probability": 0.5}
    lines = {"line": measured, "weak_fraction": np.full(128, 0.1), "flip_probability": np.full(128, 0.7), **pooled}
    bitlines = BitlineModel(geometry=geometry, banks=(0, 1), **lines)
    wordlines = WordlineModel(geometry=geometry, banks=(0, 1), **lines)
    return {0: uniform.scaled, 1: bitlines.scaled, 2: wordlines.scaled, 3: data_dependent.scaled}


@pytest.fixture
def small_network() -> nn.Module:
    """A convolution, a norm and a linear layer for inputs of [n, 1, 8, 8], in a reproducible state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
        ).eval()


@pytest.fixture(scope="session")
def small_images() -> torch.Tensor:
    return torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def no_weak_cells() -> WeakCells:
    return WeakCells(np.empty(0, np.int64), np.empty(0), np.empty(0))


@pytest.fixture(scope="session")
def point() -> OperatingPoint:
    return OperatingPoint(vdd_mv=1150, trcd_ps=7500)


@pytest.fixture(scope="session")
def place_in_a_row(point: OperatingPoint) -> Callable[[dict[str, int]], dict[str, Placement]]:
    """Placements one after another, 512-bit aligned, from sizes in bits."""

    def place(sizes: dict[str, int]) -> dict[str, Placement]:
        placements, first = {}, 0
        for tensor, bits in sizes.items():
            cells = -(-bits // 512) * 512
            placements[tensor] = Placement(
                tensor=tensor, partition="bank 0", first_cell=first, cells=cells, point=point
            )
            first += cells
        return placements

    return place
