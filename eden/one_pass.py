"""What `eden.tensor_format` and `eden.bounding` do in steps, in one pass each, for numbers on a CPU.

A network reads all its weights and input feature maps on every pass. In torch's steps, each of which reads and writes
the whole tensor, that takes a small network on one core about as long as its own arithmetic. The results are the same,
bit for bit.

Numbers are handled as words of 32 bits, whatever they are held in: numba would take 64, and half as many at a time.
"""

import numpy as np
from numba import njit

_bits32 = np.uint32


@njit(cache=True, nogil=True, error_model="numpy")
def encode_codes(values, codes, scale, low, high):  # type: ignore[no-untyped-def]
    """Write to ``codes`` those of ``values`` (float32[n]): the nearest, ties to even, saturated; a NaN is ``low``."""
    for at in range(values.size):
        value = values[at] / scale
        value = value if value >= low else low
        value = value if value <= high else high
        codes[at] = np.int32(np.rint(value))


@njit(cache=True, nogil=True, error_model="numpy")
def encode_floats(values, scale, offset, low, high):  # type: ignore[no-untyped-def]
    """``values`` (float32[n]) over ``scale`` and shifted by ``offset``, saturated; a NaN is ``low``."""
    numbers = np.empty(values.size, np.float32)
    for at in range(values.size):
        value = values[at] / scale + offset
        value = value if value >= low else low
        numbers[at] = value if value <= high else high
    return numbers


@njit(cache=True, nogil=True, inline="always")
def _put_right(word, known, copies):  # type: ignore[no-untyped-def]
    """A word with what is known of it: see `eden.bounding`. ``known`` and ``copies`` as of `word_masks`."""
    unknown_bits, known_bits = known
    rest, copy_bits, positive, first_copy = copies
    word = _bits32((word & unknown_bits) | known_bits)
    first = _bits32(word ^ positive)
    second, third = _bits32(first << _bits32(1)), _bits32(first << _bits32(2))
    agreed = _bits32((first & second) | (third & (first | second)))
    sign = _bits32(_bits32(0) - ((agreed >> first_copy) & _bits32(1)))  # in all bits
    return _bits32((word & rest) | (positive ^ (sign & copy_bits)))


@njit(cache=True, nogil=True)
def values_of_codes(codes, known, copies, low, high, saturate, scale):  # type: ignore[no-untyped-def]
    """float32[n]: codes put right, then 0 outside ``low .. high`` or, with ``saturate``, the end, times ``scale``."""
    values = np.empty(codes.size, np.float32)
    for at in range(codes.size):
        code = np.int32(_put_right(_bits32(np.int32(codes[at])), known, copies))
        limited = min(max(code, low), high)
        kept = limited if saturate or limited == code else np.int32(0)
        values[at] = np.float32(np.int32(kept)) * scale
    return values


@njit(cache=True, nogil=True)
def values_in_one_binade(words, known, copies, fraction, zero, step, scale):  # type: ignore[no-untyped-def]
    """float32[n]: mantissas (``fraction`` of the words) put right, by ``step`` from that of ``zero``, times ``scale``.

    What is left of a word of one binade is in range. Its distance from zero is a whole number of steps, so that only
    the last multiplication rounds.
    """
    values = np.empty(words.size, np.float32)
    for at in range(words.size):
        mantissa = np.int32(_put_right(_bits32(words[at]), known, copies) & fraction)
        values[at] = np.float32(np.int32(mantissa - zero)) * step * scale
    return values


@njit(cache=True, nogil=True)
def zero_outside(numbers, low, high):  # type: ignore[no-untyped-def]
    """``numbers`` (float32[n]), and 0 for those outside ``low .. high`` and for NaNs."""
    values = np.empty_like(numbers)
    for at in range(numbers.size):
        number = numbers[at]
        values[at] = number if low <= number <= high else np.float32(0)
    return values
