"""Computes tail probabilities of the estimate of the groups' variance from its moments, where all groups are alike.

The estimate is then like a sum of squares minus its mean: it leans to the right, and a normal approximation would
reject equal groups too often. It is approximated by a shifted gamma distribution with the same first three moments
(Pearson's type III). A chi-square distribution with one degree of freedom, the limit for two groups, has the skewness
2.83. More than 4 arises only where chance decides whether any group has two rows with a rare value. There no smooth
distribution fits, and Cantelli's inequality, which holds for every distribution, replaces the approximation.

Reference: Imhof 1961, Computing the distribution of quadratic forms in normal variables, section 4 (three moments).
"""

from __future__ import annotations

import math

from scipy import special

from fl.fairness.variance import Moments

_ALMOST_SYMMETRIC = 1e-6  # below, the gamma distribution is normal to the last digit that matters
_MAX_SKEWNESS = 4.0
_NO_SPREAD = 1e-14  # rounding of the estimate, whose scale is 1


def tail_probability(value: float, moments: Moments) -> float:
    """Returns the probability, or a bound on it, that a variable with mean 0 and these moments is at least `value`."""
    stddev = math.sqrt(max(moments.variance, 0.0))
    if stddev < _NO_SPREAD:
        return 1.0
    skewness, standard = moments.third / stddev**3, value / stddev
    if skewness > _MAX_SKEWNESS:
        return cantelli_tail(value, moments.variance)
    if skewness < _ALMOST_SYMMETRIC:
        return float(special.ndtr(-standard))
    shape = 4 / skewness**2
    return float(special.gammaincc(shape, max(shape + standard * math.sqrt(shape), 0.0)))


def quantile(probability: float, moments: Moments) -> float:
    """Returns the value whose `tail_probability` is `probability`."""
    stddev = math.sqrt(max(moments.variance, 0.0))
    if stddev < _NO_SPREAD:
        return 0.0
    skewness = moments.third / stddev**3
    if skewness > _MAX_SKEWNESS:
        return stddev * cantelli_stddevs(probability)
    if skewness < _ALMOST_SYMMETRIC:
        return float(-special.ndtri(probability)) * stddev
    shape = 4 / skewness**2
    return float(special.gammainccinv(shape, probability) - shape) / math.sqrt(shape) * stddev


def cantelli_tail(value: float, variance: float) -> float:
    """Returns a bound on the probability that any variable with mean 0 and this variance is at least `value`."""
    return 1.0 if value <= 0 else variance / (variance + value**2)


def cantelli_stddevs(probability: float) -> float:
    """Returns the number of standard deviations that no variable exceeds with more than this probability."""
    return math.sqrt(1 / probability - 1)
