"""Aligns a model for being used with best-of-n: the policy whose best-of-n wins most, at a price for its KL.

The reference and the policy π are both used with best-of-n. The aim is the win rate between the two, ties counted one
half, less β KL(π ‖ p). With G and F the cumulative probabilities of p and π over the levels and V = (G^n + (G⁻)^n)/2,
it is Σ V (F^n - (F⁻)^n) - β KL, a concave function of π. Its maximum has π proportional to p e^(Φ/β) with

    Φ(level j) = -n Σ_{k >= j} (V_{k+1} - V_k) F_k^(n - 1),

a transform of the reward's quantile. For n = 1 it is the quantile itself, and π the usual tilt of the win rate.

From a policy π, one step of the fixed point leads towards π' proportional to p e^(Φ/β). The win rate is concave, so at
most its linearisation at π, and that less the price is largest at π'. So the objective of π is at most β KL(π ‖ π')
below the maximum. This gap is the check of convergence.

Reference: Balashankar et al. 2024, "InfAlign: inference-time language model alignment",
https://arxiv.org/abs/2412.19792.
"""

from dataclasses import dataclass

import numpy as np

from models.alignment.checks import Array, require_integer, require_number
from models.alignment.outcomes import Outcomes, kl_divergence

_GAP = 1e-10
_ROUNDING = 1e-13  # of the objective, which is of order 1
_ITERATIONS = 1_000


@dataclass(frozen=True, eq=False)
class InferenceTimeOptimum:
    """Holds the policy that is optimal under best-of-n, and the transform of rewards that leads to it.

    Attributes:
      distribution: the policy over the outcomes, `[K]`.
      rewards: transformed reward Φ of each outcome, `[K]`, 0 for the best. The usual KL-constrained training with them,
        at price β, gives the policy.
      win_rate: probability that best-of-n of the policy beats best-of-n of the reference; ties count one half.
      kl: KL(policy ‖ reference) in nats.
      objective: win_rate - β kl.
      iterations: number of steps until the objective was within 1e-10 of the maximum, a proved bound.
    """

    distribution: Array
    rewards: Array
    win_rate: float
    kl: float
    objective: float
    iterations: int


def align_for_best_of_n(outcomes: Outcomes, n: int, beta: float) -> InferenceTimeOptimum:
    """Finds the policy that is optimal under best-of-n, by a damped fixed point.

    For a transform of quantiles without ties pass many equally likely outcomes: `Outcomes(np.full(m, 1 / m),
    np.arange(m))`; outcome i stands for the quantile (i + 1/2)/m. Takes some 20 to 200 steps of O(L) time each.

    Args:
      outcomes: outcomes of the reference.
      n: number of samples that policy and reference choose from, >= 1.
      beta: price of KL in units of win rate per nat, > 0.

    Raises:
      ValueError: an argument is outside its range, or the fixed point was not reached in 1,000 steps.
    """
    n = require_integer("n", n, 1)
    require_number("n", n)
    beta = require_number("beta", beta, 0, exclude_least=True)
    win = (outcomes.at_most**n + outcomes.below**n) / 2
    policy = aim = outcomes.masses
    found, damping = -np.inf, 1.0
    for iteration in range(_ITERATIONS):
        trial = (1 - damping) * policy + damping * aim
        cumulative = np.minimum(np.cumsum(trial), 1.0)
        won = float(win @ np.diff(cumulative**n, prepend=0.0))
        kl = kl_divergence(trial, outcomes.masses)
        if not won - beta * kl >= found - _ROUNDING:
            damping /= 2
            continue
        policy, found, damping = trial, won - beta * kl, min(1.0, 1.2 * damping)
        slopes = np.append(np.diff(win) * cumulative[:-1] ** (n - 1), 0.0)
        transformed = -n * np.cumsum(slopes[::-1])[::-1]
        log_aim = np.log(outcomes.masses) + transformed / beta
        log_aim -= np.logaddexp.reduce(log_aim)
        aim = np.exp(log_aim)
        held = policy > 0
        gap = beta * float(policy[held] @ (np.log(policy[held]) - log_aim[held]))
        if gap <= _GAP:
            rewards = transformed[outcomes.level_of]
            return InferenceTimeOptimum(outcomes.spread(policy), rewards, won, kl, found, iteration)
    raise ValueError(f"beta = {beta!r}: no fixed point after {_ITERATIONS} steps for n = {n}; take a larger beta")
