"""Encodes a bounded metric of each client as a pair of integers, and reads the mean off the noisy sum of the pairs.

The pair of x in [lower, upper] is (x - lower, upper - x) in steps of a grid. Its two entries are at least 0 and add up
to `STEPS`. So its L2 norm is at most `STEPS`, and the sum of all pairs also gives the number of clients (Kulesza,
Suresh and Wang 2024, arXiv:2312.06658).
"""

from typing import Any

import tensorflow as tf

STEPS = 2**24
"""Number of grid steps from lower to upper; near 1, float32 is no finer. Int64 sums hold fewer than 2^39 clients."""


def pair(value: Any, lower: float, upper: float) -> Any:
    """Returns the pairs, int64 [..., 2], of values, float32 [...]; NaN gives (0, 0), like a client that is absent."""
    share = (tf.clip_by_value(value, lower, upper) - lower) / (upper - lower)
    is_number = tf.logical_not(tf.math.is_nan(share))
    above = tf.cast(tf.round(tf.where(is_number, tf.clip_by_value(share, 0.0, 1.0), 0.0) * STEPS), tf.int64)
    pairs = tf.stack([above, STEPS - above], axis=-1)
    return tf.where(is_number[..., tf.newaxis], pairs, tf.zeros_like(pairs))


def in_steps(noise: Any, noise_multiplier: float) -> Any:
    """Returns standard normal noise [..., 2] times `noise_multiplier`, rounded to grid steps, int64 [..., 2]."""
    return tf.cast(tf.round(tf.cast(noise, tf.float64) * (noise_multiplier * STEPS)), tf.int64)


def released(noised: Any) -> tuple[Any, Any]:
    """Reads the mean and the number of clients off a noisy sum of pairs, int64 [..., 2].

    Returns:
      (share, clients). `share`, float64 [...] in [0, 1], says where the mean lies between lower (0) and upper (1); it
      is 0.5 if the noise left neither entry above 0. `clients`, float64 [...], is the estimated number of clients,
      which the noise may make negative.
    """
    first, second = tf.unstack(tf.cast(noised, tf.float64), axis=-1)
    clients = (first + second) / STEPS
    first, second = tf.maximum(first, 0.0), tf.maximum(second, 0.0)
    share = tf.where(first + second > 0, first / tf.maximum(first + second, 1.0), 0.5)
    return share, clients
