"""The instruction set's fields as slices of Migen signals, and the records that travel down the engine's pipeline."""

from typing import ClassVar

from migen import Module, Record, Signal

from gateware import isa

ADDRESS_BITS = 20  # of a pointer's digit, a row or a column
BANK_BITS = 8
FAULT_BITS = 4
PC_BITS = 16


def field(word: Signal, where: isa.Field, offset: int = 0) -> Signal:
    """Bits of ``word`` that ``where`` names, ``offset`` bits up."""
    low = where.low + offset
    return word[low : low + where.width]


def slot_field(instruction: Signal, slot: int, name: str) -> Signal:
    """Field ``name`` of slot number ``slot``."""
    return field(instruction, isa.SLOT_FIELDS[name], isa.SLOT_LOW + slot * isa.SLOT_WIDTH)


def set_fields(module: Module, instruction: Signal) -> tuple[Signal, Signal]:
    """Setting and value of a SET, as signals of ``module``: Migen takes no slices of slices."""
    setting, value = (Signal(isa.SET_FIELDS[name].width) for name in ("setting", "value"))
    module.comb += [
        setting.eq(field(instruction, isa.SET_FIELDS["setting"])),
        value.eq(field(instruction, isa.SET_FIELDS["value"])),
    ]
    return setting, value


class Item(Record):
    """One system clock of program time, on its way from the sequencer to the banks.

    issue: the instruction's commands go out in this clock.   set: the instruction is a SET, executed where it concerns.
    check: a YIELD; all banks must be closed.                 tick: the clock counts as program time.
    refresh: REF goes out in this clock.                      fault: a `Fault` found so far, raised in order; 0 if none.
    """

    flags: ClassVar = ("issue", "set", "check", "tick", "refresh")

    def __init__(self) -> None:
        layout = [(flag, 1) for flag in self.flags]
        Record.__init__(self, [*layout, ("fault", FAULT_BITS), ("pc", PC_BITS), ("instruction", 128)])

    def clear(self) -> list:
        """Statements that make it an item that does nothing."""
        return [*[getattr(self, flag).eq(0) for flag in self.flags], self.fault.eq(0)]


class SlotCommand(Record):
    """A slot with its address worked out; ``command`` is 0 where there is none, ``address`` a row or a column."""

    copied: ClassVar = ("phase", "auto_precharge", "compare", "capture")  # as they stand in the instruction

    def __init__(self) -> None:
        flags = [(name, isa.SLOT_FIELDS[name].width) for name in ("command", *self.copied)]
        Record.__init__(self, [*flags, ("immediate", 1), ("bank", BANK_BITS), ("address", ADDRESS_BITS)])
