"""The smallest model that the federated tests train: a table of bigram scores (see `tests.oracles.fedavg`)."""

from typing import Any

import numpy as np
import tensorflow as tf

VOCABULARY = 7


def token_losses(weights: Any, tokens: Any) -> Any:
    users = tokens.shape.rank - 2  # 1 with a leading user axis
    logits = tf.gather(weights["table"], tokens[..., :-1], axis=users, batch_dims=users)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tokens[..., 1:], logits)


def initial_weights(seed: int = 0) -> dict[str, np.ndarray]:
    return {"table": np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)}


def random_sequences(generator: np.random.Generator, rows: int, length: int) -> np.ndarray:
    """int32 [rows, length + 1]; the last row ends in padding."""
    tokens = generator.integers(1, VOCABULARY, size=(rows, length + 1)).astype(np.int32)
    if rows:
        tokens[-1, length // 2 + 1 :] = 0
    return tokens
