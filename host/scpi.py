"""A bench supply that speaks SCPI, over PyVISA (LAN, USB, serial, GPIB) with the backend in Python, pyvisa-py."""

import contextlib
import math
import socket
from typing import cast

import pyvisa
from pyvisa.resources import MessageBasedResource

from host.rail import LIMITS, Measurement
from host.scpi_dialects import DIALECTS
from host.supply_file import ScpiSettings
from profiles.errors import RailError

ERRORS_KEPT = 20  # of a supply's error queue, read when it is opened
SET_NEAR_MV = 0.5  # a setting that was taken reads back so near: whole millivolts are set


class ScpiSupply:
    """One output of a bench supply; a `host.rail.Supply`. It is never switched on or off, and no limit of it is moved.

    Args:
        settings: which supply, and how to speak to it.

    Attributes:
        identity: its answer to ``*IDN?``.

    Raises:
        RailError: nothing answers, another make does, the output is off, or it is not set to what this DRAM may have:
            another channel, perhaps. Nothing was set.
    """

    def __init__(self, settings: ScpiSettings) -> None:
        self._settings, self._dialect = settings, DIALECTS[settings.dialect]
        if settings.channel > self._dialect.channels:
            raise RailError(
                f"channel {settings.channel} is outside 1..{self._dialect.channels}, which {self._dialect.title} can "
                "set; correct channel in the supply's file"
            )
        self._manager = pyvisa.ResourceManager("@py")
        self._instrument: MessageBasedResource | None = None
        try:
            self.identity = self._identify()
            self._check_output()
        except RailError:
            self.close()
            raise

    def set_millivolts(self, millivolts: int) -> None:
        """Set the output, and ask whether the supply took it.

        Raises:
            RailError: it does not answer, or it is set to something else now.
        """
        self._send(self._command(self._dialect.set, volts=f"{millivolts / 1000:.3f}"))
        taken = 1000 * self._ask_number(self._dialect.ask_set)
        if not abs(taken - millivolts) <= SET_NEAR_MV:
            raise RailError(
                f"the supply says {taken:g} mV after being set to {millivolts} mV, and '{self._error()}'; "
                "check its range, its limits and whether its keys are in use"
            )

    def measure(self) -> Measurement:
        """Voltage, current and power as the supply reads them.

        Raises:
            RailError: it does not answer, or with no number.
        """
        volts = self._ask_number(self._dialect.measure_voltage)
        amperes = self._ask_number(self._dialect.measure_current)
        ask_power = self._dialect.measure_power
        watts = volts * amperes if ask_power is None else self._ask_number(ask_power)
        return Measurement(1000 * volts, self._settings.uncertainty_mv, 1000 * amperes, 1000 * watts)

    def set_point_mv(self) -> float:
        """What the output is set to, millivolts."""
        return 1000 * self._ask_number(self._dialect.ask_set)

    def close(self) -> None:
        """Let go of the supply; a second call does nothing."""
        self._disconnect()
        self._manager.close()

    def _connection(self) -> MessageBasedResource:
        """The open connection; a new one after a failure, whose late answer must not be taken for the next one's."""
        if self._instrument is None:
            self._instrument = cast(
                MessageBasedResource,
                self._manager.open_resource(
                    self._settings.resource,
                    read_termination="\n",
                    write_termination="\n",
                    timeout=round(1000 * self._settings.timeout_s),
                ),
            )
            _send_at_once(self._instrument)
        return self._instrument

    def _disconnect(self) -> None:
        if self._instrument is not None:
            with contextlib.suppress(pyvisa.Error, OSError):
                self._instrument.close()
            self._instrument = None

    def _identify(self) -> str:
        identity = self._ask("*IDN?")
        if not self._dialect.identity.search(identity):
            raise RailError(
                f"'{identity[:100]}' answers at {self._settings.resource}, which is no {self._dialect.title}; correct "
                "resource or dialect in the supply's file"
            )
        for _ in range(ERRORS_KEPT):  # of whoever used it before
            if self._no_error(self._error()):
                break
        return identity

    def _check_output(self) -> None:
        channel, limits = self._settings.channel, LIMITS[self._settings.dram]
        if not self._is_on():
            raise RailError(
                f"output {channel} of {self.identity} is off; set it to {self._settings.nominal} mV, its current limit "
                "and over-voltage protection to what the board stands, and switch it on"
            )
        present = self.set_point_mv()
        if not limits.lowest_mv <= present <= limits.highest_mv:
            raise RailError(
                f"output {channel} of {self.identity} is set to {present:g} mV, outside {limits.lowest_mv}.."
                f"{limits.highest_mv} mV of {self._settings.dram}: is it the output that feeds the DRAM? correct "
                f"channel in the supply's file, or set it to {self._settings.nominal} mV by hand"
            )

    def _is_on(self) -> bool:
        answer = self._ask(self._command(self._dialect.ask_output))
        try:
            return self._dialect.output_is_on(self._settings.channel, answer)
        except ValueError as error:
            raise self._not_understood(self._dialect.ask_output, answer) from error

    def _command(self, text: str, volts: str = "") -> str:
        return text.format(channel=self._settings.channel, volts=volts)

    def _error(self) -> str:
        return self._ask(self._dialect.ask_error)

    @staticmethod
    def _no_error(answer: str) -> bool:
        return answer.lstrip("+").startswith("0")

    def _ask_number(self, text: str) -> float:
        answer = self._ask(self._command(text))
        try:
            number = float(answer)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self._not_understood(text, answer)
        return number

    def _not_understood(self, asked: str, answer: str) -> RailError:
        command = self._command(asked)
        return RailError(f"the supply answers '{answer[:40]}' to '{command}'; correct dialect in the supply's file")

    def _ask(self, command: str) -> str:
        try:
            return self._connection().query(command).strip()
        except (pyvisa.Error, OSError, ValueError) as error:
            raise self._failed(error) from error

    def _send(self, command: str) -> None:
        try:
            self._connection().write(command)
        except (pyvisa.Error, OSError, ValueError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> RailError:
        self._disconnect()
        reason = " ".join(str(error).split()) or type(error).__name__
        return RailError(
            f"no supply answers at {self._settings.resource} within {self._settings.timeout_s:g} s ({reason}); check "
            "its power, cable and address, and who else uses it"
        )


def _send_at_once(instrument: MessageBasedResource) -> None:
    """Let no message on a LAN wait until the one before is acknowledged: a question after a setting would, for 40 ms.

    pyvisa-py 0.8 reads VI_ATTR_TCPIP_NODELAY and cannot set it, so its socket is told.
    """
    sessions = getattr(instrument.visalib, "sessions", {})
    connection = getattr(sessions.get(instrument.session), "interface", None)
    if isinstance(connection, socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
