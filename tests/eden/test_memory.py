"""Back ends store what they are given, err as they say, and repeat for the same seed."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from eden.memory import BitErrorMemory, ErrorModelMemory, PerTensorMemory, ProfileMemory, ReliableMemory
from eden.placement import Placement
from eden.seeds import derive_seed
from eden.tolerance import joint_memory
from profiles.cells import WeakCells
from profiles.error_models import ErrorModel
from profiles.errors import CapacityError, NetworkError

ErrorModels = dict[int, Callable[[float], ErrorModel]]
Place = Callable[[dict[str, int]], dict[str, Placement]]


def random_bytes(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, count, dtype=np.uint8))


def wrong_bits(read: torch.Tensor, stored: torch.Tensor) -> np.ndarray:
    return np.flatnonzero(np.unpackbits((read ^ stored).numpy(), bitorder="little"))


def test_a_load_is_a_fresh_read_of_unchanged_data() -> None:
    data = random_bytes(4000)
    memory = BitErrorMemory(0.01, seed=1)
    memory.store("a", data.clone())
    first, second = memory.load("a"), memory.load("a")
    assert not torch.equal(first, second)
    assert torch.equal(memory._data["a"], data)
    assert memory.flips["a"] == wrong_bits(first, data).size + wrong_bits(second, data).size
    assert memory.bits_read["a"] == 64_000
    assert memory.measured_ber == memory.flips["a"] / 64_000


def test_the_same_seed_and_loads_give_the_same_bits_in_any_order_of_tensors() -> None:
    data = random_bytes(4000)
    reads = []
    for order in (("a", "b"), ("b", "a")):
        memory = BitErrorMemory(0.01, seed=1)
        for name in order:
            memory.store(name, data)
        read = {name: memory.load(name) for name in order}
        reads.append(torch.cat([read["a"], read["b"]]))
    assert torch.equal(reads[0], reads[1])
    assert not torch.equal(reads[0][:4000], reads[0][4000:])


@pytest.mark.parametrize("fresh_map", [True, False])
@pytest.mark.parametrize("number", [0, 3])
def test_an_error_model_errs_at_its_rate_and_by_direction(
    error_models: ErrorModels, number: int, fresh_map: bool
) -> None:
    model = error_models[number](2e-3)
    memory = ErrorModelMemory(model, seed=4, fresh_map=fresh_map)
    zeros, ones = torch.zeros(100_000, dtype=torch.uint8), torch.full((100_000,), 255, dtype=torch.uint8)
    for name, data, fraction in (("zeros", zeros, 0.0), ("ones", ones, 1.0)):
        memory.store(name, data)
        for _ in range(10):
            memory.load(name)
        expected = model.ber(fraction) * memory.bits_read[name]
        assert abs(memory.flips[name] - expected) < 6 * np.sqrt(expected * 10)


def test_a_fixed_map_fails_in_the_same_cells_and_a_fresh_one_does_not(error_models: ErrorModels) -> None:
    data = random_bytes(100_000)
    shared = {}
    for fresh_map in (True, False):
        memory = ErrorModelMemory(error_models[0](1e-2), seed=4, fresh_map=fresh_map)
        memory.store("a", data)
        first, second = (wrong_bits(memory.load("a"), data) for _ in range(2))
        assert not np.array_equal(first, second)
        shared[fresh_map] = np.intersect1d(first, second).size / first.size
    assert shared[True] < 0.03  # two independent draws at 1e-2
    assert 0.45 < shared[False] < 0.55  # a weak cell flips with F = 0.5


def test_a_fixed_map_is_one_module(error_models: ErrorModels) -> None:
    model = error_models[0](1e-2)
    memory = ErrorModelMemory(model, seed=4, fresh_map=False)
    memory.store("big", random_bytes(100_000))
    memory.store("small", random_bytes(1000))
    assert memory._first_cell == {"big": 0, "small": 800_256}
    memory.store("small", random_bytes(500))
    memory.load("small")
    assert memory._first_cell["small"] == 800_256


def test_a_tensor_larger_than_a_bank_is_refused(error_models: ErrorModels) -> None:
    model = error_models[0](1e-2)
    memory = ErrorModelMemory(model, seed=4, fresh_map=True)
    with pytest.raises(CapacityError, match=f"a bank of the error model has {model.geometry.bank_bits} cells"):
        memory.store("a", torch.zeros(model.geometry.bank_bits // 8 + 1, dtype=torch.uint8))


def test_profile_cells_fail_at_their_address_and_by_the_stored_bit(place_in_a_row: Place) -> None:
    placements = place_in_a_row({"a": 512, "b": 512})
    weak = WeakCells(np.array([3, 512 + 8, 512 + 9]), np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]))
    memory = ProfileMemory(weak, placements, seed=0)
    for name in ("a", "b"):
        memory.store(name, torch.zeros(64, dtype=torch.uint8))
    assert wrong_bits(memory.load("a"), torch.zeros(64, dtype=torch.uint8)).tolist() == [3]
    assert wrong_bits(memory.load("b"), torch.zeros(64, dtype=torch.uint8)).tolist() == [8]
    ones = torch.full((64,), 255, dtype=torch.uint8)
    memory.store("b", ones.clone())
    assert wrong_bits(memory.load("b"), ones).tolist() == [9]


def test_profile_cells_draw_anew_with_their_probability(place_in_a_row: Place) -> None:
    weak = WeakCells(np.array([100]), np.array([0.3]), np.array([0.0]))
    memory = ProfileMemory({"a": weak}, place_in_a_row({"a": 512}), seed=2)
    memory.store("a", torch.zeros(64, dtype=torch.uint8))
    for _ in range(2000):
        memory.load("a")
    assert stats.binomtest(memory.flips["a"], 2000, 0.3).pvalue > 1e-4


def test_profile_memory_refuses_what_has_no_room(place_in_a_row: Place, no_weak_cells: WeakCells) -> None:
    memory = ProfileMemory(no_weak_cells, place_in_a_row({"a": 512}), seed=0)
    with pytest.raises(NetworkError, match="b has no place in DRAM"):
        memory.store("b", torch.zeros(1, dtype=torch.uint8))
    with pytest.raises(CapacityError, match="a has 520 bits but its placement in bank 0 holds 512"):
        memory.store("a", torch.zeros(65, dtype=torch.uint8))


def test_profile_memory_errs_where_told_in_cells_that_it_does_not_know(
    place_in_a_row: Place, no_weak_cells: WeakCells
) -> None:
    """By the stored bit, of one tensor and not of the other, anew in each read."""
    memory = ProfileMemory(no_weak_cells, place_in_a_row({"a": 80_000, "b": 80_000}), 1, {"a": (0.0, 0.05)})
    data = random_bytes(10_000)
    for name in ("a", "b"):
        memory.store(name, data)
    first, second = (set(wrong_bits(memory.load("a"), data)) for _ in range(2))
    ones = set(np.flatnonzero(np.unpackbits(data.numpy(), bitorder="little")))
    assert first <= ones
    assert len(first) / len(ones) == pytest.approx(0.05, rel=0.1)
    assert len(first & second) < len(first) / 5
    assert torch.equal(memory.load("b"), data)
    assert memory.flips == {"a": len(first) + len(second), "b": 0}


def test_each_tensor_may_have_a_memory_of_its_own() -> None:
    memory = PerTensorMemory({"a": ReliableMemory(), "b": BitErrorMemory(1.0, 0)})
    for name in ("a", "b"):
        memory.store(name, torch.zeros(2, dtype=torch.uint8))
    assert memory.load("a").tolist() == [0, 0]
    assert memory.load("b").tolist() == [255, 255]
    with pytest.raises(NetworkError, match="no memory was given for c"):
        memory.load("c")


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_tensors_errors_depend_on_its_own_rate_alone(error_models: ErrorModels, number: int) -> None:
    """Of one map, in which each tensor has its place whatever the rates of others."""

    def memory_at(ber: float, seed: int) -> ErrorModelMemory:
        return ErrorModelMemory(error_models[number](ber), seed, fresh_map=False)

    def read(**rates: float) -> dict[str, torch.Tensor]:
        memory = joint_memory(memory_at, rates, 7)
        for name in rates:
            memory.store(name, torch.zeros(4096, dtype=torch.uint8))
        return dict(zip(rates, memory.load_all(list(rates)), strict=True))

    alike, raised = read(a=1e-2, b=1e-2, c=1e-2), read(a=4e-2, b=1e-2, c=4e-2)
    assert torch.equal(alike["b"], raised["b"])
    assert alike["b"].any()
    assert raised["a"].count_nonzero() > alike["a"].count_nonzero()


@pytest.mark.parametrize("number", [1, 2])
def test_reads_of_a_grouped_model_meet_a_map_each_or_the_same_cells(error_models: ErrorModels, number: int) -> None:
    """What fails in reads of one map are its weak cells."""
    model, zeros = error_models[number](2e-2), torch.zeros(1 << 15, dtype=torch.uint8)

    def reads(fresh_map: bool) -> tuple[ErrorModelMemory, list[set[int]]]:
        memory = ErrorModelMemory(model, seed=4, fresh_map=fresh_map)
        memory.store("a", zeros)
        return memory, [set(wrong_bits(memory.load("a"), zeros)) for _ in range(40)]

    memory, met = reads(fresh_map=True)
    bits = zeros.numel() * 8
    expected = model.sample_weak_cells(0, bits, 0)
    assert len(met[0] & met[1]) < len(met[0]) / 2
    assert memory.measured_ber == pytest.approx(expected.flip_zero.sum() / bits, rel=0.1)
    _, met = reads(fresh_map=False)
    cells = model.sample_weak_cells(0, bits, derive_seed(4, "map"))
    assert set().union(*met) <= set(cells.cell.tolist())
    assert len(met[0] & met[1]) > len(met[0]) / 4


def test_misuse_is_refused() -> None:
    with pytest.raises(NetworkError, match="read before it was stored"):
        ReliableMemory().load("a")
    with pytest.raises(NetworkError, match="flat uint8"):
        ReliableMemory().store("a", torch.zeros(2))
    with pytest.raises(NetworkError, match="not within"):
        BitErrorMemory(-0.1, 0)
