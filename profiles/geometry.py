"""DRAM geometry, and the one numbering of cells that everything else uses.

A cell is one stored bit. Its index orders cells as a burst carries them::

    cell = ((bank * rows + row) * columns + column) * data_width + dq

``bank`` counts over ranks and bank groups, ``column`` is the JEDEC column address (one beat of ``data_width`` bits),
``dq`` the data line. A byte string written to consecutive bursts therefore has its bit ``k`` (least significant bit of
byte 0 first) in cell ``first + k``. A bitline is (bank, subarray, column, dq): local bitlines end at subarrays. Where
several modules are numbered together, each one's cells follow those of the one before (`first_cells`).
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from profiles.errors import GeometryError

CellArray = npt.NDArray[np.int64]
PowerOfTwo = Annotated[int, Field(gt=0)]


class Geometry(BaseModel):
    """Shape of one DRAM module as the host sees it. Every count but ``banks`` is a power of two.

    Attributes:
        banks: banks over all ranks and bank groups.
        rows: rows (wordlines) a bank.
        columns: column addresses a row.
        data_width: data lines (DQ) of the bus, without ECC lanes.
        burst_length: beats a burst (BL8 for DDR3 and DDR4).
        chip_width: data lines of one DRAM chip (x4, x8, x16).
        subarray_rows: rows that share local bitlines; 512 is common, and an assumption where no one measured it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    banks: int = Field(gt=0, le=256)
    rows: PowerOfTwo = Field(le=1 << 20)
    columns: PowerOfTwo = Field(le=1 << 12)
    data_width: PowerOfTwo = Field(ge=8, le=64)
    burst_length: PowerOfTwo = Field(default=8, ge=4, le=16)
    chip_width: PowerOfTwo = Field(default=8, le=32)
    subarray_rows: PowerOfTwo = 512

    @model_validator(mode="after")
    def _powers_of_two(self) -> "Geometry":
        for name in ("rows", "columns", "data_width", "burst_length", "chip_width", "subarray_rows"):
            value = getattr(self, name)
            if value & (value - 1):
                raise ValueError(f"{name} is {value}; it must be a power of two")
        if self.burst_length > self.columns:
            raise ValueError(f"burst_length {self.burst_length} is longer than a row of {self.columns} columns")
        if self.chip_width > self.data_width:
            raise ValueError(f"chip_width {self.chip_width} is wider than the bus of {self.data_width} lines")
        return self

    def numbers_cells_like(self, other: "Geometry") -> bool:
        """Whether every cell has the same index by ``other``."""
        return all(getattr(self, name) == getattr(other, name) for name in ("banks", "rows", "columns", "data_width"))

    @property
    def row_bits(self) -> int:
        """Cells of one row over all chips."""
        return self.columns * self.data_width

    @property
    def bank_bits(self) -> int:
        """Cells of one bank."""
        return self.rows * self.row_bits

    @property
    def cells(self) -> int:
        """Cells of the module."""
        return self.banks * self.bank_bits

    @property
    def burst_bits(self) -> int:
        """Bits that one READ or WRITE command moves."""
        return self.burst_length * self.data_width

    @property
    def bursts_per_row(self) -> int:
        return self.columns // self.burst_length

    @property
    def subarrays(self) -> int:
        """Subarrays a bank."""
        return max(1, self.rows // self.subarray_rows)

    @property
    def bitlines(self) -> int:
        """Bitlines a bank: one for each (subarray, column, dq)."""
        return self.subarrays * self.row_bits

    def cell(self, bank: Any, row: Any, column: Any, dq: Any) -> CellArray:
        """Cell indices (int64) of broadcast coordinates.

        Raises:
            GeometryError: a coordinate is outside the module.
        """
        coordinates = np.broadcast_arrays(bank, row, column, dq)
        limits = (self.banks, self.rows, self.columns, self.data_width)
        for name, values, limit in zip(("bank", "row", "column", "dq"), coordinates, limits, strict=True):
            if values.size and (values.min() < 0 or values.max() >= limit):
                raise GeometryError(f"{name} {values.min()}..{values.max()} is outside 0..{limit - 1} of this module")
        b, r, c, q = (values.astype(np.int64) for values in coordinates)
        return np.asarray(((b * self.rows + r) * self.columns + c) * self.data_width + q, dtype=np.int64)

    def bank(self, cells: CellArray) -> CellArray:
        return cells // self.bank_bits

    def row(self, cells: CellArray) -> CellArray:
        return cells // self.row_bits % self.rows

    def column(self, cells: CellArray) -> CellArray:
        return cells // self.data_width % self.columns

    def dq(self, cells: CellArray) -> CellArray:
        return cells % self.data_width

    def wordline(self, cells: CellArray) -> CellArray:
        """Wordline number over the module, ``bank * rows + row``."""
        return cells // self.row_bits

    def bitline(self, cells: CellArray) -> CellArray:
        """Bitline number over the module, ``(bank * subarrays + subarray) * row_bits + column * data_width + dq``."""
        subarray = self.row(cells) // min(self.subarray_rows, self.rows)
        return (self.bank(cells) * self.subarrays + subarray) * self.row_bits + cells % self.row_bits


def first_cells(geometries: Sequence[Geometry]) -> list[int]:
    """The first cell of each of several modules, in one numbering of all their cells."""
    return [0, *accumulate(geometry.cells for geometry in geometries[:-1])]


def in_one_module(first_cells: Sequence[int], cell: int) -> tuple[int, int]:
    """Which of several modules, from 0, a cell lies in, and its index there."""
    module = bisect_right(first_cells, cell) - 1
    return module, cell - first_cells[module]
