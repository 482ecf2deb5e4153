"""Private federated averaging in fixed point: clipped updates become integers before they are added, as is the noise.

No floating-point number decides what is released: each client's clipped update is cut to integer steps of a grid, the
L2 bound is checked on those integers, their sum is exact whatever its order, and the noise is a rounded exact Gaussian
(`privacy.noise.rounded`), drawn outside TFF from the run's key. Reports call this hardened: the attack of Mironov 2012,
"On significance of the least significant bits for differential privacy", finds no bit to use.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fl.aggregation import Contribution, DPMean, Noised, State, contribution, count_weights, split, squares
from fl.local_training import ClientUpdate, Weights, column
from privacy.keys import RunKeys
from privacy.noise.rounded import LARGEST_STDDEV, rounded_gaussian
from privacy.plan import AdaptiveClip, Noise

STEPS = 2**24
"""Grid steps in one clip norm. Sums hold up to 2^38 clients."""
COUNT_STEPS = 2**10
"""Grid steps in 1/2, what one client adds to the count of adaptive clipping."""
SMALLEST_CLIP = 1e-30
"""The number of steps in a weight of 1 must be a float32 number."""


@dataclass(frozen=True)
class ExactDPMean(DPMean):
    """`fl.aggregation.DPMean` with exact arithmetic from clipping to release, for a plan with `noise="exact"`.

    A client's contribution is a vector of integers q with ||q||₂ <= `STEPS`, always; the sum of them plus rounded
    Gaussian noise of standard deviation `plan.value_noise_multiplier` * `STEPS` post-processes the Gaussian
    mechanism of that noise multiplier, so that the plan's (ε, δ) holds without a failure probability. Cutting moves
    each weight of a client by less than clip / 2^24, towards zero.

    Raises:
      ValueError: the plan's noise is not "exact", or its noise multipliers are out of range.
    """

    _NOISE: ClassVar[Noise] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, stddev in (
            ("noise multiplier of the update", self.plan.value_noise_multiplier * STEPS),
            ("noise multiplier of the metrics", self.plan.metric_noise_multiplier * STEPS),
            ("clip count stddev", self.plan.count_stddev * 2 * COUNT_STEPS),
        ):
            if stddev > LARGEST_STDDEV:
                raise ValueError(
                    f"{name} is {stddev / LARGEST_STDDEV:.3g} times too large for exact noise: take less, or "
                    "floating-point noise"
                )
        clip = self.initial_state()["clip"]
        if clip < SMALLEST_CLIP:
            raise ValueError(f"clip norm {clip:g} is too small for exact noise: take at least {SMALLEST_CLIP:g}")

    def noise_size(self, weights: int) -> int:
        """One value for each weight, and those of the count and the metrics."""
        return weights + self._extra

    @property
    def _extra(self) -> int:
        return int(isinstance(self.plan.clip, AdaptiveClip)) + (2 * self.plan.metrics.count if self.plan.metrics else 0)

    def noise(self, keys: RunKeys, round: int, weights: int) -> Any:
        """The round's noise in grid steps, int64 [`noise_size`]."""
        parts = [(b"update", self.plan.value_noise_multiplier * STEPS, weights)]
        if isinstance(self.plan.clip, AdaptiveClip):
            parts.append((b"count", self.plan.count_stddev * 2 * COUNT_STEPS, 1))
        if self.plan.metrics is not None:
            parts.append((b"metrics", self.plan.metric_noise_multiplier * STEPS, 2 * self.plan.metrics.count))
        key = keys.noise_key(round)
        return np.concatenate([rounded_gaussian(key + name, stddev, size) for name, stddev, size in parts])

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        """See `Aggregator`; the update is int64, in steps of clip / `STEPS`."""
        import tensorflow as tf

        refused = []

        def in_steps(delta: Weights, factor: Any) -> Weights:
            scale = factor * (STEPS / state["clip"])
            # A cast cuts towards zero.
            steps = {name: tf.cast(value * column(scale, value), tf.int32) for name, value in delta.items()}
            # Squares are exact, and their sum to 2^-23. With the margin of the clip none is refused.
            kept = tf.add_n([squares(value, factor) for value in steps.values()]) <= (1 - 2.0**-22) * STEPS**2
            refused.append(tf.reduce_sum(tf.cast(~kept, tf.float32)))
            return {name: _sum_of(value, kept) for name, value in steps.items()}

        found = contribution(update, self._clip_factor(state), in_steps)
        return found._replace(non_finite=found.non_finite + refused[0], pairs=self._pairs(update))

    def _noised(self, state: State, total: Contribution, noise: Any) -> Noised:
        """Adds the noise, and only then leaves the integers."""
        import tensorflow as tf

        weights = count_weights(total.update)
        of_update, noise = noise[:weights], noise[weights:]
        parts = split(of_update, total.update)
        step = tf.cast(state["clip"], tf.float64) / STEPS
        update = {
            name: tf.cast(tf.cast(value + parts[name], tf.float64) * step, tf.float32)
            for name, value in total.update.items()
        }
        within_clip, pairs = total.within_clip, total.pairs
        if isinstance(self.plan.clip, AdaptiveClip):
            steps = tf.cast(2 * within_clip, tf.int64) * COUNT_STEPS + noise[0]  # within_clip is a sum of halves
            within_clip, noise = tf.cast(tf.cast(steps, tf.float64) / (2 * COUNT_STEPS), tf.float32), noise[1:]
        if self.plan.metrics is not None:
            pairs += tf.reshape(noise, [self.plan.metrics.count, 2])
        return Noised(update, within_clip, pairs)


def _sum_of(steps: Any, kept: Any) -> Any:
    """Sum over clients of the integers of those that are kept, int64."""
    import tensorflow as tf

    exact = tf.cast(tf.where(column(kept, steps), steps, 0), tf.int64)
    return exact if kept.shape.rank == 0 else tf.reduce_sum(exact, axis=0)
