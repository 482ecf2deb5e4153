"""Computes best-of-n, the policy that draws n samples and keeps the one with the highest reward: exactly, or by draws.

With p the reference's distribution of levels (outcomes of equal reward are one level), F its cumulative probability
and F⁻ = F - p, best-of-n has the distribution F^n - (F⁻)^n. Its KL is at most log n - (n - 1)/n, and below that by as
much as outcomes are likely: it never exceeds log 1/p(best).

Where n is a real number, formulas hold for real n, which need not be the number of samples of anything.

Reference: Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment policy",
https://arxiv.org/abs/2401.01879.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from models.alignment.candidates import Candidates
from models.alignment.checks import Array, require_log_probabilities, require_number
from models.alignment.outcomes import AT_ONCE, Outcomes, sum_divergence
from models.alignment.policy import Policy, kl_bound

_NORMAL_95 = 1.959963984540054
_LEAST_DRAWS = 32  # of 32 draws of skewed outcomes, normal intervals cover in 94 % of cases; of 4 in half


class BestOfN(Policy):
    """Selects the candidate with the highest reward; among equal ones each sample has the same chance."""

    def log_weights(self, candidates: Candidates) -> Array:
        """Returns 0 for each candidate with the highest reward, and -inf for the others."""
        return np.where(candidates.rewards == candidates.rewards.max(), 0.0, -np.inf)

    def distribution(self, outcomes: Outcomes) -> Array:
        """Returns the distribution of best-of-n over the outcomes, `[K]`; within a level it is as the reference's."""
        return outcomes.spread(level_distribution(outcomes, self.n))


def level_distribution(outcomes: Outcomes, n: float) -> Array:
    """Returns F^n - (F⁻)^n, the distribution of best-of-n over the levels, `[L]`.

    Args:
      outcomes: outcomes of the reference.
      n: number of samples, a real number >= 1.

    Raises:
      ValueError: `n` is below 1 or not finite.
    """
    return np.exp(_log_levels(outcomes, n))


def kl(outcomes: Outcomes, n: float) -> float:
    """Returns KL(best-of-n ‖ reference) in nats, exact but for rounding.

    Args:
      outcomes: as for `level_distribution`.
      n: as for `level_distribution`.

    Raises:
      ValueError: `n` is below 1 or not finite.
    """
    log_levels = _log_levels(outcomes, n)
    return sum_divergence(np.exp(log_levels), outcomes.masses, log_levels - np.log(outcomes.masses))


def kl_bounds(outcomes: Outcomes, n: float) -> tuple[float, float]:
    """Returns proved bounds of the KL in nats, from the best level's probability ε alone: d₂ and D̂(ε).

    d₂ is the KL between hitting and missing the best level, so at most the KL. D̂(ε), of `kl_estimator`, is the KL if
    all outcomes but the best are divided without end, so at least the KL.

    Args:
      outcomes: as for `level_distribution`.
      n: as for `level_distribution`.

    Raises:
      ValueError: `n` is below 1 or not finite.
    """
    log_best = np.log(outcomes.masses[-1:])
    lower, _ = _binary_kl(log_best, require_number("n", n, 1))
    return max(0.0, float(lower[0])), float(kl_estimator(log_best, n)[0])


def kl_gap_bounds(outcomes: Outcomes, n: float) -> tuple[float, float]:
    """Returns proved bounds of the gap, `kl_bound(n)` less the KL, in nats.

    The lower one is `kl_bound(n)` - D̂(ε) with the best level's probability ε; it grows as log(n ε) where n ε >> 1
    (Theorem 3.6). The upper one is 2 n (n - 1) Σ p² (Theorem 3.4), which is loose: `kl_gap_expansion` is the gap where
    all n p are small.

    Args:
      outcomes: as for `level_distribution`.
      n: as for `level_distribution`.

    Raises:
      ValueError: `n` is below 1 or not finite.
    """
    _, most = kl_bounds(outcomes, n)
    n = float(n)
    return max(0.0, kl_bound(n) - most), 2 * n * (n - 1) * float(np.sum(outcomes.masses**2))


def kl_gap_expansion(outcomes: Outcomes, n: float) -> float:
    """Returns Σ p³ n (n - 1)² u^(n - 3) / 24 with u = (F + F⁻)/2, the gap to second order in p, in nats.

    Args:
      outcomes: as for `level_distribution`.
      n: as for `level_distribution`.

    Raises:
      ValueError: `n` is below 1 or not finite.
    """
    n = require_number("n", n, 1)
    middle = outcomes.below + outcomes.masses / 2
    # p (p / u)² u^(n - 1): no power here overflows, however small p is.
    terms = outcomes.masses * (outcomes.masses / middle) ** 2 * middle ** (n - 1)
    return float(np.sum(terms)) * n * (n - 1) * (n - 1) / 24


def win_rate(outcomes: Outcomes, n: float) -> float:
    """Returns the probability that best-of-n beats one draw of the reference; ties count one half.

    Args:
      outcomes: as for `level_distribution`.
      n: as for `level_distribution`.

    Raises:
      ValueError: `n` is below 1 or not finite.
    """
    return outcomes.win_rate(level_distribution(outcomes, n))


def win_rate_bounds(outcomes: Outcomes, n: float) -> tuple[float, float]:
    """Returns n/(n + 1) - (n - 1)/2 Σ p², or 1/2 if that is more, and n/(n + 1) (Theorems 5.3 and 5.4).

    Args:
      outcomes: as for `level_distribution`.
      n: as for `level_distribution`.

    Raises:
      ValueError: `n` is below 1 or not finite.
    """
    n = require_number("n", n, 1)
    most = n / (n + 1)
    return max(0.5, most - (n - 1) / 2 * float(np.sum(outcomes.masses**2))), most


def expected_estimate(outcomes: Outcomes, n: float) -> tuple[float, float]:
    """Returns mean and standard deviation of `kl_estimator` over the draws of best-of-n, exact, in nats.

    Args:
      outcomes: as for `level_distribution`.
      n: as for `level_distribution`.

    Raises:
      ValueError: `n` is below 1 or not finite.
    """
    chosen, estimates = level_distribution(outcomes, n), kl_estimator(np.log(outcomes.masses), n)
    mean = float(chosen @ estimates)
    return mean, math.sqrt(float(chosen @ (estimates - mean) ** 2))


def kl_estimator(log_probability: ArrayLike, n: float) -> Array:
    """Returns D̂(ε), in nats, for each log ε: the estimate of best-of-n's KL by one draw of it.

    With ε the selected level's probability under the reference,

        D̂(ε) = (1 - ε)^n (log n - (n - 1)/n) + d₂,

    where d₂ is the binary KL between 1 - (1 - ε)^n and ε. D̂ lies between 0 and `kl_bound(n)`, falls as ε grows, and is
    the exact KL if the selected level is the best one and the others are divided without end. The mean over draws is at
    least the KL in all cases ever tried, but this is a conjecture; `kl_bounds` has what is proved.

    Args:
      log_probability: log ε in nats, `[M]`, <= 0; may be as low as that of long texts, -1e5 and below. ε is under the
        distribution that was sampled from, with equal rewards and duplicates joined (`Candidates.log_probability`).
      n: number of samples, a real number >= 1.

    Raises:
      ValueError: a log-probability is above 0 or not finite, or `n` is below 1.
    """
    log_eps = require_log_probabilities("log_probability", log_probability)
    bound = kl_bound(n)
    divergence, misses = _binary_kl(log_eps, float(n))
    return np.clip(misses * bound + divergence, 0.0, bound)


@dataclass(frozen=True)
class KLEstimate:
    """Holds an estimate of best-of-n's KL by draws.

    Attributes:
      kl: mean of `kl_estimator` over the draws, in nats.
      standard_error: of that mean; NaN for one draw.
      interval: 95 % normal interval within [0, bound]; None for fewer than 32 draws, where it would often miss. It
        covers the mean of D̂, which is at least the KL in all known cases.
      bound: log n - (n - 1)/n, which is often printed as the KL.
      draws: number M of draws.
    """

    kl: float
    standard_error: float
    interval: tuple[float, float] | None
    bound: float
    draws: int


def estimate_kl(log_probabilities: ArrayLike, n: int) -> KLEstimate:
    """Estimates KL(best-of-n ‖ reference) from the probabilities of selected samples.

    Args:
      log_probabilities: log ε of the selected sample of each independent draw of best-of-n, `[M]`, as in
        `kl_estimator`. Draws for several prompts estimate the mean KL over prompts.
      n: number of samples of each draw, >= 1.

    Raises:
      ValueError: a log-probability is above 0 or not finite, or `n` is below 1.
    """
    estimates, bound = kl_estimator(log_probabilities, n), kl_bound(n)
    mean, draws = min(float(estimates.mean()), bound), len(estimates)
    error = float(estimates.std(ddof=1)) / math.sqrt(draws) if draws > 1 else math.nan
    interval = None
    if draws >= _LEAST_DRAWS:
        interval = max(0.0, mean - _NORMAL_95 * error), min(bound, mean + _NORMAL_95 * error)
    return KLEstimate(mean, error, interval, bound, draws)


def draws_needed(n: float, kl: float, relative_error: float, failure_probability: float = 0.05) -> int:
    """Returns a number M of draws whose mean of D̂ is off by more than `relative_error` with probability at most δ.

    It is 3 bound log(2/δ) / (relative_error² kl), of order log n log 1/δ, by Chernoff's bound for values in [0, bound].
    It suffices whatever the outcomes are. Mostly far fewer do; the standard error of `estimate_kl` shows how many.

    Args:
      n: number of samples, a real number > 1.
      kl: lower bound of D̂'s mean, and so of the KL, in nats; > 0.
      relative_error: largest |mean - expectation| / expectation, in (0, 1].
      failure_probability: probability δ of a larger error, in (0, 1].

    Raises:
      ValueError: an argument is outside its range.
    """
    bound = kl_bound(require_number("n", n, 1, exclude_least=True))
    kl = require_number("kl", kl, 0, bound, exclude_least=True)
    share = require_number("relative_error", relative_error, 0, 1, exclude_least=True)
    delta = require_number("failure_probability", failure_probability, 0, 1, exclude_least=True)
    draws = 3 * bound * (math.log(2) - math.log(delta)) / kl / share / share
    if math.isinf(draws):
        raise ValueError(f"relative_error = {share!r}: needs too many draws for kl = {kl!r}; take a larger one")
    return math.ceil(draws)


def _log_levels(outcomes: Outcomes, n: float) -> Array:
    """Returns log(F^n - (F⁻)^n) without the cancellation of the difference, and of F near 1."""
    n = require_number("n", n, 1)
    result = np.empty(len(outcomes.masses))
    for first in range(0, len(result), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        above, at_most, masses = outcomes.above[some], outcomes.at_most[some], outcomes.masses[some]
        with np.errstate(divide="ignore"):
            log_at_most = np.where(above < 0.5, np.log1p(-above), np.log(at_most))
            all_below = n * np.log1p(-np.minimum(masses / at_most, 1.0))
            result[some] = n * log_at_most + np.log(-np.expm1(all_below))
    return result


def _binary_kl(log_eps: Array, n: float) -> tuple[Array, Array]:
    """Returns the KL between the events of probability 1 - (1 - ε)^n and ε, and (1 - ε)^n."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log_rest = np.where(log_eps > -0.5, np.log(-np.expm1(log_eps)), np.log1p(-np.exp(log_eps)))
        hits, misses = -np.expm1(n * log_rest), np.exp(n * log_rest)
        # Where n ε < e^-40, hits / ε is n, though ε itself may be too small for a float.
        log_gain = np.where(log_eps + math.log(n) < -40, math.log(n), np.log(hits) - log_eps)
        return hits * log_gain + np.where(misses > 0, misses * (n - 1) * log_rest, 0.0), misses
