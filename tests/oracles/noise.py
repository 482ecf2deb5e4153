"""Oracle of integer noise, slow and obviously right: distributions by formula, samplers in exact fractions."""

import math
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from scipy import stats


def laplace_distribution(scale: int, reach: int) -> dict[int, float]:
    return _normalise({x: math.exp(-abs(x) / scale) for x in range(-reach, reach + 1)})


def gaussian_distribution(stddev: int, reach: int) -> dict[int, float]:
    return _normalise({x: math.exp(-(x**2) / (2 * stddev**2)) for x in range(-reach, reach + 1)})


def staircase_level(x: int, sensitivity: int, core: int) -> int:
    level = 0
    while abs(x) > core + level * sensitivity:
        level += 1
    return level


def staircase_distribution(epsilon: float, sensitivity: int, core: int, levels: int) -> dict[int, float]:
    reach = core + levels * sensitivity
    return _normalise({x: math.exp(-epsilon * staircase_level(x, sensitivity, core)) for x in range(-reach, reach + 1)})


def hourglass_level(k: int, first: int, sensitivity: int, core: int) -> int:
    """Returns the least t >= |k| with t - k even and |z1 - k Δ / 2| <= t Δ / 2 + core."""
    level = abs(k)
    while abs(2 * first - k * sensitivity) > level * sensitivity + 2 * core:
        level += 2
    return level


def hourglass_distribution(epsilon: float, sensitivity: int, core: int, levels: int) -> dict[tuple[int, int], float]:
    """Returns the distribution of pairs (z1, z2), restricted to at most `levels`."""
    weights = {}
    reach = (levels + 1) * sensitivity + core
    for k in range(-levels, levels + 1):
        for first in range(-reach, reach + 1):
            level = hourglass_level(k, first, sensitivity, core)
            if level <= levels:
                weights[first, k * sensitivity - first] = math.exp(-epsilon * level)
    return _normalise(weights)


def _normalise(weights: dict) -> dict:
    total = math.fsum(weights.values())
    return {key: weight / total for key, weight in weights.items()}


def fits(distribution: Mapping[Any, float], draws: Counter, alpha: float) -> bool:
    """Returns whether draws pass Pearson's chi-square test at level alpha.

    All outcomes that are expected fewer than 10 times are one cell.
    """
    count = sum(draws.values())
    cells = {key: count * p for key, p in distribution.items() if count * p >= 10}
    observed = np.array([draws[key] for key in cells] + [count - sum(draws[key] for key in cells)], float)
    expected = np.array([*cells.values(), count - sum(cells.values())])
    if expected[-1] < 10:
        observed, expected = observed[:-1], expected[:-1]
    if len(expected) == 1:
        return bool(observed[0] == count)
    statistic = float((np.square(observed - expected) / expected).sum())
    return bool(stats.chi2.sf(statistic, len(expected) - 1) > alpha)


# Canonne, Kamath and Steinke 2020 (arXiv:2004.00010), algorithms 1 to 3, in exact fractions.


def bernoulli(p: Fraction, below: Callable[[int], int] = secrets.randbelow) -> bool:
    return below(p.denominator) < p.numerator


def bernoulli_exp(x: Fraction, below: Callable[[int], int] = secrets.randbelow) -> bool:
    while x > 1:
        if not bernoulli_exp(Fraction(1), below):
            return False
        x -= 1
    step = 1
    while bernoulli(x / step, below):
        step += 1
    return step % 2 == 1


def laplace(scale: int, below: Callable[[int], int] = secrets.randbelow) -> int:
    while True:
        low = below(scale)
        if not bernoulli_exp(Fraction(low, scale), below):
            continue
        high = 0
        while bernoulli_exp(Fraction(1), below):
            high += 1
        drawn = low + scale * high
        if below(2):
            return drawn
        if drawn:
            return -drawn


def gaussian(stddev: int, below: Callable[[int], int] = secrets.randbelow) -> int:
    while True:
        drawn = laplace(stddev, below)
        if bernoulli_exp(Fraction((abs(drawn) - stddev) ** 2, 2 * stddev**2), below):
            return drawn
