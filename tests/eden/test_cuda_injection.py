"""On a CUDA device the same bits flip as on a CPU: kernels in numba's simulator, or on a device where there is one."""

from collections.abc import Callable

import numba
import numpy as np
import pytest
import torch
from torch import nn

from eden import cuda_injection, injection
from eden.approximate import ApproximateNetwork
from eden.memory import BitErrorMemory, ErrorModelMemory, ProfileMemory, StoredTensors
from eden.placement import Placement
from eden.precision import Precision
from profiles.cells import WeakCells
from profiles.error_models import ErrorModel
from profiles.errors import NetworkError

SIMULATED = bool(numba.config.ENABLE_CUDASIM)
DEVICE = torch.device("cpu" if SIMULATED else "cuda")
BLOCK_BYTES = injection.BLOCK_BITS // 8


def random_bytes(size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8))


def test_the_simulator_stands_in_for_a_device() -> None:
    simulated = "simulator" in cuda_injection._flip_blocks.__class__.__module__
    assert simulated == SIMULATED


@pytest.mark.parametrize(
    ("rate_zero", "rate_one", "size"),
    [
        (0.0, 0.0, 40),
        (1e-3, 1e-3, BLOCK_BYTES + 13),
        (0.02, 0.005, BLOCK_BYTES),  # more than one draw for each thread
        (0.03, 0.03, 1),
        (0.9, 0.2, 77),  # zeros: what does not flip is drawn
        (1.0, 0.0, 9),
    ],
)
def test_the_same_seed_flips_the_same_bits(rate_zero: float, rate_one: float, size: int) -> None:
    stored, read = random_bytes(size), np.zeros(size, np.uint8)
    flips = injection.flip_uniform(stored.numpy(), read, rate_zero, rate_one, 2**64 - 5)
    given = cuda_injection.with_whole_words(stored.to(DEVICE))
    counters = cuda_injection.Counters(DEVICE)
    found = cuda_injection.flip_uniform(given, rate_zero, rate_one, 2**64 - 5, counters)
    assert np.array_equal(found.cpu().numpy(), read)
    assert counters.total == flips.total
    assert torch.equal(given.cpu(), stored)


def test_the_same_weak_cells_fail(no_weak_cells: WeakCells) -> None:
    size, random = 333, np.random.default_rng(1)
    cells = np.sort(random.choice(size * 8, 400, replace=False)).astype(np.int64)
    weak = WeakCells(cells, random.random(400), random.random(400))
    stored = random_bytes(size)
    read = stored.numpy().copy()
    flips = injection.flip_weak_cells(read, weak, 7)
    given, counters = cuda_injection.with_whole_words(stored.to(DEVICE)), cuda_injection.Counters(DEVICE)
    found = cuda_injection.flip_weak_cells(given, cuda_injection.DeviceCells(weak, DEVICE), 7, counters)
    assert np.array_equal(found.cpu().numpy(), read)
    assert counters.total == flips.total
    none = cuda_injection.DeviceCells(no_weak_cells, DEVICE)
    assert torch.equal(cuda_injection.flip_weak_cells(given, none, 7, counters).cpu(), stored)


@pytest.mark.parametrize("size", [0, 1, 8, 12])
@pytest.mark.parametrize("start", [0, 3, 8])
def test_whole_words_hold_what_they_were_given(size: int, start: int) -> None:
    data = random_bytes(40)[start : start + size]
    held = cuda_injection.with_whole_words(data)
    assert torch.equal(held, data)
    assert held.data_ptr() % 8 == 0 or not size
    assert torch.equal(cuda_injection._words(held).view(torch.uint8)[:size], data)
    assert (held is data) == (size % 8 == 0 and start % 8 == 0)


def memories(
    error_models: dict[int, Callable[[float], ErrorModel]], place: Callable[[dict[str, int]], dict[str, Placement]]
) -> list[StoredTensors]:
    cells = np.arange(0, 8 * 300, 5)
    weak = WeakCells(cells, np.full(cells.size, 0.4), np.full(cells.size, 0.6))
    return [
        BitErrorMemory(0.01, 3),
        ErrorModelMemory(error_models[3](0.01), 3, fresh_map=True),
        ErrorModelMemory(error_models[0](0.01), 3, fresh_map=False),
        ProfileMemory(weak, place({"a": 8 * 301}), 3),
    ]


@pytest.mark.parametrize("which", range(4))
def test_a_memory_reads_the_same_and_counts_when_asked(
    error_models: dict[int, Callable[[float], ErrorModel]],
    place_in_a_row: Callable[[dict[str, int]], dict[str, Placement]],
    which: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, results = random_bytes(301), []
    for device in (torch.device("cpu"), DEVICE):
        kernels = device is DEVICE
        monkeypatch.setattr(cuda_injection, "runs_on", lambda _, kernels=kernels: kernels)
        memory = memories(error_models, place_in_a_row)[which]
        memory.store("a", data.to(device))
        reads = [memory.load("a") for _ in range(3)]
        assert all(read.device.type == device.type for read in reads)
        assert bool(memory._counters) == kernels
        results.append(([read.tolist() for read in reads], memory.flips))
    assert results[0] == results[1]
    wrong = (torch.tensor(results[0][0], dtype=torch.uint8) ^ data).numpy()
    assert results[0][1]["a"] == int(np.bitwise_count(wrong).sum()) > 0


def test_a_network_on_a_device_reads_what_it_would_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    module, batch, results = nn.Linear(9, 3), torch.rand(5, 9), []
    for device in ("cpu", DEVICE):
        monkeypatch.setattr(cuda_injection, "runs_on", lambda _, kernels=device is DEVICE: kernels)
        network = ApproximateNetwork(module.to(device), Precision.INT8)
        network.calibrate([batch])
        network.memory = memory = BitErrorMemory(0.02, 3)
        results.append((network(batch.to(device)).cpu(), memory.flips))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert sum(results[0][1].values()) > 0


def test_cells_outside_the_tensor_are_refused_before_a_kernel_meets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_injection, "runs_on", lambda _: True)
    memory = StoredTensors()
    with pytest.raises(NetworkError, match=r"weak cells 8\.\.8 reach outside a tensor of 8 bits"):
        memory._with_weak_cells("a", random_bytes(1).to(DEVICE), WeakCells(np.array([8]), np.ones(1), np.ones(1)), 1)


def test_without_its_compiler_a_device_is_left_to_the_cpu_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    cuda_injection._has_compiler.cache_clear()
    with pytest.warns(UserWarning, match=r"requirements-cuda\.txt"):
        assert not cuda_injection._has_compiler()
    cuda_injection._has_compiler.cache_clear()
