"""Loads the signatures of an exported file into a runtime, and says which a decoding has."""

from collections.abc import Sequence
from typing import Any

from models.decoding.choices import DECODINGS, OFF, Choices
from models.litert import import_interpreter

PLAIN = DECODINGS[0]
"""The decoding without a drafter."""


def load_signatures(path: str, decodings: Sequence[str], automatic: bool, threads: int) -> dict[str, Any]:
    """Returns the signatures of a file as functions of NumPy arrays, by name.

    Args:
      path: the file.
      decodings: the decodings that it was exported with.
      automatic: whether it chooses draft lengths.
      threads: number of threads of the runtime, >= 1.

    Raises:
      ValueError: `threads` is out of range, the runtime cannot load the file, or it lacks a signature.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads = {threads!r}: must be an integer >= 1")
    names = ["prefill", "decode"]
    for decoding in decodings:
        kinds = ["generate"] if decoding == PLAIN else ["generate", "read", "block"]
        if automatic and decoding != PLAIN:
            kinds.append("plain_block")
        names += [signature_name(kind, decoding) for kind in kinds]
    try:
        interpreter = import_interpreter()(model_path=path, num_threads=threads)
        # Without this call TensorFlow 2.14's interpreter does not use its fast kernels (XNNPACK) in signatures.
        interpreter.allocate_tensors()
        return {name: interpreter.get_signature_runner(name) for name in names}
    except (ValueError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: the runtime cannot load it ({reason}); export it again or update the runtime"
        ) from None


def signature_name(kind: str, decoding: str) -> str:
    """Returns the name of a decoding's signature of a kind: "generate", "read", "block" or "plain_block"."""
    return kind if decoding == PLAIN else f"{kind}_{decoding.replace('-', '_')}"


def keep_known(inputs: dict[str, Any], choices: Choices, bias: Any) -> dict[str, Any]:
    """Returns the inputs that `generate` of a file from fedspeak 0.2 or earlier has.

    Raises:
      ValueError: the request needs others.
    """
    known = ("seed", "request", "temperature", "top_k")
    for name, off in OFF._asdict().items():
        if name not in known and getattr(choices, name) != off:
            raise ValueError(
                f"{name} = {getattr(choices, name)!r}: the file's graph, of fedspeak 0.2 or earlier, applies "
                f"temperature and top_k only; stream the text, or leave {name} at {off:g}"
            )
    if bias is not None:
        raise ValueError("bias: the file's graph, of fedspeak 0.2 or earlier, has none; stream the text, or drop it")
    return {name: inputs[name] for name in known}
