"""Estimates, from one pool of M samples, what best-of-n and pass@k would give, for all n at once and without bias."""

import numpy as np
from numpy.typing import ArrayLike

from models.alignment.checks import Array, require_integer, require_vector


def best_of_n_rewards(rewards: ArrayLike) -> Array:
    """Returns unbiased estimates of E[reward of best-of-n] for n = 1, 2, …, M, `[M]`.

    Entry n - 1 is the mean, over all subsets of n of the M rewards, of the largest in the subset: Σ C(i - 1, n - 1) /
    C(M, n) times the i-th smallest. It has less variance than a mean over M / n separate groups. Takes O(M²) time and
    O(M) memory.

    Args:
      rewards: rewards of M independent samples for one prompt, `[M]`, finite.

    Raises:
      ValueError: a reward is not finite, or the shape is another.
    """
    ascending = np.sort(require_vector("rewards", rewards))
    size = len(ascending)
    subset = np.arange(1, size + 1)
    weights, estimates = subset / size, np.zeros(size)  # the largest of all M is in a subset of n with chance n / M
    for rank in range(size, 0, -1):
        estimates += weights * ascending[rank - 1]
        weights *= np.maximum(rank - subset, 0) / max(rank - 1, 1)
    return estimates


def pass_at_k(samples: int, correct: int) -> Array:
    """Returns unbiased estimates of pass@k, the chance that one of k samples is correct, for k = 1, …, n, `[n]`.

    It is 1 - C(n - c, k) / C(n, k), computed as a product, with no large number.

    Args:
      samples: number n of samples drawn, from 1 to 10⁷.
      correct: number c of correct ones among them, from 0 to n.

    Raises:
      ValueError: a count is outside its range.
    """
    samples = require_integer("samples", samples, 1, 10**7)
    correct = require_integer("correct", correct, 0, samples)
    sizes = np.arange(1, samples + 1)
    missed = np.ones(samples)
    for place in range(samples - correct + 1, samples + 1):
        missed *= np.maximum(place - sizes, 0) / place
    return 1 - missed
