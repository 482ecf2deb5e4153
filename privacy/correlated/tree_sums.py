"""Computes sensitivity and error of tree aggregation, whose noise is on sums over dyadic blocks of rounds.

A tree over L rounds has a node for each block of 2^m consecutive rounds that begins at a multiple of 2^m and lies
within the L rounds. Each node holds its block's sum plus noise. A prefix sum is estimated from the nodes that the
binary digits of its length select. With Honaker's variance reduction, a node's estimate also uses the nodes below it.

References: Kairouz et al. 2021, https://arxiv.org/abs/2103.00039; Honaker 2015, "Efficient use of differentially
private binary trees".
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from privacy import checks
from privacy.correlated.participation import Participation
from privacy.correlated.sensitivity import Sensitivity

_NEVER = -np.inf
_Values = dict[int, npt.NDArray[np.float64]]
"""By number of participations: the largest sum of squares, [d, d], with at least i rounds without the client at the
beginning and at least j of them at the end of the block. `_NEVER` if there is no such pattern."""


def complete_subtrees(rounds: int, restart_every: int | None) -> list[int]:
    """Returns the heights of the complete subtrees that cover the rounds from left to right.

    Args:
      rounds: number of rounds, at least 1.
      restart_every: number of rounds after which a new tree begins; None for one tree.
    """
    length = rounds if restart_every is None else min(restart_every, rounds)
    whole, rest = divmod(rounds, length)
    return [m for tree in [length] * whole + [rest] for m in reversed(range(tree.bit_length())) if tree >> m & 1]


def tree_sensitivity(rounds: int, restart_every: int | None, participation: Participation) -> Sensitivity:
    """Returns the sensitivity of the sums of all nodes, exactly, by max-plus dynamic programming over the subtrees.

    A node whose block holds c rounds of a client moves by up to c clip norms. So the squared sensitivity is the largest
    sum of c² over all nodes. Two subtrees are joined by splitting the gap between the last round in the left one and
    the first round in the right one.

    Args:
      rounds: number of rounds, at least 1.
      restart_every: number of rounds after which a new tree begins; None for one tree.
      participation: limits on one client's rounds.
    """
    checks.whole("rounds", rounds, 1, "count the rounds")
    separation, count = participation
    gap = min(separation, rounds) - 1  # rounds without the client between two of its rounds
    heights = complete_subtrees(rounds, restart_every)
    best: _Values = {}
    for height in heights:
        best = _append(best, _subtree(height, count, gap), 2**height, count)
    value = math.sqrt(max(ends[0] for ends in best.values()))
    return Sensitivity(value, True, "largest sum of squared node counts (max-plus programme)")


@functools.lru_cache(maxsize=64)
def _subtree(height: int, count: int, gap: int) -> _Values:
    """Returns the values of a subtree of this height, from those of its halves."""
    free = np.arange(gap + 1, dtype=np.float64)
    # One participation is in height + 1 nodes.
    joined = {1: np.where(free[:, None] + free[None, :] < 2**height, height + 1.0, _NEVER)}
    if height == 0:
        return joined
    half = _subtree(height - 1, count, gap)
    length = 2 ** (height - 1)
    shifted = np.maximum(0, np.arange(gap + 1) - length)
    # Only so many rounds without the client fit into the left half, and what is left of the gap into the right one.
    splits = range(max(0, gap - length + 1), min(gap, length - 1) + 1)
    for total in range(2, min(count, 2 * max(half)) + 1):
        best = np.full((gap + 1, gap + 1), _NEVER)
        if total in half:
            best = np.maximum(half[total][:, shifted], half[total][shifted, :])
        for left in range(max(1, total - max(half)), min(total - 1, max(half)) + 1):
            for end in splits:
                pair = half[left][:, end, None] + half[total - left][None, gap - end, :]
                np.maximum(best, pair, out=best)
        if np.isfinite(best[0, 0]):
            joined[total] = best + total**2
    return joined


def _append(before: _Values, block: _Values, length: int, count: int) -> _Values:
    """Returns the values of the rounds so far plus one more subtree; [d], by rounds without the client at the end."""
    gap = next(iter(block.values())).shape[0] - 1
    shifted = np.maximum(0, np.arange(gap + 1) - length)
    after = {total: ends[shifted] for total, ends in before.items()}
    for right, values in block.items():
        after[right] = np.maximum(after.get(right, _NEVER), values[0])
        for left, ends in before.items():
            if left + right <= count:
                best = (ends[:, None] + values[::-1]).max(axis=0)
                after[left + right] = np.maximum(after.get(left + right, _NEVER), best)
    return after


def tree_error(rounds: int, restart_every: int | None) -> float:
    """Returns the root mean square, over all prefix sums, of the error's standard deviation / that of a node's noise.

    A node at height m, estimated together with those below it, has variance 1 / (2 - 2^-m) (Honaker 2015). A restart
    leaves the error of the finished tree's total in all later prefix sums.
    """
    checks.whole("rounds", rounds, 1, "count the rounds")
    length = rounds if restart_every is None else min(restart_every, rounds)
    position = np.arange(rounds) % length + 1
    variance = np.zeros(rounds)
    for height in range(length.bit_length()):
        variance += (position >> height & 1) / (2 - 2.0**-height)
    variance += np.arange(rounds) // length * variance[length - 1]
    return math.sqrt(variance.mean())
