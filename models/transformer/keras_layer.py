"""Provides the transformer language model as one Keras layer, for Keras 2.14 and Keras 3 (TensorFlow backend)."""

from typing import Any

import keras
import tensorflow as tf

from models.keras_layers import as_compute
from models.presets import from_config


@keras.saving.register_keras_serializable(package="fedspeak")
class TransformerDecoder(keras.layers.Layer):
    """Maps token ids int32 `[B, T]` to logits `[B, T, V]`; the logits at position t predict the token at t + 1.

    Args:
      config: what `TransformerLanguageModel.config` returns.
    """

    def __init__(self, config: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model: Any = from_config(dict(config))

    def build(self, input_shape: Any = None) -> None:
        self._by_name = {}
        for name, shape in self.model.shapes().items():
            mean, deviation = self.model.initial_distribution(name)
            initializers = keras.initializers
            initializer = initializers.RandomNormal(mean, deviation) if deviation else initializers.Constant(mean)
            # Keras 3 does not allow dots in the path of a saved weight.
            self._by_name[name] = self.add_weight(name=name.replace(".", "_"), shape=shape, initializer=initializer)
        self.built = True

    def variables_by_name(self) -> dict[str, Any]:
        """Returns the Keras variables of the weights under the names that the model uses."""
        return dict(self._by_name)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps int32 `[B, T]` to logits `[B, T, V]`."""
        weights = {name: as_compute(self, variable) for name, variable in self._by_name.items()}
        return self.model.forward(weights, tf.cast(inputs, tf.int32))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "config": self.model.config()}
