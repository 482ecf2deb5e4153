"""Samples tokens by inverse CDF in integer arithmetic, so that equal logits give equal tokens in every backend."""

import numpy as np
import tensorflow as tf

from models.decoding.exact import exact
from models.decoding.numpy_ops import BLOCK, ENTRIES_PER_NAT, LARGEST_VOCABULARY, LOWEST, TABLE_BITS
from models.decoding.prng import Words


def weights(processed: tf.Tensor) -> tf.Tensor:
    """Returns the integer weights from which `sample` draws: proportional to exp(processed), up to rounding.

    `models.decoding.numpy_ops` says why no `exp` is called.

    Args:
      processed: float32 `[..., V]`, at most 0; NaN for tokens of a row that cannot be drawn from.

    Returns:
      int64 `[..., V]`: exp(processed) * 2**44 with a relative error below 2**-21, rounded down. So the likeliest token
      has weight 2**44, and a token whose probability is less than exp(-30.5) times the likeliest one's has weight 0.
    """
    below = tf.where(processed > -LOWEST, -processed, LOWEST)  # NaN counts as a token that is never drawn
    entry = tf.cast(below * ENTRIES_PER_NAT, tf.int32)
    half = (below - tf.cast(entry, tf.float32) * (1 / ENTRIES_PER_NAT)) * 0.5
    # exp(-2h) is (1 - h) / (1 + h) up to 2h**3/3, which is below 4e-8 here.
    ratio = (1 - half) / (1 + half)
    return tf.cast(tf.bitcast(tf.gather(tf.constant(TABLE_BITS), entry), tf.float32) * ratio, tf.int64)


def sample(processed: tf.Tensor, words: Words) -> tf.Tensor:
    """Draws one token from the distribution of each row.

    The upper 31 bits of both words make a number in [0, 1) with 62 bits. Its product with the total weight is compared
    with the running sums of the weights. So a token's probability is its weight divided by the total, up to 2**-62, and
    a token of weight 0 is never drawn.

    Args:
      processed: float32 `[..., V]` with static V, from `models.decoding.processing.process`.
      words: two int32 `[...]`, from `models.decoding.prng.random_words`.

    Returns:
      int32 `[...]`, the tokens; -1 for a row of NaN, which has no token.

    Raises:
      ValueError: V is above 2**18.
    """
    return sample_weights(weights(processed), words)


def sample_weights(token_weights: tf.Tensor, words: Words) -> tf.Tensor:
    """Draws one token from integer weights; `sample` says how.

    Args:
      token_weights: int64 `[..., V]` with static V, at least 0 and at most 2**44.
      words: as for `sample`.

    Returns:
      int32 `[...]`, the tokens; -1 for a row whose weights are all 0.

    Raises:
      ValueError: V is above 2**18.
    """
    lead = token_weights.shape[:-1]
    blocks, block_sums = _split_into_blocks(token_weights)
    threshold = scale(block_sums[:, -1], *(_upper_31(tf.reshape(word, [-1])) for word in words))
    return tf.reshape(_find(blocks, block_sums, threshold[:, tf.newaxis], 1), lead)


def sample_31(token_weights: tf.Tensor, word: tf.Tensor) -> tf.Tensor:
    """Draws one token from integer weights as `sample_weights` does, from the upper 31 bits of one word.

    It takes a third of the ops. A token's probability is its weight divided by the total, up to 2**-31.

    Args:
      token_weights: int64 `[..., V]` with static V, at least 0, with a sum of at most 2**32.
      word: int32 `[...]`.

    Returns:
      int32 `[...]`, the tokens; -1 for a row whose weights are all 0.
    """
    lead = token_weights.shape[:-1]
    blocks, block_sums = _split_into_blocks(token_weights)
    product = block_sums[:, -1] * _upper_31(tf.reshape(word, [-1]))
    return tf.reshape(_find(blocks, block_sums, product[:, tf.newaxis], 1 << 31), lead)


def weights_31(processed: tf.Tensor) -> tf.Tensor:
    """Returns integer weights for `sample_31`, int64 `[..., V]`, of processed logits; 0 in a row of NaN."""
    token_weights = tf.cast(tf.nn.softmax(processed) * exact(2.0**31, processed), tf.int64)
    return tf.maximum(token_weights, 0)


def distribution_of(token_weights: tf.Tensor) -> tf.Tensor:
    """Returns the probabilities, float32 `[..., V]`, with which integer weights are drawn; 0 if all weights are 0.

    They are not the softmax: what verifies a draft must know the distribution that it was drawn from.
    """
    total = tf.reduce_sum(token_weights, axis=-1, keepdims=True)
    return tf.cast(token_weights, tf.float32) / tf.cast(tf.maximum(total, 1), tf.float32)


def _split_into_blocks(token_weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the weights in blocks, `[rows, V / BLOCK, BLOCK]`, and the running sums of the blocks."""
    size = token_weights.shape[-1]
    if size > LARGEST_VOCABULARY:
        raise ValueError(f"vocabulary of {size} tokens is larger than {LARGEST_VOCABULARY}: sums would overflow")
    token_weights = tf.reshape(token_weights, [-1, size])
    if size % BLOCK:
        token_weights = tf.pad(token_weights, [[0, 0], [0, -size % BLOCK]])
    blocks = tf.reshape(token_weights, [-1, -(-size // BLOCK), BLOCK])
    return blocks, tf.cumsum(tf.reduce_sum(blocks, axis=-1), axis=-1)


def _find(blocks: tf.Tensor, block_sums: tf.Tensor, threshold: tf.Tensor, factor: int) -> tf.Tensor:
    """Returns the first token whose running sum, times `factor`, exceeds the threshold; -1 in a row without weight.

    Finds first the block of the token and then the token in the block. One running sum over all tokens would be slow:
    under XLA on CPU its time grows with the square of its length.
    """
    # Only in a row without weight do all blocks end at or below the threshold; then the last block is read.
    is_before = tf.cast(block_sums * factor <= threshold, tf.int32)
    block = tf.minimum(tf.reduce_sum(is_before, axis=-1), blocks.shape[1] - 1)
    before = tf.gather(tf.pad(block_sums, [[0, 0], [1, 0]]), block, axis=1, batch_dims=1)
    sums = tf.cumsum(tf.gather(blocks, block, axis=1, batch_dims=1), axis=-1) + before[:, tf.newaxis]
    within = tf.reduce_sum(tf.cast(sums * factor <= threshold, tf.int32), axis=-1)
    return tf.where(block_sums[:, -1] > 0, block * BLOCK + within, -1)


def scale(total: tf.Tensor, high: tf.Tensor, low: tf.Tensor) -> tf.Tensor:
    """Returns exactly floor(total * (high * 2**31 + low) / 2**62), with builtin TFLite ops.

    Args:
      total: int64, 0 to 2**62.
      high: int64, 0 to 2**31 - 1.
      low: int64, 0 to 2**31 - 1.
    """
    total_high, total_low = split_31(total)
    carry, _ = split_31(total_low * low)
    carry, _ = split_31(total_high * low + total_low * high + carry)
    return total_high * high + carry


def split_31(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits int64 x >= 0 into high * 2**31 + low; TFLite has neither shifts nor division for int64."""
    low, high = tf.unstack(tf.bitcast(x, tf.int32), axis=-1)
    sign = tf.bitwise.right_shift(low, 31)
    return tf.cast(high, tf.int64) * 2 - tf.cast(sign, tf.int64), tf.cast(low + sign * _TOP_BIT, tf.int64)


def _upper_31(word: tf.Tensor) -> tf.Tensor:
    """Returns the upper 31 bits of each word as int64."""
    return tf.cast(tf.bitwise.right_shift(word, 1) - tf.bitwise.right_shift(word, 31) * _TOP_BIT, tf.int64)


_TOP_BIT = np.int32(-(1 << 31))
