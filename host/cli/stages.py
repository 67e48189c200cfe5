"""The stages from a profile to an accuracy on DRAM, as functions; `eden run` and the single commands share them."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eden.approximate import ApproximateNetwork, is_per_channel, read_checkpoint_metadata
from eden.certificate import Certificate, certify_map, units_needed
from eden.datasets import Dataset, Split
from eden.inference import Prediction, evaluate, predict_accuracy
from eden.mapping import (
    DEFAULT_ALIGNMENT_BITS,
    Cost,
    DramMapping,
    Partition,
    RowRates,
    aggressiveness,
    aligned_bits,
    fine_mapping,
    mapping_cost,
)
from eden.memory import UNIFORM_MODELS, ApproximateMemory, ErrorModelMemory, ProfileMemory, joined
from eden.networks import build, folded
from eden.optimal import Optimum, optimal_mapping
from eden.placement import Piece
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.significance import SignificancePlan, plan_significance, stored_tensors
from eden.tolerance import Sampling
from eden.training import recipe
from host.plan import Cells, Rows, ScanPlan
from profiles import statistics
from profiles.cells import WeakCells
from profiles.error_models import ErrorModel, Floats
from profiles.errors import CapacityError, FitError, NetworkError, PlanError
from profiles.files import atomic_file, first_problem, read_bounded
from profiles.fit import FitReport, fit
from profiles.geometry import Geometry
from profiles.population import measured_weak_cells
from profiles.progress import Progress, silent
from profiles.schema import AccessMode, ModuleIdentity, OperatingPoint, PointRecord, Region, WriteCondition
from profiles.storage import Profile

NOMINAL, AT_POINT = WriteCondition.NOMINAL, WriteCondition.OPERATING_POINT
WRITTEN = {"weight": NOMINAL, "ifm": AT_POINT}  # how each kind of tensor is
ROOM_TO_CHOOSE = 2  # cells known by default, over those that the network takes
REFERENCE_BER = 3e-3  # where a model for training is fitted: a rate at which networks begin to suffer


def dataset(network: str = "lenet") -> Dataset:
    """The data that the network of that name is trained and tested on."""
    return recipe(network).data()


def use_one_thread() -> None:
    """Keep torch to one thread: networks here are small, and threads that wait for a busy core cost far more."""
    torch.set_num_threads(1)


def save_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def keep_results(file: Path, key: str, results: dict[str, Any], **about: Any) -> None:
    """Write results together with what they were made from, and whatever else is to be said of them."""
    save_json(file, {"made_from": key, **about, "results": results})


def kept_results(file: Path, key: str) -> dict[str, Any] | None:
    """The results in ``file`` if they were made from the same ``key``."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return dict(kept["results"]) if kept["made_from"] == key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None  # not there, or damaged: it is made again


def digest(profile: Profile) -> str:
    """Of the module and of all that was measured of it, but for single cells."""
    measured = [profile.header.model_dump(mode="json"), *(p.model_dump(mode="json") for p in profile.points)]
    return hashlib.sha256(json.dumps(measured).encode()).hexdigest()


def load_network(path: Path) -> ApproximateNetwork:
    """A network that `eden train` or `eden boost` wrote. Raises NetworkError (see `read_checkpoint_metadata`)."""
    metadata = read_checkpoint_metadata(path)
    module, precision = folded(build(metadata["network"], 0)), Precision(metadata["precision"])
    network = ApproximateNetwork(module, precision, per_channel=is_per_channel(metadata))
    network.load(path)
    return network.eval()


def network_name(path: Path) -> str:
    """Registry name of the network in a file."""
    return read_checkpoint_metadata(path)["network"]


def network_data(path: Path) -> Dataset:
    """The data of the network in a file."""
    return dataset(network_name(path))


class Tolerance(BaseModel):
    """What `eden tolerance` found.

    Attributes:
        target_accuracy: on the validation split.
        coarse: BER of all tensors alike, as searched for.
        fine: BER of each tensor, as searched for.
        certificate: how much of ``fine``, all tensors together, is shown to meet the target on the validation split.
        final_check: the same of what was certified, once, on the test split; None where nothing was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["eden-tolerance"] = "eden-tolerance"
    version: Literal[2]
    target_accuracy: float = Field(ge=0, le=1)
    coarse: float = Field(ge=0, le=1)
    fine: dict[str, Annotated[float, Field(ge=0, le=1)]]
    certificate: Certificate
    final_check: Certificate | None

    @property
    def rates(self) -> dict[str, float]:
        """BER that each tensor is to have: as certified, or as searched for where nothing was."""
        certified = self.certificate.certified
        return certified.rates if certified else self.fine


def load_tolerance(path: Path) -> Tolerance:
    """Read a tolerance file. Raises NetworkError where it is missing, no such file, or of another version."""
    try:
        return Tolerance.model_validate_json(read_bounded(path, 1 << 20))
    except ValidationError as error:
        raise NetworkError(f"{path} is no tolerance file ({first_problem(error)}); run eden tolerance again") from error


def reference_point(profile: Profile) -> OperatingPoint:
    """The operating point below nominal whose BER is nearest `REFERENCE_BER`, tested with both write conditions.

    Raises:
        FitError: no point has errors enough to fit a model.
    """
    at_point = {p.point: p.ber for p in statistics.ber_surface(profile, AT_POINT)}
    known = [
        p.point
        for p in statistics.ber_surface(profile, NOMINAL)
        if at_point.get(p.point) and at_point[p.point].errors > 100
    ]
    if not known:
        raise FitError(
            f"{profile.path} holds no point with errors for both write conditions; scan deeper into the cliff, with "
            'write = ["nominal", "operating_point"]'
        )
    return min(known, key=lambda point: max(at_point[point].ber / REFERENCE_BER, REFERENCE_BER / at_point[point].ber))


def model_memory(model: ErrorModel, fresh_map: bool = False) -> Callable[[float, int], ApproximateMemory]:
    """Memories of any bit error rate whose errors follow ``model``; each seed is another module of its kind.

    With ``fresh_map`` every read meets another module: what a network should be trained with, so that it does not learn
    one module's cells by heart. A rate that no such module can have is taken as the highest that one can.
    """
    highest, scaled = model.highest_ber, cache(model.scaled)
    return lambda ber, seed: ErrorModelMemory(scaled(min(ber, highest)), seed, fresh_map)


def any_map_memory(model: ErrorModel) -> Callable[[float, int], ApproximateMemory]:
    """As `model_memory`, for memories that are read once: each seed is another module, all of it.

    Where weak cells lie anywhere with the same probability, a map for each read is the same thing, and quicker.
    """
    return model_memory(model, fresh_map=model.number in UNIFORM_MODELS)


# ---- mapping ---------------------------------------------------------------------------------------------------------


def named_network_cells(name: str, precision: Precision, images: int) -> int:
    """`network_cells` of a network of `eden.networks`, before it is trained."""
    network = ApproximateNetwork(folded(build(name, 0)), precision)
    network.calibrate([dataset(name).validation.images[:1]])
    return network_cells(network, images)


def network_cells(network: ApproximateNetwork, images: int) -> int:
    """Cells that every weight, and every IFM of a batch of ``images``, take together."""
    return sum(aligned_bits(tensor, images, DEFAULT_ALIGNMENT_BITS) for tensor in network.tensors())


def with_room(plan: ScanPlan, geometry: Geometry, needed: int) -> ScanPlan:
    """``plan`` such that single cells are known in enough rows for tensors of ``needed`` cells, with a choice of rows.

    A plan that names its rows keeps them.

    Raises:
        PlanError: the tensors do not fit the cells that would be known; better said before a scan than after it.
    """
    known = plan.cell_regions(geometry)
    rows = -(-ROOM_TO_CHOOSE * needed // (len(plan.banks) * geometry.row_bits))
    if not plan.cells and min(rows, plan.rows.count) > known[0].row_count:
        wanted = Rows(start=plan.rows.start, count=min(rows, plan.rows.count))
        plan = plan.model_copy(update={"cells": (Cells(banks=plan.banks, rows=wanted),)})
        known = plan.cell_regions(geometry)
    room = sum(region.cells(geometry) for region in known)
    if needed > room:
        raise PlanError(
            f"the network's tensors take {needed / 2**23:.1f} MiB of DRAM, and the plan knows the cells of "
            f"{room / 2**23:.1f} MiB; test more rows or banks, or use smaller batches"
        )
    return plan


def check_access(what: str, *modes: AccessMode) -> None:
    """Raises PlanError where ``what``, a scan's plan or profile, was not read as tensors are."""
    if any(mode != AccessMode.BURST_PER_ACTIVATION for mode in modes):
        raise PlanError(
            f"{what} reads row by row (access_mode linear), but tensors are read one burst per activation, and error "
            'rates hold for no other access; scan with access_mode = "burst_per_activation"'
        )


def partitions(profile: Profile, subarray_rows: int | None = None) -> list[Partition]:
    """One partition a bank, of the rows whose cells are known at every point, with its BER at every operating point.

    ``subarray_rows``: one for each subarray instead, of so many rows.
    """
    check_access(str(profile.path), *(record.access_mode for record in profile.points))
    geometry, region = profile.geometry, _common_region(profile.points)
    rows = np.arange(region.row_start, region.row_end)
    wordlines = (np.array(region.banks)[:, None] * geometry.rows + rows).ravel()
    rates: dict[tuple[str, OperatingPoint], Floats] = {}
    patterns = {record.pattern for record in profile.points}
    for point in profile.operating_points():
        for kind, condition in (("weight", NOMINAL), ("ifm", AT_POINT)):
            records = profile.find(point, condition)
            if {record.pattern for record in records} == patterns:  # cells that fail with the others are known too
                by_row = statistics.ber_by(profile, records, "wordline_block", block_rows=1)
                rates[kind, point] = by_row.ber[np.isin(by_row.keys, wordlines)].reshape(len(region.banks), -1)
    for kind, condition in (("weight", NOMINAL), ("ifm", AT_POINT)):
        if not any(known == kind for known, _ in rates):
            raise PlanError(
                f"{profile.path} holds no operating point with all patterns written at: {condition.value}; scan with "
                'write = ["nominal", "operating_point"]'
            )
    size = subarray_rows or geometry.rows
    cuts = range((region.row_start // size + 1) * size, region.row_end, size)
    stretches = list(pairwise([region.row_start, *cuts, region.row_end]))
    return [
        _partition(
            f"bank {bank}" + (f", rows {first} to {end - 1}" if subarray_rows else ""),
            *(bank, first, geometry),
            {key: ber[k, first - region.row_start : end - region.row_start] for key, ber in rates.items()},
        )
        for k, bank in enumerate(region.banks)
        for first, end in stretches
    ]


def _partition(
    name: str, bank: int, first_row: int, geometry: Geometry, rates: Mapping[tuple[str, OperatingPoint], Floats]
) -> Partition:
    """Rows of a bank from ``first_row`` on, of the given rates by kind and operating point."""
    return Partition(
        name=name,
        bank=bank,
        first_cell=bank * geometry.bank_bits + first_row * geometry.row_bits,
        cells=len(next(iter(rates.values()))) * geometry.row_bits,
        ber_by_point={point: float(ber.mean()) for (kind, point), ber in rates.items() if kind == "weight"},
        ifm_ber_by_point={point: float(ber.mean()) for (kind, point), ber in rates.items() if kind == "ifm"},
        rows=RowRates(geometry.row_bits, rates),
    )


def _common_region(points: list[PointRecord]) -> Region:
    """Where every point knows single cells: tensors are placed only there."""
    regions = {record.region for record in points}
    if len(regions) != 1:
        raise PlanError(
            f"the profile holds {len(regions)} different regions, as a search for cliffs leaves; map from a profile of "
            "one scan of a grid"
        )
    known = {record.known_cells for record in points if record.counted} or {tuple(regions)}
    if len(known) != 1 or len(parts := known.pop()) != 1:
        raise PlanError(
            "points of the profile know single cells in several places; map from a scan whose plan keeps the cells of "
            "one region, large enough for the network"
        )
    return parts[0]


@dataclass(frozen=True)
class Footprint:
    """A mapping and the weak cells behind it.

    Attributes:
        mapping: where each tensor lies.
        weak_cells: of each tensor, by its kind's write condition.
        ber: expected bit error rate of each tensor (half its bits ones).
        plan: how tensors are laid out there, where they are placed by significance; None where they lie as they come.
    """

    mapping: DramMapping
    weak_cells: Mapping[str, WeakCells]
    ber: Mapping[str, float]
    plan: SignificancePlan | None = None

    @property
    def point(self) -> OperatingPoint:
        """The operating point, where all tensors share one."""
        return next(iter(self.mapping.placements.values())).point

    @property
    def mean_ber(self) -> float:
        """Over all bits of the network."""
        cells = {name: placement.reserved for name, placement in self.mapping.placements.items()}
        return sum(self.ber[name] * count for name, count in cells.items()) / sum(cells.values())

    def memory(self, seed: int) -> ApproximateMemory:
        """The profile's own cells at the mapped addresses."""
        cells = ProfileMemory(self.weak_cells, self.mapping.placements, seed)
        return self.plan.memory(cells) if self.plan else cells

    def on_other_cells(self, weak_cells: Mapping[str, WeakCells]) -> "Footprint":
        """The same places in a module that is known to have these weak cells, in module numbering."""
        plan = replace(self.plan, weak_cells=weak_cells) if self.plan else None
        return replace(self, weak_cells=weak_cells, plan=plan)


def is_ifm(tensor: str) -> bool:
    """Whether a tensor's name is that of an input feature map (`eden.approximate`)."""
    return tensor.rpartition(".")[2].startswith("ifm")


def footprint(profile: Profile, mapping: DramMapping, network: ApproximateNetwork | None = None) -> Footprint:
    """Look up the weak cells of a mapping in the profile it was made from.

    ``network`` is whose tensors lie there: what is placed by significance is laid out by their formats.

    Raises:
        NetworkError: the mapping is placed by significance, and of another network, or none is given.
    """
    points = {piece.point for piece in mapping.pieces}
    return _footprint({point: _weak_cells(profile, point) for point in points}, mapping, network)


def _weak_cells(profile: Profile, point: OperatingPoint) -> dict[str, WeakCells]:
    """What the profile knows of a point, by the kind of tensor that meets it."""
    return {kind: measured_weak_cells(profile, point, condition) for kind, condition in WRITTEN.items()}


def _footprint(
    known: Mapping[OperatingPoint, Mapping[str, WeakCells]], mapping: DramMapping, network: ApproximateNetwork | None
) -> Footprint:
    cells, rates = {}, {}
    for name, placement in mapping.placements.items():
        kind = "ifm" if is_ifm(name) else "weight"
        pieces = sorted(placement.pieces, key=lambda piece: piece.first_cell)
        cells[name] = joined([_module_cells(known[piece.point][kind], piece) for piece in pieces])
        rates[name] = cells[name].ber(placement.reserved)
    if mapping.significance is None:
        return Footprint(mapping, cells, rates)
    if network is None:
        raise NetworkError("the mapping is placed by significance, by the formats of a network; give that network")
    return Footprint(mapping, cells, rates, SignificancePlan.of(mapping, network, cells))


def _module_cells(weak: WeakCells, piece: Piece) -> WeakCells:
    """The weak cells of a piece, in module numbering."""
    here = weak.within(piece.first_cell, piece.cells)
    return WeakCells(here.cell + piece.first_cell, here.flip_zero, here.flip_one)


def map_at(
    network: ApproximateNetwork,
    tolerated: Mapping[str, float],
    parts: list[Partition],
    point: OperatingPoint,
    images: int,
) -> DramMapping:
    """EDEN's Algorithm 1 at one operating point: least tolerant tensors on the partitions with fewest errors.

    Where the tolerances leave no place, all are relaxed together: whether the network holds is then for the accuracy
    to say.

    Raises:
        CapacityError: the network does not fit the tested cells at all.
    """
    here = [
        replace(p, ber_by_point={point: p.ber("weight", point)}, ifm_ber_by_point={point: p.ber("ifm", point)})
        for p in parts
        if point in p.points()
    ]
    for relaxed in (1, 1.5, 2, 3, 5, 10):
        try:
            return fine_mapping(network.tensors(), {t: b * relaxed for t, b in tolerated.items()}, here, images)
        except CapacityError:
            continue
    return fine_mapping(network.tensors(), dict.fromkeys(tolerated, 1.0), here, images)


PlaceAt = Callable[[OperatingPoint], Footprint]
"""Where a network lies, each of its tensors at the one operating point. Raises CapacityError where it does not fit."""


def by_tolerances(
    network: ApproximateNetwork, tolerated: Mapping[str, float], profile: Profile, parts: list[Partition], images: int
) -> PlaceAt:
    """As EDEN places: see `map_at`."""

    def place_at(point: OperatingPoint) -> Footprint:
        mapping = map_at(network, tolerated, parts, point, images)
        return footprint(profile, mapping.model_copy(update={"module": profile.header.module}))

    return place_at


def by_significance(
    network: ApproximateNetwork, sample: Split, profile: Profile, parts: list[Partition], images: int
) -> PlaceAt:
    """Single bits, by what their flips cost: see `eden.significance`.

    ``sample`` says what the network's IFMs are like: a batch of it, of ``images``, is run now.
    """
    stored, formats = stored_tensors(network, sample.first(images).images)

    def place_at(point: OperatingPoint) -> Footprint:
        weak, here = _weak_cells(profile, point), [part for part in parts if point in part.points()]
        plan = plan_significance(network.tensors(), stored, formats, weak, here, point, images)
        mapping = plan.mapping.model_copy(update={"module": profile.header.module})
        return _footprint({point: weak}, mapping, network)

    return place_at


@dataclass(frozen=True)
class Choice:
    """An operating point, and the next harsher one of the grid.

    Attributes:
        footprint: the mapping at the point.
        predicted: validation accuracy over the profile's own cells there.
        next_footprint: the mapping at the next lower VDD of the same tRCD, which missed the target, or was not shown to
            meet it; None where the grid ends.
        next_predicted: validation accuracy there.
        optimum: how near the cheapest it is, and what EDEN's Algorithm 1 costs, where `cheaper_choice` made it.
        milder: the next by the objective, of any tRCD, that met the target too.
        shown: whether validation images show that it meets the target; None where they are too few, or were not asked.
    """

    footprint: Footprint
    predicted: Prediction
    next_footprint: Footprint | None
    next_predicted: Prediction | None
    optimum: Optimum | None = None
    milder: "Choice | None" = None
    shown: bool | None = None


def choose_point(
    network: ApproximateNetwork,
    place_at: PlaceAt,
    parts: list[Partition],
    module: ModuleIdentity,
    validation: Split,
    target_accuracy: float,
    images: int,
    draws: int,
    seed: int,
    progress: Progress = silent,
) -> Choice:
    """The lowest VDD (then the shortest tRCD) at which the mapped network meets ``target_accuracy`` on validation.

    From mild to harsh within each tRCD that ``parts`` were tested at, below nominal conditions of ``module``, with the
    profile's own cells at the mapped addresses, each point with a mapping of its own. A tRCD is left at its first
    failure: a lucky pass beyond one is noise.

    Raises:
        PlanError: no operating point below nominal meets the target.
    """
    tested = sorted({p for part in parts for p in part.points()}, key=lambda p: (p.trcd_ps, -p.vdd_mv))
    limits = OperatingPoint(vdd_mv=module.nominal_vdd_mv, trcd_ps=module.nominal_trcd_ps)
    candidates = [p for p in tested if p.vdd_mv <= limits.vdd_mv and p.trcd_ps <= limits.trcd_ps and p != limits]

    def predict(place: Footprint) -> Prediction:
        def memory(draw: int) -> ApproximateMemory:
            return place.memory(derive_seed(seed, "choice", draw))

        return predict_accuracy(network, memory, validation.images, validation.labels, draws, images)

    passed: dict[int, list[Choice]] = {}
    failed: set[int] = set()
    for done, point in enumerate(candidates):
        progress(done, len(candidates))
        if point.trcd_ps in failed:
            continue
        place = place_at(point)
        predicted = predict(place)
        here = passed.setdefault(point.trcd_ps, [])
        if here:
            here[-1] = replace(here[-1], next_footprint=place, next_predicted=predicted)
        if predicted.mean >= target_accuracy:
            here.append(Choice(place, predicted, None, None))
        else:
            failed.add(point.trcd_ps)
    progress(len(candidates), len(candidates))
    choices = [choice for here in passed.values() for choice in here]
    if not choices:
        raise PlanError(
            f"no operating point below {module.nominal_vdd_mv} mV or {module.nominal_trcd_ps} ps meets "
            f"{target_accuracy:.4f} on validation; add milder points to the grid, or boost the network"
        )
    chosen: Choice | None = None
    for choice in sorted(choices, key=lambda choice: aggressiveness(choice.footprint.point), reverse=True):
        chosen = replace(choice, milder=chosen)
    assert chosen is not None
    return chosen


def cheaper_choice(
    choice: Choice,
    network: ApproximateNetwork,
    tolerated: Mapping[str, float],
    profile: Profile,
    validation: Split,
    target_accuracy: float,
    draws: int,
    seed: int,
    cost: Cost,
    subarray_rows: int | None = None,
    holds: "Holds | None" = None,
) -> Choice:
    """The cheapest mapping with an operating point for each partition, if it costs less, meets the target and holds.

    Partitions, each with a tRCD of its own, are banks, or subarrays of ``subarray_rows``.
    Otherwise ``choice`` itself: the tolerances that the cheapest mapping relies on were found on an error model, and
    whether the network holds is for the profile's own cells to say.
    """
    banks, images = partitions(profile), choice.footprint.mapping.images
    parts = partitions(profile, subarray_rows) if subarray_rows else banks
    try:
        found = optimal_mapping(network.tensors(), tolerated, parts, images, cost=cost)
    except CapacityError:
        return choice
    if found.cost >= mapping_cost(choice.footprint.mapping, banks, cost):
        return choice
    place = footprint(profile, found.mapping.model_copy(update={"module": profile.header.module}))

    def memory(draw: int) -> ApproximateMemory:
        return place.memory(derive_seed(seed, "choice", draw))

    predicted = predict_accuracy(network, memory, validation.images, validation.labels, draws, images)
    if predicted.mean < target_accuracy:
        return choice
    shown = holds(place) if holds else None
    return choice if shown is False else Choice(place, predicted, None, None, found, shown=shown)


# ---- what is shown of a mapping --------------------------------------------------------------------------------------

Holds = Callable[[Footprint], bool | None]
"""Whether a mapping is shown to meet the target; None where images are too few to show it."""


def certificate_there(
    network: ApproximateNetwork,
    place: Footprint,
    images: Split,
    baseline_right: torch.Tensor,
    drop: float,
    seed: int,
    progress: Progress = silent,
) -> Certificate | None:
    """What is shown of the accuracy lost on the module's own map, by ``images``; None where they are too few."""
    sampling = Sampling(draws=1, batch=1, seed=seed)
    if not 0 < drop < 1 or len(images) < units_needed(drop):
        return None
    return certify_map(
        *(network, place.memory(sampling.seed), place.mean_ber, images, baseline_right, drop, sampling),
        held=place.mapping.images,
        progress=progress,
    )


def shown_by(
    network: ApproximateNetwork,
    validation: Split,
    baseline: ApproximateNetwork,
    drop: float,
    seed: int,
    progress: Progress = silent,
) -> Holds:
    """Whether validation images show the loss against ``baseline`` to be below the target, as `certificate_there`."""
    right = evaluate(baseline, validation.images, validation.labels).correct_images

    def holds(place: Footprint) -> bool | None:
        once = derive_seed(seed, "shown")
        found = certificate_there(network, place, validation, right, drop, once, progress)
        return None if found is None else found.certified is not None

    return holds


def shown_choice(choice: Choice, holds: Holds) -> Choice:
    """The first that holds of ``choice`` and all milder ones; ``choice`` where none does.

    A mean that meets the target shows nothing yet: half of such points miss it. Several points are held against the
    same images, each at 95 %: what is left of doubt, other images have to settle.
    """
    tried: Choice | None = choice
    while tried is not None:
        shown = holds(tried.footprint)
        if shown is not False:
            return replace(tried, shown=shown)
        tried = tried.milder
    return replace(choice, shown=False)


# ---- the error model's prediction ------------------------------------------------------------------------------------


def fits_at(profile: Profile, point: OperatingPoint) -> dict[WriteCondition, FitReport]:
    """Error models of one operating point, for weights (written at nominal) and IFMs (written at the point)."""
    return {condition: fit(profile, point, condition) for condition in (NOMINAL, AT_POINT)}


def fitted_memory(
    fits: Mapping[OperatingPoint, Mapping[WriteCondition, FitReport]], place: Footprint, parts: list[Partition]
) -> Callable[[int], ApproximateMemory]:
    """Memories that follow the fitted models where each tensor lies; each seed is another module of their kind.

    Models that are the same everywhere (0 and 3) are scaled to the measured rate of each row, which is then a partition
    of its own: weak cells cluster by rows. Models 1 and 2 know their lines.
    """

    def part_of(piece: Piece) -> Partition:
        return next(part for part in parts if 0 <= piece.first_cell - part.first_cell < part.cells)

    def memory(seed: int) -> ApproximateMemory:
        weak = {}
        for name, placement in place.mapping.placements.items():
            kind = "ifm" if is_ifm(name) else "weight"
            weak[name] = joined(
                [
                    _sample_rows(fits[piece.point][WRITTEN[kind]].model, piece, part_of(piece), kind, seed)
                    for piece in sorted(placement.pieces, key=lambda piece: piece.first_cell)
                ]
            )
        return place.on_other_cells(weak).memory(derive_seed(seed, "reads"))

    return memory


def _sample_rows(model: ErrorModel, placement: Piece, part: Partition, kind: str, seed: int) -> WeakCells:
    """Weak cells of a piece, in module numbering."""
    first, end = placement.first_cell, placement.first_cell + placement.cells
    if part.rows is None or model.number not in UNIFORM_MODELS:
        found = model.sample_weak_cells(first, placement.cells, seed)
        return WeakCells(found.cell + first, found.flip_zero, found.flip_one)
    pieces = []
    for row, rate in enumerate(part.rows.ber[kind, placement.point]):
        low = max(first, part.first_cell + row * part.rows.row_cells)
        high = min(end, part.first_cell + (row + 1) * part.rows.row_cells)
        if low < high:
            here = model.scaled(min(float(rate), model.highest_ber)).sample_weak_cells(low, high - low, seed)
            pieces.append(WeakCells(here.cell + low, here.flip_zero, here.flip_one))
    return joined(pieces)
