"""Provides what graphs need of every tensor: its shape, weights as tensors, integers in a range."""

from typing import Any

import tensorflow as tf

from models.language_model import Weights


def shape_of(x: tf.Tensor) -> list[Any]:
    """Returns the size of each axis: an integer where it is known when the graph is built, else a scalar tensor."""
    dynamic: Any = None if x.shape.is_fully_defined() else tf.shape(x)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(x.shape)]


def to_tensors(weights: Weights) -> Weights:
    """Returns weights by name as tensors."""
    return {name: tf.convert_to_tensor(value) for name, value in weights.items()}


def clip(x: tf.Tensor, low: Any, high: Any) -> tf.Tensor:
    """Returns integers cut to the range from `low` to `high`.

    `tf.clip_by_value` with the limits 0 and 6 does not convert to TFLite: it is taken for the activation ReLU6, which
    has no integer form.
    """
    return tf.where(x < low, low, tf.where(x > high, high, x))
