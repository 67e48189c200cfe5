"""`eden scan --dry-run`: what a scan would do, and what it would take; nothing is touched."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from host.board import Board
from host.boards import open_board
from host.cli.console import console
from host.links import LinkQuality, measure_link
from host.plan import ScanPlan
from host.rail import Rail
from host.rehearsal import Load, rehearse
from host.scan import profile_to_go_on_with
from host.temperature_window import TemperatureWindow
from profiles.storage import Profile


def dry_run(specification: str, supply: Path | None, plan: ScanPlan, path: Path, extend: bool) -> None:
    """Check the plan against the board and what is there already, and print what is left to do.

    Raises:
        PlanError, RailError: the plan asks for what the board or its limits do not allow.
        ProfileError: ``path`` holds another scan's profile.
        BoardError, LinkError: the board cannot be asked.
    """
    board = open_board(specification, supply, bring_up_dram=False)
    try:
        plan.check(board)
        with TemperatureWindow(board, plan.temperature).refreshed():
            profile = profile_to_go_on_with(board, plan, path, extend)
            loads = rehearse(board, plan, profile)
        _show_board(board)
        _show_plan(board, plan, profile, path)
        _show_load(board, loads, measure_link(board.bus, board.identity))
    finally:
        board.close()


def _show_board(board: Board) -> None:
    module, geometry, rail = board.module, board.geometry, board.rail
    _line("board", f"{board.name}: {module.manufacturer} {module.part_number} {module.serial_number}")
    _line(
        "DRAM",
        f"{module.dram_type}, {geometry.banks} banks x {geometry.rows} rows x {geometry.row_bits // 8192} KiB; tCK "
        f"{board.timings.tck_ps / 1000:g} ns, nominal tRCD {board.timings.nominal_trcd_ps / 1000:g} ns",
    )
    _line(
        "supply", f"{rail.identity}; nominal {rail.nominal_mv} mV, may be set to {rail.lowest_mv}..{rail.highest_mv} mV"
    )


def _show_plan(board: Board, plan: ScanPlan, profile: Profile | None, path: Path) -> None:
    points = list(dict.fromkeys(planned.point for planned in plan.points()))
    for trcd_ps in dict.fromkeys(point.trcd_ps for point in points):
        supplies = [point.vdd_mv for point in points if point.trcd_ps == trcd_ps]
        _line("grid", f"{trcd_ps / 1000:g} ns: {', '.join(map(str, supplies))} mV")
    for search in plan.cliff:
        first, last = search.points[0], search.points[-1]
        targets = ", ".join(f"{target:g}" for target in search.ber)
        _line("cliffs", f"of BER {targets}, {len(search.points)} steps from {first} to {last}")
    cells = plan.region.cells(board.geometry)
    _line(
        "each test",
        f"banks {', '.join(map(str, plan.banks))}; rows {plan.rows.start}..{plan.region.row_end - 1}: "
        f"{cells / 2**23:g} MiB; {plan.rounds} rounds, {plan.access_mode.value.replace('_', ' ')}, refresh "
        f"{plan.refresh}",
    )
    _line("patterns", ", ".join(map(str, plan.patterns)))
    _line("written at", ", ".join(write.value.replace("_", " ") for write in plan.write))
    if plan.temperature is not None:
        _line("temperature", f"{plan.temperature}; waiting for it comes on top")
    _line("into", f"{path}, which holds {len(profile.points)} tests" if profile else f"{path}, new")


def _show_load(board: Board, loads: tuple[Load, Load], quality: LinkQuality) -> None:
    least, most = loads
    clock_s, step_s = board.build.nphases * board.timings.tck_ps * 1e-12, _step_seconds(board.rail)
    dram = [load.clocks * clock_s for load in loads]
    link = [_link_seconds(load, quality) for load in loads]
    ramps = [load.ramp_steps * step_s for load in loads]
    _line("tests", _between([least.tests, most.tests], _count))
    _line("DRAM time", _between(dram, _span))
    _line("link", f"{_between(link, _span)}, as measured just now")
    _line("supply", f"{_between([least.ramp_steps, most.ramp_steps], _count)} steps: {_between(ramps, _span)} at least")
    totals = [sum(parts) for parts in zip(dram, link, ramps, strict=True)]
    _line("in all", _between(totals, _span))
    _line("profile", _between([least.stored_bytes, most.stored_bytes], _size))
    console.print(
        "Where two figures stand, it depends on how many cells fail: as in published measurements of three vendors."
    )
    if board.seed is not None:
        console.print("A board in software takes its own time, not that of a DRAM.")


def _link_seconds(load: Load, quality: LinkQuality) -> float:
    moving = load.read_bytes / quality.read_bytes_per_s + load.written_bytes / quality.write_bytes_per_s
    return load.requests * quality.latency_s[1] + moving


def _step_seconds(rail: Rail) -> float:
    """A step of the supply: as long as its slew rate asks, or as two readings take."""
    ramp, begun = rail.ramp, time.monotonic()
    rail.measure()
    reading = (time.monotonic() - begun) * (2 if ramp.settle_s else 1)
    return max(reading, ramp.step_mv / ramp.slew_mv_per_s if ramp.slew_mv_per_s else 0.0)


def _between(figures: Sequence[float], words: Callable[[float], str]) -> str:
    low, high = (words(figure) for figure in figures)
    return low if low == high else f"{low} .. {high}"


def _count(number: float) -> str:
    return f"{number:.0f}"


def _span(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else str(timedelta(seconds=round(seconds)))


def _size(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e9 else f"{count / 1e6:.2g} MB"


def _line(name: str, value: str) -> None:
    console.print(f"{name:<12}{value}", soft_wrap=True)
