"""What every test run shares: quiet, single-purpose TensorFlow and reproducible property tests."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from experiments import interrupt, machine
from fl.runtime.kernels import prefer_onednn

# Set before any test imports TensorFlow; worker processes that a test starts inherit them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("MPLBACKEND", "Agg")
# Test processes run side by side, one a core.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
prefer_onednn()

# A shell starts what runs in the background with Ctrl-C ignored, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every machine, and no time limit on one: the first may trace a TensorFlow function.
settings.register_profile("house", derandomize=True, deadline=None, database=None)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _signals_are_as_before() -> Iterator[None]:
    """Restores what a command that ran in this process installed: the next Ctrl-C of a test is not meant for it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    interrupt._stop_requested.clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    """Set up first, so torn down last: a worker of ours that still runs then was forgotten."""
    yield
    left = [worker.pid for worker in machine.workers() if worker.parent_pid == os.getpid()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "a test left TFF's worker behind: run what computes with TFF in fl.runtime.local_runtime"
