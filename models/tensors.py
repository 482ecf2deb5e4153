"""Provides what the language models need of every tensor: its shape in a graph, and weights as tensors."""

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
