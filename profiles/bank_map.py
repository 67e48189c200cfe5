"""Where errors lie within one bank: failed reads and reads, in blocks of rows by bitlines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profiles.error_models import Floats
from profiles.errors import ProfileError
from profiles.population import Integers
from profiles.schema import PointRecord
from profiles.storage import Profile

BLOCKS = 256  # either way, at most
_CELLS_AT_ONCE = 1 << 24  # whose failed ones are in memory together

Span = tuple[int, int]


@dataclass(frozen=True)
class BankMap:
    """A bank, or a part of it, in blocks.

    Attributes:
        bank: its number.
        rows, bitlines: first and the one after the last; bitlines are numbered column x data width + data line.
        block_rows, block_bitlines: of a block; the last ones may be smaller.
        errors, trials: int64[blocks down, blocks across], failed reads and reads. No trials: no cell of the block was
            tested, or is known singly.
    """

    bank: int
    rows: Span
    bitlines: Span
    block_rows: int
    block_bitlines: int
    errors: Integers
    trials: Integers

    @property
    def ber(self) -> Floats:
        """float64[blocks down, blocks across]; NaN where there are no trials."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.errors / self.trials


def bank_map(
    profile: Profile,
    records: Sequence[PointRecord],
    bank: int,
    rows: Span | None = None,
    bitlines: Span | None = None,
    blocks: int = BLOCKS,
) -> BankMap:
    """Errors of ``bank``, pooled over ``records``, wherever they know single cells.

    Args:
        profile: where the records come from.
        records: points to pool.
        bank: the bank.
        rows: first row and the one after the last; None: all that were tested.
        bitlines: the same of bitlines; None: all.
        blocks: at most so many each way.

    Raises:
        ProfileError: the bank was not tested in ``records``, a span lies outside what was, or a file is damaged.
    """
    geometry = profile.geometry
    here = [record for record in records if bank in record.region.banks]
    if not here:
        tested = sorted({each for record in records for each in record.region.banks})
        raise ProfileError(f"bank {bank} was not tested at these points of {profile.path}; tested: {tested}")
    tested_rows = (min(each.region.row_start for each in here), max(each.region.row_end for each in here))
    top, bottom = _within("rows", rows, tested_rows)
    left, right = _within("bitlines", bitlines, (0, geometry.row_bits))
    height, width = -(-(bottom - top) // blocks), -(-(right - left) // blocks)
    down, across = -(-(bottom - top) // height), -(-(right - left) // width)
    errors, reads = np.zeros(down * across, np.int64), np.zeros(bottom - top, np.int64)
    step = max(1, _CELLS_AT_ONCE // geometry.row_bits)
    for record in here:
        for area in (area for area in record.known_cells if bank in area.banks):
            low, high = max(top, area.row_start), min(bottom, area.row_end)
            reads[max(0, low - top) : max(0, high - top)] += record.rounds
            for start in range(low, high, step):
                cells = profile.cells(record.index, bank, (start, min(step, high - start)))
                row, line = geometry.row(cells.cell), cells.cell % geometry.row_bits
                inside = (line >= left) & (line < right)
                at = (row[inside] - top) // height * across + (line[inside] - left) // width
                errors += np.bincount(at, cells.errors[inside], errors.size).astype(np.int64)
    by_block = np.add.reduceat(reads, np.arange(0, reads.size, height))
    columns = np.diff([*range(left, right, width), right])
    return BankMap(
        bank, (top, bottom), (left, right), height, width, errors.reshape(down, across), np.outer(by_block, columns)
    )


def _within(name: str, span: Span | None, limit: Span) -> Span:
    """The span, which must lie within what was tested; None is all of it."""
    if span is None:
        return limit
    if not limit[0] <= span[0] < span[1] <= limit[1]:
        raise ProfileError(f"{name} {span[0]}:{span[1]} are outside {limit[0]}:{limit[1]}, all that was tested here")
    return span
