"""Computes best-of-n where all outcomes are known: its KL, win rate, and what one draw tells about the KL."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from models.alignment import best_of_n
from models.alignment.outcomes import Outcomes
from models.alignment.policy import kl_bound
from models.alignment.quantile_tilt import least_kl

_SIZES = (10, 100, 1000, 10_000)
_POWERS = (10, 100, 1000, 10_000, 100_000)
_RARE = (1 - 1e-2 - 1e-4, 1e-2, 1e-4)
_PAIR_COUNTS = (2, 4, 8, 16, 64)
_WIN_RATE_COUNTS = (2, 4, 8, 16, 64, 256, 1000)
_SPREAD_COUNTS = (4, 32, 256)
_CURVE = np.geomspace(1, 1e5, 51)
# Drawn from a Dirichlet distribution of concentration 0.3, in random order of reward.
_SKEWED = """
    0.0242749 0.00107801 0.000176383 0.0015455 0.0323401 0.00138605 3.0467e-05 0.00342452 0.00371221 0.0392151 0.0174936
    0.0218898 0.000671429 0.000411198 1.48264e-08 0.093226 0.0207401 0.000205102 0.00534614 0.00256666 0.169634
    0.00617226 0.0354959 0.00109011 0.0046774 0.0181953 0.0172542 0.106087 8.90322e-05 0.0446601 0.00388976 0.0217015
    0.0222044 0.000463886 1.46507e-06 0.00679918 0.0264662 0.00129286 0.000873995 0.0750451 0.0107515 7.60197e-05
    7.86818e-09 0.00437069 0.00210939 0.00659103 3.62277e-06 0.139031 5.68208e-07 0.00523959
"""


def measure(draws: int, seed: int) -> dict[str, Any]:
    """Returns all results by name: lists of rows, and the curves of the plot. Values are in nats.

    Args:
      draws: number of draws of best-of-n for each estimate.
      seed: seed of the draws.
    """
    rare = Outcomes(_RARE, range(len(_RARE)))
    return {
        "uniform": [{"outcomes": size, **describe(uniform(size), n)} for size in _SIZES for n in _POWERS],
        "rare": [describe(rare, n) for n in (2, *_POWERS)],
        "pair": [describe(uniform(2), n) for n in _PAIR_COUNTS],
        "win_rates": [compare_win_rate(n) for n in _WIN_RATE_COUNTS],
        "spread": [measure_spread(skewed(), n, draws, seed) for n in _SPREAD_COUNTS],
        "curves": {
            "n": _CURVE.tolist(),
            "formula": [kl_bound(n) for n in _CURVE],
            "uniform": {str(size): _curve(uniform(size)) for size in _SIZES},
            "rare": _curve(rare),
        },
    }


def uniform(size: int) -> Outcomes:
    """Returns equally likely outcomes with different rewards."""
    return Outcomes(np.full(size, 1 / size), np.arange(size))


def skewed() -> Outcomes:
    """Returns 50 outcomes, some of them likely and some with a probability of 1e-8."""
    p = np.array(_SKEWED.split(), float)
    return Outcomes(p / p.sum(), np.arange(len(p)))


def describe(outcomes: Outcomes, n: float) -> dict[str, float]:
    """Returns the exact KL, its proved bounds, mean and standard deviation of the estimate D̂, and the formula."""
    least, most = best_of_n.kl_bounds(outcomes, n)
    mean, deviation = best_of_n.expected_estimate(outcomes, n)
    return {
        "n": n,
        "kl": best_of_n.kl(outcomes, n),
        "least": least,
        "most": most,
        "estimate": mean,
        "deviation": deviation,
        "formula": kl_bound(n),
    }


def compare_win_rate(n: int) -> dict[str, float]:
    """Returns the win rate n/(n + 1) of best-of-n without ties, and the KLs with which three policies reach it.

    Rejection draws until the reward is in the best share φ: its win rate is 1 - φ/2, its KL log 1/φ.
    """
    win_rate = n / (n + 1)
    return {
        "n": n,
        "win_rate": win_rate,
        "best_of_n": kl_bound(n),
        "optimum": least_kl(win_rate),
        "rejection": -math.log(2 * (1 - win_rate)),
    }


def measure_spread(outcomes: Outcomes, n: int, draws: int, seed: int) -> dict[str, Any]:
    """Draws best-of-n and estimates its KL from the probabilities of the selected outcomes.

    Args:
      outcomes: outcomes of the reference, in ascending order of different rewards.
      n: number of samples that each draw chooses from.
      draws: number of draws, >= 32.
      seed: seed of the draws.

    Returns:
      The row of `describe`, and in "drawn" the estimate with its 95 % interval.
    """
    generator = np.random.default_rng([seed, n])
    selected = np.zeros(draws, int)
    for _ in range(n):
        samples = generator.choice(len(outcomes.masses), size=draws, p=outcomes.masses)
        selected = np.maximum(selected, samples)
    found = best_of_n.estimate_kl(np.log(outcomes.masses[selected]), n)
    assert found.interval is not None  # the command asks for enough draws
    low, high = found.interval
    return describe(outcomes, n) | {"draws": draws, "drawn": {"estimate": found.kl, "low": low, "high": high}}


def _curve(outcomes: Outcomes) -> dict[str, list[float]]:
    rows = [describe(outcomes, n) for n in _CURVE]
    return {key: [row[key] for row in rows] for key in ("kl", "estimate")}
