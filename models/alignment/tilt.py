"""Finds the optimal policy for a KL budget or for a reward: the reference tilted by e^(reward_weight · reward).

Among all policies with KL(policy ‖ p) <= Δ the largest expected reward is that of φ = p e^(λ r) / Z, with λ >= 0 such
that KL(φ ‖ p) = Δ. λ is called `reward_weight` here; its inverse is the price of KL at which the tilt is optimal, and
the gain in reward for a little more budget. If Δ reaches -log p(argmax r), φ is p given the best level, and λ infinite.

Reference: Yang et al. 2024, "Asymptotics of language model alignment", https://arxiv.org/abs/2404.01730.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from models.alignment.checks import Array, read_numbers, require_number, require_vector
from models.alignment.outcomes import Outcomes, sum_divergence
from models.alignment.search_root import increasing_root


@dataclass(frozen=True, eq=False)
class Tilt:
    """Holds a tilted reference.

    Attributes:
      reward_weight: λ, per unit of reward; ±infinity is the reference given its best or worst level.
      distribution: probabilities of the outcomes, `[K]`.
      kl: KL(tilt ‖ reference) in nats.
      reward: expected reward.
    """

    reward_weight: float
    distribution: Array
    kl: float
    reward: float

    def divergence(self, kl: float, reward: float) -> float:
        """Returns KL(policy ‖ tilt) in nats, of any policy with this KL from the reference and expected reward.

        It is the identity KL(policy ‖ p) - KL(tilt ‖ p) + λ (reward of the tilt - reward of the policy).

        Args:
          kl: KL(policy ‖ reference) in nats, >= 0.
          reward: expected reward of the policy.

        Raises:
          ValueError: an argument is not finite, or `kl` is negative.
        """
        kl, lacking = require_number("kl", kl, 0), self.reward - require_number("reward", reward)
        return kl - self.kl + (self.reward_weight * lacking if lacking else 0.0)


@dataclass(frozen=True)
class Optimality:
    """Says how far a policy is from optimal, by its KL and expected reward.

    Attributes:
      best_reward: largest expected reward of any policy with the same KL.
      lost_reward: what the policy lacks of it.
      least_kl: smallest KL of any policy with the same expected reward, in nats.
      wasted_kl: what the policy's KL is above it.
      divergence: KL(policy ‖ tilt of the same KL) in nats.
    """

    best_reward: float
    lost_reward: float
    least_kl: float
    wasted_kl: float
    divergence: float


def tilt(outcomes: Outcomes, reward_weight: float) -> Tilt:
    """Tilts the reference.

    Args:
      outcomes: outcomes of the reference.
      reward_weight: λ per unit of reward; negative ones lower the reward.

    Raises:
      ValueError: `reward_weight` is not finite, or too large for the span of the rewards.
    """
    reward_weight = require_number("reward_weight", reward_weight)
    if math.isinf(reward_weight * _span(outcomes)):
        raise ValueError(
            f"reward_weight = {reward_weight!r}: times {_span(outcomes):.3g}, the span of the rewards, must be finite"
        )
    return _tilt(outcomes, reward_weight)


def tilt_to_kl(outcomes: Outcomes, kl: float) -> Tilt:
    """Returns the policy with the largest expected reward among those with a KL of at most `kl`.

    Args:
      outcomes: outcomes of the reference.
      kl: budget Δ in nats, >= 0. With 0, or if all rewards are equal, the result is the reference.

    Raises:
      ValueError: `kl` is negative or not finite.
    """
    kl = require_number("kl", kl, 0)
    if kl == 0 or len(outcomes.levels) == 1:
        return _tilt(outcomes, 0.0)
    if kl >= largest_kl(outcomes) - 1e-12:
        return _tilt(outcomes, math.inf)
    span = _span(outcomes)
    return _tilt(outcomes, increasing_root(lambda scaled: _moments(outcomes, scaled / span)[1], kl) / span)


def tilt_to_reward(outcomes: Outcomes, reward: float) -> Tilt:
    """Returns the policy with the smallest KL among those with this expected reward.

    Args:
      outcomes: outcomes of the reference.
      reward: expected reward, from the lowest to the highest reward; below the reference's, λ is negative.

    Raises:
      ValueError: no policy has that reward.
    """
    levels = outcomes.levels
    reward = require_number("reward", reward, float(levels[0]), float(levels[-1]))
    mean = float(outcomes.masses @ levels)
    if reward == mean or len(levels) == 1:
        return _tilt(outcomes, 0.0)
    sign = 1.0 if reward > mean else -1.0
    if reward == levels[-1 if sign > 0 else 0]:
        return _tilt(outcomes, sign * math.inf)
    span = _span(outcomes)
    found = increasing_root(lambda scaled: sign * _moments(outcomes, sign * scaled / span)[2], sign * reward)
    return _tilt(outcomes, sign * found / span)


def largest_kl(outcomes: Outcomes) -> float:
    """Returns -log p(argmax r) in nats: with a larger budget no policy has a higher expected reward."""
    return max(0.0, float(-np.log(outcomes.masses[-1])))


def optimality(outcomes: Outcomes, kl: float, reward: float) -> Optimality:
    """Compares a policy with the optimal ones.

    Args:
      outcomes: outcomes of the reference.
      kl: KL(policy ‖ reference) in nats, >= 0.
      reward: expected reward of the policy. If it is outside the range of rewards by less than 1e-9 of the largest
        absolute reward, which is taken for rounding, it counts as the end of the range.

    Raises:
      ValueError: no policy has this KL and reward.
    """
    lowest, highest = float(outcomes.levels[0]), float(outcomes.levels[-1])
    reward, rounding = require_number("reward", reward), 1e-9 * max(abs(lowest), abs(highest))
    if lowest - rounding <= reward <= highest + rounding:
        reward = min(max(reward, lowest), highest)
    best = tilt_to_kl(outcomes, kl)
    least = tilt_to_reward(outcomes, reward)
    if least.kl > kl + 1e-9 * max(1.0, kl):
        raise ValueError(
            f"reward = {reward!r}: must be at most {best.reward:.9g} at kl = {kl!r}; one is not this policy's"
        )
    lost = max(0.0, best.reward - reward)
    divergence = max(0.0, best.divergence(kl, best.reward - lost))
    return Optimality(best.reward, lost, least.kl, max(0.0, kl - least.kl), divergence)


def tilted_logits(logits: ArrayLike, token_rewards: ArrayLike, reward_weight: float) -> Array:
    """Adds λ times each token's reward to logits.

    For a model whose tokens are independent, and a reward that is a sum over tokens, this is the optimal policy of
    whole texts: a budget of m δ nats for m tokens has the λ of δ nats for one. For other models it is a heuristic.

    Args:
      logits: `[..., V]`; may hold -inf.
      token_rewards: reward of each token, `[V]`.
      reward_weight: λ per unit of reward.

    Raises:
      ValueError: the number of tokens differs, a logit is NaN or +inf, or a reward or the weight is not finite.
    """
    values = read_numbers("logits", logits)
    if not values.ndim:
        raise ValueError("logits has shape []: must have shape [..., V]")
    if not np.all(values < np.inf):
        raise ValueError("logits holds NaN or inf: must be finite numbers, or -inf for tokens that cannot be drawn")
    rewards = require_vector("token_rewards", token_rewards, values.shape[-1])
    return np.asarray(values + require_number("reward_weight", reward_weight) * rewards)


def _span(outcomes: Outcomes) -> float:
    return float(outcomes.levels[-1] - outcomes.levels[0])


def _tilt(outcomes: Outcomes, reward_weight: float) -> Tilt:
    distribution, kl, reward = _moments(outcomes, reward_weight)
    return Tilt(reward_weight, outcomes.spread(distribution), kl, reward)


def _moments(outcomes: Outcomes, reward_weight: float) -> tuple[Array, float, float]:
    """Returns distribution over levels, KL and expected reward of a tilt."""
    p, levels = outcomes.masses, outcomes.levels
    if math.isinf(reward_weight):
        chosen = len(levels) - 1 if reward_weight > 0 else 0
        return np.eye(1, len(levels), chosen)[0], float(-np.log(p[chosen])), float(levels[chosen])
    mean = float(p @ levels)
    exponents = reward_weight * (levels - mean)
    top = max(0.0, float(exponents.max()))
    if top < 1:
        # log Z is of second order in λ here; expm1 keeps its digits.
        log_z = math.log1p(float(p @ np.expm1(exponents)))
    else:
        log_z = top + math.log(float(p @ np.exp(exponents - top)))
    distribution = p * np.exp(exponents - log_z)
    kl = sum_divergence(distribution, p, exponents - log_z)
    return distribution, kl, mean + float(distribution @ (levels - mean))
