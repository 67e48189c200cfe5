"""`eden study certificates`: how often certificates are wrong, and how much of the true tolerance they certify."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from eden import certificate_study as study
from eden.approximate import ApproximateNetwork
from eden.certificate import Population
from eden.certificate_study import Outcome, PooledPopulation, SyntheticPopulation
from eden.datasets import Split
from eden.inference import CONFIDENCE
from eden.memory import ApproximateMemory, BitErrorMemory, ErrorModelMemory
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.tolerance import Sampling
from eden.training import FLOAT_TRAINING, QUANTISED_TRAINING, train_baseline
from host.cli import stages
from host.cli.console import console, table
from host.cli.tasks import Scheduler, Workers, alone, kept_network, rows_of_tasks
from profiles.error_models import UniformModel
from profiles.errors import NetworkError
from profiles.files import atomic_file
from profiles.geometry import Geometry

FOLDER = Path("build/study")
SEEDS = (1, 2, 3)
REPEATS = 2000  # of each seed
TARGET_DROP = 0.01
RATIO_GOAL = 0.5
ROUNDING = 1e-9  # of ratios of rates, powers of two
LADDER = tuple(2 ** (k / 4) for k in range(-12, 3))  # of synthetic images, over the true tolerance
LENET_RATES = tuple(1.6e-3 * 2 ** (k / 4) for k in range(-9, 9))  # up to a loss above the target in all seeds
POOL_DRAWS, POOL_BATCH = 32, 500
GEOMETRY = Geometry(banks=8, rows=256, columns=1024, data_width=64)
WEAK_FLIP = 0.5  # of a weak cell, on the one map
QUANTILES = (0.05, 0.25, 0.75, 0.95)

CERTIFICATE = "certificate"
RIVALS: dict[str, study.Shows] = {
    "bets of whole lumps": study.by_whole_lumps,
    "predictable bets": study.by_predictable_bets,
    "empirical Bernstein": study.by_empirical_bernstein,
    "Student's t (no guarantee)": study.by_student,
}
POOLING: dict[str, study.Shows] = {"batches taken for images (no guarantee)": study.by_images_alone}


@dataclass(frozen=True)
class Design:
    """How many images of what are sampled, and how.

    Attributes:
        network: "synthetic", or a network's name.
        population: whose errors.
        rivals: other bounds that see the same samples.
    """

    network: str
    images: int
    draws: int
    batch: int
    population: Population
    rivals: tuple[str, ...]

    @property
    def bounds(self) -> dict[str, study.Shows]:
        """All bounds by name, the certificate's first."""
        return {CERTIFICATE: study.by_certificate, **{name: (RIVALS | POOLING)[name] for name in self.rivals}}

    def __str__(self) -> str:
        shared = f", batches of {self.batch}" if self.batch > 1 else ""
        drawn = f", {self.draws} draws each" if self.draws > 1 else ""
        return f"{self.images} images{drawn}{shared}"


DESIGNS = (
    Design("synthetic", 1000, 1, 1, Population.ANY_MAP, tuple(RIVALS)),
    Design("synthetic", 1000, 8, 1, Population.ANY_MAP, tuple(RIVALS)),
    Design("synthetic", 10_000, 1, 1, Population.ANY_MAP, ()),
    Design("synthetic", 20_000, 1, 50, Population.ANY_MAP, tuple(POOLING)),
    Design("lenet", 1000, 8, 1, Population.ANY_MAP, tuple(RIVALS)),
    Design("lenet", 1000, 8, 1, Population.THIS_MAP, tuple(RIVALS)),
    Design("lenet", 2000, 8, 1, Population.ANY_MAP, ()),
    Design("lenet", 2000, 8, 1, Population.THIS_MAP, ()),
)


def certificates(
    out: Annotated[Path, typer.Option(help="Folder for certificates.json, .png, and LeNet's results.")] = FOLDER,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """How often certificates of tolerance are wrong, and how much of the true BER they certify, by planted truth.

    Images and errors are drawn anew in each repeat: from a model of images whose accuracy is known exactly, and from
    LeNet's own results on real images. The target is put at the true loss of one rung of the ladder, which must then
    not be certified: the hardest case. Other bounds see the same samples, to show what the certificate's is worth.

    Stop it at any time; the same command goes on where it was.
    """
    stages.use_one_thread()
    tasks = [Task(out, number, seed) for number in range(len(DESIGNS)) for seed in SEEDS]
    found: Found = {}

    def rows_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found.clear()
        found.update(_outcomes(results))
        return [
            row
            for design, by_bound in found.items()
            for bound, outcome in by_bound.items()
            for row in _rows(design, bound, outcome)
        ]

    rows = rows_of_tasks("certificates", tasks, rows_of, out, workers, scheduler, confidence=CONFIDENCE)
    _plot(found).savefig(out / "certificates.png", dpi=110)
    _show(rows)
    console.print(str(out / "certificates.json"))


Found = dict[Design, dict[str, Outcome]]


@dataclass(frozen=True)
class Task:
    """The repeats of one design with one seed.

    Attributes:
        out: the study's folder.
        design: number of the design in `DESIGNS`.
        seed: of the population, its images and errors.
    """

    out: Path
    design: int
    seed: int

    @property
    def file(self) -> Path:
        """See `host.cli.tasks.Task`."""
        return self.out / "certificates" / f"design{self.design}-{self.seed}.json"

    @property
    def key(self) -> str:
        """See `host.cli.tasks.Task`."""
        pooled = f"{LENET_RATES} {POOL_DRAWS} {POOL_BATCH} {GEOMETRY} {WEAK_FLIP}"
        return f"{DESIGNS[self.design]!r} {REPEATS} {TARGET_DROP} {LADDER} {pooled}"

    def measured(self) -> dict[str, Any]:
        """Of each bound, which repeats it was violated in, and the certified rates over the true one."""
        design = DESIGNS[self.design]
        population = _population(design, self.seed, self.out / "certificates")
        sampling = Sampling(design.draws, design.batch, derive_seed(self.seed, str(design), design.population.value))
        target = _nearest_loss(population.drops)
        found = study.repeat(population, target, design.images, sampling, REPEATS, design.bounds)
        return {
            "design": self.design,
            "bounds": {
                bound: {"violated": outcome.violated.astype(int).tolist(), "ratios": outcome.ratios.tolist()}
                for bound, outcome in found.items()
            },
        }


def _outcomes(results: list[dict[str, Any]]) -> Found:
    """The outcomes of each design, all seeds as one."""
    parts: dict[Design, dict[str, list[Outcome]]] = {}
    for result in results:
        by_bound = parts.setdefault(DESIGNS[result["design"]], {})
        for bound, kept in result["bounds"].items():
            outcome = Outcome(np.array(kept["violated"], np.bool_), np.array(kept["ratios"]))
            by_bound.setdefault(bound, []).append(outcome)
    return {
        design: {bound: Outcome.joined(outcomes) for bound, outcomes in by_bound.items()}
        for design, by_bound in parts.items()
    }


def _nearest_loss(drops: study.Floats) -> float:
    """The loss of the rung nearest to the target's, which a ladder that ends below the target would put too low.

    Raises:
        NetworkError: it does end there.
    """
    if drops.max() < TARGET_DROP:
        raise NetworkError(
            f"the ladder ends at a loss of {100 * drops.max():.2f} %, below the target of {100 * TARGET_DROP:g} %; "
            "add higher rates to it"
        )
    return float(drops[np.argmin(np.abs(drops - TARGET_DROP))])


def _population(design: Design, seed: int, folder: Path) -> study.Population:
    if design.network == "synthetic":
        true_rate = SyntheticPopulation(np.ones(1)).rate_of(TARGET_DROP)
        return SyntheticPopulation(np.array(LADDER) * true_rate)
    return _pooled(design.population, seed, folder)


def _pooled(population: Population, seed: int, folder: Path) -> PooledPopulation:
    """LeNet's results on all images that it was not trained on; kept in ``folder``."""
    file = folder / f"lenet_int8_{population.name.lower()}_{seed}.npz"
    settings = [population.value, seed, LENET_RATES, POOL_DRAWS, POOL_BATCH, GEOMETRY.model_dump(), WEAK_FLIP]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    with alone(file):
        kept = _kept_pool(file, key)
        if kept is not None:
            return kept
        made = _make_pool(population, seed, folder)
        with atomic_file(file) as opened:
            np.savez_compressed(opened, key=np.array(key), right=made.right, clean=made.clean)
        return made


def _kept_pool(file: Path, key: str) -> PooledPopulation | None:
    try:
        with np.load(file, allow_pickle=False) as kept:
            if str(kept["key"]) != key:
                return None
            return PooledPopulation(np.array(LENET_RATES), kept["right"], kept["clean"])
    except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # not there, or damaged: it is made again


def _make_pool(population: Population, seed: int, folder: Path) -> PooledPopulation:
    data = stages.dataset()
    unseen = Split(
        torch.cat([data.validation.images, data.test.images]), torch.cat([data.validation.labels, data.test.labels])
    )
    memory_of = _fixed_maps(seed) if population is Population.THIS_MAP else _any_maps(seed)
    return study.pool(_lenet(seed, folder), memory_of, unseen, LENET_RATES, POOL_DRAWS, POOL_BATCH)


def _lenet(seed: int, folder: Path) -> ApproximateNetwork:
    return kept_network(
        folder / f"lenet-{seed}.safetensors",
        "lenet",
        f"{FLOAT_TRAINING} {QUANTISED_TRAINING}",
        lambda: train_baseline("lenet", Precision.INT8, stages.dataset(), seed),
    )


def _any_maps(seed: int) -> Callable[[int, int], ApproximateMemory]:
    return lambda number, draw: BitErrorMemory(LENET_RATES[number], derive_seed(seed, number, draw))


def _fixed_maps(seed: int) -> Callable[[int, int], ApproximateMemory]:
    """One map of the module for each rate, read anew in each draw."""
    uniform = UniformModel(
        geometry=GEOMETRY, banks=tuple(range(GEOMETRY.banks)), weak_fraction=0.1, flip_probability=WEAK_FLIP
    )
    maps = [ErrorModelMemory(uniform.scaled(rate), derive_seed(seed, "map"), fresh_map=False) for rate in LENET_RATES]
    return lambda number, draw: maps[number]


def _rows(design: Design, bound: str, outcome: Outcome) -> list[dict[str, Any]]:
    stated = 1 - CONFIDENCE
    judged = bound == CERTIFICATE
    shared = {
        "network": design.network,
        "precision": "none" if design.network == "synthetic" else Precision.INT8.value,
        "population": design.population.value,
        "sample": str(design),
        "bound": bound,
        "seeds": list(SEEDS),
        "repeats": len(outcome.ratios),
    }
    rate, *rate_interval = outcome.violations
    median, *median_interval = outcome.median
    return [
        shared
        | {
            "what": "share of certificates that are wrong",
            "figure": rate,
            "interval": rate_interval,
            "goal": stated if judged else None,
            "met": rate <= stated if judged else None,
        },
        shared
        | {
            "what": "certified BER over the true one, median",
            "figure": median,
            "interval": median_interval,
            "quantiles": {f"{q:g}": float(np.quantile(outcome.ratios, q)) for q in QUANTILES},
            "share_at_least_half": float((outcome.ratios >= RATIO_GOAL * (1 - ROUNDING)).mean()),
            "share_without_certificate": float((outcome.ratios == 0).mean()),
            "goal": RATIO_GOAL if judged else None,
            "met": median_interval[0] >= RATIO_GOAL * (1 - ROUNDING) if judged else None,
        },
    ]


def _show(rows: list[dict[str, Any]]) -> None:
    shown = []
    for wrong, ratio in zip(rows[::2], rows[1::2], strict=True):
        met = {None: "", True: "yes", False: "NO"}[wrong["met"] and ratio["met"]]
        low, high = wrong["interval"]
        quantiles = ratio["quantiles"]
        shown.append(
            [
                f"{wrong['network']}, {wrong['sample']}, {wrong['population'].split(',')[0]}",
                wrong["bound"],
                f"{100 * wrong['figure']:.2f} % ({100 * low:.2f} .. {100 * high:.2f})",
                f"{ratio['figure']:.2f} ({quantiles['0.05']:.2f} .. {quantiles['0.95']:.2f})",
                f"{100 * ratio['share_at_least_half']:.0f} %",
                met,
            ]
        )
    columns = ["sample", "bound", "wrong (goal: 5 %)", "of the true BER (goal: 0.5)", "at least half", "met"]
    table("certificates of tolerance", columns, shown)


def _plot(found: Found) -> Figure:
    columns = 3
    figure = Figure(figsize=(12, 3.4 * -(-len(found) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(found) // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (design, by_bound) in zip(axes, found.items(), strict=False):
        for bound, outcome in by_bound.items():
            ordered = np.concatenate([[0.0], np.sort(outcome.ratios), [1.5]])
            reached = np.concatenate([[1.0], np.linspace(1, 0, len(outcome.ratios), endpoint=False), [0.0]])
            width, style = (2.2, "-") if bound == CERTIFICATE else (1.1, "--")
            axis.step(ordered, 100 * reached, style, where="pre", lw=width, label=bound)
        axis.axvline(RATIO_GOAL, color="grey", lw=0.8, ls=":")
        axis.axvline(1, color="black", lw=0.8)
        axis.axhline(100 * (1 - CONFIDENCE), color="black", lw=0.8, ls=":")
        axis.set_title(f"{design.network}, {design}\n{design.population.value}", fontsize=9)
        axis.set(xlim=(0, 1.5), xlabel="BER over the true tolerance", ylabel="certified at least so much, %")
        axis.legend(frameon=False, fontsize=7)
    for axis in axes[len(found) :]:
        axis.set_axis_off()
    return figure
