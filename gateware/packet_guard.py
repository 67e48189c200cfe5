"""Between Ethernet and whoever believes every packet: whole packets alone get through, and only flawless ones."""

from litex.gen import LiteXModule
from litex.soc.interconnect import stream
from litex.soc.interconnect.csr import CSRStatus
from migen import Cat, If, Memory, Mux, Signal


class PacketGuard(LiteXModule):
    """Takes packets as fast as they come and keeps them until they are taken; drops those that it may not pass on.

    LiteEth marks a frame with a wrong FCS in its last word, when the words before it have been used, and a stream that
    is not taken fast enough loses words from the middle of a frame. Here such a packet is dropped as a whole, and so is
    one that there is no room for, or whose length is no whole number of words.

    Args:
        description: of the stream: ``data`` of 32 bits, ``error`` and ``last_be``, and a parameter ``length`` in bytes.
        words: of memory, a power of two.
        packets: that may wait, at most.

    Attributes:
        sink: always ready. source: one word a clock.
    """

    def __init__(self, description: stream.EndpointDescription, words: int, packets: int) -> None:
        self.sink, self.source = sink, source = stream.Endpoint(description), stream.Endpoint(description)
        self._dropped = CSRStatus(
            32, description="Packets dropped since reset: wrong FCS, no room, or odd length. Modulo 2^32."
        )

        # # #

        parameters = stream.EndpointDescription([], description.param_layout)
        waiting = stream.SyncFIFO(parameters, packets)
        memory = Memory(33, words)
        write, read = memory.get_port(write_capable=True), memory.get_port()
        self.submodules += waiting
        self.specials += memory, write, read

        # positions have one bit more than addresses, so that full differs from empty
        written, kept, taken, next_taken = (Signal(max=2 * words) for _ in range(4))
        full, flawed, spoilt, passes = Signal(), Signal(), Signal(), Signal()
        self.comb += [
            sink.ready.eq(1),
            full.eq(written - taken == words),
            flawed.eq(spoilt | full | (sink.error != 0) | (sink.length[:2] != 0) | ~waiting.sink.ready),
            passes.eq(sink.valid & sink.last & ~flawed),
            write.adr.eq(written),
            write.dat_w.eq(Cat(sink.data, sink.last)),
            write.we.eq(sink.valid & ~full),
            waiting.sink.valid.eq(passes),
            *[getattr(waiting.sink, name).eq(getattr(sink, name)) for name, *_ in description.param_layout],
        ]
        self.sync += If(
            sink.valid,
            written.eq(written + 1),
            spoilt.eq(flawed & ~sink.last),
            If(flawed, written.eq(kept)),
            If(passes, kept.eq(written + 1)),
            If(sink.last & flawed, self._dropped.status.eq(self._dropped.status + 1)),
        )

        there = Signal()
        self.comb += [
            next_taken.eq(taken + (there & source.ready)),
            read.adr.eq(next_taken),
            source.valid.eq(there),
            source.data.eq(read.dat_r[:32]),
            source.last.eq(read.dat_r[32]),
            source.last_be.eq(Mux(source.last, 0b1000, 0)),
            waiting.source.ready.eq(there & source.ready & source.last),
            *[getattr(source, name).eq(getattr(waiting.source, name)) for name, *_ in description.param_layout],
        ]
        self.sync += [taken.eq(next_taken), there.eq(next_taken != kept)]
