"""`eden board …`: what is at the other end of a link."""

from typing import Annotated

import typer

from gateware.registers import INTERFACE_VERSION
from host.boards import open_bus
from host.cli.console import console
from host.identity import DESCRIPTIONS, Identity, find_description, identify
from host.links import engine_state, measure_link
from profiles.errors import BoardError

board_app = typer.Typer(no_args_is_help=True, help="A board, and the link to it.")


@board_app.callback()
def _group() -> None:
    """Makes `info` a command of its own although it is the only one so far."""


@board_app.command()
def info(
    board: Annotated[
        str,
        typer.Option(
            help="etherbone:HOST[:PORT], serial:DEVICE[:BAUD] (default 1234, 3000000), mock:A[:SEED], sim:A[:SEED].",
            show_default=False,
        ),
    ],
) -> None:
    """Who answers there, what its gateware was built for, and how fast the link is.

    The DRAM is left alone, and so is what the engine's memories hold; the engine must not be running.
    """
    bus = open_bus(board)
    try:
        identity = identify(bus, board)
        _show_build(identity, board)
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


def _show_build(identity: Identity, name: str) -> None:
    c = identity.constants
    mib = c["banks"] * c["rows"] * c["columns"] * c["data_width"] / 8 / (1 << 20)
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


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.2f} MB/s" if bytes_per_s > 1e6 else f"{bytes_per_s / 1e3:.1f} kB/s"


def _line(name: str, value: str) -> None:
    console.print(f"{name:<16}{value}", soft_wrap=True)
