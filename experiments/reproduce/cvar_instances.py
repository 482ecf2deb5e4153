"""Makes populations of groups with a given CVaR gap, and draws the sums of their rows, for `reproduce cvar-fairness`.

Rows are drawn as counts by group: a multinomial number of rows, and a binomial number of losses among them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fl.fairness.gaps import cvar_gap
from fl.fairness.groups import GroupSums

Array = NDArray[np.float64]


class Population(NamedTuple):
    """Holds the groups of a population.

    Attributes:
      weights: float64 [groups], with sum 1.
      rates: float64 [groups], probability of a loss in a row of each group.
    """

    weights: Array
    rates: Array

    @property
    def variance(self) -> float:
        """Returns V, the weighted variance of the rates."""
        return float(self.weights @ (self.rates - self.weights @ self.rates) ** 2)

    def without_gaps(self) -> Population:
        """Returns the population in which every group has the overall rate of this one."""
        return Population(self.weights, np.full(len(self.rates), float(self.weights @ self.rates)))


def equal_weights(groups: int) -> Array:
    """Returns weights of `groups` groups of the same size."""
    return np.full(groups, 1 / groups)


def zipf_weights(groups: int) -> Array:
    """Returns weights proportional to 1/1, 1/2, 1/3 and so on."""
    weights = 1 / np.arange(1, groups + 1)
    return np.asarray(weights / weights.sum())


def with_gap(weights: Array, alpha: float, gap: float, rate: float) -> Population:
    """Returns groups whose CVaR gap F_α is exactly `gap`, all of it in the smallest groups with the weight 1 - α.

    These groups lie above and below `rate` in turn, by the same distance, and all others at `rate`. The distance is
    scaled so that F_α is right after the overall rate has moved. Every one of them then has about the gap `gap`, so
    that the largest gap is as small as this F_α allows.

    Args:
      weights: float [groups], with sum 1.
      alpha: share of the weight that F_α leaves out, in [0, 1).
      gap: F_α, > 0.
      rate: rate of the other groups, in (0, 1).

    Raises:
      ValueError: a rate would lie outside [0, 1].
    """
    order = np.argsort(weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    worst = order[before < (1 - alpha) * (1 - 1e-9)]
    shift = np.zeros(len(weights))
    shift[worst] = np.where(np.arange(len(worst)) % 2 == 0, 1.0, -1.0)
    shift *= gap / cvar_gap(shift, weights, alpha)
    rates = rate + shift
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"gap {gap} at the rate {rate} leaves [0, 1]: give a smaller gap")
    return Population(weights, rates)


def draw_rows(generator: np.random.Generator, population: Population, rows: int, probabilities: Array) -> GroupSums:
    """Returns the sums of rows whose groups are drawn with `probabilities`."""
    return draw_losses(generator, generator.multinomial(rows, probabilities), population.rates)


def draw_losses(generator: np.random.Generator, counts: NDArray[np.int64], rates: Array) -> GroupSums:
    """Returns the sums of `counts` rows of each group, each with a loss with the probability `rates`."""
    sums = generator.binomial(counts, rates).astype(np.float64)
    return GroupSums(counts.astype(np.float64), sums, sums)


def spread_rows(rows: int, groups: int) -> NDArray[np.int64]:
    """Returns the numbers of rows of the groups, which differ by at most one and have the sum `rows`."""
    return rows // groups + (np.arange(groups) < rows % groups).astype(np.int64)


def max_gap_rejects(sums: NDArray[np.int64], rows_per_group: int, level: float) -> bool:
    """Returns whether `fl.fairness.max_gap_test` rejects, for groups of equal weights and numbers of rows.

    Of such groups the one with the smallest p-value has the largest or the smallest sum, so that two p-values do.

    Args:
      sums: integers [groups], number of losses of each group.
      rows_per_group: number of rows of each group, >= 1.
      level: probability of a false rejection.
    """
    overall, high, low = float(sums.mean()) / rows_per_group, int(sums.max()), int(sums.min())
    below = special.betainc(rows_per_group - low, low + 1, 1 - overall) if low < rows_per_group else 1.0
    above = special.betainc(high, rows_per_group - high + 1, overall) if high > 0 else 1.0
    return bool(2 * min(below, above) * len(sums) <= level)


def root_of_entropy(weights: Array) -> float:
    """Returns e^(H/2) with the Rényi entropy H of order 2/3: √G for G equal groups."""
    return math.sqrt(float((weights ** (2 / 3)).sum()) ** 3)
