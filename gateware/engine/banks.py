"""Knows which rows are open, raises faults in program order, and keeps the settings that data commands carry with them.

Everything before this stage can still be taken back; what it lets pass goes to the DRAM. One clock.
"""

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


class Banks(Module):
    """The end of the engine's command pipeline.

    Attributes:
        start: in, pulse; a program starts.
        item, commands: in, from `Addresses`.
        abort: out; a fault is raised in this clock, nothing younger may come.
        fault, fault_pc: out, latched until start.
        issued: out, the slots that passed, one clock later. refresh: out, REF goes out. data: out, see `DataCommand`.
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
        self._captures = Signal(max=parameters.buffer_bursts + 1)
        self._capture_full = self._captures == parameters.buffer_bursts
        passed, fault = self._add_checks()
        self._add_rows(passed)
        self._add_data(passed)
        self._add_settings()
        self.comb += [self.abort.eq(fault != 0), self.banks_open.eq(self._open != 0)]
        alive = ~self.abort
        self.sync += [
            If(self.abort, self.fault.eq(fault), self.fault_pc.eq(self.item.pc)),
            self.refresh.eq(self.item.refresh & alive),
            self.clocks.eq(self.clocks + (self.item.tick & alive)),
            self.refreshes.eq(self.refreshes + (self.item.refresh & alive)),
            *[out.eq(slot) for out, slot in zip(self.issued, self.commands, strict=True)],
            *[If(~good, out.command.eq(0)) for out, good in zip(self.issued, passed, strict=True)],
            If(self.start, self.fault.eq(0), self.clocks.eq(0), self.refreshes.eq(0)),
        ]

    def _add_checks(self) -> tuple[list[Signal], Signal]:
        """Walk the slots in order; returns which of them pass, and the fault of this clock (0 for none)."""
        rows_open, failed, passed = self._open, Signal(), []
        fault = Signal(FAULT_BITS)
        self.comb += [
            fault.eq(self.item.fault),
            If(self.item.check & (self._open != 0), fault.eq(int(Fault.OPEN_BANK))),
        ]
        for slot in self.commands:
            code, good, failed_before, failed = Signal(FAULT_BITS), Signal(), failed, Signal()
            rows_open_before, rows_open = rows_open, Signal(self._geometry.banks)
            self.comb += [
                *self._check(slot, rows_open_before, code),
                good.eq(self.item.issue & (slot.command != 0) & (code == 0) & ~failed_before),
                failed.eq(failed_before | (self.item.issue & (code != 0))),
                If(failed & ~failed_before, fault.eq(code)),
                *self._follow(slot, good, rows_open_before, rows_open),
            ]
            passed.append(good)
        self.sync += [self._open.eq(rows_open), If(self.start, self._open.eq(0))]
        return passed, fault

    def _check(self, slot: SlotCommand, rows_open: Signal, code: Signal) -> list:
        """What is wrong with a slot, given which banks are open before it."""
        g, command = self._geometry, slot.command
        is_open = Signal()
        to_bank = (command >= int(Command.ACT)) & (command <= int(Command.PRE))
        moves_data = (command == int(Command.RD)) | (command == int(Command.WR))
        captures = (command == int(Command.RD)) & slot.capture
        misplaced = (slot.address >= g.columns) | (slot.address[: g.burst_length.bit_length() - 1] != 0)
        return [
            is_open.eq(Array(rows_open[bank] for bank in range(g.banks))[slot.bank]),
            If(to_bank & (slot.bank >= g.banks), code.eq(int(Fault.ADDRESS)))
            .Elif((command == int(Command.ACT)) & is_open, code.eq(int(Fault.OPEN_BANK)))
            .Elif((command == int(Command.ACT)) & (slot.address >= g.rows), code.eq(int(Fault.ADDRESS)))
            .Elif(moves_data & ~is_open, code.eq(int(Fault.CLOSED_BANK)))
            .Elif(moves_data & misplaced, code.eq(int(Fault.ADDRESS)))
            .Elif(captures & self._capture_full, code.eq(int(Fault.CAPTURE_OVERFLOW)))
            .Elif((command == int(Command.REF)) & (rows_open != 0), code.eq(int(Fault.OPEN_BANK))),
        ]

    def _follow(self, slot: SlotCommand, good: Signal, before: Signal, after: Signal) -> list:
        """Which banks are open after a slot."""
        command = slot.command
        moves_data = (command == int(Command.RD)) | (command == int(Command.WR))
        closes = (command == int(Command.PRE)) | (moves_data & slot.auto_precharge)
        return [
            If(good & (command == int(Command.PREA)), after.eq(0))
            .Elif(good & (command == int(Command.ACT)), after.eq(before | (1 << slot.bank)))
            .Elif(good & closes, after.eq(before & ~(1 << slot.bank)))
            .Else(after.eq(before))
        ]

    def _add_rows(self, passed: list[Signal]) -> None:
        """The open row of each bank."""
        self._rows = [Signal(ADDRESS_BITS) for _ in range(self._geometry.banks)]
        activates = []
        for slot, good in zip(self.commands, passed, strict=True):
            activate = Signal()
            self.comb += activate.eq(good & (slot.command == int(Command.ACT)))
            self.sync += [
                If(activate & (slot.bank == bank), row.eq(slot.address)) for bank, row in enumerate(self._rows)
            ]
            activates.append(activate)
        self._activates = activates

    def _add_data(self, passed: list[Signal]) -> None:
        data, shift = self.data, self._geometry.burst_length.bit_length() - 1
        read, write, captures = Signal(), Signal(), Signal()
        chosen, row = SlotCommand(), Signal(ADDRESS_BITS)
        for k, (slot, good) in enumerate(zip(self.commands, passed, strict=True)):
            same_clock = [
                If(self._activates[j] & (self.commands[j].bank == slot.bank), row.eq(self.commands[j].address))
                for j in range(k)
            ]
            self.comb += [
                If(
                    (slot.command == int(Command.RD)) | (slot.command == int(Command.WR)),
                    chosen.eq(slot),
                    read.eq(good & (slot.command == int(Command.RD))),
                    write.eq(good & (slot.command == int(Command.WR))),
                    row.eq(Array(self._rows)[slot.bank]),
                    *same_clock,
                )
            ]
        self._uses_data = Signal()
        self.comb += [
            captures.eq(read & chosen.capture),
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
            self._captures.eq(self._captures + captures),
            If(self.start, self._captures.eq(0)),
        ]

    def _add_settings(self) -> None:
        """Settings that data commands carry with them from here on."""
        data = self.data
        setting, value = set_fields(self, self.item.instruction)
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
            *[If(self.item.set & (setting == int(target)), *writes[target]) for target in writes],
            If(
                self.start,
                *[each.eq(0) for each in (kind, invert, parameter, cursor, row_base)],
                counters.eq(isa.COUNT_LOG),
            ),
        ]
