"""`eden study boost`: how much more BER a boosted network tolerates, beside the same retraining without errors."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from scipy import stats

from eden.approximate import ApproximateNetwork
from eden.boosting import FLOAT_BOOSTING, INTEGER_BOOSTING, Boosting
from eden.boosting import boost as boost_network
from eden.checkpoint import Checkpoint
from eden.datasets import Dataset, Split, fashion_mnist
from eden.memory import ApproximateMemory, PerTensorMemory, ReliableMemory
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.tolerance import AccuracyMeter, CoarseTolerance, MemoryAt, Sampling, coarse
from eden.training import Training, train_baseline
from host.cli import stages
from host.cli.console import console, table
from host.cli.intervals import mean_interval
from host.cli.placement_study import BATCH, ModuleMaps, Trial, mean_ratio, rows_of
from host.cli.tasks import Scheduler, Workers, kept_network, kept_result, rows_of_tasks
from profiles.errors import PlanError

FOLDER = Path("build/study")
NETWORKS = ("lenet", "resnet8")
SEEDS = (1, 2, 3)
FRESH, OWN = "fresh maps", "the DIMM's own map"
ABLATED = "lenet"
START_BER = 3e-4  # where searches for what baselines tolerate start
START_BER_RETRAINED = 16 * START_BER  # what others do: two steps further on the same grid of rates
GOAL, BEST_GOAL = 5.0, 10.0
TARGET_DROP = 0.01
VENDOR = "B"
TEST_SPLIT = 10_000
TRAIN_IMAGES = 20_000
VALIDATION_IMAGES = 10_000  # on 2,000, paired luck of 0.4 points decides whether an epoch keeps the clean accuracy
TEST_IMAGES = 30_000  # on 10,000, whose network is lucky counts for 0.2 points
SEARCH_DRAWS, TEST_DRAWS = 1, 1  # of the errors, on validation and on test images
RATIO = 1.2  # of the bracket that a tolerated rate is found in
FITTED_ROWS = 104  # of the module that the error model is fitted to
FOR_RESNET = {
    "training": Training(12, 1e-3, batch=BATCH, shift_pixels=1),
    "weight_limit": 2.0,
    "ifm_quantile": 0.99,
}
BOOSTING = {
    ("lenet", True): replace(INTEGER_BOOSTING, training=Training(24, 3e-3, batch=BATCH, shift_pixels=1), highest=6.0),
    ("lenet", False): replace(FLOAT_BOOSTING, training=Training(16, 3e-3, batch=BATCH, shift_pixels=1), highest=6.0),
    ("resnet8", True): replace(INTEGER_BOOSTING, highest=5.0, **FOR_RESNET),  # type: ignore[arg-type]
    ("resnet8", False): replace(FLOAT_BOOSTING, highest=8.0, **FOR_RESNET),  # type: ignore[arg-type]
}  # by network, and whether the precision is an integer
FLOAT_TRAINING, QUANTISED_TRAINING = Training(12, 4e-3, shift_pixels=1), Training(2, 5e-4, shift_pixels=1)


def boost(
    out: Annotated[Path, typer.Option(help="Folder for boost.json, boost.png and what is kept.")] = FOLDER,
    network: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be repeated. Default: lenet and resnet8.")
    ] = None,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="Only this one; may be repeated. Default: int8 and fp32.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Networks and modules to repeat all with.")] = len(SEEDS),
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Tolerable BER of boosted networks over that of the unboosted, on Fashion-MNIST, bounding on in both.

    Criterion: the lower 95 % bound of the accuracy is at most 1 % below the unboosted network's clean accuracy, on the
    test split and training images left over, 30,000 that nothing was chosen with. Each seed is another network and
    another module of vendor B. On fresh maps of the Error Model 0 fitted to the module, networks are boosted with such
    maps; on the module's own map, as scanned at falling VDD, with that map, its reads drawn anew. A control is
    retrained alike, without errors. Ablations (of LeNet) leave ranges as training makes them, signs unguarded, or start
    at the highest rate, at int8, and leave FP32 as it is; and it is measured what errors cost in one field of its
    numbers, or in one tensor, alone. Finished tasks are kept, boost.json holds what they say so far: stopped and
    started again, it goes on. Goals count as met or missed from three seeds on.
    """
    stages.use_one_thread()
    tasks = list(_tasks(out, network or list(NETWORKS), precision or [Precision.INT8, Precision.FP32], seeds))
    rows = rows_of_tasks("boost", tasks, _rows, out, workers, scheduler, target_drop=TARGET_DROP)
    _plot(rows).savefig(out / "boost.png", dpi=110)
    _show(rows)
    console.print(str(out / "boost.json"))


@dataclass(frozen=True)
class Arm:
    """How a network is retrained from the baseline.

    Attributes:
        errors: those it is trained with, as `Task._memory_at` names them, or None: it is a control.
        memories: where its tolerance is measured.
        settings: what differs from `BOOSTING`.
        precision: of an ablation, the one that it is measured at.
    """

    errors: str | None
    memories: tuple[str, ...] = (FRESH,)
    settings: Mapping[str, float | bool] = field(default_factory=dict)
    precision: Precision = Precision.INT8

    def boosting(self, network: str, precision: Precision) -> Boosting:
        return replace(BOOSTING[network, precision.is_integer], **self.settings)  # type: ignore[arg-type]


LEFT = {"weight_limit": math.inf, "ifm_quantile": 1.0}  # ranges as training makes them
ARMS = {"control": Arm(None, (FRESH, OWN)), "boosted": Arm(FRESH), "boosted on its map": Arm(OWN, (OWN,))}
ABLATIONS = {
    "boosted, ranges left": Arm(FRESH, settings=LEFT),
    "boosted, signs unguarded": Arm(FRESH, settings={"guarded_signs": False}),
    "boosted without curriculum": Arm(FRESH, settings={"ramp": 0.0}),
    "boosted, as FP32 is": Arm(FRESH, settings={"guarded_signs": False}, precision=Precision.FP32),
}
BOOSTED_FOR = {FRESH: "boosted", OWN: "boosted on its map"}
LOSSES = "losses"
COMPARED = ("baseline", "control", "boosted")  # whose losses are
LOSS_BER, LOSS_IMAGES, LOSS_DRAWS = 3e-3, 2000, 3
FIELDS = {
    Precision.FP32: {
        "sign": 0x8000_0000,
        "exponent": 0x7F80_0000,
        "mantissa's first three bits": 0x0070_0000,
        "mantissa's fourth bit": 0x0008_0000,
        "lower bits": 0x0007_FFFF,
    },
    Precision.INT8: {"sign": 0x80, "highest bit": 0x40, "next bit": 0x20, "lower bits": 0x1F},
}  # bits of a stored number


def _tasks(out: Path, networks: list[str], precisions: list[Precision], seeds: int) -> Iterator["Task | LossTask"]:
    for network in networks:
        if network not in NETWORKS:
            raise PlanError(f"the study has no network {network!r}; choose from {', '.join(NETWORKS)}")
    # Neighbours have nothing to make in common: a task that finds what it needs in the making waits for it, and its
    # processor with it. Integers start from what FP32 has learnt.
    in_order = sorted(precisions, key=lambda precision: precision.is_integer)
    every = list(itertools.product(in_order, range(1, seeds + 1), networks))
    for arm in ("baseline", *ARMS, *ABLATIONS):
        for precision, seed, network in every:
            if arm not in ABLATIONS or (network, precision) == (ABLATED, ABLATIONS[arm].precision):
                yield Task(out, network, precision, seed, arm)
    for precision, seed, network in every:
        if network == ABLATED and precision in FIELDS:
            yield LossTask(out, network, precision, seed)


@dataclass(frozen=True)
class Task:
    """One arm: a network of one precision and seed, its training, and what it tolerates.

    Attributes:
        out: the study's folder.
        network, precision, seed: the seed is that of network, module and errors.
        arm: "baseline", or one of `ARMS` or `ABLATIONS`: those start from the baseline, which is trained if its task
            was not run.
    """

    out: Path
    network: str
    precision: Precision
    seed: int
    arm: str

    @property
    def folder(self) -> Path:
        return self.out / "boost"

    @property
    def file(self) -> Path:
        """See `host.cli.tasks.Task`."""
        return self.folder / f"{self._name(self.arm)}.json"

    @property
    def key(self) -> str:
        """See `host.cli.tasks.Task`."""
        return f"{self._key(self.arm)} {TEST_DRAWS}"

    def measured(self) -> dict[str, Any]:
        """Rates that the arm's network tolerates, by where they are measured."""
        network, test, clean = self._trained(self.arm), study_data().test, self._baseline_clean("test")
        memories = (FRESH, OWN) if self.arm == "baseline" else _arm(self.arm).memories
        start = START_BER if self.arm == "baseline" else START_BER_RETRAINED
        found = {memory: self._tolerated(network, memory, test, clean, TEST_DRAWS, start) for memory in memories}
        return {
            "network": self.network,
            "precision": self.precision.value,
            "seed": self.seed,
            "arm": self.arm,
            "baseline_accuracy": clean,
            "clean_accuracy": found[memories[0]].clean,
            "ber": {memory: tolerance.ber for memory, tolerance in found.items()},
        }

    def _baseline_clean(self, split: Literal["validation", "test"]) -> float:
        """What the baseline has without errors."""

        def accuracy(baseline: ApproximateNetwork) -> float:
            return AccuracyMeter(baseline, getattr(study_data(), split), Sampling(1, BATCH)).clean

        return self._of_baseline(f"clean {split}", accuracy)

    def _baseline_ber(self, errors: str) -> float:
        """What the baseline tolerates on validation images."""
        clean = self._baseline_clean("validation")

        def tolerated(baseline: ApproximateNetwork) -> float:
            return self._tolerated(baseline, errors, study_data().validation, clean, SEARCH_DRAWS).ber

        return self._of_baseline(f"for {BOOSTED_FOR[errors]}", tolerated)

    def _of_baseline(self, what: str, measured: Callable[[ApproximateNetwork], float]) -> float:
        """A figure that several arms need of their baseline: as it is kept, or measured now."""
        file = self.folder / f"{self._name(f'baseline {what}')}.json"
        made = kept_result(file, self._key("baseline"), lambda: {"figure": measured(self._trained("baseline"))})
        return float(made["figure"])

    def _trained(self, arm: str) -> ApproximateNetwork:
        """The network of an arm: as kept, or trained now, from where it was stopped."""
        file = self.folder / f"{self._name(arm)}.safetensors"
        checkpoint = Checkpoint(self.folder / f".{self._name(arm)}.checkpoint", self._key(arm))
        network = kept_network(file, self.network, self._key(arm), lambda: self._train(arm, checkpoint))
        checkpoint.remove()
        return network

    def _train(self, arm: str, checkpoint: Checkpoint) -> ApproximateNetwork:
        """The network of an arm; what was chosen on the validation split, and how it went, is kept beside it."""
        data = study_data()
        if arm == "baseline":
            return self._train_baseline()
        baseline, how = self._trained("baseline"), _arm(arm)
        errors = how.errors or FRESH
        tolerated = self._baseline_ber(errors)
        found = boost_network(
            baseline,
            self._memory_at(errors, baseline),
            data,
            *(tolerated, TARGET_DROP, self._baseline_clean("validation"), self.seed),
            how.boosting(self.network, self.precision),
            control=how.errors is None,
            checkpoint=checkpoint,
        )
        course = {"kept_epoch": found.kept_epoch, "history": [vars(epoch) for epoch in found.history]}
        notes = self.folder / f"{self._name(arm)}.training.json"
        stages.keep_results(notes, self._key(arm), {"baseline_ber": tolerated, **course})
        return found.network

    def _train_baseline(self) -> ApproximateNetwork:
        """As its recipe does; FP32's baseline has been trained in float for every precision."""
        fp32 = self.precision is Precision.FP32
        return train_baseline(
            *(self.network, self.precision, study_data(), self.seed, FLOAT_TRAINING, QUANTISED_TRAINING),
            trained_in_float=None if fp32 else replace(self, precision=Precision.FP32)._trained("baseline").module,
        )

    def _tolerated(
        self,
        network: ApproximateNetwork,
        memory: str,
        split: Split,
        clean: float,
        draws: int,
        start_ber: float = START_BER,
    ) -> CoarseTolerance:
        """What the network tolerates; of a module, the bit error rate of the rows it lies in."""
        sampling = Sampling(draws, BATCH, derive_seed(self.seed, "boost study"))
        trial = self._trial(network)
        found = coarse(
            *(network, self._memory_at(memory, network), split, TARGET_DROP, clean, sampling),
            start_ber=start_ber,
            highest_ber=trial.maps.highest_ber,
            ratio=RATIO,
        )
        return replace(found, ber=trial.measured_ber(found.ber, self.seed)) if memory == OWN else found

    def _memory_at(self, errors: str, network: ApproximateNetwork) -> MemoryAt:
        """Memories of any rate with these errors: fresh maps, or the module's rows as scanned."""
        if errors == OWN:
            trial = self._trial(network)
            return lambda ber, seed: trial.memory("plain", ber, seed)
        return stages.model_memory(self._module(FITTED_ROWS).fitted(0), fresh_map=True)

    def _trial(self, network: ApproximateNetwork) -> Trial:
        """The network in the rows of its module, stored as it comes."""
        return Trial(network, self._module(rows_of(network)), study_data().validation)

    def _module(self, rows: int) -> ModuleMaps:
        return ModuleMaps(VENDOR, self.seed, self.folder / "scans" / f"{rows} rows", rows)

    def _name(self, arm: str) -> str:
        return f"{self.network}-{self.precision}-{self.seed}-{arm}".replace(", ", "-").replace(" ", "-")

    def _key(self, arm: str) -> str:
        """All that an arm's network depends on, besides the code."""
        images = (TRAIN_IMAGES, VALIDATION_IMAGES, TEST_IMAGES)
        settings = (TARGET_DROP, VENDOR, *images, SEARCH_DRAWS, BATCH, START_BER, RATIO, FITTED_ROWS)
        retraining = "" if arm == "baseline" else _arm(arm).boosting(self.network, self.precision)
        return f"{settings} {FLOAT_TRAINING} {QUANTISED_TRAINING} {retraining}"


@dataclass(frozen=True)
class LossTask:
    """Where a network loses its accuracy: with errors in one field of its numbers alone, or in one tensor alone.

    What boosting can gain is limited by where errors cannot be bounded, and by tensors too small to be redundant.
    """

    out: Path
    network: str
    precision: Precision
    seed: int

    @property
    def file(self) -> Path:
        """See `host.cli.tasks.Task`."""
        return self._of("baseline").file.with_name(f"{self.network}-{self.precision}-{self.seed}-{LOSSES}.json")

    @property
    def key(self) -> str:
        """See `host.cli.tasks.Task`."""
        return (
            f"{[self._of(arm).key for arm in COMPARED]} {LOSS_BER} {LOSS_IMAGES} {LOSS_DRAWS} {FIELDS[self.precision]}"
        )

    def measured(self) -> dict[str, Any]:
        """Share of images lost, against the same network without errors, by arm and by what errs."""
        return {
            **{"network": self.network, "precision": self.precision.value, "seed": self.seed, "arm": LOSSES},
            "lost": {arm: self._losses(arm) for arm in COMPARED},
        }

    def _of(self, arm: str) -> "Task":
        return Task(self.out, self.network, self.precision, self.seed, arm)

    def _losses(self, arm: str) -> dict[str, float]:
        task = self._of(arm)
        network = task._trained(arm)
        memory_at, names = task._memory_at(FRESH, network), [tensor.name for tensor in network.tensors()]
        sampling = Sampling(LOSS_DRAWS, BATCH, derive_seed(self.seed, LOSSES))
        meter = AccuracyMeter(network, study_data().test.first(LOSS_IMAGES), sampling)

        def lost(memory_of: Callable[[int], ApproximateMemory]) -> float:
            return meter.clean - meter.at(LOSS_BER, memory_of).accuracy

        def in_field(mask: int) -> Callable[[int], ApproximateMemory]:
            return lambda seed: FieldMemory(memory_at(LOSS_BER, seed), mask, self.precision)

        def in_tensor(name: str) -> Callable[[int], ApproximateMemory]:
            others = dict.fromkeys(names, ReliableMemory())
            return lambda seed: PerTensorMemory({**others, name: memory_at(LOSS_BER, seed)})

        return {
            "all": lost(lambda seed: memory_at(LOSS_BER, seed)),
            **{field: lost(in_field(mask)) for field, mask in FIELDS[self.precision].items()},
            **{name: lost(in_tensor(name)) for name in names},
        }


class FieldMemory:
    """Lets errors of ``memory`` through in some bits of each stored number alone: those of ``mask``."""

    def __init__(self, memory: ApproximateMemory, mask: int, precision: Precision) -> None:
        self._memory, self._stored = memory, dict[str, torch.Tensor]()
        in_bytes = mask.to_bytes(precision.bits // 8, "little")
        self._mask = torch.from_numpy(np.frombuffer(in_bytes, np.uint8).copy())

    def store(self, tensor: str, data: torch.Tensor) -> None:
        """See `ApproximateMemory.store`."""
        self._stored[tensor] = data
        self._memory.store(tensor, data)

    def load(self, tensor: str) -> torch.Tensor:
        """See `ApproximateMemory.load`."""
        stored = self._stored[tensor]
        wrong = self._memory.load(tensor).to(stored.device) ^ stored
        return stored ^ (wrong.view(-1, len(self._mask)) & self._mask.to(stored.device)).view(-1)

    def load_all(self, tensors: Sequence[str]) -> list[torch.Tensor]:
        """See `ApproximateMemory.load_all`."""
        return [self.load(tensor) for tensor in tensors]


def _arm(name: str) -> Arm:
    return (ARMS | ABLATIONS)[name]


@lru_cache(maxsize=1)
def study_data() -> Dataset:
    """What the study's networks are trained and tested on: the test split, and training images left over."""
    left_over = TEST_IMAGES - TEST_SPLIT
    data = fashion_mnist(TRAIN_IMAGES + left_over, VALIDATION_IMAGES)
    train, test = data.train, data.test
    return Dataset(
        data.name,
        train.first(TRAIN_IMAGES),
        data.validation,
        Split(torch.cat([test.images, train.images[-left_over:]]), torch.cat([test.labels, train.labels[-left_over:]])),
    )


# ---- results ---------------------------------------------------------------------------------------------------------


def _rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each network, precision, memory and arm that boosts, the best of each memory again, then ablations."""
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for result in results:
        group = groups.setdefault((result["network"], result["precision"]), {})
        group.setdefault(result["seed"], {})[result["arm"]] = result
    rows, ablations = [], []
    for (network, precision), by_seed in groups.items():
        for memory, arm in BOOSTED_FOR.items():
            rows += _row(network, precision, memory, arm, by_seed)
        for arm in ABLATIONS:
            ablations += _row(network, precision, FRESH, arm, by_seed)
    best = [_best(rows, memory) for memory in BOOSTED_FOR if any(row["memory"] == memory for row in rows)]
    losses = [row for group in groups for row in _loss_rows(*group, results)]
    return rows + best + [row | {"ablation": True, "goal": None, "met": None} for row in ablations + losses]


def _loss_rows(network: str, precision: str, results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for all of a network, for each field of its numbers and for each of its tensors: what errors cost."""
    about = {"network": network, "precision": precision, "arm": LOSSES}
    found = [result for result in results if about.items() <= result.items()]
    for part in found[0]["lost"]["boosted"] if found else ():
        lost = {arm: [result["lost"][arm][part] for result in found] for arm in COMPARED}
        figure, low, high = mean_interval(lost["boosted"])
        seeds = [result["seed"] for result in found]
        yield {**about, "memory": FRESH, "errors_in": part, "at_ber": LOSS_BER, "lost": lost, "seeds": seeds} | {
            "figure": figure,
            "interval": [low, high],
        }


def _row(
    network: str, precision: str, memory: str, arm: str, by_seed: dict[int, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The row of an arm over the seeds that have it; none where no seed has, or no rate that was tried is tolerated."""
    compared = ("baseline", "control", arm)
    tolerant = {
        seed: arms
        for seed, arms in sorted(by_seed.items())
        if all(name in arms and arms[name]["ber"][memory] for name in compared)
    }
    if not tolerant:
        return []
    bers = {name: [arms[name]["ber"][memory] for arms in tolerant.values()] for name in compared}
    figure, low, high = mean_ratio([a / b for a, b in zip(bers[arm], bers["baseline"], strict=True)])
    control, *control_interval = mean_ratio([a / b for a, b in zip(bers["control"], bers["baseline"], strict=True)])
    return [
        {
            "network": network,
            "precision": precision,
            "memory": memory,
            "arm": arm,
            "figure": figure,
            "interval": [low, high],
            "control": control,
            "control_interval": control_interval,
            "ber": bers,
            "clean_accuracy": {name: [arms[name]["clean_accuracy"] for arms in tolerant.values()] for name in compared},
            "seeds": list(tolerant),
            "goal": GOAL,
            "met": None if len(tolerant) < len(SEEDS) else figure >= GOAL,
        }
    ]


def _best(rows: list[dict[str, Any]], memory: str) -> dict[str, Any]:
    """The best row of a memory again, against the goal for the best."""
    best = max((row for row in rows if row["memory"] == memory), key=lambda row: float(row["figure"]))
    return best | {
        "best": True,
        "goal": BEST_GOAL,
        "met": None if best["met"] is None else best["figure"] >= BEST_GOAL,
    }


def _show(rows: list[dict[str, Any]]) -> None:
    ratios, losses = _parted(rows)
    shown = [
        [
            f"{'best: ' if row.get('best') else ''}{_label(row)}",
            *(f"{stats.gmean(row['ber'][arm]):.1e}" for arm in ("baseline", row["arm"])),
            *(f"{row['figure']:.1f}x", "{:.1f} .. {:.1f}".format(*row["interval"])),
            *(f"{row['control']:.1f}x", "{:.1f} .. {:.1f}".format(*row["control_interval"])),
            *("" if row["goal"] is None else f"{row['goal']:g}x", {None: "", True: "yes", False: "NO"}[row["met"]]),
        ]
        for row in ratios
    ]
    columns = ["network, errors", "baseline", "boosted", "ratio", "95 %", "control", "95 %", "goal", "met"]
    table("tolerable BER", columns, shown)
    if losses:
        lost = [
            [
                f"{row['network']}, {row['precision']}, {row['errors_in']}",
                *(f"{100 * np.mean(row['lost'][arm]):.2f}" for arm in COMPARED),
            ]
            for row in losses
        ]
        table(f"points lost at a BER of {LOSS_BER:g} in these bits alone", ["errors in", *COMPARED], lost)


def _label(row: dict[str, Any]) -> str:
    return f"{row['network']}, {row['precision']}, {row['arm'] if row.get('ablation') else row['memory']}"


def _parted(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of tolerated rates, and of losses."""
    return [row for row in rows if row["arm"] != LOSSES], [row for row in rows if row["arm"] == LOSSES]


def _plot(rows: list[dict[str, Any]]) -> Figure:
    shown = [row for row in _parted(rows)[0] if not row.get("best")]
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
    axes.set_yticks(range(len(shown)), [_label(row) for row in shown])
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure
