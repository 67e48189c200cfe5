"""The modules that a network is placed in, as their profiles know them: one memory, one cell numbering.

Each module's cells follow those of the one before: cell 0 of the second comes after the last of the first. Every module
is fed by a rail of its own. Modules are counted from 0, and from 1 where people read it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from eden.approximate import ApproximateNetwork
from eden.mapping import DramMapping, MappedModule, Partition, RowRates
from eden.memory import ApproximateMemory, ProfileMemory, joined
from eden.placement import Piece
from eden.significance import SignificancePlan
from host.expectation import CellRates
from profiles import statistics
from profiles.cells import WeakCells
from profiles.error_models import Floats
from profiles.errors import BoardError, NetworkError, PlanError
from profiles.fit import FitReport, fit
from profiles.geometry import Geometry, first_cells, in_one_module
from profiles.population import Population, collect, measured_weak_cells, unseen_rates
from profiles.schema import AccessMode, ModuleIdentity, OperatingPoint, PointRecord, Region, WriteCondition
from profiles.storage import Profile

NOMINAL, AT_POINT = WriteCondition.NOMINAL, WriteCondition.OPERATING_POINT
WRITTEN = {"weight": NOMINAL, "ifm": AT_POINT}  # how each kind of tensor is

Thing = TypeVar("Thing")
Fits = Mapping[tuple[int, OperatingPoint], Mapping[WriteCondition, FitReport]]
"""Error models by module (its place in the order, from 0) and operating point."""


@dataclass(frozen=True)
class Footprint:
    """A mapping and the weak cells behind it.

    Attributes:
        mapping: where each tensor lies.
        weak_cells: of each tensor, by its kind's write condition.
        ber: expected bit error rate of each tensor (half its bits ones).
        plan: how tensors are laid out there, where they are placed by significance; None where they lie as they come.
        unseen: where they are placed by significance, how often cells of each tensor fail that the profile has not seen
            to, storing 0 and storing 1: bits that matter lie on these. Tensors as they come meet all cells alike.
    """

    mapping: DramMapping
    weak_cells: Mapping[str, WeakCells]
    ber: Mapping[str, float]
    plan: SignificancePlan | None = None
    unseen: Mapping[str, tuple[float, float]] = field(default_factory=dict)

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
        """The profile's own cells at the mapped addresses, and what it has not seen of them where that counts."""
        cells = ProfileMemory(self.weak_cells, self.mapping.placements, seed, self.unseen)
        return self.plan.memory(cells) if self.plan else cells

    def on_other_cells(self, weak_cells: Mapping[str, WeakCells]) -> "Footprint":
        """The same places in modules that are known to have these weak cells, and no others."""
        plan = replace(self.plan, weak_cells=weak_cells) if self.plan else None
        return replace(self, weak_cells=weak_cells, plan=plan, unseen={})


class Modules:
    """Modules in the order of their profiles.

    Args:
        profiles: of different modules with the same nominal conditions and burst, none read row by row.

    Attributes:
        profiles: in that order.

    Raises:
        PlanError: they cannot be used together, or not for tensors.
    """

    def __init__(self, profiles: Sequence[Profile]) -> None:
        for profile in profiles:
            check_access(str(profile.path), *(record.access_mode for record in profile.points))
        _check_together(profiles)
        self.profiles = tuple(profiles)
        self._first_cells = first_cells([profile.geometry for profile in profiles])
        self._partitions: dict[int | None, list[list[Partition]]] = {}  # by module

    @classmethod
    def open(cls, paths: Sequence[Path]) -> "Modules":
        """As `Profile.open` and `Modules`."""
        return cls([Profile.open(path) for path in paths])

    @property
    def mapped(self) -> tuple[MappedModule, ...]:
        """As a mapping names them."""
        return tuple(MappedModule(identity=each.header.module, geometry=each.geometry) for each in self.profiles)

    @property
    def nominal(self) -> OperatingPoint:
        """Of every module."""
        module = self.profiles[0].header.module
        return OperatingPoint(vdd_mv=module.nominal_vdd_mv, trcd_ps=module.nominal_trcd_ps)

    def of(self, mapping: DramMapping) -> "Modules":
        """These modules in the order that the mapping numbers them in.

        Raises:
            BoardError: they are not those that it was made for.
        """
        if mapping.modules in ((), self.mapped):
            return self
        return Modules(in_order_of(mapping.modules, "profile", list(zip(self.mapped, self.profiles, strict=True))))

    def partitions(self, subarray_rows: int | None = None) -> list[Partition]:
        """One partition a bank, of the rows whose cells are known at every point, with its BER at each operating point.

        ``subarray_rows``: one for each subarray instead, of so many rows. Of several modules each is a rail.

        Raises:
            PlanError: a profile knows no operating point for both weights and IFMs, or single cells in other places at
                some points than at others.
        """
        return [part for parts in self._by_module(subarray_rows) for part in parts]

    def points_of(self, module: int) -> set[OperatingPoint]:
        """Operating points that a module was tested at for weights and for IFMs."""
        return {point for part in self._by_module()[module] for point in part.points()}

    def common_points(self) -> set[OperatingPoint]:
        """Those that every module was tested at."""
        return set.intersection(*(self.points_of(module) for module in range(len(self.profiles))))

    def _by_module(self, subarray_rows: int | None = None) -> list[list[Partition]]:
        if subarray_rows not in self._partitions:
            found = [_partitions(profile, subarray_rows) for profile in self.profiles]
            if len(found) > 1:
                found = [
                    [_in_module(part, number, first) for part in parts]
                    for number, (parts, first) in enumerate(zip(found, self._first_cells, strict=True), 1)
                ]
            self._partitions[subarray_rows] = found
        return self._partitions[subarray_rows]

    def footprint(self, mapping: DramMapping, network: ApproximateNetwork | None = None) -> Footprint:
        """Look up the weak cells of a mapping to these modules.

        ``network`` is whose tensors lie there: what is placed by significance is laid out by their formats.

        Raises:
            NetworkError: the mapping is placed by significance, and of another network, or none is given.
            FitError: a module was not tested at an operating point of the mapping.
        """
        known = {point: self.weak_cells(point, numbers) for point, numbers in self.users(mapping).items()}
        if mapping.significance is None:
            return footprint_by(known, mapping, network)
        return footprint_by(known, mapping, network, self.unseen(self.users(mapping)))

    def weak_cells(self, point: OperatingPoint, modules: Collection[int]) -> dict[str, WeakCells]:
        """What is known of a point in some modules, by the kind of tensor that meets it.

        Raises:
            FitError: a module was not tested there.
        """
        return {
            kind: joined(
                [
                    self.from_module(module, measured_weak_cells(self.profiles[module], point, condition))
                    for module in sorted(modules)
                ]
            )
            for kind, condition in WRITTEN.items()
        }

    def unseen(self, users: Mapping[OperatingPoint, Collection[int]]) -> dict[str, tuple[float, float]]:
        """How often cells fail that were not seen to, storing 0 and 1, by kind of tensor: the worst of the modules."""
        met = [(self.profiles[module], point) for point, modules in users.items() for module in modules]
        worst = {}
        for kind, condition in WRITTEN.items():
            zero, one = zip(*(unseen_rates(collect(*each, condition)) for each in met), strict=True)
            worst[kind] = (max(zero), max(one))
        return worst

    def users(self, mapping: DramMapping) -> dict[OperatingPoint, set[int]]:
        """By operating point of a mapping, the modules in which tensors meet it."""
        found: dict[OperatingPoint, set[int]] = {}
        for piece in mapping.pieces:
            found.setdefault(piece.point, set()).add(self.located(piece)[0])
        return found

    def located(self, piece: Piece) -> tuple[int, Piece]:
        """Which module a piece lies in, and the piece in that module's own cell numbering."""
        module, cell = in_one_module(self._first_cells, piece.first_cell)
        return module, piece.model_copy(update={"first_cell": cell})

    def from_module(self, module: int, weak: WeakCells) -> WeakCells:
        """Weak cells of a module's own cell numbering in that of all."""
        return _from(weak, self._first_cells[module])

    def fits(self, mapping: DramMapping) -> Fits:
        """Error models of each module and operating point that tensors meet. Raises FitError where one has none."""
        return {
            (module, point): fits_at(self.profiles[module], point)
            for point, modules in self.users(mapping).items()
            for module in sorted(modules)
        }

    def cell_rates(self, mapping: DramMapping) -> dict[str, CellRates]:
        """What was counted in each tensor's cells at its operating points.

        Raises:
            FitError: a profile holds no such point.
            BoardError: it was measured without refresh, which inference keeps.
        """
        counted: dict[tuple[int, OperatingPoint, WriteCondition], Population] = {}

        def population(module: int, point: OperatingPoint, condition: WriteCondition) -> Population:
            if (module, point, condition) not in counted:
                counted[module, point, condition] = _counted_with_refresh(self.profiles[module], point, condition)
            return counted[module, point, condition]

        rates = {}
        for name, place in mapping.placements.items():
            pieces = [self.located(piece) for piece in place.pieces]
            nominal = [population(module, piece.point, NOMINAL) for module, piece in pieces]
            at_point = [population(module, piece.point, AT_POINT) for module, piece in pieces] if is_ifm(name) else None
            rates[name] = CellRates.of([piece for _, piece in pieces], nominal, at_point)
        return rates


def in_order_of(wanted: Sequence[MappedModule], what: str, given: Sequence[tuple[MappedModule, Thing]]) -> list[Thing]:
    """What was given, each with the module that it is of, in the order of the modules wanted.

    Raises:
        BoardError: they are not of these modules, each once, or number cells otherwise.
    """
    by_identity = {module.identity: (module, thing) for module, thing in given}
    if len(given) != len(wanted) or by_identity.keys() != {module.identity for module in wanted}:
        raise BoardError(
            f"one {what} is needed for each of these modules: {module_names(wanted)}; given are those of: "
            f"{module_names([module for module, _ in given])}; give the right ones, or scan and map what there is"
        )
    for module in wanted:
        if not by_identity[module.identity][0].geometry.numbers_cells_like(module.geometry):
            raise BoardError(
                f"module {module_names([module])} has other banks, rows or columns by the {what} than when it was "
                "scanned; scan it as it is now, and map again"
            )
    return [by_identity[module.identity][1] for module in wanted]


def module_names(modules: Sequence[MappedModule]) -> str:
    """In words, for messages: all that may tell two apart but an SPD."""
    return "; ".join(
        f"{each.serial_number} of {each.manufacturer}, {each.part_number}, {each.dram_type}, {each.nominal_vdd_mv} mV, "
        f"tRCD {each.nominal_trcd_ps} ps"
        for each in (module.identity for module in modules)
    )


def footprint_by(
    known: Mapping[OperatingPoint, Mapping[str, WeakCells]],
    mapping: DramMapping,
    network: ApproximateNetwork | None,
    unseen: Mapping[str, tuple[float, float]] | None = None,
) -> Footprint:
    """As `Modules.footprint`, of what `Modules.weak_cells` and `Modules.unseen` gave."""
    cells, rates = {}, {}
    for name, placement in mapping.placements.items():
        kind = "ifm" if is_ifm(name) else "weight"
        pieces = sorted(placement.pieces, key=lambda piece: piece.first_cell)
        cells[name] = joined([_cells_of(known[piece.point][kind], piece) for piece in pieces])
        rates[name] = cells[name].ber(placement.reserved)
    if mapping.significance is None:
        return Footprint(mapping, cells, rates)
    if network is None:
        raise NetworkError("the mapping is placed by significance, by the formats of a network; give that network")
    elsewhere = {name: unseen["ifm" if is_ifm(name) else "weight"] for name in cells} if unseen else {}
    return Footprint(mapping, cells, rates, SignificancePlan.of(mapping, network, cells), elsewhere)


def _cells_of(weak: WeakCells, piece: Piece) -> WeakCells:
    """The weak cells of a piece, numbered as ``weak`` is."""
    return _from(weak.within(piece.first_cell, piece.cells), piece.first_cell)


def _from(weak: WeakCells, first_cell: int) -> WeakCells:
    return WeakCells(weak.cell + first_cell, weak.flip_zero, weak.flip_one)


def is_ifm(tensor: str) -> bool:
    """Whether a tensor's name is that of an input feature map (`eden.approximate`)."""
    return tensor.rpartition(".")[2].startswith("ifm")


def fits_at(profile: Profile, point: OperatingPoint) -> dict[WriteCondition, FitReport]:
    """Error models of one operating point, for weights (written at nominal) and IFMs (written at the point)."""
    return {condition: fit(profile, point, condition) for condition in (NOMINAL, AT_POINT)}


def check_access(what: str, *modes: AccessMode) -> None:
    """Raises PlanError where ``what``, a scan's plan or profile, was not read as tensors are."""
    if any(mode != AccessMode.BURST_PER_ACTIVATION for mode in modes):
        raise PlanError(
            f"{what} reads row by row (access_mode linear), but tensors are read one burst per activation, and error "
            'rates hold for no other access; scan with access_mode = "burst_per_activation"'
        )


def _check_together(profiles: Sequence[Profile]) -> None:
    if not profiles:
        raise PlanError("no profile was given; give one for each module that the network may lie in")
    first, by_module = profiles[0], dict[ModuleIdentity, Profile]()
    for profile in profiles:
        module = profile.header.module
        if module in by_module:
            raise PlanError(
                f"{profile.path} and {by_module[module].path} are of the same module, {module.serial_number} of "
                f"{module.manufacturer}, or cannot be told apart; give each module once"
            )
        by_module[module] = profile
        for what, here, there in (
            ("nominal VDD, mV", module.nominal_vdd_mv, first.header.module.nominal_vdd_mv),
            ("nominal tRCD, ps", module.nominal_trcd_ps, first.header.module.nominal_trcd_ps),
            ("bits a burst", profile.geometry.burst_bits, first.geometry.burst_bits),
        ):
            if here != there:
                raise PlanError(
                    f"{what}: {here} in {profile.path}, {there} in {first.path}; a network can be placed in modules of "
                    "one kind only: map it to each kind apart"
                )


def _counted_with_refresh(profile: Profile, point: OperatingPoint, condition: WriteCondition) -> Population:
    if any(record.refresh != "kept" for record in profile.find(point)):
        raise BoardError(f"{profile.path} was scanned with refresh withheld, inference refreshes; scan with it kept")
    return collect(profile, point, condition)


# ---- partitions ------------------------------------------------------------------------------------------------------


def _partitions(profile: Profile, subarray_rows: int | None) -> list[Partition]:
    """Of one module."""
    geometry, region = profile.geometry, _common_region(profile.points)
    rows = np.arange(region.row_start, region.row_end)
    wordlines = (np.array(region.banks)[:, None] * geometry.rows + rows).ravel()
    rates: dict[tuple[str, OperatingPoint], Floats] = {}
    patterns = {record.pattern for record in profile.points}
    for point in profile.operating_points():
        for kind, condition in WRITTEN.items():
            records = profile.find(point, condition)
            if {record.pattern for record in records} == patterns:  # cells that fail with the others are known too
                by_row = statistics.ber_by(profile, records, "wordline_block", block_rows=1)
                rates[kind, point] = by_row.ber[np.isin(by_row.keys, wordlines)].reshape(len(region.banks), -1)
    for kind, condition in WRITTEN.items():
        if not any(known == kind for known, _ in rates):
            raise PlanError(
                f"{profile.path} holds no operating point with all patterns written at: {condition.value}; scan with "
                'write = ["nominal", "operating_point"]'
            )
    if not any(("ifm", point) in rates for kind, point in rates if kind == "weight"):
        raise PlanError(
            f"{profile.path} holds no operating point at which all patterns were written both ways; scan with "
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


def _in_module(part: Partition, number: int, first_cell: int) -> Partition:
    """A module's partition among those of several."""
    rail = f"module {number}"
    return replace(part, name=f"{rail}, {part.name}", first_cell=first_cell + part.first_cell, rail=rail)


def _common_region(points: Sequence[PointRecord]) -> Region:
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
