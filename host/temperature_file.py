"""The part of `eden.toml` about temperature: which controller heats the DRAM, and how it is to be treated.

::

    [temperature]
    preset = "delta-dtb"                # `eden temperature presets` lists them
    port = "/dev/ttyUSB2"               # an RS-485 adapter
    baud = 9600
    parity = "none"
    unit = 1                            # its Modbus address

    [temperature]                       # or any other controller, by its manual: a Eurotherm 3216 that shows tenths
    port = "/dev/ttyUSB2"
    process_value = { address = 1, scale = 0.1 }
    set_point = { address = 24, scale = 0.1 }
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from host.controller_presets import PRESETS, Degrees, Preset, Register
from host.thermostat import EXTENDED_C, NORMAL_C, Holding


class TemperatureSettings(BaseModel):
    """A temperature controller that speaks Modbus RTU.

    Attributes:
        preset: a key of `host.controller_presets.PRESETS`; or else ``process_value`` and ``set_point``.
        process_value, set_point: registers of what it measures and what it is set to.
        degrees: unit of both registers.
        port: serial device.
        baud, parity, stop_bits: of the line; data bits are always 8 with RTU.
        unit: Modbus address of the controller.
        timeout_s: how long an answer may take.
        tolerance_c: how far the measured temperature may be off the set-point.
        stable_s: how long it must stay that near before it counts as reached.
        wait_s: how long that may take.
        frozen_s: how long it may stand still, to the last digit, while it is not there yet.
        look_s: how often it is read meanwhile.
        ramp_c_per_min: fastest that the set-point moves, in steps of 1 °C; default: at once.
        lowest_c, highest_c: limits of this bench, within JEDEC's for a DRAM (`host.thermostat`).
        safe_c: set-point that it is left with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str | None = None
    process_value: Register | None = None
    set_point: Register | None = None
    degrees: Degrees = "C"
    port: str = Field(min_length=1, max_length=200)
    baud: int = Field(default=9600, ge=300, le=1_000_000)
    parity: Literal["none", "even", "odd"] = "none"
    stop_bits: Literal[1, 2] = 1
    unit: int = Field(default=1, ge=1, le=247)
    timeout_s: float = Field(default=1.0, gt=0, le=30)
    tolerance_c: float = Field(default=0.5, gt=0, le=5)
    stable_s: float = Field(default=60.0, ge=0, le=3600)
    wait_s: float = Field(default=3600.0, gt=0, le=86_400)
    frozen_s: float = Field(default=300.0, gt=0, le=3600)
    look_s: float = Field(default=1.0, gt=0, le=60)
    ramp_c_per_min: float | None = Field(default=None, gt=0, le=100)
    lowest_c: float = Field(default=NORMAL_C[0], ge=NORMAL_C[0], le=EXTENDED_C)
    highest_c: float = Field(default=NORMAL_C[1], ge=NORMAL_C[0], le=EXTENDED_C)
    safe_c: float = Field(default=20.0, ge=NORMAL_C[0], le=EXTENDED_C)

    @model_validator(mode="after")
    def _consistent(self) -> "TemperatureSettings":
        by_hand = {"process_value", "set_point", "degrees"} & self.model_fields_set
        if self.preset is None and (self.process_value is None or self.set_point is None):
            raise ValueError("give preset, or both process_value and set_point")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        if self.preset is not None and by_hand:
            raise ValueError(f"preset {self.preset} knows its {', '.join(sorted(by_hand))}; leave out one or the other")
        if self.set_point is not None and self.set_point.table == "input":
            raise ValueError("set_point lies in input registers, which cannot be written; its table is holding")
        if not self.lowest_c <= self.safe_c <= self.highest_c:
            raise ValueError(
                f"safe_c {self.safe_c:g} is outside lowest_c {self.lowest_c:g}..highest_c {self.highest_c:g}"
            )
        return self

    @property
    def registers(self) -> Preset:
        """Of the preset, or as written by hand."""
        if self.preset is not None:
            return PRESETS[self.preset]
        assert self.process_value is not None
        assert self.set_point is not None
        return Preset(
            title="Modbus controller",
            process_value=self.process_value,
            set_point=self.set_point,
            degrees=self.degrees,
            remark="",
            source="the supply's file",
        )

    @property
    def holding(self) -> Holding:
        """How its temperature is to be reached and held."""
        names = Holding.__dataclass_fields__
        return Holding(**{name: getattr(self, name) for name in names})
