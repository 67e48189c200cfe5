"""Bit error rates with their uncertainty, stability of weak cells, overlap of profiles.

Rates are worked out here, from integer errors and trials, never stored. Points are read bank by bank.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from profiles.error_models import Floats
from profiles.errors import ProfileError
from profiles.geometry import Geometry
from profiles.pattern import Pattern
from profiles.population import Integers
from profiles.schema import OperatingPoint, PointRecord, Region, WriteCondition
from profiles.storage import Profile

CONFIDENCE = 0.95
ZERO_TO_ONE, ONE_TO_ZERO = "0 to 1", "1 to 0"

Group = Literal["bank", "wordline_block", "bitline", "bank_bitline", "dq", "direction", "pattern", "operating_point"]
_GROUPS_AT_ONCE = 1 << 22  # more are worked out bank by bank


@dataclass(frozen=True)
class BerEstimate:
    """A bit error rate and its two-sided 95 % interval.

    Attributes:
        errors: failed reads.
        trials: reads. 0 means untested: ``ber`` is then NaN and the interval 0 .. 1.
        ber: errors / trials.
        low, high: the interval; which one, the function that made it says.
    """

    errors: int
    trials: int
    ber: float
    low: float
    high: float


@dataclass(frozen=True)
class BerTable:
    """Bit error rates by group; groups that were not tested are absent.

    Attributes:
        group: what ``keys`` are.
        keys: bank, dq or bitline numbers, first wordlines of blocks (module numbers), directions, patterns, or
            operating points.
        errors, trials: int64[n], failed reads and reads.
    """

    group: Group
    keys: list[Any]
    errors: Integers
    trials: Integers

    @property
    def ber(self) -> Floats:
        """float64[n], errors / trials."""
        return self.errors / self.trials

    @property
    def low(self) -> Floats:
        """float64[n], lower end of the exact (Clopper-Pearson) interval."""
        return self._interval[0]

    @property
    def high(self) -> Floats:
        """float64[n], its upper end."""
        return self._interval[1]

    @cached_property
    def _interval(self) -> tuple[Floats, Floats]:
        return clopper_pearson(self.errors, self.trials)

    def worst(self, count: int) -> "BerTable":
        """The ``count`` groups of the highest rates, from the highest down."""
        order = np.argsort(-self.ber, kind="stable")[:count]
        return BerTable(self.group, [self.keys[i] for i in order], self.errors[order], self.trials[order])

    def __len__(self) -> int:
        return len(self.keys)

    def items(self) -> Iterator[tuple[Any, BerEstimate]]:
        """Pairs of key and estimate."""
        columns = (column.tolist() for column in (self.errors, self.trials, self.ber, self.low, self.high))
        for key, *values in zip(self.keys, *columns, strict=True):
            yield key, BerEstimate(*values)

    def __getitem__(self, key: Any) -> BerEstimate:
        """The estimate of one group; KeyError if it was not tested."""
        try:
            i = self.keys.index(key)
        except ValueError:
            raise KeyError(key) from None
        return BerEstimate(
            int(self.errors[i]), int(self.trials[i]), float(self.ber[i]), float(self.low[i]), float(self.high[i])
        )


class SurfacePoint(NamedTuple):
    """The bit error rate at one operating point, over the patterns tested there.

    ``vdd_measured_mv`` is the mean over the point's tests, weighted by their reads.
    """

    point: OperatingPoint
    vdd_measured_mv: float
    ber: BerEstimate


def clopper_pearson(
    errors: npt.ArrayLike, trials: npt.ArrayLike, confidence: float = CONFIDENCE
) -> tuple[Floats, Floats]:
    """Exact binomial interval (Clopper and Pearson, Biometrika 1934) of each rate.

    Effective counts need not be integers. Without trials the interval is 0 .. 1.
    """
    k, n = np.broadcast_arrays(np.asarray(errors, np.float64), np.asarray(trials, np.float64))
    tail = (1 - confidence) / 2
    low = np.where(k > 0, betaincinv(np.maximum(k, 1e-300), n - k + 1, tail), 0.0)
    high = np.where(k < n, betaincinv(k + 1, np.maximum(n - k, 1e-300), 1 - tail), 1.0)
    return low, high


def estimate(errors: int, trials: int) -> BerEstimate:
    """The rate with its exact Clopper-Pearson interval.

    It is the interval of the binomial rate of *these reads*, taken as independent. Reads of one cell are not (a weak
    cell fails again), nor are cells of a weak row: for what other cells of the module do, use `clustered_ber`.
    """
    low, high = clopper_pearson(errors, trials)
    return BerEstimate(errors, trials, errors / trials if trials else float("nan"), float(low), float(high))


def reads(profile: Profile, record: PointRecord) -> int:
    """Reads of single cells at a point: cells of its region times rounds."""
    return record.region.cells(profile.geometry) * record.rounds


def ber(profile: Profile, records: Sequence[PointRecord]) -> BerEstimate:
    """The bit error rate over all reads of ``records``, with the interval of `estimate`.

    Raises:
        ProfileError: there are no records; untested is not a rate of zero.
    """
    _check_some(profile, records)
    return estimate(sum(record.errors for record in records), sum(reads(profile, record) for record in records))


def clustered_ber(
    profile: Profile, records: Sequence[PointRecord], bank: int | None = None, confidence: float = CONFIDENCE
) -> BerEstimate:
    """The bit error rate with an interval that allows for errors that cluster by cell and by wordline.

    Wordlines are the sampling units. The variance of the rate between them, over the binomial one, is the design effect
    by which errors and trials are divided before the exact interval (Korn and Graubard, Survey Methodology 1998); never
    less than 1. Without an error each cell counts as one trial, however often it was read.

    Args:
        profile: where the records come from.
        records: points to pool.
        bank: of this bank alone, which every one of them tested; None: of all banks.
        confidence: of the interval.

    Raises:
        ProfileError: there are no records, or a file is damaged.
    """
    _check_some(profile, records)
    pooled = ber(profile, records) if bank is None else ber_by(profile, records, "bank", banks=(bank,))[bank]
    if not pooled.errors:
        banks = [len(record.region.banks) if bank is None else 1 for record in records]
        rows = [record.region.row_count for record in records]
        cells = sum(count * many for count, many in zip(rows, banks, strict=True)) * profile.geometry.row_bits
        low, high = clopper_pearson(0, cells, confidence)
        return BerEstimate(0, pooled.trials, 0.0, float(low), float(high))
    by_line = ber_by(profile, records, "wordline_block", block_rows=1, banks=None if bank is None else (bank,))
    deviation = by_line.errors - pooled.ber * by_line.trials
    lines = len(by_line)
    variance = float((deviation**2).sum()) / pooled.trials**2 * lines / max(1, lines - 1)
    effect = max(1.0, variance * pooled.trials / (pooled.ber * (1 - pooled.ber))) if pooled.ber < 1 else 1.0
    low, high = clopper_pearson(pooled.errors / effect, pooled.trials / effect, confidence)
    return BerEstimate(pooled.errors, pooled.trials, pooled.ber, float(low), float(high))


def ber_by(
    profile: Profile,
    records: Sequence[PointRecord],
    group: Group,
    block_rows: int = 64,
    banks: Sequence[int] | None = None,
) -> BerTable:
    """Bit error rates by ``group``, over all reads of ``records``.

    Args:
        profile: where the records come from.
        records: points to pool.
        group: one of

            - "bank", "dq" (data line);
            - "wordline_block": ``block_rows`` rows;
            - "bitline": (subarray, column, dq) of a bank. Counters do not tell subarrays apart, so a counted point
              takes part only where it knows single cells;
            - "bank_bitline": (column, dq) of a bank over its subarrays, ``bank * row_bits + column * data_width + dq``;
            - "direction", "pattern", "operating_point".

        block_rows: rows of a wordline block.
        banks: only these, of groups that lie in one bank or are data lines; None: all.

    Raises:
        ProfileError: there are no records, or a file is damaged.
    """
    parts = list(ber_tables(profile, records, group, block_rows, banks))
    if len(parts) == 1:
        return parts[0]
    keys = [key for part in parts for key in part.keys]
    return BerTable(group, keys, *(np.concatenate([getattr(part, n) for part in parts]) for n in ("errors", "trials")))


def ber_tables(
    profile: Profile,
    records: Sequence[PointRecord],
    group: Group,
    block_rows: int = 64,
    banks: Sequence[int] | None = None,
) -> Iterator[BerTable]:
    """What `ber_by` gives, in as many tables as keep memory bounded: one a bank where there are many groups.

    Raises:
        ProfileError: as `ber_by`.
    """
    _check_some(profile, records)
    if group in ("direction", "pattern", "operating_point"):
        counts = _by_direction(profile, records) if group == "direction" else _by_condition(profile, records, group)
        named: list[Any] = [key for key, (_, trials) in counts.items() if trials]
        yield BerTable(group, named, *np.array([counts[key] for key in named], np.int64).reshape(-1, 2).T)
        return
    geometry = profile.geometry
    tested = {bank for record in records for bank in record.region.banks}
    banks = tuple(sorted(tested if banks is None else tested & set(banks)))
    a_bank = {"bitline": geometry.bitlines, "bank_bitline": geometry.row_bits}.get(group, geometry.rows)
    together = group == "dq" or len(banks) * a_bank <= _GROUPS_AT_ONCE
    for chosen in (banks,) if together else tuple((bank,) for bank in banks):
        known, trials = _group_trials(geometry, records, group, block_rows, chosen)
        errors = np.zeros(known.size, np.int64)
        for record in records:
            for numbers, failed in _group_errors(profile, record, group, block_rows, chosen):
                at = np.searchsorted(known, numbers)
                errors += np.bincount(at, weights=failed, minlength=known.size).astype(np.int64)
        yield BerTable(group, known.tolist(), errors, trials)


def ber_surface(
    profile: Profile, write_condition: WriteCondition, pattern: Pattern | None = None
) -> list[SurfacePoint]:
    """The bit error rate of all banks at each operating point that was measured with ``write_condition``; no others.

    Points at which some of the profile's banks were not tested are left out (`comparable_records`).

    Args:
        profile: a profile, complete or not.
        write_condition: how the data were written.
        pattern: only this one; None pools all.

    Raises:
        ProfileError: access modes are mixed.
    """
    surface = []
    for point in profile.operating_points():
        records = comparable_records(profile, profile.find(point, write_condition, pattern))
        if len({record.access_mode for record in records}) > 1:
            raise ProfileError(f"{profile.path} holds two access modes at {point}; their errors do not mix: use ber()")
        if records:
            weights = [reads(profile, record) for record in records]
            measured = float(np.average([record.vdd_measured_mv for record in records], weights=weights))
            surface.append(SurfacePoint(point, measured, ber(profile, records)))
    return surface


def comparable_records(profile: Profile, records: Sequence[PointRecord], bank: int | None = None) -> list[PointRecord]:
    """Those of one point's ``records`` from which a rate follows that compares with other points'.

    A search for cliffs (`profiles.cliffs`) tests few banks at a point, and not the same everywhere.

    Args:
        profile: where they come from.
        records: of one operating point and write condition.
        bank: those that tested this bank. None: all of them, but none where a pattern was not tested in every bank that
            is tested anywhere.
    """
    if bank is not None:
        return [record for record in records if bank in record.region.banks]
    banks = {each for record in profile.points for each in record.region.banks}
    for pattern in {record.pattern for record in records}:
        if {each for record in records if record.pattern == pattern for each in record.region.banks} != banks:
            return []
    return list(records)


def _check_some(profile: Profile, records: Sequence[PointRecord]) -> None:
    if not records:
        raise ProfileError(f"no points of {profile.path} were chosen; untested is not a rate of zero")


def _by_direction(profile: Profile, records: Sequence[PointRecord]) -> dict[str, tuple[int, int]]:
    ones = sum(sum(record.stored_ones) * record.rounds for record in records)
    total = sum(reads(profile, record) for record in records)
    return {
        ZERO_TO_ONE: (sum(record.errors_zero_to_one for record in records), total - ones),
        ONE_TO_ZERO: (sum(record.errors_one_to_zero for record in records), ones),
    }


def _by_condition(profile: Profile, records: Sequence[PointRecord], group: Group) -> dict[Any, tuple[int, int]]:
    counts: dict[Any, tuple[int, int]] = {}
    for record in records:
        key = str(record.pattern) if group == "pattern" else record.point
        errors, trials = counts.get(key, (0, 0))
        counts[key] = (errors + record.errors, trials + reads(profile, record))
    return counts


def _by_counters(record: PointRecord, group: Group) -> bool:
    return record.counted and group != "bitline"


def _group_errors(
    profile: Profile, record: PointRecord, group: Group, block_rows: int, banks: Sequence[int]
) -> Iterator[tuple[Integers, npt.NDArray[np.integer[Any]]]]:
    """Groups and failed reads of a record in ``banks``, bank by bank; a group may come more than once."""
    geometry = profile.geometry
    if not _by_counters(record, group):
        number = _group_number(geometry, group, block_rows)
        for _, cells in profile.cells_by_bank(record.index, banks):
            yield number(cells.cell), cells.errors
        return
    for bank in set(record.region.banks) & set(banks):
        lines = profile.lines(record.index, bank)
        if group == "dq":
            yield np.arange(geometry.data_width), lines.lanes.sum(axis=1)
            continue
        if group == "bank_bitline":
            yield bank * geometry.row_bits + np.arange(geometry.row_bits), lines.bitlines.sum(axis=1)
            continue
        wordline = bank * geometry.rows + np.arange(record.region.row_start, record.region.row_end, dtype=np.int64)
        number = _group_number(geometry, group, block_rows)
        yield number(wordline * geometry.row_bits), lines.rows.sum(axis=1)


def _group_number(geometry: Geometry, group: Group, block_rows: int) -> Callable[[Integers], Integers]:
    if group == "wordline_block":
        return lambda cells: _block(geometry, geometry.wordline(cells), block_rows)
    if group == "bank_bitline":
        return lambda cells: geometry.bank(cells) * geometry.row_bits + cells % geometry.row_bits
    return {"bank": geometry.bank, "bitline": geometry.bitline, "dq": geometry.dq}[group]


def _block(geometry: Geometry, wordline: Integers, block_rows: int) -> Integers:
    """First wordline of the block; blocks start anew in each bank."""
    return wordline - wordline % geometry.rows % block_rows


def _group_trials(
    geometry: Geometry, records: Sequence[PointRecord], group: Group, block_rows: int, banks: Sequence[int]
) -> tuple[Integers, Integers]:
    """Groups of ``banks`` that were read, ascending, and the reads of each."""
    keys, trials = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for record in records:
        areas = (record.region,) if _by_counters(record, group) else record.known_cells
        for area, bank in ((each, bank) for each in areas for bank in each.banks if bank in banks):
            key, cells = _group_cells(geometry, area, bank, group, block_rows)
            keys.append(key)
            trials.append(cells * record.rounds)
    known, at = np.unique(np.concatenate(keys), return_inverse=True)
    total = np.zeros(known.size, np.int64)
    np.add.at(total, at, np.concatenate(trials))
    return known, total


def _group_cells(
    geometry: Geometry, area: Region, bank: int, group: Group, block_rows: int
) -> tuple[Integers, Integers]:
    """Groups that lie in one bank of a region, and how many cells of the region each has."""
    rows = np.arange(area.row_start, area.row_end, dtype=np.int64)
    if group == "bank":
        return np.array([bank]), np.array([rows.size * geometry.row_bits])
    if group == "dq":
        return np.arange(geometry.data_width), np.full(geometry.data_width, rows.size * geometry.columns)
    if group == "wordline_block":
        first, count = np.unique(_block(geometry, bank * geometry.rows + rows, block_rows), return_counts=True)
        return first, count * geometry.row_bits
    if group == "bank_bitline":
        first_line = bank * geometry.row_bits
        return np.arange(first_line, first_line + geometry.row_bits), np.full(geometry.row_bits, rows.size)
    subarray, count = np.unique(rows // min(geometry.subarray_rows, geometry.rows), return_counts=True)
    first = (bank * geometry.subarrays + subarray) * geometry.row_bits
    return (first[:, None] + np.arange(geometry.row_bits)).ravel(), np.repeat(count, geometry.row_bits)


# ---- weak cells again ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stability:
    """How reliably cells that fail do so again, over the rounds of points.

    Attributes:
        rounds: reads of each cell at a point.
        cells: int64[rounds + 1], failing cells (of each point anew) that failed so many times; none at 0.
        again: chance that a cell which failed in one round fails in another one of the same point.
        every_round: share of the failing cells that failed in all rounds, with its exact interval.
    """

    rounds: int
    cells: Integers
    again: float
    every_round: BerEstimate


def stability(profile: Profile, records: Sequence[PointRecord]) -> Stability:
    """How stable the weak cells of ``records`` are, where single cells are known.

    Raises:
        ProfileError: there are no records, they have different or single rounds, or a file is damaged.
    """
    _check_some(profile, records)
    rounds = {record.rounds for record in records}
    if len(rounds) != 1 or 1 in rounds:
        raise ProfileError(
            f"points of {sorted(rounds)} rounds were chosen; stability needs points of one number of rounds, above 1"
        )
    (count,) = rounds
    cells = np.zeros(count + 1, np.int64)
    for record in records:
        for _, found in profile.cells_by_bank(record.index):
            cells += np.bincount(found.errors, minlength=count + 1)
    times = np.arange(count + 1)
    pairs = int((cells * times).sum()) * (count - 1)
    again = int((cells * times * (times - 1)).sum()) / pairs if pairs else float("nan")
    return Stability(count, cells, again, estimate(int(cells[count]), int(cells.sum())))


@dataclass(frozen=True)
class Overlap:
    """Cells that fail in two profiles: two temperatures or ages of one module, two sets of rounds, two modules.

    Attributes:
        tested: cells tested in both, each pattern anew.
        first, second, both: of these, cells that failed at least once in the one, the other, and both.
        first_ber, second_ber: the rates over all reads of these cells.
    """

    tested: int
    first: int
    second: int
    both: int
    first_ber: BerEstimate
    second_ber: BerEstimate

    @property
    def jaccard(self) -> float:
        """Cells that failed in both, of those that failed in either."""
        either = self.first + self.second - self.both
        return self.both / either if either else float("nan")

    @property
    def expected_both(self) -> float:
        """Cells that would fail in both if the two had nothing to do with each other."""
        return self.first * self.second / self.tested

    @property
    def again(self) -> BerEstimate:
        """Share of the first profile's failing cells that fail in the second, with its exact interval."""
        return estimate(self.both, self.first)


def comparable(first: Profile, second: Profile) -> dict[OperatingPoint, list[tuple[PointRecord, PointRecord]]]:
    """Pairs of points of two profiles at the same operating point, pattern and write condition, by operating point.

    Raises:
        ProfileError: the profiles are of modules of different geometry, or have no such points.
    """
    if first.geometry != second.geometry:
        raise ProfileError(
            f"{first.path} and {second.path} are of different geometries; cells compare between modules of one kind"
        )
    pairs: dict[OperatingPoint, list[tuple[PointRecord, PointRecord]]] = {}
    for record in first.points:
        for other in second.find(record.point, record.write_condition, record.pattern):
            if other.access_mode == record.access_mode:
                pairs.setdefault(record.point, []).append((record, other))
    if not pairs:
        raise ProfileError(
            f"{first.path} and {second.path} have no point at the same VDD, tRCD, pattern, write condition and access "
            "mode; scan both with one plan"
        )
    return {point: pairs[point] for point in sorted(pairs, key=lambda point: (-point.vdd_mv, -point.trcd_ps))}


def overlap(first: Profile, second: Profile, pairs: Sequence[tuple[PointRecord, PointRecord]]) -> Overlap:
    """Compare cells over pairs of points (`comparable`), where both know single cells.

    Raises:
        ProfileError: the points of a pair know no cells in common, or a file is damaged.
    """
    geometry = first.geometry
    totals, errors, trials = np.zeros(4, np.int64), np.zeros(2, np.int64), np.zeros(2, np.int64)
    for pair in pairs:
        common = _common_rows(*pair)
        if not common:
            raise ProfileError(f"points {pair[0].index} and {pair[1].index} know no cells in common; compare others")
        for bank, spans in common.items():
            known = [profile.cells(record.index, bank) for profile, record in zip((first, second), pair, strict=True)]
            for low, high in spans:
                edges = (bank * geometry.rows + np.array([low, high], np.int64)) * geometry.row_bits
                inside = [slice(*np.searchsorted(cells.cell, edges).tolist()) for cells in known]
                a, b = (cells.cell[part] for cells, part in zip(known, inside, strict=True))
                size = int(edges[1] - edges[0])
                totals += (size, a.size, b.size, np.isin(a, b, assume_unique=True, kind="sort").sum())
                errors += [cells.errors[part].sum(dtype=np.int64) for cells, part in zip(known, inside, strict=True)]
                trials += [size * record.rounds for record in pair]
    tested, in_first, in_second, both = (int(total) for total in totals)
    rates = [estimate(int(k), int(n)) for k, n in zip(errors, trials, strict=True)]
    return Overlap(tested, in_first, in_second, both, rates[0], rates[1])


def _common_rows(a: PointRecord, b: PointRecord) -> dict[int, list[tuple[int, int]]]:
    """Rows, as half-open ranges by bank, whose cells both points know."""
    common: dict[int, list[tuple[int, int]]] = {}
    for mine in a.known_cells:
        for other in b.known_cells:
            low, high = max(mine.row_start, other.row_start), min(mine.row_end, other.row_end)
            for bank in sorted(set(mine.banks) & set(other.banks)):
                if low < high:
                    common.setdefault(bank, []).append((low, high))
    return common
