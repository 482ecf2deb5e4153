"""Discretises privacy loss distributions (PLD): chooses the grid, places a mechanism on it and reads ε off.

The distributions are `dp_accounting`'s ("connect the dots", Doroshenko et al. 2022, arXiv:2207.04380). On any grid, the
ε read off them is an upper bound on the true ε. A finer grid tightens the bound and takes longer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

# Maximum numbers of grid points of one release's loss distribution. The run time is linear in them, about 1 s for the
# fine grid whatever ε is. The error is quadratic in the interval and always overstates ε: ordinary cases have 4 to 5
# correct digits.
FINE = 40_000
COARSE = 10_000
COMPOSED_POINTS = 200_000
# Convolution by fast Fourier transform leaves errors of about 1e-15 in probabilities: a smaller δ cannot be read off.
SMALLEST_DELTA = 1e-12
# The n-th power of a transform multiplies its rounding error by n. Measured errors are below 1 % of n times this value.
_DELTA_PER_RELEASE = 1e-15
# With more releases, dp_accounting takes minutes to set up that power.
MAX_RELEASES = 10**6
# With a wider interval e^interval may overflow in the library, and ε would be too large to mean anything.
WIDEST_INTERVAL = 64.0
# dp_accounting truncates a composed distribution where its tails have probability 1e-15. Rényi divergences bound where
# these points lie.
_LOG_TAIL = math.log(1e15)
SPARSE_ORDERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 50, 63, 128, 256, 512, 1024)


def least_delta(releases: int) -> float:
    """Returns the least δ at which ε can be read off the distribution of `releases` releases; inf if there is none."""
    return max(SMALLEST_DELTA, _DELTA_PER_RELEASE * releases) if releases <= MAX_RELEASES else math.inf


def largest_loss(noise_multiplier: float, sampling_probability: float) -> float:
    """Returns the loss at which dp_accounting truncates the distribution of one Gaussian release of a Poisson sample.

    It does so where the noise is 10 standard deviations from its mean (probability about e^-50).
    """
    unsampled = (1 + 20 * noise_multiplier) / (2 * noise_multiplier * noise_multiplier)
    return (
        unsampled
        if sampling_probability == 1
        else float(np.logaddexp(math.log1p(-sampling_probability), math.log(sampling_probability) + unsampled))
    )


def choose_interval(largest: float, renyi: Callable[[float], float], points: int) -> float:
    """Returns a discretisation interval that is fine for each release and coarse enough for all of them together.

    Args:
      largest: loss at which the distribution of one release is truncated; the largest such loss over all releases.
      renyi: returns the Rényi divergence of all releases together at an order. The divergence bounds where the tails
        of the composed loss lie (Mironov 2017, arXiv:1702.07476, proposition 3).
      points: maximum number of grid points of one release's distribution.

    Returns:
      A power of two, so that similar inputs share one cached analysis; inf if no interval up to `WIDEST_INTERVAL` is
      enough.
    """
    composed = min(renyi(order) + _LOG_TAIL / (order - 1) for order in SPARSE_ORDERS)
    interval = max(largest / points, 2 * composed / COMPOSED_POINTS)
    return 2.0 ** math.ceil(math.log2(interval)) if interval < WIDEST_INTERVAL else math.inf


def read_epsilon(compose: Callable[[float], Any], interval: float, delta: float) -> float:
    """Returns ε at `delta` of a composed distribution; inf if it cannot be read off on any grid.

    If rounding makes dp_accounting fail on a grid, the interval is doubled: a wider grid gives an upper bound too.

    Args:
      compose: returns the composed distribution on the grid of a given interval.
      interval: interval of the first grid to try.
      delta: δ that ε is stated at, in (0, 1).
    """
    while interval <= WIDEST_INTERVAL:
        try:
            with np.errstate(over="ignore"):  # e^ε may overflow: ε is then inf
                return float(compose(interval).get_epsilon_for_delta(delta))
        except OverflowError:
            return math.inf
        except ValueError:
            interval *= 2
    return math.inf


@functools.lru_cache(maxsize=64)
def gaussian(noise_multiplier: float, sampling_probability: float, interval: float) -> Any:
    """Returns `dp_accounting`'s loss distribution of one Gaussian release of a Poisson sample."""
    from dp_accounting.pld import privacy_loss_distribution as library

    return library.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=interval, sampling_prob=sampling_probability
    )
