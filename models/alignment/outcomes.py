"""Holds finitely many outcomes with their probabilities and rewards, equal rewards joined to one level."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.alignment.checks import Array, require_distribution, require_vector

AT_ONCE = 1 << 14
"""Number of levels that are computed at once: temporary arrays of this size stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Holds the outcomes of a reference model, and their levels: the sets of outcomes with equal reward.

    A policy that chooses by reward cannot tell the outcomes of a level apart. It gives each level a probability, and
    shares it within the level as the reference does. So levels, not outcomes, decide its KL and its win rate. Levels
    that the reference never draws are left out.

    Args:
      probabilities: distribution p of the reference, `[K]`; may hold zeros.
      rewards: reward of each outcome, `[K]`, finite. Rewards are equal if their floats are: round noisy ones first.

    Attributes:
      levels: distinct rewards of outcomes with p > 0 in ascending order, `[L]`.
      masses: probability of each level under p, `[L]`, > 0.
      at_most: probability under p of a reward at most that of the level, `[L]`; F.
      below: probability under p of a lower reward, `[L]`; F⁻.
      above: probability under p of a higher reward, `[L]`; 1 - F, without its cancellation.

    Raises:
      ValueError: `probabilities` is no distribution, a reward is not finite, the shapes differ, or the rewards span
        more than a float holds.
    """

    probabilities: Array
    rewards: Array
    levels: Array = field(init=False)
    masses: Array = field(init=False)
    at_most: Array = field(init=False)
    below: Array = field(init=False)
    above: Array = field(init=False)
    _order: NDArray[np.intp] = field(init=False, repr=False)  # of the outcomes that are drawn, by reward
    _is_first: NDArray[np.bool_] = field(init=False, repr=False)  # of its level, in that order

    def __init__(self, probabilities: ArrayLike, rewards: ArrayLike) -> None:
        p = require_distribution("probabilities", probabilities)
        r = require_vector("rewards", rewards, len(p))
        order = np.argsort(r)
        if p.min() == 0:
            order = order[p[order] > 0]
        levels, masses = r[order], p[order]
        if math.isinf(float(levels[-1]) - float(levels[0])):
            raise ValueError(f"rewards span from {levels[0]:.3g} to {levels[-1]:.3g}: divide them by a number")
        is_first = np.append(True, levels[1:] != levels[:-1])
        if not is_first.all():
            levels, masses = levels[is_first], np.add.reduceat(masses, np.flatnonzero(is_first))
        at_most, above = np.cumsum(masses), np.append(np.cumsum(masses[:0:-1])[::-1], 0.0)
        for rounded in (at_most, above):
            np.minimum(rounded, 1.0, out=rounded)
        values = {
            "probabilities": p,
            "rewards": r,
            "levels": levels,
            "masses": masses,
            "at_most": at_most,
            "below": np.append(0.0, at_most[:-1]),
            "above": above,
            "_order": order,
            "_is_first": is_first,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @cached_property
    def level_of(self) -> NDArray[np.intp]:
        """Returns the index of each outcome's level, `[K]`; 0 for outcomes that are never drawn."""
        level_of = np.zeros(len(self.rewards), np.intp)
        level_of[self._order] = np.cumsum(self._is_first) - 1
        return level_of

    @cached_property
    def shares(self) -> Array:
        """Returns the probability of each outcome given its level, `[K]`; 0 for outcomes that are never drawn."""
        return np.asarray(self.probabilities / self.masses[self.level_of])

    def spread(self, distribution: Array) -> Array:
        """Returns a distribution of levels, `[L]`, as one of outcomes, `[K]`, shared within levels as p is."""
        return np.asarray(distribution[self.level_of] * self.shares)

    def gather(self, distribution: Array) -> Array:
        """Returns a distribution of outcomes, `[K]`, as one of levels, `[L]`; outcomes with p = 0 must have none."""
        return np.asarray(np.bincount(self.level_of, distribution, len(self.levels)), np.float64)

    def win_rate(self, distribution: Array) -> float:
        """Returns the probability that a draw from a distribution of levels, `[L]`, beats one from p; ties are half."""
        return float(np.sum(distribution * (self.below + self.masses / 2)))


def kl_divergence(distribution: Array, reference: Array) -> float:
    """Returns KL(distribution ‖ reference) in nats; infinite where the reference is 0 and the distribution is not."""
    held = reference > 0
    if np.any(distribution[~held] > 0):
        return math.inf
    chosen, p = distribution[held], reference[held]
    with np.errstate(divide="ignore"):
        log_ratios = np.log(chosen) - np.log(p)
    return sum_divergence(chosen, p, log_ratios)


def sum_divergence(distribution: Array, reference: Array, log_ratios: Array) -> float:
    """Returns KL(distribution ‖ reference) in nats as Σ q l - (q - p), with the log-ratios l given beside q and p.

    Both distributions sum to 1, so that this is Σ q l. But none of its terms is negative, and so nothing cancels where
    the two are nearly equal.

    Args:
      distribution: q, `[L]`.
      reference: p, `[L]`, > 0.
      log_ratios: l = log q - log p, `[L]`; -inf where q is 0.
    """
    total = 0.0
    for first in range(0, len(log_ratios), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        q, p = distribution[some], reference[some]
        ratios = np.maximum(log_ratios[some], -800.0)  # e^-800 is 0, and times 0 it stays a number
        terms = q * ratios - np.where(ratios < 1, p * np.expm1(np.minimum(ratios, 1.0)), q - p)
        small = np.abs(ratios) < 1e-3
        if small.any():
            near = ratios[small]
            terms[small] = p[small] * near**2 * (1 / 2 + near * (1 / 3 + near * (1 / 8 + near / 30)))
        total += float(np.sum(terms))
    return max(0.0, total)
