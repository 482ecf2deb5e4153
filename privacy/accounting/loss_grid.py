"""Privacy loss distributions (PLD) on a grid: how fine the grid is, one mechanism on it, and ε read off a composition.

The distributions are `dp_accounting`'s ("connect the dots", Doroshenko et al., arXiv:2207.04380). They bound the true
one from above on any grid: a finer one tightens the bound, and costs more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

# Points of one release's loss distribution. The cost is linear in them (about 1 s for the fine grid, whatever ε is) and
# the error is quadratic in the interval: 4 to 5 digits of ε in ordinary cases, always on the safe side.
FINE = 40_000
COARSE = 10_000
COMPOSED_POINTS = 200_000
# Convolution by fast Fourier transform leaves errors of about 1e-15 in probabilities: a smaller δ cannot be read off.
SMALLEST_DELTA = 1e-12
# The n-th power of a transform multiplies its rounding by n: less than a hundredth of this share of δ, measured.
_DELTA_PER_RELEASE = 1e-15
# Above it the library's bookkeeping of powers takes minutes.
MOST_RELEASES = 10**6
# An interval above this overflows e^interval in the library, and no ε it could give would be a guarantee.
WIDEST_INTERVAL = 64.0
# The library cuts a composed distribution where its tails have this probability. Rényi orders tell where that is.
_LOG_TAIL = math.log(1e15)
SPARSE_ORDERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 50, 63, 128, 512, 1024)


def least_delta(releases: int) -> float:
    """Returns the least δ at which ε can be read off the distribution of `releases` releases; inf if there is none."""
    return max(SMALLEST_DELTA, _DELTA_PER_RELEASE * releases) if releases <= MOST_RELEASES else math.inf


def largest_loss(noise_multiplier: float, rate: float) -> float:
    """Returns the loss at which the library cuts a Gaussian release of a Poisson sample: noise at 10 standard
    deviations (e^-50).
    """
    highest = (1 + 20 * noise_multiplier) / (2 * noise_multiplier * noise_multiplier)
    return highest if rate == 1 else float(np.logaddexp(math.log1p(-rate), math.log(rate) + highest))


def choose_interval(largest: float, renyi: Callable[[float], float], points: int) -> float:
    """Returns a discretisation interval that is fine for each release and coarse enough for all of them together.

    Args:
      largest: loss at which the distribution of one release ends, the largest of all releases.
      renyi: Rényi divergence of all releases together at an order; it tells where the tails of the composed loss lie
        (arXiv:1702.07476, prop. 3).
      points: of the distribution of one release, at most.

    Returns:
      A power of two, so that neighbouring questions share one analysis; inf if the losses have no bound.
    """
    composed = min(renyi(order) + _LOG_TAIL / (order - 1) for order in SPARSE_ORDERS)
    interval = max(largest / points, 2 * composed / COMPOSED_POINTS)
    return 2.0 ** math.ceil(math.log2(interval)) if interval < WIDEST_INTERVAL else math.inf


def read_epsilon(compose: Callable[[float], Any], interval: float, delta: float) -> float:
    """Returns ε at `delta` of the distribution that `compose` makes on a grid of `interval`; inf if there is none.

    Where rounding defeats the library on that grid, the next wider one serves: a wider grid is a bound as well.
    """
    while interval <= WIDEST_INTERVAL:
        try:
            with np.errstate(over="ignore"):  # of e^ε: the answer is then inf
                return float(compose(interval).get_epsilon_for_delta(delta))
        except OverflowError:
            return math.inf
        except ValueError:
            interval *= 2
    return math.inf


@functools.lru_cache(maxsize=64)
def gaussian(noise_multiplier: float, rate: float, interval: float) -> Any:
    """Returns `dp_accounting`'s distribution of one Gaussian release of a Poisson sample."""
    from dp_accounting.pld import privacy_loss_distribution as library

    return library.from_gaussian_mechanism(noise_multiplier, value_discretization_interval=interval, sampling_prob=rate)
