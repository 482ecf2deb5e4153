"""Child processes of ours: each ends with us, whatever ends us, and leaves no file behind once it has started."""

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

# Runs in a fresh interpreter: the kernel ends the child when we die (even by SIGKILL). Then the child takes its place.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]): os._exit(1)
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C goes to Python, which ends the child in order
os.execv(sys.argv[2], sys.argv[2:])
"""

log = logging.getLogger(__name__)


class WorkerLostError(OSError):
    """A worker process, or the way to it, is gone (for instance for want of memory); the run can be resumed."""


class OwnedProcess:
    """A running child process. `stop` is idempotent and also runs at interpreter exit.

    Start it from the main thread: it ends with the thread that started it.
    """

    def __init__(self, name: str) -> None:
        """`name` stands in messages; the process starts with `_launch`."""
        self.name = name
        self._output = tempfile.TemporaryFile()  # has no name, so nobody needs to delete it
        self._folder = Path(tempfile.mkdtemp(prefix="fedspeak-"))  # what the process reads while it starts
        self._process: subprocess.Popen[bytes]

    def _launch(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        self._process = subprocess.Popen(
            launch, env=environment, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output
        )
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        return self._process.pid

    def output(self) -> str:
        """The last lines that the process printed."""
        descriptor = self._output.fileno()
        size = os.fstat(descriptor).st_size
        # The process writes where this file stands: read without moving it.
        return os.pread(descriptor, 2000, max(size - 2000, 0)).decode(errors="replace").strip()

    def check_alive(self, mend: str = "resume the run") -> None:
        """Raises WorkerLostError if the process has ended."""
        if (code := self._process.poll()) is not None:
            said = " ".join(self.output().split())
            raise WorkerLostError(
                f"{self.name} process {self.pid} ended with code {code} (memory?): {mend}. {said}".rstrip()
            )

    def wait_until_it_listens(self) -> None:
        """Raises WorkerLostError if the process ends instead, or takes more than two minutes."""
        deadline = time.monotonic() + _START_SECONDS
        while not self._listens():
            self.check_alive("it did not start, see what it said, then try again")
            if time.monotonic() > deadline:
                raise WorkerLostError(f"{self.name} process did not listen within {_START_SECONDS:.0f} s")
            time.sleep(0.02)
        self._release_folder()

    def _listens(self) -> bool:
        return bool(listening_addresses(self.pid))

    def _release_folder(self) -> None:
        """Runs once the process listens: it has read what it needs."""
        self._remove_folder()

    def stop(self) -> None:
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
    """Addresses (hexadecimal, as the Linux kernel prints them) on which `pid` listens for TCP; [] if it has ended."""
    inodes = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(descriptor)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6") if inodes else ():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
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


def require_free_port(port: int) -> None:
    """Raises OSError if `port` is taken or forbidden: gRPC would let two workers share one, unnoticed."""
    everywhere = [(socket.AF_INET, "0.0.0.0")] + [(socket.AF_INET6, "::")] * socket.has_dualstack_ipv6()
    for family, address in everywhere:
        with contextlib.closing(socket.socket(family)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not count
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    raise OSError(f"port {port} cannot be had ({os.strerror(error.errno)}): choose another") from None
