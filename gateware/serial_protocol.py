"""Frames on the serial line between host and board: one table for both ends (`gateware.bridge`, `host.serial_bus`).

A frame is a whole number of 32-bit words, least significant byte first, and its last word is the CRC-32 (zlib's) of
all words before it::

    request     word 0        REQUEST_SYNC | opcode << 16 | sequence << 24
                word 1        words to read or write, 1 to MAX_WORDS; OPEN: 0
                word 2        byte address of the first word; OPEN: 0
                payload       WRITE: the words
                last word     CRC-32

    response    word 0        RESPONSE_SYNC | status << 16 | sequence << 24, the request's sequence
                word 1        words of payload
                payload       READ that went well: the words
                last word     CRC-32

The board executes a request only after its CRC has proved right, and whole or not at all. A request with a wrong CRC,
or one that breaks off (no byte for SILENCE_MS), is dropped; for the first of these the answer is DAMAGED.

Requests carry sequence numbers, modulo 256. OPEN begins a session: the next request has the number after OPEN's. The
board executes request n + 1 after request n, so the host may send several before it has the first one's answer, as long
as their bytes fit RECEIVE_BYTES. A number that is further ahead is OUT_OF_ORDER: one before it was lost. A number of
the last 128 is a repetition, by a host that missed the answer: a WRITE is not executed again, only answered as it was
the first time; a READ is executed again.

A host that misses an answer, or gets one it cannot use, waits until the line has been silent for SILENCE_MS and repeats
everything from the first request that has no answer.
"""

from dataclasses import dataclass
from enum import IntEnum
from zlib import crc32

from profiles.errors import LinkError

REQUEST_SYNC = 0xA5ED
RESPONSE_SYNC = 0x5AED
REQUEST_HEADER_WORDS = 3
RESPONSE_HEADER_WORDS = 2
MAX_WORDS = 256
RECEIVE_BYTES = 4096
SILENCE_MS = 20


class Opcode(IntEnum):
    """What a request asks for."""

    OPEN = 0
    READ = 1
    WRITE = 2


class Status(IntEnum):
    """What became of a request."""

    OK = 0
    BUS_ERROR = 1  # nobody answered at one of the addresses; a WRITE has been done up to there
    DAMAGED = 2  # the CRC or the count is wrong: nothing was done, and the sequence may be wrong too
    OUT_OF_ORDER = 3  # a request before it is missing: nothing was done
    UNKNOWN = 4  # no such opcode: nothing was done


@dataclass(frozen=True)
class Response:
    """An answer whose CRC is right. ``payload`` holds whole words."""

    status: Status
    sequence: int
    payload: bytes


def _frame(*header: int, payload: bytes) -> bytes:
    frame = b"".join(word.to_bytes(4, "little") for word in header) + payload
    return frame + crc32(frame).to_bytes(4, "little")


def encode_request(opcode: int, sequence: int, address: int = 0, count: int = 0, payload: bytes = b"") -> bytes:
    """A request frame. ``count`` words from byte address ``address``; ``payload`` the words of a WRITE."""
    return _frame(REQUEST_SYNC | opcode << 16 | sequence << 24, count, address, payload=payload)


def encode_response(status: int, sequence: int, payload: bytes = b"") -> bytes:
    """A response frame."""
    return _frame(RESPONSE_SYNC | status << 16 | sequence << 24, len(payload) // 4, payload=payload)


def response_length(header: bytes) -> int:
    """Bytes of the whole response that begins with the 8 bytes ``header``.

    Raises:
        LinkError: that is no response's header.
    """
    sync, words = int.from_bytes(header[:2], "little"), int.from_bytes(header[4:8], "little")
    if len(header) != 8 or sync != RESPONSE_SYNC or words > MAX_WORDS:
        raise LinkError(f"{header.hex()} begins no answer of the board; check the port and its baud rate")
    return 4 * (RESPONSE_HEADER_WORDS + words + 1)


def decode_response(frame: bytes) -> Response:
    """The response in a whole frame.

    Raises:
        LinkError: the CRC is wrong, or the status is not defined.
    """
    if crc32(frame[:-4]) != int.from_bytes(frame[-4:], "little"):
        raise LinkError(f"an answer of {len(frame)} bytes fails its CRC; check the cable and the baud rate")
    try:
        return Response(Status(frame[2]), frame[3], frame[8:-4])
    except ValueError as error:
        raise LinkError(
            f"the board answered with status {frame[2]}; gateware and host are of different versions"
        ) from error
