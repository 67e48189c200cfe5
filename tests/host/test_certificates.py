"""`eden study certificates`, `tolerance` and `boost` from the command line: files, resumption, what cannot be read."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eden import boosting, certificate_study
from eden.certificate import CERTIFICATE_SAMPLING, Population
from eden.datasets import Dataset
from eden.precision import Precision
from eden.training import FLOAT_TRAINING, QUANTISED_TRAINING, Training, train_baseline
from host.cli import certificates_study, networks, stages
from host.cli.certificates_study import Design
from profiles.error_models import UniformModel, load_error_model
from profiles.errors import NetworkError
from profiles.geometry import Geometry

Run = Callable[..., str]


@pytest.fixture(scope="module")
def small_dataset() -> Dataset:
    whole = stages.dataset()
    return Dataset(whole.name, whole.train.first(1500), whole.validation.first(150), whole.test.first(150))


def without_time(folder: Path) -> dict[str, Any]:
    """What the study wrote, but for how long it took."""
    written: dict[str, Any] = json.loads((folder / "certificates.json").read_text())
    assert written.pop("cpu_minutes") > 0
    return written


@pytest.mark.slow
def test_the_study_keeps_results_and_writes_figures_and_a_picture(
    run_eden: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_dataset: Dataset
) -> None:
    monkeypatch.setattr(stages, "dataset", lambda network="lenet": small_dataset)
    monkeypatch.setattr(certificates_study, "SEEDS", (1,))
    monkeypatch.setattr(certificates_study, "REPEATS", 40)
    monkeypatch.setattr(certificates_study, "POOL_DRAWS", 4)
    monkeypatch.setattr(certificates_study, "LENET_RATES", (2e-4, 2e-3, 4e-3))
    designs = (
        Design("synthetic", 600, 1, 1, Population.ANY_MAP, ("Student's t (no guarantee)",)),
        Design("lenet", 400, 2, 1, Population.THIS_MAP, ()),
    )
    monkeypatch.setattr(certificates_study, "DESIGNS", designs)
    study = ("study", "certificates", "--workers", "1", "--out", tmp_path)
    assert "certificates.json" in run_eden(*study)
    written = without_time(tmp_path)
    assert written["confidence"] == 0.95
    rows = written["rows"]
    assert [(row["network"], row["bound"].split(" ")[0]) for row in rows[::2]] == [
        ("synthetic", "certificate"),
        ("synthetic", "Student's"),
        ("lenet", "certificate"),
    ]
    for row in rows:
        assert row["interval"][0] <= row["figure"] <= row["interval"][1]
        assert (row["met"] is None) == (row["goal"] is None) == (row["bound"] != "certificate")
        assert row["repeats"] == 40
    assert (tmp_path / "certificates.png").stat().st_size > 1000

    monkeypatch.setattr(certificate_study, "pool", lambda *_: pytest.fail("LeNet's results were there"))
    (tmp_path / "certificates/design1-1.json").unlink()
    run_eden(*study)
    assert without_time(tmp_path) == written
    (kept,) = (tmp_path / "certificates").glob("*.npz")
    for damage in (kept.read_bytes()[:100], b"", b"no archive"):
        kept.write_bytes(damage)
        (tmp_path / "certificates/design1-1.json").unlink(missing_ok=True)
        with pytest.raises(pytest.fail.Exception, match="were there"):
            run_eden(*study)


def test_the_target_is_the_nearest_rungs_loss_and_no_ladder_ends_below_it() -> None:
    assert certificates_study._nearest_loss(np.array([0.001, 0.008, 0.013])) == 0.008
    with pytest.raises(NetworkError, match=r"ends at a loss of 0\.90 %, below the target of 1 %; add higher rates"):
        certificates_study._nearest_loss(np.array([0.001, 0.009]))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, small_dataset: Dataset) -> tuple[Path, Path]:
    """A small network, and an error model."""
    folder = tmp_path_factory.mktemp("tolerance")
    short = replace(FLOAT_TRAINING, epochs=3), replace(QUANTISED_TRAINING, epochs=1)
    train_baseline("lenet", Precision.INT8, small_dataset, 1, *short).save(folder / "net.safetensors", "lenet")
    geometry = Geometry(banks=2, rows=64, columns=512, data_width=64)
    UniformModel(geometry=geometry, banks=(0, 1), weak_fraction=0.1, flip_probability=0.5).save(
        folder / "model.parquet"
    )
    return folder / "net.safetensors", folder / "model.parquet"


@pytest.mark.slow
def test_boosting_that_keeps_no_epoch_says_so_and_leaves_the_network_as_it_was(
    run_eden: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_dataset: Dataset, files: tuple[Path, Path]
) -> None:
    monkeypatch.setattr(stages, "dataset", lambda network="lenet": small_dataset)
    ruinous = replace(boosting.INTEGER_BOOSTING, training=Training(epochs=1, learning_rate=3.0))
    monkeypatch.setattr(boosting, "INTEGER_BOOSTING", ruinous)
    network, model = files
    out = tmp_path / "boosted.safetensors"
    printed = run_eden("boost", network, "--model", model, "--target-drop", "8", "--out", out)
    assert "no epoch kept the clean accuracy within the drop allowed: the network is as it was" in printed
    before, after = stages.load_network(network), stages.load_network(out)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    images = small_dataset.test.images[:20]
    assert torch.equal(after(images), before(images))


@pytest.mark.slow
def test_tolerance_certifies_the_joint_rates_and_checks_them_once(
    run_eden: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_dataset: Dataset, files: tuple[Path, Path]
) -> None:
    monkeypatch.setattr(stages, "dataset", lambda network="lenet": small_dataset)
    monkeypatch.setattr(networks, "SEARCH_IMAGES", 100)
    monkeypatch.setattr(networks, "CERTIFIED_SHARES", (0.05, 4.0))
    monkeypatch.setattr(networks, "CERTIFICATE_SAMPLING", replace(CERTIFICATE_SAMPLING, draws=1))
    network, model = files
    out = tmp_path / "tolerance.json"
    printed = run_eden("tolerance", network, "--model", model, "--target-drop", "8", "--out", out)
    found = stages.load_tolerance(out)
    certified = found.certificate.certified
    assert certified is not None
    assert certified.rates == pytest.approx({tensor: 0.05 * ber for tensor, ber in found.fine.items()})
    assert found.rates == certified.rates
    assert not found.certificate.rungs[-1].holds
    assert found.final_check is not None
    assert found.final_check.rungs[0].rates == certified.rates
    assert f"final check on test images {'PASSED' if found.final_check.certified else 'FAILED'}" in printed

    network_again = stages.load_network(network)
    again = networks._final_check(
        found.certificate, network, network_again, stages.any_map_memory(load_error_model(model)), 0.08
    )
    assert again == found.final_check  # asked again, it answers the same


VALID = {
    "format": "eden-tolerance",
    "version": 2,
    "target_accuracy": 0.9,
    "coarse": 0.01,
    "fine": {"a": 0.02},
    "certificate": {
        "population": Population.ANY_MAP.value,
        "confidence": 0.95,
        "target_drop": 0.01,
        "images": 1000,
        "draws": 8,
        "batch": 1,
        "rungs": [{"ber": 0.02, "rates": {"a": 0.01}, "drop": 0.1, "drop_high": 0.2, "holds": False}],
    },
    "final_check": None,
}


def test_tolerance_files_are_read_and_uncertified_rates_are_those_searched_for(tmp_path: Path) -> None:
    file = tmp_path / "tolerance.json"
    file.write_text(json.dumps(VALID))
    assert stages.load_tolerance(file).rates == {"a": 0.02}


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3},
        {"format": "eden-run"},
        {"fine": {"a": 2.0}},
        {"fine": {"a": float("nan")}},
        {"certificate": None},
        {"certificate": VALID["certificate"] | {"rungs": []}},  # type: ignore[operator]
        {"certificate": VALID["certificate"] | {"confidence": 1.5}},  # type: ignore[operator]
        {"more": 1},
    ],
)
def test_other_tolerance_files_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    file = tmp_path / "tolerance.json"
    file.write_text(json.dumps(VALID | change))
    with pytest.raises(NetworkError, match=r"tolerance\.json is no tolerance file .*run eden tolerance again"):
        stages.load_tolerance(file)
    file.write_text('{"target_accuracy": 0.9, "coarse": 0.01, "fine": {}}')  # of the version before
    with pytest.raises(NetworkError, match="version"):
        stages.load_tolerance(file)


def test_any_map_is_another_module_for_each_seed(files: tuple[Path, Path]) -> None:
    memory_at = stages.any_map_memory(load_error_model(files[1]))
    reads = []
    for seed in (1, 2):
        memory = memory_at(0.05, seed)
        memory.store("t", torch.zeros(4000, dtype=torch.uint8))
        reads.append(np.flatnonzero(memory.load("t").numpy()))
    assert set(reads[0]) != set(reads[1])
