"""The mock's engine against the reference engine: clocks, reads, log, counters and memory of random programs, equal."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gateware import isa, registers
from gateware.errorlog import BLOCK_WORDS
from gateware.isa import Command, Digit, Instruction, Opcode, Pointer, Setting, Slot, issue, set_
from gateware.registers import CSR_BASE, RESUME, START, STOP, Fault, State
from host import errorlog, mock
from host.boards import mock_build
from host.chip_presets import PRESETS
from host.mock import MockBoard
from profiles.errors import LinkError
from profiles.geometry import Geometry
from profiles.pattern import PatternKind
from tests.host.engine_bench import BASES, END, EngineBench, random_programs
from tests.host.reference import ReferenceEngine, parse_log

GEOMETRY = Geometry(banks=3, rows=8, columns=32, data_width=16, subarray_rows=4)
WORDS = GEOMETRY.burst_bits // 32
FLAWLESS = replace(PRESETS["A"], bound_ps=0)
SEED, BUFFER = 9, 4
READ_PHASE, WRITE_PHASE = mock_build(GEOMETRY).read_phase, mock_build(GEOMETRY).write_phase


def phases_of(nphases: int) -> tuple[int, int, int]:
    build = mock_build(GEOMETRY, nphases)
    return nphases, build.read_phase, build.write_phase


class Mock(EngineBench):
    """A mock board on the bench."""

    def __init__(self, nphases: int, log_blocks: int = 256, geometry: Geometry = GEOMETRY) -> None:
        build = mock_build(geometry, nphases, log_blocks, BUFFER)
        board = MockBoard(build, FLAWLESS, SEED)
        board.set_environment(1_350_000, 20.0)
        super().__init__(board, build)


@pytest.mark.parametrize("nphases", [2, 4])
@settings(max_examples=60, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(data=st.data())
def test_random_programs_match_the_reference(nphases: int, data: st.DataObject) -> None:
    mocked = Mock(nphases)
    reference = ReferenceEngine(GEOMETRY, phases_of(nphases), SEED, [tuple(b) for b in mocked.buffer.tolist()])
    for program in data.draw(st.lists(random_programs(mock_build(GEOMETRY, nphases)), min_size=1, max_size=2)):
        fault = reference.run(program, buffer_bursts=BUFFER)
        assert mocked.run(program)[0] == fault
        assert mocked.get("clocks") == reference.clocks
        assert mocked.get("reads_compared") == reference.reads
        assert mocked.get("refreshes") == reference.refreshes
        assert mocked.get("captured") == len(reference.captured)
        if fault:
            assert mocked.get("fault_pc") == reference.pc
        elif not reference.refreshes:
            assert isa.clocks(program) == reference.clocks
        check_results(mocked, reference, fault)
    if not fault:
        content = mocked.content()
        assert content == {address: reference.holds(*address) for address in content}


def check_results(mocked: Mock, reference: ReferenceEngine, fault: Fault) -> None:
    g = GEOMETRY
    captured = mocked.bus.read(BASES["capture"], len(reference.captured) * WORDS)
    assert captured.tolist() == [word for burst in reference.captured for word in burst]
    assert mocked.get("capture_check") == zlib.crc32(captured.tobytes())
    np.testing.assert_array_equal(mocked.counters("bank_errors", g.banks), reference.bank_errors())
    rows, bitlines, lanes = reference.place_errors()
    np.testing.assert_array_equal(mocked.counters("row_errors", g.rows), rows)
    np.testing.assert_array_equal(mocked.counters("bitline_errors", g.row_bits), bitlines)
    np.testing.assert_array_equal(mocked.counters("dq_errors", g.data_width), lanes)
    if not fault:
        blocks = mocked.bus.read(BASES["log"], mocked.get("log_produced") * BLOCK_WORDS).reshape(-1, BLOCK_WORDS)
        assert parse_log(blocks, WORDS) == reference.mismatches
        errorlog.check_blocks(blocks, 0)
        reads, bits = errorlog.unpack(blocks, g.burst_bits)
        assert list(zip(reads.tolist(), bits.tolist(), strict=True)) == reference.mismatches


# ---- the log ---------------------------------------------------------------------------------------------------------


def sweep(written: int, expected: int, loops: int, yields: bool = True, reserve: int = 2) -> list[Instruction]:
    """Write byte ``written`` to every burst, then read all of them ``loops`` times against byte ``expected``."""
    g = GEOMETRY
    pointer = Pointer(Digit(0, 1, g.banks), Digit(0, 1, g.rows), Digit(0, 8, g.bursts_per_row))
    count = g.banks * g.rows * g.bursts_per_row

    def walk(data: Slot, passes: int) -> list[Instruction]:
        return [
            *(i for which in (0, 1, 2) for i in pointer.settings(which)),
            issue(Slot(Command.ACT, 0, 0, step=True), wait=20, loop_begin=passes),
            issue(replace(data, address=1, step=True), wait=20),
            issue(Slot(Command.PRE, 0, 2, step=True), wait=8, loop_end=not yields),
            *([Instruction(Opcode.YIELD, loop_end=True)] if yields else []),
        ]

    return [
        set_(Setting.PATTERN, written << 32),
        *walk(Slot(Command.WR, WRITE_PHASE), count),
        set_(Setting.PATTERN, expected << 32),
        set_(Setting.LOG_RESERVE, reserve),
        *walk(Slot(Command.RD, READ_PHASE, compare=True), count * loops),
        END,
    ]


@pytest.mark.parametrize("expected", [0x01, 0x03, 0x0F, 0xFF], ids=lambda byte: f"{byte:#04x}")
def test_a_small_log_halts_at_high_water_and_loses_nothing(expected: int) -> None:
    roomy, tight = Mock(4), Mock(4, log_blocks=4)
    program = sweep(0x00, expected, loops=20)
    fault, want = roomy.run(program)
    assert fault == Fault.NONE
    fault, got = tight.run(program)
    assert fault == Fault.NONE
    assert tight.halts > 2
    np.testing.assert_array_equal(got, want)
    assert tight.get("clocks") == roomy.get("clocks")
    np.testing.assert_array_equal(tight.counters("bank_errors", 3), roomy.counters("bank_errors", 3))
    assert len(parse_log(got, WORDS)) == int(roomy.counters("bank_errors", 3).sum())


def test_a_full_log_faults() -> None:
    fault, blocks = Mock(4, log_blocks=4).run(sweep(0x00, 0x01, loops=20, yields=False))
    assert fault == Fault.LOG_OVERFLOW
    assert len(blocks) == 4


def test_a_reserve_larger_than_the_log_faults() -> None:
    assert Mock(4, log_blocks=4).run(sweep(0, 1, 1, reserve=4))[0] == Fault.RESERVE
    assert Mock(4, log_blocks=4).run(sweep(0, 1, 1, reserve=3))[0] == Fault.NONE


def test_dense_bursts_are_masks_and_sparse_ones_bits() -> None:
    kinds = {}
    for expected in (0x00, 0x80, 0xFF):
        _, blocks = Mock(4).run(sweep(0x00, expected, 1))
        kinds[expected] = {int(word) >> 30 for block in blocks for word in block[4 : 4 + int(block[1])][:1]}
    assert kinds == {0x00: set(), 0x80: {1}, 0xFF: {1}}  # 16 failing bits a burst of 4 words
    bits = Mock(4)
    buffer = np.zeros((BUFFER, WORDS), np.uint32)
    buffer[:, 1] = 0x90000000
    bits.bus.write(BASES["write_buffer"], buffer.reshape(-1))
    _, blocks = bits.run([set_(Setting.PATTERN, 0), *sweep(0, 0, 1)[:-1], END])
    assert blocks.size == 0
    program = [*sweep(0, 0, 1)[:-1]]
    last_pattern = max(k for k, i in enumerate(program) if i.setting == Setting.PATTERN and i.opcode == Opcode.SET)
    program[last_pattern] = set_(Setting.PATTERN, int(PatternKind.BUFFER))
    _, blocks = bits.run([*program, END])
    entries = parse_log(blocks, WORDS)
    assert {bit for _, bit in entries} == {60, 63}
    assert {int(word) >> 30 for block in blocks for word in block[4 : 4 + int(block[1])]} == {0}


def test_a_long_silence_is_a_skip() -> None:
    """Two mismatching reads with more than 2^20 clean ones between them."""
    g, far = Geometry(banks=1, rows=2, columns=8, data_width=16, subarray_rows=2), (1 << 20) + 7
    mocked = Mock(4, geometry=g)
    act = replace(issue(Slot(Command.ACT, 0), wait=100), immediate_row=0)
    read = issue(Slot(Command.RD, READ_PHASE, 0, compare=True))
    program = [
        set_(Setting.PATTERN, 0xFF << 32),
        act,
        issue(Slot(Command.WR, WRITE_PHASE, 0)),
        set_(Setting.PATTERN, 0xFE << 32),
        read,
        set_(Setting.PATTERN, 0xFF << 32),
        replace(read, loop_begin=far, loop_end=True),
        set_(Setting.PATTERN, 0x7F << 32),
        read,
        issue(Slot(Command.PREA, 0, 0)),
        END,
    ]
    fault, blocks = mocked.run(program)
    assert fault == Fault.NONE
    entries = parse_log(blocks, g.burst_bits // 32)
    assert {read for read, _ in entries} == {0, far + 1}
    reads, bits = errorlog.unpack(blocks, g.burst_bits)
    assert list(zip(reads.tolist(), bits.tolist(), strict=True)) == entries
    assert 2 in {int(word) >> 30 for word in blocks[0, 4 : 4 + int(blocks[0, 1])]}


# ---- what the host's decoder refuses ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blocks() -> np.ndarray:
    return Mock(4).run(sweep(0x00, 0x0F, loops=8))[1]


@given(st.integers(0, BLOCK_WORDS - 1), st.integers(0, 31), st.integers(0, 2))
def test_any_flipped_bit_is_noticed(blocks: np.ndarray, word: int, bit: int, block: int) -> None:
    damaged = blocks.copy()
    damaged[block, word] ^= np.uint32(1 << bit)
    with pytest.raises(LinkError):
        errorlog.check_blocks(damaged, 0)


def test_lost_repeated_swapped_and_stale_blocks_are_noticed(blocks: np.ndarray) -> None:
    errorlog.check_blocks(blocks, 0)
    assert len(blocks) > 3
    for wrong in (blocks[1:], blocks[[0, 0, 1]], blocks[[0, 2, 1]], np.zeros_like(blocks)):
        with pytest.raises(LinkError):
            errorlog.check_blocks(wrong, 0)
    with pytest.raises(LinkError, match="came where 1 was due"):
        errorlog.check_blocks(blocks, 1)
    with pytest.raises(LinkError, match="CRC"):
        errorlog.check_blocks(blocks ^ (np.arange(BLOCK_WORDS) == 9).astype(np.uint32), 0)
    with pytest.raises(LinkError, match="lost its place"):
        errorlog.check_blocks(blocks & np.uint32(0xFFFFFF), 0)


def _sealed(payload: list[int], used: int | None = None) -> np.ndarray:
    block = np.zeros((1, BLOCK_WORDS), np.uint32)
    block[0, 0], block[0, 1] = 0xED << 24, len(payload) if used is None else used
    block[0, 4 : 4 + len(payload)] = payload
    block[0, -1] = zlib.crc32(block[0, :-1].tobytes())
    return block


@pytest.mark.parametrize(
    "block",
    [_sealed([3 << 30]), _sealed([1 << 30, 1]), _sealed([0], used=252), _sealed([128]), _sealed([1], used=1 << 31)],
    ids=["undefined kind", "truncated mask", "too long", "bit outside the burst", "absurd length"],
)
def test_entries_that_no_engine_writes_are_refused(block: np.ndarray) -> None:
    errorlog.check_blocks(block, 0)
    with pytest.raises(LinkError, match="malformed"):
        errorlog.unpack(block, GEOMETRY.burst_bits)


@given(st.binary(min_size=4 * BLOCK_WORDS, max_size=4 * BLOCK_WORDS))
def test_crc_is_zlibs(block: bytes) -> None:
    from host.crc import TABLES, crc32

    assert crc32(np.frombuffer(block, np.uint32), TABLES) == zlib.crc32(block[:-4])


# ---- the engine at its bus -------------------------------------------------------------------------------------------


def test_slices_of_the_interpreter_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    program = sweep(0x00, 0x0F, loops=2)
    whole = Mock(4)
    want = whole.run(program)[1]
    monkeypatch.setattr(mock, "_SLICE", 1)
    sliced = Mock(4)
    got = sliced.run(program)[1]
    np.testing.assert_array_equal(got, want)
    assert sliced.get("clocks") == whole.get("clocks")


def test_chunks_hold_the_clock_and_settings_between_them() -> None:
    program = sweep(0x00, 0x0F, loops=2)
    whole, mocked = Mock(4), Mock(4)
    want = whole.run(program)[1]
    cut = next(k for k, i in enumerate(program) if i.opcode == Opcode.SET and i.setting == Setting.LOG_RESERVE)
    mocked.load([*program[:cut], Instruction(Opcode.END, more=True)])
    mocked.put("control", START)
    assert mocked.get("state") == State.CHUNK
    mocked.load(program[cut:])
    mocked.put("control", RESUME)
    assert mocked.get("state") == State.DONE
    got: list[np.ndarray] = []
    mocked.drain(got)
    np.testing.assert_array_equal(np.array(got), want)
    assert mocked.get("clocks") == whole.get("clocks") + 1  # END with `more` takes its clock


def test_stop_halts_at_the_next_yield_and_resume_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mock, "_SLICE", 100)
    mocked = Mock(4)
    mocked.load(sweep(0, 1, 1))
    mocked.put("control", START)
    assert mocked.get("state") == State.RUNNING
    mocked.put("control", STOP)
    assert mocked.get("state") == State.HALTED
    clocks = mocked.get("clocks")
    assert mocked.get("clocks") == clocks
    mocked.put("control", RESUME)
    while mocked.get("state") == State.RUNNING:
        pass
    assert mocked.get("state") == State.DONE


def test_damaged_programs_and_buffers_do_not_start() -> None:
    mocked = Mock(4)
    mocked.load([END])
    mocked.put("program_check", 1)
    mocked.put("control", START)
    assert (mocked.get("state"), mocked.get("fault")) == (State.FAULT, Fault.BAD_CHECK)
    mocked.load([END])
    mocked.put("buffer_length", 2)
    mocked.put("buffer_check", zlib.crc32(mocked.buffer[:2].tobytes()))
    mocked.put("control", START)
    assert mocked.get("state") == State.DONE
    mocked.put("buffer_check", 5)
    mocked.put("control", START)
    assert (mocked.get("state"), mocked.get("fault")) == (State.FAULT, Fault.BAD_CHECK)


def test_starts_count_and_registers_do_not_change_by_being_read() -> None:
    mocked = Mock(4)
    mocked.run(sweep(0, 1, 1))
    assert mocked.get("starts") == 1
    names = [register.name for register in registers.REGISTERS]
    assert [mocked.get(name) for name in names] == [mocked.get(name) for name in names]


@pytest.mark.parametrize(
    "address", [0, registers.MEMORY_BASE + 16 * mock_build(GEOMETRY).program_depth, CSR_BASE + 4 * 1000, CSR_BASE - 4]
)
def test_addresses_that_nothing_answers_raise(address: int) -> None:
    with pytest.raises(LinkError, match="bus error"):
        Mock(4).bus.read(address, 1)


def test_what_is_read_only_cannot_be_written() -> None:
    mocked = Mock(4)
    for name in ("identity", "clocks", "log_produced"):
        with pytest.raises(LinkError, match="cannot write"):
            mocked.put(name, 1)
    with pytest.raises(LinkError, match="cannot write"):
        mocked.bus.write(BASES["log"], np.zeros(1, np.uint32))
