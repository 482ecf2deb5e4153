"""A bounded metric of each client as a pair of whole numbers, and the mean from the pairs' noised sum.

The pair of x in [lower, upper] is (x - lower, upper - x) in steps of a grid. It adds up to `STEPS`, so that its L2 norm
is at most that, and a sum of pairs holds the number of clients too (Kulesza, Suresh and Wang 2024, arXiv:2312.06658).
"""

from typing import Any

import tensorflow as tf

STEPS = 2**24
"""Grid steps from lower to upper: float32 has no finer ones. Sums hold up to 2^39 clients."""


def pair(value: Any, lower: float, upper: float) -> Any:
    """Of float32 [...]: int64 [..., 2]; (0, 0), as of a client that is absent, where it is no number."""
    share = (tf.clip_by_value(value, lower, upper) - lower) / (upper - lower)
    is_number = tf.logical_not(tf.math.is_nan(share))
    above = tf.cast(tf.round(tf.where(is_number, tf.clip_by_value(share, 0.0, 1.0), 0.0) * STEPS), tf.int64)
    found = tf.stack([above, STEPS - above], axis=-1)
    return tf.where(is_number[..., tf.newaxis], found, tf.zeros_like(found))


def in_steps(noise: Any, noise_multiplier: float) -> Any:
    """Returns standard normal noise [..., 2] times `noise_multiplier` in whole steps of the grid, int64 [..., 2]."""
    return tf.cast(tf.round(tf.cast(noise, tf.float64) * (noise_multiplier * STEPS)), tf.int64)


def released(noised: Any) -> tuple[Any, Any]:
    """Reads the mean and the number of clients off a noised sum of pairs, int64 [..., 2].

    Returns:
      (Where the mean lies from lower to upper, float64 [...] in [0, 1], the middle where the noise left nobody; how
      many clients, float64 [...], maybe below 0.)
    """
    first, second = tf.unstack(tf.cast(noised, tf.float64), axis=-1)
    clients = (first + second) / STEPS
    first, second = tf.maximum(first, 0.0), tf.maximum(second, 0.0)
    share = tf.where(first + second > 0, first / tf.maximum(first + second, 1.0), 0.5)
    return share, clients
