"""`eden scan`: from a board to an error profile."""

from pathlib import Path
from typing import Annotated

import typer

from host.cli.cliffs import show_cliffs
from host.cli.console import console
from host.cli.dry_run import dry_run as show_dry_run
from host.cli.opening import open_shown
from host.cli.plan import PlanPath, load_plan, named_board
from host.cli.rail import RecordOption, SuppliesOption
from host.cli.scan_view import scan_view
from host.cli.together import scan_together
from host.scan import scan as run_scan
from profiles.errors import PlanError


def scan(
    plan: PlanPath,
    board: Annotated[
        list[str] | None,
        typer.Option(help="Board, e.g. mock:C:7; instead of the plan's. More than one: all at once."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Profile folder; instead of OUTPUT/profile of the plan. Of several boards: of a profile folder each."
        ),
    ] = None,
    supply: SuppliesOption = None,
    record: RecordOption = None,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend",
            help="Go on with a finished or unfinished profile under a larger plan: more rounds, or grid and cliff "
            "tables after those that are there. Nothing is tested again.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the plan against the board, its limits and the profile, and say what would be done, how long "
            "it would take and how large the profile would be. DRAM and supply are left alone.",
        ),
    ] = False,
) -> None:
    """Sweep VDD x tRCD x pattern over a board, or find each bank's cliffs, and write an error profile.

    The plan's grid tables name operating points; its cliff tables name an error rate, one tRCD and steps of VDD (or one
    VDD and steps of tRCD), of which bisection tests those that tell where each bank passes it. Each finished point is
    on disk before the next begins: to pause, stop it at any time, and give the same command to go on.

    With --board given more than once each board is scanned in a process of its own, into OUT/BOARD (mock:C:7 into
    OUT/mock-C-7), as it would be alone. One that fails does not stop the others; Ctrl-C stops all.
    """
    settings = load_plan(plan)
    boards, supplies = board or [named_board(None, settings)], supply or []
    if len(boards) > 1:
        if record is not None or dry_run:
            raise PlanError("--record and --dry-run are for one board; give --board once with them")
        scan_together(plan, boards, out or settings.output, supplies, extend)
        return
    if len(supplies) > 1:
        raise PlanError(f"one board and {len(supplies)} supplies; give --supply once")
    path = out or settings.output / "profile"
    file = supplies[0] if supplies else None
    if dry_run:
        show_dry_run(boards[0], file, settings.scan, path, extend)
        return
    opened = open_shown(boards[0], file, record)
    try:
        with scan_view(settings.scan) as watch:
            profile = run_scan(opened, settings.scan, path, watch, waiting=watch.waiting, extend=extend)
    finally:
        opened.close()
    console.print(f"{len(profile.points)} points, {sum(p.errors for p in profile.points)} errors: {path}")
    if settings.scan.cliff:
        show_cliffs(profile, [])
