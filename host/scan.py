"""Runs a scan plan on a board and keeps each finished point in a profile: a killed scan goes on where it was."""

import platform
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from time import monotonic

import numpy as np

from gateware import registers
from host import programs
from host.board import Board
from host.plan import PlannedPoint, ScanPlan
from host.programs import Traversal
from host.rail import Measurement
from profiles import pattern as patterns
from profiles.cells import CellCounts
from profiles.errors import ProfileError
from profiles.geometry import CellArray, Geometry
from profiles.pattern import Pattern, PatternKind
from profiles.population import stored_ones
from profiles.progress import Progress, silent
from profiles.schema import AccessMode, PointRecord, ProfileHeader, Region, WriteCondition
from profiles.storage import Profile


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
        plan=plan.model_dump(mode="json"),
        planned_points=sum(1 for _ in plan.points()),
        tools={**tools, "python": platform.python_version(), "gateware interface": str(registers.INTERFACE_VERSION)},
        created=datetime.now(UTC),
    )


def scan(board: Board, plan: ScanPlan, path: Path, progress: Progress = silent) -> Profile:
    """Measure every point of ``plan`` that the profile at ``path`` does not hold yet.

    The supply is nominal before, between rounds while writing at nominal, and on every exit.

    Raises:
        PlanError, RailError: the plan asks for what the board or its limits do not allow; nothing was touched.
        ProfileError: ``path`` holds another scan's profile.
        LinkError, ProgramError: a measurement failed; the points before it are kept.
    """
    plan.check(board)
    profile = open_or_create(board, plan, path)
    points = list(plan.points())
    missing = profile.missing
    with board.rail.guarded():
        for planned in (points[index] for index in missing):
            progress(len(points) - len(profile.missing), len(points))
            profile.append(*measure(board, plan, planned))
    progress(len(points), len(points))
    return profile


def open_or_create(board: Board, plan: ScanPlan, path: Path) -> Profile:
    """The profile at ``path`` if it is this very scan's, a new one if there is none."""
    fresh = header(board, plan)
    if not (path / "profile.json").exists():
        return Profile.create(path, fresh)
    profile = Profile.open(path)
    for what in ("plan", "module", "geometry", "board", "tck_ps", "seed", "planned_points"):
        if getattr(profile.header, what) != getattr(fresh, what):
            raise ProfileError(
                f"{path} holds a scan with another {what}; give another folder, or the plan it was begun with"
            )
    return profile


def measure(board: Board, plan: ScanPlan, planned: PlannedPoint) -> tuple[PointRecord, CellCounts]:
    """All rounds of one point."""
    started, clock = datetime.now(UTC), monotonic()
    trcd = board.timings.trcd_clocks(planned.point.trcd_ps)
    region = plan.region
    linear = plan.access_mode == AccessMode.LINEAR
    rows = (region.row_start, region.row_count)
    traversal = Traversal(region.banks, *rows, 0, board.geometry.bursts_per_row, whole_rows=linear)
    test_trcd = None if linear else trcd
    refresh = plan.refresh == "kept"
    test = programs.test(board.build, traversal, planned.pattern, test_trcd, refresh)
    board.environment.begin_epoch(planned.index)
    failed: list[CellArray] = []
    measured = Measurement(board.rail.nominal_mv, 0.0)
    for round_ in range(plan.rounds):
        if round_ == 0 or plan.rewrite_each_round:
            _write(board, traversal, planned, trcd)
        measured = board.rail.set(planned.point.vdd_mv)
        failed += board.failing_cells(test, traversal)
    cells = _count(failed, planned.pattern, board.geometry)
    at_point = planned.write == WriteCondition.OPERATING_POINT
    record = PointRecord(
        index=planned.index,
        epoch=planned.index,
        point=planned.point,
        trcd_clocks=trcd,
        vdd_measured_mv=measured.millivolts,
        vdd_uncertainty_mv=measured.uncertainty_mv,
        temperature_c=board.environment.temperature_c(),
        write_condition=planned.write,
        write_vdd_mv=planned.point.vdd_mv if at_point else board.rail.nominal_mv,
        write_trcd_ps=planned.point.trcd_ps if at_point else board.timings.nominal_trcd_ps,
        pattern=planned.pattern,
        access_mode=plan.access_mode,
        rewritten_each_round=plan.rewrite_each_round,
        refresh=plan.refresh,
        region=region,
        rounds=plan.rounds,
        stored_ones=_stored_ones(planned.pattern, board.geometry, region),
        errors_zero_to_one=cells.errors_zero_to_one,
        errors_one_to_zero=cells.errors_one_to_zero,
        started=started,
        duration_s=monotonic() - clock,
    )
    return record, cells


def _write(board: Board, traversal: Traversal, planned: PlannedPoint, trcd: int) -> None:
    """Write the pattern: at nominal, or at the operating point over its complement, so that a failed write shows."""
    board.rail.set(board.rail.nominal_mv)
    if planned.write == WriteCondition.NOMINAL:
        board.run(programs.fill(board.build, traversal, planned.pattern, None))
        return
    board.run(programs.fill(board.build, traversal, complement(planned.pattern), None))
    board.rail.set(planned.point.vdd_mv)
    board.run(programs.fill(board.build, traversal, planned.pattern, trcd))


def _count(failed: list[CellArray], pattern: Pattern, geometry: Geometry) -> CellCounts:
    """Failures a cell, from the failing cells of every round."""
    cell, errors = np.unique(np.concatenate([np.empty(0, np.int64), *failed]), return_counts=True)
    return CellCounts(cell, errors.astype(np.uint16), patterns.stored_bits(pattern, geometry, cell))


@lru_cache(maxsize=64)
def _stored_ones(pattern: Pattern, geometry: Geometry, region: Region) -> tuple[int, ...]:
    rows = (region.row_start, region.row_count)
    return tuple(stored_ones(pattern, geometry, bank, *rows) for bank in region.banks)
