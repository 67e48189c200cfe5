"""`eden scan`, `eden profile …` and `eden fit`: from a board to an error profile and its error models."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from host.cli.cliffs import show_cliffs
from host.cli.console import console, table
from host.cli.dry_run import dry_run as show_dry_run
from host.cli.opening import open_shown
from host.cli.plan import load_plan, named_board
from host.cli.rail import RecordOption
from host.cli.scan_view import scan_view
from host.cli.together import scan_together
from host.scan import scan as run_scan
from profiles import exchange, plots, statistics
from profiles.errors import FitError, PlanError
from profiles.fit import FitReport
from profiles.fit import fit as fit_models
from profiles.geometry import Geometry
from profiles.latency_study import import_latency_study
from profiles.schema import OperatingPoint, PointRecord, WriteCondition, json_schema
from profiles.storage import Profile
from profiles.surface import BerSurface

ProfilePath = Annotated[Path, typer.Argument(help="Profile folder, as `eden scan` writes it.")]
PlanPath = Annotated[Path, typer.Argument(help="Plan (TOML), e.g. plans/default.toml.")]

profile_app = typer.Typer(no_args_is_help=True, help="Look at an error profile, and hand it over.")


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
    supply: Annotated[
        list[Path] | None,
        typer.Option(
            help="File that names what feeds the DRAM; a mock or simulated board brings its own supply. Of several "
            "boards: once for each, in the same order."
        ),
    ] = None,
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
        _show_groups(opened, by, _chosen(opened, vdd_mv, trcd_ps, every=by is By.OPERATING_POINT))
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


def _chosen(profile: Profile, vdd_mv: int | None, trcd_ps: int | None, every: bool = False) -> list[PointRecord]:
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
def plot(
    profile: ProfilePath,
    out: Annotated[Path, typer.Option(help="Folder for the pictures (PNG).")] = Path("build/plots"),
    vdd_mv: Annotated[int | None, typer.Option(help="VDD of the maps; default: the point with most errors.")] = None,
    trcd_ps: Annotated[int | None, typer.Option(help="tRCD of the maps.")] = None,
    bank: Annotated[int | None, typer.Option(help="Bank to look into, row by bitline.")] = None,
    rows: Annotated[str | None, typer.Option(help="Rows of that bank, FIRST:END.")] = None,
    bitlines: Annotated[str | None, typer.Option(help="Bitlines, column x DQ width + DQ, FIRST:END.")] = None,
) -> None:
    """Draw BER over VDD and tRCD, where the errors lie (bank, row, bitline, DQ lane), and error models against them."""
    if bank is None and (rows or bitlines):
        raise PlanError("--rows and --bitlines look into one bank; give --bank too")
    opened = Profile.open(profile)
    records = _chosen(opened, vdd_mv, trcd_ps)
    out.mkdir(parents=True, exist_ok=True)
    figures = {
        "ber.png": plots.plot_ber_surface(opened),
        "map.png": plots.plot_ber_map(opened),
        "where.png": plots.plot_spatial(opened, records),
    }
    if bank is not None:
        spans = (_span("--rows", rows), _span("--bitlines", bitlines))
        figures["zoom.png"] = plots.plot_zoom(opened, records, bank, *spans)
    conditions = sorted({record.write_condition for record in records})
    for condition in conditions:
        try:
            figures[f"models_{condition.value}.png"] = plots.plot_model(
                fit_models(opened, records[0].point, condition), opened
            )
        except FitError as error:
            console.print(f"no picture of models, {condition.value.replace('_', ' ')} writes: {error}")
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=120)
        console.print(str(out / name))


def _span(option: str, text: str | None) -> tuple[int, int] | None:
    """FIRST:END as numbers; None stays None. Raises PlanError."""
    if text is None:
        return None
    try:
        first, end = (int(part) for part in text.split(":"))
    except ValueError as error:
        raise PlanError(f"{option} is '{text}'; give two numbers as FIRST:END, e.g. 0:64") from error
    return first, end


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


def fit(
    profile: ProfilePath,
    vdd_mv: Annotated[int, typer.Option(min=1, max=3000, help="VDD of the operating point, mV.")],
    trcd_ps: Annotated[int, typer.Option(min=1, max=200_000, help="tRCD of the operating point, ps.")],
    write: Annotated[WriteCondition, typer.Option(help="Where the data were written.")] = WriteCondition.NOMINAL,
    out: Annotated[Path | None, typer.Option(help="File for the chosen model (Parquet).")] = None,
    anywhere: Annotated[
        bool,
        typer.Option(
            "--anywhere",
            help="Write the best of the models that are the same at every address (0 and 3): what a network is trained "
            "with before it is mapped, and far quicker to draw from.",
        ),
    ] = False,
) -> None:
    """Fit Error Models 0-3, and wordlines, bitlines and data together (4), to one operating point, and choose.

    Needs a point with errors: `eden profile show` lists them.
    """
    point = OperatingPoint(vdd_mv=vdd_mv, trcd_ps=trcd_ps)
    report = fit_models(Profile.open(profile), point, write)
    show_fit(report, f"{point}, written at: {write.value.replace('_', ' ')}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        model = report.anywhere if anywhere else report.model
        model.save(out)
        console.print(f"Model {model.number}: {out}")


def show_fit(report: FitReport, title: str) -> None:
    """Print the table of likelihoods, the choice marked."""
    rows = [
        [
            f"{'→' if number == report.chosen else ' '} Model {number}",
            f"{entry.log_likelihood:.1f}",
            f"{entry.parameters}",
            f"{entry.bic:.1f}",
            f"{entry.model.ber():.3e}",
            f"{entry.p_value:.2g}",
        ]
        for number, entry in sorted(report.fits.items())
    ]
    table(title, ["error model", "log likelihood", "parameters", "BIC", "BER", "p of fit"], rows)
    for number, reason in report.unavailable.items():
        console.print(f"  Model {number}: {reason}")
    if report.near_tie:
        console.print("  Model 0 is within a near tie of the best, and the cheapest to inject.")
    if report.tied:
        others = ", ".join(str(number) for number in report.tied)
        console.print(
            f"  These data cannot tell Model {report.chosen} from {others}; scan more rows, rounds or patterns."
        )
    for name, test in report.best.tests.items():
        if test.p_value < 0.001:
            console.print(
                f"  Model {report.chosen} does not describe the {name}: chi-square {test.dispersion:.3g} times what it "
                "expects."
            )
