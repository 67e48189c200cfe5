"""Laws from which the lines of a region (wordlines, bitlines, data lines) draw their parameters.

A module has thousands of lines, and many hold a handful of weak cells: each line's own maximum-likelihood estimate
would be mostly noise, and would count every line as two parameters. Here the lines' parameters are draws from a law
with two parameters of its own, which are fitted by maximum likelihood (empirical Bayes; Efron and Morris, JASA 1975). A
line with many failing cells keeps what it shows, one with few leans on the others, and models are compared by how well
the *law* predicts the lines.

For a line of t cells, f of which failed with e failures in r reads, the likelihood in pi = P q(F), the chance that a
cell fails at all, and F separates: ``pi^f (1-pi)^(t-f)  *  F^e (1-F)^(r-e) / q(F)^f`` with ``q = 1 - (1-F)^n`` for n
reads a cell. pi and F follow independent Beta laws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy.optimize import minimize_scalar
from scipy.special import expit, gammaln, logit
from scipy.stats import beta as beta_distribution
from scipy.stats import gamma as gamma_distribution

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

FLATTEST = 1e4  # a law this many times tighter than its lines can resolve is no different from one value for all
WIDEST = 0.2  # a law of smaller concentration has lines of nothing but 0 and 1
_NODES, _WEIGHTS = np.polynomial.hermite.hermgauss(11)
_LOG_WEIGHTS = np.log(_WEIGHTS) + _NODES**2
_NEWTON_STEPS = 12
_NO_GAIN = 1e-3  # of log likelihood, which rounding and quadrature may fake
_IMPLAUSIBLE = 5.0  # of log likelihood below the best
_EDGE_STEPS = 6
_SPREADS = 9  # plausible concentrations
_ONE_VALUE = 1e8  # a flip law of this concentration is one value
_MEANS = np.array([-1.5, 1.0])  # how far from the pooled flip probability, as logit, a law's mean is sought
_LEAST_FALL = 0.1  # of log likelihood two standard errors apart, where 1 is expected


@dataclass(frozen=True)
class Law:
    """Beta law of a probability that lines of cells draw.

    Attributes:
        mean: of the probability.
        concentration: the most likely a + b of Beta(a, b); infinite where the lines do not differ.
        gain: log likelihood over that of one probability for all lines.
        mean_error: standard error of the mean, with lines as the sampling units.
        plausible: concentrations that the lines allow, and the weight of each: the likelihood under a flat prior of the
            standard deviation between lines (Gelman, Bayesian Analysis 2006). Posteriors average over them, since
            lines that seem not to differ may do so a little.
    """

    mean: float
    concentration: float
    gain: float
    mean_error: float
    plausible: tuple[tuple[float, float], ...]

    def fail_chance(self, reads: int) -> float:
        """Of a weak cell whose flip probability follows this law: to fail at least once in so many reads."""
        if np.isinf(self.concentration):
            return float(-np.expm1(reads * np.log1p(-self.mean)))
        once = np.array([reads], np.float64)
        a, b = self.mean * self.concentration, (1 - self.mean) * self.concentration
        return float(-np.expm1(_log_rising(np.array([b]), once) - _log_rising(np.array([a + b]), once))[0])

    @property
    def spread(self) -> float:
        """Standard deviation between the lines over the mean."""
        return float(np.sqrt((1 - self.mean) / self.mean / (1 + self.concentration))) if self.mean else 0.0


def chance_posteriors(law: Law, failing: npt.ArrayLike, exposed: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Posterior mean and variance of the chance of each line of ``exposed`` cells of which ``failing`` failed."""
    f, t = np.asarray(failing, np.float64), np.asarray(exposed, np.float64)
    first, second = np.zeros(f.size), np.zeros(f.size)
    for concentration, weight in law.plausible:
        leaning = concentration / (np.maximum(t, f) + concentration)
        mean = leaning * law.mean + (1 - leaning) * f / np.maximum(np.maximum(t, f), 1e-300)
        variance = mean * (1 - mean) / (np.maximum(t, f) + concentration + 1) + (leaning * law.mean_error) ** 2
        first += weight * mean
        second += weight * (variance + mean**2)
    return first, np.maximum(0.0, second - first**2)


def _log_rising(x: Floats, n: Floats) -> Floats:
    """log Gamma(x + n) - log Gamma(x) without the cancellation that two large logarithms suffer."""
    big = x > 100
    safe = np.where(big, x, 200.0)
    y = safe + n
    stirling = (
        (y - 0.5) * np.log1p(n / safe) + n * np.log(safe) - n + (1 / y - 1 / safe) / 12 - (1 / y**3 - 1 / safe**3) / 360
    )
    small = np.where(big, 1.0, x)
    return np.asarray(np.where(big, stirling, gammaln(small + n) - gammaln(small)))


def beta_binomial(failing: Floats, exposed: Floats, mean: float, concentration: float) -> Floats:
    """Log likelihood of each line (of its cells in their order) under a Beta law of the chance."""
    a, b = np.full(failing.size, mean * concentration), np.full(failing.size, (1 - mean) * concentration)
    return np.asarray(_log_rising(a, failing) + _log_rising(b, exposed - failing) - _log_rising(a + b, exposed))


def distinct_rows(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Integers, Integers]:
    """The different rows of ``rows`` [n, c] in lexical order, which of them each row is, int64[n], and their counts.

    What ``np.unique`` gives along an axis, ten times faster: that compares rows as bytes.
    """
    order = np.lexsort(rows.T[::-1])
    ordered = rows[order]
    first = np.ones(len(rows), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    which = np.empty(len(rows), np.int64)
    which[order] = np.cumsum(first) - 1
    return ordered[first], which, np.diff(np.flatnonzero(np.append(first, True)))


def fit_chance_law(failing: npt.ArrayLike, exposed: npt.ArrayLike) -> Law:
    """The law of the chance that a cell fails, with the mean of all lines together and the most likely concentration.

    The mean of a Beta law whose shape is not quite the lines' would be drawn away from what was counted.

    Args:
        failing: [g], cells of the line that failed.
        exposed: [g], cells of the line, less those that were read too rarely to show it: an effective number.
    """
    f = np.asarray(failing, np.float64)
    t = np.maximum(np.asarray(exposed, np.float64), f)
    pairs, _, count = distinct_rows(np.column_stack([f, t]))
    f, t, weight = pairs[:, 0], pairs[:, 1], count.astype(np.float64)
    mean = float((weight * f).sum() / (weight * t).sum())
    if not 0 < mean < 1 or weight.sum() < 2:
        return Law(mean, np.inf, 0.0, 0.0, ((1e15, 1.0),))
    even = float((weight * (f * np.log(mean) + (t - f) * np.log1p(-mean))).sum())

    def gain(concentration: float) -> float:
        return float((weight * beta_binomial(f, t, mean, concentration)).sum()) - even

    concentration, best, plausible = _concentrations(gain, mean, FLATTEST * float((weight * t).sum() / weight.sum()))
    inflation = 1.0 + (t - 1) / (1 + concentration)
    error = np.sqrt(mean * (1 - mean) * (weight * t * inflation).sum()) / (weight * t).sum()
    return Law(mean, concentration, best, float(error), plausible)


def _concentrations(
    gain: Callable[[float], float], mean: float, tightest: float
) -> tuple[float, float, tuple[tuple[float, float], ...]]:
    """The concentration of highest ``gain`` (infinite if none has any), that gain, and the plausible concentrations."""
    # The gain is flat, at 0, where the law is tight, so that the search starts from the best of a coarse grid.
    grid = np.linspace(np.log(WIDEST), np.log(tightest), 12)
    values = [gain(float(np.exp(each))) for each in grid]
    at = int(np.argmax(values))
    low, high = grid[max(0, at - 1)], grid[min(grid.size - 1, at + 1)]
    found = minimize_scalar(
        lambda x: -gain(float(np.exp(x))), bounds=(low, high), method="bounded", options={"xatol": 1e-3}
    )
    best, concentration = -float(found.fun), float(np.exp(found.x))
    if best < _NO_GAIN or at == grid.size - 1:
        best, concentration = 0.0, np.inf

    def spread(concentration: float) -> float:
        return float(np.sqrt(mean * (1 - mean) / (1 + concentration)))

    def edge(inside: float, outside: float) -> float:
        """Where, between two spreads, the gain falls too low to matter."""
        for _ in range(_EDGE_STEPS):
            middle = (inside + outside) / 2
            if gain(mean * (1 - mean) / middle**2 - 1) > best - _IMPLAUSIBLE:
                inside = middle
            else:
                outside = middle
        return outside

    centre, widest = spread(concentration), spread(WIDEST)
    lowest = 0.0 if best < _IMPLAUSIBLE else edge(centre, 0.0)
    step = spread(tightest)
    while step < widest and (step <= centre or gain(mean * (1 - mean) / step**2 - 1) > best - _IMPLAUSIBLE):
        step *= 2
    highest = edge(centre, min(step, widest))
    x, w = np.polynomial.legendre.leggauss(_SPREADS)
    spreads = lowest + (highest - lowest) * (x + 1) / 2
    concentrations = mean * (1 - mean) / spreads**2 - 1
    weights = w * np.exp([gain(float(each)) - best for each in concentrations])
    return concentration, best, tuple(zip(concentrations.tolist(), (weights / weights.sum()).tolist(), strict=True))


@njit(cache=True)
def _flip_evidence(
    failing: npt.NDArray[np.float64],
    errors: npt.NDArray[np.float64],
    reads: npt.NDArray[np.float64],
    trials: npt.NDArray[np.float64],
    a: float,
    b: float,
    nodes: npt.NDArray[np.float64],
    log_weights: npt.NDArray[np.float64],
    moments: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """log of the integral over F of Beta(a, b)'s kernel times each line's likelihood, by adaptive Gauss-Hermite.

    ``moments``, [g, 4], takes E[F], E[F^2], E[1/q], E[1/q^2]; empty where not wanted. q is that of the most reads.
    """
    out = np.empty(errors.size)
    values = np.empty(nodes.size)
    classes = trials.size
    for i in range(errors.size):
        up, down = errors[i] + a, reads[i] - errors[i] + b
        x = np.log((up + 0.5) / (down + 0.5))
        step = 1.0
        for _ in range(_NEWTON_STEPS):
            flip = 1 / (1 + np.exp(-x))
            slope = up - (up + down) * flip
            curve = (up + down) * flip * (1 - flip)
            for c in range(classes):
                n, f = trials[c], failing[i, c]
                if f > 0:
                    survive = n * np.log1p(-flip)
                    ratio = n * flip * np.exp(survive) / -np.expm1(survive)  # derivative of log q by the logit
                    slope -= f * ratio
                    curve += f * ratio * ((1 - flip) - n * flip - ratio)
            step = slope / max(curve, 1e-300)
            step = min(max(step, -2.0), 2.0)
            x += step
            if abs(step) < 1e-6:
                break
        scale = np.sqrt(2 / max(curve, 1e-12))
        best = -np.inf
        for k in range(nodes.size):
            y = x + scale * nodes[k]
            # log F and log(1 - F) without overflow or cancellation
            if y > 0:
                low = -np.log1p(np.exp(-y))
                high = low - y
            else:
                high = -np.log1p(np.exp(y))
                low = high + y
            value = up * low + down * high + log_weights[k]
            for c in range(classes):
                if failing[i, c] > 0:
                    value -= failing[i, c] * np.log(-np.expm1(trials[c] * high))
            values[k] = value
            best = max(best, value)
        total = 0.0
        for k in range(nodes.size):
            total += np.exp(values[k] - best)
        out[i] = best + np.log(total * scale)
        if moments.size:
            most = trials[classes - 1]
            for m in range(4):
                moments[i, m] = 0.0
            for k in range(nodes.size):
                flip = 1 / (1 + np.exp(-(x + scale * nodes[k])))
                share = np.exp(values[k] - best) / total
                q = -np.expm1(most * np.log1p(-flip))
                moments[i, 0] += share * flip
                moments[i, 1] += share * flip * flip
                moments[i, 2] += share / q
                moments[i, 3] += share / q / q
    return out


def fit_flip_law(
    failing: Integers, errors: Integers, reads: Integers, trials: Integers, pooled: float, pooled_error: float
) -> Law:
    """The most likely law of the flip probability.

    Its mean is not ``pooled``: where lines differ, cells of those with a low F are often not seen to fail at all, so
    that one F for all comes out above the lines' mean.

    Args:
        failing: [g, c], failing cells of each line by number of reads.
        errors, reads: [g], failures, and reads of the cells that failed.
        trials: [c], the distinct numbers of reads.
        pooled: flip probability of all lines together, most likely if it is one.
        pooled_error: its standard error.
    """
    some = failing.sum(axis=1) > 0
    if not 0 < pooled < 1 or some.sum() < 2 or bool(np.all(errors == reads)):
        return Law(pooled, np.inf, 0.0, 0.0, ((1e15, 1.0),))
    rows, _, count = distinct_rows(np.column_stack([failing, errors, reads])[some])
    weight = count.astype(np.float64)
    f, e, r = (np.ascontiguousarray(part, np.float64) for part in (rows[:, :-2], rows[:, -2], rows[:, -1]))
    n = trials.astype(np.float64)
    with np.errstate(divide="ignore"):
        log_q = np.log(-np.expm1(n * np.log1p(-pooled)))
    even = float((weight * (e * np.log(pooled) + (r - e) * np.log1p(-pooled) - f @ log_q)).sum())
    none = np.empty((0, 0))

    def gain(mean: float, concentration: float) -> float:
        a, b = mean * concentration, (1 - mean) * concentration
        norm = _log_rising(np.array([a]), np.array([b]))[0] - gammaln(b)
        return float((weight * (_flip_evidence(f, e, r, n, a, b, _NODES, _LOG_WEIGHTS, none) + norm)).sum()) - even

    tightest = FLATTEST * float((weight * r).sum() / weight.sum())
    mean, error = pooled, pooled_error
    concentration, best, plausible = _concentrations(partial(gain, mean), mean, tightest)
    if np.isfinite(concentration):
        between = np.sqrt(pooled * (1 - pooled) / (1 + concentration) / weight.sum())
        mean, error = _mean_at(lambda each: gain(each, concentration), pooled, float(np.hypot(pooled_error, between)))
        concentration, best, plausible = _concentrations(partial(gain, mean), mean, tightest)
    return Law(mean, concentration, best, error, plausible)


def _mean_at(gain: Callable[[float], float], start: float, about: float) -> tuple[float, float]:
    """The mean of highest ``gain`` near ``start``, and its standard error, ``about`` so much, from the curvature."""
    bounds = tuple(logit(start) + _MEANS)
    found = minimize_scalar(lambda x: -gain(float(expit(x))), bounds=bounds, method="bounded", options={"xatol": 1e-4})
    mean = float(expit(found.x))
    step = about / (mean * (1 - mean))
    fall = -2 * found.fun - gain(float(expit(found.x - step))) - gain(float(expit(found.x + step)))
    return mean, about / float(np.sqrt(max(fall, _LEAST_FALL)))


def flip_posteriors(law: Law, failing: Integers, errors: Integers, reads: Integers, trials: Integers) -> Floats:
    """float64[g, 4], posterior E[F], E[F^2], E[1/q], E[1/q^2] of each line; q is the chance to fail in most reads."""
    rows, which, _ = distinct_rows(np.column_stack([failing, errors, reads]))
    found, part = np.zeros((len(rows), 4)), np.empty((len(rows), 4))
    f, e, r = (np.ascontiguousarray(column, np.float64) for column in (rows[:, :-2], rows[:, -2], rows[:, -1]))
    n = trials.astype(np.float64)
    for concentration, weight in law.plausible:
        if concentration > _ONE_VALUE or not 0 < law.mean < 1:
            with np.errstate(divide="ignore"):
                q = -np.expm1(n[-1] * np.log1p(-law.mean))
            part[:] = (law.mean, law.mean**2 + law.mean_error**2, 1 / q, 1 / q**2)
        else:
            a, b = concentration * law.mean, concentration * (1 - law.mean)
            _flip_evidence(f, e, r, n, a, b, _NODES, _LOG_WEIGHTS, part)
            prior = law.mean * (1 - law.mean) / (1 + concentration)
            leaning = np.maximum(0.0, part[:, 1] - part[:, 0] ** 2) / prior
            part[:, 1] += (leaning * law.mean_error) ** 2
        found += weight * part
    return np.asarray(found[which])


def beta_interval(mean: npt.ArrayLike, error: npt.ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Equal-tailed interval of the Beta distribution with this mean and standard deviation."""
    m, s = np.broadcast_arrays(np.asarray(mean, np.float64), np.asarray(error, np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = m * (1 - m) / s**2 - 1
    usable = np.isfinite(strength) & (strength > 0) & (m > 0) & (m < 1)
    a, b = np.where(usable, m * strength, 1.0), np.where(usable, (1 - m) * strength, 1.0)
    tail = (1 - confidence) / 2
    low, high = beta_distribution.ppf(tail, a, b), beta_distribution.isf(tail, a, b)
    return np.where(usable, low, m), np.where(usable, high, m)


def gamma_interval(mean: Floats, error: Floats, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Equal-tailed interval of the gamma distribution with this mean and standard deviation."""
    usable = (mean > 0) & (error > 0) & np.isfinite(error)
    shape = np.where(usable, (mean / np.where(usable, error, 1.0)) ** 2, 1.0)
    scale, tail = np.where(usable, mean / shape, 1.0), (1 - confidence) / 2
    low, high = gamma_distribution.ppf(tail, shape, scale=scale), gamma_distribution.isf(tail, shape, scale=scale)
    return np.where(usable, low, mean), np.where(usable, high, mean)
