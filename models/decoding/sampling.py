"""Samples tokens by inverse CDF in integer arithmetic, so that equal logits give equal tokens in every backend."""

import numpy as np
import tensorflow as tf

from models.decoding.numpy_ops import BLOCK, ENTRIES_PER_NAT, LARGEST_VOCABULARY, LOWEST, TABLE_BITS
from models.decoding.prng import Words


def weights(processed: tf.Tensor) -> tf.Tensor:
    """Returns the integer weights from which `sample` draws: proportional to exp(processed), up to rounding.

    `models.decoding.numpy_ops` says why no `exp` is called.

    Args:
      processed: float32 `[..., V]`, at most 0.

    Returns:
      int64 `[..., V]`: exp(processed) * 2**44 with a relative error below 2**-21, rounded down. So the likeliest token
      has weight 2**44, and a token whose probability is less than exp(-30.5) times the likeliest one's has weight 0.
    """
    below = tf.minimum(-processed, LOWEST)
    entry = tf.cast(below * ENTRIES_PER_NAT, tf.int32)
    half = (below - tf.cast(entry, tf.float32) * (1 / ENTRIES_PER_NAT)) * 0.5
    # exp(-2h) is (1 - h) / (1 + h) up to 2h**3/3, which is below 4e-8 here.
    ratio = (1 - half) / (1 + half)
    return tf.cast(tf.bitcast(tf.gather(tf.constant(TABLE_BITS), entry), tf.float32) * ratio, tf.int64)


def probabilities(token_weights: tf.Tensor) -> tf.Tensor:
    """Returns the probabilities with which `sample_weights` draws each token: float32 `[..., V]`, rounded.

    A row whose weights are all 0 has probabilities 0.

    Args:
      token_weights: int64 `[..., V]`, from `weights`.
    """
    total = tf.reduce_sum(token_weights, axis=-1, keepdims=True)
    scale = 1 / tf.cast(tf.maximum(total, 1), tf.float32)
    return tf.cast(token_weights, tf.float32) * scale


def sample(processed: tf.Tensor, words: Words) -> tf.Tensor:
    """Draws one token from the distribution of each row.

    The upper 31 bits of both words make a number in [0, 1) with 62 bits. Its product with the total weight is compared
    with the running sums of the weights. So a token's probability is its weight divided by the total, up to 2**-62, and
    a token of weight 0 is never drawn.

    Args:
      processed: float32 `[..., V]` with static V, from `models.decoding.processing.process`.
      words: two int32 `[...]`, from `models.decoding.prng.random_words`.

    Returns:
      int32 `[...]`.

    Raises:
      ValueError: V is above 2**18.
    """
    return sample_weights(weights(processed), words)


def sample_weights(token_weights: tf.Tensor, words: Words) -> tf.Tensor:
    """Draws one token from integer weights; `sample` says how.

    Args:
      token_weights: int64 `[..., V]` with static V, at least 0 and at most 2**44, not all 0 in a row.
      words: as for `sample`.

    Returns:
      int32 `[...]`.

    Raises:
      ValueError: V is above 2**18.
    """
    size = token_weights.shape[-1]
    if size > LARGEST_VOCABULARY:
        raise ValueError(f"vocabulary of {size} tokens is larger than {LARGEST_VOCABULARY}: sums would overflow")
    lead = token_weights.shape[:-1]
    token_weights = tf.reshape(token_weights, [-1, size])
    # Finds first the block of the token and then the token in the block. One running sum over all tokens would be slow:
    # under XLA on CPU its time grows with the square of its length.
    blocks = tf.reshape(tf.pad(token_weights, [[0, 0], [0, -size % BLOCK]]), [-1, -(-size // BLOCK), BLOCK])
    block_sums = tf.cumsum(tf.reduce_sum(blocks, axis=-1), axis=-1)
    threshold = _scale(block_sums[:, -1], *(tf.reshape(word, [-1]) for word in words))[:, tf.newaxis]
    block = tf.reduce_sum(tf.cast(block_sums <= threshold, tf.int32), axis=-1)
    before = tf.gather(tf.pad(block_sums, [[0, 0], [1, 0]]), block, axis=1, batch_dims=1)
    sums = tf.cumsum(tf.gather(blocks, block, axis=1, batch_dims=1), axis=-1) + before[:, tf.newaxis]
    within = tf.reduce_sum(tf.cast(sums <= threshold, tf.int32), axis=-1)
    return tf.reshape(block * BLOCK + within, lead)


def _scale(total: tf.Tensor, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Returns floor(total * u / 2**62), where u is made of the upper 31 bits of both words.

    It computes `models.decoding.numpy_ops.scale` with builtin TFLite ops.
    """
    high, low = _upper_31(first), _upper_31(second)
    total_high, total_low = _split_31(total)
    carry, _ = _split_31(total_low * low)
    carry, _ = _split_31(total_high * low + total_low * high + carry)
    return total_high * high + carry


def _split_31(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits int64 x >= 0 into high * 2**31 + low; TFLite has neither shifts nor division for int64."""
    low, high = tf.unstack(tf.bitcast(x, tf.int32), axis=-1)
    sign = tf.bitwise.right_shift(low, 31)
    return tf.cast(high, tf.int64) * 2 - tf.cast(sign, tf.int64), tf.cast(low + sign * _TOP_BIT, tf.int64)


def _upper_31(word: tf.Tensor) -> tf.Tensor:
    """Returns the upper 31 bits of each word as int64."""
    return tf.cast(tf.bitwise.right_shift(word, 1) - tf.bitwise.right_shift(word, 31) * _TOP_BIT, tf.int64)


_TOP_BIT = np.int32(-(1 << 31))
