"""LiteEth's stack and Etherbone core, with what this project puts around them, do what the host takes them to do, and
what `tests.host.etherbone_peer` does in their place."""

from random import Random

import numpy as np
import pytest

from gateware.etherbone_protocol import (
    MAX_WORDS,
    PACKET_WORDS,
    RECEIVE_PACKETS,
    Packets,
    probe,
    read_requests,
    tag_word,
    write_requests,
)
from gateware.registers import BUS_ERRORS
from tests.gateware.etherboned import WORDS, EtherbonedMemory, frame, ipv4
from tests.host.etherbone_peer import EtherboneCore, Memory

pytestmark = pytest.mark.slow
NOBODY = 0x00100000  # an address where nobody answers
CLOCKS = 20_000  # for anything to come to its end
SLOW = 12  # clocks that a slow memory takes for a word


@pytest.fixture(scope="module", params=["kc705", "ecpix5"])
def built(request: pytest.FixtureRequest) -> EtherbonedMemory:
    return EtherbonedMemory(request.param)


@pytest.fixture
def board(built: EtherbonedMemory) -> EtherbonedMemory:
    """As if new, and it knows where the host is."""
    built.clocks = built.line_clocks = 1
    built.send([probe()])
    built.forget()
    return built


def tagged(packets: Packets, tag: int) -> bytes:
    reads = int(packets[0, 2]) & 0xFF
    packets[0, tag_word(reads)] = tag
    return packets[0].tobytes()


def read(tag: int, address: int, count: int) -> bytes:
    return tagged(read_requests(address, 1, count), tag)


def gather(tag: int, addresses: list[int]) -> bytes:
    """A read of addresses in any order."""
    packets = read_requests(0, 1, len(addresses))
    packets[0, tag_word(len(addresses) + 1) + 1 : -1] = addresses
    return tagged(packets, tag)


def write(tag: int, address: int, *words: int) -> bytes:
    return tagged(write_requests(address, np.array([words], np.uint32)), tag)


def requests(seed: int, count: int) -> list[bytes]:
    """Reads and writes, some of them where nobody answers, wholly or from somewhere in their middle on; and probes."""
    random = Random(seed)
    out = []
    for tag in range(count):
        words = random.choice((1, 2, 30, MAX_WORDS - 1, MAX_WORDS))
        where = random.choices((NOBODY, 4 * (WORDS - 20), 4 * random.randrange(WORDS - words)), (1, 1, 18))[0]
        if where + 4 * words > 4 * WORDS:
            words = min(words, 30)
        kind = random.random()
        if kind < 0.4:
            out.append(write(random.getrandbits(32), where, *(random.getrandbits(32) for _ in range(words))))
        elif kind < 0.8:
            out.append(read(tag, where, words))
        elif kind < 0.9:
            out.append(gather(tag, [4 * random.randrange(WORDS * 34 // 32) for _ in range(words)]))
        else:
            out.append(probe())
    return out


@pytest.mark.parametrize("seed", range(3))
def test_the_stand_in_answers_as_the_core_does(board: EtherbonedMemory, seed: int) -> None:
    memory = Memory(WORDS)
    core = EtherboneCore(memory)
    (count,) = board.send([read(0, BUS_ERRORS, 0)])
    core.bus_errors = int.from_bytes(count[-4:], "big")
    board.send([write(0, 4 * at, *[0] * MAX_WORDS) for at in range(0, WORDS - MAX_WORDS, MAX_WORDS)][:8], CLOCKS)
    for at in range(0, WORDS, MAX_WORDS):  # the stand-in's memory begins with 0s
        board.send([write(0, 4 * at, *[0] * min(MAX_WORDS, WORDS - at))])
    board.forget()
    for request in requests(seed, 60):
        expected = core.answer(request)
        assert board.send([request], CLOCKS) == [expected]
    written = [(address + 4 * k) for address, size in memory.writes for k in range(size)]
    assert [address for address, _ in board.written] == written
    assert all(memory.words[address // 4] == word for address, word in dict(board.written).items())
    assert core.bus_errors > int.from_bytes(count[-4:], "big")


def test_as_many_of_the_longest_requests_as_the_host_sends_ahead_are_kept_and_answered_in_order(
    board: EtherbonedMemory,
) -> None:
    board.clocks = SLOW
    values = np.arange(RECEIVE_PACKETS * MAX_WORDS, dtype=np.uint32).reshape(RECEIVE_PACKETS, MAX_WORDS)
    ahead = [write(k, 4 * k * MAX_WORDS, *row.tolist()) for k, row in enumerate(values)]
    assert len(ahead[0]) == 4 * PACKET_WORDS
    got = board.send(ahead, 5 * CLOCKS)
    assert [int.from_bytes(each[12:16], "big") for each in got] == list(range(RECEIVE_PACKETS))
    assert [word for _, word in board.written] == values.reshape(-1).tolist()
    ahead = [read(k, 4 * k * MAX_WORDS, MAX_WORDS) for k in range(RECEIVE_PACKETS)]
    got = board.send(ahead, 5 * CLOCKS)
    assert [np.frombuffer(each[16:-4], ">u4").tolist() for each in got] == values.tolist()
    assert board.dropped == 0


@pytest.mark.parametrize(("clocks", "line_clocks"), [(1, 1), (1, 10), (SLOW, 1)])
def test_reads_and_writes_sent_ahead_are_done_in_order_whoever_is_slow(
    board: EtherbonedMemory, clocks: int, line_clocks: int
) -> None:
    """A fast memory and wire; a wire of 100 Mbit/s, for which answers wait; a slow memory, for which requests wait."""
    board.clocks, board.line_clocks = clocks, line_clocks
    board.send([write(0, 4 * at, *[0] * MAX_WORDS) for at in range(0, 2 * MAX_WORDS, MAX_WORDS)], CLOCKS)
    core, random = EtherboneCore(Memory(2 * MAX_WORDS)), Random(clocks)
    (count,) = board.send([read(0, BUS_ERRORS, 0)])
    core.bus_errors = int.from_bytes(count[-4:], "big")
    for _ in range(4):
        ahead = []
        for tag in range(RECEIVE_PACKETS):
            words, where = random.choice((1, 100, MAX_WORDS, MAX_WORDS)), 4 * random.randrange(MAX_WORDS)
            if random.random() < 0.5:
                ahead.append(write(tag, where, *(random.getrandbits(32) for _ in range(words))))
            else:
                ahead.append(gather(tag, [where + 4 * random.randrange(words) for _ in range(words)]))
        assert board.send(ahead, 5 * CLOCKS) == [core.answer(request) for request in ahead]
    assert board.dropped == 0


def test_what_there_is_no_room_for_is_dropped_whole(board: EtherbonedMemory) -> None:
    board.clocks = SLOW
    number = 3 * RECEIVE_PACKETS
    got = board.send([write(k, 4 * k, *[k] * MAX_WORDS) for k in range(number)], 5 * CLOCKS)
    done = [int.from_bytes(each[12:16], "big") for each in got]
    assert RECEIVE_PACKETS <= len(done) < number
    assert board.dropped == number - len(done)
    assert board.written == [(4 * k + 4 * n, k) for k in done for n in range(MAX_WORDS)]
    assert len(board.send([read(0, 0, 1)], CLOCKS)) == 1


def test_a_frame_with_any_bit_wrong_is_not_let_in(board: EtherbonedMemory) -> None:
    good = frame(b"\x08\x00", ipv4(write(1, 0x80, 0x12345678, 0x9ABCDEF0)))
    random = Random(1)
    for bit in random.sample(range(8 * 22, 8 * len(good)), 200):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        assert board.send_frames([bytes(bad)], 400) == []
    assert board.written == []
    assert len(board.send_frames([good])) == 1
    assert board.written == [(0x80, 0x12345678), (0x84, 0x9ABCDEF0)]


def test_a_frame_that_breaks_off_is_not_let_in(board: EtherbonedMemory) -> None:
    good = frame(b"\x08\x00", ipv4(write(1, 0x80, *range(40))))
    for length in (*range(80, len(good), 13), len(good) - 1):
        assert board.send_frames([good[:length]], 600) == []
    assert board.written == []
    assert len(board.send_frames([good])) == 1
    assert len(board.written) == 40
