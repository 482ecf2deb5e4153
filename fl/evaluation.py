"""Measures how well a model predicts the text of clients that it was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl.clients import PAD
from fl.local_training import Weights

_ROWS = 128  # maximum number of sequences in one call; the last call is padded, so that one graph serves all calls
_LOGITS = 1 << 26  # maximum number of logits in one call, unless one sequence has more


@dataclass(frozen=True)
class Evaluation:
    """Holds the sums of losses and correct predictions of each client, from which intervals over clients follow.

    Attributes:
      loss: float64 [clients], sum of the losses in nats.
      correct: float64 [clients], number of target tokens that were the model's most likely prediction.
      tokens: int64 [clients], number of target tokens, without padding.
    """

    loss: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray

    @property
    def loss_per_token(self) -> float:
        """Returns the mean loss over all clients' tokens in nats per token."""
        return float(self.loss.sum() / self.tokens.sum())

    @property
    def accuracy(self) -> float:
        """Returns the share of target tokens that were the most likely prediction; padding does not count."""
        return float(self.correct.sum() / self.tokens.sum())


class JoinedRows:
    """Joins the sequences of clients into batches of one size, and sums by client what they give.

    Attributes:
      rows: int32 `[R, T+1]`, the sequences; at the end padding, so that one graph serves all batches.
      batch: number of rows of a batch; divides R.

    Args:
      sequences: the sequences of each client, int32 `[n, T+1]`, with padding 0.
      vocabulary_size: number of logits of each token, which bounds the batch.
      none: message of the error if no client has a sequence.

    Raises:
      ValueError: no client has a sequence.
    """

    def __init__(self, sequences: Sequence[np.ndarray], vocabulary_size: int, none: str) -> None:
        rows = np.concatenate(sequences) if sequences else np.zeros((0, 2), np.int32)
        if not len(rows):
            raise ValueError(none)
        self._owners = np.repeat(np.arange(len(sequences)), [len(each) for each in sequences])
        self._clients = len(sequences)
        self.batch = max(1, min(_ROWS, _LOGITS // ((rows.shape[1] - 1) * vocabulary_size)))
        padding = np.full((-len(rows) % self.batch, rows.shape[1]), PAD, np.int32)
        self.rows = np.concatenate([rows, padding])

    def by_client(self, values: np.ndarray) -> np.ndarray:
        """Returns the sum of values of rows, `[R]`, by client, float64."""
        return np.bincount(self._owners, values[: len(self._owners)], self._clients).astype(np.float64)


class Evaluator:
    """Evaluates weights on a fixed set of clients' sequences; builds its TensorFlow graph once."""

    def __init__(self, model: Any, sequences: Sequence[np.ndarray]) -> None:
        """Joins the clients' sequences and builds the graph.

        Args:
          model: a `models.language_model.LanguageModel`.
          sequences: the sequences of each client, int32 [n, T+1], with padding 0.

        Raises:
          ValueError: no client has a sequence.
        """
        import tensorflow as tf

        none = "no sequence to evaluate on: no client of this set has text, so enlarge the set"
        self._joined = JoinedRows(sequences, model.vocabulary_size, none)
        count = self._joined.batch
        model = model.fit(self._joined.rows.shape[1] - 1)

        @tf.function(autograph=False)
        def batch_sums(weights: Weights, tokens: Any) -> tuple[Any, Any]:
            targets = tokens[:, 1:]
            logits, _ = model.extend(weights, tokens[:, :-1], model.initial_state(count))
            real = tf.cast(tf.not_equal(targets, PAD), tf.float32)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
            correct = tf.cast(tf.equal(tf.argmax(logits, -1, tf.int32), targets), tf.float32)
            return tf.reduce_sum(losses * real, 1), tf.reduce_sum(correct * real, 1)

        self._batch_sums = batch_sums

    def __call__(self, weights: Weights) -> Evaluation:
        """Returns the sums for the model's named weights."""
        import tensorflow as tf

        constants = {name: tf.constant(value) for name, value in weights.items()}
        joined = self._joined
        sums = [
            [part.numpy() for part in self._batch_sums(constants, tf.constant(joined.rows[i : i + joined.batch]))]
            for i in range(0, len(joined.rows), joined.batch)
        ]
        loss, correct = (np.concatenate(part).astype(np.float64) for part in zip(*sums, strict=True))
        tokens = np.count_nonzero(joined.rows[:, 1:] != PAD, axis=1)
        return Evaluation(joined.by_client(loss), joined.by_client(correct), joined.by_client(tokens).astype(np.int64))
