"""Computes counter-based random numbers with int32 TensorFlow ops: Threefry-2x32, twenty rounds (Salmon et al. 2011).

A random number is a pure function of (seed, stream, request, position[, token id]), without any state. So it does not
depend on the batch or on earlier draws, and eager mode, `tf.function`, XLA, TFLite and `models.decoding.numpy_ops` give
the same bits. The code uses neither `tf.random.stateless_*` nor bitwise AND, OR and left shifts, because TFLite has no
builtin ops for them.
"""

from typing import Any

import tensorflow as tf

from models.decoding.numpy_ops import PARITY, ROTATIONS, ROUNDS, Stream

Words = tuple[tf.Tensor, tf.Tensor]


def random_words(seed: Any, stream: Stream, request: Any, positions: Any, tokens: Any = None) -> Words:
    """Returns 64 random bits per element, as two int32 tensors; request, positions and tokens broadcast.

    Threefry is called twice. With the seed as its key, it maps the counter (stream, request) to a second key. With the
    second key, it maps the counter (position, 0) or, with token ids, (position, token id + 1) to the words.

    Args:
      seed: int32 `[2]`, any bits.
      stream: the purpose of the numbers.
      request: int32, number that identifies the request. Do not use the row's index in the batch: its draws would then
        depend on the batch.
      positions: int32, number of tokens before the one that is drawn, those of the prompt included.
      tokens: int32, token ids >= 0, for one number per token of the vocabulary; None for one number per position.

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
    """Maps the 32 bits k of each int32 to the float32 u = (k + 1/2) / 2**32, rounded and at most 1 - 2**-24.

    So u is never 0 or 1. For a float32 x, P(u < x) differs from x by at most 2**-33 for small x, and by at most 2**-25
    near 1. A rare token's acceptance test in speculative decoding needs the accuracy at small x.
    """
    high = tf.cast(_shift_right(word, 16), tf.float32) * 2.0**-16
    # Both products are exact, so the sum rounds once even if a compiler fuses a product with the addition.
    low = (tf.cast(word - tf.bitwise.right_shift(word, 16) * (1 << 16), tf.float32) + 0.5) * 2.0**-32
    return tf.minimum(high + low, 1 - 2.0**-24)


def threefry_2x32(key: Words, counter: Words) -> Words:
    """Computes twenty rounds of Threefry-2x32 on int32 tensors, which broadcast."""
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
    """Shifts right and fills with zeros.

    TensorFlow's int32 shift fills with the sign bit. With the top bit flipped it gives the wanted result minus a
    constant. One shift suffices in this way; in TFLite a shift takes fifteen times as long as an addition.
    """
    return tf.bitwise.right_shift(x + _signed(1 << 31), bits) + (1 << (31 - bits))


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
