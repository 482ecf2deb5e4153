"""The rules of the house about imports: who may import whom, what loads in a blink."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fl", "privacy", "models", "experiments")

NUMERIC = frozenset({"numpy", "scipy"})
# The parts of decoding that need NumPy alone.
DRAWING = frozenset(
    f"models.decoding.{part}" for part in ("acceptance", "choices", "numpy_loop", "numpy_ops", "numpy_processing")
)
DEVICE = DRAWING | {"models.vocabulary", "models.vocabularies", "models.tflite_file", "models.atomic_file", "numpy"}
RUNTIME = frozenset({"ai_edge_litert", "tensorflow"})
TFF = frozenset({"tensorflow_federated", "tensorflow_privacy", "grpc", "portpicker"})
# Folder or file → what the modules in it may import besides the standard library; the longest path counts. A dotted
# name allows what is below it and nothing above it. None: anything.
MAY_IMPORT: dict[str, frozenset[str] | None] = {
    "privacy": NUMERIC | {"privacy", "dp_accounting"},
    "privacy/correlated": NUMERIC | {"privacy"},
    "privacy/dpsgd": frozenset({"numpy", "privacy", "tensorflow", "keras"}),
    "privacy/linear": NUMERIC | {"privacy", "sklearn"},
    "privacy/report": NUMERIC | {"privacy", "jinja2", "markupsafe", "matplotlib"},
    "models": NUMERIC | {"models", "tensorflow", "keras", "ai_edge_litert"},
    "models/__init__.py": frozenset({"models"}),
    "models/token_tree.py": frozenset({"numpy"}),
    "models/vocabulary.py": frozenset({"models.vocabulary", "models.atomic_file", "numpy", "sentencepiece"}),
    # What goes on the device beside the model: NumPy and the LiteRT runtime, or TensorFlow's in its place.
    "models/litert.py": RUNTIME,
    "models/text_stream.py": frozenset({"models.vocabulary", "models.vocabularies"}),
    "models/device_blocks.py": DRAWING | {"models.decoding.transport", "numpy"},
    "models/device_signatures.py": DRAWING | {"models.litert", "models.tflite_file", "numpy"},
    "models/device.py": DEVICE
    | {"models.device", "models.device_blocks", "models.device_signatures", "models.litert", "models.text_stream"},
    "models/device_costs.py": DEVICE | {"models.device", "models.litert"},
    "models/atomic_file.py": frozenset(),
    "models/tflite_file.py": frozenset({"models.atomic_file", "models.vocabularies", "numpy"}),
    "models/vocabularies.py": frozenset({"models.vocabulary", "models.pretrained.tokenizer"}),
    "models/pretrained": NUMERIC | {"models", "gguf", "safetensors", "tokenizers"},
    "models/pretrained/tokenizer.py": frozenset({"models.atomic_file", "models.vocabulary", "numpy", "tokenizers"})
    | {"models.pretrained.chat_template"},
    "models/pretrained/chat_template.py": frozenset({"jinja2"}),
    "models/decoding": frozenset({"models.decoding", "numpy", "tensorflow"})
    | {
        "models.heads",
        "models.katz",
        "models.language_model",
        "models.ngram",
        "models.pair_hash",
        "models.tensors",
        "models.token_tree",
    }
    | {"models.vocabularies", "models.vocabulary"},
    "models/decoding/draft_statistics.py": frozenset({"numpy"}),
    **{f"{name.replace('.', '/')}.py": DRAWING | {"numpy"} for name in DRAWING},
    "models/alignment": NUMERIC | {"models.alignment"},
    "models/alignment/rewards.py": RUNTIME | {"keras", "models.alignment", "models.litert", "numpy", "vaderSentiment"},
    "fl": NUMERIC | TFF | {"fl", "privacy", "tensorflow", "keras", "tensorboard"},
    # In the base installation: NumPy and SciPy, and of fedspeak the checks of arguments alone.
    "fl/fairness": NUMERIC | {"fl.fairness", "privacy.checks"},
    # pandas is imported only for those who give its objects.
    "fl/fairness/features.py": frozenset({"numpy", "pandas"}),
    "fl/fairness/report": frozenset({"fl.fairness", "numpy", "markupsafe"})
    | {"privacy.files", "privacy.json_values", "privacy.report"},
    "fl/sources/parquet.py": frozenset({"fl", "pyarrow"}),
    "experiments": None,
}


def imports(path: PurePosixPath, source: str) -> list[tuple[int, str]]:
    """Line and full dotted name of every import, those inside functions and `import_module(…)` of a text included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                base = [*path.parts[: len(path.parts) - node.level], *base]
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
        elif isinstance(node, ast.Call) and (name := called_import(path, node)):
            found.append((node.lineno, name))
    return found


def called_import(path: PurePosixPath, call: ast.Call) -> str | None:
    """Full dotted name that a call of `import_module` or `__import__` imports; None for other calls and names."""
    if ast.unparse(call.func).rpartition(".")[2] not in ("import_module", "__import__"):
        return None
    given: dict[str | None, ast.expr] = dict(zip(("name", "package"), call.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in call.keywords}
    name, package = given.get("name"), given.get("package")
    if not isinstance(name, ast.Constant):
        return None
    # The package of a relative name is given as a text, or as __package__ or __name__ of this module.
    base = package.value if isinstance(package, ast.Constant) else ".".join(path.parts[:-1])
    return importlib.util.resolve_name(str(name.value), str(base))


def violations(path: PurePosixPath, source: str) -> list[str]:
    """One line for every import in `source`, the module at `path`, that the rules forbid."""
    prefixes = [prefix for prefix in MAY_IMPORT if path.is_relative_to(prefix)]
    allowed = MAY_IMPORT[max(prefixes, key=len)]
    if allowed is None:
        return []
    return [
        f"{path}:{line} imports {name}"
        for line, name in imports(path, source)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not name.startswith(".")
        and not any(name == owner or name.startswith(f"{owner}.") for owner in allowed)
    ]


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_imports_follow_the_rules():
    found = []
    for path in modules():
        found += violations(PurePosixPath(path.relative_to(ROOT)), path.read_text())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "name"),
    [
        ("privacy/plan.py", "def f():\n    import tensorflow as tf", "tensorflow"),
        ("privacy/plan.py", "from fl.clients import TokenStore", "fl.clients.TokenStore"),
        ("privacy/dpsgd/keras_dpsgd.py", "import models.cifg", "models.cifg"),
        ("models/cifg.py", "from privacy import plan", "privacy.plan"),
        ("models/__init__.py", "import privacy.plan", "privacy.plan"),
        ("models/cifg.py", "if TYPE_CHECKING:\n    import fl", "fl"),
        ("models/cifg.py", "importlib.import_module('tensorflow_federated')", "tensorflow_federated"),
        ("models/cifg.py", "import_module(name='privacy')", "privacy"),
        ("models/cifg.py", "__import__(name='privacy.plan')", "privacy.plan"),
        ("models/cifg.py", "import_module('.plan', 'privacy')", "privacy.plan"),
        ("models/cifg.py", "import_module(package='privacy', name='.plan')", "privacy.plan"),
        ("models/decoding/prng.py", "import_module('..presets', __package__)", "models.presets"),
        ("models/vocabulary.py", "import tensorflow", "tensorflow"),
        ("models/device.py", "from models import language_model", "models.language_model"),
        ("models/decoding/numpy_ops.py", "import tensorflow", "tensorflow"),
        ("models/decoding/prng.py", "import keras", "keras"),
        ("models/decoding/prng.py", "from ..cifg import cell", "models.cifg.cell"),
        ("models/decoding/prng.py", "from models import presets", "models.presets"),
        ("models/alignment/tilt.py", "import tensorflow", "tensorflow"),
        ("fl/rounds.py", "from models.presets import preset", "models.presets.preset"),
        ("fl/fairness/planner.py", "import tensorflow", "tensorflow"),
        ("fl/fairness/planner.py", "from fl.clients import TokenStore", "fl.clients.TokenStore"),
        ("fl/fairness/metric_frame.py", "import pandas", "pandas"),
        ("fl/engines/cohort.py", "from experiments import config", "experiments.config"),
    ],
)
def test_a_planted_import_is_found(path: str, source: str, name: str):
    found = violations(PurePosixPath(path), source)
    assert [line.rpartition(" ")[2] for line in found] == [name]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("privacy/plan.py", "import math\nfrom privacy.sampling import Poisson\nfrom . import ledger"),
        (
            "models/decoding/prng.py",
            "import tensorflow as tf\nfrom models.decoding import processing\nfrom . import x",
        ),
        ("models/litert.py", "from ai_edge_litert.interpreter import Interpreter"),
        ("fl/rounds.py", "from privacy import plan\nimport tensorflow_federated as tff"),
        ("experiments/train.py", "import fl, models, privacy, rich"),
    ],
)
def test_a_lawful_import_is_not(path: str, source: str):
    assert violations(PurePosixPath(path), source) == []


def test_no_command_imports_the_command_line_back():
    """`experiments.cli` imports its commands when they are called; an import the other way would be a circle."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules()
        for line, name in imports(PurePosixPath(path.relative_to(ROOT)), path.read_text())
        if name.startswith("experiments.cli") and path.name != "__main__.py"
    ]
    assert not found, "\n".join(found)


def import_hooks(source: str) -> list[str]:
    """What in `source` can change how Python imports; Python has these names in `sys` only."""
    return re.findall(r"\b(?:meta_path|path_hooks|path_importer_cache)\b", source)


def test_no_source_changes_how_python_imports():
    found = [f"{path.relative_to(ROOT)}: {name}" for path in modules() for name in import_hooks(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "sys.meta_path.append(Hide())",
        "from sys import meta_path",
        "setattr(sys, 'meta_path', [])",
        "sys.path_hooks += [f]",
    ],
)
def test_a_planted_import_hook_is_found(source: str):
    assert len(import_hooks(source)) == 1


def test_packages_do_not_change_how_python_imports():
    """Those within packages too, but without what they load only when it is used."""
    names = {".".join(path.relative_to(ROOT).parts[:-1]) for path in modules() if path.name == "__init__.py"}
    script = f"import sys; before = sys.meta_path[:]; import {', '.join(sorted(names))}; assert sys.meta_path == before"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


# Options of other programs, which a module passes on or names: TFF's worker, and pip.
FOREIGN_OPTIONS = {
    "fl/runtime/worker.py": {"--port", "--max_concurrent_computation_calls"},
    "fl/sources/shakespeare.py": {"--no-deps"},
}


def options(path: PurePosixPath, source: str) -> list[str]:
    """One line for every option of a command line that `source`, the module at `path`, names."""
    named = re.findall(r"(?<![\w-])--[a-z][\w-]*", source)
    return [f"{path} names {option}" for option in named if option not in FOREIGN_OPTIONS.get(str(path), set())]


def test_library_names_no_option_of_the_command_line():
    """It names its own functions and parameters; the command says which option that is."""
    paths = [path.relative_to(ROOT) for path in modules() if not path.is_relative_to(ROOT / "experiments")]
    found = [line for path in paths for line in options(PurePosixPath(path), (ROOT / path).read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("fl/rounds.py", "raise ValueError('no worker: give --workers HOST:PORT')", ["--workers"]),
        ("fl/runtime/hosts.py", "f'{x}: --resume and --shards={y}'  # --cores", ["--resume", "--shards", "--cores"]),
        ("privacy/plan.py", '"""See `fedspeak privacy --delta`."""', ["--delta"]),
        ("models/export.py", "'(--port)'", ["--port"]),
        ("fl/runtime/worker.py", "[f'--port={port}', '--resume']", ["--resume"]),
        ("models/cifg.py", "x = y --z; a = b - -c; '-----BEGIN'; 'x--y'; '-- draws'", ["--z"]),
    ],
)
def test_a_planted_option_is_found(path: str, source: str, found: list[str]):
    assert options(PurePosixPath(path), source) == [f"{path} names {option}" for option in found]


@pytest.mark.parametrize(
    "package", ["fl", "fl.fairness", "fl.runtime", "models", "models.alignment", "models.decoding", "privacy"]
)
def test_no_public_name_is_that_of_a_module_which_would_hide_it(package: str):
    for name in importlib.import_module(package).__all__:
        assert importlib.util.find_spec(f"{package}.{name}") is None, f"{package}.{name} is a module"


def test_packages_and_help_load_no_tensorflow_and_few_modules():
    script = """
import sys
def clean(stage):
    heavy = {"tensorflow", "tensorflow_federated", "keras", "jax", "dp_accounting", "scipy", "matplotlib"}
    assert not heavy & set(sys.modules), (stage, heavy & set(sys.modules))
    print(stage, len(sys.modules))
import privacy, privacy.plan
clean("privacy")
import models, models.vocabulary
clean("models")
from models.alignment import asymptotics, best_of_n, guided, inference_time, majority, pools, quantile_tilt, rewind
from models.alignment import soft_best_of_n, tilt
clean("alignment")
import fl
clean("fl")
import experiments.commands.fairness, experiments.tables
clean("fairness")
from experiments.cli import main
sys.argv = ["fedspeak", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
clean("help")
from experiments.reproduce import alignment, best_of_n, best_of_n_theory, inference_time
clean("studies")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {stage: int(modules) for stage, modules in re.findall(r"^(\w+) (\d+)$", done.stdout, re.MULTILINE)}
    # An interpreter starts with 80, and NumPy has 130.
    assert loaded["privacy"] < 200
    assert loaded["alignment"] - loaded["models"] < 30
    assert loaded["help"] < 500
