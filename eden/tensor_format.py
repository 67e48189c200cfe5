"""Number formats of tensors, to the bit: how a tensor's values become the bytes that lie in DRAM, and back.

Integers are symmetric and linear with one scale a tensor, as EDEN studies them, or, as an option for weights, one for
each output channel: a value is ``code * scale``, with codes
from ``-(2 ** (bits - 1) - 1)`` to ``2 ** (bits - 1) - 1`` in two's complement. Floating point is stored as it is: FP32
and FP16 of IEEE 754, and bf16, the upper half of FP32; values are rounded to the nearest, ties to even, and saturate at
the largest finite number. All are little endian; int4 puts two codes in a byte, the first in the low nibble. An error
may also turn a code into ``-2 ** (bits - 1)``, which no network stores.

A network that was retrained for it (`eden.boosting`) may have its signs *guarded*. Integer codes of both signs then
take up two bits less, so that their three highest bits are copies of the sign, and a reader goes by the majority.
FP32 and FP16 are stored as fixed point, in effect: values are scaled and shifted into the one binade 1 .. 2, where a
reader knows sign and exponent of every number; around 1.5 where there are both signs, and so close to it that the three
highest bits of the mantissa say on which side. int4 and bf16 have no bits to spare, and stay as they are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch

from eden.one_pass import encode_codes, encode_floats
from eden.precision import Precision
from profiles.errors import NetworkError

STORED_TYPE = {
    Precision.INT4: torch.int8,  # in arithmetic
    Precision.INT8: torch.int8,
    Precision.INT16: torch.int16,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
    Precision.FP32: torch.float32,
}

TINY, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
SIGN_COPIES = 3  # the fewest of which one may be wrong
BOTH_SIGNS, ONE_SIGN = 1.5, 1.0  # offsets in one binade
TOO_FEW_BITS = 7  # of an integer or a mantissa, to spare two for copies of the sign


@dataclass(frozen=True)
class TensorFormat:
    """How one tensor is stored, and what it can hold when it is read without errors.

    Everything is stored *saturated* to ``low .. high``, the range that the reliable network was seen to use. This makes
    the range a property of the reliable network itself: whatever it stores lies inside, on any input, so that a value
    read outside is proof of an error, and correcting it can never touch a clean result (see `eden.bounding`).

    Attributes:
        precision: number format.
        scale: value of code 1, one for each channel or one for all; of floating point 1.0, or around an offset what
            numbers were divided by.
        low, high: range of the stored domain: integer codes for integers, else values, themselves numbers that the
            precision has.
        axis: dimension of the channels, where each has a scale.
        offset: of floating point in one binade, the number that stands for zero: `BOTH_SIGNS`, or `ONE_SIGN` where
            values have but one; else 0.0.
    """

    precision: Precision
    scale: float | tuple[float, ...]
    low: float
    high: float
    axis: int = 0
    offset: float = 0.0

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "TensorFormat":
        """From what `dataclasses.asdict` gave, as JSON has it; older files lack some fields, or have more."""
        scale = tuple(fields["scale"]) if isinstance(fields["scale"], list) else fields["scale"]
        since_then = {name: fields[name] for name in ("axis", "offset") if name in fields}
        return cls(Precision(fields["precision"]), scale, fields["low"], fields["high"], **since_then)

    @classmethod
    def for_range(
        cls,
        precision: Precision,
        smallest: float,
        largest: float,
        guarded_signs: bool = False,
    ) -> "TensorFormat":
        """The format for values from ``smallest`` to ``largest``: the scale comes from the larger magnitude.

        Ranges of floating point reach to the last number with the exponent of ``smallest`` and of ``largest``: an error
        in the mantissa of a value near the end is small, and would be made a large one by correcting it to zero. With
        guarded signs they are all of what is left of one binade, for the same reason.

        Args:
            precision: number format.
            smallest, largest: the range.
            guarded_signs: of int8 and int16, whether codes take up two bits less where the range has both signs; of
                FP32 and FP16, whether numbers lie in one binade, and likewise. Magnitudes beyond 4e37 saturate there.

        Raises:
            NetworkError: the range is empty or not finite.
        """
        if not (math.isfinite(smallest) and math.isfinite(largest) and smallest <= largest):
            raise NetworkError(
                f"values range from {smallest} to {largest}; a finite range is needed: "
                "check the network's inputs and weights"
            )
        if not precision.is_integer:
            if guarded_signs and _can_guard(precision) and max(abs(smallest), abs(largest)) >= TINY:
                return cls._in_one_binade(precision, smallest, largest)
            return cls(precision, 1.0, _end_of_binade(smallest, precision, -1), _end_of_binade(largest, precision, 1))
        guarded = guarded_signs and smallest < 0 < largest
        scale = _scale(max(abs(smallest), abs(largest)), _largest_code(precision, guarded))
        return cls(precision, scale, float(round(smallest / scale)), float(round(largest / scale)))

    @classmethod
    def _in_one_binade(cls, precision: Precision, smallest: float, largest: float) -> "TensorFormat":
        """Zero is 1.5, the largest magnitude 2^-3 from it; with one sign, zero is 1 and the largest lies below 2."""
        step = torch.finfo(STORED_TYPE[precision]).eps
        both = smallest < 0 < largest
        offset, reach = (BOTH_SIGNS, 2.0**-SIGN_COPIES) if both else (ONE_SIGN, 1.0)
        extreme = max(-smallest, largest) if both or largest > 0 else smallest
        scale = float(np.float32(max(-LARGEST, min(LARGEST, extreme / reach))))
        return cls(precision, scale, offset - reach if both else offset, offset + reach - step, offset=offset)

    @classmethod
    def for_channels(
        cls, precision: Precision, values: torch.Tensor, axis: int, guarded_signs: bool = False
    ) -> "TensorFormat":
        """The format with a scale for each index along ``axis`` of ``values``; its range is that of all their codes.

        ``guarded_signs`` as in `for_range`.

        Raises:
            NetworkError: floating point, which has no scales, or values that are not finite.
        """
        if not precision.is_integer:
            raise NetworkError(f"{precision} has no scales, of a channel or a tensor; ask for int4, int8 or int16")
        largest = values.detach().abs().transpose(0, axis).flatten(1).amax(dim=1)
        if not bool(largest.isfinite().all()):
            raise NetworkError("values are not all finite; check the network's inputs and weights")
        largest_code = _largest_code(precision, guarded_signs and bool((values < 0).any() and (values > 0).any()))
        scales = tuple(_scale(each, largest_code) for each in largest.tolist())
        whole = cls(precision, scales, -largest_code, largest_code, axis)
        smallest, largest = torch.aminmax(whole._codes(values.detach()))
        return cls(precision, scales, float(smallest), float(largest), axis)

    @property
    def metadata_bits(self) -> int:
        """Bits that a reader needs besides the stored ones, in reliable memory: FP32 scales, and the range.

        Of one binade the range follows from whether values have both signs.
        """
        if self.offset:
            return 32 + 1
        if not self.precision.is_integer:
            return 2 * self.precision.bits
        return 32 * (len(self.scale) if isinstance(self.scale, tuple) else 1) + 2 * self.precision.bits

    @cached_property
    def known_bits(self) -> tuple[int, int]:
        """Which bits of a stored word are the same in all numbers of the range, as a mask, and what they are.

        They are the sign, where all numbers have the same, and what bits below it ``low`` and ``high`` share: of
        floating point in one binade the exponent. Of other floating point they are left unknown.
        """
        if not (self.precision.is_integer or self.offset):
            return 0, 0
        every = (1 << self.precision.bits) - 1
        least, most = (self._word(end) & every for end in (self.low, self.high))
        mask = every & ~((1 << (least ^ most).bit_length()) - 1)
        return mask, least & mask

    @property
    def word_masks(self) -> tuple[tuple[np.uint32, ...], tuple[np.uint32, ...]]:
        """`known_bits` and `sign_copies` as `eden.one_pass` takes them, in words of 32 bits: codes extend their signs.

        They are the bits that are not known, and those that are; the bits that are no copies, the copies, what these
        are of positive values, and the number of the highest copy.
        """
        return _word_masks(self.precision, self.low, self.high, self.offset)

    @property
    def mantissa(self) -> tuple[np.uint32, np.int32, np.float32]:
        """Of floating point in one binade: the mantissa's bits, what they are of zero, and what the last is worth."""
        return _mantissa(self.precision, self.offset)

    def _word(self, number: float) -> int:
        """The bits of a number of the stored domain."""
        return int(number) if self.precision.is_integer else _float_word(number, self.precision)

    @cached_property
    def sign_copies(self) -> tuple[int, int]:
        """Where copies of the sign are stored: a mask of `SIGN_COPIES` bits, and what they are of positive values.

        Of negative ones they are the opposite. The mask is 0 where no sign is guarded.
        """
        if self.precision.is_integer:
            end = 1 << (self.precision.bits - SIGN_COPIES)
            guarded = _can_guard(self.precision) and -end <= self.low < 0 <= self.high < end
            return ((end << SIGN_COPIES) - end, 0) if guarded else (0, 0)
        if self.offset != BOTH_SIGNS:
            return 0, 0
        last = _fraction_bits(self.precision) - SIGN_COPIES
        return ((1 << SIGN_COPIES) - 1) << last, 1 << (last + SIGN_COPIES - 1)

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """The bytes as stored (uint8, flat) of ``values`` of any shape, taken in float32; always a new buffer.

        Values saturate at ``low`` and ``high``; a NaN is stored as ``low``. In half precision, as layers in autocast
        have them, they could not: the ends of the range are numbers of the stored format, not of theirs.
        """
        values = values.detach().to(torch.float32)
        numbers = self._codes(values) if self.precision.is_integer else self._numbers(values)
        return pack(numbers.to(STORED_TYPE[self.precision]), self.precision)

    def _numbers(self, values: torch.Tensor) -> torch.Tensor:
        """What is stored of ``values`` in floating point, as float32 and flat."""
        flat = values.reshape(-1)
        if flat.device.type == "cpu":
            shift = self.offset or -0.0  # which, unlike 0.0, leaves -0.0 as it is
            settings = np.array([self.scale, shift, self.low, self.high], np.float32)
            return torch.from_numpy(encode_floats(flat.resolve_neg().numpy(), *settings))
        if self.offset:
            flat = flat / self._scale_along(1, flat.device) + self.offset
        return _saturate(flat, self.low, self.high)

    def _codes(self, values: torch.Tensor) -> torch.Tensor:
        """Codes of ``values``, flat; in float32, or where they take one pass in the precision's `STORED_TYPE`."""
        if values.device.type == "cpu" and not isinstance(self.scale, tuple):
            codes = torch.empty(values.numel(), dtype=STORED_TYPE[self.precision])
            settings = np.array([self.scale, self.low, self.high], np.float32)
            encode_codes(values.reshape(-1).resolve_neg().numpy(), codes.numpy(), *settings)
            return codes
        scaled = values / self._scale_along(values.dim(), values.device)
        return _saturate(scaled.reshape(-1), self.low, self.high).round_()

    def _scale_along(self, dimensions: int, device: torch.device) -> torch.Tensor:
        """The scale as a factor of a tensor with so many dimensions.

        Never a number: a GPU would multiply by its reciprocal instead of dividing, and round otherwise than a CPU. It
        is made on the device, or kept there, for a copy would wait until the device has done all before.
        """
        if not isinstance(self.scale, tuple):
            return torch.full((), self.scale, dtype=torch.float32, device=device)
        if device not in self._scales_on:
            self._scales_on[device] = torch.tensor(self.scale, device=device)
        scale = self._scales_on[device]
        shape = [1] * dimensions
        shape[self.axis] = len(self.scale)
        return scale.view(shape)

    @property
    def common_scale(self) -> np.float32:
        """The scale of all; 1 where each channel has one of its own."""
        return np.float32(1.0 if isinstance(self.scale, tuple) else self.scale)

    @cached_property
    def _scales_on(self) -> dict[torch.device, torch.Tensor]:
        return {}

    def stored_elements(self, data: torch.Tensor, elements: int) -> torch.Tensor:
        """The ``elements`` stored numbers in ``data``, of the precision's `STORED_TYPE`. May share its memory.

        Raises:
            NetworkError: ``data`` has another length than ``elements`` values take.
        """
        return unpack(data, elements, self.precision)

    def values(self, stored: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Float32 values of stored numbers."""
        numbers = stored.to(torch.float32).view(shape)
        if self.offset:
            numbers = numbers - self.offset
        return self.scaled(numbers)

    def scaled(self, numbers: torch.Tensor) -> torch.Tensor:
        """``numbers`` (float32, in the shape of the values), each times its scale."""
        return numbers * self._scale_along(numbers.dim(), numbers.device) if self.scale != 1.0 else numbers

    def decode(self, data: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Float32 values of stored bytes, uncorrected. Raises NetworkError where the length does not fit ``shape``."""
        return self.values(self.stored_elements(data, shape.numel()), shape)


@lru_cache(maxsize=4096)  # weights have another format after each step of training, but few ranges
def _word_masks(
    precision: Precision, low: float, high: float, offset: float
) -> tuple[tuple[np.uint32, ...], tuple[np.uint32, ...]]:
    of_range = TensorFormat(precision, 1.0, low, high, offset=offset)
    (mask, known), (copies, positive) = of_range.known_bits, of_range.sign_copies
    words = [signed(each, precision.bits) for each in (~mask, known, ~copies, copies, positive)]
    unknown_bits, known_bits, *rest = (np.uint32(each & 0xFFFF_FFFF) for each in words)
    return (unknown_bits, known_bits), (*rest, np.uint32(max(0, copies.bit_length() - 1)))


@lru_cache
def _mantissa(precision: Precision, offset: float) -> tuple[np.uint32, np.int32, np.float32]:
    bits = _fraction_bits(precision)
    fraction = (1 << bits) - 1
    return np.uint32(fraction), np.int32(_float_word(offset, precision) & fraction), np.float32(2.0**-bits)


def signed(word: int, bits: int) -> int:
    """``word``'s lowest ``bits`` bits in two's complement; of int4 that extends a sign to the byte it is held in."""
    word &= (1 << bits) - 1
    return word - ((word >> (bits - 1)) << bits)


def _can_guard(precision: Precision) -> bool:
    """Whether there are bits to spare for copies of a sign."""
    bits = precision.bits if precision.is_integer else _fraction_bits(precision)
    return bits > TOO_FEW_BITS


def _fraction_bits(precision: Precision) -> int:
    """Bits of the mantissa that a floating-point number stores."""
    return 1 - math.frexp(torch.finfo(STORED_TYPE[precision]).eps)[1]


def _largest_code(precision: Precision, guarded: bool) -> int:
    """The largest magnitude of a code."""
    return precision.largest_code >> (SIGN_COPIES - 1) if guarded and _can_guard(precision) else precision.largest_code


def _scale(magnitude: float, largest_code: int) -> float:
    """The scale at which ``magnitude`` has this code; 1 where values are zero at FP32."""
    scale = magnitude / largest_code
    return scale if scale >= TINY else 1.0


def _nearest(value: float, precision: Precision) -> float:
    """The number of a floating-point ``precision`` nearest to ``value``, and never an infinity."""
    largest = torch.finfo(STORED_TYPE[precision]).max
    return float(torch.tensor(max(-largest, min(largest, value))).to(STORED_TYPE[precision]))


def _float_word(number: float, precision: Precision) -> int:
    """The bits of a number that a floating-point ``precision`` has."""
    data = torch.tensor([number]).to(STORED_TYPE[precision]).view(torch.uint8)
    return int.from_bytes(bytes(data.tolist()), "little")


def _end_of_binade(value: float, precision: Precision, sign: int) -> float:
    """The number farthest towards ``sign`` that has sign and exponent of the one nearest to ``value``; 0 of a 0."""
    nearest = _nearest(value, precision)
    if not nearest:
        return 0.0
    power = 2.0 ** (math.frexp(nearest)[1] - 1)
    steps = 2 - torch.finfo(STORED_TYPE[precision]).eps if (nearest > 0) == (sign > 0) else 1
    return _nearest(math.copysign(power * steps, nearest), precision)


def _saturate(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """``values`` limited to ``low .. high`` in a new tensor; a NaN becomes ``low``."""
    return values.nan_to_num(low, high, low).clamp_(low, high)


def pack(codes: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Flat numbers of the precision's `STORED_TYPE` to stored bytes (uint8). Shares memory except for int4."""
    if precision is not Precision.INT4:
        return codes.contiguous().view(torch.uint8)
    nibbles = codes.view(torch.uint8).bitwise_and(0x0F)
    if nibbles.numel() % 2:
        nibbles = torch.cat([nibbles, nibbles.new_zeros(1)])
    return nibbles[0::2] | (nibbles[1::2] << 4)


def unpack(data: torch.Tensor, elements: int, precision: Precision) -> torch.Tensor:
    """Stored bytes to ``elements`` numbers of the precision's `STORED_TYPE`. Shares memory except for int4.

    Raises:
        NetworkError: ``data`` has another length than ``elements`` values take.
    """
    if data.numel() != precision.stored_bytes(elements):
        raise NetworkError(
            f"{elements} {precision} values take {precision.stored_bytes(elements)} bytes, not {data.numel()}; "
            "the memory returned a different tensor than was stored"
        )
    if precision is not Precision.INT4:
        return data.view(STORED_TYPE[precision])
    low = (data << 4).view(torch.int8) >> 4
    high = data.view(torch.int8) >> 4
    return torch.stack([low, high], dim=1).reshape(-1)[:elements]
