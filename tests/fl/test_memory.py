import os
from pathlib import Path

import tensorflow_federated as tff
import numpy as np
import pytest

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
@pytest.mark.parametrize("clients_at_once", [1, 8])
def test_run_rounds_neither_leaks_memory_nor_traces_again(worker, tmp_path, clients_at_once, monkeypatch):
    """Runs the tiny preset for 300 rounds of Poisson cohorts; the memory must not grow from round 50 on."""
    traced: list[str] = []
    compiled = tff.backends.native.transform_to_native_form

    def counted(computation):
        traced.append("compiled")
        return compiled(computation)

    monkeypatch.setattr(tff.backends.native, "transform_to_native_form", counted)
    model = preset("tiny", 256)

    def loss_sum(*arguments):
        traced.append("loss")
        return model.loss_sum(*arguments)

    local = LocalSGD(0.5, 4, 1, 8, 8)
    plan = PrivacyPlan(Poisson(0.4), 120, 300, 1.0, FixedClip(0.5))
    generator = np.random.default_rng(0)
    data = [generator.integers(1, 256, (1 + i % 9, 9)).astype(np.int32) for i in range(plan.population)]
    engine = cohort.build(
        LanguageModelling(model.token_losses, 8, stacks=True, loss_sum=loss_sum),
        model.init(0),
        local,
        DPMean(plan),
        tff.learning.optimizers.build_sgdm(1.0, 0.9),
        clients_at_once=clients_at_once,
    )
    clients = [f"client-{i}" for i in range(plan.population)]
    federation = Federation(*engine[::3], plan, RunKeys.fixed(1), clients, data.__getitem__, local, "test")
    memory, traces = [], []
    for _ in run_rounds(federation, RoundLog(tmp_path), lambda done, weights: ({}, {})):
        memory.append(resident_megabytes(os.getpid()) + resident_megabytes(worker.pid))
        traces.append(len(traced))
    slope = np.polyfit(np.arange(50, 300), memory[50:], 1)[0]
    print(f"memory {memory[50]:.0f} MB at round 50, {memory[-1]:.0f} MB at 300, slope {slope:.4f} MB a round")
    assert slope < 0.1
    # The computation of the first round serves all later ones, whatever the sizes of their cohorts.
    assert {"loss", "compiled"} == set(traced) and traces == traces[:1] * 300
