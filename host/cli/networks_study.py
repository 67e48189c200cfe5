"""`eden study networks`: each recipe's accuracy, and what it tolerates, by precision; a command for each row."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from eden.approximate import ApproximateNetwork
from eden.bounding import Bounding
from eden.certificate import CERTIFICATE_SAMPLING, certify, scaled_ladder, units_needed
from eden.datasets import Dataset
from eden.inference import evaluate
from eden.memory import BitErrorMemory
from eden.networks import NETWORKS
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.tolerance import Sampling, coarse
from eden.training import recipe
from host.cli import stages
from host.cli.console import console, table
from host.cli.placement_study import mean_ratio
from host.cli.tasks import Baseline, Scheduler, Workers, rows_of_tasks
from profiles.errors import NetworkError, PlanError

FOLDER = Path("build/study")
PRECISIONS = (Precision.INT8, Precision.BF16, Precision.FP32)
SEEDS = 3
TARGET_DROP = 0.01
SEARCH = Sampling(draws=2, batch=20)
CERTIFICATE = replace(CERTIFICATE_SAMPLING, draws=1)
SEARCH_IMAGES, HIGHEST_BER = 500, 0.25
RATIO = 1.3  # of the bracket that a tolerated rate is found in
SHARES = tuple(2 ** (k / 2) for k in range(-6, 3))  # of the rate searched for, to climb while they are certified


def networks(
    out: Annotated[Path, typer.Option(help="Folder for networks.json, networks.png and what is kept.")] = FOLDER,
    network: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated. Default: all.")] = None,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="Only this one; may be repeated. Default: int8, bf16 and fp32.")
    ] = None,
    bounding: Annotated[
        list[Bounding] | None, typer.Option(help="Only this one; may be repeated. Default: zero, and off for fp32.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Networks to train, or errors to draw, for each row.")] = SEEDS,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Accuracy without errors, and tolerable BER, of every network's recipe: vision, speech and language.

    A row is a network at a precision. Its figure is the BER that it is certified to tolerate, the geometric mean over
    seeds: on validation images, with bits flipped uniformly, at most 1 % of them are lost, with 95 % confidence. What
    may be certified was searched for on training images. Accuracy is that of the untouched test split, the
    mean over seeds, with the exact interval of each. Where validation images are too few to certify anything
    (ImageNet's photographs) the figure is the rate searched for, which is no more than a smoke test; `certified` says
    which. No goal is set for these rows. Networks whose data are not installed are left out, and it is said how to
    install them; one that was asked for by name is then an error. Finished tasks are kept.
    """
    stages.use_one_thread()
    named = network or _available()
    tasks = list(_tasks(out, named, precision or list(PRECISIONS), bounding, seeds))
    rows = rows_of_tasks("networks", tasks, _rows, out, workers, scheduler, target_drop=TARGET_DROP)
    _plot(rows).savefig(out / "networks.png", dpi=110)
    _show(rows)
    console.print(str(out / "networks.json"))


def _available() -> list[str]:
    """The networks whose data are installed; of others it is said how to install them."""
    found = []
    for name in NETWORKS:
        try:
            recipe(name).data()
            found.append(name)
        except NetworkError as error:
            console.print(f"without {name}: {error}")
    return found


def _tasks(
    out: Path, names: list[str], precisions: list[Precision], boundings: list[Bounding] | None, seeds: int
) -> Iterator["Task"]:
    for name in names:
        if name not in NETWORKS:
            raise PlanError(f"the study has no network {name!r}; choose from {', '.join(NETWORKS)}")
        for precision in precisions:
            usual = [Bounding.ZERO, Bounding.OFF] if precision is Precision.FP32 else [Bounding.ZERO]
            for bounding in boundings or usual:
                for seed in range(1, seeds + 1):
                    yield Task(out, name, precision, bounding, seed)


@dataclass(frozen=True)
class Task:
    """A network of one precision and seed, trained by its recipe, and what it tolerates with one kind of bounding."""

    out: Path
    network: str
    precision: Precision
    bounding: Bounding
    seed: int

    @property
    def file(self) -> Path:
        """See `host.cli.tasks.Task`."""
        return self.out / "networks" / f"{self._baseline.name}-{self.bounding}.json"

    @property
    def key(self) -> str:
        """See `host.cli.tasks.Task`."""
        return f"{self._baseline.key} {SEARCH} {SEARCH_IMAGES} {RATIO} {SHARES} {CERTIFICATE} {TARGET_DROP}"

    def measured(self) -> dict[str, Any]:
        """Accuracy on test images, and the BER tolerated."""
        network, data = self._baseline.trained(self.out / "networks"), stages.dataset(self.network)
        network.bounding = self.bounding
        test = evaluate(network, data.test.images, data.test.labels)
        ber, certified = self._tolerated(network, data)
        return {
            "network": self.network,
            "precision": self.precision.value,
            "bounding": self.bounding.value,
            "seed": self.seed,
            "data": data.name,
            "correct": test.correct,
            "total": test.total,
            "accuracy_interval": [test.low, test.high],
            "ber": ber,
            "certified": certified,
        }

    def _tolerated(self, network: ApproximateNetwork, data: Dataset) -> tuple[float, bool]:
        """The BER certified on validation images, or, where they are too few, searched for on training images."""
        few, seed = data.train.first(SEARCH_IMAGES), derive_seed(self.seed, "networks study")
        clean = evaluate(network, few.images, few.labels).accuracy
        sampling = replace(SEARCH, seed=seed)
        found = coarse(
            network, BitErrorMemory, few, TARGET_DROP, clean, sampling, highest_ber=HIGHEST_BER, ratio=RATIO
        ).ber
        validation = data.validation
        if len(validation) < units_needed(TARGET_DROP):
            return found, False
        right = evaluate(network, validation.images, validation.labels).correct_images
        ladder = scaled_ladder({tensor.name: found for tensor in network.tensors()}, SHARES, HIGHEST_BER)
        certificate = certify(
            network, ladder, BitErrorMemory, validation, right, TARGET_DROP, replace(CERTIFICATE, seed=seed)
        )
        return certificate.certified.ber if certificate.certified else 0.0, True

    @property
    def _baseline(self) -> Baseline:
        return Baseline(self.network, self.precision, self.seed)


# ---- results ---------------------------------------------------------------------------------------------------------


def _rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each network, precision and bounding."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["network"], result["precision"], result["bounding"]), []).append(result)
    return [_row(group) for group in groups.values()]


def _row(group: list[dict[str, Any]]) -> dict[str, Any]:
    bers, first = [result["ber"] for result in group], group[0]
    figure, low, high = mean_ratio(bers) if all(bers) else (0.0, 0.0, max(bers))
    accuracies = [result["correct"] / result["total"] for result in group]
    return {
        **{key: first[key] for key in ("network", "precision", "bounding", "data", "certified")},
        "figure": figure,
        "interval": [low, high],
        "accuracy": float(np.mean(accuracies)),
        "accuracies": accuracies,
        "accuracy_intervals": [result["accuracy_interval"] for result in group],
        "images": first["total"],
        "ber": bers,
        "seeds": [result["seed"] for result in group],
        "goal": None,
        "met": None,
    }


def _show(rows: list[dict[str, Any]]) -> None:
    shown = [
        [
            f"{row['network']}, {row['precision']}",
            row["bounding"],
            "{:.1f} %".format(100 * row["accuracy"]),
            "{:.1f} .. {:.1f}".format(*(100 * each for each in row["accuracy_intervals"][0])),
            str(row["images"]),
            f"{row['figure']:.1e}",
            "{:.1e} .. {:.1e}".format(*row["interval"]),
            "yes" if row["certified"] else "smoke test",
        ]
        for row in rows
    ]
    columns = ["network", "bounding", "accuracy", "95 %, first seed", "of", "tolerable BER", "95 %", "certified"]
    table("networks", columns, shown)


def _plot(rows: list[dict[str, Any]]) -> Figure:
    shown = [row for row in rows if row["figure"] > 0]
    figure = Figure(figsize=(8, 1.4 + 0.35 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(shown):
        axes.plot(row["interval"], [place, place], color="black", lw=1)
        axes.plot(row["figure"], place, "o" if row["certified"] else "x", color="#0072B2")
    axes.set(xscale="log", xlabel="tolerable BER (o: certified, x: smoke test)")
    axes.set_yticks(
        range(len(shown)),
        [f"{row['network']}, {row['precision']}, bounding {row['bounding']}" for row in shown],
    )
    axes.invert_yaxis()
    return figure
