"""Defines the smallest model that the federated tests train: a table of bigram scores (see `tests.oracles.fedavg`)."""

from typing import Any

import numpy as np
import tensorflow as tf

from tests.tolerance import FUNCTION, rounding

VOCABULARY = 7
SOFTMAX = 2 * FUNCTION + VOCABULARY
"""Operations of a softmax or log-softmax over the vocabulary."""
LARGEST_LOSS = 10.0
"""In nats; the entries of the tables that tests train are below 4, so that no loss is above 2 · 4 + log 7."""


def token_losses(weights: Any, tokens: Any) -> Any:
    client_axes = tokens.shape.rank - 2  # 1 with a leading client axis
    logits = tf.gather(weights["table"], tokens[..., :-1], axis=client_axes, batch_dims=client_axes)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tokens[..., 1:], logits)


def loss_and_correct(weights: Any, tokens: Any, rows: Any = None) -> tuple[Any, Any]:
    client_axes = tokens.shape.rank - 2
    real = tf.not_equal(tokens[..., 1:], 0)
    if rows is not None:
        real &= tf.sequence_mask(rows, tf.shape(tokens)[-2])[..., tf.newaxis]
    logits = tf.gather(weights["table"], tokens[..., :-1], axis=client_axes, batch_dims=client_axes)
    right = tf.equal(tf.argmax(logits, -1, tf.int32), tokens[..., 1:])
    losses = tf.where(real, token_losses(weights, tokens), 0.0)
    return tf.reduce_sum(losses, [-2, -1]), tf.reduce_sum(tf.cast(real & right, tf.float32), [-2, -1])


def initial_weights(seed: int = 0) -> dict[str, np.ndarray]:
    return {"table": np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)}


def random_sequences(generator: np.random.Generator, rows: int, length: int) -> np.ndarray:
    """Returns random sequences, int32 [rows, length + 1]; the last row ends in padding."""
    tokens = generator.integers(1, VOCABULARY, size=(rows, length + 1)).astype(np.int32)
    if rows:
        tokens[-1, length // 2 + 1 :] = 0
    return tokens


def table_rounding(steps: int, learning_rate: float, tokens: int) -> float:
    """Largest difference of an entry of the table between two ways to take steps of SGD on `tokens` tokens.

    The loss is convex with curvature of at most 1/2, and rates are below 2: no step enlarges earlier errors. Each adds
    those of the softmaxes, of a mean over tokens of terms of at most 1, and of an addition to the table.
    """
    return rounding(steps * (SOFTMAX + tokens), learning_rate) + rounding(steps, 4.0)


def loss_rounding(tokens: int, table: float = 0.0) -> float:
    """Largest difference of a sum of losses of tokens, with entries of the table that differ by up to `table`."""
    return tokens * (rounding(SOFTMAX + tokens, LARGEST_LOSS) + 2 * table)
