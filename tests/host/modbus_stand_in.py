"""A temperature controller behind a pseudo-terminal, with an oven around it: what it answers, and what goes wrong.

Framing, CRC, functions and exceptions are written from the MODBUS Application Protocol Specification V1.1b3 and
MODBUS over Serial Line V1.02, and register maps from the makers' manuals: neither from `host.modbus` nor its library.
"""

import os
import select
import struct
import tempfile
import threading
import time
import tty
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE, BUSY = 1, 2, 3, 6


def crc16(frame: bytes) -> bytes:
    """Of a frame, low byte first (MODBUS over Serial Line, 6.2.2)."""
    register = 0xFFFF
    for byte in frame:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0xA001 if register & 1 else 0)
    return struct.pack("<H", register)


@dataclass
class Oven:
    """A body of first order with dead time, heated by a PI controller; its clock runs ``speed`` times as fast.

    Attributes:
        set_c: set-point.
        celsius: of the body.
        ambient_c: without heating.
        gain_c: by how much full power heats it in the end.
        time_constant_s, dead_s: of the body, in its own seconds.
        heater: False: it has no power.
    """

    speed: float = 300.0
    set_c: float = 20.0
    celsius: float = 24.0
    ambient_c: float = 24.0
    gain_c: float = 90.0
    time_constant_s: float = 120.0
    dead_s: float = 5.0
    heater: bool = True
    step_s: float = 0.5

    def __post_init__(self) -> None:
        self._powers = deque([0.0] * round(self.dead_s / self.step_s))
        self._integral = 0.0
        self._then = time.monotonic()

    def settle(self, celsius: float) -> None:
        """As if it had been at ``celsius`` for long."""
        self.set_c = self.celsius = celsius
        self._integral = (celsius - self.ambient_c) / self.gain_c
        self._powers = deque([self._integral] * len(self._powers))

    def go_on(self) -> None:
        """Bring it to the present."""
        steps = int((time.monotonic() - self._then) * self.speed / self.step_s)
        self._then += steps * self.step_s / self.speed
        for _ in range(min(steps, 200_000)):
            self._step()

    def _step(self) -> None:
        error = self.set_c - self.celsius
        proportional = self.time_constant_s / (self.gain_c * 20.0)  # a closed loop of some 15 s
        wanted = proportional * error + self._integral
        power = min(1.0, max(0.0, wanted))
        if power == wanted:  # no wind-up
            self._integral += proportional * error * self.step_s / self.time_constant_s
        self._powers.append(power if self.heater else 0.0)
        driven = self.ambient_c + self.gain_c * self._powers.popleft()
        self.celsius += (driven - self.celsius) * self.step_s / self.time_constant_s


@dataclass
class Faults:
    """What goes wrong, from the moment it is set.

    Attributes:
        silent: nothing is answered.
        bad_crc: answers have a wrong CRC.
        truncated: answers end early.
        exception: code that every request is answered with.
        busy_times: so many requests are answered "busy" first.
        corrupt_times: so many answers have a wrong CRC first.
        other_unit: answers come from this address.
        frozen_c: its sensor stands still there.
        sensor_gone: it has no sensor.
        keys_locked: set-points are acknowledged and not taken.
        deaf_above_c: set-points above are cut to this.
    """

    silent: bool = False
    bad_crc: bool = False
    truncated: bool = False
    exception: int | None = None
    busy_times: int = 0
    corrupt_times: int = 0
    other_unit: int | None = None
    frozen_c: float | None = None
    sensor_gone: bool = False
    keys_locked: bool = False
    deaf_above_c: float = 1e9


@dataclass
class ModbusStandIn:
    """A controller of ``family`` on a pseudo-terminal; use in a ``with`` block.

    Attributes:
        family: "delta-dtb", "watlow-ez-zone" or "eurotherm" (tenths in register 1, set-point 1 in register 24).
        unit: its address.
        fahrenheit: of a Watlow's registers.
        requests: bytes of every frame that it was sent.
        set_points: (seconds, degrees Celsius) of every one that was written.
        baud: of its line; a frame that comes sooner than 3.5 characters after its own is lost (V1.02, 2.5.1.1).
        hurried: how many were.
    """

    family: str = "delta-dtb"
    unit: int = 1
    fahrenheit: bool = True
    baud: int = 9600
    oven: Oven = field(default_factory=Oven)
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.requests: list[bytes] = []
        self.hurried, self._answered = 0, 0.0
        self.set_points: list[tuple[float, float]] = []
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        # Another process may be given this terminal's number as soon as it is free: a name of its own cannot be.
        self._folder = tempfile.TemporaryDirectory()
        self.port = str(Path(self._folder.name) / "tty")
        Path(self.port).symlink_to(os.ttyname(self._slave))
        self._turn, self._stopped = threading.Lock(), threading.Event()

    def settings(self, **more: object) -> dict[str, object]:
        """Fields of a [temperature] table that names it; quick, as its oven is."""
        registers: dict[str, object] = {"preset": self.family}
        if self.family == "eurotherm":
            registers = {
                "process_value": {"address": 1, "scale": 0.1},
                "set_point": {"address": 24, "scale": 0.1},
            }
        quick = {"stable_s": 0.2, "wait_s": 60.0, "frozen_s": 20.0, "look_s": 0.01, "timeout_s": 5.0}
        return {**registers, "port": self.port, "unit": self.unit, **quick, **more}

    def table(self, **more: object) -> str:
        """That table as TOML."""
        return "[temperature]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in self.settings(**more).items())

    def __enter__(self) -> "ModbusStandIn":
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()

    def unplug(self) -> None:
        """The adapter is pulled out: its device hangs up."""
        self._stopped.set()
        self._thread.join()
        self._folder.cleanup()
        for end in (self._master, self._slave):
            if end >= 0:
                os.close(end)
        self._master = self._slave = -1

    def now_c(self) -> float:
        """Of the oven's body."""
        with self._turn:
            self.oven.go_on()
            return self.oven.celsius

    def _serve(self) -> None:
        buffer = b""
        while not self._stopped.is_set():
            if not select.select([self._master], [], [], 0.05)[0]:
                buffer = b""  # silence ends a frame
                continue
            hurried = not buffer and time.monotonic() - self._answered < 3.5 * 11 / self.baud
            buffer += os.read(self._master, 512)
            if hurried:
                self.hurried, buffer = self.hurried + 1, b""
            while (length := _length(buffer)) is not None and len(buffer) >= length:
                frame, buffer = buffer[:length], buffer[length:]
                if (answer := self._hear(frame)) is not None:
                    self._answered = time.monotonic()
                    os.write(self._master, answer)

    def _hear(self, frame: bytes) -> bytes | None:
        self.requests.append(frame)
        faults, body = self.faults, frame[:-2]
        if faults.silent or crc16(body) != frame[-2:] or body[0] != self.unit:
            return None  # a server answers neither a damaged frame nor one for another
        with self._turn:
            self.oven.go_on()
            answer = self._busy(body[1]) or self._answer(body[1], body[2:])
        answer = bytes([self.unit if faults.other_unit is None else faults.other_unit]) + answer
        checked = answer + crc16(answer)
        if faults.bad_crc or faults.corrupt_times > 0:
            faults.corrupt_times -= 1
            checked = checked[:-1] + bytes([checked[-1] ^ 0x40])
        return checked[:-3] if faults.truncated else checked

    def _busy(self, function: int) -> bytes | None:
        if self.faults.exception is not None:
            return bytes([function | 0x80, self.faults.exception])
        if self.faults.busy_times > 0:
            self.faults.busy_times -= 1
            return bytes([function | 0x80, BUSY])
        return None

    def _answer(self, function: int, data: bytes) -> bytes:
        allowed = (3, 6) if self.family == "delta-dtb" else (3, 6, 16)
        if function not in allowed:
            return bytes([function | 0x80, ILLEGAL_FUNCTION])
        at, number = struct.unpack(">HH", data[:4])
        if function == 3:
            if not 1 <= number <= (8 if self.family == "delta-dtb" else 125):
                return bytes([0x83, ILLEGAL_VALUE])
            words = self._words()
            if not all(at + k in words for k in range(number)):
                return bytes([0x83, ILLEGAL_ADDRESS])
            return bytes([3, 2 * number]) + b"".join(struct.pack(">H", words[at + k]) for k in range(number))
        values = [number] if function == 6 else list(struct.unpack(f">{number}H", data[5 : 5 + 2 * number]))
        if not self._write(at, values):
            return bytes([function | 0x80, ILLEGAL_ADDRESS])
        return bytes([function]) + data[:4]

    def _words(self) -> dict[int, int]:
        """Registers by address."""
        reads = self.oven.celsius if self.faults.frozen_c is None else self.faults.frozen_c
        if self.family == "delta-dtb":
            process_value = 0x8003 if self.faults.sensor_gone else round(10 * reads) & 0xFFFF
            return {0x1000: process_value, 0x1001: round(10 * self.oven.set_c) & 0xFFFF, 0x1004: 0}
        if self.family == "eurotherm":
            return {1: round(10 * reads) & 0xFFFF, 24: round(10 * self.oven.set_c) & 0xFFFF}
        measured = float("nan") if self.faults.sensor_gone else self._shown(reads)
        low, high = _float_words(measured), _float_words(self._shown(self.oven.set_c))
        return {360: low[0], 361: low[1], 2160: high[0], 2161: high[1], 2490: 30 if self.fahrenheit else 15}

    def _shown(self, celsius: float) -> float:
        return celsius * 1.8 + 32 if self.fahrenheit else celsius

    def _write(self, at: int, values: list[int]) -> bool:
        if self.family == "watlow-ez-zone":
            if (at, len(values)) != (2160, 2):
                return False
            shown = struct.unpack("<f", struct.pack("<HH", *values))[0]
            celsius = (shown - 32) / 1.8 if self.fahrenheit else shown
        else:
            if (at, len(values)) != (0x1001 if self.family == "delta-dtb" else 24, 1):
                return False
            celsius = struct.unpack(">h", struct.pack(">H", values[0]))[0] / 10
        self.set_points.append((time.monotonic(), round(celsius, 3)))
        if not self.faults.keys_locked:
            self.oven.set_c = min(celsius, self.faults.deaf_above_c)
        return True


def _float_words(value: float) -> tuple[int, int]:
    """Low word, then high word."""
    low, high = struct.unpack("<HH", struct.pack("<f", value))
    return low, high


def _length(buffer: bytes) -> int | None:
    """Bytes of the frame that ``buffer`` begins with; None if that cannot be told yet."""
    if len(buffer) < 8:
        return None
    return 9 + buffer[6] if buffer[1] == 16 else 8


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return f'"{value}"' if isinstance(value, str) else str(value)
