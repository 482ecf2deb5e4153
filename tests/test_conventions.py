"""Rules that the tests keep, so that they mean the same on a slow machine and on other processors."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HANG_GUARD = 300.0  # seconds after which a test gives up on what never ends; no loaded machine is that slow

_LIMIT = re.compile(
    r"""\b(?: (?:set)?timeout (?:=|\() | (?:monotonic|time|perf_counter)\(\)\ \+\  | select\([^()]*,\ )"""
    r"""(?P<seconds>\d++(?:\.\d+)?+)\b (?!\ if\b)""",
    re.VERBOSE,
)


def test_files() -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path != Path(__file__):
            yield path.relative_to(ROOT), path.read_text()


test_files.__test__ = False  # type: ignore[attr-defined]


def time_limits(source: str) -> list[float]:
    """Returns the limits in seconds on what a test, or a program that it starts, waits for."""
    return [seconds for match in _LIMIT.finditer(source) if 0 < (seconds := float(match["seconds"])) < HANG_GUARD]


def test_time_limits_of_tests_are_hang_guards():
    """Where load can exceed a limit, a test fails though nothing is wrong."""
    found = {str(path): limits for path, source in test_files() if (limits := time_limits(source))}
    assert not found


@pytest.mark.parametrize(
    ("source", "limits"),
    [
        ("process.communicate(timeout=60)", [60.0]),
        ("process.wait(timeout=300)", []),
        ("connection.settimeout(60)", [60.0]),
        ("deadline = time.monotonic() + 60", [60.0]),
        ("deadline = time.time() + 9.5", [9.5]),
        ("select.select([server], [], [], 60)", [60.0]),
        ("watch(command, timeout=1.0 if hangs else timeout)", []),  # what the test is about
        ("connection.settimeout(0)", []),
    ],
)
def test_a_planted_time_limit_is_found(source: str, limits: list[float]):
    assert time_limits(source) == limits


def is_unmarked(source: str) -> bool:
    """Returns whether a test compares by what rounding may do, but `make test-kernels` would not run it."""
    compares = re.search(r"^from tests\.(?:tolerance|fl\.stock|models\.exported) import", source, re.MULTILINE)
    return compares is not None and "pytest.mark.numerical" not in source


def test_tests_that_compare_by_rounding_run_on_other_kernels():
    """tests/current runs in another environment; tests of the tolerances themselves compute without kernels."""
    found = [
        str(path)
        for path, source in test_files()
        if path.name.startswith("test_")
        and path.parts[1] not in ("current", "test_tolerance.py")
        and is_unmarked(source)
    ]
    assert not found


def test_a_planted_unmarked_comparison_is_found():
    source = "from tests.tolerance import rounding\n"
    assert is_unmarked(source) and not is_unmarked(f"{source}pytestmark = pytest.mark.numerical\n")
    assert not is_unmarked("from tests.fl import bigram\n")


def test_test_kernels_limits_the_kernels_that_users_have():
    """fedspeak switches oneDNN on everywhere, so a processor without AVX-512 computes with its kernels for AVX2."""
    recipe = re.search(r"^test-kernels:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert dict(re.findall(r"(\w+)=(\w+) ", recipe[1])) == {"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert '-m "numerical and not slow"' in recipe[1]
