"""A delay of several clocks for wide records, in distributed memory instead of a chain of registers."""

from migen import If, Memory, Module, Signal


class Delay(Module):
    """Delays ``i`` by ``clocks`` (2 or more): ``o`` is what ``i`` was so many clocks ago; 0 before that."""

    def __init__(self, width: int, clocks: int) -> None:
        self.i, self.o = Signal(width), Signal(width)
        memory = Memory(width, clocks - 1, init=[0] * (clocks - 1))
        port = memory.get_port(write_capable=True, async_read=True)
        place = Signal(max=max(2, clocks - 1))
        self.specials += memory, port
        self.comb += [port.adr.eq(place), port.dat_w.eq(self.i), port.we.eq(1)]
        self.sync += [self.o.eq(port.dat_r), If(place == clocks - 2, place.eq(0)).Else(place.eq(place + 1))]
