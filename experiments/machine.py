"""Gathers the facts about this machine that `fedspeak doctor` checks, without importing a large package."""

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from fl.runtime.worker import build_loopback_shim, shim_works

_CLONE = Path(__file__).resolve().parents[1]


class Worker(NamedTuple):
    """Describes a running process of TFF's worker.

    Attributes:
      pid: process id.
      parent_pid: process id of the parent.
      parent: command line of the parent; "" if it cannot be read.
    """

    pid: int
    parent_pid: int
    parent: str


@dataclass(frozen=True)
class Facts:
    """Holds facts about a machine; None means that a fact could not be read.

    Attributes:
      python: version of the interpreter.
      machine: architecture, as in "x86_64".
      versions: installed versions of the packages that were asked for, by name.
      locked: versions in requirements.lock (the stack with TFF), by name; None outside a clone.
      current: versions in requirements-current.lock (the stack without TFF), by name; None outside a clone.
      cpu_flags: processor flags of /proc/cpuinfo.
      cores: processor cores that this process may use.
      memory: bytes that a new process can still allocate.
      disk: free bytes in the working folder, where runs are written.
      loopback_shim: whether the library that restricts TFF's worker to loopback and this account could be built.
      shim_works: whether that library was tried and worked.
      stunnel: whether stunnel is installed.
      workers: TFF workers that run on the machine.
    """

    python: tuple[int, int, int]
    machine: str
    versions: Mapping[str, str]
    locked: Mapping[str, str] | None
    current: Mapping[str, str] | None
    cpu_flags: frozenset[str] | None
    cores: int
    memory: int | None
    disk: int
    loopback_shim: bool
    shim_works: bool
    stunnel: bool
    workers: tuple[Worker, ...] = field(default=())


def gather(packages: Iterable[str]) -> Facts:
    """Reads the facts of this machine.

    Args:
      packages: names of the packages whose installed versions are read.
    """
    with tempfile.TemporaryDirectory() as folder:
        shim = build_loopback_shim(Path(folder))
        works = shim is not None and shim_works(shim)
    return Facts(
        python=sys.version_info[:3],
        machine=platform.machine(),
        versions={name: version for name in packages if (version := _version(name))},
        locked=read_lock(_CLONE / "requirements.lock"),
        current=read_lock(_CLONE / "requirements-current.lock"),
        cpu_flags=_cpu_flags(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=_memory_left(),
        disk=shutil.disk_usage(Path.cwd()).free,
        loopback_shim=shim is not None,
        shim_works=works,
        stunnel=shutil.which("stunnel") is not None,
        workers=tuple(workers()),
    )


def read_lock(path: Path) -> dict[str, str] | None:
    """Returns the versions that a lock file pins, by lower-case name; None if there is no such file."""
    if not path.is_file():
        return None
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", path.read_text(), flags=re.MULTILINE)
    return {name.lower(): version for name, version in pins}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_flags() -> frozenset[str] | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    flags = re.search(r"^flags\s*:(.*)$", text, flags=re.MULTILINE)
    return frozenset(flags.group(1).split()) if flags else None


def _memory_left() -> int | None:
    """Returns the bytes that can still be allocated: the kernel's estimate, at most what a container's limit leaves."""
    try:
        available = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    if available is None:
        return None
    free = int(available.group(1)) * 1024
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no memory controller, or its limit is the word "max", which means none
        return free
    return min(free, limit - used)


def workers() -> Iterable[Worker]:
    """Yields TFF's worker processes that this account can see, whoever started them."""
    for folder in Path("/proc").glob("[0-9]*"):
        command = _command(folder)
        if os.path.basename(command.partition(" ")[0]) == "worker_binary":
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:  # the process has just ended
                continue
            yield Worker(int(folder.name), int(parent), _command(Path("/proc") / parent))


def _command(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
