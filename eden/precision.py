"""Number formats, to the bit: how a tensor's values become the bytes that lie in DRAM, and back.

Integers are symmetric and linear with one scale a tensor, as EDEN studies them: a value is ``code * scale``, with codes
from ``-(2 ** (bits - 1) - 1)`` to ``2 ** (bits - 1) - 1`` in two's complement. FP32 is stored as it is (IEEE 754).
All are little endian; int4 puts two codes in a byte, the first in the low nibble. An error may also turn a code into
``-2 ** (bits - 1)``, which no network stores.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import torch

from profiles.errors import NetworkError


class Precision(StrEnum):
    """Stored number format of weights and input feature maps."""

    INT4 = "int4"
    INT8 = "int8"
    INT16 = "int16"
    FP32 = "fp32"

    @property
    def bits(self) -> int:
        """Stored bits an element."""
        return {"int4": 4, "int8": 8, "int16": 16, "fp32": 32}[self.value]

    @property
    def is_integer(self) -> bool:
        return self is not Precision.FP32

    @property
    def largest_code(self) -> int:
        """Largest magnitude of a stored code; raises NetworkError for FP32, which has none."""
        if not self.is_integer:
            raise NetworkError("fp32 has no integer codes; ask for int4, int8 or int16")
        return (1 << (self.bits - 1)) - 1

    def stored_bytes(self, elements: int) -> int:
        """Bytes that ``elements`` values occupy; an odd int4 count fills its last byte with a zero nibble."""
        return (elements * self.bits + 7) // 8


_STORED_TYPE = {Precision.INT4: torch.int8, Precision.INT8: torch.int8, Precision.INT16: torch.int16}


@dataclass(frozen=True)
class TensorFormat:
    """How one tensor is stored, and what it can hold when it is read without errors.

    Everything is stored *saturated* to ``low .. high``, the range that the reliable network was seen to use. This makes
    the range a property of the reliable network itself: whatever it stores lies inside, on any input, so that a value
    read outside is proof of an error, and correcting it can never touch a clean result (see `eden.bounding`).

    Attributes:
        precision: number format.
        scale: value of code 1; 1.0 for FP32.
        low, high: range of the stored domain: integer codes for integers, values for FP32.
    """

    precision: Precision
    scale: float
    low: float
    high: float

    @classmethod
    def for_range(cls, precision: Precision, smallest: float, largest: float) -> "TensorFormat":
        """The format for values from ``smallest`` to ``largest``: the scale comes from the larger magnitude.

        Raises:
            NetworkError: the range is empty or not finite.
        """
        if not (math.isfinite(smallest) and math.isfinite(largest) and smallest <= largest):
            raise NetworkError(
                f"values range from {smallest} to {largest}; a finite range is needed: "
                "check the network's inputs and weights"
            )
        if not precision.is_integer:
            return cls(precision, 1.0, smallest, largest)
        magnitude = max(abs(smallest), abs(largest))
        scale = magnitude / precision.largest_code if magnitude else 1.0
        if scale < torch.finfo(torch.float32).tiny:
            scale = 1.0  # such values are zero at this precision
        return cls(precision, scale, float(round(smallest / scale)), float(round(largest / scale)))

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """The bytes as stored (uint8, flat) of float32 ``values`` of any shape; always a new buffer.

        Values saturate at ``low`` and ``high``; a NaN is stored as ``low``.
        """
        flat = values.detach().reshape(-1)
        if self.precision is Precision.FP32:
            return _saturate(flat, self.low, self.high).view(torch.uint8)
        codes = _saturate(flat / self.scale, self.low, self.high).round_()
        return pack(codes.to(_STORED_TYPE[self.precision]), self.precision)

    def stored_elements(self, data: torch.Tensor, elements: int) -> torch.Tensor:
        """The ``elements`` stored numbers in ``data``: int8 or int16 codes, or float32 values. May share its memory.

        Raises:
            NetworkError: ``data`` has another length than ``elements`` values take.
        """
        return unpack(data, elements, self.precision)

    def values(self, stored: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Float32 values of stored numbers."""
        if self.precision is Precision.FP32:
            return stored.view(shape)
        return (stored.to(torch.float32) * self.scale).view(shape)

    def decode(self, data: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Float32 values of stored bytes, uncorrected. Raises NetworkError where the length does not fit ``shape``."""
        return self.values(self.stored_elements(data, shape.numel()), shape)


def _saturate(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """``values`` limited to ``low .. high`` in a new tensor; a NaN becomes ``low``."""
    return values.nan_to_num(low, high, low).clamp_(low, high)


def pack(codes: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Flat int8 or int16 codes to stored bytes (uint8). Shares memory except for int4."""
    if precision is not Precision.INT4:
        return codes.contiguous().view(torch.uint8)
    nibbles = codes.view(torch.uint8).bitwise_and(0x0F)
    if nibbles.numel() % 2:
        nibbles = torch.cat([nibbles, nibbles.new_zeros(1)])
    return nibbles[0::2] | (nibbles[1::2] << 4)


def unpack(data: torch.Tensor, elements: int, precision: Precision) -> torch.Tensor:
    """Stored bytes to ``elements`` codes (int8, int16) or float32 values. Shares memory except for int4.

    Raises:
        NetworkError: ``data`` has another length than ``elements`` values take.
    """
    if data.numel() != precision.stored_bytes(elements):
        raise NetworkError(
            f"{elements} {precision} values take {precision.stored_bytes(elements)} bytes, not {data.numel()}; "
            "the memory returned a different tensor than was stored"
        )
    if precision is Precision.FP32:
        return data.view(torch.float32)
    if precision is not Precision.INT4:
        return data.view(_STORED_TYPE[precision])
    low = (data << 4).view(torch.int8) >> 4
    high = data.view(torch.int8) >> 4
    return torch.stack([low, high], dim=1).reshape(-1)[:elements]
