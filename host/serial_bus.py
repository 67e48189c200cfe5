"""A board at the end of a serial line (frames: `gateware.serial_protocol`).

Every word is checked, and whatever the line does to a request or an answer is mended by repeating it, which the
sequence numbers make safe: the board does each write once. What cannot be mended raises; nothing is ever made up.
"""

import contextlib
import secrets
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np
import serial

from gateware.serial_protocol import (
    MAX_WORDS,
    RECEIVE_BYTES,
    REQUEST_HEADER_WORDS,
    RESPONSE_HEADER_WORDS,
    SILENCE_MS,
    Opcode,
    Status,
    decode_response,
    encode_request,
    response_length,
)
from host.bus import Words
from profiles.errors import BoardError, LinkError

ATTEMPTS = 8
# Requests under way: as many as the board's FIFO takes, and no more answers than a PC keeps when busy for a moment.
WINDOW = {Opcode.READ: 8, Opcode.WRITE: RECEIVE_BYTES // (4 * (REQUEST_HEADER_WORDS + MAX_WORDS + 1))}
_NEVER_SILENT_S = 2.0


@dataclass(frozen=True)
class _Request:
    opcode: Opcode
    sequence: int
    address: int
    count: int
    frame: bytes

    @classmethod
    def of(cls, opcode: Opcode, sequence: int, address: int = 0, count: int = 0, payload: bytes = b"") -> Self:
        frame = encode_request(opcode, sequence, address, count, payload)
        return cls(opcode, sequence, address, count, frame)

    @property
    def answer_bytes(self) -> int:
        return 4 * self.count if self.opcode == Opcode.READ else 0


class SerialBus:
    """A `host.bus.Bus` over a serial port. Not for two threads at once.

    Args:
        port: the device's name, as pyserial takes it.
        baudrate: bits a second, as the gateware was built for.
        answer_s: how long an answer may take beside the line's own time, seconds.

    Attributes:
        repeats: how often requests had to be repeated so far: a measure of the line.

    Raises:
        LinkError: the port cannot be opened, or no board answers there.
    """

    def __init__(self, port: str, baudrate: int, answer_s: float = 0.25) -> None:
        self._name, self.repeats = port, 0
        self._answer_s = answer_s + 2 * RECEIVE_BYTES * 10 / baudrate  # 10 bits a byte, both ways
        try:
            self._line = serial.Serial(port, baudrate, timeout=self._answer_s, write_timeout=5, exclusive=True)
        except (serial.SerialException, ValueError) as error:
            raise LinkError(
                f"{port} cannot be opened ({error}); check its name, rights, and who else uses it"
            ) from error
        with contextlib.suppress(NotImplementedError, OSError, ValueError):
            self._line.set_low_latency_mode(True)  # else an FTDI chip holds back the end of each answer for 16 ms
        self._last: int | None = None  # sequence number of the last request; None outside of a session
        try:
            self._last = self._open()
        except LinkError:
            self.close()
            raise

    def read(self, address: int, count: int) -> Words:
        """See `host.bus.Bus.read`.

        Raises:
            BoardError: nothing answers at one of the addresses.
            LinkError: the line failed ATTEMPTS times in a row.
        """
        parts = ((address + 4 * k, min(MAX_WORDS, count - k), b"") for k in range(0, count, MAX_WORDS))
        return np.frombuffer(b"".join(self._exchange(Opcode.READ, parts)), "<u4").astype(np.uint32)

    def write(self, address: int, words: Words) -> None:
        """See `host.bus.Bus.write`; raises as `read` does."""
        parts = ((address + 4 * k, words[k : k + MAX_WORDS]) for k in range(0, words.size, MAX_WORDS))
        self._exchange(Opcode.WRITE, ((at, part.size, part.astype("<u4").tobytes()) for at, part in parts))

    def close(self) -> None:
        """See `host.bus.Bus.close`."""
        self._line.close()

    def _open(self) -> int:
        """Begin a session, whatever the board and the line still hold of one before; returns its sequence number."""
        request = _Request.of(Opcode.OPEN, secrets.randbelow(256))
        for attempt in range(ATTEMPTS):
            try:
                self._settle()
                self._send([request])
                self._answer(request)
                break
            except LinkError as error:
                if attempt == ATTEMPTS - 1:
                    raise LinkError(
                        f"no board answers at {self._name} after {ATTEMPTS} attempts ({error}); "
                        f"is it powered, its bitstream loaded, its baud rate {self._line.baudrate}?"
                    ) from error
        return request.sequence

    def _exchange(self, opcode: Opcode, parts: Iterable[tuple[int, int, bytes]]) -> list[bytes]:
        """The answers to requests for (address, words, payload), in order."""
        last = self._open() if self._last is None else self._last
        self._last = None  # an exception leaves answers under way: the next exchange then begins a new session
        requests = (_Request.of(opcode, (last + k) % 256, *part) for k, part in enumerate(parts, 1))
        payloads: list[bytes] = []
        underway: deque[_Request] = deque()
        unsent: list[_Request] = []
        failures = 0
        while True:
            more = list(islice(requests, WINDOW[opcode] - len(underway)))
            underway += more
            unsent += more
            if not underway:
                break
            try:
                self._send(unsent)
                unsent = []
                payloads.append(self._answer(underway[0]))
            except LinkError as error:
                failures += 1
                self.repeats += 1
                if failures == ATTEMPTS:
                    raise LinkError(f"{self._name} failed {ATTEMPTS} times in a row; the last time: {error}") from error
                self._settle()
                unsent = list(underway)
            else:
                underway.popleft()
                failures = 0
        self._last = (last + len(payloads)) % 256
        return payloads

    def _send(self, requests: list[_Request]) -> None:
        try:
            self._line.write(b"".join(request.frame for request in requests))
        except serial.SerialException as error:
            raise LinkError(f"{self._name} takes no data ({error}); is it plugged in?") from error

    def _answer(self, request: _Request) -> bytes:
        """The payload of the answer to ``request``, which must be the next to come."""
        header = self._receive(4 * RESPONSE_HEADER_WORDS)
        response = decode_response(header + self._receive(response_length(header) - len(header)))
        if response.status == Status.BUS_ERROR and response.sequence == request.sequence:
            end = request.address + 4 * request.count
            raise BoardError(
                f"nothing answers at some address of {request.address:#x}..{end:#x}; check the build's csr.json"
            )
        if response.status == Status.UNKNOWN:
            raise BoardError(
                f"the board does not know {request.opcode!r}; build gateware and host from the same sources"
            )
        if response.status != Status.OK or response.sequence != request.sequence:
            raise LinkError(
                f"the board answered {response.status.name} to request {response.sequence} "
                f"instead of OK to {request.sequence}; check the cable and the baud rate"
            )
        if len(response.payload) != request.answer_bytes:
            raise LinkError(f"{len(response.payload)} bytes came instead of {request.answer_bytes}; check the cable")
        return response.payload

    def _receive(self, count: int) -> bytes:
        try:
            received = bytes(self._line.read(count))
        except serial.SerialException as error:
            raise LinkError(f"{self._name} gives no data ({error}); is it plugged in?") from error
        if len(received) != count:
            raise LinkError(
                f"{len(received)} of {count} bytes came within {self._answer_s:.2f} s; check cable and baud rate"
            )
        return received

    def _settle(self) -> None:
        """Wait until the line is silent, so that both ends have forgotten what was cut short."""
        begun = silent_since = time.monotonic()
        try:
            while (now := time.monotonic()) - silent_since < 2 * SILENCE_MS / 1000:
                if now - begun > _NEVER_SILENT_S:
                    raise LinkError(f"{self._name} is never silent for {2 * SILENCE_MS} ms; is it the board's port?")
                if self._line.in_waiting or self._line.out_waiting:
                    self._line.read(self._line.in_waiting)
                    silent_since = now
                time.sleep(SILENCE_MS / 10_000)
        except OSError as error:
            raise LinkError(f"{self._name} failed ({error}); is it plugged in?") from error
