"""One suite for every kind of board: the mock, the simulated gateware, and that gateware at the end of a serial line.

The line is a pseudo-terminal into the RTL's own UART, at a few clocks a bit. Each test does its work on the board and
on a mock of the same build and module, and finds the results equal, bit for bit, and worth comparing.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from eden.placement import Piece, Placement
from gateware import isa
from gateware.engine.parameters import EngineParameters
from gateware.isa import Command, Slot
from gateware.registers import CSR_BASE, REGISTERS, RESUME, register_offsets
from host import programs
from host.board import Board
from host.bus import Bus, Words
from host.chip_presets import PRESETS
from host.identity import CONSTANTS
from host.mock import MockBoard
from host.plan import PlannedPoint, ScanPlan
from host.programs import Traversal
from host.scan import scan
from host.serial_bus import SerialBus
from host.simulation import SimulatedBoard
from host.tensor_memory import BoardMemory
from host.timings import DDR3_1600K
from profiles.errors import BoardError, ProgramError
from profiles.pattern import Pattern
from profiles.schema import OperatingPoint
from profiles.storage import Profile
from tests.host.rig import board_behind, fill, read
from tests.host.serial_peer import SerialLine
from tests.host.simulated_line import SimulatedPeer
from tests.host.test_scan import assert_same

SEED = 5
HARSH_MV, HARSH_TRCD = 1150, 4  # of vendor B: a few per cent of the bits err
NOWHERE = 0x20000000
OFFSETS = register_offsets()
HOLD = ("program_length", "program_check", "buffer_length", "buffer_check", "log_consumed")  # what is written to them

Result = TypeVar("Result")


class Counting:
    """A bus that counts what the host does with a log that is full."""

    def __init__(self, bus: Bus) -> None:
        self._bus, self.resumes = bus, 0

    def read(self, address: int, count: int) -> Words:
        return self._bus.read(address, count)

    def write(self, address: int, words: Words) -> None:
        self.resumes += address == CSR_BASE + 4 * OFFSETS["control"] and words[0] == RESUME
        self._bus.write(address, words)

    def close(self) -> None:
        self._bus.close()


def simulated() -> SimulatedBoard:
    board = SimulatedBoard("small4", PRESETS["B"], SEED, DDR3_1600K)
    board.set_environment(1_350_000, 20.0)
    board.dram.allow_trcd(1)
    return board


@pytest.fixture(scope="module")
def build() -> EngineParameters:
    board = simulated()
    board.close()
    return board.build


@pytest.fixture
def mock(build: EngineParameters) -> Board:
    bus = MockBoard(build, PRESETS["B"], SEED)
    return board_behind(Counting(bus), bus, seed=SEED)  # type: ignore[arg-type]


def rigged(behind: MockBoard | SimulatedBoard, bus: Bus) -> Board:
    return board_behind(Counting(bus), behind, seed=SEED)  # type: ignore[arg-type]


@pytest.fixture(
    params=["mock", pytest.param("simulated", marks=pytest.mark.slow), pytest.param("serial", marks=pytest.mark.slow)]
)
def board(request: pytest.FixtureRequest, build: EngineParameters) -> Iterator[Board]:
    with ExitStack() as stack:
        if request.param == "mock":
            behind = MockBoard(build, PRESETS["B"], SEED)
            yield rigged(behind, behind)
            return
        behind = simulated()
        stack.callback(behind.close)
        bus: Any = behind
        if request.param == "serial":
            line = stack.enter_context(SerialLine(SimulatedPeer(behind)))
            bus = SerialBus(line.port, 9600, answer_s=60.0)  # a low rate makes the host patient: time is simulated
            stack.callback(bus.close)
        yield rigged(behind, bus)
        assert behind.violations() == {}
        assert request.param != "serial" or bus.repeats == 0


def alike(work: Callable[[Board], Result], board: Board, mock: Board) -> Result:
    """What ``work`` comes to on the board, which is what it comes to on the mock."""
    found, expected = work(board), work(mock)
    np.testing.assert_equal(found, expected)
    return found


def test_registers(board: Board, mock: Board, build: EngineParameters) -> None:
    def work(board: Board) -> list[int]:
        for number, name in enumerate(HOLD):
            board.set_register(name, 0xABCD0000 + number)
        with pytest.raises(BoardError):
            board.bus.read(NOWHERE, 3)
        with pytest.raises(BoardError):
            board.bus.write(NOWHERE, np.zeros(3, np.uint32))
        constants = ("identity", "interface_version", *CONSTANTS)
        return [board.register(name) for name in (*constants, *HOLD, "state", "fault", "starts", "captured")]

    found = alike(work, board, mock)
    assert found[2 : 2 + len(CONSTANTS)] == [build.constants()[name] for name in CONSTANTS]
    assert [0xABCD0000 + number for number in range(len(HOLD))] == found[2 + len(CONSTANTS) :][: len(HOLD)]
    every = sum(register.words for register in REGISTERS)
    assert board.bus.read(CSR_BASE, every)[0] == found[0]  # one access to all of them reads each where it is


def test_fills_and_tests(board: Board, mock: Board) -> None:
    def work(board: Board) -> list[Any]:
        board.environment.begin_epoch(2)
        out: list[Any] = []
        for walk in (Traversal((1, 0), 3, 4, 1, 5), Traversal((6,), 60, 4, 0, 8, whole_rows=True)):
            trcd = None if walk.whole_rows else HARSH_TRCD
            fill(board, "random:9/invert", None, walk)
            board.rail.set(HARSH_MV)
            out.append(np.sort(np.concatenate([np.empty(0, np.int64), *_test(board, walk, trcd)])))
            board.rail.restore()
            result = board.result()
            out += [result.reads, result.errors, result.clocks, result.refreshes]
        return out

    def _test(board: Board, walk: Traversal, trcd: int | None) -> Iterator[np.ndarray]:
        return board.failing_cells(programs.test(board.build, walk, Pattern.parse("random:9/invert"), trcd), walk)

    found = alike(work, board, mock)
    assert found[0].size == found[2].sum() > 50


def test_a_full_error_log_halts_and_goes_on(board: Board, mock: Board) -> None:
    """Far more failing bits than the log has room for: all of them come, each once, and the counters agree."""
    region = Traversal(tuple(range(8)), 0, 16, 0, 8)

    def work(board: Board) -> Any:
        board.environment.begin_epoch(1)
        fill(board, "0x00", None, region)
        cells = read(board, "0xFF", 8, region)  # every bit fails
        return cells, board.register("log_produced"), board.result().errors

    cells, blocks, errors = alike(work, board, mock)
    assert np.array_equal(np.unique(cells), cells)
    assert cells.size == errors.sum() == region.length * board.geometry.burst_bits
    assert blocks > 2 * board.build.log_blocks
    assert board.bus.resumes > 1  # type: ignore[attr-defined]


def test_line_counters(board: Board, mock: Board) -> None:
    def work(board: Board) -> Any:
        board.environment.begin_epoch(4)
        walk = Traversal((2,), 8, 16, 0, 8)
        fill(board, "checker", None, walk)
        board.rail.set(HARSH_MV)
        modes = isa.COUNT_ROWS | isa.COUNT_BITLINES | isa.COUNT_DQ
        board.run(programs.test(board.build, walk, Pattern.parse("checker"), HARSH_TRCD, True, modes))
        board.rail.restore()
        return vars(board.line_counts(2, 16))

    assert alike(work, board, mock)["rows"].sum() > 50


def test_programs_that_the_engine_refuses(board: Board, mock: Board) -> None:
    end, act = isa.Instruction(isa.Opcode.END), isa.issue(Slot(Command.ACT, 0), wait=20)
    refused = {
        "CLOSED_BANK": [isa.issue(Slot(Command.RD, board.build.read_phase)), end],
        "OPEN_BANK": [act, act, end],
        "ADDRESS": [replace(act, immediate_row=board.geometry.rows), end],
    }

    def work(board: Board) -> list[str]:
        said = []
        for program in refused.values():
            with pytest.raises(ProgramError) as caught:
                board.run(program)
            said.append(str(caught.value))
        fill(board, "0x00", None, Traversal((0,), 0, 1, 0, 1))  # and goes on
        return said

    said = alike(work, board, mock)
    assert [each.rpartition(": ")[2] for each in said] == list(refused)


def test_more_bursts_than_the_buffers_hold(board: Board, mock: Board) -> None:
    size = board.buffer_bursts + 11
    data = np.random.default_rng(3).integers(0, 1 << 32, (size, board.geometry.burst_bits // 32), dtype=np.uint32)
    stretches = [(board.geometry.row_bits, size - 5), (board.geometry.bank_bits, 5)]

    def work(board: Board) -> Any:
        board.environment.begin_epoch(6)
        with board.rail.guarded():
            board.write_bursts(stretches, data, board.timings.trcd)
            safe = board.read_bursts(stretches, board.timings.trcd)
            board.rail.set(HARSH_MV)
            return safe, board.read_bursts(stretches, HARSH_TRCD)

    safe, harsh = alike(work, board, mock)
    assert np.array_equal(safe, data)
    assert np.bitwise_count(harsh ^ data).sum() > 20


def test_tensors(board: Board, mock: Board) -> None:
    """A weight in two pieces at two operating points, and an IFM that is written where it is read."""
    g, harsh = board.geometry, OperatingPoint(vdd_mv=HARSH_MV, trcd_ps=HARSH_TRCD * board.timings.tck_ps)
    mild = OperatingPoint(vdd_mv=1350, trcd_ps=14000)
    other = Piece(partition="b", first_cell=2 * g.bank_bits, cells=40 * g.burst_bits, point=mild)
    weight = Placement(tensor="w", partition="a", first_cell=0, cells=24 * g.burst_bits, point=harsh, more=(other,))
    ifm = Placement(tensor="x", partition="a", first_cell=g.bank_bits, cells=20 * g.burst_bits, point=harsh)
    content = {"w": 60 * g.burst_bits // 8 - 3, "x": 20 * g.burst_bits // 8}
    data = {
        name: torch.from_numpy(np.random.default_rng(size).integers(0, 256, size, np.uint8))
        for name, size in content.items()
    }

    def work(board: Board) -> Any:
        board.environment.begin_epoch(8)
        memory = BoardMemory([board], {"w": weight, "x": ifm}, frozenset({"x"}))
        with board.rail.guarded():
            memory.clear()
            for name, each in data.items():
                memory.store(name, each)
            loaded = memory.load_all(["x", "w"])
        return [each.numpy() for each in loaded], memory.flips, memory.bits_read

    (_, w), flips, _ = alike(work, board, mock)
    assert min(flips.values()) > 10
    in_first = 24 * g.burst_bits // 8
    assert np.array_equal(w[in_first:], data["w"].numpy()[in_first:])
    assert board.rail.present_mv == 1350


PLAN = {
    "grid": [{"trcd_ps": 8000, "vdd_mv": [1350, HARSH_MV]}],
    "patterns": ["random:3/invert"],
    "rounds": 2,
    "banks": [0, 5],
    "rows": {"start": 7, "count": 12},
    "write": ["nominal", "operating_point"],
}


class CutError(Exception):
    """A scan ends here."""


def test_a_scan_that_is_cut_off_and_goes_on(board: Board, mock: Board, tmp_path: Path) -> None:
    plan = ScanPlan.model_validate(PLAN)

    def cut(profile: Profile, _planned: PlannedPoint | None) -> None:
        if len(profile.points) == 3:
            raise CutError

    with pytest.raises(CutError):
        scan(board, plan, tmp_path / "found", cut)
    assert len(Profile.open(tmp_path / "found").points) == 3
    found, expected = scan(board, plan, tmp_path / "found"), scan(mock, plan, tmp_path / "expected")
    assert_same(found, expected)
    assert [point.errors > 50 for point in found.points] == [False, False, True, True]


@pytest.mark.parametrize("refresh", ["kept", "withheld"])
def test_refresh(refresh: str, board: Board, mock: Board, tmp_path: Path) -> None:
    """Kept, it is issued as often on each; withheld, never; and counted either way."""
    plan = ScanPlan.model_validate(PLAN | {"refresh": refresh, "write": ["nominal"], "rounds": 1, "banks": range(8)})
    found = scan(board, plan, tmp_path / "found")
    assert_same(found, scan(mock, plan, tmp_path / "expected"))
    for point in found.points:
        assert point.refreshes is not None
        assert (point.refreshes > 0) == (refresh == "kept")
