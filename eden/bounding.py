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

torch's operations do all of it, on any device. On a CPU small tensors would spend most of their time between them:
there, what becomes of a code of eight bits or less is looked up, and bits of others are put right in one pass.
"""

from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from eden.precision import Precision
from eden.tensor_format import TensorFormat


class Bounding(StrEnum):
    """What becomes of a value read outside the plausible range. Bits that are known are put right unless it is off."""

    OFF = "off"
    ZERO = "zero"
    SATURATE = "saturate"


def correct(stored: torch.Tensor, tensor_format: TensorFormat, bounding: Bounding) -> torch.Tensor:
    """Correct ``stored`` numbers (codes, or values of a floating-point precision) outside the format's range.

    With ``SATURATE`` a value becomes the bound it passed and a NaN becomes zero. Returns a new tensor or ``stored``.
    """
    if bounding is Bounding.OFF:
        return stored
    if stored.dtype is torch.int8 and stored.device.type == "cpu":
        return _looked_up(stored, tensor_format, bounding)
    return _corrected(stored, tensor_format, bounding)


def _looked_up(stored: torch.Tensor, tensor_format: TensorFormat, bounding: Bounding) -> torch.Tensor:
    """As `_corrected`, of codes that are held in bytes on a CPU."""
    table = _table(tensor_format.precision, tensor_format.low, tensor_format.high, bounding)
    codes = stored.contiguous().view(torch.uint8).numpy()
    return torch.from_numpy(_taken(table, codes.reshape(-1))).view(stored.shape)


@lru_cache(maxsize=4096)
def _table(precision: Precision, low: float, high: float, bounding: Bounding) -> npt.NDArray[np.int8]:
    """What becomes of each code that a byte may hold, by the byte as an unsigned number."""
    every = torch.arange(256).to(torch.uint8).view(torch.int8)
    table: npt.NDArray[np.int8] = _corrected(every, TensorFormat(precision, 1.0, low, high), bounding).numpy()
    return table


@njit(cache=True, nogil=True)
def _taken(table, index):  # type: ignore[no-untyped-def]
    taken = np.empty(index.size, table.dtype)
    for at in range(index.size):
        taken[at] = table[index[at]]
    return taken


def _corrected(stored: torch.Tensor, tensor_format: TensorFormat, bounding: Bounding) -> torch.Tensor:
    """As `correct`, of a bounding that is on."""
    stored = _put_right(stored, tensor_format)
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


def _put_right(stored: torch.Tensor, tensor_format: TensorFormat) -> torch.Tensor:
    """Numbers with bits that are known, and copies of signs, put right."""
    if not (tensor_format.known_bits[0] or tensor_format.sign_copies[0]):
        return stored
    if stored.device.type != "cpu":
        return _with_agreed_signs(_with_known_bits(stored, tensor_format), tensor_format)
    words = _words(stored.contiguous(), tensor_format).numpy().reshape(-1)
    masks, first_copy = _masks(tensor_format.precision, tensor_format.known_bits, tensor_format.sign_copies)
    done = _put_right_words(words, *masks, first_copy)  # type: ignore[call-arg]  # of a compiled function
    return torch.from_numpy(done).view(stored.dtype).view(stored.shape)


@lru_cache(maxsize=1024)
def _masks(precision: Precision, known_bits: tuple[int, int], sign_copies: tuple[int, int]) -> tuple[list[Any], int]:
    """What `_put_right_words` goes by, in the type of words that the precision is held in."""
    (mask, known), (copies, positive) = known_bits, sign_copies
    word = {8: np.int8, 16: np.int16, 32: np.int32}[max(8, precision.bits)]
    masks = [word(_signed(each, precision.bits)) for each in (~mask, known, ~copies, copies, positive)]
    return masks, max(0, copies.bit_length() - 1)


@njit(cache=True, nogil=True)
def _put_right_words(words, unknown, known, rest, copies, positive, first_copy):  # type: ignore[no-untyped-def]
    """`_with_known_bits` and `_with_agreed_signs` in one pass; ``first_copy`` is the highest bit of ``copies``."""
    done = np.empty_like(words)
    for at in range(words.size):
        word = (words[at] & unknown) | known
        first = word ^ positive
        second, third = first << 1, first << 2
        agreed = (first & second) | (third & (first | second))
        sign = -((agreed >> first_copy) & 1)  # in all bits
        done[at] = (word & rest) | (positive ^ (sign & copies))
    return done


def _with_known_bits(stored: torch.Tensor, tensor_format: TensorFormat) -> torch.Tensor:
    mask, bits = tensor_format.known_bits
    if not mask:
        return stored
    unknown, known = (_signed(each, tensor_format.precision.bits) for each in (~mask, bits))
    return ((_words(stored, tensor_format) & unknown) | known).view(stored.dtype)


def _with_agreed_signs(stored: torch.Tensor, tensor_format: TensorFormat) -> torch.Tensor:
    """Numbers that hold copies of their signs, with what most of the copies say."""
    mask, positive = tensor_format.sign_copies
    if not mask:
        return stored
    words, bits = _words(stored, tensor_format), tensor_format.precision.bits
    rest, copies, of_positive = (_signed(each, bits) for each in (~mask, mask, positive))
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


def _signed(word: int, bits: int) -> int:
    """``word``'s lowest ``bits`` bits in two's complement; of int4 that extends a sign to the byte it is held in."""
    word &= (1 << bits) - 1
    return word - ((word >> (bits - 1)) << bits)


def _bounds(tensor_format: TensorFormat) -> tuple[float, float]:
    if tensor_format.precision.is_integer:
        return int(tensor_format.low), int(tensor_format.high)
    return tensor_format.low, tensor_format.high
