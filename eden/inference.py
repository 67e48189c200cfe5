"""Accuracy of a network in approximate memory, with its uncertainty, and whether a prediction agrees with it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import stats

from eden.approximate import ApproximateNetwork
from eden.memory import ApproximateMemory
from profiles.errors import NetworkError
from profiles.progress import Progress, silent

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Accuracy:
    """Share of images classified right.

    Attributes:
        correct, total: images.
        low, high: Clopper-Pearson interval at 95 %, over images drawn from the same population. Errors of weights are
            shared by a batch, so it does not cover another draw of errors: see `predict_accuracy`.
        correct_images: bool[total], for paired comparisons.
    """

    correct: int
    total: int
    low: float
    high: float
    correct_images: torch.Tensor

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


@dataclass(frozen=True)
class Prediction:
    """Accuracy on given images, over draws of errors (and maps of weak cells, where the memories draw them).

    Attributes:
        mean: over the draws.
        low, high: where 95 % of single runs are expected (Student's t), within 0..1.
        draws: accuracy of each run.
        total: images in each run.
    """

    mean: float
    low: float
    high: float
    draws: tuple[float, ...]
    total: int


def evaluate(
    network: ApproximateNetwork,
    images: torch.Tensor,
    labels: torch.Tensor,
    batch: int = 100,
    progress: Progress = silent,
) -> Accuracy:
    """Classify ``images`` with every weight and IFM read from the network's memory, in batches of ``batch``.

    Weights are read anew for each batch, IFMs for each image.

    Raises:
        NetworkError: no images, or another number of labels.
    """
    correct = correct_images(network, images, labels, batch, progress)
    right, total = int(correct.sum()), correct.numel()
    low, high = clopper_pearson(right, total)
    return Accuracy(right, total, low, high, correct)


def correct_images(
    network: ApproximateNetwork,
    images: torch.Tensor,
    labels: torch.Tensor,
    batch: int,
    progress: Progress = silent,
) -> torch.Tensor:
    """Which of ``images`` are classified right: bool[n]. A NaN among an image's outputs counts as wrong.

    Of sequences, labels [n, length] with outputs [n, classes, length], those whose every position is right.
    """
    if not len(images) or len(images) != len(labels):
        raise NetworkError(
            f"{len(images)} images and {len(labels)} labels; give as many labels, and at least one image"
        )
    was_training = network.training
    network.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            outputs = network(images[start : start + batch].to(network.device)).cpu()
            right = (outputs.argmax(dim=1) == labels[start : start + batch]) & ~outputs.isnan().any(dim=1)
            found.append(right.flatten(1).all(dim=1) if right.dim() > 1 else right)
            progress(min(start + batch, len(images)), len(images))
    network.train(was_training)
    return torch.cat(found)


def clopper_pearson(correct: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact binomial confidence interval of ``correct`` successes out of ``total`` independent trials."""
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, correct, total - correct + 1)) if correct else 0.0
    high = float(stats.beta.ppf(1 - tail, correct + 1, total - correct)) if correct < total else 1.0
    return low, high


def predict_accuracy(
    network: ApproximateNetwork,
    memory_of: Callable[[int], ApproximateMemory],
    images: torch.Tensor,
    labels: torch.Tensor,
    draws: int = 10,
    batch: int = 100,
    progress: Progress = silent,
) -> Prediction:
    """What accuracy to expect of one run, from ``draws`` runs over the memories ``memory_of(0), memory_of(1) ...``.

    The network's own memory is put back afterwards. Raises NetworkError for fewer than two draws.
    """
    if draws < 2:
        raise NetworkError(f"{draws} draws show no spread; ask for at least 2")
    before = network.memory
    accuracies = []
    try:
        for draw in range(draws):
            network.memory = memory_of(draw)
            accuracies.append(evaluate(network, images, labels, batch).accuracy)
            progress(draw + 1, draws)
    finally:
        network.memory = before
    values = torch.tensor(accuracies, dtype=torch.float64)
    mean, spread = float(values.mean()), float(values.std())
    reach = _student(draws) * spread * math.sqrt(1 + 1 / draws)
    return Prediction(mean, max(0.0, mean - reach), min(1.0, mean + reach), tuple(accuracies), len(images))


def joint_uncertainty(measured: Accuracy, predicted: Prediction) -> float:
    """How far a measurement and its prediction may lie apart by chance (95 %).

    Both ran on the same images, so what the images are cancels; what is left is the draw of errors in each. The spread
    between predicted runs gives it for both, and never less than that of one image, the resolution of an accuracy.
    """
    draws = len(predicted.draws)
    spread = float(torch.tensor(predicted.draws, dtype=torch.float64).std())
    return _student(draws) * max(spread, 1 / measured.total) * math.sqrt(1 + 1 / draws)


def agrees(measured: Accuracy, predicted: Prediction) -> bool:
    """Whether ``measured`` lies within the joint uncertainty of ``predicted``.

    Raises:
        NetworkError: they are of different numbers of images.
    """
    if measured.total != predicted.total:
        raise NetworkError(f"measured on {measured.total} images, predicted on {predicted.total}; use the same images")
    return abs(measured.accuracy - predicted.mean) <= joint_uncertainty(measured, predicted)


def _student(draws: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, draws - 1))
