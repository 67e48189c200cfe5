"""A scan while it runs: its operating points as they fill in, or a line for each test where there is no terminal."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from host.cli import stopping
from host.cli.console import console
from host.cli.temperature import waiting_lines
from host.cliff import bank_tests_left
from host.plan import PlannedPoint, ScanPlan
from host.scan import Watch
from host.thermostat import Tell, Waiting
from profiles.schema import OperatingPoint, PointRecord, WriteCondition
from profiles.storage import Profile

_COLOURS = ((0.0, "green"), (1e-6, "cyan"), (1e-4, "yellow"), (1e-3, "magenta"), (1e-2, "red"))  # from this BER on
_Column = tuple[WriteCondition, int]


@dataclass(frozen=True)
class Shown:
    """What `host.scan.scan` tells of a scan: it is a `Watch`, and is told of ``waiting``."""

    watch: Watch
    waiting: Tell

    def __call__(self, profile: Profile, planned: PlannedPoint | None) -> None:
        self.watch(profile, planned)


@contextmanager
def scan_view(plan: ScanPlan) -> Iterator[Shown]:
    """Show the scan of ``plan``; yields what `host.scan.scan` tells of it, once it has checked the plan."""
    views: list[ScanView] = []

    def look(profile: Profile, planned: PlannedPoint | None) -> tuple[ScanView, list[str]]:
        stopping.go_on()
        if not views:
            views.append(ScanView(plan))
        return views[0], views[0].look(profile, planned)

    if not console.is_terminal:

        def tell(profile: Profile, planned: PlannedPoint | None) -> None:
            for line in look(profile, planned)[1]:
                console.print(line, soft_wrap=True)

        yield Shown(tell, waiting_lines())
        return
    with Live(console=console, refresh_per_second=4) as live:

        def show(profile: Profile, planned: PlannedPoint | None) -> None:
            live.update(look(profile, planned)[0].picture())

        def show_waiting(waiting: Waiting) -> None:
            views[0].wait(waiting)
            live.update(views[0].picture())

        yield Shown(show, show_waiting)


class ScanView:
    """What is known of a scan that runs.

    Args:
        plan: what is scanned.
    """

    def __init__(self, plan: ScanPlan) -> None:
        self._plan = plan
        self._waiting: Waiting | None = None
        self._grid_tests = sum(1 for _ in plan.points())
        self._rates: dict[tuple[OperatingPoint, WriteCondition], tuple[int, int]] = {}
        self._known: dict[int, PointRecord] = {}
        self._begun = False
        self._seconds, self._errors, self._bank_tests = 0.0, 0, 0  # of the tests since this call
        self._cliff_tests_left = 0  # tests of one bank, at the most
        self._last: PointRecord | None = None
        self._now: PlannedPoint | None = None

    def look(self, profile: Profile, planned: PlannedPoint | None) -> list[str]:
        """Take in what ``profile`` holds by now, and which point is tested next; returns a line for each new test."""
        new, self._now = [each for each in profile.points if self._known.get(each.index) != each], planned
        if self._plan.cliff:
            self._cliff_tests_left = bank_tests_left(self._plan, profile)
        if not self._begun:
            self._known = {record.index: record for record in new}
            self._rates = _rates(profile)
            self._begun = True
            return [f"{self._progress()} tests were there already"] if new else []
        lines = []
        for record in new:
            before = self._known.get(record.index)
            self._known[record.index] = record
            self._seconds += record.duration_s - (before.duration_s if before else 0.0)
            self._errors += record.errors - (before.errors if before else 0)
            self._bank_tests += len(record.region.banks)
            self._last = record
            lines.append(self._line(profile, record))
        if new:
            self._rates = _rates(profile)
        return lines

    def wait(self, waiting: Waiting) -> None:
        """Take in which temperature is waited for, before the next point."""
        self._waiting = None if waiting.over else waiting

    def picture(self) -> RenderableType:
        """A table of BER by VDD and tRCD, and how far the scan is."""
        planned = {(point.point, point.write) for point in self._plan.points()} | set(self._rates)
        if self._now is not None:
            planned.add((self._now.point, self._now.write))
        columns = sorted({(write, point.trcd_ps) for point, write in planned}, key=lambda c: (c[0], -c[1]))
        table = Table(title="BER, all patterns together", title_justify="left")
        table.add_column("VDD", justify="right")
        for write, trcd_ps in columns:
            table.add_column(f"{trcd_ps / 1000:g} ns\n{write.value.replace('_', ' ')}", justify="right")
        for vdd_mv in sorted({point.vdd_mv for point, _ in planned}, reverse=True):
            table.add_row(f"{vdd_mv} mV", *(self._cell(vdd_mv, column, planned) for column in columns))
        return Group(table, Text(self._state()))

    def _cell(self, vdd_mv: int, column: _Column, planned: set[tuple[OperatingPoint, WriteCondition]]) -> Text:
        at = (OperatingPoint(vdd_mv=vdd_mv, trcd_ps=column[1]), column[0])
        if at not in planned:
            return Text("")
        now = self._now is not None and (self._now.point, self._now.write) == at
        if at not in self._rates:
            return Text("testing" if now else "·", style="bold" if now else "dim")
        errors, reads = self._rates[at]
        colour = [name for least, name in _COLOURS if errors / reads >= least][-1]
        return Text(f"{errors / reads:.1e}" if errors else "0", style=f"bold {colour}" if now else colour)

    def _line(self, profile: Profile, record: PointRecord) -> str:
        warmth = "" if record.temperature_c is None else f", {self._warmth(record.temperature_c)}"
        written = record.write_condition.value.replace("_", " ")
        return (
            f"[{self._progress('/')}] {record.point}, {record.pattern}, written at {written}{self._banks(record)}: BER "
            f"{record.errors / _reads(profile, record):.2e} ({record.errors} errors); {record.vdd_measured_mv:.1f} mV"
            f"{warmth}; {record.duration_s:.1f} s{self._left()}"
        )

    def _state(self) -> str:
        parts = [f"{self._progress()} tests{self._left()}"]
        if self._seconds > 0:
            parts.append(f"{self._errors / self._seconds:.3g} errors/s")
        if self._last is not None:
            parts.append(f"{self._last.vdd_measured_mv:.1f} ± {self._last.vdd_uncertainty_mv:.1f} mV")
            if self._last.temperature_c is not None:
                parts.append(self._warmth(self._last.temperature_c))
        if self._waiting is not None:
            parts.append(str(self._waiting))
        elif self._now is not None:
            parts.append(f"now {self._now.point}, {self._now.pattern}")
        return "; ".join(parts)

    def _warmth(self, celsius: float) -> str:
        """A temperature, and where it must be."""
        return f"{celsius:.1f} °C" + (f" of {self._plan.temperature}" if self._plan.temperature is not None else "")

    @property
    def _grid_done(self) -> int:
        done = (r for r in self._known.values() if r.index < self._grid_tests and r.rounds >= self._plan.rounds)
        return sum(1 for _ in done)

    def _progress(self, of: str = " of ") -> str:
        """Tests so far; and of how many, where that is known beforehand."""
        return f"{len(self._known)}" if self._plan.cliff else f"{self._grid_done}{of}{self._grid_tests}"

    def _banks(self, record: PointRecord) -> str:
        """Which banks, where it was not all of them."""
        banks = record.region.banks
        return "" if banks == self._plan.banks else f", bank{'s' * (len(banks) > 1)} {' '.join(map(str, banks))}"

    def _left(self) -> str:
        """How long the rest takes if its tests take as long, bank for bank, as those since this call."""
        left = (self._grid_tests - self._grid_done) * len(self._plan.banks) + self._cliff_tests_left
        if not self._bank_tests or not left:
            return ""
        most = " at the most" if self._cliff_tests_left else ""
        return f"; {timedelta(seconds=math.ceil(self._seconds / self._bank_tests * left))} left{most}"


def _rates(profile: Profile) -> dict[tuple[OperatingPoint, WriteCondition], tuple[int, int]]:
    """Errors and reads at each operating point."""
    rates: dict[tuple[OperatingPoint, WriteCondition], tuple[int, int]] = {}
    for record in profile.points:
        at = (record.point, record.write_condition)
        errors, reads = rates.get(at, (0, 0))
        rates[at] = (errors + record.errors, reads + _reads(profile, record))
    return rates


def _reads(profile: Profile, record: PointRecord) -> int:
    return record.region.cells(profile.header.geometry) * record.rounds
