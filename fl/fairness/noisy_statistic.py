"""Tests whether all groups are alike from sums with Gaussian noise (`fl.fairness.client_sums.NoisySums`).

For a group with N clients, true sums D = Σ (x - m) and C = Σ (x - m)², the statistic without noise uses D² - C, the sum
over pairs of two different clients. The noise enters D̃ and C̃ linearly, with the variances τ² and ω² per z²,

    D = (1 - m) Σ x² + (1 - 2m) Σ x (1 - x) - m Σ (1 - x)²             τ² = (1 - m)² + (1 - 2m)² / 2 + m²
    C = (1 - m)² Σ x² - 2 m (1 - m) Σ x (1 - x) + m² Σ (1 - x)²        ω² = s²,   s = m² + (1 - m)²

and the covariance (1 - 2m) s. So E D̃² = D² + z² τ² and E C̃ = C, and

    P̃ = D̃² - C̃ - z² τ²        T = Σ w_g (1 - w_g) P̃_g / (λ_g (λ_g - 1)) + Σ w_g² D̃_g² / λ_g²

has no bias by the noise: the noise of two groups is independent, so that products of two groups need no correction.

A denominator with the noise of D̃ or C̃ would bring a bias back. The weights w_g and numbers λ_g therefore come from a
third linear function of the same sums,

    ν = (m² Σ x² + 2 m (1 - m) Σ x (1 - x) + (1 - m)² Σ (1 - x)²) / s²        variance z² / s²

whose noise is uncorrelated with, and so independent of, that of D̃ and C̃: (m, 1 - m) is orthogonal to (1 - m, -m), of
which both are products. Its sum over clients is Σ ((m x + (1 - m)(1 - x)) / s)², which is N up to the spread of the
scores, the same relative error for every group if all are alike. Groups with ν below `_LEAST_STDDEVS` of its standard
deviations are not tested. Their choice does not bias the test, for the same reason.

With w_g = ν_g / Σ ν and λ_g = w_g Σ N, T is then on average Σ w_g (N_g / λ_g)² (L_g - m)², the variance of the groups
for weights that are the groups' shares of the clients, up to the noise of ν.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.fairness import variance
from fl.fairness.client_sums import NoisySums
from fl.fairness.conclusion import FairnessTest, Statistic, conclude
from fl.fairness.max_gap import MaxGapTest
from fl.fairness.variance import Form, Moments
from privacy import checks

_LEAST_STDDEVS = 5.0
_LEAST_CLIENTS = 2.0
_ROW_VARIANCE = 0.25  # of a score, at most
_COUNT_STDDEVS = 3.0  # of the noise of a number of clients, within which it is taken to lie

_Array = NDArray[np.float64]


def noisy_test(
    sums: NoisySums, *, alpha: float, level: float = 0.05, gap: float | None = None
) -> tuple[FairnessTest, MaxGapTest]:
    """Tests whether all groups have the same expected score, from sums with noise.

    Nothing but the noisy sums is used, so that the result has the privacy of the sums.

    Args:
      sums: noisy sums of each group over independent clients.
      alpha: as for `fl.fairness.weighted_test`. The weights are the groups' shares of the clients.
      level: as there.
      gap: as there.

    Returns:
      The result, and the test of the largest gap with intervals that hold for all tested groups at once, by Hoeffding's
      inequality; NaN for groups that are not tested.

    Raises:
      ValueError: an argument is out of range, or fewer than two groups have enough clients for the noise.
    """
    level = checks.between("level", level, 0, 0.5, "0.05 is usual")
    clients = float(sums.counts.sum())
    first = float(np.clip(sums.sums.sum() / clients, 0, 1)) if clients > 0 else 0.5
    tested = _sizes(sums, first) >= max(_LEAST_CLIENTS, _LEAST_STDDEVS * sums.noise_multiplier / _pair_square(first))
    kept = sums.select(tested)
    if tested.sum() < 2 or not kept.counts.sum() > 0:
        raise ValueError(
            f"noise_multiplier {sums.noise_multiplier:g}: {tested.sum()} of {len(tested)} groups have clearly more "
            "clients than the noise, and at least two are needed: give fewer attributes, or less noise"
        )
    rows = float(kept.counts.sum())
    center = float(np.clip(kept.sums.sum() / rows, 0, 1))
    sizes = np.maximum(_sizes(kept, center), _LEAST_CLIENTS)
    weights = sizes / sizes.sum()
    expected = np.maximum(weights * rows, _LEAST_CLIENTS)
    form = Form(expected, weights * (1 - weights) / (expected * (expected - 1)), weights / expected)
    noise, squares_noise, covariance = _noise(sums.noise_multiplier, center)
    squares = centred_squares(kept, center)
    null = _null_moments(form, np.maximum(squares, 0.0), center, noise, squares_noise, covariance)
    noise_per_row = noise / float(expected.min())
    per_row = float(form.per_row.max())
    statistic = Statistic(
        value=estimate(form, kept, center),
        center=center,
        null=null,
        noise=null.variance,
        slope=4 * (_ROW_VARIANCE + noise_per_row) * per_row,
        row_variance=float(np.clip(squares.sum() / rows, 0, _ROW_VARIANCE)),
        per_row=per_row,
        noise_per_row=noise_per_row,
    )
    result = conclude(
        statistic,
        alpha=alpha,
        level=level,
        gap=gap,
        sampling="noisy counts",
        groups=int(tested.sum()),
        rows=round(rows),
        untested=(int((~tested).sum()), float(np.clip(1 - rows / clients, 0, 1)) if clients > 0 else 0.0),
    )
    return result, _max_gap(sums, tested, center, level)


def estimate(form: Form, sums: NoisySums, center: float) -> float:
    """Returns T, without the bias of the noise."""
    noise, _, _ = _noise(sums.noise_multiplier, center)
    deviations = sums.sums - center * sums.counts
    pair_sums = deviations**2 - centred_squares(sums, center) - noise
    return float(form.within @ pair_sums + (form.per_row * deviations) @ (form.per_row * deviations))


def centred_squares(sums: NoisySums, center: float) -> _Array:
    """Returns the noisy Σ (x - center)² of each group, float64 [groups]."""
    rest = 1 - center
    return rest**2 * sums.squares - 2 * center * rest * sums.products + center**2 * sums.rests


def _sizes(sums: NoisySums, center: float) -> _Array:
    """Returns ν, numbers of clients whose noise is independent of that of `centred_squares` and of the deviations."""
    rest = 1 - center
    total = center**2 * sums.squares + 2 * center * rest * sums.products + rest**2 * sums.rests
    return total / _pair_square(center) ** 2


def _pair_square(center: float) -> float:
    return center**2 + (1 - center) ** 2


def _noise(multiplier: float, center: float) -> tuple[float, float, float]:
    """Returns the variance of the noise on D̃, that on C̃, and their covariance."""
    square, skew = _pair_square(center), 1 - 2 * center
    return multiplier**2 * (square + skew**2 / 2), multiplier**2 * square**2, multiplier**2 * skew * square


def _null_moments(
    form: Form, squares: _Array, center: float, noise: float, squares_noise: float, covariance: float
) -> Moments:
    """Returns the moments of T if all groups are alike: those of pairs, and those of the noise on C̃ and with it."""
    moments = variance.null_moments(form, squares / form.counts, max(center, 1 - center), noise)
    products = form.per_row * form.within
    pairs = float((form.within**3).sum() + products @ products - products.sum() ** 2)
    return Moments(
        moments.variance + float(form.within @ form.within) * squares_noise,
        moments.third + 6 * pairs * covariance**2,
    )


def _max_gap(sums: NoisySums, tested: NDArray[np.bool_], center: float, level: float) -> MaxGapTest:
    """Returns the test of the largest gap, by Hoeffding's inequality for the scores and the noise together.

    D̃_g is the group's own deviation about m less its share of the deviations of all groups, because m is estimated. The
    variance of a score is at most 1/4, whatever the noise says. Numbers of clients are taken from within
    `_COUNT_STDDEVS` standard deviations of their noise, on the side that makes p-values and intervals larger.
    """
    noise, _, _ = _noise(sums.noise_multiplier, center)
    used = tested & (sums.counts > 0)
    counts = np.where(used, np.maximum(sums.counts, 1.0), np.nan)
    reach = _COUNT_STDDEVS * 2 * sums.noise_multiplier
    most, least = counts + reach, np.maximum(counts - reach, 1.0)
    own = _ROW_VARIANCE * most + noise
    share = counts / np.nansum(counts)
    spread = (1 - share) ** 2 * own + share**2 * (np.nansum(own) - own)
    deviations = sums.sums - center * sums.counts
    p_values = np.minimum(2 * np.exp(-(deviations**2) / (2 * spread)), 1.0)
    groups = int(used.sum())
    half = np.sqrt(2 * spread * np.log(2 * groups / level))
    low, high = deviations - half, deviations + half
    gaps = np.clip(deviations / counts, -center, 1 - center)
    # The interval is not clipped at -m, which is an estimate; it holds the clipped gap.
    low = np.clip(np.minimum(low / most, low / least), -1.0, gaps)
    high = np.clip(np.maximum(high / most, high / least), gaps, 1.0)
    return MaxGapTest(
        level=level,
        overall=center,
        p_value=float(min(np.nanmin(p_values) * groups, 1.0)),
        p_values=p_values,
        gaps=gaps,
        low=low,
        high=high,
    )
