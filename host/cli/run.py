"""`eden run`: every stage from one plan, resumable; and `eden report`."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from eden import saving
from eden.approximate import ApproximateNetwork
from eden.certificate import Certificate
from eden.datasets import Split
from eden.inference import Prediction, agrees, evaluate, predict_accuracy
from eden.layers import layers_of
from eden.mapping import MAPPING_VERSION, DramMapping
from eden.precision import Precision
from eden.seeds import derive_seed
from host.board import Board
from host.cli import stages
from host.cli.console import console, progress_bar, table
from host.cli.fit import show_fit
from host.cli.inference import Inference, infer_on_boards
from host.cli.modules import AT_POINT, NOMINAL, Footprint, Modules, check_access, fits_at
from host.cli.opening import open_shown
from host.cli.plan import NetworkPlan, PlanPath, RunPlan, load_plan, named_board
from host.cli.rail import RecordOption, SupplyOption
from host.cli.rail_power import rail_power
from host.cli.report import SUMMARY_COLUMNS, summary_rows, write_html
from host.cli.scan_view import scan_view
from host.cli.search import BASELINE, DRAM_RESULTS, MAPPING, NETWORK, NEXT_MAPPING, SearchTask, search_all
from host.scan import scan
from profiles import plots
from profiles.errors import FitError, ProfileError
from profiles.fit import FitReport
from profiles.progress import Progress
from profiles.schema import OperatingPoint
from profiles.storage import Profile

REPORT_VERSION = 2
PREDICTION_DRAWS = 20


def run(
    plan: PlanPath,
    board: Annotated[str | None, typer.Option(help="Board, e.g. mock:C:7; instead of the plan's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; instead of the plan's.")] = None,
    supply: SupplyOption = None,
    record: RecordOption = None,
) -> None:
    """All stages from one plan: scan, fit, train, boost, tolerance, map, infer, report.

    Ends in a table and the path of the report. Stop it at any time; the same command goes on where it was.
    """
    stages.use_one_thread()
    settings = load_plan(plan)
    named = named_board(board, settings)
    settings = settings.model_copy(update={"board": named, "output": out or settings.output})
    opened = open_shown(named, supply, record)
    try:
        content = _run(settings, opened)
    finally:
        opened.close()
    table("Accuracy with every weight and IFM in DRAM", SUMMARY_COLUMNS, summary_rows(content))
    for results in content["precisions"].values():
        console.print(results["boost_sentence"])
        console.print(results["certificate_sentence"])
    console.print(f"report: {settings.output / 'report.html'}")


def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of `eden run`.")] = Path("build/run"),
) -> None:
    """Write report.html again from a finished run's report.json and profile."""
    file = folder / "report.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if (content["format"], content["version"]) != ("eden-run", REPORT_VERSION):
            raise ValueError(content["format"], content["version"])
        profile = Profile.open(folder / "profile")
        _write_report(folder, content, profile, _fit_reports(profile, content))
    except FileNotFoundError as error:
        raise ProfileError(f"no report at {file}; run `eden run` first") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProfileError(f"{file} is no report of this toolkit, or is damaged; run `eden run` again") from error
    console.print(str(folder / "report.html"))


def _run(settings: RunPlan, board: Board) -> dict[str, Any]:
    check_access("the plan", settings.scan.access_mode)
    out, network_plan = settings.output, settings.network
    needed = max(stages.named_network_cells(network_plan.name, p, network_plan.batch) for p in network_plan.precisions)
    plan = stages.with_room(settings.scan, board.geometry, needed)
    with scan_view(plan) as watch:
        profile = scan(board, plan, out / "profile", watch, waiting=watch.waiting)
    with progress_bar("fit error models"):
        reference = stages.reference_point(profile)
        fits = fits_at(profile, reference)
    for condition, fitted in fits.items():
        show_fit(fitted, f"{reference}, written at: {condition.value.replace('_', ' ')}")
    data = stages.dataset(network_plan.name)
    content: dict[str, Any] = {
        "format": "eden-run",
        "version": REPORT_VERSION,
        "target_drop_pct": network_plan.target_drop_pct,
        "n_test": len(data.test),
        "nominal_vdd_mv": board.module.nominal_vdd_mv,
        "nominal_trcd_ps": board.module.nominal_trcd_ps,
        "board": settings.board,
        "module": board.module.model_dump(mode="json"),
        "network": network_plan.name,
        "data": data.name,
        "seed": network_plan.seed,
        "reference_point": reference.model_dump(),
        "precisions": {},
        "notes": _notes(board, network_plan),
    }
    fits[AT_POINT].anywhere.save(out / "model.parquet")
    tasks = [
        SearchTask(
            network_plan, p, out / p.value, out / "profile", out / "model.parquet", _digest(settings, profile, p)
        )
        for p in network_plan.precisions
    ]
    for task, found in zip(tasks, search_all(tasks), strict=True):
        checked = stages.kept_results(task.folder / DRAM_RESULTS, task.key)
        if checked is None:
            checked = _final_check(task, found, board, profile)
            stages.keep_results(task.folder / DRAM_RESULTS, task.key, checked)
        content["precisions"][task.precision.value] = found | checked
    stages.save_json(out / "report.json", content)
    _write_report(out, content, profile, _fit_reports(profile, content))
    return content


def _digest(settings: RunPlan, profile: Profile, precision: Precision) -> str:
    """What a precision's results depend on, besides the code."""
    plan = settings.network.model_dump(mode="json", exclude={"precisions"})
    made_from = [version("eden-dram"), REPORT_VERSION, MAPPING_VERSION, plan, precision.value, stages.digest(profile)]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def _final_check(task: SearchTask, found: dict[str, Any], board: Board, profile: Profile) -> dict[str, Any]:
    """The one look at the test split: on DRAM at the chosen point and at the next, and what models predict."""
    test, precision = stages.dataset(task.plan.name).test, task.precision
    baseline, network = stages.load_network(task.folder / BASELINE), stages.load_network(task.folder / NETWORK)
    modules = Modules([profile])
    place = modules.footprint(DramMapping.load(task.folder / MAPPING), network)
    point = place.point
    unboosted = evaluate(baseline, test.images, test.labels)
    clean = unboosted.accuracy
    target, epoch = clean - task.plan.target_drop_pct / 100, len(profile.points)
    with progress_bar(f"{precision}: DRAM at {point}") as progress:
        on_dram = _on_dram(board, network, place, test, epoch, progress)
    measured = on_dram.accuracy
    with progress_bar(f"{precision}: predict"):
        by_model = by_cells = _predict(network, test, place.memory, place)
        chosen, predicting = None, "No error model is determined there; the map of cells"
        with contextlib.suppress(FitError):  # too few errors, or none
            fits = modules.fits(place.mapping)
            by_model = _predict(network, test, stages.fitted_memory(fits, place, modules), place)
            at_point, at_nominal = (fits[0, point][condition].chosen for condition in (AT_POINT, NOMINAL))
            chosen, predicting = at_point, f"Error Model {at_nominal} (weights) and {at_point} (IFMs)"
    drop, seed = task.plan.target_drop_pct / 100, derive_seed(task.plan.seed, "certificate")
    with progress_bar(f"{precision}: certify") as progress:
        certificate = stages.certificate_there(
            network, place, test, unboosted.correct_images, drop, seed, progress=progress
        )
    results = {
        "baseline_accuracy": clean,
        "accuracy_on_dram": measured.accuracy,
        "accuracy_low": measured.low,
        "accuracy_high": measured.high,
        "target_met": measured.accuracy >= target,
        "vdd_mv": point.vdd_mv,
        "trcd_ps": point.trcd_ps,
        "ber": place.mean_ber,
        "ber_observed": on_dram.total_flips / on_dram.total_bits_read,
        "flips_read": on_dram.total_flips,
        "bits_read": on_dram.total_bits_read,
        "error_model": chosen,
        "error_model_sentence": predicting,
        "accuracy_predicted": by_model.mean,
        "predicted_low": by_model.low,
        "predicted_high": by_model.high,
        "prediction_agrees": agrees(measured, by_model),
        "accuracy_predicted_cells": by_cells.mean,
        "predicted_cells_low": by_cells.low,
        "predicted_cells_high": by_cells.high,
        "cells_prediction_agrees": agrees(measured, by_cells),
        "certificate": certificate.model_dump(mode="json") if certificate else None,
        "certificate_sentence": _certificate_sentence(task, certificate, found["shown_on_validation"]),
        "boost_sentence": _boost_sentence(precision, found),
        "tensors": [
            {
                "name": spec.name,
                "kind": spec.kind,
                "bits": spec.bits(place.mapping.images),
                "ber_tolerated": (found["ber_tolerated_tensors"] or {}).get(spec.name),
                "partition": ", ".join(place.mapping.placements[spec.name].partitions),
                "vdd_mv": point.vdd_mv,
                "trcd_ps": point.trcd_ps,
                "ber": place.ber[spec.name],
                "flips_read": on_dram.flips.get(spec.name, 0),
            }
            for spec in network.tensors()
        ],
    }
    results["savings"] = _savings(network, task.plan.name, point, board)
    power = rail_power(profile, point)
    results["rail_power"] = asdict(power) if power else None
    return results | _next_point(task, board, profile, network, target)


def _savings(network: ApproximateNetwork, name: str, point: OperatingPoint, board: Board) -> list[dict[str, Any]]:
    """What the operating point saves, a row a platform; none for a network whose numbers take other than 8 or 32 bits.

    Platforms' speeds are known for these only.
    """
    if network.precision not in saving.PRECISIONS:
        return []
    module = board.module
    cut = saving.OperatingPoint(
        vdd_mv=module.nominal_vdd_mv - point.vdd_mv, trcd_ps=module.nominal_trcd_ps - point.trcd_ps, source="measured"
    )
    layers = layers_of(network.module, stages.dataset(name).test.images[:1])
    cells = saving.of_run(name, layers, network.precision, cut, module.nominal_vdd_mv, module.dram_type)
    return [saving.row(cell) for cell in cells]


def _next_point(
    task: SearchTask, board: Board, profile: Profile, network: ApproximateNetwork, target: float
) -> dict[str, Any]:
    """The same network on DRAM at the next harsher point of the grid."""
    file = task.folder / NEXT_MAPPING
    if not file.exists():
        return {"next_point": None, "next_point_accuracy": None, "next_point_fails": None}
    place = Modules([profile]).footprint(DramMapping.load(file), network)
    point = place.point
    with progress_bar(f"{task.precision}: DRAM at {point}") as progress:
        test, epoch = stages.dataset(task.plan.name).test, len(profile.points) + 1
        measured = _on_dram(board, network, place, test, epoch, progress).accuracy
    return {
        "next_point": {"vdd_mv": point.vdd_mv, "trcd_ps": point.trcd_ps, "ber": place.mean_ber},
        "next_point_accuracy": measured.accuracy,
        "next_point_fails": measured.accuracy < target,
    }


def _on_dram(
    board: Board, network: ApproximateNetwork, place: Footprint, test: Split, epoch: int, progress: Progress
) -> Inference:
    return infer_on_boards([board], network, place.mapping, test, epoch, progress, plan=place.plan)


def _predict(network: ApproximateNetwork, test: Split, memory_of: Callable[[int], Any], place: Footprint) -> Prediction:
    return predict_accuracy(network, memory_of, test.images, test.labels, PREDICTION_DRAWS, place.mapping.images)


def _certificate_sentence(task: SearchTask, certificate: Certificate | None, shown: bool | None) -> str:
    target = f"{task.plan.target_drop_pct:g} %"
    if certificate is None:
        return f"{task.precision}: the test images are too few to show a loss below {target} of others like them."
    rung = certificate.rungs[0]
    verdict = f"which shows the loss to be below {target}" if rung.holds else f"which does not show it below {target}"
    return (
        f"{task.precision}: on this DIMM's map {100 * rung.drop:.2f} % of the test images are lost, and of images like "
        f"them, with reads drawn anew, {100 * rung.drop_high:.2f} % at most (95 % confidence), {verdict}."
    ) + (
        " Validation images showed it at no operating point: this is the harshest by its mean."
        if shown is False
        else ""
    )


def _boost_sentence(precision: Precision, found: dict[str, Any]) -> str:
    before, after, control = (found[f"ber_tolerated_{arm}"] for arm in ("before", "after", "control"))
    figures = (
        f"{precision}: tolerable BER {before:.1e} before, {after:.1e} after curricular retraining "
        f"({after / before:.1f}x), {control:.1e} after the same epochs without errors ({control / before:.1f}x), "
        "bounding on in all three."
    )
    if after <= max(before, control):
        return figures + " The short schedule of this run did not raise the tolerance beyond its control."
    return figures


def _notes(board: Board, plan: NetworkPlan) -> list[str]:
    notes = [
        "Every choice was made on the validation split; the test split was used for the figures of this report only.",
        "Tolerable BER: mean accuracy over draws of errors on validation images; each draw is another module of the "
        "fitted model.",
        "IFMs are written over what the image before left, most of it equal; the scan writes over the complement, so "
        "that the profile overstates failed writes of IFMs.",
        "The error model's prediction draws new maps of weak cells, at the rate measured for each row.",
        "What is saved follows from the datasheet's currents, each platform's traffic and JEDEC's timings; the law of "
        "VDD and the share of time that a system waits for DRAM are assumptions: each figure stands in its band.",
        "Intervals of an accuracy are Clopper-Pearson at 95 % over images; predictions are where 95 % of single runs "
        "are expected.",
        "Weights were written once at nominal VDD and tRCD and read for every batch; IFMs were written and read at the "
        "operating point; every access was one burst per activation, as characterised.",
    ]
    notes.append(
        "Bits that matter were placed on cells that the profile found to hold, with some 1 % of metadata in reliable "
        "memory; what each tensor tolerates decided nothing, and nothing is said of how the map of weak cells ages."
        if plan.significance
        else "A tensor may lie where the BER exceeds what it tolerates: tolerances guide the placement, and the "
        "accuracy of the whole network over the profile's own cells decides."
    )
    if board.seed is not None:
        notes.append(
            "The board is a software mock. Its chips follow published measurements where there are any; the joint "
            "effect of VDD and tRCD, bit positions, write failures and persistence are assumptions "
            "(host/chip_presets.py)."
        )
    return notes


def _fit_reports(profile: Profile, content: dict[str, Any]) -> list[FitReport]:
    points = {OperatingPoint(**content["reference_point"])}
    modelled = [r for r in content["precisions"].values() if r["error_model"] is not None]
    points |= {OperatingPoint(vdd_mv=r["vdd_mv"], trcd_ps=r["trcd_ps"]) for r in modelled}
    ordered = sorted(points, key=lambda p: (-p.vdd_mv, p.trcd_ps))
    return [report for point in ordered for report in fits_at(profile, point).values()]


def _write_report(folder: Path, content: dict[str, Any], profile: Profile, fits: list[FitReport]) -> None:
    reference = OperatingPoint(**content["reference_point"])
    figures = [
        ("Bit error rate over VDD and tRCD, with 95 % intervals.", plots.plot_ber_surface(profile)),
        ("The same as a map; white was measured and clean.", plots.plot_ber_map(profile)),
        (f"Where the errors lie at {reference}.", plots.plot_spatial(profile, profile.find(reference))),
        ("The chosen error model against the data.", plots.plot_model(fits[0], profile)),
    ]
    rows = [
        [
            *(
                str(f.point),
                f.write_condition.value.replace("_", " "),
                f"Model {number}",
                f"{entry.log_likelihood:.0f}",
            ),
            *(f"{entry.parameters}", f"{entry.bic:.0f}", "chosen" if number == f.chosen else ""),
        ]
        for f in fits
        for number, entry in sorted(f.fits.items())
    ]
    write_html(folder / "report.html", content, figures, rows)
