"""Many private quantiles at once, by a binary search whose every comparison is noised.

For the coordinates of vectors, where an exponential mechanism for each would add up: here all comparisons of a turn are
one Gaussian release, so that an account knows their cost exactly, and a turn is one pass over the data.
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
    """The quantile of each column of `values` [n, d], n private, among the points of a public grid.

    A turn asks of each column whether a share q of the values is at most the middle point: it is where
    not_above - q n >= 0, however many values equal the point. One record more moves that number by 1 - q or -q, so by
    at most max(q, 1 - q), and all columns together by √d times that. Without noise the search ends at the least point
    of the grid that a share q does not exceed.

    Args:
      values: finite; any number of them may be equal.
      quantile: q, in (0, 1).
      grid: rising, float64 [m], m >= 2.
      noise_multiplier: of the whole search: noise / sensitivity = noise_multiplier x √turns in each of its
        ceil(log2 m) turns, so that together they cost one Gaussian of this multiplier.
      source: of the noise, which is exact.

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
        # Its share or more is not above: the quantile is at the middle or before it.
        low, high = np.where(balance >= 0, low, np.minimum(middle + 1, high)), np.where(balance >= 0, middle, high)
    return grid[low], costs.Gaussian(stddev / (sensitivity * math.sqrt(turns)))


def geometric_grid(smallest: float, largest: float, ratio: float = 1.05) -> npt.NDArray[np.float64]:
    """For lengths: from `smallest` to at least `largest`, each point `ratio` times the one before."""
    count = math.ceil(math.log(largest / smallest) / math.log(ratio)) + 1
    return smallest * ratio ** np.arange(count)
