"""Implements the key-value cache of a transformer: fixed in size, with a length for each row."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from models.tensors import clip
from models.token_tree import TokenTree

try:
    # The fastest way to write a cache, and a builtin op of TFLite. TensorFlow has no public name for it.
    from tensorflow.compiler.tf2xla.python.xla import dynamic_update_slice
except ImportError:
    dynamic_update_slice = None


_ROWS_IN_TURN = ContextVar("rows in turn", default=4)
"""Maximum number of rows that are written one by one. The other way copies the cache several times."""


@contextmanager
def writing_in_place() -> Iterator[None]:
    """Within it, graphs are traced for a runtime that writes a row in place, as TFLite does: up to 64 rows in turn.

    TensorFlow copies the whole cache for each row.
    """
    before = _ROWS_IN_TURN.set(64)
    try:
        yield
    finally:
        _ROWS_IN_TURN.reset(before)


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
    rows = cached.shape[0]
    if rows is not None and rows <= _ROWS_IN_TURN.get() and dynamic_update_slice is not None:
        starts = [tf.range(rows), *[tf.zeros_like(length)] * 3]
        starts[axis] = length
        for row, start in enumerate(tf.unstack(tf.stack(starts, axis=1))):
            cached = dynamic_update_slice(cached, new[row : row + 1], start)
        return cached
    source = tf.range(cached.shape[axis]) - length[:, tf.newaxis]  # [B, S]: which new entry belongs at each position
    is_new = (source >= 0) & (source < new.shape[axis])
    moved = tf.gather(new, clip(source, 0, new.shape[axis] - 1), axis=axis, batch_dims=1)
    shape = [-1, 1, 1, 1]
    shape[axis] = cached.shape[axis]
    return tf.where(tf.reshape(is_new, shape), moved, cached)


def visible_in_tree(length: tf.Tensor, positions: int, tree: TokenTree, nodes: range) -> tf.Tensor:
    """Returns which positions of the cache each of N nodes of a tree sees, bool `[B, N, S]`.

    A node sees what its row has read before, and of the nodes its ancestors and itself.

    Args:
      length: int32 `[B]`, the position of each row's root; the other nodes follow in the order of their numbers.
      positions: number S of positions.
      tree: the tree.
      nodes: their numbers.
    """
    # By kind of position: before the nodes, the nodes one by one, after them.
    ancestors = tree.ancestors[nodes.start : nodes.stop]
    visible = np.pad(ancestors, [[0, 0], [1, 1]], constant_values=((False, False), (True, False)))
    kind = clip(tf.range(positions) - length[:, tf.newaxis] + 1, 0, len(tree) + 1)
    return tf.transpose(tf.gather(tf.constant(visible.T), kind), [0, 2, 1])


def keep_path(trail: Cache, kept: tf.Tensor, tree: TokenTree) -> Cache:
    """Moves the entries of the path to a kept node behind one another, from the row's length on, and lengthens the row.

    Args:
      trail: a cache with the entries of a tree's nodes, in the order of their numbers, from each row's length on.
      kept: int32 `[B]`, number of the last kept node plus 1; 0 keeps none.
      tree: the tree.
    """
    node = tf.maximum(kept - 1, 0)
    # The root is in its place. Places of a row that did not fit are clipped, so that no index is out of bounds.
    places = trail.length[:, tf.newaxis] + tf.gather(tree.paths[:, 1:], node)
    places = tf.minimum(places, trail.values[0].shape[2] - 1)

    def move(cached: tf.Tensor, axis: int) -> tf.Tensor:
        return write(cached, tf.gather(cached, places, axis=axis, batch_dims=1), trail.length + 1, axis)

    more = tf.where(kept > 0, tf.gather(tree.depths, node) + 1, 0)
    return Cache(
        tuple(move(keys, 3) for keys in trail.keys),
        tuple(move(values, 2) for values in trail.values),
        trail.length + more,
    )
