"""The stages from a profile to an accuracy on DRAM, as functions; `eden run` and the single commands share them."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

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
    vdd_then_trcd,
)
from eden.memory import UNIFORM_MODELS, ApproximateMemory, ErrorModelMemory, joined
from eden.networks import build, folded
from eden.optimal import Optimum, optimal_mapping
from eden.placement import Piece
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.significance import plan_significance, stored_tensors
from eden.tolerance import Sampling
from eden.training import recipe
from host.cli.modules import AT_POINT, NOMINAL, WRITTEN, Fits, Footprint, Modules, footprint_by, is_ifm
from host.plan import Cells, Rows, ScanPlan
from profiles import statistics
from profiles.cells import WeakCells
from profiles.error_models import ErrorModel
from profiles.errors import CapacityError, FitError, NetworkError, PlanError
from profiles.files import atomic_file, first_problem, read_bounded
from profiles.geometry import Geometry
from profiles.progress import Progress, silent
from profiles.schema import OperatingPoint
from profiles.storage import Profile

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
    network: ApproximateNetwork, tolerated: Mapping[str, float], modules: Modules, images: int
) -> PlaceAt:
    """As EDEN places: see `map_at`."""

    def place_at(point: OperatingPoint) -> Footprint:
        mapping = map_at(network, tolerated, modules.partitions(), point, images)
        return modules.footprint(mapping.model_copy(update={"modules": modules.mapped}))

    return place_at


def by_significance(network: ApproximateNetwork, sample: Split, modules: Modules, images: int) -> PlaceAt:
    """Single bits, by what their flips cost: see `eden.significance`.

    ``sample`` says what the network's IFMs are like: a batch of it, of ``images``, is run now.
    """
    stored, formats = stored_tensors(network, sample.first(images).images)

    def place_at(point: OperatingPoint) -> Footprint:
        weak, parts = modules.weak_cells(point, range(len(modules.profiles))), modules.partitions()
        plan = plan_significance(network.tensors(), stored, formats, weak, parts, point, images)
        mapping = plan.mapping.model_copy(update={"modules": modules.mapped})
        return footprint_by({point: weak}, mapping, network, modules.unseen(modules.users(mapping)))

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
    modules: Modules,
    validation: Split,
    target_accuracy: float,
    images: int,
    draws: int,
    seed: int,
    progress: Progress = silent,
    cost: Cost = vdd_then_trcd,
) -> Choice:
    """The cheapest operating point at which the mapped network meets ``target_accuracy`` on validation.

    From mild to harsh within each tRCD, over the points below nominal that every module was tested at, with the
    profiles' own cells at the mapped addresses, each point with a mapping of its own. A tRCD is left at its first
    failure: a lucky pass beyond one is noise.

    Raises:
        PlanError: no operating point below nominal meets the target, or the modules have none in common.
        CapacityError: the network does not fit the tested cells at any point that could have met it.
    """
    tested, limits = sorted(modules.common_points(), key=lambda p: (p.trcd_ps, -p.vdd_mv)), modules.nominal
    if not tested:
        raise PlanError("the modules were tested at no operating point in common; scan all of them by one plan")
    candidates = [p for p in tested if p.vdd_mv <= limits.vdd_mv and p.trcd_ps <= limits.trcd_ps and p != limits]

    def predict(place: Footprint) -> Prediction:
        def memory(draw: int) -> ApproximateMemory:
            return place.memory(derive_seed(seed, "choice", draw))

        return predict_accuracy(network, memory, validation.images, validation.labels, draws, images)

    passed: dict[int, list[Choice]] = {}
    failed: set[int] = set()
    no_room: CapacityError | None = None
    for done, point in enumerate(candidates):
        progress(done, len(candidates))
        if point.trcd_ps in failed:
            continue
        try:
            place = place_at(point)
        except CapacityError as error:  # the best windows at one point may leave no room that those at another do
            no_room = error
            failed.add(point.trcd_ps)
            continue
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
    if not choices and no_room is not None:
        raise no_room
    if not choices:
        raise PlanError(
            f"no operating point below {limits.vdd_mv} mV or {limits.trcd_ps} ps meets "
            f"{target_accuracy:.4f} on validation; add milder points to the grid, or boost the network"
        )
    chosen: Choice | None = None
    part = modules.partitions()[0]

    def dearness(choice: Choice) -> tuple[float, tuple[int, int]]:
        point = choice.footprint.point
        return cost(part, point), aggressiveness(point)

    for choice in sorted(choices, key=dearness, reverse=True):
        chosen = replace(choice, milder=chosen)
    assert chosen is not None
    return chosen


def cheaper_choice(
    choice: Choice,
    network: ApproximateNetwork,
    tolerated: Mapping[str, float],
    modules: Modules,
    validation: Split,
    target_accuracy: float,
    draws: int,
    seed: int,
    cost: Cost,
    subarray_rows: int | None = None,
    holds: "Holds | None" = None,
) -> Choice:
    """The cheapest mapping with an operating point for each partition, if it costs less, meets the target and holds.

    Partitions, each with a tRCD of its own, are banks, or subarrays of ``subarray_rows``; each module has a VDD.
    Otherwise ``choice`` itself: the tolerances that the cheapest mapping relies on were found on an error model, and
    whether the network holds is for the profile's own cells to say.
    """
    parts, images = modules.partitions(subarray_rows), choice.footprint.mapping.images
    try:
        found = optimal_mapping(network.tensors(), tolerated, parts, images, cost=cost)
    except CapacityError:
        return choice
    if found.cost >= mapping_cost(choice.footprint.mapping, modules.partitions(), cost):
        return choice
    place = modules.footprint(found.mapping.model_copy(update={"modules": modules.mapped}))

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


def fitted_memory(fits: Fits, place: Footprint, modules: Modules) -> Callable[[int], ApproximateMemory]:
    """Memories that follow the fitted models where each tensor lies; each seed is other modules of their kind.

    Models that are the same everywhere (0 and 3) are scaled to the measured rate of each row, which is then a partition
    of its own: weak cells cluster by rows. Models 1 and 2 know their lines.
    """

    def part_of(piece: Piece) -> Partition:
        return next(part for part in modules.partitions() if 0 <= piece.first_cell - part.first_cell < part.cells)

    def drawn(piece: Piece, kind: str, seed: int) -> WeakCells:
        module, there = modules.located(piece)
        part = part_of(piece)
        own_seed = derive_seed(seed, "module", module) if module else seed  # or modules of one kind would fail alike
        first_row = part.first_cell - (piece.first_cell - there.first_cell)
        model = fits[module, piece.point][WRITTEN[kind]].model
        return modules.from_module(module, _sample_rows(model, there, part.rows, first_row, kind, own_seed))

    def memory(seed: int) -> ApproximateMemory:
        weak = {}
        for name, placement in place.mapping.placements.items():
            kind = "ifm" if is_ifm(name) else "weight"
            pieces = sorted(placement.pieces, key=lambda piece: piece.first_cell)
            weak[name] = joined([drawn(piece, kind, seed) for piece in pieces])
        return place.on_other_cells(weak).memory(derive_seed(seed, "reads"))

    return memory


def _sample_rows(
    model: ErrorModel, piece: Piece, rows: RowRates | None, first_row: int, kind: str, seed: int
) -> WeakCells:
    """Weak cells of a piece, in its module's numbering; ``rows`` begin at the cell ``first_row``."""
    first, end = piece.first_cell, piece.first_cell + piece.cells
    if rows is None or model.number not in UNIFORM_MODELS:
        found = model.sample_weak_cells(first, piece.cells, seed)
        return WeakCells(found.cell + first, found.flip_zero, found.flip_one)
    pieces = []
    for row, rate in enumerate(rows.ber[kind, piece.point]):
        low = max(first, first_row + row * rows.row_cells)
        high = min(end, first_row + (row + 1) * rows.row_cells)
        if low < high:
            here = model.scaled(min(float(rate), model.highest_ber)).sample_weak_cells(low, high - low, seed)
            pieces.append(WeakCells(here.cell + low, here.flip_zero, here.flip_one))
    return joined(pieces)
