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


def resnet8() -> nn.Module:
    """ResNet-8 for [n, 1, 28, 28] images of ten classes: 77,418 parameters once folded.

    The CIFAR networks of He et al. in their smallest form, as in MLPerf Tiny: three stages of one block with 16, 32 and
    64 channels. The first convolution has stride 2, for images half as wide are a quarter of the work.
    """
    return nn.Sequential(
        ConvNorm(1, 16, 3, stride=2),
        nn.ReLU(),
        ResidualBlock(16, 16, 1),
        ResidualBlock(16, 32, 2),
        ResidualBlock(32, 64, 2),
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


NETWORKS: dict[str, Callable[[], nn.Module]] = {"lenet": lenet, "resnet8": resnet8}


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
