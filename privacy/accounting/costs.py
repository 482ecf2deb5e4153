"""What single releases cost, and what they cost together: the smaller of what one privacy loss distribution over all of
them says and what Rényi DP says.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from privacy import checks
from privacy.accounting import loss_grid
from privacy.accounting.composition import gaussian_epsilon, least_by_renyi, one_round_rdp
from privacy.noise.training import MOST_EPSILON, exact_delta, with_failures
from privacy.sampling import Poisson

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

    @property
    def largest_loss(self) -> float:
        """Privacy loss at which the distribution ends."""
        return self.epsilon

    def renyi(self, order: float) -> float:
        """Returns the Rényi divergence at `order`, above 1, of randomised response (see `loss_distribution`)."""
        both = np.logaddexp(self.epsilon * order, self.epsilon * (1 - order)) - np.logaddexp(0.0, self.epsilon)
        rounding = 2.0**-50 * (1 + self.epsilon * order)
        return float(max(both, 0.0) + rounding) / (order - 1)

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
      sampling_probability: probability with which each record joins each release, drawn afresh; 1 takes everybody.
        Below 1 the relation must be add-or-remove-one.
    """

    noise_multiplier: float
    count: int = 1
    sampling_probability: float = 1.0

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.noise_multiplier(self.noise_multiplier, "give noise / sensitivity")
        checks.whole("count", self.count, 1, "count the releases")
        checks.between(
            "sampling_probability", self.sampling_probability, 0, 1, "give batch size / records", closed_high=True
        )

    @property
    def largest_loss(self) -> float:
        """Privacy loss at which the distribution of one release ends; of all together where everybody is in each."""
        return loss_grid.largest_loss(
            self._together if self.sampling_probability == 1 else self.noise_multiplier, self.sampling_probability
        )

    def renyi(self, order: float) -> float:
        """Returns the Rényi divergence of all `count` releases at `order`, above 1."""
        if self.sampling_probability == 1:
            return order / (2 * self._together**2)
        return self.count * one_round_rdp(Poisson(self.sampling_probability), 0, self.noise_multiplier, order)

    def loss_distribution(self, interval: float) -> Any:
        """`dp_accounting`'s, of all `count` releases."""
        if self.sampling_probability == 1:
            return loss_grid.gaussian(self._together, 1.0, interval)
        return loss_grid.gaussian(self.noise_multiplier, self.sampling_probability, interval).self_compose(self.count)

    @property
    def _together(self) -> float:
        return self.noise_multiplier / math.sqrt(self.count)

    def dp_event(self) -> Any:
        """As an event of `dp_accounting`, whose noise is relative to the sensitivity too."""
        import dp_accounting as dp

        one: dp.DpEvent = dp.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_probability < 1:
            one = dp.PoissonSampledDpEvent(self.sampling_probability, one)
        return one if self.count == 1 else dp.SelfComposedDpEvent(one, self.count)


Cost = Pure | Gaussian


class Least(NamedTuple):
    """The least ε known of several releases together.

    Attributes:
      epsilon: an upper bound; inf if none is known.
      accountant: what gave it: "PLD" (their common privacy loss distribution, or the exact curve of one Gaussian),
        "RDP" (Rényi DP) or "sum" (of pure releases' ε).
    """

    epsilon: float
    accountant: Literal["PLD", "RDP", "sum"]


class _Composed(NamedTuple):
    """The distribution of the first `costs` costs of an account, on a grid of `interval`."""

    interval: float
    costs: int
    distribution: Any


class Account:
    """Releases that come one after another, and what they cost together; `plus` returns a new account.

    What was composed is kept: a further release is one convolution, whatever the number before it. When the range of
    losses has outgrown the grid, all are composed once more, on a grid at least twice as wide.

    Attributes:
      delta: δ that ε is stated at, in [0, 1).
      costs: of all releases, in order.
    """

    def __init__(self, delta: float) -> None:
        """Begins without a release. Raises ValueError unless `delta` is in [0, 1)."""
        if delta != 0:
            checks.between("delta", delta, 0, 1, "1e-6 is usual, below 1 / records")
        self.delta = delta
        self.costs: tuple[Cost, ...] = ()
        self._composed: _Composed | None = None
        self._divergences: dict[float, tuple[int, float]] = {}  # at an order: of so many costs, their sum

    def plus(self, costs: Sequence[Cost]) -> Account:
        """Returns the account with these releases too."""
        larger = Account(self.delta)
        larger.costs = (*self.costs, *costs)
        larger._composed, larger._divergences = self._composed, dict(self._divergences)
        return larger

    @functools.cached_property
    def least(self) -> Least:
        """The least ε known at `delta` of all releases together; 0 for none.

        Raises:
          ValueError: δ is 0 (or with sampling below 1e-12) and a release is not pure.
        """
        gaussians = [cost for cost in self.costs if isinstance(cost, Gaussian)]
        total = math.inf if gaussians else math.fsum(cost.epsilon for cost in self.costs if isinstance(cost, Pure))
        if self.delta == 0 and gaussians:
            raise ValueError("delta is 0 and a release has Gaussian noise: give a delta above 0")
        if self.delta == 0 or not self.costs:
            return Least(total, "sum")
        releases = sum(cost.count for cost in gaussians)
        exact = exact_delta(self.delta) if releases else self.delta
        unsampled = math.inf
        if len(gaussians) == len(self.costs):
            # Sampling never costs: the exact curve without it is a bound, and the answer where nothing is sampled.
            together = sum(cost.count / cost.noise_multiplier**2 for cost in gaussians) ** -0.5
            unsampled = with_failures(gaussian_epsilon(together, exact), self.delta, releases)
            if all(cost.sampling_probability == 1 for cost in gaussians):
                return Least(unsampled, "PLD")
        if self.delta < loss_grid.SMALLEST_DELTA:
            if gaussians:
                raise ValueError(
                    f"delta {self.delta:g} is below {loss_grid.SMALLEST_DELTA:g}, where loss distributions tell nothing"
                )
            return Least(total, "sum")
        rdp, _ = least_by_renyi(self._renyi, exact)
        by_distribution = self._by_distribution(exact)
        if releases:
            rdp, by_distribution = (with_failures(eps, self.delta, releases) for eps in (rdp, by_distribution))
        return min(Least(min(by_distribution, unsampled), "PLD"), Least(rdp, "RDP"), Least(total, "sum"))

    def _by_distribution(self, delta: float) -> float:
        """ε at `delta` of the common loss distribution; inf where it cannot be told."""
        # Everybody's releases of one noise are one Gaussian.
        convolutions = sum(
            cost.count if isinstance(cost, Gaussian) and cost.sampling_probability < 1 else 1 for cost in self.costs
        )
        if delta < loss_grid.least_delta(convolutions):
            return math.inf
        largest = max(cost.largest_loss for cost in self.costs)
        interval = loss_grid.choose_interval(largest, self._renyi, loss_grid.FINE)
        if self._composed is not None:
            interval = max(interval, self._composed.interval)
        return loss_grid.read_epsilon(self._compose, interval, delta)

    def _compose(self, interval: float) -> Any:
        """`dp_accounting`'s distribution of all releases, which begins with what is kept if the grid is the same."""
        kept = self._composed
        count, composed = (kept.costs, kept.distribution) if kept and kept.interval == interval else (0, None)
        for cost in self.costs[count:]:
            one = cost.loss_distribution(interval)
            composed = one if composed is None else composed.compose(one)
        self._composed = _Composed(interval, len(self.costs), composed)
        return composed

    def _renyi(self, order: float) -> float:
        """Rényi divergence of all releases together, from the sum that is kept."""
        count, total = self._divergences.get(order, (0, 0.0))
        total += math.fsum(cost.renyi(order) for cost in self.costs[count:])
        self._divergences[order] = (len(self.costs), total)
        return total


def epsilon(costs: Sequence[Cost], delta: float) -> float:
    """Least ε known at `delta` of all releases together; 0 for none. An upper bound.

    With δ = 0 the ε of pure releases add up. Else it is the smaller of what their common privacy loss distribution (or
    the exact curve where all are Gaussian without sampling) and Rényi DP say, or that sum where it is smaller still.
    With Gaussian releases it includes the failures of floating-point noise (`privacy.noise.training`).

    Raises:
      ValueError: δ is not in [0, 1), or is 0 (or with sampling below 1e-12) and a release is not pure.
    """
    return Account(delta).plus(costs).least.epsilon


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
