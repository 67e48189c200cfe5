"""What a profile records besides its cells: module, conditions, and every tested point. Units are in the names."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from profiles.geometry import Geometry
from profiles.pattern import Pattern

FORMAT_VERSION = 2


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AccessMode(StrEnum):
    """How the cells were read. Only the first READ after an ACTIVATE sees a short tRCD, so the two do not mix."""

    BURST_PER_ACTIVATION = "burst_per_activation"  # ACT, one RD, PRE for every burst
    LINEAR = "linear"  # one ACT, then every burst of the row


class WriteCondition(StrEnum):
    """At which point the data under test were written."""

    NOMINAL = "nominal"
    OPERATING_POINT = "operating_point"  # at the reduced VDD and tRCD, as IFMs are


class OperatingPoint(_Record):
    """A supply voltage and an activation latency, as they were asked for.

    Attributes:
        vdd_mv: DRAM supply, millivolts.
        trcd_ps: ACT to READ or WRITE, picoseconds (a multiple of the board's tCK).
    """

    vdd_mv: int = Field(gt=0, le=3000)
    trcd_ps: int = Field(gt=0, le=200_000)

    def __str__(self) -> str:
        return f"{self.vdd_mv} mV, {self.trcd_ps / 1000:g} ns"


class Region(_Record):
    """The tested cells: whole rows ``row_start .. row_start + row_count - 1`` of each bank."""

    banks: tuple[int, ...] = Field(min_length=1, max_length=256)
    row_start: int = Field(ge=0)
    row_count: int = Field(gt=0)

    @model_validator(mode="after")
    def _banks_ascend(self) -> "Region":
        if list(self.banks) != sorted(set(self.banks)) or self.banks[0] < 0:
            raise ValueError(f"banks {list(self.banks)} must ascend, without repeats, from 0 up")
        return self

    def check(self, geometry: Geometry) -> None:
        """Raises ValueError if the region reaches outside ``geometry``."""
        if self.banks[-1] >= geometry.banks:
            raise ValueError(f"bank {self.banks[-1]} is outside 0..{geometry.banks - 1}")
        if self.row_start + self.row_count > geometry.rows:
            raise ValueError(f"rows up to {self.row_start + self.row_count - 1} are outside 0..{geometry.rows - 1}")

    def cells(self, geometry: Geometry) -> int:
        return len(self.banks) * self.row_count * geometry.row_bits

    @property
    def row_end(self) -> int:
        """The row after the last one."""
        return self.row_start + self.row_count

    def of_banks(self, banks: tuple[int, ...]) -> "Region":
        """The part of it that lies in ``banks``, which has to be some."""
        kept = tuple(bank for bank in self.banks if bank in banks)
        return Region(banks=kept, row_start=self.row_start, row_count=self.row_count)

    def holds(self, other: "Region") -> bool:
        """Whether all of ``other`` lies in this region."""
        rows_inside = self.row_start <= other.row_start and other.row_end <= self.row_end
        return rows_inside and set(other.banks) <= set(self.banks)

    def meets(self, other: "Region") -> bool:
        """Whether the two share a row."""
        rows_shared = self.row_start < other.row_end and other.row_start < self.row_end
        return rows_shared and not set(self.banks).isdisjoint(other.banks)


class Session(_Record):
    """Rounds of a point that were measured in one go.

    Attributes:
        rounds: how many.
        started, duration_s: when, writing included.
        vdd_measured_mv, vdd_uncertainty_mv, temperature_c: as in `PointRecord`, at the last read of these rounds.
    """

    rounds: int = Field(gt=0, le=65535)
    started: datetime
    duration_s: float = Field(ge=0)
    vdd_measured_mv: float
    vdd_uncertainty_mv: float = Field(ge=0)
    temperature_c: float | None


class ControlReads(_Record):
    """Reads at nominal tRCD, with rows open, once the rounds of a point were over (`host.control`).

    Attributes:
        corrupted_zero_to_one, corrupted_one_to_zero: bits that read wrong at nominal supply: what the last round left
            in the cells. Each cell of the region was read once.
        path_errors, path_reads: wrong bits, and bits read, at the point's supply in bursts after a row's first: not
            for short activation, but on the way between DRAM and FPGA.
    """

    corrupted_zero_to_one: int = Field(ge=0)
    corrupted_one_to_zero: int = Field(ge=0)
    path_errors: int = Field(ge=0)
    path_reads: int = Field(ge=0)

    @property
    def corrupted(self) -> int:
        return self.corrupted_zero_to_one + self.corrupted_one_to_zero


class PointRecord(_Record):
    """One tested point: the conditions of a number of identical rounds over one region.

    Attributes:
        index: position in the order of testing, from 0.
        epoch: number that the board's reads were tagged with; a resumed scan uses the same one again.
        point: operating point that was asked for when reading.
        trcd_clocks: the same activation latency in DRAM clocks.
        vdd_measured_mv, vdd_uncertainty_mv: read back at the rail before the last read.
        vdd_range_mv: lowest and highest that was read back before, during or after a read; None where it was not kept.
        current_ma, power_mw: what the rail took while the cells were read, mean of the supply's readings; None where it
            does not measure them, or the reads were over before it could.
        temperature_c: DRAM temperature in degrees Celsius after the last read, None where the board has no sensor.
        temperature_range_c: lowest and highest before, during and after the reads; None as above.
        temperature_sensor: which sensor told both; None as above, or where it was not kept.
        write_condition, write_vdd_mv, write_trcd_ps: how the data were written.
        overwritten: what the cells held before the last write, so that a failed write shows; None where that was not
            seen to.
        rewritten_each_round: False means a read failure may have persisted into the next round.
        pattern: data written and expected, with its rule of inversion by row.
        refresh: "kept" or "withheld" while testing.
        refresh_interval_ps: from one REF to the next while they are kept, picoseconds.
        refreshes: REF commands in program time during the reads, which refreshes while a log is drained are not.
        rounds: reads of every cell of the region, the trials of each.
        stored_ones: cells of the region that store a 1, for each bank of ``region.banks``.
        cell_regions: None where every cell that failed is stored. Otherwise the whole region is known by counters
            (failed reads of each row, bitline and data line), and single cells in these parts of it only.
        errors_zero_to_one, errors_one_to_zero: failed reads of the region by direction; they reconcile with the cells,
            and with the counters.
        control: reads that tell whose the errors are, after the last round; None where there were none.
        started, duration_s: when, writing included; from the first round on, and all rounds together.
        sessions: where rounds were added later, each time that some were measured, the first one first; else empty.
            What is read back last, above, is the last one's; ranges, counts and means are over all.
    """

    index: int = Field(ge=0)
    epoch: int = Field(ge=0)
    point: OperatingPoint
    trcd_clocks: int = Field(gt=0)
    vdd_measured_mv: float
    vdd_uncertainty_mv: float = Field(ge=0)
    vdd_range_mv: tuple[float, float] | None = None
    current_ma: float | None = None
    power_mw: float | None = None
    temperature_c: float | None
    temperature_range_c: tuple[float, float] | None = None
    temperature_sensor: str | None = Field(default=None, max_length=400)
    write_condition: WriteCondition
    write_vdd_mv: int
    write_trcd_ps: int
    overwritten: Pattern | None = None
    pattern: Pattern
    access_mode: AccessMode
    rewritten_each_round: bool
    refresh: Literal["kept", "withheld"]
    refresh_interval_ps: int | None = Field(default=None, gt=0)
    refreshes: int | None = Field(default=None, ge=0)
    region: Region
    rounds: int = Field(gt=0, le=65535)
    stored_ones: tuple[int, ...]
    cell_regions: tuple[Region, ...] | None = None
    errors_zero_to_one: int = Field(ge=0)
    errors_one_to_zero: int = Field(ge=0)
    control: ControlReads | None = None
    started: datetime
    duration_s: float = Field(ge=0)
    sessions: tuple[Session, ...] = ()

    @property
    def times(self) -> int:
        """How often rounds of it were measured."""
        return max(1, len(self.sessions))

    @property
    def errors(self) -> int:
        return self.errors_zero_to_one + self.errors_one_to_zero

    @property
    def counted(self) -> bool:
        """Whether counters describe the region, and cells only parts of it."""
        return self.cell_regions is not None

    @property
    def known_cells(self) -> tuple[Region, ...]:
        """Where every cell that failed is stored."""
        return (self.region,) if self.cell_regions is None else self.cell_regions


class ModuleIdentity(_Record):
    """Which module this is, from its SPD where there is one.

    Attributes:
        dram_type: JEDEC family, e.g. "DDR3L".
        nominal_vdd_mv: nominal supply of the module, millivolts.
        nominal_trcd_ps: specified tRCD, rounded up to the board's clock, picoseconds.
        spd_hex: the raw SPD bytes in hexadecimal, None where none could be read.
    """

    manufacturer: str
    part_number: str
    serial_number: str
    dram_type: Literal["DDR3", "DDR3L", "DDR4", "LPDDR3", "LPDDR4"]
    nominal_vdd_mv: int
    nominal_trcd_ps: int
    spd_hex: str | None = None


class ProfileHeader(_Record):
    """Everything that holds for the whole profile.

    Attributes:
        address_mapping: how cell indices relate to addresses; "linear" is the rule of `profiles.geometry`.
        row_order: how rows as addressed lie inside a chip; "unknown" where no one has found out, "linear" where they
            are known to lie in order.
        board: board specification as given to ``--board``.
        seed: seed of a mock or simulated chip, None for a real one.
        plan: the scan plan, as read from its TOML.
        planned_points: number of points when complete; while cliffs are looked for, how many there are at the most.
        timings_clocks: the other timings that tests kept, in DRAM clocks, by JEDEC's names without the t.
        engine: constants of the test engine's build, by their register.
        tools: version of each tool and of the gateware.
        licence, citation: under which the profile may be used, and how to cite it.
    """

    format: Literal["eden-profile"] = "eden-profile"
    version: int = FORMAT_VERSION
    module: ModuleIdentity
    geometry: Geometry
    address_mapping: Literal["linear"] = "linear"
    row_order: Literal["unknown", "linear"] = "unknown"
    board: str
    tck_ps: int = Field(gt=0)
    seed: int | None
    plan: dict[str, Any]
    planned_points: int = Field(gt=0)
    timings_clocks: dict[str, int] = {}
    engine: dict[str, int] = {}
    tools: dict[str, str]
    licence: str = "CC-BY-4.0"
    citation: str = ""
    created: datetime


def json_schema() -> dict[str, Any]:
    """JSON Schema of a profile's header (`profile.json`) and of a point's record (Parquet metadata `eden.point`)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"eden-profile, version {FORMAT_VERSION}",
        "header": ProfileHeader.model_json_schema(mode="serialization"),
        "point": PointRecord.model_json_schema(mode="serialization"),
    }
