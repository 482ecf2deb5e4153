"""Loads the signatures of an exported file into a runtime, and builds their inputs and reads their outputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.decoding.choices import DECODINGS, OFF, Choices, Costs, check_costs
from models.decoding.numpy_ops import seed_words
from models.litert import import_interpreter
from models.tflite_file import Facts

PLAIN = DECODINGS[0]
"""The decoding without a drafter."""
_BY_TOKEN = ("tokens", "log_probs", "unprocessed_log_probs")


def load_signatures(path: str, decodings: Sequence[str], automatic: bool, best_of: int, threads: int) -> dict[str, Any]:
    """Returns the signatures of a file as functions of NumPy arrays, by name.

    Args:
      path: the file.
      decodings: the decodings that it was exported with.
      automatic: whether it chooses draft lengths.
      best_of: number of texts that it draws at once.
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
        if best_of > 1:
            kinds.append("generate_best_of_n")
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
    """Returns the name of a decoding's signature of a kind, such as "generate", "read", "block" or "plain_block"."""
    return kind if decoding == PLAIN else f"{kind}_{decoding.replace('-', '_')}"


def choose_decoding(path: str, facts: Facts, decoding: str | None, costs: Costs | None) -> str:
    """Returns the decoding of a request: one of the file's or "autoregressive"; None is the file's first.

    Raises:
      ValueError: the file has no such decoding, or costs are given that it does not use.
    """
    chosen = facts.decodings[0] if decoding is None else decoding
    if chosen not in (*facts.decodings, PLAIN):
        raise ValueError(
            f"decoding = {decoding!r}: {path} was exported for {', '.join(facts.decodings)}; choose one of these, or "
            "export again"
        )
    if costs is not None and chosen == PLAIN:
        raise ValueError(f"costs: decoding = {chosen!r} makes no drafts; drop them, or choose another decoding")
    return chosen


def build_inputs(
    path: str, facts: Facts, choices: Choices, bias: NDArray[np.float32] | None, decoding: str, costs: Costs | None
) -> dict[str, Any]:
    """Returns the choices of a request as inputs of a signature.

    Raises:
      ValueError: costs are missing, or given to a file that does not use them.
    """
    numbers: dict[str, Any] = {"request": choices.request, **choices.processing._asdict()}
    if costs is not None and not facts.automatic:
        raise ValueError(f"costs: {path} drafts {facts.draft_length} tokens always; drop them")
    if facts.automatic and decoding != PLAIN:
        if costs is None:
            raise ValueError(f"costs: {path} chooses draft lengths by costs; give those of models.device_costs")
        numbers |= {f"{name}_cost": cost for name, cost in check_costs(costs)._asdict().items()}
    integers = ("request", "top_k")
    return {
        "seed": seed_words(choices.seed),
        "bias": np.zeros(facts.config["vocabulary_size"], np.float32) if bias is None else bias,
        **{name: np.array(value, np.int32 if name in integers else np.float32) for name, value in numbers.items()},
    }


def split_rows(outputs: dict[str, NDArray[Any]], prompt: int) -> list[dict[str, NDArray[Any]]]:
    """Returns what a loop gave for each text, cut to the text's tokens.

    Args:
      outputs: the outputs of a signature "generate" or "generate_best_of_n".
      prompt: number of tokens of the prompt.

    Raises:
      ValueError: the logits were not finite, or left no token.
    """
    rows = [{name: value[row] for name, value in outputs.items()} for row in range(len(outputs["lengths"]))]
    for drawn in rows:
        if not drawn.get("is_finite", True):
            raise ValueError(
                f"logits at position {prompt + drawn['lengths']} are not finite, or bias and banned leave no token: "
                "the model is damaged or diverged, or allow at least one token"
            )
        drawn |= {name: drawn[name][: drawn["lengths"]] for name in _BY_TOKEN if name in drawn}
    return rows


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
