"""Computes the ε of single releases, and of several releases together.

For several releases, ε is the least of two or three upper bounds. One comes from the joint privacy loss distribution of
all releases, one from Rényi DP. If all releases are pure, the third is the sum of their ε.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

from privacy import checks
from privacy.accounting import loss_grid
from privacy.accounting.composition import any_participation, gaussian_epsilon, least_by_renyi, one_round_rdp
from privacy.noise.training import MAX_EPSILON, exact_delta, with_failures
from privacy.sampling import Poisson

_LOG_NOISE = -13.0, 18.0  # range of the search for the logarithm of a noise multiplier


@dataclasses.dataclass(frozen=True)
class Pure:
    """Describes the cost of one release under pure ε-DP.

    Attributes:
      epsilon: ε of the release, above 0.
    """

    epsilon: float

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.positive("epsilon", self.epsilon, "give the cost of the release")

    @property
    def largest_loss(self) -> float:
        """Returns the largest privacy loss that the release can have."""
        return self.epsilon

    def renyi(self, order: float) -> float:
        """Returns the Rényi divergence at `order`, above 1, of randomised response (see `loss_distribution`)."""
        log_moment = np.logaddexp(self.epsilon * order, self.epsilon * (1 - order)) - np.logaddexp(0.0, self.epsilon)
        rounding = 2.0**-50 * (1 + self.epsilon * order)
        return float(max(log_moment, 0.0) + rounding) / (order - 1)

    def loss_distribution(self, interval: float) -> Any:
        """Returns `dp_accounting`'s loss distribution of randomised response, on a grid of `interval`.

        Randomised response dominates every ε-DP mechanism (Kairouz, Oh and Viswanath 2015, arXiv:1311.0776).
        """
        from dp_accounting.pld import common, privacy_loss_distribution

        parameters = common.DifferentialPrivacyParameters(self.epsilon, 0.0)
        return privacy_loss_distribution.from_privacy_parameters(parameters, interval)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Describes the cost of one or more Gaussian releases of all records, or of a Poisson sample of them.

    Attributes:
      noise_multiplier: standard deviation of the noise / sensitivity under the relation, 1e-6 to 1e8.
      count: number of releases, at least 1.
      sampling_probability: probability in (0, 1] with which each record joins each release, independently of the other
        releases; the default 1 takes every record. Below 1 the relation must be add-or-remove-one.
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
        """Returns the privacy loss at which the distribution of one release is cut off.

        Releases of all records count as one release, whatever their number.
        """
        return loss_grid.largest_loss(
            self._combined_multiplier if self.sampling_probability == 1 else self.noise_multiplier,
            self.sampling_probability,
        )

    def renyi(self, order: float) -> float:
        """Returns the Rényi divergence of all `count` releases together, at an order `order` > 1."""
        if self.sampling_probability == 1:
            return order / (2 * self._combined_multiplier**2)
        return self.count * one_round_rdp(Poisson(self.sampling_probability), 0, self.noise_multiplier, order)

    def loss_distribution(self, interval: float) -> Any:
        """Returns `dp_accounting`'s loss distribution of all `count` releases, on a grid of `interval`."""
        if self.sampling_probability == 1:
            return loss_grid.gaussian(self._combined_multiplier, 1.0, interval)
        return loss_grid.gaussian(self.noise_multiplier, self.sampling_probability, interval).self_compose(self.count)

    @property
    def _combined_multiplier(self) -> float:
        """Returns the multiplier of the one Gaussian release that equals all `count` releases without sampling."""
        return self.noise_multiplier / math.sqrt(self.count)

    def dp_event(self) -> Any:
        """Returns the releases as a `dp_accounting` event; its noise multiplier is noise / sensitivity, too."""
        import dp_accounting as dp

        one: dp.DpEvent = dp.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_probability < 1:
            one = dp.PoissonSampledDpEvent(self.sampling_probability, one)
        return one if self.count == 1 else dp.SelfComposedDpEvent(one, self.count)


Cost = Pure | Gaussian


class Least(NamedTuple):
    """Holds the least ε known for several releases together.

    Attributes:
      epsilon: an upper bound; inf if none is known.
      accountant: the bound that gave it: "PLD" (their joint privacy loss distribution, or the exact curve of one
        Gaussian), "RDP" (Rényi DP) or "sum" (the sum of the ε of pure releases).
    """

    epsilon: float
    accountant: Literal["PLD", "RDP", "sum"]


class _Composed(NamedTuple):
    """Holds the joint loss distribution of the first `costs` costs of an account, on a grid of `interval`."""

    interval: float
    costs: int
    distribution: Any


class Account:
    """Holds a sequence of releases and computes what they cost together; `plus` returns a longer account.

    The composed distribution is kept, so that each further cost takes one convolution, however many came before. When
    the range of losses no longer fits the grid, all releases are composed again with an interval at least twice as
    wide.

    Attributes:
      delta: δ that ε is stated at, in [0, 1).
      costs: costs of all releases, in order.
    """

    def __init__(self, delta: float) -> None:
        """Makes an account without releases. Raises ValueError unless `delta` is in [0, 1)."""
        if delta != 0:
            checks.between("delta", delta, 0, 1, "1e-6 is usual, below 1 / records")
        self.delta = delta
        self.costs: tuple[Cost, ...] = ()
        self._composed: _Composed | None = None
        self._divergences: dict[float, tuple[int, float]] = {}  # by order: number of costs, sum of their divergences

    def plus(self, costs: Sequence[Cost]) -> Account:
        """Returns a new account that also has these releases."""
        larger = Account(self.delta)
        larger.costs = (*self.costs, *costs)
        larger._composed, larger._divergences = self._composed, dict(self._divergences)
        return larger

    @functools.cached_property
    def least(self) -> Least:
        """Returns the least ε known at `delta` for all releases together; 0 if there are none.

        Raises:
          ValueError: there are Gaussian releases and δ is 0; or there are Gaussian releases, δ is below 1e-12, and some
            releases are sampled or pure.
        """
        gaussians = [cost for cost in self.costs if isinstance(cost, Gaussian)]
        total = math.inf if gaussians else add_up(cost.epsilon for cost in self.costs if isinstance(cost, Pure))
        if self.delta == 0 and gaussians:
            raise ValueError("delta is 0 and a release has Gaussian noise: give a delta above 0")
        if self.delta == 0 or not self.costs:
            return Least(total, "sum")
        releases = sum(cost.count for cost in gaussians)
        exact = exact_delta(self.delta) if releases else self.delta
        unsampled = math.inf
        if len(gaussians) == len(self.costs):
            draws = [(cost.sampling_probability, cost.count) for cost in gaussians]
            if any_participation(draws) <= exact:
                return Least(with_failures(0.0, self.delta, releases), "PLD")
            # Sampling never increases ε, so the curve without sampling is an upper bound, and exact if none is sampled.
            multiplier = sum(cost.count / cost.noise_multiplier**2 for cost in gaussians) ** -0.5
            unsampled = with_failures(gaussian_epsilon(multiplier, exact), self.delta, releases)
            if all(cost.sampling_probability == 1 for cost in gaussians):
                return Least(unsampled, "PLD")
        if self.delta < loss_grid.SMALLEST_DELTA:
            if gaussians:
                raise ValueError(
                    f"delta {self.delta:g} is below {loss_grid.SMALLEST_DELTA:g}, too small for ε: give a larger one"
                )
            return Least(total, "sum")
        rdp, _ = least_by_renyi(self._renyi, exact)
        pld = self._pld_epsilon(exact)
        if releases:
            rdp, pld = (with_failures(eps, self.delta, releases) for eps in (rdp, pld))
        return min(Least(min(pld, unsampled), "PLD"), Least(rdp, "RDP"), Least(total, "sum"))

    def _pld_epsilon(self, delta: float) -> float:
        """Returns ε at `delta` by the joint loss distribution of all releases; inf if it cannot be computed."""
        # Without sampling, all releases of one cost are together one Gaussian, which takes one convolution.
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
        """Returns `dp_accounting`'s loss distribution of all releases on a grid of `interval`.

        It starts from the kept distribution if that has the same interval.
        """
        kept = self._composed
        count, composed = (kept.costs, kept.distribution) if kept and kept.interval == interval else (0, None)
        for cost in self.costs[count:]:
            one = cost.loss_distribution(interval)
            composed = one if composed is None else composed.compose(one)
        self._composed = _Composed(interval, len(self.costs), composed)
        return composed

    def _renyi(self, order: float) -> float:
        """Returns the Rényi divergence of all releases at `order`, adding only the new ones to the kept sum."""
        count, total = self._divergences.get(order, (0, 0.0))
        total += math.fsum(cost.renyi(order) for cost in self.costs[count:])
        self._divergences[order] = (len(self.costs), total)
        return total


def add_up(epsilons: Iterable[float]) -> float:
    """Returns the sum of the ε of pure releases, each read as its shortest decimal, which is what a ledger shows.

    The sum is computed exactly and then rounded up to a float. So three releases of 0.1 cost 0.3, and releases of 1 and
    1e-17 cost more than 1.
    """
    total = sum((Fraction(repr(float(each))) for each in epsilons), Fraction(0))
    nearest = float(total)
    return math.nextafter(nearest, math.inf) if Fraction(repr(nearest)) < total else nearest


def epsilon(costs: Sequence[Cost], delta: float) -> float:
    """Returns the least ε known at `delta` for all releases together, an upper bound; 0 if there are none.

    With δ = 0 it is the sum of the ε of pure releases. Otherwise it is the least of three bounds: by the joint privacy
    loss distribution (or the exact curve, if all releases are Gaussian without sampling), by Rényi DP, and by the sum
    if all releases are pure. With Gaussian releases, a reserved share of δ covers the case that floating-point noise is
    farther from exact Gaussian noise than the distance that `privacy.noise.training` proves. ε does not cover
    floating-point attacks.

    Args:
      costs: costs of the releases.
      delta: δ that ε is stated at, in [0, 1).

    Raises:
      ValueError: δ is not in [0, 1), or is too small for these releases (see `Account.least`).
    """
    return Account(delta).plus(costs).least.epsilon


def calibrate(build_costs: Callable[[float], Sequence[Cost]], target: float, delta: float) -> float:
    """Returns the least noise multiplier z, to 0.1 %, at which the ε of `build_costs(z)` is at most `target`.

    z is rounded up, so that ε never exceeds `target`.

    Args:
      build_costs: returns the costs of all releases for a noise multiplier.
      target: largest ε allowed, above 0 and at most 500.
      delta: δ that ε is stated at, in [0, 1).

    Raises:
      ValueError: `target` is out of range, or no noise is enough because the releases that do not depend on z alone
        cost more than `target`.
    """
    from scipy.optimize import brentq

    checks.positive("epsilon", target, "give the budget to keep")
    if target > MAX_EPSILON:
        raise ValueError(f"epsilon {target:g} asks for hardly any noise: give at most {MAX_EPSILON:g}")

    @functools.cache
    def excess(log_z: float) -> float:
        spent = epsilon(build_costs(math.exp(log_z)), delta)
        return math.log(min(max(spent, 1e-12), 1e6) / target)

    # ε is roughly proportional to 1 / z, so each step lands near the root, slightly beyond it.
    guess, low, high = 0.0, -math.inf, math.inf
    while math.isinf(low) or math.isinf(high):
        overshoot = excess(guess)
        low, high = (guess, high) if overshoot > 0 else (low, guess)
        guess += min(max(overshoot + math.copysign(0.05, overshoot), -1.0), 2.0)
        if guess > _LOG_NOISE[1]:
            raise ValueError(
                f"epsilon {target:g} is out of reach: the other releases alone cost more, give a larger epsilon"
            )
        if guess < _LOG_NOISE[0]:
            raise ValueError(f"epsilon {target:g} asks for hardly any noise: give a smaller one")
    root = brentq(excess, low, high, xtol=5e-4)
    while epsilon(build_costs(math.exp(root)), delta) > target:
        root += 5e-4
    return math.exp(root)
