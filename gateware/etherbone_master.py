"""What Etherbone's records ask for, done on the bus: access follows access without a clock between them."""

from liteeth.common import eth_etherbone_mmap_description
from litex.gen import LiteXModule
from litex.soc.interconnect import stream, wishbone
from migen import If, Mux, Signal

TURN_CLOCKS = 64  # a power of two
ANSWERS = 16
_RECORD = [("base_addr", 32), ("count", 8), ("be", 4)]  # what LiteEth's sender wants to know of an answer's record
_ACCESS = stream.EndpointDescription([("addr", 30), ("data", 32)], [*_RECORD, ("we", 1)])
_ANSWER = stream.EndpointDescription([("data", 32)], _RECORD)


class EtherboneMaster(LiteXModule):
    """Does accesses one after the other, and passes on what reads give.

    LiteEth's own takes two clocks more for a word, and lets the bus's answer, which comes late in its clock, reach back
    into FIFOs. Here the bus sees registers and is seen by registers: the next access waits in some, what was read
    leaves by others, and up to `ANSWERS` words wait for the last record's to be on their way.

    After `TURN_CLOCKS` the bus is let go for a clock: other masters get their turn, and a slave whose access the bus's
    time-out has ended sees that it is over. That time-out, which acknowledges and is counted in LiteX's
    ``ctrl_bus_errors``, is also what a bus error is left to, for Etherbone knows none.

    Attributes:
        sink: accesses, as LiteEth's record receiver gives them.
        source: what was read, as LiteEth's record sender wants it.
        bus: a Wishbone master.
    """

    def __init__(self) -> None:
        mmap = eth_etherbone_mmap_description(32)
        self.sink, self.source = sink, source = stream.Endpoint(mmap), stream.Endpoint(mmap)
        self.bus = bus = wishbone.Interface(data_width=32, address_width=32, addressing="word")

        # # #

        following, current, answer = stream.Endpoint(_ACCESS), stream.Endpoint(_ACCESS), stream.Endpoint(_ANSWER)
        self.answers = answers = stream.SyncFIFO(_ANSWER, ANSWERS)
        asking, free, start, room = Signal(), Signal(), Signal(), Signal()
        held = Signal(max=2 * TURN_CLOCKS)
        self.comb += [
            sink.ready.eq(~following.valid),
            free.eq(~asking | bus.ack),
            room.eq(answers.level < ANSWERS - 2),  # for the last answer, for what this one reads, and one more
            start.eq(following.valid & (following.we | room) & ~(asking & held[-1])),
            *[bus.cyc.eq(asking), bus.stb.eq(asking), bus.we.eq(current.we), bus.sel.eq(current.be)],
            *[bus.adr.eq(current.addr), bus.dat_w.eq(current.data)],
            answer.connect(answers.sink),
            answers.source.connect(source),
            *[source.we.eq(1), source.last_be.eq(Mux(source.last, 0b1000, 0))],
        ]
        self.sync += [
            following.valid.eq(Mux(following.valid, ~(free & start), sink.valid)),
            If(~following.valid, *_copy(sink, following, _ACCESS)),
            If(free, asking.eq(start), *_copy(following, current, _ACCESS)),
            If(~asking, held.eq(0)).Elif(~held[-1], held.eq(held + 1)),
            answer.valid.eq(asking & bus.ack & ~bus.we),
            *_copy(current, answer, _ANSWER),
            answer.data.eq(bus.dat_r),
        ]


def _copy(source: stream.Endpoint, target: stream.Endpoint, description: stream.EndpointDescription) -> list:
    names = [name for name, *_ in description.payload_layout + description.param_layout]
    return [getattr(target, name).eq(getattr(source, name)) for name in ("last", *names)]
