"""The DRAM's temperature: hard limits, set and wait until it is stable, and a safe set-point on every exit.

`Controller` is what a device driver offers; a `Thermostat` is the only thing that talks to one. It never sets a
temperature outside JEDEC's for a DRAM, whatever a plan or a file says, and leaving its `Thermostat.guarded` block by
any path, an exception, Ctrl-C or SIGTERM included, leaves the controller at its safe set-point, if it was moved at all.

Not covered: a host that is killed (SIGKILL) or loses its power, or a controller that is unplugged, leaves the
controller at the set-point that it had, which it goes on holding: a temperature within the limits, with a heater that
nobody watches. ``eden temperature safe`` mends that; the controller's own alarm should be set for it. Nor can a host
tell a sensor that freezes, or comes off the DRAM, while its temperature holds.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, Protocol

from host.rail import undisturbed
from profiles.errors import BoardError, EdenError, TemperatureError

# TOPER of JESD79-3F (DDR3) and JESD79-4 (DDR4), a case temperature: up to 85 °C with refresh every tREFI; up to 95 °C
# with refresh twice as often. Checked against makers' data sheets; LPDDR3 and LPDDR4 have wider ranges of their own.
NORMAL_C = (0.0, 85.0)
EXTENDED_C = 95.0
PLAUSIBLE_C = (-60.0, 200.0)  # a reading outside is of no sensor that is connected
PATIENCE_S = 10.0  # for which the safe set-point is tried
PAUSE_S = 0.2
RAMP_STEP_C = 1.0  # one write to the controller's memory, which takes some 100,000
_SLOPE_S = 60.0  # of readings that tell how fast it goes


@dataclass(frozen=True)
class Holding:
    """How a temperature is reached and held: see `host.temperature_file.TemperatureSettings`."""

    tolerance_c: float = 0.5
    stable_s: float = 60.0
    wait_s: float = 3600.0
    frozen_s: float = 300.0
    look_s: float = 1.0
    ramp_c_per_min: float | None = None
    lowest_c: float = NORMAL_C[0]
    highest_c: float = NORMAL_C[1]
    safe_c: float = 20.0


@dataclass(frozen=True)
class Waiting:
    """A temperature that is waited for.

    Attributes:
        celsius: it is now.
        lowest_c, highest_c: where it must be.
        waited_s: so far.
        left_s: about how long it takes from here; None if nothing tells.
        over: the waiting; it is there.
    """

    celsius: float
    lowest_c: float
    highest_c: float
    waited_s: float
    left_s: float | None = None
    over: bool = False

    def __str__(self) -> str:
        if self.over:
            return f"{self.celsius:.1f} °C after {timedelta(seconds=round(self.waited_s))}"
        left = "" if self.left_s is None else f", about {timedelta(seconds=math.ceil(self.left_s))} left"
        return f"waiting for {self.lowest_c:g} .. {self.highest_c:g} °C: {self.celsius:.1f} °C{left}"


Tell = Callable[[Waiting], None]
"""Told, after every look, what is waited for; by a scan also when that is over."""


def unheard(waiting: Waiting) -> None:
    """Tell nobody."""


class Controller(Protocol):
    """A device that holds a temperature. Its methods raise TemperatureError where it does not obey.

    Attributes:
        identity: what it is, and where.
    """

    identity: str

    def set_celsius(self, celsius: float) -> None:
        """Change the set-point; returns once the device has taken it."""

    def set_point_c(self) -> float:
        """What it is set to, degrees Celsius."""

    def measure_c(self) -> float:
        """What its sensor reads, degrees Celsius."""

    def close(self) -> None:
        """Let go of the device; a second call does nothing."""


class Keeper(Protocol):
    """What keeps a DRAM's temperature: a `Thermostat`, or the recording of one.

    Attributes:
        identity: what it is, and where.
    """

    @property
    def identity(self) -> str: ...

    def check(self, celsius: float) -> None:
        """See `Thermostat.check`."""

    def bring_to(self, celsius: float, tell: Tell = unheard) -> float:
        """See `Thermostat.bring_to`."""

    def guarded(self) -> AbstractContextManager[object]:
        """See `Thermostat.guarded`."""

    def close(self) -> None:
        """See `Thermostat.close`."""


class Thermostat:
    """Keeps one board's DRAM at a temperature. A controller that was never moved is never written to, closing it
    included, unless it reads more than a DRAM takes.

    Args:
        controller: the device.
        holding: how it is treated.

    Attributes:
        controller, holding: as given.
    """

    def __init__(self, controller: Controller, holding: Holding | None = None) -> None:
        self.controller, self.holding = controller, holding or Holding()
        self._moved = False

    @property
    def identity(self) -> str:
        """What the controller is, and where."""
        return self.controller.identity

    def check(self, celsius: float) -> None:
        """Raises TemperatureError if ``celsius`` is outside the limits; touches nothing."""
        lowest, highest = self.holding.lowest_c, self.holding.highest_c
        if not lowest <= celsius <= highest:
            raise TemperatureError(
                f"{celsius:g} °C is outside {lowest:g}..{highest:g} °C, this bench's limits; change the plan, or "
                f"lowest_c or highest_c in the supply's file (never beyond {NORMAL_C[0]:g}..{EXTENDED_C:g} °C)"
            )

    def set_point_c(self) -> float:
        """What the controller is set to, degrees Celsius."""
        return self.controller.set_point_c()

    def measure_c(self) -> float:
        """The temperature now, degrees Celsius.

        Raises:
            TemperatureError: the sensor is gone, or it is hotter than a DRAM may be: the safe set-point was set then.
        """
        reading = self.controller.measure_c()
        if not PLAUSIBLE_C[0] <= reading <= PLAUSIBLE_C[1]:  # a NaN is no reading
            raise TemperatureError(
                f"{self.identity} reads {reading:g} °C, outside {PLAUSIBLE_C[0]:g}..{PLAUSIBLE_C[1]:g} °C; check its "
                "sensor and its wires, and type, scale and degrees of process_value"
            )
        if reading > EXTENDED_C:
            self._give_up(f"{self.identity} reads {reading:.1f} °C, above {EXTENDED_C:g} °C, a DRAM's highest")
        return reading

    def bring_to(self, celsius: float, tell: Tell = unheard) -> float:
        """Set ``celsius`` and wait until the temperature has been near it for long enough.

        Returns:
            The last reading, degrees Celsius.

        Raises:
            TemperatureError: outside the limits (nothing is set); the time is up; or the controller or its sensor is
                gone, or stands still.
        """
        self.check(celsius)
        holding, begun = self.holding, time.monotonic()
        first = reading = self.measure_c()
        approach, steps = _Approach(celsius, holding), _Steps(first, celsius, holding.ramp_c_per_min)
        while True:
            now = time.monotonic()
            if (step := steps.next(now - begun)) is not None:
                self._moved = True
                self.controller.set_celsius(min(max(step, holding.lowest_c), holding.highest_c))
            reading = self.measure_c()
            approach.look(now, reading)
            if approach.stable_for(now) >= holding.stable_s and steps.done:
                return reading
            if (still := approach.still_for(now)) >= holding.frozen_s and steps.done:
                raise TemperatureError(
                    f"{self.identity} has read {reading:g} °C without any change for {still:.0f} s, set to "
                    f"{celsius:g} °C; check that its sensor is not frozen and its heater is on, or raise frozen_s"
                )
            if now - begun >= holding.wait_s + steps.seconds:
                raise TemperatureError(
                    f"{reading:.1f} °C after {now - begun:.0f} s, which is not within {holding.tolerance_c:g} °C of "
                    f"{celsius:g} °C for {holding.stable_s:g} s; check the heater, the controller's mode and tuning, "
                    "or change wait_s, tolerance_c or stable_s in the supply's file"
                )
            lowest, highest = celsius - holding.tolerance_c, celsius + holding.tolerance_c
            tell(Waiting(reading, lowest, highest, now - begun, approach.left_s(now)))
            time.sleep(holding.look_s)

    def make_safe(self) -> None:
        """Set the safe set-point, again and again for a while.

        Raises:
            TemperatureError: the controller does not take it.
        """
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.controller.set_celsius(self.holding.safe_c)
            except TemperatureError as error:
                if time.monotonic() >= end:
                    raise TemperatureError(
                        f"{self.identity} could not be set to {self.holding.safe_c:g} °C: switch its heater off by "
                        f"hand ({error})"
                    ) from error
                time.sleep(PAUSE_S)
            else:
                self._moved = False
                return

    @contextmanager
    def guarded(self) -> Iterator["Thermostat"]:
        """The safe set-point on every exit, if it was moved; a second Ctrl-C cannot cut that short.

        Raises:
            TemperatureError: it could not be set; says also what else went wrong.
        """
        try:
            yield self
        except BaseException as error:
            with undisturbed():
                self._leave(str(error) if isinstance(error, EdenError) else "the run was interrupted", error)
            raise
        with undisturbed():
            self._leave("", None)

    def close(self) -> None:
        """The safe set-point, if it was moved, and let go of the controller."""
        with undisturbed():
            try:
                self._leave("", None)
            finally:
                self.controller.close()

    def _leave(self, reason: str, cause: BaseException | None) -> None:
        if not self._moved:
            return
        try:
            self.make_safe()
        except BoardError as error:
            raise TemperatureError(f"{reason}; and {error}" if reason else str(error)) from cause

    def _give_up(self, reason: str) -> NoReturn:
        try:
            self.make_safe()
        except TemperatureError as error:
            raise TemperatureError(f"{reason}; and {error}") from error
        raise TemperatureError(f"{reason}; set to {self.holding.safe_c:g} °C: look at the heater and the sensor")


class KeptEnvironment:
    """The surroundings of a DRAM whose temperature is what a thermostat's controller reads; a `host.board.Environment`.

    Args:
        thermostat: of the DRAM.
        begin_epoch: of the surroundings as they were without it.
    """

    def __init__(self, thermostat: Thermostat, begin_epoch: Callable[..., None]) -> None:
        self._thermostat, self.begin_epoch = thermostat, begin_epoch
        self.sensor: str | None = thermostat.identity

    def temperature_c(self) -> float | None:
        """See `Thermostat.measure_c`."""
        return self._thermostat.measure_c()


class _Steps:
    """The set-points of a ramp: whole steps from where it begins, at the times that its rate gives them."""

    def __init__(self, first_c: float, last_c: float, ramp_c_per_min: float | None) -> None:
        self._first_c, self._last_c = first_c, last_c
        distance_c = abs(last_c - first_c)
        self.seconds = 0.0 if ramp_c_per_min is None else 60 * distance_c / ramp_c_per_min
        self._steps = max(1, math.ceil(distance_c / RAMP_STEP_C)) if self.seconds else 1
        self._taken = 0

    @property
    def done(self) -> bool:
        """Whether the last one was given."""
        return self._taken == self._steps

    def next(self, since_s: float) -> float | None:
        """The set-point that is due ``since_s`` after the beginning; None if none is."""
        due = self._steps if since_s >= self.seconds else math.floor(since_s / self.seconds * self._steps) + 1
        if due <= self._taken:
            return None
        self._taken += 1
        if self.done:
            return self._last_c
        return self._first_c + math.copysign(self._taken * RAMP_STEP_C, self._last_c - self._first_c)


class _Approach:
    """Readings on the way to a temperature: since when it is near, or stands still, and how long it takes."""

    def __init__(self, celsius: float, holding: Holding) -> None:
        self._celsius, self._holding = celsius, holding
        self._readings: deque[tuple[float, float]] = deque(maxlen=1024)
        self._near_since: float | None = None
        self._same_since: float | None = None

    def look(self, now: float, reading: float) -> None:
        near = abs(reading - self._celsius) <= self._holding.tolerance_c
        self._near_since = (now if self._near_since is None else self._near_since) if near else None
        if self._same_since is None or near or reading != self._readings[-1][1]:
            self._same_since = now
        self._readings.append((now, reading))
        while now - self._readings[0][0] > _SLOPE_S:
            self._readings.popleft()

    def stable_for(self, now: float) -> float:
        """Seconds for which it has been near."""
        return -1.0 if self._near_since is None else now - self._near_since

    def still_for(self, now: float) -> float:
        """Seconds for which it has been far, and the same to the last digit."""
        return -1.0 if self._same_since is None else now - self._same_since

    def left_s(self, now: float) -> float | None:
        """Seconds, if it goes on as a body does that is heated: ever slower, the nearer it comes."""
        if self._near_since is not None:
            return max(0.0, self._holding.stable_s - self.stable_for(now))
        (then, before), (latest, reading) = self._readings[0], self._readings[-1]
        away = self._celsius - reading
        slope = (reading - before) / (latest - then) if latest > then else 0.0
        if slope * away <= 0:
            return None
        return away / slope * math.log(abs(away) / self._holding.tolerance_c) + self._holding.stable_s
