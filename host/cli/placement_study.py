"""`eden study placement`: what placement by significance adds, on known maps, without retraining."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from eden.approximate import ApproximateNetwork
from eden.boosting import boost, default_boosting
from eden.datasets import Split
from eden.mapping import Partition, RowRates
from eden.memory import ApproximateMemory, ProfileMemory
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.significance import SPLITS, SignificanceMemory, SignificancePlan, plan_significance, stored_tensors
from eden.tolerance import AccuracyMeter, Sampling, coarse
from eden.training import FLOAT_TRAINING, QUANTISED_TRAINING, train_baseline
from host.boards import MOCK_GEOMETRY, open_board
from host.chip_presets import PRESETS, supply_ladder
from host.cli import stages
from host.cli.console import console, table
from host.cli.intervals import mean_interval
from host.cli.tasks import Scheduler, Workers, alone, kept_network, rows_of_tasks
from host.plan import Cells, Grid, Rows, ScanPlan
from host.scan import scan
from profiles.cells import WeakCells
from profiles.error_models import ErrorModel
from profiles.errors import PlanError
from profiles.fit import FitReport, fit
from profiles.pattern import Pattern
from profiles.population import measured_weak_cells
from profiles.schema import OperatingPoint, WriteCondition
from profiles.storage import Profile

FOLDER = Path("build/study")
NETWORK = "lenet"
SEEDS = (1, 2, 3)
GOAL, OCCUPANCY, METADATA = 10.0, 0.9, 0.01
TARGET_DROP = 0.01
IMAGES = {Precision.INT8: 600, Precision.FP32: 300}  # the wider, the fewer: time goes with bits
DRAWS, BATCH = 2, 50
RATIO = 1.15  # of the bracket that a tolerated rate is found in
TRCD_PS = 8000
LADDER_STEP, LADDER = 1.12, (1e-5, 0.12)  # bit error rates of the supplies that presets are scanned at
FITTED_AT = 1e-2  # where error models are fitted
ARMS = {"plain": 1e-3, "values": 2e-3, "rows": 2e-3, "all": 1.5e-2}  # with a bit error rate to start the search from


def placement(
    out: Annotated[Path, typer.Option(help="Folder for placement.json, placement.png and what is kept.")] = FOLDER,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="Only this one; may be repeated. Default: int8 and fp32.")
    ] = None,
    memory: Annotated[
        list[str] | None, typer.Option(help="Only these errors, e.g. 'model 0' or 'mock:B'; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Networks, modules and maps to repeat all with.")] = len(SEEDS),
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Tolerable BER with the bits that matter on cells that hold, against the same network stored as it comes.

    On known maps: of EDEN's Error Models 0-3 as fitted to a module of vendor B, each alone, and of modules of vendors
    A, B and C, scanned at falling VDD. Criterion as of `eden tolerance`, without retraining; then on top of boosting.
    Finished tasks are kept, and placement.json holds what they say so far: stopped and started again, it goes on. Goals
    count as met or missed from three seeds on.
    """
    stages.use_one_thread()
    tasks = list(_tasks(out, precision or [Precision.INT8, Precision.FP32], memory, range(1, seeds + 1)))
    rows = rows_of_tasks("placement", tasks, _rows, out, workers, scheduler, target_drop=TARGET_DROP)
    _plot(rows).savefig(out / "placement.png", dpi=110)
    _show(rows)
    console.print(str(out / "placement.json"))


# ---- known maps ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownMap:
    """Weak cells of a bank's first rows at one bit error rate, and the rows to place in."""

    weak_cells: dict[str, WeakCells]
    partition: Partition
    point: OperatingPoint

    def ber(self, bits: dict[str, int]) -> float:
        """Mean rate of the rows, by the bits of each kind that a network stores there."""
        cells = self.partition.cells
        rates = {kind: weak.within(0, cells).ber(cells) for kind, weak in self.weak_cells.items()}
        return sum(rates[kind] * count for kind, count in bits.items()) / sum(bits.values())


def known_map(weights: WeakCells, ifms: WeakCells, rows: int, point: OperatingPoint) -> KnownMap:
    """A map of the first ``rows`` rows of bank 0, with the rate of each row."""
    size = MOCK_GEOMETRY.row_bits
    kinds = {"weight": weights.within(0, rows * size), "ifm": ifms.within(0, rows * size)}
    rates = {(kind, point): _row_rates(weak, rows, size) for kind, weak in kinds.items()}
    partition = Partition(
        *("bank 0", 0, 0, rows * size),
        {point: float(rates["weight", point].mean())},
        {point: float(rates["ifm", point].mean())},
        RowRates(size, rates),
    )
    return KnownMap(kinds, partition, point)


def _row_rates(weak: WeakCells, rows: int, size: int) -> Any:
    return np.bincount(weak.cell // size, (weak.flip_zero + weak.flip_one) / 2, minlength=rows) / size


NOWHERE = OperatingPoint(vdd_mv=1350, trcd_ps=TRCD_PS)  # an error model has no operating point


@dataclass(frozen=True)
class ModelMaps:
    """Maps that an error model draws: another for each seed."""

    name: str
    model: ErrorModel

    def at(self, ber: float, seed: int, rows: int) -> KnownMap:
        drawn = self.model.scaled(min(ber, self.model.highest_ber)).sample_weak_cells(
            0, rows * MOCK_GEOMETRY.row_bits, seed
        )
        return known_map(drawn, drawn, rows, NOWHERE)

    @property
    def highest_ber(self) -> float:
        return min(0.25, self.model.highest_ber)


class ModuleMaps:
    """Maps of one module, scanned at the supply whose bit error rate is nearest; each point is scanned once."""

    def __init__(self, vendor: str, seed: int, folder: Path, rows: int) -> None:
        self.name = f"mock:{vendor}"
        self._board, self._folder, self._rows = f"mock:{vendor}:{seed}", folder / f"{vendor}{seed}", rows
        self._supplies = supply_ladder(vendor, TRCD_PS, LADDER, LADDER_STEP)
        self._kept: dict[int, tuple[WeakCells, WeakCells]] = {}

    def at(self, ber: float, seed: int, rows: int) -> KnownMap:
        del seed  # the module's own map, whatever the draw
        millivolts = min(self._supplies, key=lambda mv: abs(math.log(self._supplies[mv] / ber)))
        point = OperatingPoint(vdd_mv=millivolts, trcd_ps=TRCD_PS)
        if millivolts not in self._kept:
            profile = self._scanned(point)
            self._kept[millivolts] = (
                measured_weak_cells(profile, point, WriteCondition.NOMINAL),
                measured_weak_cells(profile, point, WriteCondition.OPERATING_POINT),
            )
        return known_map(*self._kept[millivolts], rows, point)

    def fitted(self, number: int) -> ErrorModel:
        """The error model of this number, as in `report`."""
        return self.report().fits[number].model

    def report(self) -> FitReport:
        """The error models, fitted where the module has a bit error rate of `FITTED_AT`."""
        millivolts = min(self._supplies, key=lambda mv: abs(math.log(self._supplies[mv] / FITTED_AT)))
        point = OperatingPoint(vdd_mv=millivolts, trcd_ps=TRCD_PS)
        return fit(self._scanned(point), point, WriteCondition.NOMINAL)

    @property
    def highest_ber(self) -> float:
        return max(self._supplies.values())

    def _scanned(self, point: OperatingPoint) -> Profile:
        rows = Rows(count=self._rows)
        plan = ScanPlan(
            grid=(Grid(trcd_ps=point.trcd_ps, vdd_mv=(point.vdd_mv,)),),
            patterns=tuple(Pattern.parse(name) for name in ("0x00", "0xFF", "0xAA", "0x55")),
            rounds=8,
            banks=(0,),
            rows=rows,
            cells=(Cells(banks=(0,), rows=rows),),
            write=(WriteCondition.NOMINAL, WriteCondition.OPERATING_POINT),
        )
        path, board = self._folder / f"{point.vdd_mv}mv", open_board(self._board)
        try:
            with alone(path):
                return scan(board, plan, path)
        finally:
            board.close()


Maps = ModelMaps | ModuleMaps


# ---- one task --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Tolerances of one network on the maps of one kind.

    Attributes:
        out: the study's folder.
        precision, seed: of the network; the seed is that of module and maps too.
        memory: what errs, as the command line names it.
        boosted: whether the network is boosted first.
        arms: ways to place that are compared.
    """

    out: Path
    precision: Precision
    seed: int
    memory: str
    boosted: bool
    arms: tuple[str, ...]

    @property
    def file(self) -> Path:
        """See `host.cli.tasks.Task`."""
        name = f"{self.memory} {self.precision} {self.seed}{' boosted' if self.boosted else ''}"
        return self.out / "placement" / (name.replace(":", " ").replace(" ", "-") + ".json")

    @property
    def key(self) -> str:
        """See `host.cli.tasks.Task`."""
        count = images(self.precision)
        maps, sample = f"{TRCD_PS} {LADDER_STEP} {LADDER}", f"{SPLITS} by training images"
        return f"{NETWORK} {TARGET_DROP} {count} {DRAWS} {BATCH} {RATIO} {maps} {sample} {self.arms}"

    def measured(self) -> dict[str, Any]:
        """Tolerated rate by arm, with what placement costs."""
        network, clean = self._network()
        trial = Trial(network, self._maps(rows_of(network)), stages.dataset().train)
        found: dict[str, Any] = {}
        for arm in self.arms:
            start = ARMS[arm] * (4 if self.boosted else 1)
            found[arm] = coarse(
                network,
                lambda ber, seed, arm=arm: trial.memory(arm, ber, seed),  # type: ignore[misc]
                validation(self.precision),
                TARGET_DROP,
                clean,
                Sampling(DRAWS, BATCH, derive_seed(self.seed, "placement")),
                start_ber=start,
                highest_ber=trial.maps.highest_ber,
                ratio=RATIO,
            ).ber
        trial.account()
        return {
            "memory": self.memory,
            "precision": self.precision.value,
            "seed": self.seed,
            "boosted": self.boosted,
            "clean_accuracy": clean,
            "ber": {arm: trial.measured_ber(ber, self.seed) for arm, ber in found.items()},
            "metadata_share": trial.metadata_share,
            "occupancy": trial.occupancy,
            "costly_bits": sorted(trial.costly_bits),
        }

    def _maps(self, rows: int) -> Maps:
        folder = self.out / "placement" / "scans"
        kind, _, which = self.memory.partition(" " if " " in self.memory else ":")
        if kind == "mock":
            return ModuleMaps(which, self.seed, folder, max(rows, SCANNED_ROWS))
        return ModelMaps(self.memory, ModuleMaps("B", 1, folder, SCANNED_ROWS).fitted(int(which)))

    def _network(self) -> tuple[ApproximateNetwork, float]:
        """The network, and the clean accuracy of the unboosted one on the images of this study."""
        name, how = f"{NETWORK}-{self.precision}-{self.seed}", f"{FLOAT_TRAINING} {QUANTISED_TRAINING}"
        network = kept_network(
            self.out / "placement" / f"{name}.safetensors",
            NETWORK,
            how,
            lambda: train_baseline(NETWORK, self.precision, stages.dataset(), self.seed),
        )
        clean = AccuracyMeter(network, validation(self.precision), Sampling(1, BATCH)).clean
        if not self.boosted:
            return network, clean
        boosted = kept_network(
            self.out / "placement" / f"{name}-boosted.safetensors",
            NETWORK,
            f"{how} {default_boosting(self.precision)} {TARGET_DROP} {DRAWS} {BATCH}",
            lambda: self._boost(network, clean),
        )
        return boosted, clean

    def _boost(self, network: ApproximateNetwork, clean: float) -> ApproximateNetwork:
        """Boosted on fresh maps of Error Model 0, so that no map is learnt."""
        model = ModuleMaps("B", 1, self.out / "placement" / "scans", SCANNED_ROWS).fitted(0)
        fresh, data = stages.model_memory(model, fresh_map=True), stages.dataset()
        tolerated = coarse(
            network, fresh, validation(self.precision), TARGET_DROP, clean, Sampling(DRAWS, BATCH, self.seed)
        )
        return boost(network, fresh, data, tolerated.ber, TARGET_DROP, clean, self.seed).network


STUDIED_IN_DETAIL = ("model 0", "mock:B")  # with ablation at int8, and on top of boosting
SCANNED_ROWS = 104  # room for the FP32 network


def images(precision: Precision) -> int:
    """How many images tolerances are found on."""
    return IMAGES.get(precision, IMAGES[Precision.INT8])


def validation(precision: Precision) -> Split:
    """The images that tolerances are found on."""
    return stages.dataset().validation.first(images(precision))


def stored_bits(network: ApproximateNetwork) -> dict[str, int]:
    """Bits of each kind that a network stores for a batch."""
    kinds: dict[str, int] = {"weight": 0, "ifm": 0}
    for tensor in network.tensors():
        kinds[tensor.kind] += tensor.bits(BATCH)
    return kinds


def rows_of(network: ApproximateNetwork) -> int:
    """As many rows as leave at least `OCCUPANCY` of their cells in use."""
    return int(sum(stored_bits(network).values()) / (OCCUPANCY * MOCK_GEOMETRY.row_bits))


class Trial:
    """One network in the rows of known maps, placed in different ways; ``sample`` says what its IFMs are like."""

    def __init__(self, network: ApproximateNetwork, maps: Maps, sample: Split) -> None:
        self.network, self.maps = network, maps
        self.rows, self.bits = rows_of(network), stored_bits(network)
        self.metadata_share = 0.0
        self.costly_bits: set[int] = set()
        self._stored, self._formats = stored_tensors(network, sample.first(BATCH).images)
        self._last: list[tuple[SignificancePlan, SignificanceMemory]] = []

    @property
    def occupancy(self) -> float:
        return sum(self.bits.values()) / (self.rows * MOCK_GEOMETRY.row_bits)

    def measured_ber(self, ber: float, seed: int) -> float:
        """Bit error rate of the rows themselves where ``ber`` was asked for; 0 stays 0."""
        if not ber:
            return 0.0
        drawn = self.maps.at(ber, derive_seed(seed, "measured"), self.rows)
        return drawn.ber(self.bits) if isinstance(self.maps, ModuleMaps) else ber

    def memory(self, arm: str, ber: float, seed: int) -> ApproximateMemory:
        """The network's memory at this rate, placed as ``arm`` says."""
        self.account()
        known = self.maps.at(ber, seed, self.rows)
        plan = self._plan(arm, known)
        weak = {t.name: known.weak_cells[t.kind] for t in self.network.tensors()}
        inner = ProfileMemory(weak, plan.mapping.placements, derive_seed(seed, "reads"))
        if arm == "plain":
            return inner
        memory = plan.memory(inner)
        self._last.append((plan, memory))
        return memory

    def _plan(self, arm: str, known: KnownMap) -> SignificancePlan:
        """``plain`` and ``values`` fill rows by address; ``values`` and ``rows`` leave every unit in way 0."""
        by_rows = arm in ("rows", "all")
        partition = known.partition if by_rows else replace(known.partition, rows=None)
        stored = self._stored if by_rows else {}
        plan = plan_significance(
            *(self.network.tensors(), stored, self._formats, known.weak_cells, [partition], known.point, BATCH)
        )
        nothing = WeakCells(np.empty(0, np.int64), np.empty(0), np.empty(0))
        return plan if arm == "all" else replace(plan, weak_cells=dict.fromkeys(plan.weak_cells, nothing))

    def account(self) -> None:
        """Count the metadata of the memory that was used last."""
        for plan, memory in self._last:
            if memory.stored_bits:
                bits = memory.metadata_bits + plan.order_bits
                self.metadata_share = max(self.metadata_share, bits / memory.stored_bits)
                self.costly_bits |= {layout.costly_bits for layout in plan.layouts.values()}
        self._last.clear()


def _tasks(out: Path, precisions: list[Precision], memories: list[str] | None, seeds: range) -> Iterator[Task]:
    every = [*(f"model {number}" for number in range(4)), *(f"mock:{vendor}" for vendor in PRESETS)]
    for memory in memories or every:
        if memory not in every:
            raise PlanError(f"there are no errors {memory!r}; choose from {', '.join(every)}")
    chosen = memories or every
    for precision in precisions:
        for memory in chosen:
            for seed in seeds:
                ablated = precision is Precision.INT8 and memory in STUDIED_IN_DETAIL
                yield Task(out, precision, seed, memory, False, tuple(ARMS) if ablated else ("plain", "all"))
    for precision in precisions:
        for memory in (memory for memory in chosen if memory in STUDIED_IN_DETAIL):
            for seed in seeds:
                yield Task(out, precision, seed, memory, True, ("plain", "all"))


# ---- results ---------------------------------------------------------------------------------------------------------


def _rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for result in results:
        if result["ber"]["plain"] and result["ber"]["all"]:  # else no rate that was tried is tolerated: no ratio
            groups.setdefault((result["memory"], result["precision"], result["boosted"]), []).append(result)
    rows = []
    for (memory, precision, boosted), group in groups.items():
        for arm in group[0]["ber"]:
            if arm != "plain":
                rows.append(_row(memory, precision, boosted, arm, group))
    return rows


def _row(memory: str, precision: str, boosted: bool, arm: str, group: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [each["ber"][arm] / each["ber"]["plain"] for each in group]
    figure, low, high = mean_ratio(ratios)
    metadata, occupancy = max(each["metadata_share"] for each in group), min(each["occupancy"] for each in group)
    goal = GOAL if arm == "all" and not boosted else None
    reached = figure >= GOAL and metadata <= METADATA and occupancy >= OCCUPANCY
    return {
        "network": f"{NETWORK}{', boosted' if boosted else ''}",
        "precision": precision,
        "memory": memory,
        "placement": arm,
        "figure": figure,
        "interval": [low, high],
        "ratios": ratios,
        "plain_ber": [each["ber"]["plain"] for each in group],
        "placed_ber": [each["ber"][arm] for each in group],
        "seeds": [each["seed"] for each in group],
        "metadata_share": metadata,
        "occupancy": occupancy,
        "costly_bits": sorted({bits for each in group for bits in each["costly_bits"]}),
        "goal": goal,
        "met": None if goal is None or len(group) < len(SEEDS) else reached,
    }


def mean_ratio(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean over seeds, and its 95 % interval by Student's t on logarithms; of one seed, the figure alone."""
    mean, low, high = mean_interval([math.log(ratio) for ratio in ratios])
    return math.exp(mean), math.exp(low), math.exp(high)


def _show(rows: list[dict[str, Any]]) -> None:
    shown = [
        [
            *(f"{row['memory']}, {row['network']}, {row['precision']}", row["placement"]),
            *(f"{np.mean(row['plain_ber']):.1e}", f"{np.mean(row['placed_ber']):.1e}"),
            *(f"{row['figure']:.1f}x", "{:.1f} .. {:.1f}".format(*row["interval"])),
            *(f"{100 * row['metadata_share']:.2f} %", f"{100 * row['occupancy']:.1f} %"),
            {None: "", True: "yes", False: "NO"}[row["met"]],
        ]
        for row in rows
    ]
    columns = ["errors, network", "placement", "plain BER", "placed", "ratio", "95 %", "metadata", "occupancy", "met"]
    table("tolerable BER by placement", columns, shown)


def _plot(rows: list[dict[str, Any]]) -> Figure:
    shown = [row for row in rows if row["placement"] == "all"]
    figure = Figure(figsize=(8, 1.4 + 0.35 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(shown):
        low, high = row["interval"]
        colour = "#0072B2" if row["goal"] else "#999999"
        axes.barh(place, row["figure"], color=colour, height=0.7)
        axes.plot([low, high], [place, place], color="black", lw=1)
        axes.plot(row["ratios"], [place] * len(row["ratios"]), "o", ms=3, color="black")
    axes.axvline(GOAL, color="#D55E00", lw=1, label="goal")
    axes.set(xscale="log", xlabel="tolerable BER, placed by significance over stored as it comes")
    axes.set_yticks(range(len(shown)), [f"{row['memory']}, {row['network']}, {row['precision']}" for row in shown])
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure
