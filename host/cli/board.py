"""`eden board …`: what is at the other end of a link, and whether its DRAM can be used."""

import time
from typing import Annotated

import typer

from gateware.registers import INTERFACE_VERSION
from host.boards import open_bus
from host.bringup.initialisation import Pause
from host.bringup.levelling import Levels, in_words
from host.bringup.sequence import bring_up
from host.bus import Bus
from host.cli.console import console, progress_bar, table
from host.cli.opening import open_shown
from host.cli.rail import SupplyOption
from host.die_temperature import find_sensor
from host.identity import DESCRIPTIONS, Description, Identity, find_description, identify
from host.links import engine_state, measure_link
from host.mock import MockBoard
from host.real_board import find_module
from host.selftest import require_self_test
from host.simulation import SimulatedBoard
from profiles.errors import BoardError, TemperatureError

BoardOption = Annotated[
    str,
    typer.Option(
        help="etherbone:HOST[:PORT], serial:DEVICE[:BAUD], litex_server:HOST[:PORT] (default 1234, 3000000, 1234), "
        "mock:A[:SEED], sim:A[:SEED].",
        show_default=False,
    ),
]

board_app = typer.Typer(
    no_args_is_help=True,
    help="""A board, the link to it, and its DRAM.

    **info** asks who answers, **init** brings the DRAM up, **test** tries it. `eden scan`, `eden infer` and `eden run`
    do all of that themselves whenever they open a real board, and refuse to begin if the test fails.
    """,
)


@board_app.command()
def info(board: BoardOption) -> None:
    """Who answers there, what its gateware was built for, its module's SPD, its temperature, and how fast the link is.

    The DRAM is left alone, and so is what the engine's memories hold; the engine must not be running.
    """
    bus = open_bus(board)
    try:
        identity = identify(bus, board)
        description = _show_build(identity, board)
        if description is not None:
            _show_module(bus, description)
            _show_temperature(bus, description)
        state = engine_state(bus)
        quality = measure_link(bus, identity)
    finally:
        bus.close()
    low, median, high = (1e6 * seconds for seconds in quality.latency_s)
    repeats = "" if quality.repeats is None else f"; {quality.repeats} requests had to be repeated"
    _line("engine's state", state.name)
    _line("latency", f"{median:.0f} µs a register, 90 % between {low:.0f} and {high:.0f} µs")
    _line("read", f"{_rate(quality.read_bytes_per_s)} in bulk")
    _line("write", f"{_rate(quality.write_bytes_per_s)} in bulk{repeats}")


@board_app.command()
def init(board: BoardOption) -> None:
    """Initialise the DRAM, and level its writes and reads. What it held is lost; the supply must be at nominal.

    Mode registers and waits as JEDEC has them; then each byte lane's delays are moved to the middle of where its data
    come back whole. A narrow window, or one that changes from one time to the next, is a contact, a supply or a clock
    to look at. A mock's DRAM needs none of it, a simulated one no levelling.
    """
    bus = open_bus(board)
    try:
        if isinstance(bus, MockBoard):
            console.print(f"'{board}' is a mock: its DRAM is always initialised")
            return
        description = find_description(identify(bus, board), board)
        begun = time.monotonic()
        with progress_bar("bring-up") as progress:
            levels = bring_up(bus, description, progress, _pause(bus))
        _show_levels(levels)
        console.print(f"{description.about['title']}: DRAM initialised in {time.monotonic() - begun:.1f} s")
    finally:
        bus.close()


@board_app.command("test")
def run_self_test(board: BoardOption, supply: SupplyOption = None) -> None:
    """Bring the DRAM up and try data lines, address lines and rows of every bank, at nominal supply and timing.

    What the tried cells held is lost. Bad lines are named, and the exit status is 1.
    """
    opened = open_shown(board, supply)
    try:
        with opened.rail.guarded():
            found = require_self_test(opened)
    finally:
        opened.close()
    console.print(f"self-test of '{board}' {found}")


def _pause(bus: Bus) -> Pause:
    """A simulated board's clock stands still while nobody uses it."""
    if isinstance(bus, SimulatedBoard):
        return lambda seconds: bus.run(1 + int(seconds * bus.about["sys_clk_hz"]))
    return time.sleep


def _show_levels(levels: Levels | None) -> None:
    if levels is None:
        console.print("a simulated PHY: nothing to level")
        return
    rows = in_words(levels)
    table("delays and bitslips, in the middle of their windows", list(rows[0]), [list(row.values()) for row in rows])
    if levels.clock_delay is not None:
        console.print(f"clock delay {levels.clock_delay} taps")


def _show_module(bus: Bus, description: Description) -> None:
    try:
        module = find_module(bus, description)
    except BoardError as error:
        _line("module", f"its SPD cannot be used: {error}")
        return
    if (spd := module.spd) is None:
        _line("module", "no SPD within the gateware's reach")
        return
    ecc = ", and ECC lanes" if spd.ecc else ""
    _line(
        "module",
        f"{spd.maker} {spd.part_number}, serial number {spd.serial_number}: {spd.memtype}-{spd.megatransfers} "
        f"{spd.form}, {spd.mib} MiB of x{spd.chip_width} chips{ecc}",
    )
    volts = " or ".join(f"{millivolts / 1000:g} V" for millivolts in spd.voltages_mv)
    jedec = spd.jedec
    _line(
        "",
        f"{volts or 'no voltage given'}; tRCD {jedec.trcd_ps / 1000:g}, tRP {jedec.trp_ps / 1000:g}, tRAS "
        f"{jedec.tras_ps / 1000:g}, tRFC {jedec.trfc_ps / 1000:g}, tCK from {spd.tck_min_ps / 1000:g} ns; as the "
        "gateware was built for",
    )
    for remark in module.remarks:
        _line("", f"beyond the standard: {remark}")


def _show_temperature(bus: Bus, description: Description) -> None:
    try:
        addresses = description.registers()
    except BoardError as error:
        return _line("temperature", str(error))
    try:
        sensor = find_sensor(bus, addresses)
        told = (
            "no sensor within the gateware's reach" if sensor is None else f"{sensor.celsius():.1f} °C, {sensor.name}"
        )
    except TemperatureError as error:
        told = str(error)
    return _line("temperature", told)


def _show_build(identity: Identity, name: str) -> Description | None:
    c = identity.constants
    mib = c["banks"] * c["rows"] * c["columns"] * c["data_width"] / 8 / (1 << 20)
    description = None
    try:
        description = find_description(identity, name)
        title = f"{description.about['title']} ({description.path})"
    except BoardError as error:
        title = f"of unknown build: {error}" if identity.build else f"no description of its build in {DESCRIPTIONS}"
    _line("board", title)
    _line("gateware", f"test engine, interface {INTERFACE_VERSION}, build {identity.build:#010x}")
    _line(
        "DRAM",
        f"{c['banks']} banks x {c['rows']} rows x {c['columns']} columns x {c['data_width']} DQ, "
        f"burst {c['burst_length']}: {mib:g} MiB; CL {c['cas_latency']}, CWL {c['cas_write_latency']}",
    )
    _line(
        "clock",
        f"{identity.sys_clk_hz / 1e6:.6g} MHz system, {identity.sys_clk_hz * c['nphases'] / 1e6:.6g} MHz DRAM "
        f"(tCK {c['tck_ps']} ps, {c['nphases']} phases: RD on {c['read_phase']}, WR on {c['write_phase']})",
    )
    _line(
        "engine",
        f"{c['program_depth']} instructions, {c['log_blocks']} log blocks, {c['buffer_bursts']} bursts of buffer, "
        f"{c['row_counters']} row counters",
    )
    return description


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.2f} MB/s" if bytes_per_s > 1e6 else f"{bytes_per_s / 1e3:.1f} kB/s"


def _line(name: str, value: str) -> None:
    console.print(f"{name:<16}{value}", soft_wrap=True)
