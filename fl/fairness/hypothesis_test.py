"""Tests whether all groups are alike, and bounds the CVaR gap F_α, from the sums of each group.

The hypothesis is F_α = 0, that is, all groups have the same expected value. It is tested by the unbiased estimate T of
the groups' variance (`fl.fairness.variance`). The number of rows that it needs grows with the square root of the number
of groups; that of a test of the largest gap (`fl.fairness.max_gap`) grows with the number of groups.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl.fairness import few_rows, variance
from fl.fairness.conclusion import FairnessTest, Statistic, conclude, largest_gap
from fl.fairness.few_rows import FewRows
from fl.fairness.gaps import normalized_weights
from fl.fairness.groups import GroupSums
from fl.fairness.variance import Form, Moments

_MIN_ROWS = 2  # of a group: one row says nothing about the spread of rows

_MISFIT = 10  # standard deviations of Pearson's chi-square statistic


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
    >>> result = weighted_test(from_counts([200, 200, 200], [20, 24, 45]), alpha=0.5)
    >>> result.rejects, round(result.p_value, 4)
    (True, 0.0008)
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
    largest = largest_gap(variance.overall_value(form, kept.sums))
    is_few = few_rows.is_few(form, kept)
    # A row's second moment about m, which a given number of rows of the group replaces by its variance. Few rows say
    # little about m.
    second = 0.25 if expected is None else 1.0 if is_few else largest**2
    return _assess(
        form,
        kept,
        alpha=alpha,
        level=level,
        gap=gap,
        sampling="given counts" if expected is None else "weighted",
        few=few_rows.describe(form, kept, second) if is_few else None,
        least_weight=float(mass_kept.min()),
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
    is_few = few_rows.is_few(form, draws)
    largest = 1.0 if is_few else largest_gap(variance.overall_value(form, draws.sums))
    return _assess(
        form,
        draws,
        alpha=alpha,
        level=level,
        gap=gap,
        sampling="attribute-specific",
        few=few_rows.describe(form, draws, 0.25) if is_few else None,
        least_weight=0.0,
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


def _assess(
    form: Form,
    sums: GroupSums,
    *,
    alpha: float,
    level: float,
    gap: float | None,
    sampling: str,
    few: FewRows | None,
    least_weight: float,
    untested: tuple[int, float],
    slope: float,
    drawn_groups: int | None,
) -> FairnessTest:
    """Returns the result for sums scaled to [0, 1]; the last arguments but `untested` are those of `Statistic`."""
    center = variance.overall_value(form, sums.sums)
    row_variances = variance.row_variances(sums, center)
    statistic = Statistic(
        value=variance.estimate(form, sums, center),
        center=center,
        null=_null_moments(form, sums, center, row_variances),
        noise=variance.noise_variance(form, sums, center),
        slope=slope,
        row_variance=float(row_variances @ sums.counts / sums.counts.sum()),
        per_row=float(form.per_row.max()),
        least_weight=least_weight,
        drawn_groups=drawn_groups,
        few=few,
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


def _null_moments(form: Form, sums: GroupSums, center: float, row_variances: NDArray[np.float64]) -> Moments:
    """Returns the moments of T if all groups are alike; for scores the smaller of two that are on average no too small.

    One is from each group's own rows. The other is for the largest variance of values from 0 to 1 with the mean m,
    m (1 - m), so that scores near 0 and 1 are tested as losses of 0 or 1 are.
    """
    skew = variance.skew_bound(sums, center)
    if sums.is_binary:
        return variance.null_moments(form, row_variances, skew)
    own = variance.null_moments(form, row_variances, skew, pairs=variance.pair_squares(sums, center))
    largest = variance.null_moments(form, np.full_like(row_variances, center * (1 - center)), skew)
    return min(own, largest, key=lambda moments: moments.variance)
