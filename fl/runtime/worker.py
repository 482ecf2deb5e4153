"""Starts TFF's worker process on loopback, open to this account only, and ends it however Python ends.

Stock TFF 0.87 starts `worker_binary` by itself. That process listens without authentication on all interfaces, and it
is left behind as an orphan if Python ends abnormally. Here a library that is preloaded into the worker (the *shim*,
`loopback.c`) restricts it to loopback and to connections of this account.
"""

import logging
import os
import shutil
import socket
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

from fl.runtime.kernels import prefer_onednn
from fl.runtime.owned_process import OwnedProcess, WorkerLostError, is_loopback, listening_addresses, require_free_port

_ANSWER_SECONDS = 120.0
# This script runs with the shim. It binds all addresses and connects to itself twice. The first connection is closed
# for sending, so that the shim must refuse it. The script prints the bound address, and whether the accepted connection
# is the second one.
_PROBE = """
import socket
server = socket.create_server(("0.0.0.0", 0))
place = ("127.0.0.1", server.getsockname()[1])
closed = socket.create_connection(place)
closed.shutdown(socket.SHUT_WR)
client = socket.create_connection(place)
server.setblocking(False)
connection, peer = server.accept()
print(server.getsockname()[0], peer == client.getsockname())
"""

log = logging.getLogger(__name__)


class OpenExecutorWarning(UserWarning):
    """Warns that TFF's worker listens on every interface without authentication."""


def worker_binary() -> Path:
    """Returns the path of TFF's worker binary; raises ModuleNotFoundError if TFF is not installed."""
    spec = find_spec("tensorflow_federated")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "tensorflow_federated is not installed: install the locked stack (make demo does), see README"
        )
    return Path(spec.origin).parent / "data" / "worker_binary"


def c_compiler() -> str | None:
    """Returns the path of a C compiler for the shim; with None, the worker cannot be bound to loopback."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build_loopback_shim(folder: Path) -> Path | None:
    """Compiles the shim (`loopback.c`) into `folder`; returns its path, or None if there is no working C compiler."""
    compiler = c_compiler()
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


def shim_works(library: Path) -> bool:
    """Tries the shim on a server, which must listen on loopback and accept its own account's open connection only.

    It also returns False if the kernel does not say who owns a connection, because the shim then refuses everybody.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _PROBE],
        env=dict(os.environ, LD_PRELOAD=str(library)),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0 and done.stdout == "127.0.0.1 True\n"


class Worker(OwnedProcess):
    """Runs a TFF worker process.

    Args:
      concurrent_calls: number of client computations that run at the same time; use the number of cores.
      threads_per_call: number of TensorFlow intra-op threads for each of them.
      port: port to listen on; None takes a free one.
      all_interfaces: whether to listen on all interfaces, without authentication, instead of on loopback only. In this
        case, or without a C compiler, the worker accepts every account of this machine, too; otherwise it accepts only
        this process's own.

    Raises:
      OSError: the port is taken.
    """

    def __init__(
        self, concurrent_calls: int, threads_per_call: int, port: int | None = None, all_interfaces: bool = False
    ) -> None:
        import portpicker

        binary = worker_binary()
        if port is not None:
            require_free_port(port)
        super().__init__("TFF's worker")
        shim = None if all_interfaces else build_loopback_shim(self._folder)
        prefer_onednn()
        environment = dict(os.environ, TF_NUM_INTRAOP_THREADS=str(threads_per_call), TF_CPP_MIN_LOG_LEVEL="2")
        # With a memory arena for each of gRPC's many threads, memory that one thread frees stays unused by the others.
        environment.setdefault("MALLOC_ARENA_MAX", str(concurrent_calls))
        if shim is not None:
            environment["LD_PRELOAD"] = " ".join([str(shim), *environment.get("LD_PRELOAD", "").split()])
        self.port: int = portpicker.pick_unused_port() if port is None else port
        arguments = [f"--port={self.port}", f"--max_concurrent_computation_calls={concurrent_calls}"]
        self._launch([str(binary), *arguments], environment)
        log.info("TFF worker started: pid %d, port %d", self.pid, self.port)

    def wait_until_it_listens(self) -> None:
        """Waits until the worker listens and accepts a connection of this account.

        Raises:
          WorkerLostError: the worker did not start, or it refuses this account, because the kernel does not say who
            owns a connection.
        """
        super().wait_until_it_listens()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=_ANSWER_SECONDS) as connection:
                is_accepted = connection.recv(1) != b""  # a gRPC server sends first
        except ConnectionError:
            is_accepted = False
        if not is_accepted:
            self.check_alive("it did not start, so look at its output and try again")
            raise WorkerLostError(
                f"{self.name} refuses this account, because the kernel does not say who owns a connection (module "
                "tcp_diag): run fedspeak doctor"
            )

    @property
    def is_open(self) -> bool:
        """Returns whether the worker listens on more than loopback, for any account; call this once it listens."""
        return not all(map(is_loopback, listening_addresses(self.pid)))


def warn_of_open(worker: Worker, fix: str) -> None:
    """Warns that a worker is open to all hosts and accounts; `fix` tells the reader how to close it."""
    warnings.warn(
        f"TFF's worker (port {worker.port}) accepts connections from ANY host without authentication, and from any "
        f"account of this host, and runs whatever they send: {fix} (a firewall keeps out other hosts, not accounts)",
        OpenExecutorWarning,
        stacklevel=3,
    )
