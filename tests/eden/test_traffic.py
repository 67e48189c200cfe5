"""Layers against published sizes, cuts against all others, caches against a dictionary, and what a study says."""

import json
from collections import OrderedDict
from dataclasses import replace
from fractions import Fraction
from functools import cache

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
from eden.replay import place
from eden.traffic import PLATFORMS, Cache, RowStationary, _bursts_of, traffic
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


Sent = list[tuple[int, bool, int]]  # line, whether it is written, clock


@cache
def numbers() -> dict[tuple[int, int, int], int]:
    """The burst at a bank, row and column of DDR4."""
    bursts = np.arange(10_000)
    at = place(bursts, load("ddr4-2400"), np.zeros(bursts.size, np.bool_), bursts)
    columns = (values.tolist() for values in (at.bank, at.row, at.column))
    return {where: burst for burst, where in enumerate(zip(*columns, strict=True))}


def sent(passes: list[list[int]], chunk: int = 1, behind: Cache | None = None, channels: int = 1) -> Sent:
    """What reaches the first channel, as lines of that channel, and that the counts are of it all."""
    spec = load("ddr4-2400")
    found, _, read, written = _bursts_of(np.array(passes, np.int64), chunk, behind, channels, spec)
    if channels == 1:
        assert (read, written) == (int((~found.write).sum()), int(found.write.sum()))
    where = zip(*(v.tolist() for v in (found.bank, found.row, found.column)), strict=True)
    return list(zip(map(numbers().__getitem__, where), found.write.tolist(), found.arrival.tolist(), strict=True))


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


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=300),
    st.integers(0, 4),
    st.sampled_from([(4, 3), (1, 2), (5, 1)]),
)
def test_a_cache_misses_fetches_ahead_and_writes_back_as_a_dictionary_does(
    accesses: list[tuple[int, bool]], prefetched: int, shape: tuple[int, int]
) -> None:
    sets, ways = shape
    passes = [[0, 0, 0, 0, line, 1, 1] if write else [line, 1, 0, 0, 0, 0, 1] for line, write in accesses]
    held: list[OrderedDict[int, bool]] = [OrderedDict() for _ in range(sets)]
    expected: Sent = []

    def touch(clock: int, wanted: int, is_write: bool) -> None:
        lines = held[wanted % sets]
        if wanted not in lines and len(lines) == ways:
            victim, dirty = lines.popitem(last=False)
            expected.extend([(victim, True, clock)] * dirty)
        if wanted not in lines and not is_write:
            expected.append((wanted, False, clock))
        lines[wanted] = lines.pop(wanted, False) or is_write

    for clock, (wanted, is_write) in enumerate(accesses):
        misses = wanted not in held[wanted % sets] and not is_write
        follows = wanted - 1 in held[(wanted - 1) % sets]
        touch(clock, wanted, is_write)
        for ahead in range(wanted + 1, wanted + 1 + prefetched if misses and follows else 0):
            if ahead not in held[ahead % sets]:
                touch(clock, ahead, False)
    last = len(accesses) - 1
    expected += [(wanted, True, last) for lines in held for wanted, dirty in reversed(lines.items()) if dirty]
    assert sent(passes, behind=Cache(sets * ways * 64, ways, prefetched)) == expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 500)),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([1, 3, 64]),
)
def test_a_pass_reads_and_writes_its_tensors_in_proportion(sizes: list[tuple[int, ...]], chunk: int) -> None:
    """Whichever tensor is least far goes on, a chunk at a time; clocks are spread evenly over the lines."""
    passes, expected, begun = [], [], 0
    for k, (weights, ifm, ofm, clocks) in enumerate(sizes):
        at = [1000 * k, 1000 * k + 100, 1000 * k + 200]
        lengths, done = [weights, ifm, ofm], [0, 0, 0]
        passes.append([at[0], weights, at[1], ifm, at[2], ofm, clocks])
        total = sum(lengths)
        while sum(done) < total:
            least = min((t for t in range(3) if done[t] < lengths[t]), key=lambda t: (Fraction(done[t], lengths[t]), t))
            for _ in range(min(chunk, lengths[least] - done[least])):
                expected.append((at[least] + done[least], least == 2, begun + clocks * sum(done) // total))
                done[least] += 1
        begun += clocks
    assert sent(passes, chunk) == expected
    of_three = [(line // 3, write, clock) for line, write, clock in expected if line % 3 == 0]
    assert sent(passes, chunk, channels=3) == of_three


def test_prefetching_a_stream_changes_its_order_in_time_but_not_its_lines() -> None:
    stream = [[line, 1, 0, 0, 0, 0, 1] for line in range(1000)]
    plain, ahead = (sent(stream, behind=Cache(1 << 16, 16, prefetched)) for prefetched in (0, 4))
    lines = [line for line, _, _ in ahead]
    assert sorted(lines) == list(range(len(lines)))
    assert {line for line, _, _ in plain} == set(range(1000))
    earlier = [then - now for (_, _, then), (_, _, now) in zip(plain, ahead[:1000], strict=True)]
    assert min(earlier) >= 0
    assert sum(each > 0 for each in earlier) > 700


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
    assert row["stall_share"] == cell.stall_share
    assert saving.row(cell, stall=1.0)["speed_up"] == pytest.approx(1 / cell.time_ratio - 1)
    assert list(saving.averages([cell])) == []  # no figure of the paper's to stand beside


def test_a_platform_waits_for_dram_as_much_longer_as_it_takes_than_computing_alone() -> None:
    """Computing infinitely fast, all of its time; infinitely slowly, none of it."""
    layers, points = NETWORKS["LeNet"](), saving.Points.load()
    for multiplications, share in ((1e20, 1.0), (1e6, 0.0)):
        platform = replace(PLATFORMS["CPU"], multiplications=multiplications)
        cell = saving.evaluate("LeNet", layers, platform, Precision.FP32, points)
        assert cell.stall_share == pytest.approx(share, abs=1e-3)
        assert saving.row(cell)["speed_up"] == pytest.approx(share * (1 / cell.time_ratio - 1), abs=1e-3)
    between = saving.evaluate("LeNet", layers, PLATFORMS["CPU"], Precision.FP32, points)
    assert 0.05 < between.stall_share < 0.95
    assert between.fastest < between.paced_ratio < 1


def test_averages_stand_beside_the_papers_figures() -> None:
    layers = NETWORKS["SqueezeNet1.1"]()[:2]
    points = saving.Points.load()
    cell = saving.evaluate("SqueezeNet1.1", layers, PLATFORMS["GPU"], Precision.FP32, points)
    (average,) = saving.averages([cell])
    assert (average["paper_energy_saved"], average["paper_speed_up_most"]) == (0.37, 0.055)
    assert average["energy_saved"] == saving.row(cell)["energy_saved"]
    assert "The paper's 37% of energy lies outside the" in average["sentence"]


def test_a_cell_is_the_same_after_json() -> None:
    cell = saving.evaluate("LeNet", NETWORKS["LeNet"](), PLATFORMS["CPU"], Precision.INT8, saving.Points.load())
    assert saving.Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell
