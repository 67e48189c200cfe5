"""Mock and simulated board: the same programs give the same logs, counters, clocks and memory contents, bit for bit."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gateware import isa
from gateware.isa import Command, Instruction, Slot, issue
from gateware.registers import Fault
from host import programs
from host.boards import open_board
from host.chip_presets import PRESETS
from host.mock import MockBoard
from host.plan import PlannedPoint, ScanPlan
from host.programs import EngineBuild, Traversal
from host.scan import scan
from host.simulation import SimulatedBoard
from host.timings import DDR3_1600K, DDR4_1600K, Timings
from host.toml_file import load_toml
from profiles.pattern import Pattern, PatternKind
from profiles.storage import Profile
from tests.host.engine_bench import BASES, END, EngineBench, random_programs

SEED = 5
SPEED = {"small4": DDR3_1600K, "small2": DDR3_1600K, "small_ddr4": DDR4_1600K}
CONFIGURATIONS = tuple(SPEED)
# a cliff of vendor B's: a few per cent of the bits read wrong at tRCD of some clocks
VDD_UV = 1_100_000


def pair(configuration: str) -> tuple[EngineBench, EngineBench]:
    """The simulated board of a configuration, and the mock of the same build and the same chips."""
    simulated = SimulatedBoard(configuration, PRESETS["B"], SEED, SPEED[configuration])
    mocked = MockBoard(simulated.build, PRESETS["B"], SEED)
    boards = (simulated, mocked)
    for board in boards:
        board.set_environment(VDD_UV, 20.0)
        board.begin_epoch(3)
    return EngineBench(simulated, simulated.build), EngineBench(mocked, simulated.build)


def engine_build(bench: EngineBench, configuration: str) -> EngineBuild:
    build = bench.build
    timings = Timings.of(SPEED[configuration], build.tck_ps, build.cas_write_latency)
    return EngineBuild(build.nphases, build.read_phase, build.write_phase, build.log_blocks, build.geometry, timings)


def compare(
    run: Callable[[EngineBench], tuple[Fault, np.ndarray]], simulated: EngineBench, mocked: EngineBench
) -> Fault:
    """Run on both, and find everything equal; returns the fault."""
    fault, log = run(simulated)
    expected_fault, expected_log = run(mocked)
    assert fault == expected_fault
    names = ["clocks", "reads_compared", "refreshes", "captured", "log_produced"]
    names += ["fault_pc"] if fault else ["capture_check"]
    assert {name: simulated.get(name) for name in names} == {name: mocked.get(name) for name in names}
    np.testing.assert_array_equal(log, expected_log)
    g = simulated.geometry
    places = {"bank_errors": g.banks, "row_errors": simulated.build.row_counters}
    places |= {"bitline_errors": g.row_bits, "dq_errors": g.data_width}
    for name, count in places.items():
        np.testing.assert_array_equal(simulated.counters(name, count), mocked.counters(name, count), err_msg=name)
    return fault


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(data=st.data())
def test_random_programs(configuration: str, data: st.DataObject) -> None:
    simulated, mocked = pair(configuration)
    try:
        programs = st.lists(random_programs(simulated.build), min_size=1, max_size=3)
        for program in data.draw(programs):
            compare(lambda bench, program=program: bench.run(program), simulated, mocked)
    finally:
        simulated.bus.close()


TRAVERSALS = (
    Traversal(tuple(range(8)), 0, 6, 0, 8),
    Traversal((3, 0, 5), 7, 5, 2, 5),
    Traversal((6,), 60, 4, 0, 8),
)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("trcd", [1, 2, 3, 4, 5, 8, None])
def test_scans_of_a_region(configuration: str, trcd: int | None) -> None:
    """Fills and tests as the host writes them: pipelined over banks, halting where the small log is full, refreshed."""
    simulated, mocked = pair(configuration)
    build = engine_build(simulated, configuration)
    simulated.bus.dram.allow_trcd(min(trcd or build.timings.trcd, build.timings.trcd))
    for number, traversal in enumerate(TRAVERSALS):
        walk = replace(traversal, whole_rows=trcd is None)
        pattern = Pattern.parse(("random:9", "checker/invert", "0xAA")[number])
        counters = (isa.COUNT_LOG, 15, isa.COUNT_LOG)[number]
        wrong = Pattern.parse(("random:8", "walking", "0xAB")[number])  # so that even a flawless DRAM fails often
        refresh = number != 1
        for program in (
            programs.fill(build, walk, pattern, trcd, refresh),
            programs.test(build, walk, pattern, trcd, refresh, counters),
            programs.test(build, walk, wrong, trcd, refresh, counters),
        ):
            assert compare(lambda bench, program=program: bench.run(program), simulated, mocked) == Fault.NONE
    assert simulated.halts > 0  # the log of these boards is small
    assert simulated.bus.violations() == {}
    simulated.bus.close()


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    interval=st.integers(2, 60), trfc=st.integers(1, 12), waits=st.lists(st.integers(0, 150), min_size=3, max_size=8)
)
def test_refreshes_keep_their_time(configuration: str, interval: int, trfc: int, waits: list[int]) -> None:
    """Due on time, overdue by several intervals, and one upon the other."""
    simulated, mocked = pair(configuration)
    program = [
        isa.set_(isa.Setting.REFRESH, interval | min(trfc, interval - 1) << 32),
        issue(loop_begin=3),
        *(each for wait in (interval, *waits) for each in (issue(wait=wait), Instruction(isa.Opcode.YIELD))),
        issue(loop_end=True),
        END,
    ]
    assert compare(lambda bench: bench.run(program), simulated, mocked) == Fault.NONE
    assert simulated.get("refreshes") > 0
    simulated.bus.close()


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_loading_any_digit_sends_its_pointer_to_the_start(configuration: str) -> None:
    simulated, mocked = pair(configuration)
    pointer = isa.Pointer(isa.Digit(0, 1, 3), isa.Digit(1, 2, 4), isa.Digit(0, 8, 2))
    settings_of = [pointer.settings(which) for which in (0, 1, 2)]
    walk = [
        issue(Slot(Command.ACT, 0, 0, step=True), wait=12, loop_begin=11),
        issue(Slot(Command.RD, simulated.build.read_phase, 1, step=True, compare=True), wait=12),
        issue(Slot(Command.PRE, 0, 2, step=True), wait=8, loop_end=True),
    ]
    pattern = isa.set_(isa.Setting.PATTERN, int(PatternKind.RANDOM) | 7 << 32)
    program = [pattern, isa.set_(isa.Setting.COUNTERS, 15), *(i for each in settings_of for i in each), *walk]
    for digit in range(4):
        program += [*(each[digit] for each in settings_of), *walk]
    assert compare(lambda bench: bench.run([*program, END]), simulated, mocked) == Fault.NONE
    simulated.bus.close()


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_way_to_close_a_bank(configuration: str) -> None:
    """What was open takes another row afterwards: the DRAM would report an ACT to a bank that was left open."""
    simulated, mocked = pair(configuration)
    build = simulated.build
    read, write = Slot(Command.RD, build.read_phase), Slot(Command.WR, build.write_phase)

    def at(slot: Slot, bank: int, address: int = 0) -> Instruction:
        return replace(issue(slot, wait=40), immediate_bank=bank, immediate_row=address)

    pattern = isa.set_(isa.Setting.PATTERN, int(PatternKind.RANDOM) | 3 << 32)
    for closes in (
        [at(Slot(Command.PREA, 0), 0)],
        [at(Slot(Command.PRE, 0), bank) for bank in (0, 1)],
        [at(replace(read, auto_precharge=True), bank) for bank in (0, 1)],
        [at(replace(write, auto_precharge=True), bank) for bank in (0, 1)],
    ):
        opens = [[at(Slot(Command.ACT, 0), bank, row) for bank in (0, 1)] for row in (1, 2)]
        compares = [at(replace(read, compare=True), bank) for bank in (0, 1)]
        program = [pattern, isa.set_(isa.Setting.COUNTERS, 15), *opens[0], *closes, *opens[1], *compares]
        program += [at(Slot(Command.PREA, 0), 1), END]
        assert compare(lambda bench, program=program: bench.run(program), simulated, mocked) == Fault.NONE
        assert simulated.bus.violations() == {}
    simulated.bus.close()


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_fault(configuration: str) -> None:
    simulated, mocked = pair(configuration)
    build = simulated.build

    def at(slot: Slot, bank: int = 1, address: int = 0) -> Instruction:
        return replace(issue(slot, wait=20), immediate_bank=bank, immediate_row=address)

    act, close, stop = Slot(Command.ACT, 0), Slot(Command.PREA, 0), Instruction(isa.Opcode.YIELD)
    read, write = Slot(Command.RD, build.read_phase), Slot(Command.WR, build.write_phase)
    capture = replace(at(replace(read, capture=True)), loop_end=True)
    captures = [issue(loop_begin=build.buffer_bursts + 1), capture]
    order_of_pointer_2 = isa.Setting.POINTER_ORDER + 8
    for program, fault in (
        ([at(act), at(read), at(close), stop], Fault.NONE),
        ([at(read)], Fault.CLOSED_BANK),
        ([at(write)], Fault.CLOSED_BANK),
        ([at(act), at(replace(read, auto_precharge=True)), at(read)], Fault.CLOSED_BANK),
        ([at(act), at(replace(write, auto_precharge=True)), at(act), at(write), at(close)], Fault.NONE),
        ([at(act), at(act)], Fault.OPEN_BANK),
        ([at(act), stop], Fault.OPEN_BANK),
        ([at(act), at(Slot(Command.REF, 0))], Fault.OPEN_BANK),
        ([at(act, bank=build.geometry.banks)], Fault.ADDRESS),
        ([at(act, address=build.geometry.rows)], Fault.ADDRESS),
        ([at(act), at(read, address=build.geometry.columns)], Fault.ADDRESS),
        ([at(act), at(read, address=1)], Fault.ADDRESS),
        ([at(act), *captures], Fault.CAPTURE_OVERFLOW),
        ([at(replace(read, phase=build.read_phase + 1))], Fault.BAD_INSTRUCTION),
        ([isa.set_(order_of_pointer_2, 0b010000)], Fault.BAD_INSTRUCTION),
        ([isa.set_(order_of_pointer_2, 0b010010)], Fault.NONE),
        ([isa.set_(isa.Setting.REFRESH, 10 | 10 << 32)], Fault.BAD_INSTRUCTION),
        ([isa.set_(isa.Setting.PATTERN, max(PatternKind) + 1)], Fault.BAD_INSTRUCTION),
        ([isa.set_(isa.Setting.LOG_RESERVE, build.log_blocks), stop], Fault.RESERVE),
    ):
        found = compare(lambda bench, program=program: bench.run([*program, END]), simulated, mocked)
        assert found == fault, program
    simulated.bus.close()


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_where_loops_and_programs_end(configuration: str) -> None:
    """Loops too deep or never begun, a program without END, and loops that a chunk leaves open."""
    simulated, mocked = pair(configuration)
    begin, end = issue(loop_begin=2), issue(loop_end=True)
    deepest = [*[begin] * isa.LOOP_DEPTH, *[end] * isa.LOOP_DEPTH]
    more = Instruction(isa.Opcode.END, more=True)
    for chunks, fault in (
        ([[*deepest, issue(wait=1, loop_begin=3, loop_end=True), END]], Fault.NONE),
        ([[begin, *deepest, end, END]], Fault.LOOP),
        ([[issue(), end, END]], Fault.LOOP),
        ([[issue(), issue(wait=2)]], Fault.BAD_INSTRUCTION),
        ([[begin, begin, begin, more], [*deepest, END]], Fault.NONE),
    ):
        assert compare(lambda bench, chunks=chunks: bench.run_chunks(chunks), simulated, mocked) == fault
    simulated.bus.close()


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_stop_and_chunks_do_not_show(configuration: str) -> None:
    """The host halts one board wherever it likes and feeds the program in chunks; log and counters stay the same."""
    simulated, mocked = pair(configuration)
    build = engine_build(simulated, configuration)
    traversal, pattern = TRAVERSALS[0], Pattern.parse("random:2")
    simulated.bus.dram.allow_trcd(min(5, build.timings.trcd))
    for bench in (simulated, mocked):
        bench.run(programs.fill(build, traversal, pattern, None))
    program = programs.test(build, traversal, Pattern.parse("column_stripe"), 5)
    cut = next(k for k, i in enumerate(program) if i.opcode == isa.Opcode.ISSUE)
    chunks = [[*program[:cut], Instruction(isa.Opcode.END, more=True)], program[cut:]]
    compare(lambda bench: bench.run_chunks(chunks, stop=bench is simulated), simulated, mocked)
    assert simulated.bus.violations() == {}
    simulated.bus.close()


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_bulk_data(configuration: str) -> None:
    """Tensors go through the write buffer to the DRAM and come back through captures, at the operating point."""
    simulated, mocked = pair(configuration)
    build, g = engine_build(simulated, configuration), simulated.geometry
    trcd = max(1, 8000 // build.timings.tck_ps)
    pieces = programs.pieces(g, 5 * g.burst_bits, simulated.build.buffer_bursts)
    for bench in (simulated, mocked):
        bench.put("buffer_length", bench.build.buffer_bursts)
        bench.put("buffer_check", zlib.crc32(bench.buffer.tobytes()))
    for write in (True, False):
        program = programs.transfer(build, pieces, write, trcd)
        assert compare(lambda bench, program=program: bench.run(program), simulated, mocked) == Fault.NONE
    got = [bench.bus.read(BASES["capture"], bench.buffer.size) for bench in (simulated, mocked)]
    np.testing.assert_array_equal(*got)
    assert np.any(got[0] != simulated.buffer.reshape(-1))
    simulated.put("buffer_check", 1)
    assert simulated.run(program)[0] == Fault.BAD_CHECK
    simulated.bus.close()


SCAN = """
banks = [0, 3, 5]
patterns = ["random:3/invert"]
rounds = 2
write = ["nominal", "operating_point"]
rows = { start = 9, count = 2 }
[[grid]]
trcd_ps = 10_000
vdd_mv = [1030]
[[grid]]
trcd_ps = 6000
vdd_mv = [1350]
"""


COUNTED = """
banks = [1, 2]
patterns = ["checker"]
rounds = 2
rows = { start = 5, count = 3 }
cells = [{ banks = [2], rows = { start = 6, count = 1 } }]
[[grid]]
trcd_ps = 6000
vdd_mv = [1300]
"""


@pytest.mark.slow
def test_a_scan_gives_the_same_profile(tmp_path: Path) -> None:
    """`eden scan` of one module on the mock and on the simulated KC705, one of them interrupted and resumed."""
    (tmp_path / "plan.toml").write_text(SCAN)
    plan = load_toml(tmp_path / "plan.toml", ScanPlan)
    mocked, simulated = open_board("mock:B:4"), open_board("sim:B:4")
    expected = scan(mocked, plan, tmp_path / "mock")

    class _CutError(Exception):
        pass

    def cut(profile: Profile, _planned: PlannedPoint | None) -> None:
        if len(profile.points) == 2:
            raise _CutError

    with pytest.raises(_CutError):
        scan(simulated, plan, tmp_path / "sim", cut)
    profile = scan(simulated, plan, tmp_path / "sim")
    simulated.close()
    assert profile.header.module == expected.header.module
    untimed = {"started", "duration_s"}
    for index, (point, right) in enumerate(zip(profile.points, expected.points, strict=True)):
        assert point.model_dump(exclude=untimed) == right.model_dump(exclude=untimed)
        cells, right_cells = profile.cells(index), expected.cells(index)
        for column, values in vars(right_cells).items():
            np.testing.assert_array_equal(getattr(cells, column), values, err_msg=column)
        assert right_cells.cell.size > 1000


@pytest.mark.slow
def test_counters_and_cells_are_the_same_on_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that counts lines, and logs the cells of one row."""
    monkeypatch.setattr("host.scan.ONE_PART_CELLS", 0)
    (tmp_path / "plan.toml").write_text(COUNTED)
    plan = load_toml(tmp_path / "plan.toml", ScanPlan)
    mocked, simulated = open_board("mock:B:4"), open_board("sim:B:4")
    expected, found = scan(mocked, plan, tmp_path / "mock"), scan(simulated, plan, tmp_path / "sim")
    simulated.close()
    (right,), (point,) = expected.points, found.points
    assert right.counted
    untimed = {"started", "duration_s"}
    assert point.model_dump(exclude=untimed) == right.model_dump(exclude=untimed)
    assert right.errors > 1000
    np.testing.assert_array_equal(found.cells(0).cell, expected.cells(0).cell)
    assert expected.cells(0).cell.size > 100
    for bank in point.region.banks:
        ours, theirs = expected.lines(0, bank), found.lines(0, bank)
        for kind, values in vars(ours).items():
            np.testing.assert_array_equal(getattr(theirs, kind), values, err_msg=kind)
