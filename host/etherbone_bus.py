"""A board at the end of an Ethernet cable (datagrams: `gateware.etherbone_protocol`).

Every answer is matched to its request by a tag that no other request has, and what is lost is asked for again where
that is safe. A datagram that has had no answer for ``answer_s`` is taken for dead, and only then is a write repeated,
so that no old one reaches the board after a newer one. If one does all the same, its answer tells: that is an error.

Etherbone has no check of its own. What guards a request on its way is Ethernet's FCS, and what guards bulk data from
end to end is the engine's CRC-32 (`host.board`).
"""

import errno
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from math import ceil
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from gateware.etherbone_protocol import (
    HEADER_WORDS,
    MAGIC,
    MAX_WORDS,
    PACKET_WORDS,
    PORT,
    PROBE_REPLY,
    RECEIVE_PACKETS,
    Packets,
    probe,
    read_requests,
    tag_word,
    write_requests,
)
from gateware.registers import BUS_ERRORS, may_be_written_twice
from host.bus import Words
from host.reservation import reserve
from profiles.errors import BoardError, LinkError, UnacknowledgedError

ATTEMPTS = 8
_BATCH = 256  # requests put together at a time, so that those that wait need little memory
_ANSWER = struct.Struct(">IIII")  # words 0 to 2, tag
_FULL = (1 << 32) - 1  # where the board's count of bus errors stops, and what an address says that nobody answers at
_AT_ONCE = 0.0  # a deadline that is over
_REMEMBERED = 4096  # requests to write whose late answers are known for what they are

Packet = npt.NDArray[Any]  # big-endian words
Take = Callable[[int, Packet], None]


class BusErrors:
    """The board's count of accesses that nobody answered, which comes with every answer.

    Args:
        name: of the board.
        count: at the beginning.

    Raises:
        LinkError: there is no such count, or it is full.
    """

    def __init__(self, name: str, count: int) -> None:
        if count == _FULL:
            raise LinkError(
                f"{name} has no count of bus errors at {BUS_ERRORS:#x}, or one that is full; "
                "load this release's bitstream, or reset the board"
            )
        self._name, self._count = name, count

    def check(self, counts: Collection[int], address: int, words: int) -> None:
        """Whether someone answered at each of the ``words`` from ``address`` on, during which ``counts`` came.

        Raises:
            BoardError: nobody did, at one of them.
            LinkError: the count has fallen.
        """
        if not counts:
            return
        before, self._count = self._count, max(counts)
        if min(counts) < before:
            self._count = min(counts)
            raise LinkError(f"{self._name} was reset since it was opened; begin anew")
        if self._count > before:
            raise BoardError(
                f"nothing answers at some address of {address:#x}..{address + 4 * words:#x}; check the build's csr.json"
            )


@dataclass(slots=True)
class _Request:
    """The ``number``-th request of an exchange; its answer has ``reads`` words."""

    number: int
    packet: Packet
    reads: int
    attempts: int = 0
    sent_s: float = 0.0

    @property
    def writes(self) -> int:
        return int(self.packet[2]) >> 8 & 0xFF


class EtherboneBus:
    """A `host.bus.Bus` over Etherbone/UDP. Not for two threads at once.

    Args:
        host: name or IPv4 address of the board.
        port: the board's UDP port, which it also answers to.
        answer_s: how long a datagram and its answer may take, seconds.

    Attributes:
        repeats: how often requests had to be repeated so far.
        strays: datagrams so far that answered nothing asked, or answered twice, late or not whole.

    Raises:
        LinkError: no board answers there, or another process has it.
    """

    def __init__(self, host: str, port: int = PORT, answer_s: float = 0.25) -> None:
        self._name, self._answer_s = f"{host}:{port}", answer_s
        self.repeats = self.strays = 0
        self._tag, self._writes = secrets.randbits(32), 0  # of the last request; calls of `write`
        self._sent: dict[int, int] = {}  # tag of a request to write: value of `_writes` then
        self._underway: dict[int, _Request] = {}  # by tag, oldest first
        self._received = bytearray(4 * PACKET_WORDS + 1)  # a datagram that fills it is too long
        self._lock: IO[bytes] | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            address = self._connect(host, port)
            self._lock = reserve("etherbone", f"{address}:{port}")
            self._probe()
            self._errors = BusErrors(self._name, self._first_count())
        except LinkError:
            self.close()
            raise

    def read(self, address: int, count: int) -> Words:
        """See `host.bus.Bus.read`.

        Raises:
            BoardError: nothing answers at one of the addresses.
            LinkError: a request had no answer ATTEMPTS times in a row.
        """
        self._settle()
        out = np.empty(count, np.uint32)

        def take(number: int, words: Packet) -> None:
            out[number * MAX_WORDS : number * MAX_WORDS + words.size] = words

        self._checked(read_batches(address, count), take, address, count, repeatable=True)
        return out

    def write(self, address: int, words: Words) -> None:
        """See `host.bus.Bus.write`.

        Raises:
            UnacknowledgedError: a write that may not be repeated had no answer; the board has done it, or has not.
            BoardError, LinkError: as `read`.
        """
        words = np.ascontiguousarray(words, np.uint32).reshape(-1)
        self._settle()
        self._writes += 1
        repeatable = may_be_written_twice(address, words.size)
        self._checked(write_batches(address, words), _nothing, address, words.size, repeatable)

    def close(self) -> None:
        """See `host.bus.Bus.close`."""
        self._socket.close()
        if self._lock is not None:
            self._lock.close()

    # ---- beginning ------------------------------------------------------------------------------------------------

    def _connect(self, host: str, port: int) -> str:
        """Hear this board alone, at the one port that it answers to; returns its address."""
        try:
            address = socket.gethostbyname(host)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
                way.connect((address, port))
                here = way.getsockname()[0]  # this computer's address in the board's network
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # each board may use the same port
            self._socket.bind((here, port))
            self._socket.connect((address, port))
            self._socket.setblocking(False)
        except OSError as error:
            reason = (
                "another program, such as litex_server, has that port" if error.errno == errno.EADDRINUSE else error
            )
            raise LinkError(f"{self._name} cannot be reached: {reason}; check its address and your network") from error
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        return address

    def _probe(self) -> None:
        """Ask whether anyone there speaks Etherbone."""
        for _ in range(ATTEMPTS):
            self._send(probe())
            deadline = time.monotonic() + self._answer_s
            while (size := self._receive(deadline)) is not None and time.monotonic() < deadline:
                if size >= 4 and int.from_bytes(self._received[:4], "big") == MAGIC | PROBE_REPLY:
                    return
                self.strays += 1
        raise LinkError(
            f"no Etherbone answers at {self._name} within {ATTEMPTS * self._answer_s:g} s; is the board powered, its "
            "bitstream loaded, its cable in, this computer in its network?"
        )

    def _first_count(self) -> int:
        return self._exchange(chain([read_requests(BUS_ERRORS, 1, 0)]), _nothing, repeatable=True)[0]

    # ---- requests and answers -------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Let what an exchange that was broken off has left under way be answered, or die."""
        deadline = time.monotonic() + self._answer_s
        while self._underway and time.monotonic() < deadline and (size := self._receive(deadline)) is not None:
            self._answered(size)
        self._underway.clear()

    def _checked(self, batches: Iterator[Packets], take: Take, address: int, count: int, repeatable: bool) -> None:
        """Exchange all that is for ``count`` words at ``address``, and see that someone answered at each of them."""
        if not count:
            return
        self._errors.check(self._exchange(batches, take, repeatable), address, count)

    def _exchange(self, batches: Iterator[Packets], take: Take, repeatable: bool) -> tuple[int, int]:
        """Send requests, as many ahead as the board keeps, until each has its answer.

        Args:
            take: gets the number of a request and the words that answer it, to be copied.

        Returns:
            The lowest and the highest count of bus errors that came with answers.
        """
        unsent = _requests(batches)
        underway = self._underway
        lowest, highest = _FULL, 0
        following = next(unsent, None)
        while underway or following is not None:
            while following is not None and len(underway) < (RECEIVE_PACKETS if repeatable else 1):
                self._ask(following)
                following = next(unsent, None)
            oldest = next(iter(underway))
            deadline = underway[oldest].sent_s + self._answer_s
            for request in self._answers(deadline):
                words = np.frombuffer(self._received, ">u4", request.reads, _ANSWER.size)
                take(request.number, words[:-1])
                count = int(words[-1])
                lowest, highest = min(lowest, count), max(highest, count)
            if time.monotonic() >= deadline and oldest in underway:
                self._repeat(repeatable)
        return lowest, highest

    def _ask(self, request: _Request) -> None:
        """Send a request under a new tag."""
        self._tag = self._tag + 1 & 0xFFFFFFFF
        request.packet[tag_word(request.reads)] = self._tag
        request.attempts += 1
        self._send(request.packet.data)
        request.sent_s = time.monotonic()
        self._underway[self._tag] = request
        if request.writes:
            self._sent[self._tag] = self._writes
            if len(self._sent) > _REMEMBERED:
                del self._sent[next(iter(self._sent))]

    def _answers(self, deadline: float) -> Iterator[_Request]:
        """Requests answered before ``deadline``: the next one, and those whose answers are there by then.

        Several answers are taken, and then as many requests sent, for each change between the two costs time.
        """
        wait = deadline
        while self._underway and (size := self._receive(wait)) is not None:
            if (request := self._answered(size)) is not None:
                yield request
                wait = _AT_ONCE
            elif time.monotonic() >= deadline:
                return

    def _answered(self, size: int) -> _Request | None:
        """The request that the datagram of ``size`` bytes answers, whole and for the first time; under way no more."""
        if size >= _ANSWER.size:
            magic, padding, record, tag = _ANSWER.unpack_from(self._received)
            if self._sent.get(tag, self._writes) != self._writes:
                del self._sent[tag]
                self._too_late()
            request = self._underway.get(tag)
            if request is not None and (size, magic, padding, record & 0xFFFF) == (
                *(_ANSWER.size + 4 * request.reads, MAGIC, 0, request.reads << 8),
            ):
                return self._underway.pop(tag)
        self.strays += 1
        return None

    def _too_late(self) -> NoReturn:
        raise LinkError(
            f"{self._name} answers an old write after a newer one: a datagram came twice, or took longer than "
            f"{self._answer_s:g} s. What the board holds is uncertain: run it again, and check what the network does"
        )

    def _repeat(self, repeatable: bool) -> None:
        """Ask once more what has had no answer for the longest time, if it may be."""
        oldest = next(iter(self._underway))
        request = self._underway[oldest]
        if not repeatable:
            raise UnacknowledgedError(
                f"{self._name} did not acknowledge a write to {int(request.packet[HEADER_WORDS]):#x} within "
                f"{self._answer_s:g} s, and it may not be repeated: see what the board did, and check the cable"
            )
        if request.attempts == ATTEMPTS:
            raise LinkError(
                f"{self._name} left a request unanswered {ATTEMPTS} times, {self._answer_s:g} s each; "
                "check cable and power"
            )
        del self._underway[oldest]
        self.repeats += 1
        self._ask(request)

    def _send(self, packet: bytes | memoryview) -> None:
        try:
            self._socket.send(packet)
        except BlockingIOError:
            pass  # no room in this computer's queue: as good as lost on the way, and repeated like that
        except OSError as error:
            raise self._failed(error) from error

    def _receive(self, deadline: float) -> int | None:
        """Bytes of the next datagram, in ``_received``; None if none comes before ``deadline``."""
        while True:
            try:
                return self._socket.recv_into(self._received)
            except BlockingIOError:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                self._poll.poll(ceil(1000 * left_s))
            except OSError as error:
                raise self._failed(error) from error

    def _failed(self, error: OSError) -> LinkError:
        if isinstance(error, ConnectionRefusedError):
            return LinkError(
                f"nothing listens at {self._name}; check address and port, and that the bitstream is loaded"
            )
        return LinkError(f"the network to {self._name} failed ({error}); check the cable")


def _nothing(_number: int, _words: Packet) -> None:
    """Takes what answers a write."""


def _requests(batches: Iterator[Packets]) -> Iterator[_Request]:
    number = 0
    for packets in batches:
        reads = int(packets[0, 2]) & 0xFF
        for packet in packets:
            yield _Request(number, packet, reads)
            number += 1


def read_batches(address: int, count: int) -> Iterator[Packets]:
    """Requests for ``count`` words from ``address`` on; those of a batch are for as many words each."""
    whole = count - count % MAX_WORDS
    for at in range(0, whole, _BATCH * MAX_WORDS):
        yield read_requests(address + 4 * at, min(_BATCH, (whole - at) // MAX_WORDS), MAX_WORDS)
    if count > whole:
        yield read_requests(address + 4 * whole, 1, count - whole)


def write_batches(address: int, words: Words) -> Iterator[Packets]:
    """Requests that write ``words`` from ``address`` on; those of a batch are for as many words each."""
    whole = words.size - words.size % MAX_WORDS
    rows = words[:whole].reshape(-1, MAX_WORDS)
    for k in range(0, rows.shape[0], _BATCH):
        yield write_requests(address + 4 * k * MAX_WORDS, rows[k : k + _BATCH])
    if words.size > whole:
        yield write_requests(address + 4 * whole, words[whole:].reshape(1, -1))
