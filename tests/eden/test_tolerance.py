"""The search finds planted tolerances, its intervals cover, and what it finds tensor by tensor holds together."""

import numpy as np
import pytest
import torch
from torch import nn

from eden.approximate import ApproximateNetwork
from eden.datasets import Split
from eden.memory import BitErrorMemory
from eden.precision import Precision
from eden.tolerance import AccuracyMeter, Sampling, coarse, fine
from profiles.errors import NetworkError

CLASSES = 16


@pytest.fixture(scope="module")
def copying_network() -> ApproximateNetwork:
    """Returns its input; the bias is empty words that no class needs, so that it tolerates whatever happens."""
    layer = nn.Linear(CLASSES, CLASSES)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(CLASSES))
        layer.bias.fill_(0.0)
    network = ApproximateNetwork(layer, Precision.INT8)
    network.calibrate([torch.eye(CLASSES)])
    return network.eval()


@pytest.fixture(scope="module")
def images() -> Split:
    return Split(torch.eye(CLASSES).repeat(20, 1), torch.arange(CLASSES).repeat(20))


def test_the_interval_covers_the_true_accuracy(copying_network: ApproximateNetwork, images: Split) -> None:
    many = AccuracyMeter(copying_network, images, Sampling(draws=100, batch=16, seed=99))
    truth = many.at(0.01, lambda seed: BitErrorMemory(0.01, seed)).accuracy
    assert 0.5 < truth < 0.999
    covered = 0
    for seed in range(40):
        meter = AccuracyMeter(copying_network, images, Sampling(draws=2, batch=16, seed=seed))
        point = meter.at(0.01, lambda draw: BitErrorMemory(0.01, draw))
        covered += point.low <= truth <= point.high
    assert covered >= 33  # 95 % of 40 is 38; fewer than 33 has a chance below 1 %


def test_coarse_brackets_the_rate_where_accuracy_crosses_the_target(
    copying_network: ApproximateNetwork, images: Split
) -> None:
    found = coarse(copying_network, BitErrorMemory, images, 0.05, 1.0, Sampling(draws=6, batch=16))
    assert found.target == 0.95
    assert found.ber < found.ceiling <= found.ber * 1.1
    assert [point.ber for point in found.curve] == sorted(point.ber for point in found.curve)
    by_ber = {point.ber: point.low for point in found.curve}
    assert by_ber[found.ber] >= 0.95 > by_ber[found.ceiling]
    meter = AccuracyMeter(copying_network, images, Sampling(draws=60, batch=16, seed=5))
    assert meter.at(0, lambda s: BitErrorMemory(found.ber / 1.5, s)).accuracy > 0.95
    assert meter.at(0, lambda s: BitErrorMemory(found.ceiling * 2, s)).accuracy < 0.95
    assert coarse(copying_network, BitErrorMemory, images, 0.05, 1.0, Sampling(draws=6, batch=16)) == found


def test_a_network_that_always_or_never_meets_the_target(copying_network: ApproximateNetwork, images: Split) -> None:
    always = coarse(copying_network, BitErrorMemory, images, 1.0, 1.0, Sampling(1))
    assert (always.ber, always.ceiling) == (0.25, np.inf)
    never = coarse(copying_network, BitErrorMemory, images, 0.0, 1.01, Sampling(1))
    assert never.ber == 0.0


def test_fine_raises_what_does_not_matter_and_the_whole_holds(
    copying_network: ApproximateNetwork, images: Split
) -> None:
    found = coarse(copying_network, BitErrorMemory, images, 0.05, 1.0, Sampling(draws=6, batch=16))
    result = fine(copying_network, BitErrorMemory, images, 0.05, 1.0, found.ber, Sampling(2, 16), sample_images=160)
    assert set(result.ber) == {tensor.name for tensor in copying_network.tensors()}
    assert result.ber["bias"] > 5 * found.ber  # zeros in a range of nothing but zero: every error is corrected
    assert min(result.ber.values()) >= found.ber / 2 * 0.999
    assert result.accuracy.accuracy >= result.target


def test_impossible_searches_are_refused(copying_network: ApproximateNetwork, images: Split) -> None:
    with pytest.raises(NetworkError, match="start 0"):
        coarse(copying_network, BitErrorMemory, images, 0.01, 1.0, start_ber=0)
    with pytest.raises(NetworkError, match="gives nothing to start from"):
        fine(copying_network, BitErrorMemory, images, 0.01, 1.0, 0.0)
    with pytest.raises(NetworkError, match="misses"):
        fine(copying_network, BitErrorMemory, images, 0.0, 1.0, 0.2, Sampling(1, 16), sample_images=32)
