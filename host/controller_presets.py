"""Temperature controllers by their Modbus registers: as their makers' manuals have them, or as users write them down.

Addresses are those of the Modbus frame, from 0. Every preset names its manual; what that does not say is left out.
"""

import math
import struct
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from profiles.errors import TemperatureError

Degrees = Literal["C", "F"]
_LARGEST_FLOAT = 1e6  # a temperature that no controller has


class Register(BaseModel):
    """Where a controller keeps a number, and how.

    Attributes:
        address: in the frame, from 0.
        type: a signed or unsigned word, or two words of an IEEE 754 float.
        scale: degrees of one count: 0.1 where 253 stands for 25.3.
        low_word_first: of a float; Modbus itself does not say which comes first.
        table: holding registers (function 3) or input registers (function 4).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: int = Field(ge=0, le=0xFFFF)
    type: Literal["int16", "uint16", "float32"] = "int16"
    scale: float = Field(default=1.0, gt=0, le=1000)
    low_word_first: bool = False
    table: Literal["holding", "input"] = "holding"

    @property
    def words(self) -> int:
        """How many registers it takes."""
        return 2 if self.type == "float32" else 1

    @property
    def resolution(self) -> float:
        """Half of the smallest step between two numbers that it can hold, degrees."""
        return 1e-3 if self.type == "float32" else self.scale / 2

    def encode(self, degrees: float) -> list[int]:
        """``degrees`` as words, rounded to what the register can hold.

        Raises:
            TemperatureError: it cannot hold that.
        """
        counts = degrees / self.scale
        lowest, highest = {"int16": (-0x8000, 0x7FFF), "uint16": (0, 0xFFFF)}.get(
            self.type, (-_LARGEST_FLOAT, _LARGEST_FLOAT)
        )
        if not math.isfinite(counts) or not lowest <= (counts if self.type == "float32" else round(counts)) <= highest:
            raise TemperatureError(
                f"{degrees:g} degrees are {counts:g} counts of register {self.address}, outside {lowest:g}.."
                f"{highest:g} of {self.type}; correct its type or scale in the supply's file"
            )
        if self.type != "float32":
            return [round(counts) & 0xFFFF]
        high, low = struct.unpack(">HH", struct.pack(">f", counts))
        return [low, high] if self.low_word_first else [high, low]

    def decode(self, words: list[int]) -> float:
        """Degrees that ``words`` stand for; NaN or an infinity where a float says so."""
        if self.type == "uint16":
            return words[0] * self.scale
        if self.type == "int16":
            return float(words[0] - ((words[0] & 0x8000) << 1)) * self.scale
        high, low = reversed(words) if self.low_word_first else words
        return float(struct.unpack(">f", struct.pack(">HH", high, low))[0]) * self.scale


@dataclass(frozen=True)
class Preset:
    """A family of controllers.

    Attributes:
        title: makers and models.
        process_value, set_point: its registers.
        degrees: unit of both; or where the controller says which, as words of ``unit_register``.
        unit_register: address of a register that tells the unit, None if the manual knows none.
        units: what that register holds for each unit.
        broken: words of the process value that are no temperature, and what they say.
        remark: what must be set at the controller by hand.
        source: its manual.
    """

    title: str
    process_value: Register
    set_point: Register
    remark: str
    source: str
    degrees: Degrees = "C"
    unit_register: int | None = None
    units: dict[int, Degrees] = field(default_factory=dict)
    broken: dict[int, str] = field(default_factory=dict)


PRESETS = {
    "delta-dtb": Preset(
        title="Delta DTB (DTB4824, 4848, 4896, 9696)",
        process_value=Register(address=0x1000, scale=0.1),
        set_point=Register(address=0x1001, scale=0.1),
        broken={
            0x8002: "has no temperature yet",
            0x8003: "has no sensor connected",
            0x8004: "has an error at its sensor input",
            0x8006: "has an error of its converter",
            0x8007: "has an error of its memory",
        },
        remark="set it to RTU with 8 data bits, to °C, and to take what is written over the line; its memory takes "
        "100,000 writes",
        source="DTB Series User Manual, 'RS-485 Communication' (data registers 1000H, 1001H) and 'Specifications'",
    ),
    "watlow-ez-zone": Preset(
        title="Watlow EZ-ZONE PM with Modbus RTU",
        process_value=Register(address=360, type="float32", low_word_first=True),
        set_point=Register(address=2160, type="float32", low_word_first=True),
        unit_register=2490,
        units={30: "F", 15: "C"},
        remark="word order low/high, as it comes; firmware 2.0 or newer, which tells its unit (°F, as it comes)",
        source="EZ-ZONE Communications User's Manual, chapter 2 'Modbus RTU & TCP' (registers 360, 2160, 2490)",
    ),
}
