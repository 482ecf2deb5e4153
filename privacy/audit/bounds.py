"""Lower bounds on ε from the outcomes of an attack, for audits of privacy claims.

An audit measures how well the outcomes on two neighbouring data sets can be told apart, and gives a lower bound on ε
that holds with a stated confidence. A bound above the claimed ε refutes the claim. A bound of zero proves nothing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from privacy import checks

_THRESHOLDS = 400  # maximum number of thresholds that are tried on each side of the median score


class Bound(NamedTuple):
    """The result of an audit: a lower bound on ε.

    Attributes:
      epsilon: the true ε at `delta` is at least this, with probability `confidence`; 0 if nothing was found.
      delta: δ that the bound is stated at.
      confidence: confidence of the bound, in (0, 1).
      trials: number of outcomes examined.
    """

    epsilon: float
    delta: float
    confidence: float
    trials: int

    def refutes(self, claimed: float) -> bool:
        """Returns whether the bound refutes a claim of ε = `claimed` at this δ.

        A true claim is refuted with a probability of at most 1 - confidence.
        """
        return self.epsilon > claimed


def from_scores(without: Any, with_: Any, delta: float = 0.0, confidence: float = 0.95) -> Bound:
    """Returns the bound from the scores of independent outcomes on each of two neighbouring data sets.

    (ε, δ)-DP requires P'(event) <= e^ε P(event) + δ for every event, where P and P' are the distributions on the
    two data sets in either order. The events tried are "the score is above (or below) a threshold". The best one is
    chosen on half of the outcomes. Its two probabilities are bounded on the other half (Clopper and Pearson 1934), so
    that the choice costs no confidence.

    Args:
      without: scores [n] of independent outcomes on the data without the record, finite or infinite, n >= 4.
      with_: scores [m] of independent outcomes on the data with the record, finite or infinite, m >= 4.
      delta: δ of the claim, in [0, 1).
      confidence: confidence of the bound, in (0, 1).

    Raises:
      ValueError: there are fewer than four scores on a data set, a score is NaN, or a number is out of range.
    """
    first, second = np.asarray(without, np.float64), np.asarray(with_, np.float64)
    for name, scores in (("without", first), ("with_", second)):
        if scores.ndim != 1 or len(scores) < 4 or np.isnan(scores).any():
            raise ValueError(
                f"{name} has shape {list(scores.shape)} and {int(np.isnan(scores).sum())} NaN: give a 1-D array of at "
                "least four scores without NaN"
            )
    if delta != 0:
        checks.between("delta", delta, 0, 1, "give the delta of the claim")
    checks.between("confidence", confidence, 0, 1, "0.95 is usual")
    # Sort each half once: events are then counted by looking up thresholds.
    halves = [[np.sort(scores[part::2]) for scores in (first, second)] for part in (0, 1)]
    thresholds = _choose_thresholds(halves[0][0])
    # The best of many thresholds is chosen. Wide intervals make it unlikely that one in the tails wins by chance.
    chosen_at = 1 - (1 - confidence) / _THRESHOLDS
    best, event = -1.0, (0, 1, 0.0)
    for likely in (0, 1):
        for sign in (1, -1):
            bounds = _bounds(halves[0], likely, sign, thresholds, delta, chosen_at)
            if bounds.max() > best:
                best, event = float(bounds.max()), (likely, sign, float(thresholds[bounds.argmax()]))
    likely, sign, threshold = event
    bound = _bounds(halves[1], likely, sign, np.array([threshold]), delta, confidence)
    return Bound(float(bound[0]), float(delta), confidence, len(first) + len(second))


def from_counts(
    hits: Any, trials: int, false_hits: Any, false_trials: int, delta: float = 0.0, confidence: float = 0.95
) -> Bound:
    """Returns the bound from how often events occurred on each of two neighbouring data sets.

    The result is the largest of the events' bounds. Each event is tested at an equal share of the error probability.

    Args:
      hits: integers [events], how often each event occurred on the data set on which it is likelier.
      trials: number of outcomes on that data set, at least 1.
      false_hits: integers [events], how often each event occurred on the other data set.
      false_trials: number of outcomes on the other data set, at least 1.
      delta: δ of the claim, in [0, 1).
      confidence: confidence of the bound, in (0, 1).
    """
    hits, false_hits = np.atleast_1d(hits), np.atleast_1d(false_hits)
    confidence_each = 1 - (1 - confidence) / len(hits)
    bounds = _bound(hits, trials, false_hits, false_trials, delta, confidence_each)
    return Bound(float(bounds.max()), float(delta), confidence, trials + false_trials)


def _choose_thresholds(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns at most 2 * _THRESHOLDS of the sorted scores on one data set, closer together towards either tail."""
    places = np.unique(np.geomspace(1, (len(scores) + 1) // 2, _THRESHOLDS).astype(int)) - 1
    return np.unique(np.concatenate([scores[places], scores[len(scores) - 1 - places]]))


def _bounds(
    scores: list[npt.NDArray[np.float64]],
    likely: int,
    sign: int,
    thresholds: npt.NDArray[np.float64],
    delta: float,
    confidence: float,
) -> npt.NDArray[np.float64]:
    """Returns, for each threshold, the bound from the event that the score is above it (sign 1) or below it (sign -1).

    `scores[likely]` are the scores on the data set on which the event is assumed to be likelier.
    """

    def count_events(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        if sign == 1:
            return len(values) - np.searchsorted(values, thresholds, side="right")
        return np.searchsorted(values, thresholds, side="left")

    hits, false_hits = count_events(scores[likely]), count_events(scores[1 - likely])
    return _bound(hits, len(scores[likely]), false_hits, len(scores[1 - likely]), delta, confidence)


def _bound(
    hits: Any, trials: int, false_hits: Any, false_trials: int, delta: float, confidence: float
) -> npt.NDArray[np.float64]:
    """Returns a lower bound on log((P'(event) - δ) / P(event)), or 0 if that is negative.

    P' is bounded from below and P from above (Clopper and Pearson 1934), each with half of the error probability.
    """
    from scipy.stats import beta

    failure = (1 - confidence) / 2
    hits, false_hits = np.asarray(hits), np.asarray(false_hits)
    low = np.where(hits > 0, beta.ppf(failure, np.maximum(hits, 1), trials - hits + 1), 0.0)
    missed = np.maximum(false_trials - false_hits, 1)
    high = np.where(false_hits < false_trials, beta.ppf(1 - failure, false_hits + 1, missed), 1.0)
    return np.log(np.maximum(low - delta, high) / high)


def in_one_run(included: Any, scores: Any, delta: float = 0.0, confidence: float = 0.95) -> Bound:
    """Returns the bound from many canaries in one run, each included by an independent fair coin.

    The canaries with the highest scores are guessed to be included, and equally many with the lowest scores to be left
    out. If the run is (ε, δ)-DP, the number of right guesses among r is, up to a term of δ, stochastically no larger
    than a binomial number of r trials with success probability e^ε / (1 + e^ε). Ten values of r are tried, from a tenth
    of the canaries to all of them, each at a tenth of the error probability. The largest bound is returned.

    Args:
      included: bool [m], the outcomes of the coins, m >= 10; the coins are independent of everything else.
      scores: [m], the attack's score for each canary, higher the more likely it was included.
      delta: δ of the claim for adding or removing one canary, in [0, 1).
      confidence: confidence of the bound, in (0, 1).

    Raises:
      ValueError: the arrays differ in shape, are shorter than ten or hold NaN, or a number is out of range.

    Reference: Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run" (arXiv:2305.08846),
    theorem 5.2.
    """
    coins, values = np.asarray(included), np.asarray(scores, np.float64)
    if coins.dtype != bool:
        raise ValueError(f"included has dtype {coins.dtype}: give the coins as bool [m]")
    if coins.shape != values.shape or coins.ndim != 1 or len(coins) < 10 or np.isnan(values).any():
        raise ValueError(
            f"included has shape {list(coins.shape)} and scores {list(values.shape)}: give one number, not NaN, for "
            "each of at least ten canaries"
        )
    if delta != 0:
        checks.between("delta", delta, 0, 1, "give the delta of the claim")
    checks.between("confidence", confidence, 0, 1, "0.95 is usual")
    order = np.argsort(values)
    largest = 0.0
    for part in range(1, 11):
        half = part * len(values) // 20
        right = int((~coins[order[:half]]).sum() + coins[order[len(order) - half :]].sum())
        largest = max(largest, _largest_refuted(right, 2 * half, len(values), delta, (1 - confidence) / 10))
    return Bound(largest, float(delta), confidence, len(values))


def _largest_refuted(right: int, guesses: int, canaries: int, delta: float, failure: float) -> float:
    """Returns the largest ε under which `right` or more right guesses have a probability of at most `failure`, or 0."""
    if not guesses or _p_value(right, guesses, canaries, 0.0, delta) > failure:
        return 0.0
    low, high = 0.0, 1.0
    while high < 64 and _p_value(right, guesses, canaries, high, delta) <= failure:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _p_value(right, guesses, canaries, middle, delta) <= failure else (low, middle)
    return low


def _p_value(right: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Returns an upper bound on the probability of at least `right` right guesses under (ε, δ)-DP.

    Reference: arXiv:2305.08846, theorem 5.2.
    """
    from scipy.stats import binom

    success = 1 / (1 + math.exp(-epsilon))
    without_delta = float(binom.sf(right - 1, guesses, success))
    if not delta:
        return without_delta
    fewer = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, success))
    steepest = float((fewer / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, without_delta + 2 * canaries * delta * steepest)
