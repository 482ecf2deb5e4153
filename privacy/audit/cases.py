"""The kit's own mechanisms, each on the neighbours that its noise protects least, for an audit."""

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

_RECORDS = 1000  # of either value in the data: no result is at a bound


class Case(NamedTuple):
    """A mechanism under audit.

    Attributes:
      name: in words.
      relation: of its two data sets.
      claimed: the ε that it claims.
      delta: at this δ.
      slow: how many times longer than a mean's one of its outcomes takes.
      scores: from a number of outcomes to their scores, without a record and with it.
    """

    name: str
    relation: str
    claimed: float
    delta: float
    slow: int
    scores: Callable[[int], tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]


def cases(epsilon: float, delta: float, source: Randomness) -> list[Case]:
    """All means and the median, at a claim of `epsilon` (the Gaussian at `delta`)."""
    step = training_step(linear_step(epsilon, delta), epsilon, delta, secure_generator())
    found = []
    for mechanism in get_args(Mechanism):
        for relation in ("add-or-remove-one", "replace-one"):
            if relation == "add-or-remove-one" or mechanism not in ("midpoint", "sum-count"):
                found.append(_mean(epsilon, delta, mechanism, relation, source))
    return [*found, _median(epsilon, source), step]


def _mean(epsilon: float, delta: float, mechanism: Any, relation: Any, source: Randomness) -> Case:
    """Zeros and ones, and one more one; or, to replace a record, a one in place of a zero."""
    at = delta if mechanism == "gaussian" else 0.0

    def scores(trials: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        one = BoundedMean(0.0, 1.0, epsilon, mechanism, relation, at)
        added = (1, 0) if relation == "add-or-remove-one" else (1, -1)
        data = [(_RECORDS * STEPS, _RECORDS * STEPS), tuple((_RECORDS + more) * STEPS for more in added)]
        outcomes = []
        for above, below in data:
            shares, counts = np.array(one._released([above] * trials, [below] * trials, source)).T
            outcomes.append(_score(mechanism, shares, counts))
        return outcomes[0], outcomes[1]

    return Case(f"mean, {mechanism}", relation, epsilon, at, 1, scores)


def _score(mechanism: str, share: npt.NDArray[np.float64], count: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From what is released, a number that is large where the record is in: the noised sum, or the lesser of the two
    noised numbers where each spends half of ε."""
    match mechanism:
        case "midpoint":
            return np.minimum((2 * share - 1) * count, count - 2 * _RECORDS)
        case "sum-count":
            return np.minimum(share * count - _RECORDS, count - 2 * _RECORDS)
    return share * count - _RECORDS


def training_step(step: LinearDPSGD, epsilon: float, delta: float, generator: np.random.Generator) -> Case:
    """A step of DP-SGD at a claim of `epsilon`, on a record and on one more, whose gradient is the opposite and twice
    as long (a gradient canary); both are far longer than the clip norm, and the step is seen whole.

    Args:
      step: of `linear_step`, or a variant of it.
      epsilon, delta: the claim.
      generator: of the noise.
    """

    def scores(trials: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        features, labels = np.array([[500.0], [1000.0]]), np.array([1, 0])
        # Of two classes the canary's gradient is (-1, 1) / root 2: the step moves the difference of the weights.
        without, with_ = (
            np.array([np.subtract(*step.train(features[:n], labels[:n], 2, generator)[0]) for _ in range(trials)])
            for n in (1, 2)
        )
        return without, with_

    return Case("DP-SGD, one step", "add-or-remove-one", epsilon, delta, 10, scores)


def linear_step(epsilon: float, delta: float) -> LinearDPSGD:
    """One step on all records, of learning rate 1, whose noise is just enough for (epsilon, delta)."""
    z = costs.calibrate(lambda z: [costs.Gaussian(z)], epsilon, delta)
    return LinearDPSGD(1, 1.0, 1.0, 1.0, z, 1.0, 0.0)


def _median(epsilon: float, source: Randomness) -> Case:
    """Median of one record with a long stretch of the grid below it, and of it and another at the grid's end.

    The second makes the ten points above the first likelier and the stretch less likely, each by exp(ε / 2).
    """
    below = math.ceil(100 * math.exp(epsilon / 2))  # so many that the stretch holds most of the probability
    end = below + 10

    def scores(trials: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        found = []
        for values in ([below], [below, end]):
            drawn = [dp_quantile(values, 0.5, 0, end, 1, epsilon, randomness=source).value for _ in range(trials)]
            found.append(np.array(drawn) > below)
        return found[0].astype(float), found[1].astype(float)

    return Case("median", "add-or-remove-one", epsilon, 0.0, 10, scores)
