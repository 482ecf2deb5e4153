"""Decodes with fedspeak's token and block verification for `bench samplers`.

The loop of `models.decoding.loop` runs as a `tf.function`, without penalties and log-probabilities.
"""

import itertools
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

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
from models.decoding.block_decoder import Request
from models.decoding.choices import Processing
from models.decoding.drafters import ModelDrafter
from models.decoding.loop import Ends, Generated, begin, generate
from models.decoding.methods import build_method
from models.decoding.speculation import Speculation

_ROWS = 2000  # texts that are decoded together, where no time is measured


class TableModel:
    """Implements what a decoder needs of a language model whose next token depends on the last token only.

    Args:
      table: float32 `[R, V]`, the logits; those after token t are in row t mod R.
    """

    context = None

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.vocabulary_size = table.shape[1]

    def initial_state(self, batch: int) -> Any:
        """Returns the state: nothing, as the logits depend on the token that is read only."""
        return ()

    def extend(self, weights: Any, tokens: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
        """Returns the logits `[B, T, V]` after each token `[B, T]`."""
        return tf.gather(tf.constant(self.table), tokens % len(self.table)), ()

    def rewind(self, trail: Any, kept: tf.Tensor) -> Any:
        """Returns the state after some of the tokens: nothing."""
        return ()

    def select(self, states: Any, kept: tf.Tensor) -> Any:
        """Returns one of several states: nothing."""
        return ()


def build(pair: Pair, method: str) -> Callable[[tf.Tensor, tf.Tensor, int], Generated]:
    """Returns a function that decodes `[B]` texts of some number of tokens, given a seed and request numbers `[B]`."""
    drafter: Any = TableModel(pair.drafter)
    target: Any = TableModel(pair.target)
    decoder = Speculation(
        target,
        {},
        build_method(method),
        ModelDrafter(drafter, {}),
        DRAFT_LENGTH,
        penalties=False,
        log_probs=False,
    )

    def decode(seed: tf.Tensor, requests: tf.Tensor, tokens: int) -> Generated:
        state = decoder.begin(tf.zeros_like(requests), decoder.initial_state(requests.shape[0]))
        request = Request(seed, requests, Processing())
        ends = Ends(tf.constant(tokens), tf.constant(-1), tf.zeros([0, 1], tf.int32))
        return generate(decoder, begin(decoder, state), request, ends, decoder.words(request, state.position, tokens))

    return decode


def measure(pair: Pair, sizes: Sizes) -> Iterator[Measured]:
    """Measures token and block verification with a pair."""
    for method in ("speculative", "block"):
        decode = build(pair, method)
        compiled = tf.function(decode, autograph=False)
        texts = []
        for first in range(0, sizes.texts, _ROWS):
            requests = tf.range(first, min(first + _ROWS, sizes.texts))
            texts.append(compiled(tf.constant([1, sizes.seed]), requests, pair.tokens).tokens.numpy())
        counts = compiled(tf.constant([2, sizes.seed]), tf.range(sizes.long_texts), LONG_TEXT).counts
        functions = {"tf.function": compiled, "XLA": tf.function(decode, autograph=False, jit_compile=True)}
        yield Measured(
            method,
            pair.name,
            count_texts(np.concatenate(texts), pair.target.shape[1]),
            counts.decided.numpy().tolist(),
            counts.calls.numpy().tolist(),
            {
                name: time_calls(_one_by_one(function, sizes.seed), sizes.timings)
                for name, function in functions.items()
            },
        )


def _one_by_one(decode: Callable[..., Generated], seed: int) -> Callable[[], int]:
    """Returns a function that decodes one long text, another one at each call, and returns its number of blocks."""
    requests = itertools.count()
    return lambda: int(decode(tf.constant([3, seed]), tf.constant([next(requests)]), LONG_TEXT).counts.calls[0])


if __name__ == "__main__":
    main("fedspeak", f"{version('fedspeak')}, TensorFlow {tf.__version__}", measure)
