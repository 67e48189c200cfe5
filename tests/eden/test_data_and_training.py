"""Splits share no image, training repeats by seed, and the default baseline is as good as promised."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eden.datasets import Dataset, Split, mnist5000, stratified_split
from eden.inference import evaluate
from eden.networks import build
from eden.precision import Precision
from eden.training import Hooks, Training, shift_randomly, train, train_baseline
from profiles.errors import NetworkError


def test_mnist_splits_are_balanced_and_share_no_image() -> None:
    data = mnist5000()
    assert [len(split) for split in (data.train, data.validation, data.test)] == [3000, 1000, 1000]
    for split in (data.train, data.validation, data.test):
        assert split.images.shape[1:] == (1, 28, 28)
        assert torch.bincount(split.labels).unique().numel() == 1
        assert abs(float(split.images.mean())) < 0.1
    images = torch.cat([data.train.images, data.validation.images, data.test.images]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 5000


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_a_stratified_split_is_disjoint_and_repeats(seed: int) -> None:
    labels = np.repeat(np.arange(3), 20)
    sets = stratified_split(labels, (5, 7), seed)
    assert [np.bincount(labels[chosen]).tolist() for chosen in sets] == [[5] * 3, [7] * 3]
    assert np.intersect1d(*sets).size == 0
    assert all(np.array_equal(a, b) for a, b in zip(sets, stratified_split(labels, (5, 7), seed), strict=True))


def test_networks_are_built_by_name_and_seed() -> None:
    state = torch.get_rng_state()
    first, second, other = build("lenet", 1), build("lenet", 1), build("lenet", 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(value.numel() for value in first.parameters()) == 61_706
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    with pytest.raises(NetworkError, match="no network 'resnet'; choose from g2p, lenet"):
        build("resnet", 0)


def test_images_shift_by_whole_pixels_and_not_beyond() -> None:
    images = torch.zeros(50, 1, 9, 9)
    images[:, :, 4, 4] = 1.0
    moved = shift_randomly(images, 2, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(50))
    at = moved.flatten(1).argmax(1)
    assert set((at // 9).tolist()) == set((at % 9).tolist()) == {2, 3, 4, 5, 6}
    assert torch.equal(shift_randomly(images, 0, torch.Generator()), images)


def test_hooks_run_in_order() -> None:
    log: list[str] = []
    hooks = Hooks(lambda e: log.append(f"before {e}"), lambda e: log.append("step"), lambda e: log.append(f"after {e}"))
    split = Split(torch.randn(6, 4), torch.zeros(6, dtype=torch.int64))
    train(nn.Linear(4, 2), split, Training(2, 1e-3, batch=3, shift_pixels=0), 0, hooks=hooks)
    assert log == ["before 0", "step", "step", "after 0", "before 1", "step", "step", "after 1"]


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP32])
def test_training_repeats_by_seed(precision: Precision) -> None:
    full = mnist5000()
    data = Dataset("small", full.train.first(256), full.validation, full.test)
    short = Training(epochs=1, learning_rate=1e-3)
    first, second = (train_baseline("lenet", precision, data, 3, short, short) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.formats == second.formats


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.INT4, Precision.INT8])
def test_the_default_baseline_classifies_validation_images(precision: Precision) -> None:
    data = mnist5000()
    network = train_baseline("lenet", precision, data, 0)
    assert evaluate(network, data.validation.images, data.validation.labels).accuracy > 0.965
