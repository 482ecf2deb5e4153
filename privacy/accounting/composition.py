"""Computes the ε of one mechanism composed with itself.

`privacy.accounting.plan_epsilon` calls these functions for a plan. With a tiny probability, training noise is not close
to Gaussian noise (`privacy.noise.training`). `rdp_epsilon`, `pld_epsilon` and `least_epsilon` account for that event:
they compute ε at a δ that is reduced by a reserve for it.

The analysis of one round is cached and then composed for any number of rounds, so that curves and calibration are
cheap.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from privacy.accounting import loss_grid
from privacy.noise.training import exact_delta, with_failures
from privacy.sampling import FixedSize, Poisson, Sampling

# Added to each Rényi divergence. Near 0, dp_accounting computes it as the logarithm of a number near 1, which may be
# too small by this much.
_RDP_ROUNDING = 1e-15
# The Rényi orders of dp_accounting 0.4.3, written out so that ε does not change when a later version changes its
# list. Fractional orders are slow, so a few sparse orders are tried first. Then the orders around each local minimum
# among the sparse ones are tried. With exact divergences the bound has a single minimum over the orders, but the
# divergences of fixed-size sampling are bounds that jump above order 256.
ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024)


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Returns the least ε at `delta` of one Gaussian mechanism with noise / sensitivity = `noise_multiplier`.

    The result is exact up to rounding. It solves Φ(1/2z - εz) - e^ε Φ(-1/2z - εz) = δ in the log domain.

    Reference: Balle and Wang 2018, "Improving the Gaussian mechanism for differential privacy" (arXiv:1805.06530),
    theorem 8.
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


def any_participation(draws: Sequence[tuple[float, int]]) -> float:
    """Returns the probability that Poisson sampling draws a given client (or record) at least once.

    If the client is never drawn, the releases are distributed as without the client. So ε is 0 at any δ of at least
    this probability.

    Args:
      draws: pairs (sampling probability, in (0, 1]; number of independent draws with it).
    """
    if any(probability == 1 for probability, _ in draws):
        return 1.0
    return -math.expm1(math.fsum(count * math.log1p(-probability) for probability, count in draws))


def rdp_epsilon(
    sampling: Sampling, population: int, z: float, rounds: int, delta: float, further: float = 0.0
) -> tuple[float, float]:
    """Returns ε by Rényi DP, under the neighbouring relation `sampling.relation`, and the Rényi order that gives it.

    Args:
      sampling: the sampler of the rounds.
      population: number of clients; only fixed-size sampling depends on it.
      z: noise multiplier, noise / clip norm, above 0.
      rounds: number of rounds; at least 1, unless `further` is above 0.
      delta: δ that ε is stated at, in (0, 1).
      further: sum of 1 / noise multiplier² of Gaussian releases about all clients beside the rounds, each multiplier
        relative to the sensitivity under `sampling.relation`; together they equal one such release.
    """
    count = sampling.repetitions(rounds)

    def renyi(order: float) -> float:
        of_rounds = count * one_round_rdp(sampling, population, z, order) if count else 0.0
        return of_rounds + order * further / 2

    eps, order = least_by_renyi(renyi, exact_delta(delta))
    return with_failures(eps, delta, rounds), order


def least_by_renyi(renyi: Callable[[float], float], delta: float) -> tuple[float, float]:
    """Returns the least ε at `delta` that Rényi divergences imply over `ORDERS`, and the order that gave it.

    Args:
      renyi: returns the Rényi divergence at an order above 1.
      delta: δ that ε is stated at, in (0, 1).
    """
    from dp_accounting.rdp import rdp_privacy_accountant as library

    @functools.cache
    def bound(order: float) -> float:
        return float(library.compute_epsilon([order], [renyi(order)], delta)[0])

    sparse = loss_grid.SPARSE_ORDERS
    # If the divergence at the smallest order is small enough, it shows that ε is 0. The search around the sparse orders
    # would miss that.
    found = [(bound(ORDERS[0]), ORDERS[0]), *((bound(order), order) for order in sparse)]
    if min(found)[0] == 0:
        return min(found)
    for place, order in enumerate(sparse):
        low, high = sparse[max(place - 1, 0)], sparse[min(place + 1, len(sparse) - 1)]
        if bound(order) > min(bound(low), bound(high)) or (place and math.isinf(bound(order))):
            continue
        near = min((bound(o), o) for o in ORDERS if low <= o <= high and o == int(o))
        found += [near, *((bound(o), o) for o in ORDERS if near[1] - 1 < o < near[1] + 1)]
    return min(found)


def pld_epsilon(
    sampling: Sampling, z: float, rounds: int, delta: float, points: int = loss_grid.FINE, further: float = 0.0
) -> float | None:
    """Returns ε by privacy loss distribution (PLD), or None if no PLD is available.

    No PLD is available for fixed-size sampling, or if `delta` is below the rounding errors of the composition. Without
    sampling, the exact curve of one Gaussian is used instead. If Poisson sampling draws a given client in at least one
    of the rounds with a probability of at most `exact_delta(delta)`, ε is 0 whatever the noise.

    Args:
      sampling, z, rounds, delta, further: as for `rdp_epsilon`.
      points: maximum number of grid points of one round's distribution; more points tighten this upper bound.
    """
    if isinstance(sampling, FixedSize):
        return None
    exact = exact_delta(delta)
    probability = sampling.sampling_probability if isinstance(sampling, Poisson) else 1.0
    if not further and any_participation([(probability, rounds)]) <= exact:
        return with_failures(0.0, delta, rounds)
    # Sampling never increases ε, so the exact curve without it is an upper bound too, even where no grid works.
    eps = gaussian_epsilon((sampling.repetitions(rounds) / z**2 + further) ** -0.5, exact)
    if probability < 1 and rounds:
        if delta < loss_grid.least_delta(rounds):
            return None
        largest = loss_grid.largest_loss(z, probability)
        if further:
            largest = max(largest, loss_grid.largest_loss(further**-0.5, 1.0))

        def renyi(order: float) -> float:
            return rounds * one_round_rdp(sampling, 0, z, order) + order * further / 2

        def compose(width: float) -> Any:
            of_rounds = loss_grid.gaussian(z, probability, width).self_compose(rounds)
            return of_rounds.compose(loss_grid.gaussian(further**-0.5, 1.0, width)) if further else of_rounds

        interval = loss_grid.choose_interval(largest, renyi, points)
        eps = min(eps, loss_grid.read_epsilon(compose, interval, exact))
    return with_failures(eps, delta, rounds)


def least_epsilon(
    sampling: Sampling, population: int, z: float, rounds: int, delta: float, points: int = loss_grid.FINE
) -> float:
    """Returns the smaller of ε by PLD, if one is available, and ε by Rényi DP; both are upper bounds."""
    pld = pld_epsilon(sampling, z, rounds, delta, points)
    rdp, _ = rdp_epsilon(sampling, population, z, rounds, delta)
    return rdp if pld is None else min(pld, rdp)


@functools.lru_cache(maxsize=4096)
def one_round_rdp(sampling: Sampling, population: int, z: float, order: float) -> float:
    """Returns an upper bound on the Rényi divergence of one round at `order`.

    With a cyclic sampler, the round is one in which the client takes part. Sampling never increases the divergence. So
    the bound is at most the divergence of the Gaussian mechanism without sampling, order / (2 s²). Here s is noise /
    sensitivity under the sampler's relation: z / 2 with fixed-size sampling, z otherwise.
    """
    import dp_accounting as dp

    relation = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    if isinstance(sampling, FixedSize):
        relation = dp.NeighboringRelation.REPLACE_ONE
    accountant = dp.rdp.RdpAccountant([order], relation)
    # dp-accounting 0.6 returns infinity, with a warning, for an order whose series does not converge. Such an order is
    # never the best one, so the warning would tell the user nothing.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        accountant.compose(sampling.dp_event(population, z))
        divergence = float(accountant.rdp[0])
    except ValueError:  # rounding may cause it, with very large noise
        divergence = math.inf
    finally:
        logger.setLevel(level)
    # With large noise, rounding errors dominate the library's bound for fixed-size sampling: they are about 0.1 for
    # each round at orders of 256 and above.
    relative = z / 2 if isinstance(sampling, FixedSize) else z
    return max(min(divergence, order / (2 * relative * relative)), 0.0) + _RDP_ROUNDING
