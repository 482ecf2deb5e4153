"""Implements scale-invariant activations: multiplying their input by a positive number does not change their value.

They replace the sigmoid and the tanh of a gated recurrent cell, so that the cell's outputs do not depend on the scale
of the gate weights. They are meant for clients that train by plain SGD, which needs no optimizer state (Ro et al. 2024,
https://arxiv.org/abs/2403.08100).

Each activation divides by a maximum over the units of one gate, separately for each example and time step. The maximum
is never taken over the batch, so one example's activations do not depend on another example. 0/0 counts as 0, in the
gradient too. No epsilon is added to the denominator, because it would break the invariance for small weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf


class Differentiable(NamedTuple):
    """Pairs an activation y(x) with a hand-written gradient that is computed from y instead of x.

    Attributes:
      value: maps x to (y, scale), where scale is what the gradient needs besides y, or None.
      gradient: maps (gradient with respect to y, y, scale) to the gradient with respect to x.
    """

    value: Callable[[Any], tuple[Any, Any]]
    gradient: Callable[[Any, Any, Any], Any]


def scale_invariant_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """Divides max(x, 0) by its maximum over the last axis; a row without a positive entry becomes all zeros.

    Args:
      x: floating point, `[..., units]`.

    Returns:
      The same shape and dtype, in [0, 1]; the largest entry of a row is exactly 1 unless the row is all zeros.
    """
    return _gate_value(x)[0]


def scale_invariant_tanh(x: tf.Tensor) -> tf.Tensor:
    """Divides x by the maximum of |x| over the last axis; a row of zeros stays all zeros.

    Args:
      x: floating point, `[..., units]`.

    Returns:
      The same shape and dtype, in [-1, 1]; the entry of largest magnitude of a row is exactly 1 or -1 unless all are 0.
    """
    return _squash_value(x)[0]


def _gate_value(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    positive = tf.nn.relu(x)
    scale = tf.reduce_max(positive, axis=-1, keepdims=True)
    return tf.math.divide_no_nan(positive, scale), scale


def _gate_gradient(upstream: tf.Tensor, y: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    return _ratio_gradient(tf.raw_ops.ReluGrad(gradients=upstream, features=y), y, tf.floor(y), scale)


def _squash_value(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    scale = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    return tf.math.divide_no_nan(x, scale), scale


def _squash_gradient(upstream: tf.Tensor, y: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    return _ratio_gradient(upstream, y, tf.cast(tf.cast(y, tf.int32), y.dtype), scale)


def _ratio_gradient(upstream: tf.Tensor, y: tf.Tensor, largest: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Returns the gradient with respect to x of y = x / max |x|.

    `largest` equals y where |y| is 1 and is 0 elsewhere. Entries that tie for the maximum share its gradient equally.
    """
    ties = tf.reduce_sum(largest * y, axis=-1, keepdims=True)
    along = tf.math.divide_no_nan(tf.reduce_sum(upstream * y, axis=-1, keepdims=True), ties)
    return tf.math.divide_no_nan(upstream - largest * along, scale)


_TANH = Differentiable(lambda x: (tf.tanh(x), None), lambda dy, y, scale: tf.raw_ops.TanhGrad(y=y, dy=dy))
_GATE, _SQUASH = Differentiable(_gate_value, _gate_gradient), Differentiable(_squash_value, _squash_gradient)
DIFFERENTIABLE: dict[str, tuple[Differentiable, Differentiable]] = {
    "cifg": (
        Differentiable(lambda x: (tf.sigmoid(x), None), lambda dy, y, scale: tf.raw_ops.SigmoidGrad(y=y, dy=dy)),
        _TANH,
    ),
    "si-cifg": (_GATE, _SQUASH),
    "si-cifg-tanh": (_GATE, _TANH),
    "si-cifg-gates": (_GATE, _GATE),
}
"""Maps each kind of cell to two activations: that of the gates, and that of the update and the cell state."""
