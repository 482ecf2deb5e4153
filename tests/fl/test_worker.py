from unittest import mock

import portpicker
import pytest

from fl import worker as workers
from fl.owned_process import is_loopback, listening_addresses
from fl.runtime import local_runtime
from fl.worker import OpenExecutorWarning, Worker


def test_the_worker_listens_on_loopback_only(worker):
    addresses = listening_addresses(worker.pid)
    assert addresses and all(map(is_loopback, addresses))


def test_without_a_compiler_the_open_port_is_told_loudly():
    with mock.patch("fl.worker.shutil.which", return_value=None):
        with pytest.warns(OpenExecutorWarning, match="ANY host without authentication.*install a C compiler"):
            with local_runtime(concurrent_calls=1) as runtime:
                # The listening test can fail: this worker is the stock one.
                assert not all(map(is_loopback, listening_addresses(runtime.worker.pid)))


def test_it_listens_where_it_is_told_and_nobody_shares_its_port():
    port = portpicker.pick_unused_port()
    first = Worker(concurrent_calls=1, threads_per_call=1, port=port)
    try:
        first.wait_until_it_listens()
        assert first.port == port and not first.is_open
        with pytest.raises(OSError, match=f"port {port} cannot be had"):
            Worker(concurrent_calls=1, threads_per_call=1, port=port)
    finally:
        first.stop()


def test_tff_missing_is_one_line():
    with mock.patch.object(workers, "find_spec", return_value=None):
        with pytest.raises(ModuleNotFoundError, match="tensorflow_federated is not installed"):
            workers.worker_binary()
