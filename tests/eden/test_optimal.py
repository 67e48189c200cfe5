"""The exact mapping against brute force: every choice of operating points, each with a plain transportation problem."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from eden.approximate import TensorSpec
from eden.mapping import Partition, RowRates, aligned_bits, mapping_cost, weighted
from eden.mapping_study import NOMINAL, random_problem
from eden.memory import gathered
from eden.optimal import Optimum, optimal_mapping
from eden.placement import Piece, Placement
from eden.precision import Precision
from profiles.cells import WeakCells
from profiles.errors import CapacityError, NetworkError
from profiles.schema import AccessMode, OperatingPoint

BURST = 512
POINTS = [OperatingPoint(vdd_mv=v, trcd_ps=t) for v, t in ((1100, 5000), (1100, 10_000), (1350, 5000), (1350, 13_750))]
COST = weighted(0.6, 0.4, NOMINAL)
Problem = tuple[list[TensorSpec], list[Partition], dict[str, float], dict[str, float]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    tensors, tolerated, accesses = [], {}, {}
    for number in range(draw(st.integers(1, 5))):
        name = f"t{number}"
        kind = draw(st.sampled_from(["weight", "ifm"]))
        tensors.append(TensorSpec(name, kind, draw(st.integers(1, 400)), Precision.INT8))
        tolerated[name] = draw(st.sampled_from([1e-4, 1e-3, 1e-2]))
        accesses[name] = draw(st.sampled_from([1.0, 3.0]))
    rate = st.sampled_from([0.0, 5e-4, 5e-3, 0.3])
    partitions = []
    for number in range(draw(st.integers(1, 3))):
        rates, ifm_rates = ({point: draw(rate) for point in POINTS} for _ in range(2))
        cells = draw(st.integers(1, 8)) * BURST
        rail = f"rail {draw(st.integers(0, 1))}"
        partitions.append(Partition(f"p{number}", number, number * 8192, cells, rates, ifm_rates, rail=rail))
    return tensors, partitions, tolerated, accesses


def brute_force(problem: Problem) -> float:
    """The lowest cost over all operating points (one VDD a rail); tensors may be split between bursts."""
    tensors, partitions, tolerated, accesses = problem
    need = [aligned_bits(tensor, 1, BURST) for tensor in tensors]
    room = [partition.cells for partition in partitions]
    best = math.inf
    for points in itertools.product(POINTS, repeat=len(partitions)):
        supplies = {(partition.rail, point.vdd_mv) for partition, point in zip(partitions, points, strict=True)}
        if len(supplies) != len({partition.rail for partition in partitions}):
            continue
        pairs = list(itertools.product(range(len(tensors)), range(len(partitions))))
        price = [COST(partitions[p], points[p]) * accesses[tensors[t].name] for t, p in pairs]
        allowed = [partitions[p].ber(tensors[t].kind, points[p]) <= tolerated[tensors[t].name] for t, p in pairs]
        found = linprog(
            price,
            [[float(p == own) for _, p in pairs] for own in range(len(partitions))],
            room,
            [[float(t == own) for t, _ in pairs] for own in range(len(tensors))],
            need,
            [(0, None if ok else 0) for ok in allowed],
        )
        if found.status == 0:
            best = min(best, found.fun)
    return best


def check(found: Optimum, problem: Problem) -> None:
    tensors, partitions, tolerated, accesses = problem
    by_name = {partition.name: partition for partition in partitions}
    end = 0
    for piece in sorted(found.mapping.pieces, key=lambda piece: piece.first_cell):
        assert piece.first_cell >= end
        assert piece.first_cell % BURST == piece.cells % BURST == 0
        end = piece.first_cell + piece.cells
        home = by_name[piece.partition]
        assert home.first_cell <= piece.first_cell
        assert end <= home.first_cell + home.cells
    for tensor in tensors:
        placement = found.mapping.placements[tensor.name]
        assert placement.reserved == aligned_bits(tensor, 1, BURST)
        for piece in placement.pieces:
            assert by_name[piece.partition].ber(tensor.kind, piece.point) <= tolerated[tensor.name]
    points = {(piece.partition, piece.point) for piece in found.mapping.pieces}
    assert len(points) == len({partition for partition, _ in points})
    supplies = {(by_name[piece.partition].rail, piece.point.vdd_mv) for piece in found.mapping.pieces}
    assert len(supplies) == len({rail for rail, _ in supplies})
    assert found.cost == pytest.approx(mapping_cost(found.mapping, partitions, COST, accesses))


@settings(deadline=None, max_examples=60)
@given(problems())
def test_the_optimum_is_that_of_brute_force_and_keeps_every_constraint(problem: Problem) -> None:
    tensors, partitions, tolerated, accesses = problem
    expected = brute_force(problem)
    try:
        found = optimal_mapping(tensors, tolerated, partitions, 1, cost=COST, accesses=accesses)
    except CapacityError:
        assert expected == math.inf
        return
    check(found, problem)
    assert found.cost == pytest.approx(expected, rel=1e-6)
    assert found.gap < 1e-6
    assert found.greedy_cost is None or found.cost <= found.greedy_cost


def test_sixty_tensors_are_mapped_with_proof() -> None:
    problem = random_problem(60, 16, 2, 5, seed=1)
    found = optimal_mapping(problem.tensors, problem.tolerated_ber, problem.partitions, 1, cost=COST)
    check(found, (list(problem.tensors), list(problem.partitions), problem.tolerated_ber, {}))
    assert found.gap < 1e-6
    assert len({piece.point for piece in found.mapping.pieces}) > 1  # a problem that one point solves proves nothing
    assert found.greedy_cost is not None
    assert found.cost < found.greedy_cost


def test_a_tensor_goes_over_the_rows_that_it_tolerates() -> None:
    point, row_cells = POINTS[0], 4 * BURST
    ber = np.array([1e-2, 1e-5, 1e-2, 1e-5])
    rows = RowRates(row_cells, {("weight", point): ber})
    partition = Partition("bank", 0, 0, 4 * row_cells, {point: float(ber.mean())}, rows=rows)
    tensor = TensorSpec("a", "weight", 2 * row_cells // 8, Precision.INT8)
    placement = optimal_mapping([tensor], {"a": 1e-4}, [partition], 1).mapping.placements["a"]
    assert [(piece.first_cell, piece.cells) for piece in placement.pieces] == [(2048, 2048), (6144, 2048)]


def test_a_tensor_lies_only_where_its_access_mode_was_measured() -> None:
    point = POINTS[0]
    partitions = [
        Partition("slow", 0, 0, 1 << 13, {point: 0.0}),
        Partition("linear", 1, 1 << 13, 1 << 13, {point: 0.0}, access_mode=AccessMode.LINEAR),
    ]
    tensors = [TensorSpec(name, "weight", 8, Precision.INT8) for name in "ab"]
    tolerated = dict.fromkeys("ab", 1e-3)
    found = optimal_mapping(tensors, tolerated, partitions, 1, access_modes={"b": AccessMode.LINEAR})
    assert {name: place.partition for name, place in found.mapping.placements.items()} == {"a": "slow", "b": "linear"}
    with pytest.raises(CapacityError, match="at any operating point of 1 partitions"):
        optimal_mapping(tensors, tolerated, partitions[:1], 1, access_modes={"b": AccessMode.LINEAR})


def test_what_cannot_be_mapped_is_said() -> None:
    with pytest.raises(NetworkError, match="no tolerated BER is known for a"):
        optimal_mapping([TensorSpec("a", "weight", 8, Precision.INT8)], {}, [], 1)
    with pytest.raises(NetworkError, match="no tensors"):
        optimal_mapping([], {}, [], 1)


def test_the_bits_of_a_split_tensor_meet_the_cells_of_their_piece() -> None:
    piece = Piece(partition="p", first_cell=0, cells=512, point=POINTS[0])
    placement = Placement(tensor="a", partition="q", first_cell=1024, cells=512, point=POINTS[0], more=(piece,))
    weak = WeakCells(np.array([3, 600, 1030]), np.array([0.1, 0.2, 0.3]), np.zeros(3))
    found = gathered(weak, placement, 1000)
    assert found.cell.tolist() == [6, 515]
    assert found.flip_zero.tolist() == [0.3, 0.1]
    assert gathered(weak, placement, 515).cell.tolist() == [6]


def test_a_mapping_by_means_over_rows_is_said_to_be_one() -> None:
    """Greedily a tensor lies in a good row and a bad one, whose mean it tolerates: no bound by stretches says so."""
    row = 4 * BURST
    point = POINTS[0]

    def found(rates: list[float]) -> Optimum:
        rows = RowRates(row, {("weight", point): np.array(rates)})
        part = Partition("A", 0, 0, len(rates) * row, {point: float(np.mean(rates))}, rows=rows)
        tensor = TensorSpec("a", "weight", 2 * row // 8, Precision.INT8)
        return optimal_mapping([tensor], {"a": 1e-3}, [part], 1, cost=COST)

    by_means, by_rows = found([0.0, 2e-3]), found([1e-3, 1e-3])
    assert (by_means.by_means, by_rows.by_means) == (True, False)
    assert by_rows.gap == 0


def test_a_mapping_by_means_is_said_to_be_one_where_stretches_would_be_dearer() -> None:
    row, cheap, dear = 4 * BURST, POINTS[0], POINTS[3]
    rates = {("weight", cheap): np.array([0.0, 2e-3]), ("weight", dear): np.zeros(2)}
    part = Partition("A", 0, 0, 2 * row, {cheap: 1e-3, dear: 0.0}, rows=RowRates(row, rates))
    tensor = TensorSpec("a", "weight", 2 * row // 8, Precision.INT8)
    found = optimal_mapping([tensor], {"a": 1e-3}, [part], 1, cost=COST)
    assert {piece.point for piece in found.mapping.pieces} == {cheap}
    assert found.by_means
