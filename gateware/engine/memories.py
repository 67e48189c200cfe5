"""The engine's memories that the host fills, and their windows on the host's bus."""

from litex.soc.interconnect import wishbone
from migen import Case, If, Memory, Module, Mux, Signal
from migen.fhdl.structure import _Value

from gateware.engine.crc import INITIAL, next_crc
from gateware.engine.window import WindowPort


class LaneMemory(Module):
    """A wide memory of 32-bit lanes: the host writes and reads words, the engine reads all lanes of a line at once.

    Args:
        lanes: words of a line, a power of two. lines: how many.

    Attributes:
        window: `WindowPort` for the host. write, write_data: in, write a word at the window's address.
        line, read: in, which line to read; without ``read`` the output stays. data: out, the line, one clock later.
    """

    def __init__(self, lanes: int, lines: int) -> None:
        self.window = WindowPort(lanes * lines, follows=True)
        self.write, self.write_data = Signal(), Signal(32)
        self.line, self.read, self.data = Signal(max=max(2, lines)), Signal(), Signal(32 * lanes)

        # # #

        lane_bits = lanes.bit_length() - 1
        lane, late_lane = Signal(max=max(2, lanes)), Signal(max=max(2, lanes))
        self.comb += lane.eq(self.window.address[:lane_bits])
        self.sync += late_lane.eq(lane)
        outputs = {}
        for k in range(lanes):
            memory = Memory(32, lines)
            host, engine = memory.get_port(write_capable=True), memory.get_port(has_re=True)
            self.specials += memory, host, engine
            self.comb += [
                host.adr.eq(self.window.address[lane_bits:]),
                host.dat_w.eq(self.write_data),
                host.we.eq(self.write & (lane == k)),
                engine.adr.eq(self.line),
                engine.re.eq(self.read),
                self.data[32 * k : 32 * k + 32].eq(engine.dat_r),
            ]
            outputs[k] = self.window.data.eq(host.dat_r)
        self.comb += Case(late_lane, outputs)


class BusWindow(Module):
    """A Wishbone slave in front of a `WindowPort`; beyond its end it answers with an error.

    An access takes three clocks; with ``look_ahead`` two, where it is to the word after that of the last one.

    Args:
        window: what it shows.
        look_ahead: have that word ready; for windows that follow their address.
        write, write_data: where a write goes; None where the host may not write, and then a write is an error too.
    """

    def __init__(
        self,
        window: WindowPort,
        look_ahead: bool,
        write: Signal | None = None,
        write_data: Signal | None = None,
    ) -> None:
        self.bus = bus = wishbone.Interface(data_width=32, address_width=32, addressing="word")

        # # #

        asked, answering, valid, good = Signal(), Signal(), Signal(), Signal()
        address, data, writes = Signal(22), Signal(32), Signal()  # the windows are 2^24 bytes apart
        new, met, quick = bus.cyc & bus.stb & ~asked & ~answering, 0, 0
        if look_ahead:
            met, quick = Signal(), Signal()
            self._look_ahead(window, write is not None, address, (new, asked, met, quick))
        else:
            self.comb += window.address.eq(address)
        self.comb += [
            window.read.eq(asked & ~writes),
            valid.eq((address < window.words) & ((write is not None) | ~writes)),
            bus.dat_r.eq(window.data),
            bus.ack.eq(answering & good & bus.cyc & bus.stb),
            bus.err.eq(answering & ~good & bus.cyc & bus.stb),
        ]
        self.sync += [  # the bus comes late in its clock, and an answer has far to go
            asked.eq(new & ~met if look_ahead else new),
            *[address.eq(bus.adr), data.eq(bus.dat_w), writes.eq(bus.we)],
            answering.eq(asked | met if look_ahead else asked),
            good.eq(valid | met if look_ahead else valid),
        ]
        if write is not None:
            done = (asked & valid | quick) & writes if look_ahead else asked & writes & valid
            self.comb += [write.eq(done), write_data.eq(data)]

    def _look_ahead(
        self, window: WindowPort, may_write: bool, address: Signal, steps: tuple[_Value, Signal, Signal, Signal]
    ) -> None:
        """Show the expected word while no other is asked for; a new access that is to it is ``met`` at once."""
        new, asked, met, quick = steps
        expected, exists = Signal(22), Signal()
        self.comb += [
            met.eq(new & exists & (self.bus.adr[:22] == expected) & (may_write | ~self.bus.we)),
            window.address.eq(Mux(asked | quick, address, expected)),
        ]
        self.sync += [
            quick.eq(met),
            If(asked | quick, expected.eq(address + 1), exists.eq(address < window.words - 1)),
        ]


class Checker(Module):
    """CRC-32 of the first words of a memory, a word a clock.

    Attributes:
        start: in, pulse. words: in, how many; 0 ends at once.
        address: out; word: in, one clock later.
        done: out, pulse. crc: out, latched until start.
    """

    def __init__(self, address_bits: int) -> None:
        self.start, self.words, self.done = Signal(), Signal(address_bits + 1), Signal()
        self.address, self.word, self.crc = Signal(address_bits), Signal(32), Signal(32)

        # # #

        remainder, asked, running, present = Signal(32), Signal(address_bits + 1), Signal(), Signal()
        self.comb += [
            self.address.eq(asked),
            self.crc.eq(~remainder),
            self.done.eq(running & ~present & (asked == self.words)),
        ]
        self.sync += [
            present.eq(running & (asked != self.words)),
            If(running & (asked != self.words), asked.eq(asked + 1)),
            If(present, remainder.eq(next_crc(remainder, self.word))),
            If(self.done, running.eq(0)),
            If(self.start, asked.eq(0), running.eq(1), remainder.eq(INITIAL), present.eq(0)),
        ]
