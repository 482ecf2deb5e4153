"""Finds the runtime of exported models: `ai-edge-litert`, else TensorFlow's own interpreter."""

from importlib import metadata
from typing import Any


def runtime() -> str:
    """Returns the name and version of the runtime in use."""
    package = import_interpreter().__module__.split(".")[0].replace("_", "-")
    return f"{package} {metadata.version(package)}"


def import_interpreter() -> Any:
    """Returns the interpreter's class.

    Raises:
      ModuleNotFoundError: there is no runtime; one line.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] != "ai_edge_litert":
            raise
        try:
            import tensorflow as tf
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "no runtime for exported models is installed: pip install 'fedspeak[models]'",
                name="ai_edge_litert",
            ) from None
        return tf.lite.Interpreter
    return Interpreter
