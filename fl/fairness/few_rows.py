"""Finds the null distribution of the estimated variance of groups where chance in a few rows decides it.

The gamma distribution of `fl.fairness.skewed` fits if many rows have a part in T. It does not if, say, a group of two
rows counts as much as one of 100,000: then T has only a few values. How many rows have a part is

    n = (Σ I_i)² / Σ I_i²        I_i = Σ_j M_ij²        the influence of row i on the variance of T

For values of 0 or 1, n m (1 - m) below `FEW` is few: about as many of these rows have the rarer value. Then the
exact distribution given the numbers of rows and of ones replaces it. If all groups are alike, every division of the
ones among the rows is equally likely, so that the share of random divisions with at least the observed T is a p-value,
whatever the numbers of rows and weights.

Scores whose distributions differ between groups are not exchangeable, though their means are equal. For them Cantelli's
inequality replaces it, with the largest variance that values from 0 to 1 with the mean m can have, m (1 - m). They have
no such steps as 0 and 1 have, for which κ + 3 = 1 / (m (1 - m)) with the kurtosis κ, so that fewer rows suffice:
`FEW_SCORES` (κ + 3). If fourth powers are not known, κ is taken for 3.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.fairness import skewed, variance
from fl.fairness.groups import GroupSums
from fl.fairness.variance import Form

FEW = 20.0
"""Number of rows with the rarer value below which the gamma distribution is not used."""

FEW_SCORES = 10.0
"""Number of rows of scores, divided by κ + 3, below which the gamma distribution is not used."""

DIVISIONS = 9999
"""Number of random divisions; beyond 200 groups fewer, and at least 999."""

_Array = NDArray[np.float64]

_SEED = 2312_03867  # fixed, so that a table has one p-value
_CELLS = 2 * 10**6  # groups times divisions
_CHUNK = 2 * 10**6
_MAX_ROWS = 10**9  # of NumPy's hypergeometric distribution
_MAX_LISTED = 10**7  # rows of which a list is shuffled
_ONES_PER_GROUP = 10  # below, it takes less time to shuffle rows than to draw a number of ones for each group
_NORMAL_KURTOSIS = 3.0
_TINY = 1e-300
_ROUNDING = 1e-12  # of T, whose scale is 1


class FewRows(NamedTuple):
    """Holds what is known of T where a few rows decide it.

    Attributes:
      noise: bound on the part of the variance of T that does not vanish with V, whether groups are alike or not.
      variance: variance of T if all groups are alike; for scores a bound on it.
      outcomes: float64 [divisions], T of random divisions, sorted; None for scores.
    """

    noise: float
    variance: float
    outcomes: _Array | None

    @property
    def p_value_by(self) -> str:
        """Returns where p-values come from."""
        return "random divisions" if self.outcomes is not None else "Cantelli's inequality"

    def p_value(self, value: float) -> float:
        """Returns a p-value of T: if all groups are alike, it is at most p with probability at most p."""
        if self.outcomes is None:
            return skewed.cantelli_tail(value, self.variance)
        as_large = len(self.outcomes) - np.searchsorted(self.outcomes, value - _ROUNDING)
        return float((as_large + 1) / (len(self.outcomes) + 1))

    def critical_value(self, level: float) -> float:
        """Returns the value above which the p-value of T is at most `level`."""
        if self.outcomes is None:
            return math.sqrt(self.variance) * skewed.cantelli_stddevs(level)
        # The slack is for divisions such as 9,999, for which the product is an integer.
        above = math.floor(level * (len(self.outcomes) + 1) + 1e-9) - 1
        return float(self.outcomes[-1 - above]) + _ROUNDING if above >= 0 else math.inf


def is_few(form: Form, sums: GroupSums) -> bool:
    """Returns whether chance in a few rows decides T."""
    n = form.counts
    outer = n * form.per_row**2
    influence = form.within**2 * np.maximum(n - 1, 0) + form.per_row**2 * (outer.sum() - outer)
    total = float(n @ influence)
    if not total > 0:
        return False
    effective = total**2 / float(n @ influence**2)
    if sums.is_binary:
        rate = sums.sums.sum() / n.sum()
        return bool(effective * rate * (1 - rate) < FEW)
    if sums.fourths is None:
        return effective < FEW_SCORES * (_NORMAL_KURTOSIS + 3)
    center = variance.overall_value(form, sums.sums)
    squares, fourths = variance.centred_squares(sums, center), variance.centred_fourths(sums, center)
    kurtosis = total * float(influence @ fourths) / max(float(influence @ squares) ** 2, _TINY)
    return effective < FEW_SCORES * (kurtosis + 3)


def describe(form: Form, sums: GroupSums, second: float) -> FewRows:
    """Returns what is known of T where a few rows decide it.

    Args:
      form: the quadratic form.
      sums: sums of each group.
      second: bound on the second moment of a row about m, or on its variance if the numbers of rows are given.
    """
    rate = float(sums.sums.sum() / form.counts.sum())
    worst, alike = (
        variance.null_moments(form, np.full_like(form.counts, moment), 0.0).variance
        for moment in (second, rate * (1 - rate))
    )
    if not sums.is_binary:
        return FewRows(worst, alike, None)
    outcomes = divide(form, sums)
    return FewRows(worst, float(outcomes.var()), outcomes)


def divide(form: Form, sums: GroupSums) -> _Array:
    """Returns T of random divisions of the ones among all rows, float64 [divisions], sorted."""
    groups, ones, rows = len(form.counts), round(sums.sums.sum()), int(form.counts.sum())
    generator = np.random.default_rng(_SEED)
    left = int(np.clip(_CELLS // groups, 999, DIVISIONS))
    outcomes = []
    counts = form.counts.astype(np.int64)
    shuffles = rows <= _MAX_LISTED and min(ones, rows - ones) <= _ONES_PER_GROUP * groups
    while left:
        number = min(left, max(_CHUNK // groups, 1))
        if rows < _MAX_ROWS:
            method: Literal["count", "marginals"] = "count" if shuffles else "marginals"
            divided = generator.multivariate_hypergeometric(counts, ones, size=number, method=method)
        else:
            divided = generator.binomial(counts, ones / rows, size=(number, groups))
        outcomes.append(estimates(form, divided.astype(np.float64)))
        left -= number
    return np.sort(np.concatenate(outcomes))


def estimates(form: Form, ones: _Array) -> _Array:
    """Returns T for numbers of ones, float64 [divisions, groups]; the formula of `variance.estimate`."""
    centers = (ones @ form.per_row / (form.per_row @ form.counts))[:, np.newaxis]
    deviations = ones - form.counts * centers
    squares = ones * (1 - 2 * centers) + centers**2 * form.counts
    return np.asarray((deviations**2 - squares) @ form.within + deviations**2 @ form.per_row**2)
