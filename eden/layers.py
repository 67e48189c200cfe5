"""Shapes of a network's layers, from any ``nn.Module``, and of the networks that the EDEN paper studies.

Every layer is a convolution of ``groups`` groups; a fully connected one is a convolution of one position. Layers
without weights (activations, pooling, adding) are fused with the one before, and move nothing of their own;
parameters of normalisation count with that layer's weights.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from profiles.errors import NetworkError


@dataclass(frozen=True)
class Layer:
    """One layer, for one image.

    Attributes:
        name: its path in the network.
        inputs, height, width: its input feature map (IFM).
        outputs, rows, columns: its output feature map.
        kernel: rows and columns of its filters.
        stride: of its filters, in rows.
        groups: of channels that do not meet.
        weights: elements of its filters, biases and normalisation; none in a product of two feature maps (attention).
        second: elements of that product's second feature map.
    """

    name: str
    inputs: int
    height: int
    width: int
    outputs: int
    rows: int
    columns: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    groups: int = 1
    weights: int = 0
    second: int = 0

    @property
    def ifm(self) -> int:
        """Elements that it reads as feature maps."""
        return self.inputs * self.height * self.width + self.second

    @property
    def ofm(self) -> int:
        return self.outputs * self.rows * self.columns

    @property
    def multiplications(self) -> int:
        return self.ofm * (self.inputs // self.groups) * self.kernel[0] * self.kernel[1]


def layers_of(module: nn.Module, *inputs: torch.Tensor) -> list[Layer]:
    """The layers that a forward pass over ``inputs`` (of one image) reaches, in order, by hooks.

    Convolutions and linear layers are seen as they are; normalisation is fused; any other leaf module with parameters
    counts as a linear layer of its weights. Products of two feature maps (attention) have no module, and are not seen.

    Raises:
        NetworkError: no layer with weights was reached.
    """
    found: list[Layer] = []
    handles = [
        leaf.register_forward_hook(_hook(found, path or "network"))
        for path, leaf in module.named_modules()
        if next(leaf.parameters(recurse=False), None) is not None
    ]
    was_training = module.training
    try:
        module.eval()
        with torch.no_grad():
            module(*inputs)
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    if not found:
        raise NetworkError("no layer with weights was reached; give the network an input that it takes")
    return found


def _hook(found: list[Layer], path: str) -> Any:
    def see(leaf: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        parameters = sum(parameter.numel() for parameter in leaf.parameters(recurse=False))
        if isinstance(leaf, _NormBase | nn.LayerNorm | nn.GroupNorm):
            if found:
                found[-1] = dataclasses.replace(found[-1], weights=found[-1].weights + parameters)
            return
        source = next(value for value in inputs if isinstance(value, torch.Tensor))
        target = output if isinstance(output, torch.Tensor) else output[0]
        found.append(_layer(path, leaf, parameters, source, target))

    return see


def _layer(path: str, leaf: nn.Module, parameters: int, source: torch.Tensor, target: torch.Tensor) -> Layer:
    if isinstance(leaf, nn.Conv2d | nn.Conv1d):
        (height, width), (rows, columns) = _plane(source), _plane(target)
        kernel = (1, *leaf.kernel_size)[-2:]
        return Layer(
            *(path, leaf.in_channels, height, width, leaf.out_channels, rows, columns),
            *((int(kernel[0]), int(kernel[1])), int(leaf.stride[0]), leaf.groups, parameters),
        )
    if isinstance(leaf, nn.Linear):
        positions = source.numel() // leaf.in_features
        return Layer(path, leaf.in_features, positions, 1, leaf.out_features, positions, 1, weights=parameters)
    read = target.numel() if isinstance(leaf, nn.Embedding) else parameters
    inputs = source.numel()
    return Layer(path, inputs, 1, 1, target.numel(), 1, 1, groups=inputs, weights=read)


def _plane(feature_map: torch.Tensor) -> tuple[int, int]:
    """Height and width of a convolution's [n, channels, (height,) width]."""
    height, width = (1, *feature_map.shape[2:])[-2:]
    return int(height), int(width)


class _Network:
    """Builds a list of layers, keeping the shape of the feature map."""

    def __init__(self, channels: int, size: int) -> None:
        self.layers: list[Layer] = []
        self.channels, self.size = channels, size

    def convolve(
        self,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        extra: int = 1,
    ) -> "_Network":
        """``extra`` weights a channel: 1 for a bias, 2 for a normalisation instead."""
        padding = kernel // 2 if padding is None else padding
        size = (self.size + 2 * padding - kernel) // stride + 1
        weights = outputs * (self.channels // groups * kernel**2 + extra)
        self.layers.append(
            Layer(
                *(f"conv{len(self.layers)}", self.channels, self.size, self.size, outputs, size, size),
                *((kernel, kernel), stride, groups, weights),
            )
        )
        self.channels, self.size = outputs, size
        return self

    def pool(self, kernel: int, stride: int, padding: int = 0, ceil: bool = False) -> "_Network":
        span = self.size + 2 * padding - kernel
        self.size = (-(-span // stride) if ceil else span // stride) + 1
        return self

    def connect(self, outputs: int) -> "_Network":
        """A fully connected layer with bias, over the whole feature map."""
        inputs = self.channels * self.size**2
        weights = outputs * (inputs + 1)
        self.layers.append(Layer(f"linear{len(self.layers)}", inputs, 1, 1, outputs, 1, 1, weights=weights))
        self.channels, self.size = outputs, 1
        return self

    def normalise(self) -> None:
        """Parameters of a normalisation ahead of the next layer, counted with the last."""
        last = self.layers[-1]
        self.layers[-1] = dataclasses.replace(last, weights=last.weights + 2 * self.channels)


def lenet() -> list[Layer]:
    """Caffe's LeNet, 28 x 28 x 1: 431,080 parameters, the 1.65 MB that the paper gives for it."""
    net = _Network(1, 28).convolve(20, 5, padding=0).pool(2, 2).convolve(50, 5, padding=0).pool(2, 2)
    return net.connect(500).connect(10).layers


def alexnet() -> list[Layer]:
    """AlexNet of one column (Krizhevsky, 2014), 224 x 224: 61,100,840 parameters."""
    net = _Network(3, 224).convolve(64, 11, 4, 2).pool(3, 2).convolve(192, 5).pool(3, 2)
    net.convolve(384, 3).convolve(256, 3).convolve(256, 3).pool(3, 2)
    return net.connect(4096).connect(4096).connect(1000).layers


def vgg16() -> list[Layer]:
    """VGG-16 (Simonyan and Zisserman, 2015), configuration D, 224 x 224: 138,357,544 parameters."""
    net = _Network(3, 224)
    for outputs, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            net.convolve(outputs, 3)
        net.pool(2, 2)
    return net.connect(4096).connect(4096).connect(1000).layers


def resnet101() -> list[Layer]:
    """ResNet-101 (He et al., 2016), 224 x 224, stride in the 3 x 3 layer: 44,549,160 parameters."""
    net = _Network(3, 224).convolve(64, 7, 2, extra=2).pool(3, 2, 1)
    for stage, repeats in enumerate((3, 4, 23, 3)):
        width = 64 << stage
        for block in range(repeats):
            stride = 2 if block == 0 and stage > 0 else 1
            if block == 0:
                shape = net.channels, net.size
                net.convolve(4 * width, 1, stride, extra=2)
                net.channels, net.size = shape
            net.convolve(width, 1, extra=2).convolve(width, 3, stride, extra=2).convolve(4 * width, 1, extra=2)
    net.pool(net.size, 1)
    return net.connect(1000).layers


def densenet201() -> list[Layer]:
    """DenseNet-201 (Huang et al., 2017), growth 32, 224 x 224: 20,013,928 parameters."""
    net = _Network(3, 224).convolve(64, 7, 2, extra=2).pool(3, 2, 1)
    for stage, repeats in enumerate((6, 12, 48, 32)):
        for _ in range(repeats):
            channels = net.channels
            net.normalise()
            net.convolve(128, 1, extra=2).convolve(32, 3, extra=0)
            net.channels = channels + 32
        net.normalise()
        if stage < 3:
            net.convolve(net.channels // 2, 1, extra=0).pool(2, 2)
    net.pool(net.size, 1)
    return net.connect(1000).layers


def squeezenet() -> list[Layer]:
    """SqueezeNet 1.1 (Iandola et al., 2016), 224 x 224: 1,235,496 parameters."""
    net = _Network(3, 224).convolve(64, 3, 2, 0).pool(3, 2, ceil=True)
    for squeeze, expand, pooled in (
        *((16, 64, False), (16, 64, True), (32, 128, False), (32, 128, True)),
        *((48, 192, False), (48, 192, False), (64, 256, False), (64, 256, False)),
    ):
        net.convolve(squeeze, 1).convolve(expand, 1)
        net.channels = squeeze
        net.convolve(expand, 3)
        net.channels = 2 * expand
        if pooled:
            net.pool(3, 2, ceil=True)
    return net.convolve(1000, 1).layers


def mobilenet_v2() -> list[Layer]:
    """MobileNetV2 (Sandler et al., 2018) for CIFAR-10, 32 x 32, first strides 1: 2,236,682 parameters."""
    net = _Network(3, 32).convolve(32, 3, extra=2)
    for expansion, outputs, repeats, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for block in range(repeats):
            hidden = expansion * net.channels
            if expansion > 1:
                net.convolve(hidden, 1, extra=2)
            net.convolve(hidden, 3, stride if block == 0 else 1, groups=hidden, extra=2)
            net.convolve(outputs, 1, extra=2)
    net.convolve(1280, 1, extra=2)
    net.pool(net.size, 1)
    return net.connect(10).layers


def yolo() -> list[Layer]:
    """YOLOv3 (Redmon and Farhadi, 2018) for MSCOCO, 416 x 416: 61,949,149 parameters, the 237 MB of the paper."""
    net = _Network(3, 416).convolve(32, 3, extra=2)
    kept: list[tuple[int, int]] = []
    for stage, repeats in enumerate((1, 2, 8, 8, 4)):
        outputs = 64 << stage
        net.convolve(outputs, 3, 2, extra=2)
        for _ in range(repeats):
            net.convolve(outputs // 2, 1, extra=2).convolve(outputs, 3, extra=2)
        kept.append((net.channels, net.size))
    for scale, width in enumerate((512, 256, 128)):
        if scale:
            net.convolve(width, 1, extra=2)
            channels, net.size = kept[-1 - scale]
            net.channels += channels
        for _ in range(2):
            net.convolve(width, 1, extra=2).convolve(2 * width, 3, extra=2)
        net.convolve(width, 1, extra=2)
        shape = net.channels, net.size
        net.convolve(2 * width, 3, extra=2).convolve(255, 1)
        net.channels, net.size = shape
    return net.layers


def yolo_tiny() -> list[Layer]:
    """YOLOv3-tiny for MSCOCO, 416 x 416: 8,852,366 parameters, the 33.8 MB of the paper."""
    net = _Network(3, 416)
    for outputs in (16, 32, 64, 128, 256):
        net.convolve(outputs, 3, extra=2)
        fine = net.size
        net.pool(2, 2)
    net.convolve(512, 3, extra=2).convolve(1024, 3, extra=2).convolve(256, 1, extra=2)
    shape = net.channels, net.size
    net.convolve(512, 3, extra=2).convolve(255, 1)
    net.channels, net.size = shape
    net.convolve(128, 1, extra=2)
    net.channels, net.size = 128 + 256, fine
    return net.convolve(256, 3, extra=2).convolve(255, 1).layers


def transformer() -> list[Layer]:
    """A small encoder (Vaswani et al., 2017): 6 layers of 512, 8 heads, 2048 hidden, 128 positions; not EDEN's."""
    width, hidden, positions, heads = 512, 2048, 128, 8
    layers = []
    for block in range(6):
        for name, inputs, outputs in (
            *(("query", width, width), ("key", width, width), ("value", width, width), ("out", width, width)),
            *(("up", width, hidden), ("down", hidden, width)),
        ):
            norms = 2 * width if name in ("query", "up") else 0
            shape = (inputs, positions, 1, outputs, positions, 1)
            layers.append(Layer(f"{block}.{name}", *shape, weights=outputs * (inputs + 1) + norms))
        for name, inner, outer in (("scores", width // heads, positions), ("mix", positions, width // heads)):
            shape = (heads * inner, positions, 1, heads * outer, positions, 1)
            layers.insert(-3, Layer(f"{block}.{name}", *shape, groups=heads, second=heads * inner * outer))
    return layers


NETWORKS: dict[str, Callable[[], list[Layer]]] = {
    "ResNet101": resnet101,
    "AlexNet": alexnet,
    "LeNet": lenet,
    "MobileNetV2": mobilenet_v2,
    "VGG-16": vgg16,
    "DenseNet201": densenet201,
    "SqueezeNet1.1": squeezenet,
    "YOLO": yolo,
    "YOLO-Tiny": yolo_tiny,
    "transformer": transformer,
}
