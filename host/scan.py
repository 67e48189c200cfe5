"""Runs a scan plan on a board and keeps each finished point in a profile: a killed scan goes on where it was."""

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from gateware import isa, registers
from gateware.isa import Instruction
from host import programs
from host.board import Board
from host.cliff import bank_tests_left, search_cliffs
from host.control import read_controls
from host.extend import check_larger, with_earlier
from host.plan import PlannedPoint, ScanPlan
from host.programs import Traversal
from host.rail import Measurement
from host.temperature_window import TemperatureWindow
from host.thermostat import Tell, unheard
from profiles import pattern as patterns
from profiles.cells import LineCounts
from profiles.counting import FailureCounts
from profiles.errors import ProfileError
from profiles.geometry import CellArray, Geometry
from profiles.pattern import Pattern, PatternKind
from profiles.population import stored_ones
from profiles.schema import AccessMode, ControlReads, PointRecord, ProfileHeader, Region, WriteCondition
from profiles.storage import Profile, appending

COUNTED_BER = 1e-3  # above it the error log, its transport and its storage cost more than single cells tell
COUNT_LINES = isa.COUNT_ROWS | isa.COUNT_BITLINES | isa.COUNT_DQ
ONE_PART_CELLS = 1 << 26  # tested in one part, without a look at its error rate first
PART_READS = 1 << 24  # failed reads, of all rounds, that are expected of a part: 128 MiB
PROBE_ROWS = 8


def complement(pattern: Pattern) -> Pattern:
    """The pattern whose every bit differs; for kinds other than SOLID random data, which differ in half of the bits."""
    if pattern.kind == PatternKind.SOLID:
        return pattern.model_copy(update={"parameter": pattern.parameter ^ 0xFF})
    return Pattern(kind=PatternKind.RANDOM, parameter=~pattern.parameter & patterns.MASK32)


def header(board: Board, plan: ScanPlan) -> ProfileHeader:
    """What a profile of this scan says about module, board and tools."""
    tools = {name: version(name) for name in ("eden-dram", "numpy", "numba", "pyarrow")}
    return ProfileHeader(
        module=board.module,
        geometry=board.geometry,
        board=board.name,
        tck_ps=board.timings.tck_ps,
        seed=board.seed,
        plan=plan.model_dump(mode="json", exclude_none=True),
        planned_points=plan.most_points,
        timings_clocks={
            name: clocks for name, clocks in asdict(board.timings).items() if name not in ("tck_ps", "trcd")
        },
        engine=board.constants,
        tools={**tools, "python": platform.python_version(), "gateware interface": str(registers.INTERFACE_VERSION)},
        licence=plan.licence,
        citation=plan.citation,
        created=datetime.now(UTC),
    )


Watch = Callable[[Profile, PlannedPoint | None], None]
"""Told before each point, and at the end, what the profile holds by now and which point comes next."""


def unwatched(profile: Profile, planned: PlannedPoint | None) -> None:
    """Watch nothing."""


def scan(
    board: Board,
    plan: ScanPlan,
    path: Path,
    watch: Watch = unwatched,
    waiting: Tell = unheard,
    extend: bool = False,
) -> Profile:
    """Measure every point of ``plan`` that the profile at ``path`` does not hold yet.

    With ``extend`` the plan may be a larger one than the profile's own (`host.extend`). The supply is nominal before,
    between rounds while writing at nominal, and on every exit. A temperature that the plan asks for is kept
    (`host.temperature_window`), and ``waiting`` told when it is waited for.

    Raises:
        PlanError, RailError, TemperatureError: the plan asks for what the board or its limits do not allow; nothing was
            touched.
        ProfileError: ``path`` holds another scan's profile, or another process scans into it.
        LinkError, ProgramError, TemperatureError: a measurement failed; the points before it are kept.
    """
    plan.check(board)
    window = TemperatureWindow(board, plan.temperature, waiting)
    with appending(path), window.refreshed():
        profile = open_or_create(board, plan, path, extend)
        with window.guarded(), board.rail.guarded():
            for planned in left_to_test(plan, profile):
                watch(profile, planned)
                window.measure(partial(measure, board, plan, planned, profile, window))
        profile.conclude()
        watch(profile, None)
    return profile


def left_to_test(plan: ScanPlan, profile: Profile) -> Iterator[PlannedPoint]:
    """What is still to be measured, while the profile grows: the grid's points, then what each cliff asks for next."""
    rounds = {record.index: record.rounds for record in profile.points}
    yield from (planned for planned in plan.points() if rounds.get(planned.index, 0) < plan.rounds)
    yield from search_cliffs(plan, profile)


def open_or_create(board: Board, plan: ScanPlan, path: Path, extend: bool) -> Profile:
    """The profile at ``path`` if it is this very scan's, a new one if there is none; or one to ``extend``."""
    fresh, profile = header(board, plan), profile_to_go_on_with(board, plan, path, extend)
    if profile is None:
        return Profile.create(path, fresh)
    if _plan_of(profile) != plan or (profile.complete and bank_tests_left(plan, profile)):
        profile.plan_more(fresh.plan, fresh.planned_points)
    return profile


def profile_to_go_on_with(board: Board, plan: ScanPlan, path: Path, extend: bool) -> Profile | None:
    """The profile at ``path``, as it is; None where there is none.

    Raises:
        ProfileError: it is not this scan's, nor one that this scan extends; or ``extend`` lacks one.
    """
    if not (path / "profile.json").exists():
        if extend:
            raise ProfileError(f"{path} holds no profile to extend; leave out --extend to begin one")
        return None
    profile, fresh = Profile.open(path), header(board, plan)
    for what in ("module", "geometry", "board", "tck_ps", "timings_clocks", "seed"):
        if getattr(profile.header, what) != getattr(fresh, what):
            raise ProfileError(
                f"{path} holds a scan with another {what}; give another folder, or the {what} it was begun with"
            )
    before = _plan_of(profile)
    if before != plan and not extend:
        raise ProfileError(
            f"{path} holds a scan with another plan; give another folder, or the plan it was begun with, or --extend "
            "with a larger one"
        )
    if before != plan:
        check_larger(before, plan)
    return profile


def _plan_of(profile: Profile) -> ScanPlan:
    try:
        return ScanPlan.model_validate(profile.header.plan)
    except ValidationError as error:
        raise ProfileError(f"{profile.path} did not come of a scan by this toolkit; give another folder") from error


def measure(board: Board, plan: ScanPlan, planned: PlannedPoint, profile: Profile, window: TemperatureWindow) -> None:
    """All rounds of one point, or those that it lacks, stored while they are measured.

    Raises:
        LeftWindowError: it became too warm or too cold meanwhile; nothing of them is kept.
    """
    started, clock = datetime.now(UTC), monotonic()
    before = profile.record(planned.index)
    rounds = Rounds(board, plan, planned, window, None if before is None else Earlier(profile, before))
    parts = rounds.areas if rounds.counted else None
    if before is None:
        writing = profile.writing(planned.index, rounds.region, planned.pattern, plan.rounds, parts)
    else:
        writing = profile.adding(planned.index, plan.rounds)
    with writing as point:
        rounds.take(point)
        control = rounds.control()
        zero_to_one, one_to_zero = point.errors
        at_point = planned.write == WriteCondition.OPERATING_POINT
        record = PointRecord(
            index=planned.index,
            epoch=planned.index,
            point=planned.point,
            trcd_clocks=rounds.trcd,
            vdd_measured_mv=rounds.measured.millivolts,
            vdd_uncertainty_mv=rounds.measured.uncertainty_mv,
            vdd_range_mv=_range(rounds.seen_mv),
            current_ma=_mean(reading.milliamperes for reading in rounds.under_load),
            power_mw=_mean(reading.milliwatts for reading in rounds.under_load),
            temperature_c=rounds.feel(),
            temperature_range_c=_range(rounds.seen_c),
            temperature_sensor=board.environment.sensor,
            write_condition=planned.write,
            write_vdd_mv=planned.point.vdd_mv if at_point else board.rail.nominal_mv,
            write_trcd_ps=planned.point.trcd_ps if at_point else board.timings.nominal_trcd_ps,
            overwritten=complement(planned.pattern) if at_point else None,
            pattern=planned.pattern,
            access_mode=plan.access_mode,
            rewritten_each_round=plan.rewrite_each_round,
            refresh=plan.refresh,
            refresh_interval_ps=_refresh_interval_ps(board) if plan.refresh == "kept" else None,
            refreshes=rounds.refreshes,
            region=rounds.region,
            rounds=plan.rounds,
            stored_ones=_stored_ones(planned.pattern, board.geometry, rounds.region),
            cell_regions=parts,
            errors_zero_to_one=zero_to_one,
            errors_one_to_zero=one_to_zero,
            control=control,
            started=started,
            duration_s=monotonic() - clock,
        )
        point.finish(record if before is None else with_earlier(before, record))


class Earlier:
    """Rounds of a point that were measured before.

    Attributes:
        record: of the point as it is.
    """

    def __init__(self, profile: Profile, record: PointRecord) -> None:
        self._profile, self.record = profile, record

    def failed(self, bank: int, row: int, rows: int) -> CellArray:
        """Cells of ``rows`` rows that failed, once for each time."""
        known = self._profile.cells(self.record.index, bank, (row, rows))
        return np.repeat(known.cell, known.errors)

    def lines(self, bank: int) -> LineCounts:
        """The counters of a bank."""
        return self._profile.lines(self.record.index, bank)


class Taker(Protocol):
    """Where the results of rounds go, as to a `profiles.points.PointWriter`."""

    def add(self, bank: int, row_start: int, row_count: int, cell: CellArray, errors: npt.NDArray[np.uint16]) -> None:
        """Cells of these rows that failed."""

    def count(self, lines: LineCounts) -> None:
        """The counters of a bank."""


class Rounds:
    """Rounds of writing and reading at one point.

    Where more than `COUNTED_BER` of the first rows' bits fail, an error log of the whole module is hopeless: its lines
    are counted then, and single cells logged only where the plan asks for them.

    Args:
        board: what is tested.
        plan, planned: how, and at which point.
        window: temperatures at which they count.
        earlier: rounds that are there already; these are further ones.

    Attributes:
        region: rows that are tested.
        areas: where single cells are known at any error rate.
        counted: whether lines are counted.
        trcd: activation latency, DRAM clocks.
        measured: the supply at the last read.
        refreshes: REF commands of the recorded reads.
        seen_mv, seen_c: supply and temperature before each recorded read, and whenever felt.
        under_load: what the supply read during recorded reads.
    """

    def __init__(
        self,
        board: Board,
        plan: ScanPlan,
        planned: PlannedPoint,
        window: TemperatureWindow,
        earlier: Earlier | None = None,
    ) -> None:
        self._board, self._plan, self._planned, self._window, self._earlier = board, plan, planned, window, earlier
        self.region = plan.region.of_banks(planned.banks)
        self.areas = plan.cell_regions(board.geometry, planned.banks)
        self._numbers = range(earlier.record.rounds if earlier else 0, plan.rounds)
        self.trcd = board.timings.trcd_clocks(planned.point.trcd_ps)
        self.measured = Measurement(board.rail.nominal_mv, 0.0)
        self.refreshes = 0
        self.seen_mv: set[float] = set()
        self.seen_c: set[float] = set()
        self.under_load: list[Measurement] = []
        cells, self._rate = self.region.cells(board.geometry), 0.0
        if cells > ONE_PART_CELLS:
            self._rate = earlier.record.errors / (cells * earlier.record.rounds) if earlier else self._probe()
        self.counted = self._rate > COUNTED_BER and self.areas != (self.region,)
        if earlier:
            self.counted, self.areas = earlier.record.counted, earlier.record.known_cells

    def take(self, point: Taker) -> None:
        """Measure all rounds, in parts that fit in memory, and hand over what failed; and what failed earlier."""
        self._board.environment.begin_epoch(self._planned.index, self._activations)
        if self.counted:
            self._count(point)
        else:
            self._log(point)

    def control(self) -> ControlReads | None:
        """The control reads, after all rounds, if the plan wants any."""
        if not self._plan.control:
            return None
        return read_controls(self._board, self.region, self._planned.pattern, self._planned.point.vdd_mv)

    @property
    def _activations(self) -> int:
        """Of each bank, in the rounds that were measured before."""
        rows, bursts = self.region.row_count, self._board.geometry.bursts_per_row
        reads = rows if self._plan.access_mode == AccessMode.LINEAR else rows * bursts
        writes = rows if self._planned.write == WriteCondition.NOMINAL else rows + rows * bursts
        return self._numbers.start * (writes + reads)

    def feel(self) -> float | None:
        """The DRAM's temperature now, degrees Celsius. Raises LeftWindowError if a test does not count there."""
        now = self._board.environment.temperature_c()
        if now is not None:
            self.seen_c.add(now)
            self._window.require((now,))
        return now

    def _probe(self) -> float:
        """Bit error rate of the first rows, in one read that is not recorded."""
        self._board.environment.begin_epoch(self._planned.index)
        region = self.region
        rows = min(PROBE_ROWS, region.row_count)
        walk = self._walk(region.banks, region.row_start, rows)
        self._write(walk)
        self.measured = self._board.rail.set(self._planned.point.vdd_mv)
        result = self._board.run(self._test(walk, 0))
        return int(result.errors.sum()) / (walk.length * self._board.geometry.burst_bits)

    def _log(self, point: Taker) -> None:
        """Every failing cell, in parts of all banks and as many rows as are expected to fail `PART_READS` times."""
        geometry, region, rate = self._board.geometry, self.region, self._rate
        row = region.row_start
        while row < region.row_end:
            rows = min(self._rows(rate, len(region.banks)), region.row_end - row)
            walk, failures, reads = self._walk(region.banks, row, rows), FailureCounts(), 0
            test = self._test(walk, isa.COUNT_LOG)
            for round_ in self._numbers:
                self._prepare(walk, round_)
                for cells in self._read(test, walk):
                    failures.add(cells)
                    reads += cells.size
            for bank in region.banks:
                self._recall(failures, bank, row, rows)
            _add(point, geometry, region.banks, row, rows, *failures.take())
            rate = max(rate, reads / (walk.length * geometry.burst_bits * len(self._numbers)))
            row += rows

    def _count(self, point: Taker) -> None:
        """Counters of every line, bank by bank: the engine's do not tell banks apart. And the cells of `areas`."""
        geometry, region = self._board.geometry, self.region
        for bank in region.banks:
            whole = self._walk((bank,), region.row_start, region.row_count)
            parts = self._parts(bank)
            rows = np.zeros((region.row_count, 2), np.int64)
            bitlines, lanes = np.zeros((geometry.row_bits, 2), np.int64), np.zeros((geometry.data_width, 2), np.int64)
            failures = {start: FailureCounts() for start, _, logged in parts if logged}
            for round_ in self._numbers:
                self._prepare(whole, round_)
                for start, count, logged in parts:
                    walk = self._walk((bank,), start, count)
                    modes = COUNT_LINES | (isa.COUNT_LOG if logged else 0)
                    for cells in self._read(self._test(walk, modes), walk):
                        failures[start].add(cells)
                    lines = self._board.line_counts(bank, count)
                    rows[start - region.row_start :][:count] += lines.rows
                    bitlines += lines.bitlines
                    lanes += lines.lanes
            if self._earlier is not None:
                known = self._earlier.lines(bank)
                rows, bitlines, lanes = rows + known.rows, bitlines + known.bitlines, lanes + known.lanes
            for start, count, logged in parts:
                if logged:
                    self._recall(failures[start], bank, start, count)
                    _add(point, geometry, (bank,), start, count, *failures[start].take())
            point.count(LineCounts(bank, rows, bitlines, lanes))

    def _recall(self, failures: FailureCounts, bank: int, row: int, rows: int) -> None:
        """Add what failed in the rounds that were measured before."""
        if self._earlier is not None:
            failures.add(self._earlier.failed(bank, row, rows))

    def _parts(self, bank: int) -> list[tuple[int, int, bool]]:
        """Rows (start, count) that row counters hold, and whether their cells are logged."""
        region, here = self.region, [area for area in self.areas if bank in area.banks]
        edges = {region.row_start, region.row_end, *(edge for area in here for edge in (area.row_start, area.row_end))}
        edges |= set(range(region.row_start, region.row_end, self._board.row_counters))
        return [
            (low, high - low, any(area.row_start <= low < area.row_end for area in here))
            for low, high in pairwise(sorted(edges))
        ]

    def _rows(self, rate: float, banks: int) -> int:
        """Rows of ``banks`` banks that are expected to fail `PART_READS` times in all rounds."""
        reads_a_row = rate * self._plan.rounds * banks * self._board.geometry.row_bits
        return max(1, int(PART_READS / reads_a_row)) if reads_a_row else self.region.row_count

    def _walk(self, banks: tuple[int, ...], row_start: int, row_count: int) -> Traversal:
        linear = self._plan.access_mode == AccessMode.LINEAR
        return Traversal(banks, row_start, row_count, 0, self._board.geometry.bursts_per_row, whole_rows=linear)

    def _test(self, walk: Traversal, counters: int) -> list[Instruction]:
        trcd = None if walk.whole_rows else self.trcd
        refresh = self._plan.refresh == "kept"
        return programs.test(self._board.build, walk, self._planned.pattern, trcd, refresh, counters)

    def _prepare(self, walk: Traversal, round_: int) -> None:
        """Write where the plan says so, then bring the supply to the point."""
        if round_ == 0 or self._plan.rewrite_each_round:
            self._write(walk)
        self.measured = self._board.rail.set(self._planned.point.vdd_mv)
        self.seen_mv.add(self.measured.millivolts)
        self.feel()

    def _read(self, test: list[Instruction], walk: Traversal) -> Iterator[CellArray]:
        rail, thermometer = self._board.rail, self._board.thermometer
        rail.begin_watch()
        thermometer.begin_watch()
        yield from self._board.failing_cells(test, walk)
        self.seen_c.update(seen := thermometer.end_watch())
        self._window.require(seen)
        self.under_load += rail.readings
        self.seen_mv.update(reading.millivolts for reading in (*rail.readings, rail.hold()))
        self.refreshes += self._board.steady_register("refreshes")

    def _write(self, walk: Traversal) -> None:
        """Write the pattern: at nominal, or at the point over its complement, so that a failed write shows."""
        board, planned = self._board, self._planned
        board.rail.set(board.rail.nominal_mv)
        if planned.write == WriteCondition.NOMINAL:
            board.run(programs.fill(board.build, walk, planned.pattern, None))
            return
        board.run(programs.fill(board.build, walk, complement(planned.pattern), None))
        board.rail.set(planned.point.vdd_mv)
        board.run(programs.fill(board.build, walk, planned.pattern, self.trcd))


def _range(values: set[float]) -> tuple[float, float] | None:
    return (min(values), max(values)) if values else None


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of what was measured; None if nothing was."""
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if measured else None


def _refresh_interval_ps(board: Board) -> int:
    """As `host.programs` sets it: whole system clocks."""
    return board.timings.trefi // board.build.nphases * board.build.nphases * board.timings.tck_ps


def _add(
    point: Taker,
    geometry: Geometry,
    banks: tuple[int, ...],
    row: int,
    rows: int,
    cell: CellArray,
    errors: npt.NDArray[np.uint16],
) -> None:
    for bank in banks:
        first = (bank * geometry.rows + row) * geometry.row_bits
        low, high = np.searchsorted(cell, (first, first + rows * geometry.row_bits))
        point.add(bank, row, rows, cell[low:high], errors[low:high])


@lru_cache(maxsize=64)
def _stored_ones(pattern: Pattern, geometry: Geometry, region: Region) -> tuple[int, ...]:
    rows = (region.row_start, region.row_count)
    return tuple(stored_ones(pattern, geometry, bank, *rows) for bank in region.banks)
