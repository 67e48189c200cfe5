"""`eden rail …`: look at the supply of the DRAM, move it, and bring it back."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from host.cli.console import console, table
from host.rail import LIMITS, Measurement, Rail
from host.scpi_dialects import DIALECTS
from host.supplies import open_supply, rail_of
from host.supply_file import SUPPLY_FILE, load_supply
from profiles.errors import BoardError, RailError

SupplyOption = Annotated[
    Path | None,
    typer.Option(help="File that names what feeds the DRAM; a mock or simulated board brings its own supply."),
]
SuppliesOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="File that names what feeds the DRAM; a mock or simulated board brings its own supply. Of several "
        "boards: once for each, in the same order."
    ),
]
RecordOption = Annotated[
    Path | None,
    typer.Option(help="File to write all traffic with the board into, for --board replay:FILE or a bug report."),
]
FileOption = Annotated[
    Path, typer.Option("--supply", help="File that names what feeds the DRAM (README, 'Its supply').")
]
LOOK_S = 1.0

rail_app = typer.Typer(no_args_is_help=True, help="The supply of a board's DRAM: look at it, move it, bring it back.")


@rail_app.command()
def show(supply: FileOption = SUPPLY_FILE) -> None:
    """Which supply it is, what it is set to and gives, and between which limits it can be moved. Moves nothing."""
    with _opened(supply) as rail:
        console.print(f"supply      {rail.identity}", soft_wrap=True)
        console.print(f"set to      {rail.set_point_mv():.1f} mV")
        console.print(f"reads       {_words(rail.measure())}")
        _show_limits(rail)


@rail_app.command("set")
def set_(
    millivolts: Annotated[int, typer.Argument(help="Voltage, mV.")],
    supply: FileOption = SUPPLY_FILE,
    hold_s: Annotated[float | None, typer.Option(min=0, help="How long to stay there; default: until Ctrl-C.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before the rail is moved.")] = False,
) -> None:
    """Ramp to a voltage and stay there, with a reading every second; then back to nominal, however it ends."""
    with _opened(supply) as rail:
        _show_limits(rail)
        rail.check(millivolts)
        if not yes:
            question = f"Move the DRAM's supply from {rail.nominal_mv} mV to {millivolts} mV?"
            confirm(question, RailError("the supply was not moved; say yes, or give --yes where nobody can be asked"))
        with announced(f"back at nominal, {rail.nominal_mv} mV"), rail.guarded():
            console.print(f"reads       {_words(rail.set(millivolts))}")
            end = None if hold_s is None else time.monotonic() + hold_s
            while end is None or time.monotonic() < end:
                time.sleep(LOOK_S if end is None else min(LOOK_S, max(0.0, end - time.monotonic())))
                console.print(f"reads       {_words(rail.hold())}")


@rail_app.command()
def restore(supply: FileOption = SUPPLY_FILE) -> None:
    """Bring the supply back to nominal, after something that could not (see `eden rail set --help`)."""
    with _opened(supply) as rail:
        rail.restore()
        console.print(f"at nominal, {rail.nominal_mv} mV; reads {_words(rail.measure())}")


@rail_app.command()
def dialects() -> None:
    """Bench supplies that can be spoken to, by the name that the supply's file takes."""
    rows = [
        [name, dialect.title, f"1..{dialect.channels}", f"{dialect.resolution_mv:g} mV"]
        for name, dialect in DIALECTS.items()
    ]
    table("bench supplies", ["dialect", "fits", "channel", "sets"], rows)


@contextmanager
def _opened(file: Path) -> Iterator[Rail]:
    settings = load_supply(file)
    rail = rail_of(settings, *open_supply(settings))
    try:
        yield rail
    finally:
        rail.close()


@contextmanager
def announced(outcome: str) -> Iterator[None]:
    """Print the outcome of what is done, also if Ctrl-C ends it; an error says itself how things are."""
    try:
        yield
    except SystemExit:
        console.print(outcome)
        raise
    console.print(outcome)


def confirm(question: str, refused: BoardError) -> None:
    """Ask; raises ``refused`` unless the answer is yes."""
    try:
        sure = typer.confirm(question)
    except typer.Abort:
        sure = False
    if not sure:
        raise refused


def _show_limits(rail: Rail) -> None:
    console.print(
        f"limits      {rail.lowest_mv}..{rail.highest_mv} mV ({rail.dram_type} on this board; nominal "
        f"{rail.nominal_mv} mV, absolute maximum {LIMITS[rail.dram_type].absolute_mv} mV)"
    )


def _words(measured: Measurement) -> str:
    text = f"{measured.millivolts:.1f} ± {measured.uncertainty_mv:.1f} mV"
    if measured.milliamperes is not None:
        text += f", {measured.milliamperes:.0f} mA"
    if measured.milliwatts is not None:
        text += f", {measured.milliwatts:.0f} mW"
    return text
