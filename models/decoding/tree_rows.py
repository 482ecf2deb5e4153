"""Arranges a drafter's states for trees, so that each node of a depth is a row of the batch.

States after the nodes at one depth have rows (b, n): for each row b of the batch, its nodes in order.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from models.token_tree import TokenTree


def repeat(states: Any, batch: int, tree: TokenTree, level: range) -> Any:
    """Returns the states of the parents of a depth's nodes: rows of those at the depth before, repeated."""
    if level.start == 0:
        return states
    parents = np.array(tree.parents[level.start : level.stop])
    first = parents[0]
    return _take(states, batch, parents - first, int(parents[-1] - first) + 1)


def along_paths(states: list[Any], kept: tf.Tensor, tree: TokenTree) -> tuple[list[Any], tf.Tensor, tf.Tensor]:
    """Arranges the states of all depths by leaf, so that drafters whose last state holds all before it can use it.

    Args:
      states: the states before the tree, and after the nodes at each depth.
      kept: int32 `[B]`, the number of a node plus 1; 0 for none.
      tree: the tree, of L leaves, all at one depth.

    Returns:
      The states along the path to each leaf, with B L rows; the number of states, int32 `[B L]`, up to the kept node;
      and int32 `[B]`, the row of a leaf below it.
    """
    batch, leaves = kept.shape[0], tree.levels[-1]
    node = tf.maximum(kept - 1, 0)
    count = tf.where(kept > 0, tf.gather(tf.constant(tree.depths), node) + 1, 0)
    rows = [
        _take(part, batch, tree.paths[leaves.start :, depth] - level.start, len(level))
        for depth, (part, level) in enumerate(zip(states[1:], tree.levels, strict=True))
    ]
    before = _take(states[0], batch, np.zeros(len(leaves), int), 1)
    counts = tf.reshape(tf.repeat(count[:, tf.newaxis], len(leaves), axis=1), [-1])
    first_leaves = np.argmax(tree.ancestors[leaves.start :], axis=0).astype(np.int32)
    return [before, *rows], counts, tf.range(batch) * len(leaves) + tf.gather(tf.constant(first_leaves), node)


def _take(states: Any, batch: int, columns: np.ndarray, width: int) -> Any:
    """Returns rows (b, column) for each b and each of `columns`, of states with rows (b, 0) to (b, width - 1)."""
    if np.array_equal(columns, np.arange(width)):
        return states
    rows = (np.arange(batch)[:, np.newaxis] * width + columns).ravel().astype(np.int32)
    return tf.nest.map_structure(lambda part: tf.gather(part, rows), states)
