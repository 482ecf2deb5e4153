"""Averages clipped updates privately in pure integer arithmetic, hardened against floating-point attacks.

Each client's clipped update is truncated to integer steps of a grid, and the L2 bound is checked on those integers.
Their sum is exact in any order, and the noise is a rounded exact Gaussian (`privacy.noise.rounded`), drawn outside TFF
from the run's key. Only the noisy sum is converted back to floating point. So there is no rounding that the attack of
Mironov 2012, "On significance of the least significant bits for differential privacy", could exploit. Reports call such
a run hardened.
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
"""Number of grid steps in one clip norm. The int64 sums do not overflow with up to 2^38 clients."""
COUNT_STEPS = 2**10
"""Number of grid steps in 1/2, the amount by which one client changes the count of adaptive clipping."""
SMALLEST_CLIP = 1e-30
"""Smallest clip norm: the number of grid steps in a weight of 1, `STEPS` / clip, must not overflow float32."""


@dataclass(frozen=True)
class ExactDPMean(DPMean):
    """Computes the mean of `DPMean` exactly from the clipped update to the noisy sum, for plans with `noise="exact"`.

    Each client contributes a vector of integers q with ||q||₂ <= `STEPS`. Gaussian noise of standard deviation
    `plan.value_noise_multiplier` * `STEPS`, rounded to integers, is added to the sum of these vectors. Since the sum
    consists of integers, the result equals the rounded output of the Gaussian mechanism with that noise multiplier, and
    rounding an output is post-processing. So the plan's (ε, δ) for its clients holds without a failure probability.
    Truncation moves each entry of a client's update by less than clip / 2^24, towards zero.

    Raises:
      ValueError: the plan's noise is not "exact", or a noise multiplier or the clip norm is out of range.
    """

    _NOISE: ClassVar[Noise] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, steps, fix in (
            ("value_noise_multiplier", self.plan.value_noise_multiplier, STEPS, "lower noise_multiplier"),
            ("metric_noise_multiplier", self.plan.metric_noise_multiplier, STEPS, "raise the metrics' share"),
            ("count_stddev", self.plan.count_stddev, 2 * COUNT_STEPS, "lower it"),
        ):
            if value * steps > LARGEST_STDDEV:
                raise ValueError(
                    f"the plan's {name} is {value:g}, and exact noise allows at most {LARGEST_STDDEV / steps:g}: "
                    f"{fix}, or use floating-point noise"
                )
        clip = self.initial_state()["clip"]
        if clip < SMALLEST_CLIP:
            raise ValueError(f"clip norm {clip:g} is too small for exact noise: take at least {SMALLEST_CLIP:g}")

    def noise_size(self, weights: int) -> int:
        """Returns the number of noise values: one for each weight, and those of the count and the metrics."""
        return weights + self._extra_values

    @property
    def _extra_values(self) -> int:
        return int(isinstance(self.plan.clip, AdaptiveClip)) + (2 * self.plan.metrics.count if self.plan.metrics else 0)

    def noise(self, keys: RunKeys, round: int, weights: int) -> Any:
        """Draws the round's noise in grid steps, int64 [`noise_size`]."""
        parts = [(b"update", self.plan.value_noise_multiplier * STEPS, weights)]
        if isinstance(self.plan.clip, AdaptiveClip):
            parts.append((b"count", self.plan.count_stddev * 2 * COUNT_STEPS, 1))
        if self.plan.metrics is not None:
            parts.append((b"metrics", self.plan.metric_noise_multiplier * STEPS, 2 * self.plan.metrics.count))
        key = keys.noise_key(round)
        return np.concatenate([rounded_gaussian(key + name, stddev, size) for name, stddev, size in parts])

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        """Returns the contribution, see `Aggregator.client`; its update is int64, in steps of clip / `STEPS`."""
        import tensorflow as tf

        refused = []

        def in_steps(delta: Weights, factor: Any) -> Weights:
            scale = factor * (STEPS / state["clip"])
            # A cast truncates towards zero.
            steps = {name: tf.cast(value * column(scale, value), tf.int32) for name, value in delta.items()}
            # The squares are exact in float64, and their sum has a relative error of at most 2^-23, which the limit
            # allows for. The margin of the clip (`fl.aggregation._MARGIN`) is larger still, so that a client that was
            # clipped correctly is never refused.
            kept = tf.add_n([squares(value, factor) for value in steps.values()]) <= (1 - 2.0**-22) * STEPS**2
            refused.append(tf.reduce_sum(tf.cast(~kept, tf.float32)))
            return {name: _sum_kept(value, kept) for name, value in steps.items()}

        sums = contribution(update, self._build_clip_rule(state), in_steps)
        return sums._replace(non_finite=sums.non_finite + refused[0], pairs=self._encode_metrics(update))

    def _add_noise(self, state: State, total: Contribution, noise: Any) -> Noised:
        """Adds the noise to the integers, and only then converts the sums to floating point."""
        import tensorflow as tf

        weights = count_weights(total.update)
        update_noise, noise = noise[:weights], noise[weights:]
        parts = split(update_noise, total.update)
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


def _sum_kept(steps: Any, kept: Any) -> Any:
    """Sums the integers of the clients that are kept, int64."""
    import tensorflow as tf

    exact = tf.cast(tf.where(column(kept, steps), steps, 0), tf.int64)
    return exact if kept.shape.rank == 0 else tf.reduce_sum(exact, axis=0)
