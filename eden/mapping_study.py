"""Mapping problems of any size, and what solving them exactly gains over EDEN's Algorithm 1."""

from dataclasses import dataclass

import numpy as np

from eden.approximate import TensorSpec
from eden.mapping import Partition
from eden.precision import Precision
from profiles.schema import OperatingPoint

NOMINAL = OperatingPoint(vdd_mv=1350, trcd_ps=13_750)
RAIL_PARTITIONS = 16  # banks of a module, which share a supply
FILLED = 0.7


@dataclass(frozen=True)
class MappingProblem:
    """Tensors, what they tolerate, and where they may go."""

    tensors: tuple[TensorSpec, ...]
    tolerated_ber: dict[str, float]
    partitions: tuple[Partition, ...]


def random_problem(tensors: int, partitions: int, vdds: int, trcds: int, seed: int) -> MappingProblem:
    """A problem like a network's in several modules: sizes and tolerances over decades, banks that differ.

    BER is the tail of a normal distribution of required tRCD, which grows as VDD falls as the circuit simulations of
    Chang et al. (SIGMETRICS 2017) say (8.4 ns at 1.35 V, 10.8 ns at 1.05 V), and varies by bank and module. Weights
    tolerate more than IFMs. Tensors fill `FILLED` of the partitions.
    """
    random = np.random.default_rng(seed)
    sizes = np.minimum(random.lognormal(0, 1.0, tensors), 6)
    specs, tolerated = [], {}
    for index, size in enumerate(sizes):
        kind, name = ("weight", f"layer{index}.weight") if index % 2 else ("ifm", f"layer{index}.ifm")
        specs.append(TensorSpec(name, kind, max(1, int(size * 64_000)), Precision.INT8))  # type: ignore[arg-type]
        tolerated[name] = float(10 ** random.normal(-3.0 if kind == "weight" else -3.5, 0.7))
    rows = -(-sum(spec.bits() for spec in specs) // int(FILLED * partitions * 8192 * 8))
    points = [
        OperatingPoint(vdd_mv=int(vdd), trcd_ps=int(trcd))
        for vdd in np.linspace(1350, 1050, vdds)
        for trcd in np.linspace(13_750, 7_500, trcds)
    ]
    offered = []
    for number in range(partitions):
        strength = random.normal(0, 0.5)
        rates = {point: _ber(point, strength) for point in points}
        offered.append(
            Partition(
                name=f"bank {number}",
                bank=number,
                first_cell=number * rows * 65_536,
                cells=rows * 65_536,
                ber_by_point=rates,
                ifm_ber_by_point={point: min(0.5, 1.5 * ber) for point, ber in rates.items()},
                rail=f"module {number // RAIL_PARTITIONS}",
            )
        )
    return MappingProblem(tuple(specs), tolerated, tuple(offered))


def _ber(point: OperatingPoint, strength: float) -> float:
    needed_ns = np.interp(point.vdd_mv / 1000, [1.05, 1.1, 1.15, 1.2, 1.25, 1.35], [10.8, 10.0, 9.3, 8.9, 8.6, 8.4])
    margin = (point.trcd_ps / 1000 - needed_ns - 0.4 * strength) / 1.1 + 1.5
    return float(np.clip(10 ** (-1 - 1.1 * margin), 1e-12, 0.5))
