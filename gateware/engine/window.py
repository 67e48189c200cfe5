"""A memory as the host's bus sees it."""

from migen import Signal


class WindowPort:
    """Reads a memory window (`gateware.registers.MEMORIES`). Reading changes nothing.

    Attributes:
        words: 32-bit words in the window.
        follows: whether ``data`` follows ``address`` without ``read``, as a port that nobody else uses may let it.
        address: in, word within the window.  read: in; it is wanted.
        data: out, 32 bits, the word, in the clock after ``read`` only, or after each where it follows.
    """

    def __init__(self, words: int, follows: bool) -> None:
        self.words, self.follows = words, follows
        self.address, self.read, self.data = Signal(max=words), Signal(), Signal(32)
