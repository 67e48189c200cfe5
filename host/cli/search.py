"""Everything between the profile and the board, for one precision: train, boost, tolerance, map.

Runs in a process of its own, one precision beside the other; what it finds lies in files.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from threading import Thread
from typing import Any, TypeAlias

from eden.approximate import ApproximateNetwork
from eden.boosting import Retrained, boost, default_boosting
from eden.checkpoint import Checkpoint
from eden.inference import evaluate
from eden.precision import Precision
from eden.tolerance import CoarseTolerance, Sampling, coarse, fine
from eden.training import train_baseline
from host.cli import stages
from host.cli.console import progress_board
from host.cli.modules import Modules
from host.cli.plan import NetworkPlan
from profiles.error_models import load_error_model
from profiles.errors import NetworkError
from profiles.progress import Progress

BASELINE, NETWORK = "baseline.safetensors", "network.safetensors"
MAPPING, NEXT_MAPPING = "mapping.json", "next_mapping.json"
RESULTS, DRAM_RESULTS = "search.json", "dram.json"


@dataclass(frozen=True)
class SearchTask:
    """What one process is to do; small enough to send.

    Attributes:
        folder: where its files go.
        profile, model: the profile's folder, and the fitted error model that training and tolerance use.
        key: what the results depend on; results with the same key are not made again.
    """

    plan: NetworkPlan
    precision: Precision
    folder: Path
    profile: Path
    model: Path
    key: str


Report = Callable[[str], Progress]
Messages: TypeAlias = "Queue[tuple[str, int, int] | None]"


def search_all(tasks: list[SearchTask]) -> list[dict[str, Any]]:
    """`search` for each task whose results are not there yet, as many at once as there are processors."""
    missing = [task for task in tasks if not _is_done(task)]
    if missing:
        _search_in_processes(missing)
    return [stages.kept_results(task.folder / RESULTS, task.key) or {} for task in tasks]


def _is_done(task: SearchTask) -> bool:
    files = all((task.folder / name).exists() for name in (BASELINE, NETWORK, MAPPING))
    return files and stages.kept_results(task.folder / RESULTS, task.key) is not None


def _search_in_processes(tasks: list[SearchTask]) -> None:
    context = multiprocessing.get_context("spawn")
    messages: Messages = context.Queue()
    with progress_board() as show:

        def forward() -> None:
            while (message := messages.get()) is not None:
                show(*message)

        listener = Thread(target=forward, daemon=True)
        listener.start()
        workers = min(len(tasks), multiprocessing.cpu_count())
        try:
            with ProcessPoolExecutor(workers, context, _begin_worker, (messages,)) as pool:
                _wait_for(pool.submit(_search_reporting, task) for task in tasks)
        finally:
            messages.put(None)
            listener.join()


def _wait_for(searches: Iterable[Future[None]]) -> None:
    """Wait for all, or end the workers with whatever ended the wait: Ctrl-C must not leave them running."""
    try:
        for finished in as_completed(list(searches)):
            finished.result()
    except BrokenProcessPool as error:
        raise NetworkError(
            "a search process died (the system may have run out of memory); what was finished is kept: run again, "
            "with one precision at a time"
        ) from error
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise


_messages: "Messages | None" = None


def _begin_worker(messages: Messages) -> None:
    global _messages  # a worker process has one queue
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C, and ends its workers
    stages.use_one_thread()


def _search_reporting(task: SearchTask) -> None:
    parent = os.getppid()

    def report(title: str) -> Progress:
        def send(done: int, total: int) -> None:
            if os.getppid() != parent:
                os._exit(1)  # the parent was killed; nobody waits for this search
            if _messages is not None:
                _messages.put((f"{task.precision}: {title}", done, total))

        send(0, 1)
        return send

    stages.keep_results(task.folder / RESULTS, task.key, search(task, report))
    for checkpoint in _checkpoints(task).values():
        checkpoint.remove()


def _checkpoints(task: SearchTask) -> dict[str, Checkpoint]:
    """Where each arm of boosting keeps how far it has come, until the results are kept."""
    return {arm: Checkpoint(task.folder / f".{arm}.checkpoint", task.key) for arm in ("boost", "control")}


def search(task: SearchTask, report: Report) -> dict[str, Any]:
    """Train, boost, find tolerances, and choose an operating point and a mapping.

    Returns:
        What the report needs of it; networks and mappings lie in the task's folder.
    """
    plan, precision, data = task.plan, task.precision, stages.dataset(task.plan.name)
    model, drop = load_error_model(task.model), task.plan.target_drop_pct / 100
    memory_at, fresh_at = stages.model_memory(model), stages.model_memory(model, fresh_map=True)
    sampling = Sampling(draws=plan.draws, batch=plan.batch, seed=plan.seed)
    baseline = train_baseline(plan.name, precision, data, plan.seed, progress=report("train"))
    clean = evaluate(baseline, data.validation.images, data.validation.labels).accuracy

    def tolerance(network: ApproximateNetwork, label: str) -> CoarseTolerance:
        progress = report(f"tolerance, {label}")
        highest = min(0.25, model.highest_ber)
        return coarse(
            network, memory_at, data.validation, drop, clean, sampling, highest_ber=highest, progress=progress
        )

    before = tolerance(baseline, "before")
    criterion = (before.ber, drop, clean, plan.seed, default_boosting(precision, plan.name))
    checkpoints = _checkpoints(task)

    def retrained(arm: str) -> Retrained:
        return boost(
            *(baseline, fresh_at, data, *criterion),
            progress=report(arm),
            control=arm == "control",
            checkpoint=checkpoints[arm],
        )

    boosted = retrained("boost")
    after = tolerance(boosted.network, "boosted")
    unerring = retrained("control")
    control = tolerance(unerring.network, "control")
    use_boosted = after.ber > before.ber
    network, best = (boosted.network, after) if use_boosted else (baseline, before)
    modules = Modules.open([task.profile])
    rates: Mapping[str, float] | None = None  # by significance they decide nothing
    if plan.significance:
        place_at = stages.by_significance(network, data.validation, modules, plan.batch)
    else:
        each = report("tolerance, each tensor")
        rates = fine(network, memory_at, data.validation, drop, clean, best.ber, sampling, progress=each).ber
        place_at = stages.by_tolerances(network, rates, modules, plan.batch)
    meets = stages.choose_point(
        *(network, place_at, modules, data.validation, clean - drop + plan.selection_margin_pct / 100),
        *(plan.batch, plan.draws, plan.seed, report("map")),
    )
    holds = stages.shown_by(network, data.validation, baseline, drop, plan.seed, report("certify"))
    choice = stages.shown_choice(meets, holds)
    for stale in (RESULTS, DRAM_RESULTS, NEXT_MAPPING):  # so that nothing old is paired with the files written now
        (task.folder / stale).unlink(missing_ok=True)
    baseline.save(task.folder / BASELINE, plan.name)
    network.save(task.folder / NETWORK, plan.name)
    choice.footprint.mapping.save(task.folder / MAPPING)
    if choice.next_footprint is not None:
        choice.next_footprint.mapping.save(task.folder / NEXT_MAPPING)
    return {
        "validation_baseline_accuracy": clean,
        "target_accuracy": clean - drop,
        "ber_tolerated_before": before.ber,
        "ber_tolerated_after": after.ber,
        "ber_tolerated_control": control.ber,
        "boosted_network_used": use_boosted,
        "boosted_epoch_kept": boosted.kept_epoch,
        "ber_tolerated_tensors": rates,
        "validation_accuracy_at_point": choice.predicted.mean,
        "shown_on_validation": choice.shown,
        "next_point_validation_accuracy": choice.next_predicted.mean if choice.next_predicted else None,
        "curves": {
            name: [vars(point) for point in found.curve]
            for name, found in (("before", before), ("control", control), ("after", after))
        },
    }
