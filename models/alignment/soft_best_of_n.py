"""Computes soft best-of-n, which selects one of n samples with chances proportional to e^(reward / temperature).

With w = e^(r / temperature), its distribution is n p w ∫ e^(-w s) M(s)^(n - 1) ds over s > 0, where M(s) is the mean of
e^(-w s) under p. In t = log s the integrand is analytic for imaginary parts θ below π/2, and its integral there is at
most 1/cos θ of that on the real line. So the trapezoidal rule with step h has a relative error below
2/cos θ / (e^(2πθ/h) - 1) for every outcome, whatever n and the temperature.
"""

import math
from dataclasses import dataclass

import numpy as np

from models.alignment.candidates import Candidates
from models.alignment.checks import Array, require_number
from models.alignment.outcomes import Outcomes
from models.alignment.policy import Policy

_STEP = 0.27  # with θ = 1.5 the error is below 2e-14
_LARGEST_SPAN = 1e5
_TAIL = 38.0  # e^-38 is nothing beside 1
_ELEMENTS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class SoftBestOfN(Policy):
    """Selects one of n candidates by softmax of reward / temperature: best-of-n of rewards with Gumbel noise.

    As n grows, its distribution approaches the tilt p e^(r / temperature) / Z: by Jensen's inequality,
    KL(tilt ‖ policy) is at most log(1 + χ²(tilt ‖ p) / n).

    Attributes:
      n: number of samples, >= 1.
      temperature: unit of reward, > 0. Small ones approach best-of-n, large ones the reference.

    Raises:
      ValueError: `n` is below 1, or `temperature` is not a finite number > 0.
    """

    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("temperature", self.temperature, 0, exclude_least=True)

    def log_weights(self, candidates: Candidates) -> Array:
        """Returns (reward - highest reward) / temperature."""
        return _scaled(candidates.rewards, self.temperature)

    def distribution(self, outcomes: Outcomes) -> Array:
        """Returns the exact distribution of the selected outcome, `[K]`, with an error below 1e-10.

        Takes time proportional to the number L of levels times some 200 to 500 nodes, and more where rewards span
        thousands of temperatures.

        Raises:
          ValueError: rewards span more than 1e5 temperatures, where float64 would not keep the error.
        """
        log_w = _scaled(outcomes.levels, self.temperature)
        if not log_w[0] >= -_LARGEST_SPAN:
            least = (outcomes.levels[-1] - outcomes.levels[0]) / _LARGEST_SPAN
            raise ValueError(
                f"temperature = {self.temperature!r}: must be at least {least:.3g} for these rewards; use BestOfN"
            )
        return outcomes.spread(_integrate(outcomes.masses, log_w, self.n) if self.n > 1 else outcomes.masses)


def _scaled(rewards: Array, temperature: float) -> Array:
    with np.errstate(over="ignore"):
        return (rewards - rewards.max()) / temperature


def _integrate(p: Array, log_w: Array, n: int) -> Array:
    """Returns the distribution over levels whose `log_w` ascends."""
    nodes = _nodes(-log_w[::-1], _TAIL + math.log(n), math.log(_TAIL))
    result = np.zeros(len(p))
    rows = max(1, _ELEMENTS_AT_ONCE // len(p))
    for first in range(0, len(nodes), rows):
        with np.errstate(over="ignore"):
            product = np.exp(nodes[first : first + rows, np.newaxis] + log_w)
        lost = np.expm1(-product)
        # All terms of 1 - M have one sign, so that M^(n - 1) keeps its digits where M is near 1.
        with np.errstate(divide="ignore"):
            others = np.exp((n - 1) * np.log1p(np.maximum(lost @ p, -1.0)))
        terms = np.minimum(product, 1e300) * (1 + lost)
        result += others @ terms
    return np.asarray(n * _STEP * p * result)


def _nodes(centres: Array, before: float, after: float) -> Array:
    """Returns the multiples of the step from `before` below to `after` above some centre; the centres ascend."""
    starts = np.flatnonzero(np.diff(centres, prepend=-np.inf) > before + after)
    ends = np.append(starts[1:], len(centres)) - 1
    spans = zip(centres[starts] - before, centres[ends] + after, strict=True)
    return (
        np.concatenate([np.arange(math.floor(low / _STEP), math.ceil(high / _STEP) + 1) for low, high in spans]) * _STEP
    )
