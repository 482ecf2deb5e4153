"""Describes what a server computes from the rounds' sums: prefix sums, with momentum, weight decay and learning rates.

The model after round t is the start minus sum_s A[t, s] g_s, where g_s is the mean update of round s and A the
workload, a lower triangular matrix. A mechanism A = B C adds the noise B Z to the models, so the workload decides how
much a given noise hurts. It never changes the privacy: whatever the server computes from the noisy sums is
post-processing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from privacy import checks

MAX_SCHEDULED = 4096
"""Maximum number of rounds of a workload with a learning-rate schedule, whose error needs a matrix of that size."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """Describes the server's computation v_t = momentum v_{t-1} + g_t, w_t = (1 - weight_decay) w_{t-1} - rate_t v_t.

    Attributes:
      rounds: number n of rounds, at least 1.
      momentum: decay of the velocity v, in [0, 1).
      weight_decay: share by which the weights w shrink in a round, in [0, 1).
      learning_rates: the n learning rates, above 0; None for the constant rate 1.
    """

    rounds: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    learning_rates: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.whole("rounds", self.rounds, 1, "count the rounds")
        for name in ("momentum", "weight_decay"):
            if checks.non_negative(name, getattr(self, name), "0 leaves it out") >= 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}: 0 leaves it out")
        if self.learning_rates is not None:
            fix = "give the server's learning rate of each round"
            object.__setattr__(self, "learning_rates", checks.reals("learning_rates", self.learning_rates, fix))
            if len(self.learning_rates) != self.rounds:
                raise ValueError(
                    f"{len(self.learning_rates)} learning_rates for {self.rounds} rounds: give one a round"
                )
            if self.rounds > MAX_SCHEDULED:
                raise ValueError(f"rounds is {self.rounds}: with learning_rates give at most {MAX_SCHEDULED:,}")
            for rate in self.learning_rates:
                if not 1e-50 <= checks.positive("learning_rates", rate, fix) <= 1e50:
                    raise ValueError(f"learning_rates must lie in [1e-50, 1e50], got {rate!r}: {fix}")

    @property
    def velocity(self) -> npt.NDArray[np.float64]:
        """Returns the first column of the Toeplitz matrix that maps sums to velocities, float64 [n]."""
        return np.power(self.momentum, np.arange(self.rounds))

    def matrix(self) -> npt.NDArray[np.float64]:
        """Returns A, float64 [n, n], for few rounds."""
        lag = np.subtract.outer(np.arange(self.rounds), np.arange(self.rounds))
        past = np.maximum(lag, 0)
        velocity = np.where(lag >= 0, self.velocity[past], 0.0)
        shrink = np.where(lag >= 0, np.power(1 - self.weight_decay, past), 0.0)
        rates = np.ones(self.rounds) if self.learning_rates is None else np.array(self.learning_rates)
        return shrink @ (rates[:, None] * velocity)

    def describe(self) -> str:
        """Returns the workload in one phrase, for plans and reports."""
        parts = [f"momentum {self.momentum:g}"] if self.momentum else []
        parts += [f"weight decay {self.weight_decay:g}"] if self.weight_decay else []
        parts += ["a learning-rate schedule"] if self.learning_rates is not None else []
        sums = f"prefix sums over {self.rounds} round{'s' * (self.rounds > 1)}"
        return f"{sums} with {', '.join(parts)}" if parts else sums
