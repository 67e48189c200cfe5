"""Executes instructions, keeps time and refresh, and decides at each YIELD whether to go on.

One instruction a system clock. What must happen in order (addresses, bank states, faults) happens further down the
pipeline; the sequencer sends an `Item` for each clock of program time, and holds the program by sending none.
"""

from migen import FSM, If, Module, Mux, NextState, ResetInserter, Signal

from gateware import isa
from gateware.engine.fetch import Fetch
from gateware.engine.fields import Item, field, set_fields
from gateware.engine.parameters import EngineParameters
from gateware.errorlog import PAYLOAD_WORDS
from gateware.isa import COMMON_FIELDS, END_FIELDS, Opcode, Setting
from gateware.registers import Fault
from profiles.errors import ProgramError

PIPELINE_READS = 9  # no fewer than the READs between an item and what `flows` has counted
QUIET_CLOCKS = 11  # that nothing is under way before the recorder's figures are taken as final


class Sequencer(Module):
    """See the module's text.

    Attributes:
        start: in, pulse; run the program from instruction 0, settings at their start values.
        resume: in, pulse; go on after a halt, or with the next chunk.
        stop_request: in, pulse; halt at the next YIELD.
        abort: in, pulse; a fault was raised, send nothing more.
        fetch: between it and the program memory; see `Fetch`.
        free_blocks, in_flight, backlog: in; room in the log, compared READs under way, failing bursts that wait.
        drained, banks_open: in; nothing is under way after the pipeline; a row is open.
        item: out, see `Item`.
        halted, chunk_done, ended: out; the program waits at a YIELD, for its next chunk, or is over and all recorded.
        idle_refresh: out, pulse; REF outside program time.
    """

    def __init__(self, parameters: EngineParameters) -> None:
        if parameters.backlog < 2 * isa.YIELD_READS:
            raise ProgramError(f"backlog is {parameters.backlog}; it must be at least {2 * isa.YIELD_READS}")
        self.start, self.resume, self.stop_request, self.abort = Signal(), Signal(), Signal(), Signal()
        self.submodules.fetch = Fetch()
        self.instruction = self.fetch.instruction
        self.free_blocks, self.in_flight, self.backlog = Signal(32), Signal(16), Signal(16)
        self.drained, self.banks_open = Signal(), Signal()
        self.item = Item()
        self.halted, self.chunk_done, self.ended = Signal(), Signal(), Signal()
        self.idle_refresh = Signal()

        # # #

        self._set_refresh, self._set_reserve = Signal(), Signal()
        self._setting, self._value = set_fields(self, self.instruction)
        self._add_wait()
        self._add_refresh_timer()
        self._add_flow_control(parameters)
        self._add_machine()

    def _field(self, name: str) -> Signal:
        return field(self.instruction, COMMON_FIELDS[name])

    def _add_wait(self) -> None:
        """Clocks of program time that are left after an instruction's own."""
        left = Signal(COMMON_FIELDS["wait"].width)
        self._load_wait, self._waits, self._last_wait = Signal(), Signal(), Signal()
        self.sync += [
            If(self._waits, left.eq(left - 1), self._waits.eq(~self._last_wait), self._last_wait.eq(left == 2)),
            If(
                self._load_wait,
                left.eq(self._field("wait")),
                self._waits.eq(1),
                self._last_wait.eq(self.fetch.wait_is[1]),
            ),
            If(self.fetch.begin, self._waits.eq(0)),
        ]

    def _add_refresh_timer(self) -> None:
        """Program time until the next refresh is due, and real time since the last one while the program is held."""
        armed, interval, trfc = Signal(), Signal(32), Signal(32)
        remembered, next_one, near = Signal((40, True)), Signal((40, True)), Signal()
        left, since = Signal(32), Signal(32)
        self._due, self._begin_refresh, self._refresh, self._held = Signal(), Signal(), Signal(), Signal()
        self._trfc_is_1, self._last_of_trfc, self._may_resume = Signal(), Signal(), Signal()
        low, high, tick = self._value[:32], self._value[32:], self.item.tick
        self.comb += [
            next_one.eq(remembered + interval),
            self._due.eq(armed & near),  # in a clock of program time: due when it is over
            self.idle_refresh.eq(self._held & armed & (since == interval) & ~self.banks_open),
        ]
        self.sync += [
            remembered.eq(Mux(self._begin_refresh, next_one, remembered) - tick),
            # the comparisons side by side, the late signals choose: until after this clock <= 1
            near.eq(
                Mux(
                    self._begin_refresh,
                    Mux(tick, next_one <= 2, next_one <= 1),
                    Mux(tick, remembered <= 2, remembered <= 1),
                )
            ),
            If(self._refresh, left.eq(trfc), self._last_of_trfc.eq(trfc == 2)).Else(
                left.eq(left - 1), self._last_of_trfc.eq(left == 3)
            ),
            If(
                self._set_refresh,
                armed.eq(low != 0),
                interval.eq(low),
                trfc.eq(high),
                self._trfc_is_1.eq(high == 1),
                remembered.eq(low - tick),
                near.eq(low <= 2),  # a SET takes a clock of program time
            ),
            If(self.start, armed.eq(0)),
            self._may_resume.eq(~armed | ((since > trfc) & ~self.idle_refresh)),
            If(~self._held, since.eq(trfc + 1))
            .Elif(self.idle_refresh, since.eq(0))
            .Elif(since != interval, since.eq(since + 1)),
        ]

    def _add_flow_control(self, parameters: EngineParameters) -> None:
        """May a YIELD be passed? Reads under way count as if every bit failed; once all is quiet, room is exact."""
        reserve, under_way, room = Signal(32), Signal(17), Signal(32)
        quiet = Signal(max=QUIET_CLOCKS + 1)
        self._flows, self._full, self._bad_reserve, self._quiet = Signal(), Signal(), Signal(), Signal()
        reads_per_block = PAYLOAD_WORDS // (2 + parameters.geometry.burst_bits // 32)
        claimed = (under_way >> (reads_per_block.bit_length() - 1)) + 2
        self._settling = Signal()
        self.comb += self._quiet.eq(quiet == QUIET_CLOCKS)
        self.sync += [
            under_way.eq(self.backlog + self.in_flight + PIPELINE_READS),
            room.eq(self.free_blocks),
            self._full.eq(room < reserve),
            self._flows.eq(
                ((reserve == 0) | (room >= reserve + claimed)) & (under_way <= parameters.backlog - isa.YIELD_READS)
            ),
            If(~(self._settling & self.drained), quiet.eq(0)).Elif(~self._quiet, quiet.eq(quiet + 1)),
            If(
                self._set_reserve,
                reserve.eq(self._value[:32]),
                self._bad_reserve.eq(self._value[:32] > parameters.log_blocks - 1),
                self._flows.eq(0),
            ),
            If(self.start, reserve.eq(0), self._bad_reserve.eq(0)),
        ]

    def _send(self, *flags: str) -> list:
        return [getattr(self.item, flag).eq(1) for flag in flags]

    def _fail(self, fault: Fault) -> list:
        """Send a fault behind what was sent before, and nothing after it."""
        return [self.item.fault.eq(int(fault)), NextState("IDLE")]

    def _leave(self) -> list:
        """The last clock of an instruction."""
        return [
            If(self._field("opcode") == int(Opcode.END), NextState("END"))
            .Elif(self.fetch.ends_nothing, NextState("LOOP_FAULT"))
            .Else(self.fetch.advance.eq(1), NextState("RUN"))
        ]

    def _pass(self) -> list:
        """The instruction is done but for its wait."""
        return [If(self.fetch.wait_is[0], *self._leave()).Else(self._load_wait.eq(1), NextState("RUN"))]

    def _add_machine(self) -> None:
        self.submodules.machine = machine = ResetInserter()(FSM(reset_state="IDLE"))
        self._stop, halting = Signal(), Signal()
        self.sync += If(self.stop_request, self._stop.eq(1)).Elif(self.start | halting, self._stop.eq(0))
        self.comb += [
            machine.reset.eq(self.abort),
            self.item.instruction.eq(self.instruction),
            self.item.pc.eq(self.fetch.pc),
        ]
        machine.act("IDLE", If(self.start, NextState("BEGIN")))
        machine.act("BEGIN", self.fetch.begin.eq(1), NextState("FETCH"))
        machine.act("FETCH", NextState("RUN"))
        machine.act(
            "RUN",
            If(self._waits, *self._send("tick"), If(self._last_wait, *self._leave()))
            .Elif(self.fetch.past_end, *self._fail(Fault.BAD_INSTRUCTION))
            .Elif(self.fetch.too_deep, *self._fail(Fault.LOOP))
            .Else(*self._execute()),
        )
        machine.act("LOOP_FAULT", *self._fail(Fault.LOOP))
        machine.act("REFRESH", self._refresh.eq(1), *self._send("tick", "refresh"), *self._refreshing(self._trfc_is_1))
        machine.act("REFRESHING", *self._send("tick"), *self._refreshing(self._last_of_trfc))
        machine.act(
            "SETTLE",
            self._settling.eq(1),
            If(self._flows & ~self._stop, *self._pass()).Elif(
                self._quiet, If(self._full | self._stop, halting.eq(1), NextState("HALT")).Else(*self._pass())
            ),
        )
        machine.act(  # after a halt: a new request to stop is for the next YIELD
            "SETTLE_AGAIN",
            self._settling.eq(1),
            If(self._quiet, If(self._full, NextState("HALT")).Else(*self._pass())),
        )
        machine.act("HALT", self._held.eq(1), self.halted.eq(1), If(self.resume, NextState("RESUME")))
        machine.act("RESUME", self._held.eq(1), If(self._may_resume & ~self.idle_refresh, NextState("SETTLE_AGAIN")))
        more = field(self.instruction, END_FIELDS["more"])
        machine.act("END", self._settling.eq(1), If(self._quiet, If(more, NextState("CHUNK")).Else(NextState("ENDED"))))
        machine.act("CHUNK", self._held.eq(1), self.chunk_done.eq(1), If(self.resume, NextState("CHUNK_RESUME")))
        machine.act("CHUNK_RESUME", self._held.eq(1), If(self._may_resume & ~self.idle_refresh, NextState("BEGIN")))
        machine.act("ENDED", self.ended.eq(1), NextState("IDLE"))

    def _execute(self) -> list:
        """The first clock of an instruction."""
        opcode, setting = self._field("opcode"), self._setting
        set_ = [
            *self._send("set", "tick"),
            self._set_refresh.eq(setting == int(Setting.REFRESH)),
            self._set_reserve.eq(setting == int(Setting.LOG_RESERVE)),
            *self._pass(),
        ]
        yield_ = [
            *self._send("check"),
            If(self._bad_reserve, *self._fail(Fault.RESERVE)).Else(
                *self._send("tick"),
                *self._go_on(),
            ),
        ]
        return [
            If(opcode == int(Opcode.ISSUE), *self._send("issue", "tick"), *self._pass())
            .Elif(opcode == int(Opcode.YIELD), *yield_)
            .Elif(opcode == int(Opcode.END), *self._send("tick"), *self._pass())
            .Elif(opcode == int(Opcode.SET), *set_)
            .Else(*self._fail(Fault.BAD_INSTRUCTION))
        ]

    def _refreshing(self, last: Signal) -> list:
        """A clock of tRFC."""
        return [
            If(~last, NextState("REFRESHING")).Else(*self._go_on()),
        ]

    def _go_on(self) -> list:
        """The last clock of a YIELD or of one of its refreshes."""
        return [
            If(self._due, self._begin_refresh.eq(1), NextState("REFRESH"))
            .Elif(self._flows & ~self._stop, *self._pass())
            .Else(NextState("SETTLE"))
        ]
