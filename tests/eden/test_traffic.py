"""Layers against published sizes, cuts against all others, caches against a dictionary, and what a study says."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eden import saving
from eden.dram_specs import load
from eden.layers import NETWORKS, Layer, layers_of
from eden.precision import Precision
from eden.traffic import PLATFORMS, Cache, RowStationary, _through, traffic
from profiles.errors import ModelError

# parameters and multiplications (in 1e6) as published; those of the authors or of torchvision and darknet
PUBLISHED = {
    "ResNet101": (44_549_160, 7_801),
    "AlexNet": (61_100_840, 714),
    "LeNet": (431_080, 2.3),
    "MobileNetV2": (3_504_872 - 1281 * 1000 + 1281 * 10, 88),
    "VGG-16": (138_357_544, 15_470),
    "DenseNet201": (20_013_928, 4_291),
    "SqueezeNet1.1": (1_235_496, 349),
    "YOLO": (61_949_149, 65_864 / 2),
    "YOLO-Tiny": (8_852_366, 5_563 / 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_their_published_sizes(name: str) -> None:
    layers, (parameters, millions) = NETWORKS[name](), PUBLISHED[name]
    assert sum(layer.weights for layer in layers) == parameters
    assert sum(layer.multiplications for layer in layers) / 1e6 == pytest.approx(millions, rel=0.01)


def test_hooks_see_what_the_data_say() -> None:
    module = nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )
    seen = layers_of(module, torch.zeros(1, 1, 28, 28))
    for layer, expected in zip(seen, NETWORKS["LeNet"](), strict=True):
        for field in ("weights", "ifm", "ofm", "multiplications", "kernel", "rows"):
            assert getattr(layer, field) == getattr(expected, field), (layer.name, field)


def test_hooks_fuse_normalisation_and_see_groups_strides_and_sequences() -> None:
    module = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, groups=4, bias=False), nn.BatchNorm2d(8))
    (layer,) = layers_of(module, torch.zeros(1, 4, 9, 9))
    assert (layer.weights, layer.multiplications, layer.stride) == (8 * 9 + 16, 8 * 16 * 9, 2)
    (layer,) = layers_of(nn.Linear(6, 5), torch.zeros(1, 7, 6))
    assert (layer.ifm, layer.ofm, layer.multiplications) == (42, 35, 7 * 30)


LAYER = Layer("layer", 64, 56, 56, 128, 56, 56, (3, 3), weights=64 * 9 * 128)


def test_row_stationary_cuts_fit_the_buffer_and_move_least() -> None:
    """Against every strip height, with as many filters as then fit."""
    buffer, moved = 50_000, []
    for height in range(1, 57):
        strips = -(-56 // height)
        rows = -(-56 // strips)
        filters = (buffer - (rows + 2) * 56 * 4) // (rows * 56 * 4)
        if filters > 0:
            parts = -(-128 // filters)
            moved.append(LAYER.weights * strips + LAYER.ifm * parts + (strips - 1) * 2 * 56 * 64 * parts)
    cut = RowStationary(buffer, 4).cut(LAYER, Precision.FP32)
    halo = (cut.strips - 1) * cut.overlap * 56 * 64 * cut.filter_parts
    assert LAYER.weights * cut.strips + LAYER.ifm * cut.filter_parts + halo == min(moved)
    with pytest.raises(ModelError, match="a row of layer does not fit a buffer of 100 bytes"):
        RowStationary(100, 4).cut(LAYER, Precision.FP32)


@pytest.mark.parametrize("platform", ["TPU, DDR4", "GPU", "CPU", "Eyeriss, LPDDR3"])
def test_everything_is_read_once_at_least_and_written_once(platform: str) -> None:
    layers, size = NETWORKS["LeNet"](), load(PLATFORMS[platform].dram).burst_bytes
    found = traffic(layers, PLATFORMS[platform], Precision.FP32)
    once = sum(4 * layer.weights for layer in layers)
    assert found.read_bytes >= once
    assert found.read_bytes - once <= sum(4 * layer.ifm for layer in layers) * 8 + size * 3 * len(layers)
    written = sum(4 * layer.ofm for layer in layers)
    assert written <= found.written_bytes <= written + size * len(layers)
    assert (np.diff(found.bursts.arrival) >= 0).all()


def test_a_systolic_array_reads_all_of_a_network_that_fits_exactly_once() -> None:
    layers = [LAYER]
    found = traffic(layers, PLATFORMS["TPU, DDR4"], Precision.INT8)
    assert found.read_bytes == LAYER.weights + LAYER.ifm
    assert found.written_bytes == LAYER.ofm
    assert found.compute_clocks == round(LAYER.multiplications / (65536 * 700e6) / 833e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=300))
def test_a_cache_misses_and_writes_back_as_a_dictionary_does(accesses: list[tuple[int, bool]]) -> None:
    spec, sets, ways = load("ddr4-2400"), 4, 3
    line, write = (np.array(values) for values in zip(*accesses, strict=True))
    cache = Cache(sets * ways * 64, ways, 0)
    found = _through(cache, spec, line.astype(np.int64), write.astype(np.bool_), np.zeros(line.size, np.int64))
    held: list[OrderedDict[int, bool]] = [OrderedDict() for _ in range(sets)]
    expected = []
    for wanted, is_write in accesses:
        lines = held[wanted % sets]
        if wanted not in lines and len(lines) == ways:
            victim, dirty = lines.popitem(last=False)
            expected += [(victim, True)] * dirty
        if wanted not in lines and not is_write:
            expected.append((wanted, False))
        lines[wanted] = lines.pop(wanted, False) or is_write
    at_the_end = [(wanted, True) for lines in held for wanted, dirty in reversed(lines.items()) if dirty]
    assert list(zip(found[0].tolist(), found[1].tolist(), strict=True)) == expected + at_the_end


def test_prefetching_a_stream_changes_its_order_in_time_but_not_its_lines() -> None:
    spec, line = load("ddr4-2400"), np.arange(1000, dtype=np.int64)
    reads, clock = np.zeros(1000, np.bool_), np.arange(1000, dtype=np.int64)
    plain = _through(Cache(1 << 16, 16, 0), spec, line, reads, clock)
    ahead = _through(Cache(1 << 16, 16, 4), spec, line, reads, clock)
    assert set(plain[0].tolist()) == set(ahead[0].tolist()) - {1000, 1001, 1002, 1003}
    assert np.unique(ahead[0]).size == ahead[0].size
    assert (ahead[2][:1000] <= plain[2]).all()
    assert (ahead[2][:1000] < plain[2]).sum() > 700


def test_speed_up_and_the_stall_share_that_it_takes() -> None:
    assert saving.speed_up(0.5, 0.9) == pytest.approx(1 / 0.95 - 1)
    assert saving.speed_up(1.0, 0.5) == 1.0
    assert saving.needed_stall(saving.speed_up(0.3, 0.8), 0.8) == pytest.approx(0.3)
    assert saving.needed_stall(0.17, 0.95) is None
    assert saving.needed_stall(0.17, 1.0) is None
    with pytest.raises(ModelError, match=r"1\.5 is not within 0\.\.1"):
        saving.speed_up(1.5, 0.9)


def test_a_cell_says_what_it_assumed() -> None:
    cell = saving.evaluate("LeNet", NETWORKS["LeNet"](), PLATFORMS["CPU"], Precision.INT8, saving.Points.load())
    row = saving.row(cell)
    assert row["operating_point"] == "assumed"
    assert row["law"] == "dynamic-square, I/O unscaled"
    assert 0 < row["energy_saved_low"] < row["energy_saved"] < row["energy_saved_high"] < 1 - (1100 / 1350) ** 2 + 0.01
    assert len(row["energy_saved_by_assumptions"]) == 6 * 2 * 2
    assert row["speed_up_low"] <= row["speed_up"] <= row["speed_up_high"]
    assert list(saving.averages([cell])) == []  # no figure of the paper's to stand beside


def test_averages_stand_beside_the_papers_figures() -> None:
    layers = NETWORKS["SqueezeNet1.1"]()[:2]
    points = saving.Points.load()
    cell = saving.evaluate("SqueezeNet1.1", layers, PLATFORMS["GPU"], Precision.FP32, points)
    (average,) = saving.averages([cell])
    assert (average["paper_energy_saved"], average["paper_speed_up_most"]) == (0.37, 0.055)
    assert average["energy_saved"] == saving.row(cell)["energy_saved"]
    assert "The paper's 37% of energy lies outside the" in average["sentence"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ModelError, match="no platform 'FPGA'; choose from CPU"):
        list(saving.headline(["LeNet"], ["FPGA"], lambda done, total: None))
