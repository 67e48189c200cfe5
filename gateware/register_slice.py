"""Registers between a bus master and the bus, for a master that has no time left in its clock."""

from litex.soc.interconnect import wishbone
from migen import If, Module, Signal


class RegisterSlice(Module):
    """Passes on one access at a time; request and answer each take a clock more.

    For masters that know no bus error, such as LiteEth's Etherbone: one is left to the bus's own time-out, which
    acknowledges and is counted in LiteX's ``ctrl_bus_errors``.

    Attributes:
        master: a Wishbone slave, for the master. bus: a Wishbone master, for the bus.
    """

    def __init__(self) -> None:
        self.master = master = wishbone.Interface(data_width=32, address_width=32, addressing="word")
        self.bus = bus = wishbone.Interface(data_width=32, address_width=32, addressing="word")

        # # #

        asking, answered = Signal(), Signal()
        self.comb += [
            bus.cyc.eq(asking),
            bus.stb.eq(asking),
            master.ack.eq(answered),
        ]
        self.sync += [
            answered.eq(asking & bus.ack),
            master.dat_r.eq(bus.dat_r),
            If(asking, asking.eq(~bus.ack)).Elif(
                master.cyc & master.stb & ~answered,
                asking.eq(1),
                *[getattr(bus, name).eq(getattr(master, name)) for name in ("adr", "dat_w", "sel", "we")],
            ),
        ]
