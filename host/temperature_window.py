"""Tests that count only while the DRAM's temperature is in a window: waited for, watched, tried again."""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

from host.board import Board
from host.temperature_plan import TemperaturePlan
from host.thermostat import Tell, Waiting, unheard
from profiles.errors import TemperatureError

LOOK_S = 1.0  # between looks at a temperature that nobody controls


class LeftWindowError(TemperatureError):
    """The temperature left the window during a test, which does not count."""


class TemperatureWindow:
    """What a plan asks of the temperature, kept on one board. A plan that asks for nothing is met by any temperature.

    Args:
        board: whose temperature it is.
        plan: what is asked for; None: nothing.
        tell: told what is waited for.
    """

    def __init__(self, board: Board, plan: TemperaturePlan | None, tell: Tell = unheard) -> None:
        self._board, self._plan, self._tell = board, plan, tell
        self._reached = plan is None or plan.set_c is None

    def guarded(self) -> AbstractContextManager[object]:
        """A controller that was set is left safe on every exit."""
        return nullcontext() if self._board.thermostat is None else self._board.thermostat.guarded()

    def refreshed(self) -> AbstractContextManager[None]:
        """Refresh as often as the window wants it."""
        return self._board.refreshing_twice() if self._plan is not None and self._plan.extended else nullcontext()

    def measure(self, test: Callable[[], None]) -> None:
        """Run ``test`` inside the window, again where the temperature left it meanwhile.

        Raises:
            TemperatureError: it left the window in every try, or did not come into it in time; or its sensor is gone.
        """
        if self._plan is None:
            return test()
        for tried in range(1, self._plan.tries + 1):
            self._wait()
            try:
                return test()
            except LeftWindowError as left:
                if tried == self._plan.tries:
                    raise TemperatureError(
                        f"{left}, in each of {tried} tries; keep the board's surroundings steadier, test less at a "
                        "point (rows, rounds), or change window_c or tries of the plan"
                    ) from left
        return None

    def require(self, readings: Iterable[float]) -> None:
        """Raises LeftWindowError if one of ``readings``, degrees Celsius, is outside the window."""
        if self._plan is None:
            return
        lowest, highest = self._plan.window
        for celsius in readings:
            if not lowest <= celsius <= highest:
                raise LeftWindowError(f"the temperature was {celsius:.1f} °C, outside {lowest:g}..{highest:g} °C")

    def _wait(self) -> None:
        """Until the temperature is in the window, with the supply at nominal meanwhile."""
        assert self._plan is not None
        begun, reached = time.monotonic(), self._reached
        lowest, highest = self._plan.window
        self._reach()
        while not lowest <= (celsius := self._now()) <= highest:
            rail = self._board.rail
            if rail.present_mv != rail.nominal_mv:
                rail.set(rail.nominal_mv)
            waited, reached = time.monotonic() - begun, False
            if waited >= self._plan.wait_s:
                raise TemperatureError(
                    f"{celsius:.1f} °C after {waited:.0f} s, outside {lowest:g}..{highest:g} °C, where the plan's "
                    f"tests count ({self._board.environment.sensor}); bring the board there, or change window_c or "
                    "wait_s of the plan"
                )
            self._tell(Waiting(celsius, lowest, highest, waited))
            if self._plan.set_c is None:
                time.sleep(LOOK_S)
            else:
                self._reached = False
                self._reach()
        if not reached:
            self._tell(Waiting(celsius, lowest, highest, time.monotonic() - begun, over=True))

    def _reach(self) -> None:
        """The set-point, at first and whenever the temperature was lost."""
        if self._reached:
            return
        assert self._plan is not None
        assert self._plan.set_c is not None
        assert self._board.thermostat is not None  # the plan was checked
        self._board.thermostat.bring_to(self._plan.set_c, self._tell)
        self._reached = True

    def _now(self) -> float:
        celsius = self._board.environment.temperature_c()
        if celsius is None:
            raise TemperatureError(
                "the board's temperature sensor is gone; connect it, or leave temperature out of the plan"
            )
        return celsius
