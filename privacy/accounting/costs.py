"""What single releases cost, and what they cost together: one privacy loss distribution over all of them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from privacy import checks
from privacy.accounting.composition import SMALLEST_DELTA, gaussian_epsilon
from privacy.noise.training import MOST_EPSILON, exact_delta, with_failures

_FIRST_INTERVAL = 2.0**-7
_STEPS_OF_EPSILON = 8000
_SMALLEST_INTERVAL = 2.0**-18
_LOG_NOISE = -13.0, 18.0


@dataclasses.dataclass(frozen=True)
class Pure:
    """An ε-DP release.

    Attributes:
      epsilon: above 0.
    """

    epsilon: float

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.positive("epsilon", self.epsilon, "give the cost of the release")

    def loss_distribution(self, interval: float) -> Any:
        """`dp_accounting`'s: that of randomised response, which dominates every ε-DP mechanism (Kairouz, Oh and
        Viswanath 2015, arXiv:1311.0776).
        """
        from dp_accounting.pld import common, privacy_loss_distribution

        parameters = common.DifferentialPrivacyParameters(self.epsilon, 0.0)
        return privacy_loss_distribution.from_privacy_parameters(parameters, interval)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Gaussian releases of everybody's data, or of a Poisson sample of it.

    Attributes:
      noise_multiplier: noise standard deviation / sensitivity under the relation, above 0.
      count: releases, at least 1.
      rate: of Poisson sampling, afresh for each; 1 takes everybody. Below 1 the relation must be add-or-remove-one.
    """

    noise_multiplier: float
    count: int = 1
    rate: float = 1.0

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.noise_multiplier(self.noise_multiplier, "give noise / sensitivity")
        checks.whole("count", self.count, 1, "count the releases")
        checks.between("sampling rate", self.rate, 0, 1, "give batch size / records", closed_high=True)

    def loss_distribution(self, interval: float) -> Any:
        """`dp_accounting`'s."""
        from dp_accounting.pld import privacy_loss_distribution

        if self.rate == 1:
            together = self.noise_multiplier / math.sqrt(self.count)
            return privacy_loss_distribution.from_gaussian_mechanism(together, value_discretization_interval=interval)
        one = privacy_loss_distribution.from_gaussian_mechanism(
            self.noise_multiplier, value_discretization_interval=interval, sampling_prob=self.rate
        )
        return one.self_compose(self.count)

    def dp_event(self) -> Any:
        """As an event of `dp_accounting`, whose noise is relative to the sensitivity too."""
        import dp_accounting as dp

        one: dp.DpEvent = dp.GaussianDpEvent(self.noise_multiplier)
        if self.rate < 1:
            one = dp.PoissonSampledDpEvent(self.rate, one)
        return one if self.count == 1 else dp.SelfComposedDpEvent(one, self.count)


Cost = Pure | Gaussian


def epsilon(costs: Sequence[Cost], delta: float) -> float:
    """Least ε known at `delta` of all releases together; 0 for none. An upper bound.

    With δ = 0 the ε of pure releases add up. Else it is read off their common privacy loss distribution (or the exact
    curve where all are Gaussian without sampling), or is that sum where it is smaller. With Gaussian releases it
    includes the failures of floating-point noise (`privacy.noise.training`).

    Raises:
      ValueError: δ is not in [0, 1), or is 0 (or with sampling below 1e-12) and a release is not pure.
    """
    if delta != 0:
        checks.between("delta", delta, 0, 1, "1e-6 is usual, below 1 / records")
    if not costs:
        return 0.0
    pure = [cost.epsilon for cost in costs if isinstance(cost, Pure)]
    total = math.fsum(pure) if len(pure) == len(costs) else math.inf
    if delta == 0:
        if math.isinf(total):
            raise ValueError("delta is 0 and a release has Gaussian noise: give a delta above 0")
        return total
    gaussians = [cost for cost in costs if isinstance(cost, Gaussian)]
    releases = sum(cost.count for cost in gaussians)
    exact = exact_delta(delta) if releases else delta
    if len(gaussians) == len(costs) and all(cost.rate == 1 for cost in gaussians):
        together = sum(cost.count / cost.noise_multiplier**2 for cost in gaussians) ** -0.5
        return with_failures(gaussian_epsilon(together, exact), delta, releases)
    if delta < SMALLEST_DELTA:
        if math.isinf(total):
            raise ValueError(f"delta {delta:g} is below {SMALLEST_DELTA:g}, where loss distributions tell nothing")
        return total
    first = _by_distribution(costs, exact, _FIRST_INTERVAL)
    if math.isinf(first):
        return total
    # Powers of two, so that releases share one grid; finer than this changes nothing that is printed.
    wanted = 2.0 ** math.floor(math.log2(max(first, 1e-9) / _STEPS_OF_EPSILON))
    finer = _by_distribution(costs, exact, min(max(wanted, _SMALLEST_INTERVAL), _FIRST_INTERVAL))
    return min(with_failures(min(first, finer), delta, releases), total)


def _by_distribution(costs: Sequence[Cost], delta: float, interval: float) -> float:
    try:
        composed = costs[0].loss_distribution(interval)
        for cost in costs[1:]:
            composed = composed.compose(cost.loss_distribution(interval))
        return float(composed.get_epsilon_for_delta(delta))
    except OverflowError:  # of exp(ε): no figure that would be a guarantee
        return math.inf


def calibrate(together: Callable[[float], Sequence[Cost]], target: float, delta: float) -> float:
    """The least noise multiplier z, to 0.1 % and rounded up, at which the ε of `together(z)` is at most `target`.

    Raises:
      ValueError: `target` is not a number above 0, or no noise is enough: what does not depend on z costs more.
    """
    from scipy.optimize import brentq

    checks.positive("epsilon", target, "give the budget to keep")
    if target > MOST_EPSILON:
        raise ValueError(f"epsilon {target:g} asks for hardly any noise: take at most {MOST_EPSILON:g}")

    @functools.cache
    def excess(log_z: float) -> float:
        found = epsilon(together(math.exp(log_z)), delta)
        return math.log(min(max(found, 1e-12), 1e6) / target)

    # ε goes about as 1 / z, so that each step lands near the root, and a little beyond it.
    place, low, high = 0.0, -math.inf, math.inf
    while math.isinf(low) or math.isinf(high):
        ahead = excess(place)
        low, high = (place, high) if ahead > 0 else (low, place)
        place += min(max(ahead + math.copysign(0.05, ahead), -1.0), 2.0)
        if place > _LOG_NOISE[1]:
            raise ValueError(f"epsilon {target:g} is out of reach: the other releases cost more than that")
        if place < _LOG_NOISE[0]:
            raise ValueError(f"epsilon {target:g} asks for hardly any noise: take a smaller one")
    found = brentq(excess, low, high, xtol=5e-4)
    while excess(found) > 0:
        found += 5e-4
    return math.exp(found)
