"""Scale-invariant activations: multiplying the input by a positive number does not change their value.

They replace the sigmoid and the tanh of a gated recurrent cell, so that plain SGD, the only optimizer that
devices can afford, does not depend on the scale of the gate weights (Ro et al. 2024,
https://arxiv.org/abs/2403.08100).

The maximum runs over the units of one gate, for each example and time step alone: never over a batch, so
nothing leaks from one user's example to another's. 0/0 is 0, also in the gradient. There is no additive
epsilon in the denominator: it would break the invariance for small weights.
"""

import tensorflow as tf


def scale_invariant_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """Max(x, 0) divided by its maximum over the last axis; all zeros where no entry is positive.

    Args:
      x: floating point, `[..., units]`.

    Returns:
      Same shape and dtype, in [0, 1]; the largest entry is exactly 1 unless the row is all zeros.
    """
    positive = tf.nn.relu(x)
    return tf.math.divide_no_nan(positive, tf.reduce_max(positive, axis=-1, keepdims=True))


def scale_invariant_tanh(x: tf.Tensor) -> tf.Tensor:
    """Divides x by the maximum of |x| over the last axis; all zeros for a row of zeros.

    Args:
      x: floating point, `[..., units]`.

    Returns:
      Same shape and dtype, in [-1, 1]; the entry of largest magnitude is exactly 1 or -1 unless all are 0.
    """
    return tf.math.divide_no_nan(x, tf.reduce_max(tf.abs(x), axis=-1, keepdims=True))
