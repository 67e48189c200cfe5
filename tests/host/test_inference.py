"""Inference on a board: errors as the profile has them, no false alarm, an alarm and a milder point when warmed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eden.approximate import ApproximateNetwork
from eden.datasets import Split, mnist5000
from eden.inference import agrees, evaluate, joint_uncertainty, predict_accuracy
from eden.mapping import DramMapping
from eden.memory import ReliableMemory
from eden.networks import NETWORKS
from eden.precision import Precision
from eden.training import Training, train_baseline
from host.board import Board
from host.boards import open_board, open_mock
from host.bus import TimedBus
from host.cli import inference, stages
from host.cli.inference import infer_on_boards, milder, moved_to
from host.cli.modules import AT_POINT, NOMINAL, Modules
from host.plan import Grid, Rows, ScanPlan
from host.recording import record
from host.scan import scan
from profiles.errors import BoardError, NetworkError
from profiles.geometry import Geometry
from profiles.pattern import Pattern
from profiles.schema import OperatingPoint
from profiles.storage import Profile

GEOMETRY = Geometry(banks=2, rows=64, columns=512, data_width=64, subarray_rows=32)
BATCH = 20
HARSH = {  # near a BER of 1e-2
    "A": OperatingPoint(vdd_mv=1100, trcd_ps=8000),
    "B": OperatingPoint(vdd_mv=1036, trcd_ps=10000),
    "C": OperatingPoint(vdd_mv=1170, trcd_ps=8000),
}
MILD = {"A": 1150, "B": 1044, "C": 1250}  # mV, at the same tRCD
WARM_C = 200.0  # vendor A's weak cells are 1.54 times as many; a larger network sees less (a LeNet 85 C)


def scan_of(vendor: str, seed: int, folder: Path, vdd_mv: tuple[int, ...] | None = None) -> Profile:
    plan = _plan(HARSH[vendor], rows=64, banks=(0, 1), vdd_mv=vdd_mv or (MILD[vendor], HARSH[vendor].vdd_mv))
    return scan(open_mock(vendor, seed, GEOMETRY), plan, folder)


def _plan(point: OperatingPoint, rows: int, banks: tuple[int, ...], vdd_mv: tuple[int, ...] = ()) -> ScanPlan:
    return ScanPlan(
        grid=(Grid(trcd_ps=point.trcd_ps, vdd_mv=vdd_mv or (point.vdd_mv,)),),
        patterns=tuple(Pattern.parse(text) for text in ("0x00", "0xFF", "0xAA", "0x55")),
        rounds=8,
        banks=banks,
        rows=Rows(start=0, count=rows),
        write=(NOMINAL, AT_POINT),
    )


@pytest.fixture(scope="module")
def network() -> ApproximateNetwork:
    """A small convolutional network, calibrated, in int8."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 64))
        module += nn.Sequential(nn.ReLU(), nn.Linear(64, 10))
    made = ApproximateNetwork(module.eval(), Precision.INT8)
    made.calibrate([_images(100)])
    return made


def _images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def split(network: ApproximateNetwork) -> Split:
    """400 images, the classes that the network gives them without errors."""
    network.memory = ReliableMemory()
    with torch.no_grad():
        return Split(_images(400), network(_images(400)).argmax(dim=1))


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return scan_of("A", 1, tmp_path_factory.mktemp("inference") / "A")


def mapped(network: ApproximateNetwork, profile: Profile, point: OperatingPoint, batch: int = BATCH) -> DramMapping:
    tolerated = {tensor.name: 1.0 for tensor in network.tensors()}
    return stages.map_at(network, tolerated, Modules([profile]).partitions(), point, batch)


def warm(board: Board, temperature_c: float) -> Board:
    board.bus.set_environment(1_350_000, temperature_c)  # type: ignore[attr-defined]
    return board


@pytest.mark.parametrize("vendor", ["A", "B", "C"])
def test_at_the_profiles_own_temperature_there_is_no_alarm(
    vendor: str, network: ApproximateNetwork, split: Split, tmp_path: Path
) -> None:
    """Modules of three vendors, several runs of each: at most one alarm in 1000 runs, one tensor in 20 outside."""
    outside = tensors = 0
    for seed in (1, 2):
        profile = scan_of(vendor, seed, tmp_path / f"{seed}")
        mapping = mapped(network, profile, HARSH[vendor])
        for run in range(4):
            board = open_mock(vendor, seed, GEOMETRY)
            found = infer_on_boards([board], network, mapping, split, 1000 + run, modules=Modules([profile]))
            assert found.fallbacks == ()
            assert found.expected is not None
            assert found.total_flips > 5000
            intervals = {name: each.interval for name, each in found.expected.items()}
            outside += sum(not low <= found.flips[name] <= high for name, (low, high) in intervals.items())
            tensors += len(intervals)
    assert outside <= 0.05 * tensors + 3 * np.sqrt(0.05 * tensors)


def test_warmed_it_says_so_and_goes_on_at_a_milder_point(
    profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    mapping = mapped(network, profile, HARSH["A"])
    board = warm(open_mock("A", 1, GEOMETRY), WARM_C)
    found = infer_on_boards([board], network, mapping, split, 1000, modules=Modules([profile]))
    (fallback,) = found.fallbacks
    assert fallback.image == 0
    assert fallback.flips > fallback.expected.interval[1]
    assert fallback.moved == {(0, HARSH["A"]): OperatingPoint(vdd_mv=MILD["A"], trcd_ps=8000)}
    assert {piece.point.vdd_mv for piece in found.mapping.pieces} == {MILD["A"]}
    assert [piece.first_cell for piece in found.mapping.pieces] == [piece.first_cell for piece in mapping.pieces]
    assert found.accuracy.total == len(split)
    assert board.rail.present_mv == board.rail.nominal_mv
    there = infer_on_boards([warm(open_mock("A", 1, GEOMETRY), WARM_C)], network, found.mapping, split, 1000)
    assert found.bits_read == there.bits_read, "what ran before the alarm must not count"
    assert found.total_flips == pytest.approx(there.total_flips, rel=0.1)
    calm = infer_on_boards([open_mock("A", 1, GEOMETRY)], network, mapping, split, 1)
    assert found.total_flips < calm.total_flips, "no more errors than the mapping was made for"


def test_placed_by_significance_it_goes_on_where_the_weak_cells_of_before_are_spared(
    profile: Profile, network: ApproximateNetwork, split: Split
) -> None:
    """A drift makes cells fail that the milder point's map knows nothing of."""
    place = stages.by_significance(network, split, Modules([profile]), BATCH)(HARSH["A"])
    board = warm(open_mock("A", 1, GEOMETRY), WARM_C)
    found = infer_on_boards([board], network, place.mapping, split, 1000, modules=Modules([profile]), plan=place.plan)
    (fallback,) = found.fallbacks
    assert fallback.image == 0
    assert {piece.point.vdd_mv for piece in found.mapping.pieces} == {MILD["A"]}
    assert found.plan is not None
    assert found.plan.mapping == found.mapping
    by_the_milder_map = Modules([profile]).footprint(found.mapping, network).plan
    board = warm(open_mock("A", 1, GEOMETRY), WARM_C)
    there = infer_on_boards([board], network, found.mapping, split, 1000, plan=by_the_milder_map)
    assert found.bits_read == there.bits_read
    assert found.total_flips == pytest.approx(there.total_flips, rel=0.1)
    assert found.accuracy.accuracy > there.accuracy.accuracy + 0.02


def test_what_was_settled_before_the_drift_does_not_run_again(
    profile: Profile, network: ApproximateNetwork, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "WINDOW_BATCHES", 10)
    mapping = mapped(network, profile, HARSH["A"])
    calm = infer_on_boards([open_mock("A", 1, GEOMETRY)], network, mapping, split, 1000, modules=Modules([profile]))
    board, seen = open_mock("A", 1, GEOMETRY), []

    def heat(done: int, _total: int) -> None:
        seen.append(done)
        if done == 240:
            bus = board.bus.bus  # type: ignore[attr-defined]
            bus.set_environment(bus.environment[0], 300.0)

    found = infer_on_boards([board], network, mapping, split, 1000, heat, Modules([profile]))
    assert [fallback.image for fallback in found.fallbacks] == [200]
    assert torch.equal(found.accuracy.correct_images[:200], calm.accuracy.correct_images[:200])
    again = next(k for k in range(1, len(seen)) if seen[k] <= seen[k - 1])
    assert seen[again:] == list(range(220, 401, 20))
    assert found.bits_read == calm.bits_read


def test_without_a_milder_point_it_refuses_to_go_on(network: ApproximateNetwork, split: Split, tmp_path: Path) -> None:
    profile = scan_of("A", 1, tmp_path / "one", (HARSH["A"].vdd_mv,))
    board = warm(open_mock("A", 1, GEOMETRY), WARM_C)
    with pytest.raises(
        BoardError, match=r"no milder point than 1100 mV, 8 ns; scan module 00000001 of vendor A \(model\), .* ps again"
    ):
        infer_on_boards([board], network, mapped(network, profile, HARSH["A"]), split, 1, modules=Modules([profile]))
    assert board.rail.present_mv == board.rail.nominal_mv
    assert not isinstance(board.bus, TimedBus)


def test_a_profile_of_another_module_is_refused(profile: Profile, network: ApproximateNetwork, split: Split) -> None:
    with pytest.raises(
        BoardError, match=r"modules: 00000001 of vendor A \(model\), .* ps; given are those of: 00000002"
    ):
        infer_on_boards(
            [open_mock("A", 2, GEOMETRY)],
            network,
            mapped(network, profile, HARSH["A"]),
            split,
            1,
            modules=Modules([profile]),
        )


def test_no_images_are_refused(profile: Profile, network: ApproximateNetwork, split: Split) -> None:
    with pytest.raises(NetworkError, match="no images"):
        infer_on_boards([open_mock("A", 1, GEOMETRY)], network, mapped(network, profile, HARSH["A"]), split.first(0), 1)


def test_the_next_milder_point_is_the_next_supply_then_the_next_latency() -> None:
    points = [OperatingPoint(vdd_mv=v, trcd_ps=t) for v, t in ((1350, 14000), (1100, 8000), (1050, 8000), (1000, 8000))]
    points += [OperatingPoint(vdd_mv=1200, trcd_ps=10000), OperatingPoint(vdd_mv=900, trcd_ps=14000)]
    steps, point = [], points[3]
    while (after := milder(points, point)) != point:
        steps.append((after.vdd_mv, after.trcd_ps))
        point = after
    assert steps == [(1050, 8000), (1100, 8000), (1200, 10000), (1350, 14000)]


def test_a_mapping_is_moved_piece_by_piece(profile: Profile, network: ApproximateNetwork) -> None:
    mapping = mapped(network, profile, HARSH["A"])
    mild = OperatingPoint(vdd_mv=MILD["A"], trcd_ps=8000)
    name, place = next(iter(mapping.placements.items()))
    split_up = place.model_copy(update={"more": (place.pieces[0].model_copy(update={"point": mild}),)})
    swapped = {HARSH["A"]: mild, mild: HARSH["A"]}
    moved = moved_to(mapping.model_copy(update={"placements": {name: split_up}}), lambda piece: swapped[piece.point])
    assert [piece.point for piece in moved.placements[name].pieces] == [mild, HARSH["A"]]
    assert moved.vdd_mv == HARSH["A"].vdd_mv


def test_what_a_run_took(profile: Profile, network: ApproximateNetwork, split: Split) -> None:
    """Time adds up, and reading weights less often takes less of the link and of the DRAM."""
    mapping = mapped(network, profile, HARSH["A"])
    once, often = (
        infer_on_boards([open_mock("A", 1, GEOMETRY)], network, mapping, split, 1, weight_reuse=reuse)
        for reuse in (20, 1)
    )
    for costs in (once.costs, often.costs):
        assert 0 < costs.dram_s < costs.bus_s < costs.wall_s
    assert once.costs.bus_bytes < often.costs.bus_bytes
    assert once.costs.dram_s < often.costs.dram_s
    assert often.costs.programs - once.costs.programs == 19
    weights = [tensor.name for tensor in network.tensors() if tensor.kind == "weight"]
    assert all(often.bits_read[name] == 20 * once.bits_read[name] for name in weights)
    moved = sum(often.bits_read.values()) // 8
    assert often.costs.bus_bytes > moved, "every bit read crossed the link"


@pytest.mark.parametrize("temperature_c", [20.0, WARM_C])
def test_a_recorded_run_is_replayed(
    temperature_c: float, profile: Profile, network: ApproximateNetwork, split: Split, tmp_path: Path
) -> None:
    """Image by image and bit by bit, alarms and the way to a milder point included."""
    mapping, found = mapped(network, profile, HARSH["A"]), []
    recorded = record(warm(open_mock("A", 1, GEOMETRY), temperature_c), tmp_path / "recording")
    for open_it in (lambda: recorded, lambda: open_board(f"replay:{tmp_path / 'recording'}")):
        board = open_it()
        found.append(infer_on_boards([board], network, mapping, split.first(200), 1000, modules=Modules([profile])))
        board.close()
    first, again = found
    assert first.total_flips > 1000
    assert len(first.fallbacks) == (temperature_c == WARM_C)
    assert torch.equal(again.accuracy.correct_images, first.accuracy.correct_images)
    for each in ("flips", "bits_read", "expected", "fallbacks", "mapping"):
        assert getattr(again, each) == getattr(first, each)
    assert replace(again.costs, wall_s=0, bus_s=0) == replace(first.costs, wall_s=0, bus_s=0)
    with pytest.raises(BoardError, match=r"transfer \d+ of .* that it was recorded with"):
        infer_on_boards([open_board(f"replay:{tmp_path / 'recording'}")], network, mapping, split, 1000, weight_reuse=5)


@pytest.mark.slow
def test_the_simulated_board_infers_what_the_mock_does(
    network: ApproximateNetwork, split: Split, tmp_path: Path
) -> None:
    """Bit for bit: the same images right, the same flips in each tensor, the same clocks; as the profile has them."""
    point = OperatingPoint(vdd_mv=1030, trcd_ps=10000)
    profile = scan(open_mock("B", 4), _plan(point, rows=16, banks=(0, 1)), tmp_path / "profile")
    mapping = mapped(network, profile, point, batch=2)
    found = []
    for name in ("mock:B:4", "sim:B:4"):
        board = open_board(name)
        try:
            found.append(infer_on_boards([board], network, mapping, split.first(4), 7, modules=Modules([profile])))
        finally:
            board.close()
    mocked, simulated = found
    assert torch.equal(mocked.accuracy.correct_images, simulated.accuracy.correct_images)
    assert mocked.flips == simulated.flips
    assert mocked.total_flips > 100
    assert mocked.costs.dram_s == simulated.costs.dram_s
    assert simulated.fallbacks == ()
    assert simulated.expected is not None
    for name, expected in simulated.expected.items():
        assert expected.interval[0] <= simulated.flips[name] <= expected.interval[1]


# ---- accuracy --------------------------------------------------------------------------------------------------------


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 64), nn.ReLU(), nn.Linear(64, 10))


class _Separable(nn.Module):
    """Depthwise and pointwise convolutions around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.classify = nn.Linear(8 * 7 * 7, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = torch.relu(self.stem(images))
        found = found + torch.relu(self.pointwise(self.depthwise(found)))
        classes: torch.Tensor = self.classify(nn.functional.max_pool2d(found, 2).flatten(1))
        return classes


@pytest.mark.prove
@pytest.mark.parametrize("name", ["lenet", "perceptron", "separable"])
def test_accuracy_is_what_error_models_and_cells_predict(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained networks of three kinds on real digits, where errors cost accuracy; modules and runs of three seeds.

    Each prediction may be wrong in one run of 20: of nine, two are wrong in 7 % of tests, three in less than 1 %.
    """
    monkeypatch.setitem(NETWORKS, "perceptron", _perceptron)
    monkeypatch.setitem(NETWORKS, "separable", _Separable)
    data, point = mnist5000(), HARSH["B"]
    network = train_baseline(name, Precision.INT8, data, 1, Training(4, 4e-3), Training(1, 5e-4))
    clean = evaluate(network, data.test.images, data.test.labels).accuracy
    agreed = {"models": 0, "cells": 0}
    outside = tensors = 0
    lost, uncertain = list[float](), list[float]()
    for seed in (1, 2, 3):
        profile = scan(open_mock("B", seed), _plan(point, rows=32, banks=tuple(range(8))), tmp_path / f"{seed}")
        mapping = mapped(network, profile, point, batch=50)
        place = Modules([profile]).footprint(mapping)
        fits = Modules([profile]).fits(mapping)
        predicted = {
            kind: predict_accuracy(network, memory_of, data.test.images, data.test.labels, 10, mapping.images)
            for kind, memory_of in (
                ("models", stages.fitted_memory(fits, place, Modules([profile]))),
                ("cells", place.memory),
            )
        }
        for epoch in (101, 102, 103):
            found = infer_on_boards(
                [open_mock("B", seed)], network, mapping, data.test, epoch, modules=Modules([profile])
            )
            assert found.fallbacks == ()
            assert found.expected is not None
            for tensor, expected in found.expected.items():
                outside += not expected.interval[0] <= found.flips[tensor] <= expected.interval[1]
                tensors += 1
            for kind, each in predicted.items():
                agreed[kind] += agrees(found.accuracy, each)
            lost.append(clean - found.accuracy.accuracy)
            uncertain.append(joint_uncertainty(found.accuracy, predicted["cells"]))
    assert np.mean(lost) > 1.2 * np.mean(uncertain), "a prediction of no loss would agree"
    assert min(agreed.values()) >= 7, agreed
    assert outside <= 0.05 * tensors + 3 * np.sqrt(0.05 * tensors)
