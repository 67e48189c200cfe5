"""Correction touches what no reliable network stores, and nothing else."""

import math

import numpy as np
import pytest
import torch

from eden import bounding as bounding_module
from eden.bounding import Bounding, correct, values_read
from eden.precision import Precision
from eden.tensor_format import STORED_TYPE, TensorFormat

ON = [Bounding.ZERO, Bounding.SATURATE]
FLOATS = [Precision.FP32, Precision.FP16, Precision.BF16]


@pytest.mark.parametrize("bounding", list(Bounding))
@pytest.mark.parametrize("precision", [Precision.INT4, Precision.INT8, Precision.INT16])
def test_no_legal_code_is_changed(precision: Precision, bounding: Bounding) -> None:
    tensor_format = TensorFormat.for_range(precision, -0.3217, 1.7771)
    step = torch.int16 if precision is Precision.INT16 else torch.int8
    legal = torch.arange(int(tensor_format.low), int(tensor_format.high) + 1, dtype=step)
    assert torch.equal(correct(legal, tensor_format, bounding), legal)


@pytest.mark.parametrize("bounding", list(Bounding))
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("low", [-0.5, 0.0])
def test_whatever_is_stored_comes_back_bit_for_bit(
    precision: Precision, bounding: Bounding, guarded: bool, low: float
) -> None:
    tensor_format = TensorFormat.for_range(precision, low, 2.0, guarded_signs=guarded)
    values = torch.cat([torch.randn(1000) * 3, torch.tensor([float("inf"), float("nan"), -0.0])])
    stored = tensor_format.stored_elements(tensor_format.encode(values), values.numel())
    corrected = correct(stored, tensor_format, bounding)
    assert torch.equal(corrected.view(torch.uint8), stored.view(torch.uint8))


def test_implausible_codes_become_zero_or_the_bound() -> None:
    tensor_format = TensorFormat(Precision.INT8, 0.1, -3, 100)
    read = torch.tensor([-128, -4, -3, 100, 101], dtype=torch.int8)
    assert correct(read, tensor_format, Bounding.ZERO).tolist() == [0, 0, -3, 100, 0]
    assert correct(read, tensor_format, Bounding.SATURATE).tolist() == [-3, -3, -3, 100, 100]


@pytest.mark.parametrize("precision", FLOATS)
def test_implausible_floats_become_zero_or_the_bound(precision: Precision) -> None:
    tensor_format = TensorFormat(precision, 1.0, -1.0, 2.0)
    read = torch.tensor([float("nan"), float("inf"), float("-inf"), 2.5, 2.0]).to(STORED_TYPE[precision])
    assert correct(read, tensor_format, Bounding.ZERO).tolist() == [0, 0, 0, 0, 2]
    assert correct(read, tensor_format, Bounding.SATURATE).tolist() == [0, 2, -1, 2, 2]


@pytest.mark.parametrize("bounding", ON)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
@pytest.mark.parametrize("ends", [(-1.0, 3.0), (0.0, 3.0), (-3.0, 0.0)])
def test_errors_in_known_bits_are_put_right_exactly(
    precision: Precision, bounding: Bounding, ends: tuple[float, float]
) -> None:
    tensor_format = TensorFormat.for_range(precision, *ends, guarded_signs=True)
    values = torch.rand(300, generator=torch.Generator().manual_seed(1)) * (ends[1] - ends[0]) + ends[0]
    words = {32: np.uint32, 16: np.uint16}[precision.bits]
    clean = tensor_format.encode(values).numpy().view(words)
    mask, _ = tensor_format.known_bits
    hit = clean ^ (np.random.default_rng(2).integers(0, 1 << precision.bits, 300).astype(words) & words(mask))
    assert (hit != clean).mean() > 0.5
    read = tensor_format.stored_elements(torch.from_numpy(hit.view(np.uint8)), 300)
    assert np.array_equal(correct(read, tensor_format, bounding).view(torch.uint8).numpy().view(words), clean)
    assert torch.equal(correct(read, tensor_format, Bounding.OFF).view(torch.uint8), read.view(torch.uint8))


@pytest.mark.parametrize("bounding", ON)
@pytest.mark.parametrize("precision", [Precision.INT4, Precision.INT8, Precision.INT16])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sign_that_all_codes_share_is_put_right(precision: Precision, bounding: Bounding, sign: int) -> None:
    """Whatever else is wrong with a code: each is read with its sign flipped, half of them with another bit too."""
    ends = (0, precision.largest_code) if sign > 0 else (-precision.largest_code, -1)
    tensor_format = TensorFormat(precision, 0.1, *ends)
    top = 1 << (precision.bits - 1)
    assert tensor_format.known_bits == (top, 0 if sign > 0 else top)
    codes = torch.arange(ends[0], ends[1] + 1, dtype=STORED_TYPE[precision])
    second = torch.arange(len(codes)) % 2
    flipped = codes ^ second.to(codes.dtype)
    wrong = (flipped ^ -top).to(codes.dtype)  # of int4 all bits of the byte that extend the sign
    read = correct(wrong, tensor_format, bounding)
    low, high = ends
    expected = [code if low <= code <= high else 0 if bounding is Bounding.ZERO else low for code in flipped.tolist()]
    assert read.tolist() == expected
    assert torch.equal(correct(wrong, tensor_format, Bounding.OFF), wrong)


@pytest.mark.parametrize("bounding", ON)
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT16])
def test_any_one_error_in_a_guarded_sign_is_put_right(precision: Precision, bounding: Bounding) -> None:
    tensor_format = TensorFormat.for_range(precision, -0.4, 0.5, guarded_signs=True)
    assert tensor_format.high == {8: 31, 16: 8191}[precision.bits]
    codes = torch.arange(int(tensor_format.low), int(tensor_format.high) + 1, dtype=STORED_TYPE[precision])
    assert torch.equal(correct(codes, tensor_format, bounding), codes)
    for copy in range(3):
        top = -(1 << (precision.bits - 1)) if copy == 0 else 1 << (precision.bits - 1 - copy)
        assert torch.equal(correct(codes ^ top, tensor_format, bounding), codes)
    two = correct(codes ^ (3 << (precision.bits - 3)), tensor_format, bounding)
    assert not torch.equal(two, codes)
    assert torch.equal(correct(codes ^ top, tensor_format, Bounding.OFF), codes ^ top)


@pytest.mark.parametrize("bounding", ON)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_any_one_error_in_a_guarded_sign_of_floating_point_is_put_right(
    precision: Precision, bounding: Bounding
) -> None:
    """As many as one in the copies, and any in the bits that are known besides."""
    tensor_format = TensorFormat.for_range(precision, -0.4, 0.5, guarded_signs=True)
    values = torch.linspace(-0.5, 0.5, 301)
    words = {32: np.uint32, 16: np.uint16}[precision.bits]
    clean = tensor_format.encode(values).numpy().view(words)
    fraction = {32: 23, 16: 10}[precision.bits]
    for copy in (1, 2, 3):
        hit = clean ^ words((1 << (fraction - copy)) | (5 << fraction))
        read = tensor_format.stored_elements(torch.from_numpy(hit.view(np.uint8)), 301)
        assert np.array_equal(correct(read, tensor_format, bounding).view(torch.uint8).numpy().view(words), clean)
    hit = clean ^ words(3 << (fraction - 2))
    read = tensor_format.stored_elements(torch.from_numpy(hit.view(np.uint8)), 301)
    assert not np.any(correct(read, tensor_format, bounding).view(torch.uint8).numpy().view(words) == clean)


def test_signs_are_guarded_where_there_are_two_and_bits_to_spare() -> None:
    assert TensorFormat.for_range(Precision.INT8, 0.0, 1.0, guarded_signs=True).high == 127
    assert TensorFormat.for_range(Precision.INT8, 0.0, 1.0, guarded_signs=True).sign_copies == (0, 0)
    assert TensorFormat.for_range(Precision.INT4, -1.0, 1.0, guarded_signs=True).high == 7
    assert TensorFormat.for_range(Precision.INT8, -1.0, 1.0).sign_copies == (0, 0)
    weights = torch.tensor([[0.5, -1.0], [3.0, 1.0]])
    by_channel = TensorFormat.for_channels(Precision.INT8, weights, 0, guarded_signs=True)
    assert by_channel.sign_copies == (0b1110_0000, 0)
    assert by_channel.stored_elements(by_channel.encode(weights), 4).tolist() == [16, -31, 31, 10]
    assert TensorFormat.for_channels(Precision.INT8, weights.abs(), 0, guarded_signs=True).high == 127


def test_upper_bits_that_all_codes_share_are_put_right() -> None:
    """Codes 97 .. 100 are 011000xx and 01100100: an error in the upper five bits shows, and is undone."""
    tensor_format = TensorFormat(Precision.INT8, 0.1, 97, 100)
    assert tensor_format.known_bits == (0b1111_1000, 0b0110_0000)
    read = torch.tensor([97 ^ bit for bit in (64, 32, 16, 8)] + [97 - 128], dtype=torch.int8)
    assert correct(read, tensor_format, Bounding.ZERO).tolist() == [97] * 5
    assert TensorFormat(Precision.INT8, 0.1, -1, 100).known_bits == (0, 0)


def stored_of_any_kind(tensor_format: TensorFormat, count: int) -> torch.Tensor:
    """Any bits, as errors make them; of four and eight all; and what lies at the ends of the range, and around zero."""
    precision, rng = tensor_format.precision, np.random.default_rng(1)
    data = torch.from_numpy(rng.integers(0, 256, precision.stored_bytes(count)).astype(np.uint8))
    if precision.bits <= 8:
        data[:256] = torch.arange(len(data[:256])).to(torch.uint8)
    stored = tensor_format.stored_elements(data, count)
    if not precision.is_integer:
        ends = torch.tensor([tensor_format.low, tensor_format.high, 0.0]).to(stored.dtype)
        beyond, within = torch.tensor([-math.inf, math.inf, -1.0]), torch.tensor([math.inf, -math.inf, 1.0])
        edges = [ends, torch.nextafter(ends, beyond.to(ends)), torch.nextafter(ends, within.to(ends)), -ends]
        special = torch.cat([*edges, torch.tensor([math.inf, -math.inf, math.nan]).to(ends)])
        stored[: len(special)] = special
    return stored


@pytest.mark.parametrize("bounding", list(Bounding))
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("ends", [(-1.0, 3.0), (0.0, 3.0), (-3.0, 0.0), (0.5, 0.6)])
def test_what_a_cpu_reads_in_one_pass_is_what_any_device_reads_in_steps(
    precision: Precision, guarded: bool, bounding: Bounding, ends: tuple[float, float]
) -> None:
    tensor_format = TensorFormat.for_range(precision, *ends, guarded_signs=guarded)
    stored, shape = stored_of_any_kind(tensor_format, 4096), torch.Size((2, 2048))
    in_steps = tensor_format.values(correct(stored.clone(), tensor_format, bounding), shape)
    read = values_read(stored, tensor_format, bounding, shape)
    assert torch.equal(read.view(torch.int32), in_steps.view(torch.int32))


@pytest.mark.parametrize("bounding", ON)
@pytest.mark.parametrize("precision", [Precision.INT4, Precision.INT8, Precision.INT16])
@pytest.mark.parametrize("axis", [0, 1])
def test_channels_are_read_alike(precision: Precision, bounding: Bounding, axis: int) -> None:
    values = torch.randn(8, 512, generator=torch.Generator().manual_seed(1))
    tensor_format = TensorFormat.for_channels(precision, values, axis, guarded_signs=True)
    stored = stored_of_any_kind(tensor_format, values.numel())
    in_steps = tensor_format.values(correct(stored.clone(), tensor_format, bounding), values.shape)
    assert torch.equal(values_read(stored, tensor_format, bounding, values.shape), in_steps)


@pytest.mark.parametrize(
    ("precision", "guarded"),
    [(Precision.INT8, False), (Precision.INT8, True), (Precision.FP32, False), (Precision.FP32, True)],
)
def test_a_cpu_does_read_in_one_pass(precision: Precision, guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounding_module, "correct", lambda *_: pytest.fail("read in steps"))
    tensor_format = TensorFormat.for_range(precision, -1.0, 3.0, guarded)
    values_read(stored_of_any_kind(tensor_format, 256), tensor_format, Bounding.ZERO, torch.Size((256,)))


def test_a_tensor_of_nothing_is_read_as_nothing() -> None:
    for precision in Precision:
        tensor_format = TensorFormat.for_range(precision, -1.0, 3.0, guarded_signs=True)
        stored = tensor_format.stored_elements(tensor_format.encode(torch.empty(0, 5)), 0)
        assert values_read(stored, tensor_format, Bounding.ZERO, torch.Size((0, 5))).shape == (0, 5)
