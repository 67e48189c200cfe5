"""A memory as the host's bus sees it."""

from migen import Signal


class WindowPort:
    """Reads a memory window (`gateware.registers.MEMORIES`). Reading changes nothing.

    Attributes:
        words: 32-bit words in the window.
        address: in, word within the window.  read: in; it is wanted.
        data: out, 32 bits, the word, in the clock after ``read`` only.
    """

    def __init__(self, words: int) -> None:
        self.words = words
        self.address, self.read, self.data = Signal(max=words), Signal(), Signal(32)
