"""Computes the conditional value at risk (CVaR) of gaps between groups, and bounds it by the variance of the groups.

The gap of group g is Δ_g = |L_g - m|: L_g is the group's expected value of a loss or score, and m = Σ w_g L_g is the
overall one, with weights w_g that add up to 1. The CVaR gap F_α is the mean gap of the worst groups that together have
the weight 1 - α.

Reference: Paes, Suresh, Beutel, Calmon and Beirami 2023, Multi-Group Fairness Evaluation via Conditional Value-at-Risk
Testing, https://arxiv.org/abs/2312.03867.
"""

from __future__ import annotations

import math
import numbers

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_alpha(alpha: float, name: str = "alpha") -> float:
    """Returns `alpha` as a float; raises ValueError unless it lies in [0, 1)."""
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real) or not 0 <= alpha < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {alpha!r}: 0.9 looks at the worst tenth of the weight")
    return float(alpha)


def normalized_weights(weights: ArrayLike, groups: int | None = None, name: str = "weights") -> NDArray[np.float64]:
    """Returns weights [groups] divided by their sum.

    Raises:
      ValueError: the shape differs, a weight is negative or not finite, or all are 0.
    """
    array = np.asarray(weights, np.float64)
    if array.ndim != 1 or (groups is not None and len(array) != groups):
        wanted = "group" if groups is None else f"of the {groups} groups"
        raise ValueError(f"{name} have shape {array.shape}: give one number for each {wanted}")
    wrong = ~(np.isfinite(array) & (array >= 0))
    if wrong.any():
        raise ValueError(f"{name} hold {array[wrong][0]}: each must be a finite number of at least 0")
    total = array.sum()
    if not (total > 0 and math.isfinite(total)):
        raise ValueError(f"{name} add up to {total:g}: give at least one group a number above 0")
    return array / total


def cvar(gaps: ArrayLike, weights: ArrayLike, alpha: float) -> float:
    """Returns the conditional value at risk: the mean of the largest `gaps` that together have the weight 1 - α.

    The gap at the boundary counts with the part of its weight that is missing to 1 - α. With α = 0 the result is the
    weighted mean. If 1 - α is less than every weight, it is the largest gap.

    Args:
      gaps: float [groups], finite.
      weights: float [groups], at least 0; they are divided by their sum. Gaps of weight 0 do not count.
      alpha: share of the weight that is left out, in [0, 1).

    Raises:
      ValueError: an argument is out of range or the shapes differ.

    Reference: Rockafellar and Uryasev 2000, Optimization of Conditional Value-at-Risk.

    >>> round(cvar([0.3, 0.1, 0.0, 0.05], [0.1, 0.2, 0.4, 0.3], alpha=0.8), 12)
    0.2
    """
    tail = 1 - check_alpha(alpha)
    values = np.asarray(gaps, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"gaps have shape {values.shape}: give one number for each group")
    if not np.isfinite(values).all():
        raise ValueError(f"gaps hold {values[~np.isfinite(values)][0]}: leave out groups without a value")
    mass = normalized_weights(weights, len(values))
    worst_first = np.argsort(-values, kind="stable")
    reached = np.minimum(np.cumsum(mass[worst_first]), tail)
    # Rounding in the sum of the weights must not leave the tail short.
    reached[-1] = tail
    return float(np.diff(reached, prepend=0.0) @ values[worst_first]) / tail


def cvar_gap(values: ArrayLike, weights: ArrayLike, alpha: float) -> float:
    """Returns F_α of groups whose expected values are known: the CVaR of their gaps to the weighted mean.

    Estimates in place of the expected values give a result that is too large, because their errors count as gaps. For
    data use `fl.fairness.weighted_test`, which bounds F_α.

    Args:
      values: float [groups], each group's expected loss or score.
      weights: float [groups], at least 0; they are divided by their sum.
      alpha: share of the weight that is left out, in [0, 1).
    """
    array = np.asarray(values, np.float64)
    mass = normalized_weights(weights, array.size)
    return cvar(np.abs(array - mass @ array), weights, alpha)


def least_equal_alpha(alpha: float, least_weight: float) -> float:
    """Returns the least α' for which F_α' = F_α, whatever the gaps: min(α, 1 - `least_weight`).

    If 1 - α is at most the weight of every group, F_α is the largest gap, and so is F_α' with 1 - α' equal to the least
    of these weights. Bounds with the weight 1 - α' of the worst groups are the closer ones.

    Args:
      alpha: share of the weight that is left out, in [0, 1).
      least_weight: least weight above 0 of a group, in [0, 1]; 0 if it is not known.
    """
    return min(alpha, 1 - least_weight)


def gap_bounds(low_variance: float, high_variance: float, alpha: float, largest_gap: float) -> tuple[float, float]:
    """Returns a lower and an upper bound on F_α, from bounds on the variance V = Σ w_g Δ_g² of the groups.

    Above: V ≥ (1 - α) F_α², by Jensen's inequality on the tail. Below: the tail adds at most (1 - α) F_α times the
    largest possible gap to V, and no other gap exceeds F_α. For given F_α the maximum of V is convex in the gap at the
    boundary, so that V ≤ max(F_α², (1 - α) F_α · `largest_gap`).

    Args:
      low_variance: lower bound on V, at least 0.
      high_variance: upper bound on V.
      alpha: share of the weight that is left out, in [0, 1).
      largest_gap: a number that no gap can exceed, above 0.
    """
    low = min(math.sqrt(low_variance), low_variance / ((1 - alpha) * largest_gap))
    return low, min(math.sqrt(high_variance / (1 - alpha)), largest_gap)
