"""The stages between a profile and an accuracy on DRAM, against brute force and against the mock board."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eden.approximate import ApproximateNetwork
from eden.bounding import Bounding
from eden.datasets import Split
from eden.inference import Prediction
from eden.mapping import Cost, DramMapping, fine_mapping, mapping_cost, vdd_then_trcd, weighted
from eden.memory import ApproximateMemory, ReliableMemory
from eden.networks import build
from eden.precision import Precision
from eden.significance import SignificancePlan, stored_tensors
from host.board import Board
from host.boards import open_mock
from host.cli import stages
from host.cli.inference import infer_on_boards
from host.cli.modules import AT_POINT, NOMINAL, Footprint, Modules, is_ifm
from host.cli.own_map import OwnMap
from host.plan import Cells, Grid, Rows, ScanPlan
from host.scan import header, measure, scan
from host.temperature_window import TemperatureWindow
from host.tensor_memory import BoardMemory
from profiles.errors import BoardError, CapacityError, EdenError, FitError, NetworkError, PlanError
from profiles.geometry import Geometry
from profiles.pattern import Pattern, stored_bits
from profiles.population import measured_weak_cells
from profiles.schema import AccessMode, OperatingPoint, WriteCondition
from profiles.storage import Profile

GEOMETRY = Geometry(banks=2, rows=64, columns=512, data_width=64, subarray_rows=32)
VDD_MV = (1100, 1044, 1040, 1036, 1032)
POINTS = [OperatingPoint(vdd_mv=vdd, trcd_ps=10000) for vdd in VDD_MV]
POINTS += [OperatingPoint(vdd_mv=vdd, trcd_ps=8000) for vdd in (1250, 1200)]
CLIFF = OperatingPoint(vdd_mv=1032, trcd_ps=10000)
BATCH = 20
ROWS = 48  # tested, from row 8 on


def board() -> Board:
    return open_mock("B", 1, GEOMETRY)


def plan(write: tuple[WriteCondition, ...] = (NOMINAL, AT_POINT), rows: int = ROWS) -> ScanPlan:
    return ScanPlan(
        grid=(Grid(trcd_ps=10000, vdd_mv=VDD_MV), Grid(trcd_ps=8000, vdd_mv=(1250, 1200))),
        patterns=tuple(Pattern.parse(text) for text in ("0x00", "0xFF", "0xAA", "0x55")),
        rounds=16,
        banks=(0, 1),
        rows=Rows(start=8, count=rows),
        write=write,
    )


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return scan(board(), plan(), tmp_path_factory.mktemp("stages") / "profile")


@pytest.fixture(scope="module")
def network() -> ApproximateNetwork:
    """A small convolutional network, calibrated, in int8."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)).eval()
    made = ApproximateNetwork(module, Precision.INT8)
    made.calibrate([images()])
    return made


def images(count: int = 2 * BATCH, size: int = 8) -> torch.Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def split(network: ApproximateNetwork) -> Split:
    """Images that the network classifies right, all of them, without errors."""
    network.memory = ReliableMemory()
    with torch.no_grad():
        return Split(images(), network(images()).argmax(dim=1))


def rates(network: ApproximateNetwork, ber: float = 1.0) -> dict[str, float]:
    return {tensor.name: ber for tensor in network.tensors()}


def mapped(network: ApproximateNetwork, profile: Profile, point: OperatingPoint, batch: int = BATCH) -> DramMapping:
    return stages.map_at(network, rates(network), Modules([profile]).partitions(), point, batch)


def chosen_by_tolerances(
    network: ApproximateNetwork,
    profile: Profile,
    split: Split,
    target: float,
    ber: float = 1.0,
    batch: int = BATCH,
    cost: Cost = vdd_then_trcd,
) -> stages.Choice:
    modules = Modules([profile])
    place_at = stages.by_tolerances(network, rates(network, ber), modules, batch)
    return stages.choose_point(network, place_at, modules, split, target, batch, 2, 1, cost=cost)


def placed_by_significance(network: ApproximateNetwork, profile: Profile, split: Split) -> stages.PlaceAt:
    return stages.by_significance(network, split, Modules([profile]), BATCH)


# ---- BER 0 is the identity -------------------------------------------------------------------------------------------


def at_point(mapping: DramMapping, point: OperatingPoint) -> DramMapping:
    """The same places, operated at another point."""
    moved = {name: p.model_copy(update={"point": point}) for name, p in mapping.placements.items()}
    return mapping.model_copy(update={"vdd_mv": point.vdd_mv, "placements": moved})


@pytest.mark.parametrize("bounding", list(Bounding))
@pytest.mark.parametrize("precision", list(Precision))
def test_lenet_in_dram_at_nominal_is_lenet_in_reliable_memory(
    profile: Profile, precision: Precision, bounding: Bounding
) -> None:
    network = ApproximateNetwork(build("lenet", 1).eval(), precision, bounding=bounding)
    batch = images(3, 28)
    network.calibrate([images(8, 28)])
    with torch.no_grad():
        clean = network(batch)
    opened = board()
    nominal = OperatingPoint(vdd_mv=opened.module.nominal_vdd_mv, trcd_ps=opened.module.nominal_trcd_ps)
    mapping = at_point(mapped(network, profile, CLIFF, len(batch)), nominal)
    memory = BoardMemory([opened], mapping.placements, frozenset(name for name in mapping.placements if is_ifm(name)))
    network.memory = memory
    with torch.no_grad(), opened.rail.guarded():
        for _ in range(2):
            assert torch.equal(network(batch).view(torch.int32), clean.view(torch.int32))
    assert memory.total_flips == 0
    assert set(memory.bits_read) == {tensor.name for tensor in network.tensors()}


def test_a_mapping_is_for_its_own_module(profile: Profile, network: ApproximateNetwork, split: Split) -> None:
    mapping = mapped(network, profile, CLIFF).model_copy(update={"modules": Modules([profile]).mapped})
    with pytest.raises(BoardError, match=r"modules: 00000001 .* given are those of: 00000002"):
        infer_on_boards([open_mock("B", 2, GEOMETRY)], network, mapping, split, 1)


# ---- partitions and footprints are what the cells say ----------------------------------------------------------------


def errors_by_cell(profile: Profile, point: OperatingPoint, condition: WriteCondition) -> tuple[np.ndarray, np.ndarray]:
    """Errors of every cell of the module while it stored 0 and 1, int64[2, cells], and its trials alike."""
    errors, trials = np.zeros((2, GEOMETRY.cells), np.int64), np.zeros((2, GEOMETRY.cells), np.int64)
    for record in profile.points:
        if (record.point, record.write_condition) != (point, condition):
            continue
        found = profile.cells(record.index)
        np.add.at(errors, (found.stored, found.cell), found.errors)
        inside = np.zeros((GEOMETRY.banks, GEOMETRY.rows, GEOMETRY.row_bits), bool)
        region = record.region
        inside[list(region.banks), region.row_start : region.row_start + region.row_count] = True
        tested = np.flatnonzero(inside)
        stored = np.zeros(GEOMETRY.cells, np.int64)
        stored[tested] = stored_bits(record.pattern, GEOMETRY, tested)
        trials[stored[tested], tested] += record.rounds
    return errors, trials


@pytest.mark.parametrize("point", [POINTS[2], CLIFF, POINTS[-1]], ids=str)
def test_partitions_are_what_the_cells_say(profile: Profile, point: OperatingPoint) -> None:
    parts = Modules([profile]).partitions()
    assert [part.bank for part in parts] == [0, 1]
    for kind, condition in (("weight", NOMINAL), ("ifm", AT_POINT)):
        errors, trials = errors_by_cell(profile, point, condition)
        by_row = [counts.sum(0).reshape(GEOMETRY.banks, GEOMETRY.rows, -1).sum(2) for counts in (errors, trials)]
        for part in parts:
            assert part.first_cell == part.bank * GEOMETRY.bank_bits + 8 * GEOMETRY.row_bits
            assert part.cells == ROWS * GEOMETRY.row_bits
            assert part.rows is not None
            expected = by_row[0][part.bank, 8 : 8 + ROWS] / by_row[1][part.bank, 8 : 8 + ROWS]
            assert part.rows.ber[kind, point] == pytest.approx(expected, rel=1e-12)
            assert part.ber(kind, point) == pytest.approx(expected.mean(), rel=1e-12)
            assert part.ber(kind, point) > 0


def test_cells_are_known_where_the_network_will_lie() -> None:
    geometry = Geometry(banks=4, rows=1 << 14, columns=1024, data_width=64, burst_length=8, chip_width=8)
    grid = (Grid(trcd_ps=10_000, vdd_mv=(1200,)),)
    plan = ScanPlan(grid=grid, patterns=("0x00",), rounds=1, banks=(0, 2), rows=Rows(start=8, count=9000))
    default = plan.cell_regions(geometry)[0].cells(geometry)
    assert stages.with_room(plan, geometry, default // 2) == plan  # so that a scan begun with `eden scan` goes on
    (wide,) = stages.with_room(plan, geometry, default).cell_regions(geometry)
    assert (wide.banks, wide.row_start, wide.cells(geometry)) == ((0, 2), 8, 2 * default)
    (all_of_it,) = stages.with_room(plan, geometry, 9000 * 2 * geometry.row_bits).cell_regions(geometry)
    assert all_of_it == plan.region
    with pytest.raises(PlanError, match="smaller batches"):
        stages.with_room(plan, geometry, 9000 * 2 * geometry.row_bits + 1)
    named = plan.model_copy(update={"cells": (Cells(banks=(2,), rows=Rows(start=100, count=2)),)})
    assert stages.with_room(named, geometry, 2 * geometry.row_bits) == named
    with pytest.raises(PlanError, match="test more rows"):
        stages.with_room(named, geometry, 2 * geometry.row_bits + 1)


def test_a_network_takes_what_its_mapping_reserves(network: ApproximateNetwork, profile: Profile) -> None:
    parts, point = Modules([profile]).partitions(), profile.operating_points()[0]
    mapping = stages.map_at(network, dict.fromkeys((t.name for t in network.tensors()), 1.0), parts, point, images=7)
    reserved = sum(placement.reserved for placement in mapping.placements.values())
    assert stages.network_cells(network, 7) == reserved


def test_footprint_is_what_the_cells_say(profile: Profile, network: ApproximateNetwork) -> None:
    place = Modules([profile]).footprint(mapped(network, profile, CLIFF))
    by_condition = {c: errors_by_cell(profile, CLIFF, c) for c in (NOMINAL, AT_POINT)}
    flips = cells = 0.0
    for name, placement in place.mapping.placements.items():
        errors, trials = by_condition[AT_POINT if name.endswith(".ifm") else NOMINAL]
        here = slice(placement.first_cell, placement.first_cell + placement.cells)
        expected = (errors[:, here] / trials[:, here]).sum() / 2
        assert place.ber[name] == pytest.approx(expected / placement.cells, rel=1e-12)
        flips, cells = flips + expected, cells + placement.cells
    assert place.mean_ber == pytest.approx(flips / cells, rel=1e-12)
    assert place.point == CLIFF


def test_a_mapping_stays_inside_the_tested_cells_and_does_not_overlap(
    profile: Profile, network: ApproximateNetwork
) -> None:
    taken = np.zeros(GEOMETRY.cells, np.int64)
    for placement in mapped(network, profile, CLIFF).placements.values():
        assert placement.first_cell % GEOMETRY.burst_bits == 0
        taken[placement.first_cell : placement.first_cell + placement.cells] += 1
    rows = taken.reshape(GEOMETRY.banks, GEOMETRY.rows, -1)
    assert taken.max() == 1
    assert rows[:, :8].sum() == rows[:, 8 + ROWS :].sum() == 0


def test_tensors_find_the_rows_that_hold(profile: Profile, network: ApproximateNetwork) -> None:
    place = Modules([profile]).footprint(mapped(network, profile, CLIFF))
    whole = max(part.ber("weight", CLIFF) for part in Modules([profile]).partitions())
    assert place.mean_ber < 0.9 * whole


# ---- the choice of a point -------------------------------------------------------------------------------------------


def choose_by(
    monkeypatch: pytest.MonkeyPatch,
    accuracy: Callable[[OperatingPoint], float],
    profile: Profile,
    network: ApproximateNetwork,
    split: Split,
    target: float = 0.9,
    cost: Cost = vdd_then_trcd,
) -> stages.Choice:
    """`choose_point` with validation accuracies that depend on the point alone."""

    def predict(network: object, memory_of: Callable[[int], object], *_: object, **__: object) -> Prediction:
        found = accuracy(next(iter(memory_of(0).placements.values())).point)  # type: ignore[attr-defined]
        return Prediction(found, found, found, (found, found), len(split))

    monkeypatch.setattr(stages, "predict_accuracy", predict)
    return chosen_by_tolerances(network, profile, split, target, cost=cost)


@pytest.mark.parametrize("passing", range(1, len(VDD_MV) + 1))
def test_the_last_point_that_passes_is_chosen_and_the_next_lower_vdd_shown(
    monkeypatch: pytest.MonkeyPatch, profile: Profile, network: ApproximateNetwork, split: Split, passing: int
) -> None:
    holds = set(POINTS[:passing])
    choice = choose_by(monkeypatch, lambda point: 1.0 if point in holds else 0.5, profile, network, split)
    assert choice.footprint.point == POINTS[passing - 1]
    assert choice.predicted.mean == 1.0
    if passing == len(VDD_MV):
        assert choice.next_footprint is None
        assert choice.next_predicted is None
    else:
        assert choice.next_footprint is not None
        assert choice.next_predicted is not None
        assert choice.next_footprint.point == POINTS[passing]
        assert choice.next_predicted.mean == 0.5


def test_the_objective_decides_among_the_points_that_pass_and_in_which_order_they_are_held_to_it(
    monkeypatch: pytest.MonkeyPatch, profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    """By latency alone 8 ns comes before any lower VDD."""
    nominal = OperatingPoint(vdd_mv=1350, trcd_ps=14_000)

    def order(energy: float, latency: float) -> list[tuple[int, int]]:
        cost = weighted(energy, latency, nominal)
        choice = choose_by(monkeypatch, lambda point: 1.0, profile, network, split, cost=cost)
        asked: list[tuple[int, int]] = []

        def holds(place: Footprint) -> bool:
            asked.append((place.point.vdd_mv, place.point.trcd_ps))
            return False

        stages.shown_choice(choice, holds)
        return asked

    points = [(point.vdd_mv, point.trcd_ps) for point in POINTS]
    assert order(1, 0) == sorted(points)
    assert order(0, 1) == sorted(points, key=lambda point: (point[1], point[0]))
    assert order(0, 1)[0] == (1200, 8000)


def test_a_point_beyond_a_failure_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    """A lucky pass below a point that fails is noise."""
    choice = choose_by(monkeypatch, lambda point: 0.5 if point.vdd_mv in (1040, 1250) else 1.0, profile, network, split)
    assert choice.footprint.point.vdd_mv == 1044
    assert choice.next_footprint is not None
    assert choice.next_footprint.point.vdd_mv == 1040


@pytest.mark.parametrize(
    ("held", "chosen", "shown", "after"),
    [
        ({(1040, 10000), (1100, 10000)}, (1040, 10000), True, (1036, 10000)),
        ({(1100, 10000), (1200, 8000)}, (1100, 10000), True, (1044, 10000)),
        ({(1200, 8000), (1250, 8000)}, (1200, 8000), True, None),
        (set(), (1036, 10000), False, (1032, 10000)),
        (None, (1036, 10000), None, (1032, 10000)),
    ],
    ids=["second", "milder", "another tRCD", "none", "too few images"],
)
def test_of_the_points_that_pass_the_first_that_is_shown_to_hold_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
    profile: Profile,
    network: ApproximateNetwork,
    split: Split,
    held: set[tuple[int, int]] | None,
    chosen: tuple[int, int],
    shown: bool | None,
    after: tuple[int, int] | None,
) -> None:
    """All but 1032 mV pass by their mean. None of the points is asked again, and a milder one never needlessly."""
    asked: list[tuple[int, int]] = []

    def holds(place: Footprint) -> bool | None:
        asked.append((place.point.vdd_mv, place.point.trcd_ps))
        return None if held is None else asked[-1] in held

    passed = choose_by(monkeypatch, lambda point: 0.5 if point.vdd_mv == 1032 else 1.0, profile, network, split)
    choice = stages.shown_choice(passed, holds)
    assert (choice.footprint.point.vdd_mv, choice.footprint.point.trcd_ps, choice.shown) == (*chosen, shown)
    following = choice.next_footprint
    assert (following and (following.point.vdd_mv, following.point.trcd_ps)) == after
    order = [(1036, 10000), (1040, 10000), (1044, 10000), (1100, 10000), (1200, 8000), (1250, 8000)]
    assert asked == (order[: order.index(chosen) + 1] if shown is not False else order)


def test_what_is_shown_of_a_mapping_is_a_bound_on_images_that_are_enough(
    profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    """40 images, all right without errors: at the cliff's foot none of 40 is lost, beyond it some are."""
    mild, harsh = (Modules([profile]).footprint(mapped(network, profile, point)) for point in (POINTS[0], CLIFF))
    ruined = network.twin()
    with torch.no_grad():
        for value in ruined.module.parameters():
            value.zero_()
    assert stages.shown_by(network, split, network, 0.1, 1)(mild) is True
    assert stages.shown_by(ruined, split, network, 0.1, 1)(mild) is False
    assert stages.shown_by(network, split, network, 0.07, 1)(harsh) is None  # that takes 42 images


def test_a_cheaper_mapping_is_not_taken_where_it_is_not_shown_to_hold(
    profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    choice = chosen_by_tolerances(network, profile, split, 0.9)
    fast = weighted(0.0, 1.0, OperatingPoint(vdd_mv=1350, trcd_ps=13_750))
    arguments = (choice, network, rates(network, 1e-3), Modules([profile]), split, 0.0, 3, 1, fast, None)
    assert stages.cheaper_choice(*arguments, lambda _: False) is choice
    for shown in (True, None):
        found = stages.cheaper_choice(*arguments, lambda _, shown=shown: shown)
        assert found is not choice
        assert (found.shown, found.optimum is not None) == (shown, True)


def test_a_lower_vdd_beats_a_shorter_trcd(
    monkeypatch: pytest.MonkeyPatch, profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    assert choose_by(monkeypatch, lambda _: 1.0, profile, network, split).footprint.point == CLIFF
    choice = choose_by(monkeypatch, lambda point: 1.0 if point.trcd_ps == 8000 else 0.5, profile, network, split)
    assert choice.footprint.point == OperatingPoint(vdd_mv=1200, trcd_ps=8000)


@pytest.mark.parametrize(
    ("grid", "chosen"),
    [
        (Grid(trcd_ps=14000, vdd_mv=(1350, 1200, 1100)), OperatingPoint(vdd_mv=1100, trcd_ps=14000)),
        (Grid(trcd_ps=8000, vdd_mv=(1350,)), OperatingPoint(vdd_mv=1350, trcd_ps=8000)),
    ],
    ids=["VDD alone", "tRCD alone"],
)
def test_a_module_of_which_one_thing_alone_is_lowered_is_mapped(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    network: ApproximateNetwork,
    split: Split,
    grid: Grid,
    chosen: OperatingPoint,
) -> None:
    """As with a fixed supply. Nominal conditions are no choice."""
    nominal = Grid(trcd_ps=14000, vdd_mv=(1350,))
    slower = Grid(trcd_ps=16000, vdd_mv=(1350, 1040))  # beyond nominal is no saving, whatever the other thing is
    grids = (grid, slower) if grid.trcd_ps == 14000 else (nominal, grid, slower)
    one = scan(board(), plan().model_copy(update={"grid": grids}), tmp_path / "profile")
    assert choose_by(monkeypatch, lambda _: 1.0, one, network, split).footprint.point == chosen
    with pytest.raises(PlanError, match="no operating point below 1350 mV or 14000 ps"):
        choose_by(monkeypatch, lambda _: 0.5, one, network, split)


def test_a_point_at_which_nothing_fits_ends_its_trcd_and_not_the_search(
    profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    modules = Modules([profile])
    fits = stages.by_tolerances(network, rates(network), modules, BATCH)

    def place_at(point: OperatingPoint, room_at: int) -> Footprint:
        if point.vdd_mv < room_at:
            raise CapacityError("no room")
        return fits(point)

    def chosen(room_at: int) -> stages.Choice:
        return stages.choose_point(network, lambda p: place_at(p, room_at), modules, split, 0.5, BATCH, 2, 1)

    assert chosen(1040).footprint.point == OperatingPoint(vdd_mv=1040, trcd_ps=10000)
    with pytest.raises(CapacityError, match="no room"):
        chosen(2000)


def test_no_point_that_passes_is_said(
    monkeypatch: pytest.MonkeyPatch, profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    with pytest.raises(PlanError, match="milder points"):
        choose_by(monkeypatch, lambda _: 0.5, profile, network, split)


def test_the_choice_meets_its_target_over_the_profiles_cells(
    profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    choice = chosen_by_tolerances(network, profile, split, 0.9)
    assert choice.predicted.mean >= 0.9
    again = chosen_by_tolerances(network, profile, split, 0.9)
    assert again.footprint.mapping == choice.footprint.mapping
    assert again.predicted == choice.predicted


def test_a_cheaper_mapping_is_taken_only_if_it_meets_the_target(
    profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    choice = chosen_by_tolerances(network, profile, split, 0.9)
    modules = Modules([profile])
    arguments, parts = (choice, network, rates(network, 1e-3), modules, split), modules.partitions()
    nominal = OperatingPoint(vdd_mv=1350, trcd_ps=13_750)
    for cost in (vdd_then_trcd, weighted(0.0, 1.0, nominal)):
        found = stages.cheaper_choice(*arguments, 0.0, 3, 1, cost)
        before = mapping_cost(choice.footprint.mapping, parts, cost)
        assert mapping_cost(found.footprint.mapping, parts, cost) <= before
        assert stages.cheaper_choice(*arguments, 1.1, 3, 1, cost) is choice
        assert found.footprint.memory(0).placements == found.footprint.mapping.placements
    fastest = stages.cheaper_choice(*arguments, 0.0, 3, 1, weighted(0.0, 1.0, nominal))
    assert fastest is not choice
    assert max(piece.point.trcd_ps for piece in fastest.footprint.mapping.pieces) < choice.footprint.point.trcd_ps


def test_by_subarray_each_has_a_trcd_of_its_own_and_no_mapping_is_dearer(
    profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    modules = Modules([profile])
    banks, parts = modules.partitions(), modules.partitions(32)
    assert [part.name for part in parts] == [
        f"bank {bank}, rows {rows}" for bank in (0, 1) for rows in ("8 to 31", "32 to 55")
    ]
    for bank in banks:
        inside = [part for part in parts if part.bank == bank.bank]
        assert [part.first_cell for part in inside] == [bank.first_cell, bank.first_cell + inside[0].cells]
        assert sum(part.cells for part in inside) == bank.cells
        for kind, point in (("weight", CLIFF), ("ifm", CLIFF)):
            mean = np.average([part.ber(kind, point) for part in inside], weights=[part.cells for part in inside])
            assert mean == pytest.approx(bank.ber(kind, point))

    choice = chosen_by_tolerances(network, profile, split, 0.9)
    cost = weighted(0.0, 1.0, OperatingPoint(vdd_mv=1350, trcd_ps=13_750))
    arguments = (choice, network, rates(network, 1e-3), modules, split, 0.0, 3, 1, cost)
    by_bank, by_subarray = (stages.cheaper_choice(*arguments, rows) for rows in (None, 32))
    mapping = by_subarray.footprint.mapping
    assert mapping_cost(mapping, parts, cost) <= mapping_cost(by_bank.footprint.mapping, banks, cost)
    assert {piece.partition for piece in mapping.pieces} <= {part.name for part in parts}
    drawn = stages.fitted_memory(modules.fits(mapping), by_subarray.footprint, modules)(1)  # finds rows by address
    assert network.twin(drawn)(split.images[:BATCH]).isfinite().all()


# ---- what does not work is said --------------------------------------------------------------------------------------


def test_a_network_that_does_not_fit_names_the_tensor(profile: Profile, network: ApproximateNetwork) -> None:
    room = 2 * ROWS * GEOMETRY.row_bits
    batch = room // (8 * 8 * 64) + 1
    with pytest.raises(CapacityError, match=r"3\.ifm needs \d+ bits") as caught:
        chosen_by_tolerances(network, profile, Split(images(), torch.zeros(40).long()), 0.9, 1e-3, batch)
    assert "\n" not in str(caught.value)


def test_a_network_that_does_not_fit_is_not_told_of_tolerances(profile: Profile, network: ApproximateNetwork) -> None:
    with pytest.raises(CapacityError) as caught:
        mapped(network, profile, CLIFF, 100_000)
    assert "e+0" not in str(caught.value)


def test_a_tensor_without_a_tolerance_is_named(profile: Profile, network: ApproximateNetwork) -> None:
    with pytest.raises(EdenError, match=r"0\.bias"):
        fine_mapping(network.tensors(), {"0.weight": 1.0}, Modules([profile]).partitions(), BATCH)


@pytest.fixture(scope="module")
def weights_only(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return scan(board(), plan((NOMINAL,), rows=16), tmp_path_factory.mktemp("weights") / "profile")


def test_a_profile_without_writes_at_the_point_gives_no_reference(weights_only: Profile) -> None:
    with pytest.raises(FitError, match="operating_point"):
        stages.reference_point(weights_only)


def test_a_profile_without_writes_at_the_point_is_not_mapped(
    weights_only: Profile, network: ApproximateNetwork, split: Split
) -> None:
    with pytest.raises(EdenError, match="operating_point"):
        chosen_by_tolerances(network, weights_only, split, 0.5)


def test_rates_of_another_access_are_not_mapped_by(tmp_path: Path) -> None:
    grid = (Grid(trcd_ps=14000, vdd_mv=(1250,)),)
    linear = plan(rows=4).model_copy(update={"grid": grid, "access_mode": AccessMode.LINEAR})
    profile = scan(board(), linear, tmp_path / "linear")
    with pytest.raises(PlanError, match="reads row by row"):
        Modules([profile])


def test_a_profile_that_knows_weights_and_ifms_at_different_points_is_refused(
    tmp_path: Path, profile: Profile, network: ApproximateNetwork
) -> None:
    apart = Profile.create(tmp_path / "apart", profile.header)
    for record in profile.points:
        if (record.point == CLIFF) == (record.write_condition == AT_POINT):
            apart.append(record, profile.cells(record.index))
    with pytest.raises(PlanError, match="written both ways"):
        OwnMap(apart, network, BATCH)


def test_a_point_that_is_not_finished_is_not_mapped_to(tmp_path: Path, network: ApproximateNetwork) -> None:
    """With 0x00 alone scanned, cells that lose a 1 are untested, not good."""
    opened = board()
    planned = plan(rows=16).model_copy(update={"grid": (Grid(trcd_ps=10000, vdd_mv=(1100, CLIFF.vdd_mv)),)})
    whole = scan(opened, planned, tmp_path / "whole")
    half = Profile.create(tmp_path / "half", whole.header)
    for record in whole.points:
        if record.point != CLIFF or record.pattern == Pattern.parse("0x00"):
            half.append(record, whole.cells(record.index))
    assert CLIFF not in Modules([half]).partitions()[0].points()


# ---- the prediction and the DRAM -------------------------------------------------------------------------------------


def test_the_profiles_cells_predict_what_the_board_does(profile: Profile, network: ApproximateNetwork) -> None:
    """The board flips the cells that the profile knows, about as often as it says."""
    place, opened, reads = Modules([profile]).footprint(mapped(network, profile, CLIFF, BATCH)), board(), 30
    weights = [tensor for tensor in network.tensors() if tensor.kind == "weight"]
    memory = BoardMemory([opened], place.mapping.placements, frozenset())
    predicted = place.memory(1)
    known = set(measured_weak_cells(profile, CLIFF, NOMINAL).cell.tolist())
    opened.environment.begin_epoch(10_000)
    flips = strangers = 0
    with opened.rail.guarded():
        for tensor in weights:
            data = network.formats[tensor.name].encode(dict(network.module.named_parameters())[tensor.name])
            for behind in (memory, predicted):
                behind.store(tensor.name, data.clone())
            for _ in range(reads):
                predicted.load(tensor.name)
                wrong = np.unpackbits(memory.load(tensor.name).numpy() ^ data.numpy(), bitorder="little")
                cells = place.mapping.placements[tensor.name].first_cell + np.flatnonzero(wrong)
                flips += cells.size
                strangers += sum(cell not in known for cell in cells.tolist())
    assert flips == memory.total_flips > 500
    assert strangers <= 0.05 * flips, f"{strangers} of {flips} flips were in cells that 64 reads had found good"
    assert memory.total_flips == pytest.approx(predicted.total_flips, rel=0.25)


def test_inference_on_the_board_repeats_to_the_bit(profile: Profile, network: ApproximateNetwork, split: Split) -> None:
    mapping, found = mapped(network, profile, CLIFF), []
    for _ in range(2):
        opened = board()
        opened.environment.begin_epoch(77)
        found.append(infer_on_boards([opened], network, mapping, split, 1))
    assert torch.equal(found[0].accuracy.correct_images, found[1].accuracy.correct_images)
    assert found[0].flips == found[1].flips
    assert found[0].total_flips > 0
    assert isinstance(network.memory, ReliableMemory)


def test_placed_by_significance_the_board_s_errors_change_weights_less(
    profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    """The profile says where not to put what; the board errs as it does, and the reader has the metadata only."""
    mapping = mapped(network, profile, CLIFF)
    plan = placed_by_significance(network, profile, split)(CLIFF).plan
    assert plan is not None
    stored, _ = stored_tensors(network, split.first(BATCH).images)
    weights = {tensor.name: stored[tensor.name] for tensor in network.tensors() if tensor.kind == "weight"}

    def noise(placements: DramMapping, wrap: Callable[[BoardMemory], ApproximateMemory]) -> tuple[float, int]:
        opened = board()
        inner = BoardMemory([opened], placements.placements, frozenset())
        memory, total = wrap(inner), 0.0
        with opened.rail.guarded():
            for name, data in weights.items():
                codes = data.view(np.int8).astype(float)
                memory.store(name, torch.from_numpy(data.copy()))
                read = memory.load(name).numpy().view(np.int8).astype(float)
                read[(read < codes.min()) | (read > codes.max())] = 0
                total += float(((read - codes) ** 2).sum())
        return total, inner.total_flips

    plain, flips = noise(mapping, lambda inner: inner)
    placed, placed_flips = noise(plan.mapping, plan.memory)
    assert min(flips, placed_flips) > 200
    assert placed / placed_flips < 0.1 * plain / flips
    assert plan.metadata_bits(network.tensors()) < 0.0115 * sum(t.bits(BATCH) for t in network.tensors())


def test_by_significance_a_mapping_counts_on_failures_of_cells_that_the_scan_did_not_see_fail(
    tmp_path: Path, profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    """Few rounds leave more unseen; and it is there whether the mapping was just made or read from its file."""
    made = placed_by_significance(network, profile, split)(CLIFF)
    assert Modules([profile]).footprint(made.mapping, network).unseen == made.unseen
    few = plan(rows=ROWS).model_copy(update={"rounds": 1, "grid": (Grid(trcd_ps=10000, vdd_mv=(CLIFF.vdd_mv,)),)})
    hasty = scan(board(), few, tmp_path / "hasty")
    rushed = placed_by_significance(network, hasty, split)(CLIFF)
    for tensor in network.tensors():
        assert sum(rushed.unseen[tensor.name]) > sum(made.unseen[tensor.name])
    quiet = replace(rushed, unseen={})
    read = [place.memory(1) for place in (rushed, quiet)]
    for memory in read:
        network.twin(memory)(split.images[:BATCH])
    assert read[0].inner.total_flips > read[1].inner.total_flips  # type: ignore[attr-defined]
    assert Modules([profile]).footprint(mapped(network, profile, CLIFF)).unseen == {}


def test_placement_by_significance_repeats_on_the_board_and_is_kept_with_the_mapping(
    profile: Profile, network: ApproximateNetwork, split: Split, tmp_path: Path
) -> None:
    place, found = placed_by_significance(network, profile, split)(CLIFF), []
    place.mapping.save(tmp_path / "mapping.json")
    loaded = Modules([profile]).footprint(DramMapping.load(tmp_path / "mapping.json"), network)
    some = Split(split.images[: BATCH + 5], split.labels[: BATCH + 5])  # a last batch that is not full
    for each in (place, loaded):
        found.append(
            infer_on_boards([board()], network, each.mapping, some, 1, modules=Modules([profile]), plan=each.plan)
        )
    assert torch.equal(found[0].accuracy.correct_images, found[1].accuracy.correct_images)
    assert found[0].flips == found[1].flips
    assert found[0].total_flips > 0
    assert not found[0].fallbacks


def test_a_plan_is_for_its_own_mapping_and_network(
    profile: Profile, network: ApproximateNetwork, split: Split, tmp_path: Path
) -> None:
    here, there = map(placed_by_significance(network, profile, split), (CLIFF, POINTS[2]))
    for mapping, plan in (
        (here.mapping, None),
        (mapped(network, profile, CLIFF), here.plan),
        (here.mapping, there.plan),
    ):
        with pytest.raises(NetworkError, match="takes its own plan"):
            infer_on_boards([board()], network, mapping, split, 1, plan=plan)
    with pytest.raises(NetworkError, match="give that network"):
        Modules([profile]).footprint(here.mapping)
    for precision in (Precision.INT4, Precision.INT16, Precision.FP16, Precision.FP32):
        other = ApproximateNetwork(network.module, precision)
        other.calibrate([images()])
        with pytest.raises(NetworkError, match="another network or precision"):
            Modules([profile]).footprint(here.mapping, other)
    with pytest.raises(NetworkError, match="not placed by significance"):
        SignificancePlan.of(mapped(network, profile, CLIFF), network, {})
    damaged = here.mapping.model_dump(mode="json") | {
        "significance": {"precision": "int8", "costly_bits": 99, "order_bits": 0}
    }
    (tmp_path / "mapping.json").write_text(json.dumps(damaged))
    with pytest.raises(NetworkError, match="is damaged"):
        DramMapping.load(tmp_path / "mapping.json")


def test_by_significance_a_harsher_point_meets_the_target(
    profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    plain = chosen_by_tolerances(network, profile, split, 0.95, 1e-4)
    place_at = placed_by_significance(network, profile, split)
    placed = stages.choose_point(network, place_at, Modules([profile]), split, 0.95, BATCH, 2, 1)
    assert placed.predicted.mean >= 0.95
    assert placed.footprint.point.vdd_mv < plain.footprint.point.vdd_mv
    assert placed.footprint.mean_ber > 3 * plain.footprint.mean_ber


def test_inference_on_the_board_does_not_depend_on_what_lay_there_before(
    profile: Profile, network: ApproximateNetwork, split: Split, tmp_path: Path
) -> None:
    mapping, found = mapped(network, profile, CLIFF), []
    for text in ("0x00", "0xFF"):
        opened = board()
        only = plan().model_copy(
            update={"patterns": (Pattern.parse(text),), "grid": (Grid(trcd_ps=14000, vdd_mv=(1350,)),), "rounds": 1}
        )
        profile_of_it = Profile.create(tmp_path / text, header(opened, only))
        measure(opened, only, next(only.points()), profile_of_it, TemperatureWindow(opened, None))
        opened.environment.begin_epoch(77)
        found.append(infer_on_boards([opened], network, mapping, split, 1).flips)
    assert found[0] == found[1]


def test_tensors_are_placed_where_every_point_knows_cells(
    tmp_path: Path, network: ApproximateNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted points know single cells of some rows only; the rates of those rows come from their counters."""
    monkeypatch.setattr("host.scan.ONE_PART_CELLS", 0)
    opened, grid = board(), (Grid(trcd_ps=10000, vdd_mv=(1100, 1040)),)
    whole = plan(rows=16).model_copy(update={"grid": grid})
    cells = (Cells(banks=whole.banks, rows=Rows(start=whole.rows.start + 2, count=8)),)
    counted = scan(opened, whole.model_copy(update={"cells": cells}), tmp_path / "counted")
    assert {record.counted for record in counted.points} == {False, True}
    every = scan(opened, whole, tmp_path / "every")
    for part, truth in zip(Modules([counted]).partitions(), Modules([every]).partitions(), strict=True):
        assert part.first_cell == truth.first_cell + 2 * GEOMETRY.row_bits
        assert part.cells == 8 * GEOMETRY.row_bits
        assert part.rows is not None
        assert truth.rows is not None
        for key, rates in part.rows.ber.items():
            assert np.array_equal(rates, truth.rows.ber[key][2:10])


@pytest.mark.parametrize("damaged", ["", "[]", '{"hello": "world"}', '{"made_from": "a key", "results": 3}'])
def test_results_are_kept_under_their_key_and_made_anew_where_they_are_damaged(tmp_path: Path, damaged: str) -> None:
    file = tmp_path / "results.json"
    assert stages.kept_results(file, "a key") is None
    stages.keep_results(file, "a key", {"figure": 0.5})
    assert stages.kept_results(file, "a key") == {"figure": 0.5}
    assert stages.kept_results(file, "another key") is None
    whole = file.read_text()
    for text in (damaged, whole[: len(whole) // 2]):
        file.write_text(text)
        assert stages.kept_results(file, "a key") is None
