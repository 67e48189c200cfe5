"""The instruction that is executed, and which one comes next: program counter and loops.

One instruction a system clock, loops included. Block RAM is slow, so that only a register stands behind it: while
an instruction is executed, the program memory holds out the one after it. A loop's first instruction is kept with the
loop, and jumping back to it costs no clock.
"""

from migen import Array, Cat, If, Memory, Module, Mux, Signal

from gateware.engine.fields import PC_BITS, field
from gateware.isa import COMMON_FIELDS, INSTRUCTION_WORDS, LOOP_DEPTH


class Fetch(Module):
    """See the module's text.

    Attributes:
        begin: in, pulse; go to instruction 0, outside all loops. It is there two clocks later.
        advance: in; the last clock of an instruction, the next one is there in the next clock.
        length: in, instructions of the program.
        address, read: out, to the program memory; data: in, its output one clock later.
        instruction, pc: out; the present instruction and its number.
        wait_is: out, by clocks (0 and 1); whether its field ``wait`` is that.
        past_end, too_deep, ends_nothing: out; why it cannot be executed, or (the last) not be left.
    """

    def __init__(self) -> None:
        self.begin, self.advance, self.length = Signal(), Signal(), Signal(PC_BITS)
        self.address, self.read, self.data = Signal(PC_BITS), Signal(), Signal(32 * INSTRUCTION_WORDS)
        self.instruction, self.pc = Signal(32 * INSTRUCTION_WORDS), Signal(PC_BITS)
        self.wait_is = {clocks: Signal() for clocks in (0, 1)}
        self.past_end, self.too_deep, self.ends_nothing = Signal(), Signal(), Signal()

        # # #

        self._begun = Signal()  # instruction 0 is at the memory's output
        self._following = Signal(PC_BITS)  # number of the instruction at the memory's output
        self._begins, self._ends, self._again = Signal(), Signal(), Signal()  # a loop; its next pass follows
        self._count_over = {passes: Signal() for passes in (1, 2)}  # the instruction's count is more than that
        self._kept_instruction = Signal(32 * INSTRUCTION_WORDS)  # the innermost loop's first one,
        self._kept_wait_is = {clocks: Signal() for clocks in self.wait_is}  # what is known of it,
        self._kept_following = Signal(PC_BITS)  # and the number after it
        self._add_instruction()
        self._add_address()
        self._add_loops()

    def _add_instruction(self) -> None:
        """What is looked up in the next instruction is looked up in what the memory holds out, before the choice."""
        upcoming = Signal(32 * INSTRUCTION_WORDS)
        count, wait = (field(self.data, COMMON_FIELDS[name]) for name in ("count", "wait"))
        self.comb += [
            upcoming.eq(self.data),
            If(self._again, upcoming.eq(Mux(self._begins, self.instruction, self._kept_instruction))),
        ]
        self.sync += If(
            self.advance | self._begun,
            self.instruction.eq(upcoming),
            If(
                self._again,
                If(~self._begins, *[each.eq(self._kept_wait_is[clocks]) for clocks, each in self.wait_is.items()]),
            ).Else(*[each.eq(wait == clocks) for clocks, each in self.wait_is.items()]),
            self._begins.eq(field(self.data, COMMON_FIELDS["loop_begin"]) & (count != 0) & ~self._again),
            self._count_over[1].eq(count[1:] != 0),
            self._count_over[2].eq((count[2:] != 0) | (count[:2] == 3)),
        )

    def _add_address(self) -> None:
        beyond = Signal(PC_BITS)
        self.comb += [
            self.read.eq(self.begin | self._begun | self.advance),
            self.address.eq(beyond),
            If(self._again, self.address.eq(Mux(self._begins, self._following, self._kept_following))),
            If(self.begin, self.address.eq(0)),
        ]
        self.sync += [
            self._begun.eq(self.begin),
            If(
                self.read,
                self.pc.eq(self.address - 1),
                self._following.eq(self.address),
                beyond.eq(self.address + 1),
                self.past_end.eq(~self._again & (self._following == self.length)),
            ),
        ]

    def _add_loops(self) -> None:
        """The stack of loops: what each begins with, and its passes left with the present one."""
        depth, after, innermost = Signal(max=LOOP_DEPTH + 1), Signal(max=LOOP_DEPTH + 1), Signal(max=LOOP_DEPTH)
        lefts = [Signal(COMMON_FIELDS["count"].width) for _ in range(LOOP_DEPTH)]
        repeats = [Signal() for _ in range(LOOP_DEPTH)]  # more than one is left
        again = Mux(self._begins, self._count_over[1], Array(repeats)[innermost])
        self.comb += [
            after.eq(depth + self._begins - (self._ends & ~self._again)),
            self._ends.eq(field(self.instruction, COMMON_FIELDS["loop_end"])),
            self._again.eq(self._ends & again & ~self._begun),
            self.too_deep.eq(self._begins & (depth == LOOP_DEPTH)),
            self.ends_nothing.eq(self._ends & ~self._begins & (depth == 0)),
        ]
        count = field(self.instruction, COMMON_FIELDS["count"])
        begun = [left.eq(count - self._ends) for left in lefts]
        begun_repeats = [each.eq(Mux(self._ends, self._count_over[2], self._count_over[1])) for each in repeats]
        self.sync += [
            If(self.advance, depth.eq(after), innermost.eq(after - 1)),
            If(self.begin, depth.eq(0)),
            *[
                If(self.advance & self._begins & (depth == k), begun[k], begun_repeats[k]).Elif(
                    self.advance & self._ends & ~self._begins & (innermost == k),
                    lefts[k].eq(lefts[k] - 1),
                    repeats[k].eq(lefts[k] > 2),
                )
                for k in range(LOOP_DEPTH)
            ],
        ]
        self._keep_beginnings(depth, innermost)

    def _keep_beginnings(self, depth: Signal, innermost: Signal) -> None:
        """A loop's first instruction and the number after it, written as the loop begins."""
        memory = Memory(len(self.instruction) + len(self.wait_is) + PC_BITS, LOOP_DEPTH)
        entered, kept = memory.get_port(write_capable=True), memory.get_port(async_read=True)
        self.specials += memory, entered, kept
        self.comb += [
            entered.adr.eq(depth),
            entered.dat_w.eq(Cat(self.instruction, *self.wait_is.values(), self._following)),
            entered.we.eq(self.advance & self._begins),
            kept.adr.eq(innermost),
            Cat(self._kept_instruction, *self._kept_wait_is.values(), self._kept_following).eq(kept.dat_r),
        ]
