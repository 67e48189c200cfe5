"""Scan plans: what to measure, as TOML, checked before anything is touched."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from host.board import Board
from host.temperature_plan import TemperaturePlan
from host.toml_file import first_problem
from profiles.errors import PlanError
from profiles.geometry import Geometry
from profiles.pattern import Pattern, PatternKind
from profiles.points import check_cell_regions
from profiles.schema import AccessMode, OperatingPoint, Region, WriteCondition

CELLS_DEFAULT_BYTES = 64 << 20


def _pattern(value: Any) -> Any:
    return Pattern.parse(value) if isinstance(value, str) else value


def _span(value: Any) -> Any:
    """A list of integers, or a table ``{from, to, step}`` with both ends included."""
    if not isinstance(value, dict):
        return value
    if set(value) != {"from", "to", "step"} or not all(type(v) is int for v in value.values()) or value["step"] <= 0:
        raise ValueError("give a list, or a table of whole numbers with exactly: from, to, step (positive)")
    step = value["step"] if value["to"] >= value["from"] else -value["step"]
    count = (value["to"] - value["from"]) // step + 1
    if count > 10_000:
        raise ValueError(f"{count} values are more than 10000")
    return tuple(value["from"] + k * step for k in range(count))


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Grid(_Table):
    """Supply voltages to visit at one tRCD.

    Attributes:
        trcd_ps: activation latency, picoseconds; a multiple of the board's tCK.
        vdd_mv: millivolts, as a list or as ``{from, to, step}``.
    """

    trcd_ps: int = Field(gt=0, le=200_000)
    vdd_mv: Annotated[tuple[int, ...], BeforeValidator(_span)] = Field(min_length=1)


class Rows(_Table):
    """Rows ``start .. start + count - 1`` of each bank."""

    start: int = Field(default=0, ge=0)
    count: int = Field(gt=0)


class Cells(_Table):
    """Rows of these banks whose failing cells are kept at any error rate."""

    banks: tuple[int, ...] = Field(min_length=1, max_length=32)
    rows: Rows

    @property
    def region(self) -> Region:
        return Region(banks=self.banks, row_start=self.rows.start, row_count=self.rows.count)


class ScanPlan(_Table):
    """One scan.

    Attributes:
        grid: operating points.
        patterns: data written and expected, each visited at every operating point.
        rounds: times that every cell is written and read at a point.
        banks, rows: cells to test.
        cells: where single cells are kept at any error rate. Elsewhere, points at which more than 1e-3 (`host.scan`)
            of the bits fail are counted by row, bitline and data line instead. Default: the first rows tested, up to
            `CELLS_DEFAULT_BYTES`; in `eden run`, twice what its network takes if that is more.
        write: at which point data are written: nominal, operating_point (as IFMs are), or both in turn.
        access_mode: burst_per_activation (what tRCD acts on) or linear.
        refresh: kept or withheld while testing.
        temperature: what is asked of the DRAM's temperature; default: it is recorded, whatever it is.
        licence, citation: of the profile that comes of it.
        rewrite_each_round: False reads the same data every round; failures may then persist.
    """

    grid: tuple[Grid, ...] = Field(min_length=1)
    patterns: tuple[Annotated[Pattern, BeforeValidator(_pattern), PlainSerializer(str)], ...] = Field(min_length=1)
    rounds: int = Field(gt=0, le=65535)
    banks: tuple[int, ...] = Field(min_length=1, max_length=32)
    rows: Rows
    cells: tuple[Cells, ...] = ()
    write: tuple[WriteCondition, ...] = (WriteCondition.NOMINAL,)
    access_mode: AccessMode = AccessMode.BURST_PER_ACTIVATION
    refresh: Literal["kept", "withheld"] = "kept"
    rewrite_each_round: bool = True
    temperature: TemperaturePlan | None = None
    licence: str = "CC-BY-4.0"
    citation: str = ""

    @property
    def region(self) -> Region:
        return Region(banks=self.banks, row_start=self.rows.start, row_count=self.rows.count)

    def cell_regions(self, geometry: Geometry) -> tuple[Region, ...]:
        """Where single cells are kept at any error rate."""
        if self.cells:
            return tuple(cells.region for cells in self.cells)
        rows = max(1, CELLS_DEFAULT_BYTES * 8 // (len(self.banks) * geometry.row_bits))
        return (self.region.model_copy(update={"row_count": min(rows, self.rows.count)}),)

    def points(self) -> Iterator["PlannedPoint"]:
        """Every point in the order of testing."""
        index = 0
        for grid in self.grid:
            for vdd_mv in grid.vdd_mv:
                for write in self.write:
                    for pattern in self.patterns:
                        point = OperatingPoint(vdd_mv=vdd_mv, trcd_ps=grid.trcd_ps)
                        yield PlannedPoint(index, point, write, pattern)
                        index += 1

    def check(self, board: Board) -> None:
        """Raises PlanError, RailError or TemperatureError if this board cannot do what is asked; touches nothing."""
        try:
            self.region.check(board.geometry)
            check_cell_regions(self.region, self.cell_regions(board.geometry))
        except ValidationError as error:
            raise PlanError(f"the plan's region cannot be tested: {first_problem(error)}") from error
        except ValueError as error:
            raise PlanError(f"the plan's region does not fit the module: {error}") from error
        if any(pattern.kind == PatternKind.BUFFER for pattern in self.patterns):
            raise PlanError("pattern buffer has no expected data of its own; scan with another pattern")
        for grid in self.grid:
            board.timings.trcd_clocks(grid.trcd_ps)
            for vdd_mv in grid.vdd_mv:
                board.rail.check(vdd_mv)
        if self.temperature is not None:
            self.temperature.check(board)
        if self.access_mode == AccessMode.LINEAR and any(g.trcd_ps != board.timings.nominal_trcd_ps for g in self.grid):
            raise PlanError(
                f"access_mode linear reads at nominal tRCD ({board.timings.nominal_trcd_ps} ps) only: later READs of "
                "an open row do not see a short tRCD; use burst_per_activation"
            )


@dataclass(frozen=True)
class PlannedPoint:
    """One point of a plan; ``index`` is its place in the order of testing, and its epoch."""

    index: int
    point: OperatingPoint
    write: WriteCondition
    pattern: Pattern
