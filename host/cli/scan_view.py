"""A scan while it runs: its operating points as they fill in, or a line for each test where there is no terminal."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from host.cli.console import console
from host.cli.temperature import waiting_lines
from host.plan import PlannedPoint, ScanPlan
from host.scan import Watch
from host.temperature_plan import TemperaturePlan
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
        if not views:
            views.append(ScanView(list(plan.points()), plan.temperature))
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
        points: of its plan, in the order of testing.
        temperature: that the plan asks for.
    """

    def __init__(self, points: Sequence[PlannedPoint], temperature: TemperaturePlan | None = None) -> None:
        self._points, self._temperature = points, temperature
        self._waiting: Waiting | None = None
        self._rates: dict[tuple[OperatingPoint, WriteCondition], tuple[int, int]] = {}
        self._seen: set[int] = set()
        self._began_with: int | None = None  # tests, at the first look
        self._seconds, self._errors = 0.0, 0  # of the tests since this call
        self._last: PointRecord | None = None
        self._now: PlannedPoint | None = None

    def look(self, profile: Profile, planned: PlannedPoint | None) -> list[str]:
        """Take in what ``profile`` holds by now, and which point is tested next; returns a line for each new test."""
        first, lines, self._now = self._began_with is None, [], planned
        for record in profile.points:
            if record.index in self._seen:
                continue
            self._seen.add(record.index)
            self._add(profile, record)
            if not first:
                self._seconds, self._errors = self._seconds + record.duration_s, self._errors + record.errors
                self._last = record
                lines.append(self._line(profile, record))
        if first:
            self._began_with = len(self._seen)
            if self._seen:
                lines.append(f"{len(self._seen)} of {len(self._points)} tests were there already")
        return lines

    def wait(self, waiting: Waiting) -> None:
        """Take in which temperature is waited for, before the next point."""
        self._waiting = None if waiting.over else waiting

    def picture(self) -> RenderableType:
        """A table of BER by VDD and tRCD, and how far the scan is."""
        columns = sorted({(point.write, point.point.trcd_ps) for point in self._points}, key=lambda c: (c[0], -c[1]))
        table = Table(title="BER, all patterns together", title_justify="left")
        table.add_column("VDD", justify="right")
        for write, trcd_ps in columns:
            table.add_column(f"{trcd_ps / 1000:g} ns\n{write.value.replace('_', ' ')}", justify="right")
        planned = {(point.point, point.write) for point in self._points}
        for vdd_mv in sorted({point.point.vdd_mv for point in self._points}, reverse=True):
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

    def _add(self, profile: Profile, record: PointRecord) -> None:
        at = (record.point, record.write_condition)
        errors, reads = self._rates.get(at, (0, 0))
        self._rates[at] = (errors + record.errors, reads + _reads(profile, record))

    def _line(self, profile: Profile, record: PointRecord) -> str:
        warmth = "" if record.temperature_c is None else f", {self._warmth(record.temperature_c)}"
        return (
            f"[{len(self._seen)}/{len(self._points)}] {record.point}, {record.pattern}, written at "
            f"{record.write_condition.value.replace('_', ' ')}: BER {record.errors / _reads(profile, record):.2e} "
            f"({record.errors} errors); {record.vdd_measured_mv:.1f} mV{warmth}; {record.duration_s:.1f} s"
            f"{self._left()}"
        )

    def _state(self) -> str:
        parts = [f"{len(self._seen)} of {len(self._points)} tests{self._left()}"]
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
        return f"{celsius:.1f} °C" + (f" of {self._temperature}" if self._temperature is not None else "")

    def _left(self) -> str:
        """How long the rest takes if its tests take as long as those since this call."""
        tested, left = len(self._seen) - (self._began_with or 0), len(self._points) - len(self._seen)
        if not tested or not left:
            return ""
        return f"; {timedelta(seconds=math.ceil(self._seconds / tested * left))} left"


def _reads(profile: Profile, record: PointRecord) -> int:
    return record.region.cells(profile.header.geometry) * record.rounds
