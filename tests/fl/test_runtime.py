import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow_federated as tff

from fl import runtime
from fl.runtime import OpenExecutorWarning, Worker, WorkerLostError, is_loopback, listening_addresses, local_runtime


def test_the_worker_listens_on_loopback_only(worker):
    addresses = listening_addresses(worker.pid)
    assert addresses and all(map(is_loopback, addresses))


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("0100007F", True),  # 127.0.0.1
        ("0200007F", True),  # 127.0.0.2
        ("00000000", False),  # 0.0.0.0
        ("0101A8C0", False),  # 192.168.1.1
        ("7F00A8C0", False),  # 192.168.0.127
        ("00000000000000000000000001000000", True),  # ::1
        ("0000000000000000FFFF00000100007F", True),  # ::ffff:127.0.0.1
        ("00000000000000000000000000000000", False),  # ::
        ("0000000000000000FFFF00000101A8C0", False),
    ],
)
def test_addresses_as_the_kernel_prints_them(address, loopback):
    assert is_loopback(address) is loopback


def test_without_a_compiler_the_open_port_is_told_loudly():
    with mock.patch("fl.runtime.shutil.which", return_value=None):
        with pytest.warns(OpenExecutorWarning, match="ANY host without authentication.*install a C compiler"):
            with local_runtime(concurrent_calls=1) as open_worker:
                # The listening test can fail: this worker is the stock one.
                assert not all(map(is_loopback, listening_addresses(open_worker.pid)))


def test_computations_run_and_clients_may_be_none(worker):
    @tff.tensorflow.computation(np.float32)
    def double(x):
        return 2.0 * x

    @tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
    def doubled_sum(values):
        return tff.federated_sum(tff.federated_map(double, values))

    assert doubled_sum([1.0, 2.0]) == 6.0
    assert doubled_sum([]) == 0.0


def test_the_worker_is_ended_and_its_folder_removed():
    started = Worker(concurrent_calls=1, threads_per_call=1)
    folder = started._folder
    assert folder.exists()
    started.stop()
    started.stop()
    assert not folder.exists() and not Path(f"/proc/{started.pid}").exists()


def test_a_dead_worker_is_an_error_that_says_so():
    started = Worker(concurrent_calls=1, threads_per_call=1)
    os.kill(started.pid, signal.SIGKILL)
    started._process.wait()
    with pytest.raises(WorkerLostError, match=f"worker process {started.pid} ended with code -9.*resume the run"):
        started.check_alive()
    started.stop()


def test_tff_missing_is_one_line():
    with mock.patch.object(runtime, "find_spec", return_value=None):
        with pytest.raises(ModuleNotFoundError, match="tensorflow_federated is not installed"):
            runtime.worker_binary()


# `ignored`: started as under nohup or `&`, with Ctrl-C ignored by the parent.
@pytest.mark.parametrize("ending", ["success", "error", "SIGINT", "SIGTERM", "SIGKILL", "ignored"])
def test_no_worker_is_left_behind(ending, tmp_path):
    script = textwrap.dedent(
        """
        import sys, time
        from fl.runtime import Worker
        worker = Worker(1, 1)
        print(worker.pid, flush=True)
        if sys.argv[1] == "error":
            raise RuntimeError("on purpose")
        if sys.argv[1] not in ("success", "ignored"):
            time.sleep(20)
        """
    )
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN if ending == "ignored" else signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", script, ending],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, previous)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    if ending.startswith("SIG"):
        process.send_signal(getattr(signal, ending))
    process.wait(timeout=30)
    process.stdout.close()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    pytest.fail(f"worker {pid} is still there after {ending}")
