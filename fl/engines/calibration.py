"""Measures whether this machine trains a shard's clients faster one after another or several at a time, stacked.

It uses synthetic batches, so that no client's data are touched before the first round is in the ledger.
"""

import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from fl.engines.averaging import Engine
from fl.local_training import Batches, LocalSGD, Task, Weights
from privacy import checks

CANDIDATES = (1, 8)
"""Values of `clients_at_once` that are compared."""
LARGEST_STACKED = 2_000_000
"""Maximum number of weights with which stacking is tried: larger models spend their time in matrix products, and
stacking saves only the dispatch of operations."""

_STEPS = 2


def calibrate(
    build: Callable[[int], Engine], task: Task, initial_weights: Weights, local: LocalSGD, shards: int, cohort: float
) -> dict[int, float]:
    """Measures how long the same clients take with each candidate of `clients_at_once`; needs a TFF runtime.

    Args:
      build: function from `clients_at_once` to the engine.
      task: the learning task; all inputs are 1, a token that every vocabulary has.
      initial_weights: the model's named float32 arrays.
      local: settings of local training.
      shards: number of shards of the engine.
      cohort: number of clients in a usual round, > 0. That many are trained, but at most one full group in each shard.

    Returns:
      Seconds for each candidate: the shortest of three timings, after a first call that is not counted. {1: 0.0} if
      there is nothing to choose, because the task does not stack or the model is large.

    Raises:
      ValueError: `cohort` is not a positive number.
    """
    checks.positive("cohort", cohort, "give the number of clients in a usual round")
    size = sum(int(np.size(value)) for value in initial_weights.values())
    if not task.stacks or size > LARGEST_STACKED:
        return {1: 0.0}
    examples = tf.nest.map_structure(
        lambda spec: np.ones((_STEPS, local.batch_size, *spec.shape), spec.dtype.as_numpy_dtype), task.example
    )
    clients = [Batches(examples, np.full(_STEPS, local.batch_size, np.int32))] * min(
        max(round(cohort), 1), shards * max(CANDIDATES)
    )
    seconds = {}
    for clients_at_once in CANDIDATES:
        engine = build(clients_at_once)
        state, values = engine.process.initialize(), engine.client_values(clients)
        timings = []
        for _ in range(4):
            begin = time.perf_counter()
            engine.client_sum(state["weights"], state["aggregator"], values)
            timings.append(time.perf_counter() - begin)
        seconds[clients_at_once] = min(timings[1:])
    return seconds
