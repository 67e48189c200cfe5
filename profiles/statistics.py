"""Bit error rates with their uncertainty. Rates are worked out here, from integer errors and trials, never stored."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

Group = Literal["bank", "wordline_block", "bitline", "dq", "direction", "pattern"]


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
        keys: bank, dq or bitline numbers, first wordlines of blocks (module numbers), directions, or patterns.
        errors, trials: int64[n], failed reads and reads.
        ber, low, high: float64[n], rates with Clopper-Pearson intervals.
    """

    group: Group
    keys: list[Any]
    errors: Integers
    trials: Integers
    ber: Floats
    low: Floats
    high: Floats

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


def clustered_ber(profile: Profile, records: Sequence[PointRecord]) -> BerEstimate:
    """The bit error rate with an interval that allows for errors that cluster by cell and by wordline.

    Wordlines are the sampling units. The variance of the rate between them, over the binomial one, is the design effect
    by which errors and trials are divided before the exact interval (Korn and Graubard, Survey Methodology 1998); never
    less than 1. Without an error each cell counts as one trial, however often it was read.

    Raises:
        ProfileError: there are no records, or a file is damaged.
    """
    pooled = ber(profile, records)
    if not pooled.errors:
        cells = sum(record.region.cells(profile.geometry) for record in records)
        low, high = clopper_pearson(0, cells)
        return BerEstimate(0, pooled.trials, 0.0, float(low), float(high))
    by_line = ber_by(profile, records, "wordline_block", block_rows=1)
    deviation = by_line.errors - pooled.ber * by_line.trials
    lines = len(by_line)
    variance = float((deviation**2).sum()) / pooled.trials**2 * lines / max(1, lines - 1)
    effect = max(1.0, variance * pooled.trials / (pooled.ber * (1 - pooled.ber))) if pooled.ber < 1 else 1.0
    low, high = clopper_pearson(pooled.errors / effect, pooled.trials / effect)
    return BerEstimate(pooled.errors, pooled.trials, pooled.ber, float(low), float(high))


def ber_by(profile: Profile, records: Sequence[PointRecord], group: Group, block_rows: int = 64) -> BerTable:
    """Bit error rates by ``group``, over all reads of ``records``.

    Args:
        profile: where the records come from.
        records: points to pool.
        group: "bank", "wordline_block" (``block_rows`` rows), "bitline", "dq", "direction" or "pattern". Counters do
            not tell subarrays apart: a counted point takes part in "bitline" only where it knows single cells.
        block_rows: rows of a wordline block.

    Raises:
        ProfileError: there are no records, or a file is damaged.
    """
    _check_some(profile, records)
    if group in ("direction", "pattern"):
        counts = _by_direction(profile, records) if group == "direction" else _by_pattern(profile, records)
        keys: list[Any] = [key for key, (_, trials) in counts.items() if trials]
        return _table(group, keys, *np.array([counts[key] for key in keys], np.int64).reshape(-1, 2).T)
    geometry = profile.geometry
    known, trials = _group_trials(geometry, records, group, block_rows)
    errors = np.zeros(known.size, np.int64)
    for record in records:
        for numbers, failed in _group_errors(profile, record, group, block_rows):
            at = np.searchsorted(known, numbers)
            errors += np.bincount(at, weights=failed, minlength=known.size).astype(np.int64)
    return _table(group, known.tolist(), errors, trials)


def ber_surface(
    profile: Profile, write_condition: WriteCondition, pattern: Pattern | None = None
) -> list[SurfacePoint]:
    """The bit error rate at each operating point that was measured with ``write_condition``; no others.

    Args:
        profile: a profile, complete or not.
        write_condition: how the data were written.
        pattern: only this one; None pools all.

    Raises:
        ProfileError: access modes are mixed.
    """
    surface = []
    for point in profile.operating_points():
        records = profile.find(point, write_condition, pattern)
        if len({record.access_mode for record in records}) > 1:
            raise ProfileError(f"{profile.path} holds two access modes at {point}; their errors do not mix: use ber()")
        if records:
            weights = [reads(profile, record) for record in records]
            measured = float(np.average([record.vdd_measured_mv for record in records], weights=weights))
            surface.append(SurfacePoint(point, measured, ber(profile, records)))
    return surface


def _check_some(profile: Profile, records: Sequence[PointRecord]) -> None:
    if not records:
        raise ProfileError(f"no points of {profile.path} were chosen; untested is not a rate of zero")


def _table(group: Group, keys: list[Any], errors: Integers, trials: Integers) -> BerTable:
    low, high = clopper_pearson(errors, trials)
    return BerTable(group, keys, errors, trials, errors / trials, low, high)


def _by_direction(profile: Profile, records: Sequence[PointRecord]) -> dict[str, tuple[int, int]]:
    ones = sum(sum(record.stored_ones) * record.rounds for record in records)
    total = sum(reads(profile, record) for record in records)
    return {
        ZERO_TO_ONE: (sum(record.errors_zero_to_one for record in records), total - ones),
        ONE_TO_ZERO: (sum(record.errors_one_to_zero for record in records), ones),
    }


def _by_pattern(profile: Profile, records: Sequence[PointRecord]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for record in records:
        errors, trials = counts.get(str(record.pattern), (0, 0))
        counts[str(record.pattern)] = (errors + record.errors, trials + reads(profile, record))
    return counts


def _by_counters(record: PointRecord, group: Group) -> bool:
    return record.counted and group != "bitline"


def _group_errors(
    profile: Profile, record: PointRecord, group: Group, block_rows: int
) -> Iterator[tuple[Integers, npt.NDArray[np.integer[Any]]]]:
    """Groups and failed reads of a record, bank by bank; a group may come more than once."""
    geometry = profile.geometry
    if not _by_counters(record, group):
        number = _group_number(geometry, group, block_rows)
        for _, cells in profile.cells_by_bank(record.index):
            yield number(cells.cell), cells.errors
        return
    for bank in record.region.banks:
        lines = profile.lines(record.index, bank)
        if group == "dq":
            yield np.arange(geometry.data_width), lines.lanes.sum(axis=1)
            continue
        wordline = bank * geometry.rows + np.arange(record.region.row_start, record.region.row_end, dtype=np.int64)
        number = _group_number(geometry, group, block_rows)
        yield number(wordline * geometry.row_bits), lines.rows.sum(axis=1)


def _group_number(geometry: Geometry, group: Group, block_rows: int) -> Callable[[Integers], Integers]:
    if group == "wordline_block":
        return lambda cells: _block(geometry, geometry.wordline(cells), block_rows)
    return {"bank": geometry.bank, "bitline": geometry.bitline, "dq": geometry.dq}[group]


def _block(geometry: Geometry, wordline: Integers, block_rows: int) -> Integers:
    """First wordline of the block; blocks start anew in each bank."""
    return wordline - wordline % geometry.rows % block_rows


def _group_trials(
    geometry: Geometry, records: Sequence[PointRecord], group: Group, block_rows: int
) -> tuple[Integers, Integers]:
    """Groups that were read, ascending, and the reads of each."""
    keys, trials = [], []
    for record in records:
        areas = (record.region,) if _by_counters(record, group) else record.known_cells
        for area, bank in ((each, bank) for each in areas for bank in each.banks):
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
    subarray, count = np.unique(rows // min(geometry.subarray_rows, geometry.rows), return_counts=True)
    first = (bank * geometry.subarrays + subarray) * geometry.row_bits
    return (first[:, None] + np.arange(geometry.row_bits)).ravel(), np.repeat(count, geometry.row_bits)
