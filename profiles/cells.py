"""Sparse per-cell results: what was counted (`CellCounts`) and what it means for a read (`WeakCells`)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profiles.counting import by_direction
from profiles.errors import ProfileError
from profiles.geometry import CellArray


@dataclass(frozen=True)
class CellCounts:
    """Cells that failed at least once at one point of a scan; every other cell of the point's region read right.

    Attributes:
        cell: int64[n], ascending and unique (see `profiles.geometry`).
        errors: uint16[n], reads that returned the wrong bit, 1 .. rounds of the point.
        stored: uint8[n], the bit that had been written, 0 or 1.
    """

    cell: CellArray
    errors: npt.NDArray[np.uint16]
    stored: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        if not self.cell.shape == self.errors.shape == self.stored.shape:
            raise ProfileError(
                f"columns differ in length: {self.cell.size}, {self.errors.size}, {self.stored.size}; "
                "the file is damaged"
            )
        if not bool(np.all(self.cell[1:] > self.cell[:-1])):
            raise ProfileError("cells are not ascending and unique; the file is damaged")

    @property
    def errors_zero_to_one(self) -> int:
        return by_direction(self.errors, self.stored)[0]

    @property
    def errors_one_to_zero(self) -> int:
        return by_direction(self.errors, self.stored)[1]


@dataclass(frozen=True)
class LineCounts:
    """Failed reads of one bank's tested rows by line, where errors are too many to keep every cell of the module.

    Attributes:
        bank: which bank.
        rows: int64[rows tested, 2], failed reads of each row, 0 to 1 and 1 to 0, from the first tested row on.
        bitlines: int64[row_bits, 2], of each (column, dq) over the tested rows: subarrays are not told apart.
        lanes: int64[data_width, 2], of each data line (DQ).
    """

    bank: int
    rows: npt.NDArray[np.int64]
    bitlines: npt.NDArray[np.int64]
    lanes: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        sums = {name: getattr(self, name).sum(axis=0).tolist() for name in LINE_KINDS}
        if len({tuple(each) for each in sums.values()}) != 1:
            raise ProfileError(f"counters of bank {self.bank} do not reconcile: {sums}; the measurement is void")

    @property
    def errors_zero_to_one(self) -> int:
        return int(self.rows[:, 0].sum())

    @property
    def errors_one_to_zero(self) -> int:
        return int(self.rows[:, 1].sum())


LINE_KINDS = ("rows", "bitlines", "lanes")


@dataclass(frozen=True)
class WeakCells:
    """Cells that may flip on a read, and how likely. Cells not listed never flip.

    This is what injection consumes, whether the cells were measured (a profile) or sampled (an error model).

    Attributes:
        cell: int64[n], ascending and unique. Module cell indices, or bit offsets into a region where a caller says so.
        flip_zero: float64[n], probability that a stored 0 reads as 1.
        flip_one: float64[n], probability that a stored 1 reads as 0.
    """

    cell: CellArray
    flip_zero: npt.NDArray[np.float64]
    flip_one: npt.NDArray[np.float64]

    def within(self, first: int, count: int) -> "WeakCells":
        """The weak cells in ``first .. first + count - 1``, renumbered from 0."""
        low, high = np.searchsorted(self.cell, (first, first + count))
        return WeakCells(self.cell[low:high] - first, self.flip_zero[low:high], self.flip_one[low:high])

    def ber(self, cells: int, ones_fraction: float = 0.5) -> float:
        """Expected bit error rate of one read of a region of ``cells`` bits."""
        flips = (1 - ones_fraction) * self.flip_zero.sum() + ones_fraction * self.flip_one.sum()
        return float(flips / cells)
