"""A network of words goes through every command as one of images does: train, boost, tolerance, map, infer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eden import boosting, training
from eden.certificate import CERTIFICATE_SAMPLING
from eden.datasets import Dataset, Split
from eden.networks import NETWORKS, SpellingReader
from eden.training import Recipe, Training
from host.cli import networks, stages
from profiles.error_models import UniformModel
from profiles.geometry import Geometry
from profiles.schema import OperatingPoint

Run = Callable[..., str]

PLAN = """
board = "mock:B:1"
output = "unused"
[scan]
banks = [0, 1, 2, 3, 4, 5, 6, 7]
rows = { start = 0, count = 16 }
patterns = ["0x00", "0xFF", "0xAA", "0x55"]
rounds = 4
write = ["nominal", "operating_point"]
[[scan.grid]]
trcd_ps = 10000
vdd_mv = [1150, 1056, 1040]
[network]
precisions = ["int8"]
"""


def words() -> Dataset:
    """Words of six letters, each with one label, whatever stands around it."""
    letters = torch.zeros(620, 12, dtype=torch.int64)
    letters[:, :6] = torch.randint(1, 27, (620, 6), generator=torch.Generator().manual_seed(0))
    labels = (letters * 7) % 29
    return Dataset("few", *(Split(letters[a:b], labels[a:b]) for a, b in ((0, 500), (500, 560), (560, 620))))


@pytest.mark.slow
def test_a_network_of_words_goes_from_training_to_dram(
    run_eden: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = words()
    short = Recipe(lambda: data, Training(5, 2e-2, batch=25), Training(1, 1e-3, batch=25))
    monkeypatch.setitem(training.RECIPES, "g2p", short)
    monkeypatch.setitem(NETWORKS, "g2p", lambda: SpellingReader(letters=27, labels=29, width=16, hidden=32))
    quick = replace(boosting.INTEGER_BOOSTING, training=Training(2, 1e-3, batch=50))
    monkeypatch.setattr(boosting, "INTEGER_BOOSTING", quick)
    monkeypatch.setattr(networks, "SEARCH_IMAGES", 50)
    monkeypatch.setattr(networks, "CERTIFIED_SHARES", (0.05,))
    monkeypatch.setattr(networks, "CERTIFICATE_SAMPLING", replace(CERTIFICATE_SAMPLING, draws=1))
    baseline, boosted, model = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "model.parquet"))
    geometry = Geometry(banks=2, rows=128, columns=1024, data_width=64)
    UniformModel(geometry=geometry, banks=(0, 1), weak_fraction=0.1, flip_probability=0.5).save(model)
    (tmp_path / "plan.toml").write_text(PLAN, encoding="utf-8")

    printed = run_eden("train", "--network", "g2p", "--per-channel", "--out", baseline)
    assert "bits of metadata in reliable memory" in printed
    network = stages.load_network(baseline)
    assert network.per_channel
    assert stages.network_data(baseline) is data
    assert "after" in run_eden("boost", baseline, "--model", model, "--target-drop", "20", "--out", boosted)
    tolerance, mapping, profile = tmp_path / "tolerance.json", tmp_path / "mapping.json", tmp_path / "profile"
    printed = run_eden("tolerance", baseline, "--model", model, "--target-drop", "20", "--out", tolerance)
    assert "final check on test images" in printed
    found = stages.load_tolerance(tolerance)
    assert set(found.rates) == {tensor.name for tensor in network.tensors()}
    run_eden("scan", tmp_path / "plan.toml", "--out", profile)
    arguments = ("map", baseline, profile, "--tolerance", tolerance, "--out", mapping, "--batch", "25")
    printed = run_eden(*arguments)
    assert "certified on test images, PASSED" in printed
    assert "population: images like these, this DIMM's map" in printed
    infer = ("infer", baseline, mapping, "--profile", profile)
    printed = run_eden(*infer, "--board", "mock:B:1", "--record", tmp_path / "recording")
    assert "of 60 images" in printed
    assert printed.count("agrees within the joint uncertainty") >= 1
    assert "of 30 images" in run_eden(*infer, "--board", "mock:B:1", "--images", "30")
    replayed = run_eden(*infer, "--board", f"replay:{tmp_path / 'recording'}")
    assert untimed(replayed) == untimed(printed)

    printed = run_eden(*arguments, "--significance")
    assert "placed by significance at 1040 mV" in printed
    assert "choices of ways" in printed
    assert "certified on test images, PASSED" in printed
    printed = run_eden(*infer, "--board", "mock:B:1")
    assert "bits read wrong" in printed
    assert "DRIFT" not in printed
    assert printed.count("agrees within the joint uncertainty") >= 1
    with pytest.raises(SystemExit):
        run_eden("infer", baseline, mapping, "--board", "mock:B:1")
    assert "give the profile that it was made from as --profile" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_eden(*arguments, "--significance", "--energy", "1")
    assert "takes one operating point" in capsys.readouterr().err
    objectives: list[Any] = []
    choose = stages.choose_point
    with monkeypatch.context() as patch:
        patch.setattr(stages, "choose_point", lambda *given: objectives.append(given[-1]) or choose(*given))
        run_eden(*arguments, "--latency", "1")
    slow, fast = (objectives[0](None, OperatingPoint(vdd_mv=1000, trcd_ps=trcd)) for trcd in (14_000, 7_000))
    assert slow == 2 * fast  # and VDD counts for nothing
    assert fast == objectives[0](None, OperatingPoint(vdd_mv=1350, trcd_ps=7_000))

    other = tmp_path / "other"
    run_eden("scan", tmp_path / "plan.toml", "--board", "mock:B:2", "--out", other)
    printed = run_eden("map", baseline, other, *arguments[2:])
    assert "module 1: 00000002 of vendor B (model)" in printed
    assert "module 2: 00000001 of vendor B (model)" in printed
    assert "certified on test images, PASSED" in printed
    both = (*infer, "--profile", other, "--board", "mock:B:1", "--board", "mock:B:2")
    printed = run_eden(*both)
    assert "bits read wrong" in printed
    assert "DRIFT" not in printed
    assert printed.count("agrees within the joint uncertainty") >= 1
    for wrong, said in (
        ((*infer, "--board", "mock:B:1", "--board", "mock:B:2"), "one profile is needed for each"),
        ((*infer, "--profile", other, "--board", "mock:B:1"), "one board is needed for each"),
        ((*both, "--record", tmp_path / "another"), "--record is for one board"),
        ((*both, "--supply", tmp_path / "supply.toml"), "give --supply once for each --board"),
    ):
        with pytest.raises(SystemExit):
            run_eden(*wrong)
        assert said in capsys.readouterr().err


def untimed(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if "images/s" not in line]
