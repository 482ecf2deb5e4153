"""What is missing is named in one line, at once."""

import importlib.util
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from experiments import extras

ROOT = Path(__file__).resolve().parents[2]

# Hides packages from the interpreter as if they were not installed.
HIDDEN = """
import sys, importlib.abc
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
import importlib.util
found = importlib.util.find_spec
def find_spec(name, package=None):
    return None if name.partition(".")[0] in {hidden!r} else found(name, package)
importlib.util.find_spec = find_spec
"""


def without(extra_names, code):
    """Runs code where the packages of some extras are not there."""
    hidden = sorted({module for name in extra_names for module in extras.EXTRAS[name][0]})
    script = HIDDEN.format(hidden=hidden) + code
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (["train", "demo"], "tensorflow_federated", "federated"),
        (["demo"], "tensorflow_federated", "federated"),
        (["worker", "--port", "9000"], "tensorflow_federated", "federated"),
        (["privacy", "audit", "--training"], "tensorflow_federated", "federated"),
        (["export", "runs/demo"], "tensorflow", "models"),
        (["evaluate", "runs/demo"], "tensorflow", "models"),
        (["reproduce", "noise-seeds", "runs/demo"], "tensorflow_federated", "federated"),
        (["bench", "dp-step"], "tensorflow_federated", "federated"),
        (["bench", "cohort"], "tensorflow_federated", "federated"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(arguments, module, extra):
    code = (
        "import atexit, time\natexit.register(lambda: print(time.process_time()))\n"
        f"from experiments.cli import main\nmain({arguments!r})"
    )
    done = without(["models", "federated"], code)
    assert done.returncode == 2
    assert done.stderr.startswith(f"fedspeak: error: {module} is not installed, it is of the extra {extra!r}: ")
    assert done.stderr.count("\n") == 1
    assert float(done.stdout) < 1.0  # processor seconds, and nothing else on standard output


@pytest.mark.parametrize(
    "code",
    [
        "import models\nmodels.CIFG",
        "from privacy import KerasDPSGD\nKerasDPSGD(20, 2, 1, 1.0, 1.0, 1e-5).fit(None, [[1.0]] * 20, [0] * 20)",
    ],
)
def test_an_import_names_the_extra_that_it_needs(code):
    done = without(["models"], code)
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("ModuleNotFoundError: ") and line.endswith(
        "of the extra 'models': pip install 'fedspeak[models]'"
    )


def test_every_module_of_an_extra_is_one_that_its_packages_install():
    """Of each extra whose packages are here; in the locked environment that is all of them."""
    packages = {"models": "tensorflow", "federated": "tensorflow-federated", "opendp": "opendp"}
    assert set(packages) == set(extras.EXTRAS)
    for extra, package in packages.items():
        try:
            version(package)
        except PackageNotFoundError:
            continue
        assert [module for module in extras.EXTRAS[extra][0] if importlib.util.find_spec(module) is None] == []
    assert extras.missing("tensorflow_federated.python").startswith("tensorflow_federated is not installed, it is of")
    assert "fedspeak doctor" in extras.missing("something_else")
