"""The gateware's SoC under Verilator: the DRAM behind it, by hand through LiteDRAM's DFI injector; controller; links.

The DFI injector issues one command for each register write, so these tests know nothing of the test engine.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gateware.isa import INSTRUCTION_WORDS
from gateware.registers import IDENTITY, memory_bases
from gateware.serial_protocol import Opcode, Status, decode_response, encode_request
from gateware.sim import library
from gateware.sim.build import build
from gateware.soc import DRAM_BASE
from host import chip as dram
from host import programs
from host.board import Board
from host.boards import MockEnvironment, MockSupply, open_board
from host.chip_presets import PRESETS, build_chip, set_conditions
from host.compiled import njit
from host.programs import Traversal
from host.rail import Rail
from host.simulation import SimulatedBoard
from host.timings import DDR3_1600K, DDR4_1600K, JedecTimings
from profiles.errors import BoardError, LinkError
from profiles.pattern import Pattern
from profiles.schema import ModuleIdentity

pytestmark = pytest.mark.slow

Words = npt.NDArray[np.uint32]
SPEED = {"small4": DDR3_1600K, "small2": DDR3_1600K, "small_ddr4": DDR4_1600K}
every_board = pytest.mark.parametrize("configuration", SPEED)
BETWEEN_WRITES = 3  # system clocks from one register write to the next
FLAGS = {"cs": 1, "we": 2, "cas": 4, "ras": 8, "wren": 16, "rden": 32}
COMMANDS = {
    **{"ACT": ("ras",), "RD": ("cas", "rden"), "WR": ("cas", "we", "wren"), "PRE": ("ras", "we")},
    **{"REF": ("ras", "cas"), "MRS": ("ras", "cas", "we"), "ZQ": ("we",)},
}
CKE, ODT, RESET_N = 2, 4, 8


def simulated(configuration: str, vendor: str = "A", seed: int = 1, vdd_mv: int = 1350) -> SimulatedBoard:
    build(configuration)
    board = SimulatedBoard(configuration, PRESETS[vendor], seed, SPEED[configuration])
    board.set_environment(vdd_mv * 1000, 20.0)
    return board


def random_words(count: int, seed: int) -> Words:
    return np.random.default_rng(seed).integers(0, 1 << 32, count).astype(np.uint32)


class Injector:
    """LiteDRAM's DFI injector, in software control."""

    def __init__(self, board: SimulatedBoard, control: int = CKE | ODT | RESET_N) -> None:
        self.board, self.build = board, board.build
        self._put("control", control)

    def _put(self, name: str, *values: int) -> None:
        self.board.write(self.board.registers[f"sdram_dfii_{name}"], np.array(values, np.uint32))

    def _prepare(self, name: str, bank: int, address: int, phase: int) -> None:
        flags = sum(FLAGS[flag] for flag in ("cs", *COMMANDS[name]))
        for register, value in (("command", flags), ("address", address), ("baddress", bank)):
            self._put(f"pi{phase}_{register}", value)

    def send(self, name: str, bank: int = 0, address: int = 0, phase: int = 0) -> None:
        """One command; the next one comes more than tRAS, tRP and tRFC later."""
        self._prepare(name, bank, address, phase)
        self._put(f"pi{phase}_command_issue", 1)
        self.board.run(100)

    def send_two(self, first: tuple[str, int, int, int], second: tuple[str, int, int, int]) -> None:
        """Two commands on different phases, `BETWEEN_WRITES` system clocks and those phases apart."""
        self._prepare(*first)
        self._prepare(*second)
        self._put(f"pi{first[3]}_command_issue", 1)
        self._put(f"pi{second[3]}_command_issue", 1)
        self.board.run(100)

    @property
    def _phase_words(self) -> int:
        return self.build.geometry.burst_bits // 32 // self.build.nphases

    def write(self, bank: int, row: int, column: int, words: Words) -> None:
        self.send("ACT", bank, row)
        for phase, part in enumerate(words.reshape(self.build.nphases, -1)):
            self._put(f"pi{phase}_wrdata", *map(int, part))
        self.send("WR", bank, column, self.build.write_phase)
        self.send("PRE", bank)

    def data(self) -> Words:
        registers, count = self.board.registers, self._phase_words
        names = [f"sdram_dfii_pi{phase}_rddata" for phase in range(self.build.nphases)]
        return np.concatenate([self.board.read(registers[name], count) for name in names])

    def read(self, bank: int, row: int, column: int, act_phase: int | None = None) -> Words:
        """A burst, read long after its ACT, or with ``act_phase`` as soon as `send_two` can."""
        act, data = ("ACT", bank, row, act_phase or 0), ("RD", bank, column, self.build.read_phase)
        if act_phase is None:
            self.send(*act)
            self.send(*data)
        else:
            self.send_two(act, data)
        self.send("PRE", bank)
        return self.data()


def places(board: SimulatedBoard, count: int) -> Iterator[tuple[int, int, int]]:
    g, rng = board.build.geometry, np.random.default_rng(2)
    everywhere = rng.permutation(g.banks * g.rows * g.bursts_per_row)[:count]
    for number in map(int, everywhere):
        wordline, burst = divmod(number, g.bursts_per_row)
        yield wordline // g.rows, wordline % g.rows, burst * g.burst_length


@every_board
def test_bursts_come_back_as_they_were_written(configuration: str) -> None:
    board = simulated(configuration)
    injector = Injector(board)
    count = board.build.geometry.burst_bits // 32
    for seed, place in enumerate(places(board, 50)):
        injector.write(*place, random_words(count, seed))
    for seed, place in enumerate(places(board, 50)):
        assert np.array_equal(injector.read(*place), random_words(count, seed)), place
    assert board.violations() == {}


@every_board
def test_dram_takes_litedrams_initialisation(configuration: str) -> None:
    """The sequence that every build describes, as the host of a real board sends it."""
    board = simulated(configuration)
    injector = Injector(board, control=0)
    control = {"cke": CKE, "odt": ODT, "reset_n": RESET_N}
    for step in board.about["dram_init"]:
        if step["register"] == "control":
            injector._put("control", sum(control[bit] for bit in step["bits"]))
        else:
            assert step["register"] == "command"
            for register, value in (
                ("address", step["address"]),
                ("baddress", step["bank"]),
                ("command", sum(FLAGS[bit] for bit in step["bits"])),
                ("command_issue", 1),
            ):
                injector._put(f"pi0_{register}", value)
        board.run(step["delay_clocks"])
    assert board.violations() == {}


@njit()
def _flips(chip, bank, row, burst, clocks, out):
    dram.activate(chip, bank, row, 0)
    found = dram.read_flips(chip, bank, burst, clocks, out)
    dram.precharge(chip, bank)
    return found


@njit()
def _hold(chip, bank, row, burst, words):
    dram.activate(chip, bank, row, 0)
    dram.write_words(chip, bank, burst, 1000, words)
    dram.precharge(chip, bank)


@pytest.mark.parametrize(("vdd_mv", "act_phase", "fails"), [(900, 3, True), (900, 2, True), (1350, 3, False)])
def test_bits_that_read_wrong_are_the_chip_models(vdd_mv: int, act_phase: int, fails: bool) -> None:
    """10 and 11 clocks after ACT, 20 and 22 ns: too soon for vendor C's chips at 900 mV."""
    vendor, seed, epoch = "C", 3, 17
    board = simulated("small4", vendor, seed)
    injector, build = Injector(board), board.build
    clocks = BETWEEN_WRITES * build.nphases + build.read_phase - act_phase
    chip = build_chip(build.geometry, PRESETS[vendor], seed)
    set_conditions(chip, PRESETS[vendor], 1_350_000, 20.0, build.tck_ps)
    count, chosen = build.geometry.burst_bits // 32, list(places(board, 200))
    for number, (bank, row, column) in enumerate(chosen):
        injector.write(bank, row, column, random_words(count, number))
        _hold(chip, bank, row, column // 8, random_words(count, number))
    for each in (board.set_environment, lambda *key: set_conditions(chip, PRESETS[vendor], *key, build.tck_ps)):
        each(vdd_mv * 1000, 20.0)
    board.begin_epoch(epoch)
    dram.begin_epoch(chip, epoch)
    flips, wrong = np.zeros(count, np.int64), 0
    for number, (bank, row, column) in enumerate(chosen):
        found = _flips(chip, bank, row, column // 8, clocks, flips)
        seen = injector.read(bank, row, column, act_phase) ^ random_words(count, number)
        assert np.array_equal(seen, flips.astype(np.uint32) if found else np.zeros(count, np.uint32))
        wrong += int(np.bitwise_count(seen).sum())
    assert wrong > 10 if fails else wrong == 0
    assert board.violations() == {}


def test_monitor_sees_what_the_injector_does_wrong() -> None:
    board = simulated("small4")
    injector = Injector(board)
    words = random_words(4, 1)
    injector.write(2, 7, 8, words)
    injector.send_two(("ACT", 2, 7, 1), ("PRE", 2, 0, 0))  # 11 clocks; tRAS is 18
    assert board.violations() == {"tRAS": 1}
    (violation,) = board.first_violations()
    assert (violation.command.name, violation.bank, violation.clock % 4) == ("PRE", 2, 0)
    assert violation.clock // 4 < board.clocks
    assert not np.array_equal(injector.read(2, 7, 8), words)
    injector.send("RD", 2, 8, board.build.read_phase)
    injector.send("RD", 2, 8, 0)
    injector.send("ACT", 2, 7)
    injector.send("REF")
    injector._put("control", ODT | RESET_N)
    injector.send("PRE", 2)
    expected = {"tRAS": 1, "CLOSED_BANK": 2, "PHASE": 1, "BANKS_OPEN": 1, "CLOCK_ENABLE": 1}
    assert board.violations() == expected


@every_board
def test_litedrams_controller_keeps_data_and_jedecs_rules(configuration: str) -> None:
    """Single words, of which a burst has several, and blocks, at odd times, while refreshes go on."""
    board = simulated(configuration)
    rng = np.random.default_rng(4)
    size = board.build.geometry.cells // 32
    starts = sorted({int(start) for start in rng.integers(0, size // 256, 12) * 256})
    expected = {start: random_words(256, start) for start in starts}
    for start in starts:
        board.write(DRAM_BASE + 4 * start, expected[start])
    for _ in range(300):
        start, place = starts[rng.integers(len(starts))], rng.integers(256)
        expected[start][place] = rng.integers(1 << 32)
        board.write(DRAM_BASE + 4 * (start + int(place)), expected[start][place : place + 1])
        board.run(int(rng.integers(100)))
    board.run(30_000)
    for start in starts:
        assert np.array_equal(board.read(DRAM_BASE + 4 * start, 256), expected[start])
    assert board.violations() == {}


def engine_board(bus: SimulatedBoard) -> Board:
    module = ModuleIdentity(
        **{"manufacturer": "simulated", "part_number": "test", "serial_number": "0", "dram_type": "DDR3L"},
        **{"nominal_vdd_mv": 1350, "nominal_trcd_ps": 14000},
    )
    rail = Rail(MockSupply(bus), "DDR3L", 1350)
    return Board(bus, rail, MockEnvironment(bus), module, speed_of(bus), 8, "simulated", 1)


def speed_of(bus: SimulatedBoard) -> JedecTimings:
    return SPEED[bus.about["board"]]


@every_board
def test_programs_obey_jedec_but_for_the_trcd_that_they_test(configuration: str) -> None:
    bus = simulated(configuration)
    board, g = engine_board(bus), bus.build.geometry
    region = Traversal(tuple(range(g.banks)), 0, 8, 0, g.bursts_per_row)
    pattern = Pattern.parse("random")
    reads = 0
    for trcd in range(1, board.timings.trcd + 1):
        board.run(programs.fill(board.build, region, pattern, board.timings.trcd))
        reads += region.length if trcd < board.timings.trcd else 0
        list(board.failing_bits(programs.test(board.build, region, pattern, trcd)))
        assert bus.violations() == ({"tRCD": reads} if reads else {}), trcd
    bus.dram.allow_trcd(1)
    list(board.failing_bits(programs.test(board.build, region, pattern, 1)))
    assert bus.violations() == ({"tRCD": reads} if reads else {})


@every_board
def test_open_rows_obey_jedec(configuration: str) -> None:
    bus = simulated(configuration)
    board, g = engine_board(bus), bus.build.geometry
    region = Traversal(tuple(range(g.banks)), 0, 4, 0, g.bursts_per_row, whole_rows=True)
    pattern = Pattern.parse("random")
    board.run(programs.fill(board.build, region, pattern, None))
    assert list(board.failing_bits(programs.test(board.build, region, pattern, None))) == []
    assert board.result().reads == region.length
    assert bus.violations() == {}


def test_an_access_that_nobody_answers_is_an_error_and_the_next_one_works() -> None:
    board = simulated("small4")
    identity = board.registers["engine_identity"]
    with pytest.raises(LinkError, match="read at address 0x20000004"):
        board.read(0x20000004, 2)
    with pytest.raises(LinkError, match="write at address 0x20000000"):
        board.write(0x20000000, np.zeros(1, np.uint32))
    end = memory_bases()["program"] + 4 * INSTRUCTION_WORDS * board.build.program_depth
    assert board.read(end - 4, 1) == 0
    with pytest.raises(LinkError, match=f"read at address {end:#x}"):
        board.read(end - 4, 2)
    assert board.read(identity, 1) == IDENTITY


@every_board
def test_serial_line_reaches_the_registers(configuration: str) -> None:
    board = simulated(configuration)
    identity = board.registers["engine_identity"]
    answers = []
    for request in (encode_request(Opcode.OPEN, 7), encode_request(Opcode.READ, 8, identity, 1)):
        board.serial_write(request)
        board.run(board.about["serial_divisor"] * 10 * 40)
        answers.append(decode_response(board.serial_read()))
    assert [answer.status for answer in answers] == [Status.OK, Status.OK]
    assert int.from_bytes(answers[1].payload, "little") == IDENTITY


def test_two_boards_in_one_process_have_nothing_in_common() -> None:
    one, other = simulated("small4", seed=1), simulated("small4", seed=2)
    words = random_words(4, 1)
    Injector(one).write(0, 0, 0, words)
    assert np.array_equal(Injector(one).read(0, 0, 0), words)
    assert not np.array_equal(Injector(other).read(0, 0, 0), words)
    assert one.clocks != other.clocks
    one.close()
    one.close()
    assert other.read(other.registers["engine_identity"], 1) == IDENTITY


@pytest.mark.filterwarnings("ignore:Exception ignored on calling ctypes callback")
def test_a_failure_of_the_dram_model_is_an_error_and_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    board = simulated("small4")
    size = board.build.geometry.cells // 32

    def no_memory() -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(board.dram, "grow", no_memory)
    with pytest.raises(BoardError, match="simulated DRAM failed"):
        board.write(DRAM_BASE, random_words(size, 1))
    with pytest.raises(BoardError, match="simulated DRAM failed"):
        board.read(board.registers["engine_identity"], 1)


def test_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "digest", lambda: "00000000")
    with pytest.raises(BoardError, match="make sim"):
        open_board("sim:A:7")
    with pytest.raises(BoardError, match="names no board"):
        open_board("sim:D")


def test_digest_follows_sources_and_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(library._ROOT / "gateware", tmp_path / "gateware")
    shutil.copytree(library._ROOT / "profiles", tmp_path / "profiles")
    before = library.digest()
    monkeypatch.setattr(library, "_ROOT", tmp_path)
    assert library.digest() == before
    for source in ("gateware/sim/dram.sv", "gateware/sim/board.cpp", "gateware/engine/engine.py"):
        with (tmp_path / source).open("a") as file:
            file.write("\n")
        assert library.digest() != before
        before = library.digest()
    monkeypatch.setattr(library, "version", lambda tool: "another")
    assert library.digest() != before
