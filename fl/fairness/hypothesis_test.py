"""Tests whether all groups are alike, and bounds the CVaR gap F_α, from the sums of each group.

The hypothesis is F_α = 0, that is, all groups have the same expected value. It is tested by the unbiased estimate T of
the groups' variance (`fl.fairness.variance`). The number of rows that it needs grows with the square root of the number
of groups; that of a test of the largest gap (`fl.fairness.max_gap`) grows with the number of groups.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from fl.fairness import skewed, variance
from fl.fairness.gaps import check_alpha, gap_bounds, normalized_weights
from fl.fairness.groups import GroupSums
from fl.fairness.variance import Form, Moments
from privacy import checks

_MIN_ROWS = 2  # of a group: one row says nothing about the spread of rows

_MISFIT = 10  # standard deviations of Pearson's chi-square statistic


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
      overall: weighted overall value of the tested groups.
      variance: T, the unbiased estimate of the variance of the groups' expected values; may be negative.
      null_stddev: standard deviation of T if all groups are alike.
      critical_value: T above this value rejects.
      p_value: probability of at least this T if all groups are alike.
      gap_low: lower confidence bound on F_α; 0 unless the test rejects.
      gap_high: upper confidence bound on F_α.
      gap: gap that the test should find, if it was given.
      threshold: (1 - α) gap² / 2, halfway between equal groups and that gap, if it was given.
      power: probability that the test rejects if F_α is that gap, if it was given.
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

    @property
    def rejects(self) -> bool:
        """Returns whether the groups are shown not to be alike."""
        return self.p_value <= self.level


def weighted_test(
    sums: GroupSums,
    *,
    alpha: float,
    level: float = 0.05,
    weights: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    gap: float | None = None,
) -> FairnessTest:
    """Tests whether all groups have the same expected value, from each group's sums.

    Without `probabilities`, the numbers of rows are taken as given, which is right for any table whose rows are
    independent given their groups; groups with fewer than two rows are not tested. With `probabilities`, the group of
    each row was drawn, as `fl.fairness.plan_weighted` plans it; then no group need have two rows.

    Args:
      sums: sums of each group.
      alpha: share of the weight that F_α leaves out, in [0, 1).
      level: probability of a false rejection, in (0, 0.5).
      weights: float [groups], at least 0, the share of each group in the population that F_α speaks of. None: the
        groups' shares of the rows.
      probabilities: float [groups], the probability with which a row is of each group, if the rows' groups were drawn;
        divided by their sum.
      gap: gap for which to state the power of the test, in the unit of the values, above 0.

    Raises:
      ValueError: an argument is out of range, fewer than two groups can be tested, or the numbers of rows cannot have
        come from `probabilities`.

    >>> from fl.fairness import from_counts
    >>> result = weighted_test(from_counts([50, 50, 50], [5, 6, 19]), alpha=0.5)
    >>> result.rejects, round(result.p_value, 4)
    (True, 0.0005)
    """
    groups = len(sums.counts)
    if weights is None and probabilities is not None:
        raise ValueError("weights are missing: rows of drawn groups do not show the weights that they were drawn for")
    mass = normalized_weights(sums.counts if weights is None else weights, groups)
    if probabilities is None:
        tested = (mass > 0) & (sums.counts >= _MIN_ROWS)
        expected = None
    else:
        tested = mass > 0
        expected = _expected_rows(sums.counts, probabilities, tested)[tested]
    if tested.sum() < 2:
        raise ValueError(
            f"groups that have a weight and two rows or more: {tested.sum()} of {groups}; at least two are needed"
        )
    untested = (mass > 0) & ~tested
    kept = sums.select(tested)
    mass_kept = mass[tested] / mass[tested].sum()
    form = variance.build_form(kept.counts, mass_kept, expected)
    if not form.per_row @ kept.counts > 0:
        raise ValueError("no group that has a weight has a row: give at least two rows of each group")
    largest = _largest_gap(variance.overall_value(form, kept.sums))
    # A row's second moment about m, which a given number of rows of the group replaces by its variance.
    second = 0.25 if expected is None else largest**2
    return _assess(
        form,
        kept,
        alpha=alpha,
        level=level,
        gap=gap,
        sampling="given counts" if expected is None else "weighted",
        untested=(int(untested.sum()), float(mass[untested].sum())),
        slope=4 * second * float(form.per_row.max()),
        drawn_groups=None,
    )


def attribute_specific_test(
    draws: GroupSums, *, alpha: float, level: float = 0.05, gap: float | None = None
) -> FairnessTest:
    """Tests whether all groups have the same expected value, from a sample of groups.

    Groups are drawn independently, with the population's weights as probabilities, and at least two rows are collected
    for each draw (`fl.fairness.plan_attribute_specific`). The number of rows needed does not grow with the number of
    groups.

    Args:
      draws: sums of each draw. A group that is drawn twice has two entries, each with rows of its own.
      alpha: share of the weight that F_α leaves out, in [0, 1).
      level: probability of a false rejection, in (0, 0.5).
      gap: gap for which to state the power of the test, in the unit of the values, above 0.

    Raises:
      ValueError: an argument is out of range, or a draw has fewer than two rows.
    """
    count = len(draws.counts)
    if (short := draws.counts < _MIN_ROWS).any():
        raise ValueError(
            f"draw {int(np.flatnonzero(short)[0])} has fewer than two rows: collect more rows of its group"
        )
    form = variance.build_form(draws.counts, np.full(count, 1 / count), None)
    # The draws' variance about their own mean is on average (K - 1) / K of the variance of all groups.
    scale = count / (count - 1)
    form = Form(form.counts, form.within * scale, form.per_row * math.sqrt(scale))
    largest = _largest_gap(variance.overall_value(form, draws.sums))
    return _assess(
        form,
        draws,
        alpha=alpha,
        level=level,
        gap=gap,
        sampling="attribute-specific",
        untested=(0, 0.0),
        slope=math.sqrt(scale) * float(form.per_row.max()) + largest**2 / count,
        drawn_groups=count,
    )


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Returns p-values adjusted for testing several hypotheses, by Holm's method.

    Rejecting those that are at most the level makes the probability of any false rejection at most the level, whatever
    the dependence between the tests.

    Args:
      p_values: float [tests], in [0, 1].

    Reference: Holm 1979, A simple sequentially rejective multiple test procedure.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p_values {p_values!r} must be a list of numbers from 0 to 1")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1.0)
    return adjusted


def _expected_rows(
    counts: NDArray[np.float64], probabilities: ArrayLike, needed: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Returns the expected number of rows of each group, and checks that the numbers of rows can have come from it."""
    shares = normalized_weights(probabilities, len(counts), "probabilities")
    if (needed & ~(shares > 0)).any():
        raise ValueError("probabilities must be above 0 for each group that has a weight: its rows are never drawn")
    if (counts[shares == 0] > 0).any():
        raise ValueError("probabilities are 0 for a group that has rows: correct them")
    drawn = shares > 0
    expected = counts.sum() * shares[drawn]
    excess = ((counts[drawn] - expected) ** 2 / expected - 1).sum() + 1
    if excess > _MISFIT * math.sqrt(2 * drawn.sum() + (1 / expected).sum()):
        raise ValueError(
            "probabilities do not fit the numbers of rows: the groups were not drawn with them; leave them out to take "
            "the numbers of rows as given"
        )
    return counts.sum() * shares


def _largest_gap(overall: float) -> float:
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


def _assess(
    form: Form,
    sums: GroupSums,
    *,
    alpha: float,
    level: float,
    gap: float | None,
    sampling: str,
    untested: tuple[int, float],
    slope: float,
    drawn_groups: int | None,
) -> FairnessTest:
    """Returns the result for sums scaled to [0, 1]; `slope` and `drawn_groups` are those of `Statistic`."""
    center = variance.overall_value(form, sums.sums)
    row_variances = variance.row_variances(sums, center)
    statistic = Statistic(
        value=variance.estimate(form, sums, center),
        center=center,
        null=variance.null_moments(form, row_variances, variance.skew_bound(sums, center)),
        noise=variance.noise_variance(form, sums, center),
        slope=slope,
        row_variance=float(row_variances @ sums.counts / sums.counts.sum()),
        per_row=float(form.per_row.max()),
        drawn_groups=drawn_groups,
    )
    return conclude(
        statistic,
        alpha=alpha,
        level=level,
        gap=gap,
        sampling=sampling,
        groups=len(sums.counts),
        rows=int(sums.counts.sum()),
        untested=untested,
        bounds=(sums.low, sums.high),
    )


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
    value, center, null, noise, slope = statistic[:5]
    critical = skewed.quantile(level, null)
    p_value = skewed.tail_probability(value, null)
    largest = _largest_gap(center)
    low = 0.0
    if p_value <= level:
        # T leans to the right less the larger V is, so that the quantile at V = 0 is on the safe side.
        low = max(_solve(value, -critical / math.sqrt(null.variance), noise, slope), 0.0)
    high = max(_solve(value, -float(special.ndtri(level)), noise, slope), 0.0)
    low_gap, high_gap = gap_bounds(low, min(high, largest**2), alpha, largest)
    power = None
    if gap is not None:
        scaled = gap / width
        # Of a row about m, in a group with the gap.
        second = min(statistic.row_variance + scaled * abs(1 - 2 * center), largest**2) + statistic.noise_per_row
        spread = null.variance + 4 * second * statistic.per_row * (1 - alpha) * scaled**2
        if statistic.drawn_groups is not None:
            spread += alpha * (1 - alpha) * scaled**4 / statistic.drawn_groups
        power = float(special.ndtr(((1 - alpha) * scaled**2 - critical) / math.sqrt(spread))) if spread > 0 else 1.0
    return FairnessTest(
        sampling=sampling,
        alpha=alpha,
        level=level,
        groups=groups,
        rows=rows,
        untested_groups=untested[0],
        untested_weight=untested[1],
        overall=low_value + width * center,
        variance=value * width**2,
        null_stddev=math.sqrt(null.variance) * width**2,
        critical_value=critical * width**2,
        p_value=p_value,
        gap_low=low_gap * width,
        gap_high=high_gap * width,
        gap=gap,
        threshold=None if gap is None else (1 - alpha) * gap**2 / 2,
        power=power,
    )


def _solve(value: float, z: float, noise: float, slope: float) -> float:
    """Returns the V at which `value` lies -z standard deviations from V, if T has the variance `noise` + `slope` V."""
    half = z * slope / 2
    return value + z * half + z * math.sqrt(max(noise + slope * value + half**2, 0.0))
