"""Words cross a bad serial line whole, each write once and in order, or an error says why not."""

import random

import numpy as np
import pytest

from gateware.serial_protocol import MAX_WORDS, RECEIVE_BYTES, Opcode, Status, encode_request, encode_response
from host.serial_bus import ATTEMPTS, WINDOW, SerialBus
from profiles.errors import BoardError, LinkError
from tests.host.serial_peer import WORDS, Harmful, PythonBoard, SerialLine

BAUD = 3_000_000
ANSWER_S = 0.02  # a board in the same process answers at once


def test_words_written_are_words_read_whatever_their_number() -> None:
    board = PythonBoard()
    with SerialLine(board) as line:
        bus = SerialBus(line.port, BAUD)
        for count in (0, 1, MAX_WORDS, MAX_WORDS + 1, 10 * MAX_WORDS + 3):
            words = np.random.default_rng(count).integers(0, 1 << 32, count, dtype=np.uint32)
            bus.write(0x100, words)
            got = bus.read(0x100, count)
            assert got.dtype == np.uint32
            assert np.array_equal(got, words)
        assert bus.repeats == 0
        bus.close()
        bus.close()


@pytest.mark.parametrize("seed", range(6))
def test_a_bad_line_loses_doubles_and_invents_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.serial_bus.MAX_WORDS", 40)  # so that a frame in ten is hit, and many are under way
    chance, expected, written = random.Random(seed), {}, []
    board, harmful = PythonBoard(), Harmful(1e-3, seed)
    with SerialLine(board, harmful) as line:
        bus = SerialBus(line.port, BAUD, ANSWER_S)
        for _ in range(60):
            address, count = 4 * chance.randrange(WORDS - 600), chance.choice((1, 2, 30, 400))
            if chance.random() < 0.5:
                words = np.frombuffer(chance.randbytes(4 * count), np.uint32)
                bus.write(address, words)
                done = list(zip(range(address, address + 4 * count, 4), words.tolist(), strict=True))
                expected.update(done)
                written += done
            else:
                got = bus.read(address, count).tolist()
                assert got == [expected.get(at, 0) for at in range(address, address + 4 * count, 4)]
        bus.close()
    assert harmful.harms > 10
    assert bus.repeats > 3
    assert board.written == written


def cases(seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line and one session, and a harm or two for each seed; both ends forget what broke off sooner than usual."""
    for module in ("host.serial_bus", "tests.host.serial_peer"):
        monkeypatch.setattr(f"{module}.SILENCE_MS", 5)
    monkeypatch.setattr("host.serial_bus.MAX_WORDS", 40)
    memory, written, harms = [0] * 400, [], 0
    board, harmful = PythonBoard(), Harmful(0.0, 0)
    with SerialLine(board, lambda line: harmful(line)) as line:
        bus = SerialBus(line.port, BAUD, ANSWER_S)
        for seed in seeds:
            harms += harmful.harms
            chance, harmful = random.Random(seed), Harmful(1e-3, seed)
            count = chance.choice((1, 30, 90))
            start = chance.randrange(len(memory) - count)
            words = np.frombuffer(chance.randbytes(4 * count), np.uint32)
            bus.write(4 * start, words)
            memory[start : start + count] = words.tolist()
            written += zip(range(4 * start, 4 * (start + count), 4), words.tolist(), strict=True)
            start = chance.randrange(len(memory) - 150)
            assert bus.read(4 * start, 150).tolist() == memory[start : start + 150]
        bus.close()
    assert board.written == written
    assert harms > len(seeds) / 2


def test_bad_lines_lose_double_and_invent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cases(range(150), monkeypatch)


@pytest.mark.prove
def test_ten_thousand_bad_lines_lose_double_and_invent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cases(range(1000, 11_000), monkeypatch)


def test_a_dead_line_raises_and_gives_no_data() -> None:
    with SerialLine(PythonBoard(), lambda line: b"") as line, pytest.raises(LinkError, match="no board answers"):
        SerialBus(line.port, BAUD, ANSWER_S)


def test_a_line_that_dies_raises_and_one_that_comes_back_is_used_again() -> None:
    dead = False
    board = PythonBoard()
    with SerialLine(board, lambda line: b"" if dead else line) as line:
        bus = SerialBus(line.port, BAUD, ANSWER_S)
        bus.write(0, np.arange(5, dtype=np.uint32))
        dead = True
        with pytest.raises(LinkError, match=f"{ATTEMPTS} times in a row"):
            bus.read(0, 5)
        with pytest.raises(LinkError, match="no board answers"):
            bus.read(0, 5)
        dead = False
        assert bus.read(0, 5).tolist() == [0, 1, 2, 3, 4]
        bus.close()


def test_an_answer_that_fails_its_crc_is_never_data() -> None:
    """Every answer of the board to a READ comes with its first payload byte wrong."""

    def harm(line: bytes) -> bytes:
        return line[:8] + bytes([line[8] ^ 1]) + line[9:] if line[:2] == b"\xed\x5a" and len(line) > 12 else line

    with SerialLine(PythonBoard(), harm) as line:
        bus = SerialBus(line.port, BAUD, ANSWER_S)
        with pytest.raises(LinkError, match="CRC"):
            bus.read(0, 5)
        bus.close()


def test_a_babbling_port_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.serial_bus._NEVER_SILENT_S", 0.2)

    class Babbler(PythonBoard):
        def silence(self) -> bytes:
            return b"U" * 50

    with SerialLine(Babbler()) as line, pytest.raises(LinkError, match="never silent"):
        SerialBus(line.port, BAUD, ANSWER_S)


def test_an_address_where_nobody_answers_is_said_and_the_bus_goes_on() -> None:
    with SerialLine(PythonBoard()) as line:
        bus = SerialBus(line.port, BAUD, ANSWER_S)
        with pytest.raises(BoardError, match="nothing answers at some address of 0x10000"):
            bus.read(4 * WORDS, 9 * MAX_WORDS)
        with pytest.raises(BoardError, match="nothing answers"):
            bus.write(4 * WORDS, np.zeros(9 * MAX_WORDS, np.uint32))
        bus.write(0, np.array([7], np.uint32))
        assert bus.read(0, 1).tolist() == [7]
        bus.close()


def test_a_board_of_another_version_is_said() -> None:
    class Future(PythonBoard):
        def _read(self, sequence: int, address: int, count: int) -> bytes:
            return encode_response(Status.UNKNOWN, sequence)

    with SerialLine(Future()) as line:
        bus = SerialBus(line.port, BAUD, ANSWER_S)
        with pytest.raises(BoardError, match="same sources"):
            bus.read(0, 1)
        bus.close()


def test_what_is_under_way_fits_the_boards_fifo() -> None:
    longest = len(encode_request(Opcode.WRITE, 0, 0, MAX_WORDS, bytes(4 * MAX_WORDS)))
    assert WINDOW[Opcode.WRITE] * longest <= RECEIVE_BYTES
    assert WINDOW[Opcode.READ] * len(encode_request(Opcode.READ, 0, 0, MAX_WORDS)) <= RECEIVE_BYTES
    assert max(WINDOW.values()) < 128


def test_a_port_that_is_not_there_raises() -> None:
    with pytest.raises(LinkError, match="/dev/no-such-port cannot be opened"):
        SerialBus("/dev/no-such-port", BAUD)


def test_a_port_in_use_raises() -> None:
    with SerialLine(PythonBoard()) as line:
        bus = SerialBus(line.port, BAUD)
        with pytest.raises(LinkError, match="cannot be opened"):
            SerialBus(line.port, BAUD)
        bus.close()
