"""Plans how many rows to collect, and of which groups, so that a test tells equal groups from a CVaR gap.

Each plan bounds two probabilities by `error`: that the test at the level `error` rejects although all groups are alike,
and that it does not reject although F_α is at least `gap`. The second is computed for groups with the weight 1 - α
whose gap is `gap`, and for no gap elsewhere; among alternatives with that F_α it has the least variance of groups.
Values are 0 or 1 with the overall value `rate`, or scores between 0 and 1; then 0.5 is safe.

Reference: Paes, Suresh, Beutel, Calmon and Beirami 2023, https://arxiv.org/abs/2312.03867. The constants here are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from fl.fairness import skewed
from fl.fairness.gaps import check_alpha, least_equal_alpha, normalized_weights
from fl.fairness.variance import Moments
from privacy import checks

MAX_ROWS = 2**50
"""Largest number of rows that is planned."""

MIN_GAP = 1e-4
"""Smallest gap that is planned for: it takes some 10^10 rows, and below it rounding hides the threshold."""

_SIZES = 48  # numbers of rows of a draw that are tried, from 2 up
_SPREADS = 8  # standard deviations of a binomial number beyond which its probabilities are neglected


class WeightedPlan(NamedTuple):
    """Says how many rows to collect if each row's group is drawn.

    Attributes:
      rows: total number of rows n.
      probabilities: float [groups], π_g, proportional to w_g^(2/3): the probability with which a row is of group g.
      threshold: value that the estimated variance of the groups exceeds with probability `error` if they are alike, and
        falls short of with at most that probability if F_α is at least `gap`.
    """

    rows: int
    probabilities: NDArray[np.float64]
    threshold: float

    @property
    def expected(self) -> NDArray[np.float64]:
        """Returns the expected number of rows of each group, float64 [groups]."""
        return self.rows * self.probabilities


class AttributeSpecificPlan(NamedTuple):
    """Says how many groups to draw, and how many rows to collect for each draw.

    Attributes:
      draws: number of draws of a group, with the population's weights as probabilities.
      rows_per_draw: number of rows of each draw.
      threshold: value that the estimated variance of the groups exceeds with probability `error` if they are alike, and
        falls short of with at most that probability if F_α is at least `gap`.
    """

    draws: int
    rows_per_draw: int
    threshold: float

    @property
    def rows(self) -> int:
        """Returns the total number of rows."""
        return self.draws * self.rows_per_draw


class MaxGapPlan(NamedTuple):
    """Says how many rows a test of the largest gap needs.

    Attributes:
      rows_per_group: number of rows of each group.
      groups: number of groups with a weight.
    """

    rows_per_group: int
    groups: int

    @property
    def rows(self) -> int:
        """Returns the total number of rows."""
        return self.rows_per_group * self.groups


def renyi_entropy(weights: ArrayLike) -> float:
    """Returns H = 3 log Σ w_g^(2/3), the Rényi entropy of order 2/3 in nats; for n equal weights it is log n."""
    mass = normalized_weights(weights)
    return 3 * math.log(float((mass ** (2 / 3)).sum()))


def sampling_probabilities(weights: ArrayLike) -> NDArray[np.float64]:
    """Returns the probabilities π_g, proportional to w_g^(2/3), with which the groups of rows are drawn.

    They minimise the variance of the estimate where all groups are alike, which is proportional to Σ w_g² / π_g². Its
    minimum is exp H with the Rényi entropy H of order 2/3.
    """
    powers = normalized_weights(weights) ** (2 / 3)
    return np.asarray(powers / powers.sum())


def plan_weighted(
    weights: ArrayLike, *, alpha: float, gap: float, error: float = 0.05, rate: float = 0.5
) -> WeightedPlan:
    """Plans the weighted sampling of rows: the number of rows grows with exp(H / 2), at most the root of the groups.

    Args:
      weights: float [groups], at least 0, shares of the groups in the population.
      alpha: share of the weight that F_α leaves out, in [0, 1).
      gap: smallest F_α that must be found, in (0, 1].
      error: bound on both probabilities of an error, in (0, 0.5).
      rate: overall value, in (0, 1); 0.5 if it is not known.

    Raises:
      ValueError: an argument is out of range, or there are fewer than two groups.

    >>> plan_weighted(np.ones(1600), alpha=0.9, gap=0.2, error=0.05).rows
    12382
    """
    mass = _two_groups(weights)
    case = _Case.check(alpha, gap, error, rate, float(mass.min()))
    probabilities = sampling_probabilities(mass)
    z = float((mass ** (2 / 3)).sum())
    small_first = np.sort(mass)
    # Where the second moment of the worst groups is larger, the variance is largest if these are the smallest groups.
    in_tail = np.diff(np.minimum(np.cumsum(small_first), 1 - case.alpha), prepend=0.0)
    tail = float((in_tail @ small_first ** (-1 / 3)) / z)
    noise = case.variance**2 * (1 - tail) + case.second**2 * tail
    largest_ratio = float(small_first[-1] ** (1 / 3) * z)  # of w_g to π_g
    root_sum = float((mass ** (1 / 3)).sum())

    def critical(rows: int) -> float:
        third = (
            8 * case.variance**3 * (z / rows) ** 3 + 4 * case.skew**2 * case.variance**2 * (z / rows) ** 4 * root_sum
        )
        return skewed.quantile(error, Moments(2 * case.variance**2 * z**3 / rows**2, third))

    def is_enough(rows: int) -> bool:
        spread = 2 * noise * z**3 / rows**2 + 4 * case.second * case.target * largest_ratio / rows
        return float(special.ndtr((critical(rows) - case.target) / math.sqrt(spread))) <= error

    rows = _least(is_enough)
    return WeightedPlan(rows, probabilities, critical(rows))


def plan_attribute_specific(
    *, alpha: float, gap: float, error: float = 0.05, rate: float = 0.5
) -> AttributeSpecificPlan:
    """Plans the sampling of groups: the number of rows does not depend on the number of groups.

    It tries several numbers of rows of each draw, and chooses the one with the least total.

    Args:
      alpha: share of the weight that F_α leaves out, in [0, 1).
      gap: smallest F_α that must be found, in (0, 1].
      error: bound on both probabilities of an error, in (0, 0.5).
      rate: overall value, in (0, 1); 0.5 if it is not known.

    Raises:
      ValueError: an argument is out of range.
    """
    case = _Case.check(alpha, gap, error, rate)

    def critical(draws: int, size: int) -> float:
        pairs, between = draws * size * (size - 1), draws * (draws - 1) * size**2
        third = 8 * case.variance**3 * (size - 2) + 4 * case.skew**2 * case.variance**2
        variance = 2 * case.variance**2 * (1 / pairs + 1 / between)
        return skewed.quantile(error, Moments(variance, third / (pairs * draws * size * (size - 1))))

    def is_enough(draws: int, size: int) -> bool:
        # The number of draws of one of the worst groups is binomial, which for few draws is far from normal.
        mean, stddev = draws * (1 - case.alpha), math.sqrt(draws * (1 - case.alpha) * case.alpha)
        reach = _SPREADS * (stddev + 1)
        bad = np.arange(max(0, math.floor(mean - reach)), min(draws, math.ceil(mean + reach)) + 1)
        log_choices = special.gammaln(draws + 1) - special.gammaln(bad + 1) - special.gammaln(draws - bad + 1)
        log_powers = special.xlogy(bad, 1 - case.alpha) + special.xlogy(draws - bad, case.alpha)
        share = bad / draws
        # As a float: NumPy divides by no integer beyond 64 bits.
        noise = 2 * ((1 - share) * case.variance**2 + share * case.second**2) / float(draws * size * (size - 1))
        spread = noise + 4 * share * case.gap**2 * case.second / float(draws * size)
        below = special.ndtr((critical(draws, size) - share * case.gap**2) / np.sqrt(spread))
        return float(np.exp(log_choices + log_powers) @ below) <= error

    best: tuple[int, int] | None = None
    # Beyond some 100 / gap² rows a draw's own error no longer matters, and more draws are better than more rows.
    for size in np.unique(np.geomspace(2, 100 / case.gap**2 + 3, _SIZES).astype(int)).tolist()[::-1]:
        most = MAX_ROWS // size
        if best is not None:
            most = best[0] * best[1] // size
            if not is_enough(most, size):
                continue
        best = _least(partial(is_enough, size=size), first=2, last=most), size
    assert best is not None
    return AttributeSpecificPlan(*best, critical(*best))


def plan_max_gap(weights: ArrayLike, *, alpha: float, gap: float, error: float = 0.05, rate: float = 0.5) -> MaxGapPlan:
    """Plans a test of the largest gap with Bonferroni's correction against the same alternative, for comparison.

    It finds the alternative if it finds any of its worst groups. Those are counted as the fewest groups with the weight
    1 - α. Normal approximation, the same number of rows of each group.

    Args:
      weights: float [groups], at least 0, shares of the groups in the population.
      alpha: share of the weight that F_α leaves out, in [0, 1).
      gap: smallest F_α that must be found, in (0, 1].
      error: bound on both probabilities of an error, in (0, 0.5).
      rate: overall value, in (0, 1); 0.5 if it is not known.
    """
    mass = _two_groups(weights)
    case = _Case.check(alpha, gap, error, rate, float(mass.min()))
    worst = max(1, int(np.searchsorted(np.cumsum(np.sort(mass)[::-1]), (1 - case.alpha) * (1 + 1e-9), side="right")))
    group_stddev = math.sqrt(min(case.second, 0.25))
    critical = -float(special.ndtri(error / (2 * len(mass)))) * math.sqrt(case.variance)
    found = -float(special.ndtri(error ** (1 / worst))) * group_stddev
    return MaxGapPlan(max(1, math.ceil((max(critical + found, 0.0) / case.gap) ** 2)), len(mass))


class _Case(NamedTuple):
    """Holds the checked arguments of a plan and what follows from them."""

    alpha: float
    gap: float
    variance: float  # of a row, if all groups are alike
    second: float  # bound on a row's second moment about m, in a group with the gap
    skew: float

    @property
    def target(self) -> float:
        """Returns the least variance of groups that F_α = gap implies."""
        return (1 - self.alpha) * self.gap**2

    @classmethod
    def check(cls, alpha: float, gap: float, error: float, rate: float, least_weight: float = 0.0) -> _Case:
        alpha = least_equal_alpha(check_alpha(alpha), least_weight)
        gap = checks.between("gap", gap, 0, 1, "give the smallest gap that would matter", closed_high=True)
        if gap < MIN_GAP:
            raise ValueError(f"gap {gap:g} is below {MIN_GAP:g}, for which no one has the rows: give a larger gap")
        checks.between("error", error, 0, 0.5, "0.05 is usual")
        rate = checks.between("rate", rate, 0, 1, "leave it at 0.5 if it is not known")
        variance = rate * (1 - rate)
        return cls(alpha, gap, variance, variance + gap * abs(1 - 2 * rate), abs(1 - 2 * rate))


def _two_groups(weights: ArrayLike) -> NDArray[np.float64]:
    mass = normalized_weights(weights)
    mass = mass[mass > 0]
    if len(mass) < 2:
        raise ValueError(f"{len(mass)} group has a weight: at least two are needed")
    return mass


def _least(is_enough: Callable[[int], bool], first: int = 1, last: int = MAX_ROWS) -> int:
    """Returns the least number from `first` to `last` that is enough, if all larger ones are enough too."""
    high = first
    while high < last and not is_enough(high):
        first, high = high + 1, min(2 * high, last)
    if high == last and not is_enough(last):
        raise ValueError(f"more than {last:.1e} rows would be needed: plan for a larger gap or a larger error")
    while first < high:
        middle = (first + high) // 2
        if is_enough(middle):
            high = middle
        else:
            first = middle + 1
    return high
