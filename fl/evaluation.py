"""Evaluation: how well a model predicts the text of clients it did not train on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl.clients import PAD
from fl.local_training import Weights

_ROWS = 128  # sequences a call; the last call is padded, so that one graph serves all


@dataclass(frozen=True)
class Evaluation:
    """Sums by client, so that intervals over clients can be drawn.

    Attributes:
      loss: float64 [clients], summed nats.
      correct: float64 [clients], tokens whose most likely prediction was right.
      tokens: int64 [clients].
    """

    loss: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray

    @property
    def loss_per_token(self) -> float:
        """Nats a token over all clients' tokens."""
        return float(self.loss.sum() / self.tokens.sum())

    @property
    def accuracy(self) -> float:
        """Share of tokens predicted right (padding excluded, every real token counts)."""
        return float(self.correct.sum() / self.tokens.sum())


class Evaluator:
    """Evaluates weights on a fixed set of clients' sequences. Makes its TensorFlow graph once."""

    def __init__(self, model: Any, sequences: Sequence[np.ndarray]) -> None:
        """`model` answers `models.language_model.LanguageModel`; `sequences` holds int32 [n, T+1] for each client."""
        import tensorflow as tf

        rows = np.concatenate(sequences) if sequences else np.zeros((0, 2), np.int32)
        if not len(rows):
            raise ValueError("no sequence to evaluate on: the clients of this set have no text, enlarge the set")
        self._owners = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
        self._clients = len(sequences)
        padding = -len(rows) % _ROWS
        self._rows = np.concatenate([rows, np.full((padding, rows.shape[1]), PAD, np.int32)])

        @tf.function
        def batch_sums(weights: Weights, tokens: Any) -> tuple[Any, Any]:
            targets = tokens[:, 1:]
            logits, _ = model.extend(weights, tokens[:, :-1], model.initial_state(_ROWS))
            real = tf.cast(tf.not_equal(targets, PAD), tf.float32)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
            correct = tf.cast(tf.equal(tf.argmax(logits, -1, tf.int32), targets), tf.float32)
            return tf.reduce_sum(losses * real, 1), tf.reduce_sum(correct * real, 1)

        self._batch_sums = batch_sums

    def __call__(self, weights: Weights) -> Evaluation:
        import tensorflow as tf

        constants = {name: tf.constant(value) for name, value in weights.items()}
        sums = [
            [part.numpy() for part in self._batch_sums(constants, tf.constant(self._rows[i : i + _ROWS]))]
            for i in range(0, len(self._rows), _ROWS)
        ]
        count = len(self._owners)
        loss, correct = (np.concatenate(part)[:count].astype(np.float64) for part in zip(*sums, strict=True))
        tokens = np.count_nonzero(self._rows[:count, 1:] != PAD, axis=1)
        by_client = [np.bincount(self._owners, values, self._clients) for values in (loss, correct, tokens)]
        return Evaluation(by_client[0], by_client[1], by_client[2].astype(np.int64))
