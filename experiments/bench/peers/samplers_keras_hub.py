"""Decodes with KerasHub's `SpeculativeSampler` for `bench samplers`.

It is called as its documentation says: with a base sampler, so that it draws, and with `draft_next` and `verify_next`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from experiments.bench.peers.samplers_common import (
    DRAFT_LENGTH,
    LONG_TEXT,
    Measured,
    Pair,
    Sizes,
    count_texts,
    main,
    time_calls,
)

_XLA_TIMINGS = 3  # XLA compiles the sampler anew for each text, which takes seconds


def build(pair: Pair, tokens: int, seed: int) -> Callable[[], tuple[tf.Tensor, tf.Tensor]]:
    """Returns a function that decodes one text.

    The text has room for a whole block after its last token, so that no block of the first `tokens` tokens is cut.

    Args:
      pair: target and drafter.
      tokens: number of tokens.
      seed: the sampler's seed.

    Returns:
      A function that returns the text `[tokens]`, and for each of its places, and those after them, whether a block
      began there.
    """
    length = 1 + tokens + DRAFT_LENGTH
    target, drafter, rows = tf.constant(pair.target), tf.constant(pair.drafter), len(pair.target)
    starts = tf.Variable(tf.zeros([length], tf.bool), trainable=False)
    sampler = keras_hub.samplers.SpeculativeSampler(
        num_speculative_tokens=DRAFT_LENGTH, base_sampler=keras_hub.samplers.RandomSampler(), seed=seed
    )

    def draft_next(prompt: tf.Tensor, cache: Any, index: tf.Tensor) -> tuple[tf.Tensor, Any, Any]:
        return tf.gather(drafter, tf.gather(prompt, index - 1, axis=1) % rows), None, cache

    def verify_next(prompt: tf.Tensor, cache: Any, index: tf.Tensor, count: int) -> tuple[tf.Tensor, Any]:
        starts.assign(starts | tf.equal(tf.range(length), index))
        read = tf.minimum(index - 1 + tf.range(count + 1), length - 1)
        return tf.gather(target, tf.gather(prompt, read, axis=1) % rows), cache

    def no_next(prompt: tf.Tensor, cache: Any, index: tf.Tensor) -> Any:
        raise NotImplementedError("verify_next is given")

    def run() -> tuple[tf.Tensor, tf.Tensor]:
        starts.assign(tf.zeros([length], tf.bool))
        text = sampler(
            no_next, tf.zeros([1, length], tf.int32), index=1, draft_next=draft_next, verify_next=verify_next
        )
        return text[0, 1 : tokens + 1], starts[1:]

    return run


def measure(pair: Pair, sizes: Sizes) -> Iterator[Measured]:
    """Measures the sampler with a pair; texts are decoded one at a time."""
    short, long = build(pair, pair.tokens, sizes.seed), build(pair, LONG_TEXT, sizes.seed)

    @tf.function
    def draw(texts: int) -> tf.Tensor:
        found = tf.TensorArray(tf.int32, texts)
        for number in tf.range(texts):
            found = found.write(number, short()[0])
        return found.stack()

    compiled = tf.function(long)
    decided, calls = [], []
    for _ in range(sizes.long_texts):
        places = np.flatnonzero(compiled()[1].numpy())
        # The blocks that begin in the text: the first place after them tells where they end.
        counted = int(np.sum(places < LONG_TEXT))
        calls.append(counted)
        decided.append(int(places[counted]) if counted < len(places) else LONG_TEXT + DRAFT_LENGTH)

    def decode_one(function: Any) -> int:
        return int(function()[1].numpy().sum())

    optimised = tf.function(build(pair, LONG_TEXT, sizes.seed), jit_compile=True)
    microseconds = {
        "tf.function": time_calls(partial(decode_one, compiled), sizes.timings),
        "XLA": time_calls(partial(decode_one, optimised), min(sizes.timings, _XLA_TIMINGS)),
    }
    yield Measured(
        "SpeculativeSampler",
        pair.name,
        count_texts(draw(sizes.texts).numpy(), pair.target.shape[1]),
        decided,
        calls,
        microseconds,
    )


if __name__ == "__main__":
    main("KerasHub", f"{keras_hub.__version__}, Keras {keras.__version__}, TensorFlow {tf.__version__}", measure)
