import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow_federated as tff

from fl.aggregation import DPMean
from fl.engines import cohort
from fl.local_training import LanguageModelling, LocalSGD
from fl.rounds import Federation, RoundLog, run_rounds
from models.presets import preset
from privacy.keys import RunKeys
from privacy.plan import FixedClip, PrivacyPlan
from privacy.sampling import Poisson


def resident_megabytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
@pytest.mark.parametrize("users_at_once", [1, 8])
def test_a_long_run_neither_leaks_nor_traces_again(worker, tmp_path, users_at_once):
    """The tiny preset, 300 rounds of Poisson cohorts of changing size; memory of the process tree from round 50 on."""
    model = preset("tiny", 256)
    local = LocalSGD(0.5, 4, 1, 8, 8)
    plan = PrivacyPlan(Poisson(0.4), 120, 300, 1.0, FixedClip(0.5))
    generator = np.random.default_rng(0)
    data = [generator.integers(1, 256, (1 + i % 9, 9)).astype(np.int32) for i in range(plan.population)]
    traced = 0

    def token_losses(weights, tokens):
        nonlocal traced
        traced += 1
        return model.token_losses(weights, tokens)

    engine = cohort.build(
        LanguageModelling(token_losses, 8),
        model.init(0),
        local,
        DPMean(plan),
        tff.learning.optimizers.build_sgdm(1.0, 0.9),
        users_at_once=users_at_once,
    )
    traced_at_first = traced
    clients = [f"client-{i}" for i in range(plan.population)]
    federation = Federation(*engine[::3], plan, RunKeys.fixed(1), clients, data.__getitem__, local, "test")
    memory = [
        resident_megabytes(os.getpid()) + resident_megabytes(worker.pid)
        for _ in run_rounds(federation, RoundLog(tmp_path), lambda done, weights: ({}, {}))
    ]
    slope = np.polyfit(np.arange(50, 300), memory[50:], 1)[0]
    print(f"memory {memory[50]:.0f} MB at round 50, {memory[-1]:.0f} MB at 300, slope {slope:.4f} MB a round")
    assert slope < 0.1
    assert traced == traced_at_first > 0
