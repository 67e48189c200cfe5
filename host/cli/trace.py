"""`eden trace …`: a network's DRAM traffic as a trace, for other simulators and on a board's own DRAM."""

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from eden import saving
from eden.commands import Command, CommandTrace, export_drampower
from eden.dram_specs import Clocks, DramSpec, load
from eden.layers import NETWORKS
from eden.precision import Precision
from eden.replay import SERIAL, Bursts, Controller, RowPolicy, export_ramulator
from eden.replay import replay as modelled
from eden.traffic import PLATFORMS, Platform, traffic
from gateware import isa
from host.board import Board
from host.cli.console import console, progress_bar, table
from host.cli.opening import open_shown
from host.cli.rail import SupplyOption
from host.trace import Replayed, Trace
from host.trace import replay as replay_on
from profiles.errors import BoardError, ModelError


class Format(StrEnum):
    """Whose trace is written."""

    RAMULATOR = "ramulator"
    DRAMPOWER = "drampower"


NetworkOption = Annotated[str, typer.Option(help=f"One of: {', '.join(NETWORKS)}.")]
PlatformOption = Annotated[str, typer.Option(help=f"Whose traffic, one of: {'; '.join(PLATFORMS)}.")]
PrecisionOption = Annotated[Precision, typer.Option(help="Stored number format.")]
RowsOption = Annotated[
    RowPolicy | None, typer.Option(help="Rows stay open, or are closed after each burst; default: the platform's way.")
]
STALLS = (0.25, 0.5, 0.75)

trace_app = typer.Typer(
    no_args_is_help=True,
    help="""What a network reads and writes in DRAM on a platform, burst by burst.

    **export** writes it for another simulator, **replay** issues it on a board's DRAM and counts clocks and errors.
    """,
)


@trace_app.command()
def export(
    out: Annotated[Path, typer.Argument(help="File to write.")],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="ramulator: Ramulator 2's ReadWriteTrace, bursts for its own controller to serve. drampower: "
            "DRAMPower 5's command list, as the replay here serves them; data are zeros, so compare core energies.",
        ),
    ] = Format.RAMULATOR,
    network: NetworkOption = "LeNet",
    platform: PlatformOption = "CPU",
    precision: PrecisionOption = Precision.INT8,
    trcd_cut_ps: Annotated[int, typer.Option(min=0, help="Taken off tRCD in a command list.")] = 0,
    rows: RowsOption = None,
    bursts: Annotated[int | None, typer.Option(min=1, help="Only so many, from the first.")] = None,
) -> None:
    """Write one channel's trace in a format of Ramulator 2 or DRAMPower 5, to check the figures here with them."""
    system = _platform(platform)
    spec = load(system.dram)
    asked = _bursts(network, system, precision, spec, bursts)
    out.parent.mkdir(parents=True, exist_ok=True)
    if form is Format.RAMULATOR:
        export_ramulator(asked, spec, out)
        console.print(f"{asked.bank.size} bursts for {spec.name}: {out}")
        return
    served = modelled(asked, spec, spec.trcd_clocks(trcd_cut_ps), system.outstanding, rows or system.policy)
    export_drampower(served, spec, out)
    console.print(f"{served.clock.size} commands of {spec.name} in {served.length} clocks: {out}")


@trace_app.command()
def replay(
    board: Annotated[str, typer.Option(help="Board, e.g. mock:B:1.")],
    network: NetworkOption = "LeNet",
    platform: PlatformOption = "CPU without prefetch",
    precision: PrecisionOption = Precision.INT8,
    trcd_ps: Annotated[int, typer.Option(help="Reduced tRCD, picoseconds.")] = 10_000,
    vdd_mv: Annotated[int | None, typer.Option(help="Supply at reduced tRCD; default: nominal.")] = None,
    outstanding: Annotated[
        int, typer.Option(min=1, help="Bursts under way at once: 1 if each waits for the one before, 64 back to back.")
    ] = SERIAL,
    rows: RowsOption = None,
    interleaved: Annotated[
        bool, typer.Option("--interleaved", help="Consecutive bursts lie in neighbouring banks, not along a row.")
    ] = False,
    bursts: Annotated[int, typer.Option(min=1, help="So many, from the first.")] = 20_000,
    supply: SupplyOption = None,
) -> None:
    """Issue a network's trace on a board's DRAM, at nominal and at a reduced point: clocks, and bits that read wrong.

    The rows that the trace touches are filled with a pattern first, which its reads are compared with; what they held
    is lost. The engine's own counter gives the clocks, beside those of the model whose controller is this board's
    (RD and WR on the PHY's phases, one command in each system clock).

    Where rows lie decides what is gained: a dependent stream along a closed row waits for tRC of its bank, which no
    tRCD shortens; interleaved over banks it waits for tRCD each time; along open rows it hardly ever does.

    What the trace gains is not what a system gains: that is 1 / (1 - f (1 - r)) - 1, with r the ratio of the trace's
    times and f the share of its time that the system waits for DRAM. Measure f on the system itself, as
    `eden study headline --help` says.
    """
    system = _platform(platform)
    policy = rows or system.policy
    opened = open_shown(board, supply)
    try:
        spec, reduced = dram_of(opened), opened.timings.trcd_clocks(trcd_ps)
        if reduced > spec.trcd:
            raise ModelError(
                f"a tRCD of {trcd_ps} ps is no cut of this board's {spec.trcd * spec.tck_ps} ps; give less"
            )
        places = spec.model_copy(update={"bank_groups": spec.banks}) if interleaved else spec
        asked = _bursts(network, system, precision, places, bursts)
        asked = replace(asked, arrival=np.zeros_like(asked.arrival))
        nominal_mv, found = opened.rail.nominal_mv, []
        with progress_bar("replay") as progress, opened.rail.guarded():
            for trcd, voltage in ((spec.trcd, nominal_mv), (reduced, nominal_mv if vdd_mv is None else vdd_mv)):
                served = modelled(asked, spec, trcd, outstanding, policy, controller=controller_of(opened))
                done = replay_on(opened, trace_of(served, spec), voltage)
                found.append(_Run(trcd, voltage, served.length, done))
                progress(len(found), 2)
    finally:
        opened.close()
    _show(found, spec.tck_ps, f"{network}, {precision}, {platform}: {asked.bank.size} bursts")


def dram_of(board: Board) -> DramSpec:
    """The board's channel: its organisation and its build's timings, with the currents known of its DRAM's family.

    Banks of DDR4 count as of one group: all distances are those within a group.

    Raises:
        BoardError: nothing is known of such a DRAM.
    """
    family, g, t = board.module.dram_type, board.geometry, board.timings
    if family not in saving.DRAM_OF_FAMILY:
        raise BoardError(f"no currents of {family} are known; known are {', '.join(saving.DRAM_OF_FAMILY)}")
    clocks = Clocks(
        **{name: getattr(t, name) for name in ("trp", "tras", "tfaw", "trtp", "twr", "trfc", "trefi")},
        **{f"{name}_{of}": getattr(t, name) for name in ("trrd", "tccd", "twtr") for of in "sl"},
        cl=board.constants["cas_latency"],
        cwl=t.write_latency,
        trp_all=t.trp,
    )
    organisation = {
        "name": board.name,
        "devices": g.data_width // g.chip_width,
        "width": g.chip_width,
        "banks": g.banks,
        "bank_groups": 1,
        "burst_beats": g.burst_length,
        "row_bursts": g.bursts_per_row,
        "tck_ps": t.tck_ps,
        "trcd_ps": t.nominal_trcd_ps,
    }
    return load(saving.DRAM_OF_FAMILY[family]).model_copy(update={**organisation, "clocks": clocks})


def controller_of(board: Board) -> Controller:
    """The test engine as `eden.replay` sees it."""
    return Controller(board.build.nphases, board.build.read_phase, board.build.write_phase)


def trace_of(served: CommandTrace, spec: DramSpec) -> Trace:
    """A modelled trace as the engine takes it."""
    engine = np.array([isa.Command[command.name] for command in Command], np.int64)
    data = (served.command == Command.RD) | (served.command == Command.WR)
    address = served.address.astype(np.int64) * np.where(data, spec.burst_beats, 1)
    return Trace(served.clock, engine[served.command], served.bank.astype(np.int64), address, served.length)


def _platform(name: str) -> Platform:
    if name not in PLATFORMS:
        raise ModelError(f"no platform {name!r}; choose from {'; '.join(PLATFORMS)}")
    return PLATFORMS[name]


def _bursts(network: str, system: Platform, precision: Precision, spec: DramSpec, most: int | None) -> Bursts:
    """The first bursts of one channel."""
    if network not in NETWORKS:
        raise ModelError(f"no network {network!r}; choose from {', '.join(NETWORKS)}")
    found = traffic(NETWORKS[network](), system, precision, spec).bursts
    return Bursts(**{name: values[:most] for name, values in vars(found).items()})


@dataclass(frozen=True)
class _Run:
    """One replay: tRCD in DRAM clocks, supply in millivolts, DRAM clocks by the model, and what the board did."""

    trcd: int
    vdd_mv: int
    modelled: int
    on_board: Replayed


def _show(runs: list[_Run], tck_ps: int, title: str) -> None:
    rows = [
        [
            f"{run.trcd * tck_ps / 1000:g} ns",
            f"{run.vdd_mv} mV",
            *(f"{run.on_board.clocks}", f"{run.modelled}", f"{run.on_board.clocks * tck_ps * 1e-6:.1f}"),
            *(f"{run.on_board.bits_wrong}", f"{run.on_board.bits_read}"),
            f"{run.on_board.bits_wrong / max(1, run.on_board.bits_read):.1e}",
        ]
        for run in runs
    ]
    columns = ["tRCD", "VDD", "DRAM clocks, engine", "model", "µs", "bits wrong", "of bits read", "BER"]
    table(title, columns, rows)
    ratio = runs[1].on_board.clocks / runs[0].on_board.clocks
    gains = ", ".join(f"{100 * saving.speed_up(stall, ratio):.1f} % at {100 * stall:.0f} %" for stall in STALLS)
    console.print(
        f"the trace takes {100 * (1 - ratio):.1f} % less time. A system that waits for DRAM for a share of its time "
        f"runs faster by {gains}"
    )
