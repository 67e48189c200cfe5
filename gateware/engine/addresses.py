"""Decodes an instruction's slots and works out their addresses: pointers, then the bank order table. Four clocks."""

from functools import reduce
from itertools import combinations
from operator import or_

from migen import Array, If, Module, Mux, Signal

from gateware import isa
from gateware.engine.fields import ADDRESS_BITS, BANK_BITS, Item, SlotCommand, field, set_fields, slot_field
from gateware.engine.parameters import EngineParameters
from gateware.isa import BANK, COLUMN, COMMON_FIELDS, IMMEDIATE_FIELDS, ROW, Command, Setting
from gateware.registers import Fault
from profiles.pattern import PatternKind

_COUNT_BITS = 24
_DIGITS = (BANK, ROW, COLUMN)
_POINTER_SETTINGS = (Setting.POINTER_BANK, Setting.POINTER_ROW, Setting.POINTER_COLUMN, Setting.POINTER_ORDER)


class _Digit(Module):
    """One digit of an odometer. ``last``: its next step brings it back to its start."""

    def __init__(self, load: Signal, restart: Signal, step: Signal, value: Signal, clear: Signal) -> None:
        self.value, self.last = Signal(ADDRESS_BITS), Signal()
        start, by, count = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS), Signal(_COUNT_BITS)
        left, only_one = Signal(_COUNT_BITS), Signal()  # values left with the present one; there is no other
        loaded, loads_one = value[40:64], value[41:64] == 0
        self.sync += [
            If(step & ~self.last, left.eq(left - 1), self.last.eq(left == 2), self.value.eq(self.value + by)),
            If((step & self.last) | restart, left.eq(count), self.last.eq(only_one), self.value.eq(start)),
            If(
                load,
                *[start.eq(value[:20]), by.eq(value[20:40]), count.eq(loaded), only_one.eq(loads_one)],
                *[left.eq(loaded), self.last.eq(loads_one), self.value.eq(value[:20])],
            ),
            If(
                clear,
                *[each.eq(0) for each in (start, by, count, left, self.value)],
                *[only_one.eq(1), self.last.eq(1)],
            ),
        ]


class _Pointer(Module):
    """An address pointer.

    Args:
        loads: a signal for each of `_POINTER_SETTINGS`; any of them returns the pointer to its start.
        step: advance by one.
        value: the SET's value.
        clear: a program starts.
    """

    def __init__(self, loads: list[Signal], step: Signal, value: Signal, clear: Signal) -> None:
        order = [Signal(2, reset=which) for which in _DIGITS]
        steps, restart = [Signal() for _ in _DIGITS], Signal()
        digits = [_Digit(loads[which], restart, steps[which], value, clear) for which in _DIGITS]
        self.submodules += digits
        self.bank, self.row, self.column = (digit.value for digit in digits)
        last = Array(digit.last for digit in digits)
        carries = [step, step & last[order[0]], step & last[order[0]] & last[order[1]]]
        self.comb += [
            restart.eq(reduce(or_, loads)),
            *[If(carries[k] & (order[k] == which), steps[which].eq(1)) for k in _DIGITS for which in _DIGITS],
        ]
        self.sync += [
            If(loads[3], *[order[k].eq(value[2 * k : 2 * k + 2]) for k in _DIGITS]),
            If(clear, *[order[which].eq(which) for which in _DIGITS]),
        ]


class _Refusals(Module):
    """Whether an instruction is refused before any of it is issued (`gateware.isa`: Slots, Setting). Combinational."""

    def __init__(self, parameters: EngineParameters, item: Item) -> None:
        self.refused = Signal()
        i = item.instruction
        bad_issue, bad_set = Signal(), Signal()
        home = {Command.RD: parameters.read_phase, Command.WR: parameters.write_phase}
        present = [slot_field(i, k, "command") != 0 for k in range(isa.SLOTS)]
        phases = [slot_field(i, k, "phase") for k in range(isa.SLOTS)]
        is_data = {command: [slot_field(i, k, "command") == int(command) for k in range(isa.SLOTS)] for command in home}
        data = [reduce(or_, [is_data[command][k] for command in home]) for k in range(isa.SLOTS)]
        self.comb += [
            *[
                If(
                    (slot_field(i, k, "command") > max(Command))
                    | (present[k] & (phases[k] >= parameters.nphases))
                    | reduce(or_, [is_data[command][k] & (phases[k] != home[command]) for command in home]),
                    bad_issue.eq(1),
                )
                for k in range(isa.SLOTS)
            ],
            *[
                If((present[a] & present[b] & (phases[a] >= phases[b])) | (data[a] & data[b]), bad_issue.eq(1))
                for a, b in combinations(range(isa.SLOTS), 2)
            ],
        ]
        setting, value = set_fields(self, i)
        interval, trfc = value[:32], value[32:]
        each_once = reduce(or_, [1 << value[2 * k : 2 * k + 2] for k in _DIGITS]) == 0b111
        sets_order = reduce(or_, [setting == int(Setting.POINTER_ORDER) + 4 * p for p in range(isa.POINTERS)])
        self.comb += [
            bad_set.eq(
                ((setting > int(Setting.LOG_RESERVE)) & (setting < int(Setting.POINTER_BANK)))
                | (setting >= int(Setting.POINTER_BANK) + 4 * isa.POINTERS)
                | (sets_order & ~each_once)
                | ((setting == int(Setting.REFRESH)) & (interval != 0) & ((trfc == 0) | (trfc >= interval)))
                | ((setting == int(Setting.PATTERN)) & (value[:8] > max(PatternKind)))
            ),
            self.refused.eq((item.issue & bad_issue) | (item.set & bad_set)),
        ]


class Addresses(Module):
    """Slots with their addresses.

    Attributes:
        start: in, pulse; a program starts.
        abort: in; a fault was raised further down, forget what is here.
        item: in, from the sequencer.
        out: out, the same item four clocks later; a refused one has become a fault. commands: out, its slots.
    """

    def __init__(self, parameters: EngineParameters) -> None:
        self.start, self.abort = Signal(), Signal()
        self.item, self.out = Item(), Item()
        self.commands = [SlotCommand() for _ in range(isa.SLOTS)]

        # # #

        here, found = Item(), [SlotCommand() for _ in range(isa.SLOTS)]
        self._arrived, self._accepted = arrived, accepted = Item(), Item()
        self.submodules.refusals = refusals = _Refusals(parameters, arrived)
        self.sync += [
            arrived.eq(self.item),
            accepted.eq(arrived),
            If(refusals.refused, *accepted.clear(), accepted.fault.eq(int(Fault.BAD_INSTRUCTION))),
            here.eq(accepted),
            self.out.eq(here),
            If(self.abort, *(statement for item in (arrived, accepted, here, self.out) for statement in item.clear())),
        ]
        self._add_pointers(found)
        self._add_bank_order(here, found)

    def _look_ahead(self, pointer: int, steps: Signal, loads: list[Signal]) -> list:
        """In the clock before, whether the instruction, if it is accepted, steps or loads a pointer."""
        i = self._arrived.instruction
        setting, _ = set_fields(self, i)
        slots = [
            (slot_field(i, k, "command") != 0) & (slot_field(i, k, "address") == pointer) & slot_field(i, k, "step")
            for k in range(isa.SLOTS)
        ]
        return [
            steps.eq(reduce(or_, slots)),
            *[load.eq(setting == int(base) + 4 * pointer) for load, base in zip(loads, _POINTER_SETTINGS, strict=True)],
        ]

    def _add_pointers(self, found: list[SlotCommand]) -> None:
        """Select each slot's address, and advance the pointers that the instruction steps."""
        i, item = self._accepted.instruction, self._accepted
        _, value = set_fields(self, i)
        pointers = []
        for p in range(isa.POINTERS):
            steps, *loads = (Signal() for _ in (None, *_POINTER_SETTINGS))
            self.sync += self._look_ahead(p, steps, loads)
            step = item.issue & ~self.abort & steps
            pointers.append(_Pointer([item.set & ~self.abort & load for load in loads], step, value, self.start))
        self.submodules += pointers
        banks, rows, columns = (
            Array(getattr(pointer, name) for pointer in pointers) for name in ("bank", "row", "column")
        )
        begins = field(i, COMMON_FIELDS["loop_begin"])  # whose count has the immediate address's bits
        bank, row = (Mux(begins, 0, field(i, where)) for where in IMMEDIATE_FIELDS.values())
        for k, slot in enumerate(found):
            command = slot_field(i, k, "command")
            pointer = Signal(isa.SLOT_FIELDS["address"].width)
            self.comb += pointer.eq(slot_field(i, k, "address"))
            takes_row = (command == int(Command.ACT)) | (command == int(Command.MRS))
            which = pointer[:2]
            bank_index = Signal(isa.BANK_ORDER_ENTRIES.bit_length() - 1)
            self.comb += bank_index.eq(banks[which])
            self.sync += [
                slot.command.eq(Mux(item.issue, command, 0)),
                *[getattr(slot, name).eq(slot_field(i, k, name)) for name in SlotCommand.copied],
                slot.immediate.eq(pointer[2]),
                If(pointer[2], slot.bank.eq(bank), slot.address.eq(row)).Else(
                    slot.bank.eq(bank_index),
                    slot.address.eq(Mux(takes_row, rows[which], columns[which])),
                ),
            ]

    def _add_bank_order(self, here: Item, found: list[SlotCommand]) -> None:
        entries = isa.BANK_ORDER_ENTRIES
        table = Array(Signal(BANK_BITS, reset=k) for k in range(entries))
        setting, value = set_fields(self, here.instruction)
        self.sync += [
            If(
                here.set & (setting == int(Setting.BANK_ORDER)) & ~self.abort,
                table[value[: entries.bit_length() - 1]].eq(value[8:16]),
            ),
            If(self.start, *[entry.eq(k) for k, entry in enumerate(table)]),
        ]
        for slot, out in zip(found, self.commands, strict=True):
            self.sync += [
                out.eq(slot),
                If(~slot.immediate, out.bank.eq(table[slot.bank[: entries.bit_length() - 1]])),
            ]
