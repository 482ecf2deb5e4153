import os
import signal
from pathlib import Path

import tensorflow_federated as tff
import numpy as np
import pytest
import tensorflow as tf

from fl.aggregation import DPMean
from fl.engines import cohort
from fl.local_training import LanguageModelling, LocalSGD
from fl.runtime import local_runtime
from fl.runtime.owned_process import WorkerLostError
from privacy.plan import FixedClip, PrivacyPlan
from privacy.sampling import Poisson
from tests.fl import bigram


@tff.tensorflow.computation(np.float32)
def double(x):
    return 2.0 * x


@tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
def doubled_sum(values):
    return tff.federated_sum(tff.federated_map(double, values))


def test_local_runtime_computes_with_and_without_clients(worker):
    assert doubled_sum([1.0, 2.0]) == 6.0
    assert doubled_sum([]) == 0.0


def test_recycle_starts_new_process_with_same_results():
    # The last bits of sums of such numbers depend on the order of addition.
    values = list(np.random.default_rng(0).lognormal(sigma=9, size=50).astype(np.float32))
    with local_runtime() as runtime:
        results, pids = [doubled_sum(values)], [runtime.worker.pid]
        for _ in range(2):
            runtime.recycle()
            assert not Path(f"/proc/{pids[-1]}").exists()
            results += [doubled_sum(values), doubled_sum(values)]
            pids.append(runtime.worker.pid)
    assert len(set(pids)) == 3 and not Path(f"/proc/{pids[-1]}").exists()
    assert {result.tobytes() for result in results} == {results[0].tobytes()}


def test_training_with_recycled_worker_is_bit_equal():
    plan = PrivacyPlan(Poisson(0.5), 12, 5, 1.0, FixedClip(0.7))
    local = LocalSGD(learning_rate=0.8, batch_size=3, epochs=2, sequence_length=5, max_sequences=8)
    task, optimizer = LanguageModelling(bigram.token_losses, 5), tff.learning.optimizers.build_sgdm(0.9, 0.5)
    engine = cohort.build(task, bigram.initial_weights(), local, DPMean(plan), optimizer)
    generator = np.random.default_rng(0)
    clients = [local.batches(bigram.random_sequences(generator, rows, 5), 0, rows) for rows in (4, 1, 7)]

    def train(after_round) -> list[bytes]:
        state = engine.process.initialize()
        for number in range(3):
            state, _ = engine.process.next(state, engine.client_values(clients), np.array([1, number]))
            after_round()
        return [np.asarray(part).tobytes() for part in tf.nest.flatten(state)]

    with local_runtime() as runtime:
        assert train(lambda: None) == train(runtime.recycle)


def test_local_runtime_raises_worker_lost_when_worker_dies():
    with pytest.raises(WorkerLostError, match="TFF's worker process .* ended with code -9.*resume the run"):
        with local_runtime(concurrent_calls=1) as runtime:
            assert doubled_sum([1.0]) == 2.0
            os.kill(runtime.worker.pid, signal.SIGKILL)
            runtime.worker._process.wait()
            doubled_sum([1.0])
