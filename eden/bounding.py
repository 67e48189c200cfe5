"""Implausible values: what a read does with a value that the reliable network cannot have stored.

A flip in a floating-point exponent or a high integer bit gives a huge value that drowns all others; without correction
FP32 networks collapse at bit error rates of 1e-7 to 1e-6 (EDEN, section 1). A tensor's `TensorFormat` saturates what is
*stored* to the plausible range, with bounding on or off, so anything *read* outside the range is an error for certain.
Correction is therefore the identity on clean data, bit for bit, whatever the input.

Some bits may be known (`TensorFormat.known_bits`): an integer's sign where no value is negative, as after a ReLU, and
sign and exponent of floating point that is stored in one binade. An error there is put right before all else: the value
is then what was stored, not zero. A boosted LeNet at int8 loses 0.69 instead of 0.79 points at a BER of 2e-3
by that, and 1.76 instead of 1.91 at 5e-3 (Fashion-MNIST, 30,000 images, the same errors). Where signs
are guarded (`TensorFormat.sign_copies`), what most of the three copies say is taken.

Integers are compared as codes, never as dequantised floats against float bounds: rounding would condemn legal codes.

torch's operations do all of it, on any device; on a CPU, what a network reads takes one pass where one is written
(`eden.one_pass`).
"""

from enum import StrEnum

import numpy as np
import torch

from eden import one_pass
from eden.precision import Precision
from eden.tensor_format import TensorFormat, signed


class Bounding(StrEnum):
    """What becomes of a value read outside the plausible range. Bits that are known are put right unless it is off."""

    OFF = "off"
    ZERO = "zero"
    SATURATE = "saturate"


def values_read(
    stored: torch.Tensor, tensor_format: TensorFormat, bounding: Bounding, shape: torch.Size
) -> torch.Tensor:
    """Float32 values, in ``shape``, of ``stored`` numbers (flat) that were read, corrected as by `correct`."""
    if stored.device.type == "cpu" and bounding is not Bounding.OFF:
        if tensor_format.precision.is_integer:
            return _values_of_codes(stored, tensor_format, bounding, shape)
        if tensor_format.offset:
            settings = *tensor_format.word_masks, *tensor_format.mantissa, tensor_format.common_scale
            values = one_pass.values_in_one_binade(_words(stored, tensor_format).numpy(), *settings)
            return torch.from_numpy(values).view(shape)
        if tensor_format.precision is Precision.FP32 and bounding is Bounding.ZERO:
            low, high = map(np.float32, _bounds(tensor_format))
            return torch.from_numpy(one_pass.zero_outside(stored.numpy(), low, high)).view(shape)
    return tensor_format.values(correct(stored, tensor_format, bounding), shape)


def _values_of_codes(
    codes: torch.Tensor, tensor_format: TensorFormat, bounding: Bounding, shape: torch.Size
) -> torch.Tensor:
    """As `values_read`, of integers on a CPU; of channels, the scales come after the pass."""
    low, high = map(np.int32, _bounds(tensor_format))
    settings = *tensor_format.word_masks, low, high, bounding is Bounding.SATURATE, tensor_format.common_scale
    values = torch.from_numpy(one_pass.values_of_codes(codes.numpy(), *settings)).view(shape)
    return tensor_format.scaled(values) if isinstance(tensor_format.scale, tuple) else values


def correct(stored: torch.Tensor, tensor_format: TensorFormat, bounding: Bounding) -> torch.Tensor:
    """Correct ``stored`` numbers (codes, or values of a floating-point precision) outside the format's range.

    With ``SATURATE`` a value becomes the bound it passed and a NaN becomes zero. Returns a new tensor or ``stored``.
    """
    if bounding is Bounding.OFF:
        return stored
    stored = _with_agreed_signs(_with_known_bits(stored, tensor_format), tensor_format)
    if tensor_format.offset:
        return stored  # of one binade, all that is left is in range
    low, high = _bounds(tensor_format)
    limited = stored.clamp(low, high)
    if bounding is Bounding.SATURATE:
        return limited if tensor_format.precision.is_integer else torch.where(limited.isnan(), 0.0, limited)
    plausible = limited == stored  # False for a NaN
    if tensor_format.precision.is_integer:
        return limited.mul_(plausible)  # torch.where on integers takes some ten times as long
    return torch.where(plausible, stored, 0.0)


def _with_known_bits(stored: torch.Tensor, tensor_format: TensorFormat) -> torch.Tensor:
    mask, bits = tensor_format.known_bits
    if not mask:
        return stored
    unknown, known = (signed(each, tensor_format.precision.bits) for each in (~mask, bits))
    return ((_words(stored, tensor_format) & unknown) | known).view(stored.dtype)


def _with_agreed_signs(stored: torch.Tensor, tensor_format: TensorFormat) -> torch.Tensor:
    """Numbers that hold copies of their signs, with what most of the copies say."""
    mask, positive = tensor_format.sign_copies
    if not mask:
        return stored
    words, bits = _words(stored, tensor_format), tensor_format.precision.bits
    rest, copies, of_positive = (signed(each, bits) for each in (~mask, mask, positive))
    first = words ^ of_positive
    second, third = first << 1, first << 2
    agreed = (first & second) | (third & (first | second))
    sign = agreed << (bits - mask.bit_length()) >> (bits - 1)  # in all bits
    return ((words & rest) | (of_positive ^ (sign & copies))).view(stored.dtype)


def _words(stored: torch.Tensor, tensor_format: TensorFormat) -> torch.Tensor:
    """The stored numbers as integers with the same bits."""
    if tensor_format.precision.is_integer:
        return stored
    return stored.view(torch.int32 if tensor_format.precision.bits == 32 else torch.int16)


def _bounds(tensor_format: TensorFormat) -> tuple[float, float]:
    if tensor_format.precision.is_integer:
        return int(tensor_format.low), int(tensor_format.high)
    return tensor_format.low, tensor_format.high
