"""`eden study headline`: what inference on approximate memory saves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from eden import saving
from eden.energy import CoreLaw, VddLaw
from eden.layers import NETWORKS
from eden.precision import Precision
from eden.saving import Cell, Points
from eden.traffic import PLATFORMS
from host.cli import stages
from host.cli.console import console, table
from host.cli.tasks import Result, Rows, Scheduler, Workers, rows_of_tasks
from profiles.errors import ModelError

FOLDER = Path("build/study")


def headline(
    out: Annotated[Path, typer.Option(help="Folder for headline.json and what is kept.")] = FOLDER,
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
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Energy and time that EDEN's operating points save, networks x platforms x precisions, beside the paper's.

    The paper's figures depend on what it does not state; what that decides is in the table's bands and sentences.
    Finished cells are kept, whatever law or stall share they are shown with: stopped and started again, it goes on.
    """
    saving.speed_up(stall or 0.0, 1.0)
    chosen = VddLaw(law, io_scaled)
    tasks, cells = _tasks(out, network or list(NETWORKS), platform or list(PLATFORMS)), list[Cell]()

    def rows_of(results: list[Result]) -> Rows:
        cells[:] = [Cell.from_json(result) for result in results]
        return [saving.row(cell, chosen, stall) for cell in cells]

    rows = rows_of_tasks("headline", tasks, rows_of, out, workers, scheduler)
    averages = list(saving.averages(cells, chosen, stall))
    file = out / "headline.json"
    stages.save_json(file, {"study": "headline", "rows": rows, "averages": averages})
    _show(rows, averages, chosen, stall)
    console.print(f"written to {file}")


@dataclass(frozen=True)
class Task:
    """One network on one platform at one precision."""

    out: Path
    network: str
    platform: str
    precision: Precision

    @property
    def file(self) -> Path:
        """See `host.cli.tasks.Task`."""
        name = f"{self.network} {self.platform} {self.precision}".replace(",", "").replace(" ", "-")
        return self.out / "headline" / f"{name}.json"

    @property
    def key(self) -> str:
        """See `host.cli.tasks.Task`."""
        return f"{PLATFORMS[self.platform]} {Points.load().at(self.network, self.precision)}"

    def measured(self) -> Result:
        """The cell (`eden.saving.Cell`)."""
        layers, platform = NETWORKS[self.network](), PLATFORMS[self.platform]
        return saving.evaluate(self.network, layers, platform, self.precision, Points.load()).to_json()


def _tasks(out: Path, networks: Sequence[str], platforms: Sequence[str]) -> list[Task]:
    for kind, asked, known in (("network", networks, list(NETWORKS)), ("platform", platforms, list(PLATFORMS))):
        for name in asked:
            if name not in known:
                raise ModelError(f"no {kind} {name!r}; choose from {', '.join(known)}")
    return [Task(out, n, p, precision) for n in networks for p in platforms for precision in saving.PRECISIONS]


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
