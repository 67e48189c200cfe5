"""Mappings keep every constraint: no overlap, in bounds, aligned, within tolerance, one VDD a rail, one tRCD each."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eden.approximate import TensorSpec
from eden.mapping import DramMapping, Partition, RowRates, coarse_mapping, fine_mapping
from eden.precision import Precision
from profiles.errors import CapacityError, NetworkError
from profiles.schema import OperatingPoint

POINT = OperatingPoint(vdd_mv=1100, trcd_ps=10_000)
POINTS = [OperatingPoint(vdd_mv=v, trcd_ps=t) for v in (1100, 1200, 1350) for t in (5000, 7500, 13750)]


def tensor(name: str, elements: int, kind: str = "weight") -> TensorSpec:
    return TensorSpec(name, kind, elements, Precision.INT8)  # type: ignore[arg-type]


def bank(number: int, bers: dict[tuple[int, int], float], cells: int = 1 << 14, first: int | None = None) -> Partition:
    by_point = {OperatingPoint(vdd_mv=v, trcd_ps=t): ber for (v, t), ber in bers.items()}
    return Partition(f"bank {number}", number, number << 14 if first is None else first, cells, by_point)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[TensorSpec], list[Partition], dict[str, float], int]:
    tensors = [
        tensor(f"t{i}", draw(st.integers(1, 400)), draw(st.sampled_from(["weight", "ifm"])))
        for i in range(draw(st.integers(1, 8)))
    ]
    rate = st.sampled_from([0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.3])
    partitions = []
    for number in range(draw(st.integers(1, 5))):
        rates = {point: draw(rate) for point in POINTS}
        ifm_rates = {point: draw(rate) for point in POINTS} if draw(st.booleans()) else None
        first, cells = number * 20_000 + draw(st.integers(0, 600)), draw(st.integers(1, 16_000))
        rail = f"rail {draw(st.integers(0, 1))}"
        partitions.append(Partition(f"p{number}", number, first, cells, rates, ifm_rates, rail=rail))
    tolerances = {t.name: draw(st.sampled_from([1e-6, 1e-4, 5e-3, 0.1])) for t in tensors}
    return tensors, partitions, tolerances, draw(st.integers(1, 4))


def check(
    mapping: DramMapping,
    tensors: list[TensorSpec],
    partitions: list[Partition],
    tolerances: dict[str, float],
    images: int,
) -> None:
    by_name = {partition.name: partition for partition in partitions}
    supplies = {(by_name[p.partition].rail, p.point.vdd_mv) for p in mapping.placements.values()}
    assert len(supplies) == len({rail for rail, _ in supplies})
    assert mapping.vdd_mv == min(vdd_mv for _, vdd_mv in supplies)
    end = 0
    assert set(mapping.placements) == {t.name for t in tensors}
    for placement in sorted(mapping.placements.values(), key=lambda p: p.first_cell):
        assert placement.first_cell >= end
        end = placement.first_cell + placement.cells
        assert placement.first_cell % 512 == placement.cells % 512 == 0
        partition = by_name[placement.partition]
        assert partition.first_cell <= placement.first_cell
        assert end <= partition.first_cell + partition.cells
    for t in tensors:
        placement = mapping.placements[t.name]
        assert placement.cells >= t.bits(images)
        assert by_name[placement.partition].ber(t.kind, placement.point) <= tolerances[t.name]
        assert placement.point.trcd_ps == mapping.trcd_ps[placement.partition]


@settings(deadline=None, max_examples=200)
@given(problems())
def test_every_mapping_keeps_every_constraint(
    problem: tuple[list[TensorSpec], list[Partition], dict[str, float], int],
) -> None:
    tensors, partitions, tolerances, images = problem
    for mode in ("fine", "coarse"):
        same = dict.fromkeys(tolerances, min(tolerances.values()))
        try:
            if mode == "fine":
                mapping = fine_mapping(tensors, tolerances, partitions, images)
                again = fine_mapping(tensors, tolerances, partitions, images)
                check(mapping, tensors, partitions, tolerances, images)
            else:
                mapping = coarse_mapping(tensors, min(tolerances.values()), partitions, images)
                again = coarse_mapping(tensors, min(tolerances.values()), partitions, images)
                check(mapping, tensors, partitions, same, images)
                assert len({placement.point for placement in mapping.placements.values()}) == 1
        except CapacityError as error:
            assert "bits" in str(error)  # noqa: PT017
        else:
            assert mapping == again


def test_coarse_takes_the_lowest_vdd_then_the_shortest_trcd_it_tolerates() -> None:
    bers = {(1100, 13750): 2e-3, (1200, 5000): 9e-4, (1200, 7500): 1e-4, (1200, 13750): 0.0, (1350, 5000): 0.0}
    mapping = coarse_mapping([tensor("a", 10)], 1e-3, [bank(0, bers)], 1)
    assert mapping.placements["a"].point == OperatingPoint(vdd_mv=1200, trcd_ps=5000)
    assert mapping.vdd_mv == 1200


def test_coarse_fills_the_partitions_with_fewest_errors_first() -> None:
    partitions = [bank(0, {(1100, 7500): 5e-4}), bank(1, {(1100, 7500): 1e-4}), bank(2, {(1100, 7500): 1e-2})]
    mapping = coarse_mapping([tensor("a", 1500), tensor("b", 1500)], 1e-3, partitions, 1)
    assert mapping.placements["a"].partition == "bank 1"
    assert mapping.placements["b"].partition == "bank 0"


def test_fine_gives_tolerant_tensors_the_aggressive_partition() -> None:
    partitions = [
        bank(0, {(1200, 5000): 1e-2, (1200, 13750): 1e-5}),
        bank(1, {(1200, 5000): 1e-1, (1200, 13750): 1e-5}),
    ]
    mapping = fine_mapping([tensor("firm", 100), tensor("soft", 100)], {"firm": 1e-4, "soft": 5e-2}, partitions, 1)
    assert mapping.trcd_ps == {"bank 0": 13750} or mapping.trcd_ps == {"bank 0": 13750, "bank 1": 5000}
    assert mapping.placements["firm"].point.trcd_ps == 13750


def test_fine_reaches_a_vdd_that_coarse_cannot() -> None:
    partitions = [
        bank(0, {(1100, 7500): 1e-2, (1200, 7500): 1e-5}),
        bank(1, {(1100, 7500): 1e-4, (1200, 7500): 1e-5}, 1024),
    ]
    tensors = [tensor("firm", 64), tensor("soft", 1000)]
    assert coarse_mapping(tensors, 1e-3, partitions, 1).vdd_mv == 1200
    assert fine_mapping(tensors, {"firm": 1e-3, "soft": 2e-2}, partitions, 1).vdd_mv == 1100


def test_fine_gives_each_rail_a_vdd_where_that_is_cheaper() -> None:
    strong = replace(bank(0, {(1100, 7500): 1e-5, (1200, 7500): 1e-6}, 1024), rail="a")
    weak = replace(bank(1, {(1100, 7500): 1e-1, (1200, 7500): 1e-5}), rail="b")
    tensors, tolerated = [tensor("firm", 64), tensor("soft", 1000)], {"firm": 1e-4, "soft": 1e-3}
    mapping = fine_mapping(tensors, tolerated, [strong, weak], 1)
    assert {name: (p.partition, p.point.vdd_mv) for name, p in mapping.placements.items()} == {
        "firm": ("bank 0", 1100),
        "soft": ("bank 1", 1200),
    }
    together = [replace(partition, rail="a") for partition in (strong, weak)]
    assert {p.point.vdd_mv for p in fine_mapping(tensors, tolerated, together, 1).placements.values()} == {1200}


def test_ifms_use_only_what_was_measured_with_writes_at_the_operating_point() -> None:
    low, high = (OperatingPoint(vdd_mv=v, trcd_ps=7500) for v in (1100, 1200))
    partition = Partition("p", 0, 0, 1 << 14, {low: 0.0, high: 0.0}, {high: 0.0})
    assert coarse_mapping([tensor("a", 8, "ifm")], 1e-3, [partition], 1).vdd_mv == 1200
    worse = Partition("p", 0, 0, 1 << 14, {low: 0.0, high: 0.0}, {low: 0.1, high: 0.0})
    assert fine_mapping([tensor("a", 8, "ifm")], {"a": 1e-3}, [worse], 1).vdd_mv == 1200
    assert fine_mapping([tensor("a", 8)], {"a": 1e-3}, [worse], 1).vdd_mv == 1100


def test_what_does_not_fit_is_named_with_its_size_and_what_is_free() -> None:
    with pytest.raises(
        CapacityError, match=r"a needs 80000 bits; .* free stretch of tolerable cells is 16384 of 16384"
    ):
        coarse_mapping([tensor("a", 10_000)], 1e-3, [bank(0, {(1100, 7500): 0.0})], 1)
    with pytest.raises(CapacityError, match=r"a needs 800 bits; at 1100 mV and BER <= 1\.00e-03 .* 0 of 0 bits"):
        fine_mapping([tensor("a", 100)], {"a": 1e-3}, [bank(0, {(1100, 7500): 0.1})], 1)
    with pytest.raises(CapacityError, match="scan the module first"):
        coarse_mapping([tensor("a", 1)], 1e-3, [bank(0, {})], 1)
    with pytest.raises(NetworkError, match="no tolerated BER is known for a"):
        fine_mapping([tensor("a", 1)], {}, [bank(0, {(1100, 7500): 0.1})], 1)


def test_a_mapping_survives_its_file(tmp_path: Path) -> None:
    mapping = coarse_mapping([tensor("a", 10)], 1e-3, [bank(0, {(1100, 7500): 0.0})], 2)
    mapping.save(tmp_path / "map.json")
    assert DramMapping.load(tmp_path / "map.json") == mapping
    with pytest.raises(NetworkError, match="run eden map first"):
        DramMapping.load(tmp_path / "none.json")
    (tmp_path / "map.json").write_text((tmp_path / "map.json").read_text()[:-20])
    with pytest.raises(NetworkError, match="damaged"):
        DramMapping.load(tmp_path / "map.json")


def test_sensitive_tensors_find_the_rows_that_hold() -> None:
    row_cells, rows = 8192, 8
    ber = np.full(rows, 1e-2)
    ber[[3, 6]] = 1e-4
    rates = RowRates(row_cells, {("weight", POINT): ber})
    partition = Partition("bank 0", 0, 10 * row_cells, rows * row_cells, {POINT: float(ber.mean())}, rows=rates)
    small = [TensorSpec(name, "weight", 512, Precision.INT8) for name in "ab"]
    large = TensorSpec("c", "weight", 3000, Precision.INT8)
    tolerated = {"a": 1e-3, "b": 1e-3, "c": 1e-1}
    placements = fine_mapping([*small, large], tolerated, [partition], images=1).placements
    first_rows = {name: (p.first_cell - partition.first_cell) // row_cells for name, p in placements.items()}
    assert {first_rows["a"], first_rows["b"]} <= {3, 6}
    spans = sorted((p.first_cell, p.first_cell + p.cells) for p in placements.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@given(st.integers(0, 7 * 4096), st.integers(1, 4096))
def test_a_window_has_the_mean_rate_of_its_cells(start: int, cells: int) -> None:
    row_cells = 4096
    ber = np.linspace(0.1, 0.8, 8)
    rates = RowRates(row_cells, {("ifm", POINT): ber})
    cell_rates = np.repeat(ber, row_cells)[start : start + cells]
    assert rates.window("ifm", POINT, start, cells) == pytest.approx(cell_rates.mean())
