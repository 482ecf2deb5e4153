"""Builds a language model as a Keras model, and converts its weights to and from a plain dict by name."""

import json
import os
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from models.heads import HeadedLanguageModel
from models.keras_layers import CIFG, SICIFG, as_compute, fan_in_normal
from models.language_model import Weights
from models.recurrent_lm import RecurrentLanguageModel
from models.transformer.decoder import TransformerLanguageModel
from models.transformer.keras_layer import TransformerDecoder

_LAYERS = {"cifg": CIFG, "si-cifg": SICIFG}


@keras.saving.register_keras_serializable(package="fedspeak")
class TiedEmbedding(keras.layers.Layer):
    """Maps ids to vectors and vectors to logits with one matrix (Press & Wolf 2017, https://arxiv.org/abs/1608.05859).

    `layer(ids)` maps int32 `[...]` to vectors `[..., E]`; `layer(vectors, reverse=True)` maps `[..., E]` to
    logits `[..., V]`.

    Args:
      vocabulary_size: number of token ids V.
      embedding: size E of a vector.
      output_bias: whether a bias is added to the logits.
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
        """Maps int32 ids to vectors or, with `reverse`, vectors to logits; shapes are in the class's docstring."""
        embedding = as_compute(self, self.embedding)
        if not reverse:
            return tf.gather(embedding, tf.cast(inputs, tf.int32))
        logits = tf.tensordot(inputs, embedding, [[inputs.shape.rank - 1], [1]])
        return logits + as_compute(self, self.output_bias) if self.has_output_bias else logits

    def call_tapped(self, tap: Callable[[tf.Tensor], tf.Tensor], inputs: tf.Tensor, reverse: bool = False) -> Any:
        """Runs `call` and describes each example's gradient in closed form, for `privacy.dpsgd.layer_gradients`."""
        outputs = tap(self.call(inputs, reverse))

        def terms(gradient: tf.Tensor) -> list[Any]:
            # Static where possible: with an unknown number of positions `ghost_norms` computes in float64.
            positions = gradient.shape[1:-1].num_elements() or -1
            gradient = tf.reshape(gradient, [tf.shape(gradient)[0], positions, gradient.shape[-1]])
            if not reverse:
                return [(self.embedding, tf.reshape(tf.cast(inputs, tf.int32), tf.shape(gradient)[:2]), gradient)]
            vectors = tf.reshape(inputs, [tf.shape(inputs)[0], positions, inputs.shape[-1]])
            triples: list[Any] = [(self.embedding, gradient, vectors)]
            if self.has_output_bias:
                triples.append((self.output_bias, None, tf.reduce_sum(gradient, axis=1)))
            return triples

        return outputs, terms

    def get_config(self) -> dict[str, Any]:
        own = {
            "vocabulary_size": self.vocabulary_size,
            "embedding": self.embedding_size,
            "output_bias": self.has_output_bias,
        }
        return {**super().get_config(), **own}


def to_keras(
    model: RecurrentLanguageModel | TransformerLanguageModel, weights: Weights | None = None, length: int | None = None
) -> keras.Model:
    """Builds the language model as a functional Keras model: tokens int32 `[B, T]` -> logits `[B, T, V]`.

    The logits at position t predict the token at t + 1. Train the model with
    `SparseCategoricalCrossentropy(from_logits=True)`, or pass it to `tff.learning.models.from_keras_model`.

    Args:
      model: the language model to build.
      weights: weights as `model.init` returns them; if None, Keras draws new ones from the same distribution.
      length: the fixed length T of the inputs; None allows any length. With a length of at most 64 the graph of a
        recurrent model has no loop. TFF 0.87's `functional_model_from_keras` needs a fixed length for recurrent models.
        Without one, TFF fails with "must feed a value for placeholder", as it does for any Keras RNN.

    Raises:
      ValueError: `length` is more than the model's context, or the model has prediction heads.
    """
    if isinstance(model, HeadedLanguageModel):
        raise ValueError(
            "model: prediction heads have no Keras form: build the base, to_keras(*without_heads(model, weights)) with "
            "models.heads.without_heads"
        )
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    if isinstance(model, TransformerLanguageModel):
        logits = TransformerDecoder(model.config(), name="decoder")(tokens)
        keras_model = keras.Model(tokens, logits, name="transformer_language_model")
    else:
        embedding = TiedEmbedding(
            model.vocabulary_size, model.embedding, output_bias=model.output_bias, name="embedding"
        )
        recurrence = _LAYERS[model.cell](
            model.units, model.embedding, model.layer_norm, return_sequences=True, name="recurrence"
        )
        logits = embedding(recurrence(embedding(tokens)), reverse=True)
        keras_model = keras.Model(tokens, logits, name="recurrent_language_model")
    if weights is not None:
        load_into_keras(keras_model, weights)
    return keras_model


def load_keras(path: str | os.PathLike[str]) -> keras.Model:
    """Loads a model with fedspeak's layers from a `.keras` file that the same major version of Keras (2 or 3) saved.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a `.keras` file, or another major version of Keras saved it; the message says what to do.
    """
    try:
        with zipfile.ZipFile(path) as file:
            saved = str(json.loads(file.read("metadata.json"))["keras_version"])
            file.getinfo("config.json")
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError):
        raise ValueError(f"{os.fspath(path)} is not a .keras file: write one with model.save") from None
    if saved.partition(".")[0] != keras.__version__.partition(".")[0]:
        raise ValueError(
            f"{os.fspath(path)} was saved by Keras {saved} and cannot be read by Keras {keras.__version__}: "
            f"under Keras {saved}, call numpy.savez('weights.npz', **from_keras(model)); here, build the model with "
            "to_keras and call load_into_keras(model, numpy.load('weights.npz')). If to_keras did not build the saved "
            "model, transfer its get_weights() with set_weights instead"
        )
    return keras.models.load_model(path)


def from_keras(keras_model: keras.Model) -> Weights:
    """Returns the weights of a model that `to_keras` built, as NumPy arrays by name for the pure functions.

    Raises:
      ValueError: `to_keras` did not build the model.
    """
    return {name: tf.convert_to_tensor(variable).numpy() for name, variable in _variables(keras_model).items()}


def load_into_keras(keras_model: keras.Model, weights: Weights) -> None:
    """Assigns weights by name to a model that `to_keras` built.

    Raises:
      ValueError: a name is missing or unknown, a shape differs, or `to_keras` did not build the model. In these cases
        nothing is assigned.
    """
    variables = _variables(keras_model)
    if set(weights) != set(variables):
        raise ValueError(f"weights: the names are {sorted(weights)}, but the model needs {sorted(variables)}")
    for name, variable in variables.items():
        if tuple(weights[name].shape) != tuple(variable.shape):
            raise ValueError(
                f"weights: {name} has shape {tuple(weights[name].shape)}, but the model needs {tuple(variable.shape)}"
            )
    for name, variable in variables.items():
        variable.assign(weights[name])


def _variables(keras_model: keras.Model) -> dict[str, Any]:
    layers = {layer.name: layer for layer in keras_model.layers}
    if "decoder" in layers:
        return dict(layers["decoder"].variables_by_name())
    if not {"embedding", "recurrence"} <= layers.keys():
        raise ValueError(f"model {keras_model.name} was not built by to_keras: use its get_weights and set_weights")
    embedding = layers["embedding"]
    named = {"embedding": embedding.embedding, **layers["recurrence"].cell.variables_by_name()}
    if embedding.has_output_bias:
        named["output_bias"] = embedding.output_bias
    return dict(sorted(named.items()))
