"""The DRAM supply: hard limits, ramps, read-back, and back to nominal on every exit.

`Supply` is what a device driver offers; `Rail` is the only thing that talks to one. A `Rail` never sets a voltage
outside `LIMITS` of its DRAM type, whatever a plan says, and leaving its ``with`` block by any path, an exception,
Ctrl-C or SIGTERM included, returns the supply to nominal. SIGKILL cannot be caught: on hardware the gateware's restore
sequencer or a guardian process covers it.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from profiles.errors import RailError

# (lowest, highest) millivolts that may ever be set, per JEDEC family: absolute maximum ratings above, below the lowest
# voltage at which the field has seen DRAM still answer (SIGMETRICS 2017 reached 0.9 V on DDR3L)
LIMITS = {
    "DDR3": (1000, 1575),
    "DDR3L": (900, 1450),
    "DDR4": (900, 1260),
    "LPDDR3": (900, 1300),
    "LPDDR4": (800, 1170),
}
STEP_MV = 25
TOLERANCE_MV = 5.0


@dataclass(frozen=True)
class Measurement:
    """A voltage read back at the rail, and its uncertainty (one standard deviation), millivolts."""

    millivolts: float
    uncertainty_mv: float


class Supply(Protocol):
    """A device that feeds the DRAM rail."""

    def set_millivolts(self, millivolts: int) -> None:
        """Set the output; returns once it has settled."""

    def measure(self) -> Measurement:
        """Read the output back."""


class Rail:
    """The DRAM rail of one board.

    Args:
        supply: the device.
        dram_type: JEDEC family, a key of `LIMITS`.
        nominal_mv: the module's nominal supply.
    """

    def __init__(self, supply: Supply, dram_type: str, nominal_mv: int) -> None:
        self._supply, self._dram_type, self.nominal_mv = supply, dram_type, nominal_mv
        self._present_mv = nominal_mv

    @property
    def present_mv(self) -> int:
        """What the supply was last set to, millivolts."""
        return self._present_mv

    def check(self, millivolts: int) -> None:
        """Raises RailError if ``millivolts`` is outside the hard limits; touches nothing."""
        low, high = LIMITS[self._dram_type]
        if not low <= millivolts <= high:
            raise RailError(
                f"{millivolts} mV is outside {low}..{high} mV, the limits of {self._dram_type}; change the plan"
            )

    def set(self, millivolts: int) -> Measurement:
        """Ramp to ``millivolts`` and read back.

        Raises:
            RailError: outside the limits (nothing is set), or the read-back is off by more than `TOLERANCE_MV`.
        """
        self.check(millivolts)
        while self._present_mv != millivolts:
            step = max(-STEP_MV, min(STEP_MV, millivolts - self._present_mv))
            self._supply.set_millivolts(self._present_mv + step)
            self._present_mv += step
        measured = self._supply.measure()
        if not abs(measured.millivolts - millivolts) <= TOLERANCE_MV:  # a read-back of NaN is no read-back
            self.restore()
            raise RailError(
                f"the rail reads {measured.millivolts:.1f} mV after being set to {millivolts} mV "
                f"(tolerance {TOLERANCE_MV:g} mV); back at nominal; check the supply and its sense lines"
            )
        return measured

    def restore(self) -> None:
        """Back to nominal at once, upwards without a ramp: undervoltage is the state to leave."""
        self._supply.set_millivolts(self.nominal_mv)
        self._present_mv = self.nominal_mv

    @contextmanager
    def guarded(self) -> Iterator["Rail"]:
        """Nominal on entry and on every exit; a second Ctrl-C cannot cut the way back short."""
        try:
            self.restore()
            yield self
        finally:
            with _undisturbed():
                self.restore()


@contextmanager
def _undisturbed() -> Iterator[None]:
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
