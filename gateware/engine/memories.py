"""The engine's memories that the host fills, and their windows on the host's bus."""

from litex.soc.interconnect import wishbone
from migen import Case, If, Memory, Module, Signal

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

    An access takes three clocks; where the window follows its address, and the access is to the word after that of the
    last one, two: that word is looked at ahead.

    Args:
        window: what it shows.
        write, write_data: where a write goes; None where the host may not write, and then a write is an error too.
    """

    def __init__(self, window: WindowPort, write: Signal | None = None, write_data: Signal | None = None) -> None:
        self.bus = bus = wishbone.Interface(data_width=32, address_width=32, addressing="word")

        # # #

        new, asked, answering, valid, good = Signal(), Signal(), Signal(), Signal(), Signal()
        address, data, writes = Signal(22), Signal(32), Signal()  # the windows are 2^24 bytes apart
        expected, exists, met, quick = Signal(22), Signal(), Signal(), Signal()
        may_write = write is not None
        self.comb += [
            new.eq(bus.cyc & bus.stb & ~asked & ~answering),
            window.address.eq(address),
            window.read.eq(asked & ~writes),
            valid.eq((address < window.words) & (may_write | ~writes)),
            bus.dat_r.eq(window.data),
            bus.ack.eq(answering & good & bus.cyc & bus.stb),
            bus.err.eq(answering & ~good & bus.cyc & bus.stb),
        ]
        if window.follows:
            self.comb += [
                met.eq(new & exists & (bus.adr[:22] == expected) & (may_write | ~bus.we)),
                If(~asked & ~quick, window.address.eq(expected)),
            ]
        self.sync += [  # the bus comes late in its clock, and an answer has far to go
            asked.eq(new & ~met),
            quick.eq(met),
            *[address.eq(bus.adr), data.eq(bus.dat_w), writes.eq(bus.we)],
            answering.eq(asked | met),
            good.eq(valid | met),
            If(asked | quick, expected.eq(address + 1), exists.eq(address < window.words - 1)),
        ]
        if may_write:
            self.comb += [write.eq((asked & valid | quick) & writes), write_data.eq(data)]


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
