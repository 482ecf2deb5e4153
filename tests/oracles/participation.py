"""Enumerates all patterns of rounds that one client may be in, as an oracle of sensitivities."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np


def patterns(rounds: int, min_separation: int, max_participations: int) -> Iterator[tuple[int, ...]]:
    """Yields every set of rounds, at most `max_participations`, any two at least `min_separation` apart."""
    for count in range(1, max_participations + 1):
        for chosen in itertools.combinations(range(rounds), count):
            if all(later - earlier >= min_separation for earlier, later in itertools.pairwise(chosen)):
                yield chosen


def sensitivity(matrix: np.ndarray, min_separation: int, max_participations: int) -> float:
    """Returns max ||C u||_F over patterns and rows u_i = +1 or -1.

    For changes of one weight this is the sensitivity of C: ||C u|| is convex in each u_i, so that its maximum over
    [-1, 1] is at an end. For more weights it is a lower bound, and exact if no inner product of columns is negative.
    """
    gram = matrix.T @ matrix
    largest = 0.0
    for pattern in patterns(matrix.shape[1], min_separation, max_participations):
        part = gram[np.ix_(pattern, pattern)]
        for signs in itertools.product((1.0, -1.0), repeat=len(pattern) - 1):
            change = np.array([1.0, *signs])
            largest = max(largest, float(change @ part @ change))
    return largest**0.5


def toeplitz(column: np.ndarray, rounds: int) -> np.ndarray:
    """Returns the lower triangular Toeplitz matrix with this first column, zeros added."""
    matrix = np.zeros((rounds, rounds))
    for i in range(rounds):
        for j in range(max(0, i - len(column) + 1), i + 1):
            matrix[i, j] = column[i - j]
    return matrix


def tree(rounds: int, restart_every: int | None = None) -> np.ndarray:
    """Returns the matrix from rounds to the sums of all complete nodes of the tree, or of the trees, one row a node."""
    length = restart_every or rounds
    rows = []
    for first in range(0, rounds, length):
        end = min(first + length, rounds)
        width = 1
        while width <= end - first:
            for start in range(first, end - width + 1, width):
                rows.append([float(start <= t < start + width) for t in range(rounds)])
            width *= 2
    return np.array(rows)
