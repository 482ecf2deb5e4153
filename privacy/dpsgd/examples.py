"""Checks the arrays of a Keras training and computes the loss of each example by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from privacy.arrays import as_array, how_to_gather, yields_batches
from privacy.dpsgd.layer_gradients import layers_with_weights

Losses = Callable[..., tf.Tensor]
"""Function (x, y, training=True) that returns each example's loss, [B]."""


class Examples(NamedTuple):
    """Holds training data: a nest of input arrays and an array of labels, each [n, ...]."""

    x: Any
    y: Any

    def take(self, rows: npt.NDArray[Any]) -> Any:
        """Returns (inputs, labels) of some rows as tensors."""
        return tf.nest.map_structure(lambda part: tf.convert_to_tensor(part[rows]), (self.x, self.y))

    def signature(self) -> Any:
        """Returns (inputs, labels) as `tf.TensorSpec`s for any number of rows."""
        return tf.nest.map_structure(
            lambda part: tf.TensorSpec([None, *part.shape[1:]], tf.as_dtype(part.dtype)), (self.x, self.y)
        )


def checked_examples(x: Any, y: Any) -> Examples:
    """Returns the arrays as `Examples`; raises ValueError unless all hold finite numbers in equally many rows."""
    if y is None:
        only_iterable = isinstance(x, Iterable) and not hasattr(x, "__array__") and not hasattr(x, "__getitem__")
        if only_iterable or yields_batches(x):
            raise ValueError(f"x has type {type(x).__name__} and y is missing: give {how_to_gather('x', x)}")
        raise ValueError("y is missing: give the labels, an array with one row for each of x")
    x, y = _gather_rows(x), as_array("y", y)
    inputs = tf.nest.flatten(x)
    names = [f"x[{i}]" if len(inputs) > 1 else "x" for i in range(len(inputs))]
    x = tf.nest.pack_sequence_as(x, [as_array(name, part) for name, part in zip(names, inputs, strict=True)])
    for name, part in zip([*names, "y"], [*tf.nest.flatten(x), y], strict=True):
        if not part.ndim or not y.ndim or len(part) != len(y) or not len(y):
            raise ValueError(
                f"{name} has shape {list(part.shape)}, y {list(y.shape)}: give equally many rows, at least one"
            )
        if part.dtype.kind not in "iufb":
            raise ValueError(f"{name} has dtype {part.dtype}: numbers are needed")
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            rows = int((~np.isfinite(part)).reshape(len(part), -1).any(axis=1).sum())
            raise ValueError(f"{name} is not finite in {rows} rows: fix them or leave them out")
    return Examples(x, y)


def _gather_rows(x: Any) -> Any:
    """Returns the nest of inputs, with each list of rows converted to an array."""

    def gather(name: str, part: Any) -> Any:
        is_list = isinstance(part, (list, tuple)) and not any(hasattr(each, "shape") for each in part)
        return as_array(name, part) if is_list else part

    if isinstance(x, dict):
        return {key: gather(f"x[{key!r}]", part) for key, part in x.items()}
    x = gather("x", x)
    if not isinstance(x, (list, tuple)):
        return x
    parts = [gather(f"x[{i}]", part) for i, part in enumerate(x)]
    return parts if isinstance(x, list) else tuple(parts)


def losses_of(model: Any) -> Losses:
    """Returns the function that computes each example's loss, with the loss that the model was compiled with.

    An example's loss is the mean over its positions, or over those that the model's mask keeps.

    Raises:
      ValueError: the model is not compiled, or has a setting with which its loss cannot be computed for each example
        alone.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"model is {model!r}: give a keras.Model")
    loss = getattr(model, "loss", None)
    if loss is None or getattr(model, "optimizer", None) is None:
        raise ValueError(f"model {model.name} is not compiled: call model.compile(optimizer, loss) first")
    if isinstance(loss, (list, tuple, dict)):
        raise ValueError(f"model {model.name} has several losses: one output with one loss is needed")
    # Not by the public `get_compile_config`: it serialises the loss, which some custom losses do not support.
    if getattr(getattr(model, "_compile_config", None), "config", {}).get("loss_weights"):
        raise ValueError(f"model {model.name} has loss_weights: put the factor into the learning rate")
    for method in ("train_step", "compute_loss"):
        if getattr(type(model), method, None) is not getattr(keras.Model, method, None):
            raise ValueError(f"model {model.name} overrides {method}, which this training does not call: remove it")
    for layer in layers_with_weights(model):
        if layer.compute_dtype in ("float16", "bfloat16"):
            raise ValueError(f"layer {layer.name} computes in {layer.compute_dtype}: float32 is needed to clip exactly")
    unreduced = _remove_reduction(loss)

    def losses(x: Any, y: Any, training: bool = True) -> tf.Tensor:
        outputs = model(x, training=training)
        if isinstance(outputs, (list, tuple, dict)):
            raise ValueError(f"model {model.name} has several outputs: one output with one loss is needed")
        if y.shape.rank == outputs.shape.rank - 1 and outputs.shape[-1] == 1:
            y = y[..., tf.newaxis]  # as Keras does; otherwise y - outputs would pair every example with every other
        if y.dtype.is_floating:
            y = tf.cast(y, outputs.dtype)
        values = tf.cast(unreduced(y, outputs), outputs.dtype)  # a loss may have a dtype of its own
        if values.shape.rank == 0:
            raise ValueError("the loss gives one number for all examples together: it must give one for each")
        axes = list(range(1, values.shape.rank))
        if not axes:
            return values
        mask = getattr(outputs, "_keras_mask", None)
        if mask is None:
            return tf.reduce_mean(values, axes)
        weights = tf.cast(mask, values.dtype)
        return tf.math.divide_no_nan(tf.reduce_sum(weights * values, axes), tf.reduce_sum(weights, axes))

    return losses


def _remove_reduction(loss: Any) -> Any:
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if not isinstance(loss, keras.losses.Loss):
        return _FunctionLoss(loss)
    if loss.reduction == "sum":
        raise ValueError(f"loss {loss.name} has reduction 'sum': use the default, a mean")
    # Not `copy.copy`: Keras 3 would rebuild the loss from its configuration, which may be incomplete.
    unreduced = object.__new__(type(loss))
    vars(unreduced).update(vars(loss))
    unreduced.reduction = "none"
    return unreduced


class _FunctionLoss(keras.losses.Loss):
    def __init__(self, function: Any) -> None:
        super().__init__(name="loss", reduction="none")
        self._function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self._function(y_true, y_pred)


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Converts TensorFlow's and Keras' errors about the data, raised inside `with`, to a ValueError of one line."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, TypeError) as error:
        raise ValueError(f"the model cannot take the data: {_main_line(str(error))}") from None
    except ValueError as error:
        if "\n" not in str(error):
            raise
        raise ValueError(f"the model cannot take the data: {_main_line(str(error))}") from None


# Beginnings of lines of a TensorFlow or Keras error that say where it happened and not what is wrong.
_CONTEXT = ("[[", "Detected", "File ", "Stack", "Graph exec", "Node:", "Call arguments", "in user", "Exception enc")


def _main_line(message: str) -> str:
    """Returns the line of an error that says what is wrong."""
    lines = [line.strip() for line in message.splitlines()]
    return next((line for line in lines if line and not line.startswith(_CONTEXT)), lines[0])
