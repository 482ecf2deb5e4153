"""Releases the private mean of vectors of bounded L2 norm; the number of records is private too."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from privacy import checks
from privacy.accounting import costs
from privacy.accounting.guarantee import Guarantee, describe_noise
from privacy.arrays import as_floats, clip_rows
from privacy.noise import exact
from privacy.noise.randomness import Randomness, SecureRandomness
from privacy.statistics.mean import STEPS, Mean, sensitivity_over_stddev

if TYPE_CHECKING:
    from privacy.budget import Releases

_ROWS = 4096

log = logging.getLogger(__name__)


def mean_in_ball(
    vectors: Any,
    radius: float,
    epsilon: float,
    delta: float,
    randomness: Randomness | None = None,
    ledger: Releases | None = None,
) -> Mean:
    """Releases the (ε, δ)-DP mean of vectors [n, d] of L2 norm at most `radius`, under add-or-remove-one.

    The number of records is private too. The release is ρ-zCDP (ρ is `guarantee.rho`); its (ε, δ) is computed as for
    continuous Gaussian noise. `gaussian_mean_in_ball` describes the mechanism.

    Args:
      vectors: numbers [n, d]. Vectors of larger L2 norm are scaled down to `radius`; vectors that are not finite count
        as absent.
      radius: public bound on a vector's L2 norm, above 1e-301.
      epsilon: ε, above 0.
      delta: δ, in (0, 1).
      randomness: source of random bits, as for `BoundedMean.release`.
      ledger: ledger of a `Budget`, as for `BoundedMean.release`.

    Returns:
      The mean, whose `value` is float64 [d] of L2 norm at most `radius`.

    Raises:
      ValueError: an argument is out of range, or the budget does not allow the release.
    """
    radius = checks.between("radius", radius, 1e-301, math.inf, "give a public bound on the L2 norm of a vector")
    epsilon = checks.positive("epsilon", epsilon, "give the privacy cost of this mean")
    delta = checks.between("delta", delta, 0, 1, "1e-6 is usual, below 1 / records")
    array = as_floats("vectors", vectors)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"vectors have shape {list(array.shape)}: [n, d] is needed")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        lost = int((~finite).sum())
        log.warning("%d of %d vectors are not finite, left out (for the operator only)", lost, len(array))
        array = array[finite]
    source = SecureRandomness() if randomness is None else randomness
    multiplier = 1 / sensitivity_over_stddev(epsilon, delta)
    _scale_ball_noise(array.shape[1], multiplier)  # raises before the release is recorded
    description = f"mean of vectors [{array.shape[1]}] of L2 norm up to {radius:g} by gaussian"
    guarantee = Guarantee(
        description, (costs.Gaussian(multiplier),), "add-or-remove-one", delta, describe_noise(source)
    )
    if ledger is not None:
        ledger.record(guarantee)
    return Mean(*gaussian_mean_in_ball(array, radius, multiplier, source)[:2], guarantee)


class MeanInBall(NamedTuple):
    """Holds a private mean of vectors, the noised number of records, and the cost instead of a guarantee."""

    value: npt.NDArray[np.float64]
    records: float
    cost: costs.Gaussian


def gaussian_mean_in_ball(
    vectors: npt.NDArray[np.float64], radius: float, noise_multiplier: float, source: Randomness
) -> MeanInBall:
    """Releases the mean of finite vectors [n, d] by Gaussian noise of the given multiplier σ; n is private too.

    It makes one Gaussian release of (Σ x, c n), where c² = radius² / √d. This weight c gives the least worst-case error
    for large n: n² MSE is at most σ² radius² (1 + √d)². With a public n it would be σ² radius² d.
    """
    size = vectors.shape[1]
    count_weight, sensitivity, stddev = _scale_ball_noise(size, noise_multiplier)
    noise = exact.gaussian(source, stddev, size + 1)
    count = max((len(vectors) * count_weight + int(noise[-1])) / count_weight, 1.0)
    total = noise[:-1]
    for first in range(0, len(vectors), _ROWS):  # in parts, because grid steps may take more memory than the vectors
        part = clip_rows(vectors[first : first + _ROWS].astype(np.float64), radius) / radius
        total = total + np.rint(np.clip(part, -1, 1) * STEPS).astype(np.int64).sum(axis=0)
    value = total / (STEPS * count)  # in units of the radius
    value *= radius / max(float(np.linalg.norm(value)), 1.0)
    return MeanInBall(value, count, costs.Gaussian(stddev / sensitivity))


def _scale_ball_noise(size: int, noise_multiplier: float) -> tuple[int, float, int]:
    """Returns (c, sensitivity, standard deviation of the noise) for vectors [size], in steps of radius / `STEPS`."""
    count_weight = round(STEPS / size**0.25)
    # Rounding changes each coordinate by at most half a step, so it lengthens a vector by at most √size / 2 steps.
    longest = STEPS + math.ceil(math.sqrt(size) / 2) + 1
    sensitivity = math.hypot(longest, count_weight)
    stddev = math.ceil(sensitivity * noise_multiplier)
    if stddev > exact.LARGEST_SCALE:
        raise ValueError(f"noise multiplier {noise_multiplier:g} is too large: increase epsilon or delta")
    return count_weight, sensitivity, stddev
