"""Sums one score per client over groups in TFF: only the totals of each group reach the server.

A client's score is the accuracy of the model's most likely next token over all its text. As in the cohort engine, one
TFF client value is a shard of many clients, each of which contributes alone; a shard returns the sum of its clients'
contributions (`fl.fairness.client_sums`), and the server the sum of the shards. The sums are of integers, so that they
depend neither on the division into shards nor on the order of addition.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow_federated as tff
import numpy as np
import tensorflow as tf

from fl.clients import PAD
from fl.fairness.client_sums import STEPS
from fl.local_training import Weights

_ROWS = 64  # sequences computed at once
_LOGITS = 1 << 25  # maximum number of logits at once, unless one sequence has more


def build(model: Any, weights: Weights, length: int, groups: int) -> Callable[..., np.ndarray]:
    """Builds the federated sum; call the result in a TFF runtime (`fl.runtime.local_runtime`).

    Args:
      model: a `models.language_model.LanguageModel`.
      weights: named float32 arrays, the model to evaluate.
      length: number T of targets of a sequence.
      groups: number of groups.

    Returns:
      A function from (the sequences of each client, int32 [n, T+1]; the group of each client, int [clients]; number of
      shards) to the totals of each group, int64 [groups, 3].
    """
    named = sorted(weights.items())
    batch = max(1, min(_ROWS, _LOGITS // (length * model.vocabulary_size)))
    model = model.fit(length)
    weights_type = tff.types.to_type(OrderedDict((name, tff.TensorType(np.float32, v.shape)) for name, v in named))
    shard_type = tff.types.to_type(
        OrderedDict(
            rows=tff.TensorType(np.int32, (None, batch, length + 1)),
            owners=tff.TensorType(np.int32, (None,)),
            codes=tff.TensorType(np.int32, (None,)),
        )
    )

    @tff.tensorflow.computation(weights_type, shard_type)
    def sum_shard(weights: Any, shard: Any) -> Any:
        @tf.function(autograph=False)  # keeps the model's graph out of the computation's top level
        def compute(weights: Any, shard: Any) -> Any:
            def count(rows: Any) -> Any:
                targets = rows[:, 1:]
                logits, _ = model.extend(dict(weights), rows[:, :-1], model.initial_state(batch))
                is_real = tf.not_equal(targets, PAD)
                is_correct = is_real & tf.equal(tf.argmax(logits, -1, tf.int32), targets)
                return tf.stack([tf.math.count_nonzero(each, 1) for each in (is_correct, is_real)], 1)

            counts = tf.map_fn(count, shard["rows"], fn_output_signature=tf.TensorSpec([batch, 2], tf.int64))
            clients = tf.size(shard["codes"])
            counts = tf.reshape(counts, [-1, 2])[: tf.size(shard["owners"])]
            correct, tokens = tf.unstack(tf.math.unsorted_segment_sum(counts, shard["owners"], clients), axis=1)
            return tf.math.unsorted_segment_sum(_contributions(correct, tokens), shard["codes"], groups)

        return compute(weights, shard)

    @tff.federated_computation(tff.FederatedType(weights_type, tff.SERVER), tff.FederatedType(shard_type, tff.CLIENTS))
    def total(weights: Any, shards: Any) -> Any:
        return tff.federated_sum(tff.federated_map(sum_shard, (tff.federated_broadcast(weights), shards)))

    def compute_totals(sequences: Sequence[np.ndarray], codes: np.ndarray, shards: int) -> np.ndarray:
        parts = [range(first, len(sequences), shards) for first in range(min(shards, len(sequences)))]
        values = [_build_shard([sequences[i] for i in part], codes[list(part)], batch, length) for part in parts]
        return np.asarray(total(OrderedDict(named), values), np.int64)

    return compute_totals


def _contributions(correct: Any, tokens: Any) -> Any:
    """Returns `fl.fairness.client_sums.contributions` in TensorFlow, int64 [clients, 3]."""
    score = (2 * STEPS * correct + tokens) // tf.maximum(2 * tokens, 1)
    rest = STEPS - score
    return tf.where(tokens[:, tf.newaxis] > 0, tf.stack([score**2, score * rest, rest**2], 1), 0)


def _build_shard(sequences: list[np.ndarray], codes: np.ndarray, batch: int, length: int) -> Any:
    rows = np.concatenate([np.zeros((0, length + 1), np.int32), *sequences])
    padding = np.full((-len(rows) % batch, length + 1), PAD, np.int32)
    return OrderedDict(
        rows=np.concatenate([rows, padding]).reshape(-1, batch, length + 1),
        owners=np.repeat(np.arange(len(sequences), dtype=np.int32), [len(each) for each in sequences]),
        codes=codes.astype(np.int32),
    )
