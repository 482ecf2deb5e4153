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
_Array = npt.NDArray[np.float64]
_Values = npt.NDArray[np.float64]
"""The largest sum of squares, [m, i, j], by number of participations, from 1, with at least i rounds without the client
at the beginning and at least j of them at the end of the block. `_NEVER` if there is no such pattern; i and j are below
the length of the block, and go up to the gap between two rounds of a client."""


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
    rounds = checks.whole("rounds", rounds, 1, "count the rounds")
    separation, count = participation
    gap = min(separation, rounds) - 1  # rounds without the client between two of its rounds
    heights = complete_subtrees(rounds, restart_every)
    best = np.empty((0, gap + 1))
    for height in heights:
        best = _append(best, _subtree(height, count, gap), 2**height, count, gap)
    value = math.sqrt(best[:, 0].max())
    return Sensitivity(value, True, "largest sum of squared node counts (max-plus programme)")


@functools.lru_cache(maxsize=64)
def _subtree(height: int, count: int, gap: int) -> _Values:
    """Returns the values of a subtree of this height, from those of its halves."""
    size = min(gap + 1, 2**height)
    free = np.arange(size)
    # One participation is in height + 1 nodes.
    single = np.where(free[:, None] + free[None, :] < 2**height, height + 1.0, _NEVER)[None]
    if height == 0:
        return single
    half = _subtree(height - 1, count, gap)
    few, part = half.shape[:2]
    shifted = np.maximum(0, free - 2 ** (height - 1))
    joined = np.full((min(count, 2 * few), size, size), _NEVER)
    joined[:few, :part] = half[:, :, shifted]
    joined[:few, :, :part] = np.maximum(joined[:few, :, :part], half[:, shifted])
    _join(joined[:, :part, :part], half, half, gap)
    joined += np.arange(1, len(joined) + 1)[:, None, None] ** 2
    joined[0] = single
    return joined[np.isfinite(joined[:, 0, 0])]


def _append(before: _Array, block: _Values, length: int, count: int, gap: int) -> _Array:
    """Returns the values of the rounds so far, [m, gap + 1], by rounds without the client at the end, plus a subtree.

    `length` is the number of rounds in the subtree.
    """
    few, size = block.shape[:2]
    shifted = np.maximum(0, np.arange(gap + 1) - length)
    after = np.full((min(count, len(before) + few), gap + 1), _NEVER)
    after[: len(before)] = before[:, shifted]
    after[:few, :size] = np.maximum(after[:few, :size], block[:, 0])
    _join(after[:, None, :size], before[:, None], block, gap)
    return after[np.isfinite(after[:, 0])]


def _join(total: _Values, left: _Values, right: _Values, gap: int) -> None:
    """Raises `total` to the values of patterns with rounds in both of two neighbouring blocks.

    `left` is [m, i, e] with e rounds without the client at the end, and `right` [m', gap - e, j] has what is left of
    the gap at its beginning. In a row of `left`, only the e after which the value falls need a look: those before have
    the same value and leave more of the gap to `right`.
    """
    begin = gap + 1 - right.shape[1]  # more of the gap than that does not fit into the right block
    for number, values in enumerate(left[:, :, begin:], 1):
        others = right[: max(len(total) - number, 0)]
        if not (values.size and others.size):
            return
        falls = values > np.append(values[:, 1:], np.full((len(values), 1), _NEVER), axis=1)
        # Rows with fewer falls than others look at other positions too, which is no harm.
        ends = np.argsort(~falls, axis=1, kind="stable")[:, : falls.sum(axis=1).max()]
        both = total[number : number + len(others)]
        for end in ends.T:
            sums = others[:, gap - begin - end]
            sums += values[np.arange(len(values)), end, None]
            np.maximum(both, sums, out=both)


def tree_error(rounds: int, restart_every: int | None) -> float:
    """Returns the root mean square, over all prefix sums, of the error's standard deviation / that of a node's noise.

    A node at height m, estimated together with those below it, has variance 1 / (2 - 2^-m) (Honaker 2015). A restart
    leaves the error of the finished tree's total in all later prefix sums.
    """
    rounds = checks.whole("rounds", rounds, 1, "count the rounds")
    length = rounds if restart_every is None else min(restart_every, rounds)
    position = np.arange(rounds) % length + 1
    variance = np.zeros(rounds)
    for height in range(length.bit_length()):
        variance += (position >> height & 1) / (2 - 2.0**-height)
    variance += np.arange(rounds) // length * variance[length - 1]
    return math.sqrt(variance.mean())
