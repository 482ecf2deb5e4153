"""Provides the private mean with correlated noise (DP-FTRL) as a TFF aggregator, for users' own TFF programs."""

import collections
import math
from typing import Any

import tensorflow_federated as tff
import numpy as np
import tensorflow as tf
import tensorflow_privacy as tfp

from fl import gaussian
from fl.correlated_noise import History, build_stream
from privacy.plan import FixedClip, PrivacyPlan


class CorrelatedMeanQuery(tfp.SumAggregationDPQuery):
    """Releases the mean of clipped updates with a mechanism's noise, as a `tensorflow_privacy.DPQuery`.

    Each client's update is clipped to the plan's clip norm, over all its tensors together. The sum over the clients,
    plus the round's row of C^-1 Z, is divided by the plan's expected cohort. The guarantee is that of the plan,
    zero-out: it holds if the caller's cohorts keep the plan's separation and participation limit (`privacy.Ledger`
    refuses those that do not). Under an amplified plan (`CyclicPoisson`, and `Banded` with at most as many bands as
    cohorts) it also assumes a fixed partition of the clients into cohorts, and that each client of the round's cohort
    takes part independently with probability `sampling_probability`. The noise is floating-point and follows from the
    seed and the number of the round. A round after the plan's last is refused with `tf.errors.InvalidArgumentError`.

    Args:
      plan: a plan with a mechanism and without metrics.
      specs: structure of `tf.TensorSpec`, float32, of an update.
      seed: int64 [2], derived from a secret and used for nothing else, such as `RunKeys.create(path).noise_seed(0)`. A
        run that is begun anew with the same seed would repeat its noise: record every round in a `privacy.Ledger`,
        which refuses that.

    Raises:
      ValueError: the plan has no mechanism, or has metrics, or the seed has another shape.
    """

    _State = collections.namedtuple("_State", ["seed", "round", "history"])

    def __init__(self, plan: PrivacyPlan, specs: Any, seed: Any) -> None:
        if plan.mechanism is None or plan.metrics is not None:
            raise ValueError(
                f"the plan has mechanism {plan.mechanism!r} and metrics {plan.metrics!r}: give a plan with a mechanism "
                "and without metrics"
            )
        assert isinstance(plan.clip, FixedClip)  # plans with a mechanism have no other
        self._plan, self._clip = plan, plan.clip.clip_norm
        self._stream = build_stream(plan.mechanism, plan.rounds)
        self._size = sum(math.prod(spec.shape) for spec in tf.nest.flatten(specs))
        self._seed = np.asarray(seed, np.int64)
        if self._seed.shape != (2,):
            raise ValueError(f"seed has shape {list(self._seed.shape)}: give int64 [2], such as RunKeys.noise_seed(0)")

    def initial_global_state(self) -> Any:
        """Returns the seed, round 0 and the history of the noise before it."""
        history = collections.OrderedDict(sorted(self._stream.initial(self._size).items()))
        return self._State(tf.constant(self._seed), tf.constant(0, tf.int64), history)

    def derive_sample_params(self, global_state: Any) -> Any:
        """Returns no parameters, because the clip norm is fixed."""
        return ()

    def preprocess_record(self, params: Any, record: Any) -> Any:
        """Returns the update, clipped; one that is not finite becomes zero."""
        values = tf.nest.flatten(record)
        norm = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(tf.cast(value, tf.float64))) for value in values]))
        limit = self._clip * (1 - 2.0**-21)  # the margin for rounding of `fl.aggregation`
        factor = tf.cast(tf.where(norm > limit, limit / tf.maximum(norm, limit), 1.0), tf.float32)
        is_finite = tf.math.is_finite(norm)
        clipped = [tf.where(is_finite, value * factor, tf.zeros_like(value)) for value in values]
        return tf.nest.pack_sequence_as(record, clipped)

    def get_noised_result(self, sample_state: Any, global_state: Any) -> Any:
        """Returns the mean, the next global state and an event that no accountant supports: the plan's ε holds."""
        seed = tf.stack([global_state.seed[0], global_state.seed[1] + global_state.round])

        def draw(name: str) -> Any:
            return gaussian.standard_normal(self._size, gaussian.stream(seed, name))

        noise, history = self._stream.following(dict(global_state.history), draw)
        values = tf.nest.flatten(sample_state)
        parts = tf.split(noise * (self._plan.value_noise_multiplier * self._clip), [tf.size(value) for value in values])
        noised = [
            (value + tf.reshape(part, tf.shape(value))) / self._plan.expected_cohort
            for value, part in zip(values, parts, strict=True)
        ]
        ordered: History = collections.OrderedDict((name, history[name]) for name in global_state.history)
        state = self._State(global_state.seed, global_state.round + 1, ordered)
        return tf.nest.pack_sequence_as(sample_state, noised), state, self._plan.dp_event()


def correlated_mean_factory(plan: PrivacyPlan, specs: Any, seed: Any) -> tff.aggregators.UnweightedAggregationFactory:
    """Returns a TFF aggregator of the private mean: `({T}@CLIENTS -> T@SERVER)` for updates of the type of `specs`.

    It goes into `tff.learning.algorithms.build_unweighted_fed_avg(model_aggregator=...)` and the like. Arguments,
    guarantee and errors are those of `CorrelatedMeanQuery`.
    """
    return tff.aggregators.DifferentiallyPrivateFactory(CorrelatedMeanQuery(plan, specs, seed))
