"""`eden.toml`: what feeds the DRAM of the board on this bench, and what heats it (`host.temperature_file`).

::

    [supply]
    kind = "pmbus"                                      # a regulator on a board with a PMBus master
    dram = "DDR3"                                       # its JEDEC family: limits and nominal
    board = "etherbone:192.168.1.50"                    # the board that it feeds and is reached through
    floor_mv = 1140                                     # lowest that the board takes: its FPGA may share the rail
    uncertainty_mv = 5.0                                # one standard deviation of a reading, at the DIMM

    [supply]
    kind = "scpi"                                       # a bench supply
    dram = "DDR3L"
    floor_mv = 1140
    uncertainty_mv = 1.7
    resource = "TCPIP::192.168.1.60::5025::SOCKET"      # as PyVISA names it
    dialect = "keysight-e36300"                         # `eden rail dialects` lists them
    channel = 1

    [supply]
    kind = "fixed"                                      # one that cannot be moved
    dram = "DDR4"
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from host.rail import FASTEST_MV_PER_S, LARGEST_STEP_MV, LIMITS, Ramp
from host.scpi_dialects import DIALECTS
from host.temperature_file import TemperatureSettings
from host.toml_file import load_toml
from profiles.errors import PlanError, RailError

SUPPLY_FILE = Path("eden.toml")  # where a real board's supply is looked for, in the working directory


class _Settings(BaseModel):
    """What is common to all supplies.

    Attributes:
        dram: JEDEC family of the module, which sets limits and nominal; a DDR3L module on a rail of 1.5 V is a DDR3.
        nominal_mv: if it is not the standard's nominal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dram: Literal["DDR3", "DDR3L", "DDR4", "LPDDR3", "LPDDR4"]
    nominal_mv: int | None = Field(default=None, gt=0, le=3000)

    @property
    def nominal(self) -> int:
        """The module's nominal supply, millivolts: as given, or the standard's."""
        return LIMITS[self.dram].nominal_mv if self.nominal_mv is None else self.nominal_mv


class FixedSettings(_Settings):
    """A supply that cannot be moved, and is taken to be nominal.

    Attributes:
        uncertainty_mv: one standard deviation of the voltage about nominal; default: JEDEC's band of ±5 %, uniform.
    """

    kind: Literal["fixed"]
    uncertainty_mv: float | None = Field(default=None, gt=0, le=100)


class _Controlled(_Settings):
    """What is common to supplies that can be moved.

    Attributes:
        floor_mv: the lowest that this board may ever see, millivolts.
        uncertainty_mv: one standard deviation of a reading as the voltage at the DIMM, millivolts: of the instrument
            (a data sheet's limit over √3), or of a comparison with a calibrated meter at the DIMM.
        tolerance_mv: how far a reading may be off what was set.
        step_mv, slew_mv_per_s, settle_s: see `host.rail.Ramp`.
    """

    floor_mv: int = Field(gt=0, le=3000)
    uncertainty_mv: float = Field(gt=0, le=100)
    tolerance_mv: float = Field(default=5.0, gt=0, le=25)
    step_mv: int = Field(default=LARGEST_STEP_MV, gt=0, le=LARGEST_STEP_MV)
    slew_mv_per_s: int = Field(default=2500, gt=0, le=FASTEST_MV_PER_S)
    settle_s: float = Field(default=1.0, gt=0, le=30)

    @property
    def ramp(self) -> Ramp:
        """How its output is to move."""
        return Ramp(self.step_mv, self.slew_mv_per_s, self.tolerance_mv, self.settle_s)

    @model_validator(mode="after")
    def _floor_below_nominal(self) -> "_Controlled":
        if self.floor_mv > self.nominal:
            raise ValueError(f"a floor of {self.floor_mv} mV is above nominal, {self.nominal} mV")
        return self


class PmbusSettings(_Controlled):
    """A regulator of the UCD92xx family, reached through the gateware's SMBus master.

    Attributes:
        board: link to its board (`host.links`), whose own floor and nominal hold.
        tolerance_mv: the KC705's 1.0 V read 4.2 mV more than it was set to (`host.pmbus`): 0.4 %.
        addresses: SMBus addresses to look for it at; default: where the KC705 has its three.
    """

    kind: Literal["pmbus"]
    board: str = Field(min_length=1, max_length=200)
    tolerance_mv: float = Field(default=15.0, gt=0, le=25)
    addresses: tuple[Annotated[int, Field(ge=0x08, le=0x77)], ...] = Field(default=(52, 53, 54), min_length=1)


class ScpiSettings(_Controlled):
    """A bench supply that speaks SCPI.

    Attributes:
        board: link to the board that it feeds, if its own floor and nominal shall hold; else the file's alone do.
        resource: VISA resource name, e.g. ``TCPIP::192.168.1.60::5025::SOCKET`` or ``USB0::…::INSTR``.
        dialect: a key of `host.scpi_dialects.DIALECTS`.
        channel: output that feeds the DRAM, from 1.
        timeout_s: how long an answer may take.
    """

    kind: Literal["scpi"]
    board: str | None = Field(default=None, min_length=1, max_length=200)
    resource: str = Field(min_length=1, max_length=200)
    dialect: str
    channel: int = Field(default=1, ge=1, le=4)
    timeout_s: float = Field(default=2.0, gt=0, le=30)

    @model_validator(mode="after")
    def _dialect_known(self) -> "ScpiSettings":
        if self.dialect not in DIALECTS:
            raise ValueError(f"dialect {self.dialect!r} is none of {', '.join(DIALECTS)}")
        return self

    @property
    def ramp(self) -> Ramp:
        """In steps that the supply can set."""
        resolution_mv = DIALECTS[self.dialect].resolution_mv
        step_mv = max(resolution_mv, self.step_mv // resolution_mv * resolution_mv)
        return replace(super().ramp, step_mv=step_mv, resolution_mv=resolution_mv)


SupplySettings = Annotated[FixedSettings | PmbusSettings | ScpiSettings, Field(discriminator="kind")]


class SupplyFile(BaseModel):
    """A whole `eden.toml`.

    Attributes:
        supply: of the DRAM; None where only a board in software is used, which brings its own.
        temperature: its controller, if there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    supply: SupplySettings | None = None
    temperature: TemperatureSettings | None = None


def load_bench(file: Path = SUPPLY_FILE) -> SupplyFile:
    """All that ``file`` says.

    Raises:
        RailError: there is no such file.
        PlanError: it cannot be read, is no TOML, or holds an unknown key or an impossible value.
    """
    if not file.exists():
        raise RailError(f"no {file}, which says what feeds the DRAM; write one (README, 'Its supply') or give --supply")
    return load_toml(file, SupplyFile)


def load_supply(file: Path = SUPPLY_FILE) -> FixedSettings | PmbusSettings | ScpiSettings:
    """What ``file`` says of the supply.

    Raises:
        RailError, PlanError: as `load_bench`, or it says nothing of a supply.
    """
    supply = load_bench(file).supply
    if supply is None:
        raise PlanError(f"{file} has no [supply], which says what feeds the DRAM; write one (README, 'Its supply')")
    return supply


def load_temperature(file: Path = SUPPLY_FILE) -> TemperatureSettings:
    """What ``file`` says of the temperature controller.

    Raises:
        RailError, PlanError: as `load_bench`, or it says nothing of a controller.
    """
    temperature = load_bench(file).temperature
    if temperature is None:
        raise PlanError(
            f"{file} has no [temperature], which names the temperature controller; write one (README, 'Its "
            "temperature')"
        )
    return temperature
