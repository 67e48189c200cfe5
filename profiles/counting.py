"""From failing cells in the order they were read to failures a cell, as fast as a board reports them."""

import numpy as np
import numpy.typing as npt
from numba import njit

from profiles.geometry import CellArray

_FOLD_READS = 1 << 24  # held as they came before they are counted: 128 MiB

ErrorCounts = npt.NDArray[np.uint16]


@njit(cache=True)
def _run_lengths(cells, cell, errors):  # type: ignore[no-untyped-def]
    """Distinct values of the ascending ``cells`` and how often each comes; returns how many."""
    found = 0
    for k in range(cells.size):
        if k and cells[k] == cell[found - 1]:
            errors[found - 1] += 1
        else:
            cell[found], errors[found] = cells[k], 1
            found += 1
    return found


@njit(cache=True)
def _merge(a, a_errors, b, b_errors, cell, errors):  # type: ignore[no-untyped-def]
    """Add two ascending lists of cells and their failures; returns the number of distinct cells."""
    i, j, found = 0, 0, 0
    while i < a.size or j < b.size:
        from_a = j == b.size or (i < a.size and a[i] <= b[j])
        from_b = i == a.size or (j < b.size and b[j] <= a[i])
        cell[found] = a[i] if from_a else b[j]
        errors[found] = 0
        if from_a:
            errors[found] += a_errors[i]
            i += 1
        if from_b:
            errors[found] += b_errors[j]
            j += 1
        found += 1
    return found


@njit(cache=True)
def _ones_errors(errors, stored):  # type: ignore[no-untyped-def]
    total = 0
    for k in range(errors.size):
        total += np.int64(errors[k]) * np.int64(stored[k])  # type: ignore[assignment]
    return total


def by_direction(errors: ErrorCounts, stored: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Failed reads, 0 to 1 and 1 to 0, of cells that failed ``errors`` times with a bit of ``stored`` in them."""
    ones = int(_ones_errors(errors, stored))
    return int(errors.sum(dtype=np.int64)) - ones, ones


class FailureCounts:
    """Counts failures a cell over the rounds of a point, in memory that follows the cells that failed.

    A cell may fail at most 65535 times (`profiles.schema.PointRecord.rounds`).
    """

    def __init__(self) -> None:
        self._raw: list[CellArray] = []
        self._held = 0
        self._cell: CellArray = np.empty(0, np.int64)
        self._errors: ErrorCounts = np.empty(0, np.uint16)

    def add(self, cells: CellArray) -> None:
        """Failed reads: int64[n], in any order, a cell once for each."""
        self._raw.append(cells)
        self._held += cells.size
        if self._held >= _FOLD_READS:
            self._fold()

    def take(self) -> tuple[CellArray, ErrorCounts]:
        """Cells that failed, int64[n] ascending, and how often, uint16[n]; counting then begins anew."""
        self._fold()
        taken = self._cell, self._errors
        self.__init__()  # type: ignore[misc]
        return taken

    def _fold(self) -> None:
        if not self._held:
            return
        raw = np.concatenate(self._raw)
        raw.sort()
        cell, errors = np.empty(raw.size, np.int64), np.empty(raw.size, np.uint16)
        found = int(_run_lengths(raw, cell, errors))
        cell, errors = cell[:found], errors[:found]
        if self._cell.size:
            both = self._cell.size + found
            merged, counts = np.empty(both, np.int64), np.empty(both, np.uint16)
            found = int(_merge(self._cell, self._errors, cell, errors, merged, counts))
            cell, errors = merged[:found], counts[:found]
        self._raw, self._held, self._cell, self._errors = [], 0, cell, errors
