"""ε of one mechanism composed with itself, as plain functions of numbers; `privacy.accounting` asks them
for a plan.

One round is analysed once (and remembered) and composed for any number of rounds: that is what makes curves
and calibration cheap.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

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
# The default of dp_accounting 0.4.3, written out so that no figure moves with its version.
ORDERS = tuple(
    [1 + x / 10 for x in range(1, 100)] + [float(x) for x in range(11, 64)] + [128.0, 256.0, 512.0, 1024.0]
)


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


def rdp_epsilon(
    sampling: Sampling, population: int, z: float, rounds: int, delta: float
) -> tuple[float, float]:
    """(ε, order) by Rényi DP under the sampler's own relation; `z` is noise / clip norm."""
    from dp_accounting.rdp import rdp_privacy_accountant as library

    values = sampling.repetitions(rounds) * _one_round_rdp(sampling, population, z)
    eps, order = library.compute_epsilon(ORDERS, values, delta)
    return float(eps), float(order)


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
            one = _one_round_pld(rate, z, _interval(sampling, z, rounds, points))
            return float(one.self_compose(rounds).get_epsilon_for_delta(delta))
        case _:
            return gaussian_epsilon(z / math.sqrt(sampling.repetitions(rounds)), delta)


def figure(
    sampling: Sampling, population: int, z: float, rounds: int, delta: float, points: int = FINE
) -> float:
    """The PLD's ε where there is one, else the Rényi one."""
    pld = pld_epsilon(sampling, z, rounds, delta, points)
    return rdp_epsilon(sampling, population, z, rounds, delta)[0] if pld is None else pld


def _interval(sampling: Poisson, z: float, rounds: int, points: int) -> float:
    """Discretisation interval: fine for one round's range of losses, coarse enough for the composition's.

    A power of two, so that neighbouring questions share one analysis.
    """
    # The library cuts the noise at 10 standard deviations (e^-50); a sampled loss there is log(1 - q + q e^L).
    highest = (1 + 20 * z) / (2 * z * z)
    one_round = np.logaddexp(math.log1p(-sampling.rate), math.log(sampling.rate) + highest)
    # It keeps a composed loss out to tails of 1e-15, whose place the Rényi tail bound gives (arXiv:1702.07476, prop. 3).
    renyi = rounds * _one_round_rdp(sampling, 0, z)
    composed = 2 * np.min(renyi + math.log(1e15) / (np.array(ORDERS) - 1))
    return float(2.0 ** math.ceil(math.log2(max(one_round / points, composed / COMPOSED_POINTS))))


@functools.lru_cache(maxsize=64)
def _one_round_pld(rate: float, z: float, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as library

    return library.from_gaussian_mechanism(z, value_discretization_interval=interval, sampling_prob=rate)


@functools.lru_cache(maxsize=256)
def _one_round_rdp(sampling: Sampling, population: int, z: float) -> npt.NDArray[np.float64]:
    """Rényi DP of one round (one participation where the sampler is cyclic) at `ORDERS`, float64
    [len(ORDERS)].
    """
    import dp_accounting as dp

    relation = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    if isinstance(sampling, FixedSize):
        relation = dp.NeighboringRelation.REPLACE_ONE
    accountant = dp.rdp.RdpAccountant(ORDERS, relation)
    accountant.compose(sampling.dp_event(population, z))
    return np.asarray(accountant.rdp)
