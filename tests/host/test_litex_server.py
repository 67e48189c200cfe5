"""Words cross LiteX's own `litex_server` whole, or an error says why not: LiteX's own client gives zeros then."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from gateware.etherbone_protocol import MAX_WORDS
from gateware.registers import CSR_BASE, START, register_offsets
from host import litex_server_bus
from host.board import Board
from host.boards import mock_build
from host.bus import SharedBus, Words
from host.chip_presets import PRESETS
from host.identity import Description
from host.links import open_link
from host.litex_server_bus import LitexServerBus
from host.mock import MockBoard
from host.programs import Traversal
from host.supplies import supply_of_board
from profiles.errors import BoardError, LinkError, ProgramError, RailError, UnacknowledgedError
from profiles.geometry import CellArray, Geometry
from tests.host.etherbone_peer import EtherboneServer, Memory, Network, UpTo
from tests.host.litex_server import litex_server
from tests.host.rig import board_behind, fill, read
from tests.host.test_pmbus import SETTINGS

WORDS = 1 << 14
REGISTERS = register_offsets()
CONTROL, CONSUMED = (CSR_BASE + 4 * REGISTERS[name] for name in ("control", "log_consumed"))
GEOMETRY = Geometry(banks=2, rows=16, columns=1024, data_width=64, subarray_rows=16)


@pytest.fixture
def memory() -> Memory:
    return Memory(WORDS)


@pytest.fixture
def board(memory: Memory) -> Iterator[EtherboneServer]:
    with EtherboneServer(memory) as board:
        yield board


@pytest.fixture
def bus(board: EtherboneServer) -> Iterator[LitexServerBus]:
    with litex_server(board.host, board.port) as port:
        bus = LitexServerBus("127.0.0.1", port)
        yield bus
        bus.close()


def random_words(count: int) -> Words:
    return np.random.default_rng(count).integers(0, 1 << 32, count, dtype=np.uint32)


class LosesWrites(Network):
    """Loses the datagrams that write, while there are ``losses`` left."""

    def __init__(self, losses: int) -> None:
        super().__init__(0)
        self.losses = losses

    def pass_on(self, datagram: bytes) -> list[tuple[float, bytes]]:
        lost = self.losses > 0 and datagram[10] > 0
        self.losses -= lost
        return [] if lost else super().pass_on(datagram)


def test_words_written_are_words_read_whatever_their_number(bus: LitexServerBus) -> None:
    for count in (0, 1, MAX_WORDS - 1, MAX_WORDS, MAX_WORDS + 1, 9 * MAX_WORDS):
        words = random_words(count)
        bus.write(0x100, words)
        got = bus.read(0x100, count)
        assert got.dtype == np.uint32
        assert np.array_equal(got, words)
    assert bus.repeats == 0
    bus.close()
    bus.close()


def test_a_board_that_falls_silent_is_an_error_and_no_zero(bus: LitexServerBus, board: EtherboneServer) -> None:
    bus.write(0, random_words(5))
    bus.close()
    bus = LitexServerBus("127.0.0.1", bus._port, answer_s=2.0)
    board.answering = False
    with pytest.raises(LinkError, match=r"did not answer within 2 s"):
        bus.read(0, 5)
    with pytest.raises(UnacknowledgedError, match="whether the board took the write"):
        bus.write(CONTROL, np.array([START], np.uint32))
    bus.close()


@pytest.mark.slow
def test_a_server_that_gives_its_board_up_is_an_error_and_no_zero(bus: LitexServerBus, board: EtherboneServer) -> None:
    """In mid-answer. LiteX's server asks ten times, a second each, and hangs up."""
    bus.write(0, random_words(40))
    board.to_host = UpTo(17)
    with pytest.raises(LinkError, match="hung up: its board does not answer"):
        bus.read(0, 40)


def test_an_address_where_nobody_answers_is_said_and_the_bus_goes_on(bus: LitexServerBus) -> None:
    for _ in range(2):
        with pytest.raises(BoardError, match="nothing answers at some address of 0xfff0"):
            bus.read(4 * WORDS - 16, 5)
        with pytest.raises(BoardError, match="nothing answers"):
            bus.write(4 * WORDS - 16, np.zeros(300, np.uint32))
    assert bus.read(4 * WORDS - 16, 4).size == 4


def test_a_register_that_was_not_written_is_written_again(bus: LitexServerBus, board: EtherboneServer) -> None:
    """The server sends a datagram and is content; reading back tells."""
    board.to_board = LosesWrites(1)
    bus.write(CONSUMED, np.array([7], np.uint32))
    assert bus.repeats == 1
    assert bus.read(CONSUMED, 1) == 7
    board.to_board = LosesWrites(10)
    with pytest.raises(LinkError, match="do not read back, 3 times"):
        bus.write(CONSUMED, np.array([8], np.uint32))


def test_an_exchange_that_is_broken_off_leaves_nothing_to_the_next(
    bus: LitexServerBus, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while answers are under way: they have no tag, and must not be taken for those of the next requests."""
    memory.words[:] = np.arange(WORDS)
    monkeypatch.setattr(litex_server_bus, "AHEAD", 3)
    answers = bus._exchange(litex_server_bus.read_batches(0, 6 * MAX_WORDS))
    assert next(answers)[0] == 0
    answers.close()
    assert len(bus._underway) == 2
    assert np.array_equal(bus.read(4 * 9 * MAX_WORDS, 2 * MAX_WORDS), np.arange(9 * MAX_WORDS, 11 * MAX_WORDS))
    bus.write(0, np.ones(6 * MAX_WORDS, np.uint32))
    assert (bus.read(0, 6 * MAX_WORDS) == 1).all()


def test_a_board_is_held_by_one_process(bus: LitexServerBus) -> None:
    with pytest.raises(LinkError, match="in use by another process"):
        LitexServerBus("127.0.0.1", bus._port)
    code = f"from host.litex_server_bus import LitexServerBus; LitexServerBus('127.0.0.1', {bus._port})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "in use by another process" in done.stderr


@contextmanager
def speaking(text: bytes) -> Iterator[int]:
    """A TCP server that says ``text`` to everyone and hangs up once it is spoken to."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(text)
                connection.recv(1 << 16)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_what_is_no_litex_server_is_said() -> None:
    with speaking(b"SSH-2.0-OpenSSH_9.9\r\n") as port, pytest.raises(LinkError, match="hung up"):
        open_link(f"litex_server:127.0.0.1:{port}")
    with speaking(b"x" * 1000) as port, pytest.raises(LinkError, match="does not speak as a litex_server"):
        open_link(f"litex_server:127.0.0.1:{port}")
    strange = b"CommUDP:localhost:1234" + bytes.fromhex("4e6f1044") + bytes(20)
    with speaking(strange) as port, pytest.raises(LinkError, match="no answer of a litex_server to this"):
        open_link(f"litex_server:127.0.0.1:{port}")
    with pytest.raises(LinkError, match=f"no litex_server answers at 127.0.0.1:{port}"):
        open_link(f"litex_server:127.0.0.1:{port}")
    with pytest.raises(BoardError, match="no TCP port"):
        open_link("litex_server:127.0.0.1:0")


def test_a_regulator_is_not_moved_through_it(bus: LitexServerBus) -> None:
    class About(Description):
        def __init__(self) -> None: ...

        about = {"title": "KC705", "rail": {"floor_mv": 1140, "nominal_mv": 1500}}  # noqa: RUF012

    with pytest.raises(RailError, match="not moved through litex_server"):
        supply_of_board(SETTINGS, SharedBus(bus), About())


# ---- the engine behind it -------------------------------------------------------------------------------------------


def mock() -> MockBoard:
    return MockBoard(mock_build(GEOMETRY, log_blocks=16, buffer_bursts=64), PRESETS["B"], 1)


class LosesWriteNumber(Network):
    """Loses one datagram that writes."""

    def __init__(self, number: int) -> None:
        super().__init__(0)
        self._left = number

    def pass_on(self, datagram: bytes) -> list[tuple[float, bytes]]:
        self._left -= datagram[10] > 0
        return [] if datagram[10] and self._left == -1 else super().pass_on(datagram)


def small_map(board: Board) -> tuple[CellArray, Words]:
    """Failing cells of some bursts; and bursts that were written and read again. The server takes words one by one."""
    region = Traversal((0, 1), 0, 2, 0, 4)
    board.environment.begin_epoch(1)
    fill(board, "0x33", None, region)
    board.rail.set(1150)
    cells = read(board, "0x33", 4, region)
    board.rail.restore()
    data = np.random.default_rng(1).integers(0, 1 << 32, (4, board.geometry.burst_bits // 32), dtype=np.uint32)
    board.write_bursts([(0, 4)], data, board.timings.trcd)
    return cells, board.read_bursts([(0, 4)], board.timings.trcd)


@pytest.mark.slow
def test_a_map_through_it_is_the_map_without_it_and_where_writes_get_lost_an_error() -> None:
    """Each write of a map in turn is lost between server and board, but for the first time."""
    direct, behind = mock(), mock()
    expected = small_map(board_behind(direct, direct))
    assert expected[0].size > 100
    right = refused = 0
    with EtherboneServer(behind) as server, litex_server(server.host, server.port) as port:
        bus = LitexServerBus("127.0.0.1", port)
        for lost in (-1, *range(12)):
            server.to_board = Network(0)
            board = board_behind(bus, behind)
            server.to_board = LosesWriteNumber(lost)
            try:
                cells, data = small_map(board)
            except (BoardError, ProgramError):
                refused += 1
                assert lost >= 0
            else:
                assert np.array_equal(cells, expected[0])
                assert np.array_equal(data, expected[1])
                right += 1
        assert bus.repeats > 0
        bus.close()
    assert right > 1
    assert refused > 1
