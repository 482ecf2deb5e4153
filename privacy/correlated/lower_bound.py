"""Bounds from below the error of every factorisation of prefix sums under given limits on participation."""

from __future__ import annotations

import math

import numpy as np

from privacy import checks
from privacy.correlated.participation import Participation


def least_loss(rounds: int, participation: Participation) -> float:
    """Returns a lower bound on sensitivity(C) ||A C^-1||_F / sqrt(n), for A = prefix sums of n rounds and any C.

    Take k rounds n/k apart, moved cyclically through all n starts; k is the largest number of participations, at most
    n / b, for which all these patterns keep the separation b. Over a pattern with orthogonal unit changes, the squared
    norm of C times the change is the sum of the squared norms of the columns. Its mean over the starts is
    k ||C||_F² / n, so that sensitivity² >= k ||C||_F² / n. And ||A C^-1||_F ||C||_F is at least the nuclear norm of A
    (Li et al. 2015, "The matrix mechanism"). So the loss is at least sqrt(k) ||A||_* / n. The singular values of A are
    1 / (2 sin((2 j - 1) π / (4 n + 2))) for j = 1, ..., n.

    Args:
      rounds: number n of rounds, at least 1.
      participation: limits on one client's rounds.
    """
    checks.whole("rounds", rounds, 1, "count the rounds")
    count = max(1, min(participation.max_participations, rounds // participation.min_separation))
    nuclear = np.sum(0.5 / np.sin((2 * np.arange(1, rounds + 1) - 1) * math.pi / (4 * rounds + 2)))
    return math.sqrt(count) * float(nuclear) / rounds
