"""Compares best-of-n with the optimal tilt for long texts of independent tokens and a reward that is a sum over them.

Let p be the distribution of one token's outcome and m the number of tokens. Best-of-N with N = e^(m δ) then has, per
token, the KL δ and the reward of the tilt with KL δ in the limit, and its KL from that tilt of whole texts is o(m). The
KL itself does not vanish: it grows as (log m)/2, since the total reward of best-of-N stays in a window of O(1) and that
of the tilt in one of √m.

Reference: Yang et al. 2024, "Asymptotics of language model alignment", https://arxiv.org/abs/2404.01730.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from models.alignment.checks import Array, require_distribution, require_integer, require_number
from models.alignment.outcomes import Outcomes
from models.alignment.tilt import largest_kl, tilt_to_kl, tilt_to_reward

_LARGEST_TOTAL = 1_000_000
_NEAR_ONE = 1e-4  # of a Rényi order, where log(Σ p q^(α - 1)) would lose the digits that remain


@dataclass(frozen=True)
class LongText:
    """Holds best-of-N for texts of m tokens, N = e^(m δ), exact.

    Attributes:
      tokens: m.
      log_n: log N = m δ.
      reward: expected total reward per token.
      kl: KL(best-of-N ‖ reference) per token, in nats.
      kl_bound: log N - (N - 1)/N per token.
      kl_to_tilt: KL(best-of-N ‖ tilt with KL m δ) of whole texts, in nats.
    """

    tokens: int
    log_n: float
    reward: float
    kl: float
    kl_bound: float
    kl_to_tilt: float


def rate_function(outcomes: Outcomes, mean_reward: float) -> float:
    """Returns I(τ), in nats per token: the probability of a mean reward τ over m tokens is e^(-m I(τ) + o(m)).

    It is the KL of the tilt with expected reward τ; 0 at the expected reward, infinite outside the range of rewards.

    Args:
      outcomes: outcomes of one token. For the rate under a tilt pass `Outcomes(tilt.distribution, rewards)`.
      mean_reward: τ.

    Raises:
      ValueError: `mean_reward` is not finite.
    """
    mean_reward = require_number("mean_reward", mean_reward)
    if not outcomes.levels[0] <= mean_reward <= outcomes.levels[-1]:
        return math.inf
    return tilt_to_reward(outcomes, mean_reward).kl


def scaled_cumulant(outcomes: Outcomes, rho: float) -> float:
    """Returns log E e^(ρ r) of one token, which is (1/m) log E e^(ρ Σ r) of m independent tokens.

    If r = log q for a distribution q, it is -ρ times the Rényi cross entropy of order 1 + ρ.

    Args:
      outcomes: outcomes of one token.
      rho: ρ, finite.

    Raises:
      ValueError: `rho` is not finite.
    """
    exponents = require_number("rho", rho) * outcomes.levels
    return float(np.logaddexp.reduce(np.log(outcomes.masses) + exponents))


def renyi_cross_entropy(distribution: ArrayLike, other: ArrayLike, order: float) -> float:
    """Returns H_α(p ‖ q) = log(Σ p q^(α - 1)) / (1 - α) in nats; -Σ p log q for α = 1.

    Args:
      distribution: p, `[K]`.
      other: q, `[K]`.
      order: α, finite.

    Raises:
      ValueError: p or q is no distribution, their shapes differ, or `order` is not finite.
    """
    p = require_distribution("distribution", distribution)
    q = require_distribution("other", other, len(p))
    excess = require_number("order", order) - 1
    held = p > 0
    with np.errstate(divide="ignore"):
        logs = np.log(q[held])
    if excess == 0:
        return float(-p[held] @ logs)
    if abs(excess) < _NEAR_ONE:
        with np.errstate(over="ignore"):
            return float(-np.log1p(p[held] @ np.expm1(excess * logs)) / excess)
    return float(-np.logaddexp.reduce(np.log(p[held]) + excess * logs) / excess)


def total_rewards(outcomes: Outcomes, tokens: int) -> tuple[Array, Array]:
    """Returns the possible total rewards of m independent tokens, ascending, and their log-probabilities in nats.

    Computed by m convolutions in logarithms, so that totals of probability e^-1000 keep their digits.

    Args:
      outcomes: outcomes of one token; rewards are integers.
      tokens: m, >= 1; m times the range of rewards is at most a million.

    Raises:
      ValueError: a reward is not an integer, or `tokens` is outside its range.
    """
    tokens = require_integer("tokens", tokens, 1)
    levels = outcomes.levels
    if not np.array_equal(levels, np.round(levels)):
        bad = float(levels[np.argmax(levels != np.round(levels))])
        raise ValueError(f"rewards has {bad!r}: must be integers; multiply them by a number and round")
    steps = levels - levels[0]
    if not steps[-1] * tokens <= _LARGEST_TOTAL:
        raise ValueError(
            f"tokens = {tokens}: {tokens} × range {steps[-1]:g} of rewards must be at most {_LARGEST_TOTAL}"
        )
    shifts, log_p = steps.astype(int), np.log(outcomes.masses)
    logs = np.zeros(1)
    for _ in range(tokens):
        longer = np.full(len(logs) + shifts[-1], -np.inf)
        for shift, log_mass in zip(shifts, log_p, strict=True):
            part = longer[shift : shift + len(logs)]
            np.logaddexp(part, logs + log_mass, out=part)
        logs = longer
    possible = logs > -np.inf
    return np.flatnonzero(possible) + tokens * levels[0], logs[possible]


def best_of_exponentially_many(outcomes: Outcomes, tokens: int, delta: float) -> LongText:
    """Computes best-of-N for texts of m tokens with N = e^(m δ) samples, N a real number; exact but for rounding.

    Args:
      outcomes: outcomes of one token; rewards are integers.
      tokens: m, as for `total_rewards`.
      delta: δ in nats per token, >= 0 and below `largest_kl`.

    Raises:
      ValueError: an argument is outside its range.
    """
    delta, most = require_number("delta", delta, 0), largest_kl(outcomes)
    if len(outcomes.levels) == 1:
        raise ValueError("rewards are all equal: no choice changes the model; give rewards that differ")
    if not delta < most:
        raise ValueError(f"delta = {delta!r}: must be below {most:.9g}, the largest KL of a tilt per token")
    totals, log_p = total_rewards(outcomes, tokens)
    log_n = tokens * delta
    log_policy = _log_best_of_n(log_p, log_n)
    policy = np.exp(log_policy)
    held = policy > 0
    kl = float(policy[held] @ (log_policy[held] - log_p[held]))
    reward = float(policy @ totals)
    optimal = tilt_to_kl(outcomes, delta)
    to_tilt = kl - tokens * optimal.kl + optimal.reward_weight * (tokens * optimal.reward - reward)
    bound = log_n + math.expm1(-log_n)
    return LongText(tokens, log_n, reward / tokens, kl / tokens, bound / tokens, to_tilt)


def _log_best_of_n(log_p: Array, log_n: float) -> Array:
    """Returns log(F^N - (F⁻)^N) for ascending rewards, where N and probabilities may be outside the range of floats."""
    log_above = np.minimum(np.append(np.logaddexp.accumulate(log_p[:0:-1])[::-1], -np.inf), 0.0)
    log_at_most = np.minimum(np.logaddexp.accumulate(log_p), 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        # -log(F) and -log(F⁻ / F) in logarithms; for x < e^-40, -log(1 - x) is x.
        log_cost = np.where(log_at_most < -1, np.log(-log_at_most), _log_minus_log1m(log_above))
        log_step = _log_minus_log1m(np.minimum(log_p - log_at_most, 0.0))
        missed = np.exp(log_n + log_step)
        # Where N times the step is below e^-40, the difference is that of first order.
        gained = np.where(log_n + log_step < -40, log_n + log_step, np.log(-np.expm1(-missed)))
        return -np.exp(log_n + log_cost) + gained


def _log_minus_log1m(log_x: Array) -> Array:
    """Returns log(-log(1 - x)) from log x."""
    return np.where(log_x < -40, log_x, np.log(-np.log1p(-np.exp(log_x))))
