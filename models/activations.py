"""Scale-invariant activations: multiplying the input by a positive number does not change their value.

They replace the sigmoid and the tanh of a gated recurrent cell, so that plain SGD, the only optimizer that
devices can afford, does not depend on the scale of the gate weights (Ro et al. 2024,
https://arxiv.org/abs/2403.08100).

The maximum runs over the units of one gate, for each example and time step alone: never over a batch, so
nothing leaks from one user's example to another's. 0/0 is 0, also in the gradient. There is no additive
epsilon in the denominator: it would break the invariance for small weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf


class Differentiable(NamedTuple):
    """An activation with its gradient written out in terms of its value, for gradients written by hand."""

    value: Callable[[Any], tuple[Any, Any]]  # x -> (y, scale), scale None where the gradient does not need it
    gradient: Callable[[Any, Any, Any], Any]  # (gradient in y, y, scale) -> gradient in x


def scale_invariant_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """Max(x, 0) divided by its maximum over the last axis; all zeros where no entry is positive.

    Args:
      x: floating point, `[..., units]`.

    Returns:
      Same shape and dtype, in [0, 1]; the largest entry is exactly 1 unless the row is all zeros.
    """
    return _gate_value(x)[0]


def scale_invariant_tanh(x: tf.Tensor) -> tf.Tensor:
    """Divides x by the maximum of |x| over the last axis; all zeros for a row of zeros.

    Args:
      x: floating point, `[..., units]`.

    Returns:
      Same shape and dtype, in [-1, 1]; the entry of largest magnitude is exactly 1 or -1 unless all are 0.
    """
    return _squash_value(x)[0]


def _gate_value(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    positive = tf.nn.relu(x)
    scale = tf.reduce_max(positive, axis=-1, keepdims=True)
    return tf.math.divide_no_nan(positive, scale), scale


def _gate_gradient(upstream: tf.Tensor, y: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    return _divide(tf.raw_ops.ReluGrad(gradients=upstream, features=y), y, tf.floor(y), scale)


def _squash_value(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    scale = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    return tf.math.divide_no_nan(x, scale), scale


def _squash_gradient(upstream: tf.Tensor, y: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    return _divide(upstream, y, tf.cast(tf.cast(y, tf.int32), y.dtype), scale)


def _divide(upstream: tf.Tensor, y: tf.Tensor, largest: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Gradient in x of y = x / max |x|; `largest` is 1 or -1 where |y| is 1, else 0. Such entries share evenly."""
    sharing = tf.reduce_sum(largest * y, axis=-1, keepdims=True)
    along = tf.math.divide_no_nan(tf.reduce_sum(upstream * y, axis=-1, keepdims=True), sharing)
    return tf.math.divide_no_nan(upstream - largest * along, scale)


DIFFERENTIABLE: dict[str, tuple[Differentiable, Differentiable]] = {
    "cifg": (
        Differentiable(lambda x: (tf.sigmoid(x), None), lambda dy, y, scale: tf.raw_ops.SigmoidGrad(y=y, dy=dy)),
        Differentiable(lambda x: (tf.tanh(x), None), lambda dy, y, scale: tf.raw_ops.TanhGrad(y=y, dy=dy)),
    ),
    "si-cifg": (Differentiable(_gate_value, _gate_gradient), Differentiable(_squash_value, _squash_gradient)),
}
"""By the cell's kind: of the gates, and of update and cell state."""
