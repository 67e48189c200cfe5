"""DRAM channels as data: organisation, timings and currents from `eden/dram/*.toml`, each with its datasheet.

To add one, write such a file. Currents are of one device, in mA, in the datasheets' names (IDD0 … IDD5B); timings are
in DRAM clocks at ``tck_ps``. ``uncertain`` says which figures are not the datasheet's own.
"""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from profiles.errors import ModelError

_FOLDER = Path(__file__).parent / "dram"


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _power_of_two(value: int) -> int:
    if value < 1 or value & (value - 1):
        raise ValueError(f"{value} is no power of two, as DRAM addresses have it")
    return value


PowerOfTwo = Annotated[int, AfterValidator(_power_of_two)]


class Clocks(_Data):
    """JEDEC's distances in DRAM clocks; ``_s`` and ``_l`` are for other bank groups and for the same one."""

    cl: int
    cwl: int
    trp: int
    trp_all: int
    tras: int
    trrd_s: int
    trrd_l: int
    tfaw: int
    tccd_s: int
    tccd_l: int
    trtp: int
    twr: int
    twtr_s: int
    twtr_l: int
    trfc: int
    trefi: int


class Rail(_Data):
    """One supply of a device: nominal voltage, IDD currents (mA), and whether a reduced VDD lowers it."""

    name: str
    mv: float
    scaled: bool
    idd0: float
    idd2n: float
    idd3n: float
    idd4r: float
    idd4w: float
    idd5b: float


class Io(_Data):
    """Power of a pin (DQ, DQS, DM) while it transfers, mW, and how many pins of a device do."""

    read_mw: float
    write_mw: float
    read_pins: int
    write_pins: int


class DramSpec(_Data):
    """One channel: ``devices`` in lock step, each ``width`` data lines wide.

    Attributes:
        row_bursts: bursts that a row holds.
        burst_beats: transfers of a burst, two a clock.
        trcd_ps: nominal tRCD.
    """

    name: str
    source: str
    uncertain: str
    devices: int
    width: int
    banks: PowerOfTwo
    bank_groups: PowerOfTwo
    burst_beats: int
    row_bursts: PowerOfTwo
    tck_ps: int
    trcd_ps: int
    clocks: Clocks
    rails: tuple[Rail, ...]
    io: Io

    @property
    def address_bits(self) -> tuple[int, int, int]:
        """Bits of a burst's number that choose bank group, burst of the row, and bank of the group, from the lowest."""
        sizes = self.bank_groups, self.row_bursts, self.banks // self.bank_groups
        group, burst, bank = (size.bit_length() - 1 for size in sizes)
        return group, burst, bank

    @property
    def burst_bytes(self) -> int:
        return self.devices * self.width * self.burst_beats // 8

    @property
    def burst_clocks(self) -> int:
        return self.burst_beats // 2

    @property
    def trcd(self) -> int:
        """Nominal tRCD in clocks, rounded up."""
        return self.trcd_clocks(0)

    def trcd_clocks(self, reduction_ps: int) -> int:
        """tRCD in clocks, rounded up, when ``reduction_ps`` are taken off the nominal one.

        Raises:
            ModelError: nothing would be left.
        """
        left = self.trcd_ps - reduction_ps
        if left <= 0:
            raise ModelError(
                f"a tRCD cut of {reduction_ps} ps leaves {left} ps of {self.name}'s {self.trcd_ps} ps; cut less"
            )
        return -(-left // self.tck_ps)


def names() -> list[str]:
    """DRAMs that `load` knows."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load(name: str) -> DramSpec:
    """The channel ``name``.

    Raises:
        ModelError: no such file, or it lacks or adds a field.
    """
    if name not in names():
        raise ModelError(f"no DRAM {name!r}; choose from {', '.join(names())}")
    try:
        return DramSpec.model_validate(tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8")))
    except (ValidationError, tomllib.TOMLDecodeError) as error:
        raise ModelError(
            f"{name}.toml is no DRAM: {' '.join(str(error).split())}; compare it with the others"
        ) from error
