"""A mock board on the bench: any preset, filled and read through test-engine programs."""

from dataclasses import replace

import numpy as np

from host import programs
from host.board import Board
from host.boards import MockEnvironment, MockSupply, mock_build
from host.chip_presets import Preset
from host.mock import MockBoard
from host.programs import Traversal
from host.rail import Rail
from host.timings import DDR3_1600K
from profiles.geometry import CellArray, Geometry
from profiles.pattern import Pattern
from profiles.schema import ModuleIdentity

GEOMETRY = Geometry(banks=4, rows=128, columns=1024, data_width=64, subarray_rows=64)
REGION = Traversal((0, 1, 2, 3), 0, 128, 0, 128)
CELLS = 4 * 128 * GEOMETRY.row_bits


def board_of(preset: Preset, seed: int = 1, geometry: Geometry = GEOMETRY, tck_ps: int = 2000) -> Board:
    bus = MockBoard(replace(mock_build(geometry), tck_ps=tck_ps), preset, seed)
    bus.set_environment(1_350_000, 20.0)
    module = ModuleIdentity(
        manufacturer="mock",
        part_number="test",
        serial_number="0",
        dram_type="DDR3L",
        nominal_vdd_mv=1350,
        nominal_trcd_ps=14000,
    )
    rail = Rail(MockSupply(bus), "DDR3L", 1350)
    return Board(bus, rail, MockEnvironment(bus), module, DDR3_1600K, geometry.chip_width, "mock:test", seed)


def fill(board: Board, pattern: str, trcd: int | None = None, region: Traversal = REGION) -> None:
    board.run(programs.fill(board.build, region, Pattern.parse(pattern), trcd))


def read(board: Board, pattern: str, trcd: int, region: Traversal = REGION) -> CellArray:
    """Failing cells, ascending."""
    program = programs.test(board.build, region, Pattern.parse(pattern), trcd)
    return np.sort(np.concatenate([np.empty(0, np.int64), *board.failing_cells(program, region)]))


def write_and_read(board: Board, pattern: str, trcd: int, region: Traversal = REGION) -> CellArray:
    fill(board, pattern, None, region)
    return read(board, pattern, trcd, region)
