"""Aggregation: from the clients' updates to one model change.

An aggregator is three pure TensorFlow functions: what a client sends (`client`), how the sum becomes a mean (`server`)
and the state that travels between rounds (`initial_state`). Only sums cross from clients to the server, so any engine
(one TFF client value a user, or a shard of users) gives the same result. `DPMean` has no weights to set: a weighted
private mean cannot be built by accident.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from fl import gaussian
from fl.local_training import ClientUpdate, Weights, column
from privacy.keys import RunKeys
from privacy.plan import AdaptiveClip, FixedClip, Noise, PrivacyPlan, PrivateMetrics

State = dict[str, Any]
"""Named float32 scalars kept by the server between rounds."""

_MARGIN = 2.0**-21
"""Share by which a client is clipped further than to the clip norm, so that its contribution as computed is within it.

With u = 2^-24, the rounding of float32, it covers the norm (float64 products and sums over up to 2^30 weights: u), the
factor and its product with each weight (2 u), and the noise, whose ratio to the clip norm is rounded twice (2 u).
"""


class Contribution(NamedTuple):
    """What leaves a client, or several clients together; summed over the cohort."""

    update: Weights  # weighted (or clipped) change of the model
    weight: Any  # float32: what `update` was multiplied by
    within_clip: Any  # float32: 1/2 if the norm is at most the clip norm (zero's is), else -1/2; 0 without clipping
    clients: Any  # float32: 1 (also for one replaced by zero), or 0 for one without any example
    non_finite: Any  # float32: 1 if the update was not finite and was replaced by zero
    examples: Any  # float32: examples trained on
    tokens: Any  # float32: target tokens trained on
    loss: Any  # float32: sum of their losses in nats
    computed: Any  # float32: rows that were computed for them, padding among them
    pairs: Any  # int64 [metrics, 2]: of `fl.metric_pairs`, the loss's first; of no metric where none is released


class Mean(NamedTuple):
    """What the server makes of the summed contributions."""

    update: Weights
    state: State
    released: dict[str, Any]  # differentially private where the aggregator is; public where it is not


class Noised(NamedTuple):
    """The sums of a `Contribution` that a private aggregator releases, with noise."""

    update: Weights
    within_clip: Any
    pairs: Any


class Aggregator(Protocol):
    """Pure functions that engines build into a TFF process."""

    @property
    def needs_accuracy(self) -> bool:
        """Whether the task must measure it."""

    def initial_state(self) -> State: ...

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        """Of one client; with a leading user axis on `update`, the sum over its clients, each treated alone."""

    def server(self, state: State, total: Contribution, noise: Any) -> Mean:
        """The mean that is released; `noise`, int64 [`noise_size`], is what the method `noise` returned."""

    def noise_size(self, weights: int) -> int:
        """Length of `noise` for a model of so many weights."""

    def noise(self, keys: RunKeys, round: int, weights: int) -> Any:
        """What `server` takes in a round, int64 [`noise_size`]."""


class SeededNoise:
    """Part of an aggregator that takes the seed of its noise, int64 [2]."""

    def noise_size(self, weights: int) -> int:
        """2."""
        return 2

    def noise(self, keys: RunKeys, round: int, weights: int) -> Any:
        """The round's seed."""
        return keys.noise_seed(round)


@dataclass(frozen=True)
class UniformMean(SeededNoise):
    """Every client counts the same: sum of updates / number of clients with a finite update."""

    needs_accuracy: ClassVar[bool] = False

    def initial_state(self) -> State:
        return {}

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        return contribution(update, lambda norm: (1.0, 0.0), weighted_sum)

    def server(self, state: State, total: Contribution, noise: Any) -> Mean:
        return _weighted_mean(state, total)


@dataclass(frozen=True)
class ExampleWeightedMean(SeededNoise):
    """A client counts by the number of sequences it trained on (McMahan et al. 2017, https://arxiv.org/abs/1602.05629)."""

    needs_accuracy: ClassVar[bool] = False

    def initial_state(self) -> State:
        return {}

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        return contribution(update, lambda norm: (update.examples, 0.0), weighted_sum)

    def server(self, state: State, total: Contribution, noise: Any) -> Mean:
        return _weighted_mean(state, total)


@dataclass(frozen=True)
class DPMean(SeededNoise):
    """DP-FedAvg (McMahan et al. 2018, https://arxiv.org/abs/1710.06963): clip each client, sum, add Gaussian noise.

    The denominator is the plan's expected cohort, a public constant; the realised cohort size never enters. With
    `AdaptiveClip` the clip norm follows a private quantile of the update norms (Andrew et al. 2021,
    https://arxiv.org/abs/1905.03871); its noisy count is paid for by `plan.value_noise_multiplier`, which is larger
    than `plan.noise_multiplier`. So are the metrics of `PrivateMetrics`, if the plan has any: the mean over clients of
    each one's mean loss, of its accuracy, and their number.
    """

    plan: PrivacyPlan
    _NOISE: ClassVar[Noise] = "floating-point"

    def __post_init__(self) -> None:
        if self.plan.clip is None:
            raise ValueError("DPMean needs a clip norm: give the plan FixedClip or AdaptiveClip")
        if self.plan.noise != self._NOISE:
            raise ValueError(
                f"the plan's noise is {self.plan.noise!r} and this aggregator's is {self._NOISE!r}: take "
                "fl.aggregation.DPMean for 'floating-point', fl.exact_mean.ExactDPMean for 'exact'"
            )

    @property
    def needs_accuracy(self) -> bool:
        """Whether the plan releases it."""
        return self.plan.metrics is not None and self.plan.metrics.accuracy

    def initial_state(self) -> State:
        match self.plan.clip:
            case FixedClip(norm=norm):
                return {"clip": norm}
            case AdaptiveClip(initial=initial):
                return {"clip": initial}
        raise ValueError(f"unknown clip {self.plan.clip!r}: use FixedClip or AdaptiveClip")

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        return contribution(update, self._clip_factor(state), weighted_sum)._replace(pairs=self._pairs(update))

    def _clip_factor(self, state: State) -> Callable[[Any], tuple[Any, Any]]:
        """The function from norms to factors and bits that `contribution` takes."""
        import tensorflow as tf

        def clipped(norm: Any) -> tuple[Any, Any]:
            clip = tf.cast(state["clip"], tf.float64)
            most = (1 - _MARGIN) * clip
            # Exactly 1 below: an update within the clip norm is not touched.
            factor = tf.where(norm > most, most / tf.maximum(norm, most), 1.0)
            return tf.cast(factor, tf.float32), tf.where(norm <= clip, 0.5, -0.5)

        return clipped

    def _pairs(self, update: ClientUpdate) -> Any:
        """Sum over the clients of their metrics' pairs. One without a token, or whose loss is no number, has none."""
        import tensorflow as tf

        if self.plan.metrics is None:
            return _no_pairs()
        from fl import metric_pairs

        present = (update.tokens > 0) & tf.logical_not(tf.math.is_nan(update.loss))
        tokens = tf.where(present, update.tokens, math.nan)
        found = [metric_pairs.pair(update.loss / tokens, 0.0, self.plan.metrics.loss_bound)]
        if self.plan.metrics.accuracy:
            found.append(metric_pairs.pair(update.correct / tokens, 0.0, 1.0))
        stacked = tf.stack(found, axis=-2)
        return tf.reduce_sum(stacked, axis=0) if stacked.shape.rank == 3 else stacked

    def server(self, state: State, total: Contribution, noise: Any) -> Mean:
        import tensorflow as tf

        clip, cohort = state["clip"], self.plan.expected_cohort
        noised = self._noised(state, total, noise)
        released = {"clip": clip, "noise_stddev": self.plan.value_noise_multiplier * clip}
        if isinstance(self.plan.clip, AdaptiveClip):
            fraction = noised.within_clip / cohort + 0.5
            clip = clip * tf.exp(-self.plan.clip.learning_rate * (fraction - self.plan.clip.quantile))
            released["fraction_within_clip"] = fraction
        if self.plan.metrics is not None:
            released |= self._metrics(self.plan.metrics, noised.pairs)
        return Mean({name: value / cohort for name, value in noised.update.items()}, {"clip": clip}, released)

    def _noised(self, state: State, total: Contribution, noise_seed: Any) -> Noised:
        """Adds floating-point noise, from streams of the seed."""
        import tensorflow as tf

        def normal(size: int, name: str) -> Any:
            return gaussian.standard_normal(size, gaussian.stream(noise_seed, name))

        parts = split(normal(count_weights(total.update), "update"), total.update)
        stddev = self.plan.value_noise_multiplier * state["clip"]
        update = {name: value + stddev * parts[name] for name, value in total.update.items()}
        within_clip, pairs = total.within_clip, total.pairs
        if isinstance(self.plan.clip, AdaptiveClip):
            within_clip += self.plan.count_stddev * normal(1, "count")[0]
        if self.plan.metrics is not None:
            from fl import metric_pairs

            of_pairs = tf.reshape(normal(2 * self.plan.metrics.count, "metrics"), [self.plan.metrics.count, 2])
            pairs += metric_pairs.in_steps(of_pairs, self.plan.metric_noise_multiplier)
        return Noised(update, within_clip, pairs)

    def _metrics(self, metrics: PrivateMetrics, noised_pairs: Any) -> dict[str, Any]:
        import tensorflow as tf

        from fl import metric_pairs

        share, clients = metric_pairs.released(noised_pairs)
        share = tf.cast(share, tf.float32)
        released = {
            "metric_noise_multiplier": tf.constant(self.plan.metric_noise_multiplier, tf.float32),
            "train_loss": share[0] * metrics.loss_bound,
            "train_clients": tf.cast(tf.reduce_mean(clients), tf.float32),
        }
        return {**released, "train_accuracy": share[1]} if metrics.accuracy else released


def count_weights(update: Weights) -> int:
    """Number of weights of a model."""
    return sum(math.prod(value.shape) for value in update.values())


def split(flat: Any, update: Weights) -> Weights:
    """A vector of all weights in parts of the shapes of `update`, tensors in the order of their names."""
    import tensorflow as tf

    names = sorted(update)
    parts = tf.split(flat, [math.prod(update[name].shape) for name in names])
    return {name: tf.reshape(part, update[name].shape) for name, part in zip(names, parts, strict=True)}


def _no_pairs() -> Any:
    import tensorflow as tf

    return tf.zeros([0, 2], tf.int64)


def contribution(
    update: ClientUpdate,
    weigh: Callable[[Any], tuple[Any, Any]],
    sum_scaled: Callable[[Weights, Any], Weights],
) -> Contribution:
    """Sums the clients' updates, each times its own factor; zero for one with an entry or a loss that is not finite.

    Args:
      update: of one client, or of U clients on a leading client axis.
      weigh: from the L2 norms, float64 [] or [U], to (factor, within_clip), float32 of that shape.
      sum_scaled: (updates, factors) -> sum, for instance `weighted_sum`.
    """
    import tensorflow as tf

    # Sums of squares of float32 numbers neither overflow nor underflow in float64: finite exactly if every entry is.
    total_squares = tf.add_n([squares(value, update.examples) for value in update.delta.values()])
    finite = tf.math.is_finite(total_squares) & tf.math.is_finite(update.loss)
    present = tf.cast(update.examples > 0, tf.float32)
    counted = present * tf.cast(finite, tf.float32)

    def zeroed() -> list[Any]:
        return [tf.where(column(counted, value) > 0, value, tf.zeros_like(value)) for value in update.delta.values()]

    # In the usual case nothing is copied.
    is_usual = tf.reduce_all(finite | tf.equal(present, 0.0))
    sound = tf.cond(is_usual, lambda: list(update.delta.values()), zeroed)
    factor, within_clip = weigh(tf.sqrt(tf.where(counted > 0, total_squares, 0.0)))
    factor *= counted
    return Contribution(
        update=sum_scaled(dict(zip(update.delta, sound, strict=True)), factor),
        weight=tf.reduce_sum(factor),
        within_clip=tf.reduce_sum(within_clip * present),
        clients=tf.reduce_sum(present),
        non_finite=tf.reduce_sum(present - counted),
        examples=tf.reduce_sum(update.examples),
        tokens=tf.reduce_sum(update.tokens * counted),
        loss=tf.reduce_sum(tf.where(counted > 0, update.loss, 0.0)),
        computed=tf.reduce_sum(update.computed),
        pairs=_no_pairs(),
    )


def squares(value: Any, per_client: Any) -> Any:
    """Sum of squares of `value` [...] or [U, ...], in float64: [] or [U], the shape of `per_client`."""
    import tensorflow as tf

    rows = 1 if per_client.shape.rank == 0 else tf.shape(per_client)[0]
    row = tf.cast(tf.reshape(value, [rows, 1, -1]), tf.float64)
    return tf.reshape(tf.matmul(row, row, transpose_b=True), tf.shape(per_client))


def weighted_sum(delta: Weights, factor: Any) -> Weights:
    """Factor [] or [U] times delta [...] or [U, ...], summed over users."""
    import tensorflow as tf

    if factor.shape.rank == 0:
        return {name: factor * value for name, value in delta.items()}
    rows = tf.shape(factor)[0]
    return {
        name: tf.reshape(tf.matmul(factor[tf.newaxis], tf.reshape(value, [rows, -1])), value.shape[1:])
        for name, value in delta.items()
    }


def _weighted_mean(state: State, total: Contribution) -> Mean:
    import tensorflow as tf

    return Mean({name: tf.math.divide_no_nan(value, total.weight) for name, value in total.update.items()}, state, {})
