"""The far end of a serial line for tests: a pseudo-terminal, a board behind it, and a line between that does harm.

The board is `PythonBoard`, which follows `gateware.serial_protocol` to the letter, or anything else with its ``send``.
"""

import os
import random
import select
import threading
import time
import tty
from collections.abc import Callable
from typing import Protocol, Self
from zlib import crc32

from gateware.serial_protocol import (
    MAX_WORDS,
    REQUEST_HEADER_WORDS,
    REQUEST_SYNC,
    SILENCE_MS,
    Opcode,
    Status,
    encode_response,
)

Harm = Callable[[bytes], bytes]
WORDS = 1 << 14  # of memory, from address 0


class Peer(Protocol):
    """What stands behind the line. ``busy``: it has more to say although nothing comes."""

    busy: bool

    def send(self, line: bytes) -> bytes:
        """Take bytes, return what is answered."""

    def silence(self) -> bytes:
        """No byte came for SILENCE_MS."""


class PythonBoard:
    """A board with nothing but memory. ``written`` lists (address, word) of every write done, in order."""

    busy = False

    def __init__(self) -> None:
        self.memory: dict[int, int] = {}
        self.written: list[tuple[int, int]] = []
        self._line, self._last, self._statuses = b"", 0, [Status.OK] * 256

    def silence(self) -> bytes:
        self._line = b""
        return b""

    def send(self, line: bytes) -> bytes:
        self._line += line
        answers = b""
        while (at := self._line.find(REQUEST_SYNC.to_bytes(2, "little"))) >= 0:
            frame = self._line[at:]
            if len(frame) < 12:
                break
            opcode, count = frame[2], int.from_bytes(frame[4:8], "little")
            if count > MAX_WORDS or (count == 0) != (opcode == Opcode.OPEN):
                self._line = frame[8:]
                answers += encode_response(Status.DAMAGED, frame[3])
                continue
            length = 4 * (REQUEST_HEADER_WORDS + (count if opcode == Opcode.WRITE else 0) + 1)
            if len(frame) < length:
                break
            self._line = frame[length:]
            answers += self._answer(frame[:length])
        return answers

    def _answer(self, frame: bytes) -> bytes:
        opcode, sequence = frame[2], frame[3]
        count, address = int.from_bytes(frame[4:8], "little"), int.from_bytes(frame[8:12], "little")
        ahead = (sequence - self._last) % 256
        if crc32(frame[:-4]) != int.from_bytes(frame[-4:], "little"):
            return encode_response(Status.DAMAGED, sequence)
        if opcode != Opcode.OPEN and 1 < ahead < 128:
            return encode_response(Status.OUT_OF_ORDER, sequence)
        if ahead == 1 or opcode == Opcode.OPEN:
            self._last = sequence
        if opcode == Opcode.READ:
            return self._read(sequence, address, count)
        if opcode == Opcode.WRITE and ahead == 1:
            self._statuses[sequence] = self._write(address, frame[12:-4])
        return encode_response(self._statuses[sequence] if opcode == Opcode.WRITE else Status.OK, sequence)

    def _read(self, sequence: int, address: int, count: int) -> bytes:
        addresses = range(address, address + 4 * count, 4)
        if addresses[-1] >= 4 * WORDS:
            return encode_response(Status.BUS_ERROR, sequence)
        words = (self.memory.get(at, 0).to_bytes(4, "little") for at in addresses)
        return encode_response(Status.OK, sequence, b"".join(words))

    def _write(self, address: int, payload: bytes) -> Status:
        for k in range(0, len(payload), 4):
            if address + k >= 4 * WORDS:
                return Status.BUS_ERROR
            self.memory[address + k] = int.from_bytes(payload[k : k + 4], "little")
            self.written.append((address + k, self.memory[address + k]))
        return Status.OK


class SerialLine:
    """A line to ``peer``, to be opened at ``port``; what goes either way passes through ``harm``."""

    def __init__(self, peer: Peer, harm: Harm = bytes) -> None:
        self._peer, self._harm = peer, harm
        self._master, self._slave = os.openpty()
        tty.setraw(self._master)
        self.port = os.ttyname(self._slave)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop_write, b".")
        self._thread.join()
        for descriptor in (self._master, self._slave, self._stop_read, self._stop_write):
            os.close(descriptor)

    def _run(self) -> None:
        while True:
            wait_s = 0 if self._peer.busy else SILENCE_MS / 1000
            ready, _, _ = select.select([self._master, self._stop_read], [], [], wait_s)
            if self._stop_read in ready:
                return
            line = os.read(self._master, 4096) if ready else b""
            answer = self._peer.send(self._harm(line)) if ready or self._peer.busy else self._peer.silence()
            answer = self._harm(answer)
            while answer:
                answer = answer[os.write(self._master, answer) :]


class Harmful:
    """A line that now and then flips a bit, loses or doubles a byte, adds noise, is late, or goes dead for a while.

    Args:
        rate: harms a byte.
        late_s: the longest delay, seconds.
    """

    def __init__(self, rate: float, seed: int, late_s: float = 0.03) -> None:
        self._rate, self._random, self._late_s, self.harms = rate, random.Random(seed), late_s, 0

    def __call__(self, line: bytes) -> bytes:
        out, chance = bytearray(), self._random
        for byte in line:
            if chance.random() >= self._rate:
                out.append(byte)
                continue
            self.harms += 1
            harm = chance.choice(("flip", "lose", "double", "noise", "late", "dead"))
            if harm == "dead":
                break
            if harm == "late":
                time.sleep(self._late_s * chance.random())
            out += {
                "flip": bytes([byte ^ 1 << chance.randrange(8)]),
                "lose": b"",
                "double": bytes([byte, byte]),
                "noise": bytes([byte]) + chance.randbytes(20),
                "late": bytes([byte]),
            }[harm]
        return bytes(out)
