"""What inference on approximate memory saves: networks x platforms x precisions, beside the EDEN paper's figures.

That a number here is near the paper's validates nothing: the law that VDD follows, whether the cut of VDD is in volts
or a share, how the platform computes between its reads, how its controller treats rows, and how much of its time it
waits for DRAM are not stated there, and each moves the result. Every row names its assumptions, and the band over them.
"""

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from eden.commands import Activity, activity
from eden.dram_specs import DramSpec, load
from eden.energy import LAWS, CoreLaw, VddLaw, energy, savings
from eden.layers import Layer
from eden.precision import Precision
from eden.replay import SERIAL, Bursts, RowPolicy, replay
from eden.traffic import PLATFORMS, Platform, traffic
from profiles.errors import ModelError

PAPER_SAVING = {"CPU": 0.21, "GPU": 0.37, "Eyeriss, DDR4": 0.31, "TPU, DDR4": 0.32}
PAPER_SPEED_UP = {"CPU": (0.08, 0.17), "GPU": (0.027, 0.055)}  # average, largest; of latency-bound networks
DEFAULT_LAW = VddLaw(CoreLaw.DYNAMIC_SQUARE, io_scaled=False)
STALLS = (0.25, 0.75)  # band of the share of time that a system waits for DRAM
PRECISIONS = (Precision.FP32, Precision.INT8)
DRAM_OF_FAMILY = {
    "DDR3": "ddr3-1600",
    "DDR3L": "ddr3l-1600",
    "DDR4": "ddr4-2400",
    "LPDDR3": "lpddr3-1600",
    "LPDDR4": "lpddr4-3200",
}


@dataclass(frozen=True)
class OperatingPoint:
    """A cut of VDD and of tRCD. ``source``: "paper"; "assumed" where it gives none for this network; or "measured"."""

    vdd_mv: int
    trcd_ps: int
    source: Literal["paper", "assumed", "measured"]


@dataclass(frozen=True)
class Points:
    """The paper's operating points, and the VDD that its cuts count from."""

    nominal_vdd_mv: int
    assumed: OperatingPoint
    of: dict[tuple[Precision, str], OperatingPoint]

    @classmethod
    def load(cls) -> "Points":
        """From `eden/operating_points.toml`."""
        data = tomllib.loads((Path(__file__).parent / "operating_points.toml").read_text(encoding="utf-8"))
        found = {
            (precision, name): OperatingPoint(**point, source="paper")
            for precision in PRECISIONS
            for name, point in data[precision].items()
        }
        return cls(data["nominal_vdd_mv"], OperatingPoint(**data["assumed"], source="assumed"), found)

    def at(self, network: str, precision: Precision) -> OperatingPoint:
        return self.of.get((precision, network), self.assumed)


@dataclass(frozen=True)
class Cell:
    """One network on one platform at one precision, before any law is chosen.

    Attributes:
        energy_saved: share, by law, by how the cut of VDD is read ("share" of nominal, or "volts"), and by pace
            ("computing": the platform's own; "back to back": as fast as the DRAM goes).
        time_ratios: DRAM time of the trace at reduced tRCD over nominal, by row policy and outstanding bursts.
        stall_share: of its time that the platform waits for DRAM at nominal, by its own model: what its trace takes
            longer than computing does alone, each burst asked for when computing comes to it.
        paced_ratio: time of the trace at reduced tRCD over nominal, so paced.
        joules: at nominal, paced by computing, by part, all channels.
        read_bytes, written_bytes: of one inference, all channels.
        dram_seconds: at nominal, as fast as the DRAM goes.
    """

    network: str
    platform: Platform
    precision: Precision
    point: OperatingPoint
    energy_saved: dict[tuple[VddLaw, str, str], float]
    time_ratios: dict[tuple[RowPolicy, int], float]
    stall_share: float
    paced_ratio: float
    joules: dict[str, float]
    read_bytes: int
    written_bytes: int
    dram_seconds: float

    @property
    def time_ratio(self) -> float:
        """With the platform's own row policy and outstanding bursts."""
        return self.time_ratios[self.platform.policy, self.platform.outstanding]

    @property
    def fastest(self) -> float:
        """The least time ratio of any."""
        return min(self.time_ratios.values())

    def to_json(self) -> dict[str, Any]:
        """As JSON has it, for `from_json`; of a platform of `PLATFORMS`."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "platform": self.platform.name,
            "point": asdict(self.point),
            "energy_saved": [(str(law), *others, saved) for (law, *others), saved in self.energy_saved.items()],
            "time_ratios": [(*case, ratio) for case, ratio in self.time_ratios.items()],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Cell":
        laws = {str(law): law for law in LAWS}
        saved, ratios = content["energy_saved"], content["time_ratios"]
        return cls(
            **{
                **content,
                "platform": PLATFORMS[content["platform"]],
                "precision": Precision(content["precision"]),
                "point": OperatingPoint(**content["point"]),
                "energy_saved": {(laws[law], reading, pace): share for law, reading, pace, share in saved},
                "time_ratios": {(RowPolicy(policy), outstanding): ratio for policy, outstanding, ratio in ratios},
            }
        )


def evaluate(name: str, layers: Sequence[Layer], platform: Platform, precision: Precision, points: Points) -> Cell:
    """Traffic, replay at nominal and reduced tRCD, and energy under every law.

    Raises:
        ModelError: the network does not fit the platform, or the cut leaves no voltage or no tRCD.
    """
    spec, point = load(platform.dram), points.at(name, precision)
    moved = traffic(layers, platform, precision)
    trcds = spec.trcd, spec.trcd_clocks(point.trcd_ps)
    at_once = replace(moved.bursts, arrival=np.zeros_like(moved.bursts.arrival))
    paces: dict[str, tuple[Activity, Activity]] = {
        "computing": _both(moved.bursts, spec, platform, trcds, moved.compute_clocks),
        "back to back": _both(at_once, spec, platform, trcds, 0),
    }
    voltages = _voltages(spec, point, points.nominal_vdd_mv)
    saved = {
        (law, reading, pace): share
        for pace, (nominal, reduced) in paces.items()
        for reading, voltage in voltages.items()
        for law, share in savings(nominal, reduced, spec, voltage).items()
    }
    nominal, reduced = paces["back to back"]
    ratios = {(platform.policy, platform.outstanding): reduced.length / nominal.length}
    for policy, outstanding in itertools.product(RowPolicy, (SERIAL, platform.outstanding)):
        if (policy, outstanding) not in ratios:
            before, after = (replay(at_once, spec, trcd, outstanding, policy).length for trcd in trcds)
            ratios[policy, outstanding] = after / before
    joules = {part: value * platform.channels for part, value in energy(paces["computing"][0], spec).parts().items()}
    seconds = nominal.length * spec.tck_ps * 1e-12
    paced, sooner = (each.length for each in paces["computing"])
    waiting = 1 - moved.compute_clocks / paced, sooner / paced
    transferred = moved.read_bytes, moved.written_bytes
    return Cell(name, platform, precision, point, saved, ratios, *waiting, joules, *transferred, seconds)


def _both(
    bursts: Bursts, spec: DramSpec, platform: Platform, trcds: tuple[int, int], until: int
) -> tuple[Activity, Activity]:
    """Activity at nominal and at reduced tRCD."""
    nominal, reduced = (
        activity(replay(bursts, spec, trcd, platform.outstanding, platform.policy, until=until), spec) for trcd in trcds
    )
    return nominal, reduced


def _voltages(spec: DramSpec, point: OperatingPoint, counted_from_mv: int) -> dict[str, float]:
    """VDD over its nominal value, by either reading of a cut that was measured at another VDD."""
    core = next(rail.mv for rail in spec.rails if rail.scaled)
    left = {"share": 1 - point.vdd_mv / counted_from_mv, "volts": 1 - point.vdd_mv / core}
    if min(left.values()) <= 0:
        raise ModelError(f"a VDD cut of {point.vdd_mv} mV leaves nothing of {core:g} mV; cut less")
    return left


def speed_up(stall: float, time_ratio: float) -> float:
    """Gain of a system that waits for DRAM for a share ``stall`` of its time, when that falls to ``time_ratio``.

    Raises:
        ModelError: the share is not within 0..1.
    """
    if not 0 <= stall <= 1:
        raise ModelError(
            f"a DRAM-stall share of {stall} is not within 0..1; give the share of time that waits for DRAM"
        )
    return 1 / (1 - stall * (1 - time_ratio)) - 1


def needed_stall(gain: float, time_ratio: float) -> float | None:
    """The stall share at which a system gains ``gain``; None where not even one that only waits does."""
    if time_ratio >= 1:
        return None
    share = (1 - 1 / (1 + gain)) / (1 - time_ratio)
    return share if share <= 1 else None


def row(cell: Cell, law: VddLaw = DEFAULT_LAW, stall: float | None = None) -> dict[str, Any]:
    """A cell for `headline.json`: what is saved by ``law``, the band of all laws, and what else was assumed.

    ``stall``: share of its time that the system waits for DRAM; None is the platform's own (`Cell.stall_share`).
    """
    band = [value for (_, reading, pace), value in cell.energy_saved.items() if (reading, pace) == _DEFAULT]
    share = cell.stall_share if stall is None else stall
    gains = [speed_up(each, ratio) for each in (share, *STALLS) for ratio in cell.time_ratios.values()]
    return {
        "network": cell.network,
        "platform": cell.platform.name,
        "precision": cell.precision.value,
        "vdd_cut_mv": cell.point.vdd_mv,
        "trcd_cut_ps": cell.point.trcd_ps,
        "operating_point": cell.point.source,
        "dram": cell.platform.dram,
        "read_bytes": cell.read_bytes,
        "written_bytes": cell.written_bytes,
        "nominal_joules": cell.joules,
        "law": str(law),
        "energy_saved": cell.energy_saved[law, *_DEFAULT],
        "energy_saved_low": min(band),
        "energy_saved_high": max(band),
        "energy_saved_by_assumptions": {
            f"{each}; VDD cut as {reading}; {pace}": value for (each, reading, pace), value in cell.energy_saved.items()
        },
        "dram_seconds": cell.dram_seconds,
        "dram_time_ratio": cell.time_ratio,
        "dram_time_ratio_by_assumptions": {
            f"rows {policy}; {outstanding} outstanding": ratio
            for (policy, outstanding), ratio in cell.time_ratios.items()
        },
        "stall_share": share,
        "stall_share_from": "the platform's model" if stall is None else "the user",
        "speed_up": speed_up(share, cell.time_ratio),
        "speed_up_paced_by_computing": 1 / cell.paced_ratio - 1,
        "speed_up_low": min(gains),
        "speed_up_high": max(gains),
        "sentence": cell.platform.note,
    }


_DEFAULT = ("share", "computing")


def averages(cells: Sequence[Cell], law: VddLaw = DEFAULT_LAW, stall: float | None = None) -> Iterator[dict[str, Any]]:
    """A row a platform and precision: the mean over networks with a point of the paper's, beside its figure."""
    for platform in PLATFORMS.values():
        for precision in PRECISIONS:
            these = [
                cell
                for cell in cells
                if (cell.platform.name, cell.precision) == (platform.name, precision) and cell.point.source == "paper"
            ]
            if these:
                yield _average(these, platform, precision, law, stall)


def _average(
    cells: Sequence[Cell], platform: Platform, precision: Precision, law: VddLaw, stall: float | None
) -> dict[str, Any]:
    by_assumption = {key: fmean(cell.energy_saved[key] for cell in cells) for key in cells[0].energy_saved}
    laws = {each: by_assumption[each, *_DEFAULT] for each in LAWS}
    shares = [cell.stall_share if stall is None else stall for cell in cells]
    gains = [speed_up(share, cell.time_ratio) for share, cell in zip(shares, cells, strict=True)]
    paper = PAPER_SAVING.get(platform.name)
    paper_gain = PAPER_SPEED_UP.get(platform.name)
    fastest = min(cell.fastest for cell in cells)
    return {
        "platform": platform.name,
        "precision": precision.value,
        "networks": len(cells),
        "law": str(law),
        "energy_saved": laws[law],
        "energy_saved_low": min(laws.values()),
        "energy_saved_high": max(laws.values()),
        "energy_saved_lowest": min(by_assumption.values()),
        "energy_saved_highest": max(by_assumption.values()),
        "energy_saved_by_law": {str(each): value for each, value in laws.items()},
        "paper_energy_saved": paper,
        "speed_up": fmean(gains),
        "speed_up_most": max(gains),
        "stall_share": fmean(shares),
        "paper_speed_up": paper_gain and paper_gain[0],
        "paper_speed_up_most": paper_gain and paper_gain[1],
        "sentence": _sentence(by_assumption, paper, paper_gain, fastest, platform),
    }


def _sentence(
    saved: dict[tuple[VddLaw, str, str], float],
    paper: float | None,
    paper_gain: tuple[float, float] | None,
    fastest: float,
    platform: Platform,
) -> str:
    """What the paper's figure depends on that the paper does not state."""
    parts = [platform.note]
    if paper is not None:
        low, high = min(saved.values()), max(saved.values())
        where = "inside" if low <= paper <= high else "outside"
        parts.append(
            f"The paper's {paper:.0%} of energy lies {where} the {low:.0%} to {high:.0%} that the VDD law, the reading "
            "of the VDD cut and the pace decide here, none of which it states: it confirms none of them."
        )
    if paper_gain is not None:
        share = needed_stall(paper_gain[1], fastest)
        needs = "more than all" if share is None else f"{share:.0%}"
        parts.append(
            f"Its largest speed-up, {paper_gain[1]:.1%}, would take {needs} of the time spent waiting for this DRAM, "
            "with the row policy and dependence that gain most; it states neither these nor the share."
        )
    return " ".join(parts)


def of_run(
    name: str, layers: Sequence[Layer], precision: Precision, cut: OperatingPoint, nominal_vdd_mv: int, dram: str
) -> Iterator[Cell]:
    """A cell a platform for a network of one's own at a measured operating point, each platform with that very DRAM.

    Args:
        name, layers, precision: the network (`eden.layers.layers_of`).
        cut: of VDD and tRCD, from the module's nominal values.
        nominal_vdd_mv: the module's.
        dram: the module's JEDEC family, as in ``DRAM_OF_FAMILY``.

    Raises:
        ModelError: no figures of such a DRAM are here, or the cut leaves nothing.
    """
    if dram not in DRAM_OF_FAMILY:
        raise ModelError(f"no currents of {dram} are known; known are {', '.join(DRAM_OF_FAMILY)}")
    points, seen = Points(nominal_vdd_mv, cut, {}), set()
    for platform in PLATFORMS.values():
        kind = platform.name.split(", ")[0]
        if kind not in seen:
            seen.add(kind)
            own = replace(platform, name=f"{kind}, {dram}", dram=DRAM_OF_FAMILY[dram])
            yield evaluate(name, layers, own, precision, points)
