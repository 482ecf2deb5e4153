"""What runs say of each other: paired ratios with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from experiments.intervals import Interval


def paired_ratio(theirs: Sequence[float], ours: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Geometric mean of theirs / ours, with Student's interval of the mean log ratio over the pairs.

    Args:
      theirs: positive figures, one a repetition.
      ours: the figures of the same repetitions.
      confidence: coverage of the interval, in (0, 1).

    Returns:
      The ratio; of a single pair the ends are 0 and inf: it says nothing of the spread.

    Raises:
      ValueError: there is no pair, the lengths differ, a figure is not positive and finite, or `confidence` is out
        of range.
    """
    from scipy.stats import t

    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is outside (0, 1)")
    if len(theirs) != len(ours) or not theirs:
        raise ValueError(f"{len(theirs)} and {len(ours)} figures: not one of each a repetition")
    figures = np.array([theirs, ours], float)
    if not (np.isfinite(figures).all() and (figures > 0).all()):
        raise ValueError("a figure is not a positive number: it has no ratio")
    logs = np.log(figures[0] / figures[1])
    mean, pairs = float(logs.mean()), len(logs)
    if pairs == 1:
        return Interval(math.exp(mean), 0.0, math.inf)
    half = float(t.ppf((1 + confidence) / 2, pairs - 1)) * float(logs.std(ddof=1)) / math.sqrt(pairs)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def paired_time_ratio(theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> Interval:
    """`paired_ratio` of seconds, repetition by repetition; in each, the median over the rounds of the rounds' ratio.

    Rounds have the same clients for both sides, so what makes a round long cancels. The first round is left out.

    Args:
      theirs: seconds of each round of each repetition.
      ours: the same repetitions and rounds.

    Raises:
      ValueError: the rounds differ in number, there are fewer than two, or as `paired_ratio`.
    """
    medians = []
    for their_rounds, our_rounds in zip(theirs, ours, strict=True):
        if len(their_rounds) != len(our_rounds) or len(our_rounds) < 2:
            raise ValueError(f"{len(their_rounds)} and {len(our_rounds)} rounds: not the same two or more")
        medians.append(float(np.median(np.array(their_rounds[1:]) / np.array(our_rounds[1:]))))
    return paired_ratio(medians, [1.0] * len(medians))
