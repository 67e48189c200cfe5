"""EDEN's Error Models 0-3 (Koppula et al., MICRO-52, 2019) and one more: where weak cells are, how often they flip.

A *weak* cell fails on a read with its flip probability; every other cell never fails. A model says how likely a cell is
weak (``weak_fraction``, the paper's P) and how likely a weak one flips (the paper's F). All models describe any region
of the banks they were fitted to; `fit` makes them from profiles, and `ErrorModel.sample_weak_cells` makes bitmaps.

Measured modules show what Models 2 and 3 describe at once: errors cluster by rows in every map of Chang et al.
(SIGMETRICS 2017) and depend on the data in most DIMMs of Chang et al. (SIGMETRICS 2016). `CrossedModel` has wordlines,
bitlines and data together; it is not EDEN's, and has number 4 here.
"""

import io
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from profiles.cells import WeakCells
from profiles.errors import ModelError
from profiles.files import atomic_file, first_problem, one_line
from profiles.geometry import CellArray, Geometry

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MODEL_VERSION = 2

# Cells are drawn in aligned blocks, each from its own random stream, so that a cell's fate depends on the seed and its
# own address, not on the region it was asked for with. 64 Ki cells keep the cost of small and of large regions low.
_BLOCK = 1 << 16
_MOST_STEPS = 500  # of Newton's method
_CERTAIN_HAZARD = 37.0  # -log(1 - P) for P = 1: exp(-37) is below the spacing of floats at 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ErrorModel(ABC):
    """What all models share.

    Attributes:
        number: EDEN's number of the model, 0 .. 3; 4 is `CrossedModel`.
        columns: parameters that are arrays, as their file stores them: name and Arrow type.
        geometry: the module's.
        banks: banks the model describes, ascending.
        origin: where the model comes from, in words; kept in its file.
    """

    number: ClassVar[int]
    columns: ClassVar[dict[str, Any]] = {}
    geometry: Geometry
    banks: tuple[int, ...]
    origin: str = ""

    def __post_init__(self) -> None:
        banks = self.banks
        if not banks or list(banks) != sorted(set(banks)) or banks[0] < 0 or banks[-1] >= self.geometry.banks:
            raise ModelError(f"banks {list(banks)} must ascend within 0..{self.geometry.banks - 1}")
        for name, value in self._scalars().items():
            if not 0 <= value <= 1:
                raise ModelError(f"{name} is {value}; it is a probability, 0 to 1")

    @property
    def cells(self) -> int:
        """Cells that the model describes."""
        return len(self.banks) * self.geometry.bank_bits

    @abstractmethod
    def ber(self, ones_fraction: float = 0.5) -> float:
        """Expected bit error rate over the model's banks when ``ones_fraction`` of the cells store a 1."""

    @property
    @abstractmethod
    def highest_ber(self) -> float:
        """The bit error rate, at half ones, if every cell that can be weak is: the most that `scaled` reaches."""

    @abstractmethod
    def scaled(self, ber: float) -> Self:
        """The same model with its weak fractions scaled, so that `ber` at half ones is ``ber``; flips stay as likely.

        A weak fraction stops at 1, and the others rise for it.

        Raises:
            ModelError: no weak fraction reaches ``ber``; the highest possible rate is in the message.
        """

    @abstractmethod
    def flip_probabilities(self, cells: CellArray) -> tuple[Floats, Floats]:
        """Flip probability, for a stored 0 and a stored 1, of each of ``cells`` (module numbering) if it is weak."""

    @abstractmethod
    def _weak_fractions(self, first: int, count: int) -> Floats:
        """Weak fractions of ``count`` cells from module cell ``first``, one for each of equal stretches of them."""

    @abstractmethod
    def _scalars(self) -> dict[str, float]:
        """The parameters that are single probabilities, by field name."""

    def sample_weak_cells(self, first_cell: int, cells: int, seed: int) -> WeakCells:
        """Draw the weak cells of one module, and return those in a region.

        The module is set by ``seed``: regions that overlap agree, and a region's cells do not depend on how it is cut.
        The cost grows with weak cells, plus some 100 microseconds for each 65,536 cells.

        Args:
            first_cell: first cell of the region, module numbering.
            cells: cells of the region.
            seed: 0 .. 2^64 - 1.

        Returns:
            Weak cells numbered from 0 at ``first_cell``.

        Raises:
            ModelError: the region reaches outside the model's banks.
        """
        self._check_region(first_cell, cells)
        cache: dict[Any, Any] = {}
        found = [np.empty(0, np.int64)]
        for block in range(first_cell // _BLOCK, -(-(first_cell + cells) // _BLOCK)):
            start = block * _BLOCK
            size = min(_BLOCK, self.geometry.cells - start)
            generator = np.random.Generator(np.random.Philox(key=seed, counter=block << 128))
            found.append(start + self._hazard(start, size, cache).draw(generator))
        weak = np.concatenate(found)
        low, high = np.searchsorted(weak, (first_cell, first_cell + cells))
        weak = weak[low:high]
        flip_zero, flip_one = self.flip_probabilities(weak)
        return WeakCells(weak - first_cell, flip_zero, flip_one)

    def save(self, path: Path | str) -> None:
        """Write the model to one Parquet file, atomically.

        Raises:
            ProfileError: the disk is full or cannot be written.
        """
        arrays = self._arrays()
        record = _ModelRecord(
            number=self.number,
            geometry=self.geometry,
            banks=self.banks,
            origin=self.origin,
            parameters=self._scalars(),
        )
        text = record.model_dump_json().encode()
        table = pa.table({name: pa.array(values) for name, values in arrays.items()})
        table = table.replace_schema_metadata({_RECORD_KEY: text, _CHECKSUM_KEY: b"%d" % _checksum(text, arrays)})
        written = io.BytesIO()
        pq.write_table(table, written, compression="zstd", use_dictionary=False, write_page_checksum=True)
        with atomic_file(Path(path)) as file:
            file.write(_sealed(written.getvalue()))

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The parameters that are arrays, by name of their `columns`; all of one length."""
        return {}

    @classmethod
    def _fields(cls, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """What `_arrays` made, by field name."""
        return arrays

    def _hazard(self, first: int, count: int, cache: "dict[Any, Any]") -> "_Hazard | _CrossedHazard":
        del cache
        return _Hazard(self._weak_fractions(first, count), count)

    def _check_region(self, first: int, count: int) -> None:
        if count < 0 or first < 0 or first + count > self.geometry.cells:
            raise ModelError(f"cells {first}..{first + count - 1} are outside the module's {self.geometry.cells} cells")
        if count:
            wanted = set(range(first // self.geometry.bank_bits, (first + count - 1) // self.geometry.bank_bits + 1))
            strange = sorted(wanted - set(self.banks))
            if strange:
                raise ModelError(f"bank {strange[0]} is not among the model's banks {list(self.banks)}; fit it as well")


class _Hazard:
    """Draws independent weak cells at given probabilities, at a cost that grows with the weak ones.

    Cells whose weak probability is P are cells that at least one event of a Poisson process of hazard -log(1 - P) hits:
    exact, and one draw an event.
    """

    def __init__(self, weak_fractions: Floats, cells: int) -> None:
        self.weak_fractions = weak_fractions
        self.stretch = cells // weak_fractions.size
        with np.errstate(divide="ignore"):
            hazard = np.minimum(-np.log1p(-weak_fractions), _CERTAIN_HAZARD)
        self.hazard = hazard
        self.ends = np.cumsum(hazard * self.stretch)
        self.cells = cells

    def draw(self, generator: np.random.Generator) -> CellArray:
        """Weak cells, ascending, from 0."""
        total = float(self.ends[-1])
        if total > self.cells / 4:  # many cells are weak: one draw a cell is cheaper
            weak = generator.random(self.cells) < np.repeat(self.weak_fractions, self.stretch)
            return np.flatnonzero(weak).astype(np.int64)
        events = np.sort(generator.random(int(generator.poisson(total)))) * total
        # An event may round up to the very end of the last stretch that can hold one.
        stretch = np.minimum(np.searchsorted(self.ends, events, side="right"), self.ends.size - 1)
        stretch = np.where(self.hazard[stretch] > 0, stretch, stretch - 1)
        hazard = self.hazard[stretch]
        offset = (events - (self.ends[stretch] - hazard * self.stretch)) / hazard
        cell: CellArray = stretch * self.stretch + np.clip(offset.astype(np.int64), 0, self.stretch - 1)
        distinct: CellArray = cell[np.diff(cell, prepend=-1) > 0]
        return distinct


@dataclass(frozen=True, kw_only=True, eq=False)
class UniformModel(ErrorModel):
    """Error Model 0: weak cells anywhere with equal chance.

    Attributes:
        weak_fraction: P, probability that a cell is weak.
        flip_probability: F, probability that a weak cell fails on a read.
    """

    number: ClassVar[int] = 0
    weak_fraction: float
    flip_probability: float

    def ber(self, ones_fraction: float = 0.5) -> float:
        del ones_fraction  # both directions fail alike
        return self.weak_fraction * self.flip_probability

    @property
    def highest_ber(self) -> float:
        return self.flip_probability

    def scaled(self, ber: float) -> Self:
        return replace(self, weak_fraction=_scaled_fraction(ber, self.highest_ber))

    def flip_probabilities(self, cells: CellArray) -> tuple[Floats, Floats]:
        flip = np.full(cells.size, self.flip_probability)
        return flip, flip.copy()

    def _weak_fractions(self, first: int, count: int) -> Floats:
        return np.array([self.weak_fraction])

    def _scalars(self) -> dict[str, float]:
        return {"weak_fraction": self.weak_fraction, "flip_probability": self.flip_probability}


@dataclass(frozen=True, kw_only=True, eq=False)
class DataDependentModel(ErrorModel):
    """Error Model 3: weak cells anywhere with equal chance; how often they flip depends on the stored bit.

    Attributes:
        weak_fraction: P, probability that a cell is weak.
        flip_zero: F_V0, probability that a weak cell that stores 0 reads 1.
        flip_one: F_V1, probability that a weak cell that stores 1 reads 0.
    """

    number: ClassVar[int] = 3
    weak_fraction: float
    flip_zero: float
    flip_one: float

    def ber(self, ones_fraction: float = 0.5) -> float:
        return self.weak_fraction * ((1 - ones_fraction) * self.flip_zero + ones_fraction * self.flip_one)

    @property
    def highest_ber(self) -> float:
        return (self.flip_zero + self.flip_one) / 2

    def scaled(self, ber: float) -> Self:
        return replace(self, weak_fraction=_scaled_fraction(ber, self.highest_ber))

    def flip_probabilities(self, cells: CellArray) -> tuple[Floats, Floats]:
        return np.full(cells.size, self.flip_zero), np.full(cells.size, self.flip_one)

    def _weak_fractions(self, first: int, count: int) -> Floats:
        return np.array([self.weak_fraction])

    def _scalars(self) -> dict[str, float]:
        return {"weak_fraction": self.weak_fraction, "flip_zero": self.flip_zero, "flip_one": self.flip_one}


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupedModel(ErrorModel):
    """What Error Models 1 and 2 share: parameters of their own for each line of cells (a bitline or a wordline).

    Attributes:
        line: int64[n], module numbers of the lines that were measured, ascending. Others take the pooled parameters.
        weak_fraction: float64[n], P of each measured line.
        flip_probability: float64[n], F of each measured line.
        pooled_weak_fraction, pooled_flip_probability: P and F of all measured lines together.
    """

    columns: ClassVar[dict[str, Any]] = {
        "line": pa.int64(),
        "weak_fraction": pa.float64(),
        "flip_probability": pa.float64(),
    }
    line: CellArray
    weak_fraction: Floats
    flip_probability: Floats
    pooled_weak_fraction: float
    pooled_flip_probability: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.line.shape == self.weak_fraction.shape == self.flip_probability.shape or self.line.ndim != 1:
            raise ModelError("line, weak_fraction and flip_probability differ in length; the model is damaged")
        for name in ("weak_fraction", "flip_probability"):
            values = getattr(self, name)
            if not bool(np.all((values >= 0) & (values <= 1))):
                raise ModelError(f"{name} holds a value outside 0..1; the model is damaged")
        if bool(np.any(np.diff(self.line) <= 0)):
            raise ModelError("lines are not ascending and unique; the model is damaged")
        if self.line.size and not np.isin(np.unique(self.line // self.lines_per_bank), self.banks).all():
            raise ModelError(f"lines lie outside the model's banks {list(self.banks)}; the model is damaged")

    @property
    @abstractmethod
    def lines_per_bank(self) -> int:
        """Lines of cells in a bank."""

    @abstractmethod
    def line_of(self, cells: CellArray) -> CellArray:
        """Module number of the line that each of ``cells`` lies on."""

    def parameters(self, lines: CellArray) -> tuple[Floats, Floats]:
        """Weak fraction and flip probability of each of ``lines`` (module numbers)."""
        if not self.line.size:
            return np.full(lines.size, self.pooled_weak_fraction), np.full(lines.size, self.pooled_flip_probability)
        index = np.minimum(np.searchsorted(self.line, lines), self.line.size - 1)
        measured = self.line[index] == lines
        return (
            np.where(measured, self.weak_fraction[index], self.pooled_weak_fraction),
            np.where(measured, self.flip_probability[index], self.pooled_flip_probability),
        )

    def ber(self, ones_fraction: float = 0.5) -> float:
        del ones_fraction  # both directions fail alike
        weights, weak, flip = self._weighted()
        return float((weights * weak * flip).sum())

    @property
    def highest_ber(self) -> float:
        weights, weak, flip = self._weighted()
        return float((weights * flip)[weak > 0].sum())

    def scaled(self, ber: float) -> Self:
        weights, weak, flip = self._weighted()
        scaled = _scale_capped(weights * flip, weak, ber)
        return replace(self, weak_fraction=scaled[:-1], pooled_weak_fraction=float(scaled[-1]))

    def flip_probabilities(self, cells: CellArray) -> tuple[Floats, Floats]:
        flip = self.parameters(self.line_of(cells))[1]
        return flip, flip.copy()

    def _weighted(self) -> tuple[Floats, Floats, Floats]:
        """Share of the cells, P and F of each measured line, and last of all the unmeasured ones together."""
        lines = len(self.banks) * self.lines_per_bank
        weights = np.full(self.line.size + 1, 1 / lines)
        weights[-1] = (lines - self.line.size) / lines
        return (
            weights,
            np.append(self.weak_fraction, self.pooled_weak_fraction),
            np.append(self.flip_probability, self.pooled_flip_probability),
        )

    def _scalars(self) -> dict[str, float]:
        return {
            "pooled_weak_fraction": self.pooled_weak_fraction,
            "pooled_flip_probability": self.pooled_flip_probability,
        }

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"line": self.line, "weak_fraction": self.weak_fraction, "flip_probability": self.flip_probability}


@dataclass(frozen=True, kw_only=True, eq=False)
class BitlineModel(GroupedModel):
    """Error Model 1: P and F for each bitline (`Geometry.bitline`), as sense amplifiers and the column path cause."""

    number: ClassVar[int] = 1

    @property
    def lines_per_bank(self) -> int:
        return self.geometry.bitlines

    def line_of(self, cells: CellArray) -> CellArray:
        return self.geometry.bitline(cells)

    def _weak_fractions(self, first: int, count: int) -> Floats:
        return self.parameters(self.line_of(np.arange(first, first + count, dtype=np.int64)))[0]

    def _hazard(self, first: int, count: int, cache: dict[Any, Any]) -> "_Hazard | _CrossedHazard":
        if count > self.geometry.row_bits:
            return super()._hazard(first, count, cache)
        line = int(self.line_of(np.array([first]))[0])  # rows of a subarray share their bitlines
        return _kept(cache, line, lambda: super(BitlineModel, self)._hazard(first, count, cache))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True, eq=False)
class WordlineModel(GroupedModel):
    """Error Model 2: P and F for each wordline (`Geometry.wordline`), as row drivers cause."""

    number: ClassVar[int] = 2

    @property
    def lines_per_bank(self) -> int:
        return self.geometry.rows

    def line_of(self, cells: CellArray) -> CellArray:
        return self.geometry.wordline(cells)

    def _weak_fractions(self, first: int, count: int) -> Floats:
        step = min(count, self.geometry.row_bits)
        return self.parameters(self.line_of(np.arange(first, first + count, step, dtype=np.int64)))[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossedModel(ErrorModel):
    """Wordlines, bitlines and data together.

    A cell is weak with probability ``1 - exp(-hazard * factor)``, with the hazard of its wordline and the factor of its
    bitline, as if weak spots fell on the module as rain does; a weak cell flips as in Error Model 3.

    Attributes:
        wordline, bitline: int64[n], int64[m], module numbers of the lines that were measured, ascending.
        hazard: float64[n], -log(1 - P) of each measured wordline. Others take ``pooled_hazard``.
        factor: float64[m], of each measured bitline; about 1 on average over a subarray. Others have 1.
        pooled_hazard: of all measured wordlines together; below 37, where P rounds to 1.
        flip_zero, flip_one: as of `DataDependentModel`.
    """

    number: ClassVar[int] = 4
    columns: ClassVar[dict[str, Any]] = {"line": pa.int64(), "value": pa.float64(), "is_bitline": pa.int64()}
    wordline: CellArray
    hazard: Floats
    bitline: CellArray
    factor: Floats
    pooled_hazard: float
    flip_zero: float
    flip_one: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for line, value, per_bank in (
            (self.wordline, self.hazard, self.geometry.rows),
            (self.bitline, self.factor, self.geometry.bitlines),
        ):
            if line.shape != value.shape or line.ndim != 1 or bool(np.any(np.diff(line) <= 0)):
                raise ModelError("lines are not ascending and unique, with a value each; the model is damaged")
            if not bool(np.all((value >= 0) & np.isfinite(value))):
                raise ModelError("a hazard or factor is negative or not finite; the model is damaged")
            if line.size and not np.isin(np.unique(line // per_bank), self.banks).all():
                raise ModelError(f"lines lie outside the model's banks {list(self.banks)}; the model is damaged")
        if not 0 <= self.pooled_hazard < np.inf:
            raise ModelError(f"pooled_hazard is {self.pooled_hazard}, not a finite number from 0 up; it is damaged")

    def ber(self, ones_fraction: float = 0.5) -> float:
        return self._weak_share(1.0) * ((1 - ones_fraction) * self.flip_zero + ones_fraction * self.flip_one)

    @property
    def highest_ber(self) -> float:
        return self._weak_share(np.inf) * (self.flip_zero + self.flip_one) / 2

    def scaled(self, ber: float) -> Self:
        highest = self.highest_ber
        if not 0 <= ber <= highest * (1 + 1e-12):
            raise ModelError(
                f"a bit error rate of {ber:g} is outside 0..{highest:g}, all that lines with weak cells can give"
            )
        flip = (self.flip_zero + self.flip_one) / 2
        wanted = min(ber / flip if flip else 0.0, highest / flip * (1 - 1e-13) if flip else 0.0)
        # The share of weak cells is concave in the scale, so that Newton's steps from below never pass the solution.
        scale = 0.0
        for _ in range(_MOST_STEPS):
            share, slope = self._weak_share(scale), self._weak_slope(scale)
            if slope <= 0 or wanted - share <= 1e-14 * wanted:
                break
            scale += (wanted - share) / slope
        return replace(self, hazard=self.hazard * scale, pooled_hazard=self.pooled_hazard * scale)

    def flip_probabilities(self, cells: CellArray) -> tuple[Floats, Floats]:
        return np.full(cells.size, self.flip_zero), np.full(cells.size, self.flip_one)

    def hazards(self, wordlines: CellArray) -> Floats:
        """Hazard of each of ``wordlines`` (module numbers)."""
        return _looked_up(self.wordline, self.hazard, self.pooled_hazard, wordlines)

    def factors(self, bitlines: CellArray) -> Floats:
        """Factor of each of ``bitlines`` (module numbers)."""
        return _looked_up(self.bitline, self.factor, 1.0, bitlines)

    @cached_property
    def _blocks(self) -> list[tuple[Floats, Integers, Floats, Integers]]:
        """Distinct hazards and factors, each with how often it occurs, of each (bank, subarray)."""
        geometry = self.geometry
        rows = min(geometry.subarray_rows, geometry.rows)
        blocks, unmeasured = [], 0
        for bank in self.banks:
            for subarray in range(bank * geometry.subarrays, (bank + 1) * geometry.subarrays):
                lines = ((self.wordline, rows), (self.bitline, geometry.row_bits))
                if not any(_any_of(line, subarray * size, size) for line, size in lines):
                    unmeasured += rows
                    continue
                hazards = self.hazards(subarray * rows + np.arange(rows, dtype=np.int64))
                factors = self.factors(subarray * geometry.row_bits + np.arange(geometry.row_bits, dtype=np.int64))
                blocks.append((*np.unique(hazards, return_counts=True), *np.unique(factors, return_counts=True)))
        if unmeasured:
            every = np.array([unmeasured]), np.ones(1), np.array([geometry.row_bits])
            blocks.append((np.array([self.pooled_hazard]), *every))
        return blocks

    @property
    def _levels(self) -> Iterator[Floats]:
        return (np.outer(hazard, factor) for hazard, _, factor, _ in self._blocks)

    def _weak_share(self, scale: float) -> float:
        """Mean probability that a cell is weak, with all hazards times ``scale``."""
        weak = 0.0
        for levels, (_, rows, _, columns) in zip(self._levels, self._blocks, strict=True):
            chance = np.where(levels > 0, 1.0, 0.0) if np.isinf(scale) else -np.expm1(-scale * levels)
            weak += float(rows @ chance @ columns)
        return weak / self.cells

    def _weak_slope(self, scale: float) -> float:
        """Derivative of `_weak_share`."""
        slope = 0.0
        for levels, (_, rows, _, columns) in zip(self._levels, self._blocks, strict=True):
            slope += float(rows @ (levels * np.exp(-scale * levels)) @ columns)
        return slope / self.cells

    def _weak_fractions(self, first: int, count: int) -> Floats:
        cells = np.arange(first, first + count, dtype=np.int64)
        geometry = self.geometry
        return np.asarray(-np.expm1(-self.hazards(geometry.wordline(cells)) * self.factors(geometry.bitline(cells))))

    @cached_property
    def _kept_sums(self) -> dict[Any, Any]:
        return {}

    def _sums(self, begin: int, size: int) -> Floats:
        """Cumulated factors of ``size`` bitlines from ``begin``; the last few are kept, since rows share them."""

        def summed() -> Floats:
            return np.asarray(np.cumsum(self.factors(np.arange(begin, begin + size, dtype=np.int64))))

        return np.asarray(_kept(self._kept_sums, (begin, size), summed))

    def _hazard(self, first: int, count: int, cache: dict[Any, Any]) -> "_Hazard | _CrossedHazard":
        del cache
        geometry = self.geometry
        size = min(count, geometry.row_bits)
        wordline = geometry.wordline(np.arange(first, first + count, size, dtype=np.int64))
        subarray = wordline // min(geometry.subarray_rows, geometry.rows)
        begin = np.arange(subarray[0], subarray[-1] + 1) * geometry.row_bits + first % geometry.row_bits
        sums = [self._sums(each, size) for each in begin.tolist()]
        return _CrossedHazard(self.hazards(wordline), subarray - subarray[0], sums)

    def _scalars(self) -> dict[str, float]:
        return {"flip_zero": self.flip_zero, "flip_one": self.flip_one}

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        # The pooled hazard may exceed 1, so that it is no scalar probability: it goes in as line -1.
        return {
            "line": np.concatenate([[-1], self.wordline, self.bitline]).astype(np.int64),
            "value": np.concatenate([[self.pooled_hazard], self.hazard, self.factor]),
            "is_bitline": np.repeat([0, 1], [1 + self.wordline.size, self.bitline.size]),
        }

    @classmethod
    def _fields(cls, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
        line, value, is_bitline = (arrays[name] for name in cls.columns)
        if not line.size or line[0] != -1:
            raise ModelError("it lacks the pooled hazard")
        across = is_bitline == 1
        along = ~across
        along[0] = False
        return {
            **{"wordline": line[along], "hazard": value[along], "bitline": line[across], "factor": value[across]},
            "pooled_hazard": float(value[0]),
        }


class _CrossedHazard:
    """Draws weak cells of stretches of rows whose hazard is a product of the row's and the bitline's; see `_Hazard`.

    Args:
        hazards: float64[n], of the rows.
        which: int64[n], index into ``sums`` of each row.
        sums: cumulated bitline factors of each subarray, all of one length.
    """

    def __init__(self, hazards: Floats, which: CellArray, sums: list[Floats]) -> None:
        self.hazards, self.which, self.sums = hazards, which, sums
        self.ends = np.cumsum(hazards * np.array([each[-1] for each in sums])[which])

    def draw(self, generator: np.random.Generator) -> CellArray:
        """Weak cells, ascending, from 0."""
        total = float(self.ends[-1])
        events = generator.random(int(generator.poisson(total))) * total
        if self.ends.size == 1:
            cumulated = self.sums[0]
            found = np.searchsorted(cumulated, events / self.hazards[0] if total else events, side="right")
            # Rounding may carry an event past the last bitline that can hold one.
            return _distinct(np.minimum(found, np.searchsorted(cumulated, cumulated[-1])))
        events.sort()
        row = np.minimum(np.searchsorted(self.ends, events, side="right"), self.ends.size - 1)
        size = self.sums[0].size
        column = np.empty(events.size, np.int64)
        with np.errstate(divide="ignore", invalid="ignore"):
            within = (events - np.concatenate([[0.0], self.ends[:-1]])[row]) / self.hazards[row]
        for index, each in enumerate(self.sums):
            here = self.which[row] == index
            found = np.minimum(np.searchsorted(each, within[here], side="right"), size - 1)
            column[here] = np.minimum(found, np.searchsorted(each, each[-1]))
        return _distinct(row * size + column)


def _distinct(cells: CellArray) -> CellArray:
    """Ascending, each once."""
    cell = np.sort(cells)
    distinct: CellArray = cell[np.diff(cell, prepend=-1) > 0]
    return distinct


def _any_of(line: CellArray, first: int, count: int) -> bool:
    """Whether the ascending ``line`` holds any of ``count`` numbers from ``first`` on."""
    low, high = np.searchsorted(line, (first, first + count))
    return bool(high > low)


def _looked_up(line: CellArray, value: Floats, otherwise: float, wanted: CellArray) -> Floats:
    if not line.size:
        return np.full(wanted.size, otherwise)
    index = np.minimum(np.searchsorted(line, wanted), line.size - 1)
    return np.where(line[index] == wanted, value[index], otherwise)


def _kept(cache: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    """The entry of a small cache."""
    if key not in cache:
        if len(cache) >= 16:
            cache.pop(next(iter(cache)))
        cache[key] = make()
    return cache[key]


MODEL_CLASSES: dict[int, type[ErrorModel]] = {
    kind.number: kind for kind in (UniformModel, BitlineModel, WordlineModel, DataDependentModel, CrossedModel)
}


def _scaled_fraction(ber: float, flip: float) -> float:
    if not 0 <= ber <= flip:
        raise ModelError(f"a bit error rate of {ber:g} is outside 0..{flip:g}, all that flips of weak cells can give")
    return ber / flip if flip else 0.0


def _scale_capped(gain: Floats, weak: Floats, ber: float) -> Floats:
    """``min(1, scale * weak)`` with the scale at which ``(gain * result).sum() == ber``."""
    highest = float(gain[weak > 0].sum())
    if not 0 <= ber <= highest * (1 + 1e-12):
        raise ModelError(
            f"a bit error rate of {ber:g} is outside 0..{highest:g}, all that lines with weak cells can give"
        )
    free = weak > 0
    capped = np.zeros_like(free)
    scaled = np.zeros_like(weak)
    while True:  # each pass caps at least one more line, or ends
        scaled[capped] = 1.0
        rest = float((gain * weak)[free].sum())
        scaled[free] = weak[free] * (max(0.0, ber - float(gain[capped].sum())) / rest if rest else 0.0)
        over = free & (scaled > 1)
        if not over.any():
            return scaled
        capped |= over
        free &= ~over


_RECORD_KEY = b"eden.error_model"
_CHECKSUM_KEY = b"eden.crc32"
_MAX_RECORD_BYTES = 1 << 20


class _ModelRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["eden-error-model"] = "eden-error-model"
    version: int = MODEL_VERSION
    number: int
    geometry: Geometry
    banks: tuple[int, ...] = Field(min_length=1, max_length=256)
    origin: str
    parameters: dict[str, float]


def load_error_model(path: Path | str) -> ErrorModel:
    """Read the model that `ErrorModel.save` wrote.

    Raises:
        ModelError: the file is missing, foreign, damaged, or of a future version.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist; make it with eden fit") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); check the path") from error
    if not _is_sealed(content):
        raise _damaged(path, "not an error model, or its footer does not match its checksum")
    try:
        parquet = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
        metadata = parquet.metadata.metadata or {}
        columns = dict(zip(parquet.schema_arrow.names, parquet.schema_arrow.types, strict=True))
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _damaged(path, one_line(error)) from error
    if _RECORD_KEY not in metadata:
        raise ModelError(f"{path} is not an error model; make one with eden fit")
    record = _parse_record(path, metadata[_RECORD_KEY])
    kind = MODEL_CLASSES[record.number]
    if columns != kind.columns:
        raise _damaged(path, f"its columns are {list(columns)}, not {list(kind.columns)}")
    arrays = _read_arrays(path, parquet, record) if kind.columns else {}
    if metadata.get(_CHECKSUM_KEY) != b"%d" % _checksum(metadata[_RECORD_KEY], arrays):
        raise _damaged(path, "its checksum does not match")
    try:
        own = kind._fields(arrays)
        return kind(geometry=record.geometry, banks=record.banks, origin=record.origin, **record.parameters, **own)
    except (ModelError, TypeError) as error:
        raise _damaged(path, one_line(error)) from error


# Arrow aborts the process on some damaged Parquet footers, so that a footer needs a checksum that is read before Arrow
# sees it. Parquet allows bytes of others between the last row group and the footer.
_SEAL = b"EDEN"


def _footer(content: bytes) -> int:
    """Where the footer begins; -1 where there is none."""
    if len(content) < 12 or content[-4:] != b"PAR1":
        return -1
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def _sealed(content: bytes) -> bytes:
    """The Parquet file ``content`` with a checksum of its footer before it."""
    at = _footer(content)
    return content[:at] + _SEAL + zlib.crc32(content[at:]).to_bytes(4, "little") + content[at:]


def _is_sealed(content: bytes) -> bool:
    at = _footer(content)
    return at >= 12 and content[at - 8 : at] == _SEAL + zlib.crc32(content[at:]).to_bytes(4, "little")


def _parse_record(path: Path, text: bytes) -> _ModelRecord:
    try:
        if len(text) > _MAX_RECORD_BYTES:
            raise ValueError(f"its record is larger than {_MAX_RECORD_BYTES >> 20} MiB")
        content = json.loads(text)
        version = content.get("version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > MODEL_VERSION:
            raise ModelError(
                f"{path} has version {version}, this toolkit reads up to {MODEL_VERSION}; update the toolkit"
            )
        record = _ModelRecord.model_validate_json(text)
        if record.number not in MODEL_CLASSES:
            raise ValueError(f"there is no Error Model {record.number}")
    except ValidationError as error:
        raise _damaged(path, first_problem(error)) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, one_line(error)) from error
    return record


def _read_arrays(path: Path, parquet: Any, record: _ModelRecord) -> dict[str, npt.NDArray[Any]]:
    metadata = parquet.metadata
    limit = 1 + len(record.banks) * (record.geometry.bitlines + record.geometry.rows)
    if not 0 <= metadata.num_rows <= limit:
        raise _damaged(path, f"it claims {metadata.num_rows} lines of {limit}")
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            if metadata.row_group(group).column(column).total_uncompressed_size > 16 * limit + (64 << 10):
                raise _damaged(path, f"column {column} is larger than its {limit} lines")
    try:
        table = parquet.read(use_threads=False)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise _damaged(path, one_line(error)) from error
    if any(column.null_count for column in table.columns):
        raise _damaged(path, "it has empty entries")
    return {name: np.ascontiguousarray(table.column(name).to_numpy()) for name in table.column_names}


def _checksum(record: bytes, arrays: dict[str, npt.NDArray[Any]]) -> int:
    crc = zlib.crc32(record)
    for values in arrays.values():
        crc = zlib.crc32(np.ascontiguousarray(values).data, crc)
    return crc


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} is truncated or damaged ({what}); make it again with eden fit")
