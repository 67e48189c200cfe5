"""`eden train`, `boost`, `tolerance`, `map` and `infer`: one stage at a time, with files in between."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from eden.approximate import ApproximateNetwork
from eden.boosting import boost as boost_network
from eden.boosting import default_boosting
from eden.bounding import Bounding
from eden.certificate import CERTIFICATE_SAMPLING, Certificate, certify, scaled_ladder
from eden.checkpoint import Checkpoint
from eden.datasets import Split
from eden.inference import Accuracy, agrees, evaluate, predict_accuracy
from eden.mapping import Cost, DramMapping, vdd_then_trcd, weighted
from eden.memory import ApproximateMemory
from eden.networks import NETWORKS
from eden.optimal import Optimum
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.significance import SignificancePlan
from eden.tolerance import CoarseTolerance, MemoryAt, Sampling, coarse, fine
from eden.training import train_baseline
from host.cli import stages
from host.cli.console import console, progress_bar, table
from host.cli.inference import Fallback, Inference, infer_on_boards
from host.cli.modules import Footprint, Modules
from host.cli.opening import opened_together
from host.cli.own_map import OwnMap
from host.cli.rail import RecordOption, SuppliesOption
from profiles.error_models import load_error_model
from profiles.errors import FitError, NetworkError, PlanError
from profiles.storage import Profile

NetworkPath = Annotated[Path, typer.Argument(help="Network, as `eden train` or `eden boost` writes it.")]
ModelPath = Annotated[Path, typer.Option(help="Error model, as `eden fit --out` writes it.")]
MAP_DRAWS = 5
SEARCH_IMAGES = 1000
CERTIFIED_SHARES = (1 / 8, 1 / 4, *(2 ** (k / 4) for k in range(-6, 5)))  # of the rates searched for
INFERENCE_EPOCH = 1 << 32  # apart from those of any scan
Batch = Annotated[int, typer.Option(min=1, help="Images in DRAM at a time.")]
TargetDrop = Annotated[float, typer.Option(help="Accuracy that may be lost, percent of images.")]
Baseline = Annotated[
    Path | None, typer.Option(help="Unboosted network that the loss counts from; default: the network itself.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


def train(
    out: Annotated[Path, typer.Option(help="File to write (safetensors).")],
    network: Annotated[str, typer.Option(help=f"One of: {', '.join(NETWORKS)}.")] = "lenet",
    precision: Annotated[Precision, typer.Option(help="Stored number format.")] = Precision.INT8,
    per_channel: Annotated[
        bool, typer.Option("--per-channel", help="A scale for each output channel of a weight, in reliable memory.")
    ] = False,
    bounding: Annotated[
        Bounding, typer.Option(help="What becomes of values read outside their plausible range, wherever it then runs.")
    ] = Bounding.ZERO,
    seed: Seed = 1,
) -> None:
    """Train a baseline network on reliable memory."""
    stages.use_one_thread()
    if network not in NETWORKS:
        raise NetworkError(f"'{network}' is no network; use one of: {', '.join(NETWORKS)}")
    with progress_bar("train") as progress:
        trained = train_baseline(
            network, precision, stages.dataset(network), seed, per_channel=per_channel, progress=progress
        )
    trained.bounding = bounding
    trained.save(out, network)
    split = stages.dataset(network).validation
    accuracy = evaluate(trained, split.images, split.labels)
    console.print(f"validation accuracy {100 * accuracy.accuracy:.1f} % of {accuracy.total} images: {out}")
    console.print(_metadata_sentence(trained, 1))


def boost(
    network: NetworkPath,
    out: Annotated[Path, typer.Option(help="File for the boosted network.")],
    model: Annotated[
        Path | None, typer.Option(help="Error model, as `eden fit --out` writes it: holds for any module of its kind.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Profile of the module to run on, instead: its own cells, and good for it alone."),
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="Retrain alike, but without errors: what remains is what they add.")
    ] = False,
    target_drop: TargetDrop = 1.0,
    batch: Batch = 50,
    seed: Seed = 1,
) -> None:
    """Raise a network's error tolerance by curricular retraining against a module's errors (EDEN, section 1).

    With an error model every read while retraining meets another map of its kind; with a profile all meet cells of that
    module, those of the rows with fewest errors at its harshest operating point. (`eden map` may place a tensor
    elsewhere.) Tolerances before and after are measured by the same errors.

    Progress is kept after each epoch, beside OUT: stopped in any way, the same command goes on from there.
    """
    stages.use_one_thread()
    before, name = stages.load_network(network), stages.network_name(network)
    data, drop = stages.dataset(name), target_drop / 100
    errors = _errors_to_boost_for(before, model, profile, batch)
    clean = evaluate(before, data.validation.images, data.validation.labels).accuracy

    def tolerated(network: ApproximateNetwork, when: str) -> float:
        with progress_bar(f"tolerance {when}") as progress:
            found = coarse(
                *(network, errors.tested, data.validation, drop, clean, Sampling(batch=batch)),
                start_ber=min(1e-3, errors.highest_ber),
                highest_ber=errors.highest_ber,
                progress=progress,
            )
        return errors.measured(found.ber)

    settings, tolerated_before = default_boosting(before.precision, name), tolerated(before, "before")
    if profile is not None:
        if not tolerated_before:
            raise PlanError(
                f"{network} tolerates none of the profile's operating points that have errors; scan a finer grid where "
                "errors begin"
            )
        settings = replace(settings, training=replace(settings.training, batch=batch))
    made_from = [hashlib.sha256(network.read_bytes()).hexdigest(), errors.made_from, control, drop, batch, seed]
    checkpoint = Checkpoint(out.with_name(f".{out.name}.boosting"), f"{made_from} {settings}")
    with progress_bar("control" if control else "boost") as progress:
        boosted = boost_network(
            *(before, errors.trained_with, data, tolerated_before, drop, clean, seed, settings, progress),
            control=control,
            checkpoint=checkpoint,
        )
    boosted.network.save(out, name)
    if boosted.kept_epoch < 0:
        console.print("no epoch kept the clean accuracy within the drop allowed: the network is as it was")
    tolerated_after = tolerated(boosted.network, "after")
    console.print(f"tolerable BER {tolerated_before:.2e} before, {tolerated_after:.2e} after: {out}")
    checkpoint.remove()


@dataclass(frozen=True)
class _Errors:
    """What to retrain against, and to measure tolerances with.

    Attributes:
        trained_with, tested: memories of any rate; in training, of a model, every read meets another map.
        measured: the rate that a memory has where one was asked for.
        highest_ber: the highest to test.
        made_from: what they follow from.
    """

    trained_with: MemoryAt
    tested: MemoryAt
    measured: Callable[[float], float]
    highest_ber: float
    made_from: str


def _errors_to_boost_for(network: ApproximateNetwork, model: Path | None, profile: Path | None, batch: int) -> _Errors:
    if model is not None and profile is None:
        fitted = load_error_model(model)
        fresh, same = stages.model_memory(fitted, fresh_map=True), stages.model_memory(fitted)
        made_from = hashlib.sha256(model.read_bytes()).hexdigest()
        return _Errors(fresh, same, lambda ber: ber, min(0.25, fitted.highest_ber), made_from)
    if profile is not None and model is None:
        opened = Profile.open(profile)
        own = OwnMap(opened, network, batch)
        return _Errors(own, own, own.measured_ber, own.highest_ber, stages.digest(opened))
    raise PlanError(
        "give --model (an error model: for any module of its kind) or --profile (one module's own cells), and not both"
    )


def tolerance(
    network: NetworkPath,
    model: ModelPath,
    baseline: Baseline = None,
    target_drop: TargetDrop = 1.0,
    out: Annotated[Path | None, typer.Option(help="File for the tolerances (JSON), which `eden map` needs.")] = None,
    seed: Seed = 1,
) -> None:
    """The bit error rates that a network tolerates, with a certificate (EDEN, section 2).

    Searched for on training images: one rate for the whole network, then one for each tensor. Then certified on
    validation images: the largest part of these rates, all tensors together, whose loss of accuracy is shown to be
    below the target with 95 % confidence, images and errors drawn anew, over maps of the model. Then checked on the
    test images, once, with errors that follow from the network and the rates: to ask again is no second chance.

    The certificate supposes that the network was not chosen by validation images. Boosting chooses its epoch by them;
    of a boosted network the check on test images is what holds strictly.
    """
    stages.use_one_thread()
    loaded, data = stages.load_network(network), stages.network_data(network)
    reference, fitted = stages.load_network(baseline) if baseline else loaded, load_error_model(model)
    memory_at, drop, images = stages.model_memory(fitted), target_drop / 100, data.train.first(SEARCH_IMAGES)
    sampling, clean = Sampling(seed=seed), evaluate(reference, images.images, images.labels).accuracy
    with progress_bar("coarse") as progress:
        whole = coarse(loaded, memory_at, images, drop, clean, sampling, progress=progress)
    _show_curve(whole)
    with progress_bar("fine") as progress:
        each = fine(loaded, memory_at, images, drop, clean, whole.ber, sampling, progress=progress)
    any_map, anew = stages.any_map_memory(fitted), replace(CERTIFICATE_SAMPLING, seed=seed)
    right = evaluate(reference, data.validation.images, data.validation.labels)
    ladder = scaled_ladder(each.ber, CERTIFIED_SHARES, fitted.highest_ber)
    with progress_bar("certify") as progress:
        certificate = certify(
            loaded, ladder, any_map, data.validation, right.correct_images, drop, anew, progress=progress
        )
    final = _final_check(certificate, network, reference, any_map, drop)
    found = stages.Tolerance(
        version=2,
        target_accuracy=max(0.0, right.accuracy - drop),
        coarse=whole.ber,
        fine=each.ber,
        certificate=certificate,
        final_check=final,
    )
    _show_tolerance(found)
    if out is not None:
        stages.save_json(out, found.model_dump(mode="json"))
        console.print(str(out))


def _final_check(
    certificate: Certificate, network: Path, reference: ApproximateNetwork, memory_at: MemoryAt, drop: float
) -> Certificate | None:
    """Whether what was certified holds on the test images too; nothing in it can be chosen."""
    certified = certificate.certified
    if certified is None:
        return None
    test = stages.network_data(network).test
    digest = hashlib.sha256(network.read_bytes() + json.dumps(certified.rates, sort_keys=True).encode()).hexdigest()
    once = replace(CERTIFICATE_SAMPLING, seed=derive_seed(0, digest))
    right = evaluate(reference, test.images, test.labels).correct_images
    with progress_bar("check on test images") as progress:
        return certify(
            stages.load_network(network), [certified.rates], memory_at, test, right, drop, once, progress=progress
        )


def map_(
    network: NetworkPath,
    profile: Annotated[
        list[Path],
        typer.Argument(
            help="Profile folder, as `eden scan` writes it; more than one: of each module that may be used."
        ),
    ],
    tolerance: Annotated[Path, typer.Option(help="Tolerances, as `eden tolerance --out` writes them.")],
    out: Annotated[Path, typer.Option(help="File for the mapping (JSON).")],
    batch: Batch = 50,
    margin: Annotated[float, typer.Option(help="Points of validation accuracy above the target to ask for.")] = 0.2,
    energy: Annotated[float, typer.Option(help="Weight of DRAM energy (it goes with the square of VDD).")] = 0.0,
    latency: Annotated[float, typer.Option(help="Weight of activation latency (tRCD).")] = 0.0,
    baseline: Baseline = None,
    subarray_rows: Annotated[
        int | None,
        typer.Option(min=1, help="A tRCD for each subarray of so many rows (often 512), not for each bank."),
    ] = None,
    significance: Annotated[
        bool,
        typer.Option(
            "--significance",
            help="Place single bits instead, at one operating point, those that matter on cells that hold: takes some "
            "1 % of metadata, minutes, and `eden infer --profile`.",
        ),
    ] = False,
    seed: Seed = 1,
) -> None:
    """Place every tensor at the least cost that meets the target over the profile's own cells (EDEN, section 3).

    Cost is the weighted sum of energy and latency, or, without weights, VDD first and tRCD second. Chosen is the
    cheapest that validation images show to lose less than the target of the tolerances on the module's own map: each by
    a bound of 95 %. What holds strictly is the check on test images that follows, once: its errors follow from the
    network and the mapping, so that to ask again is no second chance. With --significance tolerances decide nothing but
    the target.

    Given the profiles of several modules, scanned by one plan, tensors go to whichever serve best: first all at one
    operating point, then, where that costs less, at a VDD for each module, each on a rail of its own (with
    --significance one for all).
    """
    if significance and (energy or latency or subarray_rows):
        raise PlanError(
            "placement by significance takes one operating point, the lowest VDD; leave out --energy, --latency and "
            "--subarray-rows, or --significance"
        )
    stages.use_one_thread()
    tolerated, loaded, modules = stages.load_tolerance(tolerance), stages.load_network(network), Modules.open(profile)
    split, target = stages.network_data(network).validation, tolerated.target_accuracy + margin / 100
    cost: Cost = weighted(energy, latency, modules.nominal) if energy or latency else vdd_then_trcd
    reference, drop = stages.load_network(baseline) if baseline else loaded, tolerated.certificate.target_drop
    if significance:
        place_at = stages.by_significance(loaded, split, modules, batch)
    else:
        place_at = stages.by_tolerances(loaded, tolerated.rates, modules, batch)
    with progress_bar("map") as progress:
        choice = stages.choose_point(loaded, place_at, modules, split, target, batch, MAP_DRAWS, seed, progress, cost)
    with progress_bar("show") as progress:
        holds = stages.shown_by(loaded, split, reference, drop, seed, progress)
        choice = stages.shown_choice(choice, holds)
        if not significance:
            choice = stages.cheaper_choice(
                *(choice, loaded, tolerated.rates, modules, split, target, MAP_DRAWS, seed, cost, subarray_rows, holds)
            )
    place = choice.footprint
    place.mapping.save(out)
    _show_modules(modules, place.mapping)
    _show_mapping(choice, tolerated)
    if not significance:
        _show_optimum(choice.optimum, subarray_rows, len(modules.profiles))
    console.print(_metadata_sentence(loaded, batch, place.plan))
    console.print(f"validation accuracy expected there: {100 * choice.predicted.mean:.1f} %; {out}")
    console.print(_certified_there(choice.footprint, network, reference, drop))


def _show_modules(modules: Modules, mapping: DramMapping) -> None:
    """Where there are several: which is which, and which is not needed."""
    used = {module for users in modules.users(mapping).values() for module in users}
    for number, profile in enumerate(modules.profiles if len(modules.profiles) > 1 else ()):
        what = "" if number in used else "; nothing lies there: mapped without its profile, its board is not needed"
        module = profile.header.module
        console.print(f"module {number + 1}: {module.serial_number} of {module.manufacturer}, {profile.path}{what}")


def _show_mapping(choice: stages.Choice, tolerated: stages.Tolerance) -> None:
    place = choice.footprint
    if place.plan is None:
        _show_pieces(place, tolerated)
    else:
        _show_layouts(place, place.plan)
    if choice.shown is None:
        console.print("chosen by its mean: validation images are too few to show that it meets the target")
    if choice.shown is False:
        console.print(
            "validation images show no operating point to meet the target: this is the cheapest whose mean does; boost "
            "the network, allow more loss, or add milder points to the grid"
        )


def _show_pieces(place: Footprint, tolerated: stages.Tolerance) -> None:
    rows = [
        [
            *(p.tensor, piece.partition, str(piece.point), f"{piece.cells / 8192:.1f}"),
            *(f"{place.ber[p.tensor]:.1e}", f"{tolerated.rates[p.tensor]:.1e}"),
        ]
        for p in place.mapping.placements.values()
        for piece in p.pieces
    ]
    table("mapping", ["tensor", "partition", "VDD, tRCD", "KiB", "BER", "tolerated"], rows)
    if tolerated.certificate.certified is None:
        console.print(
            "no part of these tolerances is certified: tensors are placed by the rates that were searched for, and "
            "only what validation and test images show of the module's own cells counts"
        )
    beyond = [name for name, ber in place.ber.items() if ber > tolerated.rates[name]]
    if beyond:
        console.print(
            f"{len(beyond)} of {len(place.ber)} tensors meet more errors than they were found to tolerate (at most "
            f"{max(place.ber[name] / max(tolerated.rates[name], 1e-12) for name in beyond):.1f} times): not all found "
            "a place within their tolerances, and the network's accuracy over the module's cells decided"
        )


def _show_layouts(place: Footprint, plan: SignificancePlan) -> None:
    rows = [
        [
            *(name, ", ".join(placement.partitions), str(len(placement.pieces))),
            *(f"{placement.reserved / 8192:.1f}", f"{place.ber[name]:.1e}"),
        ]
        for name, placement in place.mapping.placements.items()
    ]
    table(f"placed by significance at {place.point}", ["tensor", "partitions", "pieces", "KiB", "BER"], rows)
    unseen = max(sum(rates) / 2 for rates in place.unseen.values())
    console.print(
        f"cells that the scan did not see fail do so at a BER of {unseen:.1e} or less, by Good and Turing's estimate: "
        "bits that matter lie there, and all that is said of accuracy counts on it"
        + ("; more rounds in the plan make it less" if unseen else "")
    )
    layout = next(iter(plan.layouts.values()))
    if layout.costly_bits < layout.precision.bits:
        console.print(f"the {layout.costly_bits} of {layout.precision.bits} bits that cost most have the best rows")


def _show_optimum(optimum: Optimum | None, subarray_rows: int | None, modules: int) -> None:
    parts = "a tRCD for each " + ("subarray" if subarray_rows else "bank")
    if modules > 1:
        parts = f"a VDD for each module and {parts}"
    if optimum is None:
        console.print(f"one operating point: {parts} does not fit, costs no less, or is not shown to hold")
        return
    if optimum.by_means:
        console.print(
            f"{parts}: by EDEN's greedy Algorithm 1, which counts the mean over a tensor's rows; no mapping that keeps "
            "to what each tensor tolerates in every row is as cheap, but by means there may be cheaper ones"
        )
        return
    greedy = optimum.greedy_cost
    console.print(
        f"{parts}: solved exactly, {100 * optimum.gap:.2g} % at most above the cheapest; EDEN's "
        "greedy Algorithm 1 "
        + ("finds none" if greedy is None else f"costs {100 * (greedy / optimum.cost - 1):.2g} % more")
    )


def _certified_there(place: Footprint, network: Path, reference: ApproximateNetwork, drop: float) -> str:
    """Whether the mapping is shown to hold; nothing in it can be chosen."""
    test = stages.network_data(network).test
    described = place.mapping.model_dump_json(exclude_none=True)
    digest = hashlib.sha256(network.read_bytes() + described.encode()).hexdigest()
    right = evaluate(reference, test.images, test.labels).correct_images
    with progress_bar("certify on test images") as progress:
        found = stages.certificate_there(
            *(stages.load_network(network), place, test, right, drop, derive_seed(0, digest)), progress=progress
        )
    if found is None:
        return f"no certificate: {len(test)} test images are too few to show a loss below {100 * drop:g} %"
    if found.certified:
        return f"certified on test images, PASSED: {found.claim}"
    return (
        f"certified on test images, FAILED: {found.claim}; boost the network, or allow more loss. These images have "
        "been looked at: a mapping that is chosen after them passes more often than it should"
    )


def _metadata_sentence(network: ApproximateNetwork, images: int, plan: SignificancePlan | None = None) -> str:
    bits, stored = network.metadata_bits(), sum(tensor.bits(images) for tensor in network.tensors())
    what = "scales and plausible ranges"
    if plan is not None:
        bits, what = bits + plan.metadata_bits(network.tensors()), f"{what}, order of rows and choices of ways"
    share = f"{100 * bits / stored:.2f} % of what is stored with {images} image{'s' if images > 1 else ''}"
    return f"{what}: {bits} bits of metadata in reliable memory, {share}"


def infer(
    network: NetworkPath,
    mapping: Annotated[Path, typer.Argument(help="Mapping, as `eden map` writes it.")],
    board: Annotated[
        list[str], typer.Option(help="Board, e.g. mock:C:7. One for each module of the mapping, in any order.")
    ],
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            help="Profile that the mapping was made from: hold errors against it, fall back to milder points, and "
            "print what accuracy it predicts. Needed where bits are placed by significance. Of each module of the "
            "mapping, in any order."
        ),
    ] = None,
    reuse_weights: Annotated[
        int,
        typer.Option(
            min=1,
            help="Batches that one read of the weights serves. All of them meet the same draw of weight errors, so "
            "that accuracy varies more from run to run about the same mean; IFMs are read for each batch all the same.",
        ),
    ] = 1,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Only so many test images, from the first: a simulated board needs seconds a batch."),
    ] = None,
    supply: SuppliesOption = None,
    record: RecordOption = None,
) -> None:
    """Classify the test set with every weight and IFM stored in, and read back from, the boards' DRAM.

    Weights are written once at nominal and read for each batch at their operating points; IFMs are written and read
    there. With a profile, each tensor's wrong bits are held against what the profile's cells explain, given the bits
    stored, after each batch; a drift of temperature or by age shows so. Then all tensors go on at the next milder
    operating point of their module's profile, in the same cells, and the batches since the last 20 begun run again. At
    most one run in 1000 does so by chance.
    """
    stages.use_one_thread()
    loaded, places = stages.load_network(network), DramMapping.load(mapping)
    data = stages.network_data(network)
    test = data.test if images is None else data.test.first(images)
    modules = Modules.open(profile).of(places) if profile else None
    plan = None
    if places.significance is not None:
        if modules is None:
            raise PlanError(
                f"{mapping} places bits by significance: to write them, the weak cells must be known; give the profile "
                "that it was made from as --profile, of each module"
            )
        plan = modules.footprint(places, loaded).plan
    clean = evaluate(loaded, test.images, test.labels)
    with opened_together(board, supply or [], record) as boards:
        with progress_bar("infer") as progress:
            found = infer_on_boards(
                boards, loaded, places, test, INFERENCE_EPOCH, progress, modules, reuse_weights, plan
            )
        warmths = {each.module: each.environment.temperature_c() for each in boards}
    if modules is not None:
        for fallback in found.fallbacks:
            in_order = [warmths[module.identity] for module in modules.mapped]
            console.print(_fallback_sentence(fallback, in_order, modules))
    _show_tensors(found)
    accuracy, rate = found.accuracy, found.total_flips / found.total_bits_read
    console.print(
        f"accuracy on DRAM {100 * accuracy.accuracy:.1f} % ({100 * accuracy.low:.1f} .. {100 * accuracy.high:.1f}, "
        f"95 %) of {accuracy.total} images, {100 * clean.accuracy:.1f} % in reliable memory; "
        f"{found.total_flips} bits read wrong, BER {rate:.2e}"
    )
    costs = found.costs
    console.print(
        f"{costs.wall_s:.2f} s ({accuracy.total / costs.wall_s:.0f} images/s), of them {costs.bus_s:.2f} s on the bus "
        f"with {costs.bus_bytes / 2**20:.1f} MiB; {costs.programs} programs took {1e3 * costs.dram_s:.2f} "
        "ms of DRAM time by the engine's clock"
    )
    if modules is not None:
        place = replace(modules.footprint(found.mapping, loaded), plan=found.plan)
        _compare_with_prediction(modules, loaded, test, place, accuracy)


def _fallback_sentence(fallback: Fallback, warmths: list[float | None], modules: Modules) -> str:
    several = len(modules.profiles) > 1
    moved = ", ".join(
        f"{f'module {module + 1}: ' if several else ''}{before} -> {after}"
        for (module, before), after in fallback.moved.items()
        if before != after
    )
    low, high = fallback.expected.interval
    warm = "; ".join(
        f"the DRAM{f' of module {module + 1}' if several else ''} is at {warmth:.1f} C{_scanned_at(profile)}"
        for module, (warmth, profile) in enumerate(zip(warmths, modules.profiles, strict=True))
        if warmth is not None
    )
    return (
        f"DRIFT: {fallback.tensor} read {fallback.flips} bits wrong, the profile expects {fallback.expected.mean:.0f} "
        f"({low} .. {high}, 95 %){f'; {warm}' if warm else ''}. "
        f"Fell back to a milder point, {moved}, and ran again from image {fallback.image}"
    )


def _scanned_at(profile: Profile) -> str:
    scanned = [point.temperature_c for point in profile.points if point.temperature_c is not None]
    return f", the profile was measured at {min(scanned):.1f} .. {max(scanned):.1f} C" if scanned else ""


def _show_tensors(found: Inference) -> None:
    """Wrong bits of each tensor, and whether the profile explains them."""
    rows, outside = [], 0
    for tensor, flips in found.flips.items():
        bits = found.bits_read[tensor]
        row = [tensor, f"{bits}", f"{flips}", f"{flips / max(1, bits):.1e}"]
        if found.expected is not None:
            expected = found.expected[tensor]
            low, high = expected.interval
            verdict = "fewer" if flips < low else "MORE" if flips > high else ""
            outside += bool(verdict)
            row += [f"{expected.mean:.1f}", f"{low} .. {high}", verdict]
        rows.append(row)
    columns = ["tensor", "bits read", "wrong", "BER"]
    columns += ["expected", "95 %", "outside"] if found.expected is not None else []
    table("errors by tensor", columns, rows)
    if found.expected is not None:
        console.print(f"{outside} of {len(rows)} tensors outside the profile's interval (by chance, 1 in 20 at most)")


def _compare_with_prediction(
    modules: Modules, network: ApproximateNetwork, test: Split, place: Footprint, measured: Accuracy
) -> None:
    mapping = place.mapping
    predicting: list[tuple[str, Callable[[int], ApproximateMemory]]] = [("the profile's own cells", place.memory)]
    try:
        fitted = stages.fitted_memory(modules.fits(mapping), place, modules)
        predicting.insert(0, ("the fitted error models", fitted))
    except FitError as error:
        console.print(f"no error model predicts anything there: {error}")
    for name, memory_of in predicting:
        with progress_bar(f"predict from {name}") as progress:
            predicted = predict_accuracy(network, memory_of, test.images, test.labels, 10, mapping.images, progress)
        console.print(
            f"{name} predict {100 * predicted.mean:.1f} % ({100 * predicted.low:.1f} .. {100 * predicted.high:.1f}): "
            f"{'agrees' if agrees(measured, predicted) else 'DISAGREES'} within the joint uncertainty"
        )


def _show_tolerance(found: stages.Tolerance) -> None:
    rows = [
        [f"{r.ber:.2e}", f"{100 * r.drop:.2f}", f"{100 * r.drop_high:.2f}", "yes" if r.holds else "no"]
        for r in found.certificate.rungs
    ]
    table("certificate, validation images", ["mean BER", "lost, %", "at most (95 %)", "shown"], rows)
    rows = [[name, f"{ber:.2e}", f"{found.rates[name]:.2e}"] for name, ber in found.fine.items()]
    certified = "certified" if found.certificate.certified else "not certified"
    table("fine", ["tensor", "tolerable BER, searched", certified], rows)
    console.print(f"validation: {found.certificate.claim}")
    if found.final_check is None:
        console.print("no final check, as nothing is certified: boost the network, or allow more loss")
    else:
        verdict = "PASSED" if found.final_check.certified else "FAILED"
        console.print(f"final check on test images {verdict}: {found.final_check.claim}")


def _show_curve(found: CoarseTolerance) -> None:
    rows = [
        [f"{p.ber:.2e}", f"{100 * p.accuracy:.2f}", f"{100 * p.low:.2f} .. {100 * p.high:.2f}"] for p in found.curve
    ]
    table("accuracy over BER, training images", ["BER", "accuracy, %", "95 %"], rows)
    console.print(f"the whole network tolerates some {found.ber:.2e} (target {100 * found.target:.2f} %)")
