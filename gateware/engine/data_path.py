"""Commands and data to the DFI, and what comes back: write data, comparison, capture.

Commands wait for the pattern source, so that a burst's data are ready when its command goes out. Reads come back in
order; their right data wait for them in a small FIFO.
"""

from functools import reduce
from operator import or_

from litedram.phy import dfi
from migen import Cat, If, Memory, Module, Record, Replicate, Signal
from migen.genlib.fifo import SyncFIFO

from gateware import isa
from gateware.engine.banks import DataCommand
from gateware.engine.delay import Delay
from gateware.engine.fields import ADDRESS_BITS, BANK_BITS, SlotCommand
from gateware.engine.parameters import EngineParameters
from gateware.engine.patterns import LATENCY, PatternSource
from gateware.engine.window import WindowPort
from gateware.isa import Command

_A10 = 10  # auto precharge, precharge all, long calibration
# command → (ras, cas, we), active high; JESD79-3F, table 6
_PINS = {
    Command.ACT: (1, 0, 0),
    Command.RD: (0, 1, 0),
    Command.WR: (0, 1, 1),
    Command.PRE: (1, 0, 1),
    Command.PREA: (1, 0, 1),
    Command.REF: (1, 1, 0),
    Command.ZQCS: (0, 0, 1),
    Command.ZQCL: (0, 0, 1),
    Command.MRS: (1, 1, 1),
}


def _pins(phase: Record, slot: SlotCommand, bank_bits: int) -> list:
    """Drive one DFI phase with a slot's command."""
    cases = []
    for command, (ras, cas, we) in _PINS.items():
        a10 = {Command.PREA: 1, Command.ZQCL: 1, Command.RD: slot.auto_precharge, Command.WR: slot.auto_precharge}
        moves_data = command in (Command.RD, Command.WR)
        column = Cat(slot.address[:_A10], a10.get(command, 0), slot.address[_A10:])
        row_or_none = slot.address if command in (Command.ACT, Command.MRS) else a10.get(command, 0) << _A10
        cases.append(
            If(
                slot.command == int(command),
                phase.ras_n.eq(not ras),
                phase.cas_n.eq(not cas),
                phase.we_n.eq(not we),
                phase.address.eq(column if moves_data else row_or_none),
                phase.rddata_en.eq(command == Command.RD),
                phase.wrdata_en.eq(command == Command.WR),
            )
        )
    ranks = len(phase.cs_n)
    to_all = reduce(or_, [slot.command == int(c) for c in (Command.PREA, Command.REF, Command.ZQCS, Command.ZQCL)])
    chosen = [slot.bank[bank_bits:] == rank for rank in range(ranks)] if ranks > 1 else [1]
    select = [phase.cs_n[rank].eq(~(to_all | chosen[rank])) for rank in range(ranks)]
    return [*cases, If(slot.command != 0, *select), phase.bank.eq(slot.bank[:bank_bits])]


class ReadBurst(Record):
    """A READ whose data are back: where it was, and the settings that were in force."""

    def __init__(self) -> None:
        flags = [("compare", 1), ("capture", 1)]
        places = [("bank", BANK_BITS), ("row", ADDRESS_BITS), ("burst", ADDRESS_BITS)]
        Record.__init__(self, [*flags, *places, ("counters", 4), ("row_base", ADDRESS_BITS)])


class DataPath(Module):
    """See the module's text.

    Attributes:
        start: in, pulse; a program starts.
        issued, refresh, data: in, from `gateware.engine.banks.Banks`. idle_refresh: in, REF outside program time.
        taken: in; the DFI is the engine's.
        dfi: out, the engine's DFI.
        buffer_address, buffer_read, buffer_data: as `PatternSource`'s.
        compared: out; `burst`, `flips` and `right` hold a compared READ in this clock.
        captured: out, bursts captured since start. capture_window: `WindowPort` to them.
        capture_address, capture_word: in, out one clock later; to check them while nothing is captured.
        in_flight: out, READs between `data` and `compared`.
    """

    def __init__(self, parameters: EngineParameters) -> None:
        g, ranks = parameters.geometry, parameters.ranks
        address_bits = max((g.rows - 1).bit_length(), g.columns.bit_length(), _A10 + 1)
        bank_bits = (g.banks // ranks - 1).bit_length()
        self.start, self.refresh, self.idle_refresh, self.taken = Signal(), Signal(), Signal(), Signal()
        self.issued, self.data = [SlotCommand() for _ in range(isa.SLOTS)], DataCommand()
        self.dfi = dfi.Interface(address_bits, bank_bits, ranks, g.burst_bits // parameters.nphases, parameters.nphases)
        self.submodules.patterns = patterns = PatternSource(parameters)
        self.buffer_address, self.buffer_read = patterns.buffer_address, patterns.buffer_read
        self.buffer_data = patterns.buffer_data
        self.compared, self.burst = Signal(), ReadBurst()
        self.flips, self.right = Signal(g.burst_bits), Signal(g.burst_bits)
        self.in_flight = Signal(16)

        # # #

        self._parameters, self._bank_bits = parameters, bank_bits
        self.comb += patterns.data.eq(self.data)
        self._right = Signal(g.burst_bits)  # of the data command that is on the DFI
        self.sync += self._right.eq(patterns.words)
        self._add_commands()
        self._add_writes()
        self._add_reads()
        self._add_capture()

    def _add_commands(self) -> None:
        slots = [SlotCommand() for _ in self.issued]
        refresh = Signal()
        now = Cat(*[slot.raw_bits() for slot in self.issued], self.refresh | self.idle_refresh)
        self.submodules.commands = delay = Delay(len(now), LATENCY)
        self.comb += [delay.i.eq(now), Cat(*[slot.raw_bits() for slot in slots], refresh).eq(delay.o)]
        for number, phase in enumerate(self.dfi.phases):
            chosen = SlotCommand()
            self.comb += [If((slot.command != 0) & (slot.phase == number), chosen.eq(slot)) for slot in slots]
            if number == 0:
                self.comb += If(refresh, chosen.command.eq(int(Command.REF)))
            self.sync += [
                phase.ras_n.eq(1),
                phase.cas_n.eq(1),
                phase.we_n.eq(1),
                phase.cs_n.eq(Replicate(1, len(phase.cs_n))),
                phase.rddata_en.eq(0),
                phase.wrdata_en.eq(0),
                *_pins(phase, chosen, self._bank_bits),
            ]
            self.comb += [
                phase.cke.eq(Replicate(1, len(phase.cke))),
                phase.odt.eq(Replicate(1, len(phase.odt))),
                phase.reset_n.eq(1),
            ]

    def _add_writes(self) -> None:
        """WRITE data follow their command by the PHY's write latency."""
        data = self._right
        for _ in range(self._parameters.write_latency):
            late = Signal.like(data)
            self.sync += late.eq(data)
            data = late
        self.comb += Cat(*[phase.wrdata for phase in self.dfi.phases]).eq(data)

    def _add_reads(self) -> None:
        sent, burst = Signal(), ReadBurst()
        here = ReadBurst()
        self.comb += [getattr(here, name).eq(getattr(self.data, name)) for name, *_ in here.layout]
        self.submodules.places = delay = Delay(1 + len(here), LATENCY + 1)
        depth = 1 << (self._parameters.read_latency + 4).bit_length()
        self.submodules.waiting = waiting = SyncFIFO(len(burst) + len(self._right), depth)
        back = Signal()
        returned, got = self.dfi.phases[0].rddata_valid, Signal.like(self.right)
        self.comb += [
            delay.i.eq(Cat(self.data.read, here.raw_bits())),
            Cat(sent, burst.raw_bits()).eq(delay.o),
            waiting.we.eq(sent),
            waiting.din.eq(Cat(burst.raw_bits(), self._right)),
            waiting.re.eq(returned & self.taken),
            self.flips.eq(got ^ self.right),
            self.compared.eq(back & self.burst.compare),
        ]
        self._back, self._got = back, got
        self.sync += [
            back.eq(waiting.re & waiting.readable),
            If(
                waiting.re,
                got.eq(Cat(*[phase.rddata for phase in self.dfi.phases])),
                Cat(self.burst.raw_bits(), self.right).eq(waiting.dout),
            ),
            self.in_flight.eq(self.in_flight + self.data.read - back),
        ]

    def _add_capture(self) -> None:
        p = self._parameters
        words = p.geometry.burst_bits // 32
        lane_bits = words.bit_length() - 1
        self.captured = Signal(max=p.buffer_bursts + 1)
        self.capture_address, self.capture_word = Signal(max=p.buffer_bursts * words), Signal(32)
        self.capture_window = window = WindowPort(p.buffer_bursts * words, follows=True)
        store, lane, host_lane = Signal(), Signal(max=words), Signal(max=words)
        self.comb += store.eq(self._back & self.burst.capture)
        self.sync += [
            If(store, self.captured.eq(self.captured + 1)),
            If(self.start, self.captured.eq(0)),
            lane.eq(self.capture_address),
            host_lane.eq(window.address),
        ]
        for w in range(words):
            memory = Memory(32, p.buffer_bursts)
            engine, host = memory.get_port(write_capable=True), memory.get_port()
            self.specials += memory, engine, host
            self.comb += [
                engine.adr.eq(self.capture_address >> lane_bits),
                If(store, engine.adr.eq(self.captured)),
                engine.dat_w.eq(self._got[32 * w : 32 * w + 32]),
                engine.we.eq(store),
                host.adr.eq(window.address >> lane_bits),
                If(lane == w, self.capture_word.eq(engine.dat_r)),
                If(host_lane == w, window.data.eq(host.dat_r)),
            ]
