"""What a scan plan asks of the DRAM's temperature, as TOML, checked before anything is touched."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from host.board import Board
from host.thermostat import EXTENDED_C, NORMAL_C
from profiles.errors import PlanError

WINDOW_C = 1.0
Celsius = Annotated[float, Field(ge=NORMAL_C[0], le=EXTENDED_C)]


class TemperaturePlan(BaseModel):
    """The temperature that a scan asks for; with the controller of `eden.toml`, or with a sensor alone.

    Attributes:
        set_c: what the controller is set to, and waited for, before the first test; default: it is left alone.
        window_c: lowest and highest at which a test is begun, and counts; default: `WINDOW_C` about ``set_c``.
        tries: how often a test is begun, which the temperature left the window of, before the scan ends.
        wait_s: how long the window may be waited for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    set_c: Celsius | None = None
    window_c: tuple[Celsius, Celsius] | None = None
    tries: int = Field(default=3, ge=1, le=100)
    wait_s: float = Field(default=3600.0, gt=0, le=604_800)

    @model_validator(mode="after")
    def _something_possible(self) -> "TemperaturePlan":
        if self.set_c is None and self.window_c is None:
            raise ValueError("give set_c, window_c, or both")
        lowest, highest = self.window
        if not lowest < highest:
            raise ValueError(
                f"window_c runs from {lowest:g} to {highest:g} °C, which is empty; give the lower one first"
            )
        if self.set_c is not None and not lowest <= self.set_c <= highest:
            raise ValueError(f"set_c {self.set_c:g} is outside window_c {lowest:g}..{highest:g}")
        return self

    @property
    def window(self) -> tuple[float, float]:
        """Where tests count, degrees Celsius, both ends included."""
        if self.window_c is not None:
            return self.window_c
        assert self.set_c is not None
        highest = NORMAL_C[1] if self.set_c <= NORMAL_C[1] else EXTENDED_C
        return max(NORMAL_C[0], self.set_c - WINDOW_C), min(highest, self.set_c + WINDOW_C)

    @property
    def extended(self) -> bool:
        """Whether it reaches into JEDEC's extended range, where tests refresh twice as often."""
        return self.window[1] > NORMAL_C[1]

    def check(self, board: Board) -> None:
        """Raises PlanError or TemperatureError if this board's temperature cannot be known or set so."""
        if board.environment.sensor is None:
            raise PlanError(
                "the plan asks for a temperature, and nothing tells this board's; name a controller in the supply's "
                "file (README, 'Its temperature'), or leave temperature out of the plan"
            )
        if self.set_c is None:
            return
        if board.thermostat is None:
            raise PlanError(
                f"the plan asks for {self.set_c:g} °C, and no controller is there to set it; name one in the supply's "
                "file (README, 'Its temperature'), or give window_c alone"
            )
        board.thermostat.check(self.set_c)

    def __str__(self) -> str:
        lowest, highest = self.window
        return (
            f"{lowest:g} .. {highest:g} °C" if self.set_c is None else f"{self.set_c:g} °C ({lowest:g} .. {highest:g})"
        )
