"""`eden boost`: for a model or for one module's own cells, with a control, and from where it was stopped."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eden import boosting
from eden.approximate import ApproximateNetwork
from eden.datasets import Dataset, mnist5000
from eden.memory import ProfileMemory
from eden.precision import Precision
from eden.training import Training, train_baseline
from host.boards import open_mock
from host.cli import networks, stages
from host.cli.modules import AT_POINT, NOMINAL, Modules
from host.cli.own_map import OwnMap
from host.plan import Grid, Rows, ScanPlan
from host.scan import scan
from profiles.cells import WeakCells
from profiles.error_models import UniformModel
from profiles.errors import EdenError, PlanError
from profiles.geometry import Geometry
from profiles.pattern import Pattern
from profiles.storage import Profile

Run = Callable[..., str]
GEOMETRY = Geometry(banks=2, rows=64, columns=512, data_width=64)
BATCH = 20


def scanned(folder: Path, vdd_mv: tuple[int, ...]) -> Profile:
    plan = ScanPlan(
        grid=(Grid(trcd_ps=10000, vdd_mv=vdd_mv),),
        patterns=tuple(Pattern.parse(text) for text in ("0x00", "0xFF")),
        rounds=4,
        banks=(0, 1),
        rows=Rows(count=48),
        write=(NOMINAL, AT_POINT),
    )
    return scan(open_mock("B", 1, GEOMETRY), plan, folder / "profile")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return scanned(tmp_path_factory.mktemp("scan"), (1150, 1046, 1042, 1038, 1034))


@pytest.fixture(scope="module")
def data() -> Dataset:
    full = mnist5000()
    return Dataset("few", full.train.first(600), full.validation.first(100), full.test.first(40))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    file = tmp_path_factory.mktemp("network") / "net.safetensors"
    train_baseline("lenet", Precision.INT8, data, 1, Training(4, 4e-3), Training(1, 5e-4)).save(file, "lenet")
    return file


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, data: Dataset) -> None:
    monkeypatch.setattr(stages, "dataset", lambda network="lenet": data)
    short = replace(boosting.INTEGER_BOOSTING, training=Training(3, 1e-3), ramp=0.4)
    monkeypatch.setattr(boosting, "INTEGER_BOOSTING", short)


def held(memory: ProfileMemory, tensor: str) -> np.ndarray:
    """Weak cells of a tensor."""
    weak = memory._weak_cells
    return (weak if isinstance(weak, WeakCells) else weak[tensor]).cell


def test_a_module_s_own_cells_are_those_of_its_nearest_operating_point(profile: Profile, network: Path) -> None:
    own, parts = OwnMap(profile, stages.load_network(network), BATCH), Modules([profile]).partitions()
    measured = sorted({own.measured_ber(ber) for ber in np.geomspace(1e-8, 0.5, 60)})
    assert len(measured) >= 3  # 1150 mV, and those that err as much, have none
    assert own.highest_ber == measured[-1]
    for ber in measured:
        memory, again = own(ber * 1.01, 1), own(ber * 0.99, 2)
        (point,) = {placement.point for placement in memory.placements.values()}
        assert {name: p.first_cell for name, p in memory.placements.items()} == {
            name: p.first_cell for name, p in again.placements.items()
        }
        assert all(np.array_equal(held(memory, name), held(again, name)) for name in memory.placements)
        everywhere = float(np.mean([part.ber("weight", point) for part in parts]))
        assert ber < 0.95 * everywhere  # the rows with fewest errors
    low, high = measured[-2:]
    middle = math.sqrt(low * high)
    assert own.measured_ber(middle * 0.99) == low
    assert own.measured_ber(middle * 1.01) == high
    assert own.measured_ber(0.0) == 0.0


def test_cells_without_errors_are_refused(tmp_path: Path, network: Path) -> None:
    own = OwnMap(scanned(tmp_path, (1350, 1300)), stages.load_network(network), BATCH)
    with pytest.raises(PlanError, match="scan deeper into the cliff"):
        own(1e-3, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_boosting_for_one_module_trains_and_measures_with_its_cells(
    run_eden: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: Profile, network: Path
) -> None:
    trained: list[object] = []
    retrain = boosting.boost

    def recorded(baseline: ApproximateNetwork, memory_at: object, *rest: object, **named: object) -> object:
        trained.append((memory_at, named["control"]))
        return retrain(baseline, memory_at, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(networks, "boost_network", recorded)
    arguments = ("boost", network, "--profile", profile.path, "--target-drop", "8", "--batch", str(BATCH))
    files = [tmp_path / name for name in ("boosted.safetensors", "control.safetensors")]
    printed = [
        run_eden(*arguments, "--out", file, *more) for file, more in zip(files, ([], ["--control"]), strict=True)
    ]
    own = OwnMap(profile, stages.load_network(network), BATCH)
    rates = {f"{own.measured_ber(ber):.2e}" for ber in np.geomspace(1e-9, 0.5, 200)} | {"0.00e+00"}
    for said in printed:
        before, after = said.partition("tolerable BER ")[2].split(" before, ")
        assert before in rates
        assert after.split(" ")[0] in rates
    assert [control for _, control in trained] == [False, True]  # type: ignore[misc, attr-defined]
    assert all(isinstance(memory_at, OwnMap) for memory_at, _ in trained)  # type: ignore[misc, attr-defined]
    weights = [next(stages.load_network(file).parameters()) for file in files]
    assert not torch.equal(*weights)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_stopped_it_goes_on_from_the_epoch_it_had_reached(
    run_eden: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Path
) -> None:
    model, begun = tmp_path / "model.parquet", []
    UniformModel(geometry=GEOMETRY, banks=(0, 1), weak_fraction=0.05, flip_probability=0.5).save(model)
    arguments = ("boost", network, "--model", model, "--target-drop", "8", "--out")
    set_errors = boosting._Retraining._set_errors

    def until(last: int) -> None:
        def stop(retraining: boosting._Retraining, epoch: int) -> None:
            if epoch == last:
                raise EdenError("stopped")
            begun.append(epoch)
            set_errors(retraining, epoch)

        monkeypatch.setattr(boosting._Retraining, "_set_errors", stop)

    until(99)
    whole = run_eden(*arguments, tmp_path / "whole.safetensors").splitlines()[-1]
    until(2)
    with pytest.raises(SystemExit):
        run_eden(*arguments, tmp_path / "out.safetensors")
    begun.clear()
    until(99)
    printed = run_eden(*arguments, tmp_path / "out.safetensors").splitlines()[-1]
    assert printed.partition(":")[0] == whole.partition(":")[0]
    assert begun == [2]
    resumed, at_once = (stages.load_network(tmp_path / f"{name}.safetensors") for name in ("out", "whole"))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), at_once.parameters(), strict=True))
    assert resumed.formats == at_once.formats
    assert {file.name for file in tmp_path.iterdir()} == {"model.parquet", "out.safetensors", "whole.safetensors"}


def test_errors_come_from_a_model_or_a_module(run_eden: Run, capsys: pytest.CaptureFixture[str], network: Path) -> None:
    for more in ([], ["--model", "m", "--profile", "p"]):
        with pytest.raises(SystemExit):
            run_eden("boost", network, "--out", "o", *more)
        assert "give --model (an error model: for any module of its kind) or --profile" in capsys.readouterr().err
