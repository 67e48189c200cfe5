"""Maximum-likelihood fits of EDEN's Error Models 0-3 to a profile, and the choice between them.

Each tested cell is weak with probability P. A weak cell that stores v fails in each read with probability F_v; the
others never fail. A cell with k_v failures in n_v reads of stored v therefore has the likelihood::

    P * F_0^k_0 (1-F_0)^(n_0-k_0) * F_1^k_1 (1-F_1)^(n_1-k_1)  +  (1 - P) * [k_0 = k_1 = 0]

(of the reads in their order: binomial coefficients, the same for all models, are left out). P and F separate only
because the same cell is read several times. Models 0, 1, 2 have F_0 = F_1, so that for them the sufficient statistics
are tested cells, failing cells and failures by number of reads, for each group of cells with parameters of its own.

Models are compared by BIC, -2 log L + sum over parameters of log(cells that inform it): all tested cells for a
parameter of the whole, the cells of its line for a parameter of a line (the Laplace approximation of the marginal
likelihood; log of all cells for each line would never let a line model win).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import binom, chi2

from profiles.error_models import (
    BitlineModel,
    DataDependentModel,
    ErrorModel,
    Floats,
    GroupedModel,
    UniformModel,
    WordlineModel,
)
from profiles.errors import FitError
from profiles.geometry import CellArray
from profiles.population import Integers, Population, collect, measured_weak_cells
from profiles.schema import OperatingPoint, WriteCondition
from profiles.storage import Profile

__all__ = ["DispersionTest", "FitReport", "ModelFit", "fit", "fit_population", "measured_weak_cells"]

NEAR_TIE = 10.0  # a difference in BIC below this does not justify a costlier model than Model 0

_BISECTIONS = 60


@dataclass(frozen=True)
class DispersionTest:
    """Failing cells counted by lines against what a model expects: Pearson's chi-square.

    Attributes:
        chi_square: sum over lines of (observed - expected)^2 / variance.
        degrees_of_freedom: lines with a non-zero variance, less parameters fitted to those very lines.
        dispersion: chi_square / degrees_of_freedom; 1 where the model holds, more where lines differ more than it says.
        p_value: chance of so large a chi-square if the model held (approximate where lines expect few failures).
    """

    chi_square: float
    degrees_of_freedom: int

    @property
    def dispersion(self) -> float:
        return self.chi_square / self.degrees_of_freedom if self.degrees_of_freedom > 0 else float("nan")

    @property
    def p_value(self) -> float:
        return float(chi2.sf(self.chi_square, self.degrees_of_freedom)) if self.degrees_of_freedom > 0 else float("nan")


@dataclass(frozen=True)
class ModelFit:
    """One model fitted to one population.

    Attributes:
        model: the fitted model.
        log_likelihood: of all reads in their order.
        parameters: number of free parameters.
        bic: see the module's docstring; smaller is better.
        standard_errors: of the parameters of Models 0 and 3, by field name, from the observed information; NaN for a
            parameter at the edge of 0..1, where there is none. Empty for Models 1 and 2.
        wordlines, bitlines: goodness of fit against failing cells by wordline, and by bitline.
        expected_cells: float64[n], expected cells with 1, 2, .. errors, for as many as `FitReport.observed_cells`.
    """

    model: ErrorModel
    log_likelihood: float
    parameters: int
    bic: float
    standard_errors: dict[str, float]
    wordlines: DispersionTest
    bitlines: DispersionTest
    expected_cells: Floats


@dataclass(frozen=True)
class FitReport:
    """The four models against one operating point.

    Attributes:
        point, write_condition, banks: what was fitted.
        tested_cells: cells that were read, failing or not.
        failing_cells: cells that failed at least once.
        errors, reads: failed reads, and all reads.
        fits: by number of the model; a model that the data do not determine is absent.
        unavailable: why, by number of the model.
        chosen: number of the model to use: the smallest BIC, or Model 0 on a near tie.
        near_tie: the data cannot tell Model 0 from the best of the others.
        observed_cells: int64[n], cells that had 1, 2, .. errors over all their reads.
    """

    point: OperatingPoint
    write_condition: WriteCondition
    banks: tuple[int, ...]
    tested_cells: int
    failing_cells: int
    errors: int
    reads: int
    fits: dict[int, ModelFit]
    unavailable: dict[int, str]
    chosen: int
    near_tie: bool
    observed_cells: Integers

    @property
    def best(self) -> ModelFit:
        return self.fits[self.chosen]

    @property
    def model(self) -> ErrorModel:
        """The chosen model."""
        return self.best.model


def fit(
    profile: Profile, point: OperatingPoint, write_condition: WriteCondition, banks: Sequence[int] | None = None
) -> FitReport:
    """Fit Error Models 0-3 to everything measured at an operating point, in ``banks`` (None: all tested ones).

    Raises:
        FitError: nothing was measured there, or the rounds do not determine P and F.
        ProfileError: a file of the profile is damaged.
    """
    module = profile.header.module
    origin = f"{module.manufacturer} {module.part_number} {module.serial_number} at {point}, {write_condition} writes"
    return fit_population(collect(profile, point, write_condition, banks), point, write_condition, origin)


def fit_population(
    data: Population, point: OperatingPoint, write_condition: WriteCondition, origin: str = ""
) -> FitReport:
    """`fit` for data that are already collected. ``origin`` goes into the models."""
    _check_determined(data, point)
    lines = {1: _bitlines(data), 2: _wordlines(data)}
    classes = _Classes.of(data)
    observed = np.bincount(data.errors)[1:].astype(np.int64)
    fits = {0: _fit_uniform(data, origin, lines, observed.size)}
    unavailable = {}
    for number, kind in ((1, BitlineModel), (2, WordlineModel)):
        fits[number] = _fit_lines(kind, data, origin, lines, fits[0].model, observed.size)
    if isinstance(classes, str):
        unavailable[3] = classes
    else:
        fits[3] = _fit_data_dependent(data, origin, classes, lines, observed.size)
    best = min(fits, key=lambda number: fits[number].bic)
    near_tie = best != 0 and fits[0].bic - fits[best].bic < NEAR_TIE
    return FitReport(
        point=point,
        write_condition=write_condition,
        banks=data.banks,
        tested_cells=data.tested_cells,
        failing_cells=int(data.cell.size),
        errors=int(data.errors.sum()),
        reads=sum(section.row_count * section.trials for section in data.sections) * data.geometry.row_bits,
        fits=dict(sorted(fits.items())),
        unavailable=unavailable,
        chosen=0 if near_tie else best,
        near_tie=near_tie,
        observed_cells=observed,
    )


def _check_determined(data: Population, point: OperatingPoint) -> None:
    if not data.cell.size:
        raise FitError(f"no cell failed at {point}; fit a harsher operating point")
    if max(section.trials for section in data.sections) < 2:
        raise FitError(f"each cell was read once at {point}, so P and F do not separate; scan with two rounds or more")
    if int(data.errors.max()) < 2:
        raise FitError(
            f"none of the {data.cell.size} failing cells at {point} failed twice, so P and F do not separate; "
            "scan more rounds or a harsher point"
        )


# Lines: groups of cells with parameters of their own.


@dataclass(frozen=True)
class _Lines:
    """Sufficient statistics of groups of cells, by number of reads.

    Attributes:
        line: int64[g], module numbers, ascending.
        trials: int64[c], the distinct numbers of reads.
        tested, failing: int64[g, c], cells of the line so often read, and those of them that failed.
        errors: int64[g], failed reads.
    """

    line: CellArray
    trials: Integers
    tested: Integers
    failing: Integers
    errors: Integers

    @property
    def failing_reads(self) -> Integers:
        """int64[g], all reads of cells that failed."""
        total: Integers = self.failing @ self.trials
        return total

    def pooled(self) -> "_Lines":
        """All lines as one."""
        return _Lines(
            self.line[:1],
            self.trials,
            self.tested.sum(axis=0, keepdims=True),
            self.failing.sum(axis=0, keepdims=True),
            self.errors.sum(keepdims=True),
        )


def _lines(data: Population, line: CellArray, tested: Integers, line_of_cell: CellArray, trials: Integers) -> _Lines:
    at = np.searchsorted(line, line_of_cell)
    read = np.searchsorted(trials, data.trials)
    failing = np.bincount(at * trials.size + read, minlength=line.size * trials.size)
    errors = np.bincount(at, weights=data.errors, minlength=line.size)
    return _Lines(line, trials, tested, failing.reshape(tested.shape).astype(np.int64), errors.astype(np.int64))


def _distinct_trials(data: Population) -> Integers:
    return np.unique(np.array([section.trials for section in data.sections], np.int64))


def _wordlines(data: Population) -> _Lines:
    trials = _distinct_trials(data)
    line = np.concatenate(
        [
            section.bank * data.geometry.rows + section.row_start + np.arange(section.row_count)
            for section in data.sections
        ]
    ).astype(np.int64)
    reads = np.repeat([section.trials for section in data.sections], [section.row_count for section in data.sections])
    tested = np.where(reads[:, None] == trials, data.geometry.row_bits, 0).astype(np.int64)
    return _lines(data, line, tested, data.geometry.wordline(data.cell), trials)


def _bitlines(data: Population) -> _Lines:
    geometry, trials = data.geometry, _distinct_trials(data)
    rows = _rows_by_subarray(data, trials)
    starts = np.array(sorted(rows), np.int64) * geometry.row_bits
    line = (starts[:, None] + np.arange(geometry.row_bits)).ravel()
    tested = np.repeat(np.array([rows[subarray] for subarray in sorted(rows)]), geometry.row_bits, axis=0)
    return _lines(data, line, tested, geometry.bitline(data.cell), trials)


def _rows_by_subarray(data: Population, trials: Integers) -> dict[int, Integers]:
    """Tested rows of each subarray (numbered over the module), by number of reads."""
    size = min(data.geometry.subarray_rows, data.geometry.rows)
    rows: dict[int, Integers] = {}
    for section in data.sections:
        column = int(np.searchsorted(trials, section.trials))
        end = section.row_start + section.row_count
        for subarray in range(section.row_start // size, -(-end // size)):
            inside = min(end, (subarray + 1) * size) - max(section.row_start, subarray * size)
            counts = rows.setdefault(section.bank * data.geometry.subarrays + subarray, np.zeros(trials.size, np.int64))
            counts[column] += inside
    return rows


# Models with F_0 = F_1.


def _fail_chance(flip: Floats, trials: Integers) -> Floats:
    """Probability that a weak cell fails at least once, broadcast over both."""
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(trials * np.log1p(-flip)))


def _best_weak_fraction(lines: _Lines, flip: Floats) -> Floats:
    """P of each line at which the likelihood is highest, given its F."""
    chance = _fail_chance(flip[:, None], lines.trials)
    failing = lines.failing.sum(axis=1)
    if lines.trials.size == 1:
        return np.asarray(np.minimum(1.0, failing / (lines.tested[:, 0] * chance[:, 0])))
    rest = lines.tested - lines.failing
    low, high = np.zeros(flip.size), np.ones(flip.size)
    for _ in range(_BISECTIONS):  # the slope falls from +infinity at P = 0
        middle = (low + high) / 2
        slope = failing / middle - (rest * chance / (1 - middle[:, None] * chance)).sum(axis=1)
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    return high


def _most_likely(lines: _Lines) -> tuple[Floats, Floats]:
    """P and F of each line by maximum likelihood. Every line must have a cell that failed twice.

    The likelihood, maximised over P, has one maximum over F: bisection of its slope, for all lines at once.
    """
    reads = lines.failing_reads
    rest = lines.tested - lines.failing
    low, high = np.full(lines.line.size, -25.0), np.full(lines.line.size, 25.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        flip = expit(middle)
        weak = _best_weak_fraction(lines, flip)[:, None]
        chance = _fail_chance(flip[:, None], lines.trials)
        survive = np.exp((lines.trials - 1) * np.log1p(-flip[:, None]))
        with np.errstate(invalid="ignore", divide="ignore"):
            loss = np.where(rest > 0, rest * weak * lines.trials * survive / (1 - weak * chance), 0.0).sum(axis=1)
        slope = lines.errors / flip - (reads - lines.errors) / (1 - flip) - loss
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    flip = np.where(lines.errors == reads, 1.0, expit((low + high) / 2))
    return _best_weak_fraction(lines, flip), flip


def _log_likelihood(lines: _Lines, weak: Floats, flip: Floats) -> float:
    """Over all lines, with P and F of each (broadcast)."""
    failing = lines.failing.sum(axis=1)
    silent = 1 - np.asarray(weak)[..., None] * _fail_chance(np.asarray(flip)[..., None], lines.trials)
    terms = (
        _times_log(failing, weak)
        + _times_log(lines.errors, flip)
        + _times_log(lines.failing_reads - lines.errors, 1 - np.asarray(flip))
        + _times_log(lines.tested - lines.failing, silent).sum(axis=1)
    )
    return float(terms.sum())


def _times_log(count: npt.ArrayLike, probability: npt.ArrayLike) -> Floats:
    """``count * log(probability)``, 0 where the count is 0."""
    counts, chances = np.broadcast_arrays(np.asarray(count, np.float64), np.asarray(probability, np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(counts > 0, counts * np.log(chances), 0.0))


def _fit_uniform(data: Population, origin: str, lines: dict[int, _Lines], length: int) -> ModelFit:
    pooled = lines[2].pooled()
    weak, flip = (float(values[0]) for values in _most_likely(pooled))
    model = UniformModel(
        geometry=data.geometry, banks=data.banks, origin=origin, weak_fraction=weak, flip_probability=flip
    )
    likelihood = _log_likelihood(pooled, np.array([weak]), np.array([flip]))

    def slope(parameters: Floats) -> Floats:
        return _uniform_slope(pooled, *parameters)

    errors = _standard_errors(slope, np.array([weak, flip]))
    return ModelFit(
        model=model,
        log_likelihood=likelihood,
        parameters=2,
        bic=-2 * likelihood + 2 * float(np.log(data.tested_cells)),
        standard_errors=dict(zip(("weak_fraction", "flip_probability"), errors, strict=True)),
        wordlines=_uniform_dispersion(lines[2], weak, flip, 1),
        bitlines=_uniform_dispersion(lines[1], weak, flip, 1),
        expected_cells=_expected_cells(pooled, np.array([weak]), np.array([flip]), length),
    )


def _uniform_slope(pooled: _Lines, weak: float, flip: float) -> Floats:
    chance = _fail_chance(np.array([flip]), pooled.trials)
    rest = (pooled.tested - pooled.failing)[0] / (1 - weak * chance)
    survive = pooled.trials * (1 - flip) ** (pooled.trials - 1)
    errors, reads = int(pooled.errors[0]), int(pooled.failing_reads[0])
    return np.array(
        [
            pooled.failing.sum() / weak - (rest * chance).sum(),
            errors / flip - (reads - errors) / (1 - flip) - (rest * weak * survive).sum(),
        ]
    )


def _fit_lines(
    kind: type[GroupedModel],
    data: Population,
    origin: str,
    lines: dict[int, _Lines],
    pooled: ErrorModel,
    length: int,
) -> ModelFit:
    """Model 1 or 2. A line where no cell failed twice says nothing of F and takes the pooled one."""
    assert isinstance(pooled, UniformModel)
    own = lines[kind.number]
    weak, flip, free = _line_parameters(own, pooled.flip_probability)
    model = kind(
        geometry=data.geometry,
        banks=data.banks,
        origin=origin,
        line=own.line,
        weak_fraction=weak,
        flip_probability=flip,
        pooled_weak_fraction=pooled.weak_fraction,
        pooled_flip_probability=pooled.flip_probability,
    )
    likelihood = _log_likelihood(own, weak, flip)
    informing = np.log(own.tested.sum(axis=1))
    # Each line has a P; those with a cell that failed twice an F of their own; the others share one.
    penalty = float(informing.sum() + informing[free].sum() + np.log(data.tested_cells))
    own_test = _uniform_dispersion(own, weak, flip, own.line.size)
    other_test = _crossed_dispersion(data, kind.number, own, lines[3 - kind.number], weak, flip)
    return ModelFit(
        model=model,
        log_likelihood=likelihood,
        parameters=int(own.line.size + free.sum() + 1),
        bic=-2 * likelihood + penalty,
        standard_errors={},
        wordlines=other_test if kind.number == 1 else own_test,
        bitlines=own_test if kind.number == 1 else other_test,
        expected_cells=_expected_cells(own, weak, flip, length),
    )


def _line_parameters(own: _Lines, pooled_flip: float) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """P and F of each line, and whether its F is its own. Lines with equal counts are solved once."""
    counts = np.column_stack([own.tested, own.failing, own.errors])
    unique, inverse = _unique_rows(counts)
    width = own.trials.size
    distinct = _Lines(
        np.arange(len(unique), dtype=np.int64), own.trials, unique[:, :width], unique[:, width:-1], unique[:, -1]
    )
    failing = distinct.failing.sum(axis=1)
    free = distinct.errors > failing  # some cell failed twice
    weak, flip = np.zeros(len(unique)), np.full(len(unique), pooled_flip)
    if free.any():
        weak[free], flip[free] = _most_likely(_subset(distinct, free))
    once = (failing > 0) & ~free
    if once.any():
        weak[once] = _best_weak_fraction(_subset(distinct, once), flip[once])
    return weak[inverse], flip[inverse], free[inverse]


def _unique_rows(counts: Integers) -> tuple[Integers, Integers]:
    """`np.unique` over rows, by sorting one hash of each row and not the rows themselves, which is slow."""
    weights = np.random.default_rng(0).integers(1, 1 << 62, counts.shape[1]) | 1
    key = counts @ weights  # wraps around; rows that collide are caught below
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    if not np.array_equal(counts[first][inverse], counts):
        unique, inverse = np.unique(counts, axis=0, return_inverse=True)
        return unique, inverse.ravel()
    return counts[first], inverse


def _subset(lines: _Lines, mask: npt.NDArray[np.bool_]) -> _Lines:
    return _Lines(lines.line[mask], lines.trials, lines.tested[mask], lines.failing[mask], lines.errors[mask])


# Model 3.


@dataclass(frozen=True)
class _Classes:
    """Sufficient statistics by reads at a stored 0 and a stored 1.

    Attributes:
        trials: int64[c, 2], reads while storing 0, and 1.
        tested, failing: int64[c].
        errors: int64[2], failed reads while storing 0, and 1.
        reads: int64[2], all reads, by stored bit, of cells that failed.
    """

    trials: Integers
    tested: Integers
    failing: Integers
    errors: Integers
    reads: Integers

    @staticmethod
    def of(data: Population) -> "_Classes | str":
        """The statistics, or the reason why there are none."""
        try:
            trials, tested = data.stored_classes()
        except FitError as error:
            return str(error)
        for stored in (0, 1):
            if not trials[:, stored].any():
                return f"no cell was read while it stored {stored}; scan a pattern and its complement"
        base = int(trials.max()) + 1
        at = np.searchsorted(trials @ (base, 1), data.trials_zero * base + data.trials_one)
        return _Classes(
            trials,
            tested,
            np.bincount(at, minlength=tested.size).astype(np.int64),
            np.array([data.errors_zero.sum(), data.errors_one.sum()], np.int64),
            np.array([data.trials_zero.sum(), data.trials_one.sum()], np.int64),
        )

    def fail_chance(self, flips: Floats) -> Floats:
        """float64[c], probability that a weak cell of each class fails at least once."""
        return np.asarray(-np.expm1(self.trials @ np.log1p(-flips)))

    def log_likelihood(self, weak: float, flips: Floats) -> float:
        silent = 1 - weak * self.fail_chance(np.minimum(flips, 1 - 1e-16))
        return float(
            _times_log(self.failing.sum(), weak)
            + _times_log(self.errors, flips).sum()
            + _times_log(self.reads - self.errors, 1 - flips).sum()
            + _times_log(self.tested - self.failing, silent).sum()
        )

    def slope(self, parameters: Floats) -> Floats:
        """Derivatives of the log-likelihood by P, F_V0, F_V1."""
        weak, flips = parameters[0], parameters[1:]
        chance = self.fail_chance(flips)
        rest = (self.tested - self.failing) / (1 - weak * chance)
        by_flip = rest * weak * (1 - chance) @ self.trials / (1 - flips)
        own = self.errors / flips - (self.reads - self.errors) / (1 - flips)
        return np.concatenate([[self.failing.sum() / weak - (rest * chance).sum()], own - by_flip])


def _fit_data_dependent(
    data: Population, origin: str, classes: _Classes, lines: dict[int, _Lines], length: int
) -> ModelFit:
    parameters = _most_likely_data_dependent(classes)
    weak, flips = float(parameters[0]), parameters[1:]
    model = DataDependentModel(
        geometry=data.geometry,
        banks=data.banks,
        origin=origin,
        weak_fraction=weak,
        flip_zero=float(flips[0]),
        flip_one=float(flips[1]),
    )
    likelihood = classes.log_likelihood(weak, flips)
    chance = classes.fail_chance(np.minimum(flips, 1 - 1e-16))
    # Lines are taken to hold the classes in the proportions of the whole; what they expect differs by class only.
    mean = float(weak * (classes.tested * chance).sum() / classes.tested.sum())
    return ModelFit(
        model=model,
        log_likelihood=likelihood,
        parameters=3,
        bic=-2 * likelihood + 3 * float(np.log(data.tested_cells)),
        standard_errors=dict(
            zip(("weak_fraction", "flip_zero", "flip_one"), _standard_errors(classes.slope, parameters), strict=True)
        ),
        wordlines=_scaled_dispersion(lines[2], mean),
        bitlines=_scaled_dispersion(lines[1], mean),
        expected_cells=_expected_data_dependent(classes, weak, flips, length),
    )


def _most_likely_data_dependent(classes: _Classes) -> Floats:
    """P, F_V0, F_V1 by maximum likelihood, searched on the logit scale from Model 0's kind of start."""
    flips = np.clip(classes.errors / np.maximum(classes.reads, 1), 1e-6, 1 - 1e-6)
    weak = np.clip(classes.failing.sum() / (classes.tested * classes.fail_chance(flips)).sum(), 1e-12, 1 - 1e-6)
    scale = float(classes.failing.sum())

    def objective(position: Floats) -> tuple[float, Floats]:
        values = np.clip(expit(position), 1e-15, 1 - 1e-15)
        slope = classes.slope(values) * values * (1 - values)
        return -classes.log_likelihood(float(values[0]), values[1:]) / scale, -slope / scale

    start = logit(np.concatenate([[weak], flips]))
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=[(-34, 34)] * 3, options={"ftol": 1e-15})
    best = expit(found.x)
    best[1:][classes.errors == 0] = 0.0
    return np.asarray(best)


# Standard errors and goodness of fit.


def _standard_errors(slope: Callable[[Floats], Floats], parameters: Floats) -> list[float]:
    """From the observed information; NaN for parameters at the edge, which are held while the others are judged."""
    edge = (parameters < 1e-12) | (parameters > 1 - 1e-7)
    free = np.flatnonzero(~edge)
    inside = np.clip(parameters, 1e-15, 1 - 1e-15)
    information = np.zeros((free.size, free.size))
    for row, index in enumerate(free):
        step = 1e-4 * min(inside[index], 1 - inside[index])
        shift = np.zeros(inside.size)
        shift[index] = step
        information[row] = -(slope(inside + shift) - slope(inside - shift))[free] / (2 * step)
    result = np.full(parameters.size, np.nan)
    try:
        # Scaled to order 1, since a weak fraction may be 1e-9 and a flip probability 0.5.
        scale = np.sqrt(np.abs(np.diag(information)))
        variance = np.diag(np.linalg.inv((information + information.T) / 2 / np.outer(scale, scale))) / scale**2
    except np.linalg.LinAlgError:
        return result.tolist()
    with np.errstate(invalid="ignore"):
        result[free] = np.sqrt(variance)
    return result.tolist()


def _chi_square(observed: Integers, expected: Floats, variance: Floats, fitted: int) -> DispersionTest:
    used = variance > 0
    chi_square = float(((observed - expected)[used] ** 2 / variance[used]).sum())
    return DispersionTest(chi_square, max(0, int(used.sum()) - fitted))


def _uniform_dispersion(lines: _Lines, weak: Floats | float, flip: Floats | float, fitted: int) -> DispersionTest:
    """Lines whose cells all have the line's own P and F (or everybody's)."""
    chance = np.asarray(weak)[..., None] * _fail_chance(np.asarray(flip, np.float64)[..., None], lines.trials)
    expected = (lines.tested * chance).sum(axis=1)
    return _chi_square(lines.failing.sum(axis=1), expected, (lines.tested * chance * (1 - chance)).sum(axis=1), fitted)


def _scaled_dispersion(lines: _Lines, chance: float) -> DispersionTest:
    """Lines whose cells all fail with ``chance``."""
    tested = lines.tested.sum(axis=1)
    return _chi_square(lines.failing.sum(axis=1), tested * chance, tested * chance * (1 - chance), 1)


def _crossed_dispersion(
    data: Population, number: int, own: _Lines, across: _Lines, weak: Floats, flip: Floats
) -> DispersionTest:
    """A line model against lines of the other kind: each crosses every line of its subarray once."""
    geometry = data.geometry
    chance = weak[:, None] * _fail_chance(flip[:, None], own.trials)
    size = min(geometry.subarray_rows, geometry.rows)
    if number == 1:  # wordlines cross the bitlines of their subarray, all with the wordline's trials
        by_subarray, home = own.line // geometry.row_bits, across.line // size
        weights: Floats = np.ones_like(chance)
        chosen: Floats = (across.tested > 0).astype(np.float64)
    else:  # bitlines cross the tested wordlines of their subarray, each with its own trials
        by_subarray, home = own.line // size, across.line // geometry.row_bits
        weights = (own.tested > 0).astype(np.float64)
        chosen = np.ones((across.line.size, own.trials.size))
    subarrays, at = np.unique(by_subarray, return_inverse=True)
    mean, variance = np.zeros((subarrays.size, own.trials.size)), np.zeros((subarrays.size, own.trials.size))
    np.add.at(mean, at, weights * chance)
    np.add.at(variance, at, weights * chance * (1 - chance))
    home = np.searchsorted(subarrays, home)
    expected, spread = (chosen * mean[home]).sum(axis=1), (chosen * variance[home]).sum(axis=1)
    return _chi_square(across.failing.sum(axis=1), expected, spread, 1)


def _expected_cells(lines: _Lines, weak: Floats, flip: Floats, length: int) -> Floats:
    """Expected cells with 1 .. ``length`` errors; lines with equal parameters are taken together."""
    counts = np.arange(1, length + 1)
    total = np.zeros(length)
    pairs, at = np.unique(flip, return_inverse=True)
    for column, trials in enumerate(lines.trials.tolist()):
        cells = np.bincount(at, weights=weak * lines.tested[:, column], minlength=pairs.size)
        step = max(1, (1 << 20) // length)
        for low in range(0, pairs.size, step):
            part = slice(low, low + step)
            total += cells[part] @ binom.pmf(counts, trials, pairs[part, None])
    return total


def _expected_data_dependent(classes: _Classes, weak: float, flips: Floats, length: int) -> Floats:
    total = np.zeros(length)
    for (zeros, ones), cells in zip(classes.trials.tolist(), classes.tested.tolist(), strict=True):
        spread = np.convolve(
            binom.pmf(np.arange(zeros + 1), zeros, flips[0]), binom.pmf(np.arange(ones + 1), ones, flips[1])
        )
        part = spread[1 : length + 1]
        total[: part.size] += weak * cells * part
    return total
