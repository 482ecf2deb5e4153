"""TFF's worker process, owned: on loopback and for this account only, ended on every exit path.

Stock TFF 0.87 starts `worker_binary` by itself: it listens without authentication on all interfaces, and is left
behind as an orphan when Python ends abnormally.
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
# Run with the shim: binds all addresses and connects to itself twice. The first connection is closed for sending, so
# that the shim must refuse it. Prints the address, and whether the second is the one that was let in.
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
    """TFF's worker listens on every interface without authentication."""


def worker_binary() -> Path:
    """Path of TFF's executor binary. Raises ModuleNotFoundError if TFF is not installed."""
    spec = find_spec("tensorflow_federated")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "tensorflow_federated is not installed: install the locked stack (make demo does), see README"
        )
    return Path(spec.origin).parent / "data" / "worker_binary"


def c_compiler() -> str | None:
    """Path of the one that builds the shim; None: the worker cannot be bound to loopback."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build_loopback_shim(folder: Path) -> Path | None:
    """Compiles the shim (`loopback.c`) into `folder`; returns None where there is no C compiler (or it fails)."""
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
    """Tries the shim in a small process that listens: is it on loopback, and is just its own account let in?

    Where the kernel does not tell whose a connection is, nobody is let in, and this is False.
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
    """One running TFF worker process.

    Args:
      concurrent_calls: client computations that run at once; give it the number of cores.
      threads_per_call: TensorFlow intra-op threads for each of them.
      port: where it listens; left out: a free one.
      all_interfaces: listen not on loopback but to the whole network, without authentication. Then, and where there
        is no C compiler, any account of this machine is let in, too; otherwise only this process's own.

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
        # An arena of memory for each of gRPC's many threads would keep what the others could use.
        environment.setdefault("MALLOC_ARENA_MAX", str(concurrent_calls))
        if shim is not None:
            environment["LD_PRELOAD"] = " ".join([str(shim), *environment.get("LD_PRELOAD", "").split()])
        self.port: int = portpicker.pick_unused_port() if port is None else port
        arguments = [f"--port={self.port}", f"--max_concurrent_computation_calls={concurrent_calls}"]
        self._launch([str(binary), *arguments], environment)
        log.info("TFF worker started: pid %d, port %d", self.pid, self.port)

    def wait_until_it_listens(self) -> None:
        """Also raises WorkerLostError if the worker does not let us in: the kernel must say whose a connection is."""
        super().wait_until_it_listens()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=_ANSWER_SECONDS) as connection:
                answered = connection.recv(1) != b""  # a gRPC server speaks first
        except ConnectionError:
            answered = False
        if not answered:
            self.check_alive("it did not start, see what it said, then try again")
            raise WorkerLostError(
                f"{self.name} refuses this account: the kernel does not tell whose a connection is (module tcp_diag): "
                "ask fedspeak doctor"
            )

    @property
    def is_open(self) -> bool:
        """Whether it listens on anything but loopback, for any account. Known only once it listens."""
        return not all(map(is_loopback, listening_addresses(self.pid)))


def warn_of_open(worker: Worker, mend: str) -> None:
    """The loud warning that belongs to an open worker; `mend` says how to close it."""
    warnings.warn(
        f"TFF's worker (port {worker.port}) accepts connections from ANY host without authentication, and from any "
        f"account of this one, and runs whatever they send: {mend}; a firewall keeps out other hosts, not accounts",
        OpenExecutorWarning,
        stacklevel=3,
    )
