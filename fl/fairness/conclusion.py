"""Draws the conclusions of a test whether all groups are alike: p-value, bounds on the CVaR gap F_α, and power.

They follow from the statistic T, the unbiased estimate of the groups' variance V, and from what is known of its
distribution, whichever way the rows were collected (`fl.fairness.hypothesis_test`, `fl.fairness.noisy_statistic`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from scipy import special

from fl.fairness import skewed
from fl.fairness.few_rows import FewRows
from fl.fairness.gaps import check_alpha, gap_bounds, least_equal_alpha
from fl.fairness.variance import Moments
from privacy import checks


@dataclasses.dataclass(frozen=True)
class FairnessTest:
    """Holds the result of a test of whether groups are alike. Gaps and variances are in the unit of the values.

    Attributes:
      sampling: how rows were collected: "given counts", "weighted" or "attribute-specific"; or "noisy counts".
      alpha: share of the weight that F_α leaves out.
      level: probability of a false rejection; each bound on F_α is wrong with at most this probability.
      groups: number of groups tested; with attribute-specific sampling, number of draws of a group.
      rows: number of rows of these groups; with noisy counts their noisy number.
      untested_groups: number of groups with a weight but with too few rows to be tested.
      untested_weight: share of the weight that these groups have. Nothing is said about them.
      overall: weighted overall value of the tested groups, to which the gaps of F_α are measured.
      variance: T, the unbiased estimate of the variance of the groups' expected values; may be negative.
      null_stddev: standard deviation of T if all groups are alike.
      critical_value: T above this value rejects.
      p_value: probability of at least this T if all groups are alike.
      gap_low: lower confidence bound on F_α; 0 unless the test rejects.
      gap_high: upper confidence bound on F_α.
      gap: gap that the test should find, if it was given.
      threshold: (1 - α) gap² / 2, halfway between equal groups and that gap, if it was given.
      power: probability that the test rejects if F_α is that gap, if it was given.
      p_value_by: where the p-value comes from: "gamma distribution", an approximation for many rows; "random divisions"
        or "Cantelli's inequality", which hold for few (`fl.fairness.few_rows`).
    """

    sampling: str
    alpha: float
    level: float
    groups: int
    rows: int
    untested_groups: int
    untested_weight: float
    overall: float
    variance: float
    null_stddev: float
    critical_value: float
    p_value: float
    gap_low: float
    gap_high: float
    gap: float | None = None
    threshold: float | None = None
    power: float | None = None
    p_value_by: str = "gamma distribution"

    @property
    def rejects(self) -> bool:
        """Returns whether the groups are shown not to be alike."""
        return self.p_value <= self.level


def largest_gap(overall: float) -> float:
    """Returns a number that no gap to the overall value can exceed, for values from 0 to 1."""
    return max(overall, 1 - overall)


class Statistic(NamedTuple):
    """Holds the statistic T of a test and what is known of its distribution, for values scaled to [0, 1].

    Attributes:
      value: T, the estimate of the variance V of the groups.
      center: overall value.
      null: moments of T if V = 0.
      noise: part of the variance of T that does not vanish with V.
      slope: b such that the variance of T is at most its value at V = 0, plus b V.
      row_variance: mean variance of a row.
      per_row: largest weight of a row.
      drawn_groups: number of draws of groups, whose chance adds to the variance of T; None if the groups are fixed.
      noise_per_row: largest variance of the noise on the sum of a group, divided by its number of rows.
      least_weight: least weight of a group; 0 if it is not known.
      few: what is known of T where a few rows decide it; None elsewhere.
    """

    value: float
    center: float
    null: Moments
    noise: float
    slope: float
    row_variance: float
    per_row: float
    drawn_groups: int | None = None
    noise_per_row: float = 0.0
    least_weight: float = 0.0
    few: FewRows | None = None


def conclude(
    statistic: Statistic,
    *,
    alpha: float,
    level: float,
    gap: float | None,
    sampling: str,
    groups: int,
    rows: int,
    untested: tuple[int, float],
    bounds: tuple[float, float] = (0.0, 1.0),
) -> FairnessTest:
    """Returns the result of a test from its statistic.

    Args:
      statistic: T and its distribution, for values scaled to [0, 1].
      alpha, level, gap: as for `weighted_test`, in the unit of the values.
      sampling, groups, rows: as in `FairnessTest`.
      untested: number and weight of the groups that are not tested.
      bounds: least and largest possible value.

    Raises:
      ValueError: alpha, level or gap is out of range.
    """
    alpha = check_alpha(alpha)
    level = checks.between("level", level, 0, 0.5, "0.05 is usual")
    low_value, width = bounds[0], bounds[1] - bounds[0]
    if gap is not None:
        checks.between("gap", gap, 0, width, "give a gap that would matter", closed_high=True)
    reached = least_equal_alpha(alpha, statistic.least_weight)
    distribution = _distribution(statistic, level)
    p_value = distribution.p_value
    low = 0.0
    if p_value <= level:
        low = max(_solve(statistic.value, -distribution.low_stddevs, distribution.noise, statistic.slope), 0.0)
    high = max(_solve(statistic.value, distribution.high_stddevs, distribution.noise, statistic.slope), 0.0)
    largest = distribution.largest
    low_gap, high_gap = gap_bounds(low, min(high, largest**2), reached, largest)
    power = None if gap is None else _power(statistic, distribution, reached, gap / width)
    return FairnessTest(
        sampling=sampling,
        alpha=alpha,
        level=level,
        groups=groups,
        rows=rows,
        untested_groups=untested[0],
        untested_weight=untested[1],
        overall=low_value + width * statistic.center,
        variance=statistic.value * width**2,
        null_stddev=distribution.stddev * width**2,
        critical_value=distribution.critical * width**2,
        p_value=p_value,
        gap_low=low_gap * width,
        gap_high=high_gap * width,
        gap=gap,
        threshold=None if gap is None else (1 - reached) * gap**2 / 2,
        power=power,
        p_value_by="gamma distribution" if statistic.few is None else statistic.few.p_value_by,
    )


class _Distribution(NamedTuple):
    """Holds what the conclusions need of the distribution of T."""

    p_value: float
    critical: float
    stddev: float  # if all groups are alike
    noise: float
    low_stddevs: float  # of the lower bound on V
    high_stddevs: float
    largest: float  # a number that no gap exceeds


def _distribution(statistic: Statistic, level: float) -> _Distribution:
    null, few = statistic.null, statistic.few
    if few is not None:
        stddevs = skewed.cantelli_stddevs(level)
        critical, stddev = few.critical_value(level), math.sqrt(few.variance)
        # Few rows say little about the overall value, too.
        return _Distribution(few.p_value(statistic.value), critical, stddev, few.noise, stddevs, stddevs, 1.0)
    critical, stddev = skewed.quantile(level, null), math.sqrt(null.variance)
    return _Distribution(
        skewed.tail_probability(statistic.value, null),
        critical,
        stddev,
        statistic.noise,
        # T leans to the right less the larger V is, so that the quantile at V = 0 is on the safe side.
        critical / stddev if stddev > 0 else 0.0,
        -float(special.ndtri(level)),
        largest_gap(statistic.center),
    )


def _power(statistic: Statistic, distribution: _Distribution, alpha: float, gap: float) -> float:
    """Returns the probability that the test rejects if F_α is `gap`; where few rows decide it, a lower bound."""
    least = (1 - alpha) * gap**2
    excess = least - distribution.critical
    if statistic.few is not None:
        spread = distribution.noise + statistic.slope * least
        return 0.0 if excess <= 0 else 1 - skewed.cantelli_tail(excess, spread)
    # Of a row about m, in a group with the gap.
    second = min(statistic.row_variance + gap * abs(1 - 2 * statistic.center), distribution.largest**2)
    spread = statistic.null.variance + 4 * (second + statistic.noise_per_row) * statistic.per_row * least
    if statistic.drawn_groups is not None:
        spread += alpha * (1 - alpha) * gap**4 / statistic.drawn_groups
    return float(special.ndtr(excess / math.sqrt(spread))) if spread > 0 else 1.0


def _solve(value: float, z: float, noise: float, slope: float) -> float:
    """Returns the V at which `value` lies -z standard deviations from V, if T has the variance `noise` + `slope` V."""
    half = z * slope / 2
    return value + z * half + z * math.sqrt(max(noise + slope * value + half**2, 0.0))
