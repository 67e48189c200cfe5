"""Benchmark: a LeNet of int8 on the mock board, every weight and IFM through its DRAM below nominal.

Times are this process's own (CPU seconds, one thread), as other processes' load says nothing of the runtime. What runs
is `eden infer` without and with a profile to hold errors against, and with weights that are read once for ten batches.

Overhead is the time that is neither spent in the board's bus calls (on the mock: link and DRAM) nor by the network
itself, measured alone on the same batches: what is left is the runtime's, over the two together. The same over the bus
calls alone is given too: the mock's DRAM is faster than a LeNet, so that there the network is the bound.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from eden.approximate import ApproximateNetwork
from eden.datasets import Split, mnist5000
from eden.mapping import DramMapping
from eden.networks import build
from eden.precision import Precision
from host.board import Board
from host.boards import open_mock
from host.bus import Words
from host.cli import stages
from host.cli.inference import infer_on_board
from host.plan import Grid, Rows, ScanPlan
from host.scan import scan
from profiles.pattern import Pattern
from profiles.schema import OperatingPoint, WriteCondition
from profiles.storage import Profile

REPEATS = 5
BATCH, IMAGES = 50, 1000
IMAGES_PER_S, OVERHEAD = 2000.0, 0.10
POINT = OperatingPoint(vdd_mv=1040, trcd_ps=10000)
BER = (1e-4, 2e-2)  # that the point must show to count


def figures() -> Iterator[dict[str, Any]]:
    """Medians over `REPEATS`."""
    torch.set_num_threads(1)
    test, network = mnist5000().test.first(IMAGES), _network()
    with tempfile.TemporaryDirectory() as folder:
        profile = scan(open_mock("B", 1), _plan(), Path(folder) / "profile")
        tolerated = {tensor.name: 1.0 for tensor in network.tensors()}
        mapping = stages.map_at(network, tolerated, stages.partitions(profile), POINT, BATCH)
        for name, held_against, reuse in (("", None, 1), ("_with_profile", profile, 1), ("_weights_reused", None, 10)):
            total, bus = _times(network, mapping, test, held_against, reuse)
            yield _rate(f"images{name}", len(test) / total)
            if not name:
                alone = _alone(network, test)
                yield _overhead("overhead_over_bus_and_network", total - bus - alone, bus + alone)
                yield _overhead("overhead_over_bus", total - bus, bus)


def _network() -> ApproximateNetwork:
    """Weights are not trained: what they are changes no time, and data are real images."""
    network = ApproximateNetwork(build("lenet", 1).eval(), Precision.INT8)
    network.calibrate(mnist5000().train.first(200).batches(BATCH))
    return network


def _plan() -> ScanPlan:
    return ScanPlan(
        grid=(Grid(trcd_ps=POINT.trcd_ps, vdd_mv=(POINT.vdd_mv,)),),
        patterns=tuple(Pattern.parse(text) for text in ("0x00", "0xFF")),
        rounds=4,
        banks=tuple(range(8)),
        rows=Rows(start=0, count=32),
        write=(WriteCondition.NOMINAL, WriteCondition.OPERATING_POINT),
    )


class _MeteredBus:
    """A bus, and the CPU seconds that its calls take."""

    def __init__(self, board: Board) -> None:
        self.bus, self.seconds = board.bus, 0.0

    def read(self, address: int, count: int) -> Words:
        begun = time.process_time()
        words = self.bus.read(address, count)
        self.seconds += time.process_time() - begun
        return words

    def write(self, address: int, words: Words) -> None:
        begun = time.process_time()
        self.bus.write(address, words)
        self.seconds += time.process_time() - begun

    def close(self) -> None:
        self.bus.close()


def _times(
    network: ApproximateNetwork, mapping: DramMapping, test: Split, profile: Profile | None, reuse: int
) -> tuple[float, float]:
    """CPU seconds of a run, and those of them inside bus calls; medians."""
    board = open_mock("B", 1)
    meter = _MeteredBus(board)
    board.bus = meter
    runs = []
    for _ in range(REPEATS + 1):  # the first one compiles
        meter.seconds, begun = 0.0, time.process_time()
        found = infer_on_board(board, network, mapping, test, 1 << 32, profile=profile, weight_reuse=reuse)
        runs.append((time.process_time() - begun, meter.seconds))
        if not BER[0] < found.total_flips / found.total_bits_read < BER[1]:
            raise AssertionError(
                f"{POINT} shows {found.total_flips} flips of {found.total_bits_read} bits; choose another"
            )
    return statistics.median(run[0] for run in runs[1:]), statistics.median(run[1] for run in runs[1:])


def _alone(network: ApproximateNetwork, test: Split) -> float:
    """CPU seconds of the module itself on the same batches; median."""
    times = []
    with torch.no_grad():
        for _ in range(REPEATS + 1):
            begun = time.process_time()
            for images in test.batches(BATCH):
                network.module(images)
            times.append(time.process_time() - begun)
    return statistics.median(times[1:])


def _rate(name: str, value: float) -> dict[str, Any]:
    return {
        **{"bench": "inference", "name": name, "value": value, "unit": "images/s", "bound": None, "ratio": None},
        **{"goal": IMAGES_PER_S, "met": value >= IMAGES_PER_S},
    }


def _overhead(name: str, value: float, bound: float) -> dict[str, Any]:
    return {
        **{"bench": "inference", "name": name, "value": value, "unit": "s", "bound": bound, "ratio": value / bound},
        **{"goal": OVERHEAD, "met": value / bound <= OVERHEAD},
    }
