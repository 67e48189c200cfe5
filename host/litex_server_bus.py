"""A board behind LiteX's ``litex_server``, which talks to it over UDP, JTAG, PCIe or LiteX's own UARTBone.

The server takes Etherbone packets (`gateware.etherbone_protocol`) over TCP, passes them on one after the other, and
answers in that order and under no tag. LiteX's own client makes zeros of an answer that does not come; here that is an
error, and the connection, in which it may still come, is given up.

What the server does not do is acknowledge or repeat a write: over UDP it sends a datagram, and all is well for it. So
registers of the engine are read back here, and memories are covered by the engine's CRC-32 of programs and data; a
write to another register that gets lost between server and board stays unnoticed.
"""

import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

import numpy as np

from gateware.etherbone_protocol import HEADER_WORDS, MAGIC, PORT, Packets
from gateware.registers import BUS_ERRORS, CSR_BASE, may_be_written_twice
from host.bus import Words
from host.etherbone_bus import BusErrors, read_batches, write_batches
from host.reservation import reserve
from profiles.errors import LinkError, UnacknowledgedError

ATTEMPTS = 3  # of a write to a register that does not read back
AHEAD = 8  # requests on their way while the server executes one
ANSWER_S = 15.0  # the server asks a board on UDP ten times, a second each, before it gives up
_GREETING_BYTES = 256  # of text about the server, before its first answer


class LitexServerBus:
    """A `host.bus.Bus` through a ``litex_server``. Not for two threads at once.

    Args:
        host: name or address of the computer that it runs on.
        port: its TCP port.
        answer_s: how long an answer may take, seconds.

    Attributes:
        repeats: how often a write had to be repeated so far, because it did not read back.

    Raises:
        LinkError: no server answers there, or no board behind it, or another process has it.
    """

    def __init__(self, host: str, port: int = PORT, answer_s: float = ANSWER_S) -> None:
        self._host, self._port, self._answer_s = host, port, answer_s
        self._name, self.repeats = f"{host}:{port}", 0
        self._lock = reserve("litex_server", self._name)
        self._socket: socket.socket | None = None
        self._stream: IO[bytes] | None = None
        self._greeted = False
        self._underway: deque[int] = deque()  # words of the answers that are to come
        try:
            self._errors = BusErrors(
                self._name, min(int(words[-1]) for words in self._exchange(read_batches(BUS_ERRORS, 1)))
            )
        except LinkError:
            self.close()
            raise

    def read(self, address: int, count: int) -> Words:
        """See `host.bus.Bus.read`.

        Raises:
            BoardError: nothing answers at one of the addresses.
            LinkError: no answer came.
        """
        out, done, counts = np.empty(count, np.uint32), 0, list[int]()
        for words in self._exchange(read_batches(address, count)):
            out[done : done + words.size - 1] = words[:-1]
            done += words.size - 1
            counts.append(int(words[-1]))
        self._errors.check(counts, address, count)
        return out

    def write(self, address: int, words: Words) -> None:
        """See `host.bus.Bus.write`.

        Raises:
            UnacknowledgedError: no answer came to a write that may not be repeated; the board has done it, or has not.
            BoardError, LinkError: as `read`; or a register does not hold what was written.
        """
        words = np.ascontiguousarray(words, np.uint32).reshape(-1)
        repeatable = may_be_written_twice(address, words.size)
        for attempt in range(ATTEMPTS):
            try:
                counts = [int(answer[-1]) for answer in self._exchange(write_batches(address, words))]
            except LinkError as error:
                if repeatable:
                    raise
                raise UnacknowledgedError(
                    f"{error}; whether the board took the write at {address:#x} is open"
                ) from error
            self._errors.check(counts, address, words.size)
            if not repeatable or address < CSR_BASE or np.array_equal(self.read(address, words.size), words):
                return
            self.repeats += attempt < ATTEMPTS - 1
        raise LinkError(
            f"{words.size} words that {self._name} wrote at {address:#x} do not read back, {ATTEMPTS} times; check the "
            "way from the server to the board"
        )

    def close(self) -> None:
        """See `host.bus.Bus.close`."""
        self._hang_up()
        self._lock.close()

    # ---- requests and answers -------------------------------------------------------------------------------------

    def _exchange(self, batches: Iterator[Packets]) -> Iterator[Words]:
        """The words that answer each request, the count of bus errors last."""
        self._settle()
        for packets in batches:
            for packet in packets:
                if len(self._underway) == AHEAD:
                    yield self._answer()
                self._underway.append(int(packet[2]) & 0xFF)
                self._send(packet.tobytes())
        while self._underway:
            yield self._answer()

    def _settle(self) -> None:
        """Let the server be done with what an exchange that was broken off has left."""
        if self._underway and self._socket is not None and self._stream is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
                while self._stream.read(1 << 16):
                    pass
            self._hang_up()
        self._underway.clear()

    def _send(self, packet: bytes) -> None:
        try:
            if self._socket is None:
                self._socket = self._connect()
            self._socket.sendall(packet)
        except OSError as error:
            raise self._failed(error) from error

    def _connect(self) -> socket.socket:
        opened = socket.create_connection((self._host, self._port), self._answer_s)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream, self._greeted = opened.makefile("rb"), False
        return opened

    def _answer(self) -> Words:
        """The next answer."""
        reads = self._underway[0]
        start = b"" if self._greeted else self._greeting()
        packet = np.frombuffer(start + self._receive(4 * (HEADER_WORDS + 1 + reads) - len(start)), ">u4")
        if (int(packet[0]), int(packet[1]), int(packet[2]) & 0xFFFF) != (MAGIC, 0, reads << 8):
            self._hang_up()
            raise LinkError(f"{self._name} answers {packet[:3].tobytes().hex()}: no answer of a litex_server to this")
        self._underway.popleft()
        return packet[HEADER_WORDS + 1 :].astype(np.uint32)

    def _greeting(self) -> bytes:
        """Pass over what the server says of itself, text of no known length; returns the first answer's first word."""
        start, text = MAGIC.to_bytes(4, "big"), b""
        while not text.endswith(start):
            if len(text) == _GREETING_BYTES:
                self._hang_up()
                raise LinkError(f"{self._name} does not speak as a litex_server does; check host and port")
            text += self._receive(1)
        self._greeted = True
        return start

    def _receive(self, count: int) -> bytes:
        assert self._stream is not None
        try:
            got = self._stream.read(count)
        except OSError as error:
            raise self._failed(error) from error
        if len(got) < count:
            self._hang_up()
            raise LinkError(
                f"the litex_server at {self._name} hung up: its board does not answer it; check that, and restart the "
                "server"
            )
        return got

    def _failed(self, error: OSError) -> LinkError:
        self._hang_up()
        if isinstance(error, TimeoutError):
            return LinkError(
                f"the litex_server at {self._name} did not answer within {self._answer_s:g} s; check its board, and "
                "restart the server"
            )
        return LinkError(f"no litex_server answers at {self._name} ({error}); start one, or check host and port")

    def _hang_up(self) -> None:
        """No answer that is still under way may be taken for the next one."""
        for each in (self._stream, self._socket):
            if each is not None:
                each.close()
        self._socket = self._stream = None
