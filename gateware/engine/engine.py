"""The test engine: runs programs on the DRAM and records what differs (`gateware.isa`, `gateware.registers`).

    program memory → Sequencer → Addresses → Banks → DataPath → DFI
                                                     DataPath → Recorder → log and counters

It owns the DFI from a program's first command to its end; in between LiteDRAM's controller keeps the DRAM refreshed.
"""

from functools import reduce
from operator import or_

from litex.soc.interconnect import wishbone
from litex.soc.interconnect.csr import AutoCSR, CSRStatus, CSRStorage
from migen import FSM, Array, Case, Constant, If, Module, NextState, Signal

from gateware import registers
from gateware.engine.addresses import Addresses
from gateware.engine.banks import Banks
from gateware.engine.data_path import DataPath
from gateware.engine.fields import FAULT_BITS, PC_BITS
from gateware.engine.memories import BusWindow, Checker, LaneMemory
from gateware.engine.parameters import EngineParameters
from gateware.engine.recorder import Recorder
from gateware.engine.sequencer import Sequencer
from gateware.isa import INSTRUCTION_WORDS
from gateware.registers import REGISTERS, Fault, Register, State

# System clocks after a fault before the DFI goes back and all banks are precharged: more than tRAS, tRTP or WL + tWR.
FAULT_CLOCKS = 31


_NEEDS_DRAM = ("TAKE", "RUN", "FINISH", "CHECK_CAPTURE", "FAULT")
_CLEARED = ("control", "log_consumed")  # registers that the engine writes too


class TestEngine(Module, AutoCSR):
    """See the module's text.

    Args:
        parameters: what it is built for.

    Attributes:
        dfi: out, for the DFI injector's ``ext_dfi``.
        take, taken: out, in; it wants the DFI, and has it.
        windows: a Wishbone slave for each of `gateware.registers.MEMORIES`.
    """

    __test__ = False  # it is no test, whatever pytest takes from its name

    def __init__(self, parameters: EngineParameters) -> None:
        self._parameters = parameters
        self.take, self.taken = Signal(), Signal()
        self._csrs = {register.name: _csr(register, parameters) for register in REGISTERS}
        self.submodules.sequencer = Sequencer(parameters)
        self.submodules.addresses = Addresses(parameters)
        self.submodules.banks = Banks(parameters)
        self.submodules.data_path = DataPath(parameters)
        self.submodules.recorder = Recorder(parameters)
        self.dfi = self.data_path.dfi
        burst_words = parameters.geometry.burst_bits // 32
        self.submodules.program = LaneMemory(INSTRUCTION_WORDS, parameters.program_depth)
        self.submodules.write_buffer = LaneMemory(burst_words, parameters.buffer_bursts)
        self._start = Signal()
        self._connect_pipeline()
        self._add_control()
        self._add_windows()
        self._connect_registers()

    def set_build(self, value: int) -> None:
        """What register ``build`` reads; before the module is finalized."""
        self._csrs["build"].status.reset = Constant(value, 32)

    def get_csrs(self) -> list[CSRStatus | CSRStorage]:
        """In the order of `gateware.registers.REGISTERS`."""
        return list(self._csrs.values())

    def _connect_pipeline(self) -> None:
        sequencer, addresses, banks = self.sequencer, self.addresses, self.banks
        data_path, recorder = self.data_path, self.recorder
        self.comb += [
            addresses.item.eq(sequencer.item),
            banks.item.eq(addresses.out),
            *[after.eq(before) for after, before in zip(banks.commands, addresses.commands, strict=True)],
            *[after.eq(before) for after, before in zip(data_path.issued, banks.issued, strict=True)],
            data_path.data.eq(banks.data),
            data_path.refresh.eq(banks.refresh),
            data_path.idle_refresh.eq(sequencer.idle_refresh),
            data_path.taken.eq(self.taken),
            recorder.read.eq(data_path.compared),
            recorder.flips.eq(data_path.flips),
            recorder.expected.eq(data_path.right),
            *[
                getattr(recorder, name).eq(getattr(data_path.burst, name))
                for name in ("bank", "row", "burst", "counters", "row_base")
            ],
            sequencer.free_blocks.eq(recorder.free_blocks),
            sequencer.backlog.eq(recorder.backlog),
            sequencer.in_flight.eq(data_path.in_flight),
            sequencer.banks_open.eq(banks.banks_open),
            sequencer.drained.eq((data_path.in_flight == 0) & ~recorder.busy),
            *[each.start.eq(self._start) for each in (addresses, banks, data_path)],
            recorder.begin.eq(self._start),
        ]

    def _command(self, bit: int) -> Signal:
        """A pulse where the host writes ``bit`` of register ``control``."""
        pulse = Signal()
        control = self._csrs["control"]
        self.comb += pulse.eq(control.re & control.storage[bit.bit_length() - 1])
        return pulse

    def _add_control(self) -> None:
        """From the host's start to the end of the program."""
        sequencer, banks, recorder = self.sequencer, self.banks, self.recorder
        start, resume = self._command(registers.START), self._command(registers.RESUME)
        self._add_checks()
        self._chunk, self._settled, self._bad_check = Signal(), Signal(), Signal()
        failed = Signal()
        buffer_length = self._csrs["buffer_length"].storage
        self.submodules.machine = machine = FSM(reset_state="IDLE")
        self.comb += [
            sequencer.stop_request.eq(self._command(registers.STOP)),
            sequencer.fetch.length.eq(self._csrs["program_length"].storage),
            self.addresses.abort.eq(sequencer.abort),
            failed.eq((banks.fault != 0) | recorder.overflow),
        ]
        check_failed = [self._bad_check.eq(1), NextState("IDLE")]
        check_buffer = If(buffer_length == 0, NextState("TAKE")).Else(
            self._check_buffer.eq(1), NextState("CHECK_BUFFER")
        )
        self.sync += [  # a clock late, for they go everywhere; banks stop what a fault must stop at once
            self._start.eq(machine.ongoing("IDLE") & start),
            sequencer.abort.eq(failed | self._bad_check),
            self.take.eq(self._chunk | reduce(or_, [machine.ongoing(state) for state in _NEEDS_DRAM])),
        ]
        machine.act("IDLE", If(start, NextState("CLEARED")))
        machine.act("CLEARED", self._check_program.eq(1), NextState("CHECK_PROGRAM"))
        machine.act("CHECK_PROGRAM", If(self._checked, If(self._program_good, check_buffer).Else(*check_failed)))
        machine.act("CHECK_BUFFER", If(self._checked, If(self._buffer_good, NextState("TAKE")).Else(*check_failed)))
        machine.act(
            "TAKE",
            If(
                self.taken & (self._chunk | ~recorder.busy),
                If(self._chunk, sequencer.resume.eq(1)).Else(sequencer.start.eq(1)),
                NextState("RUN"),
            ),
        )
        machine.act(
            "RUN",
            If(failed, NextState("FAULT"))
            .Elif(sequencer.ended, recorder.finish.eq(1), NextState("FINISH"))
            .Elif(sequencer.chunk_done & resume, self._check_program.eq(1), NextState("CHECK_PROGRAM"))
            .Else(sequencer.resume.eq(resume & sequencer.halted)),
        )
        machine.act("FINISH", If(self._settled, self._check_capture.eq(1), NextState("CHECK_CAPTURE")))
        machine.act("CHECK_CAPTURE", If(self._checked, NextState("IDLE")))
        machine.act("FAULT", If(self._settled, NextState("IDLE")))
        self._add_status(machine)

    def _add_status(self, machine: FSM) -> None:
        """Registers ``state``, ``fault``, ``fault_pc`` and ``starts``."""
        sequencer, banks, recorder, data_path = self.sequencer, self.banks, self.recorder, self.data_path
        self._state, self._fault, self._fault_pc = Signal(3), Signal(FAULT_BITS), Signal(PC_BITS)
        self._starts, quiet = Signal(32), Signal(max=FAULT_CLOCKS + 1)
        last = Signal(3, reset=int(State.IDLE))
        running = Signal()
        self.comb += [
            running.eq(~machine.ongoing("IDLE")),
            self._settled.eq(quiet == FAULT_CLOCKS),
            self._state.eq(last),
            If(running, self._state.eq(int(State.RUNNING))),
            If(machine.ongoing("RUN") & sequencer.halted, self._state.eq(int(State.HALTED))),
            If(machine.ongoing("RUN") & sequencer.chunk_done, self._state.eq(int(State.CHUNK))),
        ]
        self.sync += [
            If((data_path.in_flight != 0) | (recorder.busy & ~recorder.overflow), quiet.eq(0)).Elif(
                ~self._settled, quiet.eq(quiet + 1)
            ),
            If(machine.ongoing("RUN"), quiet.eq(0)),
            If(machine.ongoing("RUN"), self._chunk.eq(sequencer.chunk_done | (self._chunk & ~sequencer.item.tick))),
            If(machine.ongoing("CHECK_CAPTURE"), last.eq(int(State.DONE))),
            If(
                machine.ongoing("FAULT"),
                last.eq(int(State.FAULT)),
                self._chunk.eq(0),
                self._fault.eq(banks.fault),
                self._fault_pc.eq(banks.fault_pc),
                If(banks.fault == 0, self._fault.eq(int(Fault.LOG_OVERFLOW)), self._fault_pc.eq(sequencer.item.pc)),
            ),
            If(
                self._bad_check,
                last.eq(int(State.FAULT)),
                self._chunk.eq(0),
                self._fault.eq(int(Fault.BAD_CHECK)),
                self._fault_pc.eq(0),
            ),
            If(
                self._start,
                self._starts.eq(self._starts + 1),
                self._fault.eq(0),
                self._fault_pc.eq(0),
                self._capture_check.eq(0),
            ),
        ]

    def _add_checks(self) -> None:
        """One CRC-32 for program, write buffer and capture buffer, whichever is looked at."""
        burst_words = self._parameters.geometry.burst_bits // 32
        lane_bits, data_path = burst_words.bit_length() - 1, self.data_path
        program, buffer = self.program, self.write_buffer
        sizes = (INSTRUCTION_WORDS * self._parameters.program_depth, burst_words * self._parameters.buffer_bursts)
        self.submodules.checker = self._checker = checker = Checker((max(sizes) - 1).bit_length())
        self._check_program, self._check_buffer, self._check_capture = Signal(), Signal(), Signal()
        self._program_good, self._buffer_good, self._capture_check = Signal(), Signal(), Signal(32)
        self._checked = Signal()  # the clock after the checker is done
        looking = Signal(2)  # 0 program, 1 write buffer, 2 capture buffer
        checking, lane = Signal(), Signal(max=max(INSTRUCTION_WORDS, burst_words))
        program_word, buffer_word = Signal(32), Signal(32)
        self.sync += [
            lane.eq(checker.address),
            If(checker.done, checking.eq(0), If(looking == 2, self._capture_check.eq(checker.crc))),
            If(self._check_program, looking.eq(0), checking.eq(1), checker.words.eq(self._words("program_length", 2))),
            If(
                self._check_buffer,
                looking.eq(1),
                checking.eq(1),
                checker.words.eq(self._words("buffer_length", lane_bits)),
            ),
            If(self._check_capture, looking.eq(2), checker.words.eq(data_path.captured << lane_bits)),
            checker.start.eq(self._check_program | self._check_buffer | self._check_capture),
        ]
        self.comb += [
            program_word.eq(_words_of(program.data)[lane[:2]]),
            buffer_word.eq(_words_of(buffer.data)[lane[:lane_bits]]),
            Case(
                looking,
                {
                    0: checker.word.eq(program_word),
                    1: checker.word.eq(buffer_word),
                    "default": checker.word.eq(data_path.capture_word),
                },
            ),
            data_path.capture_address.eq(checker.address),
            program.read.eq(checking | self.sequencer.fetch.read),
            program.line.eq(self.sequencer.fetch.address),
            buffer.read.eq(checking | data_path.buffer_read),
            buffer.line.eq(data_path.buffer_address),
            If(checking, program.line.eq(checker.address >> 2), buffer.line.eq(checker.address >> lane_bits)),
            data_path.buffer_data.eq(buffer.data),
            self.sequencer.fetch.data.eq(program.data),
        ]
        self.sync += [
            self._checked.eq(checker.done),
            self._program_good.eq(checker.crc == self._csrs["program_check"].storage),
            self._buffer_good.eq(checker.crc == self._csrs["buffer_check"].storage),
        ]

    def _words(self, register: str, shift: int) -> Signal:
        return self._csrs[register].storage << shift

    def _add_windows(self) -> None:
        """A bus slave in front of each memory."""
        written = {"program": self.program, "write_buffer": self.write_buffer}
        read = {"capture": self.data_path.capture_window, **self.recorder.windows}
        self.windows: dict[str, wishbone.Interface] = {}
        for memory in registers.MEMORIES:
            if memory.name in written:
                lanes = written[memory.name]
                window = BusWindow(lanes.window, self._parameters.look_ahead, lanes.write, lanes.write_data)
            else:
                port = read[memory.name]
                window = BusWindow(port, self._parameters.look_ahead and port.follows)
            setattr(self.submodules, f"{memory.name}_window", window)
            self.windows[memory.name] = window.bus

    def _connect_registers(self) -> None:
        """Everything that is read, and what a start clears."""
        values = {
            **{"starts": self._starts, "state": self._state, "fault": self._fault, "fault_pc": self._fault_pc},
            **{"clocks": self.banks.clocks, "refreshes": self.banks.refreshes, "reads_compared": self.recorder.reads},
            **{"log_produced": self.recorder.log_produced, "captured": self.data_path.captured},
            **{"capture_check": self._capture_check},
        }
        control, consumed = self._csrs["control"], self._csrs["log_consumed"]
        self.comb += [
            *[self._csrs[name].status.eq(value) for name, value in values.items()],
            control.we.eq(control.re),
            control.dat_w.eq(0),
            consumed.we.eq(self._start),
            consumed.dat_w.eq(0),
            self.recorder.log_consumed.eq(consumed.storage),
        ]


def _words_of(line: Signal) -> Array:
    return Array(line[low : low + 32] for low in range(0, len(line), 32))


def _csr(register: Register, parameters: EngineParameters) -> CSRStatus | CSRStorage:
    """The CSR of a register of the table, with its description."""
    size, name, text = 32 * register.words, register.name, register.text
    if register.writable:
        return CSRStorage(size, reset=register.reset, name=name, description=text, write_from_dev=name in _CLEARED)
    return CSRStatus(size, reset=parameters.constants().get(name, register.reset), name=name, description=text)
