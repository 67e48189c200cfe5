"""Networks by name. To add one: write a function that returns the module, and register it in `NETWORKS`.

Batch norm helps training only: once trained it is a factor and a constant for each channel, and `folded` puts these
into the convolution before it. So a folded network keeps in memory what an accelerator would: a convolution's weights
and biases, and its input.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from eden.efficientnet import efficientnet_lite0
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


class SpeakerEncoder(nn.Module):
    """A speaker encoder, and how near a clip comes to each voice: LSTMs, a linear layer, and cosines.

    As many LSTMs of one layer each as resemblyzer's encoder has layers, so that what passes between them is an IFM.
    """

    def __init__(self, bands: int, hidden: int, layers: int, voices: int) -> None:
        super().__init__()
        sizes = [bands] + [hidden] * (layers - 1)
        self.layers = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.linear = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, voices, bias=False)

    def embedding(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips float32[n, frames, bands] to vectors of length 1, float32[n, hidden]."""
        for layer in self.layers:
            clips, _ = layer(clips)
        return nn.functional.normalize(torch.relu(self.linear(clips[:, -1])))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips float32[n, frames, bands] to logits float32[n, voices]."""
        logits: torch.Tensor = self.head(self.embedding(clips))
        return logits


def speaker() -> nn.Module:
    """Recognition of five speakers by their voices (`eden.speech`): 1,424,896 parameters."""
    return SpeakerEncoder(bands=40, hidden=256, layers=3, voices=5)


def resnet8() -> nn.Module:
    """ResNet-8 for [n, 1, 28, 28] images of ten classes, as in MLPerf Tiny: 77,418 parameters once folded."""
    return _resnet(1)


def resnet20() -> nn.Module:
    """ResNet-20 for [n, 1, 28, 28] images of ten classes: 271,402 parameters once folded."""
    return _resnet(3)


def _resnet(blocks: int) -> nn.Module:
    """The CIFAR networks of He et al.: three stages of ``blocks`` blocks with 16, 32 and 64 channels.

    The first convolution has stride 2, for images half as wide are a quarter of the work.
    """
    shapes = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
    return nn.Sequential(
        ConvNorm(1, 16, 3, stride=2),
        nn.ReLU(),
        *(
            ResidualBlock(outputs if later else inputs, outputs, 1 if later else stride)
            for inputs, outputs, stride in shapes
            for later in range(blocks)
        ),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class ConvNorm(nn.Module):
    """A convolution that keeps the size (but for its stride), then batch norm, until that is `folded` into it."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, channels, h, w] to [n, out_channels, h / stride, w / stride]."""
        normed: torch.Tensor = self.norm(self.conv(images))
        return normed


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, out_channels, 3, stride)
        self.second = ConvNorm(out_channels, out_channels, 3)
        same = channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(channels, out_channels, 1, stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, channels, h, w] to [n, out_channels, h / stride, w / stride]."""
        return torch.relu(self.second(torch.relu(self.first(images))) + self.shortcut(images))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet": lenet,
    "lenet-fashion": lenet,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "g2p": g2p,
    "speaker": speaker,
    "efficientnet-lite0": efficientnet_lite0,
}


def folded(module: nn.Module) -> nn.Module:
    """A copy, in evaluation mode, whose batch norms are folded into the convolutions before them (`ConvNorm`).

    On the same input it gives what the module gives in evaluation mode, but for rounding.
    """
    copied = copy.deepcopy(module).eval()
    for layer in copied.modules():
        if isinstance(layer, ConvNorm) and isinstance(layer.norm, nn.BatchNorm2d):
            layer.conv, layer.norm = fuse_conv_bn_eval(layer.conv, layer.norm), nn.Identity()
    return copied


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
