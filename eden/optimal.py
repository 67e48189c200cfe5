"""The cheapest mapping, with proof: operating points by partition and cells by tensor, as a mixed-integer program.

A plain program asks for each tensor, partition and operating point whether they belong together, and its relaxation
says little. Here tensors may be split between bursts, and BER feasibility is monotone: what holds for a tensor holds
for every more tolerant one. So it is enough to decide how many cells of each partition and point are used, such that
for every tolerance the cells that are at least that good suffice for the tensors that need them (Hall's condition for
nested demands). Tensors are then poured into the cells, the least tolerant into the best. Partitions that differ in
nothing are one class with a count.

Variables, for a class of partitions ``p``, an operating point ``k``, a group of tensors ``g`` (those of one kind,
access mode and number of accesses) and a level ``l`` of BER (the first of the group's tolerances that cells meet):

    y[p, k]        partitions of the class that are operated at the point, integer
    u[p, k, l, g]  bursts of level ``l`` that hold tensors of ``g``
    s[g, l]        bursts of levels up to ``l`` beyond those that tensors which tolerate no more than it need
    z[r, v]        whether rail ``r`` is at ``v`` millivolts

    minimise    sum cost[p, k] * accesses[g] * u[p, k, l, g]
    such that   sum over g of u[p, k, l, g]  <=  bursts[p, k, l] * y[p, k]
                s[g, l-1] + sum of u[.., l, g]  =  bursts of g's tensors that tolerate level l and no more  +  s[g, l]
                sum over k of y[p, k]  <=  partitions of p,   and over k of v:  <=  partitions of p * z[r, v]
                sum over v of z[r, v]  =  1

For given ``y`` what is left is a network flow, whose vertices are whole numbers of bursts.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from eden.approximate import TensorSpec
from eden.mapping import (
    DEFAULT_ALIGNMENT_BITS,
    Cost,
    DramMapping,
    Partition,
    aligned_bits,
    check_tolerances,
    fine_mapping,
    made_mapping,
    mapping_cost,
    nothing_tested,
    vdd_then_trcd,
)
from eden.placement import Piece, Placement
from profiles.errors import CapacityError
from profiles.schema import AccessMode, OperatingPoint

TIME_LIMIT_S = 60.0
PROVEN = 1e-6  # share of the cost within which a mapping counts as the cheapest
_WHOLE = 1e-6  # how far from a whole number a solver's integer may lie
_NEARLY = 0.9  # share of a partition beyond which a dive rounds it up along with others
_DIVE_STEPS = 1000
_INFEASIBLE = 2  # scipy.optimize.milp's status

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Optimum:
    """A mapping, and how far it can be from the cheapest.

    Attributes:
        mapping: where each tensor lies.
        cost: the mapping's, in the cost function's unit times bits accessed.
        bound: no mapping that keeps every tensor's BER, stretch by stretch, costs less.
        greedy_cost: that of EDEN's Algorithm 1; None where it finds no mapping.
        by_means: whether the mapping is Algorithm 1's and relies on means over rows, which no bound is known for.
    """

    mapping: DramMapping
    cost: float
    bound: float
    greedy_cost: float | None
    by_means: bool = False

    @property
    def gap(self) -> float:
        """Share of the cost that is not proven necessary; 0 where the mapping is optimal."""
        return max(0.0, 1 - self.bound / self.cost) if self.cost else 0.0


@dataclass(frozen=True)
class _Group:
    """Tensors that any cell treats alike but for their tolerances; ascending in these."""

    kind: str
    access_mode: AccessMode
    accesses: float
    tensors: tuple[TensorSpec, ...]
    tolerances: Floats  # distinct, ascending
    needs: npt.NDArray[np.int64]  # bursts of the tensors that tolerate no more than each


@dataclass(frozen=True)
class _Stretch:
    """Whole bursts of a partition, one after another, of one level for each group."""

    first_cell: int
    bursts: int
    ber: float


_Entries = Sequence[tuple[int, float]]  # of a row: column and value
_Levels = tuple[int, ...]  # by group; the number of its tolerances where it may not use the cells


@dataclass(frozen=True)
class _Offer:
    """What a class of partitions offers at one operating point: stretches by level, one list for each partition."""

    partitions: int  # number of the class
    point: OperatingPoint
    cost: float
    bursts: dict[_Levels, int]


class _Problem:
    """The mixed-integer program."""

    def __init__(self, groups: Sequence[_Group], partitions: Sequence[Partition], cost: Cost, alignment: int) -> None:
        self.groups = groups
        self.stretches = {
            (index, point): _stretches(partition, point, groups, alignment)
            for index, partition in enumerate(partitions)
            for point in partition.points()
        }
        self.classes = _classes(partitions, self.stretches, cost)
        self.rails = [partitions[members[0]].rail for members in self.classes]
        self.offers = [
            _Offer(number, point, cost(partitions[members[0]], point), _sizes(self.stretches[members[0], point]))
            for number, members in enumerate(self.classes)
            for point in partitions[members[0]].points()
        ]
        self.uses = [
            (offer, levels, group)
            for offer, each in enumerate(self.offers)
            for levels in each.bursts
            for group in range(len(groups))
            if levels[group] < groups[group].tolerances.size
        ]
        self.supplies = sorted({(self.rails[o.partitions], o.point.vdd_mv) for o in self.offers})
        self.total = int(sum(group.needs[-1] for group in groups))
        self.first_y = len(self.uses) + sum(group.tolerances.size for group in groups)
        self.first_z = self.first_y + len(self.offers)
        self.variables = self.first_z + len(self.supplies)
        self.upper = np.full(self.variables, np.inf)
        self.upper[self.first_y : self.first_z] = [len(self.classes[offer.partitions]) for offer in self.offers]
        self.upper[self.first_z :] = 1
        self._price()

    def _price(self) -> None:
        """Objective by use, less what is paid in any case and scaled to 0..1: solvers' tolerances are absolute."""
        prices = np.array([self.offers[o].cost * self.groups[g].accesses for o, _, g in self.uses])
        group = np.array([g for *_, g in self.uses], dtype=np.int64)
        self.base = sum(
            float(prices[group == g].min()) * int(each.needs[-1])
            for g, each in enumerate(self.groups)
            if (group == g).any()
        )
        for g in range(len(self.groups)):
            if (group == g).any():
                prices[group == g] -= prices[group == g].min()
        self.scale = float(prices.max(initial=0.0)) or 1.0
        self.objective = np.zeros(self.variables)
        self.objective[: len(self.uses)] = prices / self.scale

    def solve(self, time_limit_s: float, enough: float) -> tuple[npt.NDArray[np.int64] | None, float]:
        """Partitions at each offer, None where nothing feasible was found; and a bound of the cost of a burst's bits.

        A dive through linear relaxations finds a good choice at once; branch and bound then improves and proves it.

        Raises:
            CapacityError: no choice of operating points has room.
        """
        constraints = self._constraints()
        root = milp(self.objective, bounds=Bounds(0, self.upper), constraints=constraints)
        if root.x is None:
            raise self._no_room()
        dived = self._dive(constraints)
        value = math.inf if dived is None else float(self.objective @ dived)
        bound = float(root.fun)
        if self._gap(value, bound) > enough:
            found = self._branch(constraints, value, time_limit_s, enough)
            if found.status == _INFEASIBLE and dived is None:
                raise self._no_room()
            if found.status == _INFEASIBLE:  # nothing is cheaper than what the dive found
                bound = value
            elif found.mip_dual_bound is not None:
                bound = max(bound, float(found.mip_dual_bound))
            if found.x is not None and found.fun < value:
                dived = found.x
        chosen = None if dived is None else np.rint(dived[self.first_y : self.first_z]).astype(np.int64)
        return chosen, self.base + max(0.0, bound) * self.scale * self.total

    def _gap(self, value: float, bound: float) -> float:
        cost = self.base + value * self.scale * self.total
        return (value - bound) * self.scale * self.total / cost if math.isfinite(cost) and cost else value - bound

    def _branch(self, constraints: LinearConstraint, value: float, time_limit_s: float, enough: float) -> Any:
        """HiGHS's branch and bound, for what is cheaper than ``value``."""
        integrality = np.zeros(self.variables, np.int64)
        integrality[self.first_y :] = 1
        cheaper = LinearConstraint(csr_array(self.objective[None, :]), -math.inf, value)
        return milp(
            self.objective,
            integrality=integrality,
            bounds=Bounds(0, self.upper),
            constraints=[constraints, cheaper] if math.isfinite(value) else constraints,
            options={"time_limit": time_limit_s, "mip_rel_gap": enough},
        )

    def _dive(self, constraints: LinearConstraint) -> Floats | None:
        """Round what the linear relaxation divides, depth first: supplies to what costs least, then partitions up."""
        waiting = [(np.zeros(self.variables), self.upper)]
        for _ in range(_DIVE_STEPS):
            if not waiting:
                return None
            lower, upper = waiting.pop()
            found = self._relaxed(constraints, lower, upper)
            if found is None:
                continue
            part = found - np.floor(found + _WHOLE)
            divided = np.flatnonzero(part > _WHOLE)
            supplies, operated = divided[divided >= self.first_z], divided[divided >= self.first_y]
            if supplies.size:
                tried = [(_with(lower, supply, 1.0), upper) for supply in supplies]
                waiting += sorted(tried, key=lambda bounds: -self._relaxed_cost(constraints, *bounds))
            elif operated.size:
                most = operated[np.argmax(part[operated])]
                nearly = operated[part[operated] >= min(_NEARLY, part[most])]
                waiting.append((lower, _with(upper, most, float(np.floor(found[most])))))
                waiting.append((_with(lower, nearly, np.ceil(found[nearly])), upper))
            else:
                return found
        return None

    def _relaxed(self, constraints: LinearConstraint, lower: Floats, upper: Floats) -> Floats | None:
        """The cheapest solution within bounds if everything may be divided."""
        found = milp(self.objective, bounds=Bounds(lower, upper), constraints=constraints)
        return None if found.x is None else np.asarray(found.x, np.float64)

    def _relaxed_cost(self, constraints: LinearConstraint, lower: Floats, upper: Floats) -> float:
        found = self._relaxed(constraints, lower, upper)
        return math.inf if found is None else float(self.objective @ found)

    def _no_room(self) -> CapacityError:
        return CapacityError(
            f"{self.total} bursts of tensors find no cells whose BER they tolerate, at any operating point of "
            f"{sum(map(len, self.classes))} partitions: use smaller batches, more banks, or boost the network"
        )

    def fill(self, chosen: npt.NDArray[np.int64]) -> dict[tuple[int, _Levels, int], int]:
        """The cheapest numbers of bursts by use, partitions being operated as ``chosen``."""
        upper = np.where(np.arange(self.variables) < self.first_y, np.inf, 0)
        rows, right = _Rows(), []
        for offer, levels, users in self._by_stretch():
            rows.add((use, 1.0) for use in users)
            right.append(self.offers[offer].bursts[levels] * int(chosen[offer]))
        balances, needs = _Rows(), []
        for entries, need in self._balances():
            balances.add(entries)
            needs.append(need)
        within = LinearConstraint(rows.matrix(self.variables), -math.inf, right)
        balanced = LinearConstraint(balances.matrix(self.variables), needs, needs)
        found = milp(self.objective, bounds=Bounds(0, upper), constraints=[within, balanced])
        if found.x is None:
            raise CapacityError(f"the solver lost the mapping it had found ({found.message}); allow more time")
        bursts = np.rint(found.x[: len(self.uses)]).astype(np.int64)
        return {use: int(count) for use, count in zip(self.uses, bursts, strict=True) if count}

    def _constraints(self) -> LinearConstraint:
        """What `solve` must keep; bursts are counted in shares of all that is needed."""
        rows = _Rows()
        low: list[float] = []
        high: list[float] = []
        supply = {each: self.first_z + index for index, each in enumerate(self.supplies)}

        def add(entries: _Entries, lowest: float, highest: float) -> None:
            rows.add(entries)
            low.append(lowest)
            high.append(highest)

        for offer, levels, users in self._by_stretch():
            size = self.offers[offer].bursts[levels] / self.total
            add([*((use, 1.0) for use in users), (self.first_y + offer, -size)], -math.inf, 0)
        for entries, need in self._balances():
            add(entries, need / self.total, need / self.total)
        own: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for index, offered in enumerate(self.offers):
            own[offered.partitions].append((self.first_y + index, offered.point.vdd_mv))
        for number, members in enumerate(self.classes):
            add([(y, 1.0) for y, _ in own[number]], 0, len(members))
            for vdd_mv in {at for _, at in own[number]}:
                at = [(y, 1.0) for y, each in own[number] if each == vdd_mv]
                add([*at, (supply[self.rails[number], vdd_mv], -float(len(members)))], -math.inf, 0)
        for rail in set(self.rails):
            add([(index, 1.0) for (name, _), index in supply.items() if name == rail], 1, 1)
        return LinearConstraint(rows.matrix(self.variables), low, high)

    def _balances(self) -> Iterator[tuple["_Entries", int]]:
        """For each group and level: bursts spared below and bursts of the level are those needed and those spared."""
        spare = len(self.uses)
        for number, group in enumerate(self.groups):
            users: dict[int, list[int]] = defaultdict(list)
            for use, (_, levels, of) in enumerate(self.uses):
                if of == number:
                    users[levels[number]].append(use)
            for level, need in enumerate(np.diff(group.needs, prepend=0)):
                entries = [(use, 1.0) for use in users[level]]
                if level:
                    entries.append((spare - 1, 1.0))
                yield [*entries, (spare, -1.0)], int(need)
                spare += 1

    def _by_stretch(self) -> Iterator[tuple[int, _Levels, list[int]]]:
        users: dict[tuple[int, _Levels], list[int]] = defaultdict(list)
        for use, (offer, levels, _) in enumerate(self.uses):
            users[offer, levels].append(use)
        yield from ((offer, levels, found) for (offer, levels), found in users.items())


def _with(bounds: Floats, index: Any, value: Any) -> Floats:
    changed = bounds.copy()
    changed[index] = value
    return changed


class _Rows:
    """A sparse matrix, row by row."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, float]] = []
        self._count = 0

    def add(self, entries: Iterable[tuple[int, float]]) -> None:
        self._entries += [(self._count, column, value) for column, value in entries]
        self._count += 1

    def matrix(self, columns: int) -> csr_array:
        row, column, value = zip(*self._entries, strict=True) if self._entries else ((), (), ())
        return csr_array((np.array(value, float), (row, column)), shape=(self._count, columns))


def optimal_mapping(
    tensors: Sequence[TensorSpec],
    tolerated_ber: Mapping[str, float],
    partitions: Sequence[Partition],
    images: int,
    alignment_bits: int = DEFAULT_ALIGNMENT_BITS,
    cost: Cost = vdd_then_trcd,
    accesses: Mapping[str, float] | None = None,
    access_modes: Mapping[str, AccessMode] | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    enough: float = PROVEN,
) -> Optimum:
    """The cheapest mapping in which every burst of a tensor lies where the BER is within what the tensor tolerates.

    A tensor may lie in several pieces. Never worse than EDEN's Algorithm 1, which is solved beside it (and may place a
    tensor over rows whose *mean* it tolerates: where that is cheaper, or all that there is, `Optimum.by_means`).

    Args:
        accesses: how often each bit of a tensor is accessed; once, where it is not given.
        access_modes: how each tensor is read; one burst per activation, where it is not given.
        time_limit_s: seconds for branch and bound; what it has then is returned with its bound.
        enough: proven gap at which to stop.

    Raises:
        CapacityError: there is no such mapping.
        NetworkError: a tensor without a tolerance, or no tensors.
    """
    check_tolerances(tensors, tolerated_ber)
    if not tensors or not any(partition.points() for partition in partitions):
        raise nothing_tested(tensors)
    greedy = _greedy(tensors, tolerated_ber, partitions, images, alignment_bits, cost, accesses, access_modes)
    greedy_cost = mapping_cost(greedy, partitions, cost, accesses) if greedy else None
    groups = _groups(tensors, tolerated_ber, images, alignment_bits, accesses or {}, access_modes or {})
    problem = _Problem(groups, partitions, cost, alignment_bits)
    try:
        chosen, bound_a_bit = problem.solve(time_limit_s, enough)
    except CapacityError:
        if greedy is None or greedy_cost is None:
            raise
        return Optimum(greedy, greedy_cost, greedy_cost, greedy_cost, by_means=True)
    bound = bound_a_bit * alignment_bits
    if chosen is not None:
        placements = _pour(problem, chosen, partitions, tolerated_ber, images, alignment_bits)
        mapping = made_mapping(tensors, placements, images, alignment_bits)
        total = mapping_cost(mapping, partitions, cost, accesses)
        if greedy_cost is None or total <= greedy_cost:
            return Optimum(mapping, total, min(bound, total), greedy_cost)
    if greedy is None or greedy_cost is None:
        raise CapacityError(f"no mapping was found in {time_limit_s} s; allow more time, or fewer operating points")
    return Optimum(
        greedy, greedy_cost, min(bound, greedy_cost), greedy_cost, by_means=greedy_cost < bound * (1 - enough)
    )


def _greedy(
    tensors: Sequence[TensorSpec],
    tolerated_ber: Mapping[str, float],
    partitions: Sequence[Partition],
    images: int,
    alignment: int,
    cost: Cost,
    accesses: Mapping[str, float] | None,
    access_modes: Mapping[str, AccessMode] | None,
) -> DramMapping | None:
    """EDEN's, where all tensors and partitions are read in one mode, which is all that it knows."""
    modes = {partition.access_mode for partition in partitions}
    modes |= {(access_modes or {}).get(tensor.name, AccessMode.BURST_PER_ACTIVATION) for tensor in tensors}
    try:
        return (
            fine_mapping(tensors, tolerated_ber, partitions, images, alignment, cost, accesses)
            if len(modes) == 1
            else None
        )
    except CapacityError:
        return None


def _groups(
    tensors: Sequence[TensorSpec],
    tolerated_ber: Mapping[str, float],
    images: int,
    alignment: int,
    accesses: Mapping[str, float],
    access_modes: Mapping[str, AccessMode],
) -> list[_Group]:
    members: dict[tuple[str, AccessMode, float], list[TensorSpec]] = defaultdict(list)
    for tensor in tensors:
        mode = access_modes.get(tensor.name, AccessMode.BURST_PER_ACTIVATION)
        members[tensor.kind, mode, accesses.get(tensor.name, 1.0)].append(tensor)
    groups = []
    for (kind, mode, count), found in members.items():
        found.sort(key=lambda tensor: (tolerated_ber[tensor.name], tensor.name))
        tolerances = np.array([tolerated_ber[tensor.name] for tensor in found])
        bursts = np.cumsum([aligned_bits(tensor, images, alignment) // alignment for tensor in found])
        distinct = np.unique(tolerances)
        needs = bursts[np.searchsorted(tolerances, distinct, side="right") - 1]
        groups.append(_Group(kind, mode, count, tuple(found), distinct, needs))
    return groups


def _stretches(
    partition: Partition, point: OperatingPoint, groups: Sequence[_Group], alignment: int
) -> dict[_Levels, list[_Stretch]]:
    """Usable cells of a partition at a point by level, those with the fewest errors first."""
    rows = partition.rows
    found: dict[_Levels, list[_Stretch]] = defaultdict(list)
    size = partition.cells if rows is None else rows.row_cells
    for index in range(-(-partition.cells // size)):
        low, high = index * size, min((index + 1) * size, partition.cells)
        first = -(-(partition.first_cell + low) // alignment) * alignment
        bursts = ((partition.first_cell + high) // alignment * alignment - first) // alignment
        ber = {
            kind: partition.ber(kind, point) if rows is None else float(rows.ber[kind, point][index])
            for kind in {group.kind for group in groups}
        }
        levels = tuple(
            int(np.searchsorted(group.tolerances, ber[group.kind]))
            if group.access_mode == partition.access_mode
            else group.tolerances.size
            for group in groups
        )
        if bursts > 0 and any(level < group.tolerances.size for level, group in zip(levels, groups, strict=True)):
            found[levels].append(_Stretch(first, bursts, max(ber.values())))
    return {
        levels: sorted(each, key=lambda stretch: (stretch.ber, stretch.first_cell)) for levels, each in found.items()
    }


def _sizes(stretches: Mapping[_Levels, Sequence[_Stretch]]) -> dict[_Levels, int]:
    return {levels: sum(stretch.bursts for stretch in each) for levels, each in stretches.items()}


def _classes(
    partitions: Sequence[Partition],
    stretches: Mapping[tuple[int, OperatingPoint], Mapping[_Levels, Sequence[_Stretch]]],
    cost: Cost,
) -> list[list[int]]:
    """Numbers of the partitions that offer the same at the same cost, on one rail."""
    classes: dict[object, list[int]] = defaultdict(list)
    for index, partition in enumerate(partitions):
        offered = [
            (point.vdd_mv, point.trcd_ps, cost(partition, point), sorted(_sizes(stretches[index, point]).items()))
            for point in partition.points()
        ]
        classes[partition.rail, str(sorted(offered))].append(index)
    return list(classes.values())


def _pour(
    problem: _Problem,
    chosen: npt.NDArray[np.int64],
    partitions: Sequence[Partition],
    tolerated_ber: Mapping[str, float],
    images: int,
    alignment: int,
) -> dict[str, Placement]:
    """Pieces for every tensor: in each group the least tolerant takes the best cells that the program uses."""
    used: list[list[tuple[int, Piece]]] = [[] for _ in problem.groups]
    waiting = {number: list(members) for number, members in enumerate(problem.classes)}
    free: dict[tuple[int, _Levels], list[Piece]] = {}
    for index, offer in enumerate(problem.offers):
        members = [waiting[offer.partitions].pop(0) for _ in range(int(chosen[index]))]
        for levels in offer.bursts:
            free[index, levels] = [
                Piece(
                    partition=partitions[member].name,
                    first_cell=stretch.first_cell,
                    cells=stretch.bursts * alignment,
                    point=offer.point,
                )
                for member in members
                for stretch in problem.stretches[member, offer.point][levels]
            ]
    for (index, levels, group), bursts in problem.fill(chosen).items():
        taken = _take(free[index, levels], bursts * alignment)
        used[group] += [(levels[group], piece) for piece in taken]
    placements = {}
    for each, found in zip(problem.groups, used, strict=True):
        cells = [piece for _, piece in sorted(found, key=lambda use: (use[0], use[1].first_cell))]
        for tensor in each.tensors:
            first, *more = _merged(_take(cells, aligned_bits(tensor, images, alignment)))
            placements[tensor.name] = Placement(tensor=tensor.name, more=tuple(more), **first.model_dump())
    return placements


def _take(pieces: list[Piece], cells: int) -> list[Piece]:
    """Remove the first ``cells`` cells from ``pieces``."""
    taken = []
    while cells:
        piece = pieces.pop(0)
        if piece.cells > cells:
            rest = {"first_cell": piece.first_cell + cells, "cells": piece.cells - cells}
            pieces.insert(0, piece.model_copy(update=rest))
            piece = piece.model_copy(update={"cells": cells})
        taken.append(piece)
        cells -= piece.cells
    return taken


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces that follow one another in one partition, as one."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last and last.partition == piece.partition and last.first_cell + last.cells == piece.first_cell:
            merged[-1] = last.model_copy(update={"cells": last.cells + piece.cells})
        else:
            merged.append(piece)
    return merged
