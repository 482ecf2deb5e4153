"""Selects among a drafter's samples for a target model, approximately: guided speculative selection is never lossless.

The aim is the target's tilt π_B e^(r / temperature) / Z. Soft best-of-n among n samples of the drafter π_S, with the
rewards of `approximate_guided_rewards`, approaches it as n grows and has another distribution for every finite n. Use
`models.decoding` where the text must have the target's distribution exactly.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from models.alignment.checks import (
    Array,
    read_numbers,
    require_integer,
    require_log_probabilities,
    require_number,
    require_vector,
)


def approximate_guided_rewards(
    rewards: ArrayLike,
    target_log_probabilities: ArrayLike,
    drafter_log_probabilities: ArrayLike,
    temperature: float,
) -> Array:
    """Returns r + temperature (log π_B - log π_S), `[n]`: the rewards with which `SoftBestOfN` is guided.

    A sample that the target cannot produce (log π_B = -inf) gets 800 temperatures less than the lowest of the others.
    So it is selected only if there are no others.

    Use them with the same temperature: `SoftBestOfN(n, temperature).select(Candidates(samples, guided), seed)`. The
    result is an approximation of the target's tilt, and never lossless; `approximate_guided_kl_bound` says how good.

    Args:
      rewards: reward of each of the drafter's samples, `[n]`.
      target_log_probabilities: log-probability of each sample under the target, `[n]`, in nats; may hold -inf.
      drafter_log_probabilities: the same under the drafter, as sampled from, `[n]`.
      temperature: unit of reward, > 0.

    Raises:
      ValueError: an argument is outside its range, the shapes differ, or the target can produce no sample.
    """
    r = require_vector("rewards", rewards)
    target = read_numbers("target_log_probabilities", target_log_probabilities)
    possible = target != -np.inf
    target = require_log_probabilities("target_log_probabilities", np.where(possible, target, 0.0), len(r))
    drafter = require_log_probabilities("drafter_log_probabilities", drafter_log_probabilities, len(r))
    unit = require_number("temperature", temperature, 0, exclude_least=True)
    if not possible.any():
        raise ValueError("target_log_probabilities are all -inf: the target can produce none of the samples; draw more")
    guided = r + unit * (target - drafter)
    return np.where(possible, guided, guided[possible].min() - 800 * unit)


def approximate_guided_kl_bound(n: int, chi_squared: float, reward_range: float, temperature: float) -> float:
    """Returns a proved bound of KL(target's tilt ‖ guided selection) in nats.

    It is log(1 + ((χ² + 1) e^(2 range / temperature) - 1) / n), from KL(tilt ‖ soft best-of-n) <= log(1 + χ²(tilt ‖
    π_S) / n) and tilt <= π_B e^(range / temperature).

    Args:
      n: number of samples, >= 1.
      chi_squared: χ²(π_B ‖ π_S) = E_S (π_B / π_S)² - 1, >= 0.
      reward_range: highest less lowest reward, >= 0.
      temperature: unit of reward, > 0.

    Raises:
      ValueError: an argument is outside its range.
    """
    count = require_integer("n", n, 1)
    growth = math.log1p(require_number("chi_squared", chi_squared, 0))
    growth += (
        2
        * require_number("reward_range", reward_range, 0)
        / require_number("temperature", temperature, 0, exclude_least=True)
    )
    # log((n - 1 + e^growth) / n), whatever its size.
    return float(np.logaddexp(math.log(count - 1) if count > 1 else -math.inf, growth) - math.log(count))
