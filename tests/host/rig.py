"""A mock board on the bench: any preset, filled and read through test-engine programs."""

from dataclasses import replace

import numpy as np

from host import programs
from host.board import Board
from host.boards import MockEnvironment, MockSupply, SoftwareBoard, mock_build
from host.bus import Bus, Words
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
    return board_behind(bus, bus, geometry.chip_width, seed)


def board_behind(bus: Bus, software: SoftwareBoard, chip_width: int = 8, seed: int = 1) -> Board:
    """The board in software that ``bus`` leads to, or is."""
    software.set_environment(1_350_000, 20.0)
    module = ModuleIdentity(
        manufacturer="mock",
        part_number="test",
        serial_number="0",
        dram_type="DDR3L",
        nominal_vdd_mv=1350,
        nominal_trcd_ps=14000,
    )
    rail = Rail(MockSupply(software), "DDR3L", 1350)
    return Board(bus, rail, MockEnvironment(software), module, DDR3_1600K, chip_width, "mock:test", seed)


def fill(board: Board, pattern: str, trcd: int | None = None, region: Traversal = REGION) -> None:
    board.run(programs.fill(board.build, region, Pattern.parse(pattern), trcd))


def read(board: Board, pattern: str, trcd: int, region: Traversal = REGION) -> CellArray:
    """Failing cells, ascending."""
    program = programs.test(board.build, region, Pattern.parse(pattern), trcd)
    return np.sort(np.concatenate([np.empty(0, np.int64), *board.failing_cells(program, region)]))


def write_and_read(board: Board, pattern: str, trcd: int, region: Traversal = REGION) -> CellArray:
    fill(board, pattern, None, region)
    return read(board, pattern, trcd, region)


def map_of(board: Board, rows: int) -> tuple[CellArray, Words]:
    """Failing cells of a test of two banks; and bursts that were written and read again, more than fit the buffer."""
    region = Traversal((0, 1), 0, rows, 0, board.geometry.bursts_per_row)
    board.environment.begin_epoch(1)
    fill(board, "0x33", None, region)
    board.rail.set(1150)
    cells = read(board, "0x33", 4, region)
    board.rail.restore()
    burst_words = board.geometry.burst_bits // 32
    data = np.random.default_rng(1).integers(0, 1 << 32, (board.buffer_bursts + 36, burst_words), dtype=np.uint32)
    everything = [(0, len(data))]
    board.write_bursts(everything, data, board.timings.trcd)
    return cells, board.read_bursts(everything, board.timings.trcd)
