"""A short FIFO of records, in distributed RAM."""

from migen import Module, Record, Signal
from migen.genlib.fifo import SyncFIFO


class Queue(Module):
    """A record put into an empty queue is at its head one clock later.

    Attributes:
        tail, put: in, a record comes; not without `room`, which tells of a queue that is not quite full yet.
        head: out, the record that came first, valid while `waiting`.  take: in, it goes.
    """

    def __init__(self, layout: list[tuple[str, int]], depth: int) -> None:
        self.tail, self.put, self.room = Record(layout), Signal(), Signal()
        self.head, self.waiting, self.take = Record(layout), Signal(), Signal()

        # # #

        self.submodules.fifo = fifo = SyncFIFO(len(self.tail.raw_bits()), depth)
        self.comb += [
            fifo.din.eq(self.tail.raw_bits()),
            fifo.we.eq(self.put),
            self.head.raw_bits().eq(fifo.dout),
            self.waiting.eq(fifo.readable),
            fifo.re.eq(self.take),
        ]
        self.sync += self.room.eq(fifo.level <= depth - 2)  # a clock late, when one more may have come
