"""Computes rewind-and-repeat, which draws again until the reward reaches a threshold."""

import math
from dataclasses import dataclass

import numpy as np

from models.alignment.candidates import Candidates
from models.alignment.checks import Array, require_number
from models.alignment.outcomes import Outcomes
from models.alignment.policy import Policy


@dataclass(frozen=True)
class RewindAndRepeat(Policy):
    """Selects the first sample whose reward is at least `threshold`, or the last of n if none is.

    With φ the reference's probability of reaching the threshold, KL(policy ‖ reference) is the binary KL between
    1 - (1 - φ)^n and φ, which approaches log 1/φ as n grows.

    Attributes:
      n: largest number of samples, >= 1.
      threshold: reward that is enough, finite.

    Raises:
      ValueError: `n` is below 1, or `threshold` is not finite.
    """

    threshold: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("threshold", self.threshold)

    def is_complete(self, candidates: Candidates) -> bool:
        """Returns whether the last sample is enough, or the n-th: no more need be drawn."""
        count = len(candidates.samples)
        return count == self.n or (count < self.n and bool(candidates.rewards[-1] >= self.threshold))

    def log_weights(self, candidates: Candidates) -> Array:
        """Returns 0 for the first candidate at or above the threshold, or the last one, and -inf for the others."""
        enough = candidates.rewards >= self.threshold
        first = int(np.argmax(enough)) if enough.any() else len(enough) - 1
        return np.where(np.arange(len(enough)) == first, 0.0, -np.inf)

    def distribution(self, outcomes: Outcomes) -> Array:
        """Returns the exact distribution of the selected outcome, `[K]`."""
        reached, missed, any_reached, all_missed = self._chances(outcomes)
        enough = outcomes.levels >= self.threshold
        chances = any_reached / reached if reached else 0.0, all_missed / missed if missed else 0.0
        return outcomes.spread(outcomes.masses * np.where(enough, *chances))

    def expected_draws(self, outcomes: Outcomes) -> float:
        """Returns the mean number of samples that are drawn: (1 - (1 - φ)^n) / φ."""
        reached, _, any_reached, _ = self._chances(outcomes)
        return any_reached / reached if reached else float(self.n)

    def _chances(self, outcomes: Outcomes) -> tuple[float, float, float, float]:
        """Returns φ, 1 - φ, 1 - (1 - φ)^n and (1 - φ)^n, each exactly 0 where no outcome has it."""
        enough = outcomes.levels >= self.threshold
        reached, missed = float(outcomes.masses[enough].sum()), float(outcomes.masses[~enough].sum())
        if not missed:
            return reached, missed, 1.0, 0.0
        log_missed = self.n * (math.log1p(-reached) if reached < 0.5 else math.log(missed))
        return reached, missed, -math.expm1(log_missed), math.exp(log_missed)
