"""One peer's process: started, watched, timed out, and ended with all that it started."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_INTERVAL = 0.2  # seconds between two looks at the tree: one costs a few ms of a core that the peer wants


class Watched(NamedTuple):
    """How a process went.

    Attributes:
      started: wall clock in seconds since the epoch.
      return_code: of the process; None if it ran out of time and was killed.
      peak_memory: largest sum of resident memory over its process tree, bytes; shared pages count in each process.
      others: processor cores that everything else on the machine used meanwhile, on average (a virtual machine's
        stolen time too).
    """

    started: float
    return_code: int | None
    peak_memory: int
    others: float


def watch(command: Sequence[str], *, folder: Path, environment: dict[str, str], log: Path, timeout: float) -> Watched:
    """Runs a command to its end; all its output goes to `log`. No process of its tree is left behind."""
    started, peak, busy, waited = time.time(), 0, _busy(), _waited_for()
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
        seen: dict[int, int] = {}  # pid → when it started: a number may be used again
        own: dict[int, int] = {}  # pid → processor time, ticks
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
                if _birth(pid) == birth:
                    _kill(pid)
            process.wait()
    # Looks miss what came between them, waiting misses who was never waited for.
    used = max(sum(own.values()), _waited_for() - waited)
    ticks = os.sysconf("SC_CLK_TCK") * (time.time() - started)
    return Watched(started, code, peak, max(_busy() - busy - used, 0) / ticks)


def _tree(root: int, seen: dict[int, int]) -> dict[int, int]:
    """The living processes below `root`, itself included, and those once seen there that lost their parent since."""
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
    """The fields of /proc/PID/stat after the command's name (state, parent, …); None if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _birth(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _busy() -> int:
    """Ticks that all cores were not idle since the machine started."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return user + nice + system + sum(rest)


def _waited_for() -> int:
    """Ticks of all processes that ended and were waited for, by us or by such a one."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((usage.ru_utime + usage.ru_stime) * os.sysconf("SC_CLK_TCK"))


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
