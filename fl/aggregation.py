"""Aggregates the clients' updates into one change of the model, with or without differential privacy.

An aggregator consists of pure functions: `client` computes what a client sends, `server` turns the sum over the clients
into a mean, and `initial_state` returns the state that the server keeps between rounds. Only sums pass from clients to
the server, so every engine (one TFF client value per client, or one per shard of clients) gives the same result.
`DPMean` accepts no client weights, so that a weighted private mean cannot be built by accident.
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
"""Named tensors kept by the server between rounds: float32 scalars, and what `Aggregator.initial_history` returns."""

_MARGIN = 2.0**-21
"""Relative margin by which updates are clipped below the clip norm, so that rounding cannot lift them above it.

With u = 2^-24, the unit roundoff of float32, the margin of 8 u covers the errors of the norm (float64 products and sums
over up to 2^30 weights: u), of the factor and its product with each weight (2 u), and of the noise, whose ratio to the
clip norm is rounded twice (2 u).
"""


class Contribution(NamedTuple):
    """Holds what one client sends, or the sum of this over several clients. The server sees only the cohort's sum."""

    update: Weights  # weighted (or clipped) change of the model
    weight: Any  # float32: the factor that `update` was multiplied by
    # float32: 1/2 if the norm is at most the clip norm (also for an update replaced by zero), else -1/2; 0 without
    # clipping or without examples
    within_clip: Any
    clients: Any  # float32: 1 (also if the update was replaced by zero), or 0 for a client without any example
    non_finite: Any  # float32: 1 if the update was not finite and was replaced by zero
    examples: Any  # float32: number of examples trained on
    tokens: Any  # float32: number of target tokens trained on
    loss: Any  # float32: sum of their losses in nats
    computed: Any  # float32: number of rows that were computed for them, including padding
    pairs: Any  # int64 [metrics, 2]: pairs of `fl.metric_pairs`, the loss's first; [0, 2] if no metric is released


class Mean(NamedTuple):
    """Holds the server's result of one round."""

    update: Weights  # mean change of the model
    state: State  # of the aggregator, for the next round
    released: dict[str, Any]  # values for publication; differentially private if the aggregator is


class Noised(NamedTuple):
    """Holds the sums of a `Contribution` that a private aggregator releases, with noise added."""

    update: Weights
    within_clip: Any
    pairs: Any
    history: State = {}  # what noise of later rounds depends on


class Aggregator(Protocol):
    """Describes how updates are aggregated, by pure functions that the engines build into a TFF process."""

    @property
    def needs_accuracy(self) -> bool:
        """Returns whether the task must measure the accuracy."""

    def initial_state(self) -> State:
        """Returns the state before the first round: float32 scalars, which clients receive."""

    def initial_history(self, weights: int) -> State:
        """Returns what later noise depends on, before the first round, which only `server` receives and returns.

        Args:
          weights: number of weights of the model.
        """

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        """Returns one client's contribution; for stacked clients, the sum of what each would contribute alone."""

    def server(self, state: State, total: Contribution, noise: Any) -> Mean:
        """Returns the mean to release; `noise`, int64 [`noise_size`], comes from the method `noise`.

        `state` holds the tensors of `initial_state` and of `initial_history`, and so does the state that is returned.
        """

    def noise_size(self, weights: int) -> int:
        """Returns the length of `noise` for a model with `weights` weights."""

    def noise(self, keys: RunKeys, round: int, weights: int) -> Any:
        """Returns the argument `noise` of `server` for a round, int64 [`noise_size`]."""


class SeededNoise:
    """Provides the noise methods of aggregators whose argument `noise` is a seed, int64 [2]."""

    def initial_history(self, weights: int) -> State:
        """Returns no history: the noise of a round does not depend on earlier rounds."""
        return {}

    def noise_size(self, weights: int) -> int:
        """Returns 2, the length of the seed."""
        return 2

    def noise(self, keys: RunKeys, round: int, weights: int) -> Any:
        """Returns the round's seed."""
        return keys.noise_seed(round)


@dataclass(frozen=True)
class UniformMean(SeededNoise):
    """Divides the sum of the updates by the number of clients with a finite update: every client counts the same."""

    needs_accuracy: ClassVar[bool] = False

    def initial_state(self) -> State:
        return {}

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        return contribution(update, lambda norm: (1.0, 0.0), weighted_sum)

    def server(self, state: State, total: Contribution, noise: Any) -> Mean:
        return _divide_by_weight(state, total)


@dataclass(frozen=True)
class ExampleWeightedMean(SeededNoise):
    """Averages the updates, each weighted by the number of examples that the client trained on.

    Reference: McMahan et al. 2017, https://arxiv.org/abs/1602.05629.
    """

    needs_accuracy: ClassVar[bool] = False

    def initial_state(self) -> State:
        return {}

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        return contribution(update, lambda norm: (update.examples, 0.0), weighted_sum)

    def server(self, state: State, total: Contribution, noise: Any) -> Mean:
        return _divide_by_weight(state, total)


@dataclass(frozen=True)
class DPMean(SeededNoise):
    """Computes the private mean of DP-FedAvg: clips each client's update, sums the updates and adds Gaussian noise.

    Each client contributes at most the clip norm, in L2 norm, to the sum, whatever the others send. In a floating-point
    sum, the presence of a client also changes how the other contributions are rounded. ε does not cover this change.
    The noise has standard deviation `plan.value_noise_multiplier` * clip norm. All values that a round releases cost
    together one Gaussian mechanism with noise multiplier `plan.noise_multiplier`. The noisy sum is divided by the
    plan's expected cohort size, a public constant, never by the size of the drawn cohort. The noise is floating-point
    (`fl.gaussian`) and not hardened against floating-point attacks; that of `fl.exact_mean.ExactDPMean` is.

    With `AdaptiveClip` the clip norm follows a private quantile of the update norms, and a round also releases a noisy
    count of the updates within the clip norm. With `PrivateMetrics` a round also releases the noisy number of clients
    and the noisy means over the clients of their losses and accuracies per token. To pay for these releases, the noise
    on the update grows: `plan.value_noise_multiplier` is then larger than `plan.noise_multiplier`.

    References: McMahan et al. 2018, https://arxiv.org/abs/1710.06963; Andrew et al. 2021,
    https://arxiv.org/abs/1905.03871.

    Raises:
      ValueError: the plan has no clip norm, or its noise is not of this aggregator's kind.
    """

    plan: PrivacyPlan
    _NOISE: ClassVar[Noise] = "floating-point"
    _CORRELATED: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.plan.clip is None:
            raise ValueError("DPMean needs a clip norm: give the plan FixedClip or AdaptiveClip")
        if self.plan.noise != self._NOISE:
            raise ValueError(
                f"the plan's noise is {self.plan.noise!r} and this aggregator's is {self._NOISE!r}: use "
                "fl.aggregation.DPMean for 'floating-point', fl.exact_mean.ExactDPMean for 'exact'"
            )
        if (self.plan.mechanism is not None) != self._CORRELATED:
            raise ValueError(
                f"the plan's mechanism is {self.plan.mechanism!r}: use fl.correlated_mean.CorrelatedDPMean for plans "
                "with a mechanism, and only for them"
            )

    @property
    def needs_accuracy(self) -> bool:
        """Returns whether the plan releases the accuracy."""
        return self.plan.metrics is not None and self.plan.metrics.accuracy

    def initial_state(self) -> State:
        match self.plan.clip:
            case FixedClip(clip_norm=norm):
                return {"clip": norm}
            case AdaptiveClip(initial_clip_norm=initial):
                return {"clip": initial}
        raise ValueError(f"unknown clip {self.plan.clip!r}: use FixedClip or AdaptiveClip")

    def client(self, state: State, update: ClientUpdate) -> Contribution:
        rule = self._build_clip_rule(state)
        return contribution(update, rule, weighted_sum)._replace(pairs=self._encode_metrics(update))

    def _build_clip_rule(self, state: State) -> Callable[[Any], tuple[Any, Any]]:
        """Returns the function from L2 norms to (factor, within_clip) that `contribution` takes."""
        import tensorflow as tf

        def clip_norms(norm: Any) -> tuple[Any, Any]:
            clip = tf.cast(state["clip"], tf.float64)
            limit = (1 - _MARGIN) * clip
            # Up to the limit the factor is exactly 1, so that such an update stays the same to the bit.
            factor = tf.where(norm > limit, limit / tf.maximum(norm, limit), 1.0)
            return tf.cast(factor, tf.float32), tf.where(norm <= clip, 0.5, -0.5)

        return clip_norms

    def _encode_metrics(self, update: ClientUpdate) -> Any:
        """Sums the pairs of the clients' metrics; a client without tokens, or with a NaN loss, adds nothing."""
        import tensorflow as tf

        if self.plan.metrics is None:
            return _make_empty_pairs()
        from fl import metric_pairs

        present = (update.tokens > 0) & tf.logical_not(tf.math.is_nan(update.loss))
        tokens = tf.where(present, update.tokens, math.nan)
        pairs = [metric_pairs.pair(update.loss / tokens, 0.0, self.plan.metrics.loss_bound)]
        if self.plan.metrics.accuracy:
            pairs.append(metric_pairs.pair(update.correct / tokens, 0.0, 1.0))
        stacked = tf.stack(pairs, axis=-2)
        return tf.reduce_sum(stacked, axis=0) if stacked.shape.rank == 3 else stacked

    def server(self, state: State, total: Contribution, noise: Any) -> Mean:
        import tensorflow as tf

        clip, cohort = state["clip"], self.plan.expected_cohort
        noised = self._add_noise(state, total, noise)
        released = {"clip": clip, "noise_stddev": self.plan.value_noise_multiplier * clip}
        if isinstance(self.plan.clip, AdaptiveClip):
            fraction = noised.within_clip / cohort + 0.5
            clip = clip * tf.exp(-self.plan.clip.learning_rate * (fraction - self.plan.clip.quantile))
            released["fraction_within_clip"] = fraction
        if self.plan.metrics is not None:
            released |= self._decode_metrics(self.plan.metrics, noised.pairs)
        update = {name: value / cohort for name, value in noised.update.items()}
        return Mean(update, {"clip": clip, **noised.history}, released)

    def _add_noise(self, state: State, total: Contribution, noise_seed: Any) -> Noised:
        """Adds floating-point noise from streams of the seed, one for each kind of sum."""
        import tensorflow as tf

        def draw_normal(size: int, name: str) -> Any:
            return gaussian.standard_normal(size, gaussian.stream(noise_seed, name))

        vector, history = self._draw_update_noise(state, count_weights(total.update), noise_seed)
        parts = split(vector, total.update)
        stddev = self.plan.value_noise_multiplier * state["clip"]
        update = {name: value + stddev * parts[name] for name, value in total.update.items()}
        within_clip, pairs = total.within_clip, total.pairs
        if isinstance(self.plan.clip, AdaptiveClip):
            within_clip += self.plan.count_stddev * draw_normal(1, "count")[0]
        if self.plan.metrics is not None:
            from fl import metric_pairs

            pair_noise = tf.reshape(draw_normal(2 * self.plan.metrics.count, "metrics"), [self.plan.metrics.count, 2])
            pairs += metric_pairs.in_steps(pair_noise, self.plan.metric_noise_multiplier)
        return Noised(update, within_clip, pairs, history)

    def _draw_update_noise(self, state: State, size: int, noise_seed: Any) -> tuple[Any, State]:
        """Returns the update's noise in `value_noise_multiplier` clip norms, float32 [size], and its history."""
        return gaussian.standard_normal(size, gaussian.stream(noise_seed, "update")), {}

    def _decode_metrics(self, metrics: PrivateMetrics, noised_pairs: Any) -> dict[str, Any]:
        """Reads the metrics for publication off the noisy pairs."""
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
    """Returns the number of weights of a model."""
    return sum(math.prod(value.shape) for value in update.values())


def split(flat: Any, update: Weights) -> Weights:
    """Splits a vector of all weights into tensors of the shapes of `update`, in the order of their names."""
    import tensorflow as tf

    names = sorted(update)
    parts = tf.split(flat, [math.prod(update[name].shape) for name in names])
    return {name: tf.reshape(part, update[name].shape) for name, part in zip(names, parts, strict=True)}


def _make_empty_pairs() -> Any:
    import tensorflow as tf

    return tf.zeros([0, 2], tf.int64)


def contribution(
    update: ClientUpdate,
    weigh: Callable[[Any], tuple[Any, Any]],
    sum_scaled: Callable[[Weights, Any], Weights],
) -> Contribution:
    """Sums the clients' updates, each times its own factor.

    An update counts as zero if one of its entries, or its loss, is not finite.

    Args:
      update: the update of one client, or of U clients with a leading client axis.
      weigh: function from the L2 norms, float64 [] or [U], to (factor, within_clip), float32 of that shape.
      sum_scaled: function (updates, factors) -> sum, for instance `weighted_sum`.

    Returns:
      The contribution, without pairs of metrics.
    """
    import tensorflow as tf

    # In float64, squares of float32 numbers and their sum neither overflow nor underflow: the sum is finite if and only
    # if every entry is.
    total_squares = tf.add_n([squares(value, update.examples) for value in update.delta.values()])
    finite = tf.math.is_finite(total_squares) & tf.math.is_finite(update.loss)
    present = tf.cast(update.examples > 0, tf.float32)
    counted = present * tf.cast(finite, tf.float32)

    def zero_uncounted() -> list[Any]:
        return [tf.where(column(counted, value) > 0, value, tf.zeros_like(value)) for value in update.delta.values()]

    # Usually every client is finite, and then no update needs to be copied.
    is_usual = tf.reduce_all(finite | tf.equal(present, 0.0))
    values = tf.cond(is_usual, lambda: list(update.delta.values()), zero_uncounted)
    factor, within_clip = weigh(tf.sqrt(tf.where(counted > 0, total_squares, 0.0)))
    factor *= counted
    return Contribution(
        update=sum_scaled(dict(zip(update.delta, values, strict=True)), factor),
        weight=tf.reduce_sum(factor),
        within_clip=tf.reduce_sum(within_clip * present),
        clients=tf.reduce_sum(present),
        non_finite=tf.reduce_sum(present - counted),
        examples=tf.reduce_sum(update.examples),
        tokens=tf.reduce_sum(update.tokens * counted),
        loss=tf.reduce_sum(tf.where(counted > 0, update.loss, 0.0)),
        computed=tf.reduce_sum(update.computed),
        pairs=_make_empty_pairs(),
    )


def squares(value: Any, per_client: Any) -> Any:
    """Sums the squares of `value`, [...] or [U, ...], for each client: float64 [] or [U], the shape of `per_client`."""
    import tensorflow as tf

    rows = 1 if per_client.shape.rank == 0 else tf.shape(per_client)[0]
    row = tf.cast(tf.reshape(value, [rows, 1, -1]), tf.float64)
    return tf.reshape(tf.matmul(row, row, transpose_b=True), tf.shape(per_client))


def weighted_sum(delta: Weights, factor: Any) -> Weights:
    """Multiplies delta, [...] or [U, ...], by factor, [] or [U], and sums over the U clients."""
    import tensorflow as tf

    if factor.shape.rank == 0:
        return {name: factor * value for name, value in delta.items()}
    rows = tf.shape(factor)[0]
    return {
        name: tf.reshape(tf.matmul(factor[tf.newaxis], tf.reshape(value, [rows, -1])), value.shape[1:])
        for name, value in delta.items()
    }


def _divide_by_weight(state: State, total: Contribution) -> Mean:
    """Divides the summed update by the summed weight; without any weight the mean is zero."""
    import tensorflow as tf

    return Mean({name: tf.math.divide_no_nan(value, total.weight) for name, value in total.update.items()}, state, {})
