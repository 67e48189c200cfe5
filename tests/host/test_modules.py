"""Several modules as one memory: their profiles, a mapping with a VDD for each, and boards that run it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eden.approximate import ApproximateNetwork
from eden.datasets import Split
from eden.inference import agrees, predict_accuracy
from eden.mapping import DramMapping, mapping_cost, vdd_then_trcd
from eden.memory import ReliableMemory
from eden.placement import Piece, Placement
from eden.precision import Precision
from host.board import Board
from host.boards import open_mock
from host.cli import stages
from host.cli.inference import infer_on_boards
from host.cli.modules import AT_POINT, NOMINAL, Modules
from host.cli.opening import opened_together
from host.plan import Grid, Rows, ScanPlan
from host.scan import scan
from host.tensor_memory import BoardMemory
from profiles.errors import BoardError, CapacityError, FitError, PlanError
from profiles.geometry import Geometry, first_cells, in_one_module
from profiles.pattern import Pattern
from profiles.population import measured_weak_cells
from profiles.schema import OperatingPoint
from profiles.storage import Profile

GEOMETRY = Geometry(banks=2, rows=64, columns=512, data_width=64, subarray_rows=32)
OTHER_GEOMETRY = Geometry(banks=4, rows=64, columns=512, data_width=64, subarray_rows=32)  # twice the cells
BURST = GEOMETRY.burst_bits
VDD_MV = {"A": (1300, 1250, 1225, 1200, 1150), "B": (1300, 1250, 1225, 1200)}  # at 8 ns, where B fails earlier
BATCH = 20
WARM_C = 200.0


def point(vdd_mv: int) -> OperatingPoint:
    return OperatingPoint(vdd_mv=vdd_mv, trcd_ps=8000)


def open_vendor(vendor: str, seed: int = 1) -> Board:
    return open_mock(vendor, seed, GEOMETRY if vendor == "A" else OTHER_GEOMETRY)


def scan_of(vendor: str, folder: Path) -> Profile:
    plan = ScanPlan(
        grid=(Grid(trcd_ps=8000, vdd_mv=VDD_MV[vendor]),),
        patterns=tuple(Pattern.parse(text) for text in ("0x00", "0xFF", "0xAA", "0x55")),
        rounds=8,
        banks=(0, 1),
        rows=Rows(start=8, count=6),
        write=(NOMINAL, AT_POINT),
    )
    return scan(open_vendor(vendor), plan, folder)


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Profile]:
    folder = tmp_path_factory.mktemp("modules")
    return {vendor: scan_of(vendor, folder / vendor) for vendor in "AB"}


@pytest.fixture(scope="module")
def modules(profiles: dict[str, Profile]) -> Modules:
    return Modules([profiles["A"], profiles["B"]])


@pytest.fixture(scope="module")
def network() -> ApproximateNetwork:
    """Larger than what is known of either module: 581 Kibit, of 384 each."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32))
        for inputs, outputs in ((32, 512), (512, 32), (32, 10)):
            module += nn.Sequential(nn.ReLU(), nn.Linear(inputs, outputs))
    made = ApproximateNetwork(module.eval(), Precision.INT8)
    made.calibrate([_images(100)])
    return made


def _images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def split(network: ApproximateNetwork) -> Split:
    network.memory = ReliableMemory()
    with torch.no_grad():
        return Split(_images(200), network(_images(200)).argmax(dim=1))


def noise(size: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


# ---- one numbering of cells ------------------------------------------------------------------------------------------


def test_cells_of_modules_follow_one_another() -> None:
    starts = first_cells([GEOMETRY, OTHER_GEOMETRY, GEOMETRY])
    assert starts == [0, GEOMETRY.cells, GEOMETRY.cells + OTHER_GEOMETRY.cells]
    for module, start in enumerate(starts):
        for cell in (0, 1, GEOMETRY.cells - 1):
            assert in_one_module(starts, start + cell) == (module, cell)


def test_partitions_and_weak_cells_are_each_modules_own(profiles: dict[str, Profile], modules: Modules) -> None:
    parts, start = modules.partitions(), 0
    for number, vendor in enumerate("AB", 1):
        alone = Modules([profiles[vendor]])
        here = [part for part in parts if part.rail == f"module {number}"]
        assert [part.name for part in here] == [f"module {number}, {part.name}" for part in alone.partitions()]
        assert [part.first_cell - start for part in here] == [part.first_cell for part in alone.partitions()]
        for part, own in zip(here, alone.partitions(), strict=True):
            assert part.ber_by_point == own.ber_by_point
            assert modules.points_of(number - 1) == alone.common_points() == set(part.points())
        harsh, end = point(1200), start + profiles[vendor].geometry.cells
        for kind, condition in (("weight", NOMINAL), ("ifm", AT_POINT)):
            own_cells = measured_weak_cells(profiles[vendor], harsh, condition)
            found = modules.weak_cells(harsh, (0, 1))[kind]
            here = (found.cell >= start) & (found.cell < end)
            assert here.sum() > 100
            assert np.array_equal(found.cell[here], own_cells.cell + start)
            assert np.array_equal(found.flip_one[here], own_cells.flip_one)
        start = end
    assert modules.common_points() == modules.points_of(1) < modules.points_of(0), "B was not tested at 1150 mV"
    with pytest.raises(FitError, match="1150 mV"):
        modules.weak_cells(point(1150), (0, 1))


def test_modules_that_cannot_be_used_together_are_refused(profiles: dict[str, Profile], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="of the same module, 00000001 of vendor A"):
        Modules([profiles["A"], profiles["B"], profiles["A"]])
    with pytest.raises(PlanError, match="no profile was given"):
        Modules([])
    for number, (changed, words) in enumerate(
        [
            ({"nominal_vdd_mv": 1500}, "nominal VDD, mV: 1500"),
            ({"nominal_trcd_ps": 15000}, "nominal tRCD, ps: 15000"),
        ]
    ):
        header = profiles["B"].header
        other = header.model_copy(update={"module": header.module.model_copy(update=changed)})
        with pytest.raises(PlanError, match=words):
            Modules([profiles["A"], Profile.create(tmp_path / f"{number}", other)])
    narrow = Geometry(banks=2, rows=64, columns=512, data_width=32, subarray_rows=32)
    header = profiles["B"].header.model_copy(update={"geometry": narrow})
    with pytest.raises(PlanError, match=r"bits a burst: 256 in .*, 512 in"):
        Modules([profiles["A"], Profile.create(tmp_path / "narrow", header)])


# ---- boards ----------------------------------------------------------------------------------------------------------


def at(
    tensor: str, first_cell: int, bursts: int, where: OperatingPoint, *more: tuple[int, int, OperatingPoint]
) -> Placement:
    first, *rest = [
        Piece(partition="any", first_cell=cell, cells=count * BURST, point=each)
        for cell, count, each in ((first_cell, bursts, where), *more)
    ]
    return Placement(tensor=tensor, more=tuple(rest), **first.model_dump())


def test_each_board_is_read_as_it_would_be_alone() -> None:
    """Bit for bit: a module's errors do not depend on what another board is asked for."""
    where = {"A": point(1150), "B": point(1200)}
    data = {"a": noise(64 * 300, 1), "b": noise(64 * 200, 2)}
    together = {"a": at("a", 0, 300, where["A"]), "b": at("b", GEOMETRY.cells + 7 * BURST, 200, where["B"])}
    alone = {"a": at("a", 0, 300, where["A"]), "b": at("b", 7 * BURST, 200, where["B"])}

    def reads(boards: list[Board], places: dict[str, Placement]) -> dict[str, list[torch.Tensor]]:
        memory = BoardMemory(boards, places, frozenset(places))
        for board in boards:
            board.environment.begin_epoch(5)
        memory.clear()
        for tensor in places:
            memory.store(tensor, data[tensor])
        found = [memory.load_all(list(places)) for _ in range(3)]
        assert memory.total_flips > 100
        return {tensor: [each[k] for each in found] for k, tensor in enumerate(places)}

    both = reads([open_vendor("A"), open_vendor("B")], together)
    for vendor, tensor in zip("AB", "ab", strict=True):
        own = reads([open_vendor(vendor)], {tensor: alone[tensor]})
        assert all(torch.equal(one, other) for one, other in zip(both[tensor], own[tensor], strict=True))


def test_a_tensor_in_pieces_on_two_boards_comes_back_in_order() -> None:
    boards, nominal = [open_vendor("A"), open_vendor("B")], OperatingPoint(vdd_mv=1350, trcd_ps=14000)
    base = GEOMETRY.cells
    pieces = [
        (base + 3 * BURST, 2, nominal),
        (9 * BURST, 4, nominal),
        (base + OTHER_GEOMETRY.cells - BURST, 1, nominal),
    ]
    places = {"x": at("x", 0, 5, nominal, *pieces), "y": at("y", 5 * BURST, 1, nominal)}
    memory = BoardMemory(boards, places, frozenset({"x"}))
    x, y = noise(64 * 11 + 17, 3), noise(64, 4)
    memory.clear()
    memory.store("y", y)
    memory.store("x", x)
    for _ in range(2):
        found = memory.load_all(["x", "y"])
        assert torch.equal(found[0], x)
        assert torch.equal(found[1], y)


@pytest.mark.parametrize(
    "first_cell",
    [GEOMETRY.cells - BURST, GEOMETRY.cells + OTHER_GEOMETRY.cells - BURST, GEOMETRY.cells + 1],
    ids=["over a module's end", "over the last one's end", "off a burst"],
)
def test_places_that_are_no_modules_are_refused(first_cell: int) -> None:
    with pytest.raises(CapacityError, match="end within a module's cells"):
        BoardMemory([open_vendor("A"), open_vendor("B")], {"x": at("x", first_cell, 2, point(1150))}, frozenset())


def test_boards_of_other_bursts_hold_nothing_together() -> None:
    narrow = Geometry(banks=2, rows=64, columns=512, data_width=32, subarray_rows=32)
    with pytest.raises(BoardError, match=r"bursts of \[256, 512\] bits"):
        BoardMemory([open_vendor("A"), open_mock("B", 1, narrow)], {}, frozenset())


# ---- a network on two modules ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def choice(network: ApproximateNetwork, modules: Modules, split: Split) -> stages.Choice:
    tolerated = {tensor.name: 1e-2 for tensor in network.tensors()}
    place_at = stages.by_tolerances(network, tolerated, modules, BATCH)
    coarse = stages.choose_point(network, place_at, modules, split, 0.9, BATCH, 2, 1)
    return stages.cheaper_choice(coarse, network, tolerated, modules, split, 0.9, 2, 1, vdd_then_trcd)


def supplies_of(mapping: DramMapping, modules: Modules) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for piece in mapping.pieces:
        found.setdefault(modules.located(piece)[0], set()).add(piece.point.vdd_mv)
    return found


def test_a_network_too_large_for_one_module_gets_a_vdd_for_each(
    network: ApproximateNetwork, modules: Modules, choice: stages.Choice, profiles: dict[str, Profile], split: Split
) -> None:
    mapping = choice.footprint.mapping
    assert mapping.modules == modules.mapped
    by_module = supplies_of(mapping, modules)
    assert by_module.keys() == {0, 1}
    assert all(len(vdd) == 1 for vdd in by_module.values()), "a module has one rail"
    assert by_module[0] != by_module[1]
    one_for_all = choice_of_one_point(network, modules, split)
    costs = [mapping_cost(each, modules.partitions(), vdd_then_trcd) for each in (mapping, one_for_all)]
    assert costs[0] < costs[1]
    for vendor in "AB":
        with pytest.raises(CapacityError):
            choice_of_one_point(network, Modules([profiles[vendor]]), split)


def choice_of_one_point(network: ApproximateNetwork, modules: Modules, split: Split) -> DramMapping:
    tolerated = {tensor.name: 1e-2 for tensor in network.tensors()}
    place_at = stages.by_tolerances(network, tolerated, modules, BATCH)
    return stages.choose_point(network, place_at, modules, split, 0.9, BATCH, 2, 1).footprint.mapping


def test_boards_in_any_order_run_it_and_their_errors_are_the_profiles(
    network: ApproximateNetwork, modules: Modules, choice: stages.Choice, split: Split
) -> None:
    mapping, found = choice.footprint.mapping, []
    for order, known in (("AB", modules), ("BA", Modules(modules.profiles[::-1]))):
        boards = {vendor: open_vendor(vendor) for vendor in order}
        found.append(infer_on_boards(list(boards.values()), network, mapping, split, 1000, modules=known))
        assert all(board.rail.present_mv == board.rail.nominal_mv for board in boards.values())
        assert all(board.usage.programs for board in boards.values())
    first, second = found
    assert first.flips == second.flips
    assert first.total_flips > 100
    assert first.fallbacks == ()
    assert first.expected is not None
    outside = [
        name for name, each in first.expected.items() if not each.interval[0] <= first.flips[name] <= each.interval[1]
    ]
    assert len(outside) <= 1
    for memory_of in (choice.footprint.memory, stages.fitted_memory(modules.fits(mapping), choice.footprint, modules)):
        predicted = predict_accuracy(network, memory_of, split.images, split.labels, 5, BATCH)
        assert agrees(first.accuracy, predicted)
        memories = [memory_of(draw) for draw in range(5)]
        for memory in memories:
            network.twin(memory)(split.images[:BATCH])
        for name in ("3.weight", "5.weight", "7.weight", "7.ifm"):  # on the first, on both, on the second, on both
            rate = np.mean([memory.flips[name] / memory.bits_read[name] for memory in memories])
            assert rate == pytest.approx(first.flips[name] / first.bits_read[name], rel=0.2), name


def test_a_module_that_has_warmed_sends_each_to_a_milder_point_of_its_own(
    network: ApproximateNetwork, modules: Modules, choice: stages.Choice, split: Split
) -> None:
    everywhere = {name: 1.0 for name in choice.footprint.mapping.placements}
    harsh = stages.optimal_mapping(network.tensors(), everywhere, modules.partitions(), BATCH).mapping
    mapping = harsh.model_copy(update={"modules": modules.mapped})
    boards = [open_vendor("A"), open_vendor("B")]
    boards[0].bus.set_environment(1_350_000, WARM_C)  # type: ignore[attr-defined]
    found = infer_on_boards(boards, network, mapping, split, 1000, modules=modules)
    assert found.fallbacks
    assert found.fallbacks[0].moved == {(0, point(1150)): point(1200), (1, point(1200)): point(1225)}
    for piece in found.mapping.pieces:
        assert piece.point in modules.points_of(modules.located(piece)[0])


def test_by_significance_bits_go_to_either_module(network: ApproximateNetwork, modules: Modules, split: Split) -> None:
    place = stages.by_significance(network, split, modules, BATCH)(point(1200))
    assert supplies_of(place.mapping, modules).keys() == {0, 1}
    boards = [open_vendor("B"), open_vendor("A")]
    found = infer_on_boards(boards, network, place.mapping, split, 1000, modules=modules, plan=place.plan)
    assert found.total_flips > 100
    plain = stages.by_tolerances(network, dict.fromkeys(place.ber, 1.0), modules, BATCH)(place.point)
    beside = infer_on_boards(boards, network, plain.mapping, split, 1000)
    assert found.accuracy.accuracy >= beside.accuracy.accuracy


def test_boards_and_profiles_that_are_not_the_mappings_are_refused(
    network: ApproximateNetwork, modules: Modules, choice: stages.Choice, split: Split, profiles: dict[str, Profile]
) -> None:
    mapping = choice.footprint.mapping
    for boards in (["A"], ["A", "A"], ["A", "B", "B"], ["A", "B", "C"]):
        with pytest.raises(BoardError, match="one board is needed for each"):
            infer_on_boards([open_mock(vendor, 1, GEOMETRY) for vendor in boards], network, mapping, split, 1)
    with pytest.raises(BoardError, match=r"given are those of: .* 00000002 of vendor B"):
        infer_on_boards([open_vendor("A"), open_vendor("B", 2)], network, mapping, split, 1)
    with pytest.raises(BoardError, match="one profile is needed for each"):
        Modules([profiles["A"]]).of(mapping)
    with pytest.raises(BoardError, match="other banks, rows or columns by the board"):
        infer_on_boards([open_vendor("A"), open_mock("B", 1, GEOMETRY)], network, mapping, split, 1)


def test_a_board_that_fails_leaves_no_rail_low(
    network: ApproximateNetwork, choice: stages.Choice, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards = [open_vendor("A"), open_vendor("B")]
    buses = [board.bus for board in boards]

    def pulled(*_: object) -> None:
        raise BoardError("the cable was pulled")

    def pull(done: int, total: int) -> None:
        assert boards[0].rail.present_mv != boards[0].rail.nominal_mv
        monkeypatch.setattr(boards[1], "read_bursts", pulled)

    with pytest.raises(BoardError, match="pulled"):
        infer_on_boards(boards, network, choice.footprint.mapping, split, 1, pull)
    assert [board.rail.present_mv for board in boards] == [1350, 1350]
    assert [board.bus for board in boards] == buses


def test_a_board_that_cannot_be_opened_closes_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(Board, "close", lambda board: closed.append(board.module.manufacturer))
    with pytest.raises(BoardError), opened_together(["mock:A:1", "mock:B:1", "serial:/dev/nothing"], (), None):
        pass
    assert closed == ["vendor B (model)", "vendor A (model)"]
    with (
        pytest.raises(PlanError, match="would both use the board mock:A:1"),
        opened_together(["mock:A", "mock:A:1"], (), None),
    ):
        pass
