"""Provides constants whose bits no converter changes.

A converter to TFLite with float16 weights rounds every float constant of the graph to float16: 2**31 becomes 65504, and
2**-32 becomes 0. It leaves integers alone. So a constant that float16 does not hold is stored as the bits of an int32,
and looked up at a place that is known at run time only, or the converter would fold it back into a float.
"""

import numpy as np
import tensorflow as tf


def exact(value: float, like: tf.Tensor) -> tf.Tensor:
    """Returns a float32 scalar with exactly the bits of `value`.

    Args:
      value: a number.
      like: any int32 or float32 tensor with at least one element that is an input of the graph, or computed from one.
    """
    bits = like if like.dtype == tf.int32 else tf.bitcast(like, tf.int32)
    place = tf.maximum(tf.bitwise.right_shift(tf.reshape(bits, [-1])[0], 31), 0)  # -1 or 0, and so 0
    return tf.bitcast(tf.gather(tf.constant(np.array([value], np.float32).view(np.int32)), place), tf.float32)
