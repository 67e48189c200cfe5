"""Maximum-likelihood fits of EDEN's Error Models 0-3 and of `CrossedModel` to a profile, and the choice between them.

Each tested cell is weak with probability P. A weak cell that stores v fails in each read with probability F_v; the
others never fail. A cell with k_v failures in n_v reads of stored v therefore has the likelihood::

    P * F_0^k_0 (1-F_0)^(n_0-k_0) * F_1^k_1 (1-F_1)^(n_1-k_1)  +  (1 - P) * [k_0 = k_1 = 0]

(of the reads in their order: binomial coefficients, the same for all models, are left out). P and F separate only
because the same cell is read several times. Models 0, 1, 2 have F_0 = F_1, so that for them the sufficient statistics
are tested cells, failing cells and failures by number of reads, for each line of cells with parameters of its own.

Lines draw their P and F from laws (`profiles.laws`), whose parameters are the model's free ones and are fitted by
maximum likelihood; a line's own P and F are then posterior means. In `CrossedModel`, counts of failing cells by
wordline, by data line and by bitline are taken as independent of each other: exact where few cells are weak, as for a
Poisson process whose intensity is a product.

Models are compared by BIC, -2 log L + sum over free parameters of log(what informs it): tested cells for P and F, lines
for the spread between lines, failing cells for the difference of F_0 and F_1. The reads that a fit has not seen are no
test of line models: the same cells are weak in them, by chance or not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import betabinom, binom

from profiles import goodness
from profiles.error_models import (
    BitlineModel,
    CrossedModel,
    DataDependentModel,
    ErrorModel,
    GroupedModel,
    UniformModel,
    WordlineModel,
)
from profiles.errors import FitError
from profiles.goodness import DispersionTest
from profiles.laws import (
    Floats,
    Law,
    beta_interval,
    chance_posteriors,
    distinct_rows,
    fit_chance_law,
    fit_flip_law,
    flip_posteriors,
    gamma_interval,
)
from profiles.lines import Crossing, Lines, exposures, fail_chance
from profiles.population import Integers, Population, collect, measured_weak_cells
from profiles.schema import OperatingPoint, WriteCondition
from profiles.storage import Profile

__all__ = ["DispersionTest", "FitReport", "ModelFit", "fit", "fit_population", "measured_weak_cells"]

# Differences in BIC as Kass and Raftery (JASA 1995) read them: below 2 "not worth more than a bare mention", above 10
# "very strong". A costlier model than Model 0 needs the first; to call the choice certain takes the second, for each
# parameter in question: a model that contains the chosen one can never be worse by its likelihood.
NEAR_TIE, CERTAIN = 2.0, 10.0

NORMAL_95 = 1.959964  # standard deviations

_BISECTIONS = 60
_BALANCING_STEPS = 4
_CLOSE_TO_ONE = 1 - 1e-16


@dataclass(frozen=True)
class ModelFit:
    """One model fitted to one population.

    Attributes:
        model: the fitted model.
        log_likelihood: of all reads in their order, with the lines' own parameters integrated over their law.
        parameters: number of free parameters.
        bic: see the module's docstring; smaller is better.
        standard_errors: of the model's parameters, by field name; for Models 1, 2 and 4 of each line (posterior
            standard deviations). NaN for a parameter at the edge of 0..1, where there is none.
        spreads: standard deviation between lines over their mean, of the chance that a cell fails, by "wordlines",
            "bitlines" and "lanes", for the models that have lines.
        cells, wordlines, bitlines, lanes: goodness of fit against errors a cell, and against failing cells by wordline,
            bitline and data line. Lines that the model has parameters for are tested against their law.
        expected_cells: float64[n], expected cells with 1, 2, .. errors, for as many as `FitReport.observed_cells`.
    """

    model: ErrorModel
    log_likelihood: float
    parameters: int
    bic: float
    standard_errors: dict[str, Floats]
    spreads: dict[str, float]
    cells: DispersionTest
    wordlines: DispersionTest
    bitlines: DispersionTest
    lanes: DispersionTest
    expected_cells: Floats

    @property
    def tests(self) -> dict[str, DispersionTest]:
        """The tests of goodness of fit that the data allow, by name."""
        every = {"errors a cell": self.cells, "wordlines": self.wordlines, "bitlines": self.bitlines}
        every["data lines"] = self.lanes
        return {name: test for name, test in every.items() if test.degrees_of_freedom > 0}

    @property
    def p_value(self) -> float:
        """Chance that the worst of the tests is as bad if the model holds (Bonferroni); NaN without a test."""
        values = [test.p_value for test in self.tests.values()]
        return min(1.0, len(values) * min(values)) if values else float("nan")

    def intervals(self) -> dict[str, tuple[Floats, Floats]]:
        """95 % intervals of the parameters, by field name; of one value where there is no standard error."""
        found = {}
        for name, error in self.standard_errors.items():
            value = np.asarray(getattr(self.model, name), np.float64)
            if name in ("hazard", "factor", "pooled_hazard"):  # not bounded by 1
                found[name] = gamma_interval(value, error)
            elif value.ndim:
                found[name] = beta_interval(value, error)
            else:
                with np.errstate(divide="ignore", invalid="ignore"):
                    width = np.nan_to_num(NORMAL_95 * error / (value * (1 - value)))
                    found[name] = (np.asarray(expit(logit(value) - width)), np.asarray(expit(logit(value) + width)))
        return found


@dataclass(frozen=True)
class FitReport:
    """The models against one operating point.

    Attributes:
        point, write_condition, banks: what was fitted.
        tested_cells: cells that were read, failing or not.
        failing_cells: cells that failed at least once.
        errors, reads: failed reads, and all reads.
        fits: by number of the model; a model that the data do not determine is absent.
        unavailable: why, by number of the model.
        chosen: number of the model to use: the smallest BIC, or Model 0 on a near tie.
        near_tie: another model has the smallest BIC, but by too little to justify more than Model 0.
        tied: numbers of the models that the data cannot tell from the chosen one, closest first.
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
    tied: tuple[int, ...]
    observed_cells: Integers

    @property
    def best(self) -> ModelFit:
        return self.fits[self.chosen]

    @property
    def model(self) -> ErrorModel:
        """The chosen model."""
        return self.best.model

    @property
    def anywhere(self) -> ErrorModel:
        """The best of the models that are the same at every address (0 and 3).

        A network is trained before it is mapped: its tensors will not meet weak lines where training puts them.
        """
        return min((self.fits[number] for number in (0, 3) if number in self.fits), key=lambda each: each.bic).model

    @property
    def certain(self) -> bool:
        """The data tell the chosen model from every other."""
        return not self.tied


def fit(
    profile: Profile, point: OperatingPoint, write_condition: WriteCondition, banks: Sequence[int] | None = None
) -> FitReport:
    """Fit the error models to everything measured at an operating point, in ``banks`` (None: all tested ones).

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
    crossing = Crossing.of(data)
    observed = np.bincount(data.errors)[1:].astype(np.int64)
    fits = {0: _fit_uniform(data, origin, crossing, observed)}
    unavailable: dict[int, str] = {}
    for kind in (BitlineModel, WordlineModel):
        fits[kind.number] = _fit_lines(kind, data, origin, crossing, fits[0], observed)
    classes = _Classes.of(data)
    if isinstance(classes, str):
        unavailable = dict.fromkeys((3, 4), classes)
    else:
        fits[3] = _fit_data_dependent(data, origin, classes, crossing, observed)
        fits[4] = _fit_crossed(data, origin, crossing, fits[3])
    chosen, near_tie, tied = choose({number: (each.bic, each.parameters) for number, each in fits.items()})
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
        chosen=chosen,
        near_tie=near_tie,
        tied=tied,
        observed_cells=observed,
    )


def choose(models: dict[int, tuple[float, int]]) -> tuple[int, bool, tuple[int, ...]]:
    """The model to use, from BIC and number of parameters of each.

    Returns:
        Its number, whether it is Model 0 for a near tie, and which others the data cannot tell from it, closest first:
        those that it leads by less than `CERTAIN` for each parameter by which they differ, one at least.
    """
    bic = {number: each for number, (each, _) in models.items()}
    best = min(bic, key=lambda number: bic[number])
    near_tie = best != 0 and bic[0] - bic[best] < NEAR_TIE
    chosen = 0 if near_tie else best
    tied = []
    for number, (each, parameters) in models.items():
        apart = max(1, abs(parameters - models[chosen][1]))
        if number != chosen and each - bic[chosen] < CERTAIN * apart:
            tied.append(number)
    return chosen, near_tie, tuple(sorted(tied, key=lambda number: bic[number]))


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


# Models with F_0 = F_1.


def _best_weak_fraction(lines: Lines, flip: Floats) -> Floats:
    """P of each line at which the likelihood is highest, given its F."""
    chance = fail_chance(flip[:, None], lines.trials)
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


def _most_likely(lines: Lines) -> tuple[Floats, Floats]:
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
        chance = fail_chance(flip[:, None], lines.trials)
        survive = np.exp((lines.trials - 1) * np.log1p(-flip[:, None]))
        with np.errstate(invalid="ignore", divide="ignore"):
            loss = np.where(rest > 0, rest * weak * lines.trials * survive / (1 - weak * chance), 0.0).sum(axis=1)
        slope = lines.errors / flip - (reads - lines.errors) / (1 - flip) - loss
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    flip = np.where(lines.errors == reads, 1.0, expit((low + high) / 2))
    return _best_weak_fraction(lines, flip), flip


def _log_likelihood(lines: Lines, weak: Floats, flip: Floats) -> float:
    """Over all lines, with P and F of each (broadcast)."""
    failing = lines.failing.sum(axis=1)
    silent = 1 - np.asarray(weak)[..., None] * fail_chance(np.asarray(flip)[..., None], lines.trials)
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


def _fit_uniform(data: Population, origin: str, crossing: Crossing, observed: Integers) -> ModelFit:
    pooled = crossing.wordlines.pooled()
    weak, flip = (float(values[0]) for values in _most_likely(pooled))
    model = UniformModel(
        geometry=data.geometry, banks=data.banks, origin=origin, weak_fraction=weak, flip_probability=flip
    )
    likelihood = _log_likelihood(pooled, np.array([weak]), np.array([flip]))

    def slope(parameters: Floats) -> Floats:
        return _uniform_slope(pooled, *parameters)

    errors = _standard_errors(slope, np.array([weak, flip]))
    expected = _expected_cells(pooled, np.array([weak]), np.array([flip]), observed.size)
    tests = {
        name: goodness.of_lines(lines.failing_cells, lines.exposed(flip), weak, 1)
        for name, lines in vars(crossing).items()
    }
    return ModelFit(
        model=model,
        log_likelihood=likelihood,
        parameters=2,
        bic=-2 * likelihood + 2 * float(np.log(data.tested_cells)),
        standard_errors=dict(zip(("weak_fraction", "flip_probability"), errors, strict=True)),
        spreads={},
        cells=goodness.of_histogram(observed, expected, 1),
        expected_cells=expected,
        **tests,
    )


def _uniform_slope(pooled: Lines, weak: float, flip: float) -> Floats:
    chance = fail_chance(np.array([flip]), pooled.trials)
    rest = (pooled.tested - pooled.failing)[0] / (1 - weak * chance)
    survive = pooled.trials * (1 - flip) ** (pooled.trials - 1)
    errors, reads = int(pooled.errors[0]), int(pooled.failing_reads[0])
    return np.array(
        [
            pooled.failing.sum() / weak - (rest * chance).sum(),
            errors / flip - (reads - errors) / (1 - flip) - (rest * weak * survive).sum(),
        ]
    )


# Models 1 and 2.


def _fit_lines(
    kind: type[GroupedModel],
    data: Population,
    origin: str,
    crossing: Crossing,
    uniform: ModelFit,
    observed: Integers,
) -> ModelFit:
    own, name = (
        (crossing.bitlines, "bitlines") if kind.number == BitlineModel.number else (crossing.wordlines, "wordlines")
    )
    pooled = uniform.model
    assert isinstance(pooled, UniformModel)
    failing, most = own.failing_cells, float(fail_chance(pooled.flip_probability, own.trials[-1:])[0])
    exposed = own.exposed(pooled.flip_probability) / most
    law = fit_chance_law(failing, exposed)
    flips = fit_flip_law(
        own.failing,
        own.errors,
        own.failing_reads,
        own.trials,
        pooled.flip_probability,
        float(uniform.standard_errors["flip_probability"]),
    )
    moments = flip_posteriors(flips, own.failing, own.errors, own.failing_reads, own.trials)
    chance, variance = chance_posteriors(law, failing, exposed)
    weak, flip = np.minimum(1.0, chance * moments[:, 2]), moments[:, 0]
    weak_error = np.sqrt(np.maximum(0.0, (variance + chance**2) * moments[:, 3] - (chance * moments[:, 2]) ** 2))
    flip_error = np.sqrt(np.maximum(0.0, moments[:, 1] - flip**2))
    pooled_weak, pooled_weak_error = _pooled_weak_fraction(law, flips, int(own.trials[-1]))
    model = kind(
        geometry=data.geometry,
        banks=data.banks,
        origin=origin,
        line=own.line,
        weak_fraction=weak,
        flip_probability=flip,
        pooled_weak_fraction=pooled_weak,
        pooled_flip_probability=flips.mean,
    )
    likelihood = uniform.log_likelihood + law.gain + flips.gain
    penalty = 2 * np.log(data.tested_cells) + np.log(failing.size) + np.log(max(1, int((failing > 0).sum())))
    expected = _expected_of_lines(own, flip, flip_error, observed.size)
    tests = {
        "wordlines": goodness.crossed(*_against_bitlines(data, crossing)),
        "bitlines": goodness.crossed(*_against_wordlines(data, crossing)),
        "lanes": uniform.lanes if name == "wordlines" else goodness.NOTHING,
        name: goodness.of_law(failing, exposed, law),
    }
    return ModelFit(
        model=model,
        log_likelihood=likelihood,
        parameters=4,
        bic=float(-2 * likelihood + penalty),
        standard_errors={
            "weak_fraction": weak_error,
            "flip_probability": flip_error,
            "pooled_weak_fraction": np.asarray(pooled_weak_error),
            "pooled_flip_probability": np.asarray(flips.mean_error),
        },
        spreads={name: law.spread},
        cells=goodness.of_histogram(observed, expected, 1),
        expected_cells=expected,
        **tests,
    )


def _pooled_weak_fraction(law: Law, flips: Law, reads: int) -> tuple[float, float]:
    """P of all lines together, whose cells fail with ``law``'s chance in so many reads, and its standard error."""
    chance = flips.fail_chance(reads)
    weak = min(1.0, law.mean / chance)
    moved = replace(flips, mean=min(flips.mean + flips.mean_error, _CLOSE_TO_ONE)).fail_chance(reads)
    return weak, weak * float(np.hypot(law.mean_error / law.mean, np.log(moved / chance)))


def _subarrays(data: Population, crossing: Crossing) -> tuple[Integers, Integers]:
    """Number over the module of the subarray of each wordline, and of each bitline."""
    geometry = data.geometry
    rows = min(geometry.subarray_rows, geometry.rows)
    return crossing.wordlines.line // rows, crossing.bitlines.line // geometry.row_bits


def _against_bitlines(data: Population, crossing: Crossing) -> tuple[Integers, ...]:
    of_rows, of_bitlines = _subarrays(data, crossing)
    across = crossing.bitlines
    return crossing.wordlines.failing_cells, of_rows, across.failing_cells, across.cells, of_bitlines


def _against_wordlines(data: Population, crossing: Crossing) -> tuple[Integers, ...]:
    of_rows, of_bitlines = _subarrays(data, crossing)
    across = crossing.wordlines
    return crossing.bitlines.failing_cells, of_bitlines, across.failing_cells, across.cells, of_rows


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
    data: Population, origin: str, classes: _Classes, crossing: Crossing, observed: Integers
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
    names = ("weak_fraction", "flip_zero", "flip_one")
    expected = _expected_data_dependent(classes, weak, flips, observed.size)
    tests = {
        name: goodness.of_lines(lines.failing_cells, exposed, weak, 1)
        for (name, lines), exposed in zip(
            vars(crossing).items(), exposures(data, crossing, np.minimum(flips, _CLOSE_TO_ONE)), strict=True
        )
    }
    return ModelFit(
        model=model,
        log_likelihood=likelihood,
        parameters=3,
        bic=-2 * likelihood + 2 * float(np.log(data.tested_cells)) + float(np.log(data.cell.size)),
        standard_errors=dict(zip(names, _standard_errors(classes.slope, parameters), strict=True)),
        spreads={},
        cells=goodness.of_histogram(observed, expected, 2),
        expected_cells=expected,
        **tests,
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


# Wordlines, bitlines and data together.


def _fit_crossed(data: Population, origin: str, crossing: Crossing, dependent: ModelFit) -> ModelFit:
    flat = dependent.model
    assert isinstance(flat, DataDependentModel)
    by_wordline, by_bitline, by_lane = exposures(
        data, crossing, np.minimum([flat.flip_zero, flat.flip_one], _CLOSE_TO_ONE)
    )
    wordlines, bitlines, lanes = crossing.wordlines, crossing.bitlines, crossing.lanes
    most = float(np.max(by_wordline / wordlines.cells))
    row_law = fit_chance_law(wordlines.failing_cells, by_wordline / most)
    lane_law = fit_chance_law(lanes.failing_cells, by_lane / most)
    lane_chance, lane_variance = chance_posteriors(lane_law, lanes.failing_cells, by_lane / most)
    relative = np.tile(lane_chance / lane_chance.mean(), bitlines.line.size // lanes.line.size)
    bitline_law = fit_chance_law(bitlines.failing_cells, by_bitline / most * relative)
    rows, row_variance = chance_posteriors(row_law, wordlines.failing_cells, by_wordline / most)
    columns, column_variance = chance_posteriors(bitline_law, bitlines.failing_cells, by_bitline / most * relative)
    lane_error = np.tile(lane_variance / lane_chance**2, relative.size // lanes.line.size)
    hazard, factor = _balanced(data, crossing, rows / most, relative * columns / most)
    gain = row_law.gain + lane_law.gain + bitline_law.gain
    likelihood = dependent.log_likelihood + gain
    lines = np.log([wordlines.line.size, lanes.line.size, bitlines.line.size])
    errors = dependent.standard_errors
    model = CrossedModel(
        geometry=data.geometry,
        banks=data.banks,
        origin=origin,
        wordline=wordlines.line,
        hazard=hazard,
        bitline=bitlines.line,
        factor=factor,
        pooled_hazard=float(-np.log1p(-min(row_law.mean / most, _CLOSE_TO_ONE))),
        flip_zero=flat.flip_zero,
        flip_one=flat.flip_one,
    )
    return ModelFit(
        model=model,
        log_likelihood=likelihood,
        parameters=6,
        bic=dependent.bic - 2 * gain + float(lines.sum()),
        standard_errors={
            "hazard": hazard * np.sqrt(row_variance) / rows,
            "pooled_hazard": np.asarray(model.pooled_hazard * row_law.mean_error / row_law.mean),
            "factor": factor * np.sqrt(column_variance / columns**2 + lane_error),
            "flip_zero": errors["flip_zero"],
            "flip_one": errors["flip_one"],
        },
        spreads={"wordlines": row_law.spread, "bitlines": bitline_law.spread, "lanes": lane_law.spread},
        cells=dependent.cells,
        wordlines=goodness.of_law(wordlines.failing_cells, by_wordline / most, row_law),
        bitlines=goodness.of_law(bitlines.failing_cells, by_bitline / most * relative, bitline_law),
        lanes=goodness.of_law(lanes.failing_cells, by_lane / most, lane_law),
        expected_cells=dependent.expected_cells,
    )


def _balanced(data: Population, crossing: Crossing, row_weak: Floats, bitline_weak: Floats) -> tuple[Floats, Floats]:
    """Hazards and factors whose products give each line its weak fraction (iterative proportional fitting)."""
    of_rows, of_bitlines = _subarrays(data, crossing)
    hazard = -np.log1p(-np.minimum(row_weak, _CLOSE_TO_ONE))
    factor = np.empty(of_bitlines.size)
    for subarray in np.unique(of_rows).tolist():
        rows, columns = np.flatnonzero(of_rows == subarray), np.flatnonzero(of_bitlines == subarray)
        levels, at = np.unique(bitline_weak[columns], return_inverse=True)
        count = np.bincount(at)
        along = hazard[rows]
        across = levels / (count @ levels / count.sum())
        # What a bitline shows relative to its subarray; how much the subarray has, its rows say.
        wanted = across * row_weak[rows].mean()
        for _ in range(_BALANCING_STEPS):
            chance = -np.expm1(-np.outer(along, across))
            across = across * wanted / chance.mean(axis=0)
            chance = -np.expm1(-np.outer(along, across))
            along = along * row_weak[rows] / (chance @ count / count.sum())
        hazard[rows], factor[columns] = along, across[at]
    return hazard, factor


# Standard errors and expected counts.


def _standard_errors(slope: Callable[[Floats], Floats], parameters: Floats) -> list[Floats]:
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
        return list(result)
    with np.errstate(invalid="ignore"):
        result[free] = np.sqrt(variance)
    return list(result)


def _expected_cells(lines: Lines, weak: Floats, flip: Floats, length: int) -> Floats:
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


def _expected_of_lines(lines: Lines, flip: Floats, error: Floats, length: int) -> Floats:
    """The same of failing cells whose lines have posteriors of F with these means and standard deviations."""
    counts = np.arange(1, length + 1)
    total = np.zeros(length)
    mean = np.clip(flip, 1e-9, 1 - 1e-9)
    strength = np.clip(mean * (1 - mean) / np.maximum(error, 1e-6) ** 2 - 1, 1e-3, 1e6)
    distinct, at, _ = distinct_rows(np.column_stack([np.round(mean, 9), strength]))
    for column, trials in enumerate(lines.trials.tolist()):
        cells = np.bincount(at, weights=lines.failing[:, column], minlength=len(distinct))
        some = cells > 0
        a, b = (distinct[some, 0] * distinct[some, 1])[:, None], ((1 - distinct[some, 0]) * distinct[some, 1])[:, None]
        step = max(1, (1 << 20) // length)
        for low in range(0, len(a), step):
            part = slice(low, low + step)
            spread = betabinom.pmf(counts, trials, a[part], b[part])
            total += cells[some][part] @ (spread / (1 - betabinom.pmf(0, trials, a[part], b[part])))
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
