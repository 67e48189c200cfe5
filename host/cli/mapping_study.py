"""`eden study mapping`: the exact mapping against EDEN's greedy one: a table, a JSON file and a picture."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from matplotlib.figure import Figure

from eden.mapping import weighted
from eden.mapping_study import NOMINAL, random_problem
from eden.optimal import optimal_mapping
from eden.precision import Precision
from host.cli import stages
from host.cli.console import console, progress_bar, table
from host.cli.intervals import mean_interval

FOLDER = Path("build/study")
SEEDS = (1, 2, 3)
Size: TypeAlias = tuple[int, int, int, int]
SIZES: dict[Size, tuple[float, float]] = {  # tensors, partitions, VDDs, tRCDs: seconds, and the gap to prove in them
    (60, 16, 2, 5): (10.0, 1e-6),
    (400, 64, 6, 5): (60.0, 1e-2),
}
FOR_SOLVER = 0.5  # share of the time that is the solver's; the rest is to set it up, and greedy's


def mapping(
    out: Annotated[Path, typer.Option(help="Folder for mapping.json and mapping.png.")] = FOLDER,
) -> None:
    """Exact mapping against EDEN's greedy Algorithm 1: proven gap in limited time, and cost saved.

    Energy and latency weigh the same. Of each size, a row for the largest gap that is left, and one for what is saved,
    which must not be less than nothing, over random problems like a network's in one module or in four.
    """
    rows: list[dict[str, Any]] = []
    with progress_bar("map") as progress:
        done, total = 0, len(SIZES) * len(SEEDS)
        for size, (limit_s, goal) in SIZES.items():
            solved = []
            for seed in SEEDS:
                solved.append(_solved(size, seed, limit_s, goal))
                done += 1
                progress(done, total)
            rows += _rows(size, solved, limit_s, goal)
    stages.save_json(out / "mapping.json", {"study": "mapping", "objective": "0.5 energy + 0.5 latency", "rows": rows})
    _plot(rows).savefig(out / "mapping.png", dpi=110)
    table("mapping", ["problem", "what", "figure", "over seeds", "goal", "met"], [_shown(row) for row in rows])
    console.print(str(out / "mapping.json"))


@dataclass(frozen=True)
class Solved:
    """How one problem was solved.

    Attributes:
        gap: share of the cost that is not proven necessary.
        saved: share of what EDEN's Algorithm 1 costs; None where that finds no mapping.
        seconds: that it took, all in all.
        split_tensors: how many lie in several pieces.
    """

    gap: float
    saved: float | None
    seconds: float
    split_tensors: int


def _solved(size: Size, seed: int, limit_s: float, goal: float) -> Solved:
    problem = random_problem(*size, seed)
    start = time.perf_counter()
    found = optimal_mapping(
        problem.tensors,
        problem.tolerated_ber,
        problem.partitions,
        images=1,
        cost=weighted(0.5, 0.5, NOMINAL),
        time_limit_s=FOR_SOLVER * limit_s,
        enough=goal / 2,
    )
    return Solved(
        found.gap,
        None if found.greedy_cost is None else 1 - found.cost / found.greedy_cost,
        time.perf_counter() - start,
        sum(1 for placement in found.mapping.placements.values() if placement.more),
    )


def _rows(size: Size, solved: list[Solved], limit_s: float, goal: float) -> list[dict[str, Any]]:
    tensors, partitions, vdds, trcds = size
    shared = {
        "network": f"{tensors} tensors, {partitions} partitions, {vdds * trcds} points",
        "precision": Precision.INT8.value,
        "seeds": list(SEEDS),
        "seconds": [each.seconds for each in solved],
        "split_tensors": [each.split_tensors for each in solved],
    }
    gaps, saved = [each.gap for each in solved], [each.saved for each in solved if each.saved is not None]
    worst, slowest = max(gaps), max(each.seconds for each in solved)
    mean, *interval = mean_interval(saved) if saved else (0.0, 0.0, 0.0)
    return [
        shared
        | {
            "what": "proven gap, the largest",
            "figure": worst,
            "interval": [min(gaps), worst],
            "limit_s": limit_s,
            "goal": goal,
            "met": worst <= goal and slowest <= limit_s,
        },
        shared
        | {
            "what": "cost saved against Algorithm 1, the mean",
            "figure": mean,
            "interval": interval,
            "saved": [each.saved for each in solved],
            "goal": 0.0,
            "met": min(saved) >= 0 if saved else None,
        },
    ]


def _shown(row: dict[str, Any]) -> list[str]:
    low, high = (100 * end for end in row["interval"])
    limit = f" in {row['limit_s']:g} s ({max(row['seconds']):.1f} s)" if "limit_s" in row else ""
    return [
        *(row["network"], row["what"], f"{100 * row['figure']:.2g} %", f"{low:.2g} .. {high:.2g} %"),
        *(f"{100 * row['goal']:g} %{limit}", {None: "", True: "yes", False: "NO"}[row["met"]]),
    ]


def _plot(rows: list[dict[str, Any]]) -> Figure:
    proven, savings = rows[::2], rows[1::2]
    figure = Figure(figsize=(9, 1.5 + 0.6 * len(proven)), layout="constrained")
    saved, gaps = figure.subplots(1, 2, sharey=True)
    names = [row["network"].replace(", ", "\n") for row in proven]
    for name, row in zip(names, savings, strict=True):
        each = [100 * share for share in row["saved"] if share is not None]
        saved.plot(each, [name] * len(each), "o", color="#0072B2", alpha=0.7)
    saved.axvline(0, color="grey", lw=0.8, ls=":")
    saved.set_xlabel("cost saved against EDEN's Algorithm 1, %")
    gaps.barh(names, [max(row["figure"], 1e-9) for row in proven], color="#D55E00")
    gaps.plot([row["goal"] for row in proven], names, "k|", ms=14, label="goal")
    gaps.set(xscale="log", xlabel="proven gap")
    gaps.legend(frameon=False)
    return figure
