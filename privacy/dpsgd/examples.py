"""The examples and the loss of a training with Keras: arrays that fit, and a loss for each example alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from privacy.arrays import require_array
from privacy.dpsgd.layer_gradients import layers_with_weights

Losses = Callable[..., tf.Tensor]
"""(x, y, training=True) -> each example's loss, [B]."""


class Examples(NamedTuple):
    """Arrays [n, ...]: a nest of inputs, and labels."""

    x: Any
    y: Any

    def take(self, rows: npt.NDArray[Any]) -> Any:
        """(Inputs, labels) of some rows, as tensors."""
        return tf.nest.map_structure(lambda part: tf.convert_to_tensor(part[rows]), (self.x, self.y))

    def signature(self) -> Any:
        """(Inputs, labels) as `tf.TensorSpec`s of any number of rows."""
        return tf.nest.map_structure(
            lambda part: tf.TensorSpec([None, *part.shape[1:]], tf.as_dtype(part.dtype)), (self.x, self.y)
        )


def checked_examples(x: Any, y: Any) -> Examples:
    """Raises ValueError, in one line, unless all arrays hold finite numbers in as many rows."""
    if isinstance(x, (list, tuple)) and not any(hasattr(part, "shape") for part in x):
        x = np.asarray(x)  # one array, written out
    given = tf.nest.flatten(x)
    names = [f"x[{i}]" if len(given) > 1 else "x" for i in range(len(given))]
    for name, part in zip([*names, "y"], [*given, y], strict=True):
        require_array(name, part)
    x, y = tf.nest.map_structure(np.asarray, x), np.asarray(y)
    for name, part in zip([*names, "y"], [*tf.nest.flatten(x), y], strict=True):
        if not part.ndim or not y.ndim or len(part) != len(y) or not len(y):
            raise ValueError(f"{name} has shape {list(part.shape)}, y {list(y.shape)}: give as many rows, at least one")
        if part.dtype.kind not in "iufb":
            raise ValueError(f"{name} has dtype {part.dtype}: numbers are needed")
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            rows = int((~np.isfinite(part)).reshape(len(part), -1).any(axis=1).sum())
            raise ValueError(f"{name} is not finite in {rows} rows: mend them or leave them out")
    return Examples(x, y)


def losses_of(model: Any) -> Losses:
    """Each example's loss by the model as it was compiled: the mean over positions, those that its mask leaves.

    Raises:
      ValueError: the model is not compiled, or not in a way that has such losses, in one line.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"model is {model!r}: give a keras.Model")
    loss = getattr(model, "loss", None)
    if loss is None or getattr(model, "optimizer", None) is None:
        raise ValueError(f"model {model.name} is not compiled: call model.compile(optimizer, loss) first")
    if isinstance(loss, (list, tuple, dict)):
        raise ValueError(f"model {model.name} has several losses: one output with one loss is needed")
    # The public `get_compile_config` would write the loss out, which some of one's own do not allow.
    if getattr(getattr(model, "_compile_config", None), "config", {}).get("loss_weights"):
        raise ValueError(f"model {model.name} has loss_weights: put the factor into the learning rate")
    for method in ("train_step", "compute_loss"):
        if getattr(type(model), method, None) is not getattr(keras.Model, method, None):
            raise ValueError(f"model {model.name} has a {method} of its own, which this training does not call")
    for layer in layers_with_weights(model):
        if layer.compute_dtype in ("float16", "bfloat16"):
            raise ValueError(f"layer {layer.name} computes in {layer.compute_dtype}: float32 is needed to clip exactly")
    unreduced = _unreduced(loss)

    def losses(x: Any, y: Any, training: bool = True) -> tf.Tensor:
        outputs = model(x, training=training)
        if isinstance(outputs, (list, tuple, dict)):
            raise ValueError(f"model {model.name} has several outputs: one output with one loss is needed")
        if y.shape.rank == outputs.shape.rank - 1 and outputs.shape[-1] == 1:
            y = y[..., tf.newaxis]  # as Keras does: y - outputs would be of every example with every other
        if y.dtype.is_floating:
            y = tf.cast(y, outputs.dtype)
        found = tf.cast(unreduced(y, outputs), outputs.dtype)  # a loss may have a dtype of its own
        if found.shape.rank == 0:
            raise ValueError("the loss gives one number for all examples together: it must give one for each")
        axes = list(range(1, found.shape.rank))
        if not axes:
            return found
        mask = getattr(outputs, "_keras_mask", None)
        if mask is None:
            return tf.reduce_mean(found, axes)
        kept = tf.cast(mask, found.dtype)
        return tf.math.divide_no_nan(tf.reduce_sum(kept * found, axes), tf.reduce_sum(kept, axes))

    return losses


def _unreduced(loss: Any) -> Any:
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if not isinstance(loss, keras.losses.Loss):
        return _OfFunction(loss)
    if loss.reduction == "sum":
        raise ValueError(f"loss {loss.name} has reduction 'sum': take the default, a mean")
    # Not `copy.copy`: Keras 3 would build it anew from its configuration, which may leave out half of it.
    unreduced = object.__new__(type(loss))
    vars(unreduced).update(vars(loss))
    unreduced.reduction = "none"
    return unreduced


class _OfFunction(keras.losses.Loss):
    def __init__(self, function: Any) -> None:
        super().__init__(name="loss", reduction="none")
        self._function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self._function(y_true, y_pred)


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """TensorFlow's and Keras' errors of what the data hold, as a ValueError of one line."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, TypeError) as error:
        raise ValueError(f"the model cannot take the data: {_point(str(error))}") from None
    except ValueError as error:
        if "\n" not in str(error):
            raise
        raise ValueError(f"the model cannot take the data: {_point(str(error))}") from None


_AROUND = ("[[", "Detected", "File ", "Stack", "Graph exec", "Node:", "Call arguments", "in user", "Exception enc")


def _point(message: str) -> str:
    """The line of an error that says what is wrong."""
    lines = [line.strip() for line in message.splitlines()]
    return next((line for line in lines if line and not line.startswith(_AROUND)), lines[0])
