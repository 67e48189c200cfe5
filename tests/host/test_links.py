"""`eden board info` over every link; real boards are known by their builds, and what cannot be opened says why."""

import json
import math
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from gateware.engine.parameters import EngineParameters
from gateware.registers import CSR_BASE, REGISTERS, State, register_offsets
from gateware.serial_protocol import encode_response
from host.boards import mock_build, open_board
from host.bus import Bus, Words
from host.chip_presets import PRESETS
from host.cli import main as cli
from host.etherbone_bus import EtherboneBus
from host.identity import CONSTANTS, find_description, identify
from host.links import measure_link, open_link
from host.mock import MockBoard
from host.serial_bus import SerialBus
from host.simulation import SimulatedBoard
from host.timings import DDR3_1600K
from profiles.errors import BoardError, LinkError
from profiles.geometry import Geometry
from tests.host.etherbone_peer import EtherboneServer, Memory, UpTo
from tests.host.rig import board_behind, map_of
from tests.host.serial_peer import PythonBoard, SerialLine
from tests.host.simulated_line import SimulatedPeer

GEOMETRY = Geometry(banks=2, rows=64, columns=1024, data_width=64, subarray_rows=64)


class Stamped(MockBoard):
    """A board of a build that has a description."""

    def __init__(self, build: EngineParameters, stamp: int) -> None:
        super().__init__(build, PRESETS["A"], 1)
        self._constants = {**self._constants, "build": stamp}


def describe(folder: Path, build: EngineParameters) -> Path:
    path = folder / "build" / "gateware" / "ecpix5" / "board.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"title": "LambdaConcept ECPIX-5", "engine": {**asdict(build), "geometry": build.geometry.model_dump()}}
    path.write_text(json.dumps(about))
    return path


def simulated(vendor: str) -> SimulatedBoard:
    board = SimulatedBoard("small4", PRESETS[vendor], 1, DDR3_1600K)
    board.set_environment(1_350_000, 20.0)
    return board


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command line in this process: (exit status, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eden", *arguments])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        try:
            cli.main()
            status = 0
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        return status, *capsys.readouterr()

    return call


def test_constants_are_all_registers_between_version_and_control() -> None:
    names = [register.name for register in REGISTERS]
    assert sorted(CONSTANTS) == sorted(names[names.index("interface_version") + 1 : names.index("control")])


def test_info_shows_a_mock_board(run) -> None:
    status, out, err = run("board", "info", "--board", "mock:A")
    assert status == 0, err
    assert "8 banks x 16384 rows x 1024 columns x 64 DQ, burst 8: 1024 MiB" in out
    assert "125 MHz system, 500 MHz DRAM" in out
    assert "IDLE" in out


def test_info_over_etherbone_knows_the_build(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = describe(tmp_path, mock_build(GEOMETRY))
    with EtherboneServer(Stamped(mock_build(GEOMETRY), crc32(path.read_bytes()))) as server:
        specification = f"etherbone:{server.host}:{server.port}"
        status, out, err = run("board", "info", "--board", specification)
        assert status == 0, err
        assert "LambdaConcept ECPIX-5 (build/gateware/ecpix5/board.json)" in out
        assert "MB/s in bulk" in out
        assert "0 requests had to be repeated" in out
        with pytest.raises(BoardError, match=r"csr\.json lists no registers"):
            open_board(specification)
        path.write_text(path.read_text() + "\n")
        assert "of unknown build: " in run("board", "info", "--board", specification)[1]
        with pytest.raises(BoardError, match=r"none of build/\*/\*/board.json; copy the folder"):
            open_board(specification)


def test_a_description_that_contradicts_the_board_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = describe(tmp_path, mock_build(GEOMETRY, log_blocks=64))
    bus = Stamped(mock_build(GEOMETRY), crc32(path.read_bytes()))
    with pytest.raises(BoardError, match="says log_blocks 64, the board 'x' 256; load the bitstream"):
        find_description(identify(bus, "x"), "x")
    path.write_text('{"engine": {"geometry": 7}}')
    bus = Stamped(mock_build(GEOMETRY), crc32(path.read_bytes()))
    with pytest.raises(BoardError, match="describes no build"):
        find_description(identify(bus, "x"), "x")
    with pytest.raises(BoardError, match="names no description"):
        find_description(identify(Stamped(mock_build(GEOMETRY), 0), "x"), "x")


def test_a_board_that_is_busy_is_not_measured(run) -> None:
    class Busy(Stamped):
        def _register(self, name: str) -> int:
            return State.HALTED if name == "state" else super()._register(name)

    with EtherboneServer(Busy(mock_build(GEOMETRY), 0)) as server:
        status, out, err = run("board", "info", "--board", f"etherbone:{server.host}:{server.port}")
    assert status == 1
    assert "2 banks" in out
    assert "the engine is HALTED: somebody uses the board" in err


def test_measuring_leaves_the_write_buffer_as_it_was_and_sees_that_it_was_not() -> None:
    bus = MockBoard(mock_build(GEOMETRY, buffer_bursts=64), PRESETS["A"], 1)
    content = np.random.default_rng(1).integers(0, 1 << 32, 64 * 16, dtype=np.uint32)
    bus.write(0x41000000, content)
    quality = measure_link(bus, identify(bus, "x"))
    assert np.array_equal(bus.read(0x41000000, content.size), content)
    low, median, high = quality.latency_s
    assert 0 < low <= median <= high
    assert quality.repeats is None

    class Forgetful(MockBoard):
        def write(self, address: int, words: Words) -> None:
            super().write(address, words ^ np.uint32(1))

    forgetful = Forgetful(mock_build(GEOMETRY, buffer_bursts=64), PRESETS["A"], 1)
    with pytest.raises(LinkError, match="does not read back"):
        measure_link(forgetful, identify(forgetful, "x"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("etherbone:127.0.0.1:0", "no UDP port"),
        ("etherbone:127.0.0.1:65536", "no UDP port"),
        ("etherbone:127.0.0.1:http", "no UDP port"),
        ("serial:/dev/null:fast", "no baud rate"),
    ],
)
def test_numbers_that_are_none_are_said(text: str, says: str) -> None:
    with pytest.raises(BoardError, match=says):
        open_link(text)


@pytest.mark.parametrize("text", ["etherbone", "etherbone:", "serial:", "mock:A", ""])
def test_what_is_no_link_opens_none(text: str) -> None:
    assert open_link(text) is None


def test_a_port_that_is_no_serial_line_is_said() -> None:
    with pytest.raises(LinkError, match="cannot be opened"):
        open_link("serial:/dev/no-such-port:115200")


@pytest.mark.slow
def test_info_shows_the_simulated_board(run) -> None:
    status, out, err = run("board", "info", "--board", "sim:A")
    assert status == 0, err
    assert "simulated KC705 (build/sim/kc705-" in out


@pytest.mark.slow
def test_info_over_the_simulated_boards_own_uart(run) -> None:
    """The low baud rate only makes the host patient: the simulation is slower than any line."""
    board = simulated("A")
    with SerialLine(SimulatedPeer(board)) as line:
        status, out, err = run("board", "info", "--board", f"serial:{line.port}:9600")
    assert status == 0, err
    assert "simulated, DDR3, four phases (build/sim/small4-" in out
    assert "0 requests had to be repeated" in out
    offsets = register_offsets()
    assert board.read(CSR_BASE + 4 * offsets["build"], 1)[0] == crc32(_about(out).read_bytes())


@pytest.mark.slow
def test_info_over_etherbone_before_the_simulated_board(run) -> None:
    board = simulated("A")
    with EtherboneServer(board) as server:
        status, out, err = run("board", "info", "--board", f"etherbone:{server.host}:{server.port}")
    assert status == 0, err
    assert "simulated, DDR3, four phases (build/sim/small4-" in out


@pytest.mark.slow
@pytest.mark.parametrize("link", ["serial", "etherbone"])
def test_a_map_through_a_link_is_the_map_without_one(link: str) -> None:
    direct, behind = simulated("B"), simulated("B")
    cells, data = map_of(board_behind(direct, direct), rows=4)
    with ExitStack() as stack:
        if link == "serial":
            line = stack.enter_context(SerialLine(SimulatedPeer(behind)))
            bus = SerialBus(line.port, 9600, answer_s=60.0)
        else:
            server = stack.enter_context(EtherboneServer(behind))
            bus = EtherboneBus(server.host, server.port, 10.0)
        through_cells, through_data = map_of(board_behind(bus, behind), rows=4)
        assert bus.repeats == 0
        bus.close()
    assert cells.size > 100
    assert np.array_equal(through_cells, cells)
    assert np.array_equal(through_data, data)


# ---- a board that falls silent ---------------------------------------------------------------------------------------

SILENT_WORDS = 600  # in three requests
CONTENT = np.random.default_rng(3).integers(1, 1 << 32, SILENT_WORDS, dtype=np.uint32)  # no zeros


def silent_at(bus: Bus, let: Callable[[float], None], moments: Iterable[int]) -> None:
    """A board that falls silent after so many pieces of its answer: an error each time, and no word of it.

    Args:
        bus: to the board, whose memory holds `CONTENT`.
        let: lets so many pieces through from here on, bytes or datagrams.
        moments: fewer than the pieces of an answer.
    """
    for moment in moments:
        assert np.array_equal(bus.read(0, SILENT_WORDS), CONTENT)
        let(moment)
        with pytest.raises(LinkError):
            bus.read(0, SILENT_WORDS)
        let(math.inf)


def test_a_serial_board_that_falls_silent_at_any_moment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    board, left = PythonBoard(), [math.inf]
    board.memory.update(zip(range(0, 4 * SILENT_WORDS, 4), CONTENT.tolist(), strict=True))
    send = board.send

    def until(line: bytes) -> bytes:
        answer = send(line)
        passed = answer if left[0] == math.inf else answer[: max(0, int(left[0]))]
        left[0] -= len(answer)
        return passed

    monkeypatch.setattr(board, "send", until)
    whole = len(encode_response(0, 0, bytes(4 * SILENT_WORDS)))
    with SerialLine(board) as line:
        bus = SerialBus(line.port, 3_000_000, answer_s=0.05)
        silent_at(bus, lambda pieces: left.__setitem__(0, pieces), random.Random(1).sample(range(whole), 5))
        bus.close()


@pytest.fixture
def filled() -> Iterator[EtherboneServer]:
    memory = Memory(1 << 12)
    memory.words[:SILENT_WORDS] = CONTENT
    with EtherboneServer(memory) as server:
        yield server


def test_an_etherbone_board_that_falls_silent_at_any_moment_is_an_error(filled: EtherboneServer) -> None:
    bus = EtherboneBus(filled.host, filled.port, 0.05)
    silent_at(bus, lambda pieces: setattr(filled, "to_host", UpTo(pieces)), range(3))
    bus.close()


def _about(out: str) -> Path:
    return Path(out.partition("(")[2].partition(")")[0])
