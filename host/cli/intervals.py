"""Figures of a study over its seeds."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds, and its 95 % interval by Student's t; of one seed, the figure alone."""
    mean, count = float(np.mean(values)), len(values)
    reach = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else 0.0
    return mean, mean - reach, mean + reach
