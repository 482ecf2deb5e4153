"""Ranks all paths through a lattice of candidate tokens, each by the sum of its scores, in exact arithmetic."""

import itertools
import math
from fractions import Fraction

import numpy as np


def rank(tokens, scores, history, alpha, log_probs, count):
    """Returns the best paths and their scores in units of 2**-16 above the sum of the largest scores of the positions.

    Args:
      tokens: `[G, k]` candidates.
      scores: float32 `[G, k]`.
      history: the tokens before the lattice.
      alpha: weight of the model.
      log_probs: function from the list of n - 1 tokens and one token to ln P in float32.
      count: number of paths.
    """
    best = []
    for choice in itertools.product(range(len(tokens[0])), repeat=len(tokens)):
        path = [int(tokens[j][c]) for j, c in enumerate(choice)]
        total = 0
        for j, c in enumerate(choice):
            lacking = Fraction(float(scores[j][c] - max(scores[j]))) * 2**16
            total += math.floor(lacking)
            if alpha:
                text = [*history, *path[:j]]
                added = np.float32(alpha) * np.float32(log_probs(text[len(text) - len(history) :], path[j]))
                total += round(Fraction(float(added)) * 2**16)
        best.append((-total, path))
    best.sort()
    return [path for _, path in best[:count]], [-total for total, _ in best[:count]]
