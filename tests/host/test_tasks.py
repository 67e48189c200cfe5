"""A study's tasks give the same results wherever they run, whoever dies, and however often they are begun again."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from eden import training
from eden.approximate import ApproximateNetwork
from eden.datasets import Dataset, mnist5000
from eden.memory import BitErrorMemory
from eden.networks import build
from eden.precision import Precision
from eden.training import Recipe, Training, train_baseline
from host.cli import tasks as module
from host.cli.tasks import Baseline, alone, kept_network, kept_result, rows_of_tasks
from profiles.errors import SweepError

NUMBERS, VICTIM = 8, 3
CLOSED = "tcp://127.0.0.1:9"


@dataclass(frozen=True)
class Probe:
    """Errors in noise that an approximate memory returns: sensitive to every bit of both.

    The one numbered ``victim`` waits to be killed when it is begun for the first time, and is one of several processes
    then; ``begun`` says who began what.
    """

    folder: Path
    number: int
    victim: int | None = None

    @property
    def file(self) -> Path:
        return self.folder / f"{self.number}.json"

    @property
    def key(self) -> str:
        return "probe"

    def measured(self) -> dict[str, Any]:
        begun = self.folder / "begun" / str(self.number)
        first = not begun.exists()
        begun.parent.mkdir(parents=True, exist_ok=True)
        unfinished = begun.with_suffix(".part")
        unfinished.write_text(str(os.getpid()))
        unfinished.replace(begun)
        if first and self.number == self.victim:
            threading.Event().wait()
        stored = torch.from_numpy(np.random.default_rng(self.number).integers(0, 256, 100_000, np.uint8))
        memory = BitErrorMemory(10.0 ** -(2 + self.number % 3), self.number)
        memory.store("noise", stored)
        wrong = np.flatnonzero((memory.load("noise") != stored).numpy())
        return {"number": self.number, "flips": memory.total_flips, "where": wrong.tolist(), "pair": (1, 2)}


def begun(folder: Path) -> set[int]:
    return {int(file.name) for file in (folder / "begun").iterdir() if not file.suffix}


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return results


def probes(folder: Path, victim: int | None = None) -> list[Probe]:
    return [Probe(folder, number, victim) for number in range(NUMBERS)]


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def written(folder: Path) -> dict[str, Any]:
    """Everything that a sweep leaves, by file, but for the time that it took."""
    found = {file.name: json.loads(file.read_text()) for file in folder.glob("*.json")}
    taken = {name: content.pop("cpu_s", content.pop("cpu_minutes", None)) for name, content in found.items()}
    whole = taken.pop("probe.json")
    assert whole == pytest.approx(sum(taken.values()) / 60)
    assert all(0 < seconds < 60 for seconds in taken.values())
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process writes."""
    folder = tmp_path_factory.mktemp("alone")
    rows_of_tasks("probe", probes(folder), rows, folder, workers=1, about="noise")
    found = written(folder)
    assert set(found) == {"probe.json", *(f"{number}.json" for number in range(NUMBERS))}
    assert found["probe.json"]["about"] == "noise"
    assert [row["number"] for row in found["probe.json"]["rows"]] == list(range(NUMBERS))
    return found


@pytest.mark.slow
def test_a_pool_of_processes_writes_what_one_process_does(tmp_path: Path, expected: dict[str, Any]) -> None:
    returned = rows_of_tasks("probe", probes(tmp_path), rows, tmp_path, workers=2, about="noise")
    assert written(tmp_path) == expected
    assert returned == expected["probe.json"]["rows"]
    workers = {(tmp_path / "begun" / str(number)).read_text() for number in range(NUMBERS)}
    assert str(os.getpid()) not in workers


@pytest.mark.slow
def test_a_cluster_one_of_whose_workers_is_killed_writes_what_one_process_does(
    tmp_path: Path, expected: dict[str, Any]
) -> None:
    from distributed import LocalCluster

    def kill_the_victim() -> None:
        file = tmp_path / "begun" / str(VICTIM)
        wait_for(file.exists)
        os.kill(int(file.read_text()), signal.SIGKILL)

    quiet: dict[str, Any] = {"dashboard_address": None, "worker_dashboard_address": None, "silence_logs": 50}
    with LocalCluster(n_workers=3, threads_per_worker=1, processes=True, host="127.0.0.1", **quiet) as cluster:
        killer = threading.Thread(target=kill_the_victim, daemon=True)
        killer.start()
        address = cluster.scheduler_address
        returned = rows_of_tasks("probe", probes(tmp_path, VICTIM), rows, tmp_path, scheduler=address, about="noise")
        killer.join()
    assert written(tmp_path) == expected
    assert returned == expected["probe.json"]["rows"]
    workers = {(tmp_path / "begun" / str(number)).read_text() for number in range(NUMBERS)}
    assert len(workers) > 1
    assert str(os.getpid()) not in workers


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.5)
    for address in (CLOSED, "nonsense://"):
        with pytest.raises(SweepError, match=rf"{address} .*start `dask scheduler`"):
            rows_of_tasks("probe", probes(tmp_path), rows, tmp_path, scheduler=address)


def test_what_was_kept_is_not_measured_again(
    tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_after_three(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(results) == 3:
            raise KeyboardInterrupt
        return results

    with pytest.raises(KeyboardInterrupt):
        rows_of_tasks("probe", probes(tmp_path), stop_after_three, tmp_path, workers=1, about="noise")
    assert begun(tmp_path) == {0, 1, 2}
    (tmp_path / "1.json").write_text('{"made_from": "probe", "results"')  # damaged
    (tmp_path / "2.json").write_text('{"made_from": "another probe", "results": {}}')
    for number in range(3):
        (tmp_path / "begun" / str(number)).unlink()
    rows_of_tasks("probe", probes(tmp_path), rows, tmp_path, workers=1, about="noise")
    assert begun(tmp_path) == set(range(NUMBERS)) - {0}
    assert written(tmp_path) == expected
    monkeypatch.setattr(Probe, "measured", lambda probe: pytest.fail("measured again"))
    rows_of_tasks(
        "probe", probes(tmp_path), rows, tmp_path, scheduler=CLOSED, about="noise"
    )  # nothing to do: not asked
    assert written(tmp_path) == expected


@pytest.mark.slow
def test_a_process_that_dies_is_said_and_costs_no_finished_task(tmp_path: Path, expected: dict[str, Any]) -> None:
    def kill_the_victim(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        file = tmp_path / "begun" / str(VICTIM)
        if len(results) == NUMBERS - 1:  # all but the victim's, which waits
            os.kill(int(file.read_text()), signal.SIGKILL)
        return results

    with pytest.raises(SweepError, match=r"one of 2 processes died .*--workers 1"):
        rows_of_tasks("probe", probes(tmp_path, VICTIM), kill_the_victim, tmp_path, workers=2, about="noise")
    assert not (tmp_path / f"{VICTIM}.json").exists()
    rows_of_tasks("probe", probes(tmp_path, VICTIM), rows, tmp_path, workers=1, about="noise")
    assert written(tmp_path) == expected


PROGRAM = """
import sys
from pathlib import Path
from host.cli.stopping import heed
import signal
from host.cli.tasks import rows_of_tasks
from tests.host.test_tasks import VICTIM, probes, rows

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as from a shell
    heed()
    folder = Path(sys.argv[1])
    rows_of_tasks("probe", probes(folder, VICTIM), rows, folder, workers=2, about="noise")
"""


@pytest.fixture
def sweeping(tmp_path: Path) -> Iterator[tuple[Path, "subprocess.Popen[bytes]"]]:
    """A sweep of two processes in a program of its own, one of which waits for ever."""
    program = tmp_path / "sweeping.py"
    program.write_text(PROGRAM)
    folder = tmp_path / "sweep"
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen([sys.executable, program, folder], env=environment, stdout=subprocess.DEVNULL)
    yield folder, process
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 128 + signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_sweep_that_is_stopped_leaves_no_process_and_goes_on(
    sweeping: tuple[Path, "subprocess.Popen[bytes]"], expected: dict[str, Any], number: signal.Signals, status: int
) -> None:
    folder, process = sweeping
    wait_for(lambda: process.poll() is not None or (folder / f"{NUMBERS - 1}.json").exists())
    process.send_signal(number)
    assert process.wait() == status
    workers = {int((folder / "begun" / str(probe)).read_text()) for probe in range(NUMBERS)}
    wait_for(lambda: not any(is_alive(worker) for worker in workers))
    assert not (folder / f"{VICTIM}.json").exists()
    rows_of_tasks("probe", probes(folder, VICTIM), rows, folder, workers=1, about="noise")
    assert written(folder) == expected


def test_what_tasks_share_is_held_against_others_while_it_is_made(tmp_path: Path) -> None:
    with (
        alone(tmp_path / "scan"),
        (tmp_path / ".scan.lock").open("w") as others,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(others, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with alone(tmp_path / "scan"):
        pass


def test_a_network_is_kept_until_what_it_was_made_from_changes(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> ApproximateNetwork:
        made.append(1)
        network = ApproximateNetwork(build("lenet", len(made)).eval(), Precision.INT8)
        network.calibrate([torch.zeros(1, 1, 28, 28)])
        return network

    file = tmp_path / "net.safetensors"
    (tmp_path / "net.json").write_text("a task's result")
    first, again = kept_network(file, "lenet", "a", make), kept_network(file, "lenet", "a", make)
    assert (tmp_path / "net.json").read_text() == "a task's result"
    assert len(made) == 1
    weights = [next(network.module.parameters()) for network in (first, again)]
    assert torch.equal(*weights)
    other = kept_network(file, "lenet", "b", make)
    assert len(made) == 2
    assert not torch.equal(next(other.module.parameters()), weights[0])


def test_precisions_share_what_is_trained_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset("few", mnist5000().train.first(64), mnist5000().validation, mnist5000().test)
    monkeypatch.setitem(training.RECIPES, "lenet", Recipe(lambda: data, Training(1, 1e-3), Training(1, 5e-4)))
    float_trainings = []

    def counted(*arguments: Any, trained_in_float: nn.Module | None = None) -> ApproximateNetwork:
        float_trainings.append(trained_in_float is None)
        return train_baseline(*arguments, trained_in_float=trained_in_float)

    monkeypatch.setattr(module, "train_baseline", counted)
    for precision in (Precision.INT8, Precision.BF16, Precision.FP32):
        shared, whole = Baseline("lenet", precision, 1).trained(tmp_path), train_baseline("lenet", precision, data, 1)
        assert all(torch.equal(a, b) for a, b in zip(shared.parameters(), whole.parameters(), strict=True))
        assert shared.formats.items() <= whole.formats.items()  # of weights they are not kept, but follow from them
    assert float_trainings == [True, False, False]  # FP32's, as int8 asks for it


def test_a_result_is_kept_until_what_it_was_made_from_changes(tmp_path: Path) -> None:
    numbers = iter(range(9))

    def make() -> dict[str, Any]:
        return {"figure": next(numbers)}

    file = tmp_path / "figure.json"
    assert [kept_result(file, key, make)["figure"] for key in ("a", "a", "b", "b", "a")] == [0, 0, 1, 1, 2]
    file.write_text("{")  # damaged
    assert kept_result(file, "a", make) == {"figure": 3}
