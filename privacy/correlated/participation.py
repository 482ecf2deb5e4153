"""Describes in which rounds one client may take part, and finds the worst of all such patterns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from privacy import checks


class _Limits(NamedTuple):
    min_separation: int
    max_participations: int


class Participation(_Limits):
    """Describes the limits on one client's rounds, which the sampler keeps and the ledger enforces.

    A pattern is a set of rounds that keeps both limits. Which rounds a client is in is public and does not depend on
    any client's text.

    Attributes:
      min_separation: smallest |i - j| of two rounds i and j of one client, at least 1. TensorFlow Privacy counts the
        rounds in between instead, one fewer (`by_rounds_between`).
      max_participations: maximum number of rounds of one client, at least 1.
    """

    __slots__ = ()

    def __new__(cls, min_separation: int, max_participations: int) -> Participation:
        """Returns the limits; raises ValueError unless both are integers of at least 1."""
        return super().__new__(
            cls,
            checks.whole("min_separation", min_separation, 1, "two rounds of one client differ by at least 1"),
            checks.whole("max_participations", max_participations, 1, "a client takes part at least once"),
        )

    @classmethod
    def _make(cls, iterable: Iterable[int]) -> Participation:
        """Returns the limits in a sequence, checked; `_replace` calls it."""
        return cls(*iterable)

    @classmethod
    def by_round_distance(cls, distance: int, max_participations: int) -> Participation:
        """Returns the limits for a separation counted as |i - j| >= distance, at least 1, as in jax-privacy."""
        return cls(checks.whole("distance", distance, 1, "two rounds differ by at least 1"), max_participations)

    @classmethod
    def by_rounds_between(cls, between: int, max_participations: int) -> Participation:
        """Returns the limits for a separation counted as j - i - 1 >= between, at least 0, as in TensorFlow Privacy."""
        return cls.by_round_distance(
            checks.whole("between", between, 0, "0 allows consecutive rounds") + 1, max_participations
        )

    def within(self, rounds: int) -> Participation:
        """Returns the limits that hold in `rounds` rounds, where a client cannot take part more often than they fit."""
        possible = math.ceil(checks.whole("rounds", rounds, 1, "count the rounds") / self.min_separation)
        return Participation(self.min_separation, min(self.max_participations, possible))


def worst_sum(values: npt.NDArray[Any], participation: Participation) -> npt.NDArray[np.float64]:
    """Returns the largest sum of `values` over the rounds of one pattern, by dynamic programming over rounds.

    Args:
      values: float64 [..., n], at least 0; the last axis are the rounds.
      participation: the limits that define the patterns.

    Returns:
      float64 [...].
    """
    rounds = values.shape[-1]
    separation, count = participation.within(rounds)
    if count * separation >= rounds:  # as many as fit: their number is no limit
        best = np.zeros((rounds + separation, *values.shape[:-1]))  # best[t]: over patterns in the last t rounds
        for t in range(rounds):
            best[t + separation] = np.maximum(best[t + separation - 1], values[..., rounds - 1 - t] + best[t])
        return best[-1]
    later = max(rounds - separation, 0)
    # best[..., t]: largest sum over patterns of up to c rounds, all at or before t.
    best = np.zeros(values.shape)
    for _ in range(count):
        candidate = values.astype(np.float64)
        candidate[..., separation:] += best[..., :later]
        best = np.maximum.accumulate(candidate, axis=-1)
    return best[..., -1]
