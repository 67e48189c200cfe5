"""`eden profile cliffs`: where each bank's error rate passes a target, as far as a profile shows it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from host.cli.console import console, table
from host.plan import ScanPlan
from profiles.cliffs import Cliff, Ladder, find_cliffs
from profiles.errors import PlanError
from profiles.pattern import Pattern
from profiles.schema import OperatingPoint, WriteCondition
from profiles.statistics import BerEstimate
from profiles.storage import Profile


def cliffs(
    profile: Annotated[Path, typer.Argument(help="Profile folder, as `eden scan` writes it.")],
    ber: Annotated[
        list[float] | None,
        typer.Option(help="Bit error rate whose cliff is wanted, of whatever was scanned; may be given several times."),
    ] = None,
) -> None:
    """Between which steps of VDD, or of tRCD, each bank's bit error rate passes a target.

    Without --ber, the cliffs that the scan's plan looks for (its cliff tables); with it, those of any profile that was
    tested at three steps or more. A step counts as below the target where the interval of the bank's BER ends below it,
    and as above where it begins above it; the intervals of a search hold together with 95 %, wordlines as sampling
    units. Steps between the two leave it open. A harsher step that fails less often than a milder one, beyond their
    intervals, contradicts a cliff, and is shown instead.
    """
    opened = Profile.open(profile)
    show_cliffs(opened, ber or [])


def show_cliffs(profile: Profile, targets: list[float]) -> None:
    """Print a table for each ladder: of the profile's plan, or of ``targets`` where there are any.

    Raises:
        PlanError: there is nothing to show.
    """
    if any(not 0 < target < 0.5 for target in targets):
        raise PlanError(f"--ber {targets} has a rate outside 0 .. 0.5; give bit error rates, e.g. 1e-4")
    ladders = [(ladder, tuple(targets)) for ladder in _tested_ladders(profile)] if targets else _planned(profile)
    if not ladders:
        raise PlanError(f"{profile.path} looks for no cliff; give --ber, and scan three steps of VDD or tRCD")
    for ladder, rates in ladders:
        _show(profile, ladder, find_cliffs(profile, ladder, rates))


def _planned(profile: Profile) -> list[tuple[Ladder, tuple[float, ...]]]:
    try:
        return list(ScanPlan.model_validate(profile.header.plan).ladders())
    except ValidationError:
        return []  # brought in from elsewhere, or by a plan of another version


def _tested_ladders(profile: Profile) -> Iterator[Ladder]:
    """Every row of three tested points or more that share a tRCD, or a VDD."""
    conditions = sorted({record.write_condition for record in profile.points})
    for write in conditions:
        records = [record for record in profile.points if record.write_condition == write]
        patterns = tuple(sorted({record.pattern for record in records}, key=str))
        points = {record.point for record in records}
        for trcd_ps in sorted({point.trcd_ps for point in points}, reverse=True):
            yield from _ladder([point for point in points if point.trcd_ps == trcd_ps], write, patterns)
        for vdd_mv in sorted({point.vdd_mv for point in points}, reverse=True):
            yield from _ladder([point for point in points if point.vdd_mv == vdd_mv], write, patterns)


def _ladder(points: list[OperatingPoint], write: WriteCondition, patterns: tuple[Pattern, ...]) -> Iterator[Ladder]:
    if len(points) >= 3:
        yield Ladder(tuple(sorted(points, key=lambda p: (-p.trcd_ps, -p.vdd_mv))), write, patterns)


def _show(profile: Profile, ladder: Ladder, found: list[Cliff]) -> None:
    rows = [
        [
            *(f"{cliff.bank}", f"{cliff.target:g}"),
            *(_side(profile, cliff, cliff.below), _side(profile, cliff, cliff.above), _remark(cliff)),
        ]
        for cliff in sorted(found, key=lambda cliff: (cliff.target, cliff.bank))
    ]
    first, last = ladder.points[0], ladder.points[-1]
    written = f"written at: {ladder.write.value.replace('_', ' ')}"
    if ladder.axis == "vdd_mv":
        title = f"VDD {first.vdd_mv} .. {last.vdd_mv} mV at tRCD {first.trcd_ps / 1000:g} ns, {written}"
    else:
        title = f"tRCD {first.trcd_ps / 1000:g} .. {last.trcd_ps / 1000:g} ns at {first.vdd_mv} mV, {written}"
    table(title, ["bank", "BER", "still below at", "above at", ""], rows)
    tested = sum(len(cliff.rates) for cliff in {cliff.bank: cliff for cliff in found}.values())
    grid = len(ladder.points) * len({cliff.bank for cliff in found})
    console.print(f"  {tested} tests of a bank; every step in every bank would be {grid} ({tested / max(1, grid):.0%})")


def _side(profile: Profile, cliff: Cliff, point: OperatingPoint | None) -> str:
    if point is None:
        return "none"
    rung = cliff.ladder.points.index(point)
    if cliff.ladder.axis == "trcd_ps":
        return f"{point.trcd_ps / 1000:g} ns: {_interval(cliff.rates[rung])}"
    record = cliff.ladder.visits(profile)[cliff.bank][rung][-1]
    return f"{point.vdd_mv} mV (read {record.vdd_measured_mv:.1f}): {_interval(cliff.rates[rung])}"


def _interval(rate: BerEstimate) -> str:
    return f"{rate.low:.1e} .. {rate.high:.1e}"


def _remark(cliff: Cliff) -> str:
    if cliff.contradiction is not None:
        mild, harsh = cliff.contradiction
        rates = [_interval(cliff.rates[cliff.ladder.points.index(point)]) for point in (mild, harsh)]
        return f"not monotone: {rates[0]} at {mild}, {rates[1]} at the harsher {harsh}"
    if not cliff.searched:
        return "search unfinished"
    if cliff.below is None:
        return "begins above it: search from a milder step"
    if cliff.above is None:
        return "never above it: search to a harsher step"
    if not cliff.resolved:
        return f"{len(cliff.position.between)} tested in between leave it open: more rows tell"
    return ""
