"""`eden profile …`: look at an error profile, and hand it over."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from host.cli.console import console, table
from host.cli.deferred import deferring
from profiles import exchange, statistics
from profiles.errors import PlanError
from profiles.geometry import Geometry
from profiles.latency_study import import_latency_study
from profiles.schema import OperatingPoint, PointRecord, WriteCondition, json_schema
from profiles.storage import Profile
from profiles.surface import BerSurface

ProfilePath = Annotated[Path, typer.Argument(help="Profile folder, as `eden scan` writes it.")]

profile_app = typer.Typer(
    cls=deferring(
        {
            "plot": (
                "host.cli.profile_plots:plot",
                "Draw BER over VDD and tRCD, where the errors lie (bank, row, bitline, DQ lane), and error models "
                "against them.",
            ),
            "cliffs": (
                "host.cli.cliffs:cliffs",
                "Between which steps of VDD, or of tRCD, each bank's bit error rate passes a target.",
            ),
        }
    ),
    no_args_is_help=True,
    help="Look at an error profile, and hand it over.",
)


class By(StrEnum):
    """What `eden profile show --by` groups reads by."""

    BANK = "bank"
    ROW_BLOCK = "row_block"
    BITLINE = "bitline"
    DQ = "dq"
    DIRECTION = "direction"
    PATTERN = "pattern"
    OPERATING_POINT = "operating_point"
    ROUNDS = "rounds"


SHOWN = 32  # groups, the worst ones


@profile_app.command()
def show(
    profile: ProfilePath,
    by: Annotated[By | None, typer.Option(help="Group the reads of an operating point by this.")] = None,
    vdd_mv: Annotated[int | None, typer.Option(help="VDD of the operating point; default: the worst one.")] = None,
    trcd_ps: Annotated[int | None, typer.Option(help="tRCD of the operating point.")] = None,
) -> None:
    """What a profile holds: module, conditions, and the BER at each operating point with its 95 % interval.

    "corrupted" is the rate of cells that still held the wrong bit at nominal after the last round, where the plan has
    control = true; errors beyond it were in reading only. With --by, one operating point by bank, row block, bitline,
    DQ lane, direction or pattern, the worst groups first; or how often its failing cells failed (rounds). Intervals are
    exact, of reads taken as independent.
    """
    opened = Profile.open(profile)
    if by is not None:
        _show_groups(opened, by, points_at(opened, vdd_mv, trcd_ps, every=by is By.OPERATING_POINT))
        return
    header, module = opened.header, opened.header.module
    console.print(f"{module.manufacturer} {module.part_number} {module.serial_number}, {module.dram_type}")
    geometry = header.geometry
    console.print(
        f"{geometry.banks} banks x {geometry.rows} rows x {geometry.columns} columns x {geometry.data_width} DQ; board "
        f"{header.board}, tCK {header.tck_ps} ps; {len(opened.points)} of {header.planned_points} points; "
        f"{header.licence}"
    )
    controlled = any(record.control for record in opened.points)
    for condition in WriteCondition:
        rows = []
        for entry in statistics.ber_surface(opened, condition):
            b = entry.ber
            rows.append(
                [
                    *(str(entry.point), f"{entry.vdd_measured_mv:.1f}", f"{b.errors}", f"{b.trials:.3g}"),
                    *(f"{b.ber:.2e}", f"{b.low:.2e} .. {b.high:.2e}"),
                    *([_corrupted(opened, opened.find(entry.point, condition))] if controlled else []),
                ]
            )
        if rows:
            columns = ["VDD, tRCD", "measured mV", "errors", "trials", "BER", "95 %"]
            columns += ["corrupted"] if controlled else []
            table(f"written at: {condition.value.replace('_', ' ')}", columns, rows)
    whole = {entry.point for condition in WriteCondition for entry in statistics.ber_surface(opened, condition)}
    if partial := set(opened.operating_points()) - whole:
        console.print(f"{len(partial)} more points, each tested in some banks only: eden profile cliffs")
    _show_path_errors(opened)


def _corrupted(profile: Profile, records: list[PointRecord]) -> str:
    """Rate of cells that held the wrong bit once the last round was over."""
    known = [(record, record.control) for record in records if record.control is not None]
    if not known:
        return "not read"
    cells = sum(record.region.cells(profile.geometry) for record, _ in known)
    return f"{sum(control.corrupted for _, control in known) / cells:.2e}"


def _show_path_errors(profile: Profile) -> None:
    """Name the supplies at which not all errors are the DRAM's."""
    for point in profile.operating_points():
        controls = [record.control for record in profile.find(point) if record.control is not None]
        wrong, bits = sum(control.path_errors for control in controls), sum(control.path_reads for control in controls)
        if wrong:
            console.print(
                f"{point}: {wrong} of {bits} bits were wrong between DRAM and FPGA, in rows long open at nominal tRCD; "
                "errors at this supply are not short activation's alone",
                soft_wrap=True,
            )


def points_at(profile: Profile, vdd_mv: int | None, trcd_ps: int | None, every: bool = False) -> list[PointRecord]:
    """Points of the one operating point that was asked for: of those that fit, the one with most errors."""
    records = [
        record
        for record in profile.points
        if vdd_mv in (None, record.point.vdd_mv) and trcd_ps in (None, record.point.trcd_ps)
    ]
    if not records:
        raise PlanError(f"{profile.path} holds no point at {vdd_mv} mV, {trcd_ps} ps; `eden profile show` lists them")
    return records if every else profile.find(max(records, key=lambda record: record.errors).point)


def _show_groups(profile: Profile, by: By, records: list[PointRecord]) -> None:
    for condition in WriteCondition:
        here = [record for record in records if record.write_condition == condition]
        where = "all operating points" if by is By.OPERATING_POINT else str(records[0].point)
        title = f"{where}, written at: {condition.value.replace('_', ' ')}"
        if here and by is By.ROUNDS:
            found = statistics.stability(profile, here)
            total = int(found.cells.sum())
            rows = [[f"{k} of {found.rounds}", f"{n}", f"{n / total:.2%}"] for k, n in enumerate(found.cells) if n]
            table(f"{title}: failing cells by how often they failed", ["rounds", "cells", "share"], rows)
            every = found.every_round
            console.print(
                f"  a cell that failed in one round fails in another: {found.again:.2%}; "
                f"in every round: {every.ber:.2%} ({every.low:.2%} .. {every.high:.2%})"
            )
        elif here:
            group: statistics.Group = "wordline_block" if by is By.ROW_BLOCK else by.value  # type: ignore[assignment]
            columns = [by.value.replace("_", " "), "errors", "trials", "BER", "95 %"]
            groups, worst = 0, list[tuple[Any, statistics.BerEstimate]]()
            for part in statistics.ber_tables(profile, here, group):
                groups += len(part)
                worst += part.worst(SHOWN).items()
            worst.sort(key=lambda item: -item[1].ber)
            rows = [
                [
                    *(_group_name(profile.geometry, by, key), f"{b.errors}", f"{b.trials}"),
                    *(f"{b.ber:.3e}", f"{b.low:.2e} .. {b.high:.2e}"),
                ]
                for key, b in worst[:SHOWN]
            ]
            table(title + (f": the worst {SHOWN} of {groups}" if groups > SHOWN else ""), columns, rows)


def _group_name(geometry: Geometry, by: By, key: Any) -> str:
    if by is By.ROW_BLOCK:
        bank, row = divmod(key, geometry.rows)
        return f"bank {bank}, rows from {row}"
    if by is By.BITLINE:
        bank, line = divmod(key, geometry.bitlines)
        subarray, line = divmod(line, geometry.row_bits)
        column, dq = divmod(line, geometry.data_width)
        return f"bank {bank}, subarray {subarray}, column {column}, DQ {dq}"
    return str(key)


@profile_app.command()
def compare(
    first: ProfilePath,
    second: Annotated[Path, typer.Argument(help="Another one: other rounds, temperature, age, DIMM.")],
) -> None:
    """Which cells fail in both of two profiles, at each operating point that both have tested in the same way.

    "expected" is how many would if the two had nothing to do with each other.
    """
    a, b = Profile.open(first), Profile.open(second)
    rows = []
    for point, pairs in statistics.comparable(a, b).items():
        found = statistics.overlap(a, b, pairs)
        again = found.again
        rows.append(
            [
                *(str(point), f"{found.first_ber.ber:.2e}", f"{found.second_ber.ber:.2e}"),
                *(f"{found.first}", f"{found.second}", f"{found.both}", f"{found.expected_both:.1f}"),
                *(f"{found.jaccard:.3f}", f"{again.ber:.3f} ({again.low:.3f} .. {again.high:.3f})"),
            ]
        )
    module_a, module_b = a.header.module, b.header.module
    same = "one module" if module_a == module_b else f"{module_a.serial_number} and {module_b.serial_number}"
    columns = ["VDD, tRCD", "BER", "BER of 2nd", "cells", "cells of 2nd", "both", "expected", "Jaccard", "again in 2nd"]
    table(f"{same}: failing cells, each pattern anew", columns, rows)


@profile_app.command()
def surface(
    profile: ProfilePath,
    vdd_mv: Annotated[int, typer.Option(min=1, max=3000, help="VDD, mV.")],
    trcd_ps: Annotated[int, typer.Option(min=1, max=200_000, help="tRCD, ps.")],
    write: Annotated[WriteCondition, typer.Option(help="Where the data were written.")] = WriteCondition.NOMINAL,
    bank: Annotated[int | None, typer.Option(help="Of this bank; default: of all banks together.")] = None,
) -> None:
    """The BER at any VDD and tRCD between measured ones, with its interval, and how far each tRCD is clean.

    A point that was not measured lies between the rates of milder and harsher ones; outside them nothing is claimed.
    """
    known = BerSurface.of(Profile.open(profile), write, bank=bank)
    value = known.at(OperatingPoint(vdd_mv=vdd_mv, trcd_ps=trcd_ps))
    rate = "unknown" if np.isnan(value.ber) else f"{value.ber:.3g}"
    console.print(
        f"{value.point}, written at {write.value.replace('_', ' ')}: BER {rate}, {value.low:.3g} .. {value.high:.3g} "
        f"(95 %), {'measured' if value.measured else 'between measured points'}"
    )
    rows = [
        [f"{trcd / 1000:g} ns", *(f"{limit} mV" if limit else "none measured" for limit in limits)]
        for trcd, limits in known.clean_limits().items()
    ]
    table("clean down to", ["tRCD", "lowest clean VDD", "highest failing VDD"], rows)


@profile_app.command()
def export(
    profile: ProfilePath,
    file: Annotated[
        Path, typer.Argument(help="NAME.csv, .parquet (flat tables), .npz (NumPy arrays), or .zip (the whole profile).")
    ],
) -> None:
    """Write a profile as tables for other programs, or as one file to hand over."""
    for written in exchange.export(Profile.open(profile), file):
        console.print(str(written))


@profile_app.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(help="NAME.zip, as `eden profile export` writes it; or the CSV of the SIGMETRICS'16 study."),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to make of a .zip; NAME.parquet to make of a .csv.")],
) -> None:
    """Unpack a profile that someone handed over, and check every point of it; or bring in published error rates.

    The DRAM latency-variation study (Chang et al., SIGMETRICS 2016) has rates only, without addresses: it becomes a
    table, not a profile, and what it does not say stays missing.
    """
    if file.suffix == ".csv":
        console.print(f"{import_latency_study(file, out)} tests: {out}")
        return
    imported = exchange.import_profile(file, out)
    console.print(f"{len(imported.points)} points: {out}")


@profile_app.command()
def schema() -> None:
    """Print the JSON Schema of a profile's header and of the record of a point."""
    print(json.dumps(json_schema(), indent=2))
