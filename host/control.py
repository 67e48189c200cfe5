"""Control reads: whose error a wrong bit is, the read's, the cell's, or that of the way between DRAM and FPGA.

Once the rounds of a point are over, every cell is read once at nominal supply and tRCD. What is wrong then is
*corrupted*: the cell holds it, as a write failed, or as a wrong read was restored. The rest of what the last round
found was wrong in reading only.

Then some rows, written anew at nominal, are read at the point's supply, but at nominal tRCD and with rows open. A row's
first burst may still come too early there; the others come from sense amplifiers that have settled. Where these are
wrong, it is not for short activation: a reduced supply that the FPGA's own inputs share moves what it takes for a one,
and an error at this supply need not be the DRAM's.
"""

from gateware import isa
from host import programs
from host.board import Board
from host.programs import Traversal
from profiles.pattern import Pattern
from profiles.schema import ControlReads, Region

PATH_ROWS = 8  # of each bank, the first ones tested


def read_controls(board: Board, region: Region, pattern: Pattern, vdd_mv: int) -> ControlReads:
    """Read what the rounds of a point left, and then the way between DRAM and FPGA; leaves the supply at the point.

    Args:
        board: whose DRAM holds the data of the last round.
        region, pattern: that were tested.
        vdd_mv: supply of the point, millivolts.

    Raises:
        RailError, LinkError: as `host.scan.scan`.
    """
    geometry, rail = board.geometry, board.rail
    rail.set(rail.nominal_mv)
    found = board.run(_open_rows(board, _walk(board, region, region.row_count), pattern, counters=0))
    zero_to_one, one_to_zero = (int(errors) for errors in found.errors.sum(axis=0))
    walk = _walk(board, region, min(PATH_ROWS, region.row_count))
    board.run(programs.fill(board.build, walk, pattern, None))
    rail.set(vdd_mv)
    wrong = 0
    for cells in board.failing_cells(_open_rows(board, walk, pattern, isa.COUNT_LOG), walk):
        wrong += int((geometry.column(cells) >= geometry.burst_length).sum())
    return ControlReads(
        corrupted_zero_to_one=zero_to_one,
        corrupted_one_to_zero=one_to_zero,
        path_errors=wrong,
        path_reads=walk.length * geometry.burst_bits * (geometry.bursts_per_row - 1) // geometry.bursts_per_row,
    )


def _walk(board: Board, region: Region, rows: int) -> Traversal:
    return Traversal(region.banks, region.row_start, rows, 0, board.geometry.bursts_per_row, whole_rows=True)


def _open_rows(board: Board, walk: Traversal, pattern: Pattern, counters: int) -> list[isa.Instruction]:
    return programs.test(board.build, walk, pattern, None, counters=counters)
