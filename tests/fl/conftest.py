"""Provides one TFF worker to all tests of federated computations, because a worker takes seconds to start."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl.runtime import local_runtime
from fl.runtime import worker as workers
from fl.runtime.worker import Worker, c_compiler


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with local_runtime(concurrent_calls=2) as running:
        yield running.worker


@pytest.fixture(scope="session")
def blind_shim(tmp_path_factory) -> Path:
    """Builds a shim to which the kernel never says who owns a connection."""
    folder, compiler = tmp_path_factory.mktemp("blind"), c_compiler()
    assert compiler is not None
    source, library = folder / "blind.c", folder / "blind.so"
    text = Path(workers.__file__).with_name("loopback.c").read_text()
    source.write_text(text.replace("NETLINK_SOCK_DIAG)", "31)"))  # no such protocol
    assert source.read_text() != text
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library
