"""`eden fit`: from an error profile to error models."""

from pathlib import Path
from typing import Annotated

import typer

from host.cli.console import console, table
from host.cli.profile import ProfilePath
from profiles.fit import FitReport
from profiles.fit import fit as fit_models
from profiles.schema import OperatingPoint, WriteCondition
from profiles.storage import Profile


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
