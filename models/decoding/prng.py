"""Computes counter-based random numbers with int32 TensorFlow ops: Threefry-2x32, twenty rounds (Salmon et al. 2011).

A random number is a pure function of (seed, stream, request, position[, index]), without any state. So it does not
depend on the batch or on earlier draws, and eager mode, `tf.function`, XLA, TFLite and `models.decoding.numpy_ops` give
the same bits. The code uses neither `tf.random.stateless_*` nor bitwise AND, OR and left shifts, because TFLite has no
builtin ops for them.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.exact import exact
from models.decoding.numpy_ops import PARITY, ROTATIONS, ROUNDS, Stream

Words = tuple[tf.Tensor, tf.Tensor]


def random_words(seed: Any, stream: Any, request: Any, positions: Any, index: Any = None) -> Words:
    """Returns 64 random bits per element, as two int32 tensors; all arguments but the seed broadcast.

    Threefry is called twice. With the seed as its key, it maps the counter (stream, request) to a second key. With the
    second key, it maps the counter (position, 0) or, with an index, (position, index + 1) to the words.

    Args:
      seed: int32 `[2]`, any bits.
      stream: the purpose of the numbers, a `Stream` or an int32 tensor of them.
      request: int32, number that identifies the request. Do not use the row's index in the batch: its draws would then
        depend on the batch.
      positions: int32, number of tokens before the one that is drawn, or before the block, those of the prompt
        included.
      index: int32 >= 0, to tell numbers of one position apart: a token id, or a place in a block. None for one number
        per position.

    Returns:
      Two int32 tensors of the common shape of the arguments.
    """
    seed = tf.convert_to_tensor(seed, tf.int32)
    request = tf.convert_to_tensor(request, tf.int32)
    positions = tf.convert_to_tensor(positions, tf.int32)
    second = tf.constant(0) if index is None else tf.convert_to_tensor(index, tf.int32) + 1
    key = threefry_2x32((seed[0], seed[1]), (tf.convert_to_tensor(stream, tf.int32), request))
    return threefry_2x32(key, (positions, second))


class BlockWords(NamedTuple):
    """Holds the random words of one block of speculative decoding.

    Attributes:
      draft: two int32 `[..., G]`, for drawing the draft's tokens.
      accept: int32 `[...]`, for drawing how many of them are accepted.
      residual: two int32 `[...]`, for drawing the token after a rejection.
      bonus: two int32 `[...]`, for drawing the token after a draft that is accepted as a whole.
    """

    draft: Words
    accept: tf.Tensor
    residual: Words
    bonus: Words


def block_keys(draft_length: int) -> list[tuple[Stream, int]]:
    """Returns stream and index of each random word of a block; its position is the block's start.

    The words of a draft must not be keyed by the positions of its tokens. Whether a token is accepted depends on the
    drafted tokens after it, which may be discarded. The next block would then draw the same positions with the same
    words, and its tokens would depend on the decision to discard them.
    """
    drafts = [(Stream.DRAFT, index) for index in range(draft_length)]
    return [*drafts, (Stream.ACCEPT, 0), (Stream.RESIDUAL, 0), (Stream.BONUS, 0)]


def block_words(seed: Any, request: tf.Tensor, start: tf.Tensor, draft_length: int) -> BlockWords:
    """Returns the random words of blocks, from one call of the generator.

    Args:
      seed: as for `random_words`.
      request: int32 `[...]`.
      start: int32 `[...]`, number of tokens before the block, those of the prompt included; broadcasts with `request`.
      draft_length: number of drafted tokens G.
    """
    streams, indices = zip(*block_keys(draft_length), strict=True)
    words = random_words(
        seed, [int(stream) for stream in streams], request[..., tf.newaxis], start[..., tf.newaxis], indices
    )
    first, second = (tf.unstack(word, axis=-1) for word in words)
    accept, residual, bonus = range(draft_length, draft_length + 3)
    return BlockWords(
        draft=(words[0][..., :draft_length], words[1][..., :draft_length]),
        accept=first[accept],
        residual=(first[residual], second[residual]),
        bonus=(first[bonus], second[bonus]),
    )


def uniforms(word: tf.Tensor) -> tf.Tensor:
    """Maps the 32 bits k of each int32 to the float32 u = (k + 1/2) / 2**32, rounded and at most 1 - 2**-24.

    So u is never 0 or 1. For a float32 x, P(u < x) differs from x by at most 2**-33 for small x, and by at most 2**-25
    near 1. A rare token's acceptance test in speculative decoding needs the accuracy at small x.
    """
    high = tf.cast(_shift_right(word, 16), tf.float32) * 2.0**-16
    unit, largest = exact(2.0**-32, word), exact(1 - 2.0**-24, word)
    # Both products are exact, so the sum rounds once even if a compiler fuses a product with the addition.
    low = (tf.cast(word - tf.bitwise.right_shift(word, 16) * (1 << 16), tf.float32) + 0.5) * unit
    return tf.minimum(high + low, largest)


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
