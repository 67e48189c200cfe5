"""`eden study models`: retraining with an error model that fits the device, or not, and with a curriculum, or not."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from eden.approximate import ApproximateNetwork
from eden.boosting import boost, default_boosting
from eden.datasets import Dataset
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.tolerance import AccuracyMeter, MemoryAt, Sampling, coarse
from eden.training import FLOAT_TRAINING, QUANTISED_TRAINING, train_baseline
from host.cli import stages
from host.cli.console import console, table
from host.cli.intervals import mean_interval
from host.cli.placement_study import BATCH, ModuleMaps, Trial, mean_ratio
from host.cli.tasks import Scheduler, Workers, kept_network, rows_of_tasks

FOLDER = Path("build/study")
NETWORK, PRECISION = "lenet", Precision.INT8
SEEDS = 3
VENDOR, FOREIGN_VENDOR = "C", "A"  # cells that fail when they store a 0, mostly; and when they store either
EDENS = (0, 1, 2, 3)  # numbers of EDEN's own error models
ROWS = 104  # scanned of each module
TARGET_DROP, DRAWS, RATIO = 0.01, 3, 1.15
START_BER, HIGHEST_BER = 2e-4, 0.1
HARSHER = (1.0, 2.0, 4.0, 8.0)  # multiples of the baseline's tolerated rate that accuracies are measured at
BASELINE, GOOD, BAD, FOREIGN, ABRUPT = "baseline", "good fit", "bad fit", "another vendor's", "good fit, no curriculum"
CONTROL = "no errors"  # retrained alike, but without: what ranges, guarded signs and teacher are worth alone
ARMS = (BASELINE, GOOD, BAD, FOREIGN, ABRUPT, CONTROL)
COMPARED = {
    BAD: GOOD,
    FOREIGN: GOOD,
    ABRUPT: GOOD,
    CONTROL: GOOD,
    BASELINE: GOOD,
}  # which is to tolerate less than which


def models(
    out: Annotated[Path, typer.Option(help="Folder for models.json, models.png and what is kept.")] = FOLDER,
    seeds: Annotated[int, typer.Option(min=2, help="Networks and modules to repeat all with.")] = SEEDS,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """What the error model that a network is boosted with, and the curriculum, are worth on the device itself.

    LeNet at int8 is retrained (EDEN, section 1) with errors of the best of EDEN's Error Models 0-3 as fitted to a
    module of vendor C, of the worst of them, of the best one of another vendor's module, and of the best one at once at
    the highest rate, without a curriculum; and, as a control, without errors. Whoever retrains knows only the model:
    the tolerance to start from, and the epoch that is kept, are found with it. What counts is then the bit error rate
    that the network tolerates on the module's own cells, on test images, with at most 1 % lost against the network
    before; and its accuracy at harsher rates. Each seed is another network and another module. Finished tasks are kept.
    """
    stages.use_one_thread()
    tasks = [Task(out, seed, arm) for seed in range(1, seeds + 1) for arm in ARMS]
    rows = rows_of_tasks("models", tasks, _rows, out, workers, scheduler, target_drop=TARGET_DROP)
    _plot(rows).savefig(out / "models.png", dpi=110)
    _show(rows)
    console.print(str(out / "models.json"))


def study_data() -> Dataset:
    """What the study's networks are trained and tested on."""
    return stages.dataset(NETWORK)


@dataclass(frozen=True)
class Task:
    """One way to retrain the network of one seed, and what comes of it on that seed's module.

    Attributes:
        out: the study's folder.
        seed: of network, modules and errors.
        arm: one of `ARMS`.
    """

    out: Path
    seed: int
    arm: str

    @property
    def file(self) -> Path:
        """See `host.cli.tasks.Task`."""
        return self.folder / f"{self._name(self.arm)}.json"

    @property
    def key(self) -> str:
        """See `host.cli.tasks.Task`."""
        return f"{self._training(self.arm)} {HARSHER}"

    @property
    def folder(self) -> Path:
        return self.out / "models"

    def measured(self) -> dict[str, Any]:
        """What the arm's network tolerates on the module's own cells, and its accuracy there at given rates."""
        baseline, network, test = self._trained(BASELINE), self._trained(self.arm), study_data().test
        clean = AccuracyMeter(baseline, test, Sampling(1, BATCH)).clean
        trial = Trial(network, self._module(VENDOR), study_data().validation)
        sampling = Sampling(DRAWS, BATCH, derive_seed(self.seed, "module"))

        def memory_at(ber: float, seed: int) -> Any:
            return trial.memory("plain", ber, seed)

        def tolerated(of: ApproximateNetwork) -> float:
            criterion = (of, memory_at, test, TARGET_DROP, clean, sampling)
            highest = trial.maps.highest_ber
            return coarse(*criterion, start_ber=START_BER, highest_ber=highest, ratio=RATIO).ber

        meter, first = AccuracyMeter(network, test, sampling), tolerated(baseline)
        rates = [min(first * multiple, trial.maps.highest_ber) for multiple in HARSHER] if first else []
        found = first if self.arm == BASELINE else tolerated(network)
        return {
            "seed": self.seed,
            "arm": self.arm,
            "model": self._model_number(),
            "baseline_accuracy": clean,
            "clean_accuracy": meter.clean,
            "ber": trial.measured_ber(found, self.seed),
            "harsher_ber": [trial.measured_ber(rate, self.seed) for rate in rates],
            "harsher_accuracy": [
                meter.at(rate, lambda seed, rate=rate: memory_at(rate, seed)).accuracy  # type: ignore[misc]
                for rate in rates
            ],
        }

    def _trained(self, arm: str) -> ApproximateNetwork:
        file = self.folder / f"{self._name(arm)}.safetensors"
        return kept_network(file, NETWORK, self._training(arm), lambda: self._train(arm))

    def _train(self, arm: str) -> ApproximateNetwork:
        data = study_data()
        if arm == BASELINE:
            return train_baseline(NETWORK, PRECISION, data, self.seed)
        baseline, memory_at = self._trained(BASELINE), self._memory(arm)
        clean = AccuracyMeter(baseline, data.validation, Sampling(1, BATCH)).clean
        sampling = Sampling(DRAWS, BATCH, derive_seed(self.seed, "search"))
        criterion = (baseline, memory_at, data.validation, TARGET_DROP, clean, sampling)
        tolerated = coarse(*criterion, start_ber=START_BER, highest_ber=HIGHEST_BER, ratio=RATIO).ber
        how = default_boosting(PRECISION)
        if arm == ABRUPT:
            how = replace(how, ramp=0.0)
        start = (tolerated, TARGET_DROP, clean, self.seed)
        return boost(baseline, memory_at, data, *start, how, control=arm == CONTROL).network

    def _memory(self, arm: str) -> MemoryAt:
        """Fresh maps of the arm's error model."""
        fits = self._module(FOREIGN_VENDOR if arm == FOREIGN else VENDOR).report().fits
        return stages.model_memory(fits[self._number(arm)].model, fresh_map=True)

    def _number(self, arm: str) -> int:
        """Number of the error model that an arm is retrained with: that of EDEN's with the smallest or largest BIC."""
        fits = self._module(FOREIGN_VENDOR if arm == FOREIGN else VENDOR).report().fits
        best_first = sorted((number for number in EDENS if number in fits), key=lambda number: fits[number].bic)
        return best_first[-1] if arm == BAD else best_first[0]

    def _model_number(self) -> int | None:
        return None if self.arm in (BASELINE, CONTROL) else self._number(self.arm)

    def _module(self, vendor: str) -> ModuleMaps:
        return ModuleMaps(vendor, self.seed, self.folder / "scans", ROWS)

    def _name(self, arm: str) -> str:
        return f"{self.seed}-{arm}".replace(",", "").replace("'", "").replace(" ", "-")

    def _training(self, arm: str) -> str:
        """All that an arm's network depends on."""
        settings = (NETWORK, PRECISION, VENDOR, FOREIGN_VENDOR, ROWS, TARGET_DROP, DRAWS, RATIO, BATCH)
        retraining = "" if arm == BASELINE else default_boosting(PRECISION)
        return f"{settings} {FLOAT_TRAINING} {QUANTISED_TRAINING} {retraining}"


# ---- results ---------------------------------------------------------------------------------------------------------


def _rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each arm that the good fit is compared with: by how much it tolerates more, over seeds."""
    by_seed: dict[int, dict[str, dict[str, Any]]] = {}
    for result in results:
        by_seed.setdefault(result["seed"], {})[result["arm"]] = result
    rows = []
    for less, more in COMPARED.items():
        pairs = [(arms[more], arms[less]) for arms in by_seed.values() if more in arms and less in arms]
        tolerant = [(a, b) for a, b in pairs if a["ber"] and b["ber"]]  # else no rate that was tried: no ratio
        if tolerant:
            rows.append(_row(more, less, tolerant))
    return rows


def _row(more: str, less: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    figure, low, high = mean_ratio([a["ber"] / b["ber"] for a, b in pairs])
    return {
        "network": NETWORK,
        "precision": PRECISION.value,
        "compared": f"{more} over {less}",
        "figure": figure,
        "interval": [low, high],
        "ber": {more: [a["ber"] for a, _ in pairs], less: [b["ber"] for _, b in pairs]},
        "models": {more: [a["model"] for a, _ in pairs], less: [b["model"] for _, b in pairs]},
        "clean_accuracy": {
            more: [a["clean_accuracy"] for a, _ in pairs],
            less: [b["clean_accuracy"] for _, b in pairs],
        },
        "accuracy_gained": [
            list(mean_interval(gained)) for gained in zip(*(_gains(a, b) for a, b in pairs), strict=True)
        ],
        "at_multiples": list(HARSHER),
        "seeds": [a["seed"] for a, _ in pairs],
        "goal": 1.0,
        "met": None if len(pairs) < SEEDS else low > 1,
    }


def _gains(more: dict[str, Any], less: dict[str, Any]) -> list[float]:
    """By how much one arm is more accurate at each of the harsher rates."""
    return [a - b for a, b in zip(more["harsher_accuracy"], less["harsher_accuracy"], strict=True)]


def _show(rows: list[dict[str, Any]]) -> None:
    shown = [
        [
            row["compared"],
            *(f"{np.exp(np.mean(np.log(bers))):.1e}" for bers in row["ber"].values()),
            *(f"{row['figure']:.2f}x", "{:.2f} .. {:.2f}".format(*row["interval"])),
            ", ".join(f"{100 * gain[0]:+.1f}" for gain in row["accuracy_gained"]),
            {None: "", True: "yes", False: "NO"}[row["met"]],
        ]
        for row in rows
    ]
    rates = ", ".join(f"{multiple:g}" for multiple in HARSHER)
    columns = ["compared", "tolerates", "and", "ratio", "95 %", f"accuracy at {rates} x, points", "met"]
    table("tolerable BER on the module's own cells", columns, shown)


def _plot(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(rows)), layout="constrained")
    ratios, gains = figure.subplots(1, 2)
    for place, row in enumerate(rows):
        ratios.barh(place, math.log2(row["figure"]), color="#0072B2", height=0.6)
        ratios.plot([math.log2(end) for end in row["interval"]], [place, place], color="black", lw=1)
        gained = np.array(row["accuracy_gained"]) * 100
        lines = gains.plot(HARSHER, gained[:, 0], "o-", ms=3, label=row["compared"])
        gains.fill_between(HARSHER, gained[:, 1], gained[:, 2], color=lines[0].get_color(), alpha=0.15, lw=0)
    ratios.set_yticks(range(len(rows)), [row["compared"] for row in rows])
    ratios.set_xlabel("tolerable BER: doublings gained")
    ratios.axvline(0, color="#D55E00", lw=1)
    ratios.invert_yaxis()
    gains.set(xscale="log", xlabel="BER over what the baseline tolerates", ylabel="accuracy gained, points")
    gains.axhline(0, color="#D55E00", lw=1)
    gains.legend(frameon=False, fontsize=7)
    return figure
