import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tensorflow_federated as tff

from fl.owned_process import WorkerLostError
from fl.runtime import local_runtime


@tff.tensorflow.computation(np.float32)
def double(x):
    return 2.0 * x


@tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
def doubled_sum(values):
    return tff.federated_sum(tff.federated_map(double, values))


def test_computations_run_and_clients_may_be_none(worker):
    assert doubled_sum([1.0, 2.0]) == 6.0
    assert doubled_sum([]) == 0.0


def test_a_recycled_worker_is_another_process_and_computes_the_same():
    # Sums of such numbers depend on their order in the last bits.
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


def test_a_worker_that_dies_is_an_error_that_says_so():
    with pytest.raises(WorkerLostError, match="TFF's worker process .* ended with code -9.*resume the run"):
        with local_runtime(concurrent_calls=1) as runtime:
            assert doubled_sum([1.0]) == 2.0
            os.kill(runtime.worker.pid, signal.SIGKILL)
            runtime.worker._process.wait()
            doubled_sum([1.0])
