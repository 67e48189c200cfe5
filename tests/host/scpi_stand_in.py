"""Bench supplies behind a TCP port: what the makers' programming guides say they answer, and what goes wrong with them.

Grammars are written from the guides, not from `host.scpi_dialects`, which they are there to hold to them.
"""

import re
import socket
import threading
import time
from dataclasses import dataclass, field

CHANNEL_LIST = r"\(@(?P<channel>\d)\)"
NUMBER = r"(?P<volts>-?\d+(?:\.\d+)?)"
KEYSIGHT = {
    rf"VOLT {NUMBER},{CHANNEL_LIST}": "set",
    rf"VOLT\? {CHANNEL_LIST}": "set_point",
    rf"MEAS:VOLT\? {CHANNEL_LIST}": "volts",
    rf"MEAS:CURR\? {CHANNEL_LIST}": "amperes",
    rf"OUTP\? {CHANNEL_LIST}": "on",
    r"SYST:ERR\?": "error",
}
RIGOL = {
    rf":SOUR(?P<channel>\d):VOLT {NUMBER}": "set",
    r":SOUR(?P<channel>\d):VOLT\?": "set_point",
    r":MEAS:VOLT\? CH(?P<channel>\d)": "volts",
    r":MEAS:CURR\? CH(?P<channel>\d)": "amperes",
    r":MEAS:POWE\? CH(?P<channel>\d)": "watts",
    r":OUTP\? CH(?P<channel>\d)": "on",
    r":SYST:ERR\?": "error",
}
COARSE = ("rigol-dp800", "siglent-spd3303x-e")  # 10 mV at a time
GRAMMARS = {
    "keysight-e36300": ("Keysight Technologies,E36312A,MY00000001,2.1.0-1.0.4-1.12", KEYSIGHT),
    "keysight-n6700": ("Keysight Technologies,N6705C,MY00000002,E.01.02.3020", KEYSIGHT),
    "keysight-e36100": (
        "Keysight Technologies,E36103B,MY00000003,1.0.4-1.0.0-1.02",
        {
            rf"VOLT {NUMBER}": "set",
            r"VOLT\?": "set_point",
            r"MEAS:VOLT\?": "volts",
            r"MEAS:CURR\?": "amperes",
            r"OUTP\?": "on",
            r"SYST:ERR\?": "error",
        },
    ),
    "rigol-dp800a": ("RIGOL TECHNOLOGIES,DP832A,DP8B000000001,00.01.16", RIGOL),
    "rigol-dp800": ("RIGOL TECHNOLOGIES,DP832,DP8C000000001,00.01.14", RIGOL),
}
for name, model in (("siglent-spd3303x", "SPD3303X"), ("siglent-spd3303x-e", "SPD3303X-E")):
    GRAMMARS[name] = (
        f"Siglent Technologies,{model},SPD3XHBD1R0001,1.01.01.02.07R2,V3.0",
        {
            rf"CH(?P<channel>\d):VOLT {NUMBER}": "set",
            r"CH(?P<channel>\d):VOLT\?": "set_point",
            r"MEAS:VOLT\? CH(?P<channel>\d)": "volts",
            r"MEAS:CURR\? CH(?P<channel>\d)": "amperes",
            r"MEAS:POWE\? CH(?P<channel>\d)": "watts",
            r"SYST:STAT\?": "status",
            r"SYST:ERR\?": "error",
        },
    )
ERRORS = {"keysight": '+0,"No error"', "rigol": '0,"No error"', "siglent": "0  No Error"}


@dataclass
class Faults:
    """What goes wrong, from the moment it is set.

    Attributes:
        silent: nothing is answered, and nothing obeyed.
        silent_from_mv: so it is from the first setting at or below this on, which is obeyed.
        silent_s: how long `silent_from_mv` makes it silent.
        overshoot_from_mv: the first setting at or below this comes out as `overshoot_mv`.
        reads_wrong_mv: added to readings below nominal.
        garbled: readings are no numbers.
        deaf_below_mv: settings below this are not obeyed.
        hangs_up: connections are cut.
    """

    silent: bool = False
    silent_from_mv: float | None = None
    silent_s: float = 1e9
    overshoot_from_mv: float | None = None
    overshoot_mv: float = 1700.0
    reads_wrong_mv: float = 0.0
    garbled: bool = False
    deaf_below_mv: float = 0.0
    hangs_up: bool = False


@dataclass
class Output:
    """One output: what it is set to and what comes out of it, millivolts."""

    set_mv: float = 1350.0
    out_mv: float = 1350.0
    on: bool = True


@dataclass
class ScpiStandIn:
    """A supply of three outputs on a loopback port; use in a ``with`` block.

    Attributes:
        log: (seconds, command) of all that it was sent.
        voltages: (seconds, channel, millivolts) whenever an output changed.
    """

    dialect: str = "keysight-e36300"
    nominal_mv: float = 1350.0
    load_ohm: float = 5.0
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.identity, grammar = GRAMMARS[self.dialect]
        self._grammar = [(re.compile(pattern), what) for pattern, what in grammar.items()]
        self.outputs = {channel: Output(self.nominal_mv, self.nominal_mv) for channel in (1, 2, 3)}
        self.log: list[tuple[float, str]] = []
        self.voltages: list[tuple[float, int, float]] = []
        self._silent_until = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []

    @property
    def resource(self) -> str:
        return f"TCPIP::127.0.0.1::{self._listener.getsockname()[1]}::SOCKET"

    def settings(self, channel: int = 1, **more: object) -> dict[str, object]:
        """Fields of an `eden.toml` that names it."""
        return {
            **{"kind": "scpi", "dram": "DDR3L", "floor_mv": 1000, "uncertainty_mv": 1.7, "resource": self.resource},
            **{
                "dialect": self.dialect,
                "channel": channel,
                "timeout_s": 20.0,
                "settle_s": 0.2,
                "slew_mv_per_s": 10_000,
            },
            **more,
        }

    def file(self, path: "object", channel: int = 1, **more: object) -> str:
        """Write that `eden.toml`."""
        lines = [f"{key} = {value!r}" for key, value in self.settings(channel, **more).items()]
        text = "[supply]\n" + "\n".join(lines).replace("'", '"') + "\n"
        with open(str(path), "w") as file:  # noqa: PTH123
            file.write(text)
        return text

    def out_mv(self, channel: int = 1) -> float:
        return self.outputs[channel].out_mv

    def settings_sent(self) -> list[float]:
        """Millivolts of every setting that was sent, obeyed or not, in order."""
        found = []
        for _, command in self.log:
            for pattern, what in self._grammar:
                if what == "set" and (match := pattern.fullmatch(command)):
                    found.append(round(1000 * float(match["volts"]), 6))
        return found

    def wait_for(self, millivolts: float, seconds: float, channel: int = 1) -> float:
        """Wait until the output is there; returns how long it took."""
        begun = time.monotonic()
        while self.out_mv(channel) != millivolts:
            assert time.monotonic() - begun < seconds, f"still {self.out_mv(channel)} mV after {seconds} s"
            time.sleep(0.005)
        return time.monotonic() - begun

    def __enter__(self) -> "ScpiStandIn":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as lines:
                for line in lines:
                    if self.faults.hangs_up:
                        return
                    if (answer := self._hear(line.decode("ascii").strip())) is not None:
                        connection.sendall(answer.encode("ascii") + b"\n")
        except OSError:
            return

    def _hear(self, command: str) -> str | None:
        self.log.append((time.monotonic(), command))
        if self.faults.silent or time.monotonic() < self._silent_until:
            return None
        if command == "*IDN?":
            return self.identity
        for pattern, what in self._grammar:
            if match := pattern.fullmatch(command):
                groups = match.groupdict()
                return self._answer(what, int(groups.get("channel") or 1), groups.get("volts"))
        return None  # an instrument that does not understand a query does not answer it

    def _answer(self, what: str, channel: int, volts: str | None) -> str | None:
        output, faults = self.outputs[channel], self.faults
        if what == "set":
            assert volts is not None
            self._set(channel, 1000 * float(volts))
            return None
        if what == "error":
            return next(text for maker, text in ERRORS.items() if self.dialect.startswith(maker))
        if what == "set_point":
            return (
                f"{output.set_mv / 1000:.8E}" if self.dialect.startswith("keysight") else f"{output.set_mv / 1000:.3f}"
            )
        if what == "on":
            return ("ON" if output.on else "OFF") if self.dialect.startswith("rigol") else str(int(output.on))
        if what == "status":
            return hex(sum(self.outputs[each].on << (3 + each) for each in (1, 2)))
        if faults.garbled:
            return "????"
        reads = output.out_mv + (faults.reads_wrong_mv if output.out_mv < self.nominal_mv else 0.0)
        value = {"volts": reads, "amperes": reads / self.load_ohm, "watts": reads**2 / self.load_ohm / 1000}[what]
        return f"{value / 1000:.6f}"

    def _set(self, channel: int, millivolts: float) -> None:
        output, faults = self.outputs[channel], self.faults
        if millivolts < faults.deaf_below_mv:
            return
        if self.dialect in COARSE:
            millivolts = 10 * round(millivolts / 10)
        output.set_mv = output.out_mv = round(millivolts, 6)
        if faults.overshoot_from_mv is not None and millivolts <= faults.overshoot_from_mv:
            output.out_mv, faults.overshoot_from_mv = faults.overshoot_mv, None
        self.voltages.append((time.monotonic(), channel, output.out_mv))
        if faults.silent_from_mv is not None and millivolts <= faults.silent_from_mv:
            self._silent_until, faults.silent_from_mv = time.monotonic() + faults.silent_s, None
