"""Noise on the integers, slow and obviously right: laws by their formula, samplers by exact fractions."""

import math
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from scipy import stats


def laplace_law(scale: int, reach: int) -> dict[int, float]:
    return _normed({x: math.exp(-abs(x) / scale) for x in range(-reach, reach + 1)})


def gaussian_law(stddev: int, reach: int) -> dict[int, float]:
    return _normed({x: math.exp(-(x**2) / (2 * stddev**2)) for x in range(-reach, reach + 1)})


def staircase_level(x: int, sensitivity: int, core: int) -> int:
    level = 0
    while abs(x) > core + level * sensitivity:
        level += 1
    return level


def staircase_law(epsilon: float, sensitivity: int, core: int, levels: int) -> dict[int, float]:
    reach = core + levels * sensitivity
    return _normed({x: math.exp(-epsilon * staircase_level(x, sensitivity, core)) for x in range(-reach, reach + 1)})


def hourglass_level(k: int, first: int, sensitivity: int, core: int) -> int:
    """The least t >= |k| of k's parity with |z1 - k Δ / 2| <= t Δ / 2 + core."""
    level = abs(k)
    while abs(2 * first - k * sensitivity) > level * sensitivity + 2 * core:
        level += 2
    return level


def hourglass_law(epsilon: float, sensitivity: int, core: int, levels: int) -> dict[tuple[int, int], float]:
    """Of (z1, z2), all pairs up to that level."""
    found = {}
    reach = (levels + 1) * sensitivity + core
    for k in range(-levels, levels + 1):
        for first in range(-reach, reach + 1):
            level = hourglass_level(k, first, sensitivity, core)
            if level <= levels:
                found[first, k * sensitivity - first] = math.exp(-epsilon * level)
    return _normed(found)


def _normed(weights: dict) -> dict:
    total = math.fsum(weights.values())
    return {key: weight / total for key, weight in weights.items()}


def fits(law: Mapping[Any, float], drawn: Counter, alpha: float) -> bool:
    """Pearson's chi-square at level alpha; outcomes rarer than 10 are one cell."""
    count = sum(drawn.values())
    expected = {key: count * p for key, p in law.items() if count * p >= 10}
    seen = np.array([drawn[key] for key in expected] + [count - sum(drawn[key] for key in expected)], float)
    wanted = np.array([*expected.values(), count - sum(expected.values())])
    if wanted[-1] < 10:
        seen, wanted = seen[:-1], wanted[:-1]
    if len(wanted) == 1:
        return bool(seen[0] == count)
    statistic = float((np.square(seen - wanted) / wanted).sum())
    return bool(stats.chi2.sf(statistic, len(wanted) - 1) > alpha)


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
