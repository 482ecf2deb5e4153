"""Applies temperature and top-k to logits, which gives the distribution that tokens are drawn from."""

from typing import Any

import tensorflow as tf

from models.decoding.numpy_ops import LEFT_OUT, MIN_TEMPERATURE


def process(logits: tf.Tensor, temperature: Any, top_k: Any) -> tf.Tensor:
    """Returns the logits after temperature and top-k, minus their maximum, so that the likeliest token has 0.

    A token that is left out gets the logit `LEFT_OUT`, the lowest float32. Temperature and top-k may be tensors, so
    that one graph serves every request. A graph cannot refuse bad values, so the caller checks them first, with
    `models.decoding.numpy_ops.Choices`.

    Args:
      logits: finite float32 `[..., V]`. If two of them differ by less than 1e-38, backends may disagree, because some
        kernels treat such a difference as 0.
      temperature: float32 scalar that the logits are divided by. 0, a negative number or NaN is greedy: only the
        likeliest token stays, or the first of several equally likely ones.
      top_k: int32 scalar k. Tokens that are less likely than the k-th likeliest are left out; ties with the k-th stay.
        0 or less keeps all tokens, and so does V or more.

    Returns:
      float32 `[..., V]`, whose softmax is the distribution of the next token.
    """
    temperature = tf.convert_to_tensor(temperature, tf.float32)
    largest = tf.reduce_max(logits, axis=-1, keepdims=True)
    first = tf.argmax(logits, axis=-1, output_type=tf.int32)[..., tf.newaxis]
    greedy = tf.equal(tf.range(logits.shape[-1]), first)
    sampled = logits >= _kth_largest(logits, largest, tf.convert_to_tensor(top_k, tf.int32))
    hot = temperature > 0
    kept = tf.where(hot, sampled, greedy)
    # Multiplies by 1/T instead of dividing by T. Compilers themselves replace division by a constant T in this way. If
    # this divided, the last bit would differ between a graph where T is a constant and one where T is an input.
    sharpness = 1 / tf.where(hot, tf.maximum(temperature, MIN_TEMPERATURE), 1.0)
    return tf.where(kept, (logits - largest) * sharpness, LEFT_OUT)


def _kth_largest(logits: tf.Tensor, largest: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """Returns a bound `[..., 1]` that only the k largest logits, and those equal to the k-th, reach.

    The bound is found by bisection because k is known at run time only. XLA needs a constant k for `tf.math.top_k`, and
    a full sort takes longer than a step of a small model. The bisection ends when, in every row, exactly k logits reach
    the lower bound or no float32 lies between the two bounds.
    """

    def count(bound: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(logits >= bound, tf.int32), axis=-1, keepdims=True)

    def middle(low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
        return 0.5 * low + 0.5 * high  # halves are exact, so the sum rounds once

    def unfinished(low: tf.Tensor, high: tf.Tensor, reached: tf.Tensor) -> tf.Tensor:
        between = middle(low, high)
        return tf.reduce_any((reached > k) & (between > low) & (between < high))

    def halve(low: tf.Tensor, high: tf.Tensor, reached: tf.Tensor) -> tuple[tf.Tensor, ...]:
        between = middle(low, high)
        at_least = count(between)
        enough = at_least >= k
        return (
            tf.where(enough, between, low),
            tf.where(enough, high, between),
            tf.where(enough, at_least, reached),
        )

    # In every iteration at least k logits reach `low`, and fewer than k reach `high` unless the bounds are equal. So
    # the bound of a finished row stays correct while other rows go on. If k is at most 0, or at least V, `low` is the
    # smallest logit and `reached` is at most k, so the loop does not start and all tokens stay.
    low = tf.where((k > 0) & (count(largest) >= k), largest, tf.reduce_min(logits, axis=-1, keepdims=True))
    reached = tf.where(k > 0, count(low), k)
    return tf.while_loop(unfinished, halve, (low, largest, reached))[0]
