"""Computes δ, ε and tree sensitivity by brute force, as an oracle of the accounting.

Hockey-stick divergences of densities come from quadrature, and tree sensitivity from a search. Unlike the accounting,
nothing here discretises privacy losses or convolves by FFT, and nothing uses `dp_accounting`.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
from scipy.special import ndtr


def delta_one(eps, rate: float, z: float, *, remove: bool):
    """Returns δ(ε) of one Poisson-sampled Gaussian, for ε of either sign.

    It is the hockey-stick divergence P(S) - e^ε Q(S) with S = {P > e^ε Q}. With M = (1-q) N(0, z²) + q N(1, z²) and
    N = N(0, z²), removing a client compares M to N, and adding one compares N to M. The loss
    log M/N = log(1 - q + q e^((2x-1)/2z²)) rises in x, so S is a half line and both probabilities are normal tails.
    """
    eps = np.asarray(eps, float)
    level = eps if remove else -eps  # value of log M/N at the end of S
    inside = np.maximum(np.exp(level) - (1 - rate), 0) / rate
    with np.errstate(divide="ignore"):
        x = z * z * np.log(inside) + 0.5  # end of S; -inf where the loss is above the level everywhere
    if remove:
        mixture = (1 - rate) * ndtr(-x / z) + rate * ndtr((1 - x) / z)
        return mixture - np.exp(eps) * ndtr(-x / z)
    mixture = (1 - rate) * ndtr(x / z) + rate * ndtr((x - 1) / z)
    return ndtr(x / z) - np.exp(eps) * mixture


def _density(x, mean: float, z: float):
    return np.exp(-np.square((x - mean) / z) / 2) / (z * math.sqrt(2 * math.pi))


def delta(eps: float, rate: float, z: float, rounds: int) -> float:
    """Returns δ(ε) of `rounds` rounds, the larger of removing and adding: δ_k(ε) = ∫ p(x) δ_{k-1}(ε - loss(x)) dx."""
    return max(_composed(eps, rate, z, rounds, remove) for remove in (True, False))


def epsilon(target: float, rate: float, z: float, rounds: int) -> float:
    """Returns the least ε with δ(ε) <= target, to 1e-5, by bisection."""
    low, high = 0.0, 1.0
    if delta(low, rate, z, rounds) <= target:
        return 0.0
    while delta(high, rate, z, rounds) > target:
        high *= 2
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle, rate, z, rounds) > target else (low, middle)
    return high


def _composed(eps: float, rate: float, z: float, rounds: int, remove: bool) -> float:
    if rounds == 1:
        return float(delta_one(eps, rate, z, remove=remove))
    density, loss, step = _losses(rate, z, remove)
    last = _table(rate, z, rounds - 1, remove)(eps - loss)
    return float(np.sum(density * last) * step)


def _losses(rate: float, z: float, remove: bool):
    """Returns density and privacy loss of one round on a grid of outcomes, and the grid's step."""
    x = np.linspace(-12 * z, 1 + 12 * z, 4001)
    base, shifted = _density(x, 0, z), _density(x, 1, z)
    mixture = (1 - rate) * base + rate * shifted
    loss = np.log1p(rate * np.expm1(np.clip((2 * x - 1) / (2 * z * z), None, 600)))
    return (mixture, loss, x[1] - x[0]) if remove else (base, -loss, x[1] - x[0])


@functools.cache
def _table(rate: float, z: float, rounds: int, remove: bool):
    """Returns δ after `rounds` rounds as a function of ε.

    From two rounds on it is interpolated on a grid, with an error of about 3e-5 in ε.
    """
    if rounds == 1:
        return lambda eps: delta_one(eps, rate, z, remove=remove)
    density, loss, step = _losses(rate, z, remove)
    reach = (rounds + 1) * np.abs(loss[density > 1e-18]).max() + 20
    grid = np.linspace(-reach, reach, 6001)
    before = _table(rate, z, rounds - 1, remove)
    values = np.array([np.sum(density * before(e - loss)) * step for e in grid])
    return lambda eps: np.interp(eps, grid, values)


def fixed_size_delta(eps: float, rate: float, z: float) -> float:
    """Returns δ(ε) of one fixed-size round if one client's update is +C in one data set and -C in the other.

    All other updates are 0, and the integral is a quadrature. It is a lower bound on what replacing a client costs: the
    client is in the cohort with probability `rate` and then moves the sum by 2 C.
    """
    x = np.linspace(-1 - 14 * z, 1 + 14 * z, 400_001)
    p = (1 - rate) * _density(x, 0, z) + rate * _density(x, 1, z)
    q = (1 - rate) * _density(x, 0, z) + rate * _density(x, -1, z)
    return float(np.sum(np.maximum(p - math.exp(eps) * q, 0)) * (x[1] - x[0]))


def tree_sensitivity_squared(steps: int, participations: int, separation: int) -> int:
    """Returns the largest sum of squared counts over the nodes of binary trees on `steps` leaves.

    It tries every pattern of a client's rounds in which two rounds i < j satisfy j - i >= separation.
    """
    trees, start = [], 0
    for level in reversed(range(steps.bit_length())):
        if steps >> level & 1:
            trees.append((start, level))
            start += 1 << level
    best = 0
    for count in range(1, participations + 1):
        for rounds in itertools.combinations(range(steps), count):
            if any(b - a < separation for a, b in itertools.pairwise(rounds)):
                continue
            total = 0
            for begin, top in trees:
                inside = [r - begin for r in rounds if begin <= r < begin + (1 << top)]
                for level in range(top + 1):
                    total += int(sum(n * n for n in np.bincount([r >> level for r in inside]))) if inside else 0
            best = max(best, total)
    return best
