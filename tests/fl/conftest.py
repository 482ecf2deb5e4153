"""One TFF worker for all tests of federated computations: it takes seconds to start."""

from collections.abc import Iterator

import pytest

from fl.runtime import local_runtime
from fl.worker import Worker


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with local_runtime(concurrent_calls=2) as running:
        yield running.worker
