import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow_federated as tff

from fl.aggregation import DPMean
from fl.engines import cohort
from fl.local_training import LanguageModelling, LocalSGD
from fl.rounds import Federation, RoundLog, run_rounds
from models.recurrent_lm import RecurrentLanguageModel
from privacy.keys import RunKeys
from privacy.plan import FixedClip, PrivacyPlan
from privacy.sampling import Poisson


def resident_megabytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
def test_memory_of_the_process_tree_grows_by_less_than_a_tenth_of_a_megabyte_a_round(worker, tmp_path):
    """Poisson cohorts of changing size, rounds 50 to 250."""
    model = RecurrentLanguageModel("si-cifg", 256, 16, 32)
    local = LocalSGD(0.5, 4, 1, 8, 8)
    plan = PrivacyPlan(Poisson(0.4), 120, 250, 1.0, FixedClip(0.5))
    generator = np.random.default_rng(0)
    data = [generator.integers(1, 256, (1 + i % 9, 9)).astype(np.int32) for i in range(plan.population)]
    engine = cohort.build(
        LanguageModelling(model.token_losses, 8),
        model.init(0),
        local,
        DPMean(plan),
        tff.learning.optimizers.build_sgdm(1.0, 0.9),
    )
    clients = [f"client-{i}" for i in range(plan.population)]
    federation = Federation(*engine[::3], plan, RunKeys.fixed(1), clients, data.__getitem__, local, "test")
    memory = [
        resident_megabytes(os.getpid()) + resident_megabytes(worker.pid)
        for _ in run_rounds(federation, RoundLog(tmp_path), lambda done, weights: ({}, {}))
    ]
    slope = np.polyfit(np.arange(50, 250), memory[50:], 1)[0]
    print(f"memory {memory[50]:.0f} MB at round 50, {memory[-1]:.0f} MB at 250, slope {slope:.4f} MB a round")
    assert slope < 0.1
