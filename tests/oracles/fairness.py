"""Computes fairness statistics from their definitions, row by row or by enumeration."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Numbers = Sequence[float] | np.ndarray
Counts = Sequence[int] | np.ndarray


def cvar(gaps: Numbers, weights: Numbers, alpha: float) -> float:
    """Returns the minimum over η of η + E (gap - η)₊ / (1 - α) (Rockafellar and Uryasev), which lies at a gap."""
    return min(
        eta + sum(w * max(gap - eta, 0) for gap, w in zip(gaps, weights, strict=True)) / (1 - alpha) for eta in gaps
    )


def variance_estimate(rows: Sequence[Numbers], weights: Numbers) -> float:
    """Returns Σ w_g Û_g - M̂: unbiased estimates of each squared mean and of the squared overall mean.

    Args:
      rows: the values of each group, at least two.
      weights: with sum 1.
    """
    squares = overall_square = 0.0
    for w, group in zip(weights, rows, strict=True):
        squares += w * float(np.mean([x * y for x, y in itertools.permutations(group, 2)]))
    for (v, a), (w, b) in itertools.product(zip(weights, rows, strict=True), repeat=2):
        products = itertools.permutations(a, 2) if a is b else itertools.product(a, b)
        overall_square += v * w * float(np.mean([x * y for x, y in products]))
    return squares - overall_square


def form_matrix(counts: Counts, weights: Numbers) -> np.ndarray:
    """Returns the matrix M with T = Σ_{i≠j} M_ij x_i x_j for centred rows x, [rows, rows]."""
    group = np.repeat(np.arange(len(counts)), counts)
    matrix = np.zeros((len(group), len(group)))
    for i, j in itertools.permutations(range(len(group)), 2):
        g, h = group[i], group[j]
        n, w, v = counts[g], weights[g], weights[h]
        matrix[i, j] = w * (1 - w) / (n * (n - 1)) if g == h else -w * v / (n * counts[h])
    return matrix


def outcomes(counts: Counts, rates: Numbers) -> Iterator[tuple[np.ndarray, float]]:
    """Yields every tuple of group sums of rows of 0 or 1, float64 [groups], with its probability."""
    for sums in itertools.product(*(range(count + 1) for count in counts)):
        probability = np.prod(
            [binomial(count, total, rate) for count, total, rate in zip(counts, sums, rates, strict=True)]
        )
        yield np.array(sums, float), float(probability)


def binomial(count: int, total: int, rate: float) -> float:
    choices = 1.0
    for i in range(total):
        choices *= (count - i) / (i + 1)
    return choices * rate**total * (1 - rate) ** (count - total)


def poisson(limit: int, mean: float) -> list[float]:
    """Returns the Poisson probabilities of 0 to `limit`."""
    probabilities = [float(np.exp(-mean))]
    for count in range(1, limit + 1):
        probabilities.append(probabilities[-1] * mean / count)
    return probabilities


def moments(counts: Counts, rates: Numbers, statistic: Callable[[np.ndarray], float]) -> tuple[float, float, float]:
    """Returns the mean, and the second and third central moments, of a statistic of the sums."""
    pairs = [(statistic(sums), probability) for sums, probability in outcomes(counts, rates)]
    mean = sum(value * p for value, p in pairs)
    return mean, sum((value - mean) ** 2 * p for value, p in pairs), sum((value - mean) ** 3 * p for value, p in pairs)
