"""ε of one mechanism composed with itself, as plain functions of numbers; `privacy.accounting` asks them
for a plan.

Every ε includes the rare event that training noise is not Gaussian (`privacy.noise.training`): it is computed at a δ
smaller by what such failures may cost.

One round is analysed once (and remembered) and composed for any number of rounds: that is what makes curves
and calibration cheap.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from privacy.noise.training import exact_delta, with_failures
from privacy.sampling import FixedSize, Poisson, Sampling

# Points of one round's loss distribution. The cost is linear in them (about 1 s for the fine grid, whatever
# ε is) and the error is quadratic in the interval: 4 to 5 figures of ε in ordinary cases, always on the
# safe side.
FINE = 40_000
COARSE = 10_000
COMPOSED_POINTS = 200_000
# Convolution by fast Fourier transform leaves errors of about 1e-15 in probabilities: a smaller δ cannot be
# read off.
SMALLEST_DELTA = 1e-12
# An interval above this overflows e^interval in the library, and no ε it could give would be a guarantee.
WIDEST_INTERVAL = 64.0
# What double arithmetic may lose of a divergence near 0, whose logarithms are of numbers near 1.
_RDP_ROUNDING = 1e-15
# The Rényi orders of dp_accounting 0.4.3, written out so that no figure moves with a version's own list. Sparse ones
# are tried first, then those beside the best: the bound has one valley in the order, and fractional orders
# are slow.
SPARSE_ORDERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 50, 63, 128, 512, 1024)
ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024)


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Least ε at `delta` of one Gaussian mechanism with noise / sensitivity = `noise_multiplier`, exactly.

    Solves Φ(1/2z - εz) - e^ε Φ(-1/2z - εz) = δ (Balle and Wang, arXiv:1805.06530, theorem 8) in the log
    domain.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    half = 1 / (2 * noise_multiplier)

    def excess(eps: float) -> float:
        first = log_ndtr(half - eps * noise_multiplier)
        second = eps + log_ndtr(-half - eps * noise_multiplier)
        return float(first + np.log(-np.expm1(min(second - first, -1e-300))) - math.log(delta))

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-12, rtol=1e-12))


def rdp_epsilon(sampling: Sampling, population: int, z: float, rounds: int, delta: float) -> tuple[float, float]:
    """(ε, order) by Rényi DP under the sampler's own relation; `z` is noise / clip norm."""
    from dp_accounting.rdp import rdp_privacy_accountant as library

    count = sampling.repetitions(rounds)
    exact = exact_delta(delta)

    def best(orders: Sequence[float]) -> tuple[float, float]:
        values = [count * _one_round_rdp(sampling, population, z, order) for order in orders]
        eps, order = library.compute_epsilon(orders, values, exact)
        return float(eps), float(order)

    eps, order = best(SPARSE_ORDERS)
    place = SPARSE_ORDERS.index(order)
    low, high = SPARSE_ORDERS[max(place - 1, 0)], SPARSE_ORDERS[min(place + 1, len(SPARSE_ORDERS) - 1)]
    whole = [o for o in ORDERS if low <= o <= high and o == int(o)] or [order]
    eps, order = min((eps, order), best(whole))
    eps, order = min((eps, order), best([o for o in ORDERS if order - 1 < o < order + 1]))
    return with_failures(eps, delta, rounds), order


def pld_epsilon(sampling: Sampling, z: float, rounds: int, delta: float, points: int = FINE) -> float | None:
    """ε by privacy loss distribution, or the exact Gaussian curve where nothing is sampled; None where
    there is none.

    Args:
      points: of one round's distribution; more points tighten this upper bound.
    """
    match sampling:
        case FixedSize():
            return None
        case Poisson(rate=rate) if rate < 1:
            if delta < SMALLEST_DELTA:
                return None
            interval = _interval(sampling, z, rounds, points)
            if interval > WIDEST_INTERVAL:
                return math.inf
            one = _one_round_pld(rate, z, interval)
            eps = float(one.self_compose(rounds).get_epsilon_for_delta(exact_delta(delta)))
        case _:
            eps = gaussian_epsilon(z / math.sqrt(sampling.repetitions(rounds)), exact_delta(delta))
    return with_failures(eps, delta, rounds)


def figure(sampling: Sampling, population: int, z: float, rounds: int, delta: float, points: int = FINE) -> float:
    """The PLD's ε where there is one, else the Rényi one."""
    pld = pld_epsilon(sampling, z, rounds, delta, points)
    return rdp_epsilon(sampling, population, z, rounds, delta)[0] if pld is None else pld


def _interval(sampling: Poisson, z: float, rounds: int, points: int) -> float:
    """Discretisation interval: fine for one round's range of losses, coarse enough for the composition's.

    A power of two, so that neighbouring questions share one analysis.
    """
    # The library cuts the noise at 10 standard deviations (e^-50); a sampled loss there is log(1 - q + q
    # e^L).
    highest = (1 + 20 * z) / (2 * z * z)
    one_round = np.logaddexp(math.log1p(-sampling.rate), math.log(sampling.rate) + highest)
    # It keeps a composed loss out to tails of 1e-15; where they lie follows from Rényi DP
    # (arXiv:1702.07476, prop. 3).
    bounds = [rounds * _one_round_rdp(sampling, 0, z, o) + math.log(1e15) / (o - 1) for o in SPARSE_ORDERS]
    return float(2.0 ** math.ceil(math.log2(max(one_round / points, 2 * min(bounds) / COMPOSED_POINTS))))


@functools.lru_cache(maxsize=64)
def _one_round_pld(rate: float, z: float, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as library

    return library.from_gaussian_mechanism(z, value_discretization_interval=interval, sampling_prob=rate)


@functools.lru_cache(maxsize=4096)
def _one_round_rdp(sampling: Sampling, population: int, z: float, order: float) -> float:
    """Rényi DP of one round (one participation where the sampler is cyclic) at `order`."""
    import dp_accounting as dp

    relation = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    if isinstance(sampling, FixedSize):
        relation = dp.NeighboringRelation.REPLACE_ONE
    accountant = dp.rdp.RdpAccountant([order], relation)
    # dp-accounting 0.6 warns of an order whose series does not converge, and gives infinity: the best is another one.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        accountant.compose(sampling.dp_event(population, z))
    finally:
        logger.setLevel(level)
    return max(float(accountant.rdp[0]), 0.0) + _RDP_ROUNDING
