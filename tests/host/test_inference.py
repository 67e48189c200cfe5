"""Inference on a board: errors as the profile has them, no false alarm, an alarm and a milder point when warmed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eden.approximate import ApproximateNetwork
from eden.datasets import Split
from eden.mapping import DramMapping
from eden.memory import ReliableMemory
from eden.precision import Precision
from host.board import Board
from host.boards import open_board, open_mock
from host.bus import TimedBus
from host.cli import inference, stages
from host.cli.inference import infer_on_board, milder, moved_to
from host.cli.stages import AT_POINT, NOMINAL
from host.plan import Grid, Rows, ScanPlan
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
    point = HARSH[vendor]
    plan = ScanPlan(
        grid=(Grid(trcd_ps=point.trcd_ps, vdd_mv=vdd_mv or (MILD[vendor], point.vdd_mv)),),
        patterns=tuple(Pattern.parse(text) for text in ("0x00", "0xFF", "0xAA", "0x55")),
        rounds=8,
        banks=(0, 1),
        rows=Rows(start=0, count=64),
        write=(NOMINAL, AT_POINT),
    )
    return scan(open_mock(vendor, seed, GEOMETRY), plan, folder)


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


def mapped(network: ApproximateNetwork, profile: Profile, point: OperatingPoint) -> DramMapping:
    tolerated = {tensor.name: 1.0 for tensor in network.tensors()}
    return stages.map_at(network, tolerated, stages.partitions(profile), point, BATCH)


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
            found = infer_on_board(board, network, mapping, split, 1000 + run, profile=profile)
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
    found = infer_on_board(board, network, mapping, split, 1000, profile=profile)
    (fallback,) = found.fallbacks
    assert fallback.image == 0
    assert fallback.flips > fallback.expected.interval[1]
    assert fallback.moved == {HARSH["A"]: OperatingPoint(vdd_mv=MILD["A"], trcd_ps=8000)}
    assert {piece.point.vdd_mv for piece in found.mapping.pieces} == {MILD["A"]}
    assert [piece.first_cell for piece in found.mapping.pieces] == [piece.first_cell for piece in mapping.pieces]
    assert found.accuracy.total == len(split)
    assert board.rail.present_mv == board.rail.nominal_mv
    there = infer_on_board(warm(open_mock("A", 1, GEOMETRY), WARM_C), network, found.mapping, split, 1000)
    assert found.bits_read == there.bits_read, "what ran before the alarm must not count"
    assert found.total_flips == pytest.approx(there.total_flips, rel=0.1)
    calm = infer_on_board(open_mock("A", 1, GEOMETRY), network, mapping, split, 1)
    assert found.total_flips < calm.total_flips, "no more errors than the mapping was made for"


def test_what_was_settled_before_the_drift_does_not_run_again(
    profile: Profile, network: ApproximateNetwork, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "WINDOW_BATCHES", 10)
    mapping = mapped(network, profile, HARSH["A"])
    calm = infer_on_board(open_mock("A", 1, GEOMETRY), network, mapping, split, 1000, profile=profile)
    board, seen = open_mock("A", 1, GEOMETRY), []

    def heat(done: int, _total: int) -> None:
        seen.append(done)
        if done == 240:
            bus = board.bus.bus  # type: ignore[attr-defined]
            bus.set_environment(bus.environment[0], 300.0)

    found = infer_on_board(board, network, mapping, split, 1000, heat, profile)
    assert [fallback.image for fallback in found.fallbacks] == [200]
    assert torch.equal(found.accuracy.correct_images[:200], calm.accuracy.correct_images[:200])
    again = next(k for k in range(1, len(seen)) if seen[k] <= seen[k - 1])
    assert seen[again:] == list(range(220, 401, 20))
    assert found.bits_read == calm.bits_read


def test_without_a_milder_point_it_refuses_to_go_on(network: ApproximateNetwork, split: Split, tmp_path: Path) -> None:
    profile = scan_of("A", 1, tmp_path / "one", (HARSH["A"].vdd_mv,))
    board = warm(open_mock("A", 1, GEOMETRY), WARM_C)
    with pytest.raises(BoardError, match=r"no milder point than 1100 mV, 8 ns; scan the module again"):
        infer_on_board(board, network, mapped(network, profile, HARSH["A"]), split, 1, profile=profile)
    assert board.rail.present_mv == board.rail.nominal_mv
    assert not isinstance(board.bus, TimedBus)


def test_a_profile_of_another_module_is_refused(profile: Profile, network: ApproximateNetwork, split: Split) -> None:
    with pytest.raises(BoardError, match="the profile is for module 00000001"):
        infer_on_board(
            open_mock("A", 2, GEOMETRY), network, mapped(network, profile, HARSH["A"]), split, 1, profile=profile
        )


def test_no_images_are_refused(profile: Profile, network: ApproximateNetwork, split: Split) -> None:
    with pytest.raises(NetworkError, match="no images"):
        infer_on_board(open_mock("A", 1, GEOMETRY), network, mapped(network, profile, HARSH["A"]), split.first(0), 1)


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
    moved = moved_to(mapping.model_copy(update={"placements": {name: split_up}}), {HARSH["A"]: mild, mild: HARSH["A"]})
    assert [piece.point for piece in moved.placements[name].pieces] == [mild, HARSH["A"]]
    assert moved.vdd_mv == HARSH["A"].vdd_mv


def test_what_a_run_took(profile: Profile, network: ApproximateNetwork, split: Split) -> None:
    """Time adds up, and reading weights less often takes less of the link and of the DRAM."""
    mapping = mapped(network, profile, HARSH["A"])
    once, often = (
        infer_on_board(open_mock("A", 1, GEOMETRY), network, mapping, split, 1, weight_reuse=reuse) for reuse in (20, 1)
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


@pytest.mark.slow
def test_the_simulated_board_infers_what_the_mock_does(network: ApproximateNetwork, split: Split) -> None:
    """Bit for bit: the same images right, the same flips in each tensor, the same clocks."""
    point = OperatingPoint(vdd_mv=1030, trcd_ps=10000)
    first, placements = 0, {}
    for tensor in network.tensors():
        cells = -(-tensor.bits(2) // 512) * 512
        placements[tensor.name] = {
            "tensor": tensor.name, "partition": "bank", "first_cell": first, "cells": cells, "point": point
        }  # fmt: skip
        first += cells
    mapping = DramMapping(images=2, alignment_bits=512, vdd_mv=1030, placements=placements)
    found = []
    for name in ("mock:B:4", "sim:B:4"):
        board = open_board(name)
        try:
            found.append(infer_on_board(board, network, mapping, split.first(4), 7))
        finally:
            board.close()
    mocked, simulated = found
    assert torch.equal(mocked.accuracy.correct_images, simulated.accuracy.correct_images)
    assert mocked.flips == simulated.flips
    assert mocked.total_flips > 100
    assert mocked.costs.dram_s == simulated.costs.dram_s
