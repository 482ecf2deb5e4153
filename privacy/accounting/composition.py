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
from collections.abc import Callable, Sequence

import numpy as np

from privacy.accounting import loss_grid
from privacy.noise.training import exact_delta, with_failures
from privacy.sampling import FixedSize, Poisson, Sampling

# What double arithmetic may lose of a divergence near 0, whose logarithms are of numbers near 1.
_RDP_ROUNDING = 1e-15
# The Rényi orders of dp_accounting 0.4.3, written out so that no value of ε moves with a version's own list. Sparse
# ones are tried first, then those beside the best: the bound has one valley in the order, and fractional orders are
# slow.
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
    count = sampling.repetitions(rounds)
    eps, order = least_by_renyi(lambda order: count * one_round_rdp(sampling, population, z, order), exact_delta(delta))
    return with_failures(eps, delta, rounds), order


def least_by_renyi(renyi: Callable[[float], float], delta: float) -> tuple[float, float]:
    """Returns the least ε at `delta` that Rényi divergences `renyi(order)` imply over `ORDERS`, and its order."""
    from dp_accounting.rdp import rdp_privacy_accountant as library

    def best(orders: Sequence[float]) -> tuple[float, float]:
        eps, order = library.compute_epsilon(orders, [renyi(order) for order in orders], delta)
        return float(eps), float(order)

    eps, order = best(loss_grid.SPARSE_ORDERS)
    place = loss_grid.SPARSE_ORDERS.index(order)
    low, high = (
        loss_grid.SPARSE_ORDERS[max(place - 1, 0)],
        loss_grid.SPARSE_ORDERS[min(place + 1, len(loss_grid.SPARSE_ORDERS) - 1)],
    )
    whole = [o for o in ORDERS if low <= o <= high and o == int(o)] or [order]
    eps, order = min((eps, order), best(whole))
    return min((eps, order), best([o for o in ORDERS if order - 1 < o < order + 1]))


def pld_epsilon(sampling: Sampling, z: float, rounds: int, delta: float, points: int = loss_grid.FINE) -> float | None:
    """ε by privacy loss distribution, or the exact Gaussian curve where nothing is sampled; None where
    there is none.

    Args:
      points: of one round's distribution; more points tighten this upper bound.
    """
    if isinstance(sampling, FixedSize):
        return None
    exact = exact_delta(delta)
    # Sampling never costs: the exact curve without it is a bound too, also where no grid serves.
    eps = gaussian_epsilon(z / math.sqrt(sampling.repetitions(rounds)), exact)
    if isinstance(sampling, Poisson) and sampling.sampling_probability < 1:
        if delta < loss_grid.least_delta(rounds):
            return None
        rate = sampling.sampling_probability
        interval = loss_grid.choose_interval(
            loss_grid.largest_loss(z, rate), lambda order: rounds * one_round_rdp(sampling, 0, z, order), points
        )
        eps = min(
            eps,
            loss_grid.read_epsilon(
                lambda width: loss_grid.gaussian(z, rate, width).self_compose(rounds), interval, exact
            ),
        )
    return with_failures(eps, delta, rounds)


def least_epsilon(
    sampling: Sampling, population: int, z: float, rounds: int, delta: float, points: int = loss_grid.FINE
) -> float:
    """The smaller of the PLD's ε, where there is one, and the Rényi one: both are upper bounds."""
    pld = pld_epsilon(sampling, z, rounds, delta, points)
    rdp, _ = rdp_epsilon(sampling, population, z, rounds, delta)
    return rdp if pld is None else min(pld, rdp)


@functools.lru_cache(maxsize=4096)
def one_round_rdp(sampling: Sampling, population: int, z: float, order: float) -> float:
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
        found = float(accountant.rdp[0])
    except ValueError:
        # Noise so large that rounding defeats the library: without sampling the divergence is a formula, and no less.
        relative = z / 2 if isinstance(sampling, FixedSize) else z
        found = order / (2 * relative * relative)
    finally:
        logger.setLevel(level)
    return max(found, 0.0) + _RDP_ROUNDING
