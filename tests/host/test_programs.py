"""Programs visit every burst once, in order, and keep every JEDEC rule but the tRCD that they are asked to break."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateware import isa
from gateware.isa import Command
from gateware.registers import Fault
from host import programs
from host.programs import EngineBuild, Traversal
from host.timings import DDR3_1600K, Timings
from profiles.errors import ProgramError
from profiles.geometry import Geometry
from profiles.pattern import Pattern
from tests.host.jedec import violations
from tests.host.reference import Issued, ReferenceEngine

GEOMETRY = Geometry(banks=8, rows=64, columns=1024, data_width=8)
BURST_CLOCKS = 4
PATTERN = Pattern.parse("0x00")


def build(nphases: int, tck_ps: int = 2000, geometry: Geometry = GEOMETRY, log_blocks: int = 256) -> EngineBuild:
    return EngineBuild(nphases, nphases // 2 - 1, nphases - 1, log_blocks, geometry, Timings.of(DDR3_1600K, tck_ps, 8))


def phases(engine_build: EngineBuild) -> tuple[int, int, int]:
    return engine_build.nphases, engine_build.read_phase, engine_build.write_phase


def commands(engine_build: EngineBuild, program: list[isa.Instruction], reads_as_zero: bool = True) -> list[Issued]:
    """What a program issues; DRAM reads as the pattern of all zeros unless told otherwise."""
    engine = ReferenceEngine(engine_build.geometry, phases(engine_build), 1, [(0, 0)])
    if reads_as_zero:
        engine.holds = lambda *_: (0,) * (engine_build.geometry.burst_bits // 32)  # type: ignore[method-assign]
    words = isa.assemble(program)
    assert engine.run(isa.disassemble(words)) == Fault.NONE
    return engine.issued


def visited(issued: list[Issued], command: Command) -> list[tuple[int, int, int]]:
    """(bank, row, burst) of each access; the row is the one opened last, not the one the address carries."""
    opened: dict[int, int] = {}
    out = []
    for each in issued:
        if each.command == Command.ACT:
            opened[each.bank] = each.row
        elif each.command == command:
            out.append((each.bank, opened[each.bank], each.column // GEOMETRY.burst_length))
    return out


def expected_order(traversal: Traversal) -> list[tuple[int, int, int]]:
    rows = range(traversal.row_start, traversal.row_start + traversal.row_count)
    bursts = range(traversal.first_burst, traversal.first_burst + traversal.bursts)
    if traversal.whole_rows:
        return [(bank, row, burst) for row in rows for bank in traversal.banks for burst in bursts]
    return [(bank, row, burst) for row in rows for burst in bursts for bank in traversal.banks]


@st.composite
def traversals(draw: st.DrawFn, whole_rows: bool = False) -> Traversal:
    banks = tuple(draw(st.permutations(range(8)))[: draw(st.integers(1, 8))])
    row_count, first = draw(st.integers(1, 3)), draw(st.integers(0, 100))
    bursts = draw(st.integers(1, min(28, 128 - first)))
    return Traversal(banks, draw(st.integers(0, 64 - row_count)), row_count, first, bursts, whole_rows)


@pytest.mark.parametrize("write", [False, True], ids=["test", "fill"])
@pytest.mark.parametrize("trcd", range(1, 8))
@pytest.mark.parametrize("nphases", [2, 4])
@settings(max_examples=12)
@given(traversal=traversals(), tck_ps=st.sampled_from([1250, 2000, 2500, 6667]))
def test_one_burst_per_activation(nphases: int, trcd: int, write: bool, traversal: Traversal, tck_ps: int) -> None:
    engine_build = build(nphases, tck_ps)
    make = programs.fill if write else programs.test
    issued = commands(engine_build, make(engine_build, traversal, PATTERN, trcd))
    assert not violations(issued, engine_build.timings, trcd, BURST_CLOCKS, phases(engine_build), exact_trcd=True)
    assert visited(issued, Command.WR if write else Command.RD) == expected_order(traversal)
    activations = sum(each.command == Command.ACT for each in issued)
    assert activations == traversal.length == sum(each.command == Command.PRE for each in issued)


@pytest.mark.parametrize("write", [False, True], ids=["test", "fill"])
@pytest.mark.parametrize("nphases", [2, 4])
@settings(max_examples=15)
@given(traversal=traversals(whole_rows=True), tck_ps=st.sampled_from([1250, 2000, 6667]))
def test_open_rows(nphases: int, write: bool, traversal: Traversal, tck_ps: int) -> None:
    engine_build = build(nphases, tck_ps)
    make = programs.fill if write else programs.test
    issued = commands(engine_build, make(engine_build, traversal, PATTERN, None))
    trcd = engine_build.timings.trcd
    opened = {each.clock for each in issued if each.command == Command.ACT}
    accesses = [each.clock for each in issued if each.command in (Command.RD, Command.WR)]
    if trcd >= nphases:  # each row's first access comes at exactly tRCD
        assert sum(clock - trcd in opened for clock in accesses) == len(opened)
    assert not violations(issued, engine_build.timings, trcd, BURST_CLOCKS, phases(engine_build), exact_trcd=False)
    assert visited(issued, Command.WR if write else Command.RD) == expected_order(traversal)
    activations = sum(each.command == Command.ACT for each in issued)
    assert activations == len(traversal.banks) * traversal.row_count


@settings(max_examples=30)
@given(
    st.integers(0, GEOMETRY.cells // GEOMETRY.burst_bits - 600), st.integers(1, 600), st.integers(1, 7), st.booleans()
)
def test_transfers(first: int, bursts: int, trcd: int, write: bool) -> None:
    engine_build, per_row = build(4), GEOMETRY.bursts_per_row
    pieces = programs.pieces(GEOMETRY, first * GEOMETRY.burst_bits, bursts)
    issued = commands(engine_build, programs.transfer(engine_build, pieces, write, trcd))
    assert not violations(issued, engine_build.timings, trcd, BURST_CLOCKS, phases(engine_build), exact_trcd=True)
    where = [
        (k // per_row // GEOMETRY.rows, k // per_row % GEOMETRY.rows, k % per_row) for k in range(first, first + bursts)
    ]
    assert visited(issued, Command.WR if write else Command.RD) == where


@pytest.mark.parametrize("whole_rows", [False, True])
@given(data=st.data())
def test_cells_follow_the_order_of_the_reads(whole_rows: bool, data: st.DataObject) -> None:
    import numpy as np

    traversal = data.draw(traversals(whole_rows=whole_rows))
    reads = np.sort(
        np.array(data.draw(st.lists(st.integers(0, traversal.length - 1), min_size=1, max_size=40)), np.int64)
    )
    bits = np.arange(reads.size, dtype=np.int64) % GEOMETRY.burst_bits
    order = expected_order(traversal)
    want = [
        int(GEOMETRY.cell(bank, row, burst * 8, 0)) + int(bit)
        for (bank, row, burst), bit in zip((order[int(k)] for k in reads), bits, strict=True)
    ]
    assert traversal.cells(GEOMETRY, reads, bits).tolist() == want


@pytest.mark.parametrize("trcd", [1, 2, 3, 5, 6, 7])
def test_eight_banks_reach_the_activation_rate_that_jedec_allows(trcd: int) -> None:
    engine_build = build(4)
    issued = commands(
        engine_build, programs.test(engine_build, Traversal(tuple(range(8)), 0, 4, 0, 128), PATTERN, trcd, False)
    )
    t, bursts = engine_build.timings, 4 * 8 * 128
    bound = max(t.trrd, -(-t.tfaw // 4), BURST_CLOCKS, -(-(t.tras + t.trp) // 8))
    rounded = -(-bound // 4) * 4  # RD stays on its phase
    assert issued[-1].clock - issued[0].clock <= 1.05 * bursts * rounded


@pytest.mark.parametrize("trcd", [4, 8, 12])
def test_trcd_of_whole_system_clocks_halves_the_rate(trcd: int) -> None:
    """ACT and RD want one phase: of two system clocks each has one."""
    engine_build = build(4)
    issued = commands(
        engine_build, programs.test(engine_build, Traversal(tuple(range(8)), 0, 4, 0, 128), PATTERN, trcd, False)
    )
    assert issued[-1].clock - issued[0].clock <= 1.05 * 2 * 4 * 8 * 128 * 4


@pytest.mark.parametrize("write", [False, True], ids=["test", "fill"])
@pytest.mark.parametrize("nphases", [2, 4])
def test_open_rows_fill_the_data_bus(nphases: int, write: bool) -> None:
    engine_build, traversal = build(nphases), Traversal(tuple(range(8)), 0, 8, 0, 128, whole_rows=True)
    make = programs.fill if write else programs.test
    issued = commands(engine_build, make(engine_build, traversal, PATTERN, None, refresh=False))
    assert traversal.length * BURST_CLOCKS >= 0.97 * (issued[-1].clock - issued[0].clock)


def test_refresh_keeps_pace_and_is_withheld_on_request() -> None:
    engine_build, traversal = build(4), Traversal((0,), 0, 8, 0, 128)
    t = engine_build.timings
    kept = commands(engine_build, programs.test(engine_build, traversal, PATTERN, 5))
    times = [each.clock for each in kept if each.command == Command.REF]
    assert kept[-1].clock / t.trefi - 9 <= len(times) <= kept[-1].clock / t.trefi + 1
    assert max(b - a for a, b in zip([0, *times], times, strict=False)) <= 9 * t.trefi  # JEDEC: at most eight postponed
    withheld = commands(engine_build, programs.test(engine_build, traversal, PATTERN, 5, refresh=False))
    assert not any(each.command == Command.REF for each in withheld)


@pytest.mark.parametrize("rows", [64, 1 << 16])
def test_a_whole_module_scan_is_a_short_program(rows: int) -> None:
    geometry = Geometry(banks=8, rows=rows, columns=1024, data_width=64)
    for nphases in (2, 4):
        for trcd in range(1, 8):
            engine_build = build(nphases, geometry=geometry)
            program = programs.test(engine_build, Traversal(tuple(range(8)), 0, rows, 0, 128), PATTERN, trcd)
            assert len(program) <= 64 + 8  # 8: the bank order


def test_segments_shrink_to_what_the_log_holds() -> None:
    small = build(4, geometry=Geometry(banks=8, rows=64, columns=1024, data_width=64), log_blocks=8)
    program = programs.test(small, Traversal((0, 3, 5), 0, 2, 0, 128), PATTERN, 5)
    (reserve,) = (i.value for i in program if i.opcode == isa.Opcode.SET and i.setting == isa.Setting.LOG_RESERVE)
    assert reserve <= small.log_blocks - 1


def test_the_order_must_suit_the_access_mode() -> None:
    traversal = Traversal((0,), 0, 1, 0, 8)
    with pytest.raises(ProgramError, match="whole_rows"):
        programs.test(build(4), traversal, PATTERN, None)
    with pytest.raises(ProgramError, match="whole_rows"):
        programs.test(build(4), replace(traversal, whole_rows=True), PATTERN, 5)


# ---- the monitor itself ----------------------------------------------------------------------------------------------

_T = Timings.of(DDR3_1600K, 2000, 8)
_GOOD = [
    Issued(3, Command.ACT, 0),
    Issued(8, Command.ACT, 1),
    Issued(11, Command.RD, 0),
    Issued(19, Command.RD, 1),
    Issued(31, Command.PRE, 0),
    Issued(36, Command.PRE, 1),
    Issued(50, Command.REF),
    Issued(50 + _T.trfc, Command.ACT, 0),
    Issued(50 + _T.trfc + 22, Command.WR, 0),
    Issued(50 + _T.trfc + 22 + 8 + 4 + _T.twr, Command.PRE, 0),
]


def test_the_monitor_passes_what_is_right() -> None:
    assert not violations(_GOOD, _T, 7, 4, (4, 3, 3), exact_trcd=False)


@pytest.mark.parametrize(
    ("number", "clock", "what"),
    [
        (1, 6, "tRRD"),
        (2, 7, "tRCD"),
        (2, 12, "phase"),
        (3, 14, "tCCD"),
        (4, 20, "tRAS"),
        (4, 31 - 17, "tRTP"),
        (6, 42, "tRP"),
        (6, 33, "open"),
        (7, 60, "tRFC"),
        (9, 50 + _T.trfc + 30, "tWR"),
        (1, 3, "one DRAM clock"),
    ],
)
def test_the_monitor_catches_each_rule(number: int, clock: int, what: str) -> None:
    stream = [*_GOOD[:number], replace(_GOOD[number], clock=clock), *_GOOD[number + 1 :]]
    stream.sort(key=lambda issued: issued.clock)
    assert any(what in line for line in violations(stream, _T, 7, 4, (4, 3, 3), exact_trcd=False))


def test_the_monitor_catches_five_activations_in_a_window() -> None:
    rush = [Issued(4 * bank, Command.ACT, bank) for bank in range(5)]
    found = violations(rush, replace(_T, trrd=4, tfaw=17), 7, 4, (4, 3, 3), exact_trcd=False)
    assert any("tFAW" in line for line in found)
    assert any("left open" in line for line in found)
