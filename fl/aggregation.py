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

from fl.local_training import ClientUpdate, Weights, column
from privacy.plan import AdaptiveClip, FixedClip, PrivacyPlan, PrivateMetrics

State = dict[str, Any]
"""Named float32 scalars kept by the server between rounds."""

_SMALLEST_SQUARES = 1e-20
"""From this sum of squares on, those that underflow (each below 1e-38) do not matter in float32."""


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


class Aggregator(Protocol):
    """Pure functions that engines build into a TFF process."""

    @property
    def needs_accuracy(self) -> bool:
        """Whether the task must measure it."""

    def initial_state(self) -> State: ...

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        """Of one client; with a leading user axis on `update`, the sum over its clients, each treated alone."""

    def server(self, state: State, total: Contribution, noise_seed: Any) -> Mean: ...


@dataclass(frozen=True)
class UniformMean:
    """Every client counts the same: sum of updates / number of clients with a finite update."""

    needs_accuracy: ClassVar[bool] = False

    def initial_state(self) -> State:
        return {}

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        return _contribution(update, lambda norm: (1.0, 0.0))

    def server(self, state: State, total: Contribution, noise_seed: Any) -> Mean:
        return _weighted_mean(state, total)


@dataclass(frozen=True)
class ExampleWeightedMean:
    """A client counts by the number of sequences it trained on (McMahan et al. 2017, https://arxiv.org/abs/1602.05629)."""

    needs_accuracy: ClassVar[bool] = False

    def initial_state(self) -> State:
        return {}

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        return _contribution(update, lambda norm: (update.examples, 0.0))

    def server(self, state: State, total: Contribution, noise_seed: Any) -> Mean:
        return _weighted_mean(state, total)


@dataclass(frozen=True)
class DPMean:
    """DP-FedAvg (McMahan et al. 2018, https://arxiv.org/abs/1710.06963): clip each client, sum, add Gaussian noise.

    The denominator is the plan's expected cohort, a public constant; the realised cohort size never enters. With
    `AdaptiveClip` the clip norm follows a private quantile of the update norms (Andrew et al. 2021,
    https://arxiv.org/abs/1905.03871); its noisy count is paid for by `plan.value_noise_multiplier`, which is larger
    than `plan.noise_multiplier`. So are the metrics of `PrivateMetrics`, if the plan has any: the mean over clients of
    each one's mean loss, of its accuracy, and their number.
    """

    plan: PrivacyPlan

    def __post_init__(self) -> None:
        if self.plan.clip is None:
            raise ValueError("DPMean needs a clip norm: give the plan FixedClip or AdaptiveClip")

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
        import tensorflow as tf

        def clipped(norm: Any) -> tuple[Any, Any]:
            clip = state["clip"]
            # A norm that overflows gives the factor 0; below the clip norm the factor is exactly 1.
            factor = tf.where(norm > clip, clip / tf.maximum(norm, clip), 1.0)
            return factor, tf.where(norm <= clip, 0.5, -0.5)

        return _contribution(update, clipped)._replace(pairs=self._pairs(update))

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

    def server(self, state: State, total: Contribution, noise_seed: Any) -> Mean:
        import tensorflow as tf

        clip, cohort = state["clip"], self.plan.expected_cohort
        noise_stddev = self.plan.value_noise_multiplier * clip
        names = sorted(total.update)
        sizes = [int(math.prod(total.update[name].shape)) for name in names]
        # One stream for all tensors and the count; Philox by name, so that a seed means the same everywhere.
        metrics = self.plan.metrics
        of_metrics = 0 if metrics is None else 2 * metrics.count
        noise = unbounded_normal([sum(sizes) + 1 + of_metrics], noise_seed)
        noise, of_count, of_metrics_ = tf.split(noise, [sum(sizes), 1, of_metrics])
        parts = dict(zip(names, tf.split(noise, sizes), strict=True))
        update = {
            name: (total.update[name] + noise_stddev * tf.reshape(parts[name], total.update[name].shape)) / cohort
            for name in names
        }
        released = {"clip": clip, "noise_stddev": noise_stddev}
        if isinstance(self.plan.clip, AdaptiveClip):
            adaptive = self.plan.clip
            fraction = (total.within_clip + self.plan.count_stddev * of_count[0]) / cohort + 0.5
            clip = clip * tf.exp(-adaptive.learning_rate * (fraction - adaptive.quantile))
            released["fraction_within_clip"] = fraction
        if metrics is not None:
            released |= self._metrics(metrics, total, of_metrics_)
        return Mean(update, {"clip": clip}, released)

    def _metrics(self, metrics: PrivateMetrics, total: Contribution, noise: Any) -> dict[str, Any]:
        import tensorflow as tf

        from fl import metric_pairs

        multiplier = self.plan.metric_noise_multiplier
        noise = tf.reshape(noise, [metrics.count, 2])
        share, clients = metric_pairs.released(total.pairs, noise, multiplier)
        share = tf.cast(share, tf.float32)
        released = {
            "metric_noise_multiplier": tf.constant(multiplier, tf.float32),
            "train_loss": share[0] * metrics.loss_bound,
            "train_clients": tf.cast(tf.reduce_mean(clients), tf.float32),
        }
        return {**released, "train_accuracy": share[1]} if metrics.accuracy else released


def unbounded_normal(shape: list[int], seed: Any, dtype: Any = "float32") -> Any:
    """Standard normal numbers from a seed int64 [2], (a + b) / √2 of two of TensorFlow's.

    TensorFlow's float32 numbers end at 5.7: what lies beyond, with one client and without, would be told apart for
    certain more often than δ says. The sum of two ends at 8.0, beyond which 1e-15 of the law lies.
    """
    import tensorflow as tf

    # Pairs side by side, so that numbers that are added at the end change none before them.
    both = tf.random.stateless_normal([*shape, 2], seed, dtype=dtype, alg="philox")
    return tf.reduce_sum(both, axis=-1) * tf.constant(math.sqrt(0.5), dtype)


def _no_pairs() -> Any:
    import tensorflow as tf

    return tf.zeros([0, 2], tf.int64)


def _contribution(update: ClientUpdate, weigh: Callable[[Any], tuple[Any, Any]]) -> Contribution:
    """The sum over users of their updates, each times its own factor; zero for one with an entry or a loss not finite.

    `weigh` gives (factor, within_clip) from the norms, float32 of the shape of `update.examples`: [] or [U].
    """
    import tensorflow as tf

    names = sorted(update.delta)
    axes = {name: list(range(update.examples.shape.rank, update.delta[name].shape.rank)) for name in names}
    squares = tf.add_n([_squares(update.delta[name], update.examples) for name in names])
    present = tf.cast(update.examples > 0, tf.float32)

    def plainly() -> tuple[Any, ...]:
        # One look at the entries: where the sum of squares is finite, so are they.
        return summed(update.delta, tf.sqrt(squares), present)

    def carefully() -> tuple[Any, ...]:
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(update.delta[name]), axes[name]) for name in names], 0)
        counted = present * tf.cast(finite & tf.math.is_finite(update.loss), tf.float32)
        sound = {
            name: tf.where(column(counted, value) > 0, value, tf.zeros_like(value))
            for name, value in update.delta.items()
        }
        # Each user's norm as it would be without the others: one that is unusual changes nothing for them.
        return summed(sound, tf.where(usual, tf.sqrt(squares), _scaled_norm(sound, axes)), counted)

    def summed(delta: Weights, norm: Any, counted: Any) -> tuple[Any, ...]:
        factor, within_clip = weigh(norm)
        factor *= counted
        return _weighted_sum(delta, factor), factor, within_clip * present, counted

    usual = (squares > _SMALLEST_SQUARES) & tf.math.is_finite(squares) & tf.math.is_finite(update.loss)
    moved, weight, within_clip, counted = tf.cond(tf.reduce_all(usual | tf.equal(present, 0.0)), plainly, carefully)
    return Contribution(
        update=moved,
        weight=tf.reduce_sum(weight),
        within_clip=tf.reduce_sum(within_clip),
        clients=tf.reduce_sum(present),
        non_finite=tf.reduce_sum(present - counted),
        examples=tf.reduce_sum(update.examples),
        tokens=tf.reduce_sum(update.tokens * counted),
        loss=tf.reduce_sum(tf.where(counted > 0, update.loss, 0.0)),
        computed=tf.reduce_sum(update.computed),
        pairs=_no_pairs(),
    )


def _squares(value: Any, per_user: Any) -> Any:
    """Sum of squares of value [...] or [U, ...]: [] or [U], in one pass that writes nothing."""
    import tensorflow as tf

    if per_user.shape.rank == 0:
        return 2.0 * tf.nn.l2_loss(value)
    row = tf.reshape(value, [tf.shape(per_user)[0], 1, -1])
    return tf.matmul(row, row, transpose_b=True)[:, 0, 0]


def _weighted_sum(delta: Weights, factor: Any) -> Weights:
    """Factor [] or [U] times delta [...] or [U, ...], summed over users."""
    import tensorflow as tf

    if factor.shape.rank == 0:
        return {name: factor * value for name, value in delta.items()}
    rows = tf.shape(factor)[0]
    return {
        name: tf.reshape(tf.matmul(factor[tf.newaxis], tf.reshape(value, [rows, -1])), value.shape[1:])
        for name, value in delta.items()
    }


def _scaled_norm(delta: Weights, axes: dict[str, list[int]]) -> Any:
    """L2 norm over all tensors, scaled by the largest entry first: squares of tiny or huge entries are not lost."""
    import tensorflow as tf

    largest = tf.reduce_max([tf.reduce_max(tf.abs(value), axes[name]) for name, value in delta.items()], 0)
    scaled = [
        tf.reduce_sum(tf.square(tf.math.divide_no_nan(value, column(largest, value))), axes[name])
        for name, value in delta.items()
    ]
    return largest * tf.sqrt(tf.add_n(scaled))


def _weighted_mean(state: State, total: Contribution) -> Mean:
    import tensorflow as tf

    return Mean({name: tf.math.divide_no_nan(value, total.weight) for name, value in total.update.items()}, state, {})
