"""Measures the memory of rounds with correlated noise, in a process of its own, for `fedspeak reproduce dp-ftrl`.

One client trains, so that what is measured is the model, the noise, its history and the server's step.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_ROUNDS = 3
_TIMEOUT = 900.0


def measure_memory(name: str, weights: int, log: Path) -> int | None:
    """Returns the largest memory in bytes of fedspeak's and TFF's process together over some rounds.

    It is None if the rounds fail, for instance because the history is too large for one message between the two.

    Args:
      name: name of a mechanism of `dp_ftrl_errors.build_mechanisms`.
      weights: number of the model's weights.
      log: file for what the process prints.
    """
    from experiments.bench.processes import watch

    command = [sys.executable, "-m", __name__, name, str(weights)]
    watched = watch(command, folder=Path.cwd(), environment=dict(os.environ), log=log, timeout=_TIMEOUT)
    return watched.peak_memory if watched.return_code == 0 else None


def run_rounds(name: str, weights: int) -> None:
    """Runs rounds of one client that moves one of the weights."""
    import tensorflow_federated as tff
    import numpy as np

    from experiments.reproduce.dp_ftrl_errors import LONG, build_mechanisms
    from fl.audit.training_run import CanaryTask
    from fl.correlated_mean import CorrelatedDPMean
    from fl.engines import cohort
    from fl.local_training import LocalSGD
    from fl.runtime import local_runtime
    from privacy import Cyclic, FixedClip, PrivacyPlan

    rounds, limits = LONG
    clients = 10 * limits.min_separation
    plan = PrivacyPlan(
        Cyclic(limits.min_separation), clients, rounds, 1.0, FixedClip(1.0), mechanism=build_mechanisms(LONG)[name]
    )
    local = LocalSGD(learning_rate=1.0, batch_size=1, sequence_length=1, max_sequences=1)
    engine = cohort.build(
        CanaryTask(1.0),
        {"canaries": np.zeros(weights, np.float32)},
        local,
        CorrelatedDPMean(plan),
        tff.learning.optimizers.build_sgdm(1.0, 0.9),
    )
    batches: Any = [local.batches(np.zeros(1, np.int32), 0, 0)]
    with local_runtime():
        state = engine.process.initialize()
        for number in range(_ROUNDS):
            state, _ = engine.process.next(state, engine.client_values(batches), np.array([0, number], np.int64))


if __name__ == "__main__":
    run_rounds(sys.argv[1], int(sys.argv[2]))
