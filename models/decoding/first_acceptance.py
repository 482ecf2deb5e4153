"""Computes in TensorFlow how often K-SEQ and the best rule accept a first token: `transport` in graphs."""

import tensorflow as tf

from models.decoding.k_seq import solve


def first_acceptance(target: tf.Tensor, drafter: tf.Tensor, num_drafts: int) -> tf.Tensor:
    """Returns K-SEQ's acceptance of K independent drafts and the largest acceptance of any rule, float64 `[B, 2]`.

    Args:
      target: probabilities of the target, `[B, V]`.
      drafter: probabilities with which the drafts were drawn, `[B, V]`; a row without any accepts nothing.
      num_drafts: number of drafts K, >= 1.

    Reference: Sun et al. 2023, https://arxiv.org/abs/2310.15141.
    """
    is_drafted = tf.reduce_max(drafter, axis=1) > 0
    q, p = (_normalised(tf.where(is_drafted[:, tf.newaxis], rows, tf.ones_like(rows))) for rows in (target, drafter))
    root = solve(p, q, tf.fill([p.shape[0]], num_drafts), num_drafts)
    # The smallest cut is a prefix of the tokens in ascending order of q / p; without p, a token is in no smaller one.
    ratio = tf.where(p > 0, q / tf.where(p > 0, p, 1.0), tf.constant(float("inf"), tf.float64))
    order = tf.argsort(ratio, axis=1, stable=True)
    inside, of_target = (tf.cumsum(tf.gather(rows, order, axis=1, batch_dims=1), axis=1) for rows in (p, q))
    best = tf.minimum(tf.reduce_min(of_target + 1 - tf.minimum(inside, 1.0) ** num_drafts, axis=1), 1.0)
    return tf.where(is_drafted[:, tf.newaxis], tf.stack([root.beta * root.g, best], axis=1), 0.0)


def _normalised(rows: tf.Tensor) -> tf.Tensor:
    rows = tf.cast(rows, tf.float64)
    return rows / tf.reduce_sum(rows, axis=1, keepdims=True)
