"""TFF's local runtime, owned: one worker process, on loopback only, ended on every exit path.

Stock TFF 0.87 starts `worker_binary` by itself: it listens without authentication on all interfaces, is left
behind as an orphan when Python ends abnormally, and its compile step runs Grappler in our process with every pass
aggressive, which can abort the interpreter on hand-written recurrent cells. `local_runtime` does none of the three.
"""

import atexit
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow_federated as tff

_START_TIMEOUT_SECONDS = 120.0
_MESSAGE_BYTES = 2**31 - 1  # the most gRPC allows

# Runs in a fresh interpreter: the kernel ends the worker when we die (even by SIGKILL), and the worker takes the
# default Ctrl-C behaviour even where our parent ignores it (`nohup`, `&`). Then the worker takes its place.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]): os._exit(1)
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C goes to Python, which ends the worker in order
os.execv(sys.argv[2], sys.argv[2:])
"""

log = logging.getLogger(__name__)


class WorkerLostError(OSError):
    """TFF's worker process ended by itself, for instance for want of memory; the run can be resumed."""


class OpenExecutorWarning(UserWarning):
    """TFF's worker listens on every interface without authentication."""


def worker_binary() -> Path:
    """Path of TFF's executor binary. Raises ModuleNotFoundError if TFF is not installed."""
    spec = find_spec("tensorflow_federated")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "tensorflow_federated is not installed: install the locked stack (make demo does), see README"
        )
    return Path(spec.origin).parent / "data" / "worker_binary"


def build_loopback_shim(folder: Path) -> Path | None:
    """Compiles the bind() shim into `folder`; None where there is no C compiler (or it fails)."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    library = folder / "loopback.so"
    source = Path(__file__).with_name("loopback.c")
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"],
        capture_output=True,
        check=False,
    )
    return library if done.returncode == 0 else None


def listening_addresses(pid: int) -> list[str]:
    """Addresses (hexadecimal, as the Linux kernel prints them) on which process `pid` listens for TCP."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(descriptor)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # 0A: LISTEN
                found.append(fields[1].split(":")[0])
    return found


def is_loopback(address: str) -> bool:
    """True if a kernel-printed address is 127.0.0.0/8, ::1 or an IPv4-mapped 127.0.0.0/8."""
    if len(address) == 8:
        return address.endswith("7F")
    return address == "0" * 24 + "01000000" or (address.startswith("0" * 16 + "FFFF0000") and address.endswith("7F"))


class Worker:
    """One running TFF worker process of ours. `stop` is idempotent and also runs at interpreter exit."""

    def __init__(self, concurrent_calls: int, threads_per_call: int) -> None:
        import portpicker

        self._folder = Path(tempfile.mkdtemp(prefix="fedspeak-worker-"))
        shim = build_loopback_shim(self._folder)
        environment = dict(os.environ, TF_NUM_INTRAOP_THREADS=str(threads_per_call), TF_CPP_MIN_LOG_LEVEL="2")
        if shim is not None:
            environment["LD_PRELOAD"] = str(shim)
        self.port: int = portpicker.pick_unused_port()
        binary = worker_binary()
        arguments = [f"--port={self.port}", f"--max_concurrent_computation_calls={concurrent_calls}"]
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(binary), *arguments]
        with (self._folder / "worker.log").open("wb") as output:
            self._process = subprocess.Popen(
                launch, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        atexit.register(self.stop)
        log.info("TFF worker started: pid %d, port %d", self.pid, self.port)

    @property
    def pid(self) -> int:
        return self._process.pid

    def output(self) -> str:
        """The last lines the worker printed."""
        return (self._folder / "worker.log").read_text(errors="replace")[-2000:]

    def check_alive(self) -> None:
        """Raises WorkerLostError if the worker has ended."""
        if (code := self._process.poll()) is not None:
            said = self.output().strip()
            raise WorkerLostError(
                f"TFF's worker process {self.pid} ended with code {code} (memory?): resume the run. {said}".rstrip()
            )

    def stop(self) -> None:
        atexit.unregister(self.stop)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            log.info("TFF worker ended: pid %d", self.pid)
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def local_runtime(concurrent_calls: int = 2, threads_per_call: int = 1) -> Iterator[Worker]:
    """Runs TFF computations of the `with` block on an owned local worker process.

    Args:
      concurrent_calls: client computations that run at once; give it the number of cores.
      threads_per_call: TensorFlow intra-op threads for each of them.

    Yields:
      The `Worker`; its `pid` is for logs and monitoring.

    Raises:
      WorkerLostError: the worker did not start, or ended.
    """
    import grpc
    import tensorflow_federated as tff

    worker = Worker(concurrent_calls, threads_per_call)
    try:
        channel = grpc.insecure_channel(
            f"127.0.0.1:{worker.port}",
            [
                ("grpc.max_receive_message_length", _MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MESSAGE_BYTES),
            ],
        )
        stub = tff.framework.RemoteExecutorGrpcStub(channel)
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while not stub.is_ready:
            worker.check_alive()
            if time.monotonic() > deadline:
                raise WorkerLostError(f"TFF's worker process did not answer in {_START_TIMEOUT_SECONDS:.0f} s")
            time.sleep(0.05)
        _warn_if_open(worker)

        def executor(cardinalities: dict) -> tff.framework.RemoteExecutor:
            cardinalities.setdefault(tff.CLIENTS, 0)
            worker.check_alive()
            remote = tff.framework.RemoteExecutor(stub)
            remote.set_cardinalities(cardinalities)
            return remote

        context = tff.framework.SyncExecutionContext(
            executor_fn=tff.framework.ResourceManagingExecutorFactory(executor),
            compiler_fn=_compile,
            transform_args=tff.tensorflow.transform_args,
            transform_result=tff.tensorflow.transform_result,
        )
        with tff.framework.get_context_stack().install(context):
            try:
                yield worker
            except Exception:
                worker.check_alive()  # a call that failed because its worker is gone says just that
                raise
        channel.close()
    finally:
        worker.stop()


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


def _warn_if_open(worker: Worker) -> None:
    if not all(is_loopback(address) for address in listening_addresses(worker.pid)):
        warnings.warn(
            f"TFF's worker (port {worker.port}) accepts connections from ANY host without authentication, and runs "
            "whatever they send: install a C compiler (gcc) so that it can be bound to loopback, or close the port in "
            "a firewall",
            OpenExecutorWarning,
            stacklevel=4,
        )
