"""Generates correlated noise (DP-FTRL) round by round: row t of C^-1 Z for the mechanisms of `privacy.correlated`.

The fresh noise Z of each round comes from the round's own seed. What earlier rounds leave behind, the history, is part
of the server's state and of its checkpoints. So a run that is killed and resumed repeats the noise bit for bit. The
history has a fixed number of vectors of the model's size: one for each buffer of a BLT, one for each band but one of a
banded matrix, one for each level of a tree.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from privacy.correlated.mechanisms import BLT, Banded, Mechanism, Tree

History = dict[str, Any]
"""Named tensors that the server keeps between rounds."""
Draw = Callable[[str], Any]
"""A function from a stream's name to standard normal numbers, float32 [n], of the round's seed."""


class NoiseStream(NamedTuple):
    """Holds the two functions that generate noise for fresh noise of standard deviation 1.

    Attributes:
      initial: function from the number n of the model's weights to the history before the first round.
      following: function (history, draw) -> (noise of the round, float32 [n]; history for the next round).
    """

    initial: Callable[[int], History]
    following: Callable[[History, Draw], tuple[Any, History]]


def build_stream(mechanism: Mechanism, rounds: int) -> NoiseStream:
    """Builds the noise of a mechanism over `rounds` rounds; any further round is a `tf.errors.InvalidArgumentError`."""
    match mechanism:
        case BLT():
            stream = _buffered(mechanism)
        case Banded():
            stream = _banded(mechanism)
        case Tree():
            stream = _tree(mechanism, mechanism.vectors(rounds))
    return _refuse_more(stream, rounds)


def _refuse_more(stream: NoiseStream, rounds: int) -> NoiseStream:
    """Counts the rounds in the history and refuses those not planned: their noise, as of a full tree, may be none."""
    import tensorflow as tf

    def initial(size: int) -> History:
        return {"done": tf.constant(0, tf.int32), **stream.initial(size)}

    def following(history: History, draw: Draw) -> tuple[Any, History]:
        message = f"the plan has {rounds} rounds and all are done: plan more rounds in a new run"
        check = tf.debugging.assert_less(history["done"], rounds, message=message)
        # A graph without automatic control dependencies would leave out an assertion on which no noise depends.
        with tf.control_dependencies([check]):
            noise, after = stream.following(history, draw)
            return noise, {"done": history["done"] + 1, **after}

    return NoiseStream(initial, following)


def _buffered(mechanism: BLT) -> NoiseStream:
    """Generates x_t = z_t - sum_j weights_j S_j, where buffer S_j is the sum of decays_j^(i-1) x_(t-i) over i >= 1."""
    import tensorflow as tf

    weights = np.array(mechanism.weights, np.float32)[np.newaxis]
    decays = np.array(mechanism.decays, np.float32)[:, np.newaxis]

    def following(history: History, draw: Draw) -> tuple[Any, History]:
        buffers = history["buffers"]
        noise = draw("update") - tf.matmul(tf.constant(weights), buffers)[0]
        return noise, {"buffers": decays * buffers + noise}

    return NoiseStream(lambda size: {"buffers": tf.zeros([len(decays), size])}, following)


def _banded(mechanism: Banded) -> NoiseStream:
    """Generates x_t = z_t - sum_i c_i x_(t-i), by back substitution from the last rounds' noise, the newest first."""
    import tensorflow as tf

    rest = np.array(mechanism.coefficients[1:], np.float32)[np.newaxis]

    def following(history: History, draw: Draw) -> tuple[Any, History]:
        noise = draw("update")
        if mechanism.bands == 1:
            return noise, {}
        last = history["last"]
        noise -= tf.matmul(tf.constant(rest), last)[0]
        return noise, {"last": tf.concat([noise[tf.newaxis], last[:-1]], 0)}

    def initial(size: int) -> History:
        return {} if mechanism.bands == 1 else {"last": tf.zeros([mechanism.bands - 1, size])}

    return NoiseStream(initial, following)


def _tree(mechanism: Tree, levels: int) -> NoiseStream:
    """Generates the noise of a prefix sum less that of the one before, where the prefix sums' noise is the tree's.

    Level m of the history holds the estimate of the open subtree of 2^m rounds, or zeros. The noise of a node is the
    weighted mean of the node's own noise and the sum of the two estimates below it (Honaker 2015). With variance 1 of
    its own noise, the node's own noise has weight 1 / (2 - 2^-m).
    """
    import tensorflow as tf

    def following(history: History, draw: Draw) -> tuple[Any, History]:
        done, nodes = history["done"], tf.unstack(history["nodes"], levels)
        if mechanism.restart_every is not None:
            # A new tree's first prefix sum begins at the finished tree's total, whose noise stays in the model.
            begins = tf.equal(done % mechanism.restart_every, 0)
            nodes = [tf.where(begins, tf.zeros_like(node), node) for node in nodes]
            done %= mechanism.restart_every
        before = tf.add_n(nodes)
        estimate, is_open = draw("update, tree level 0"), tf.constant(True)
        after = []
        for level, node in enumerate(nodes):
            # An open left half and a finished right half become a node of the next level, which goes on upwards.
            is_full = tf.cast(tf.bitwise.bitwise_and(tf.bitwise.right_shift(done, level), 1), tf.bool)
            joins = is_open & is_full
            after.append(tf.where(joins, tf.zeros_like(node), tf.where(is_open, estimate, node)))
            if level + 1 < levels:
                estimate = tf.cond(
                    joins,
                    lambda level=level, node=node, estimate=estimate: _join(level + 1, node + estimate, draw),
                    lambda estimate=estimate: estimate,
                )
            is_open = joins
        return tf.add_n(after) - before, {"nodes": tf.stack(after)}

    return NoiseStream(lambda size: {"nodes": tf.zeros([levels, size])}, following)


def _join(level: int, below: Any, draw: Draw) -> Any:
    """Returns the estimate of a node from the sum of the estimates of its halves."""
    own = 1 / (2 - 2.0**-level)
    return own * draw(f"update, tree level {level}") + (1 - own) * below
