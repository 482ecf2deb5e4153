"""What temperature and top-k make of logits: the one law that is both sampled from and verified against."""

from typing import Any

import tensorflow as tf

from models.decoding.numpy_ops import LEAST_TEMPERATURE, LEFT_OUT


def process(logits: tf.Tensor, temperature: Any, top_k: Any) -> tf.Tensor:
    """Logits of the processed law, minus their largest: 0 for the likeliest token, `LEFT_OUT` (the lowest
    float32) for a token that is left out.

    Temperature and top-k may be tensors, so that one graph serves every request. Check them on the host with
    `models.decoding.numpy_ops.Choices`; a graph cannot refuse.

    Args:
      logits: finite float32 `[..., V]`. Some kernels take numbers below 1e-38 for 0, so backends agree on the
        bits unless two logits differ by less than that.
      temperature: float32 scalar. Logits are divided by it; 0 (or less, or NaN) is the limit, all mass on the
        likeliest token, on the first of them if there are several.
      top_k: int32 scalar. Tokens less likely than the k-th likeliest are left out (so ties with it stay); 0,
        or V and more, keeps all.

    Returns:
      float32 `[..., V]`; softmax of it is the law.
    """
    temperature = tf.convert_to_tensor(temperature, tf.float32)
    largest = tf.reduce_max(logits, axis=-1, keepdims=True)
    first = tf.argmax(logits, axis=-1, output_type=tf.int32)[..., tf.newaxis]
    greedy = tf.equal(tf.range(logits.shape[-1]), first)
    sampled = logits >= _kth_largest(logits, largest, tf.convert_to_tensor(top_k, tf.int32))
    hot = temperature > 0
    kept = tf.where(hot, sampled, greedy)
    # A product with 1/T rather than a quotient: compilers turn the latter into the former when T is a
    # constant, and then the last bit differs between a graph with T inside and one with T as input.
    sharpness = 1 / tf.where(hot, tf.maximum(temperature, LEAST_TEMPERATURE), 1.0)
    return tf.where(kept, (logits - largest) * sharpness, LEFT_OUT)


def _kth_largest(logits: tf.Tensor, largest: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """`[..., 1]`: a bound that exactly the k largest logits, and ties with the k-th, reach.

    By bisection, since k is a run-time value: XLA wants a constant k for `tf.math.top_k`, and a full sort
    costs more than a small model's step. Ends when every row has its k, or the bounds are neighbours.
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

    # All along, k or more logits reach `low`, and fewer reach `high` or the bounds are equal: a finished row
    # stays right while others go on. With k = 0 (all tokens) nothing is to be found: the loop must not start.
    low = tf.where((k > 0) & (count(largest) >= k), largest, tf.reduce_min(logits, axis=-1, keepdims=True))
    reached = tf.where(k > 0, count(low), 0)
    return tf.while_loop(unfinished, halve, (low, largest, reached))[0]
