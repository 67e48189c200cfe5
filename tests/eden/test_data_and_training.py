"""Splits share no image, training repeats by seed, and the default baseline is as good as promised."""

import contextlib
import copy
import gzip
import struct
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eden import datasets, training
from eden.approximate import ApproximateNetwork
from eden.datasets import Dataset, Split, fashion_mnist, mnist5000, read_idx, stratified_split
from eden.inference import evaluate
from eden.networks import build, folded
from eden.precision import Precision
from eden.training import Hooks, Recipe, Training, recipe, shift_randomly, train, train_baseline
from profiles.errors import NetworkError


def test_mnist_splits_are_balanced_and_share_no_image() -> None:
    data = mnist5000()
    assert [len(split) for split in (data.train, data.validation, data.test)] == [3000, 1000, 1000]
    for split in (data.train, data.validation, data.test):
        assert split.images.shape[1:] == (1, 28, 28)
        assert torch.bincount(split.labels).unique().numel() == 1
        assert abs(float(split.images.mean())) < 0.1
    images = torch.cat([data.train.images, data.validation.images, data.test.images]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 5000


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_a_stratified_split_is_disjoint_and_repeats(seed: int) -> None:
    labels = np.repeat(np.arange(3), 20)
    sets = stratified_split(labels, (5, 7), seed)
    assert [np.bincount(labels[chosen]).tolist() for chosen in sets] == [[5] * 3, [7] * 3]
    assert np.intersect1d(*sets).size == 0
    assert all(np.array_equal(a, b) for a, b in zip(sets, stratified_split(labels, (5, 7), seed), strict=True))


def test_networks_are_built_by_name_and_seed() -> None:
    state = torch.get_rng_state()
    first, second, other = build("lenet", 1), build("lenet", 1), build("lenet", 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(value.numel() for value in first.parameters()) == 61_706
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    with pytest.raises(
        NetworkError,
        match="no network 'resnet'; choose from efficientnet-lite0, g2p, lenet, ",
    ):
        build("resnet", 0)


def test_images_shift_by_whole_pixels_and_not_beyond() -> None:
    images = torch.zeros(50, 1, 9, 9)
    images[:, :, 4, 4] = 1.0
    moved = shift_randomly(images, 2, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(50))
    at = moved.flatten(1).argmax(1)
    assert set((at // 9).tolist()) == set((at % 9).tolist()) == {2, 3, 4, 5, 6}
    assert torch.equal(shift_randomly(images, 0, torch.Generator()), images)


def test_hooks_run_in_order() -> None:
    log: list[str] = []
    hooks = Hooks(
        begin=lambda course: log.append(f"begin {course.epoch}"),
        before_epoch=lambda e: log.append(f"before {e}"),
        after_step=lambda e: log.append("step"),
        after_epoch=lambda e: log.append(f"after {e}"),
        keep=lambda course: log.append(f"keep {course.epoch}"),
    )
    split = Split(torch.randn(6, 4), torch.zeros(6, dtype=torch.int64))
    train(nn.Linear(4, 2), split, Training(2, 1e-3, batch=3, shift_pixels=0), 0, hooks=hooks)
    first, second = (
        ["before 0", "step", "step", "after 0", "keep 1"],
        ["before 1", "step", "step", "after 1", "keep 2"],
    )
    assert log == ["begin 0", *first, *second]


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP32])
def test_training_repeats_by_seed(precision: Precision) -> None:
    full = mnist5000()
    data = Dataset("small", full.train.first(256), full.validation, full.test)
    short = Training(epochs=1, learning_rate=1e-3)
    first, second = (train_baseline("lenet", precision, data, 3, short, short) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.formats == second.formats


def test_a_network_with_dropout_trains_the_same_at_once_and_stopped() -> None:
    split = Split(torch.randn(24, 4, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 2)

    def trained(*stops: int) -> nn.Module:
        """In several goes, each in a process whose random state is anything."""
        torch.manual_seed(0)
        network, kept = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)), []

        class StoppedError(Exception):
            pass

        for stop in (*stops, 99):
            torch.manual_seed(stop)

            def end(epoch: int, _: int, stop: int = stop) -> None:
                if epoch == stop:
                    raise StoppedError

            hooks = Hooks(
                begin=lambda course: course.go_on(kept[-1]) if kept else None,
                keep=lambda course: kept.append(copy.deepcopy(course.state())),
            )
            before = torch.get_rng_state()
            with contextlib.suppress(StoppedError):
                train(network, split, Training(4, 1e-2, batch=8, shift_pixels=0), 3, hooks=hooks, progress=end)
            assert torch.equal(torch.get_rng_state(), before)
        return network

    whole = trained()
    for stops in ((1,), (1, 3)):
        assert all(torch.equal(a, b) for a, b in zip(trained(*stops).parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.BF16])
def test_training_goes_on_from_fp32s_network(precision: Precision) -> None:
    """Batch norms are in it: they are folded once."""
    full = mnist5000()
    data = Dataset("small", full.train.first(96), full.validation, full.test)
    short = Training(epochs=1, learning_rate=1e-3)
    trained = train_baseline("resnet8", Precision.FP32, data, 3, short, short).module
    reported: list[tuple[int, int]] = []
    whole = train_baseline("resnet8", precision, data, 3, short, short)
    rest = train_baseline(
        *("resnet8", precision, data, 3, Training(99, 1.0), short),
        progress=lambda done, total: reported.append((done, total)),
        trained_in_float=trained,
    )
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), rest.parameters(), strict=True))
    assert whole.formats == rest.formats
    assert reported == ([(1, 1)] if precision.is_integer else [])


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.INT4, Precision.INT8])
def test_the_default_baseline_classifies_validation_images(precision: Precision) -> None:
    data = mnist5000()
    network = train_baseline("lenet", precision, data, 0)
    assert evaluate(network, data.validation.images, data.validation.labels).accuracy > 0.965


# ---- Fashion-MNIST and its files -------------------------------------------------------------------------------------


def idx(type_code: int, shape: tuple[int, ...], data: bytes) -> bytes:
    """A gzipped IDX file, by the format's description: two zeros, type, dimensions, each size big endian, data."""
    header = bytes([0, 0, type_code, len(shape)]) + b"".join(struct.pack(">I", size) for size in shape)
    return gzip.compress(header + data, mtime=0)


def test_idx_is_read_as_it_was_written(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "file.gz").write_bytes(idx(8, (2, 3, 4), values.tobytes()))
    assert np.array_equal(read_idx(tmp_path / "file.gz", (2, 3, 4)), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(8, (2, 3), bytes(5)), "holds 5 bytes of data where 6 belong"),
        (idx(8, (2, 3), bytes(7)), "holds more bytes of data where 6 belong"),
        (idx(8, (3, 2), bytes(6)), "begins with 00 00 08 02 00 00 00 03"),
        (idx(8, (2**31, 2**31), bytes(6)), "begins with"),
        (idx(13, (2, 3), bytes(24)), "begins with 00 00 0d"),
        (gzip.compress(b"\0\0", mtime=0), "begins with 00 00, not"),
        (idx(8, (2, 3), bytes(6))[:-9], "cannot read"),
        (b"no gzip file", "cannot read"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file.gz").write_bytes(content)
    with pytest.raises(NetworkError, match=message) as caught:
        read_idx(tmp_path / "file.gz", (2, 3))
    assert "install the data set again" in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_to_an_idx_file_gives_an_error_or_the_data(data: st.DataObject) -> None:
    values = np.arange(60, dtype=np.uint8).reshape(3, 20)
    content = bytearray(idx(8, (3, 20), values.tobytes()))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file.gz"
        file.write_bytes(content)
        try:
            found = read_idx(file, (3, 20))
        except NetworkError:
            return
        assert np.array_equal(found, values)  # the damage is in what gzip's header says of name and time


def test_no_more_of_an_idx_file_is_unpacked_than_belongs(tmp_path: Path) -> None:
    """Of 64 MiB of zeros, packed a thousandfold, less than one may be unpacked."""
    packer = zlib.compressobj(wbits=31)
    bomb = packer.compress(bytes([0, 0, 8, 1, 0, 0, 0, 6]))
    bomb += b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    (tmp_path / "file.gz").write_bytes(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(NetworkError, match="holds more bytes"):
            read_idx(tmp_path / "file.gz", (6,))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_fashion_mnist_that_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "FASHION_FOLDERS", (tmp_path / "nowhere",))
    with pytest.raises(NetworkError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist(1234)


@pytest.mark.skipif(not any(f.is_dir() for f in datasets.FASHION_FOLDERS), reason="dataset-fashion-mnist is missing")
def test_fashion_splits_are_balanced_and_share_no_image() -> None:
    data = fashion_mnist(3000)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [3000, 2000, 10_000]
    for split in (data.train, data.validation, data.test):
        assert split.images.shape[1:] == (1, 28, 28)
        assert torch.bincount(split.labels).unique().numel() == 1
        assert abs(float(split.images.mean())) < 0.05
        assert abs(float(split.images.std()) - 1) < 0.05
    seen = torch.cat([data.train.images, data.validation.images]).flatten(1)
    assert len(torch.unique(seen, dim=0)) > 4990  # some garments are photographed twice
    more = fashion_mnist(3000, 4000)
    assert torch.equal(more.train.images, data.train.images)
    assert torch.equal(more.validation.images[:2000], data.validation.images)
    seen = torch.cat([more.train.images, more.validation.images]).flatten(1)
    assert len(torch.unique(seen, dim=0)) > 6980


@pytest.mark.parametrize("counts", [(58_010, 2000), (50_000, 10_010), (1000, 1000)])
def test_more_fashion_images_than_there_are_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(NetworkError, match=r"give 2000 or more to validate, and 60000 or fewer in all"):
        fashion_mnist(*counts)


# ---- ResNet-8 --------------------------------------------------------------------------------------------------------


def test_folded_batch_norms_compute_the_same() -> None:
    module, images = build("resnet8", 3), torch.randn(16, 1, 28, 28)
    module(images)  # moves the running statistics away from 0 and 1
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -1, 1)
    small = folded(module)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in small.modules())
    assert torch.allclose(small(images), module.eval()(images), rtol=1e-4, atol=1e-4)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


@pytest.mark.parametrize(("name", "layers", "parameters"), [("resnet8", 10, 77_418), ("resnet20", 22, 271_402)])
def test_a_resnet_keeps_weights_and_ifms_of_every_layer_in_memory(name: str, layers: int, parameters: int) -> None:
    """As many layers as its name says on the longest path, and two shortcuts."""
    network = ApproximateNetwork(folded(build(name, 0)), Precision.INT8)
    network.calibrate([torch.rand(4, 1, 28, 28)])
    found = {tensor.name.rpartition(".")[0] for tensor in network.tensors() if tensor.kind == "ifm"}
    assert len(found) == layers
    assert {f"{layer}.{kind}" for layer in found for kind in ("weight", "bias", "ifm")} == {
        tensor.name for tensor in network.tensors()
    }
    assert sum(tensor.elements for tensor in network.tensors() if tensor.kind == "weight") == parameters


@pytest.mark.parametrize(("precision", "tight"), [(Precision.INT8, True), (Precision.FP32, False)])
def test_a_recipe_may_tighten_the_ranges_of_integers(
    precision: Precision, tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = mnist5000()
    data = Dataset("few", full.train.first(200), full.validation.first(10), full.test.first(10))
    ends = []
    for quantile in (1.0, 0.9):
        few = Recipe(lambda: data, Training(1, 1e-3), Training(1, 1e-5), integer_quantile=quantile)
        monkeypatch.setitem(training.RECIPES, "lenet", few)
        found = train_baseline("lenet", precision, data, 0).formats["7.ifm"]
        ends.append(found.high * found.scale)  # type: ignore[operator]
    assert ends[1] < 0.8 * ends[0] if tight else ends[1] == ends[0]


def test_each_network_learns_its_own_data() -> None:
    assert all(recipe(name).data is fashion_mnist for name in ("lenet-fashion", "resnet8", "resnet20"))
    assert recipe("lenet").data is mnist5000
