"""A board as the host works with it: runs test-engine programs over a bus and checks everything that comes back."""

import math
import struct
import time
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from operator import itemgetter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gateware import isa, registers
from gateware.errorlog import BLOCK_WORDS
from gateware.isa import Instruction
from gateware.registers import CSR_BASE, RESUME, START, Fault, State
from host import errorlog, programs
from host.bus import Bus, Words
from host.identity import identify
from host.programs import EngineBuild, Traversal
from host.rail import WATCH_S, Rail
from host.thermostat import Keeper
from host.timings import JedecTimings, Timings
from profiles.cells import LineCounts
from profiles.errors import BoardError, LinkError, ProfileError, ProgramError, UnacknowledgedError
from profiles.geometry import CellArray, Geometry
from profiles.schema import ModuleIdentity

_FULL = (1 << 32) - 1  # where line counters stop
START_ATTEMPTS = 8
_STRETCHES = 16  # in one program: each takes some fifty instructions of the engine's memory
SILENCE_S = 60.0  # a program whose clock counter stands still this long is taken for dead


class Environment(Protocol):
    """What surrounds the DRAM.

    Attributes:
        sensor: which one tells its temperature; None where none does.
    """

    sensor: str | None

    def begin_epoch(self, epoch: int, activations: int = 0) -> None:
        """Tag reads with an epoch; only chip models draw from it, real boards ignore it.

        Args:
            epoch: the same one draws the same errors.
            activations: of each bank that the epoch has seen before, so that it goes on where it was left.
        """

    def temperature_c(self) -> float | None:
        """DRAM temperature, degrees Celsius; None where there is no sensor.

        Raises:
            TemperatureError: the sensor is gone.
        """


class Thermometer:
    """Reads an environment's temperature while a program runs.

    Attributes:
        readings: degrees Celsius, since `begin_watch`.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment, self._looked = environment, math.inf
        self.readings: list[float] = []

    def begin_watch(self) -> None:
        """Forget the readings, and take the next one as soon as `watch` is called."""
        self.readings, self._looked = [], 0.0

    def end_watch(self) -> list[float]:
        """Read no more; returns the readings."""
        self._looked = math.inf
        return self.readings

    def watch(self) -> None:
        """Read, at most once in `WATCH_S`, if that was begun: for a loop that waits for the board."""
        if (now := time.monotonic()) - self._looked < WATCH_S:
            return
        self._looked = now
        if (celsius := self._environment.temperature_c()) is not None:
            self.readings.append(celsius)


@dataclass(frozen=True)
class Status:
    """What the engine says of itself: the registers of these names (`gateware.registers`).

    They are read in one access, as each costs a way to the board and back, a millisecond or more over USB. A state is
    read before what was logged by then, for so they lie.
    """

    starts: int
    state: State
    fault: int
    fault_pc: int
    clocks: int
    reads_compared: int
    refreshes: int
    log_produced: int
    captured: int
    capture_check: int


_STATUS = tuple(field.name for field in fields(Status))
_NAMES = tuple(register.name for register in registers.REGISTERS)
_BLOCK = registers.REGISTERS[_NAMES.index(_STATUS[0]) : _NAMES.index(_STATUS[-1]) + 1]
_BLOCK_WORDS = sum(register.words for register in _BLOCK)
_BLOCK_LAYOUT = struct.Struct("<" + "".join({1: "I", 2: "Q"}[register.words] for register in _BLOCK))
_STATES = frozenset(State)
_status_of = itemgetter(*(k for k, register in enumerate(_BLOCK) if register.name in _STATUS))


@dataclass(frozen=True)
class RunResult:
    """Totals of one program.

    Attributes:
        reads: READs compared.
        errors: int64[banks, 2], failed bits by bank and direction (0→1, 1→0).
        clocks: system clocks of program time.
        refreshes: REF commands issued.
    """

    reads: int
    errors: npt.NDArray[np.int64]
    clocks: int
    refreshes: int


@dataclass(frozen=True)
class Image:
    """A program as it is loaded into the engine.

    Attributes:
        words: uint32[instructions * INSTRUCTION_WORDS].
        check: CRC-32 of them.
        logs: whether the program logs the errors that it finds.
    """

    words: Words
    check: int
    logs: bool

    @classmethod
    def of(cls, program: Sequence[Instruction]) -> "Image":
        """Assemble ``program``. Raises ProgramError for one that cannot be (`gateware.isa.assemble`)."""
        words = isa.assemble(program)
        modes = [i.value for i in program if i.opcode == isa.Opcode.SET and i.setting == isa.Setting.COUNTERS]
        return cls(words, zlib.crc32(words.tobytes()), bool((modes[-1] if modes else isa.COUNT_LOG) & isa.COUNT_LOG))

    @property
    def length(self) -> int:
        """Instructions."""
        return self.words.size // isa.INSTRUCTION_WORDS


@dataclass
class Usage:
    """What programs have taken of a board since it was opened.

    Attributes:
        programs: programs run to their end.
        clocks: system clocks of their program time, refreshes included.
    """

    programs: int = 0
    clocks: int = 0


Stretch = tuple[int, int]
"""First cell (at the start of a burst) and number of bursts of consecutive bursts of a bank."""

FailingBits = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class Board:
    """A DDR board with a test engine.

    Args:
        bus: link to it.
        rail: its DRAM supply.
        environment: temperature and epoch.
        module: identity of the DRAM module.
        jedec: its speed grade.
        chip_width: data lines of one chip (from the SPD).
        name: the ``--board`` specification.
        seed: seed of a chip model, None for real DRAM.

    Attributes:
        usage: what programs have taken so far.
        thermometer: of the environment.
        thermostat: what keeps its DRAM's temperature; None where nothing does.

    Raises:
        LinkError: nothing answers as a test engine.
        BoardError: its interface version is not this host's.
    """

    def __init__(
        self,
        bus: Bus,
        rail: Rail,
        environment: Environment,
        module: ModuleIdentity,
        jedec: JedecTimings,
        chip_width: int,
        name: str,
        seed: int | None,
    ) -> None:
        self.bus, self.rail, self.environment = bus, rail, environment
        self.module, self.jedec, self.name, self.seed = module, jedec, name, seed
        self._offsets, self._bases = registers.register_offsets(), registers.memory_bases()
        self._words = {register.name: register.words for register in registers.REGISTERS}
        self.identity = identify(bus, name)
        self._constants = self.identity.constants
        shape = ("banks", "rows", "columns", "data_width", "burst_length")
        try:
            self.geometry = Geometry(**{name: self._constants[name] for name in shape}, chip_width=chip_width)
        except ValueError as error:
            raise BoardError(f"'{name}' describes a module that cannot be: {self._constants}; reset it") from error
        self.build = EngineBuild(
            **{name: self._constants[name] for name in ("nphases", "read_phase", "write_phase", "log_blocks")},
            geometry=self.geometry,
            timings=Timings.of(jedec, self._constants["tck_ps"], self._constants["cas_write_latency"]),
        )
        self.buffer_bursts, self.row_counters = self._constants["buffer_bursts"], self._constants["row_counters"]
        self._burst_words = self.geometry.burst_bits // 32
        self._starts: int | None = None  # of the program that ran last, in this session
        self.usage = Usage()
        self.thermometer = Thermometer(environment)
        self.thermostat: Keeper | None = None
        self._transfer = lru_cache(maxsize=256)(self._transfer_image)

    def kept_by(self, thermostat: Keeper, environment: Environment) -> None:
        """From here on ``thermostat`` keeps the DRAM's temperature, in ``environment``."""
        self.thermostat, self.environment, self.thermometer = thermostat, environment, Thermometer(environment)

    @contextmanager
    def refreshing_twice(self) -> Iterator[None]:
        """Programs that are made meanwhile refresh twice as often, as JEDEC wants it above 85 °C."""
        build = self.build
        self.build = replace(build, timings=replace(build.timings, trefi=build.timings.trefi // 2))
        self._transfer.cache_clear()
        try:
            yield
        finally:
            self.build = build
            self._transfer.cache_clear()

    @property
    def timings(self) -> Timings:
        return self.build.timings

    def register(self, name: str) -> int:
        """Value of a register (of both words where it has two)."""
        words = self.bus.read(CSR_BASE + 4 * self._offsets[name], self._words[name])
        return sum(int(word) << (32 * k) for k, word in enumerate(words))

    def steady_register(self, name: str) -> int:
        """Value of a register that must not change now, read twice.

        Raises:
            LinkError: the two differ.
        """
        first, second = self.register(name), self.register(name)
        if first != second:
            raise LinkError(f"register {name} reads {first}, then {second}; run it again, and check the link")
        return first

    @property
    def constants(self) -> dict[str, int]:
        """Constants of the build, by their register."""
        return dict(self._constants)

    def set_register(self, name: str, value: int) -> None:
        """Write a one-word register."""
        self._set_registers(name, value)

    def _set_registers(self, first: str, *values: int) -> None:
        """Write one-word registers from ``first`` on, in one access."""
        self.bus.write(CSR_BASE + 4 * self._offsets[first], np.array(values, np.uint32))

    def memory(self, name: str, start: int, count: int) -> Words:
        """``count`` words of a memory window from word ``start``."""
        return self.bus.read(self._bases[name] + 4 * start, count)

    def run(
        self,
        program: Sequence[Instruction] | Image,
        buffer: Words | None = None,
        following: Iterable[Sequence[Instruction]] = (),
    ) -> RunResult:
        """Run a program that logs nothing, to its end; arguments as of `failing_bits`."""
        found = self.failing_bits(program, buffer, following)
        try:
            next(found)
        except StopIteration as end:
            result: RunResult = end.value
            return result
        raise BoardError("the board logged errors of a program that logs none; reset the board")

    def failing_bits(
        self,
        program: Sequence[Instruction] | Image,
        buffer: Words | None = None,
        following: Iterable[Sequence[Instruction]] = (),
    ) -> Generator[FailingBits, None, RunResult]:
        """Run a program and yield (read index, bit in burst) arrays, int64, as its error log fills.

        Args:
            program: or its first chunk.
            buffer: what the write buffer must hold.
            following: its other chunks; each but the last ends with END and ``more``.

        Returns:
            Its totals.

        Raises:
            ProgramError: the engine faulted.
            LinkError: the log is damaged, the engine fell silent, or log and counters do not reconcile.
            RailError: the supply did not hold meanwhile.
        """
        image = program if isinstance(program, Image) else Image.of(program)
        status = self._start(image, buffer)
        consumed, logged = 0, 0
        clocks, since = -1, time.monotonic()
        chunks, loaded_at = iter(following), -1
        while True:
            self.rail.watch()
            self.thermometer.watch()
            produced = status.log_produced
            for blocks in self._blocks(consumed, produced):
                reads, bits = errorlog.unpack(blocks, self.geometry.burst_bits)
                logged += reads.size
                yield reads, bits
            if produced != consumed:
                consumed = produced
                self.set_register("log_consumed", consumed & 0xFFFFFFFF)
            if status.state == State.DONE:
                errors, again = self._bank_errors(), self._status()
                if again == status:
                    break
            elif status.state == State.CHUNK and status.clocks != loaded_at:  # else the RESUME was lost
                if (chunk := next(chunks, None)) is None:
                    raise ProgramError("the last chunk says that more follow; end it with END alone")
                self._load(Image.of(chunk))
                loaded_at = status.clocks
            if status.state in (State.HALTED, State.CHUNK):
                with suppress(UnacknowledgedError):  # the next look at its state tells
                    self.set_register("control", RESUME)
            elif status.state not in (State.RUNNING, State.DONE):
                self._raise_fault(status)
            if status.clocks != clocks:
                clocks, since = status.clocks, time.monotonic()
            elif time.monotonic() - since > SILENCE_S:
                raise LinkError(f"the engine stands at clock {clocks} for {SILENCE_S:g} s; reset the board")
            status = self._status()
        self.usage.programs, self.usage.clocks = self.usage.programs + 1, self.usage.clocks + status.clocks
        result, counted = self._result(status, errors), int(errors.sum())
        if image.logs and logged != counted:
            raise LinkError(
                f"the log holds {logged} failing bits, the counters {counted}; the measurement is void, run it again"
            )
        return result

    def result(self) -> RunResult:
        """Totals of the program that ran last.

        Raises:
            LinkError: it was started again since.
        """
        errors = self._bank_errors()
        return self._result(self._status(), errors)

    def _result(self, status: Status, errors: npt.NDArray[np.int64]) -> RunResult:
        """Totals from ``errors``, and a status that was read after them."""
        self._check_starts(status)
        return RunResult(status.reads_compared, errors, status.clocks, status.refreshes)

    def _bank_errors(self) -> npt.NDArray[np.int64]:
        banks = self.geometry.banks
        words = self.memory("bank_errors", 0, 4 * banks).astype(np.int64).reshape(banks, 2, 2)
        return words[:, :, 0] | words[:, :, 1] << 32

    def failing_cells(self, program: Sequence[Instruction], traversal: Traversal) -> Iterator[CellArray]:
        """Run a test of ``traversal`` and yield the failing cells, in the order they were read.

        Raises:
            LinkError: also when the engine compared another number of bursts than the traversal has.
        """
        for reads, bits in self.failing_bits(program):
            yield traversal.cells(self.geometry, reads, bits)
        if (reads_compared := self.register("reads_compared")) != traversal.length:
            raise LinkError(
                f"{reads_compared} bursts were compared of {traversal.length}; the measurement is void, run it again"
            )

    def line_counts(self, bank: int, rows: int) -> LineCounts:
        """Row, bitline and DQ counters of the program that ran last, which tested ``rows`` rows of one bank.

        Raises:
            LinkError: a counter is full, or they do not reconcile with the bank's.
        """
        geometry = self.geometry
        sizes = {"row_errors": rows, "bitline_errors": geometry.row_bits, "dq_errors": geometry.data_width}
        found = [self.memory(name, 0, 2 * size).astype(np.int64).reshape(size, 2) for name, size in sizes.items()]
        if any(int(counts.max()) == _FULL for counts in found):
            raise LinkError(f"a line counter reached {_FULL}; test fewer rows at a time")
        try:
            counts = LineCounts(bank, *found)
        except ProfileError as error:
            raise LinkError(f"{error}: run it again, and check the link") from error
        total, of_bank = self.result().errors.sum(axis=0).tolist(), self.result().errors[bank].tolist()
        if [counts.errors_zero_to_one, counts.errors_one_to_zero] != of_bank or total != of_bank:
            raise LinkError(f"line counters of bank {bank} do not reconcile with bank counters {total}; run it again")
        return counts

    def write_bursts(self, stretches: Sequence[Stretch], words: Words, trcd: int) -> None:
        """Write uint32[bursts, words a burst] to the bursts of ``stretches``, in order, one per activation at ``trcd``.

        As many as the buffers hold go in one program, whatever stretches they lie in.
        """
        for part, start, count in self._programs_of(stretches):
            data = words[start : start + count]
            self.bus.write(self._bases["write_buffer"], data.reshape(-1))
            self.run(self._transfer(part, True, trcd), data)

    def read_bursts(self, stretches: Sequence[Stretch], trcd: int) -> Words:
        """Read the bursts of ``stretches``, in order, one per activation at ``trcd`` clocks.

        Returns:
            uint32[bursts, words a burst].
        """
        parts = [np.empty(0, np.uint32)]
        for part, _, count in self._programs_of(stretches):
            self.run(self._transfer(part, False, trcd))
            parts.append(self._captured(count))
        return np.concatenate(parts).reshape(-1, self._burst_words)

    def _captured(self, count: int) -> Words:
        """The ``count`` bursts that the program which ran last captured, flat."""
        words = self.memory("capture", 0, count * self._burst_words)
        status = self._status()
        self._check_starts(status)
        if status.captured != count:
            raise LinkError(f"{status.captured} bursts were captured of {count}; run it again")
        if zlib.crc32(words.data) != status.capture_check:
            raise LinkError(f"{count} captured bursts fail their CRC; run it again, and check the link")
        return words

    def _programs_of(self, stretches: Sequence[Stretch]) -> Iterator[tuple[tuple[Stretch, ...], int, int]]:
        """Cut ``stretches`` into what one program moves: its stretches, its first burst and its number of bursts."""
        part: list[Stretch] = []
        begun = held = 0
        for first_cell, count in stretches:
            done = 0
            while done < count:
                size = min(self.buffer_bursts - held, count - done)
                part.append((first_cell + done * self.geometry.burst_bits, size))
                done, held = done + size, held + size
                if held == self.buffer_bursts or len(part) == _STRETCHES:
                    yield tuple(part), begun, held
                    part, begun, held = [], begun + held, 0
        if held:
            yield tuple(part), begun, held

    def _transfer_image(self, stretches: tuple[Stretch, ...], write: bool, trcd: int) -> Image:
        walks = [walk for first, count in stretches for walk in programs.pieces(self.geometry, first, count)]
        return Image.of(programs.transfer(self.build, walks, write, trcd))

    def _start(self, image: Image, buffer: Words | None) -> Status:
        """Load a program and start it; returns what the engine says of itself then."""
        self._load(
            image, *((0,) if buffer is None else (buffer.shape[0], zlib.crc32(np.ascontiguousarray(buffer).data)))
        )
        before = self.register("starts") if self._starts is None else self._starts
        self._starts = None
        for _ in range(START_ATTEMPTS):
            acknowledged = False
            with suppress(UnacknowledgedError):
                self.set_register("control", START)
                acknowledged = True
            status = self._status()
            if status.starts == before + 1 & 0xFFFFFFFF:
                self._starts = status.starts
                return status
            if acknowledged or status.starts != before:
                break
        raise LinkError(
            f"the board counts {status.starts} started programs, {before} before this one: it did not start it, was "
            "reset, or is used by others; run it again, and check the link"
        )

    def _load(self, image: Image, *checked: int) -> None:
        """Put a program, or a chunk of one, where the next start or resume takes it from.

        ``checked``: bursts of the write buffer that are checked too, and their CRC-32.
        """
        depth = self._constants["program_depth"]
        if image.length > depth:
            raise ProgramError(
                f"the program has {image.length} instructions, the engine holds {depth}; test a smaller region"
            )
        self.bus.write(self._bases["program"], image.words)
        self._set_registers("program_length", image.length, image.check, *checked)

    def _check_starts(self, status: Status) -> None:
        """What was read before ``status`` and since the last program ended is that program's."""
        if self._starts is not None and status.starts != self._starts:
            started, self._starts = self._starts, None
            raise LinkError(
                f"the board counts {status.starts} started programs, {started} were: it was reset, or started by "
                "others; the measurement is void, run it again"
            )

    def _blocks(self, consumed: int, produced: int) -> Iterator[Words]:
        """Checked blocks ``consumed .. produced - 1`` of the ring, in contiguous runs."""
        ring = self.build.log_blocks
        while consumed < produced:
            start = consumed % ring
            count = min(produced - consumed, ring - start)
            blocks = self.memory("log", start * BLOCK_WORDS, count * BLOCK_WORDS).reshape(count, BLOCK_WORDS)
            errorlog.check_blocks(blocks, consumed)
            yield blocks
            consumed += count

    def _raise_fault(self, status: Status) -> None:
        if status.state != State.FAULT:
            raise LinkError(f"the engine is in state {status.state.name} in mid-program; someone else uses the board")
        if status.fault == Fault.BAD_CHECK:
            raise LinkError("program or data did not reach the board whole; run it again, and check the link")
        name = Fault(status.fault).name if status.fault in list(Fault) else f"fault {status.fault}"
        raise ProgramError(f"the engine stopped at instruction {status.fault_pc}: {name}")

    def _status(self) -> Status:
        words = self.bus.read(CSR_BASE + 4 * self._offsets[_STATUS[0]], _BLOCK_WORDS)
        starts, state, *others = _status_of(_BLOCK_LAYOUT.unpack(words.astype("<u4").tobytes()))
        if state not in _STATES:
            raise LinkError(f"the engine reports state {state:#x}, which does not exist; check the link")
        return Status(starts, State(state), *others)

    def close(self) -> None:
        """Supply back to nominal, controller of its temperature safe, link released."""
        try:
            self.rail.close()
        finally:
            try:
                if self.thermostat is not None:
                    self.thermostat.close()
            finally:
                self.bus.close()
