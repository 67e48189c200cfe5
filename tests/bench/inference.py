"""Benchmark: a LeNet of int8 on the mock board, every weight and IFM through its DRAM below nominal.

Images a second are by this process's own time (CPU seconds, one thread), as other processes' load says nothing of the
runtime. What runs is `eden infer` without and with a profile to hold errors against, and with weights that are read
once for ten batches.

Overhead is the host's time outside the board's bus calls over the time that DRAM and link take:

- serial: DRAM time by the engine's clock, and the bytes that crossed the bus at `BAUDRATE`, ten bits each and nothing
  for requests and waiting. Set against all CPU seconds of the run, the network's arithmetic and the mock's own
  included, this is an upper bound.
- 1 Gbit/s: the mock behind UDP on loopback, answered by Python in a process of its own, in batches of `LARGE_BATCH`.
  All CPU seconds of the host, the network's arithmetic included, stand against the bytes at the wire's rate and DRAM
  time by the engine's clock. The host is the bound there, and that has no goal: the wire takes less than the network's
  arithmetic on one core, and is faster than Python sends datagrams at all (`tests.bench.links`, etherbone_raw_udp).
  Beside it stands what of the host's time is spent outside bus calls, over what is spent in them.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from eden.approximate import ApproximateNetwork
from eden.datasets import Split, mnist5000
from eden.mapping import DramMapping
from eden.networks import build
from eden.precision import Precision
from host.board import Board
from host.boards import MOCK_GEOMETRY, mock_build, open_mock, software_board
from host.chip_presets import PRESETS
from host.cli import stages
from host.cli.inference import Costs, infer_on_boards
from host.cli.modules import Modules
from host.etherbone_bus import EtherboneBus
from host.links import BAUDRATE
from host.mock import MockBoard
from host.plan import Grid, Rows, ScanPlan
from host.scan import scan
from profiles.pattern import Pattern
from profiles.schema import OperatingPoint, WriteCondition
from tests.bench.links import WIRE_BYTES_PER_S
from tests.host.etherbone_peer import EtherboneServer

REPEATS = 5
BATCH, LARGE_BATCH, IMAGES = 50, 200, 1000
IMAGES_PER_S, OVERHEAD = 2000.0, 0.10
VENDOR, SEED = "B", 1
POINT = OperatingPoint(vdd_mv=1040, trcd_ps=10000)
BER = (1e-4, 2e-2)  # that the point must show to count


def figures() -> Iterator[dict[str, Any]]:
    """Medians over `REPEATS`."""
    torch.set_num_threads(1)
    test, network = mnist5000().test.first(IMAGES), _network()
    with tempfile.TemporaryDirectory() as folder:
        modules = Modules([scan(open_mock(VENDOR, SEED), _plan(), Path(folder) / "profile")])
        tolerated = {tensor.name: 1.0 for tensor in network.tensors()}
        mapping = stages.map_at(network, tolerated, modules.partitions(), POINT, BATCH)
        board = open_mock(VENDOR, SEED)
        for name, held_against, reuse in (("", None, 1), ("_with_profile", modules, 1), ("_weights_reused", None, 10)):
            runs = _runs(board, network, mapping, test, held_against, reuse)
            yield _rate(f"images{name}", len(test) / statistics.median(run[0] for run in runs))
            if not name:
                yield _seconds("network_alone", _alone(network, test, BATCH))
                costs = runs[0][1]
                link = costs.bus_bytes * 10 / BAUDRATE
                yield _overhead("overhead_serial", statistics.median(run[0] for run in runs), costs.dram_s + link)
        mapping = stages.map_at(network, tolerated, modules.partitions(), POINT, LARGE_BATCH)
        with _behind_etherbone() as far:
            runs = _runs(far, network, mapping, test, None, 1)
        host, outside, link = (
            statistics.median(each)
            for each in zip(*((cpu, costs.wall_s - costs.bus_s, costs.bus_s) for cpu, costs in runs), strict=True)
        )
        costs, no_goal = runs[0][1], {"goal": None, "met": None}
        yield _overhead("host_gigabit", host, costs.bus_bytes / WIRE_BYTES_PER_S + costs.dram_s) | no_goal
        yield _overhead("outside_bus_gigabit", outside - _alone(network, test, LARGE_BATCH), link) | no_goal


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


def _runs(
    board: Board, network: ApproximateNetwork, mapping: DramMapping, test: Split, modules: Modules | None, reuse: int
) -> list[tuple[float, Costs]]:
    """CPU seconds and costs of `REPEATS` runs."""
    runs = []
    for _ in range(REPEATS + 1):  # the first one compiles
        begun = time.process_time()
        found = infer_on_boards([board], network, mapping, test, 1 << 32, modules=modules, weight_reuse=reuse)
        runs.append((time.process_time() - begun, found.costs))
        if not BER[0] < found.total_flips / found.total_bits_read < BER[1]:
            raise AssertionError(
                f"{POINT} shows {found.total_flips} flips of {found.total_bits_read} bits; choose another"
            )
    return runs[1:]


def _alone(network: ApproximateNetwork, test: Split, batch: int) -> float:
    """CPU seconds of the module itself on the same batches; median."""
    times = []
    with torch.no_grad():
        for _ in range(REPEATS + 1):
            begun = time.process_time()
            for images in test.batches(batch):
                network.module(images)
            times.append(time.process_time() - begun)
    return statistics.median(times[1:])


# ---- a mock at the end of a network ----------------------------------------------------------------------------------


class _FarMock(EtherboneBus):
    """A mock board in another process: its bus over Etherbone, the world around it through a pipe."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(*pipe.recv())
        self._pipe = pipe
        self.environment = (0, 0.0)

    def set_environment(self, vdd_uv: int, temperature_c: float) -> None:
        """See `MockBoard.set_environment`."""
        self.environment = self._tell("set_environment", vdd_uv, temperature_c)

    def begin_epoch(self, epoch: int, activations: int = 0) -> None:
        """See `MockBoard.begin_epoch`."""
        self._tell("begin_epoch", epoch, activations)

    def _tell(self, *order: Any) -> tuple[int, float]:
        self._pipe.send(order)
        answer: tuple[int, float] = self._pipe.recv()
        return answer


def _far_end(pipe: Connection) -> None:
    board = MockBoard(mock_build(MOCK_GEOMETRY), PRESETS[VENDOR], SEED)
    with EtherboneServer(board) as server:
        pipe.send((server.host, server.port))
        while order := pipe.recv():
            getattr(board, order[0])(*order[1:])
            pipe.send(board.environment)


@contextmanager
def _behind_etherbone() -> Iterator[Board]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_far_end, args=(there,))
    process.start()
    far = _FarMock(here)
    try:
        yield software_board("mock", far, MOCK_GEOMETRY, VENDOR, SEED)
    finally:
        far.close()
        here.send(None)
        process.join()


# ---- figures ---------------------------------------------------------------------------------------------------------


def _rate(name: str, value: float) -> dict[str, Any]:
    return {
        **{"bench": "inference", "name": name, "value": value, "unit": "images/s", "bound": None, "ratio": None},
        **{"goal": IMAGES_PER_S, "met": value >= IMAGES_PER_S},
    }


def _seconds(name: str, value: float) -> dict[str, Any]:
    return {
        **{"bench": "inference", "name": name, "value": value, "unit": "s", "bound": None, "ratio": None},
        **{"goal": None, "met": None},
    }


def _overhead(name: str, value: float, bound: float) -> dict[str, Any]:
    return {
        **{"bench": "inference", "name": name, "value": value, "unit": "s", "bound": bound, "ratio": value / bound},
        **{"goal": OVERHEAD, "met": value / bound <= OVERHEAD},
    }
