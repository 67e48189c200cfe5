"""Correction touches what no reliable network stores, and nothing else."""

import pytest
import torch

from eden.bounding import Bounding, correct
from eden.precision import Precision
from eden.tensor_format import STORED_TYPE, TensorFormat

ON = [Bounding.ZERO, Bounding.SATURATE]


@pytest.mark.parametrize("bounding", list(Bounding))
@pytest.mark.parametrize("precision", [Precision.INT4, Precision.INT8, Precision.INT16])
def test_no_legal_code_is_changed(precision: Precision, bounding: Bounding) -> None:
    tensor_format = TensorFormat.for_range(precision, -0.3217, 1.7771)
    step = torch.int16 if precision is Precision.INT16 else torch.int8
    legal = torch.arange(int(tensor_format.low), int(tensor_format.high) + 1, dtype=step)
    assert torch.equal(correct(legal, tensor_format, bounding), legal)


@pytest.mark.parametrize("bounding", list(Bounding))
@pytest.mark.parametrize("precision", list(Precision))
def test_whatever_is_stored_comes_back_bit_for_bit(precision: Precision, bounding: Bounding) -> None:
    tensor_format = TensorFormat.for_range(precision, -0.5, 2.0)
    values = torch.cat([torch.randn(1000) * 3, torch.tensor([float("inf"), float("nan"), -0.0])])
    stored = tensor_format.stored_elements(tensor_format.encode(values), values.numel())
    corrected = correct(stored, tensor_format, bounding)
    assert torch.equal(corrected.view(torch.uint8), stored.view(torch.uint8))


def test_implausible_codes_become_zero_or_the_bound() -> None:
    tensor_format = TensorFormat(Precision.INT8, 0.1, -3, 100)
    read = torch.tensor([-128, -4, -3, 100, 101], dtype=torch.int8)
    assert correct(read, tensor_format, Bounding.ZERO).tolist() == [0, 0, -3, 100, 0]
    assert correct(read, tensor_format, Bounding.SATURATE).tolist() == [-3, -3, -3, 100, 100]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
def test_implausible_floats_become_zero_or_the_bound(precision: Precision) -> None:
    tensor_format = TensorFormat(precision, 1.0, -1.0, 2.0)
    read = torch.tensor([float("nan"), float("inf"), float("-inf"), 2.5, 2.0]).to(STORED_TYPE[precision])
    assert correct(read, tensor_format, Bounding.ZERO).tolist() == [0, 0, 0, 0, 2]
    assert correct(read, tensor_format, Bounding.SATURATE).tolist() == [0, 2, -1, 2, 2]
