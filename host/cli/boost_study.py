"""`eden study boost`: how much more BER a boosted network tolerates, beside the same retraining without errors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from eden.approximate import ApproximateNetwork
from eden.boosting import boost as boost_network
from eden.boosting import default_boosting
from eden.datasets import Dataset, Split, fashion_mnist
from eden.memory import ApproximateMemory
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.tolerance import AccuracyMeter, MemoryAt, Sampling, coarse
from eden.training import Training, train_baseline
from host.cli import stages
from host.cli.console import console, table
from host.cli.placement_study import BATCH, ModuleMaps, Trial, mean_ratio
from profiles.errors import PlanError

FOLDER = Path("build/study")
NETWORKS = ("lenet", "resnet8")
SEEDS = (1, 2, 3)
ARMS = ("baseline", "control", "boosted")
MEMORIES = {"fresh maps": 2e-4, "the DIMM's own map": 2e-4}  # with the rate that the baseline's search starts from
GOAL, BEST_GOAL = 5.0, 10.0
TARGET_DROP = 0.01
VENDOR = "B"
TRAIN_IMAGES, TEST_IMAGES = 20_000, 5000
DRAWS = 3  # of 5000 images: with fewer, half of the loss allowed goes to the bound's width
RATIO = 1.15  # of the bracket that a tolerated rate is found in
FLOAT_TRAINING, QUANTISED_TRAINING = Training(8, 4e-3, shift_pixels=1), Training(1, 5e-4, shift_pixels=1)


def boost(
    out: Annotated[Path, typer.Option(help="Folder for boost.json, boost.png and what is kept.")] = FOLDER,
    network: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be repeated. Default: lenet and resnet8.")
    ] = None,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="Only this one; may be repeated. Default: int8 and fp32.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Networks and modules to repeat all with.")] = len(SEEDS),
) -> None:
    """Tolerable BER of boosted networks over that of the unboosted, on Fashion-MNIST, bounding on in both.

    Criterion: the lower 95 % bound of the accuracy is at most 1 % below the unboosted network's clean accuracy, on test
    images that nothing was chosen with. Each seed is another network and another module of vendor B; boosting trains
    with fresh maps of the Error Model 0 fitted to it. Tolerances are found on fresh maps of the model, and on the
    module's own map as scanned at falling VDD. A control is retrained alike, without errors. Finished tasks are kept,
    and boost.json holds what they say so far: stopped and started again, it goes on. Goals count as met or missed from
    three seeds on.
    """
    stages.use_one_thread()
    tasks = list(_tasks(out, network or list(NETWORKS), precision or [Precision.INT8, Precision.FP32], seeds))
    rows = stages.rows_of_tasks("boost", tasks, _rows, out, target_drop=TARGET_DROP)
    _plot(rows).savefig(out / "boost.png", dpi=110)
    _show(rows)
    console.print(str(out / "boost.json"))


def _tasks(out: Path, networks: list[str], precisions: list[Precision], seeds: int) -> Iterator["Task"]:
    for network in networks:
        if network not in NETWORKS:
            raise PlanError(f"the study has no network {network!r}; choose from {', '.join(NETWORKS)}")
    for seed in range(1, seeds + 1):
        for network in networks:
            for precision in precisions:
                for arm in ARMS:
                    yield Task(out, network, precision, seed, arm)


@dataclass(frozen=True)
class Task:
    """One arm: a network of one precision and seed, its training, and what it tolerates in both kinds of memory.

    Attributes:
        out: the study's folder.
        network, precision, seed: the seed is that of network, module and errors.
        arm: one of `ARMS`. Retrained arms start from the baseline, which is trained if its task was not run.
    """

    out: Path
    network: str
    precision: Precision
    seed: int
    arm: str

    @property
    def folder(self) -> Path:
        return self.out / "boost"

    def result(self) -> dict[str, Any]:
        """Kept, or measured now."""
        file = self.folder / f"{self._name(self.arm)}.json"
        key = f"{self._key(self.arm)} {TEST_IMAGES}"
        kept = stages.kept_results(file, key)
        if kept is None:
            kept = self._measured()
            stages.keep_results(file, key, kept)
        return kept

    def _measured(self) -> dict[str, Any]:
        network, test = self._trained(self.arm), study_data().test.first(TEST_IMAGES)
        clean = AccuracyMeter(self._trained("baseline"), test, Sampling(1, BATCH)).clean
        trial = self._trial(network)
        memories = dict(zip(MEMORIES, (self._fresh(), _plain(trial)), strict=True))
        found = {
            name: self._tolerated(network, memory_at, test, clean, MEMORIES[name], trial.maps.highest_ber)
            for name, memory_at in memories.items()
        }
        own = list(MEMORIES)[1]
        found[own] = trial.measured_ber(found[own], self.seed)
        return {
            "network": self.network,
            "precision": self.precision.value,
            "seed": self.seed,
            "arm": self.arm,
            "baseline_accuracy": clean,
            "clean_accuracy": AccuracyMeter(network, test, Sampling(1, BATCH)).clean,
            "ber": found,
        }

    def _trained(self, arm: str) -> ApproximateNetwork:
        """The network of an arm: as kept, or trained now."""
        file = self.folder / f"{self._name(arm)}.safetensors"
        notes, key = file.with_suffix(".training.json"), self._key(arm)
        if stages.kept_results(notes, key) is None or not file.exists():
            stages.keep_results(notes, key, self._train(arm, file))
        return stages.load_network(file)

    def _train(self, arm: str, file: Path) -> dict[str, Any]:
        """Train the network of an arm and save it; what was chosen on the validation split, and how it went."""
        data = study_data()
        if arm == "baseline":
            train_baseline(self.network, self.precision, data, self.seed, FLOAT_TRAINING, QUANTISED_TRAINING).save(
                file, self.network
            )
            return {}
        baseline, validation = self._trained("baseline"), data.validation
        clean = AccuracyMeter(baseline, validation, Sampling(1, BATCH)).clean
        fresh = self._fresh()
        tolerated = self._tolerated(baseline, fresh, validation, clean, 2e-4, 0.25)
        criterion, settings = (tolerated, TARGET_DROP, clean, self.seed), default_boosting(self.precision)
        found = boost_network(baseline, fresh, data, *criterion, settings, control=arm == "control")
        found.network.save(file, self.network)
        return {"baseline_ber": tolerated, "kept_epoch": found.kept_epoch, "history": [vars(e) for e in found.history]}

    def _tolerated(
        self, network: ApproximateNetwork, memory_at: MemoryAt, split: Split, clean: float, start: float, highest: float
    ) -> float:
        sampling = Sampling(DRAWS, BATCH, derive_seed(self.seed, "boost study"))
        return coarse(
            network, memory_at, split, TARGET_DROP, clean, sampling, start_ber=start, highest_ber=highest, ratio=RATIO
        ).ber

    def _trial(self, network: ApproximateNetwork) -> Trial:
        """The network in the rows of its module, stored as it comes."""
        rows = Trial(network, None).rows
        return Trial(network, self._module(rows))

    def _module(self, rows: int) -> ModuleMaps:
        return ModuleMaps(VENDOR, self.seed, self.folder / "scans" / f"{rows} rows", rows)

    def _fresh(self) -> MemoryAt:
        """Memories whose every read meets another map of the error model of this seed's module."""
        return stages.model_memory(self._module(FITTED_ROWS).fitted(0), fresh_map=True)

    def _name(self, arm: str) -> str:
        return f"{self.network}-{self.precision}-{self.seed}-{arm}"

    def _key(self, arm: str) -> str:
        """All that an arm's network depends on, besides the code."""
        settings = (TARGET_DROP, VENDOR, TRAIN_IMAGES, DRAWS, BATCH, RATIO, FITTED_ROWS)
        retraining = "" if arm == "baseline" else default_boosting(self.precision)
        return f"{settings} {FLOAT_TRAINING} {QUANTISED_TRAINING} {retraining}"


FITTED_ROWS = 104  # of the module that the error model is fitted to


def study_data() -> Dataset:
    """What the study's networks are trained and tested on."""
    return fashion_mnist(TRAIN_IMAGES)


def _plain(trial: Trial) -> Callable[[float, int], ApproximateMemory]:
    return lambda ber, seed: trial.memory("plain", ber, seed)


# ---- results ---------------------------------------------------------------------------------------------------------


def _rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each network, precision and memory whose three arms are there, with the best of them marked last."""
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for result in results:
        group = groups.setdefault((result["network"], result["precision"]), {})
        group.setdefault(result["seed"], {})[result["arm"]] = result
    rows = []
    for (network, precision), by_seed in groups.items():
        whole = {seed: arms for seed, arms in by_seed.items() if len(arms) == len(ARMS)}
        for memory in MEMORIES:
            tolerant = {s: arms for s, arms in whole.items() if all(arms[arm]["ber"][memory] for arm in ARMS)}
            if tolerant:  # else no rate that was tried is tolerated: no ratio
                rows.append(_row(network, precision, memory, tolerant))
    return rows + [_best(rows, memory) for memory in MEMORIES if any(row["memory"] == memory for row in rows)]


def _row(network: str, precision: str, memory: str, by_seed: dict[int, dict[str, Any]]) -> dict[str, Any]:
    bers = {arm: [arms[arm]["ber"][memory] for arms in by_seed.values()] for arm in ARMS}
    figure, low, high = mean_ratio([a / b for a, b in zip(bers["boosted"], bers["baseline"], strict=True)])
    control, *control_interval = mean_ratio([a / b for a, b in zip(bers["control"], bers["baseline"], strict=True)])
    return {
        "network": network,
        "precision": precision,
        "memory": memory,
        "figure": figure,
        "interval": [low, high],
        "control": control,
        "control_interval": control_interval,
        "ber": bers,
        "clean_accuracy": {arm: [arms[arm]["clean_accuracy"] for arms in by_seed.values()] for arm in ARMS},
        "seeds": sorted(by_seed),
        "goal": GOAL,
        "met": None if len(by_seed) < len(SEEDS) else figure >= GOAL,
    }


def _best(rows: list[dict[str, Any]], memory: str) -> dict[str, Any]:
    """The best row of a memory again, against the goal for the best."""
    best = max((row for row in rows if row["memory"] == memory), key=lambda row: float(row["figure"]))
    return best | {
        "best": True,
        "goal": BEST_GOAL,
        "met": None if best["met"] is None else best["figure"] >= BEST_GOAL,
    }


def _show(rows: list[dict[str, Any]]) -> None:
    shown = [
        [
            f"{'best: ' if row.get('best') else ''}{row['network']}, {row['precision']}, {row['memory']}",
            *(f"{np.mean(row['ber'][arm]):.1e}" for arm in ARMS),
            *(f"{row['figure']:.1f}x", "{:.1f} .. {:.1f}".format(*row["interval"])),
            f"{row['control']:.1f}x",
            *(f"{row['goal']:g}x", {None: "", True: "yes", False: "NO"}[row["met"]]),
        ]
        for row in rows
    ]
    columns = ["network, errors", *ARMS, "boosted / baseline", "95 %", "control / baseline", "goal", "met"]
    table("tolerable BER", columns, shown)


def _plot(rows: list[dict[str, Any]]) -> Figure:
    shown = [row for row in rows if not row.get("best")]
    figure = Figure(figsize=(8, 1.4 + 0.45 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(shown):
        for figure_key, interval_key, colour, shift in (
            ("figure", "interval", "#0072B2", -0.17),
            ("control", "control_interval", "#999999", 0.17),
        ):
            label = {"figure": "boosted", "control": "control, without errors"}[figure_key] if place == 0 else None
            axes.barh(place + shift, row[figure_key], color=colour, height=0.32, label=label)
            axes.plot(row[interval_key], [place + shift] * 2, color="black", lw=1)
    axes.axvline(GOAL, color="#D55E00", lw=1, label="goal")
    axes.axvline(BEST_GOAL, color="#D55E00", lw=1, ls="--", label="goal for the best")
    axes.set(xscale="log", xlabel="tolerable BER over that of the unboosted network")
    axes.set_yticks(range(len(shown)), [f"{row['network']}, {row['precision']}, {row['memory']}" for row in shown])
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure
