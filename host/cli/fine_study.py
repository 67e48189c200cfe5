"""`eden study fine`: what fine mapping saves over coarse mapping, both certified."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from matplotlib.figure import Figure

from eden.approximate import ApproximateNetwork
from eden.certificate import certify_map, lump_size, paired_losses, scaled_ladder, shows_drop_below
from eden.datasets import Dataset, Split, fashion_mnist
from eden.inference import CONFIDENCE, evaluate
from eden.mapping import Cost, DramMapping, coarse_mapping, mapping_cost, weighted
from eden.memory import ApproximateMemory
from eden.optimal import optimal_mapping
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.tolerance import Sampling, coarse
from eden.tolerance import fine as fine_tolerances
from eden.training import Training, train_baseline
from host.boards import open_board
from host.chip_presets import supply_ladder
from host.cli import stages
from host.cli.console import console, table
from host.cli.intervals import mean_interval
from host.cli.modules import Modules
from host.cli.tasks import Scheduler, Workers, alone, kept_network, rows_of_tasks
from host.plan import Grid, Rows, ScanPlan
from host.rail import LIMITS
from host.scan import scan
from profiles.errors import PlanError
from profiles.fit import fit
from profiles.pattern import Pattern
from profiles.schema import OperatingPoint, WriteCondition
from profiles.storage import Profile

FOLDER = Path("build/study")
NETWORKS = ("lenet", "resnet8")
PRECISION = Precision.INT8
SEEDS = 3
VENDOR, BANKS, ROWS = "B", 8, 32
DRAM_TYPE = "DDR3L"
TRCDS_PS = (14_000, 10_000)
NOMINAL_VDD_MV = 1350
LADDER, LADDER_STEP = (1e-5, 0.05), 1.5  # bit error rates of the supplies that the module is scanned at
NOMINAL = OperatingPoint(vdd_mv=NOMINAL_VDD_MV, trcd_ps=TRCDS_PS[0])
OBJECTIVES: dict[str, Cost] = {"energy": weighted(1, 0, NOMINAL), "energy and latency": weighted(0.5, 0.5, NOMINAL)}
TARGET_DROP = 0.01
VALIDATED_DROP = 0.006  # what validation images are to show, so that test images have a chance to show the target
TRAIN_IMAGES, SEARCH_IMAGES, SHOWN_IMAGES = 20_000, 1000, 10_000
SHARES = tuple(2 ** (k / 4) for k in range(-12, 3))  # of the rates searched for: the ladder of mappings
BATCH = 10
BY_BATCH = Sampling(draws=1, batch=BATCH)  # errors set nearly as many images right as wrong: in tens they even out
FLOAT_TRAINING, QUANTISED_TRAINING = Training(8, 4e-3, shift_pixels=1), Training(1, 5e-4, shift_pixels=1)
ENOUGH = 1e-4  # proven gap at which a mapping counts as the cheapest
COARSE, FINE = "coarse", "fine"
EXACT, EACH = "one tolerance, mapped exactly", "a tolerance for each tensor, mapped exactly"
ARMS = (COARSE, FINE, EXACT, EACH)
COLOURS = ("#999999", "#0072B2", "#56B4E9", "#009E73")
ONE, EACH_TENSOR = "one", "each"  # tolerance for all tensors, tolerance for each
AT_NOMINAL = {"saved": 0.0, "lost": 0.0, "holds": True}  # where no mapping is shown to hold
SURER = 1 - (1 - CONFIDENCE) / 2  # of each of two mappings, of which the cheaper is chosen


def fine(
    out: Annotated[Path, typer.Option(help="Folder for fine.json, fine.png and what is kept.")] = FOLDER,
    network: Annotated[
        list[str] | None, typer.Option(help=f"Only this one; may be repeated. Default: {' and '.join(NETWORKS)}.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Networks and modules to repeat all with.")] = SEEDS,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """DRAM energy and latency saved by fine mapping over coarse mapping, both certified (EDEN, section 3).

    Each seed is another network, int8 on Fashion-MNIST, and another module of vendor B, scanned down its cliff at two
    tRCDs. Tolerances are searched for on training images, on the module's fitted model. Mappings by a rising share of
    them are then tried on the module's own cells, all tensors together, as long as validation images show that less
    than 0.6 % is lost, with 95 % confidence. Coarse mapping takes the cheapest operating point for all, by one
    tolerance for all. Fine mapping is solved exactly, by a tolerance for each tensor or by one for all, whichever is
    cheaper: each is shown with 97.5 % confidence, so that the choice has 95 %. As ablations, each of these two alone,
    with 95 %. Last, test images certify once whether coarse and fine mapping lose less than 1 %. Finished tasks are
    kept.
    """
    stages.use_one_thread()
    for name in network or ():
        if name not in NETWORKS:
            raise PlanError(f"the study has no network {name!r}; choose from {', '.join(NETWORKS)}")
    tasks = [Task(out, name, seed) for seed in range(1, seeds + 1) for name in network or NETWORKS]
    rows = rows_of_tasks("fine", tasks, _rows, out, workers, scheduler, target_drop=TARGET_DROP)
    _plot(rows).savefig(out / "fine.png", dpi=110)
    _show(rows)
    console.print(str(out / "fine.json"))


def study_data() -> Dataset:
    """What the study's networks are trained, certified and checked on."""
    return fashion_mnist(TRAIN_IMAGES, SHOWN_IMAGES)


Ladders = Mapping[str, Sequence[Mapping[str, float]]]
"""Bit error rates by tensor, in rising shares, of one tolerance for all and of one for each."""


@dataclass(frozen=True)
class Task:
    """One network and module: tolerances, mappings, and what is shown of these on the module.

    Attributes:
        out: the study's folder.
        network: name of the network.
        seed: of network, module and errors.
    """

    out: Path
    network: str
    seed: int

    @property
    def file(self) -> Path:
        """See `host.cli.tasks.Task`."""
        return self.out / "fine" / f"{self.network}-{self.seed}.json"

    @property
    def key(self) -> str:
        """See `host.cli.tasks.Task`."""
        images = (SEARCH_IMAGES, SHOWN_IMAGES, BATCH)
        module = (VENDOR, BANKS, ROWS, TRCDS_PS, LADDER, LADDER_STEP)
        return f"{self._training} {images} {SHARES} {TARGET_DROP} {VALIDATED_DROP} {module} {ENOUGH} {SURER}"

    def measured(self) -> dict[str, Any]:
        """Saved cost of each arm, by objective; and what test images show of coarse and fine mapping."""
        network, profile = self._trained(), self._scanned()
        ladders, placed = self._ladders(network, profile), Placed(network, profile, study_data(), self.seed)
        found: dict[str, Any] = {}
        for objective, cost in OBJECTIVES.items():
            found[objective] = {
                arm: mapping
                and placed.saved(mapping, cost) | (placed.checked(mapping) if arm in (COARSE, FINE) else {})
                for arm, mapping in placed.arms(ladders, cost).items()
            }
        return {"network": self.network, "seed": self.seed, "objectives": found}

    def _trained(self) -> ApproximateNetwork:
        return kept_network(
            self.out / "fine" / f"{self.network}-{self.seed}.safetensors",
            self.network,
            self._training,
            lambda: train_baseline(
                self.network, PRECISION, study_data(), self.seed, FLOAT_TRAINING, QUANTISED_TRAINING
            ),
        )

    @property
    def _training(self) -> str:
        return f"{PRECISION} {TRAIN_IMAGES} {FLOAT_TRAINING} {QUANTISED_TRAINING}"

    def _scanned(self) -> Profile:
        path = self.out / "fine" / "scans" / f"{VENDOR}{self.seed}"
        with alone(path):
            board = open_board(f"mock:{VENDOR}:{self.seed}")
            try:
                return scan(board, _plan(), path)
            finally:
                board.close()

    def _ladders(self, network: ApproximateNetwork, profile: Profile) -> Ladders:
        """Shares of the tolerances, one for all tensors or one for each, that were searched for on training images."""
        model = fit(profile, stages.reference_point(profile), WriteCondition.OPERATING_POINT).anywhere
        search, memory_at = study_data().train.first(SEARCH_IMAGES), stages.model_memory(model)
        clean, sampling = evaluate(network, search.images, search.labels).accuracy, Sampling(seed=self.seed)
        highest = min(0.25, model.highest_ber)
        whole = coarse(network, memory_at, search, TARGET_DROP, clean, sampling, highest_ber=highest).ber
        each = fine_tolerances(network, memory_at, search, TARGET_DROP, clean, whole, sampling, highest_ber=highest).ber
        return {
            ONE: scaled_ladder(dict.fromkeys(each, whole), SHARES, highest),
            EACH_TENSOR: scaled_ladder(each, SHARES, highest),
        }


class Placed:
    """A network on the banks of one module, and what images show of it there.

    Args:
        network, profile: what is placed, and where.
        data: validation images show which mappings hold, test images certify once.
        seed: of the reads.
    """

    def __init__(self, network: ApproximateNetwork, profile: Profile, data: Dataset, seed: int) -> None:
        self.network, self.data, self.seed = network, data, seed
        self._modules = Modules([profile])
        self._parts = self._modules.partitions()
        self._losses: dict[str, npt.NDArray[np.float64]] = {}  # of validation images, by mapping

    def arms(self, ladders: Ladders, cost: Cost) -> dict[str, DramMapping | None]:
        """Each arm's mapping; None where none is shown to hold."""

        def exactly(tolerance: str, confidence: float) -> DramMapping | None:
            return self._last_that_holds((self.exactly(rates, cost) for rates in ladders[tolerance]), confidence)

        return {
            COARSE: self._last_that_holds((self.coarsely(rates, cost) for rates in ladders[ONE]), CONFIDENCE),
            FINE: self.cheapest([exactly(ONE, SURER), exactly(EACH_TENSOR, SURER)], cost),
            EXACT: exactly(ONE, CONFIDENCE),
            EACH: exactly(EACH_TENSOR, CONFIDENCE),
        }

    def coarsely(self, rates: Mapping[str, float], cost: Cost) -> DramMapping:
        """The cheapest operating point for all tensors."""
        return coarse_mapping(self.network.tensors(), next(iter(rates.values())), self._parts, BATCH, cost=cost)

    def exactly(self, rates: Mapping[str, float], cost: Cost) -> DramMapping:
        """The cheapest mapping."""
        return optimal_mapping(self.network.tensors(), rates, self._parts, BATCH, cost=cost, enough=ENOUGH).mapping

    def cheapest(self, mappings: Iterable[DramMapping | None], cost: Cost) -> DramMapping | None:
        """The cheapest of those that there are."""
        found = [mapping for mapping in mappings if mapping]
        return min(found, key=lambda mapping: mapping_cost(mapping, self._parts, cost), default=None)

    def checked(self, mapping: DramMapping) -> dict[str, Any]:
        """Whether test images show that a mapping loses less than the target on the module's own cells."""
        memory, ber = self._memory(mapping, "test")
        test, right = self.data.test, self._right(self.data.test)
        rung = certify_map(self.network, memory, ber, test, right, TARGET_DROP, BY_BATCH).rungs[0]
        return {"ber": rung.ber, "lost": rung.drop, "lost_high": rung.drop_high, "holds": rung.holds}

    def _last_that_holds(self, mappings: Iterable[DramMapping], confidence: float) -> DramMapping | None:
        """The last before the first that validation images do not show to lose less than `VALIDATED_DROP`."""
        held = None
        for mapping in mappings:
            if not self._holds(mapping, confidence):
                break
            held = mapping
        return held

    def _holds(self, mapping: DramMapping, confidence: float) -> bool:
        described = mapping.model_dump_json()
        if described not in self._losses:
            memory, _ = self._memory(mapping, "validation")
            shown = self.data.validation
            self._losses[described] = paired_losses(self.network, lambda _: memory, shown, self._right(shown), BY_BATCH)
        return bool(shows_drop_below(self._losses[described], VALIDATED_DROP, lump_size(BY_BATCH), confidence))

    def _memory(self, mapping: DramMapping, images: str) -> tuple[ApproximateMemory, float]:
        """The module's own cells at the mapped addresses, and their bit error rate."""
        place = self._modules.footprint(mapping.model_copy(update={"modules": self._modules.mapped}))
        return place.memory(derive_seed(self.seed, images)), place.mean_ber

    def _right(self, split: Split) -> torch.Tensor:
        return evaluate(self.network, split.images, split.labels).correct_images

    def saved(self, mapping: DramMapping, cost: Cost) -> dict[str, Any]:
        """Share of the nominal cost that a mapping saves, and its operating points."""
        nominal = cost(self._parts[0], NOMINAL) * mapping.cells
        return {
            "saved": 1 - mapping_cost(mapping, self._parts, cost) / nominal,
            "points": sorted({str(piece.point) for piece in mapping.pieces}),
        }


def _plan() -> ScanPlan:
    return ScanPlan(
        grid=tuple(Grid(trcd_ps=trcd_ps, vdd_mv=_supplies(trcd_ps)) for trcd_ps in TRCDS_PS),
        patterns=tuple(Pattern.parse(name) for name in ("0x00", "0xFF", "0xAA", "0x55")),
        rounds=8,
        banks=tuple(range(BANKS)),
        rows=Rows(count=ROWS),
        write=(WriteCondition.NOMINAL, WriteCondition.OPERATING_POINT),
    )


def _supplies(trcd_ps: int) -> tuple[int, ...]:
    """Nominal VDD, and those at which the vendor's chips have bit error rates `LADDER_STEP` apart, descending."""
    lowest = LIMITS[DRAM_TYPE].lowest_mv
    return NOMINAL_VDD_MV, *(mv for mv in supply_ladder(VENDOR, trcd_ps, LADDER, LADDER_STEP) if mv >= lowest)


# ---- results ---------------------------------------------------------------------------------------------------------


def _rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each network and objective: by how many points fine mapping saves more, over seeds."""
    rows = []
    for network in dict.fromkeys(result["network"] for result in results):
        for objective in OBJECTIVES:
            rows.append(_row(network, objective, [result for result in results if result["network"] == network]))
    return rows


def _row(network: str, objective: str, group: list[dict[str, Any]]) -> dict[str, Any]:
    arms = {arm: [result["objectives"][objective][arm] or AT_NOMINAL for result in group] for arm in ARMS}
    saved = {arm: [each["saved"] for each in found] for arm, found in arms.items()}
    figure, low, high = mean_interval([more - less for more, less in zip(saved[FINE], saved[COARSE], strict=True)])
    holds = {arm: [each["holds"] for each in arms[arm]] for arm in (COARSE, FINE)}
    return {
        "network": network,
        "precision": PRECISION.value,
        "objective": objective,
        "figure": figure,
        "interval": [low, high],
        "saved": saved,
        "holds_on_module": holds,
        "lost_on_module": {arm: [each["lost"] for each in arms[arm]] for arm in holds},
        "seeds": [result["seed"] for result in group],
        "goal": 0.0,
        "met": None if len(group) < SEEDS else low > 0 and all(holds[FINE]),
    }


def _show(rows: list[dict[str, Any]]) -> None:
    shown = [
        [
            f"{row['network']}, {row['objective']}",
            *(f"{100 * mean_interval(row['saved'][arm])[0]:.2f}" for arm in ARMS),
            f"{100 * row['figure']:.2f}",
            " .. ".join(f"{100 * end:.2f}" for end in row["interval"]),
            f"{sum(row['holds_on_module']['fine'])} of {len(row['seeds'])}",
            {None: "", True: "yes", False: "NO"}[row["met"]],
        ]
        for row in rows
    ]
    columns = ["network, objective", *ARMS, "fine less coarse", "95 %", "holds on module", "met"]
    table("saved against nominal, %", columns, shown)


def _plot(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 1.4 + 0.6 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        for arm, colour, shift in zip(ARMS, COLOURS, (-0.3, -0.1, 0.1, 0.3), strict=True):
            values = [100 * value for value in row["saved"][arm]]
            axes.barh(place + shift, sum(values) / len(values), color=colour, height=0.18, label=None if place else arm)
            axes.plot(values, [place + shift] * len(values), "o", ms=3, color="black")
    axes.set_yticks(range(len(rows)), [f"{row['network']}, {row['objective']}" for row in rows])
    axes.set_xlabel("saved against nominal VDD and tRCD, %")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure
