"""An audit tries to break a claim: it measures how well two neighbouring data sets can be told apart, and gives a lower
bound on ε that holds with a stated confidence. Above the claim, the claim is false; a bound of zero proves nothing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from privacy import checks

_THRESHOLDS = 400


class Bound(NamedTuple):
    """What an audit found.

    Attributes:
      epsilon: with `confidence`, the true ε at `delta` is at least this; 0 where nothing was found.
      delta: δ.
      confidence: in (0, 1).
      trials: outcomes that were looked at.
    """

    epsilon: float
    delta: float
    confidence: float
    trials: int

    def refutes(self, claimed: float) -> bool:
        """Whether a claim of ε = `claimed` at this δ is false, but with probability 1 - confidence."""
        return self.epsilon > claimed


def from_scores(without: Any, with_: Any, delta: float = 0.0, confidence: float = 0.95) -> Bound:
    """The bound from a number for each outcome on either of two neighbouring data sets.

    (ε, δ)-DP asks of every event P'(event) <= e^ε P(event) + δ, both ways. Events are "the score is above (or below) a
    threshold": the best is chosen on half of the outcomes, and its two probabilities are bounded on the other half
    (Clopper and Pearson 1934), so that choosing costs no confidence.

    Args:
      without: scores [n] of independent outcomes on the data without the record, finite or infinite.
      with_: scores [m] of independent outcomes on the data with the record, finite or infinite.
      delta: in [0, 1).
      confidence: of the bound, in (0, 1).

    Raises:
      ValueError: fewer than four scores of one kind, NaN, or a number is out of range.
    """
    first, second = np.asarray(without, np.float64), np.asarray(with_, np.float64)
    for name, scores in (("without", first), ("with", second)):
        if scores.ndim != 1 or len(scores) < 4 or np.isnan(scores).any():
            raise ValueError(f"scores {name} have shape {list(scores.shape)}: at least four numbers, none NaN")
    if delta != 0:
        checks.between("delta", delta, 0, 1, "that of the claim")
    checks.between("confidence", confidence, 0, 1, "0.95 is usual")
    # Each half once sorted: events are counted by looking thresholds up.
    halves = [[np.sort(scores[part::2]) for scores in (first, second)] for part in (0, 1)]
    thresholds = _thresholds(halves[0][0])
    # Of many thresholds: intervals so wide that luck in the tails does not win.
    chosen_at = 1 - (1 - confidence) / _THRESHOLDS
    best, event = -1.0, (0, 1, 0.0)
    for likely in (0, 1):
        for sign in (1, -1):
            bounds = _bounds(halves[0], likely, sign, thresholds, delta, chosen_at)
            if bounds.max() > best:
                best, event = float(bounds.max()), (likely, sign, float(thresholds[bounds.argmax()]))
    likely, sign, threshold = event
    found = _bounds(halves[1], likely, sign, np.array([threshold]), delta, confidence)
    return Bound(float(found[0]), float(delta), confidence, len(first) + len(second))


def from_counts(
    hits: Any, trials: int, false_hits: Any, false_trials: int, delta: float = 0.0, confidence: float = 0.95
) -> Bound:
    """The bound from how often events came, of which the best is taken, each for its share of what may fail.

    Args:
      hits: integers [events], how often each came of `trials` outcomes on the data set where it is likelier.
      trials: outcomes there, at least 1.
      false_hits: integers [events], how often each came on the other data set.
      false_trials: outcomes there, at least 1.
      delta: in [0, 1).
      confidence: of the bound, in (0, 1).
    """
    hits, false_hits = np.atleast_1d(hits), np.atleast_1d(false_hits)
    each = 1 - (1 - confidence) / len(hits)
    found = _bound(hits, trials, false_hits, false_trials, delta, each)
    return Bound(float(found.max()), float(delta), confidence, trials + false_trials)


def _thresholds(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scores of one kind, sorted, from its middle out to either tail."""
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
    """For each threshold the bound of "above it" (sign 1) or "below it" (-1), likelier in `scores[likely]`."""

    def counted(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        if sign == 1:
            return len(values) - np.searchsorted(values, thresholds, side="right")
        return np.searchsorted(values, thresholds, side="left")

    hits, false_hits = counted(scores[likely]), counted(scores[1 - likely])
    return _bound(hits, len(scores[likely]), false_hits, len(scores[1 - likely]), delta, confidence)


def _bound(
    hits: Any, trials: int, false_hits: Any, false_trials: int, delta: float, confidence: float
) -> npt.NDArray[np.float64]:
    """log((P'(event) - δ) / P(event)) at the worse ends of two intervals, each for half of what may fail; or 0."""
    from scipy.stats import beta

    failure = (1 - confidence) / 2
    hits, false_hits = np.asarray(hits), np.asarray(false_hits)
    low = np.where(hits > 0, beta.ppf(failure, np.maximum(hits, 1), trials - hits + 1), 0.0)
    missed = np.maximum(false_trials - false_hits, 1)
    high = np.where(false_hits < false_trials, beta.ppf(1 - failure, false_hits + 1, missed), 1.0)
    return np.log(np.maximum(low - delta, high) / high)


def in_one_run(included: Any, scores: Any, delta: float = 0.0, confidence: float = 0.95) -> Bound:
    """The bound from many canaries in one run, each put in by a fair coin of its own.

    The highest scores are guessed to be in and the lowest out; of r guesses, whatever is (ε, δ)-DP leaves the number of
    right ones below a binomial of success rate e^ε / (1 + e^ε), but for a term of δ (Steinke, Nasr and Jagielski 2023,
    "Privacy auditing with one (1) training run", arXiv:2305.08846, theorem 5.2). The number of guesses is chosen among
    ten, each at a tenth of what may fail.

    Args:
      included: bool [m], the coins; independent of each other and of all else.
      scores: [m], higher where a canary was in.
      delta: of one canary added or removed, in [0, 1).
      confidence: in (0, 1).

    Raises:
      ValueError: the arrays differ in shape, are shorter than ten or hold NaN, or a number is out of range.
    """
    coins, values = np.asarray(included), np.asarray(scores, np.float64)
    if coins.dtype != bool:
        raise ValueError(f"included has dtype {coins.dtype}: the coins, bool [m], are needed")
    if coins.shape != values.shape or coins.ndim != 1 or len(coins) < 10 or np.isnan(values).any():
        raise ValueError(
            f"included has shape {list(coins.shape)} and scores {list(values.shape)}: one number, not NaN, for each of "
            "at least ten canaries"
        )
    if delta != 0:
        checks.between("delta", delta, 0, 1, "that of the claim")
    checks.between("confidence", confidence, 0, 1, "0.95 is usual")
    order = np.argsort(values)
    found = 0.0
    for part in range(1, 11):
        half = part * len(values) // 20
        right = int((~coins[order[:half]]).sum() + coins[order[len(order) - half :]].sum())
        found = max(found, _largest_refuted(right, 2 * half, len(values), delta, (1 - confidence) / 10))
    return Bound(found, float(delta), confidence, len(values))


def _largest_refuted(right: int, guesses: int, canaries: int, delta: float, failure: float) -> float:
    """The largest ε at which so many right guesses are likelier than `failure` to be no accident."""
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
    """Most that (ε, δ)-DP allows as the probability of so many right guesses (arXiv:2305.08846, theorem 5.2)."""
    from scipy.stats import binom

    success = 1 / (1 + math.exp(-epsilon))
    without_delta = float(binom.sf(right - 1, guesses, success))
    if not delta:
        return without_delta
    fewer = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, success))
    steepest = float((fewer / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, without_delta + 2 * canaries * delta * steepest)
