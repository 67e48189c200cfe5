"""`eden profile plot`: pictures of an error profile."""

from pathlib import Path
from typing import Annotated

import typer

from host.cli.console import console
from host.cli.profile import ProfilePath, points_at
from profiles import plots
from profiles.errors import FitError, PlanError
from profiles.fit import fit
from profiles.storage import Profile


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
    records = points_at(opened, vdd_mv, trcd_ps)
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
                fit(opened, records[0].point, condition), opened
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
