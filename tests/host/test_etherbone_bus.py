"""Words cross a bad network whole, each at its place, or an error says why not: never a wrong one."""

import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np
import pytest

from gateware.etherbone_protocol import MAX_WORDS, PACKET_WORDS, RECEIVE_PACKETS
from gateware.registers import BUS_ERRORS, CSR_BASE, START, register_offsets
from host.boards import mock_build
from host.bus import Words
from host.chip_presets import PRESETS
from host.etherbone_bus import ATTEMPTS, EtherboneBus
from host.mock import MockBoard
from host.programs import Traversal
from profiles.errors import BoardError, LinkError, ProgramError, UnacknowledgedError
from profiles.geometry import Geometry
from tests.host.etherbone_peer import EtherboneServer, Memory, Network
from tests.host.rig import board_behind, fill, map_of

WORDS = 1 << 16
ANSWER_S = 0.05  # a board in the same process answers at once; but processors may be busy
CONTROL = CSR_BASE + 4 * register_offsets()["control"]
HARMS = {"drop": 0.03, "double": 0.03, "delay": 0.03, "reorder": 0.03, "cut": 0.03, "stray": 0.03}
LOSSES = ("drop", "delay", "reorder", "cut", "stray")


def random_words(count: int, seed: int) -> Words:
    return np.random.default_rng(seed).integers(0, 1 << 32, count, dtype=np.uint32)


@pytest.fixture
def memory() -> Memory:
    return Memory(WORDS)


@pytest.fixture
def server(memory: Memory) -> Iterator[EtherboneServer]:
    with EtherboneServer(memory) as server:
        yield server


def opened(server: EtherboneServer, answer_s: float = ANSWER_S) -> EtherboneBus:
    return EtherboneBus(server.host, server.port, answer_s)


@pytest.mark.parametrize(
    "count", [0, 1, MAX_WORDS - 1, MAX_WORDS, MAX_WORDS + 1, 5 * MAX_WORDS, 300 * MAX_WORDS % WORDS]
)
def test_words_written_are_words_read_whatever_their_number(server: EtherboneServer, count: int) -> None:
    bus, words = opened(server, 1.0), random_words(count, count)
    bus.write(0x100, words)
    got = bus.read(0x100, count)
    assert got.dtype == np.uint32
    assert np.array_equal(got, words)
    assert bus.repeats == bus.strays == 0
    bus.close()
    bus.close()


def test_requests_go_ahead_as_far_as_the_gateware_keeps_them(memory: Memory) -> None:
    """All requests of a window are on their way before the first one is answered; and not one more."""

    class Patient(Network):
        held: list[bytes] = []  # noqa: RUF012
        most = 0

        def pass_on(self, datagram: bytes) -> list[tuple[float, bytes]]:
            assert len(datagram) <= 4 * PACKET_WORDS
            self.held.append(datagram)
            self.most = max(self.most, len(self.held))
            if len(self.held) < RECEIVE_PACKETS:
                return []
            released, self.held = self.held, []
            return [(0.0, each) for each in released]

    with EtherboneServer(memory) as server:
        bus = opened(server, 1.0)
        server.to_board = patient = Patient(0)
        words = random_words(3 * RECEIVE_PACKETS * MAX_WORDS, 1)
        bus.write(0, words)
        assert np.array_equal(memory.words[: words.size], words)
        assert np.array_equal(bus.read(0, words.size), words)
        assert patient.most == RECEIVE_PACKETS
        assert bus.repeats == 0
        bus.close()


def one_case(bus: EtherboneBus, server: EtherboneServer, memory: Memory, seed: int, **harms: float) -> int:
    """Reads and writes on a network that does harm; returns how many of them ended well."""
    chance, done = random.Random(seed), 0
    server.to_board, server.to_host = Network(2 * seed, 1.5 * ANSWER_S, **harms), Network(2 * seed + 1, 0.01, **harms)
    for k in range(4):
        count = chance.choice((1, 2, 300, 2000))
        place = slice(start := chance.randrange(WORDS - count), start + count)
        with suppress(LinkError):
            bus.write(4 * start, random_words(count, 4 * seed + k))
            done += 1
        before = memory.words.copy()
        with suppress(LinkError):
            got = bus.read(4 * start, count)
            after = memory.words  # an old write may have come meanwhile
            assert ((got == before[place]) | (got == after[place])).all()
            done += 1
    return done


def cases(memory: Memory, seeds: range, **harms: float) -> None:
    done = harmed = 0
    with EtherboneServer(memory) as server:
        bus = opened(server)
        for seed in seeds:
            done += one_case(bus, server, memory, seed, **harms)
            harmed += server.to_board.harmed + server.to_host.harmed
        repeats = bus.repeats
        bus.close()
    assert harmed > len(seeds)
    assert repeats > len(seeds) / 10
    assert done > 0.9 * 8 * len(seeds), "nearly all of it can be mended"


def test_a_bad_network_invents_nothing(memory: Memory) -> None:
    cases(memory, range(60), **HARMS)


def test_what_was_written_last_is_read_or_an_old_write_that_came_late_is_an_error(server: EtherboneServer) -> None:
    bus, chance, said = opened(server), random.Random(1), 0
    server.to_board = Network(1, 2 * ANSWER_S, double=0.3)
    for k in range(300):
        count = chance.choice((1, 300))
        words = random_words(count, k)
        said += 1
        with suppress(LinkError):
            bus.write(4 * chance.randrange(4), words)
            bus.write(0, words)
            assert np.array_equal(bus.read(0, count), words)
            said -= 1
    assert 10 < said < 290
    bus.close()


@pytest.mark.prove
@pytest.mark.parametrize("thousand", range(1, 11))
def test_ten_thousand_bad_networks_invent_nothing(memory: Memory, thousand: int) -> None:
    cases(memory, range(1000 * thousand, 1000 * thousand + 1000), **HARMS)


def test_a_dead_board_raises_and_one_that_comes_back_is_used_again(server: EtherboneServer) -> None:
    bus = opened(server)
    bus.write(0, np.arange(5, dtype=np.uint32))
    server.answering = False
    with pytest.raises(LinkError, match=f"{ATTEMPTS} times"):
        bus.read(0, 5)
    with pytest.raises(LinkError, match="check cable and power"):
        bus.write(0, np.zeros(3000, np.uint32))
    server.answering = True
    assert bus.read(0, 5).tolist() == [0, 1, 2, 3, 4]
    bus.close()
    server.answering = False
    with pytest.raises(LinkError, match="no Etherbone answers at"):
        opened(server, 0.01)


def test_what_is_not_there_is_said() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.3", 0))
        port = free.getsockname()[1]
    with pytest.raises(LinkError, match=f"nothing listens at 127.0.0.3:{port}"):
        EtherboneBus("127.0.0.3", port, ANSWER_S)
    with pytest.raises(LinkError, match=r"no-such-host.invalid:1234 cannot be reached"):
        EtherboneBus("no-such-host.invalid")


def test_an_address_where_nobody_answers_is_said_and_the_bus_goes_on(server: EtherboneServer) -> None:
    bus = opened(server)
    for _ in range(2):
        with pytest.raises(BoardError, match="nothing answers at some address of 0x3fff0"):
            bus.read(4 * WORDS - 16, 5)
        with pytest.raises(BoardError, match="nothing answers"):
            bus.write(4 * WORDS - 16, np.zeros(2000, np.uint32))
    assert bus.read(4 * WORDS - 16, 4).size == 4
    bus.close()


def test_an_exchange_that_is_broken_off_leaves_nothing_to_the_next(
    server: EtherboneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while writes are under way, which are done before the next one all the same."""
    bus = opened(server, 1.0)

    def stop(_number: int, _words: Words) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("host.etherbone_bus._nothing", stop)
    with pytest.raises(KeyboardInterrupt):
        bus.write(0, np.ones(6 * MAX_WORDS, np.uint32))
    monkeypatch.undo()
    bus.write(0, np.full(6 * MAX_WORDS, 2, np.uint32))
    assert (bus.read(0, 6 * MAX_WORDS) == 2).all()
    assert (bus.repeats, bus.strays) == (0, 0)
    bus.close()


def test_a_board_that_was_reset_is_said(server: EtherboneServer) -> None:
    server.core.bus_errors = 7
    bus = opened(server)
    server.core.bus_errors = 0
    with pytest.raises(LinkError, match="was reset"):
        bus.read(0, 1)
    bus.close()


def test_foreign_gateware_is_said(server: EtherboneServer) -> None:
    """It knows no register there, and its bus answers with ones."""
    server.core.bus_errors = 0xFFFFFFFF
    with pytest.raises(LinkError, match=f"no count of bus errors at {BUS_ERRORS:#x}"):
        opened(server)


def test_a_board_is_held_by_one_process(server: EtherboneServer) -> None:
    bus = opened(server)
    with pytest.raises(LinkError, match="in use by another process"):
        opened(server)
    code = f"from host.etherbone_bus import EtherboneBus; EtherboneBus({server.host!r}, {server.port})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "in use by another process" in done.stderr
    bus.close()
    opened(server).close()


def test_several_boards_answer_to_one_port_of_this_computer(server: EtherboneServer) -> None:
    other_memory = Memory(WORDS)
    other_memory.words[0] = 2
    with EtherboneServer(other_memory, host="127.0.0.4", port=server.port) as other:
        one, two = opened(server), opened(other)
        assert [one.read(0, 1)[0], two.read(0, 1)[0]] == [0, 2]
        one.close()
        two.close()


@pytest.mark.parametrize("way", ["to_board", "to_host"])
def test_a_command_that_is_not_acknowledged_is_not_repeated(server: EtherboneServer, memory: Memory, way: str) -> None:
    bus = opened(server)
    setattr(server, way, Network(0, drop=1.0))
    for address, size in ((CONTROL, 1), (CONTROL - 4, 2), (CSR_BASE + 0x1000, 1)):
        with pytest.raises(UnacknowledgedError, match="may not be repeated"):
            bus.write(address, np.full(size, START, np.uint32))
    assert len(memory.writes) == (3 if way == "to_host" else 0)
    setattr(server, way, Network(0))
    assert bus.read(CONTROL, 1) == (START if way == "to_host" else 0)
    bus.close()


def test_a_write_that_arrives_after_a_newer_one_is_said(server: EtherboneServer) -> None:
    bus = opened(server)
    server.to_board.pass_on = lambda datagram: [(3 * ANSWER_S, datagram)]  # type: ignore[method-assign]
    with pytest.raises(UnacknowledgedError):
        bus.write(CONTROL, np.array([START], np.uint32))
    server.to_board = Network(0)
    bus.write(0, np.array([1], np.uint32))
    time.sleep(3 * ANSWER_S)
    with pytest.raises(LinkError, match="answers an old write after a newer one"):
        bus.read(0, 1)
    assert bus.read(0, 1) == 1
    bus.close()


# ---- the engine behind it -------------------------------------------------------------------------------------------

GEOMETRY = Geometry(banks=2, rows=16, columns=1024, data_width=64, subarray_rows=16)
REGION = Traversal((0, 1), 0, 16, 0, 128)


def mock() -> MockBoard:
    return MockBoard(mock_build(GEOMETRY, log_blocks=16, buffer_bursts=64), PRESETS["B"], 1)


class LosesCommand(Network):
    """Drops the first request that writes to register ``control``, or the answer to it."""

    def __init__(self, request: bool) -> None:
        super().__init__(0)
        self._request, self.lost, self._next = request, 0, False

    def pass_on(self, datagram: bytes) -> list[tuple[float, bytes]]:
        commands = len(datagram) > 16 and int.from_bytes(datagram[12:16], "big") == CONTROL
        loses = not self.lost and (commands if self._request else self._next)
        self._next = commands
        self.lost += loses
        return [] if loses else [(0.0, datagram)]


@pytest.mark.parametrize("request_lost", [True, False])
def test_a_start_or_resume_that_gets_lost_happens_once(request_lost: bool) -> None:
    behind = mock()
    fill(board_behind(behind, behind), "0x33", None, REGION)  # numba compiles
    with EtherboneServer(behind) as server:
        bus = opened(server)
        board = board_behind(bus, behind)
        for _ in range(2):
            network = LosesCommand(request_lost)
            server.to_board = server.to_host = network
            before = board.register("starts")
            fill(board, "0x33", None, REGION)
            assert network.lost == 1
            assert board.register("starts") == before + 1
        bus.close()


def test_results_of_a_program_that_was_started_again_are_void() -> None:
    board = board_behind(direct := mock(), direct)
    fill(board, "0x33", None, REGION)
    board.result()
    board.set_register("control", START)
    with pytest.raises(LinkError, match="counts 2 started programs, 1 were"):
        board.result()


def maps(seeds: range, late_s: float, share: float, kinds: Iterable[str]) -> int:
    """How many maps of a board behind a bad network came to their end, which must be the right one."""
    harms = dict.fromkeys(kinds, share)
    direct = mock()
    expected = map_of(board_behind(direct, direct), rows=16)
    assert expected[0].size > 5000
    right = 0
    for seed in seeds:
        behind = mock()
        with EtherboneServer(behind) as server:
            bus = opened(server)
            board = board_behind(bus, behind)
            server.to_board, server.to_host = (Network(2 * seed + k, late_s, **harms) for k in range(2))
            with suppress(BoardError, ProgramError):
                cells, data = map_of(board, rows=16)
                assert np.array_equal(cells, expected[0])
                assert np.array_equal(data, expected[1])
                right += 1
            bus.close()
    return right


def test_maps_over_a_lossy_network_are_right() -> None:
    """Nothing takes longer than a datagram may, or comes twice."""
    assert maps(range(4), ANSWER_S / 10, 0.01, LOSSES) >= 3


def test_maps_over_a_network_that_takes_too_long_are_right_or_an_error() -> None:
    maps(range(4), 5 * ANSWER_S, 0.01, HARMS)


def test_flipped_datagrams_spoil_no_map() -> None:
    """What only the engine's checks see here; on a real wire Ethernet's FCS drops these, and so does the gateware."""
    maps(range(2000, 2010), 0.0, 0.02, ("flip",))


@pytest.mark.prove
def test_thousands_of_flipped_datagrams_spoil_no_map() -> None:
    assert maps(range(3000, 4000), 0.0, 0.004, ("flip",)) > 10


@pytest.mark.prove
def test_a_thousand_maps_over_bad_networks_are_right_or_an_error() -> None:
    assert maps(range(100, 600), ANSWER_S / 10, 0.003, LOSSES) > 400
    maps(range(600, 1100), 5 * ANSWER_S, 0.003, HARMS)
