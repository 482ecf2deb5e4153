"""Keeps, with TensorFlow ops, which tokens a text has so far; `models.decoding.processing` penalises them."""

from collections.abc import Sequence

import tensorflow as tf

from models.decoding.numpy_processing import History


def extend_history(history: History, tokens: tf.Tensor) -> History:
    """Returns the history after one more generated token per row.

    Args:
      history: prompt bool `[B, V]` and counts int32 `[B, V]`, with static V.
      tokens: int32 `[B]`, the generated tokens. A negative number adds nothing, as for a row that has ended.
    """
    return History(history.prompt, history.counts + _one_hot(tokens, history.counts.shape[-1]))


def block_histories(history: History, tokens: tf.Tensor) -> History:
    """Returns the histories before each of the G + 1 positions of a drafted block.

    At position i the tokens X_1 to X_i of the draft count as generated. So every position of a block is processed as
    it would be if its tokens were drawn one by one, and a verifier stays lossless.

    Args:
      history: the history before the block, prompt bool `[B, V]` and counts int32 `[B, V]`, with static V.
      tokens: int32 `[B, G]`, the draft with static G. A negative number adds nothing.

    Returns:
      prompt bool `[B, G+1, V]` and counts int32 `[B, G+1, V]`.
    """
    added = tf.cumsum(_one_hot(tokens, history.counts.shape[-1]), axis=1)
    counts = history.counts[:, tf.newaxis] + tf.pad(added, [[0, 0], [1, 0], [0, 0]])
    return History(history.prompt[:, tf.newaxis] | tf.zeros_like(counts, tf.bool), counts)


def tree_histories(history: History, tokens: tf.Tensor, parents: Sequence[int], nodes: range) -> History:
    """Returns the histories after nodes of a tree, in which the tokens on the path to a node count as generated.

    Args:
      history: the history before the block, as for `block_histories`.
      tokens: int32 `[B, N]`, the tokens of the first N nodes of the tree. The root's is part of the history already.
      parents: the parent of each node, as in `models.token_tree.TokenTree`.
      nodes: numbers of the nodes, below N.

    Returns:
      prompt bool `[B, len(nodes), V]` and counts int32 `[B, len(nodes), V]`.
    """
    counts = [history.counts]
    for node in range(1, nodes.stop):
        counts.append(counts[parents[node]] + _one_hot(tokens[:, node], history.counts.shape[-1]))
    chosen = tf.stack(counts[nodes.start : nodes.stop], axis=1)
    return History(history.prompt[:, tf.newaxis] | tf.zeros_like(chosen, tf.bool), chosen)


def _one_hot(tokens: tf.Tensor, size: int) -> tf.Tensor:
    """Returns int32 `[..., V]`: 1 at the token, 0 elsewhere."""
    return tf.cast(tf.equal(tf.range(size), tokens[..., tf.newaxis]), tf.int32)
