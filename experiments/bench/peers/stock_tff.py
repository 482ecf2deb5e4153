"""Runs a workload in TensorFlow Federated as its tutorials use it.

That is `tff.learning`, a Keras model, one `tf.data` dataset per client, and the default execution context.
"""

from collections.abc import Callable
from typing import Any

import tensorflow_federated as tff
import numpy as np
import tensorflow as tf

from experiments.bench.peers.common import Recorder, Request, Workload, run


class TokenLoss(tf.keras.losses.Loss):
    """Computes the mean cross-entropy over the tokens of a batch that are not padding."""

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        is_target = tf.cast(tf.not_equal(y_true, 0), tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y_true, y_pred)
        return tf.reduce_sum(losses * is_target) / tf.maximum(tf.reduce_sum(is_target), 1.0)


def _lstm(weights: dict[str, np.ndarray]) -> tuple[tf.keras.Model, list[str]]:
    vocabulary, embedding = weights["embedding"].shape
    layers = [
        tf.keras.layers.Embedding(vocabulary, embedding, input_length=None),
        tf.keras.layers.LSTM(weights["recurrent_kernel"].shape[0], return_sequences=True),
        tf.keras.layers.Dense(weights["projection_bias"].size),
        tf.keras.layers.Dense(vocabulary),
    ]
    names = ["embedding", "kernel", "recurrent_kernel", "bias"]
    names += ["projection_kernel", "projection_bias", "output_kernel", "output_bias"]
    return tf.keras.Sequential([tf.keras.Input((None,), dtype=tf.int32), *layers]), names


def _si_cifg(weights: dict[str, np.ndarray]) -> tuple[tf.keras.Model, list[str]]:
    from models.keras_model import to_keras
    from models.recurrent_lm import RecurrentLanguageModel

    vocabulary, embedding = weights["embedding"].shape
    model = RecurrentLanguageModel("si-cifg", vocabulary, embedding, weights["projection"].shape[0])
    keras_model = to_keras(model, length=20)
    names = [variable.name.partition(":")[0].rpartition("/")[2] for variable in keras_model.trainable_variables]
    return keras_model, names


def _transformer(weights: dict[str, np.ndarray]) -> tuple[tf.keras.Model, list[str]]:
    from experiments.bench.models import transformer
    from models.keras_model import to_keras

    return to_keras(transformer(weights)), sorted(weights)


def _cnn(weights: dict[str, np.ndarray]) -> tuple[tf.keras.Model, list[str]]:
    layers = [
        tf.keras.layers.Conv2D(weights["first_bias"].size, 5, padding="same", activation="relu"),
        tf.keras.layers.MaxPool2D(),
        tf.keras.layers.Conv2D(weights["second_bias"].size, 5, padding="same", activation="relu"),
        tf.keras.layers.MaxPool2D(),
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dense(weights["output_bias"].size),
    ]
    names = ["first_kernel", "first_bias", "second_kernel", "second_bias", "output_kernel", "output_bias"]
    return tf.keras.Sequential([tf.keras.Input((28, 28, 1)), *layers]), names


def _logistic(weights: dict[str, np.ndarray]) -> tuple[tf.keras.Model, list[str]]:
    inputs, classes = weights["kernel"].shape
    return tf.keras.Sequential([tf.keras.Input((inputs,)), tf.keras.layers.Dense(classes)]), ["kernel", "bias"]


_MODELS: dict[str, Callable[[dict[str, np.ndarray]], tuple[tf.keras.Model, list[str]]]] = {
    "lstm": _lstm,
    "si-cifg": _si_cifg,
    "transformer": _transformer,
    "cnn": _cnn,
    "logistic": _logistic,
}


def peer(request: Request, workload: Workload, recorder: Recorder) -> None:
    """Trains with weighted or private federated averaging, as in TFF's tutorials."""
    settings = workload.settings
    build = _MODELS[settings.model]
    datasets = {
        id(client): tf.data.Dataset.from_tensor_slices((client.x, client.y)).batch(settings.batch_size)
        for client in workload.clients
    }
    spec = next(iter(datasets.values())).element_spec

    def model_fn() -> tff.learning.models.VariableModel:
        loss = TokenLoss() if workload.is_text else tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return tff.learning.models.from_keras_model(build(workload.weights)[0], loss, spec)

    client_optimizer = tff.learning.optimizers.build_sgdm(settings.learning_rate)
    server_optimizer = tff.learning.optimizers.build_sgdm(1.0)
    if request.noise_multiplier is None:
        process = tff.learning.algorithms.build_weighted_fed_avg(model_fn, client_optimizer, server_optimizer)
    else:
        aggregator = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(
            request.noise_multiplier, clients_per_round=workload.cohorts.shape[1], clip=settings.clip
        )
        process = tff.learning.algorithms.build_unweighted_fed_avg(
            model_fn, client_optimizer, server_optimizer, model_aggregator=aggregator
        )
    names = build(workload.weights)[1]
    state = process.initialize()
    initial = tff.learning.models.ModelWeights([workload.weights[name] for name in names], [])
    state = process.set_model_weights(state, initial)

    def weights() -> dict[str, Any]:
        return dict(zip(names, process.get_model_weights(state).trainable, strict=True))

    recorder.start()
    for number in range(request.rounds):
        state = process.next(state, [datasets[id(client)] for client in workload.cohort(number)]).state
        recorder.round_done(weights)
    recorder.write("stock TFF + Keras", tff.__version__)


if __name__ == "__main__":
    run(peer)
