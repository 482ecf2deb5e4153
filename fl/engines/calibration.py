"""Which way of training a shard's clients is the faster here: one after another, or several stacked.

Measured on made-up batches, so that no client's data are touched before the first round is in the ledger.
"""

import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from fl.engines.averaging import Engine
from fl.local_training import Batches, LocalSGD, Task, Weights
from privacy import checks

CANDIDATES = (1, 8)
LARGEST_STACKED = 2_000_000
"""Weights of a model from which on stacking is not tried: products, not dispatch, take its time."""

_STEPS = 2


def calibrate(
    build: Callable[[int], Engine], task: Task, initial_weights: Weights, local: LocalSGD, shards: int, cohort: float
) -> dict[int, float]:
    """Seconds for the same clients with each number of users at once; needs a TFF runtime.

    Args:
      build: from `clients_at_once` to the engine.
      task: what is learned; integer inputs are drawn as 1 (every vocabulary has it).
      initial_weights: of the model.
      local: what a client does.
      shards: of the engine.
      cohort: clients of a usual round. So many are trained, but at most one full group in each shard.

    Returns:
      The least of three timings for each candidate, after one call that is not timed. Only 1, with 0 seconds, where
      there is nothing to choose: the task does not stack, or the model is large.

    Raises:
      ValueError: `cohort` is no positive number.
    """
    checks.positive("cohort", cohort, "give the clients of a usual round")
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
