"""Accuracies carry their uncertainty; predictions are judged by the spread of draws."""

import pytest
import torch
from torch import nn

from eden.approximate import ApproximateNetwork
from eden.inference import Accuracy, Prediction, agrees, clopper_pearson, evaluate, joint_uncertainty, predict_accuracy
from eden.memory import BitErrorMemory, ReliableMemory
from eden.precision import Precision
from profiles.errors import NetworkError


@pytest.fixture
def copying_network() -> ApproximateNetwork:
    """A network that returns its input: an image is right where its largest element is at its label."""
    layer = nn.Linear(10, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(10))
        layer.bias.zero_()
    network = ApproximateNetwork(layer, Precision.INT8)
    network.calibrate([torch.eye(10)])
    return network


def test_accuracy_counts_images_and_brackets_the_share(copying_network: ApproximateNetwork) -> None:
    images = torch.eye(10).repeat(3, 1)
    labels = torch.arange(10).repeat(3)
    labels[:3] = 9
    result = evaluate(copying_network, images, labels, batch=7)
    assert (result.correct, result.total, result.accuracy) == (27, 30, 0.9)
    assert result.correct_images.tolist() == [False] * 3 + [True] * 27
    assert (result.low, result.high) == pytest.approx((0.7347, 0.9789), abs=1e-4)  # R: binom.test(27, 30)


def test_not_a_number_is_not_right() -> None:
    class Broken(nn.Linear):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return super().forward(values) * float("nan")

    network = ApproximateNetwork(Broken(10, 10), Precision.FP32)
    network.calibrate([torch.eye(10)])
    assert evaluate(network, torch.eye(10), torch.zeros(10, dtype=torch.int64)).correct == 0


def test_intervals_at_the_ends() -> None:
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert clopper_pearson(10, 10) == pytest.approx((0.6915, 1.0), abs=1e-4)


def test_a_prediction_repeats_and_leaves_the_memory_as_it_was(copying_network: ApproximateNetwork) -> None:
    images, labels = torch.eye(10).repeat(10, 1), torch.arange(10).repeat(10)
    memory = copying_network.memory = ReliableMemory()
    first = predict_accuracy(copying_network, lambda seed: BitErrorMemory(0.02, seed), images, labels, 5)
    second = predict_accuracy(copying_network, lambda seed: BitErrorMemory(0.02, seed), images, labels, 5)
    assert first == second
    assert copying_network.memory is memory
    assert len(set(first.draws)) > 1
    assert first.low <= min(first.draws) <= first.mean <= first.high


def accuracy(correct: int, total: int = 1000) -> Accuracy:
    return Accuracy(correct, total, *clopper_pearson(correct, total), torch.zeros(0))


def test_agreement_is_judged_by_the_spread_of_draws() -> None:
    predicted = Prediction(0.95, 0.94, 0.96, (0.945, 0.95, 0.955, 0.95), 1000)
    allowed = joint_uncertainty(accuracy(950), predicted)
    assert 0.01 < allowed < 0.02
    assert agrees(accuracy(950 + int(allowed * 1000)), predicted)
    assert not agrees(accuracy(949 - int(allowed * 1000)), predicted)


def test_draws_without_spread_still_allow_an_image_or_so() -> None:
    predicted = Prediction(0.95, 0.95, 0.95, (0.95,) * 10, 1000)
    assert agrees(accuracy(948), predicted)
    assert not agrees(accuracy(945), predicted)


def test_misuse_is_refused(copying_network: ApproximateNetwork) -> None:
    with pytest.raises(NetworkError, match="10 images and 9 labels"):
        evaluate(copying_network, torch.eye(10), torch.zeros(9))
    with pytest.raises(NetworkError, match="1 draws show no spread"):
        predict_accuracy(copying_network, lambda seed: ReliableMemory(), torch.eye(10), torch.zeros(10), 1)
    with pytest.raises(NetworkError, match="same images"):
        agrees(accuracy(1, 10), Prediction(0.1, 0, 1, (0.1, 0.1), 20))
