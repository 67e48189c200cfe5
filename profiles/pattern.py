"""Data patterns: what a test writes, and what it expects to read.

One definition serves the host, the mock board and the gateware. `word` is plain integer arithmetic on adds, shifts and
exclusive-ors, so that numba compiles it unchanged and a pattern source in the FPGA needs no multiplier.

A burst of ``burst_length`` beats carries bit ``beat * data_width + dq``; word ``w`` of a burst is its bits
``32 w .. 32 w + 31``. The column address of a beat is the burst's first column plus the beat.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt
from numba import njit
from pydantic import BaseModel, ConfigDict, Field, model_validator

from profiles.geometry import CellArray, Geometry

MASK32 = 0xFFFFFFFF
PERIOD = 8  # of every pattern but RANDOM and BUFFER, in rows, columns and data lines


class PatternKind(IntEnum):
    """Codes as the test engine's SET PATTERN instruction carries them."""

    SOLID = 0  # one byte, repeated over the data lines: 0x00, 0xFF, 0xAA, 0x33 ...
    CHECKER = 1  # alternates along data lines, columns and rows
    ROW_STRIPE = 2  # odd rows all ones
    COLUMN_STRIPE = 3  # odd columns all ones
    WALKING = 4  # a single one in each byte, walking with column and row
    RANDOM = 5  # pseudo-random by address, `parameter` is the seed
    BUFFER = 6  # the engine's write buffer, burst after burst; has no closed form


class Pattern(BaseModel):
    """A data pattern.

    Attributes:
        kind: one of `PatternKind`.
        parameter: the byte of SOLID, the 32-bit seed of RANDOM, 0 otherwise.
        invert_odd_rows: store the complement in odd rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: PatternKind
    parameter: int = Field(default=0, ge=0, le=MASK32)
    invert_odd_rows: bool = False

    @model_validator(mode="after")
    def _byte(self) -> "Pattern":
        if self.kind == PatternKind.SOLID and self.parameter > 0xFF:
            raise ValueError(f"the parameter of SOLID is a byte, not {self.parameter:#x}")
        return self

    def __str__(self) -> str:
        body = f"0x{self.parameter:02X}" if self.kind == PatternKind.SOLID else self.kind.name.lower()
        seed = f":{self.parameter}" if self.kind == PatternKind.RANDOM else ""
        return body + seed + ("/invert" if self.invert_odd_rows else "")

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Read the form that ``str()`` writes: ``0xAA``, ``checker``, ``random:7``, each with an optional ``/invert``.

        Raises:
            ValueError: the text names no pattern.
        """
        body, _, suffix = text.strip().partition("/")
        name, _, parameter = body.partition(":")
        kinds: dict[str, PatternKind] = {
            kind.name.lower(): kind for kind in PatternKind if kind not in (PatternKind.SOLID, PatternKind.BUFFER)
        }
        kind: PatternKind
        try:
            if suffix not in ("", "invert"):
                raise ValueError(suffix)
            if name.lower() in kinds:
                kind, value = kinds[name.lower()], int(parameter or "0", 0)
            else:
                kind, value = PatternKind.SOLID, int(body, 16)
            return cls(kind=kind, parameter=value, invert_odd_rows=bool(suffix))
        except ValueError as error:
            raise ValueError(f"{text!r} is no pattern; use a byte as 0xAA, or one of {', '.join(kinds)}") from error


@njit(cache=True)
def mix32(value: int) -> int:
    """Bob Jenkins' 32-bit integer hash (adds and shifts only); a bijection on 0..2^32-1."""
    a = value & MASK32
    a = (a + 0x7ED55D16 + (a << 12)) & MASK32
    a = (a ^ 0xC761C23C) ^ (a >> 19)
    a = (a + 0x165667B1 + (a << 5)) & MASK32
    a = ((a + 0xD3A2646C) ^ (a << 9)) & MASK32
    a = (a + 0xFD7046C5 + (a << 3)) & MASK32
    return (a ^ 0xB55A4F09) ^ (a >> 16)


@njit(cache=True)
def _byte(kind: int, row: int, column: int) -> int:
    if kind == 1:
        return 0x55 if (row + column) & 1 else 0xAA
    if kind == 2:
        return 0xFF if row & 1 else 0x00
    if kind == 3:
        return 0xFF if column & 1 else 0x00
    return 1 << ((row + column) & 7)


@njit(cache=True)
def word(
    kind: int, parameter: int, invert_odd_rows: int, bank: int, row: int, column: int, index: int, data_width: int
) -> int:
    """Word ``index`` (32 bits) of the burst that starts at ``column``; any kind but BUFFER."""
    if kind == 0:
        value = parameter & 0xFF
        value |= value << 8
        value |= value << 16
    elif kind == 5:
        base = mix32(parameter ^ (row << 8) ^ bank)
        value = mix32(base + ((column * data_width) >> 5) + index)
    else:
        value = 0
        for k in range(4):
            beat = (index * 32 + k * 8) // data_width
            value |= _byte(kind, row, column + beat) << (8 * k)
    if invert_odd_rows and row & 1:
        value ^= MASK32
    return value


@njit(cache=True)
def _bits(
    kind: int,
    parameter: int,
    invert: int,
    cells: npt.NDArray[np.int64],
    rows: int,
    columns: int,
    data_width: int,
    burst_length: int,
) -> npt.NDArray[np.uint8]:
    out = np.empty(cells.size, np.uint8)
    for i in range(cells.size):
        beat_address, dq = divmod(cells[i], data_width)
        wordline, column = divmod(beat_address, columns)
        first = column - column % burst_length
        bit = (column - first) * data_width + dq
        value = word(kind, parameter, invert, wordline // rows, wordline % rows, first, bit >> 5, data_width)
        out[i] = (value >> (bit & 31)) & 1
    return out


@njit(cache=True)
def _shift(size: int) -> int:
    """Bits by which an address is shifted to divide it by ``size``, a power of two."""
    shift = 0
    while 1 << shift < size:
        shift += 1
    return shift


@njit(cache=True)
def _random_bits(
    parameter: int, invert: int, cells: npt.NDArray[np.int64], rows: int, row_bits: int
) -> npt.NDArray[np.uint8]:
    """`_bits` of RANDOM data; a row's hash is kept while cells lie in it. Every size is a power of two."""
    row_shift, rows_shift = _shift(row_bits), _shift(rows)
    out = np.empty(cells.size, np.uint8)
    last, base, flip = -1, 0, 0
    for i in range(cells.size):
        wordline, offset = cells[i] >> row_shift, cells[i] & (row_bits - 1)
        if wordline != last:
            last, row = wordline, wordline & (rows - 1)
            base = mix32(parameter ^ (row << 8) ^ (wordline >> rows_shift))
            flip = MASK32 if invert and row & 1 else 0
        out[i] = ((mix32(base + (offset >> 5)) ^ flip) >> (offset & 31)) & 1
    return out


@njit(cache=True)
def _tiled(
    tile: npt.NDArray[np.uint8],
    cells: npt.NDArray[np.int64],
    rows: int,
    columns: int,
    data_width: int,
    row_bits: int,
) -> npt.NDArray[np.uint8]:
    """Look up periodic bits; every size is a power of two."""
    column_shift, row_shift = _shift(data_width), _shift(row_bits)
    out = np.empty(cells.size, np.uint8)
    for i in range(cells.size):
        row, column = (cells[i] >> row_shift) & (rows - 1), (cells[i] >> column_shift) & (columns - 1)
        out[i] = tile[(row * columns + column) * 8 + (cells[i] & 7)]
    return out


@njit(cache=True)
def _add_ones(
    kind: int,
    parameter: int,
    invert: int,
    bank: int,
    first_row: int,
    weights: npt.NDArray[np.int64],
    columns: int,
    data_width: int,
    burst_length: int,
    by_row: npt.NDArray[np.int64],
    by_bitline: npt.NDArray[np.int64],
) -> None:
    for i in range(weights.size):
        ones = 0
        for first in range(0, columns, burst_length):
            for index in range(burst_length * data_width // 32):
                value = word(kind, parameter, invert, bank, first_row + i, first, index, data_width)
                base = first * data_width + 32 * index
                if by_bitline.size:
                    for k in range(32):
                        by_bitline[base + k] += ((value >> k) & 1) * weights[i]
                while value:
                    ones += 1
                    value &= value - 1
        by_row[i] = ones


_ROWS_IN_A_BYTE = 255
_ONE_IN_EACH_BYTE = 0x01010101


@njit(cache=True)
def _add_random_ones(
    parameter: int,
    invert: int,
    bank: int,
    first_row: int,
    by_row: npt.NDArray[np.int64],
    by_bitline: npt.NDArray[np.int64],
    words: int,
) -> None:
    """`_add_ones` of RANDOM data, whose rows all differ: bits are added up in bytes, four bitlines in a word."""
    values, counts = np.empty(words, np.uint32), np.zeros((8, words), np.uint32)
    for i in range(by_row.size):
        row = first_row + i
        base = mix32(parameter ^ (row << 8) ^ bank)
        flip = MASK32 if invert and row & 1 else 0
        for w in range(words):
            values[w] = mix32(base + w) ^ flip
        ones = np.int64(0)
        for w in range(words):
            pairs = np.uint32(values[w] - ((values[w] >> np.uint32(1)) & np.uint32(0x55555555)))
            fours = np.uint32((pairs & np.uint32(0x33333333)) + ((pairs >> np.uint32(2)) & np.uint32(0x33333333)))
            eights = np.uint32((fours + (fours >> np.uint32(4))) & np.uint32(0x0F0F0F0F))
            ones += np.uint32(eights * np.uint32(_ONE_IN_EACH_BYTE)) >> np.uint32(24)
        by_row[i] = ones
        if not by_bitline.size:
            continue
        for k in range(8):
            for w in range(words):
                counts[k, w] += (values[w] >> np.uint32(k)) & np.uint32(_ONE_IN_EACH_BYTE)
        if i % _ROWS_IN_A_BYTE == _ROWS_IN_A_BYTE - 1 or i == by_row.size - 1:
            for k in range(8):
                for w in range(words):
                    for byte in range(4):
                        by_bitline[32 * w + 8 * byte + k] += (counts[k, w] >> np.uint32(8 * byte)) & np.uint32(0xFF)
            counts[:] = 0


def ones_by_line(
    pattern: Pattern, geometry: Geometry, bank: int, row_start: int, row_count: int, bitlines: bool = True
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cells that store a 1, in whole rows of one bank.

    Returns:
        int64[row_count] of each row, and int64[row_bits] of each (column, dq) over those rows (int64[0] without
        ``bitlines``).

    Raises:
        ValueError: the pattern is BUFFER, whose data are not a function of the address.
    """
    if pattern.kind == PatternKind.BUFFER:
        raise ValueError("pattern BUFFER has no closed form; count the bytes that were written")
    g, by_bitline = geometry, np.zeros(geometry.row_bits if bitlines else 0, np.int64)
    code = (int(pattern.kind), pattern.parameter, int(pattern.invert_odd_rows))
    if pattern.kind == PatternKind.RANDOM:
        by_row = np.zeros(row_count, np.int64)
        _add_random_ones(*code[1:], bank, row_start, by_row, by_bitline, g.row_bits // 32)
        return by_row, by_bitline
    distinct = min(PERIOD, row_count)  # then rows repeat
    weights = np.bincount(np.arange(row_count) % PERIOD, minlength=distinct).astype(np.int64)
    by_row = np.zeros(distinct, np.int64)
    shape = (g.columns, g.data_width, g.burst_length)
    _add_ones(*code, bank, row_start, weights, *shape, by_row, by_bitline)
    return np.resize(by_row, row_count), by_bitline


def stored_bits(pattern: Pattern, geometry: Geometry, cells: CellArray) -> npt.NDArray[np.uint8]:
    """The bit (uint8, 0 or 1) that ``pattern`` stores in each of ``cells``.

    Raises:
        ValueError: the pattern is BUFFER, whose data are not a function of the address.
    """
    if pattern.kind == PatternKind.BUFFER:
        raise ValueError("pattern BUFFER has no closed form; compare with the bytes that were written")
    g = geometry
    cells = np.ascontiguousarray(cells, dtype=np.int64)
    shape = (g.rows, g.columns, g.data_width, g.burst_length)
    code = (int(pattern.kind), pattern.parameter, int(pattern.invert_odd_rows))
    if pattern.kind == PatternKind.RANDOM:
        bits: npt.NDArray[np.uint8] = _random_bits(*code[1:], cells, g.rows, g.row_bits)
        return bits
    rows, columns = min(PERIOD, g.rows), min(PERIOD, g.columns)
    corner = (np.arange(rows)[:, None] * g.columns + np.arange(columns)) * g.data_width
    tile = _bits(*code, (corner[:, :, None] + np.arange(PERIOD)).ravel(), *shape)
    repeated: npt.NDArray[np.uint8] = _tiled(tile, cells, rows, columns, g.data_width, g.row_bits)
    return repeated
