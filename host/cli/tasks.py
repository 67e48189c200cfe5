"""A study's tasks: independent, each with a result that is kept, done by processes of this machine or a Dask cluster.

A task is what a sweep measures at one of its points (network x precision x bit error rate x seed, say). Its result
follows from the task alone, so it does not matter where it runs, in which order, or how often: a sweep that is stopped,
or whose workers die, goes on with the tasks that have no result yet. Results are kept by the process that shares the
tasks out; workers on other machines need no common disk, only this toolkit in the same version.

What several tasks need (a trained network, a scan) is made by the first that comes to it, and kept (`alone`).
"""

import fcntl
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock, Thread
from typing import Annotated, Any, Protocol, TypeAlias, cast

import typer

from eden.approximate import ApproximateNetwork
from eden.precision import Precision
from eden.training import recipe, train_baseline
from host.cli import stages
from host.cli.console import console, progress_bar
from profiles.errors import SweepError
from profiles.files import one_line

CONNECT_TIMEOUT_S = 10

Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes that share the tasks; default: one for each processor.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Dask scheduler whose workers do the tasks instead, e.g. tcp://192.168.1.10:8786; they need this toolkit.",
    ),
]
Result = dict[str, Any]
Rows = list[dict[str, Any]]


class Task(Protocol):
    """One piece of a study. It is sent to the process that does it, so it is small: names and numbers."""

    @property
    def file(self) -> Path:
        """Where its result is kept."""

    @property
    def key(self) -> str:
        """All that the result depends on, besides the code."""

    def measured(self) -> Result:
        """The result, measured now; anything that JSON has."""


def rows_of_tasks(
    study: str,
    tasks: Sequence[Task],
    rows_of: Callable[[list[Result]], Rows],
    out: Path,
    workers: int | None = None,
    scheduler: str | None = None,
    **about: Any,
) -> Rows:
    """Do those of ``tasks`` that have no result yet; after each, STUDY.json in ``out`` holds the rows so far.

    It also says what processor time they took together, without what tasks that were stopped had done.

    Args:
        study: its name.
        tasks: independent of each other; results come to ``rows_of`` in this order.
        rows_of: makes the study's rows from the results that are there.
        out: the study's folder.
        workers: processes of this machine; with one, tasks run in this very process.
        scheduler: address of a Dask scheduler, whose workers do the tasks instead.
        about: what else the file says of the study.

    Raises:
        SweepError: the scheduler does not answer, or workers die again and again. Finished tasks are kept.
    """
    results = {number: kept for number, task in enumerate(tasks) if (kept := _kept(task)) is not None}
    missing = [number for number in range(len(tasks)) if number not in results]

    def write() -> Rows:
        rows = rows_of([results[number] for number in sorted(results)])
        took = {"cpu_minutes": sum(_cpu_s(tasks[number]) for number in results) / 60}
        stages.save_json(out / f"{study}.json", {"study": study, **about, **took, "rows": rows})
        return rows

    with progress_bar(study) as progress:
        progress(len(results), len(tasks))
        with closing(_measured([tasks[number] for number in missing], workers, scheduler)) as measured:
            for place, (result, cpu_s) in measured:
                number = missing[place]
                stages.keep_results(tasks[number].file, tasks[number].key, result, cpu_s=cpu_s)
                results[number] = json.loads(json.dumps(result))  # as it will be read when it was kept
                write()
                progress(len(results), len(tasks))
    return write()


def _kept(task: Task) -> Result | None:
    return stages.kept_results(task.file, task.key)


def _cpu_s(task: Task) -> float:
    """Processor time that a kept result took; 0 where its file does not say."""
    return float(json.loads(task.file.read_text(encoding="utf-8")).get("cpu_s", 0))


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold ``file`` against other tasks of this machine that would make it too; they wait, and find it made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system gives it up with the process
        yield


def kept_network(file: Path, name: str, key: str, make: Callable[[], ApproximateNetwork]) -> ApproximateNetwork:
    """The network ``name`` of `eden.networks` in ``file``, if it was made from ``key``; else made, and kept, now."""
    notes = file.with_suffix(".network.json")  # its tasks may keep results in FILE.json
    with alone(file):
        if not file.exists() or stages.kept_results(notes, key) is None:
            make().save(file, name)
            stages.keep_results(notes, key, {})
        return stages.load_network(file)


def kept_result(file: Path, key: str, make: Callable[[], Result]) -> Result:
    """The result in ``file``, if it was made from ``key``; else made, and kept, now."""
    with alone(file):
        if (found := stages.kept_results(file, key)) is None:
            found = make()
            stages.keep_results(file, key, found)
        return found


@dataclass(frozen=True)
class Baseline:
    """A network of `eden.networks` that its recipe trains: in one precision, from one seed."""

    network: str
    precision: Precision
    seed: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.network}-{self.precision}-{self.seed}"

    @property
    def key(self) -> str:
        """All that it depends on besides its name and the code."""
        how = recipe(self.network)
        return f"{how.float_training} {how.quantised_training} {how.integer_quantile}"

    def trained(self, folder: Path) -> ApproximateNetwork:
        """As it is kept in ``folder``, or trained now."""
        return kept_network(
            folder / f"{self.name}.safetensors",
            self.network,
            self.key,
            lambda: self._train(folder),
        )

    def _train(self, folder: Path) -> ApproximateNetwork:
        """By its recipe; what is trained in float is FP32's network, which every precision begins with."""
        fp32 = self.precision is Precision.FP32
        return train_baseline(
            *(self.network, self.precision, stages.dataset(self.network), self.seed),
            trained_in_float=None if fp32 else replace(self, precision=Precision.FP32).trained(folder).module,
        )


# ---- where tasks run -------------------------------------------------------------------------------------------------


Timed: TypeAlias = tuple[Result, float]
"""A result, and the seconds of processor time that it took."""


def _measured(tasks: Sequence[Task], workers: int | None, scheduler: str | None) -> Generator[tuple[int, Timed]]:
    """Number and result of each task, as they come; generators, whose end takes everything down."""
    if not tasks:
        return
    if scheduler is not None:
        yield from _on_dask(tasks, scheduler)
        return
    processes = min(workers or multiprocessing.cpu_count(), len(tasks))
    if processes > 1:
        yield from _in_processes(tasks, processes)
        return
    yield from ((number, _measure(task)) for number, task in enumerate(tasks))


def _in_processes(tasks: Sequence[Task], processes: int) -> Generator[tuple[int, Timed]]:
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), begin_worker) as pool:
        try:
            numbers = {pool.submit(_measure, task): number for number, task in enumerate(tasks)}
            for done in as_completed(numbers):
                yield numbers[done], done.result()
        except BrokenProcessPool as error:
            raise SweepError(
                f"one of {processes} processes died (the system may have run out of memory); what was finished is "
                f"kept: run again with --workers {processes - 1}"
            ) from error
        except BaseException:
            end_workers(pool)
            raise


def begin_worker() -> None:
    """Begin a process of a pool: it ends with its parent, however that ends, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    stages.use_one_thread()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def end_workers(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool with whatever ended the wait for them: nothing they do is wanted any more."""
    pool.shutdown(wait=False, cancel_futures=True)
    for child in multiprocessing.active_children():
        child.terminate()


_alone = Lock()


def _measure(task: Task) -> Timed:
    """The task's result. One at a time in a process, as torch's random state and threads are the process's."""
    with _alone:
        stages.use_one_thread()
        start = time.process_time()
        return task.measured(), time.process_time() - start


def _on_dask(tasks: Sequence[Task], scheduler: str) -> Generator[tuple[int, Timed]]:
    from distributed import Client, KilledWorker  # takes a second to import
    from distributed import as_completed as as_completed_there

    try:
        client = Client(scheduler, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SweepError(
            f"no Dask scheduler answers at {scheduler} ({one_line(error)}); start `dask scheduler`, and on each "
            "machine `dask worker ADDRESS --nworkers -1 --nthreads 1`"
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            console.print(f"{scheduler} has no workers yet; start some: dask worker {scheduler} --nthreads 1")
        futures = client.map(_measure, tasks, pure=False)
        numbers = {future.key: number for number, future in enumerate(futures)}
        try:
            for done in as_completed_there(futures, loop=client.loop):
                yield numbers[done.key], cast(Timed, done.result())
        except KilledWorker as error:
            raise SweepError(
                f"several workers died of the same task ({one_line(error)}); what was finished is kept: look into the "
                "workers' logs, and give them more memory"
            ) from error
        except ModuleNotFoundError as error:
            raise SweepError(
                f"a worker at {scheduler} has no module {error.name!r}; install this toolkit there, in this version"
            ) from error
        finally:
            client.cancel(futures)  # what runs ends by itself, what waits is not begun
