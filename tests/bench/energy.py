"""Benchmark: replay of traces, energy of traces, and traffic of networks.

By this process's own time (CPU seconds), medians over `REPEATS`: what the system takes to give memory, in which a trace
is long, differs from time to time.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from eden.commands import CommandTrace, activity
from eden.dram_specs import load
from eden.energy import energy
from eden.layers import NETWORKS
from eden.precision import Precision
from eden.replay import BACK_TO_BACK, SERIAL, Bursts, RowPolicy, place, replay
from eden.traffic import PLATFORMS, traffic

REPEATS = 3
BURSTS = 5_000_000
COMMANDS_PER_S, TRACE_S, TRAFFIC_S = 10e6, 1.0, 1.0
NETWORK_NAMES = tuple(NETWORKS)


def figures() -> Iterator[dict[str, Any]]:
    """Replay (commands a second), energy of 10 M commands, and the slowest network of each platform."""
    spec = load("ddr4-2400")
    streams = {"stream": np.arange(BURSTS), "random": np.random.default_rng(0).integers(0, 1 << 24, BURSTS)}
    trace: CommandTrace | None = None
    for name, numbers in streams.items():
        write = np.arange(BURSTS) % 4 == 0
        bursts = place(numbers.astype(np.int64), spec, write, np.zeros(BURSTS, np.int64))
        for outstanding in (SERIAL, BACK_TO_BACK):
            for policy in RowPolicy:
                rate, trace = _replay(bursts, outstanding, policy)
                label = f"replay_{name}_{policy}_{outstanding}"
                yield _figure(label, rate, "commands/s", COMMANDS_PER_S, rate >= COMMANDS_PER_S)
    assert trace is not None
    whole = trace
    energy(activity(whole, spec), spec)
    seconds = _cpu_seconds(lambda: energy(activity(whole, spec), spec)) * 10e6 / whole.clock.size
    yield _figure("energy_10M_commands", seconds, "s", TRACE_S, seconds <= TRACE_S)
    for platform in PLATFORMS.values():
        traffic(NETWORKS["LeNet"](), platform, Precision.FP32)
        times = {
            name: _cpu_seconds(lambda name=name, to=platform: traffic(NETWORKS[name](), to, Precision.FP32))
            for name in NETWORK_NAMES
        }
        slowest = max(times, key=lambda name: times[name])
        label = f"traffic_{platform.name}_{slowest}_fp32"
        yield _figure(label, times[slowest], "s", TRAFFIC_S, times[slowest] <= TRAFFIC_S)


def _replay(bursts: Bursts, outstanding: int, policy: RowPolicy) -> tuple[float, CommandTrace]:
    spec = load("ddr4-2400")
    few = Bursts(*(values[:100] for values in vars(bursts).values()))
    replay(few, spec, spec.trcd, outstanding, policy)  # numba compiles
    trace = replay(bursts, spec, spec.trcd, outstanding, policy)
    return trace.clock.size / _cpu_seconds(lambda: replay(bursts, spec, spec.trcd, outstanding, policy)), trace


def _cpu_seconds(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(REPEATS):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return statistics.median(times)


def _figure(name: str, value: float, unit: str, goal: float, met: bool) -> dict[str, Any]:
    return {
        **{"bench": "inference", "name": name, "value": value, "unit": unit, "bound": None, "ratio": None},
        **{"goal": goal, "met": met},
    }
