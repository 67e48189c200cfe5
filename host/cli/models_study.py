"""`eden study models`: retraining with an error model that fits the device, or not, and with a curriculum, or not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from eden.approximate import ApproximateNetwork
from eden.boosting import INTEGER_BOOSTING, Boosting, boost
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.tolerance import AccuracyMeter, MemoryAt, Sampling, coarse
from eden.training import Training, train_baseline
from host.cli import stages
from host.cli.boost_study import (
    FLOAT_TRAINING,
    QUANTISED_TRAINING,
    TEST_IMAGES,
    TRAIN_IMAGES,
    VALIDATION_IMAGES,
    study_data,
)
from host.cli.console import console, table
from host.cli.intervals import mean_interval
from host.cli.placement_study import BATCH, ModuleMaps, Trial, mean_ratio
from host.cli.tasks import Scheduler, Workers, kept_network, rows_of_tasks
from profiles.error_models import ErrorModel

FOLDER = Path("build/study")
NETWORK, PRECISION = "lenet", Precision.INT8
SEEDS = 3
VENDOR, FOREIGN_VENDOR = "C", "A"  # cells that fail when they store a 0, mostly; and when they store either
EDENS = (0, 1, 2, 3)  # numbers of EDEN's own error models
ROWS = 104  # scanned of each module
RETRAINING = replace(INTEGER_BOOSTING, training=Training(10, 3e-3, batch=BATCH, shift_pixels=1), highest=6.0)
TARGET_DROP, DRAWS, RATIO = 0.1, 1, 1.2  # at a loss of 1 % the errors of retraining hardly count: see the control
START_BER, HIGHEST_BER = 2e-4, 0.1
RATES = tuple(2.5e-4 * 2**step for step in range(8))  # of the module's supplies that accuracies are measured at
SHOWN_DROPS = (0.01, 0.1)  # losses that tolerated rates are read off the curve at


class Errors(Enum):
    """Which of EDEN's error models a network is retrained with."""

    BEST = auto()  # of those fitted to the module, by BIC
    WORST = auto()
    FOREIGN = auto()  # the best one of another vendor's module


@dataclass(frozen=True)
class Arm:
    """How a network is retrained.

    Attributes:
        errors: with which; None is without.
        settings: what differs from `RETRAINING`.
        highest_ber: that it is retrained at; None is `RETRAINING`'s multiple of what the baseline tolerates.
    """

    errors: Errors | None
    settings: Mapping[str, float | bool] = field(default_factory=dict)
    highest_ber: float | None = None

    @property
    def boosting(self) -> Boosting:
        return replace(RETRAINING, **self.settings)  # type: ignore[arg-type]

    def boosting_from(self, tolerated_ber: float) -> Boosting:
        """`boosting`, up to the rate that it is to reach."""
        settings = self.boosting
        return (
            settings
            if self.highest_ber is None or not tolerated_ber
            else replace(settings, highest=self.highest_ber / tolerated_ber)
        )


AS_EDEN: Mapping[str, float | bool] = {
    "weight_limit": math.inf,
    "ifm_quantile": 1.0,
    "guarded_signs": False,
    "teacher": 0.0,
}  # ranges as training makes them, integers as they are, labels alone
AT_ONCE = {"ramp": 0.0}
BASELINE, GOOD, BAD, FOREIGN, ABRUPT = "baseline", "good fit", "bad fit", "another vendor's", "good fit, no curriculum"
CONTROL = "no errors"  # retrained alike, but without: what ranges, guarded signs and teacher are worth alone
PLAIN = {each: f"{each}, as EDEN retrains" for each in (GOOD, BAD, ABRUPT)}
MEASURED, BEYOND = RATES[-1], 2 * RATES[-1]  # the rates that arms below are retrained up to; others to some 1e-2
UP_TO = {ber: {each: f"{each}, up to {ber:.1e}" for each in (GOOD, BAD, FOREIGN, ABRUPT)} for ber in (MEASURED, BEYOND)}
ARMS = {
    GOOD: Arm(Errors.BEST),
    BAD: Arm(Errors.WORST),
    FOREIGN: Arm(Errors.FOREIGN),
    ABRUPT: Arm(Errors.BEST, AT_ONCE),
    CONTROL: Arm(None),
    PLAIN[GOOD]: Arm(Errors.BEST, AS_EDEN),
    PLAIN[BAD]: Arm(Errors.WORST, AS_EDEN),
    PLAIN[ABRUPT]: Arm(Errors.BEST, {**AS_EDEN, **AT_ONCE}),
    UP_TO[MEASURED][GOOD]: Arm(Errors.BEST, highest_ber=MEASURED),
    UP_TO[MEASURED][BAD]: Arm(Errors.WORST, highest_ber=MEASURED),
    UP_TO[MEASURED][FOREIGN]: Arm(Errors.FOREIGN, highest_ber=MEASURED),
    UP_TO[MEASURED][ABRUPT]: Arm(Errors.BEST, AT_ONCE, MEASURED),
    UP_TO[BEYOND][GOOD]: Arm(Errors.BEST, highest_ber=BEYOND),
    UP_TO[BEYOND][ABRUPT]: Arm(Errors.BEST, AT_ONCE, BEYOND),
}
COMPARED = {
    BAD: GOOD,
    FOREIGN: GOOD,
    ABRUPT: GOOD,
    CONTROL: GOOD,
    BASELINE: GOOD,
    PLAIN[BAD]: PLAIN[GOOD],
    PLAIN[ABRUPT]: PLAIN[GOOD],
    UP_TO[MEASURED][BAD]: UP_TO[MEASURED][GOOD],
    UP_TO[MEASURED][FOREIGN]: UP_TO[MEASURED][GOOD],
    UP_TO[MEASURED][ABRUPT]: UP_TO[MEASURED][GOOD],
    UP_TO[BEYOND][ABRUPT]: UP_TO[BEYOND][GOOD],
    UP_TO[MEASURED][GOOD]: GOOD,
}  # with what each is compared


def models(
    out: Annotated[Path, typer.Option(help="Folder for models.json, models.png and what is kept.")] = FOLDER,
    seeds: Annotated[int, typer.Option(min=2, help="Networks and modules to repeat all with.")] = SEEDS,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """What the error model that a network is boosted with, and the curriculum, are worth on the device itself.

    LeNet at int8 is retrained (EDEN, section 1), on Fashion-MNIST, with errors of the best of EDEN's Error Models 0-3
    as fitted to a module of vendor C, of the worst of them, of the best one of another vendor's module, and of the best
    one at once at the highest rate, without a curriculum; and, as a control, without errors. That rate is six times
    what the network tolerates before, some 1e-2. All but the control are retrained once more up to 3.2e-2, the highest
    rate measured, and the best fit, with a curriculum and without, up to 6.4e-2. Whoever retrains knows only the model:
    the tolerance to start from (a loss of 10 %: rates at which networks collapse), and the epoch that is kept, are
    found with it. What counts is then the accuracy on 30,000 test images, on the module's own cells, in the mean over
    bit error rates from 2.5e-4 to 3.2e-2, a factor of 2 apart; and the rates at which 1 and 10 % are lost against the
    network before, read off that curve. Fit and curriculum are compared once more without what boosting here adds to
    EDEN's: ranges as training makes them, integers as they are, labels alone. Each seed is another network and another
    module. Finished tasks are kept.
    """
    stages.use_one_thread()
    tasks = [Task(out, seed, arm) for seed in range(1, seeds + 1) for arm in (BASELINE, *ARMS)]
    rows = rows_of_tasks("models", tasks, _rows, out, workers, scheduler, target_drop=TARGET_DROP)
    _plot(rows).savefig(out / "models.png", dpi=110)
    _show(rows)
    console.print(str(out / "models.json"))


@dataclass(frozen=True)
class Task:
    """One way to retrain the network of one seed, and what comes of it on that seed's module.

    Attributes:
        out: the study's folder.
        seed: of network, modules and errors.
        arm: one of `ARMS`, or the baseline.
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
        return f"{self._training(self.arm)} {RATES}"

    @property
    def folder(self) -> Path:
        return self.out / "models"

    def measured(self) -> dict[str, Any]:
        """The accuracy of the arm's network on the module's own cells, at `RATES`."""
        baseline, network, test = self._trained(BASELINE), self._trained(self.arm), study_data().test
        clean = AccuracyMeter(baseline, test, Sampling(1, BATCH)).clean
        trial = Trial(network, self._module(VENDOR), study_data().validation)
        sampling = Sampling(DRAWS, BATCH, derive_seed(self.seed, "module"))

        def memory_at(ber: float, seed: int) -> Any:
            return trial.memory("plain", ber, seed)

        meter = AccuracyMeter(network, test, sampling)
        return {
            "seed": self.seed,
            "arm": self.arm,
            "model": self._model_number(),
            "baseline_accuracy": clean,
            "clean_accuracy": meter.clean,
            "at_ber": [trial.measured_ber(rate, self.seed) for rate in RATES],
            "accuracy": [
                meter.at(rate, lambda seed, rate=rate: memory_at(rate, seed)).accuracy  # type: ignore[misc]
                for rate in RATES
            ],
        }

    def _trained(self, arm: str) -> ApproximateNetwork:
        file = self.folder / f"{self._name(arm)}.safetensors"
        return kept_network(file, NETWORK, self._training(arm), lambda: self._train(arm))

    def _train(self, arm: str) -> ApproximateNetwork:
        data = study_data()
        if arm == BASELINE:
            return train_baseline(NETWORK, PRECISION, data, self.seed, FLOAT_TRAINING, QUANTISED_TRAINING)
        baseline, memory_at = self._trained(BASELINE), self._memory(arm)
        clean = AccuracyMeter(baseline, data.validation, Sampling(1, BATCH)).clean
        sampling = Sampling(DRAWS, BATCH, derive_seed(self.seed, "search"))
        criterion = (baseline, memory_at, data.validation, TARGET_DROP, clean, sampling)
        tolerated = coarse(*criterion, start_ber=START_BER, highest_ber=HIGHEST_BER, ratio=RATIO).ber
        start, how = (tolerated, TARGET_DROP, clean, self.seed), ARMS[arm].boosting_from(tolerated)
        return boost(baseline, memory_at, data, *start, how, control=ARMS[arm].errors is None).network

    def _memory(self, arm: str) -> MemoryAt:
        """Fresh maps of the arm's error model; a control's epoch is chosen by the best one."""
        return stages.model_memory(self._model(ARMS[arm].errors or Errors.BEST), fresh_map=True)

    def _model(self, errors: Errors) -> ErrorModel:
        """That of EDEN's with the smallest or the largest BIC."""
        fits = self._module(FOREIGN_VENDOR if errors is Errors.FOREIGN else VENDOR).report().fits
        best_first = sorted((fits[number] for number in EDENS if number in fits), key=lambda found: found.bic)
        return best_first[-1 if errors is Errors.WORST else 0].model

    def _model_number(self) -> int | None:
        errors = None if self.arm == BASELINE else ARMS[self.arm].errors
        return None if errors is None else self._model(errors).number

    def _module(self, vendor: str) -> ModuleMaps:
        return ModuleMaps(vendor, self.seed, self.folder / "scans", ROWS)

    def _name(self, arm: str) -> str:
        return f"{self.seed}-{arm}".replace(",", "").replace("'", "").replace(" ", "-")

    def _training(self, arm: str) -> str:
        """All that an arm's network depends on."""
        images = (TRAIN_IMAGES, VALIDATION_IMAGES, TEST_IMAGES)
        settings = (NETWORK, PRECISION, VENDOR, FOREIGN_VENDOR, ROWS, TARGET_DROP, *images, DRAWS, RATIO, BATCH)
        searches = (START_BER, HIGHEST_BER)
        retraining = "" if arm == BASELINE else f"{ARMS[arm].boosting}{ARMS[arm].highest_ber or ''}"
        return f"{settings} {searches} {FLOAT_TRAINING} {QUANTISED_TRAINING} {retraining}"


# ---- results ---------------------------------------------------------------------------------------------------------


def _rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each arm that the good fit is compared with: by how much it is more accurate, over seeds."""
    by_seed: dict[int, dict[str, dict[str, Any]]] = {}
    for result in results:
        by_seed.setdefault(result["seed"], {})[result["arm"]] = result
    rows = []
    for less, more in COMPARED.items():
        pairs = [(arms[more], arms[less]) for arms in by_seed.values() if more in arms and less in arms]
        if pairs:
            rows.append(_row(more, less, pairs))
    return rows


def _row(more: str, less: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    ablation = less in (CONTROL, UP_TO[MEASURED][GOOD])
    gains = [np.subtract(a["accuracy"], b["accuracy"]) for a, b in pairs]
    figure, low, high = mean_interval([float(gain.mean()) for gain in gains])
    return {
        "network": NETWORK,
        "precision": PRECISION.value,
        "compared": f"{more} over {less}",
        "figure": figure,
        "interval": [low, high],
        "at_ber": np.mean([a["at_ber"] for a, _ in pairs], axis=0).tolist(),
        "accuracy_gained": [list(mean_interval(list(gained))) for gained in zip(*gains, strict=True)],
        "tolerated": {f"{drop:g}": _tolerated_ratio(pairs, drop) for drop in SHOWN_DROPS},
        "models": {more: [a["model"] for a, _ in pairs], less: [b["model"] for _, b in pairs]},
        "clean_accuracy": {
            more: [a["clean_accuracy"] for a, _ in pairs],
            less: [b["clean_accuracy"] for _, b in pairs],
        },
        "seeds": [a["seed"] for a, _ in pairs],
        "ablation": ablation,
        "goal": None if ablation else 0.0,
        "met": None if ablation or len(pairs) < SEEDS else low > 0,
    }


def _tolerated_ratio(pairs: list[tuple[dict[str, Any], dict[str, Any]]], drop: float) -> list[float] | None:
    """Ratio of tolerated rates with its interval over seeds; None where a curve does not cross the loss of ``drop``."""
    tolerated = [(_tolerated(more, drop), _tolerated(less, drop)) for more, less in pairs]
    ratios = [more / less for more, less in tolerated if more and less]
    return list(mean_ratio(ratios)) if len(ratios) == len(pairs) else None


def _tolerated(result: dict[str, Any], drop: float) -> float | None:
    """The rate at which an arm's accuracy has fallen by ``drop`` below the baseline's, between those measured."""
    target = result["baseline_accuracy"] - drop
    lost = np.flatnonzero(np.array(result["accuracy"]) < target)
    if not lost.size or not lost[0]:
        return None
    around = [lost[0], lost[0] - 1]  # ascending accuracy
    rates = np.log(np.array(result["at_ber"])[around])
    return float(np.exp(np.interp(target, np.array(result["accuracy"])[around], rates)))


def _show(rows: list[dict[str, Any]]) -> None:
    shown = [
        [
            row["compared"],
            f"{100 * row['figure']:+.2f}",
            " .. ".join(f"{100 * end:+.2f}" for end in row["interval"]),
            ", ".join(f"{100 * gain[0]:+.1f}" for gain in row["accuracy_gained"]),
            *("{:.2f}x ({:.2f} .. {:.2f})".format(*ratio) if ratio else "" for ratio in row["tolerated"].values()),
            {None: "", True: "yes", False: "NO"}[row["met"]],
        ]
        for row in rows
    ]
    rates = f"{RATES[0]:.1e} .. {RATES[-1]:.1e}"
    lost = [f"BER at {100 * drop:g} % lost" for drop in SHOWN_DROPS]
    columns = ["compared", "points gained", "95 %", f"at {rates}", *lost, "met"]
    table("accuracy on the module's own cells", columns, shown)


def _plot(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(rows)), layout="constrained")
    means, gains = figure.subplots(1, 2)
    for place, row in enumerate(rows):
        means.barh(place, 100 * row["figure"], color="#0072B2", height=0.6)
        means.plot([100 * end for end in row["interval"]], [place, place], color="black", lw=1)
        gained = np.array(row["accuracy_gained"]) * 100
        lines = gains.plot(row["at_ber"], gained[:, 0], "o-", ms=3, label=row["compared"])
        gains.fill_between(row["at_ber"], gained[:, 1], gained[:, 2], color=lines[0].get_color(), alpha=0.15, lw=0)
    means.set_yticks(range(len(rows)), [row["compared"] for row in rows])
    means.set_xlabel("accuracy gained in the mean over rates, points")
    means.axvline(0, color="#D55E00", lw=1)
    means.invert_yaxis()
    gains.set(xscale="log", xlabel="BER", ylabel="accuracy gained, points")
    gains.axhline(0, color="#D55E00", lw=1)
    gains.legend(frameon=False, fontsize=7)
    return figure
