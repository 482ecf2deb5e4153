"""Finds many private quantiles at once, by a binary search with noisy comparisons.

The search is meant for the coordinates of vectors. With an exponential mechanism for each coordinate, the costs would
add up. Here, all comparisons of one turn of the search are a single Gaussian release, whose cost is known exactly. A
turn is one pass over the data.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from privacy.accounting import costs
from privacy.noise import exact
from privacy.noise.randomness import Randomness
from privacy.statistics.quantile import PARTS


def quantile_search(
    values: npt.NDArray[np.float64],
    quantile: float,
    grid: npt.NDArray[np.float64],
    noise_multiplier: float,
    source: Randomness,
) -> tuple[npt.NDArray[np.float64], costs.Gaussian]:
    """Returns a private quantile of each column of `values` [n, d], among the points of a public grid.

    The number of records n is private too. For each column, each turn asks whether at least a share q of the values is
    at most the middle point of the remaining grid: not_above - q n >= 0, where not_above counts these values. One more
    record moves that difference by 1 - q or -q, so by at most max(q, 1 - q). It moves the differences of all columns by
    at most √d times that in L2 norm. Without noise, the search ends at the smallest grid point g such that at least a
    share q of the values is at most g, or at the last grid point if there is none.

    Args:
      values: float64 [n, d], finite; any number of them may be equal.
      quantile: q, in (0, 1).
      grid: public points in rising order, float64 [m], m >= 2.
      noise_multiplier: noise multiplier of the whole search. Each of its ceil(log2 m) turns has noise / sensitivity =
        noise_multiplier * √turns, so that together they cost one Gaussian release of this multiplier.
      source: random bits of the noise, which is exact.

    Returns:
      Points of the grid, float64 [d], and the cost under add-or-remove-one.
    """
    turns = max(1, math.ceil(math.log2(len(grid))))
    size = values.shape[1]
    target = round(quantile * PARTS)
    sensitivity = max(target, PARTS - target) * math.sqrt(size)
    stddev = math.ceil(noise_multiplier * math.sqrt(turns) * sensitivity)
    low, high = np.zeros(size, np.int64), np.full(size, len(grid) - 1)
    for _ in range(turns):
        middle = (low + high) // 2
        edge = grid[middle]
        not_above = (values <= edge).sum(axis=0)
        balance = PARTS * not_above - target * len(values) + exact.gaussian(source, stddev, size)
        # If at least a share q is at most the middle point, the quantile is that point or a smaller one.
        low, high = np.where(balance >= 0, low, np.minimum(middle + 1, high)), np.where(balance >= 0, middle, high)
    return grid[low], costs.Gaussian(stddev / (sensitivity * math.sqrt(turns)))


def geometric_grid(smallest: float, largest: float, ratio: float = 1.05) -> npt.NDArray[np.float64]:
    """Returns a grid for L2 norms: from `smallest` to at least `largest`, each point `ratio` times the one before."""
    count = math.ceil(math.log(largest / smallest) / math.log(ratio)) + 1
    return smallest * ratio ** np.arange(count)
