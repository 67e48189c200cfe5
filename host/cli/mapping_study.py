"""`eden study mapping`: the exact mapping against EDEN's greedy one: a table, a JSON file and a picture."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

from eden.mapping import weighted
from eden.mapping_study import NOMINAL, random_problem
from eden.optimal import optimal_mapping
from host.cli import stages
from host.cli.console import console, progress_bar, table

FOLDER = Path("build/study")
SIZES = {  # tensors, partitions, VDDs, tRCDs: seeds, seconds, and the gap that is to be proven in them
    (60, 16, 2, 5): ((1, 2, 3), 10.0, 1e-6),
    (400, 64, 6, 5): ((1, 2, 3), 60.0, 1e-2),
}
FOR_SOLVER = 0.5  # share of the time that is the solver's; the rest is to set it up, and greedy's


def mapping(
    out: Annotated[Path, typer.Option(help="Folder for mapping.json and mapping.png.")] = FOLDER,
) -> None:
    """Exact mapping against EDEN's greedy Algorithm 1: cost saved, proven gap and time, energy and latency alike."""
    rows: list[dict[str, Any]] = []
    with progress_bar("map") as progress:
        total = sum(len(seeds) for seeds, _, _ in SIZES.values())
        for size, (seeds, limit_s, goal) in SIZES.items():
            for seed in seeds:
                rows.append(_solved(size, seed, limit_s, goal))
                progress(len(rows), total)
    stages.save_json(out / "mapping.json", {"study": "mapping", "objective": "0.5 energy + 0.5 latency", "rows": rows})
    _plot(rows).savefig(out / "mapping.png", dpi=110)
    shown = [
        [
            *(r["figure"], f"{r['gap']:.2e}", f"{r['goal']:.0e} in {r['limit_s']:g} s", f"{r['seconds']:.1f} s"),
            *(
                "none" if r["saved_against_greedy"] is None else f"{100 * r['saved_against_greedy']:.2f} %",
                "yes" if r["met"] else "NO",
            ),
        ]
        for r in rows
    ]
    table("mapping", ["problem", "gap", "goal", "time", "saved against greedy", "met"], shown)
    console.print(str(out / "mapping.json"))


def _solved(size: tuple[int, int, int, int], seed: int, limit_s: float, goal: float) -> dict[str, Any]:
    tensors, partitions, vdds, trcds = size
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
    seconds = time.perf_counter() - start
    return {
        "figure": f"{tensors} tensors, {partitions} partitions, {vdds * trcds} points, seed {seed}",
        "cost": found.cost,
        "gap": found.gap,
        "greedy_cost": found.greedy_cost,
        "saved_against_greedy": None if found.greedy_cost is None else 1 - found.cost / found.greedy_cost,
        "points_used": len({piece.point for piece in found.mapping.pieces}),
        "split_tensors": sum(1 for placement in found.mapping.placements.values() if placement.more),
        "seeds": [seed],
        "seconds": seconds,
        "limit_s": limit_s,
        "goal": goal,
        "met": found.gap <= goal and seconds <= limit_s,
    }


def _plot(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(rows)), layout="constrained")
    saved, gaps = figure.subplots(1, 2, sharey=True)
    names = [row["figure"] for row in rows]
    saved.barh(names, [100 * (row["saved_against_greedy"] or 0) for row in rows], color="#0072B2")
    saved.set_xlabel("cost saved against greedy, %")
    gaps.barh(names, [max(row["gap"], 1e-9) for row in rows], color="#D55E00")
    gaps.plot([row["goal"] for row in rows], names, "k|", ms=14, label="goal")
    gaps.set(xscale="log", xlabel="proven gap")
    gaps.legend(frameon=False)
    return figure
