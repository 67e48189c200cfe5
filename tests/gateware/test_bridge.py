"""The board's end of the serial line does what a request says: once, whole, in order, or not at all."""

import random

import numpy as np
import pytest

from gateware.serial_protocol import (
    MAX_WORDS,
    RECEIVE_BYTES,
    Opcode,
    Response,
    Status,
    decode_response,
    encode_request,
    encode_response,
    response_length,
)
from host.serial_bus import SerialBus
from profiles.errors import BoardError
from tests.gateware.bridged import NOBODY, REFUSED, SILENCE, BridgedMemory
from tests.host.serial_peer import Harmful, SerialLine

ENOUGH = 20_000  # clocks for anything to come to its end


@pytest.fixture(scope="module")
def bridged() -> BridgedMemory:
    return BridgedMemory()


@pytest.fixture
def board(bridged: BridgedMemory) -> BridgedMemory:
    """A bridge in whose session the next request is number 1, and whose memory begins with 0s."""
    board = bridged
    board.reset()
    board.send(encode_request(Opcode.OPEN, 0) + write(1, 0, *[0] * MAX_WORDS), afterwards=ENOUGH)
    board.reset()
    assert answers(board.send(encode_request(Opcode.OPEN, 0), afterwards=200)) == [Response(Status.OK, 0, b"")]
    return board


def answers(line: bytes) -> list[Response]:
    out = []
    while line:
        length = response_length(line[:8])
        out.append(decode_response(line[:length]))
        line = line[length:]
    return out


def words(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


def write(sequence: int, address: int, *values: int) -> bytes:
    return encode_request(Opcode.WRITE, sequence, address, len(values), words(*values))


def read(sequence: int, address: int, count: int) -> bytes:
    return encode_request(Opcode.READ, sequence, address, count)


def test_words_written_are_words_read(board: BridgedMemory) -> None:
    got = answers(board.send(write(1, 0x40, 1, 2, 0xFFFFFFFF) + read(2, 0x3C, 5), afterwards=500))
    assert got == [Response(Status.OK, 1, b""), Response(Status.OK, 2, words(0, 1, 2, 0xFFFFFFFF, 0))]


def test_the_longest_burst_fits_and_a_longer_one_is_refused(board: BridgedMemory) -> None:
    values = list(range(100, 100 + MAX_WORDS))
    got = answers(board.send(write(1, 0, *values) + read(2, 0, MAX_WORDS), afterwards=ENOUGH))
    assert got == [Response(Status.OK, 1, b""), Response(Status.OK, 2, words(*values))]
    for count in (0, MAX_WORDS + 1):
        (refusal,) = answers(board.send(read(3, 0, count), afterwards=ENOUGH))
        assert refusal.status == Status.DAMAGED


def test_requests_that_arrive_while_one_is_answered_wait_in_the_fifo(board: BridgedMemory) -> None:
    requests = [write(k, 4 * k, *range(k, k + 200)) for k in range(1, 5)]
    line = b"".join(requests)
    assert RECEIVE_BYTES - 1000 < len(line) < RECEIVE_BYTES
    got = answers(board.send(line, clocks_a_byte=1, afterwards=ENOUGH))
    assert [answer.sequence for answer in got] == [1, 2, 3, 4]
    assert board.lost_bytes == 0
    assert board.written == [(4 * (k + n), k + n) for k in range(1, 5) for n in range(200)]


def test_any_one_bit_wrong_and_nothing_is_done(board: BridgedMemory) -> None:
    good = write(1, 0x80, 0x12345678, 0x9ABCDEF0)
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        got = answers(board.send(bytes(bad), afterwards=SILENCE + 200))
        assert all(answer.status == Status.DAMAGED for answer in got)
    assert board.written == []
    assert board.damaged == 8 * (len(good) - 2)  # without a sync it is no request
    assert answers(board.send(good, afterwards=500)) == [Response(Status.OK, 1, b"")]
    assert board.written == [(0x80, 0x12345678), (0x84, 0x9ABCDEF0)]


def test_any_one_byte_lost_and_nothing_is_done(board: BridgedMemory) -> None:
    good = write(1, 0x80, 0x12345678)
    for k in range(len(good)):
        board.send(good[:k] + good[k + 1 :], afterwards=SILENCE + 200)
    assert board.written == []
    assert answers(board.send(good, afterwards=500)) == [Response(Status.OK, 1, b"")]


def test_a_request_that_breaks_off_is_forgotten_after_a_silence(board: BridgedMemory) -> None:
    good = write(1, 0x80, 7)
    for k in range(1, len(good)):
        assert board.send(good[:k], afterwards=SILENCE + 10) == b""
        assert answers(board.send(read(k, 0x80, 1), afterwards=300)) == [Response(Status.OK, k, words(0))]
    assert board.written == []


def test_garbage_between_requests_is_no_request(board: BridgedMemory) -> None:
    garbage = bytes(byte for byte in random.Random(1).randbytes(300) if byte != 0xED)
    got = answers(board.send(garbage + write(1, 4, 9) + garbage + read(2, 4, 1) + garbage, afterwards=500))
    assert got == [Response(Status.OK, 1, b""), Response(Status.OK, 2, words(9))]


def test_a_repeated_write_is_answered_but_not_done_again(board: BridgedMemory) -> None:
    for _ in range(3):
        assert answers(board.send(write(1, 4, 9), afterwards=300)) == [Response(Status.OK, 1, b"")]
    assert board.written == [(4, 9)]
    board.send(b"".join(write(k, 8, k) for k in range(2, 9)), afterwards=ENOUGH)
    got = answers(board.send(write(3, 8, 3) + read(4, 8, 1) + write(9, 4, 10), afterwards=500))
    assert got == [Response(Status.OK, 3, b""), Response(Status.OK, 4, words(8)), Response(Status.OK, 9, b"")]
    assert board.written == [(4, 9), *((8, k) for k in range(2, 9)), (4, 10)]


def test_sequence_numbers_go_round(board: BridgedMemory) -> None:
    for k in range(1, 600):
        assert answers(board.send(write(k % 256, 4, k), afterwards=150)) == [Response(Status.OK, k % 256, b"")]
    assert board.written == [(4, k) for k in range(1, 600)]


def test_a_request_whose_predecessor_is_missing_is_not_done(board: BridgedMemory) -> None:
    for sequence in (2, 3, 100, 127):
        got = answers(board.send(write(sequence, 4, 9) + read(sequence, 4, 1), afterwards=300))
        assert got == [Response(Status.OUT_OF_ORDER, sequence, b"")] * 2
    assert board.written == []
    assert answers(board.send(write(1, 4, 9), afterwards=300)) == [Response(Status.OK, 1, b"")]


def test_an_address_where_nobody_answers_is_a_bus_error_and_never_data(board: BridgedMemory) -> None:
    for sequence, address in ((1, REFUSED), (3, NOBODY)):
        got = answers(board.send(read(sequence, address, 3) + write(sequence + 1, address, 1, 2), afterwards=500))
        assert got == [Response(Status.BUS_ERROR, sequence, b""), Response(Status.BUS_ERROR, sequence + 1, b"")]
        again = answers(board.send(write(sequence + 1, address, 1, 2), afterwards=500))
        assert again == [Response(Status.BUS_ERROR, sequence + 1, b"")]
    assert answers(board.send(write(5, 4, 1), afterwards=300)) == [Response(Status.OK, 5, b"")]


def test_a_burst_over_the_end_of_memory_ends_there(board: BridgedMemory) -> None:
    got = answers(board.send(write(1, 4 * 4094, 1, 2, 3, 4), afterwards=500))
    assert got == [Response(Status.BUS_ERROR, 1, b"")]
    assert board.written == [(4 * 4094, 1), (4 * 4095, 2)]


def test_an_opcode_of_the_future_is_refused(board: BridgedMemory) -> None:
    assert answers(board.send(encode_request(3, 1, 0, 1), afterwards=300)) == [Response(Status.UNKNOWN, 1, b"")]


def test_answers_are_what_the_protocol_encodes(board: BridgedMemory) -> None:
    assert board.send(read(1, 0, 2), afterwards=300) == encode_response(Status.OK, 1, bytes(8))


def test_a_full_fifo_is_counted_and_what_was_cut_is_not_done(board: BridgedMemory) -> None:
    line = b"".join(write(k, 4, *range(MAX_WORDS)) for k in range(1, 16))
    board.send(line, clocks_a_byte=1, afterwards=ENOUGH)
    assert board.lost_bytes > 0
    assert board.written == [(4 + 4 * n, n) for _ in range(len(board.written) // MAX_WORDS) for n in range(MAX_WORDS)]


@pytest.mark.parametrize("seed", range(4))
def test_both_ends_over_a_bad_line_lose_double_and_invent_nothing(
    board: BridgedMemory, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host.serial_bus.MAX_WORDS", 40)  # so that a frame in six is hit, and many are under way
    chance, expected, written = random.Random(seed), dict.fromkeys(range(0, 4 * MAX_WORDS, 4), 0), []
    harmful = Harmful(1e-3, seed, late_s=0.12)
    with SerialLine(board, harmful) as line:
        bus = SerialBus(line.port, baudrate=3_000_000, answer_s=0.08)  # Verilator's answer on a busy machine, too
        for _ in range(40):
            count = chance.choice((1, 2, 30, 200))
            address = 4 * chance.randrange(MAX_WORDS - count)
            addresses = range(address, address + 4 * count, 4)
            if chance.random() < 0.5:
                values = np.frombuffer(chance.randbytes(4 * count), np.uint32)
                bus.write(address, values)
                written += zip(addresses, values.tolist(), strict=True)
                expected.update(zip(addresses, values.tolist(), strict=True))
            else:
                assert bus.read(address, count).tolist() == [expected[at] for at in addresses]
        with pytest.raises(BoardError, match="nothing answers"):
            bus.read(NOBODY, 1)
        bus.close()
    assert harmful.harms > 10
    assert bus.repeats > 3
    assert board.written == written
