"""Computes the best trade of win rate against KL that any policy can have, and best-of-n and rejection beside it.

Let u be the quantile of an outcome's reward under the reference, drawn uniformly within its level. Under the reference
u is uniform on [0, 1], whatever the outcomes are. The win rate of a policy, ties counted one half, is its mean of u.
Among all densities on [0, 1] with the same KL from the uniform one, the exponential tilt proportional to e^(b u) has
the largest mean. So its curve bounds every policy, and is reached where no outcome has a noticeable probability.

Reference: Beirami et al. 2024, section 7, https://arxiv.org/abs/2401.01879.
"""

import math

from models.alignment.checks import require_number
from models.alignment.search_root import increasing_root

_SERIES_BELOW = 0.02
_LARGE = 40.0  # e^-40 is nothing beside 1


def tilted_quantile(strength: float) -> tuple[float, float]:
    """Returns win rate and KL, in nats, of the density b e^(b u) / (e^b - 1) on [0, 1].

    Args:
      strength: b, >= 0; 0 is the reference.

    Raises:
      ValueError: `strength` is negative or not finite.
    """
    b = require_number("strength", strength, 0)
    if b < _SERIES_BELOW:
        return 0.5 + b / 12 - b**3 / 720 + b**5 / 30240, b**2 / 24 - b**4 / 960 + b**6 / 36288
    if b > _LARGE:
        return 1 - 1 / b, math.log(b) - 1
    win_rate = 1 / -math.expm1(-b) - 1 / b
    return win_rate, b * win_rate - (b + math.log(-math.expm1(-b)) - math.log(b))


def best_win_rate(kl: float) -> float:
    """Returns the largest win rate, ties counted one half, of any policy with a KL of at most `kl` nats.

    Args:
      kl: KL from the reference in nats, >= 0.

    Raises:
      ValueError: `kl` is negative or not finite.
    """
    kl = require_number("kl", kl, 0)
    if kl > _LARGE:  # the win rate is 1 - e^(-kl - 1), which is 1 to all digits
        return 1.0
    return tilted_quantile(increasing_root(lambda b: tilted_quantile(b)[1], kl))[0] if kl else 0.5


def least_kl(win_rate: float) -> float:
    """Returns the smallest KL, in nats, of any policy with a win rate of at least `win_rate`, ties counted one half.

    Args:
      win_rate: from 0.5 to 1 - 1e-9.

    Raises:
      ValueError: `win_rate` is outside its range; a win rate of 1 needs an infinite KL.
    """
    win_rate = require_number("win_rate", win_rate, 0.5, 1 - 1e-9)
    if win_rate == 0.5:
        return 0.0
    return tilted_quantile(increasing_root(lambda b: tilted_quantile(b)[0], win_rate))[1]


def rejection_win_rate(kl: float) -> float:
    """Returns 1 - e^(-kl)/2, the win rate of drawing until the reward is in the best share e^(-kl), without ties.

    It takes e^kl draws in the mean. At equal win rate its KL exceeds that of best-of-n by up to 1 - log 2 = 0.307 nats.

    Args:
      kl: KL from the reference in nats, >= 0: the log of one over the share.

    Raises:
      ValueError: `kl` is negative or not finite.
    """
    return 1 - math.exp(-require_number("kl", kl, 0)) / 2
