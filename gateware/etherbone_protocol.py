"""Etherbone over UDP as LiteEth's core speaks it, and as host and gateware here use it.

A datagram is one packet, a packet one record; every word is big-endian, addresses are byte addresses::

    word 0      magic 0x4E6F, version and flags (probe 1, probe reply 2, no reads 4), address and port size 32 bits
    word 1      0, so that the record is aligned to 64 bits
    word 2      byte enables << 16 | writes << 8 | reads
    if writes   the address of the first, then the words to write to it and to the addresses after it
    if reads    a tag (Etherbone's "base return address"), then the address of each word to read

The core does the writes, then the reads, and answers the reads with a record of as many writes to the address that the
tag is: their words. It answers no record without reads, from and to its own UDP port whatever the host's is, and in
the order in which records came. It knows neither sequence numbers nor a check of its own, nor bus errors: an access
that nobody answers ends with the bus's time-out, gives 0xFFFFFFFF, and counts in LiteX's ``ctrl_bus_errors``.

So a request here always ends with a read of that counter: its tag matches answer and request, its arrival says that
what stands before it has been done, and its value whether something answered at every address.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from gateware.registers import BUS_ERRORS

PORT = 1234  # LiteX's default
MAGIC = 0x4E6F1044  # with version 1, no flags, and both sizes
PROBE, PROBE_REPLY = 0x100, 0x200  # flags of word 0
FLAGS = 0x700
HEADER_WORDS = 3  # words 0 to 2
MAX_WORDS = 250  # of data in a request; its packet has at most PACKET_WORDS then, which the core's FIFOs hold
PACKET_WORDS = 256
RECEIVE_PACKETS = 8  # the longest requests that the gateware keeps while it executes one

Packets = npt.NDArray[Any]  # ">u4"[packets, words]

_PACKET = np.dtype(">u4")


def probe(reply: bool = False) -> bytes:
    """A probe, or the answer to one. The core's FIFO wants a word after the header."""
    words = (MAGIC | (PROBE_REPLY if reply else PROBE), 0, 0)
    return np.array(words, _PACKET).tobytes()


def read_requests(address: int, count: int, words: int) -> Packets:
    """``count`` requests for ``words`` consecutive words each, from ``address`` on; their tags (`tag_word`) are 0."""
    packets = np.zeros((count, HEADER_WORDS + 1 + words + 1), _PACKET)
    packets[:, 0], packets[:, 2] = MAGIC, 0x0F0000 | words + 1
    first = HEADER_WORDS + 1
    packets[:, first:-1] = address + 4 * np.arange(count * words, dtype=np.uint32).reshape(count, words)
    packets[:, -1] = BUS_ERRORS
    return packets


def write_requests(address: int, data: npt.NDArray[np.uint32]) -> Packets:
    """Requests that write the rows of uint32[requests, words] one after the other; their tags (`tag_word`) are 0."""
    count, words = data.shape
    packets = np.zeros((count, HEADER_WORDS + 1 + words + 2), _PACKET)
    packets[:, 0], packets[:, 2] = MAGIC, 0x0F0000 | words << 8 | 1
    packets[:, HEADER_WORDS] = address + 4 * words * np.arange(count, dtype=np.uint32)
    packets[:, HEADER_WORDS + 1 : -2] = data
    packets[:, -1] = BUS_ERRORS
    return packets


def tag_word(reads: int) -> int:
    """Where the tag of a request for ``reads`` words stands, counted from the packet's end."""
    return -(reads + 1)


def answer(tag: int, words: npt.NDArray[np.uint32]) -> bytes:
    """The answer to a request: the words that it asked for, the counter's included."""
    packet = np.empty(HEADER_WORDS + 1 + words.size, _PACKET)
    packet[:4] = MAGIC, 0, 0x0F0000 | words.size << 8, tag
    packet[4:] = words
    return packet.tobytes()
