"""Traces on boards: the engine issues what the model says, clock for clock, and counts what reads wrong."""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eden.replay import BACK_TO_BACK, SERIAL, Bursts, RowPolicy, place
from eden.replay import replay as modelled
from gateware.isa import Command
from gateware.registers import CSR_BASE, RESUME, Fault
from host import programs, simulation
from host.board import Board
from host.boards import MOCK_GEOMETRY, open_board, open_mock
from host.cli.trace import controller_of, dram_of, trace_of
from host.programs import Traversal
from host.simulated_dram import DATA as WRITE_DATA
from host.simulated_dram import DONE, command_function
from host.trace import DATA, Trace, overhead, program, replay
from profiles.errors import CapacityError, ProgramError, UnacknowledgedError
from tests.host.reference import ReferenceEngine

Issued = tuple[int, Command, int, int]  # DRAM clock, command, bank, row or column address


@pytest.fixture(scope="module")
def mock() -> Board:
    return open_mock("B", 1)


def served(board: Board, bursts: Bursts, trcd: int, outstanding: int, policy: RowPolicy) -> Trace:
    spec = dram_of(board)
    found = modelled(bursts, spec, trcd, outstanding, policy, controller=controller_of(board))
    return trace_of(found, spec)


def some(board: Board, seed: int, count: int, rows: int) -> Bursts:
    """Bursts anywhere in the first rows of all banks, a quarter of them writes, now and then many of one row."""
    spec, rng = dram_of(board), np.random.default_rng(seed)
    numbers = rng.integers(0, rows * spec.banks * spec.row_bursts, count)
    again = rng.random(count) < 0.3
    numbers[1:][again[1:]] = numbers[:-1][again[1:]] ^ 1
    return place(numbers, spec, rng.random(count) < 0.25, np.zeros(count, np.int64))


def commands(trace: Trace) -> list[Issued]:
    columns = (trace.clock, trace.command, trace.bank, trace.address)
    return [
        (clock, Command(what), bank, address)
        for clock, what, bank, address in zip(*(values.tolist() for values in columns), strict=True)
    ]


def system_clocks(trace: Trace) -> int:
    """Of a KC705, four DRAM clocks each, up to the trace's end and after its last command."""
    return max(-(-trace.length // 4), int(trace.clock[-1]) // 4 + 1)


PACES = st.tuples(st.sampled_from([SERIAL, 4, BACK_TO_BACK]), st.sampled_from(list(RowPolicy)))


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 60), PACES, st.integers(4, 7))
def test_the_program_issues_each_command_at_its_clock(
    seed: int, count: int, pace: tuple[int, RowPolicy], trcd: int
) -> None:
    """By the engine's contract: the reference engine, to which a program of one chunk is given."""
    board = open_mock("B", 1)
    trace = served(board, some(board, seed, count, 3), trcd, *pace)
    (only,) = program(board.build, trace)
    build = board.build
    engine = ReferenceEngine(MOCK_GEOMETRY, (build.nphases, build.read_phase, build.write_phase), 1, [(0,) * 16])
    assert engine.run(only) == Fault.NONE
    begun = 3 * build.nphases  # after three settings
    seen = [
        (i.clock - begun, i.command, i.bank, i.row if i.command is Command.ACT else i.column) for i in engine.issued
    ]
    assert seen[:-1] == [c if c[1] is not Command.PREA else (c[0], c[1], 0, 0) for c in commands(trace)]
    assert seen[-1][1] is Command.PREA
    assert engine.clocks - overhead(build) == system_clocks(trace)


def test_a_long_trace_takes_the_models_clocks_refreshes_and_chunks_included(mock: Board) -> None:
    """At nominal tRCD and supply everything reads right; what was written reads right too."""
    bursts = some(mock, 1, 5000, 40)
    for outstanding in (SERIAL, BACK_TO_BACK):
        trace = served(mock, bursts, mock.timings.trcd, outstanding, RowPolicy.OPEN)
        assert len(list(program(mock.build, trace))) > 10
        with mock.rail.guarded():
            found = replay(mock, trace, 1350)
        assert found.clocks == 4 * system_clocks(trace)
        assert found.bits_read == int((~bursts.write).sum()) * 512
        assert found.bits_wrong == 0


def test_a_reduced_trcd_takes_less_time_and_reads_wrong(mock: Board) -> None:
    """Each burst in a row of its own bank's, so that every READ is the first of its activation."""
    bursts = some(mock, 2, 3000, 40)
    mock.environment.begin_epoch(1)
    found = {}
    for trcd in (7, 4):
        with mock.rail.guarded():
            found[trcd] = replay(mock, served(mock, bursts, trcd, SERIAL, RowPolicy.CLOSED), 1100)
    assert found[4].clocks < found[7].clocks
    assert found[7].bits_wrong == 0
    assert 1e-4 < found[4].bits_wrong / found[4].bits_read < 0.2
    assert mock.rail.present_mv == 1350


def test_a_resume_that_was_not_acknowledged_runs_no_chunk_twice_and_leaves_none_out(
    mock: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second RESUME is lost, and of every third only the acknowledgement."""
    trace = served(mock, some(mock, 3, 2000, 20), 7, SERIAL, RowPolicy.OPEN)
    with mock.rail.guarded():
        calm = replay(mock, trace, 1350)
        write, count = mock.bus.write, 0

        def lossy(address: int, words: np.ndarray) -> None:
            nonlocal count
            if address == CSR_BASE + 4 * mock._offsets["control"] and words[0] == RESUME:
                count += 1
                if count % 3 == 0:
                    write(address, words)
                if count % 2 == 0 or count % 3 == 0:
                    raise UnacknowledgedError("lost")
            write(address, words)

        monkeypatch.setattr(mock.bus, "write", lossy)
        assert replay(mock, trace, 1350) == calm
    assert count > 10


def test_traces_that_cannot_be_replayed_are_refused(mock: Board) -> None:
    def trace(*issued: tuple[int, Command, int, int]) -> Trace:
        clock, command, bank, address = (np.array(column, np.int64) for column in zip(*issued, strict=True))
        return Trace(clock, command, bank, address, int(clock[-1]) + 20)

    with pytest.raises(ProgramError, match="one in each system clock at most"):
        list(program(mock.build, trace((0, Command.ACT, 0, 0), (3, Command.PRE, 0, 0))))
    with pytest.raises(CapacityError, match="reaches row 16384, the module has 16384"):
        replay(mock, trace((0, Command.ACT, 0, 16384)), 1350)
    with pytest.raises(ProgramError, match="CLOSED_BANK"), mock.rail.guarded():
        replay(mock, trace((mock.build.read_phase, Command.RD, 0, 0)), 1350)


# ---- in the RTL ------------------------------------------------------------------------------------------------------

_COMMAND = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 7)
# by RAS#, CAS# and WE#, least significant bit first (JESD79-3F, table 6)
_PINS = {0b110: Command.ACT, 0b101: Command.RD, 0b001: Command.WR, 0b010: Command.PRE, 0b100: Command.REF}


class Tap:
    """Between the simulated gateware's DFI and its DRAM: every command with its DRAM clock.

    Attributes:
        commands: since it was last emptied.
    """

    def __init__(self) -> None:
        inner = _COMMAND(command_function().address)

        def see(state: int, pins: int, bank: int, address: int, clock: int, burst: int, mask: int) -> int:
            done: int = inner(state, pins, bank, address, clock, burst, mask)
            if done == DONE and pins != WRITE_DATA:
                self.commands.append(_said(clock, pins, bank, address))
            return done

        self.commands: list[Issued] = []
        self._function = _COMMAND(see)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value


def _said(clock: int, pins: int, bank: int, address: int) -> Issued:
    command = _PINS[pins & 7]
    if command is Command.PRE:
        return (clock, Command.PREA, 0, 0) if address & 1 << 10 else (clock, command, bank, 0)
    return (clock, command, bank, address if command is not Command.REF else 0)


@pytest.fixture
def tapped(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Board, Tap]]:
    tap = Tap()
    monkeypatch.setattr(simulation, "command_function", lambda: SimpleNamespace(address=tap.address))
    board = open_board("sim:B:1")
    yield board, tap
    board.close()


@pytest.mark.slow
@pytest.mark.parametrize("policy", RowPolicy)
@pytest.mark.parametrize(("outstanding", "trcd"), [(SERIAL, 7), (SERIAL, 4), (4, 5), (BACK_TO_BACK, 7)])
def test_the_gateware_issues_the_models_commands_clock_for_clock(
    tapped: tuple[Board, Tap], outstanding: int, trcd: int, policy: RowPolicy
) -> None:
    """On the simulated DFI, chunk by chunk, and no distance of JEDEC's broken."""
    board, tap = tapped
    bursts = some(board, trcd, 800 if outstanding == BACK_TO_BACK else 400, 3)
    trace = served(board, bursts, trcd, outstanding, policy)
    chunks, expected = list(program(board.build, trace)), commands(trace)
    assert len(chunks) > 1
    simulated = board.bus.dram  # type: ignore[attr-defined]
    simulated.allow_trcd(trcd)
    with board.rail.guarded():
        everything = Traversal(tuple(range(8)), 0, 3, 0, board.geometry.bursts_per_row, whole_rows=True)
        board.run(programs.fill(board.build, everything, DATA, None))
        tap.commands.clear()
        result = board.run(chunks[0], following=chunks[1:])
    assert board.bus.violations() == {}  # type: ignore[attr-defined]
    assert result.clocks - overhead(board.build) == system_clocks(trace)
    assert result.reads == int((~bursts.write).sum())
    kept = {Command.PREA, Command.REF}  # of who has the DRAM before and after
    position = next(k for k, command in enumerate(tap.commands) if command[1] not in kept)
    for chunk in _chunks(expected):  # between two, the engine refreshes as often as the host takes
        seen = tap.commands[position : position + len(chunk)]
        shift = seen[0][0] - chunk[0][0]
        assert [(clock - shift, *rest) for clock, *rest in seen] == [tuple(c) for c in chunk]
        assert shift % 4 == 0
        position += len(chunk)
        while position < len(tap.commands) and tap.commands[position][1] is Command.REF:
            position += 1
    assert tap.commands[position][1] is Command.PREA
    assert {what for _, what, _, _ in tap.commands[position:]} <= kept


def _chunks(issued: list[Issued]) -> Iterator[list[Issued]]:
    begun = 0
    for k, (_, what, _, _) in enumerate(issued):
        if what is Command.REF and k + 1 < len(issued):
            yield issued[begun : k + 1]
            begun = k + 1
    yield issued[begun:]


@pytest.mark.slow
def test_mock_and_simulated_board_replay_alike() -> None:
    found = []
    for name in ("mock:B:1", "sim:B:1"):
        board = open_board(name)
        try:
            board.environment.begin_epoch(5)
            trace = served(board, some(board, 4, 600, 2), 4, SERIAL, RowPolicy.CLOSED)
            with board.rail.guarded():
                found.append(replay(board, trace, 1100))
        finally:
            board.close()
    assert found[0] == found[1]
    assert found[0].bits_wrong > 100


# ---- the command line ------------------------------------------------------------------------------------------------


def test_eden_trace_replay_says_clocks_errors_and_gain(run_eden: Callable[..., str]) -> None:
    said = run_eden("trace", "replay", "--board", "mock:B:1", "--bursts", "2000", "--vdd-mv", "1040")
    rows = [line for line in said.splitlines() if " ns " in line]
    assert [row.split("│")[1].strip() for row in rows] == ["14 ns", "10 ns"]
    assert [row.split("│")[2].strip() for row in rows] == ["1350 mV", "1040 mV"]
    clocks = [[int(cell) for cell in row.split("│")[3:5]] for row in rows]
    wrong = [int(row.split("│")[6]) for row in rows]
    assert wrong[0] == 0 < wrong[1]
    assert all(0 <= engine - model <= 4 for engine, model in clocks)
    assert clocks[1][0] < clocks[0][0]
    assert "less time" in said


def test_a_dependent_stream_over_closed_rows_gains_where_it_is_interleaved_over_banks(
    run_eden: Callable[..., str],
) -> None:
    """By tRCD + CL + burst, 18 to 16 clocks, and so 20 to 16 in whole system clocks; along a row tRC decides."""
    common = ("trace", "replay", "--board", "mock:B:1", "--bursts", "2000", "--rows", "closed")
    gains = [
        float(run_eden(*common, *more).split("the trace takes ")[1].split(" %")[0]) for more in ((), ("--interleaved",))
    ]
    assert gains[0] < 1
    assert 15 < gains[1] < 21


@pytest.mark.parametrize("form", ["ramulator", "drampower"])
def test_eden_trace_export_writes_what_the_readers_read(
    form: str, run_eden: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "traces/lenet"
    said = run_eden("trace", "export", out, "--format", form, "--bursts", "100")
    lines = out.read_text().splitlines()
    assert len(lines) == 100 if form == "ramulator" else len(lines) > 100
    assert str(out) in "".join(said.split("\n"))
