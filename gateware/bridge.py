"""The board's end of the serial line: checked frames in, Wishbone accesses, checked frames out.

See `gateware.serial_protocol` for the frames and for what happens to damaged and repeated ones.
"""

from litex.gen import LiteXModule
from litex.gen.genlib.misc import WaitTimer
from litex.soc.interconnect import stream, wishbone
from litex.soc.interconnect.csr import CSRStatus
from migen import FSM, Case, Cat, Constant, If, Memory, Module, Mux, NextState, NextValue, Signal
from migen.fhdl.structure import _Statement

from gateware.engine.crc import INITIAL, next_crc
from gateware.serial_protocol import (
    MAX_WORDS,
    RECEIVE_BYTES,
    REQUEST_SYNC,
    RESPONSE_HEADER_WORDS,
    RESPONSE_SYNC,
    SILENCE_MS,
    Opcode,
    Status,
)

_SEQUENCES = 256


class SerialBridge(LiteXModule):
    """Executes the host's requests on the bus, one after the other.

    A word takes about 8 clocks on the bus; the line is what takes time.

    Args:
        phy: ``source`` and ``sink`` carry received bytes and bytes to send, as LiteX's ``RS232PHY``.
        clk_freq: system clock, hertz.
        bus_timeout: clocks after which an access that nobody answers is a bus error; less than the bus's own time-out,
            which would answer with invented data.

    Attributes:
        wishbone: the bus master.
    """

    def __init__(self, phy: Module, clk_freq: float, bus_timeout: int) -> None:
        self.wishbone = wishbone.Interface(data_width=32, address_width=32, addressing="word")
        self._phy = phy

        # # #

        self.fifo = stream.SyncFIFO([("data", 8)], RECEIVE_BYTES, buffered=True)
        self.comb += phy.source.connect(self.fifo.sink)
        self.silence = WaitTimer(clk_freq * SILENCE_MS / 1000)
        self.patience = WaitTimer(bus_timeout)

        self._opcode, self._sequence = Signal(8), Signal(8)
        self._count, self._address = Signal(max=MAX_WORDS + 1), Signal(32)
        self._status, self._answer_words = Signal(8), Signal(max=MAX_WORDS + 1)
        self._index = Signal(max=MAX_WORDS + RESPONSE_HEADER_WORDS + 1)
        self._word, self._byte = Signal(32), Signal(2)
        self._add_memories()
        self._add_crc()
        self.fsm = FSM(reset_state="HUNT")
        self._add_reception()
        self._add_execution()
        self._add_answer()
        self._add_counters()

    def _add_memories(self) -> None:
        """The payload; and which writes met a bus error, by sequence number."""
        buffer, failures = Memory(32, MAX_WORDS), Memory(1, _SEQUENCES)
        self._buffer = buffer.get_port(write_capable=True)
        self._failed = failures.get_port(write_capable=True)
        self.specials += buffer, self._buffer, failures, self._failed
        self.comb += [self._buffer.adr.eq(self._index), self._failed.adr.eq(self._sequence)]

    def _add_crc(self) -> None:
        """One CRC-32 for whichever way words go."""
        self._crc, self._crc_word, self._next_crc, self._check = Signal(32), Signal(32), Signal(32), Signal(32)
        self.comb += [self._next_crc.eq(next_crc(self._crc, self._crc_word)), self._check.eq(~self._crc)]

    def _answer(self, status: Status, words: Signal | int = 0) -> list[_Statement]:
        """Go and send the answer, with that many words of the buffer."""
        return [
            NextValue(self._status, int(status)),
            NextValue(self._answer_words, words),
            NextValue(self._index, 0),
            NextValue(self._crc, INITIAL),
            NextState("ANSWER"),
        ]

    def _add_reception(self) -> None:
        """Bytes to words to a request whose CRC is right."""
        fsm, line = self.fsm, self.fifo.source
        self._within, received, complete = Signal(), Signal(32), Signal()
        within, index = self._within, self._index
        self.comb += [
            received.eq(Cat(self._word[8:], line.data)),
            complete.eq(line.valid & (self._byte == 3)),
            within.eq(fsm.ongoing("HEADER") | fsm.ongoing("PAYLOAD") | fsm.ongoing("CHECK")),
            self.silence.wait.eq(within & ~line.valid),
            If(within, self._crc_word.eq(received)),
        ]
        receive = [
            line.ready.eq(1),
            If(line.valid, NextValue(self._word, received), NextValue(self._byte, self._byte + 1)),
            If(complete, NextValue(self._crc, self._next_crc)),
            If(self.silence.done, NextState("HUNT")),
        ]
        fsm.act(
            "HUNT",
            line.ready.eq(1),
            NextValue(self._crc, INITIAL),
            NextValue(index, 0),
            NextValue(self._byte, 2),
            If(line.valid, NextValue(self._word, received), If(received[16:] == REQUEST_SYNC, NextState("HEADER"))),
        )
        bad_count = (received > MAX_WORDS) | ((received == 0) != (self._opcode == Opcode.OPEN))
        header = {
            0: [NextValue(self._opcode, received[16:24]), NextValue(self._sequence, received[24:])],
            1: [NextValue(self._count, received), If(bad_count, *self._answer(Status.DAMAGED))],
            2: [
                NextValue(self._address, received),
                NextValue(index, 0),
                If(self._opcode == Opcode.WRITE, NextState("PAYLOAD")).Else(NextState("CHECK")),
            ],
        }
        fsm.act("HEADER", *receive, If(complete, NextValue(index, index + 1), Case(index, header)))
        fsm.act(
            "PAYLOAD",
            *receive,
            self._buffer.dat_w.eq(received),
            self._buffer.we.eq(complete),
            If(complete, NextValue(index, index + 1), If(index == self._count - 1, NextState("CHECK"))),
        )
        fsm.act(
            "CHECK",
            *receive,
            NextValue(index, 0),
            If(complete, If(received == self._check, NextState("ORDER")).Else(*self._answer(Status.DAMAGED))),
        )

    def _add_execution(self) -> None:
        """A request in its turn becomes accesses to the bus."""
        fsm, bus, index = self.fsm, self.wishbone, self._index
        last, ahead = Signal(8), Signal(8)
        reads, writes, new, repeated = Signal(), Signal(), Signal(), Signal()
        self.comb += [
            reads.eq(self._opcode == Opcode.READ),
            writes.eq(self._opcode == Opcode.WRITE),
            ahead.eq(self._sequence - last),
            new.eq(ahead == 1),
            repeated.eq((ahead == 0) | ahead[7]),
        ]
        fsm.act(
            "ORDER",
            If(self._opcode == Opcode.OPEN, NextValue(last, self._sequence), *self._answer(Status.OK))
            .Elif(~reads & ~writes, *self._answer(Status.UNKNOWN))
            .Elif(new, NextValue(last, self._sequence), NextState("FETCH"))
            .Elif(~repeated, *self._answer(Status.OUT_OF_ORDER))
            .Elif(reads, NextState("FETCH"))
            .Elif(self._failed.dat_r, *self._answer(Status.BUS_ERROR))
            .Else(*self._answer(Status.OK)),
        )
        fsm.act("FETCH", NextState("ACCESS"))
        failed = Signal()
        self.comb += [
            self.patience.wait.eq(bus.stb),
            bus.adr.eq(self._address[2:]),
            bus.sel.eq(0b1111),
            bus.we.eq(writes),
            bus.dat_w.eq(self._buffer.dat_r),
            self._failed.dat_w.eq(failed),
        ]
        fsm.act(
            "ACCESS",  # the bus answers late in its clock, so that what it says is looked at in the next one
            bus.cyc.eq(1),
            bus.stb.eq(1),
            NextValue(self._word, bus.dat_r),
            NextValue(failed, bus.err | self.patience.done),
            If(bus.ack | bus.err | self.patience.done, NextState("ANSWERED")),
        )
        fsm.act(
            "ANSWERED",
            self._buffer.dat_w.eq(self._word),
            self._buffer.we.eq(~failed & reads),
            self._failed.we.eq(writes),
            If(failed, *self._answer(Status.BUS_ERROR)).Else(
                NextValue(index, index + 1),
                NextValue(self._address, self._address + 4),
                NextState("FETCH"),
                If(index == self._count - 1, *self._answer(Status.OK, Mux(reads, self._count, 0))),
            ),
        )

    def _add_answer(self) -> None:
        """The answer's words one after the other, each byte by byte."""
        fsm, line, index, word = self.fsm, self._phy.sink, self._index, Signal(32)
        last_word = self._answer_words + RESPONSE_HEADER_WORDS
        self.comb += [
            word.eq(self._buffer.dat_r),
            If(index == 0, word.eq(Cat(Constant(RESPONSE_SYNC, 16), self._status, self._sequence))),
            If(index == 1, word.eq(self._answer_words)),
            If(index == last_word, word.eq(self._check)),
            line.data.eq(self._word[:8]),
        ]
        fsm.act(
            "ANSWER",
            self._crc_word.eq(word),
            NextValue(self._crc, self._next_crc),
            NextValue(self._word, word),
            NextValue(self._byte, 0),
            NextState("SEND"),
        )
        fsm.act(
            "SEND",
            line.valid.eq(1),
            self._buffer.adr.eq(index + 1 - RESPONSE_HEADER_WORDS),
            If(
                line.ready,
                NextValue(self._word, self._word >> 8),
                NextValue(self._byte, self._byte + 1),
                If(
                    self._byte == 3,
                    NextValue(index, index + 1),
                    If(index == last_word, NextState("HUNT")).Else(NextState("ANSWER")),
                ),
            ),
        )

    def _add_counters(self) -> None:
        """How good the line is, for whoever looks."""
        self._damaged = CSRStatus(
            32, description="Requests dropped since reset: wrong CRC or count, or broken off. Modulo 2^32."
        )
        self._lost_bytes = CSRStatus(
            32, description="Bytes lost since reset because the receive FIFO was full. Modulo 2^32."
        )
        source, refused = self._phy.source, self.fsm.before_entering("ANSWER") | self.silence.done
        self.sync += [
            If(self._within & refused, self._damaged.status.eq(self._damaged.status + 1)),
            If(source.valid & ~self.fifo.sink.ready, self._lost_bytes.status.eq(self._lost_bytes.status + 1)),
        ]
