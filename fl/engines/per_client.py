"""The plain engine: one TFF client value is one client. It is the law that faster engines must follow.

Client data are dense tensors, never datasets: a dataset argument is serialised, parsed again on every call and leaks.
"""

from collections import OrderedDict
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from fl.aggregation import Aggregator, Contribution
from fl.local_training import ClientUpdate, LocalSGD, TokenLosses, Weights, client_update


def build_process(
    token_losses: TokenLosses,
    initial_weights: Weights,
    local: LocalSGD,
    aggregator: Aggregator,
    server_optimizer: tff.learning.optimizers.Optimizer,
    average_decay: float = 0.0,
) -> tff.templates.IterativeProcess:
    """Federated averaging with SGD clients as a TFF iterative process.

    `initialize`: `( -> S@SERVER)`,
    `next`: `(<S@SERVER, {int32[?, B, T+1]}@CLIENTS, int64[2]@SERVER> -> <S@SERVER, M@SERVER>)`
    where S = <weights, average, optimizer, aggregator> and M = <released, operator>: `released` is differentially
    private where the aggregator is, `operator` (loss, tokens, clients, non-finite updates) is exact and for the
    operator's eyes only. The int64[2] seeds the round's noise (`privacy.keys.RunKeys.noise_seed`).

    Args:
      token_losses: the model's loss, see `fl.local_training.TokenLosses`.
      initial_weights: named float32 arrays.
      local: what a client does; its batches have shape [steps, B, T+1] (`LocalSGD.batches`).
      aggregator: of `fl.aggregation`.
      server_optimizer: of `tff.learning.optimizers`; sees minus the mean update as the gradient.
      average_decay: in [0, 1). The model to use is `average`, average_decay * average + (1 - average_decay) * weights
        after each round (Polyak and Juditsky 1992): noise of single rounds cancels, at no cost in privacy. 0: the
        weights.

    Raises:
      ValueError: average_decay is out of range.
    """
    if not 0 <= average_decay < 1:
        raise ValueError(f"average_decay is {average_decay}: a number from 0 to below 1 is needed")
    weights_type = tff.types.to_type(
        OrderedDict((name, tff.TensorType(np.float32, value.shape)) for name, value in sorted(initial_weights.items()))
    )
    batches_type = tff.TensorType(np.int32, (None, local.batch_size, local.sequence_length + 1))
    specs = OrderedDict(
        (name, tf.TensorSpec(value.shape, tf.float32)) for name, value in sorted(initial_weights.items())
    )

    @tff.tensorflow.computation
    def initial_state() -> Any:
        weights = OrderedDict((name, tf.constant(value)) for name, value in sorted(initial_weights.items()))
        return OrderedDict(
            weights=weights,
            average=weights,
            optimizer=server_optimizer.initialize(specs),
            aggregator=OrderedDict(
                (name, tf.constant(value, tf.float32)) for name, value in aggregator.initial_state().items()
            ),
        )

    state_type = initial_state.type_signature.result
    aggregator_type = state_type["aggregator"]

    @tff.tensorflow.computation(weights_type, aggregator_type, batches_type)
    def client_work(weights: Any, state: Any, batches: Any) -> Any:
        @tf.function  # keeps the training graph out of the computation's top level
        def train(weights: Any, state: Any, batches: Any) -> Contribution:
            update: ClientUpdate = client_update(token_losses, dict(weights), batches, local.learning_rate)
            return _as_ordered(aggregator.client(dict(state), update))

        return train(weights, state, batches)

    contribution_type = client_work.type_signature.result

    @tff.tensorflow.computation(state_type, contribution_type, tff.TensorType(np.int64, (2,)))
    def server_step(state: Any, total: Any, noise_seed: Any) -> Any:
        summed = Contribution(**{**total, "update": dict(total["update"])})
        mean = aggregator.server(dict(state["aggregator"]), summed, noise_seed)
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
            aggregator=OrderedDict(sorted(mean.state.items())),
        )
        released = OrderedDict(sorted(mean.released.items()), finite=finite_weights)
        operator = OrderedDict(
            loss=tf.math.divide_no_nan(summed.loss, summed.tokens),
            tokens=summed.tokens,
            examples=summed.examples,
            clients=summed.clients,
            non_finite=summed.non_finite,
            within_clip=tf.math.divide_no_nan(summed.within_clip, summed.clients) + 0.5,
        )
        return new_state, OrderedDict(released=released, operator=operator)

    @tff.federated_computation
    def initialize() -> Any:
        return tff.federated_eval(initial_state, tff.SERVER)

    @tff.federated_computation(
        initialize.type_signature.result,
        tff.FederatedType(batches_type, tff.CLIENTS),
        tff.FederatedType(tff.TensorType(np.int64, (2,)), tff.SERVER),
    )
    def next_round(state: Any, batches: Any, noise_seed: Any) -> Any:
        sent = tff.federated_broadcast(state)
        contributions = tff.federated_map(client_work, (sent["weights"], sent["aggregator"], batches))
        total = tff.federated_sum(contributions)
        result = tff.federated_map(server_step, (state, total, noise_seed))
        return result[0], result[1]

    return tff.templates.IterativeProcess(initialize, next_round)


def _as_ordered(contribution: Contribution) -> Any:
    update = OrderedDict((name, contribution.update[name]) for name in sorted(contribution.update))
    return OrderedDict(contribution._asdict(), update=update)
