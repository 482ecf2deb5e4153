"""Centres and scales features privately, as preprocessing for private training.

Reference: Sun, Suresh and Menon 2023, "The importance of feature preprocessing for differentially private linear
optimization", arXiv:2307.11106.

The noise of DP-SGD grows with the largest norm of a feature vector, but a model learns from how the vectors differ.
Where all vectors are far from the origin and near to each other, centring lets the noise scale with their differences
instead of their norms. Every constant is public, or is chosen privately at a cost that is accounted for. The number of
records is private throughout.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from privacy import checks
from privacy.accounting import costs
from privacy.arrays import as_array, clip_rows, normalize_rows, row_norms
from privacy.noise.randomness import Randomness
from privacy.statistics.mean_in_ball import gaussian_mean_in_ball
from privacy.statistics.quantile_search import geometric_grid, quantile_search

Floats = npt.NDArray[np.float64]

_GRID_POINTS = 2**20  # for the median of a coordinate, from -bound to bound
_SMALLEST_RADIUS = 2.0**-21  # smallest radius that is searched for, in units of the bound
_INSIDE = 0.95  # share of the records that should lie within a radius; the others are scaled down to it
# How the preprocessing's budget, in 1 / noise multiplier², is divided. A radius is searched for twice.
_MEDIANS, _RADIUS, _MEAN = 0.3, 0.1, 0.5


class FeatureMap(NamedTuple):
    """Maps features x to the inputs [(x - centre) / radius, 1] of a linear model.

    Attributes:
      centre: private mean of the features, float64 [d].
      radius: private radius around the centre that holds most vectors, above 0. None: each x - centre is divided by its
        own L2 norm.
      records: private number of records.
      costs: costs of centre, radius and number of records together, under add-or-remove-one.
    """

    centre: Floats
    radius: float | None
    records: float
    costs: tuple[costs.Cost, ...]

    def __call__(self, features: Any, clip: bool = False) -> npt.NDArray[Any]:
        """Maps features [n, d] to [n, d + 1], of the same dtype.

        `clip` scales vectors beyond the radius down to it. With a radius and without `clip` the map is affine, so that
        a linear model on its outputs is a linear model on the features.
        """
        array = np.asarray(features)
        moved = array - self.centre.astype(array.dtype)
        if self.radius is None:
            moved = normalize_rows(moved)
        else:
            moved /= array.dtype.type(self.radius)
            moved = clip_rows(moved, 1.0) if clip else moved
        return np.concatenate([moved, np.ones((len(moved), 1), array.dtype)], axis=1)


def centre_of_ball(features: Any, bound: float, noise_multiplier: float, source: Randomness) -> FeatureMap:
    """Fits the practical version of the preprocessing (`bound=None` in `DPLinearClassifier`).

    A private mean is subtracted from each vector, and the difference is divided by its own L2 norm. The error of the
    mean is proportional to `bound`, however near to each other the vectors are. So this version suits vectors that are
    about as far from each other as from the origin, for instance vectors of norm 1 in many directions. It also suits
    few records, since the whole budget goes to the mean.

    Args:
      features: float32 or float64 [n, d], finite.
      bound: public bound on a vector's L2 norm, from 1e-18 to 1e18; longer vectors are scaled down to it.
      noise_multiplier: noise / sensitivity of the mean and the number of records together, above 0.
      source: random bits of the noise, which is exact.
    """
    array = _check_features(features, bound, noise_multiplier)
    mean = gaussian_mean_in_ball(array, bound, noise_multiplier, source)
    return FeatureMap(mean.value, None, mean.records, (mean.cost,))


def fit_feature_map(features: Any, bound: float, noise_multiplier: float, source: Randomness) -> FeatureMap:
    """Fits the theory's version of the preprocessing (`DPLinearClassifier` with a `bound`).

    A private centre is subtracted from each vector, and the difference is divided by a private radius. The centre's
    error is of the order of the data's diameter, however far from the origin the data lie.

    The stages are those of arXiv:2307.11106, with the mean of Huang, Liang and Yi 2021 (arXiv:2106.00463):

    1. A fixed random rotation is applied to the vectors, so that no coordinate is special.
    2. The private medians of the coordinates are a rough centre.
    3. A private quantile of the distances to the rough centre is a first radius.
    4. Vectors farther than that from the rough centre are moved towards it, to that distance. The private mean of all
       vectors is the centre.
    5. A private quantile of the distances to the centre is the radius.

    Args:
      features: float32 or float64 [n, d], finite.
      bound: public bound on a vector's L2 norm, from 1e-18 to 1e18; longer vectors are scaled down to it.
      noise_multiplier: noise multiplier, above 0, of a single Gaussian release that costs as much as all stages.
      source: random bits of the noise, which is exact.
    """
    array = _check_features(features, bound, noise_multiplier)
    radii = geometric_grid(_SMALLEST_RADIUS * bound, 4 * bound)
    spent: list[costs.Cost] = []

    def find_radius(centre: Floats) -> float:
        distances = row_norms(array - centre.astype(array.dtype))[:, np.newaxis]
        quantiles, cost = quantile_search(distances, _INSIDE, radii, noise_multiplier / _RADIUS**0.5, source)
        spent.append(cost)
        return float(quantiles[0])

    rotation, rotated = _rotate(array, bound)
    grid = np.linspace(-bound, bound, _GRID_POINTS)
    medians, cost = quantile_search(rotated, 0.5, grid, noise_multiplier / _MEDIANS**0.5, source)
    spent.append(cost)
    rough_centre = rotation @ medians
    moved = array - rough_centre.astype(array.dtype)
    mean = gaussian_mean_in_ball(moved, find_radius(rough_centre), noise_multiplier / _MEAN**0.5, source)
    spent.append(mean.cost)
    centre = rough_centre + mean.value
    return FeatureMap(centre, find_radius(centre), mean.records, tuple(spent))


def _check_features(features: Any, bound: float, noise_multiplier: float) -> npt.NDArray[Any]:
    checks.positive("noise_multiplier", noise_multiplier, "give noise / sensitivity")
    check_bound(bound)
    array = np.ascontiguousarray(as_array("features", features))
    if array.ndim != 2 or not array.shape[1] or not np.isfinite(array).all():
        raise ValueError(f"features have shape {list(array.shape)}: finite numbers [n, d], d > 0, are needed")
    return clip_rows(array, bound)


def check_bound(bound: float) -> None:
    """Raises ValueError unless `bound` is in the range in which float32 can compute."""
    checks.positive("bound", bound, "give a public bound on the L2 norm of a feature vector")
    if not 1e-18 <= bound <= 1e18:
        raise ValueError(f"bound must lie in [1e-18, 1e18], got {bound:g}: measure the features in another unit")


def _rotate(vectors: npt.NDArray[Any], bound: float) -> tuple[Floats, Floats]:
    """Returns a rotation and the rotated vectors [n, d]. Their factors are rounded so that sums of products are exact.

    With inexact sums the last bit of a row's result could depend on the number of rows. One record more could then
    change how other records compare with a grid point.
    """
    size = vectors.shape[1]
    bits = min(20, (52 - math.ceil(math.log2(size + 1))) // 2)
    scale = 2.0**bits
    rotation = np.rint(_random_rotation(size) * scale)
    steps = np.rint(vectors.astype(np.float64) / bound * scale)
    return rotation / scale, (steps @ rotation) * (bound / scale**2)


def _random_rotation(size: int) -> Floats:
    """Returns a fixed random orthogonal matrix [size, size]."""
    q, r = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))
    return q * np.sign(np.diag(r))
