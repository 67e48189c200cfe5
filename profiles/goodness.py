"""Goodness of fit: what was counted against what a fitted model expects, with p-values that mean what they say.

Pearson's chi-square is compared with a scaled chi-square of the same mean and variance (Satterthwaite, Biometrics
1946), the variance being that of the statistic if the model holds. Where lines expect few failures the plain chi-square
distribution would reject true models.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln
from scipy.stats import chi2

from profiles.laws import Floats, Integers, Law, beta_binomial

_FEWEST_EXPECTED = 8.0  # in a bin of a histogram
_MOST_BINS = 24
_MOST_EXPOSURES = 64  # distinct exposures of lines for which the law's histogram is worked out


@dataclass(frozen=True)
class DispersionTest:
    """Counts against what a model expects: Pearson's chi-square.

    Attributes:
        chi_square: sum over counts of (observed - expected)^2 / variance.
        degrees_of_freedom: counts, less parameters fitted to those very counts; 0 where there is nothing to test.
        spread: standard deviation of ``chi_square`` if the model holds.
    """

    chi_square: float
    degrees_of_freedom: int
    spread: float

    @property
    def dispersion(self) -> float:
        """``chi_square / degrees_of_freedom``: 1 where the model holds, more where counts differ more than it says."""
        return self.chi_square / self.degrees_of_freedom if self.degrees_of_freedom > 0 else float("nan")

    @property
    def p_value(self) -> float:
        """Chance of so large a chi-square if the model held; NaN where there is nothing to test."""
        if self.degrees_of_freedom <= 0:
            return float("nan")
        scale = self.spread**2 / (2 * self.degrees_of_freedom)
        return float(chi2.sf(self.chi_square / scale, self.degrees_of_freedom / scale))


NOTHING = DispersionTest(0.0, 0, 0.0)


def of_lines(failing: Integers, exposed: Floats, chance: float, fitted: int) -> DispersionTest:
    """Failing cells of lines that share one ``chance``, but for their exposure."""
    expected = exposed * chance
    return against(failing, expected, expected * (1 - chance), fitted)


def against(failing: npt.ArrayLike, expected: Floats, variance: Floats, fitted: int) -> DispersionTest:
    """Sums of independent failures against their expectation."""
    used = variance > 0
    observed, mean, spread = np.asarray(failing, np.float64)[used], expected[used], variance[used]
    freedom = int(used.sum()) - fitted
    if freedom <= 0:
        return NOTHING
    # Excess kurtosis of a binomial count, for which (1 - 6pq) / npq; variance / mean is its q.
    p = 1 - spread / mean
    kurtosis = (1 - 6 * p * (1 - p)) / spread
    share = freedom / used.sum()
    return DispersionTest(
        float(((observed - mean) ** 2 / spread).sum()), freedom, float(np.sqrt((2 + kurtosis).sum() * share))
    )


def of_histogram(observed: Integers, expected: Floats, fitted: int) -> DispersionTest:
    """A histogram against one that adds up to as much, neighbouring bins joined where few are expected."""
    total = expected.sum()
    if not total:
        return NOTHING
    expected = expected * (observed.sum() / total)
    edges, run = [], 0.0
    for index, each in enumerate(expected.tolist()):
        run += each
        if run >= max(_FEWEST_EXPECTED, observed.sum() / _MOST_BINS):
            edges.append(index + 1)
            run = 0.0
    if run and edges:
        edges[-1] = expected.size
    if len(edges) < 2:
        return NOTHING
    starts = [0, *edges[:-1]]
    seen, mean = np.add.reduceat(observed, starts), np.add.reduceat(expected, starts)
    freedom = mean.size - 1 - fitted
    if freedom <= 0:
        return NOTHING
    return DispersionTest(float(((seen - mean) ** 2 / mean).sum()), freedom, float(np.sqrt(2 * freedom)))


def of_law(failing: Integers, exposed: Floats, law: Law) -> DispersionTest:
    """How the lines' failing cells are distributed, against the law that was fitted to them."""
    if not np.isfinite(law.concentration):
        return of_lines(failing, exposed, law.mean, 1)
    sizes, count = np.unique(np.round(exposed, 6), return_counts=True)
    most = int(failing.max())
    if sizes.size > _MOST_EXPOSURES or most > 1 << 16:
        return NOTHING
    k = np.arange(most + 1, dtype=np.float64)
    expected = np.zeros(most + 2)
    for size, lines in zip(sizes.tolist(), count.tolist(), strict=True):
        part = k[k <= size]
        ways = gammaln(size + 1) - gammaln(part + 1) - gammaln(size - part + 1)
        chance = np.exp(ways + beta_binomial(part, np.full(part.size, size), law.mean, law.concentration))
        expected[: part.size] += lines * chance
        expected[-1] += lines * max(0.0, 1 - chance.sum())
    observed = np.append(np.bincount(failing, minlength=most + 1), 0)
    return of_histogram(observed, expected, 2)


def crossed(
    failing: Integers, home: Integers, own_failing: Integers, own_cells: Integers, own_home: Integers
) -> DispersionTest:
    """Lines of one kind, given how many cells failed on each line of the other kind.

    Args:
        failing: [g], failing cells of each line.
        home: [g], subarray of each.
        own_failing, own_cells, own_home: failing and tested cells of each line of the other kind, and its subarray.
    """
    subarrays, at = np.unique(own_home, return_inverse=True)
    chance = own_failing / own_cells
    mean: Floats = np.bincount(at, chance, subarrays.size).astype(np.float64)
    variance: Floats = np.bincount(at, chance * (1 - chance), subarrays.size).astype(np.float64)
    where = np.searchsorted(subarrays, home)
    return against(failing, mean[where], variance[where], subarrays.size)
