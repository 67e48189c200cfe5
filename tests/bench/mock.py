"""Benchmark: how fast the mock board scans, the host's reading and decoding of the error log included.

One burst per activation over 64 MiB, eight banks, filled anew before each repeat as a scan does. Where errors are few
the goal is bytes a second, where they are many errors a second; between them a scan pays for both, and the bound is
what those two goals together allow.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Any

from host import programs
from host.board import Board
from host.boards import open_board
from host.programs import Traversal
from profiles.pattern import Pattern

REPEATS = 5
ROWS = 1024  # of each of eight banks: 64 MiB
GIB_PER_S, ERRORS_PER_S = 1.0, 20e6
PATTERN = Pattern.parse("0x33")

# name, VDD in mV, tRCD in clocks of 2 ns, range of the BER that the point must show to count
POINTS = (
    ("ber_0", 1350, 5, (0.0, 0.0)),
    ("ber_1e-5", 1300, 4, (1e-6, 1e-5)),
    ("ber_1e-3", 1200, 4, (5e-4, 5e-3)),
    ("ber_1e-2", 1300, 3, (1e-2, 5e-2)),
)


def figures() -> Iterator[dict[str, Any]]:
    """Medians over `REPEATS`, by wall clock."""
    board = open_board("mock:A:3")
    region = Traversal(tuple(range(8)), 0, ROWS, 0, board.geometry.bursts_per_row)
    gib = region.length * board.geometry.burst_bits / 8 / (1 << 30)
    for name, vdd_mv, trcd, (low, high) in POINTS:
        board.environment.begin_epoch(0)
        _scan(board, region, vdd_mv, trcd)  # numba compiles
        runs = [_scan(board, region, vdd_mv, trcd) for _ in range(REPEATS)]
        errors = runs[0][1]
        ber = errors / (region.length * board.geometry.burst_bits)
        if not low <= ber <= high:
            raise AssertionError(f"{name} shows a BER of {ber:.2g}; choose another point of the preset")
        seconds = statistics.median(elapsed for elapsed, _ in runs)
        if high <= 1e-5:
            yield _figure(f"scan_{name}", gib / seconds, "GiB/s", None, GIB_PER_S)
        elif low >= 1e-2:
            yield _figure(f"errors_{name}", errors / seconds, "errors/s", None, ERRORS_PER_S)
        else:
            allowed = errors / (gib / GIB_PER_S + errors / ERRORS_PER_S)
            yield _figure(f"errors_{name}", errors / seconds, "errors/s", allowed, 1.0)


def _scan(board: Board, region: Traversal, vdd_mv: int, trcd: int) -> tuple[float, int]:
    """Seconds to read and place every error, and their number."""
    board.rail.restore()
    board.run(programs.fill(board.build, region, PATTERN, None))
    board.rail.set(vdd_mv)
    begun = time.perf_counter()
    errors = sum(cells.size for cells in board.failing_cells(programs.test(board.build, region, PATTERN, trcd), region))
    return time.perf_counter() - begun, errors


def _figure(name: str, value: float, unit: str, bound: float | None, goal: float) -> dict[str, Any]:
    ratio = None if bound is None else value / bound
    return {
        **{"bench": "mock", "name": name, "value": value, "unit": unit, "bound": bound, "ratio": ratio, "goal": goal},
        "met": (value if ratio is None else ratio) >= goal,
    }
