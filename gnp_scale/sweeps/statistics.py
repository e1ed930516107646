"""Means over seeds, with confidence intervals."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean m of n numbers, and half of the width h of its 95 % confidence interval m - h to m + h.

    h = t s / sqrt(n), with the sample standard deviation s and the 97.5 % quantile t of Student's distribution with
    n - 1 degrees of freedom: for n numbers from one normal distribution. With one number, h is None.
    """
    mean, num_values = float(np.mean(values)), len(values)
    if num_values < 2:
        return mean, None
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, num_values - 1))
    with np.errstate(invalid="ignore"):
        return mean, quantile * float(np.std(values, ddof=1)) / math.sqrt(num_values)
