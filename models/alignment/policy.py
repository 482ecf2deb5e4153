"""Defines what every way of choosing one sample has in common: it selects, has an exact distribution and a report."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from models.alignment.candidates import Candidates
from models.alignment.checks import Array, require_integer, require_number
from models.alignment.outcomes import Outcomes, kl_divergence


@dataclass(frozen=True)
class Report:
    """Says what a policy gains over the reference model, and how far it departs from it.

    Attributes:
      reward: expected reward of the policy.
      reference_reward: expected reward of the reference.
      win_rate: probability that the policy's outcome beats one of the reference; ties count one half.
      kl: KL(policy ‖ reference) in nats, exact.
      kl_bound: the bound of `kl_bound`, which holds whatever outcomes and rewards are. It is not the KL.
    """

    reward: float
    reference_reward: float
    win_rate: float
    kl: float
    kl_bound: float


@dataclass(frozen=True)
class Policy(ABC):
    """Chooses one of n independent samples of a reference model.

    Whatever the rule, KL(policy ‖ reference) <= log n - (n - 1)/n, and the win rate is at most n/(n + 1). Proof: one of
    the n samples lies in a set of outcomes of probability t under the reference with probability 1 - (1 - t)^n. No rule
    gives the set more, and best-of-n without ties gives just this to the best outcomes. So its density majorises that
    of every rule, and KL is a convex function of the density.

    Attributes:
      n: number of samples, >= 1.

    Raises:
      ValueError: `n` is not an integer >= 1, or too large for a float.
    """

    n: int

    def __post_init__(self) -> None:
        require_number("n", require_integer("n", self.n, 1))

    @abstractmethod
    def log_weights(self, candidates: Candidates) -> Array:
        """Returns the log of each candidate's chance to be selected, `[n]`, up to a constant; -inf is never."""

    @abstractmethod
    def distribution(self, outcomes: Outcomes) -> Array:
        """Returns the exact distribution of the selected outcome, `[K]`, for samples drawn from `outcomes`."""

    def is_complete(self, candidates: Candidates) -> bool:
        """Returns whether these samples are all that the policy draws."""
        return len(candidates.samples) == self.n

    def select(self, candidates: Candidates, seed: int) -> int:
        """Returns the index of the selected candidate: that of the largest log weight plus Gumbel noise.

        Args:
          candidates: n samples of one prompt, or fewer that are complete.
          seed: integer >= 0; the choice is a function of seed and candidates.

        Raises:
          ValueError: the candidates are not complete, or `seed` is negative.
        """
        count = len(candidates.samples)
        if not self.is_complete(candidates):
            raise ValueError(f"candidates has {count} samples: must be complete, here n = {self.n}")
        noise = np.random.default_rng(require_integer("seed", seed, 0)).gumbel(size=count)
        return int(np.argmax(self.log_weights(candidates) + noise))

    def report(self, outcomes: Outcomes) -> Report:
        """Returns reward, win rate and KL of the policy, exactly, for samples drawn from `outcomes`."""
        chosen = self.distribution(outcomes)
        return Report(
            float(chosen @ outcomes.rewards),
            float(outcomes.probabilities @ outcomes.rewards),
            outcomes.win_rate(outcomes.gather(chosen)),
            kl_divergence(chosen, outcomes.probabilities),
            kl_bound(self.n),
        )


def kl_bound(n: float) -> float:
    """Returns log n - (n - 1)/n, in nats: the largest KL that choosing one of n independent samples can have.

    It is often printed as the KL of best-of-n. It is that only if no outcome has a noticeable probability.

    Args:
      n: number of samples, a real number >= 1.

    Raises:
      ValueError: `n` is below 1 or not finite.
    """
    n = require_number("n", n, 1)
    return float(np.log(n) - (n - 1) / n)
