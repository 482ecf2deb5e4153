"""Runs TFF computations on a worker process that fedspeak itself starts and ends (`fl.runtime.worker`).

TFF's default context also runs Grappler in the Python process, with every pass set to aggressive, which can abort the
interpreter on hand-written recurrent cells. The context here does not.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fl.runtime.worker import Worker, warn_of_open

if TYPE_CHECKING:
    import tensorflow_federated as tff
    import grpc

_MESSAGE_BYTES = 2**31 - 1  # the maximum that gRPC allows


def open_channel(target: str) -> "grpc.Channel":
    """Opens a gRPC channel to host:port or unix:path, over a connection that no other channel shares."""
    import grpc

    return grpc.insecure_channel(
        target,
        [
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


def stub(channel: "grpc.Channel", check: Callable[[], None] = lambda: None) -> Any:
    """Returns TFF's stub for a channel that may be closed at any time; `check` runs before each call and may raise."""
    import tensorflow_federated as tff

    return tff.framework.RemoteExecutorGrpcStub(_Unwatched(channel, check))


class _Unwatched:
    """Wraps a channel and ignores subscriptions to its state, whose thread would fail once the channel is closed."""

    def __init__(self, channel: "grpc.Channel", check: Callable[[], None]) -> None:
        self._channel = channel
        self._check = check

    def unary_unary(self, *arguments: Any, **options: Any) -> Callable[[Any], Any]:
        method = self._channel.unary_unary(*arguments, **options)

        def call(request: Any) -> Any:
            self._check()
            return method(request)

        return call

    def subscribe(self, callback: Callable[..., None], try_to_connect: bool) -> None:
        """Ignores the subscription."""


class Connection:
    """Provides a TFF context that computes on the worker behind a stub.

    Attributes:
      context: the context, which the caller installs on TFF's context stack.
      stub: an object with the methods of `tff.framework.RemoteExecutorGrpcStub`; it may be replaced after `disconnect`.
    """

    def __init__(self, stub: Any, check: Callable[[], None]) -> None:
        """Builds the context; `check` must raise if the worker is known to be gone."""
        import tensorflow_federated as tff

        self.stub = stub
        self._check = check
        self._cardinalities: list[dict[Any, int]] = []
        self._factory = tff.framework.ResourceManagingExecutorFactory(self._build_executor)
        self.context = tff.framework.SyncExecutionContext(
            executor_fn=self._factory,
            compiler_fn=_compile,
            transform_args=tff.tensorflow.transform_args,
            transform_result=tff.tensorflow.transform_result,
        )

    def _build_executor(self, cardinalities: dict[Any, int]) -> "tff.framework.RemoteExecutor":
        import tensorflow_federated as tff

        from fl.runtime.remote_executor import RemoteExecutor

        self._check()
        if cardinalities not in self._cardinalities:
            self._cardinalities.append(dict(cardinalities))
        cardinalities.setdefault(tff.CLIENTS, 0)
        # Values are freed one by one: with TFF's batches of 20 the worker would hold the values of several rounds.
        remote = RemoteExecutor(self.stub, dispose_batch_size=1)
        remote.set_cardinalities(cardinalities)
        return remote

    def disconnect(self) -> None:
        """Frees everything that the worker holds for this connection."""
        for cardinalities in self._cardinalities:
            self._factory.clean_up_executor(cardinalities)
        self._cardinalities.clear()


class LocalRuntime:
    """Holds a worker process on this machine and the TFF context that uses it.

    Attributes:
      worker: the process; its `pid` and `port` are useful for logs and monitoring.
      connection: the connection to it, whose `context` is installed by `local_runtime`.
    """

    def __init__(self, concurrent_calls: int, threads_per_call: int) -> None:
        self._settings = concurrent_calls, threads_per_call
        self._start()
        self.connection = Connection(self._build_stub(), lambda: self.worker.check_alive())

    def recycle(self) -> None:
        """Replaces the worker by a new process, which frees the memory by which the old one has grown.

        Call it from the main thread, between two computations. Results stay the same to the bit. The new worker traces
        the computations anew.
        """
        self.connection.disconnect()
        self.stop()
        self._start()
        self.connection.stub = self._build_stub()

    def stop(self) -> None:
        """Closes the connection and ends the worker."""
        self._channel.close()
        self.worker.stop()

    def _build_stub(self) -> Any:
        # Once a worker has died, any account may take its port: the check stops anything from being sent there.
        return stub(self._channel, self.worker.check_alive)

    def _start(self) -> None:
        self.worker = Worker(*self._settings)
        try:
            self.worker.wait_until_it_listens()
        except BaseException:
            self.worker.stop()
            raise
        self._channel = open_channel(f"127.0.0.1:{self.worker.port}")


@contextlib.contextmanager
def local_runtime(concurrent_calls: int = 2, threads_per_call: int = 1) -> Iterator[LocalRuntime]:
    """Runs the TFF computations of the `with` block on a worker process that lives as long as the block.

    Args:
      concurrent_calls: number of client computations that run at the same time; use the number of cores.
      threads_per_call: number of TensorFlow intra-op threads for each of them.

    Yields:
      The runtime, with its worker process.

    Raises:
      WorkerLostError: the worker did not start, or it ended.
    """
    import tensorflow_federated as tff

    runtime = LocalRuntime(concurrent_calls, threads_per_call)
    try:
        if runtime.worker.is_open:
            warn_of_open(runtime.worker, "install a C compiler (gcc) so that it can be bound to loopback")
        with tff.framework.get_context_stack().install(runtime.connection.context):
            try:
                yield runtime
            except Exception:
                runtime.worker.check_alive()  # if the call failed because the worker is gone, say so instead
                raise
    finally:
        runtime.stop()


def _compile(computation: "tff.framework.ConcreteComputation") -> object:
    """Compiles as TFF's `desugar_and_transform_to_native` does, but without Grappler; see the module's docstring."""
    import tensorflow_federated as tff
    from tensorflow_federated.python.core.environments.tensorflow_backend import (
        tensorflow_tree_transformations,
    )
    from tensorflow_federated.python.core.impl.computation import computation_impl

    desugared, _ = tensorflow_tree_transformations.replace_intrinsics_with_bodies(computation.to_building_block())
    concrete = computation_impl.ConcreteComputation(
        computation_proto=desugared.proto, context_stack=tff.framework.get_context_stack()
    )
    return tff.backends.native.transform_to_native_form(concrete)
