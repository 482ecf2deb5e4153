"""Implements the key-value cache of a transformer: fixed in size, with a length for each row."""

from typing import Any, NamedTuple

import tensorflow as tf

from models.tensors import clip

try:
    # The fastest way to write a cache, and a builtin op of TFLite. TensorFlow has no public name for it.
    from tensorflow.compiler.tf2xla.python.xla import dynamic_update_slice
except ImportError:
    dynamic_update_slice = None


class Cache(NamedTuple):
    """Holds the keys and values of the tokens that a transformer has read.

    Entries at positions from a row's length on have no meaning. They are masked, never cleared, so that taking tokens
    back only lowers the length.

    Attributes:
      keys: one tensor per block, `[B, K, D, S]` for K heads of size D and S positions.
      values: one tensor per block, `[B, K, S, D]`.
      length: int32 `[B]`, number of tokens that each row has read.
    """

    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    length: Any


def write(cached: tf.Tensor, new: tf.Tensor, length: tf.Tensor, axis: int) -> tf.Tensor:
    """Writes G new entries into each row of a cache of S positions, beginning at the row's length.

    The caller makes sure that they fit: length + G <= S.

    Args:
      cached: `[B, K, S, D]` or `[B, K, D, S]`.
      new: the same with G instead of S.
      length: int32 `[B]`.
      axis: the axis of positions, 2 or 3.
    """
    if cached.shape[0] == 1 and dynamic_update_slice is not None:
        start = [tf.zeros_like(length[0])] * 4
        start[axis] = length[0]
        return dynamic_update_slice(cached, new, tf.stack(start))
    source = tf.range(cached.shape[axis]) - length[:, tf.newaxis]  # [B, S]: which new entry belongs at each position
    is_new = (source >= 0) & (source < new.shape[axis])
    moved = tf.gather(new, clip(source, 0, new.shape[axis] - 1), axis=axis, batch_dims=1)
    shape = [-1, 1, 1, 1]
    shape[axis] = cached.shape[axis]
    return tf.where(tf.reshape(is_new, shape), moved, cached)
