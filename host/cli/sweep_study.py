"""`eden study sweep`: accuracy over bit error rate, for any networks and precisions, each point a task of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from eden.memory import BitErrorMemory
from eden.networks import NETWORKS
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.tolerance import AccuracyMeter, Sampling
from host.cli import stages
from host.cli.console import console, table
from host.cli.intervals import mean_interval
from host.cli.tasks import Baseline, Scheduler, Workers, rows_of_tasks
from profiles.errors import PlanError

FOLDER = Path("build/study")
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
SEEDS = 3
IMAGES, DRAWS, BATCH = 1000, 2, 50


def sweep(
    out: Annotated[Path, typer.Option(help="Folder for sweep.json, sweep.png and what is kept.")] = FOLDER,
    network: Annotated[
        list[str] | None, typer.Option(help=f"May be repeated: {', '.join(NETWORKS)}. Default: lenet.")
    ] = None,
    precision: Annotated[list[Precision] | None, typer.Option(help="May be repeated. Default: int8 and fp32.")] = None,
    ber: Annotated[
        list[float] | None, typer.Option(min=0, max=1, help="Bit error rate; may be repeated. Default: 1e-5 to 0.1.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Networks to repeat all with.")] = SEEDS,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Accuracy on validation images over bit error rate: network x precision x rate x seed.

    Every bit of every read flips with the same probability (Error Model 0, any map), and implausible values become
    zero. Each seed is another network, trained by its recipe (`eden train`). Finished tasks are kept: stopped and
    started again, it goes on, and what is asked for besides is added.
    """
    stages.use_one_thread()
    names = network or ["lenet"]
    for name in names:
        if name not in NETWORKS:
            raise PlanError(f"there is no network {name!r}; choose from {', '.join(NETWORKS)}")
    tasks = [
        Point(out, name, bits, rate, seed)
        for name in names
        for bits in precision or [Precision.INT8, Precision.FP32]
        for seed in range(1, seeds + 1)
        for rate in sorted(set(ber or RATES))
    ]
    rows = rows_of_tasks("sweep", tasks, _rows, out, workers, scheduler, images=IMAGES)
    _plot(rows).savefig(out / "sweep.png", dpi=110)
    shown = [
        [f"{row['network']}, {row['precision']}", f"{row['ber']:.1e}", _percent(row["figure"]), _interval(row)]
        for row in rows
    ]
    table("accuracy over bit error rate, %", ["network", "BER", "accuracy", "95 %"], shown)
    console.print(str(out / "sweep.json"))


@dataclass(frozen=True)
class Point:
    """One point: a network of one precision and seed at one bit error rate.

    Attributes:
        out: the study's folder.
        network, precision, ber: what is measured.
        seed: of the network and of its errors.
    """

    out: Path
    network: str
    precision: Precision
    ber: float
    seed: int

    @property
    def file(self) -> Path:
        """See `host.cli.tasks.Task`."""
        return self.out / "sweep" / f"{self._baseline.name}-{self.ber!r}.json"

    @property
    def key(self) -> str:
        """See `host.cli.tasks.Task`."""
        return f"{self._baseline.key} {IMAGES} {DRAWS} {BATCH}"

    def measured(self) -> dict[str, Any]:
        """Clean accuracy, and that at the rate, as means over draws of errors."""
        split = stages.dataset(self.network).validation.first(IMAGES)
        network, seed = self._baseline.trained(self.out / "sweep"), derive_seed(self.seed, "sweep")
        meter = AccuracyMeter(network, split, Sampling(DRAWS, BATCH, seed))
        found = meter.at(self.ber, lambda seed: BitErrorMemory(self.ber, seed)).accuracy if self.ber else meter.clean
        return {
            "network": self.network,
            "precision": self.precision.value,
            "ber": self.ber,
            "seed": self.seed,
            "clean_accuracy": meter.clean,
            "accuracy": found,
        }

    @property
    def _baseline(self) -> Baseline:
        return Baseline(self.network, self.precision, self.seed)


def _rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each network, precision and rate: the mean over seeds, with its interval."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["network"], result["precision"], result["ber"]), []).append(result)
    rows = []
    for (network, precision, ber), group in groups.items():
        mean, low, high = mean_interval([each["accuracy"] for each in group])
        rows.append(
            {
                "network": network,
                "precision": precision,
                "ber": ber,
                "figure": mean,
                "interval": [max(0.0, low), min(1.0, high)],
                "clean_accuracy": float(np.mean([each["clean_accuracy"] for each in group])),
                "seeds": [each["seed"] for each in group],
                "goal": None,
                "met": None,
            }
        )
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _interval(row: dict[str, Any]) -> str:
    return " .. ".join(_percent(end) for end in row["interval"])


def _plot(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rising = [row for row in rows if row["ber"]]
    for name in dict.fromkeys((row["network"], row["precision"]) for row in rising):
        curve = [row for row in rising if (row["network"], row["precision"]) == name]
        rates = [row["ber"] for row in curve]
        (line,) = axes.plot(rates, [100 * row["figure"] for row in curve], "o-", ms=3, label=", ".join(name))
        low, high = ([100 * row["interval"][end] for row in curve] for end in (0, 1))
        axes.fill_between(rates, low, high, color=line.get_color(), alpha=0.2, lw=0)
        axes.axhline(100 * curve[0]["clean_accuracy"], color=line.get_color(), lw=0.7, ls=":")
    axes.set(xscale="log", xlabel="bit error rate", ylabel="accuracy, %")
    axes.legend(frameon=False)
    return figure
