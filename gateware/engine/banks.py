"""Knows which rows are open, raises faults in program order, and keeps the settings that data commands carry with them.

Everything before this stage can still be taken back; what it lets pass goes to the DRAM. Two clocks.
"""

from typing import ClassVar

from migen import Array, If, Module, Mux, Record, Signal

from gateware import isa
from gateware.engine.fields import ADDRESS_BITS, BANK_BITS, FAULT_BITS, PC_BITS, Item, SlotCommand, set_fields
from gateware.engine.parameters import EngineParameters
from gateware.isa import Command, Setting
from gateware.registers import Fault
from profiles.pattern import PatternKind


class DataCommand(Record):
    """The READ or WRITE of a clock, and the settings in force for it. ``burst`` is column / burst length."""

    def __init__(self) -> None:
        flags = [(name, 1) for name in ("read", "write", "compare", "capture", "invert_odd_rows")]
        places = [("bank", BANK_BITS), ("row", ADDRESS_BITS), ("burst", ADDRESS_BITS)]
        pattern = [("kind", 3), ("parameter", 32), ("cursor", 32)]
        Record.__init__(self, [*flags, *places, *pattern, ("counters", 4), ("row_base", ADDRESS_BITS)])


class _DecodedSlot(Record):
    """What can be said of a slot whatever the banks' state: its kind, banks as one-hot vectors, its own fault."""

    kinds: ClassVar = ("activates", "reads", "writes", "refreshes")

    def __init__(self, banks: int) -> None:
        flags = [(name, 1) for name in (*self.kinds, "uses_bank", "captures")]
        Record.__init__(self, [*flags, ("bank", banks), ("opens", banks), ("closes", banks), ("fault", FAULT_BITS)])


class Banks(Module):
    """The end of the engine's command pipeline.

    Attributes:
        start: in, pulse; a program starts.
        item, commands: in, from `Addresses`.
        abort: out; a fault was raised, nothing that is younger goes out. Until start.
        fault, fault_pc: out, latched until start.
        issued: out, the slots that passed, two clocks later. refresh: out, REF goes out. data: out, see `DataCommand`.
        clocks, refreshes: out, the registers of those names (`gateware.registers`).
        banks_open: out; some row is open.
    """

    def __init__(self, parameters: EngineParameters) -> None:
        self._geometry = parameters.geometry
        self.start = Signal()
        self.item, self.commands = Item(), [SlotCommand() for _ in range(isa.SLOTS)]
        self.abort, self.fault, self.fault_pc = Signal(), Signal(FAULT_BITS), Signal(PC_BITS)
        self.issued, self.refresh = [SlotCommand() for _ in range(isa.SLOTS)], Signal()
        self.data = DataCommand()
        self.clocks, self.refreshes = Signal(64), Signal(64)
        self.banks_open = Signal()

        # # #

        banks = self._geometry.banks
        self._open = Signal(banks)
        self._buffer_bursts, self._capture_full = parameters.buffer_bursts, Signal()
        self._here, self._slots = Item(), [SlotCommand() for _ in self.commands]
        self._decoded = [_DecodedSlot(banks) for _ in self.commands]
        self._add_decoding()
        passed, fault = self._add_checks()
        self._add_rows(passed)
        self._add_data(passed)
        self._add_settings()
        here, ticked = self._here, Signal()
        self.comb += [self.abort.eq(self.fault != 0), self.banks_open.eq(self._open != 0)]
        alive = (fault == 0) & ~self.abort
        self.sync += [
            If((fault != 0) & ~self.abort, self.fault.eq(fault), self.fault_pc.eq(here.pc)),
            self.refresh.eq(here.refresh & alive),
            ticked.eq(here.tick & alive),
            self.clocks.eq(self.clocks + ticked),
            self.refreshes.eq(self.refreshes + self.refresh),
            *[out.eq(slot) for out, slot in zip(self.issued, self._slots, strict=True)],
            *[If(~good, out.command.eq(0)) for out, good in zip(self.issued, passed, strict=True)],
            If(self.start, self.fault.eq(0), self.clocks.eq(0), self.refreshes.eq(0)),
        ]

    def _add_decoding(self) -> None:
        """A clock for what does not depend on the banks' state."""
        self.sync += [self._here.eq(self.item), If(self.abort, *self._here.clear())]
        for slot, here, decoded in zip(self.commands, self._slots, self._decoded, strict=True):
            self.sync += [here.eq(slot), *self._decode(slot, decoded)]

    def _decode(self, slot: SlotCommand, out: _DecodedSlot) -> list:
        g, command = self._geometry, slot.command
        is_ = {kind: command == int(kind) for kind in Command}
        moves_data = is_[Command.RD] | is_[Command.WR]
        to_bank = (command >= int(Command.ACT)) & (command <= int(Command.PRE))
        bank = Signal(g.banks)
        self.comb += [If(slot.bank == number, bank[number].eq(1)) for number in range(g.banks)]
        misplaced = (slot.address >= g.columns) | (slot.address[: g.burst_length.bit_length() - 1] != 0)
        closes = is_[Command.PRE] | (moves_data & slot.auto_precharge)
        return [
            out.activates.eq(is_[Command.ACT]),
            out.reads.eq(is_[Command.RD]),
            out.writes.eq(is_[Command.WR]),
            out.refreshes.eq(is_[Command.REF]),
            out.uses_bank.eq(to_bank & (slot.bank < g.banks)),
            out.captures.eq(is_[Command.RD] & slot.capture),
            out.bank.eq(bank),
            out.opens.eq(Mux(is_[Command.ACT], bank, 0)),
            out.closes.eq(Mux(is_[Command.PREA], (1 << g.banks) - 1, Mux(closes, bank, 0))),
            out.fault.eq(0),
            If(
                (to_bank & (slot.bank >= g.banks))
                | (is_[Command.ACT] & (slot.address >= g.rows))
                | (moves_data & misplaced),
                out.fault.eq(int(Fault.ADDRESS)),
            ),
        ]

    def _add_checks(self) -> tuple[list[Signal], Signal]:
        """Walk the slots in order; returns which of them pass, and the fault of this clock (0 for none)."""
        rows_open, failed, passed, here = self._open, Signal(), [], self._here
        fault = Signal(FAULT_BITS)
        self.comb += [
            fault.eq(here.fault),
            If(here.check & (self._open != 0), fault.eq(int(Fault.OPEN_BANK))),
        ]
        for slot, decoded in zip(self._slots, self._decoded, strict=True):
            code, good, failed_before, failed = Signal(FAULT_BITS), Signal(), failed, Signal()
            rows_open_before, rows_open = rows_open, Signal(self._geometry.banks)
            self.comb += [
                *self._check(decoded, rows_open_before, code),
                good.eq(here.issue & (slot.command != 0) & (code == 0) & ~failed_before & ~self.abort),
                failed.eq(failed_before | (here.issue & (code != 0))),
                If(failed & ~failed_before, fault.eq(code)),
                # whether it passes makes no difference: nothing comes after a fault
                rows_open.eq((rows_open_before | decoded.opens) & ~decoded.closes),
            ]
            passed.append(good)
        self.sync += [If(here.issue, self._open.eq(rows_open)), If(self.start, self._open.eq(0))]
        return passed, fault

    def _check(self, decoded: _DecodedSlot, rows_open: Signal, code: Signal) -> list:
        """What is wrong with a slot, given which banks are open before it."""
        is_open = (decoded.bank & rows_open) != 0
        moves_data = decoded.reads | decoded.writes
        return [
            code.eq(decoded.fault),
            If(decoded.captures & self._capture_full & (decoded.fault == 0), code.eq(int(Fault.CAPTURE_OVERFLOW))),
            If(decoded.uses_bank & decoded.activates & is_open, code.eq(int(Fault.OPEN_BANK))),
            If(decoded.uses_bank & moves_data & ~is_open, code.eq(int(Fault.CLOSED_BANK))),
            If(decoded.refreshes & (rows_open != 0), code.eq(int(Fault.OPEN_BANK))),
        ]

    def _add_rows(self, passed: list[Signal]) -> None:
        """The open row of each bank."""
        self._rows = [Signal(ADDRESS_BITS) for _ in range(self._geometry.banks)]
        for slot, decoded, good in zip(self._slots, self._decoded, passed, strict=True):
            self.sync += [If(good & decoded.opens[bank], row.eq(slot.address)) for bank, row in enumerate(self._rows)]

    def _add_data(self, passed: list[Signal]) -> None:
        data, shift = self.data, self._geometry.burst_length.bit_length() - 1
        read, write, captures = Signal(), Signal(), Signal()
        captured, counted = (Signal(max=self._buffer_bursts + 1) for _ in range(2))
        chosen, row = SlotCommand(), Signal(ADDRESS_BITS)
        for k, (slot, decoded, good) in enumerate(zip(self._slots, self._decoded, passed, strict=True)):
            same_clock = [
                If(self._decoded[j].activates & (self._slots[j].bank == slot.bank), row.eq(self._slots[j].address))
                for j in range(k)
            ]
            self.comb += [
                If(
                    decoded.reads | decoded.writes,
                    chosen.eq(slot),
                    read.eq(good & decoded.reads),
                    write.eq(good & decoded.writes),
                    row.eq(Array(self._rows)[slot.bank]),
                    *same_clock,
                )
            ]
        self._uses_data = Signal()
        self.comb += [
            captures.eq(read & chosen.capture),
            counted.eq(captured + captures),
            self._uses_data.eq(write | (read & chosen.compare)),
        ]
        self.sync += [
            data.read.eq(read),
            data.write.eq(write),
            data.compare.eq(read & chosen.compare),
            data.capture.eq(captures),
            data.bank.eq(chosen.bank),
            data.row.eq(row),
            data.burst.eq(chosen.address >> shift),
            captured.eq(counted),
            self._capture_full.eq(counted == self._buffer_bursts),
            If(self.start, captured.eq(0), self._capture_full.eq(0)),
        ]

    def _add_settings(self) -> None:
        """Settings that data commands carry with them from here on."""
        data = self.data
        setting, value = set_fields(self, self._here.instruction)
        kind, invert, parameter = Signal(3), Signal(), Signal(32)
        cursor, counters, row_base = Signal(32), Signal(4), Signal(ADDRESS_BITS)
        beyond = value[ADDRESS_BITS:32] != 0
        writes = {
            Setting.PATTERN: [kind.eq(value[:3]), invert.eq(value[8]), parameter.eq(value[32:])],
            Setting.BUFFER_CURSOR: [cursor.eq(value[:32])],
            Setting.COUNTERS: [counters.eq(value[:4])],
            Setting.ROW_BASE: [row_base.eq(Mux(beyond, (1 << ADDRESS_BITS) - 1, value[:ADDRESS_BITS]))],
        }
        self.sync += [
            data.kind.eq(kind),
            data.invert_odd_rows.eq(invert),
            data.parameter.eq(parameter),
            data.cursor.eq(cursor),
            data.counters.eq(counters),
            data.row_base.eq(row_base),
            If(self._uses_data & (kind == int(PatternKind.BUFFER)), cursor.eq(cursor + 1)),
            *[If(self._here.set & (setting == int(target)), *writes[target]) for target in writes],
            If(
                self.start,
                *[each.eq(0) for each in (kind, invert, parameter, cursor, row_base)],
                counters.eq(isa.COUNT_LOG),
            ),
        ]
