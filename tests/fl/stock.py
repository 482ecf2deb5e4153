"""Provides the same small models to the engines and to stock `tff.learning`, and runs rounds of the latter."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow_federated as tff
import keras
import numpy as np
import tensorflow as tf

from fl import keras_models
from fl.local_training import Batches, LanguageModelling, LocalSGD, Task
from models import from_keras, to_keras
from models.recurrent_lm import RecurrentLanguageModel
from models.transformer.decoder import TransformerLanguageModel
from tests.models import exported
from tests.tolerance import FUNCTION, model_operations

LENGTH, VOCABULARY, CLASSES = 5, 11, 6


class Net(NamedTuple):
    """A model in two forms: a task for the engines and a Keras model for stock TFF."""

    task: Task
    weights: dict[str, np.ndarray]  # initial weights of both
    keras_model: Callable[[], keras.Model]
    loss: Callable[[], keras.losses.Loss]
    spec: tuple[tf.TensorSpec, tf.TensorSpec]  # specs of a batch (x, y)
    examples: Callable[[np.random.Generator, int], Any]  # draws a client's examples, for `LocalSGD.batches`
    split: Callable[[Any], tuple[np.ndarray, np.ndarray]]  # splits a batch into (x, y)
    local: LocalSGD
    named: Callable[[list[np.ndarray]], dict[str, np.ndarray]]  # names stock's trained weights, given in its order
    operations: int  # of a step's loss and gradient, for `tests.tolerance.rounding`
    # Where the gradient jumps so often that rounding has no useful bound: a jump, relative to the distance moved.
    jumps: float = 0.0


def cross_entropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def recurrent(cell: str, layer_norm: bool = False, output_bias: bool = False) -> Net:
    """Returns one of fedspeak's language models.

    Its sequences hold no padding, because stock Keras losses include padded positions in their mean.

    The gradient of the scale-invariant cell jumps where another entry becomes the largest, so that a rounding error may
    cause a jump if two entries are close. Layer normalisation of a state with few non-zero entries amplifies this. With
    both, two correct gradients in float32 occasionally differ in the contribution of one of 15 tokens to one of 6
    steps, even those of one formula that is compiled twice. Therefore tests/models/test_cifg_gradient.py compares the
    formulas in float64.
    """
    model = RecurrentLanguageModel(cell, VOCABULARY, 12, 16, layer_norm, output_bias)
    # The learning rate is so low that rounding errors do not grow from step to step.
    rate = {("cifg", False): 0.3, ("cifg", True): 0.02, ("si-cifg", False): 0.3, ("si-cifg", True): 0.002}
    jumps = 1 / (3 * LENGTH * 6) if (cell, layer_norm) == ("si-cifg", True) else 0.0
    return language_model(model, rate[cell, layer_norm], exported.operations(model), jumps)


def transformer(scale_invariant: bool) -> Net:
    """Returns a small transformer; its sequences hold no padding, for the reason given in `recurrent`."""
    options: Any = {"attention": "relu", "norm_epsilon": 0.0, "degree_two_embedding": True} if scale_invariant else {}
    model = TransformerLanguageModel(VOCABULARY, 16, 2, 2, 24, context=LENGTH, **options)
    operations = model.blocks * (4 * 16 + 24 + LENGTH + 4 * FUNCTION) + 16 + FUNCTION
    return language_model(model, 0.005 if scale_invariant else 0.1, operations, 0.0)


def language_model(model: Any, learning_rate: float, operations: int, jumps: float) -> Net:
    """Returns one of fedspeak's language models; `operations` are those on the way to a logit."""
    tokens = tf.TensorSpec([None, LENGTH], tf.int32)

    def named(trained: list[np.ndarray]) -> dict[str, np.ndarray]:
        keras_model = to_keras(model)
        for variable, value in zip(keras_model.trainable_variables, trained, strict=True):
            variable.assign(value)
        return from_keras(keras_model)

    return Net(
        task=LanguageModelling(model.token_losses, LENGTH, stacks=True, loss_sum=model.loss_sum),
        weights=model.init(1),
        keras_model=lambda: to_keras(model),
        loss=cross_entropy,
        spec=(tokens, tokens),
        examples=lambda g, rows: g.integers(1, VOCABULARY, (rows, LENGTH + 1)).astype(np.int32),
        split=lambda tokens: (tokens[:, :-1], tokens[:, 1:]),
        local=LocalSGD(learning_rate, 3, 2, LENGTH, 8),
        named=named,
        # Forward, and two products backward for each; a weight's gradient sums over 3 rows.
        operations=3 * operations + 3 * LENGTH,
        jumps=jumps,
    )


def layers(*layers: Callable[[], keras.layers.Layer], shape: tuple[int, ...]) -> Callable[[], keras.Model]:
    return lambda: keras.Sequential([keras.Input(shape), *(layer() for layer in layers)])


DENSE = layers(
    lambda: keras.layers.Dense(8, activation="tanh"),
    lambda: keras.layers.Dense(CLASSES),
    shape=(4,),
)
CNN = layers(
    lambda: keras.layers.Conv2D(4, 3, activation="relu"),
    lambda: keras.layers.MaxPool2D(),
    lambda: keras.layers.Conv2D(5, 2, activation="relu"),
    lambda: keras.layers.Flatten(),
    lambda: keras.layers.Dense(CLASSES),
    shape=(8, 8, 1),
)


def of_keras(make: Callable[[], keras.Model], loss: Callable[[], keras.losses.Loss] = cross_entropy) -> Net:
    """Returns a Keras classifier with random initial weights."""
    model, generator = make(), np.random.default_rng(3)
    shape = model.input_shape[1:]
    for variable in model.trainable_variables:
        fan_in = np.prod(variable.shape[:-1])
        variable.assign(generator.normal(size=variable.shape) / np.sqrt(fan_in))
    weights = keras_models.initial_weights(model)
    return Net(
        task=keras_models.KerasTask(model, loss(), tf.TensorSpec([], tf.int32)),
        weights=weights,
        keras_model=make,
        loss=loss,
        spec=(tf.TensorSpec([None, *shape], tf.float32), tf.TensorSpec([None], tf.int32)),
        examples=lambda g, rows: (
            g.normal(size=(rows, *shape)).astype(np.float32),
            g.integers(0, CLASSES, rows).astype(np.int32),
        ),
        split=lambda pair: pair,
        local=LocalSGD(0.3, 3, 2, max_sequences=8),
        named=lambda trained: dict(zip(weights, trained, strict=True)),
        # 3 rows, and in a convolution its positions.
        operations=model_operations(model, 3 * int(np.prod(shape[:-1]))),
    )


def datasets(net: Net, clients: list[Batches]) -> list[tf.data.Dataset]:
    """Returns each client's batches as a data set, without padding."""
    client_datasets = []
    for client in clients:
        steps = []
        for step, rows in enumerate(client.rows):
            batch = tf.nest.map_structure(lambda array, step=step, rows=rows: array[step, :rows], client.examples)
            steps.append(tf.data.Dataset.from_tensors(net.split(batch)))
        joined = steps[0]
        for more in steps[1:]:
            joined = joined.concatenate(more)
        client_datasets.append(joined)
    return client_datasets


class Stock:
    """Stock federated averaging that starts from `net.weights`: FedAvg or FedProx, with SGD or Adam clients."""

    def __init__(
        self, net: Net, server_optimizer: Any, aggregator: Any, weighted: bool = False, own_loss: bool = False
    ) -> None:
        """Builds the process.

        `aggregator` is one of `tff.aggregators`; None: TFF's default. If it takes client weights, they are the numbers
        of examples if `weighted`, else 1. With `own_loss` the model is the task's loss with its own gradient and not
        Keras's.
        """
        arguments = {
            "client_optimizer_fn": _client_optimizer(net.local),
            "server_optimizer_fn": server_optimizer,
            "model_aggregator": aggregator,
        }
        algorithms, weighting = tff.learning.algorithms, tff.learning.ClientWeighting

        def keras_model() -> tff.learning.models.VariableModel:
            return tff.learning.models.from_keras_model(net.keras_model(), net.loss(), net.spec)

        model_fn = _functional(net) if own_loss else keras_model
        is_weighted = isinstance(aggregator, tff.aggregators.WeightedAggregationFactory)
        if is_weighted:
            arguments["client_weighting"] = weighting.NUM_EXAMPLES if weighted else weighting.UNIFORM
        if net.local.proximal:
            arguments["proximal_strength"] = -net.local.proximal  # see `test_stock_equality`
            build = algorithms.build_weighted_fed_prox if is_weighted else algorithms.build_unweighted_fed_prox
        else:
            build = algorithms.build_weighted_fed_avg if is_weighted else algorithms.build_unweighted_fed_avg
        self._process = build(model_fn, **arguments)
        self._net = net
        self._own_loss = own_loss

    def train(self, rounds: list[list[Batches]]) -> dict[str, np.ndarray]:
        """Returns the weights after the rounds."""
        net = self._net._replace(split=lambda tokens: (tokens, tokens)) if self._own_loss else self._net
        state = self._process.initialize()
        if not self._own_loss:
            start = self._process.get_model_weights(state)
            # Stock TFF orders the weights as the Keras model orders its variables.
            ordered = _order_weights(net, net.keras_model())
            state = self._process.set_model_weights(
                state, tff.learning.models.ModelWeights(ordered, start.non_trainable)
            )
        for clients in rounds:
            state = self._process.next(state, datasets(net, clients)).state
        trained = list(self._process.get_model_weights(state).trainable)
        return dict(zip(sorted(net.weights), trained, strict=True)) if self._own_loss else net.named(trained)


def _client_optimizer(local: LocalSGD) -> Any:
    kinds = tff.learning.optimizers
    return (kinds.build_adam if local.optimizer == "adam" else kinds.build_sgdm)(local.learning_rate)


def _functional(net: Net) -> tff.learning.models.FunctionalModel:
    """Returns a model for TFF whose prediction for each row is the batch's mean loss."""
    names = sorted(net.weights)

    @tf.function(autograph=False)
    def mean_loss(weights: Any, tokens: tf.Tensor, training: bool) -> tf.Tensor:
        rows = tf.shape(tokens)[0]
        loss = net.task.loss(dict(zip(names, weights[0], strict=True)), tokens, rows)
        return tf.fill([rows], loss.total / loss.count)  # stock TFF counts outputs as examples

    tokens = tf.TensorSpec([None, LENGTH + 1], tf.int32)
    return tff.learning.models.FunctionalModel(
        initial_weights=(tuple(net.weights[name] for name in names), ()),
        predict_on_batch_fn=mean_loss,
        loss_fn=lambda output, label, sample_weight=None: output[0],
        input_spec=(tokens, tokens),
    )


def _order_weights(net: Net, keras_model: keras.Model) -> list[np.ndarray]:
    """Returns `net.weights` in the order of the Keras model's variables, found by naming numbered weights."""
    numbered = [np.full(v.shape, i, np.float32) for i, v in enumerate(keras_model.trainable_variables)]
    number_of = {name: int(value.flat[0]) for name, value in net.named(numbered).items()}
    return [net.weights[name] for name in sorted(number_of, key=number_of.__getitem__)]
