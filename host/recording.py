"""A board's whole traffic in a file (``--record``), and a board that answers from it (``--board replay:FILE``).

That is the bug report of somebody with hardware, and a regression test without it. The file is gzip of JSON lines: what
the host must know of the board, then a line for every transfer of the bus, every word with the supply, every
temperature, in their order, errors included (`Header`, `Line`). It is readable as far as it was written.

A replayed board answers the bus strictly in order: a host that asks anything else than what was asked then, is told
where they part. How often a supply or a sensor is looked at depends on the clock; there the next reading is given, or
the last one again where the next thing that was recorded is another.
"""

import base64
import gzip
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from host.board import Board, Environment
from host.bus import Bus, Words
from host.rail import Measurement, Rail, Ramp, Supply
from host.thermostat import Keeper, Tell, unheard
from host.timings import JedecTimings
from profiles import errors
from profiles.errors import BoardError, EdenError, LinkError
from profiles.schema import ModuleIdentity

FORMAT, VERSION = "eden-recording", 1
SAVED_EVERY_S = 1.0  # at most this much is lost where the host is killed
LONGEST_LINE = 1 << 28  # characters: a transfer of 200 MB

Answer = TypeVar("Answer")


class Header(BaseModel):
    """The first line.

    Attributes:
        board: the ``--board`` specification that was recorded.
        module, chip_width, jedec, seed: as of `host.board.Board`.
        sensor: of its temperature; None where there is none.
        thermostat: what keeps it; None where nothing does.
        rail: DRAM type, nominal and lowest millivolts, ramp and supply of `host.rail.Rail`.
        tools: versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = FORMAT
    version: int = VERSION
    board: str
    module: ModuleIdentity
    chip_width: int
    jedec: JedecTimings
    seed: int | None
    dram_type: str
    nominal_mv: int
    lowest_mv: int
    ramp: Ramp
    supply: str
    sensor: str | None = None
    thermostat: str | None = None
    tools: dict[str, str]


class Line(BaseModel):
    """What was asked once, and what came of it.

    Attributes:
        t: when it was answered, seconds since the recording began.
        kind: of question.
        at: address of a transfer; millivolts that were set; thousandths of a degree Celsius that were asked for.
        count: words of a transfer.
        words: those that were read or written, little-endian, base64.
        measured: at the supply.
        value: set point of the supply, millivolts; temperature, or what it was when it was stable, degrees Celsius.
        error: name and message of what was raised instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    t: float
    kind: Literal["read", "write", "set", "measure", "set_point", "temperature", "bring_to"]
    at: int = 0
    count: int = 0
    words: str | None = None
    measured: Measurement | None = None
    value: float | None = None
    error: tuple[str, str] | None = None

    @property
    def channel(self) -> str:
        channels = {"read": "bus", "write": "bus", "temperature": "sensor", "bring_to": "sensor"}
        return channels.get(self.kind, "supply")


# ---- recording -------------------------------------------------------------------------------------------------------


class Recorder:
    """Writes a recording.

    Raises:
        BoardError: the file is there already, or cannot be written.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._path, self._begun, self._saved = path, time.monotonic(), 0.0
        try:
            self._file = gzip.open(path, "xb", compresslevel=1)  # noqa: SIM115 (closed with the board)
        except FileExistsError as error:
            raise BoardError(f"{path} is there already; give --record another name, or remove it") from error
        except OSError as error:
            self._fail(error)
        self._write(header.model_dump_json())

    def ask(
        self, line: Mapping[str, Any], do: Callable[[], Answer], shown: Callable[[Answer], Mapping[str, Any]]
    ) -> Answer:
        """What ``do`` gives or raises, recorded with what ``line`` says and what is ``shown`` of it."""
        try:
            answer = do()
        except EdenError as error:
            self._line(line, {"error": (type(error).__name__, str(error))})
            raise
        self._line(line, shown(answer))
        return answer

    def close(self) -> None:
        """Write all of it; a second call does nothing."""
        try:
            self._file.close()
        except OSError as error:
            self._fail(error)

    def _line(self, line: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        self._write(Line(t=time.monotonic() - self._begun, **line, **answer).model_dump_json(exclude_defaults=True))

    def _write(self, line: str) -> None:
        try:
            self._file.write(line.encode() + b"\n")
            if (now := time.monotonic()) - self._saved >= SAVED_EVERY_S:
                self._file.flush()
                self._saved = now
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> NoReturn:
        raise BoardError(
            f"cannot write the recording {self._path}: {error}; make room, or leave out --record"
        ) from error


class _RecordedBus:
    """A `host.bus.Bus`."""

    def __init__(self, bus: Bus, recorder: Recorder) -> None:
        self._bus, self._recorder = bus, recorder

    def read(self, address: int, count: int) -> Words:
        line = {"kind": "read", "at": address, "count": count}
        return self._recorder.ask(line, lambda: self._bus.read(address, count), lambda words: {"words": _packed(words)})

    def write(self, address: int, words: Words) -> None:
        line = {"kind": "write", "at": address, "count": words.size, "words": _packed(words)}
        self._recorder.ask(line, lambda: self._bus.write(address, words), _no_answer)

    def close(self) -> None:
        try:
            self._bus.close()
        finally:
            self._recorder.close()


class _RecordedSupply:
    """A `host.rail.Supply`."""

    def __init__(self, supply: Supply, recorder: Recorder) -> None:
        self._supply, self._recorder, self.identity = supply, recorder, supply.identity

    def set_millivolts(self, millivolts: int) -> None:
        self._recorder.ask(
            {"kind": "set", "at": millivolts}, lambda: self._supply.set_millivolts(millivolts), _no_answer
        )

    def measure(self) -> Measurement:
        return self._recorder.ask(
            {"kind": "measure"}, self._supply.measure, lambda measured: {"measured": asdict(measured)}
        )

    def set_point_mv(self) -> float:
        return self._recorder.ask({"kind": "set_point"}, self._supply.set_point_mv, lambda value: {"value": value})

    def close(self) -> None:
        self._supply.close()


class _RecordedEnvironment:
    """A `host.board.Environment`."""

    def __init__(self, environment: Environment, recorder: Recorder) -> None:
        self._environment, self._recorder, self.sensor = environment, recorder, environment.sensor

    def begin_epoch(self, epoch: int, activations: int = 0) -> None:
        self._environment.begin_epoch(epoch, activations)

    def temperature_c(self) -> float | None:
        return self._recorder.ask(
            {"kind": "temperature"}, self._environment.temperature_c, lambda value: {"value": value}
        )


class _RecordedKeeper:
    """A `host.thermostat.Keeper`."""

    def __init__(self, keeper: Keeper, recorder: Recorder) -> None:
        self._keeper, self._recorder, self.identity = keeper, recorder, keeper.identity
        self.check, self.guarded, self.close = keeper.check, keeper.guarded, keeper.close

    def bring_to(self, celsius: float, tell: Tell = unheard) -> float:
        line = {"kind": "bring_to", "at": round(1000 * celsius)}
        return self._recorder.ask(line, lambda: self._keeper.bring_to(celsius, tell), lambda value: {"value": value})


def record(board: Board, path: Path) -> Board:
    """``board``, whose traffic goes into ``path`` from here on, until it is closed.

    Raises:
        BoardError: the file is there already, or cannot be written.
        LinkError: the board does not answer.
    """
    rail = board.rail
    header = Header(
        board=board.name,
        module=board.module,
        chip_width=board.geometry.chip_width,
        jedec=board.jedec,
        seed=board.seed,
        dram_type=rail.dram_type,
        nominal_mv=rail.nominal_mv,
        lowest_mv=rail.lowest_mv,
        ramp=rail.ramp,
        supply=rail.identity,
        sensor=board.environment.sensor,
        thermostat=None if board.thermostat is None else board.thermostat.identity,
        tools={name: version(name) for name in ("eden-dram", "numpy")},
    )
    recorder = Recorder(path, header)
    bus, environment = _RecordedBus(board.bus, recorder), _RecordedEnvironment(board.environment, recorder)
    recorded = _board(bus, rail.through(lambda supply: _RecordedSupply(supply, recorder)), environment, header)
    if board.thermostat is not None:
        recorded.kept_by(_RecordedKeeper(board.thermostat, recorder), environment)
    return recorded


def _board(bus: Bus, rail: Rail, environment: Environment, header: Header) -> Board:
    return Board(bus, rail, environment, header.module, header.jedec, header.chip_width, header.board, header.seed)


def _packed(words: Words) -> str:
    return base64.b64encode(words.astype("<u4", copy=False).tobytes()).decode()


def _no_answer(answer: None) -> dict[str, Any]:
    return {}


# ---- replaying -------------------------------------------------------------------------------------------------------

_ERRORS = {
    each.__name__: each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, EdenError)
}


class Recording:
    """A recording that is read from its beginning to its end.

    Raises:
        BoardError: there is no such file, or it is no recording of this release's.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._transfers = path, 0
        self._text = self._read()
        try:
            self.header = Header.model_validate_json(next(self._text, b""))
        except ValidationError as error:
            raise BoardError(f"{path} is no recording of a board; --record writes them") from error
        if (self.header.format, self.header.version) != (FORMAT, VERSION):
            raise BoardError(f"{path} is a recording of version {self.header.version}, this release reads {VERSION}")
        self._waiting: dict[str, deque[Line]] = {name: deque() for name in ("bus", "supply", "sensor")}

    def transfer(self, kind: str, address: int, count: int, words: str | None = None) -> Line:
        """The next transfer of the bus, which must be this one.

        Raises:
            BoardError: it was another, or the recording ends here.
            EdenError: what was raised then.
        """
        line = self._next("bus")
        if line is None:
            raise BoardError(f"{self.path} ends after {self._transfers} transfers; what came next was not recorded")
        same = (line.kind, line.at, line.count) == (kind, address, count)
        if not same or words not in (None, line.words):
            raise BoardError(
                f"transfer {self._transfers + 1} of {self.path} is a {line.kind} of {line.count} words at "
                f"{line.at:#x}, the host now asks for a {kind} of {count} at {address:#x}{', other ones' * same}; give "
                "the command, plan and release that it was recorded with"
            )
        self._transfers += 1
        return self._taken(line)

    def reading(self, channel: str, kind: str, at: int = 0) -> Line | None:
        """The next line of a supply or sensor, if it is of ``kind`` and ``at``; None, and nothing is taken, if not."""
        line = self._next(channel)
        return self._taken(line) if line is not None and (line.kind, line.at) == (kind, at) else None

    def skip_to(self, channel: str, kind: str) -> None:
        """Pass over what was asked of a supply or sensor more often then than now."""
        while (line := self._next(channel)) is not None and line.kind != kind:
            self._waiting[channel].popleft()

    def _next(self, channel: str) -> Line | None:
        while not self._waiting[channel]:
            if (text := next(self._text, None)) is None:
                return None
            try:
                line = Line.model_validate_json(text)
            except ValidationError as error:
                raise BoardError(f"{self.path} is damaged: {text[:80]!r} is no line of a recording") from error
            self._waiting[line.channel].append(line)
        return self._waiting[channel][0]

    def _taken(self, line: Line) -> Line:
        self._waiting[line.channel].popleft()
        if line.error is not None:
            name, message = line.error
            raise _ERRORS.get(name, LinkError)(message)
        return line

    def _read(self) -> Iterator[bytes]:
        try:
            with gzip.open(self.path, "rb") as file:
                while line := file.readline(LONGEST_LINE):
                    yield line
        except EOFError:  # the host was killed while it wrote
            return
        except (OSError, zlib.error) as error:
            raise BoardError(f"cannot read the recording {self.path}: {error}; it is damaged, or none") from error


class _ReplayedBus:
    """A `host.bus.Bus`."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def read(self, address: int, count: int) -> Words:
        line = self._recording.transfer("read", address, count)
        try:
            words = np.frombuffer(base64.b64decode(line.words or "", validate=True), "<u4").astype(np.uint32)
        except ValueError as error:
            raise BoardError(f"{self._recording.path} is damaged: {error}") from error
        if words.size != count:
            raise BoardError(f"{self._recording.path} is damaged: {words.size} words where {count} were read")
        return words

    def write(self, address: int, words: Words) -> None:
        self._recording.transfer("write", address, words.size, _packed(words))

    def close(self) -> None:
        """Nothing to release."""


class _ReplayedSupply:
    """A `host.rail.Supply`."""

    def __init__(self, recording: Recording) -> None:
        self._recording, self.identity = recording, recording.header.supply
        self._last = Measurement(float(recording.header.nominal_mv), 0.0)

    def set_millivolts(self, millivolts: int) -> None:
        self._recording.skip_to("supply", "set")
        self._last = Measurement(float(millivolts), self._last.uncertainty_mv)
        self._recording.reading("supply", "set", millivolts)

    def measure(self) -> Measurement:
        line = self._recording.reading("supply", "measure")
        self._last = self._last if line is None or line.measured is None else line.measured
        return self._last

    def set_point_mv(self) -> float:
        line = self._recording.reading("supply", "set_point")
        return self._last.millivolts if line is None or line.value is None else line.value

    def close(self) -> None:
        """Nothing to release."""


class _ReplayedEnvironment:
    """A `host.board.Environment`."""

    def __init__(self, recording: Recording) -> None:
        self._recording, self.sensor = recording, recording.header.sensor
        self._last: float | None = None

    def begin_epoch(self, epoch: int, activations: int = 0) -> None:
        """What was read then is what is read now."""

    def temperature_c(self) -> float | None:
        line = self._recording.reading("sensor", "temperature")
        self._last = self._last if line is None else line.value
        return self._last


class _ReplayedKeeper:
    """A `host.thermostat.Keeper`, which reaches at once what was reached then."""

    def __init__(self, recording: Recording, identity: str) -> None:
        self._recording, self.identity = recording, identity

    def check(self, celsius: float) -> None:
        """Its limits were not recorded; what was refused then did not begin."""

    def bring_to(self, celsius: float, tell: Tell = unheard) -> float:
        self._recording.skip_to("sensor", "bring_to")
        line = self._recording.reading("sensor", "bring_to", round(1000 * celsius))
        if line is None or line.value is None:
            raise BoardError(f"{self._recording.path} was not brought to {celsius:g} °C next; give the plan of then")
        return line.value

    def guarded(self) -> AbstractContextManager[object]:
        return nullcontext()

    def close(self) -> None:
        """Nothing to release."""


def replay(path: Path) -> Board:
    """A board that answers as the recorded one did.

    Raises:
        BoardError: the file is no recording, or holds less than a board's description of itself.
    """
    recording = Recording(path)
    header = recording.header
    rail = Rail(_ReplayedSupply(recording), header.dram_type, header.nominal_mv, header.lowest_mv, header.ramp)
    environment = _ReplayedEnvironment(recording)
    board = _board(_ReplayedBus(recording), rail, environment, header)
    if header.thermostat is not None:
        board.kept_by(_ReplayedKeeper(recording, header.thermostat), environment)
    return board
