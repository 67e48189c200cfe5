"""Scan plans: what to measure, as TOML, checked before anything is touched."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from host.board import Board
from host.temperature_plan import TemperaturePlan
from host.toml_file import first_problem
from profiles.cliffs import Ladder
from profiles.errors import PlanError
from profiles.geometry import Geometry
from profiles.pattern import Pattern, PatternKind
from profiles.points import check_cell_regions
from profiles.schema import AccessMode, OperatingPoint, Region, WriteCondition

CELLS_DEFAULT_BYTES = 64 << 20
LEAST_ROWS = 16  # of a bank, from whose spread its interval follows


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


_Span = Annotated[tuple[int, ...], BeforeValidator(_span)]


class CliffSearch(_Table):
    """A cliff to find by bisection: where each bank's error rate passes a target, along VDD or along tRCD.

    Attributes:
        trcd_ps, vdd_mv: one of them a number, the other the steps to look at, as a list or as ``{from, to, step}``: all
            of them steps that the board's clock or supply can make.
        ber: error rates whose cliffs are looked for.
    """

    trcd_ps: int | _Span
    vdd_mv: int | _Span
    ber: tuple[Annotated[float, Field(gt=0, lt=0.5)], ...] = Field(min_length=1, max_length=16)

    @model_validator(mode="after")
    def _one_axis(self) -> "CliffSearch":
        spans = [span for span in (self.trcd_ps, self.vdd_mv) if isinstance(span, tuple)]
        if len(spans) != 1 or len(set(spans[0])) < 3:
            raise ValueError("one of trcd_ps and vdd_mv is a number, the other has three steps or more")
        for name, value, highest in (("trcd_ps", self.trcd_ps, 200_000), ("vdd_mv", self.vdd_mv, 3000)):
            values = value if isinstance(value, tuple) else (value,)
            if not all(0 < each <= highest for each in values):
                raise ValueError(f"{name} {min(values)}..{max(values)} is outside 1..{highest}")
        return self

    @property
    def points(self) -> tuple[OperatingPoint, ...]:
        """What may be tested, from mild to harsh."""
        trcds, vdds = (
            tuple(sorted(set(span), reverse=True)) if isinstance(span, tuple) else (span,)
            for span in (self.trcd_ps, self.vdd_mv)
        )
        return tuple(OperatingPoint(vdd_mv=vdd, trcd_ps=trcd) for trcd in trcds for vdd in vdds)


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
        grid: operating points, each tested in all banks.
        cliff: cliffs to find, once the grid is done (`host.cliff`).
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
        control: after each point, read at nominal what it left in the cells, and at its supply the way between DRAM and
            FPGA (`host.control`).
        rewrite_each_round: False reads the same data every round; failures may then persist.
    """

    grid: tuple[Grid, ...] = ()
    cliff: tuple[CliffSearch, ...] = Field(default=(), validate_default=True)
    patterns: tuple[Annotated[Pattern, BeforeValidator(_pattern), PlainSerializer(str)], ...] = Field(min_length=1)
    rounds: int = Field(gt=0, le=65535)
    banks: tuple[int, ...] = Field(min_length=1, max_length=32)
    rows: Rows
    cells: tuple[Cells, ...] = ()
    write: tuple[WriteCondition, ...] = Field(default=(WriteCondition.NOMINAL,), min_length=1)
    access_mode: AccessMode = AccessMode.BURST_PER_ACTIVATION
    refresh: Literal["kept", "withheld"] = "kept"
    rewrite_each_round: bool = True
    temperature: TemperaturePlan | None = None
    control: bool = False
    licence: str = "CC-BY-4.0"
    citation: str = ""

    @field_validator("cliff")
    @classmethod
    def _some_points(cls, cliff: tuple[CliffSearch, ...], info: ValidationInfo) -> tuple[CliffSearch, ...]:
        if not cliff and info.data.get("grid") == ():
            raise ValueError("there are no operating points; give grid or cliff tables, or both")
        return cliff

    @property
    def region(self) -> Region:
        return Region(banks=self.banks, row_start=self.rows.start, row_count=self.rows.count)

    def cell_regions(self, geometry: Geometry, banks: tuple[int, ...] | None = None) -> tuple[Region, ...]:
        """Where single cells are kept at any error rate, of ``banks`` (None: of all that are tested)."""
        rows = max(1, CELLS_DEFAULT_BYTES * 8 // (len(self.banks) * geometry.row_bits))
        first = self.region.model_copy(update={"row_count": min(rows, self.rows.count)})
        chosen = tuple(cells.region for cells in self.cells) or (first,)
        if banks is None:
            return chosen
        return tuple(area.of_banks(banks) for area in chosen if set(area.banks) & set(banks))

    def points(self) -> Iterator["PlannedPoint"]:
        """Every point of the grid in the order of testing."""
        index = 0
        for grid in self.grid:
            for vdd_mv in grid.vdd_mv:
                for write in self.write:
                    for pattern in self.patterns:
                        point = OperatingPoint(vdd_mv=vdd_mv, trcd_ps=grid.trcd_ps)
                        yield PlannedPoint(index, point, write, pattern, self.banks)
                        index += 1

    def ladders(self) -> Iterator[tuple[Ladder, tuple[float, ...]]]:
        """Where cliffs are looked for, in the order of testing, and at which error rates."""
        for search in self.cliff:
            for write in self.write:
                yield Ladder(search.points, write, self.patterns), search.ber

    @property
    def most_points(self) -> int:
        """Points of the grid, and of the cliffs as many as there would be if each bank were tested at each step."""
        on_ladders = sum(len(ladder.points) for ladder, _ in self.ladders())
        return sum(1 for _ in self.points()) + on_ladders * len(self.patterns) * len(self.banks)

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
        asked = [(grid.trcd_ps, vdd_mv) for grid in self.grid for vdd_mv in grid.vdd_mv]
        asked += [(point.trcd_ps, point.vdd_mv) for search in self.cliff for point in search.points]
        for trcd_ps, vdd_mv in asked:
            board.timings.trcd_clocks(trcd_ps)
            board.rail.check(vdd_mv)
            if self.access_mode == AccessMode.LINEAR and trcd_ps != board.timings.nominal_trcd_ps:
                raise PlanError(
                    f"access_mode linear reads at nominal tRCD ({board.timings.nominal_trcd_ps} ps) only: later READs "
                    "of an open row do not see a short tRCD; use burst_per_activation"
                )
        if self.temperature is not None:
            self.temperature.check(board)
        for ladder, targets in self.ladders():
            self._check_target(ladder, min(targets), board.geometry)

    def _check_target(self, ladder: Ladder, target: float, geometry: Geometry) -> None:
        """Refuse a cliff that could not be shown: even a bank without an error might exceed its error rate."""
        cells_a_row = geometry.row_bits * len(self.patterns)
        rows = max(LEAST_ROWS, ceil(-log((1 - ladder.confidence) / 2) / (target * cells_a_row)))
        if rows > self.rows.count:
            raise PlanError(
                f"a cliff at BER {target:g} cannot be shown with {self.rows.count} rows a bank, which may all hold, or "
                f"be of one kind, by chance; test at least {rows} rows, or look for a higher BER"
            )


@dataclass(frozen=True)
class PlannedPoint:
    """One point of a plan; ``index`` is its place in the order of testing, and its epoch."""

    index: int
    point: OperatingPoint
    write: WriteCondition
    pattern: Pattern
    banks: tuple[int, ...]
