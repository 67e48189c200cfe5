"""`eden study fine`: what fine mapping saves over coarse mapping, both certified."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

from eden.approximate import ApproximateNetwork
from eden.certificate import certify, certify_map, scaled_ladder
from eden.datasets import Dataset, fashion_mnist
from eden.inference import CONFIDENCE, evaluate
from eden.mapping import Cost, DramMapping, coarse_mapping, mapping_cost, weighted
from eden.optimal import optimal_mapping
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.tolerance import Sampling, coarse, mean_ber
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
CERTIFIED_DROP = 0.006  # over maps of the model, whose mean a single module may lose more than
TRAIN_IMAGES, SEARCH_IMAGES, CERTIFIED_IMAGES = 20_000, 1000, 20_000
SHARES = tuple(2 ** (k / 4) for k in range(-12, 3))  # of the rates searched for: the certificates' ladder
BATCH = 10  # errors set nearly as many of these images right as wrong: in tens they even out
FLOAT_TRAINING, QUANTISED_TRAINING = Training(8, 4e-3, shift_pixels=1), Training(1, 5e-4, shift_pixels=1)
ENOUGH = 1e-4  # proven gap at which a mapping counts as the cheapest
COARSE, FINE = "coarse", "fine"
EXACT, EACH = "one tolerance, mapped exactly", "a tolerance for each tensor, mapped exactly"
ARMS = (COARSE, FINE, EXACT, EACH)
ALONE, CHOSEN = "claimed alone", "chosen among two"
COLOURS = ("#999999", "#0072B2", "#56B4E9", "#009E73")
AT_NOMINAL = {"saved": 0.0, "lost": 0.0, "holds": True}  # where nothing is certified
CHOSEN_AMONG = 2  # certified mappings that the fine one is the cheapest of


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
    tRCDs. Both tolerances are searched for on training images and then certified, on validation images over maps of the
    fitted model: all tensors together, less than 0.6 % lost with 95 % confidence. Coarse mapping takes the cheapest
    operating point for all, by one tolerance for all. Fine mapping is solved exactly, by a tolerance for each tensor or
    by one for all, whichever is cheaper: each is certified with 97.5 % confidence, so that the choice has 95 %. As
    ablations, each of these two alone, with 95 %. Last, test images certify, once, whether coarse and fine mapping lose
    less than 1 % on the module's own cells: modules differ, hence the reserve. Finished tasks are kept.
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
    return fashion_mnist(TRAIN_IMAGES, CERTIFIED_IMAGES)


@dataclass(frozen=True)
class Task:
    """One network and module: tolerances, certificates, mappings, and checks of these on the module.

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
        images = (SEARCH_IMAGES, CERTIFIED_IMAGES, BATCH)
        module = (VENDOR, BANKS, ROWS, TRCDS_PS, LADDER, LADDER_STEP)
        return f"{self._training} {images} {SHARES} {TARGET_DROP} {CERTIFIED_DROP} {module} {ENOUGH} {CHOSEN_AMONG}"

    def measured(self) -> dict[str, Any]:
        """Certified rates and saved cost of each arm; whether its mapping passed on the module's own cells."""
        network, profile = self._trained(), self._scanned()
        rates = self._certified(network, profile)
        mapped = _Mapped(network, profile)
        found: dict[str, Any] = {}
        for objective, cost in OBJECTIVES.items():
            arms = {
                COARSE: mapped.coarsely(rates[ALONE]["one"], cost),
                FINE: mapped.cheapest(rates[CHOSEN].values(), cost),
                EXACT: mapped.exactly(rates[ALONE]["one"], cost),
                EACH: mapped.exactly(rates[ALONE]["each"], cost),
            }
            found[objective] = {
                arm: place and mapped.saved(place, cost) | (self._check(mapped, place) if arm in (COARSE, FINE) else {})
                for arm, place in arms.items()
            }
        bits = {tensor.name: tensor.bits() for tensor in network.tensors()}
        return {
            "network": self.network,
            "seed": self.seed,
            "certified_rates": rates,
            "certified_ber": {
                certified: {name: mean_ber(each, bits) if each else 0.0 for name, each in by_name.items()}
                for certified, by_name in rates.items()
            },
            "objectives": found,
        }

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

    def _certified(self, network: ApproximateNetwork, profile: Profile) -> dict[str, dict[str, dict[str, float]]]:
        """Rates by tensor that are shown to hold together, one for all of them or one for each.

        By whether the claim stands alone, or is one of two of which the better is chosen.
        """
        model = fit(profile, stages.reference_point(profile), WriteCondition.OPERATING_POINT).anywhere
        data, memory_at = study_data(), stages.model_memory(model)
        search, shown = data.train.first(SEARCH_IMAGES), data.validation
        clean, sampling = evaluate(network, search.images, search.labels).accuracy, Sampling(seed=self.seed)
        highest = min(0.25, model.highest_ber)
        whole = coarse(network, memory_at, search, TARGET_DROP, clean, sampling, highest_ber=highest).ber
        each = fine_tolerances(network, memory_at, search, TARGET_DROP, clean, whole, sampling, highest_ber=highest).ber
        right = evaluate(network, shown.images, shown.labels).correct_images
        in_tens = Sampling(1, BATCH, derive_seed(self.seed, "certificate"))

        def held(ladder: Sequence[Mapping[str, float]], confidence: float) -> Sequence[Mapping[str, float]]:
            rungs = certify(
                *(network, ladder, stages.any_map_memory(model), shown, right, CERTIFIED_DROP, in_tens, confidence)
            ).rungs
            return ladder[: sum(rung.holds for rung in rungs)]

        found: dict[str, dict[str, dict[str, float]]] = {ALONE: {}, CHOSEN: {}}
        for name, rates in (("one", dict.fromkeys(each, whole)), ("each", each)):
            ladder = scaled_ladder(rates, SHARES, highest)
            surely = held(ladder, 1 - (1 - CONFIDENCE) / CHOSEN_AMONG)
            rest = ladder[len(surely) :]  # what holds more surely holds at this confidence as well
            climbed = [*surely, *(held(rest, CONFIDENCE) if rest else ())]
            found[CHOSEN][name] = dict(surely[-1]) if surely else {}
            found[ALONE][name] = dict(climbed[-1]) if climbed else {}
        return found

    def _check(self, mapped: "_Mapped", mapping: DramMapping) -> dict[str, Any]:
        """Whether a mapping is shown to lose less than the target on the module's own cells, on test images."""
        network, profile, test = mapped.network, mapped.profile, study_data().test
        modules = Modules([profile])
        place = modules.footprint(mapping.model_copy(update={"modules": modules.mapped}))
        right = evaluate(network, test.images, test.labels).correct_images
        memory, in_tens = place.memory(derive_seed(self.seed, "module")), Sampling(draws=1, batch=BATCH)
        rung = certify_map(network, memory, place.mean_ber, test, right, TARGET_DROP, in_tens).rungs[0]
        return {"ber": rung.ber, "lost": rung.drop, "lost_high": rung.drop_high, "holds": rung.holds}


class _Mapped:
    """A network on the banks of one module, by certified rates; None where there are none."""

    def __init__(self, network: ApproximateNetwork, profile: Profile) -> None:
        self.network, self.profile = network, profile
        self._parts = Modules([profile]).partitions()

    def coarsely(self, rates: Mapping[str, float], cost: Cost) -> DramMapping | None:
        """The cheapest operating point for all tensors."""
        if not rates:
            return None
        return coarse_mapping(self.network.tensors(), next(iter(rates.values())), self._parts, BATCH, cost=cost)

    def exactly(self, rates: Mapping[str, float], cost: Cost) -> DramMapping | None:
        """The cheapest mapping."""
        if not rates:
            return None
        return optimal_mapping(self.network.tensors(), rates, self._parts, BATCH, cost=cost, enough=ENOUGH).mapping

    def cheapest(self, choices: Iterable[Mapping[str, float]], cost: Cost) -> DramMapping | None:
        """The cheapest of the mappings by any of these rates."""
        found = [mapping for rates in choices if (mapping := self.exactly(rates, cost))]
        return min(found, key=lambda mapping: mapping_cost(mapping, self._parts, cost), default=None)

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
        "certified_ber": [result["certified_ber"] for result in group],
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
