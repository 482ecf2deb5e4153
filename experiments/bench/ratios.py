"""Computes paired ratios of benchmark results, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from experiments.intervals import Interval


def paired_ratio(theirs: Sequence[float], ours: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Returns the geometric mean of theirs / ours, with Student's t interval for the mean log ratio.

    Args:
      theirs: values of the one side, one per repetition, > 0.
      ours: values of the other side for the same repetitions, > 0.
      confidence: coverage of the interval, in (0, 1).

    Returns:
      The ratio and its interval. With a single pair the interval is (0, inf), since one pair shows no spread.

    Raises:
      ValueError: there is no pair, the lengths differ, a value is not positive and finite, or `confidence` is out of
        range.
    """
    from scipy.stats import t

    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is outside (0, 1)")
    if len(theirs) != len(ours) or not theirs:
        raise ValueError(f"{len(theirs)} and {len(ours)} values: give one value of each side per repetition")
    values = np.array([theirs, ours], float)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError("a value is not positive and finite: give positive numbers")
    logs = np.log(values[0] / values[1])
    mean, pairs = float(logs.mean()), len(logs)
    if pairs == 1:
        return Interval(math.exp(mean), 0.0, math.inf)
    half = float(t.ppf((1 + confidence) / 2, pairs - 1)) * float(logs.std(ddof=1)) / math.sqrt(pairs)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def paired_time_ratio(theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> Interval:
    """Returns the ratio of two sides' times, with an interval over the repetitions.

    A repetition's ratio is the median of its rounds' ratios, without the first round. Both sides train the same clients
    in a round, so differences between rounds cancel. `paired_ratio` combines the repetitions.

    Args:
      theirs: seconds of each round, by repetition.
      ours: seconds of the other side in the same repetitions and rounds.

    Raises:
      ValueError: a repetition's rounds differ in number or are fewer than two, or `paired_ratio` raises.
    """
    medians = []
    for their_rounds, our_rounds in zip(theirs, ours, strict=True):
        if len(their_rounds) != len(our_rounds) or len(our_rounds) < 2:
            raise ValueError(
                f"{len(their_rounds)} and {len(our_rounds)} rounds: give the same number of rounds, at least two"
            )
        medians.append(float(np.median(np.array(their_rounds[1:]) / np.array(our_rounds[1:]))))
    return paired_ratio(medians, [1.0] * len(medians))
