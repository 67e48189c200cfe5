"""The far end of an Ethernet cable for tests: a UDP server that answers as LiteEth's Etherbone core would, before any
bus; and a network between that drops, doubles, delays, reorders, cuts and flips.

``tests/gateware/test_etherbone.py`` holds the server to the core's RTL.
"""

import heapq
import random
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Self

import numpy as np

from gateware.etherbone_protocol import HEADER_WORDS, MAGIC, PROBE, answer, probe
from gateware.registers import BUS_ERRORS, CSR_BASE
from host.bus import Bus, Words
from profiles.errors import LinkError

NOBODY = 0xFFFFFFFF  # what an address reads where nobody answers


class EtherboneCore:
    """What LiteEth's core and LiteX's bus make of a datagram.

    Attributes:
        bus_errors: accesses that nobody answered, LiteX's ``ctrl_bus_errors``.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus, self.bus_errors = bus, 0

    def answer(self, datagram: bytes) -> bytes | None:
        """What comes back, if anything does. A datagram that is not whole the gateware does not let in."""
        if len(datagram) < 4 * HEADER_WORDS or len(datagram) % 4:
            return None
        words = np.frombuffer(datagram, ">u4")
        if words[0] == MAGIC | PROBE:
            return probe(reply=True)
        writes, reads = int(words[2]) >> 8 & 0xFF, int(words[2]) & 0xFF
        if words[0] != MAGIC or words.size != HEADER_WORDS + writes + reads + (writes > 0) + (reads > 0):
            return None
        if writes:
            self._write(int(words[HEADER_WORDS]), words[HEADER_WORDS + 1 :][:writes].astype(np.uint32))
        if not reads:
            return None
        return answer(int(words[-reads - 1]), self._read(words[-reads:].astype(np.uint32)))

    def _read(self, addresses: Words) -> Words:
        """One run of consecutive addresses after the other."""
        ends = [*((addresses[1:] - addresses[:-1] != 4).nonzero()[0] + 1).tolist(), addresses.size]
        return np.concatenate([self._run(int(addresses[a]), b - a) for a, b in zip([0, *ends], ends, strict=False)])

    def _run(self, address: int, count: int) -> Words:
        if address == BUS_ERRORS:
            return np.array([self.bus_errors] + [NOBODY] * (count - 1), np.uint32)
        try:
            return self._bus.read(address, count)
        except LinkError:
            if count > 1:
                return np.concatenate([self._run(address + 4 * k, 1) for k in range(count)])
            self.bus_errors += 1
            return np.array([NOBODY], np.uint32)

    def _write(self, address: int, words: Words) -> None:
        try:
            self._bus.write(address, words)
        except LinkError:
            if words.size > 1:
                for k in range(words.size):
                    self._write(address + 4 * k, words[k : k + 1])
            else:
                self.bus_errors += 1


class Memory:
    """A bus of nothing but memory, ``size`` words at address 0 and as many registers from `CSR_BASE` on."""

    def __init__(self, size: int) -> None:
        self.words, self.registers = np.zeros(size, np.uint32), np.zeros(size, np.uint32)
        self.writes: list[tuple[int, int]] = []

    def _place(self, address: int, size: int) -> Words:
        store, at = (self.registers, address - CSR_BASE) if address >= CSR_BASE else (self.words, address)
        if at // 4 + size > store.size:
            raise LinkError(f"nobody at {address:#x}")
        return store[at // 4 : at // 4 + size]

    def read(self, address: int, count: int) -> Words:
        return self._place(address, count).copy()

    def write(self, address: int, words: Words) -> None:
        self._place(address, words.size)[:] = words
        self.writes.append((address, words.size))

    def close(self) -> None: ...


Deliver = Callable[[bytes], None]


class Network:
    """What becomes of a datagram, by chance and a seed; each harm with its share of datagrams.

    Args:
        harms: shares of "drop", "double", "delay", "reorder", "cut", "flip" and "stray".
        late_s: the longest delay, seconds.
    """

    def __init__(self, seed: int, late_s: float = 0.0, **harms: float) -> None:
        self._random, self._late_s, self._harms, self.harmed = random.Random(seed), late_s, harms, 0

    def pass_on(self, datagram: bytes) -> list[tuple[float, bytes]]:
        """What arrives, each with its delay in seconds."""
        chance, kind = self._random.random(), ""
        for name, share in self._harms.items():
            if chance < share:
                kind = name
                break
            chance -= share
        self.harmed += bool(kind)
        match kind:
            case "drop":
                return []
            case "double":
                return [(0, datagram), (self._random.random() * self._late_s, datagram)]
            case "delay":
                return [(self._random.random() * self._late_s, datagram)]
            case "reorder":
                return [(0.001 * self._random.random(), datagram)]
            case "cut":
                return [(0, datagram[: self._random.randrange(len(datagram))])]
            case "flip":
                harmed = bytearray(datagram)
                harmed[self._random.randrange(len(harmed))] ^= 1 << self._random.randrange(8)
                return [(0, bytes(harmed))]
            case "stray":
                return [(0, datagram), (0, self._random.randbytes(self._random.randrange(1100)))]
        return [(0, datagram)]


class UpTo(Network):
    """Passes so many datagrams on, and no more."""

    def __init__(self, datagrams: float) -> None:
        super().__init__(0)
        self._left = datagrams

    def pass_on(self, datagram: bytes) -> list[tuple[float, bytes]]:
        self._left -= 1
        return super().pass_on(datagram) if self._left >= 0 else []


class EtherboneServer:
    """Etherbone at ``host`` and ``port`` (0: any) on loopback, in a thread, before ``bus``.

    Attributes:
        to_board, to_host: the `Network` each way; may be changed at any time.
        answering: False: the board is dead.
    """

    def __init__(
        self,
        bus: Bus,
        to_board: Network | None = None,
        to_host: Network | None = None,
        host: str = "127.0.0.2",
        port: int = 0,
    ) -> None:
        self.core = EtherboneCore(bus)
        self.to_board, self.to_host = to_board or Network(0), to_host or Network(0)
        self.answering = True
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # beside a litex_server with all addresses
        self._socket.bind((host, port))
        self._socket.setblocking(False)
        self.host, self.port = self._socket.getsockname()
        self._wake, self._woken = socket.socketpair()
        self._due: list[tuple[float, int, Deliver, bytes]] = []
        self._order, self._peer = count(), ""
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.send(b".")
        self._thread.join()
        for each in (self._socket, self._wake, self._woken):
            each.close()

    def _serve(self) -> None:
        while True:
            wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            ready, _, _ = select.select([self._socket, self._woken], [], [], wait)
            if self._woken in ready:
                return
            with suppress(BlockingIOError):
                while True:
                    datagram, (self._peer, _) = self._socket.recvfrom(2048)
                    self._enqueue(self.to_board, datagram, self._arrived)
            while self._due and self._due[0][0] <= time.monotonic():
                _, _, deliver, datagram = heapq.heappop(self._due)
                deliver(datagram)

    def _enqueue(self, network: Network, datagram: bytes, deliver: Deliver) -> None:
        for delay_s, arriving in network.pass_on(datagram):
            if delay_s:
                heapq.heappush(self._due, (time.monotonic() + delay_s, next(self._order), deliver, arriving))
            else:
                deliver(arriving)

    def _arrived(self, datagram: bytes) -> None:
        """At the board."""
        reply = self.core.answer(datagram) if self.answering else None
        if reply is not None:
            self._enqueue(self.to_host, reply, self._send)

    def _send(self, datagram: bytes) -> None:
        self._socket.sendto(datagram, (self._peer, self.port))  # whatever the port that the request came from
