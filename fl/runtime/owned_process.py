"""Starts child processes that end with this process, whatever ends it, and leave no file behind once they have started.

The only file that stays until `stop` is the Unix socket of a tunnel.
"""

import atexit
import contextlib
import errno
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_START_SECONDS = 120.0  # the first start on a machine reads 300 MB from the disk

# Runs in a fresh interpreter: asks the kernel to end this process when its parent dies (even by SIGKILL), then replaces
# itself by the child.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]): os._exit(1)
signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends the child in order
os.execv(sys.argv[2], sys.argv[2:])
"""

log = logging.getLogger(__name__)


class WorkerLostError(OSError):
    """Raised if a worker process or the connection to it is gone (out of memory, perhaps); the run can be resumed."""


class OwnedProcess:
    """Runs a child process, which ends at the latest when this interpreter exits.

    Start it from the main thread: it ends with the thread that started it.
    """

    def __init__(self, name: str) -> None:
        """Prepares a process, which `_launch` starts; `name` is its name in messages."""
        self.name = name
        self._output = tempfile.TemporaryFile()  # a file without a name, which nobody needs to delete
        self._folder = Path(tempfile.mkdtemp(prefix="fedspeak-"))  # files that the process reads while it starts
        self._process: subprocess.Popen[bytes]

    def _launch(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        self._process = subprocess.Popen(
            launch, env=environment, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output
        )
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """Returns the process id."""
        return self._process.pid

    def output(self) -> str:
        """Returns the last 2000 bytes that the process printed."""
        descriptor = self._output.fileno()
        size = os.fstat(descriptor).st_size
        # The process writes at this file's position, so reading must not move it.
        return os.pread(descriptor, 2000, max(size - 2000, 0)).decode(errors="replace").strip()

    def check_alive(self, fix: str = "resume the run") -> None:
        """Raises WorkerLostError if the process has ended; `fix` tells the reader what to do then."""
        if (code := self._process.poll()) is not None:
            output = " ".join(self.output().split())
            raise WorkerLostError(
                f"{self.name} process {self.pid} ended with code {code} (out of memory?): {fix}. {output}".rstrip()
            )

    def wait_until_it_listens(self) -> None:
        """Waits until the process listens on a port.

        Raises:
          WorkerLostError: the process ends instead, or does not listen within two minutes.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not self._listens():
            self.check_alive("it did not start, so look at its output and try again")
            if time.monotonic() > deadline:
                raise WorkerLostError(
                    f"{self.name} process did not listen within {_START_SECONDS:.0f} s: try again when the machine is "
                    "less busy"
                )
            time.sleep(0.02)
        self._release_folder()

    def _listens(self) -> bool:
        return bool(listening_addresses(self.pid))

    def _release_folder(self) -> None:
        """Deletes the folder; called once the process listens, because it has then read what it needs."""
        self._remove_folder()

    def stop(self) -> None:
        """Ends the process and deletes its files; it may be called more than once."""
        atexit.unregister(self.stop)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            log.info("%s ended: pid %d", self.name, self.pid)
        self._output.close()
        self._remove_folder()

    def _remove_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def listening_addresses(pid: int) -> list[str]:
    """Returns the addresses on which process `pid` listens for TCP, in hexadecimal as the Linux kernel prints them.

    The list is empty if the process has ended.
    """
    inodes = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(descriptor)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    addresses = []
    for table in ("tcp", "tcp6") if inodes else ():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:  # 0A: LISTEN
                    addresses.append(fields[1].split(":")[0])
    return addresses


def is_loopback(address: str) -> bool:
    """Returns whether an address, as the kernel prints it, is in 127.0.0.0/8, ::1 or an IPv4-mapped 127.0.0.0/8."""
    if len(address) == 8:
        return address.endswith("7F")
    return address == "0" * 24 + "01000000" or (address.startswith("0" * 16 + "FFFF0000") and address.endswith("7F"))


def require_free_port(port: int) -> None:
    """Raises OSError if `port` is taken or not permitted, because gRPC would let two workers share a port unnoticed."""
    any_address = [(socket.AF_INET, "0.0.0.0")] + [(socket.AF_INET6, "::")] * socket.has_dualstack_ipv6()
    for family, address in any_address:
        with contextlib.closing(socket.socket(family)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore old connections in TIME_WAIT
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    raise OSError(f"port {port} cannot be used ({os.strerror(error.errno)}): choose another") from None
