"""TFF's local runtime, owned: computations run on one worker process of ours (`fl.runtime.worker`).

TFF's default context also compiles with Grappler in our process, every pass aggressive, which can abort the
interpreter on hand-written recurrent cells. Ours does not.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fl.runtime.worker import Worker, warn_of_open

if TYPE_CHECKING:
    import tensorflow_federated as tff
    import grpc

_MESSAGE_BYTES = 2**31 - 1  # the most gRPC allows


def open_channel(target: str) -> "grpc.Channel":
    """A gRPC channel to host:port or unix:path with a connection of its own, that it shares with no other channel."""
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
    """TFF's stub on a channel that may be closed at any time; `check` runs before each call and may raise."""
    import tensorflow_federated as tff

    return tff.framework.RemoteExecutorGrpcStub(_Unwatched(channel, check))


class _Unwatched:
    """A channel whose state nobody watches: the thread with which TFF's stub does so trips over a closed channel."""

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
        """Forgets it."""


class Connection:
    """A TFF context that computes on the worker behind a stub.

    Attributes:
      context: to be installed on TFF's context stack.
      stub: of `tff.framework.RemoteExecutorGrpcStub`'s methods; may be set anew after `disconnect`.
    """

    def __init__(self, stub: Any, check: Callable[[], None]) -> None:
        """`check` raises if the worker is known to be gone."""
        import tensorflow_federated as tff

        self.stub = stub
        self._check = check
        self._cardinalities: list[dict[Any, int]] = []
        self._factory = tff.framework.ResourceManagingExecutorFactory(self._executor)
        self.context = tff.framework.SyncExecutionContext(
            executor_fn=self._factory,
            compiler_fn=_compile,
            transform_args=tff.tensorflow.transform_args,
            transform_result=tff.tensorflow.transform_result,
        )

    def _executor(self, cardinalities: dict[Any, int]) -> "tff.framework.RemoteExecutor":
        import tensorflow_federated as tff

        from fl.runtime.remote_executor import RemoteExecutor

        self._check()
        if cardinalities not in self._cardinalities:
            self._cardinalities.append(dict(cardinalities))
        cardinalities.setdefault(tff.CLIENTS, 0)
        # Values are freed one by one: in TFF's batches of 20 the worker holds those of the last rounds all at once.
        remote = RemoteExecutor(self.stub, dispose_batch_size=1)
        remote.set_cardinalities(cardinalities)
        return remote

    def disconnect(self) -> None:
        """Frees all that the worker holds for us."""
        for cardinalities in self._cardinalities:
            self._factory.clean_up_executor(cardinalities)
        self._cardinalities.clear()


class LocalRuntime:
    """A worker process on this machine and the TFF context that uses it.

    Attributes:
      worker: its `pid` and `port` are for logs and monitoring.
      connection: its `context` is installed by `local_runtime`.
    """

    def __init__(self, concurrent_calls: int, threads_per_call: int) -> None:
        self._settings = concurrent_calls, threads_per_call
        self._start()
        self.connection = Connection(self._stub(), lambda: self.worker.check_alive())

    def recycle(self) -> None:
        """Replaces the worker by a new process, between two computations. Results are the same to the bit.

        What a worker's memory has grown by is given back. Computations are traced anew. Main thread only.
        """
        self.connection.disconnect()
        self.stop()
        self._start()
        self.connection.stub = self._stub()

    def stop(self) -> None:
        """Ends the worker."""
        self._channel.close()
        self.worker.stop()

    def _stub(self) -> Any:
        # The port of a worker that died is free for any account: nothing is sent there any more.
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
    """Runs TFF computations of the `with` block on an owned local worker process.

    Args:
      concurrent_calls: client computations that run at once; give it the number of cores.
      threads_per_call: TensorFlow intra-op threads for each of them.

    Raises:
      WorkerLostError: the worker did not start, or ended.
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
                runtime.worker.check_alive()  # a call that failed because its worker is gone says just that
                raise
    finally:
        runtime.stop()


def _compile(computation: "tff.framework.ConcreteComputation") -> object:
    """TFF's own compiler (`desugar_and_transform_to_native`) without its Grappler pass, see the module's docstring."""
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
