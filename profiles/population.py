"""All reads of one operating point, cell by cell: what failed, what was tested, and under which stored bit.

Only failing cells are stored in a profile. How many cells were tested how often, with which stored bit, follows from
the patterns: exactly, from one tile of 8 rows, columns and data lines for the periodic ones, and by evaluating the
region row by row for pseudo-random ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from profiles.cells import CellCounts, WeakCells
from profiles.errors import FitError
from profiles.geometry import CellArray, Geometry
from profiles.pattern import PERIOD, Pattern, PatternKind, ones_by_line, stored_bits
from profiles.schema import OperatingPoint, PointRecord, WriteCondition
from profiles.storage import Profile

Integers = npt.NDArray[np.int64]

_CHUNK_CELLS = 1 << 21


@dataclass(frozen=True)
class Section:
    """Rows of one bank that the same records cover, so that all their cells have as many trials.

    Attributes:
        bank, row_start, row_count: whole rows.
        records: indices into `Population.records`.
        trials: reads of each cell, over the records.
    """

    bank: int
    row_start: int
    row_count: int
    records: tuple[int, ...]
    trials: int


@dataclass(frozen=True)
class Population:
    """Every read at one operating point and write condition, over the patterns that were tested.

    Attributes:
        geometry: the module's.
        banks: banks taken into account, ascending.
        records: the points that were pooled.
        sections: where was tested how often; disjoint, ascending by bank and row.
        cell: int64[n], cells that failed at least once, ascending.
        trials_zero, trials_one: int64[n], reads of each while it stored 0, and 1.
        errors_zero, errors_one: int64[n], failed reads of each while it stored 0, and 1.
    """

    geometry: Geometry
    banks: tuple[int, ...]
    records: tuple[PointRecord, ...]
    sections: tuple[Section, ...]
    cell: CellArray
    trials_zero: Integers
    trials_one: Integers
    errors_zero: Integers
    errors_one: Integers

    @property
    def tested_cells(self) -> int:
        return sum(section.row_count for section in self.sections) * self.geometry.row_bits

    @property
    def trials(self) -> Integers:
        """int64[n], reads of each failing cell."""
        return self.trials_zero + self.trials_one

    @property
    def errors(self) -> Integers:
        """int64[n], failed reads of each failing cell."""
        return self.errors_zero + self.errors_one

    def stored_classes(self) -> tuple[Integers, Integers]:
        """Tested cells by how often they were read while storing 0 and 1.

        Returns:
            int64[c, 2] distinct pairs (reads at stored 0, reads at stored 1), and int64[c] tested cells of each.

        Raises:
            FitError: the data came from a buffer, so that the stored bits of cells that never failed are unknown.
        """
        totals: dict[tuple[int, int], int] = {}
        for section in self.sections:
            for ones, cells in self._reads_at_one(section):
                pair = (section.trials - ones, ones)
                totals[pair] = totals.get(pair, 0) + cells
        pairs = sorted(totals)
        return np.array(pairs, np.int64).reshape(-1, 2), np.array([totals[pair] for pair in pairs], np.int64)

    def ones_tile(self, section: Section) -> Integers | None:
        """Reads while storing 1, int64[8, min(8, columns), 8] by residue of row, column and data line.

        Returns:
            None where a pseudo-random pattern was tested, which has no tile.

        Raises:
            FitError: the data came from a buffer.
        """
        records = [self.records[index] for index in section.records]
        for record in records:
            if record.pattern.kind == PatternKind.BUFFER:
                raise FitError(f"point {record.index} tested a data buffer, not a pattern; leave it out of the fit")
        if any(record.pattern.kind == PatternKind.RANDOM for record in records):
            return None
        tile = np.zeros((PERIOD, min(PERIOD, self.geometry.columns), PERIOD), np.int64)
        for record in records:
            tile += record.rounds * pattern_tile(record.pattern, self.geometry).astype(np.int64)
        return tile

    def _reads_at_one(self, section: Section) -> Iterator[tuple[int, int]]:
        """(reads while storing 1, cells of the section read so)."""
        rows = section.row_start + np.arange(section.row_count, dtype=np.int64)
        tile = self.ones_tile(section)
        if tile is None:
            records = [self.records[index] for index in section.records]
            yield from self._reads_at_one_by_cell(section.bank, rows, records)
            return
        rows_alike = np.bincount(rows % PERIOD, minlength=PERIOD)
        columns_alike = self.geometry.columns // tile.shape[1]
        lanes_alike = self.geometry.data_width // PERIOD
        for residue in np.flatnonzero(rows_alike):
            values, counts = np.unique(tile[residue], return_counts=True)
            for ones, count in zip(values.tolist(), counts.tolist(), strict=True):
                yield ones, count * int(rows_alike[residue]) * columns_alike * lanes_alike

    def _reads_at_one_by_cell(
        self, bank: int, rows: Integers, records: Sequence[PointRecord]
    ) -> Iterator[tuple[int, int]]:
        step = max(1, _CHUNK_CELLS // self.geometry.row_bits)
        for low in range(0, rows.size, step):
            part = rows[low : low + step]
            first = (bank * self.geometry.rows + int(part[0])) * self.geometry.row_bits
            cells = np.arange(first, first + part.size * self.geometry.row_bits, dtype=np.int64)
            ones = np.zeros(cells.size, np.int64)
            for record in records:
                ones += record.rounds * stored_bits(record.pattern, self.geometry, cells).astype(np.int64)
            values, counts = np.unique(ones, return_counts=True)
            yield from zip(values.tolist(), counts.tolist(), strict=True)


def pattern_tile(pattern: Pattern, geometry: Geometry) -> npt.NDArray[np.uint8]:
    """Stored bits, uint8[8, min(8, columns), 8] by residue of row, column and data line, of a periodic pattern."""
    columns = min(PERIOD, geometry.columns)
    # A module of fewer than 8 rows still has the pattern's first rows; the tile then repeats what is there.
    rows = np.arange(PERIOD) % geometry.rows
    cells = geometry.cell(0, rows[:, None, None], np.arange(columns)[None, :, None], np.arange(PERIOD)[None, None, :])
    return stored_bits(pattern, geometry, cells.ravel()).reshape(PERIOD, columns, PERIOD)


def stored_ones(pattern: Pattern, geometry: Geometry, bank: int, row_start: int, row_count: int) -> int:
    """Cells of whole rows of one bank in which ``pattern`` stores a 1.

    Raises:
        ValueError: the pattern is BUFFER, whose data are not a function of the address.
    """
    return int(ones_by_line(pattern, geometry, bank, row_start, row_count, bitlines=False)[0].sum())


def collect(
    profile: Profile, point: OperatingPoint, write_condition: WriteCondition, banks: Sequence[int] | None = None
) -> Population:
    """Pool everything measured at an operating point, over patterns, in ``banks`` (None: all that were tested).

    Where counters describe a region, only the parts of it whose cells are known count as tested.

    Raises:
        FitError: nothing was measured there, a bank was not tested, or access modes are mixed.
        ProfileError: a file is damaged.
    """
    records = profile.find(point, write_condition)
    if not records:
        measured = "; ".join(str(each) for each in profile.operating_points()) or "none"
        raise FitError(f"{profile.path} has no point at {point} with {write_condition} writes; it has: {measured}")
    if len({record.access_mode for record in records}) > 1:
        raise FitError(
            f"{profile.path} holds two access modes at {point}; their errors do not mix: fit separate profiles"
        )
    tested = sorted({bank for record in records for area in record.known_cells for bank in area.banks})
    chosen = tuple(sorted(set(banks))) if banks is not None else tuple(tested)
    untested = sorted(set(chosen) - set(tested))
    if untested or not chosen:
        raise FitError(f"bank {untested[0] if untested else '(none)'} was not tested at {point}; tested: {tested}")
    found = [_in_banks(profile, record, chosen) for record in records]
    sections = _sections(records, chosen)
    # Sorted runs: a stable sort merges them, many times faster than np.unique.
    every = np.sort(np.concatenate([counts.cell for counts in found]), kind="stable")
    cell = every[np.diff(every, prepend=-1) > 0]
    trials = np.zeros((2, cell.size), np.int64)
    errors = np.zeros((2, cell.size), np.int64)
    for record, counts in zip(records, found, strict=True):
        covered = _covered(profile.geometry, record, cell)
        at = np.searchsorted(cell, counts.cell)
        bits = _bits(record, profile.geometry, cell[covered], counts)
        trials[bits, covered] += record.rounds
        errors[counts.stored, at] += counts.errors
    return Population(
        profile.geometry, chosen, tuple(records), sections, cell, trials[0], trials[1], errors[0], errors[1]
    )


def measured_weak_cells(profile: Profile, point: OperatingPoint, write_condition: WriteCondition) -> WeakCells:
    """The cells that failed at an operating point, with the flip probabilities that were seen.

    A probability is errors / trials of that cell, pooled over the patterns and rounds of the operating point, by stored
    bit. Where a cell was tested with one stored value only, that value's estimate serves for the other too. Cells that
    did not fail in the reads that were made are not listed, however few those reads were.

    Returns:
        Weak cells in module numbering.

    Raises:
        FitError, ProfileError: as `collect`.
    """
    data = collect(profile, point, write_condition)
    with np.errstate(invalid="ignore"):
        zero, one = data.errors_zero / data.trials_zero, data.errors_one / data.trials_one
    return WeakCells(data.cell, np.where(data.trials_zero, zero, one), np.where(data.trials_one, one, zero))


def unseen_rates(population: Population) -> tuple[float, float]:
    """How often cells fail that have not been seen to, while they store 0 and while they store 1: a mean over all.

    Good and Turing's estimate (I. J. Good, Biometrika 40 (1953) 237-264): what was seen once in n reads stands for what
    was not seen, at 1 / n of the reads to come (rather too high than too low, of few reads). `measured_weak_cells` has
    the failures that were seen, all of them, and none of these cells; so together they are too many by as much.
    """
    zero, one = (population.errors_zero, population.trials_zero), (population.errors_one, population.trials_one)

    def rate(own: tuple[Integers, Integers], other: tuple[Integers, Integers]) -> float:
        """Where a cell was tested with the other value only, that one's reads serve, as for `measured_weak_cells`."""
        errors, trials = (np.where(own[1], mine, theirs) for mine, theirs in zip(own, other, strict=True))
        return float((1 / trials[errors == 1]).sum()) / population.tested_cells

    return rate(zero, one), rate(one, zero)


def _in_banks(profile: Profile, record: PointRecord, banks: tuple[int, ...]) -> CellCounts:
    known = {bank for area in record.known_cells for bank in area.banks}
    if known <= set(banks):
        return profile.cells(record.index)
    parts = [profile.cells(record.index, bank) for bank in banks if bank in known]
    if not parts:
        return CellCounts(np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0, np.uint8))
    return CellCounts(
        np.concatenate([part.cell for part in parts]),
        np.concatenate([part.errors for part in parts]),
        np.concatenate([part.stored for part in parts]),
    )


def _covered(geometry: Geometry, record: PointRecord, cell: CellArray) -> Integers:
    """Indices, ascending, of those of the ascending ``cell`` that lie where the record knows cells."""
    edges = sorted(
        ((bank * geometry.rows + area.row_start) * geometry.row_bits, area.row_count * geometry.row_bits)
        for area in record.known_cells
        for bank in area.banks
    )
    ranges = [np.empty(0, np.int64)]
    for first, count in edges:
        low, high = np.searchsorted(cell, (first, first + count))
        ranges.append(np.arange(low, high, dtype=np.int64))
    return np.concatenate(ranges)


def _bits(record: PointRecord, geometry: Geometry, cells: CellArray, counts: CellCounts) -> npt.NDArray[np.uint8]:
    if record.pattern.kind != PatternKind.BUFFER:
        return stored_bits(record.pattern, geometry, cells)
    if not np.array_equal(cells, counts.cell):
        raise FitError(
            f"point {record.index} tested a data buffer, whose bits in cells that only failed elsewhere are unknown; "
            "use a profile of patterns"
        )
    return counts.stored


def _sections(records: Sequence[PointRecord], banks: tuple[int, ...]) -> tuple[Section, ...]:
    sections = []
    for bank in banks:
        spans = [
            (area.row_start, area.row_end, index)
            for index, record in enumerate(records)
            for area in record.known_cells
            if bank in area.banks
        ]
        edges = sorted({edge for low, high, _ in spans for edge in (low, high)})
        for low, high in pairwise(edges):
            inside = tuple(index for first, end, index in spans if first <= low and high <= end)
            if inside:
                sections.append(Section(bank, low, high - low, inside, sum(records[index].rounds for index in inside)))
    return tuple(sections)
