"""A temperature controller that speaks Modbus RTU over a serial line, through pymodbus."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import serial
from pymodbus import ExceptionResponse, FramerType, ModbusException
from pymodbus.client import ModbusSerialClient

from host.controller_presets import Degrees, Register
from host.temperature_file import TemperatureSettings
from host.thermostat import Thermostat
from profiles.errors import TemperatureError

SILENCE_CHARACTERS, SHORTEST_SILENCE_S = 3.5, 0.00175  # between frames: MODBUS over Serial Line V1.02, 2.5.1.1
TRIES = 3  # of a read, or of a write, which may be done twice
EXCEPTIONS = {  # MODBUS Application Protocol Specification V1.1b3, section 7
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "server device failure",
    5: "acknowledge",
    6: "server device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target device failed to respond",
}
BUSY = (5, 6)


logging.getLogger("pymodbus").addHandler(logging.NullHandler())  # what it says there is in our errors


class _Client(ModbusSerialClient):
    """The library's client, but its waits end by a clock that nobody sets: its own take the wall clock's time."""

    def recv(self, size: int | None) -> bytes:
        """What has come, at least one byte; none at the end of the time-out. Raises OSError if the port is gone."""
        assert self.socket is not None
        first = bytes(self.socket.read(1))
        return first + bytes(self.socket.read(self.socket.in_waiting)) if first else b""


def open_thermostat(settings: TemperatureSettings) -> Thermostat:
    """The thermostat that ``settings`` describe; nothing is set yet.

    Raises:
        TemperatureError: as `ModbusController`.
    """
    return Thermostat(ModbusController(settings), settings.holding)


class ModbusController:
    """A controller on a serial line; a `host.thermostat.Controller`.

    Its set-point is written only where it differs: each write wears the controller's memory.

    Args:
        settings: which controller, and how to speak to it.

    Attributes:
        identity: its family, port and address.

    Raises:
        TemperatureError: nothing answers as it must, its unit is unknown, or another process has the port.
    """

    def __init__(self, settings: TemperatureSettings) -> None:
        self._settings, self._preset = settings, settings.registers
        self.identity = f"{self._preset.title} at {settings.port}, unit {settings.unit}"
        self._heard = 0  # bytes since the last request
        self._silence_s = max(SILENCE_CHARACTERS * 11 / settings.baud, SHORTEST_SILENCE_S)
        self._client = _Client(
            settings.port,
            framer=FramerType.RTU,
            baudrate=settings.baud,
            bytesize=8,
            parity={"none": "N", "even": "E", "odd": "O"}[settings.parity],
            stopbits=settings.stop_bits,
            timeout=settings.timeout_s,
            retries=0,
            trace_packet=self._trace,
        )
        try:
            self._degrees = self._find_degrees()
            self.measure_c()
            self.set_point_c()
        except BaseException:
            self.close()
            raise

    def measure_c(self) -> float:
        """See `host.thermostat.Controller.measure_c`."""
        register = self._preset.process_value
        words = self._read(register)
        if (broken := self._preset.broken.get(words[0])) is not None:
            raise TemperatureError(
                f"{self.identity} {broken} (it reads {words[0]:#06x}); check its sensor and its wires"
            )
        return self._celsius(register, words)

    def set_point_c(self) -> float:
        """See `host.thermostat.Controller.set_point_c`."""
        register = self._preset.set_point
        return self._celsius(register, self._read(register))

    def set_celsius(self, celsius: float) -> None:
        """See `host.thermostat.Controller.set_celsius`.

        Raises:
            TemperatureError: it does not answer, or is set to something else now.
        """
        register = self._preset.set_point
        words = register.encode(celsius if self._degrees == "C" else celsius * 9 / 5 + 32)
        if self._read(register) == words:
            return
        self._write(register, words)
        if (taken := self._read(register)) != words:
            raise TemperatureError(
                f"{self.identity} says {self._celsius(register, taken):g} °C after being set to {celsius:g} °C; check "
                "its set-point limits, and that it takes what is written over the line"
            )

    def close(self) -> None:
        """Let go of the port; a second call does nothing."""
        with contextlib.suppress(OSError, ModbusException):
            self._client.close()  # type: ignore[no-untyped-call]

    def _celsius(self, register: Register, words: list[int]) -> float:
        degrees = register.decode(words)
        if not math.isfinite(degrees):
            raise TemperatureError(
                f"{self.identity} has {degrees} in register {register.address}; check its sensor, and type and word "
                "order in the supply's file"
            )
        return degrees if self._degrees == "C" else (degrees - 32) * 5 / 9

    def _find_degrees(self) -> Degrees:
        if self._preset.unit_register is None:
            return self._preset.degrees
        (word,) = self._read(Register(address=self._preset.unit_register, type="uint16"))
        if word not in self._preset.units:
            known = ", ".join(f"{value} for °{unit}" for value, unit in self._preset.units.items())
            raise TemperatureError(
                f"{self.identity} has {word} in register {self._preset.unit_register}, where {known} are known; give "
                "process_value, set_point and degrees by hand instead of the preset"
            )
        return self._preset.units[word]

    def _read(self, register: Register) -> list[int]:
        client, at, count = self._client, register.address, register.words
        read = client.read_holding_registers if register.table == "holding" else client.read_input_registers
        answer = self._ask(f"reading register {at}", lambda: read(at, count=count, device_id=self._settings.unit))
        words = [int(word) for word in answer.registers]
        if len(words) != count:
            raise TemperatureError(f"{self.identity} gives {len(words)} registers where {count} were asked for")
        return words

    def _write(self, register: Register, words: list[int]) -> None:
        client, at, unit = self._client, register.address, self._settings.unit
        if len(words) == 1:
            self._ask(f"writing register {at}", lambda: client.write_register(at, words[0], device_id=unit))
        else:
            self._ask(f"writing registers from {at}", lambda: client.write_registers(at, words, device_id=unit))

    def _ask(self, doing: str, request: Callable[[], Any]) -> Any:
        """The answer to ``request``, which is repeated on a new connection where nothing usable comes."""
        failed: Exception | None = None
        for _ in range(TRIES):
            try:
                self._connect()
                self._heard = 0
                time.sleep(self._silence_s)  # which the library leaves out
                answer = request()
            except (ModbusException, OSError, ValueError) as error:  # serial's and termios' are OSErrors
                failed = error
                self.close()  # a late answer must not be taken for the next one's
                continue
            if not isinstance(answer, ExceptionResponse):
                return answer
            code = answer.exception_code
            name = f"exception {code} ({EXCEPTIONS.get(code, 'unknown')})"
            failed = TemperatureError(
                f"{self.identity} answers {name} to {doing}; check preset or registers in the supply's file "
                "against its manual, and its settings"
            )
            if code not in BUSY:
                raise failed
        if isinstance(failed, TemperatureError):
            raise failed
        raise TemperatureError(self._no_answer(doing, failed)) from failed

    def _connect(self) -> None:
        if self._client.connected:
            return
        if not self._client.connect():
            raise serial.SerialException(f"cannot open {self._settings.port}")

    def _no_answer(self, doing: str, error: Exception | None) -> str:
        settings = self._settings
        line = f"{settings.baud} baud, 8 data bits, parity {settings.parity}, {settings.stop_bits} stop bits"
        if self._heard:
            return (
                f"{self.identity} answers {self._heard} bytes that are no Modbus answer to {doing}, {TRIES} times "
                f"({line}); check baud and parity, the cable and its ends, and who else is on the line"
            )
        reason = " ".join(str(error).split())
        return (
            f"no temperature controller answers at {settings.port}, unit {settings.unit}, to {doing} within "
            f"{settings.timeout_s:g} s, {TRIES} times ({line}; {reason}); check its power, cable, address and line "
            "settings, and who else uses the port"
        )

    def _trace(self, sending: bool, packet: bytes) -> bytes:
        if not sending:
            self._heard = len(packet)
        return packet
