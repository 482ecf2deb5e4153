"""Builds audits of fedspeak's own mechanisms, on the neighbouring data sets that their noise protects least."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from privacy.accounting import costs
from privacy.linear.linear_dpsgd import LinearDPSGD
from privacy.noise.randomness import Randomness
from privacy.noise.training import secure_generator
from privacy.statistics.mean import STEPS, BoundedMean, Mechanism
from privacy.statistics.quantile import dp_quantile

_RECORDS = 1000  # records of value 0, and as many of value 1: enough that no result is clamped to a bound


class Case(NamedTuple):
    """Describes a mechanism under audit, on two neighbouring data sets.

    Attributes:
      name: the mechanism in words.
      relation: neighbouring relation of the two data sets.
      claimed: ε that the mechanism claims.
      delta: δ that it claims ε at.
      slow: time that one outcome takes, as a multiple of the time for one private mean.
      scores: function of a number of outcomes n. It returns two arrays [n]: the scores on the data without the record,
        and those on the data with it.
    """

    name: str
    relation: str
    claimed: float
    delta: float
    slow: int
    scores: Callable[[int], tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]


def cases(epsilon: float, delta: float, source: Randomness) -> list[Case]:
    """Returns the audits of all private means, the private median and a step of DP-SGD.

    Args:
      epsilon: ε that each mechanism claims.
      delta: δ of the Gaussian mean and of the step of DP-SGD; the others claim pure ε.
      source: randomness of the exact noise.
    """
    step = training_step(linear_step(epsilon, delta), epsilon, delta, secure_generator())
    means = []
    for mechanism in get_args(Mechanism):
        for relation in ("add-or-remove-one", "replace-one"):
            if relation == "add-or-remove-one" or mechanism not in ("midpoint", "sum-count"):
                means.append(_build_mean_case(epsilon, delta, mechanism, relation, source))
    return [*means, _build_median_case(epsilon, source), step]


def _build_mean_case(epsilon: float, delta: float, mechanism: Any, relation: Any, source: Randomness) -> Case:
    """Returns the audit of a private mean of equally many zeros and ones.

    The neighbouring data set has one more record of value 1, or under replace-one a 1 in place of a 0.
    """
    claimed_delta = delta if mechanism == "gaussian" else 0.0

    def scores(trials: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        mean = BoundedMean(0.0, 1.0, epsilon, mechanism, relation, claimed_delta)
        change = (1, 0) if relation == "add-or-remove-one" else (1, -1)
        data = [(_RECORDS * STEPS, _RECORDS * STEPS), tuple((_RECORDS + extra) * STEPS for extra in change)]
        outcomes = []
        for above, below in data:
            shares, counts = np.array(mean._release_pairs([above] * trials, [below] * trials, source)).T
            outcomes.append(_score(mechanism, shares, counts))
        return outcomes[0], outcomes[1]

    return Case(f"mean, {mechanism}", relation, epsilon, claimed_delta, 1, scores)


def _score(mechanism: str, share: npt.NDArray[np.float64], count: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Computes from the released mean and count a score that is large if the record is included.

    The score is the noised sum, less the exact sum without the record. A mechanism that spends half of ε on the sum and
    half on the count gives two such differences; the score is then the smaller one.
    """
    match mechanism:
        case "midpoint":
            return np.minimum((2 * share - 1) * count, count - 2 * _RECORDS)
        case "sum-count":
            return np.minimum(share * count - _RECORDS, count - 2 * _RECORDS)
    return share * count - _RECORDS


def training_step(step: LinearDPSGD, epsilon: float, delta: float, generator: np.random.Generator) -> Case:
    """Returns the audit of one step of DP-SGD by a canary, a record whose gradient is chosen by the attacker.

    The data hold one record, or this record and the canary, whose gradient has the opposite direction and twice the
    norm. Both gradients have norms far above the clip norm. The attacker sees the weights after the step.

    Args:
      step: the step, as from `linear_step`, or a faulty variant of it.
      epsilon, delta: the claim.
      generator: generator of the noise.
    """

    def scores(trials: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        features, labels = np.array([[500.0], [1000.0]]), np.array([1, 0])
        # With two classes the canary's clipped gradient is (-1, 1) / √2, so the score is the difference of the weights.
        without, with_ = (
            np.array([np.subtract(*step.train(features[:n], labels[:n], 2, generator)[0]) for _ in range(trials)])
            for n in (1, 2)
        )
        return without, with_

    return Case("DP-SGD, one step", "add-or-remove-one", epsilon, delta, 10, scores)


def linear_step(epsilon: float, delta: float) -> LinearDPSGD:
    """Returns one step of learning rate 1 on all records, whose noise is just enough for (epsilon, delta)."""
    z = costs.calibrate(lambda z: [costs.Gaussian(z)], epsilon, delta)
    return LinearDPSGD(1, 1.0, 1.0, 1.0, z, 1.0, 0.0)


def _build_median_case(epsilon: float, source: Randomness) -> Case:
    """Returns the audit of a private median.

    The data hold one record, or this record and another at the end of the grid. A long stretch of the grid lies below
    the first record and ten points lie above it. The second record raises the probability weight of the ten points and
    lowers that of the stretch, each by a factor of up to exp(ε / 2).
    """
    below = math.ceil(100 * math.exp(epsilon / 2))  # long enough to hold most of the probability
    end = below + 10

    def scores(trials: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        outcomes = []
        for values in ([below], [below, end]):
            medians = [dp_quantile(values, 0.5, 0, end, 1, epsilon, randomness=source).value for _ in range(trials)]
            outcomes.append(np.array(medians) > below)
        return outcomes[0].astype(float), outcomes[1].astype(float)

    return Case("median", "add-or-remove-one", epsilon, 0.0, 10, scores)
