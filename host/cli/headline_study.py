"""`eden study headline`: what inference on approximate memory saves."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from eden import saving
from eden.energy import CoreLaw, VddLaw
from eden.layers import NETWORKS
from eden.traffic import PLATFORMS
from host.cli.console import console, progress_bar, table


def headline(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("build/study/headline.json"),
    network: Annotated[
        list[str] | None, typer.Option(help=f"Only this one; may be repeated: {', '.join(NETWORKS)}.")
    ] = None,
    platform: Annotated[
        list[str] | None, typer.Option(help=f"Only this one; may be repeated: {'; '.join(PLATFORMS)}.")
    ] = None,
    law: Annotated[CoreLaw, typer.Option(help="How energy follows VDD; the band over all laws is given too.")] = (
        saving.DEFAULT_LAW.core
    ),
    io_scaled: Annotated[bool, typer.Option(help="Whether the pins' supply is lowered too.")] = False,
    stall: Annotated[
        float | None,
        typer.Option(
            help="Share of its time that a system waits for DRAM; by default what each platform's model waits for each "
            "network. The band 25 to 75 % is given too. To measure yours: "
            "`perf stat -e cycles,cycle_activity.stalls_l3_miss COMMAND`, the second over the first (Intel's names; "
            "see `perf list`), or the top-down metric tma_dram_bound."
        ),
    ] = None,
) -> None:
    """Energy and time that EDEN's operating points save, networks x platforms x precisions, beside the paper's.

    The paper's figures depend on what it does not state; what that decides is in the table's bands and sentences.
    """
    saving.speed_up(stall or 0.0, 1.0)
    chosen = VddLaw(law, io_scaled)
    with progress_bar("study") as progress:
        cells = list(saving.headline(network or list(NETWORKS), platform or list(PLATFORMS), progress))
    rows = [saving.row(cell, chosen, stall) for cell in cells]
    averages = list(saving.averages(cells, chosen, stall))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rows": rows, "averages": averages}, indent=1), encoding="utf-8")
    _show(rows, averages, chosen, stall)
    console.print(f"written to {out}")


def _show(rows: list[dict[str, Any]], averages: list[dict[str, Any]], law: VddLaw, stall: float | None) -> None:
    share = "at the stall share of the platform's model" if stall is None else f"at a stall share of {stall:.0%}"
    title = (
        f"DRAM energy saved by {law}, and over all laws; speed-up {share}, and over 25 to 75 % with any row policy and "
        "dependence. * assumed operating point"
    )
    columns = ["network", "platform", "precision", "energy", "laws", "DRAM time", "stalls", "speed-up", "band"]
    table(title, columns, [_row(row) for row in rows])
    columns = ["mean over the paper's networks", "precision", "energy", "laws", "anything", "paper"]
    table("Against the paper", [*columns, "speed-up, most", "paper"], [_average(row) for row in averages])
    for sentence in dict.fromkeys(f"{row['platform']}, {row['precision']}: {row['sentence']}" for row in averages):
        console.print(sentence)


def _row(row: dict[str, Any]) -> list[str]:
    return [
        row["network"] + (" *" if row["operating_point"] == "assumed" else ""),
        *(row["platform"], row["precision"], _percent(row["energy_saved"])),
        _band(row["energy_saved_low"], row["energy_saved_high"]),
        f"-{_percent(1 - row['dram_time_ratio'])}",
        _percent(row["stall_share"]),
        *(_percent(row["speed_up"]), _band(row["speed_up_low"], row["speed_up_high"])),
    ]


def _average(row: dict[str, Any]) -> list[str]:
    paper = row["paper_speed_up"]
    return [
        *(row["platform"], row["precision"], _percent(row["energy_saved"])),
        _band(row["energy_saved_low"], row["energy_saved_high"]),
        _band(row["energy_saved_lowest"], row["energy_saved_highest"]),
        _percent(row["paper_energy_saved"]) if row["paper_energy_saved"] else "–",
        f"{_percent(row['speed_up'])}, {_percent(row['speed_up_most'])}",
        f"{_percent(paper)}, {_percent(row['paper_speed_up_most'])}" if paper else "–",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _band(low: float, high: float) -> str:
    return f"{100 * low:.1f} … {100 * high:.1f} %"
