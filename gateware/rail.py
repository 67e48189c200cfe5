"""Restores the DRAM's supply over PMBus when the host goes quiet, and lets the host use the same bus meanwhile.

The host loads the writes that bring the rail back to nominal, arms the sequencer, and from then on kicks it now and
then. If it does not for ``watchdog_ms``, whatever the reason, the sequencer makes the writes by itself: in order, each
repeated until it is acknowledged. A write that keeps failing starts the sequence anew, and no write is ever left out: a
lost PAGE would send the next one to another rail. A good sequence is PAGE, VOUT_COMMAND, and after the output has risen
the undervoltage limits and POWER_GOOD.

An entry of the sequence is a 32-bit word::

    data (16) | command << 16 | address << 24 | word << 31

Not covered: an FPGA that loses its own supply, its clock or its configuration.
"""

from enum import IntEnum
from functools import reduce
from operator import or_

from litex.gen import LiteXModule
from litex.gen.genlib.misc import WaitTimer
from litex.soc.interconnect.csr import CSRField, CSRStatus, CSRStorage
from migen import FSM, If, Memory, Mux, NextState, NextValue, Signal

from gateware.engine.crc import INITIAL, next_crc
from gateware.smbus import SMBusHost, SMBusMaster, SMBusStatus, is_store

ENTRIES = 16
ATTEMPTS = 8  # of one write, before the sequence starts anew
PAUSE_MS = 1  # before anything is repeated


class RailState(IntEnum):
    """What the sequencer does."""

    DISARMED = 0
    CHECKING = 1  # for ENTRIES clocks after arming
    ARMED = 2
    RESTORING = 3
    RESTORED = 4  # every write was acknowledged; stays until disarmed


class RailSequencer(LiteXModule):
    """See the module's text.

    Args:
        clk_freq: system clock, hertz.

    Attributes:
        smbus: the bus master; connect its pads.
        host: the host's registers for transactions of its own; refused while the sequencer restores.
    """

    def __init__(self, clk_freq: float) -> None:
        self.smbus = SMBusMaster(clk_freq)
        self.host = SMBusHost(self.smbus)
        self.pause = WaitTimer(clk_freq * PAUSE_MS / 1000)
        self.millisecond = WaitTimer(clk_freq / 1000)
        self._add_sequencer_registers()
        self._restoring, self._quiet = Signal(), Signal()
        self._bad_check, self._fired = Signal(), Signal()
        self._index, self._entries = Signal(max=ENTRIES + 1), Signal(max=ENTRIES + 1)
        self.fsm = FSM(reset_state="DISARMED")
        self._add_memory()
        self._add_arbiter()
        self._add_watchdog()
        self._add_check()
        self._add_restoration()

    def _add_sequencer_registers(self) -> None:
        self._control = CSRStorage(
            fields=[
                CSRField("kick", size=1, pulse=True, description="Write 1: the host is alive."),
                CSRField("arm", size=1, pulse=True, description="Write 1: check the sequence and arm."),
                CSRField("disarm", size=1, pulse=True, description="Write 1: disarm. Without effect while RESTORING."),
            ],
            description="Commands to the sequencer.",
        )
        self._watchdog_ms = CSRStorage(
            16, reset=1000, description="Milliseconds without a kick after which the armed sequencer restores the rail."
        )
        self._select = CSRStorage(4, description="Entry of the sequence that ``entry`` writes.")
        self._entry = CSRStorage(
            32, description="Writing this sets the selected entry. Without effect unless the state is DISARMED."
        )
        self._length = CSRStorage(5, description=f"Entries of the sequence, 1 to {ENTRIES}. Taken over when arming.")
        self._check = CSRStorage(32, description="CRC-32 of these entries; arming fails if it differs.")
        self._state = CSRStatus(
            fields=[
                CSRField("state", size=3, values=[(f"``{int(s)}``", s.name) for s in RailState], description="Now."),
                CSRField(
                    "bad_check",
                    size=1,
                    description="The last arming failed: wrong CRC or length, or an entry that stores. Latched until "
                    "the next.",
                ),
                CSRField("fired", size=1, description="The watchdog has run out since the last arming."),
            ],
            description="The sequencer's state.",
        )
        self._failures = CSRStatus(
            16, description="Writes of the sequence that were not acknowledged since the last arming. Stays at 65535."
        )
        self._restarts = CSRStatus(
            16, description="Times that the sequence started anew since the last arming. Stays at 65535."
        )

    def _add_memory(self) -> None:
        memory = Memory(32, ENTRIES)
        write, self._read = memory.get_port(write_capable=True), memory.get_port()
        self.specials += memory, write, self._read
        self.comb += [
            write.adr.eq(self._select.storage),
            write.dat_w.eq(self._entry.storage),
            write.we.eq(self._entry.re & self.fsm.ongoing("DISARMED")),
            self._read.adr.eq(self._index),
        ]

    def _add_arbiter(self) -> None:
        """The bus is the host's until the sequencer takes it, between two transactions."""
        smbus, host = self.smbus, self.host
        self.comb += [
            host.blocked.eq(self._restoring),
            smbus.start.eq(host.start | self.fsm.ongoing("SEND")),
            smbus.wanted.eq(Mux(host.busy, host.wanted, self._read.dat_r)),
        ]

    def _add_watchdog(self) -> None:
        remaining = Signal(16)
        control = self._control.fields
        self.comb += [
            self.millisecond.wait.eq(~self.millisecond.done),
            self._quiet.eq(self.millisecond.done & (remaining == 0)),
        ]
        self.sync += [
            If(self.millisecond.done & (remaining != 0), remaining.eq(remaining - 1)),
            If(control.kick | ~self.fsm.ongoing("ARMED"), remaining.eq(self._watchdog_ms.storage)),
        ]

    def _add_check(self) -> None:
        """Arming: nothing may be wrong with the sequence when it is needed."""
        fsm, control, index = self.fsm, self._control.fields, self._index
        length, entry = self._length.storage, self._read.dat_r
        crc, check, stores = Signal(32), Signal(32), Signal()
        self.comb += check.eq(~crc)
        fsm.act(
            "DISARMED",
            NextValue(index, 0),
            NextValue(crc, INITIAL),
            NextValue(stores, 0),
            NextValue(self._entries, length),
            If(
                control.arm,
                *[NextValue(signal, 0) for signal in (self._fired, self._failures.status, self._restarts.status)],
                NextValue(self._bad_check, 1),
                If((length != 0) & (length <= ENTRIES), NextState("CHECK-FETCH")),
            ),
        )
        fsm.act("CHECK-FETCH", NextState("CHECK-TAKE"))
        fsm.act(
            "CHECK-TAKE",
            NextValue(crc, next_crc(crc, entry)),
            NextValue(stores, stores | is_store(entry[16:24])),
            NextValue(index, index + 1),
            NextState("CHECK-FETCH"),
            If(index == self._entries - 1, NextState("CHECK-END")),
        )
        fsm.act(
            "CHECK-END",
            NextState("DISARMED"),
            If((check == self._check.storage) & ~stores, NextValue(self._bad_check, 0), NextState("ARMED")),
        )

    def _add_restoration(self) -> None:
        fsm, smbus, index = self.fsm, self.smbus, self._index
        failures, restarts, attempts = self._failures.status, self._restarts.status, Signal(max=ATTEMPTS)
        fsm.act(
            "ARMED",
            NextValue(index, 0),
            NextValue(attempts, 0),
            If(self._quiet, NextValue(self._fired, 1), NextState("FETCH")),
            If(self._control.fields.disarm, NextState("DISARMED")),
        )
        fsm.act("FETCH", If(~self.host.busy & ~smbus.busy, NextState("SEND")))
        fsm.act("SEND", NextState("WAIT"))
        again = [
            NextValue(attempts, attempts + 1),
            If(failures != 0xFFFF, NextValue(failures, failures + 1)),
            If(
                attempts == ATTEMPTS - 1,
                NextValue(attempts, 0),
                NextValue(index, 0),
                If(restarts != 0xFFFF, NextValue(restarts, restarts + 1)),
            ),
            NextState("PAUSE"),
        ]
        fsm.act(
            "WAIT",
            If(
                smbus.done,
                If(
                    smbus.status == SMBusStatus.OK,
                    NextValue(attempts, 0),
                    NextValue(index, index + 1),
                    NextState("FETCH"),
                    If(index == self._entries - 1, NextState("RESTORED")),
                ).Else(*again),
            ),
        )
        fsm.act("PAUSE", self.pause.wait.eq(1), If(self.pause.done, NextState("FETCH")))
        fsm.act("RESTORED", If(self._control.fields.disarm, NextState("DISARMED")))
        checking = [fsm.ongoing(name) for name in ("CHECK-FETCH", "CHECK-TAKE", "CHECK-END")]
        restoring = [fsm.ongoing(name) for name in ("FETCH", "SEND", "WAIT", "PAUSE")]
        fields = self._state.fields
        state = fields.state
        self.comb += [
            fields.bad_check.eq(self._bad_check),
            fields.fired.eq(self._fired),
            self._restoring.eq(reduce(or_, restoring)),
            state.eq(RailState.DISARMED),
            If(reduce(or_, checking), state.eq(RailState.CHECKING)),
            If(fsm.ongoing("ARMED"), state.eq(RailState.ARMED)),
            If(self._restoring, state.eq(RailState.RESTORING)),
            If(fsm.ongoing("RESTORED"), state.eq(RailState.RESTORED)),
        ]
