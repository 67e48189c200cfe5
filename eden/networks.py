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


class SpellingReader(nn.Module):
    """Labels each letter of a word with its phonemes (`eden.spelling`): two bidirectional GRUs, then a linear layer."""

    def __init__(self, letters: int, labels: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, width)
        self.first = nn.GRU(width, hidden, batch_first=True, bidirectional=True)
        self.second = nn.GRU(2 * hidden, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, labels)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Words int64[n, length] to logits float32[n, labels, length]."""
        states, _ = self.first(self.embedding(words))
        states, _ = self.second(states)
        logits: torch.Tensor = self.head(states)
        return logits.transpose(1, 2)


def g2p() -> nn.Module:
    """Grapheme-to-phoneme conversion of words of up to 12 letters: 267,488 parameters."""
    return SpellingReader(letters=27, labels=128, width=32, hidden=96)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"lenet": lenet, "g2p": g2p}


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
