"""Measures each prediction head of a model on text: accuracy, entropy and loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.intervals import format_interval, mean_interval
from experiments.markdown import markdown_table
from fl.clients import PAD
from fl.evaluation import JoinedRows


@dataclass(frozen=True)
class HeadEvaluation:
    """Holds the sums of each head over the targets of each client; h is the number of heads, head 1 included.

    Attributes:
      loss: float64 [h, clients], sum of the losses in nats.
      correct: float64 [h, clients], number of targets that were the head's most likely prediction.
      entropy: float64 [h, clients], sum of the entropies in nats of the head's distributions.
      tokens: int64 [h, clients], number of targets, without padding. Of a row of T + 1 tokens, head i has at most
        T + 1 - i.
    """

    loss: NDArray[np.float64]
    correct: NDArray[np.float64]
    entropy: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def loss_per_token(self) -> float:
        """Returns the sum of all heads' losses in nats, divided by the number of head 1's targets, as in training."""
        return float(self.loss.sum() / self.tokens[0].sum())

    @property
    def h_max(self) -> int:
        """Returns `find_h_max` of the heads' mean entropies, up to the first head that has no target."""
        tokens = self.tokens.sum(axis=1)
        measured = int(np.argmin(tokens > 0)) if (tokens == 0).any() else len(tokens)
        return find_h_max((self.entropy.sum(axis=1)[:measured] / tokens[:measured]).tolist())

    def to_dict(self) -> dict[str, Any]:
        """Returns the results as JSON-able values; each mean has a 95 % bootstrap interval over the clients.

        A head without targets has None in place of its means.
        """
        heads = []
        for head in range(len(self.tokens)):
            tokens = self.tokens[head]
            sums = {"accuracy": self.correct[head], "entropy": self.entropy[head], "loss": self.loss[head]}
            means = {
                name: mean_interval(each, tokens)._asdict() if tokens.any() else None for name, each in sums.items()
            }
            heads.append({"head": head + 1, "tokens": int(tokens.sum()), **means})
        return {"heads": heads, "h_max": self.h_max}


class HeadEvaluator:
    """Evaluates weights of a model with prediction heads on fixed sequences; builds its TensorFlow graphs once."""

    def __init__(self, model: Any, sequences: Sequence[np.ndarray]) -> None:
        """Joins the clients' sequences and builds the graphs.

        Args:
          model: a `models.heads.HeadedLanguageModel`.
          sequences: the sequences of each client, int32 [n, T+1], with padding 0.

        Raises:
          ValueError: no client has a sequence.
        """
        import tensorflow as tf

        none = "no sequence to evaluate the prediction heads on: give more text"
        self._joined = JoinedRows(sequences, model.vocabulary_size, none)
        self._heads = range(1, model.prediction_heads + 1)

        @tf.function(autograph=False)
        def read(weights: Any, tokens: Any) -> Any:
            return model.hidden_states(weights, tokens)[0]

        def measure(head: int, weights: Any, hidden: Any, tokens: Any) -> tuple[Any, Any, Any]:
            targets = tokens[:, head:]
            vectors = model.head_hidden(weights, hidden[:, : targets.shape[1]], head)
            flat = tf.reshape(vectors, [-1, model.base.shapes()["embedding"][1]])
            logits = tf.reshape(model.logits(weights, flat), [*targets.shape, model.vocabulary_size])
            log_probs = tf.nn.log_softmax(logits)
            values = (
                -tf.gather(log_probs, targets, batch_dims=2),
                tf.cast(tf.equal(tf.argmax(logits, -1, tf.int32), targets), tf.float32),
                -tf.reduce_sum(tf.exp(log_probs) * log_probs, -1),
            )
            real = tf.cast(tf.not_equal(targets, PAD), tf.float32)
            loss, correct, entropy = (tf.reduce_sum(value * real, 1) for value in values)
            return loss, correct, entropy

        self._read = read
        self._measures = [tf.function(partial(measure, head), autograph=False) for head in self._heads]

    def __call__(self, weights: Any) -> HeadEvaluation:
        """Returns the sums for the model's named weights. The heads are computed one after another, to save memory."""
        import tensorflow as tf

        constants = {name: tf.constant(value) for name, value in weights.items()}
        joined, parts = self._joined, []
        for begin in range(0, len(joined.rows), joined.batch):
            tokens = tf.constant(joined.rows[begin : begin + joined.batch])
            hidden = self._read(constants, tokens)
            found = [[part.numpy() for part in measure(constants, hidden, tokens)] for measure in self._measures]
            parts.append(np.array(found, np.float64))  # [h, 3, rows]
        sums = np.concatenate(parts, axis=-1)
        counts = np.array([np.count_nonzero(joined.rows[:, head:] != PAD, axis=1) for head in self._heads])
        loss, correct, entropy = (np.array([joined.by_client(row) for row in sums[:, kind]]) for kind in range(3))
        return HeadEvaluation(loss, correct, entropy, np.array([joined.by_client(row) for row in counts], np.int64))


def find_h_max(entropies: Sequence[float]) -> int:
    """Returns the largest k such that the mean entropy of head i is at most that of head i + 1 for all i < k.

    Kim et al. 2024 (https://arxiv.org/abs/2404.09221) find that it is correlated with the block efficiency.

    Args:
      entropies: mean entropy of each head from head 1, in nats; at least one.
    """
    k = 1
    while k < len(entropies) and entropies[k - 1] <= entropies[k]:
        k += 1
    return k


def table(found: dict[str, Any], source: str) -> str:
    """Returns what `HeadEvaluation.to_dict` returned as a Markdown table.

    Args:
      found: the results.
      source: the text that they are of, and what the intervals are over, for the line above the table.
    """
    about = (
        f"Prediction heads on {source}; 95 % bootstrap intervals. h_max = {found['h_max']}: up to this head the mean "
        "entropy does not fall."
    )
    cells = []
    for row in found["heads"]:
        means = ["" if row[name] is None else format_interval(row[name], 3) for name in ("accuracy", "entropy", "loss")]
        cells.append([row["head"], f"{row['tokens']:,}", *means])
    header = ("head", "tokens", "accuracy", "mean entropy (nats)", "nats per token")
    return "\n".join([about, "", *markdown_table(header, cells), ""])
