"""`eden temperature …`: look at the controller of the DRAM's temperature, set it and wait, and leave it safe."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from host.cli.console import console, table
from host.cli.rail import FileOption, announced, confirm
from host.controller_presets import PRESETS
from host.modbus import open_thermostat
from host.supply_file import SUPPLY_FILE, load_temperature
from host.thermostat import EXTENDED_C, NORMAL_C, Tell, Thermostat, Waiting
from profiles.errors import TemperatureError

LOOK_S = 1.0
LINE_S = 10.0  # between lines about waiting, where there is no terminal

temperature_app = typer.Typer(
    no_args_is_help=True,
    help="""The temperature of a board's DRAM: its controller, set and waited for, and left safe.

    The controller is named in the supply's file, under [temperature]. A scan whose plan asks for a temperature does
    all of this by itself.
    """,
)


@temperature_app.command()
def show(supply: FileOption = SUPPLY_FILE) -> None:
    """Which controller it is, what it is set to and reads, and between which limits it can be set. Sets nothing."""
    with _opened(supply) as thermostat:
        _show(thermostat)


@temperature_app.command("set")
def set_(
    celsius: Annotated[float, typer.Argument(help="Temperature, °C.")],
    supply: FileOption = SUPPLY_FILE,
    hold_s: Annotated[float | None, typer.Option(min=0, help="How long to stay there; default: until Ctrl-C.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before the set-point is moved.")] = False,
) -> None:
    """Set a temperature, wait until it is stable, and stay there with a reading every second.

    Then the safe set-point (`safe_c` of the file), however it ends. How near it must come and for how long, how long
    that may take, and how fast the set-point may move are the file's `tolerance_c`, `stable_s`, `wait_s` and
    `ramp_c_per_min`.
    """
    with _opened(supply) as thermostat:
        _show(thermostat)
        thermostat.check(celsius)
        if not yes:
            question = f"Set {thermostat.identity} to {celsius:g} °C?"
            confirm(question, TemperatureError("nothing was set; say yes, or give --yes where nobody can be asked"))
        with announced(f"set to {thermostat.holding.safe_c:g} °C"), thermostat.guarded():
            with waiting_shown() as tell:
                reading = thermostat.bring_to(celsius, tell)
            console.print(f"stable      {reading:.1f} °C")
            end = None if hold_s is None else time.monotonic() + hold_s
            while end is None or time.monotonic() < end:
                time.sleep(LOOK_S if end is None else min(LOOK_S, max(0.0, end - time.monotonic())))
                console.print(f"reads       {thermostat.measure_c():.1f} °C")


@temperature_app.command()
def safe(supply: FileOption = SUPPLY_FILE) -> None:
    """Set the safe set-point, after something that could not: a scan that was killed, or a PC that lost its power."""
    with _opened(supply) as thermostat:
        thermostat.make_safe()
        console.print(f"set to {thermostat.set_point_c():g} °C; reads {thermostat.measure_c():.1f} °C")


@temperature_app.command()
def presets() -> None:
    """Controllers whose registers are known, by the name that the file's `preset` takes; others are written by hand."""
    for name, preset in PRESETS.items():
        rows = [
            [what, f"{register.address} ({register.address:#06x})", register.type, f"{register.scale:g}"]
            for what, register in (("process_value", preset.process_value), ("set_point", preset.set_point))
        ]
        table(f"{name}: {preset.title}", ["register", "address", "type", "scale"], rows)
        console.print(f"  {preset.remark}\n  {preset.source}\n", soft_wrap=True)


@contextmanager
def waiting_shown() -> Iterator[Tell]:
    """One line that changes on a terminal, a line every `LINE_S` elsewhere."""
    if not console.is_terminal:
        yield waiting_lines()
        return
    with console.status("waiting for the temperature") as status:
        yield lambda waiting: status.update(str(waiting))


def waiting_lines() -> Tell:
    """Prints a line every `LINE_S`, and the last one."""
    last = -math.inf

    def tell(waiting: Waiting) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= LINE_S or waiting.over:
            last = now
            console.print(str(waiting), soft_wrap=True)

    return tell


@contextmanager
def _opened(file: Path) -> Iterator[Thermostat]:
    thermostat = open_thermostat(load_temperature(file))
    try:
        yield thermostat
    finally:
        thermostat.close()


def _show(thermostat: Thermostat) -> None:
    holding = thermostat.holding
    console.print(f"controller  {thermostat.identity}", soft_wrap=True)
    console.print(f"set to      {thermostat.set_point_c():.1f} °C")
    console.print(f"reads       {thermostat.measure_c():.1f} °C")
    console.print(
        f"limits      {holding.lowest_c:g}..{holding.highest_c:g} °C (this bench; JEDEC's for a DRAM: {NORMAL_C[0]:g}.."
        f"{NORMAL_C[1]:g} °C, {EXTENDED_C:g} °C with refresh doubled); safe: {holding.safe_c:g} °C"
    )
