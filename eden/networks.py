"""Networks by name. To add one: write a function that returns the module, and register it in `NETWORKS`."""

from collections.abc import Callable

import torch
from torch import nn

from profiles.errors import NetworkError


def lenet() -> nn.Module:
    """LeNet-5 with ReLU and max pooling for [n, 1, 28, 28] images of ten classes: 61,706 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"lenet": lenet}


def build(name: str, seed: int) -> nn.Module:
    """The network ``name`` with initial weights drawn from ``seed``; torch's own random state stays as it is.

    Raises:
        NetworkError: no such network.
    """
    if name not in NETWORKS:
        raise NetworkError(f"no network {name!r}; choose from {', '.join(sorted(NETWORKS))}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETWORKS[name]()
