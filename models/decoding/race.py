"""Draws tokens by an exponential race with keyed noise, with builtin TFLite ops.

Two models that draw with the same noise draw equal tokens as often as `models.decoding.couplings.race_agreement` says,
without sending each other anything (Daliri et al. 2024, https://arxiv.org/abs/2408.07978). Drafter-invariant decoding
rests on this. `models.decoding.numpy_race` says how the noise is made and how accurate it is.
"""

from typing import Any

import tensorflow as tf

from models.decoding.exact import exact
from models.decoding.numpy_ops import Stream
from models.decoding.numpy_race import (
    FIRST_SEGMENT,
    HALF_BLOCK,
    LOWEST_LOOKED_UP,
    MIDDLE_BITS,
    SEGMENT_BITS,
    SLOPE_BITS,
    UPPER_SCALE,
)
from models.decoding.prng import random_words


def gumbels(seed: Any, request: Any, positions: Any, size: int) -> tf.Tensor:
    """Returns one standard Gumbel number for every token of the vocabulary at every position.

    A number is a function of (seed, request, position, token id) alone. Numbers for different keys are independent.

    Args:
      seed: int32 `[2]`, any bits.
      request: int32 `[...]`, number that identifies the request.
      positions: int32 `[...]`, number of tokens before the one that is drawn; broadcasts with request.
      size: number of tokens V, > 0. A token's number does not depend on it.

    Returns:
      float32 `[..., V]`, from -3.2 to 23.6.
    """
    request = tf.convert_to_tensor(request, tf.int32)
    positions = tf.convert_to_tensor(positions, tf.int32)
    lead = tf.broadcast_static_shape(request.shape, positions.shape)
    blocks = -(-size // (2 * HALF_BLOCK))
    pairs = tf.range(blocks * HALF_BLOCK)
    first, second = random_words(seed, Stream.RACE, request[..., tf.newaxis], positions[..., tf.newaxis], pairs)
    noise = [
        tf.reshape(from_words(*words), [*lead, blocks, HALF_BLOCK]) for words in ((first, second), (second, first))
    ]
    return tf.reshape(tf.stack(noise, axis=-2), [*lead, blocks * 2 * HALF_BLOCK])[..., :size]


def gumbels_of(seed: Any, request: Any, positions: Any, tokens: Any) -> tf.Tensor:
    """Returns the numbers that `gumbels` has for some tokens, such as those that top-k keeps, without the others.

    The time is that of twice as many tokens of `gumbels`, since no two tokens share a call of Threefry.

    Args:
      seed: int32 `[2]`, any bits.
      request: int32, number that identifies the request; broadcasts with positions and tokens.
      positions: int32, number of tokens before the one that is drawn.
      tokens: int32, token ids >= 0.

    Returns:
      float32 of the common shape of request, positions and tokens.
    """
    tokens = tf.convert_to_tensor(tokens, tf.int32)
    half = tf.bitwise.right_shift(tokens, HALF_BLOCK.bit_length() - 1)
    block = tf.bitwise.right_shift(half, 1)
    call = block * HALF_BLOCK + (tokens - half * HALF_BLOCK)
    first, second = random_words(seed, Stream.RACE, request, positions, call)
    # Exchanges the words where the token has the second one.
    moved = (second - first) * (half - block * 2)
    return from_words(first + moved, second - moved)


def race(processed: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Draws the token with the largest sum of processed logit and noise in each row, the first one on ties.

    A token's probability is its softmax probability, up to the error that `models.decoding.numpy_race` states. A token
    with the logit `models.decoding.numpy_ops.LEFT_OUT` is never drawn.

    Args:
      processed: float32 `[..., V]`, from `models.decoding.processing.process`.
      noise: float32 `[..., V]`, from `gumbels`.

    Returns:
      int32 `[...]`.
    """
    return tf.argmax(processed + noise, axis=-1, output_type=tf.int32)


def from_words(own: tf.Tensor, partner: tf.Tensor) -> tf.Tensor:
    """Returns the Gumbel numbers of tokens from their own words and their partners', two int32 tensors of one shape."""
    # The product is exact, so that a fused multiply-add changes nothing.
    # There is one addition, because graph optimizers regroup sums of three numbers.
    z = tf.cast(own, tf.float32) + tf.abs(tf.cast(partner, tf.float32)) * exact(2.0**-32, partner)
    bits = tf.bitcast(tf.maximum(tf.maximum(z, z * exact(-UPPER_SCALE, own)), exact(LOWEST_LOOKED_UP, own)), tf.int32)
    segment = tf.bitwise.right_shift(bits, SEGMENT_BITS)
    distance = tf.cast(bits - segment * (1 << SEGMENT_BITS) - (1 << (SEGMENT_BITS - 1)), tf.float32)
    segment -= FIRST_SEGMENT
    middle = tf.bitcast(tf.gather(tf.constant(MIDDLE_BITS), segment), tf.float32)
    # Exact product: 11 bits times 13.
    return middle + tf.bitcast(tf.gather(tf.constant(SLOPE_BITS), segment), tf.float32) * distance
