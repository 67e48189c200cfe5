"""An SMBus (I2C) master for whole transactions: write or read a byte or a word of a device's command, or read a block.

Bit timing, clock stretching and bus recovery are done here, so that the host pays one register access a transaction,
and nobody leaves the bus half way. LiteX's bit-banged master does not see a device stretch the clock, which PMBus
controllers do.
"""

from enum import IntEnum
from functools import reduce
from operator import or_

from litex.gen import LiteXModule
from litex.gen.genlib.misc import WaitTimer
from litex.soc.interconnect.csr import CSRField, CSRStatus, CSRStorage
from migen import FSM, Case, Cat, If, Mux, NextState, NextValue, Record, Signal
from migen.fhdl.specials import Tristate
from migen.fhdl.structure import _Statement
from migen.genlib.cdc import MultiReg

BUS_FREQUENCY = 100e3
STRETCH_MS = 35  # SMBus 3.1: no device holds the clock low for longer
BLOCK_BYTES = 32  # SMBus 2.0: no block is longer
STORE_COMMANDS = (0x11, 0x13, 0x15, 0x17)  # PMBus STORE_DEFAULT_ALL, _CODE, STORE_USER_ALL, _CODE: they are for good
_REFUSED = 3


class SMBusStatus(IntEnum):
    """How a transaction ended."""

    OK = 0
    NOT_ACKNOWLEDGED = 1  # no such device, or it refuses the command
    STUCK = 2  # a line is held low, or another master is at work


# Steps of a transaction. A read starts again at _LOW, and has the address once more at _HIGH.
_START, _ADDRESS, _COMMAND, _LOW, _HIGH, _READ_LOW, _READ_HIGH = range(7)
_BITS = 9  # of a byte, with its acknowledge


def is_store(command: Signal) -> Signal:
    """A PMBus command that stores into non-volatile memory: never sent."""
    return reduce(or_, [command == store for store in STORE_COMMANDS])


class SMBusMaster(LiteXModule):
    """Runs one transaction at a time; a word write takes about 0.5 ms, a word read 0.7 ms.

    Args:
        clk_freq: system clock, hertz.

    Attributes:
        start: in, pulse.
        wanted: in, 34 bits, to hold until ``done``: data to write (16), command (8), address of the device (7), word
            (1: two data bytes, low one first; 0: one), read (1), block (1: with read, as many bytes as the first says).
        busy: out. done: out, pulse.
        status: out, `SMBusStatus` of the last transaction, latched until the next start.
        read_data: out, 16 bits, likewise; a byte read leaves the upper half 0. Of a block: length and last byte.
        block: out, `BLOCK_BYTES` bytes, likewise; the last byte that was read is the uppermost.
        scl, sda: out, 0 pulls the line low, 1 lets go. scl_in, sda_in: in, the lines.
    """

    def __init__(self, clk_freq: float) -> None:
        self.start, self.wanted = Signal(), Signal(34)
        self.busy, self.done = Signal(), Signal()
        self.status, self.read_data = Signal(2), Signal(16)
        self.block = Signal(8 * BLOCK_BYTES)
        self.scl, self.sda = Signal(reset=1), Signal(reset=1)
        self.scl_in, self.sda_in = Signal(reset=1), Signal(reset=1)

        # # #

        self._data, self._command, self._address = self.wanted[:16], self.wanted[16:24], self.wanted[24:31]
        self._word, self._read = self.wanted[31], self.wanted[32]
        self._reads_block = self.wanted[32] & self.wanted[33]
        self._scl_seen, self._sda_seen = Signal(reset=1), Signal(reset=1)
        self.specials += [
            MultiReg(self.scl_in, self._scl_seen, reset=1),
            MultiReg(self.sda_in, self._sda_seen, reset=1),
        ]
        self._step, self._bit = Signal(3), Signal(max=_BITS)
        self.fsm = FSM(reset_state="IDLE")
        self._add_quarters(round(clk_freq / BUS_FREQUENCY / 4))
        self.patience = WaitTimer(clk_freq * STRETCH_MS / 1000)
        self.comb += self.patience.wait.eq(self._stretched)
        self._add_states()

    def connect(self, pads: Record) -> None:
        """Drive open-drain pads ``scl`` and ``sda``."""
        self.specials += [
            Tristate(pads.scl, 0, ~self.scl, self.scl_in),
            Tristate(pads.sda, 0, ~self.sda, self.sda_in),
        ]

    def _add_quarters(self, clocks: int) -> None:
        """A bit takes four quarters; one in which the clock should be high waits until it is."""
        timer, was_busy = Signal(max=clocks), Signal()
        self._quarter, self._tick, self._stretched = Signal(2), Signal(), Signal()
        self.comb += [
            self.done.eq(was_busy & ~self.busy),
            self.busy.eq(~self.fsm.ongoing("IDLE")),
            self._stretched.eq(self.busy & self.scl & ~self._scl_seen),
            self._tick.eq(self.busy & ~self._stretched & (timer == clocks - 1)),
        ]
        self.sync += [
            was_busy.eq(self.busy),
            If(self._tick | ~self.busy | self._stretched, timer.eq(0)).Else(timer.eq(timer + 1)),
            If(self._tick, self._quarter.eq(self._quarter + 1)),
            If(~self.busy, self._quarter.eq(0)),
        ]

    def _at_end_of(self, quarter: int) -> Signal:
        return self._tick & (self._quarter == quarter)

    def _finish(self, *status: _Statement) -> list[_Statement]:
        return [NextValue(self.scl, 1), NextValue(self.sda, 1), *status, NextState("IDLE")]

    def _add_states(self) -> None:
        fsm, at_end_of = self.fsm, self._at_end_of
        stuck = NextValue(self.status, int(SMBusStatus.STUCK))
        give_up = If(self.patience.done, *self._finish(stuck))
        fsm.act(
            "IDLE",
            NextValue(self._step, _START),
            NextValue(self._bit, 0),
            If(
                self.start,
                NextValue(self.status, int(SMBusStatus.OK)),
                NextValue(self.read_data, 0),
                NextValue(self.block, 0),
                If(self._sda_seen, NextState("START")).Else(NextState("RECOVER")),
            ),
        )
        # A device that was cut off while it sent a 0 lets go of the line within nine clocks.
        fsm.act(
            "RECOVER",
            If(at_end_of(0), NextValue(self.scl, 0)),
            If(at_end_of(2), NextValue(self.scl, 1)),
            If(
                at_end_of(3),
                NextValue(self._bit, self._bit + 1),
                If(self._sda_seen, NextValue(self._bit, 0), NextState("START")).Elif(
                    self._bit == _BITS - 1, *self._finish(stuck)
                ),
            ),
            give_up,
        )
        fsm.act(
            "START",
            If(at_end_of(0), NextValue(self.sda, 1)),
            If(at_end_of(1), NextValue(self.scl, 1)),
            If(at_end_of(2), NextValue(self.sda, 0)),
            If(at_end_of(3), NextValue(self.scl, 0), NextValue(self._step, self._step + 1), NextState("BYTE")),
            give_up,
        )
        self._add_byte(stuck, give_up)
        fsm.act(
            "STOP",
            If(at_end_of(0), NextValue(self.sda, 0)),
            If(at_end_of(1), NextValue(self.scl, 1)),
            If(at_end_of(2), NextValue(self.sda, 1)),
            If(at_end_of(3), *self._finish()),
            give_up,
        )

    def _add_byte(self, stuck: _Statement, give_up: _Statement) -> None:
        """Eight bits and the acknowledge, sent or received."""
        step, bit, at_end_of = self._step, self._bit, self._at_end_of
        byte, shift, receives, last = Signal(8), Signal(8), Signal(), Signal()
        acknowledge, acknowledged, more, missing = Signal(), Signal(), Signal(), Signal(max=BLOCK_BYTES + 1)
        self.comb += [
            receives.eq((step == _READ_LOW) | (step == _READ_HIGH)),
            last.eq(bit == _BITS - 1),
            more.eq(self._word & (step == _READ_LOW)),
            If(self._reads_block, more.eq(Mux(step == _READ_LOW, shift != 0, missing != 1))),
            acknowledge.eq(receives & more),
            Case(
                step,
                {
                    _ADDRESS: byte.eq(Cat(0, self._address)),
                    _COMMAND: byte.eq(self._command),
                    _LOW: byte.eq(self._data[:8]),
                    _HIGH: byte.eq(Mux(self._read, Cat(1, self._address), self._data[8:])),
                    "default": byte.eq(0xFF),
                },
            ),
        ]
        lost = ~receives & ~last & self.sda & ~self._sda_seen
        store = [
            If(
                step == _READ_LOW,
                NextValue(self.read_data[:8], shift),
                NextValue(missing, Mux(shift > BLOCK_BYTES, BLOCK_BYTES, shift)),
            ),
            If(
                step == _READ_HIGH,
                NextValue(self.read_data[8:], shift),
                NextValue(missing, missing - 1),
                If(self._reads_block, NextValue(self.block, Cat(self.block[8:], shift))),
            ),
        ]
        self.fsm.act(
            "BYTE",
            If(
                at_end_of(0),
                NextValue(self.sda, shift[7]),
                If(bit == 0, NextValue(shift, byte), NextValue(self.sda, byte[7])),
                If(last, NextValue(self.sda, ~acknowledge)),
            ),
            If(at_end_of(1), NextValue(self.scl, 1)),
            If(
                at_end_of(2),
                If(~last, NextValue(shift, Cat(self._sda_seen, shift[:7]))),
                NextValue(acknowledged, ~self._sda_seen),
                If(lost, *self._finish(stuck)),
            ),
            If(
                at_end_of(3),
                NextValue(self.scl, 0),
                NextValue(bit, bit + 1),
                If(last, NextValue(bit, 0), *store, *self._next_step(receives | acknowledged, more)),
            ),
            give_up,
        )

    def _next_step(self, accepted: Signal, more: Signal) -> list[_Statement]:
        """After a byte: what follows in a write or a read; nothing more where it was refused."""
        step = self._step
        last = Mux(self._read, (step >= _READ_LOW) & ~more, step == Mux(self._word, _HIGH, _LOW))
        return [
            If(step != _READ_HIGH, NextValue(step, step + 1)),
            If(
                ~accepted,
                NextValue(self.status, int(SMBusStatus.NOT_ACKNOWLEDGED)),
                NextState("STOP"),
            )
            .Elif(last, NextState("STOP"))
            .Elif(self._read & (step == _COMMAND), NextState("START")),
        ]


class SMBusHost(LiteXModule):
    """Registers by which the host has transactions made.

    Args:
        master: who makes them.

    Attributes:
        blocked: in, the host may not start a transaction now.
        start: out, pulse. busy: out, from the start to the end of a transaction of the host's.
        wanted: out, 34 bits, all that the master must know of it: data, command, address, word, read, block.
    """

    def __init__(self, master: SMBusMaster) -> None:
        self.blocked, self.start, self.busy, self.wanted = Signal(), Signal(), Signal(), Signal(34)
        self._data = CSRStorage(16, description="What the next write sends; a byte write sends the low byte.")
        self._transaction = CSRStorage(
            fields=[
                CSRField("command", size=8, description="SMBus command, a device's register."),
                CSRField("address", size=7, description="SMBus address of the device."),
                CSRField("word", size=1, description="1: two data bytes, low one first; 0: one."),
                CSRField("read", size=1, description="1: read; 0: write ``data``."),
                CSRField(
                    "block", size=1, description="1, with ``read``: as many bytes as the device's first one says."
                ),
            ],
            description="Writing this starts a transaction; without effect while ``result`` is busy.",
        )
        self._result = CSRStatus(
            fields=[
                CSRField(
                    "data",
                    size=16,
                    description="What was read; 0 before and for writes. Of a block: its length, then its last byte.",
                ),
                CSRField(
                    "status",
                    size=2,
                    values=[
                        ("``0``", "acknowledged"),
                        ("``1``", "not acknowledged: no such device, or it refuses the command"),
                        ("``2``", "bus stuck, or another master on it"),
                        ("``3``", "refused by the gateware: nothing was sent"),
                    ],
                    description="How it ended. Latched until the next.",
                ),
                CSRField("busy", size=1, description="The transaction is under way."),
            ],
            description="What became of the last transaction.",
        )
        self._block = CSRStatus(
            8 * BLOCK_BYTES,
            description="The block that was read, first byte lowest, moved up so that its last byte is the uppermost; "
            f"{BLOCK_BYTES} bytes of a longer one. 0 for other transactions. Latched until the next.",
        )

        # # #

        asked, result = self._transaction.re & ~self.busy, self._result.fields
        stores = ~self._transaction.fields.read & is_store(self._transaction.fields.command)
        refused = Signal()
        self.comb += [
            refused.eq(self.blocked | stores),
            result.busy.eq(self.busy),
            self.wanted.eq(Cat(self._data.storage, self._transaction.storage)),
        ]
        self.sync += [
            self.start.eq(asked & ~refused),
            If(asked, self.busy.eq(~refused), result.status.eq(_REFUSED), result.data.eq(0)),
            If(
                master.done & self.busy,
                self.busy.eq(0),
                result.status.eq(master.status),
                result.data.eq(master.read_data),
                self._block.status.eq(master.block),
            ),
        ]


class SMBus(LiteXModule):
    """A bus that only the host uses: a master on ``pads`` (``scl``, ``sda``) and the host's registers."""

    def __init__(self, pads: Record, clk_freq: float) -> None:
        self.master = SMBusMaster(clk_freq)
        self.master.connect(pads)
        self.host = SMBusHost(self.master)
        self.comb += [self.master.start.eq(self.host.start), self.master.wanted.eq(self.host.wanted)]
