import os
import signal
import socket
import time
from pathlib import Path
from unittest import mock

import tensorflow_federated as tff
import portpicker
import pytest
from tensorflow_federated.proto.v0 import computation_pb2, executor_pb2

from fl.runtime import local_runtime
from fl.runtime import worker as workers
from fl.runtime.owned_process import WorkerLostError, is_loopback, listening_addresses
from fl.runtime.worker import OpenExecutorWarning, Worker
from tests.fl.runtime.strangers import as_nobody, assert_refuses_nobody

# Reads and writes a file through TFF's executor, first as the account that runs the worker, then as another one.
_THEFT = """
import sys
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from fl.runtime.hosts import _Stub
from fl.runtime.owned_process import WorkerLostError
from fl.runtime.local import Connection, open_channel, stub

port, folder = sys.argv[1:]

@tff.tensorflow.computation
def read():
    return tf.io.read_file(folder + "/key")

@tff.tensorflow.computation(np.str_)
def write(name):
    with tf.control_dependencies([tf.io.write_file(folder + "/" + name, "owned")]):
        return tf.constant(0)

def attack(name):
    connection = Connection(_Stub(stub(open_channel("127.0.0.1:" + port))), lambda: None)
    with tff.framework.get_context_stack().install(connection.context):
        for steal in (read, lambda: write(name)):
            try:
                print(steal())
            except WorkerLostError as error:
                print("refused" if "UNAVAILABLE" in str(error) else error)

attack("by-owner")
become_nobody()
try:
    open(folder + "/key")
except PermissionError:
    print("another account")
attack("by-nobody")
"""


def test_worker_listens_on_loopback_only(worker):
    addresses = listening_addresses(worker.pid)
    assert addresses and all(map(is_loopback, addresses))


def test_worker_refuses_file_access_of_other_account(worker, tmp_path):
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_text("secret")
    printed = as_nobody(_THEFT, str(worker.port), str(tmp_path)).splitlines()
    assert printed == ["b'secret'", "0", "another account", "refused", "refused"]
    assert (tmp_path / "by-owner").exists() and not (tmp_path / "by-nobody").exists()


def test_worker_survives_flood_of_refused_connections(worker):
    def open_files() -> int:
        return len(list(Path(f"/proc/{worker.pid}/fd").iterdir()))

    before = open_files()
    assert_refuses_nobody(worker.port, times=500)
    with socket.create_connection(("127.0.0.1", worker.port), timeout=300) as connection:
        assert connection.recv(1)
    deadline = time.monotonic() + 300
    while open_files() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_local_runtime_sends_nothing_to_port_of_dead_worker():
    clients = executor_pb2.Cardinality(placement=computation_pb2.Placement(uri=tff.CLIENTS.uri), cardinality=0)
    request = executor_pb2.GetExecutorRequest(cardinalities=[clients])
    with local_runtime(concurrent_calls=1) as runtime:
        runtime.connection.stub.get_executor(request)
        os.kill(runtime.worker.pid, signal.SIGKILL)
        runtime.worker._process.wait()
        with socket.create_server(("127.0.0.1", runtime.worker.port)) as impostor:
            with pytest.raises(WorkerLostError, match="ended with code -9"):
                runtime.connection.stub.get_executor(request)
            impostor.setblocking(False)
            with pytest.raises(BlockingIOError):
                impostor.accept()


def test_local_runtime_reports_worker_that_refuses_own_account(blind_shim):
    with mock.patch("fl.runtime.worker.build_loopback_shim", return_value=blind_shim):
        with pytest.raises(WorkerLostError, match="the kernel does not say who owns a connection"):
            with local_runtime(concurrent_calls=1):
                pass


def test_local_runtime_warns_of_open_worker_without_compiler():
    with mock.patch("fl.runtime.worker.shutil.which", return_value=None):
        with pytest.warns(OpenExecutorWarning, match="ANY host without authentication.*install a C compiler"):
            with local_runtime(concurrent_calls=1) as runtime:
                # This worker is the stock one, so the check of test_worker_listens_on_loopback_only would fail.
                assert not all(map(is_loopback, listening_addresses(runtime.worker.pid)))


def test_worker_listens_on_given_port_and_does_not_share_it():
    port = portpicker.pick_unused_port()
    first = Worker(concurrent_calls=1, threads_per_call=1, port=port)
    try:
        first.wait_until_it_listens()
        assert first.port == port and not first.is_open
        with pytest.raises(OSError, match=f"port {port} cannot be used"):
            Worker(concurrent_calls=1, threads_per_call=1, port=port)
    finally:
        first.stop()


def test_worker_binary_raises_without_tff():
    with mock.patch.object(workers, "find_spec", return_value=None):
        with pytest.raises(ModuleNotFoundError, match="tensorflow_federated is not installed"):
            workers.worker_binary()
