"""What a scan will take: the same code on a board that plays no program but counts what each would take.

DRAM time is exact to the clock where a point is tested in one part and the error rate does not decide how. How many
cells will fail is not known beforehand: it is taken from the laws of the chip models of vendors A, B and C
(`host.chip_presets`), of which each tells of published measurements, and given as the range over the three. Supplies
are scaled from those laws' DDR3L to the module's nominal.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from math import e, log2, pi

import numpy as np

from gateware import isa
from gateware.errorlog import BLOCK_WORDS, PAYLOAD_WORDS
from gateware.isa import Instruction
from host.board import Board, Image, RunResult, Thermometer, Usage
from host.bus import Words
from host.chip_presets import (
    PRESETS,
    REFERENCE_TEMPERATURE_C,
    WRITE_MARGIN,
    Preset,
    effective_time_ps,
    flip_probability,
    weak_rate,
)
from host.cliff import ladder_tests_left
from host.duration import duration
from host.plan import PlannedPoint, ScanPlan
from host.programs import Traversal
from host.rail import Measurement, Rail, Ramp
from host.scan import Earlier, Rounds
from host.temperature_window import TemperatureWindow
from profiles.cells import LineCounts
from profiles.geometry import CellArray, Geometry
from profiles.pattern import PatternKind
from profiles.points import DENSE
from profiles.schema import PointRecord, Region, WriteCondition
from profiles.storage import Profile

_LAW_NOMINAL_MV = 1350
REQUESTS_A_PROGRAM = 15  # of the link, for one that ends before it is looked at again (`host.board`)
FILE_BYTES = 1400  # of a point without an error: record, index, and Parquet's own
GROUP_BYTES = 400  # of a row group


@dataclass(frozen=True)
class Load:
    """What a scan, or part of it, takes.

    Attributes:
        tests: points.
        clocks: system clocks of program time, refreshes included.
        requests: the link's, each of which waits for its answer.
        read_bytes, written_bytes: of the link.
        ramp_steps: of the supply.
        stored_bytes: of the profile.
    """

    tests: int = 0
    clocks: int = 0
    requests: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    ramp_steps: int = 0
    stored_bytes: int = 0

    def __add__(self, other: "Load") -> "Load":
        return Load(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def times(self, factor: float) -> "Load":
        """So many of it."""
        return Load(*(round(getattr(self, each.name) * factor) for each in fields(self)))


@dataclass(frozen=True)
class Chances:
    """What happens to the cells of a point, by a vendor's law.

    Attributes:
        failing: fraction of cells that fail in a round.
        once: fraction that fails in any of the rounds.
    """

    failing: float
    once: float

    @classmethod
    def of(cls, preset: Preset, planned: PlannedPoint, rounds: int, nominal_mv: int) -> "Chances":
        """At the supply that is as far below the law's nominal as the point's below the module's."""
        lowest_uv = preset.slowdown[-1][0] * 1000
        vdd_uv = max(lowest_uv, planned.point.vdd_mv * 1000 * _LAW_NOMINAL_MV // nominal_mv)
        reading = effective_time_ps(preset, vdd_uv, planned.point.trcd_ps)
        weak = _fraction(float(weak_rate(preset, reading, REFERENCE_TEMPERATURE_C)))
        flips = np.array([float(flip_probability(preset, reading, stored, 0)) for stored in (0, 1)])
        unwritten = 0.0
        if planned.write == WriteCondition.OPERATING_POINT:
            rate = weak_rate(preset, reading * WRITE_MARGIN, REFERENCE_TEMPERATURE_C)
            unwritten = _fraction(float(rate))
        failing = weak * float(flips.mean()) + unwritten * preset.write_flip
        once = weak * float(1 - ((1 - flips) ** rounds).mean()) + unwritten * (1 - (1 - preset.write_flip) ** rounds)
        return cls(min(0.5, failing), min(1.0, once))


def _fraction(rate: float) -> float:
    return float(-np.expm1(-rate))


def rehearse(board: Board, plan: ScanPlan, profile: Profile | None) -> tuple[Load, Load]:
    """What is left to do of ``plan``: the least and the most over the laws of `PRESETS`, each figure by itself.

    Of cliffs, the least is if all banks ask for the same points and no rung leaves its rate open, the most if each is
    tested alone, as often as a search can ask.

    Args:
        board: that is to be scanned; nothing of it but what it is built like is looked at.
        plan: what is to be scanned.
        profile: what is there already.
    """
    loads = []
    for preset in PRESETS.values():
        grid = sum((_test(board, plan, planned, preset, profile) for planned in _grid_left(plan, profile)), Load())
        cliffs = [_cliffs(board, plan, preset, profile, shared) for shared in (True, False)]
        loads += [grid + each for each in cliffs]
    return tuple(  # type: ignore[return-value]
        Load(*(chosen(getattr(load, each.name) for load in loads) for each in fields(Load))) for chosen in (min, max)
    )


def _grid_left(plan: ScanPlan, profile: Profile | None) -> Iterator[PlannedPoint]:
    rounds = {record.index: record.rounds for record in profile.points} if profile else {}
    return (planned for planned in plan.points() if rounds.get(planned.index, 0) < plan.rounds)


def _cliffs(board: Board, plan: ScanPlan, preset: Preset, profile: Profile | None, shared: bool) -> Load:
    """All cliffs: of each ladder the middle rung stands for those that are tested."""
    load = Load()
    for ladder, targets in plan.ladders():
        rungs = len(ladder.points)
        fewest, most = 2 + (rungs - 1).bit_length() - 1, float(ladder.most_tests * len(targets))
        if profile is not None:
            left = ladder_tests_left(ladder, targets, plan.banks, profile)
            most = left / len(plan.banks) / len(ladder.patterns)
            fewest = min(fewest, left) if not any(ladder.visits(profile).values()) else min(1, left)
        tests = min(rungs, fewest if shared else most)
        banks = plan.banks if shared else plan.banks[:1]
        middle = ladder.points[rungs // 2]
        for pattern in ladder.patterns:
            planned = PlannedPoint(0, middle, ladder.write, pattern, banks)
            load += _test(board, plan, planned, preset, None).times(tests * (1 if shared else len(plan.banks)))
    return load


def _test(board: Board, plan: ScanPlan, planned: PlannedPoint, preset: Preset, profile: Profile | None) -> Load:
    """One point, or the rounds that it lacks."""
    chances = Chances.of(preset, planned, plan.rounds, board.module.nominal_vdd_mv)
    record = profile.record(planned.index) if profile else None
    stage = _Stage(board, chances)
    earlier = None if record is None else _Remembered(record, board.geometry)
    rounds = Rounds(stage, plan, planned, TemperatureWindow(stage, None), earlier)
    rounds.take(_Nobody())
    rounds.control()
    stage.rail.set(stage.rail.nominal_mv)  # as the next one's write does
    parts = rounds.areas if rounds.counted else None
    varied = planned.pattern.kind == PatternKind.RANDOM
    stored = _stored_bytes(board.geometry, rounds.region, parts, chances, plan.rounds, varied)
    return Load(
        1, stage.usage.clocks, stage.requests, 4 * stage.read_words, 4 * stage.written_words, stage.steps, stored
    )


def _stored_bytes(
    geometry: Geometry,
    region: Region,
    parts: tuple[Region, ...] | None,
    chances: Chances,
    rounds: int,
    varied: bool,
) -> int:
    """Near the entropy of which cells fail, and of how often each does (`profiles.points` says how they are stored).

    Lines that store a ``varied`` number of ones have so many trials each, which their counters repeat.
    """
    cells = sum(part.cells(geometry) for part in ((region,) if parts is None else parts))
    failed = cells * chances.once
    position = _entropy(chances.once) * cells if chances.once > DENSE else failed * (_gap_bits(chances.once) + 1)
    often = failed * log2(min(rounds, 8) + 1) * 0.8
    groups = len(region.banks) * ((failed >= 1) + 3 * (parts is not None))
    counters = 0.0
    if parts is not None:
        counters = len(region.banks) * _counter_bits(geometry, region.row_count, rounds, chances, varied)
    return round((position + often + counters) / 8 + groups * GROUP_BYTES) + FILE_BYTES


def _counter_bits(geometry: Geometry, rows: int, rounds: int, chances: Chances, varied: bool) -> float:
    """Entropy of a bank's counters, two a line, as if each counted half of the line's reads apart from the others."""
    bits = 0.0
    for lines, cells in (
        (rows, geometry.row_bits),
        (geometry.row_bits, rows),
        (geometry.data_width, rows * geometry.columns),
    ):
        variance = cells * rounds / 2 * chances.failing * (1 - chances.failing)
        bits += lines * log2(1 + 2 * pi * e * variance)
        bits += lines * log2(1 + 2 * pi * e * cells / 4) if varied else 0.0
    return bits


def _entropy(p: float) -> float:
    return 0.0 if p in (0.0, 1.0) else -(p * log2(p) + (1 - p) * log2(1 - p))


def _gap_bits(p: float) -> float:
    """Bits of a gap between cells that fail with probability ``p``."""
    return _entropy(p) / p if p > 0 else 0.0


class _Remembered(Earlier):
    """Rounds that are there, of which nothing is read again."""

    def __init__(self, record: PointRecord, geometry: Geometry) -> None:
        self.record, self._geometry = record, geometry

    def failed(self, bank: int, row: int, rows: int) -> CellArray:
        return np.empty(0, np.int64)

    def lines(self, bank: int) -> LineCounts:
        return _no_errors(bank, self.record.region.row_count, self._geometry)


def _no_errors(bank: int, rows: int, geometry: Geometry) -> LineCounts:
    sizes = (rows, geometry.row_bits, geometry.data_width)
    return LineCounts(bank, *(np.zeros((size, 2), np.int64) for size in sizes))


class _Nobody:
    """Takes results that there are none of."""

    def add(self, bank: int, row_start: int, row_count: int, cell: CellArray, errors: object) -> None:
        """Forget it."""

    def count(self, lines: LineCounts) -> None:
        """Forget it."""


class _Weightless:
    """A supply that is where it was set at once."""

    identity = "rehearsal"

    def __init__(self, millivolts: int) -> None:
        self._millivolts, self.steps = millivolts, 0

    def set_millivolts(self, millivolts: int) -> None:
        self._millivolts, self.steps = millivolts, self.steps + 1

    def measure(self) -> Measurement:
        return Measurement(float(self._millivolts), 0.0)

    def set_point_mv(self) -> float:
        return float(self._millivolts)

    def close(self) -> None:
        """Nothing to release."""


class _Still:
    """Surroundings that nothing is asked of."""

    sensor: str | None = None

    def begin_epoch(self, epoch: int, activations: int = 0) -> None:
        """Nothing is drawn."""

    def temperature_c(self) -> float | None:
        return None


class _Stage(Board):
    """A board like ``board`` that counts what programs would take of it and of its link, and finds no cell.

    Attributes:
        requests, read_words, written_words: of the link.
    """

    def __init__(self, board: Board, chances: Chances) -> None:
        self.build, self.geometry, self.row_counters = board.build, board.geometry, board.row_counters
        self.module = board.module
        self._chances, self.usage = chances, Usage()
        rail, ramp = board.rail, board.rail.ramp
        self._supply = _Weightless(rail.nominal_mv)
        still = Ramp(ramp.step_mv, resolution_mv=ramp.resolution_mv)
        self.rail = Rail(self._supply, rail.dram_type, rail.nominal_mv, rail.lowest_mv, still)
        self.environment, self.thermostat = _Still(), None
        self.thermometer = Thermometer(self.environment)
        self.requests = self.read_words = self.written_words = 0

    @property
    def steps(self) -> int:
        """Of the supply."""
        return self._supply.steps

    def run(
        self,
        program: Sequence[Instruction] | Image,
        buffer: Words | None = None,
        following: Iterable[Sequence[Instruction]] = (),
    ) -> RunResult:
        assert not isinstance(program, Image)
        program = [*program, *(instruction for chunk in following for instruction in chunk)]
        takes = duration(program)
        self.usage.programs, self.usage.clocks = self.usage.programs + 1, self.usage.clocks + takes.clocks
        failing = round(takes.reads * self.geometry.burst_bits * self._chances.failing)
        logs = [i.value for i in program if i.opcode == isa.Opcode.SET and i.setting == isa.Setting.COUNTERS]
        logged = failing if logs and logs[-1] & isa.COUNT_LOG else 0
        self.requests += REQUESTS_A_PROGRAM
        self.written_words += len(program) * isa.INSTRUCTION_WORDS
        self.read_words += 4 * self.geometry.banks + logged * BLOCK_WORDS // PAYLOAD_WORDS
        errors = np.zeros((self.geometry.banks, 2), np.int64)
        errors[0, 0] = failing
        return RunResult(takes.reads, errors, takes.clocks, takes.refreshes)

    def failing_cells(self, program: Sequence[Instruction], traversal: Traversal) -> Iterator[CellArray]:
        self.run(program)
        return iter(())

    def line_counts(self, bank: int, rows: int) -> LineCounts:
        counts = _no_errors(bank, rows, self.geometry)
        self.requests += 7
        self.read_words += counts.rows.size + counts.bitlines.size + counts.lanes.size
        return counts

    def steady_register(self, name: str) -> int:
        return 0
