"""Estimates the variance of the groups' expected values without bias, and computes the moments of the estimate.

With weights w_g that add up to 1, the variance is V = Σ w_g (L_g - m)², m = Σ w_g L_g. All groups are alike exactly if
V = 0, and a CVaR gap of F_α implies V ≥ (1 - α) F_α² (`fl.fairness.gaps`). From each group's number of rows N_g, sum
S_g and sum of squares Q_g,

    m̂   = Σ (w_g / r_g) S_g / Σ (w_g / r_g) N_g
    C_g = S_g - N_g m̂                                    the sum of X - m̂ over the group's rows
    P_g = C_g² - Σ (X - m̂)²                              the sum of (X_i - m̂)(X_j - m̂) over pairs i ≠ j of rows
    T   = Σ w_g (1 - w_g) P_g / p_g + Σ w_g² C_g² / r_g²

The square of a group's mean would count the sampling error as a gap. P_g leaves each row's product with itself out,
which removes that bias. The terms with w_g² do the same for the error of m̂.

Two samplings give the numbers of rows r_g and of ordered pairs p_g. Where the numbers of rows are given, r_g = N_g and
p_g = N_g (N_g - 1): T is unbiased for groups of at least two rows. Where each row's group was drawn, N_g is a Poisson
number with mean λ_g, r_g = λ_g and p_g = λ_g²: T is unbiased to first order even if most groups have no row or one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.fairness.groups import GroupSums

_Array = NDArray[np.float64]


class Form(NamedTuple):
    """Holds T as a quadratic form in the rows: Σ_{i≠j} M_ij (X_i - m)(X_j - m).

    M_ij is `within` for two rows of one group, and minus the product of `per_row` for rows of two groups.

    Attributes:
      counts: float64 [groups], N_g.
      within: float64 [groups], w_g (1 - w_g) / p_g.
      per_row: float64 [groups], w_g / r_g.
    """

    counts: _Array
    within: _Array
    per_row: _Array


class Moments(NamedTuple):
    """Holds the moments of T if all groups are alike; its mean is then 0.

    Attributes:
      variance: second central moment.
      third: third central moment.
    """

    variance: float
    third: float


def build_form(counts: _Array, weights: _Array, expected: _Array | None) -> Form:
    """Returns the quadratic form of T.

    Args:
      counts: float64 [groups], N_g; at least 2 if `expected` is None.
      weights: float64 [groups], w_g, with sum 1.
      expected: float64 [groups], λ_g > 0 where w_g > 0, if the rows' groups were drawn; None: N_g is given.
    """
    rows = counts if expected is None else expected
    pairs = counts * (counts - 1) if expected is None else expected**2
    has_weight = weights > 0
    return Form(
        counts,
        np.divide(weights * (1 - weights), pairs, out=np.zeros_like(weights), where=has_weight),
        np.divide(weights, rows, out=np.zeros_like(weights), where=has_weight),
    )


def overall_value(form: Form, sums: _Array) -> float:
    """Returns m̂, the weighted overall value."""
    return float(form.per_row @ sums / (form.per_row @ form.counts))


def centred_squares(sums: GroupSums, center: float) -> _Array:
    """Returns Σ (X - center)² over the rows of each group, float64 [groups]."""
    squares = sums.squares - 2 * center * sums.sums + center**2 * sums.counts
    return np.maximum(squares, 0.0)


def centred_fourths(sums: GroupSums, center: float) -> _Array:
    """Returns Σ (X - center)⁴ over the rows of each group, float64 [groups]; its least value if it is not known."""
    squares = centred_squares(sums, center)
    least = np.divide(squares**2, sums.counts, out=np.zeros_like(squares), where=sums.counts > 0)
    if sums.is_binary:
        return np.asarray(sums.sums * (1 - center) ** 4 + (sums.counts - sums.sums) * center**4)
    if sums.cubes is None or sums.fourths is None:
        return least
    fourths = sums.fourths - 4 * center * sums.cubes + 6 * center**2 * sums.squares - 4 * center**3 * sums.sums
    return np.maximum(fourths + center**4 * sums.counts, least)


def pair_squares(sums: GroupSums, center: float) -> _Array:
    """Returns Σ (X_i - center)² (X_j - center)² over pairs i ≠ j of rows of each group, float64 [groups].

    It is on average the product of the variances of two rows, if these have the mean `center`. If fourth powers are not
    known, it is too large.
    """
    return np.maximum(centred_squares(sums, center) ** 2 - centred_fourths(sums, center), 0.0)


def estimate(form: Form, sums: GroupSums, center: float) -> float:
    """Returns T, the unbiased estimate of V."""
    deviations = sums.sums - sums.counts * center
    pair_sums = deviations**2 - centred_squares(sums, center)
    return float(form.within @ pair_sums + (form.per_row * deviations) @ (form.per_row * deviations))


def row_variances(sums: GroupSums, center: float) -> _Array:
    """Returns the variance of a row of each group if all groups are alike, float64 [groups].

    Values of 0 or 1 with equal means have equal variances. The variances of scores may differ between groups; they are
    estimated from each group's own rows.
    """
    if sums.is_binary:
        return np.full(len(sums.counts), center * (1 - center))
    squares = centred_squares(sums, center)
    return np.divide(squares, sums.counts, out=np.zeros_like(squares), where=sums.counts > 0)


def skew_bound(sums: GroupSums, center: float) -> float:
    """Returns c with |E(X - m)³| ≤ c E(X - m)²; for values of 0 or 1 the two sides are equal."""
    return abs(1 - 2 * center) if sums.is_binary else max(center, 1 - center)


def null_moments(
    form: Form, variances: _Array, skew: float, noise: float = 0.0, pairs: _Array | None = None
) -> Moments:
    """Returns the moments of T given the numbers of rows, if all groups are alike and m is known.

    For a symmetric M with zeros on the diagonal, and independent rows with variance σ² and third moment μ₃, the moments
    are 2 σ⁴ tr M² and 8 σ⁶ tr M³ + 4 μ₃² Σ M_ij³. M is a sum of blocks, one for each group, minus a product of vectors,
    so that its traces take one pass over the groups.

    Args:
      form: the quadratic form.
      variances: float64 [groups], variance of a row of each group.
      skew: bound c on |μ₃| / σ².
      noise: variance of Gaussian noise on the sum of each group, whose own square less its mean then stands in T; it is
        one more entry of each block, on whose diagonal M is not 0.
      pairs: float64 [groups], `pair_squares`, an estimate of n (n - 1) σ⁴; None: the `variances` are known, and not
        estimates, whose squares are on average too large.
    """
    n = form.counts
    spread = n * variances + noise
    block = form.within * variances
    outer = form.per_row**2 * spread  # squared entries of the vector of groups
    total = outer.sum()
    diagonal = form.within * spread + outer
    of_rows = np.divide(n * variances, spread, out=np.zeros_like(spread), where=spread > 0)
    # K = diag(diagonal) - v vᵀ with v_g² = outer_g, and M = K spread over rows, minus `block` on the diagonal.
    trace_k2 = diagonal @ diagonal - 2 * diagonal @ outer + total**2
    trace_k3 = (diagonal**3).sum() - 3 * diagonal**2 @ outer + 3 * (diagonal @ outer) * total - total**3
    k2_diagonal = diagonal**2 - 2 * diagonal * outer + outer * total
    products = n * (n - 1) * variances**2
    pairs = products if pairs is None else pairs
    trace_m2 = trace_k2 - n @ block**2 + form.within**2 @ (pairs - products)
    trace_m3 = trace_k3 - 3 * (block * of_rows) @ k2_diagonal + 2 * n @ block**3
    # Products of rows of two groups enter with a negative sign, and are left out.
    cubes = form.within**3 @ pairs
    return Moments(float(2 * trace_m2), float(8 * trace_m3 + 4 * skew**2 * cubes))


def noise_variance(form: Form, sums: GroupSums, center: float) -> float:
    """Returns an estimate of the part of T's variance that does not vanish with V, whether groups are alike or not.

    It is 2 Σ M_ij² E(X_i - m)² E(X_j - m)², with each product of second moments estimated by the rows' own squares. For
    scores whose fourth powers are not known it is on average too large.
    """
    outer = form.per_row**2 * centred_squares(sums, center)
    between = outer.sum() ** 2 - outer @ outer
    return float(2 * (form.within**2 @ pair_squares(sums, center) + max(between, 0.0)))
