"""Runs a peer's process: measures its memory, enforces its time limit, and ends it with all of its descendants."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

_INTERVAL = 0.2
"""Seconds between two looks at the process tree; each look takes a few milliseconds of a core that the peer needs."""


class Watched(NamedTuple):
    """Holds the outcome of a process.

    Attributes:
      started: time of the start, in seconds since the epoch.
      return_code: return code of the process; None if it exceeded its time limit and was killed.
      peak_memory: largest sum of resident memory over its process tree in bytes; shared pages count in each process.
      others: average number of processor cores that the rest of the machine used meanwhile, including the time that a
        hypervisor took from this machine (steal time).
    """

    started: float
    return_code: int | None
    peak_memory: int
    others: float


def watch(command: Sequence[str], *, folder: Path, environment: dict[str, str], log: Path, timeout: float) -> Watched:
    """Runs a command to its end, or kills it at its time limit. No process of its tree is left behind.

    Args:
      command: program and arguments.
      folder: working folder of the process.
      environment: environment variables of the process.
      log: file for standard output and standard error.
      timeout: time limit in seconds.
    """
    started, peak, busy, waited = time.time(), 0, _busy_ticks(), _waited_ticks()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # Start time by process id. It tells whether an id still is the process that was seen, since ids are reused.
        seen: dict[int, int] = {}
        own: dict[int, int] = {}  # processor time in ticks, by process id
        code: int | None = None
        try:
            while time.time() - started < timeout:
                tree = _tree(process.pid, seen)
                seen |= tree
                states = {pid: state for pid in tree if (state := _stat(pid))}
                peak = max(peak, sum(int(state[21]) for state in states.values()) * os.sysconf("SC_PAGE_SIZE"))
                own |= {pid: int(state[11]) + int(state[12]) for pid, state in states.items()}
                try:
                    code = process.wait(_INTERVAL)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            for pid, birth in seen.items():
                if _start_time(pid) == birth:
                    _kill(pid)
            process.wait()
    # Both counts miss something: the looks at the tree miss processes that lived between two of them, and the resource
    # usage misses processes that no parent has waited for. The larger one is nearer to the truth.
    used = max(sum(own.values()), _waited_ticks() - waited)
    ticks = os.sysconf("SC_CLK_TCK") * (time.time() - started)
    return Watched(started, code, peak, max(_busy_ticks() - busy - used, 0) / ticks)


def watch_others() -> Callable[[], float]:
    """Returns a function that says how many processor cores all other processes used on average since this call."""
    started, busy, own = time.time(), _busy_ticks(), time.process_time()

    def others() -> float:
        seconds = (_busy_ticks() - busy) / os.sysconf("SC_CLK_TCK") - (time.process_time() - own)
        return max(seconds, 0.0) / max(time.time() - started, 1e-9)

    return others


def _tree(root: int, seen: dict[int, int]) -> dict[int, int]:
    """Returns the start time of each living process of the tree below `root`, by process id.

    The tree includes `root` itself, and processes in `seen` that have lost their parent since.
    """
    parents: dict[int, int] = {}
    births: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            parents[int(entry)], births[int(entry)] = int(fields[1]), int(fields[19])
    tree = {pid for pid, birth in births.items() if pid == root or seen.get(pid) == birth}
    while below := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= below
    return {pid: births[pid] for pid in tree if pid in births}


def _stat(pid: int) -> list[str] | None:
    """Returns the fields of /proc/PID/stat after the command's name (state, parent, …); None if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _start_time(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _busy_ticks() -> int:
    """Returns the ticks in which the machine's cores were not idle, since its start."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return user + nice + system + sum(rest)


def _waited_ticks() -> int:
    """Returns the ticks of all ended processes that this process, or one of those, has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((usage.ru_utime + usage.ru_stime) * os.sysconf("SC_CLK_TCK"))


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
