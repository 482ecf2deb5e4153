"""Tests the largest gap between a group and the overall value, and bounds every group's gap at once.

This is the usual test, for comparison: it looks at each group alone and corrects for their number (Bonferroni). It says
which groups differ, but the number of rows that it needs grows with the number of groups.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from fl.fairness.gaps import normalized_weights
from fl.fairness.groups import GroupSums
from privacy import checks

_Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class MaxGapTest:
    """Holds the result of the test of the largest gap. Gaps are in the unit of the values; NaN without rows or weight.

    Attributes:
      level: probability of a false rejection, and that any interval misses its group.
      overall: weighted overall value of the groups with rows.
      p_value: smallest p-value of a group times the number of groups with rows and a weight, at most 1.
      p_values: float [groups], p-value of each group alone.
      gaps: float [groups], mean value of each group minus the overall value.
      low: float [groups], lower ends of intervals for the gaps that hold for all groups at once.
      high: float [groups], upper ends.
    """

    level: float
    overall: float
    p_value: float
    p_values: _Array
    gaps: _Array
    low: _Array
    high: _Array

    @property
    def rejects(self) -> bool:
        """Returns whether the groups are shown not to be alike."""
        return self.p_value <= self.level

    @property
    def worst(self) -> int:
        """Returns the index of the group with the largest gap in either direction."""
        return int(np.nanargmax(np.abs(self.gaps)))


def max_gap_test(sums: GroupSums, *, level: float = 0.05, weights: ArrayLike | None = None) -> MaxGapTest:
    """Tests each group's mean against the overall value, corrected for the number of groups.

    For values of 0 or 1 it uses binomial tails and Clopper-Pearson intervals, otherwise Hoeffding's inequality. The gap
    of group g, (1 - w_g) x̄_g - Σ_{h≠g} w_h x̄_h, has the variance of a mean of r_g rows,

        1 / r_g = (1 - w_g)² / N_g + Σ_{h≠g} w_h² / N_h

    where all rows have the same variance. r_g is at least N_g if the weights are the shares of the rows. Where it is
    less, because the weights count few rows of other groups for much, Hoeffding's inequality with r_g rows holds for
    the gap. Groups of weight 0 are left out.

    Args:
      sums: sums of each group.
      level: probability of a false rejection, in (0, 0.5).
      weights: float [groups], at least 0, shares of the groups in the population. None: their shares of the rows.

    Raises:
      ValueError: an argument is out of range, or no group with a weight has a row.
    """
    level = checks.between("level", level, 0, 0.5, "0.05 is usual")
    n, s = sums.counts, sums.sums
    mass = normalized_weights(n if weights is None else weights, len(n))
    used = (n > 0) & (mass > 0)
    if not used.any():
        raise ValueError("no group that has a weight has a row: give at least two rows of each group")
    means = np.divide(s, n, out=np.full(len(n), np.nan), where=used)
    mass = np.where(used, mass, 0.0) / mass[used].sum()
    overall = float(mass[used] @ means[used])
    groups = int(used.sum())
    of_overall = np.divide(mass**2, n, out=np.zeros(len(n)), where=used)
    error = np.divide((1 - mass) ** 2, n, out=np.zeros(len(n)), where=used) + of_overall.sum() - of_overall
    rows = np.minimum(n, np.divide(1, error, out=np.full(len(n), np.inf), where=error > 0))
    # Rounding must not take equal numbers for a smaller one.
    is_safe = rows >= n * (1 - 1e-9)
    by_hoeffding = np.minimum(2 * np.exp(-2 * rows * (means - overall) ** 2), 1.0)
    half = np.sqrt(np.log(2 * groups / level) / (2 * np.where(used, rows, 1)))
    # For a sample of binary values both tails include the value itself; a two-sided p-value is twice the smaller one.
    if sums.is_binary:
        below = np.where(s < n, special.betainc(np.maximum(n - s, 1), s + 1, 1 - overall), 1.0)
        above = np.where(s > 0, special.betainc(np.maximum(s, 1), n - s + 1, overall), 1.0)
        p_values = np.minimum(2 * np.minimum(below, above), 1.0)
        tail = level / (2 * groups)
        low = np.where(s > 0, special.betaincinv(np.maximum(s, 1), n - s + 1, tail), 0.0)
        high = np.where(s < n, special.betaincinv(s + 1, np.maximum(n - s, 1), 1 - tail), 1.0)
    else:
        p_values, low, high = by_hoeffding, np.maximum(means - half, 0.0), np.minimum(means + half, 1.0)
    # Where the overall value is uncertain, 0 and 1 do not bound the gap at their distance to it.
    p_values = np.where(is_safe, p_values, by_hoeffding)
    low, high = np.where(is_safe, low, means - half), np.where(is_safe, high, means + half)
    p_values, low, high = (np.where(used, values, np.nan) for values in (p_values, low, high))
    width = sums.high - sums.low
    return MaxGapTest(
        level=level,
        overall=sums.low + width * overall,
        p_value=float(min(np.nanmin(p_values) * groups, 1.0)),
        p_values=p_values,
        gaps=(means - overall) * width,
        low=(low - overall) * width,
        high=(high - overall) * width,
    )
