"""Private preprocessing for private training: features moved to their private centre and scaled by a private radius
(Sun, Suresh and Menon 2023, "The importance of feature preprocessing for differentially private linear optimization",
arXiv:2307.11106).

DP-SGD pays for the largest norm of a feature vector; what is learned from lies in how they differ. Where all vectors
are far from the origin and near to each other, centring makes the noise fit the second. Every constant here is public
or is privately chosen and paid for, and the number of records is private throughout.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from privacy import checks
from privacy.accounting import costs
from privacy.arrays import of_length_one, require_array, row_lengths, shortened
from privacy.noise.randomness import Randomness
from privacy.statistics.mean import gaussian_mean_in_ball
from privacy.statistics.quantile_search import geometric_grid, quantile_search

Floats = npt.NDArray[np.float64]

_GRID_POINTS = 2**20  # of a coordinate's median, from -bound to bound: distances below a 2^19th of bound are not seen
_SMALLEST_RADIUS = 2.0**-21  # of the bound; so are these
_INSIDE = 0.95  # share of the records that a radius is to hold: the others are pulled in
# How the preprocessing's budget (in 1 / noise multiplier²) is shared out; two radii are looked for.
_MEDIANS, _RADIUS, _MEAN = 0.3, 0.1, 0.5


class FeatureMap(NamedTuple):
    """x -> [(x - centre) / radius, 1]: what a linear model is trained on.

    Attributes:
      centre: private mean of the features, float64 [d].
      radius: private, above 0: most vectors are nearer to the centre. None: each vector is divided by its own distance.
      records: how many, private.
      costs: of all three, under add-or-remove-one.
    """

    centre: Floats
    radius: float | None
    records: float
    costs: tuple[costs.Cost, ...]

    def __call__(self, features: Any, clip: bool = False) -> npt.NDArray[Any]:
        """[n, d + 1] of features [n, d], floats of their dtype. `clip` pulls vectors beyond the radius in to it.

        With a radius and without `clip` this is affine: a linear model on it is a linear model on the features.
        """
        array = np.asarray(features)
        moved = array - self.centre.astype(array.dtype)
        if self.radius is None:
            moved = of_length_one(moved)
        else:
            moved /= array.dtype.type(self.radius)
            moved = shortened(moved, 1.0) if clip else moved
        return np.concatenate([moved, np.ones((len(moved), 1), array.dtype)], axis=1)


def centre_of_ball(features: Any, bound: float, noise_multiplier: float, source: Randomness) -> FeatureMap:
    """The practical version: a private mean with an error of the order of `bound`, and each vector over its distance.

    Right where the vectors' lengths are of the order of their distances, as after `of_length_one`, and for few records:
    all of the budget goes to the mean.

    Args:
      features: finite, float32 or float64 [n, d].
      bound: on a vector's length, public, above 0; longer ones are shortened.
      noise_multiplier: of the mean and the number of records together.
      source: of the noise, which is exact.
    """
    array = _checked(features, bound, noise_multiplier)
    mean = gaussian_mean_in_ball(array, bound, noise_multiplier, source)
    return FeatureMap(mean.value, None, mean.records, (mean.cost,))


def fit_feature_map(features: Any, bound: float, noise_multiplier: float, source: Randomness) -> FeatureMap:
    """The version of the theory: a centre with an error of the order of the data's diameter, however far from the
    origin they lie, and a radius.

    In stages (arXiv:2307.11106, with the mean of Huang, Liang and Yi 2021, arXiv:2106.00463): vectors are rotated by a
    fixed random rotation, so that no coordinate is special; the private medians of the coordinates are a first centre;
    a private quantile of the distances to it is a radius; the private mean of the vectors pulled in to that radius is
    the centre; a private quantile of the distances to the centre is the radius.

    Args:
      features: finite, float32 or float64 [n, d].
      bound: on a vector's length, public, above 0; longer ones are shortened.
      noise_multiplier: of all stages together: they cost one Gaussian of this multiplier.
      source: of the noise, which is exact.
    """
    array = _checked(features, bound, noise_multiplier)
    lengths = geometric_grid(_SMALLEST_RADIUS * bound, 4 * bound)
    spent: list[costs.Cost] = []

    def radius_around(centre: Floats) -> float:
        distances = row_lengths(array - centre.astype(array.dtype))[:, np.newaxis]
        found, cost = quantile_search(distances, _INSIDE, lengths, noise_multiplier / _RADIUS**0.5, source)
        spent.append(cost)
        return float(found[0])

    rotation, rotated = _rotated(array, bound)
    grid = np.linspace(-bound, bound, _GRID_POINTS)
    medians, cost = quantile_search(rotated, 0.5, grid, noise_multiplier / _MEDIANS**0.5, source)
    spent.append(cost)
    first = rotation @ medians
    moved = array - first.astype(array.dtype)
    mean = gaussian_mean_in_ball(moved, radius_around(first), noise_multiplier / _MEAN**0.5, source)
    spent.append(mean.cost)
    centre = first + mean.value
    return FeatureMap(centre, radius_around(centre), mean.records, tuple(spent))


def _checked(features: Any, bound: float, noise_multiplier: float) -> npt.NDArray[Any]:
    checks.positive("noise multiplier", noise_multiplier, "give noise / sensitivity")
    check_bound(bound)
    require_array("features", features)
    array = np.ascontiguousarray(features)
    if array.ndim != 2 or not array.shape[1] or not np.isfinite(array).all():
        raise ValueError(f"features have shape {list(array.shape)}: finite numbers [n, d], d > 0, are needed")
    return shortened(array, bound)


def check_bound(bound: float) -> None:
    """Raises ValueError unless `bound` is one that float32 computes with."""
    checks.positive("bound", bound, "give a public bound on the length of a feature vector")
    if not 1e-18 <= bound <= 1e18:
        raise ValueError(f"bound must lie in [1e-18, 1e18], got {bound:g}: measure the features in another unit")


def _rotated(vectors: npt.NDArray[Any], bound: float) -> tuple[Floats, Floats]:
    """A rotation and rotated vectors [n, d], both rounded so that every sum of products is exact in float64.

    Else a row's result would depend on how many rows there are, by the last bit: for a comparison that is enough.
    """
    size = vectors.shape[1]
    bits = min(20, (52 - math.ceil(math.log2(size + 1))) // 2)
    scale = 2.0**bits
    rotation = np.rint(_rotation(size) * scale)
    steps = np.rint(vectors.astype(np.float64) / bound * scale)
    return rotation / scale, (steps @ rotation) * (bound / scale**2)


def _rotation(size: int) -> Floats:
    """A fixed random orthogonal matrix [size, size]."""
    q, r = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))
    return q * np.sign(np.diag(r))
