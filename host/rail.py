"""The DRAM supply: hard limits, ramps, read-back, and back to nominal on every exit.

`Supply` is what a device driver offers; `Rail` is the only thing that talks to one. A `Rail` never sets a voltage
outside `LIMITS` of its DRAM type or below the board's floor, whatever a plan says, and leaving its ``with`` block by
any path, an exception, Ctrl-C or SIGTERM included, returns the supply to nominal. SIGKILL and a lost link cannot be
caught: the gateware's restore sequencer (`host.pmbus`) or a guardian process (`host.guardian`) covers them.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, Protocol, Self

from profiles.errors import BoardError, RailError


@dataclass(frozen=True)
class DramLimits:
    """Supply voltages of a JEDEC family, millivolts.

    Attributes:
        lowest_mv: the lowest that may ever be set: the field has seen no DRAM of the family answer below it
            (SIGMETRICS 2017 reached 0.9 V on DDR3L).
        nominal_mv: the standard's nominal.
        highest_mv: the highest that may ever be set: JEDEC's recommended maximum of a DC supply.
        absolute_mv: absolute maximum rating: a reading above it is damage under way.
    """

    lowest_mv: int
    nominal_mv: int
    highest_mv: int
    absolute_mv: int


# Recommended DC operating conditions and absolute maximum DC ratings of JESD79-3F, JESD79-3-1A, JESD79-4, JESD209-3C
# (VDD2) and JESD209-4 (VDD2). The standards themselves were not at hand: DDR3, DDR3L and DDR4 were checked against
# makers' data sheets, the two LPDDR families against nothing. Where makers differ the lower figure stands: DDR3's
# rating is 1.975 V with some and 1.8 V with others; DDR3L's 1.45 V includes noise, its DC maximum is 1.425 V.
LIMITS = {
    "DDR3": DramLimits(1000, 1500, 1575, 1800),
    "DDR3L": DramLimits(900, 1350, 1425, 1800),
    "DDR4": DramLimits(900, 1200, 1260, 1500),
    "LPDDR3": DramLimits(900, 1200, 1300, 1600),
    "LPDDR4": DramLimits(800, 1100, 1170, 1500),
}
LARGEST_STEP_MV = 25
FASTEST_MV_PER_S = 10_000
WATCH_S = 1.0  # from one look at the rail to the next while a program runs
STEADY_MV = 2.0  # consecutive readings of a settled output differ by no more
FOUND_NEAR = 0.03  # of nominal: how far off a supply may be set that nobody left low, and that is this DRAM's


@dataclass(frozen=True)
class Ramp:
    """How an output moves from one voltage to another.

    Attributes:
        step_mv: largest step, at most `LARGEST_STEP_MV`.
        slew_mv_per_s: fastest that steps follow each other, at most `FASTEST_MV_PER_S`; None: as fast as the supply.
        tolerance_mv: how far a reading may be off what was set.
        settle_s: how long the output may take to get there after a step; 0: the first reading counts.
        resolution_mv: voltages, and steps, are multiples of this.
    """

    step_mv: int = LARGEST_STEP_MV
    slew_mv_per_s: int | None = None
    tolerance_mv: float = 5.0
    settle_s: float = 0.0
    resolution_mv: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.step_mv <= LARGEST_STEP_MV:
            raise RailError(f"a ramp's step of {self.step_mv} mV is outside 1..{LARGEST_STEP_MV} mV; correct it")
        if self.slew_mv_per_s is not None and not 0 < self.slew_mv_per_s <= FASTEST_MV_PER_S:
            raise RailError(f"a ramp of {self.slew_mv_per_s} mV/s is outside 1..{FASTEST_MV_PER_S} mV/s; correct it")


@dataclass(frozen=True)
class Measurement:
    """What was read back at the rail.

    Attributes:
        millivolts: its voltage.
        uncertainty_mv: one standard deviation of it.
        milliamperes, milliwatts: what the rail takes; None where the supply does not measure it.
    """

    millivolts: float
    uncertainty_mv: float
    milliamperes: float | None = None
    milliwatts: float | None = None


class Supply(Protocol):
    """A device that feeds the DRAM rail. Its methods raise RailError or LinkError where the device does not obey.

    Attributes:
        identity: what it says it is.
    """

    identity: str

    def set_millivolts(self, millivolts: int) -> None:
        """Set the output; returns once the device has taken it."""

    def measure(self) -> Measurement:
        """Read the output back."""

    def set_point_mv(self) -> float:
        """What the device says that its output is set to, millivolts."""

    def close(self) -> None:
        """Let go of the device, which is at nominal; a second call does nothing."""


class Rail:
    """The DRAM rail of one board. A rail that was never moved is never written to, closing it included.

    Args:
        supply: the device.
        dram_type: JEDEC family, a key of `LIMITS`.
        nominal_mv: the module's nominal supply.
        floor_mv: the board's own lowest voltage; below `LIMITS` it changes nothing.
        ramp: how the output moves.

    Attributes:
        dram_type, nominal_mv: as given.
        lowest_mv, highest_mv: hard limits of what may be set.
        readings: what `watch` has read since `begin_watch`.

    Raises:
        RailError: nominal itself is outside the limits.
    """

    def __init__(
        self, supply: Supply, dram_type: str, nominal_mv: int, floor_mv: int = 0, ramp: Ramp | None = None
    ) -> None:
        self._supply, self.dram_type, self.nominal_mv = supply, dram_type, nominal_mv
        self._ramp = ramp or Ramp()
        self.lowest_mv, self.highest_mv = max(LIMITS[dram_type].lowest_mv, floor_mv), LIMITS[dram_type].highest_mv
        self._present_mv, self._moved = nominal_mv, False
        self._looked = 0.0
        self.readings: list[Measurement] = []
        self.check(nominal_mv)

    @property
    def identity(self) -> str:
        """What the supply says it is."""
        return self._supply.identity

    @property
    def ramp(self) -> Ramp:
        """How the output moves."""
        return self._ramp

    def through(self, wrap: Callable[[Supply], Supply]) -> Self:
        """This rail, not moved yet, with something between it and its supply."""
        return type(self)(wrap(self._supply), self.dram_type, self.nominal_mv, self.lowest_mv, self._ramp)

    def set_point_mv(self) -> float:
        """What the supply says that it is set to, millivolts."""
        return self._supply.set_point_mv()

    @property
    def present_mv(self) -> int:
        """What the supply was last set to, millivolts."""
        return self._present_mv

    def check(self, millivolts: int) -> None:
        """Raises RailError if ``millivolts`` is outside the hard limits, or cannot be set; touches nothing."""
        if not self.lowest_mv <= millivolts <= self.highest_mv:
            raise RailError(
                f"{millivolts} mV is outside {self.lowest_mv}..{self.highest_mv} mV, the limits of {self.dram_type} "
                "on this board; change the plan"
            )
        if millivolts % self._ramp.resolution_mv:
            raise RailError(
                f"{millivolts} mV cannot be set: this supply sets {self._ramp.resolution_mv} mV at a time; change the "
                "plan"
            )

    def set(self, millivolts: int) -> Measurement:
        """Ramp to ``millivolts``, reading back at each step.

        Raises:
            RailError: outside the limits (nothing is set), or a reading is off by more than the tolerance.
        """
        self.check(millivolts)
        if self._present_mv == millivolts:
            return self._settled()
        while self._present_mv != millivolts:
            begun = time.monotonic()
            step = max(-self._ramp.step_mv, min(self._ramp.step_mv, millivolts - self._present_mv))
            self._present_mv += step
            self._moved = True
            self._supply.set_millivolts(self._present_mv)
            measured = self._settled()
            if self._ramp.slew_mv_per_s is not None:
                time.sleep(max(0.0, begun + abs(step) / self._ramp.slew_mv_per_s - time.monotonic()))
        return measured

    def measure(self) -> Measurement:
        """What the rail reads now, near what was set or not."""
        return self._supply.measure()

    def hold(self) -> Measurement:
        """Read back at a moment when the rail must still be where it was set.

        Raises:
            RailError: it is not; it was sent back to nominal.
        """
        measured = self._supply.measure()
        if not self._near(measured):
            self._give_up(measured)
        return measured

    def begin_watch(self) -> None:
        """Forget the readings, and take the next one as soon as `watch` is called."""
        self.readings, self._looked = [], 0.0

    def watch(self) -> None:
        """`hold`, at most once in `WATCH_S`: for a loop that waits for the board."""
        if (now := time.monotonic()) - self._looked >= WATCH_S:
            self._looked = now
            self.readings.append(self.hold())

    def restore(self) -> None:
        """Back to nominal at once, upwards without a ramp: undervoltage is the state to leave.

        Raises:
            RailError: the rail does not read nominal afterwards.
        """
        self._moved = True
        self._supply.set_millivolts(self.nominal_mv)
        self._present_mv = self.nominal_mv
        measured = self._look_until_settled()
        if not self._near(measured):
            raise RailError(
                f"the rail reads {measured.millivolts:.1f} mV after being sent to nominal, {self.nominal_mv} mV; "
                "switch the supply off, then look at its wiring and limits"
            )

    @contextmanager
    def guarded(self) -> Iterator["Rail"]:
        """Nominal on entry and on every exit; a second Ctrl-C cannot cut the way back short.

        Raises:
            RailError: the supply is found set to something else than nominal, and was not moved.
        """
        if not self._moved:
            self._check_found()
        try:
            self.restore()
            yield self
        finally:
            with undisturbed():
                self.restore()

    def close(self) -> None:
        """Back to nominal, if it was moved, and let go of the supply."""
        with undisturbed():
            try:
                if self._moved:
                    self.restore()
            finally:
                self._supply.close()

    def _check_found(self) -> None:
        """A supply for another DRAM must not be taken for one that was left low, and be raised."""
        found_mv = self._supply.set_point_mv()
        if not abs(found_mv - self.nominal_mv) <= FOUND_NEAR * self.nominal_mv:
            raise RailError(
                f"the supply is set to {found_mv:g} mV, not to nominal, {self.nominal_mv} mV of {self.dram_type}; "
                "nothing was moved: correct dram in the supply's file, or eden rail restore if it was left low"
            )

    def _settled(self) -> Measurement:
        measured = self._look_until_settled()
        if not self._near(measured):
            self._give_up(measured)
        return measured

    def _look_until_settled(self) -> Measurement:
        """The reading that is near and steady; the last one if there is none in time, or one that is harmful."""
        end = time.monotonic() + self._ramp.settle_s
        before: Measurement | None = None
        while True:
            measured = self._supply.measure()
            steady = before is not None and abs(measured.millivolts - before.millivolts) <= STEADY_MV
            if self._near(measured) and (steady or not self._ramp.settle_s):
                return measured
            if measured.millivolts > LIMITS[self.dram_type].absolute_mv or time.monotonic() >= end:
                return measured
            before = measured

    def _near(self, measured: Measurement) -> bool:
        return abs(measured.millivolts - self._present_mv) <= self._ramp.tolerance_mv  # a NaN is no reading

    def _give_up(self, measured: Measurement) -> NoReturn:
        wrong = (
            f"the rail reads {measured.millivolts:.1f} mV after being set to {self._present_mv} mV "
            f"(tolerance {self._ramp.tolerance_mv:g} mV)"
        )
        try:
            self.restore()
        except BoardError as error:
            raise RailError(f"{wrong}; and nominal could not be had back: {error}") from error
        raise RailError(f"{wrong}; back at nominal; check the supply and its sense lines")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM for a moment (they reach the main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
