"""Holds the samples drawn for one prompt, from which a policy chooses one."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from models.alignment.checks import Array, require_integer, require_log_probabilities, require_vector


@dataclass(frozen=True, eq=False)
class Candidates:
    """Holds independent samples of one distribution in the order in which they were drawn, and their rewards.

    Args:
      samples: what was drawn, `[n]`, hashable: a tuple of token ids, or an answer. Equal samples are one outcome.
      rewards: reward of each sample, `[n]`, finite.
      log_probabilities: log-probability of each sample, `[n]`, in nats, under the distribution that it was drawn from:
        for a text the sum over its tokens, after temperature, top-k and top-p, its end included. None if unknown.

    Raises:
      ValueError: a sample is not hashable, a reward is not finite, a log-probability is above 0, lengths differ, or
        there is no sample.
    """

    samples: tuple[Hashable, ...]
    rewards: Array
    log_probabilities: Array | None

    def __init__(self, samples: Sequence[Any], rewards: ArrayLike, log_probabilities: ArrayLike | None = None) -> None:
        held = tuple(samples)
        if not held:
            raise ValueError("samples is empty: give at least one sample")
        for place, sample in enumerate(held):
            if not isinstance(sample, Hashable):
                raise ValueError(
                    f"samples[{place}] has type {type(sample).__name__}: must be hashable; pass tuple(tokens)"
                )
        if log_probabilities is not None:
            log_probabilities = require_log_probabilities("log_probabilities", log_probabilities, len(held))
        object.__setattr__(self, "samples", held)
        object.__setattr__(self, "rewards", require_vector("rewards", rewards, len(held)))
        object.__setattr__(self, "log_probabilities", log_probabilities)

    def log_probability(self, index: int) -> float:
        """Returns log ε, the log-probability of the level of a candidate: of all distinct samples with its reward.

        Each distinct sample counts once, however often it was drawn. So token sequences that decode to one text, and
        have its reward, are one outcome. Samples of the level that were not drawn are missing: ε is then too small, and
        the KL estimate that follows from it too large.

        Args:
          index: position of the candidate, from 0 to n - 1.

        Raises:
          ValueError: the candidates have no log-probabilities, or no such position.
        """
        index = require_integer("index", index, 0, len(self.samples) - 1)
        if self.log_probabilities is None:
            raise ValueError("log_probabilities is None: give the log-probability of each sample")
        pairs = zip(self.samples, self.rewards, self.log_probabilities, strict=True)
        level = {sample: log_p for sample, reward, log_p in pairs if reward == self.rewards[index]}
        return min(0.0, float(np.logaddexp.reduce(list(level.values()))))
