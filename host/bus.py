"""The one protocol between host and board: read and write 32-bit words at addresses, in bulk.

Mock, simulated and real boards differ in their bus and in nothing above it.
"""

import threading
import time
from typing import Protocol

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]


class Bus(Protocol):
    """A link to a board. Addresses are byte addresses of 32-bit words."""

    def read(self, address: int, count: int) -> Words:
        """``count`` consecutive words from ``address``, uint32[count].

        Raises:
            LinkError: the board did not answer, or its answer failed its check. Never invented data.
        """

    def write(self, address: int, words: Words) -> None:
        """Write consecutive words from ``address``; returns once the board has taken them.

        Raises:
            UnacknowledgedError: the board did not acknowledge a write that may not be repeated: see what it did.
            LinkError: the board did not acknowledge.
        """

    def close(self) -> None:
        """Release the link; a second call does nothing."""


class SharedBus:
    """A bus that several threads use, one transfer at a time, and long transfers in pieces.

    Args:
        bus: that is shared.
        piece_words: after which others have their turn; 4096 words take 0.2 s at 921.6 kbaud.

    Attributes:
        shared: the bus behind it.
    """

    def __init__(self, bus: Bus, piece_words: int = 4096) -> None:
        self.shared, self._piece, self._turn = bus, piece_words, threading.Lock()

    def read(self, address: int, count: int) -> Words:
        """See `Bus.read`."""
        parts = []
        for start in range(0, count, self._piece):
            with self._turn:
                parts.append(self.shared.read(address + 4 * start, min(self._piece, count - start)))
        return np.concatenate(parts) if parts else np.empty(0, np.uint32)

    def write(self, address: int, words: Words) -> None:
        """See `Bus.write`."""
        for start in range(0, words.size, self._piece):
            with self._turn:
                self.shared.write(address + 4 * start, words[start : start + self._piece])

    def close(self) -> None:
        """See `Bus.close`."""
        with self._turn:
            self.shared.close()


class TimedBus:
    """A bus, and the time that it takes.

    Attributes:
        bus: the bus behind it.
        seconds: spent in reads and writes, by the clock.
        words: read and written.
    """

    def __init__(self, bus: Bus) -> None:
        self.bus, self.seconds, self.words = bus, 0.0, 0

    def read(self, address: int, count: int) -> Words:
        """See `Bus.read`."""
        begun = time.perf_counter()
        try:
            return self.bus.read(address, count)
        finally:
            self.seconds += time.perf_counter() - begun
            self.words += count

    def write(self, address: int, words: Words) -> None:
        """See `Bus.write`."""
        begun = time.perf_counter()
        try:
            self.bus.write(address, words)
        finally:
            self.seconds += time.perf_counter() - begun
            self.words += words.size

    def close(self) -> None:
        """See `Bus.close`."""
        self.bus.close()
