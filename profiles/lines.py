"""What a fit needs of the data: tested cells, failing cells and failures, by wordline, bitline and data line."""

from dataclasses import dataclass

import numpy as np

from profiles.geometry import CellArray
from profiles.laws import Floats
from profiles.population import Integers, Population


@dataclass(frozen=True)
class Lines:
    """Sufficient statistics of groups of cells, by number of reads.

    Attributes:
        line: int64[g], module numbers, ascending.
        trials: int64[c], the distinct numbers of reads, ascending.
        tested, failing: int64[g, c], cells of the line so often read, and those of them that failed.
        errors: int64[g], failed reads.
    """

    line: CellArray
    trials: Integers
    tested: Integers
    failing: Integers
    errors: Integers

    @property
    def failing_cells(self) -> Integers:
        """int64[g]"""
        total: Integers = self.failing.sum(axis=1)
        return total

    @property
    def cells(self) -> Integers:
        """int64[g], tested cells."""
        total: Integers = self.tested.sum(axis=1)
        return total

    @property
    def failing_reads(self) -> Integers:
        """int64[g], all reads of cells that failed."""
        total: Integers = self.failing @ self.trials
        return total

    def exposed(self, flip: float) -> Floats:
        """float64[g], expected weak-and-failing cells if all were weak, with one flip probability for all."""
        return np.asarray(self.tested @ fail_chance(flip, self.trials))

    def pooled(self) -> "Lines":
        """All lines as one."""
        return Lines(
            self.line[:1],
            self.trials,
            self.tested.sum(axis=0, keepdims=True),
            self.failing.sum(axis=0, keepdims=True),
            self.errors.sum(keepdims=True),
        )


@dataclass(frozen=True)
class Crossing:
    """The lines of a population, each kind complete.

    Attributes:
        wordlines, bitlines, lanes: by wordline, by bitline, and by data line (over all banks).
    """

    wordlines: Lines
    bitlines: Lines
    lanes: Lines

    @staticmethod
    def of(data: Population) -> "Crossing":
        trials = np.unique(np.array([section.trials for section in data.sections], np.int64))
        wordlines, bitlines = _wordlines(data, trials), _bitlines(data, trials)
        width = data.geometry.data_width
        tested = np.tile(bitlines.tested.sum(axis=0) // width, (width, 1))
        lanes = _lines(data, np.arange(width), tested, data.geometry.dq(data.cell), trials)
        return Crossing(wordlines, bitlines, lanes)


def fail_chance(flip: float | Floats, trials: Integers) -> Floats:
    """Probability that a weak cell fails at least once in ``trials`` reads, broadcast over both."""
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(trials * np.log1p(-np.asarray(flip, np.float64))))


def exposures(data: Population, crossing: Crossing, flips: Floats) -> tuple[Floats, Floats, Floats]:
    """Expected weak-and-failing cells of each line if all were weak, with flip probabilities by stored bit.

    Args:
        data: what was read; its patterns say which cell stored what how often.
        crossing: its lines.
        flips: float64[2], flip probability of a stored 0 and a stored 1, below 1.

    Returns:
        float64 by wordline, bitline and data line, as in ``crossing``.

    Raises:
        FitError: the data came from a buffer.
    """
    geometry = data.geometry
    size = min(geometry.subarray_rows, geometry.rows)
    by_wordline = np.zeros(crossing.wordlines.line.size)
    by_bitline = np.zeros((crossing.bitlines.line.size // geometry.row_bits, geometry.row_bits))
    subarrays = crossing.bitlines.line[:: geometry.row_bits] // geometry.row_bits
    log_survive = np.log1p(-flips)
    for section in data.sections:
        rows = section.row_start + np.arange(section.row_count, dtype=np.int64)
        ones = data.ones_tile(section)
        if ones is None:
            tile = _average_tile(data, section.trials, flips)
        else:
            tile = -np.expm1((section.trials - ones) * log_survive[0] + ones * log_survive[1])
        at = np.searchsorted(crossing.wordlines.line, section.bank * geometry.rows + rows)
        by_wordline[at] += tile.mean(axis=(1, 2))[rows % 8] * geometry.row_bits
        row = np.tile(tile, (1, geometry.columns // tile.shape[1], geometry.data_width // 8)).reshape(8, -1)
        for subarray in np.unique(rows // size):
            alike = np.bincount(rows[rows // size == subarray] % 8, minlength=8)
            index = int(np.searchsorted(subarrays, section.bank * geometry.subarrays + subarray))
            by_bitline[index] += alike @ row
    by_lane = by_bitline.reshape(-1, geometry.columns, geometry.data_width).sum(axis=(0, 1))
    return by_wordline, by_bitline.ravel(), by_lane


def _average_tile(data: Population, trials: int, flips: Floats) -> Floats:
    """A tile of one value: of pseudo-random data, each line holds much the same mixture."""
    pairs, cells = data.stored_classes()
    here = pairs.sum(axis=1) == trials
    survive = np.exp(pairs[here] @ np.log1p(-flips))
    mean = 1 - float((cells[here] * survive).sum() / cells[here].sum())
    return np.full((8, min(8, data.geometry.columns), 8), mean)


def _lines(data: Population, line: CellArray, tested: Integers, line_of_cell: CellArray, trials: Integers) -> Lines:
    at = np.searchsorted(line, line_of_cell)
    read = np.searchsorted(trials, data.trials)
    failing = np.bincount(at * trials.size + read, minlength=line.size * trials.size)
    errors = np.bincount(at, weights=data.errors, minlength=line.size)
    return Lines(line, trials, tested, failing.reshape(tested.shape).astype(np.int64), errors.astype(np.int64))


def _wordlines(data: Population, trials: Integers) -> Lines:
    line = np.concatenate(
        [
            section.bank * data.geometry.rows + section.row_start + np.arange(section.row_count)
            for section in data.sections
        ]
    ).astype(np.int64)
    reads = np.repeat([section.trials for section in data.sections], [section.row_count for section in data.sections])
    tested = np.where(reads[:, None] == trials, data.geometry.row_bits, 0).astype(np.int64)
    return _lines(data, line, tested, data.geometry.wordline(data.cell), trials)


def _bitlines(data: Population, trials: Integers) -> Lines:
    geometry = data.geometry
    rows = _rows_by_subarray(data, trials)
    starts = np.array(sorted(rows), np.int64) * geometry.row_bits
    line = (starts[:, None] + np.arange(geometry.row_bits)).ravel()
    tested = np.repeat(np.array([rows[subarray] for subarray in sorted(rows)]), geometry.row_bits, axis=0)
    return _lines(data, line, tested, geometry.bitline(data.cell), trials)


def _rows_by_subarray(data: Population, trials: Integers) -> dict[int, Integers]:
    """Tested rows of each subarray (numbered over the module), by number of reads."""
    size = min(data.geometry.subarray_rows, data.geometry.rows)
    rows: dict[int, Integers] = {}
    for section in data.sections:
        column = int(np.searchsorted(trials, section.trials))
        end = section.row_start + section.row_count
        for subarray in range(section.row_start // size, -(-end // size)):
            inside = min(end, (subarray + 1) * size) - max(section.row_start, subarray * size)
            counts = rows.setdefault(section.bank * data.geometry.subarrays + subarray, np.zeros(trials.size, np.int64))
            counts[column] += inside
    return rows
