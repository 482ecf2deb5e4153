"""Builds the decoding loop: a graph that samples one token after another from any model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.choices import Processing
from models.decoding.prng import Words
from models.decoding.processing import process
from models.decoding.sampling import sample

Step = Callable[[tf.Tensor, Any], tuple[tf.Tensor, Any]]


class Generated(NamedTuple):
    """Holds the tokens that `generate` sampled.

    Attributes:
      tokens: int32 `[B, N]`, zeros after the end of a row.
      lengths: int32 `[B]`, number of tokens of each row, the stop token included.
    """

    tokens: tf.Tensor
    lengths: tf.Tensor


def generate(
    step: Step,
    logits: tf.Tensor,
    state: Any,
    words: Words,
    temperature: Any,
    top_k: Any,
    max_new: Any,
    stop: Any,
) -> Generated:
    """Samples up to min(max_new, N) tokens per row, with static shapes and builtin TFLite ops only.

    Args:
      step: the model as a function from (tokens int32 `[B]`, state) to (logits `[B, V]`, new state).
      logits: the logits `[B, V]` after the prompt.
      state: the state after the prompt.
      words: two int32 tensors `[B, N]` with static N: the random words that each token is drawn with.
      temperature: float32 scalar, see `models.decoding.processing.process`.
      top_k: int32 scalar, see `models.decoding.processing.process`.
      max_new: int32 scalar, maximum number of tokens per row.
      stop: int32 scalar, the token id after which a row ends (it is kept and counted); -1 for none.
    """
    batch, longest = words[0].shape

    def unfinished(i: tf.Tensor, done: tf.Tensor, *_: Any) -> tf.Tensor:
        return (i < tf.minimum(max_new, longest)) & ~tf.reduce_all(done)

    def body(
        i: tf.Tensor, done: tf.Tensor, tokens: tf.Tensor, lengths: tf.Tensor, logits: tf.Tensor, state: Any
    ) -> tuple[Any, ...]:
        drawn = sample(
            process(logits, Processing(temperature, top_k)),
            (tf.gather(words[0], i, axis=1), tf.gather(words[1], i, axis=1)),
        )
        drawn = tf.where(done, 0, drawn)
        tokens = tf.where(tf.range(longest) == i, drawn[:, tf.newaxis], tokens)
        lengths += tf.cast(~done, tf.int32)
        return i + 1, done | (drawn == stop), tokens, lengths, *step(drawn, state)

    start = (
        tf.constant(0),
        tf.zeros([batch], tf.bool),
        tf.zeros([batch, longest], tf.int32),
        tf.zeros([batch], tf.int32),
        logits,
        state,
    )
    _, _, tokens, lengths, *_ = tf.while_loop(unfinished, body, start)
    return Generated(tokens, lengths)
