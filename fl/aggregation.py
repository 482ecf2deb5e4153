"""Aggregation: from the clients' updates to one model change.

An aggregator is three pure TensorFlow functions: what a client sends (`client`), how the sum becomes a mean (`server`)
and the state that travels between rounds (`initial_state`). Only sums cross from clients to the server, so any engine
(one TFF client value a user, or a shard of users) gives the same result. `DPMean` has no weights to set: a weighted
private mean cannot be built by accident.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from fl.local_training import ClientUpdate, Weights
from privacy.plan import AdaptiveClip, FixedClip, PrivacyPlan

State = dict[str, Any]
"""Named float32 scalars kept by the server between rounds."""


class Contribution(NamedTuple):
    """What leaves a client; summed over the cohort."""

    update: Weights  # weighted (or clipped) change of the model
    weight: Any  # float32: what `update` was multiplied by
    within_clip: Any  # float32: 1/2 if the update's norm is at most the clip norm, else -1/2 (0 without clipping)
    clients: Any  # float32: 1, or 0 for a client without any sequence, which contributes nothing at all
    non_finite: Any  # float32: 1 if the update was not finite and was replaced by zero
    examples: Any  # float32: sequences trained on
    tokens: Any  # float32: target tokens trained on
    loss: Any  # float32: sum of their losses in nats


class Mean(NamedTuple):
    """What the server makes of the summed contributions."""

    update: Weights
    state: State
    released: dict[str, Any]  # differentially private where the aggregator is; public where it is not


class Aggregator(Protocol):
    """Pure functions that engines build into a TFF process."""

    def initial_state(self) -> State: ...

    def client(self, state: State, update: ClientUpdate) -> Contribution: ...

    def server(self, state: State, total: Contribution, noise_seed: Any) -> Mean: ...


@dataclass(frozen=True)
class UniformMean:
    """Every client counts the same: sum of updates / number of clients with a finite update."""

    def initial_state(self) -> State:
        return {}

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        return _contribution(update, weight=1.0)

    def server(self, state: State, total: Contribution, noise_seed: Any) -> Mean:
        return _weighted_mean(state, total)


@dataclass(frozen=True)
class ExampleWeightedMean:
    """A client counts by the number of sequences it trained on (McMahan et al. 2017, https://arxiv.org/abs/1602.05629)."""

    def initial_state(self) -> State:
        return {}

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        return _contribution(update, weight=update.examples)

    def server(self, state: State, total: Contribution, noise_seed: Any) -> Mean:
        return _weighted_mean(state, total)


@dataclass(frozen=True)
class DPMean:
    """DP-FedAvg (McMahan et al. 2018, https://arxiv.org/abs/1710.06963): clip each client, sum, add Gaussian noise.

    The denominator is the plan's expected cohort, a public constant; the realised cohort size never enters. With
    `AdaptiveClip` the clip norm follows a private quantile of the update norms (Andrew et al. 2021,
    https://arxiv.org/abs/1905.03871); its noisy count is paid for by `plan.value_noise_multiplier`, which is larger
    than `plan.noise_multiplier`.
    """

    plan: PrivacyPlan

    def __post_init__(self) -> None:
        if self.plan.clip is None:
            raise ValueError("DPMean needs a clip norm: give the plan FixedClip or AdaptiveClip")

    def initial_state(self) -> State:
        match self.plan.clip:
            case FixedClip(norm=norm):
                return {"clip": norm}
            case AdaptiveClip(initial=initial):
                return {"clip": initial}
        raise ValueError(f"unknown clip {self.plan.clip!r}: use FixedClip or AdaptiveClip")

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        import tensorflow as tf

        plain = _contribution(update, weight=1.0)
        norm, clip = _norm(plain.update), state["clip"]
        # A norm that overflows gives the factor 0; below the clip norm the factor is exactly 1.
        factor = tf.where(norm > clip, clip / tf.maximum(norm, clip), 1.0)
        return plain._replace(
            update={name: factor * value for name, value in plain.update.items()},
            within_clip=tf.where(norm <= clip, 0.5, -0.5) * plain.clients,
        )

    def server(self, state: State, total: Contribution, noise_seed: Any) -> Mean:
        import tensorflow as tf

        clip, cohort = state["clip"], self.plan.expected_cohort
        noise_stddev = self.plan.value_noise_multiplier * clip
        names = sorted(total.update)
        sizes = [int(math.prod(total.update[name].shape)) for name in names]
        # One stream for all tensors and the count; Philox by name, so that a seed means the same everywhere.
        noise = tf.random.stateless_normal([sum(sizes) + 1], noise_seed, alg="philox")
        parts = dict(zip(names, tf.split(noise[:-1], sizes), strict=True))
        update = {
            name: (total.update[name] + noise_stddev * tf.reshape(parts[name], total.update[name].shape)) / cohort
            for name in names
        }
        released = {"clip": clip, "noise_stddev": noise_stddev}
        if isinstance(self.plan.clip, AdaptiveClip):
            adaptive = self.plan.clip
            fraction = (total.within_clip + self.plan.count_stddev * noise[-1]) / cohort + 0.5
            clip = clip * tf.exp(-adaptive.learning_rate * (fraction - adaptive.quantile))
            released["fraction_within_clip"] = fraction
        return Mean(update, {"clip": clip}, released)


def _contribution(update: ClientUpdate, weight: Any) -> Contribution:
    """The update times `weight`; zero unless all its entries and its loss are finite."""
    import tensorflow as tf

    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in (*update.delta.values(), update.loss)])
    present = tf.cast(update.examples > 0, tf.float32)
    counted = tf.cast(finite, tf.float32) * present
    return Contribution(
        update={name: tf.where(finite, weight * value, 0.0) for name, value in update.delta.items()},
        weight=weight * counted,
        within_clip=tf.constant(0.0),
        clients=present,
        non_finite=present - counted,
        examples=update.examples,
        tokens=update.tokens * counted,
        loss=tf.where(finite, update.loss, 0.0),
    )


def _norm(update: Weights) -> Any:
    """L2 norm over all tensors, scaled by the largest entry first: squares of tiny or huge entries are not lost."""
    import tensorflow as tf

    largest = tf.reduce_max([tf.reduce_max(tf.abs(value)) for value in update.values()])
    scaled = [tf.math.divide_no_nan(value, largest) for value in update.values()]
    return largest * tf.linalg.global_norm(scaled)


def _weighted_mean(state: State, total: Contribution) -> Mean:
    import tensorflow as tf

    return Mean({name: tf.math.divide_no_nan(value, total.weight) for name, value in total.update.items()}, state, {})
