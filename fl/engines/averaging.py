"""Builds federated averaging in TFF around any client work: the state, the sum over the clients, the server's step.

An engine defines what one TFF client value is and what is done with it; everything that engines share is here.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow_federated as tff
import numpy as np
import tensorflow as tf

from fl.aggregation import Aggregator, Contribution
from fl.local_training import Batches, Task, Weights
from privacy.keys import RunKeys


class Engine(NamedTuple):
    """Holds the TFF computations and functions that run rounds of federated averaging.

    In the types below, S = <weights, average, optimizer, aggregator, history> is the state, V is one client value of
    the engine, and M = <released, operator> are the metrics. `history` is what later noise depends on, which no client
    receives. `released` is differentially private if the aggregator is. `operator` (loss, tokens, clients, non-finite
    updates, share of padding among the rows computed and so on) is exact up to the rounding of 32-bit sums; only the
    operator may see it.

    Attributes:
      process: `initialize`: `( -> S@SERVER)` and `next`: `(<S@SERVER, {V}@CLIENTS, int64[K]@SERVER> -> <S@SERVER,
        M@SERVER>)`. The int64[K] is the return value of `noise`: the round's noise, or its seed.
      client_sum: the first half of `next`: `(<S.weights@SERVER, S.aggregator@SERVER, {V}@CLIENTS> -> C@SERVER)`. C is a
        sum of `fl.aggregation.Contribution`s, to which the sum over other clients may be added.
      server_step: the second half of `next`: `(<S@SERVER, C@SERVER, int64[K]@SERVER> -> <S@SERVER, M@SERVER>)`.
      client_values: function from the batches of a round's clients to client values.
      noise: function from the run's keys and the number of the round to int64 [K]. K is 2, for a seed, except with
        aggregators whose noise is drawn outside TFF (`fl.exact_mean`).
    """

    process: tff.templates.IterativeProcess
    client_sum: tff.Computation
    server_step: tff.Computation
    client_values: Callable[[Sequence[Batches]], list[Any]]
    noise: Callable[[RunKeys, int], np.ndarray]


def build(
    client_work: Callable[[Weights, dict[str, Any], Any], Contribution],
    value_type: Any,
    client_values: Callable[[Sequence[Batches]], list[Any]],
    initial_weights: Weights,
    aggregator: Aggregator,
    server_optimizer: tff.learning.optimizers.Optimizer,
    average_decay: float,
) -> Engine:
    """Builds an engine's computations.

    Args:
      client_work: a TensorFlow graph function (weights, aggregator state, client value) -> contribution.
      value_type: TFF type of a client value.
      client_values: see `Engine`.
      initial_weights: named float32 arrays.
      aggregator: an aggregator of `fl.aggregation`.
      server_optimizer: an optimizer of `tff.learning.optimizers`, for which minus the mean update is the gradient.
      average_decay: decay of the running average of the weights, in [0, 1). After each round, average = average_decay *
        average + (1 - average_decay) * weights; this `average` is the model to use (Polyak and Juditsky 1992). It
        averages out the noise of single rounds, at no cost in privacy. With 0 the average equals the weights.

    Returns:
      The engine.

    Raises:
      ValueError: average_decay is out of range, or an initial weight is not a float32 array.
    """
    if not 0 <= average_decay < 1:
        raise ValueError(f"average_decay is {average_decay}: give a number from 0 to below 1")
    named = sorted(initial_weights.items())
    for name, value in named:
        if getattr(value, "dtype", None) != np.float32:
            raise ValueError(f"initial weight {name} is {getattr(value, 'dtype', type(value))}: give a float32 array")
    weights_type = tff.types.to_type(OrderedDict((name, tff.TensorType(np.float32, v.shape)) for name, v in named))
    specs = OrderedDict((name, tf.TensorSpec(value.shape, tf.float32)) for name, value in named)
    size = sum(value.size for value in initial_weights.values())
    noise_type = tff.TensorType(np.int64, (aggregator.noise_size(size),))

    def noise(keys: RunKeys, round_number: int) -> np.ndarray:
        return np.asarray(aggregator.noise(keys, round_number, size), np.int64)

    @tff.tensorflow.computation
    def initial_state() -> Any:
        weights = OrderedDict((name, tf.constant(value)) for name, value in named)
        start = sorted(aggregator.initial_state().items())
        return OrderedDict(
            weights=weights,
            average=weights,
            optimizer=server_optimizer.initialize(specs),
            aggregator=OrderedDict((name, tf.constant(value, tf.float32)) for name, value in start),
            history=OrderedDict(sorted(aggregator.initial_history(size).items())),
        )

    state_type = initial_state.type_signature.result

    @tff.tensorflow.computation(weights_type, state_type["aggregator"], value_type)
    def work(weights: Any, state: Any, value: Any) -> Any:
        @tf.function(autograph=False)  # keeps the training graph out of the computation's top level
        def train(weights: Any, state: Any, value: Any) -> Contribution:
            return _order(client_work(dict(weights), dict(state), value))

        return train(weights, state, value)

    contribution_type = work.type_signature.result

    @tff.tensorflow.computation(state_type, contribution_type, noise_type)
    def step(state: Any, total: Any, noise: Any) -> Any:
        summed = Contribution(**{**total, "update": dict(total["update"])})
        mean = aggregator.server({**state["aggregator"], **state["history"]}, summed, noise)
        gradient = OrderedDict((name, -mean.update[name]) for name in sorted(mean.update))
        optimizer, weights = server_optimizer.next(state["optimizer"], state["weights"], gradient)
        finite_weights = tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in weights.values()])
        average = OrderedDict(
            (name, average_decay * state["average"][name] + (1 - average_decay) * value)
            for name, value in weights.items()
        )
        new_state = OrderedDict(
            weights=weights,
            average=average,
            optimizer=optimizer,
            aggregator=OrderedDict((name, mean.state[name]) for name in state["aggregator"]),
            history=OrderedDict((name, mean.state[name]) for name in state["history"]),
        )
        released = OrderedDict(sorted(mean.released.items()), finite=finite_weights)
        operator = OrderedDict(
            loss=tf.math.divide_no_nan(summed.loss, summed.tokens),
            tokens=summed.tokens,
            examples=summed.examples,
            clients=summed.clients,
            non_finite=summed.non_finite,
            padding=tf.math.divide_no_nan(summed.computed - summed.examples, summed.computed),
            within_clip=tf.math.divide_no_nan(summed.within_clip, summed.clients) + 0.5,
        )
        return new_state, OrderedDict(released=released, operator=operator)

    @tff.federated_computation
    def initialize() -> Any:
        return tff.federated_eval(initial_state, tff.SERVER)

    @tff.federated_computation(
        tff.FederatedType(weights_type, tff.SERVER),
        tff.FederatedType(state_type["aggregator"], tff.SERVER),
        tff.FederatedType(value_type, tff.CLIENTS),
    )
    def client_sum(weights: Any, state: Any, values: Any) -> Any:
        broadcasts = tff.federated_broadcast(weights), tff.federated_broadcast(state)
        return tff.federated_sum(tff.federated_map(work, (*broadcasts, values)))

    @tff.federated_computation(
        tff.FederatedType(state_type, tff.SERVER),
        tff.FederatedType(contribution_type, tff.SERVER),
        tff.FederatedType(noise_type, tff.SERVER),
    )
    def server_step(state: Any, total: Any, noise: Any) -> Any:
        result = tff.federated_map(step, (state, total, noise))
        return result[0], result[1]

    @tff.federated_computation(
        initialize.type_signature.result,
        tff.FederatedType(value_type, tff.CLIENTS),
        tff.FederatedType(noise_type, tff.SERVER),
    )
    def next_round(state: Any, values: Any, noise: Any) -> Any:
        total = client_sum(state["weights"], state["aggregator"], values)
        return server_step(state, total, noise)

    return Engine(tff.templates.IterativeProcess(initialize, next_round), client_sum, server_step, client_values, noise)


def check_accuracy(task: Task, aggregator: Aggregator) -> None:
    """Raises ValueError if the aggregator needs an accuracy that the task does not measure."""
    if aggregator.needs_accuracy and not task.measures_accuracy:
        raise ValueError(
            "the plan's metrics include the accuracy, but this task does not measure it: give LanguageModelling a "
            "loss_and_correct, or the plan PrivateMetrics(accuracy=False)"
        )


def batches_type(task: Task, batch_size: int, client_axis: tuple[int, ...]) -> Any:
    """Returns the TFF type of `Batches` of any length; `client_axis` is () for one client, (U,) for U stacked ones."""
    examples = tf.nest.map_structure(
        lambda spec: tff.TensorType(spec.dtype.as_numpy_dtype, (None, *client_axis, batch_size, *spec.shape)),
        task.example,
    )
    return tff.types.to_type(OrderedDict(examples=examples, rows=tff.TensorType(np.int32, (None, *client_axis))))


def _order(contribution: Contribution) -> Any:
    """Converts a contribution to ordered mappings, since the order of names is part of a TFF type."""
    update = OrderedDict((name, contribution.update[name]) for name in sorted(contribution.update))
    return OrderedDict(contribution._asdict(), update=update)
