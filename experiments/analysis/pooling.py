"""Pools differences over data sets: a random-effects meta-analysis."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats

from experiments.analysis.evidence import Evidence
from experiments.analysis.statistics import Interval

_NORMAL_975 = float(stats.norm.ppf(0.975))


def pool(found: Iterable[Evidence]) -> Interval:
    """Mean difference over data sets with its 95 % interval, as shares; NaN if empty.

    Comparisons on one data set share test images and often a baseline, so they are no
    independent evidence: each data set counts once, by the mean of its differences,
    with the variance that it has if they are fully correlated, the largest possible
    (Borenstein et al. 2009, Introduction to Meta-Analysis, chapter 24). The standard
    error of a difference is its interval's length over 2 x 1.96.
    """
    by_data: dict[str, list[Evidence]] = {}
    for one in found:
        by_data.setdefault(one.data, []).append(one)
    effects = [np.mean([e.difference for e in es]) / 100 for es in by_data.values()]
    errors = [
        np.mean([e.high - e.low for e in es]) / 100 / (2 * _NORMAL_975)
        for es in by_data.values()
    ]
    return random_effects(effects, errors)


def random_effects(effects: Sequence[float], errors: Sequence[float]) -> Interval:
    """Random-effects mean of independent effects with its 95 % interval.

    The variance between data sets is that of DerSimonian and Laird 1986
    (doi:10.1016/0197-2456(86)90046-2). The interval is that of Hartung and Knapp 2001
    (doi:10.1002/sim.1009), of Student's t with k - 1 degrees of freedom, and never
    narrower than with their factor at 1 (Roever et al. 2015,
    doi:10.1186/s12874-015-0091-1): with the normal distribution, an interval from few
    data sets is too narrow. Of a single effect, the interval is the normal one.

    Args:
        effects: an effect per data set; none gives NaN.
        errors: the standard error of each, not negative; those of 0 are raised to 1e-9.
    """
    k = len(effects)
    if not k:
        return Interval(math.nan, math.nan, math.nan, 0.0)
    y = np.asarray(effects, np.float64)
    variance = np.maximum(np.asarray(errors, np.float64), 1e-9) ** 2
    weights = 1 / variance
    fixed = (weights * y).sum() / weights.sum()
    q = (weights * (y - fixed) ** 2).sum()
    scale = weights.sum() - (weights**2).sum() / weights.sum()
    between = max(0.0, (q - (k - 1)) / scale) if k > 1 else 0.0
    weights = 1 / (variance + between)
    mean = float((weights * y).sum() / weights.sum())
    factor, quantile = 1.0, _NORMAL_975
    if k > 1:
        factor = max(1.0, float((weights * (y - mean) ** 2).sum() / (k - 1)))
        quantile = float(stats.t.ppf(0.975, k - 1))
    half = quantile * math.sqrt(factor / weights.sum())
    return Interval(mean, mean - half, mean + half, 1.0)
