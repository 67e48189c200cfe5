"""The benchmark's figures have the shape that every benchmark of this project prints."""

import numba
import pytest
import torch

from tests.bench import injection


def test_figures_are_complete_and_consistent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injection, "PASSES", {64: 1.15, 32: 1.25})  # 64: the least that is no small image
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = list(injection.figures(elements=4000, repeats=1, batch=1, pass_repeats=1))
    names = [figure["name"] for figure in found]
    assert sum("bytes" in name and "thread" in name for name in names) == 12
    assert [name.split(",")[2:] for name in names if name.startswith("ResNet-18")] == [
        [f" {width} px", " batch 1", " BER 0.0001", f" {threads}"]
        for threads in ("1 thread", "2 threads")
        for width in (64, 32)
    ]
    assert sum("one draw a bit" in name for name in names) == 2
    assert sum("profile cells" in name for name in names) == 2
    for figure in found:
        assert set(figure) == {"bench", "name", "value", "unit", "bound", "ratio", "goal", "met"}
        assert figure["value"] > 0
        assert figure["ratio"] == figure["value"] / figure["bound"]
        assert figure["met"] == (figure["ratio"] <= figure["goal"])


def test_figures_of_a_device_are_held_against_the_exclusive_or_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injection, "DEVICE_CALLS", 1)
    monkeypatch.setattr(injection, "GOALS", {1e-4: 1.2})
    device = torch.device("cpu" if numba.config.ENABLE_CUDASIM else "cuda")  # the simulator, on numpy's arrays
    found = list(injection.on_device(device, elements=40, repeats=1))
    assert [figure["name"] for figure in found] == [
        f"{kind}, BER 0.0001, {40 * size} bytes, CUDA" for kind, size in injection.WIDTHS.items()
    ]
    assert all(figure["value"] > 0 and figure["bench"] == "injection" for figure in found)
