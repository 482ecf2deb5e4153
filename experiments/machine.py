"""What `fedspeak doctor` reads from the machine, without importing anything heavy."""

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
    """A running TFF worker: its process id, its parent's, the parent's command line ("" if that is gone)."""

    pid: int
    parent_pid: int
    parent: str


@dataclass(frozen=True)
class Facts:
    """What `gather` reads from the machine. None means that it could not be read."""

    python: tuple[int, int, int]
    machine: str
    versions: Mapping[str, str]
    locked: Mapping[str, str] | None  # requirements.lock, the stack with TFF
    current: Mapping[str, str] | None  # requirements-current.lock, that without
    cpu_flags: frozenset[str] | None
    cores: int
    memory: int | None  # bytes that a new process can still have
    disk: int  # free bytes where runs are written
    loopback_shim: bool  # it could be built
    shim_works: bool  # and was tried: on loopback, for this account only
    stunnel: bool
    workers: tuple[Worker, ...] = field(default=())


def gather(packages: Iterable[str]) -> Facts:
    """Reads this machine, and the versions of those of `packages` that are installed."""
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
    """Name → version of a lock's pins; None if there is no such file (an installation without a clone)."""
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
    """Free bytes, as the kernel and, in a container, its memory limit allow."""
    try:
        available = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    if available is None:
        return None
    free = int(available.group(1)) * 1024
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no such controller, or "max": no limit
        return free
    return min(free, limit - used)


def workers() -> Iterable[Worker]:
    """TFF's worker processes that this user can see, whoever started them."""
    for folder in Path("/proc").glob("[0-9]*"):
        command = _command(folder)
        if os.path.basename(command.partition(" ")[0]) == "worker_binary":
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:  # ended while we looked
                continue
            yield Worker(int(folder.name), int(parent), _command(Path("/proc") / parent))


def _command(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
