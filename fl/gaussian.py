"""Draws Gaussian noise with TensorFlow operations, and derives named streams of random numbers from one seed.

The sampler is that of `privacy.noise.training`, with the same guarantee. There are independent, exact standard normal
numbers such that each drawn number is within `privacy.noise.training.DISTANCE` * (1 + R) of its exact one, where R is
the L2 norm of the pair that the number belongs to. The probability that this fails for any of the numbers of one
release is at most `privacy.noise.training.FAILURE`.

TensorFlow's own normal sampler gives no such guarantee. It computes the radius of Box and Muller from 23 random bits,
so that no float32 number that it draws exceeds 5.7 standard deviations. Two neighbouring outputs are the sine and the
cosine part of the same radius. So their sum, scaled to variance 1, does not exceed 5.7 standard deviations either.
"""

import hashlib
import math
from typing import Any

import numpy as np

from privacy.noise.training import FURTHER_WORDS, MAX_VALUES, NEAR_ONE, NEAR_ZERO


def stream(seed: Any, name: str) -> Any:
    """Derives the seed of the stream `name` from `seed`; both seeds are int64 [2].

    Different names give different streams: the seed is combined by exclusive or with a hash of the name, and Philox
    gives unrelated numbers for different seeds.
    """
    import tensorflow as tf

    mask = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], "<i8").astype(np.int64)
    return tf.bitwise.bitwise_xor(tf.convert_to_tensor(seed, tf.int64), tf.constant(mask))


def standard_normal(size: int, seed: Any) -> Any:
    """Draws standard normal numbers from a seed that is used for nothing else.

    Args:
      size: number of values, from 0 to `privacy.noise.training.MAX_VALUES`.
      seed: int64 [2].

    Returns:
      float32 [size].

    Raises:
      ValueError: `size` is out of range.
    """
    import tensorflow as tf

    if not 0 <= size <= MAX_VALUES:
        raise ValueError(f"size is {size}: draw 0 to {MAX_VALUES:g} noise values for one release")
    pairs = (size + 1) // 2
    words = tf.bitcast(_draw_words([pairs], seed), tf.int32)
    leading, angle = words[:, 0], words[:, 1]
    # `leading` + 2^31, from 0 to 2^32 - 1, is the cell of (0, 1] in which U lies. The comparisons find the cells at
    # either end.
    ends = tf.where((leading < -(2**31) + NEAR_ZERO) | (leading >= 2**31 - NEAR_ONE))
    further = _draw_words([FURTHER_WORDS, tf.shape(ends)[0]], stream(seed, "further bits"))
    return from_words(leading, angle, ends, further)[:size]


def from_words(leading: Any, angle: Any, ends: Any, further: Any) -> Any:
    """Computes the normal numbers that belong to given random words: the pair R (cos A, sin A), R = sqrt(-2 log U).

    Args:
      leading: int32 [n], the first 32 bits of each U, minus 2^31.
      angle: int32 [n], each angle A in units of π 2^-31.
      ends: int64 [m, 1], indices of the U so near to 0 or 1 that they get further bits.
      further: int64 [14, m], those further bits, most significant words first.

    Returns:
      float32 [2 n]: the n cosine parts, then the n sine parts.
    """
    import tensorflow as tf

    uniform = tf.cast(leading, tf.float64) + (2.0**31 + 0.5)
    scales = 2.0 ** (-64.0 * np.arange(1, FURTHER_WORDS + 1))
    share = tf.tensordot(tf.constant(scales), tf.cast(tf.bitcast(further, tf.uint64), tf.float64), 1)
    at_ends = tf.cast(tf.gather_nd(leading, ends), tf.float64) + 2.0**31 + (share + 0.5 * scales[-1])
    uniform = tf.tensor_scatter_nd_update(uniform, ends, at_ends) * 2.0**-32
    radius = tf.cast(tf.sqrt(-2.0 * tf.math.log(uniform)), tf.float32)
    angle = tf.cast(angle, tf.float32) * (math.pi * 2.0**-31)
    return tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], 0)


def _draw_words(shape: Any, seed: Any) -> Any:
    """Draws int64 words whose 64 bits are uniform and independent."""
    import tensorflow as tf

    return tf.random.stateless_uniform(shape, seed, None, None, tf.int64, "philox")
