"""Plants each bug of the catalogue into a copy of the sources and runs the test that must catch it.

    make mutation
    .venv/bin/python tests/mutation/run.py "noise reused in every block"

Prints a table of bugs and a score. The exit status is 1 if a bug survives, and 2 if a test fails without any bug.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.mutation.catalogue import CATALOGUE, Bug  # noqa: E402 - run as a script, from any folder

_COPIED = ("fl", "privacy", "models", "experiments", "tests")


def main(names: list[str]) -> int:
    """Runs the bugs of these names, or all, and returns the exit status."""
    unknown = set(names) - {bug.name for bug in CATALOGUE}
    if unknown:
        print(f"bug = {sorted(unknown)[0]!r}: must be a name in tests/mutation/catalogue.py", file=sys.stderr)
        return 2
    bugs = [bug for bug in CATALOGUE if not names or bug.name in names]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for package in _COPIED:
            shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
        healthy = run_tests(copy, sorted({bug.test for bug in bugs}))
        if healthy.returncode != 0:
            print(f"a test fails without any bug:\n{healthy.stdout}", file=sys.stderr)
            return 2
        outcomes = [outcome(bug, copy) for bug in bugs]
    caught = outcomes.count("caught")
    print(f"score: {caught} of {len(bugs)} planted bugs are caught")
    return 0 if caught == len(bugs) else 1


def outcome(bug: Bug, copy: Path) -> str:
    """Plants a bug, runs its test, takes the bug out again, and prints and returns what happened."""
    file = copy / bug.file
    source = file.read_text()
    file.write_text(plant(bug, source))
    found = verdict(run_tests(copy, [bug.test]))
    file.write_text(source)
    print(f"{bug.name:<70} {bug.test.rpartition('::')[2]:<85} {found}", flush=True)
    return found


def plant(bug: Bug, source: str) -> str:
    """Returns the source with the bug.

    Raises:
      ValueError: the text to replace does not occur exactly once.
    """
    if source.count(bug.old) != 1:
        raise ValueError(f"{bug.name}: its text occurs {source.count(bug.old)} times in {bug.file}: must occur once")
    return source.replace(bug.old, bug.new)


def run_tests(copy: Path, tests: list[str]) -> "subprocess.CompletedProcess[str]":
    """Runs tests of the copy, and stops at the first failure."""
    # Compiled files would be taken for current if a bug changed neither the size nor the second of a source file.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", "-p", "no:cacheprovider", "-m", "", *tests]
    return subprocess.run(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def verdict(run: "subprocess.CompletedProcess[str]") -> str:
    """Returns what a run of tests says about a bug: only a failed assertion catches it, not a crash."""
    if run.returncode == 0:
        return "SURVIVED"
    is_assertion = re.search(r":\d+: (assert |AssertionError)", run.stdout)
    return "caught" if run.returncode == 1 and is_assertion else "CRASHED"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
