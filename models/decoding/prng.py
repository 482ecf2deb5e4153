"""Counter-based randomness from int32 TensorFlow ops: Threefry-2x32 with twenty rounds (Salmon et al. 2011).

A random number is a pure function of (seed, stream, request, position[, token id]); nothing is carried, so it
does not depend on the batch, on what was drawn before, or on the backend: eager mode, `tf.function`, XLA and
TFLite (builtin ops only, which rules out `tf.random.stateless_*`, AND, OR and left shifts) and
`models.decoding.numpy_ops` give the same bits.
"""

from typing import Any

import tensorflow as tf

from models.decoding.numpy_ops import PARITY, ROTATIONS, ROUNDS, Stream

Words = tuple[tf.Tensor, tf.Tensor]


def random_words(seed: Any, stream: Stream, request: Any, positions: Any, tokens: Any = None) -> Words:
    """64 random bits, as two int32 tensors, for every combination of the arguments (which broadcast).

    The key of (seed, stream, request) is Threefry of the counter (stream, request) under the seed; the words
    are Threefry of the counter (position, 0) or, with token ids, (position, token id + 1) under that key.

    Args:
      seed: int32 `[2]`, any bits.
      stream: what the numbers are for.
      request: int32, which request of the seed; never the row of a batch.
      positions: int32, absolute: how many tokens stand before the one that is drawn.
      tokens: int32, token ids from 0 up, for one number a token of the vocabulary; or None.

    Returns:
      Two int32 tensors of the common shape of request, positions and tokens.
    """
    seed = tf.convert_to_tensor(seed, tf.int32)
    request = tf.convert_to_tensor(request, tf.int32)
    positions = tf.convert_to_tensor(positions, tf.int32)
    ids = tf.constant(0) if tokens is None else tf.convert_to_tensor(tokens, tf.int32) + 1
    key = threefry_2x32((seed[0], seed[1]), (tf.constant(int(stream)), request))
    return threefry_2x32(key, (positions, ids))


def uniforms(word: tf.Tensor) -> tf.Tensor:
    """float32 in (0, 1) from the 32 bits k of each int32: (k + 1/2) / 2**32, rounded to float32, at most 1 -
    2**-24.

    So that P(u < x) is right to 2**-33 for small x (what an acceptance test with a rare token needs) and to
    2**-25 near 1, and u is never 0 or 1.
    """
    high = tf.cast(_shift_right(word, 16), tf.float32) * 2.0**-16
    # Both products are exact: fused into the sum or not, the sum rounds once.
    low = (tf.cast(word - tf.bitwise.right_shift(word, 16) * (1 << 16), tf.float32) + 0.5) * 2.0**-32
    return tf.minimum(high + low, 1 - 2.0**-24)


def threefry_2x32(key: Words, counter: Words) -> Words:
    """Twenty rounds of Threefry-2x32 on int32 tensors that broadcast."""
    schedule = (key[0], key[1], tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(key[0], key[1]), PARITY))
    x0, x1 = counter[0] + schedule[0], counter[1] + schedule[1]
    for i in range(ROUNDS):
        x0 += x1
        x1 = tf.bitwise.bitwise_xor(_rotate_left(x1, ROTATIONS[i % 8]), x0)
        if i % 4 == 3:
            step = i // 4 + 1
            x0 += schedule[step % 3]
            x1 += schedule[(step + 1) % 3] + step
    return x0, x1


def _rotate_left(x: tf.Tensor, bits: int) -> tf.Tensor:
    return x * _signed(1 << bits) + _shift_right(x, 32 - bits)


def _shift_right(x: tf.Tensor, bits: int) -> tf.Tensor:
    """Logical: int32 shifts copy the sign, which is -1 or 0 after a shift by 31."""
    return tf.bitwise.right_shift(x, bits) - tf.bitwise.right_shift(x, 31) * _signed(1 << (32 - bits))


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
