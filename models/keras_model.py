"""The recurrent language model as a Keras model, and its weights to and from the plain dict, by name."""

import json
import os
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from models.keras_layers import CIFG, SICIFG, as_compute, fan_in_normal
from models.language_model import Weights
from models.recurrent_lm import RecurrentLanguageModel

_LAYERS = {"cifg": CIFG, "si-cifg": SICIFG}


@keras.saving.register_keras_serializable(package="fedspeak")
class TiedEmbedding(keras.layers.Layer):
    """One matrix as input and output embedding (Press & Wolf 2017, https://arxiv.org/abs/1608.05859).

    `layer(ids)` maps int32 `[...]` to vectors `[..., E]`; `layer(vectors, reverse=True)` maps `[..., E]` to
    logits `[..., V]`.

    Args:
      vocabulary_size: V.
      embedding: E.
      output_bias: whether the logits have a bias.
    """

    def __init__(self, vocabulary_size: int, embedding: int, output_bias: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.embedding_size = embedding
        self.has_output_bias = output_bias

    def build(self, input_shape: Any = None) -> None:
        self.embedding = self.add_weight(
            name="embedding",
            shape=(self.vocabulary_size, self.embedding_size),
            initializer=fan_in_normal(self.embedding_size),
        )
        if self.has_output_bias:
            self.output_bias = self.add_weight(
                name="output_bias", shape=(self.vocabulary_size,), initializer=keras.initializers.Zeros()
            )
        self.built = True

    def call(self, inputs: tf.Tensor, reverse: bool = False) -> tf.Tensor:
        """See the class."""
        embedding = as_compute(self, self.embedding)
        if not reverse:
            return tf.gather(embedding, tf.cast(inputs, tf.int32))
        logits = tf.tensordot(inputs, embedding, [[inputs.shape.rank - 1], [1]])
        return logits + as_compute(self, self.output_bias) if self.has_output_bias else logits

    def call_tapped(self, tap: Callable[[tf.Tensor], tf.Tensor], inputs: tf.Tensor, reverse: bool = False) -> Any:
        """`call`, and each example's gradient of the weights in closed form: see `privacy.dpsgd.layer_gradients`."""
        outputs = tap(self.call(inputs, reverse))

        def terms(gradient: tf.Tensor) -> list[Any]:
            # As a number where it is known: products over few positions need no float64.
            positions = gradient.shape[1:-1].num_elements() or -1
            gradient = tf.reshape(gradient, [tf.shape(gradient)[0], positions, gradient.shape[-1]])
            if not reverse:
                return [(self.embedding, tf.reshape(tf.cast(inputs, tf.int32), tf.shape(gradient)[:2]), gradient)]
            vectors = tf.reshape(inputs, [tf.shape(inputs)[0], positions, inputs.shape[-1]])
            found = [(self.embedding, gradient, vectors)]
            return (
                [*found, (self.output_bias, None, tf.reduce_sum(gradient, axis=1))] if self.has_output_bias else found
            )

        return outputs, terms

    def get_config(self) -> dict[str, Any]:
        own = {
            "vocabulary_size": self.vocabulary_size,
            "embedding": self.embedding_size,
            "output_bias": self.has_output_bias,
        }
        return {**super().get_config(), **own}


def to_keras(model: RecurrentLanguageModel, weights: Weights | None = None, length: int | None = None) -> keras.Model:
    """The language model as a functional Keras model: tokens int32 `[B, T]` -> logits `[B, T, V]`.

    Logits t are for token t + 1. Train it with `SparseCategoricalCrossentropy(from_logits=True)`, or give it
    to `tff.learning.models.from_keras_model`.

    Args:
      model: what to build.
      weights: as of `model.init`; if None, Keras draws new ones from the same law.
      length: T, if it is known: then (up to 64) no loop is needed. `functional_model_from_keras` of TFF 0.87
        needs it; without it, TFF fails with "must feed a value for placeholder", as with any Keras RNN.
    """
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    embedding = TiedEmbedding(model.vocabulary_size, model.embedding, output_bias=model.output_bias, name="embedding")
    recurrence = _LAYERS[model.cell](
        model.units, model.embedding, model.layer_norm, return_sequences=True, name="recurrence"
    )
    logits = embedding(recurrence(embedding(tokens)), reverse=True)
    keras_model = keras.Model(tokens, logits, name="recurrent_language_model")
    if weights is not None:
        load_into_keras(keras_model, weights)
    return keras_model


def load_keras(path: str | os.PathLike[str]) -> keras.Model:
    """A model from a `.keras` file with the kit's layers, saved by the same generation of Keras (2 or 3) as this one.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no `.keras` file, or one of the other generation; in one line that says what to do.
    """
    try:
        with zipfile.ZipFile(path) as file:
            saved = str(json.loads(file.read("metadata.json"))["keras_version"])
            file.getinfo("config.json")
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError):
        raise ValueError(f"{os.fspath(path)} is no .keras file: save one by model.save") from None
    if saved.partition(".")[0] != keras.__version__.partition(".")[0]:
        raise ValueError(
            f"{os.fspath(path)} was saved by Keras {saved}, and this is {keras.__version__}, which does not read it: "
            "there save from_keras(model) by numpy.savez, here give that to load_into_keras (of a model that to_keras "
            "did not make: save get_weights(), build it here by the same lines, give that to set_weights)"
        )
    return keras.models.load_model(path)


def from_keras(keras_model: keras.Model) -> Weights:
    """The weights of a model that `to_keras` made, as NumPy arrays for the pure functions."""
    return {name: tf.convert_to_tensor(variable).numpy() for name, variable in _variables(keras_model).items()}


def load_into_keras(keras_model: keras.Model, weights: Weights) -> None:
    """Assigns weights, by name, to a model that `to_keras` made.

    Raises:
      ValueError: a name is missing or unknown, or a shape differs.
    """
    variables = _variables(keras_model)
    if set(weights) != set(variables):
        raise ValueError(f"weights: names {sorted(weights)} are not the model's, {sorted(variables)}")
    for name, variable in variables.items():
        if tuple(weights[name].shape) != tuple(variable.shape):
            raise ValueError(
                f"weights: {name} has shape {tuple(weights[name].shape)}, the model's {tuple(variable.shape)}"
            )
    for name, variable in variables.items():
        variable.assign(weights[name])


def _variables(keras_model: keras.Model) -> dict[str, Any]:
    try:
        embedding, recurrence = keras_model.get_layer("embedding"), keras_model.get_layer("recurrence")
    except ValueError:
        raise ValueError(
            f"model {keras_model.name} was not made by to_keras: use get_weights and set_weights"
        ) from None
    named = {"embedding": embedding.embedding, **recurrence.cell.variables_by_name()}
    if embedding.has_output_bias:
        named["output_bias"] = embedding.output_bias
    return dict(sorted(named.items()))
