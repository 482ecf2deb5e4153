"""Maps the settings and weights of Llama-family checkpoints to `TransformerLanguageModel`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.language_model import Weights
from models.pretrained.tokenizer import PretrainedVocabulary
from models.transformer.options import block_name

ARCHITECTURES = ("llama", "qwen2")
"""Names of the architectures that can be imported, in GGUF files and in the `model_type` of Hugging Face folders."""

MAX_BLOCKS = 99
"""Maximum number of blocks, whose weights have names of two digits; see `models.transformer.options.block_name`."""


class Parts(NamedTuple):
    """Holds what a file format's reader found.

    Attributes:
      options: arguments of `TransformerLanguageModel` without the vocabulary's size.
      weights: weights by name, with the rows of the embeddings in the checkpoint's order.
      rows: number of rows of the embeddings.
      vocabulary: the tokenizer.
      description: name of the architecture and the file format.
    """

    options: dict[str, Any]
    weights: Weights
    rows: int
    vocabulary: PretrainedVocabulary
    description: str


def require_architecture(name: Any, where: str) -> str:
    """Returns the architecture's name; raises ValueError if it cannot be imported."""
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{where}: architecture {name!r} cannot be imported; those that can: {', '.join(ARCHITECTURES)}"
        )
    return str(name)


def llama_options(settings: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Returns the options of the decoder for settings named as the arguments of `TransformerLanguageModel`."""
    fixed = {"normalization": "rms", "activation": "swiglu", "attention_bias": architecture == "qwen2"}
    return {**settings, **fixed}


class Names(NamedTuple):
    """Holds the names of a block's tensors in a file format; `{}` stands for the block's number.

    Attributes:
      query: the query projection; `bias` is added to its name for the bias.
      key: the key projection.
      value: the value projection.
      attention_output: the output projection of attention.
      attention_norm: the scale before attention.
      feed_forward_norm: the scale before the feed-forward layer.
      gate: the gate of the feed-forward layer.
      value_up: the value of the feed-forward layer.
      down: its output projection.
      embedding: the embedding.
      final_norm: the scale before the output layer.
      output: the output layer.
    """

    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    feed_forward_norm: str
    gate: str
    value_up: str
    down: str
    embedding: str
    final_norm: str
    output: str


def read_weights(
    options: Mapping[str, Any],
    names: Names,
    read: Callable[[str], NDArray[np.float32]],
    rotary_order: Callable[[NDArray[np.float32], int], NDArray[np.float32]] = lambda rows, heads: rows,
) -> Weights:
    """Reads all weights, which checkpoints hold as `[outputs, inputs]`, into the decoder's layout.

    Args:
      options: the decoder's options, without the vocabulary's size.
      names: the file format's names.
      read: returns a tensor by its name, without ".weight" or ".bias" taken off.
      rotary_order: takes the rows of queries or keys and their number of heads, and returns the rows of each head in
        the order in which entry i and entry i + D/2 are turned together.
    """
    heads, groups = options["heads"], options["key_value_heads"] or options["heads"]

    def project(index: int, suffix: str) -> NDArray[np.float32]:
        queries, keys, values = (
            read(f"{name.format(index)}.{suffix}") for name in (names.query, names.key, names.value)
        )
        return np.concatenate([rotary_order(queries, heads), rotary_order(keys, groups), values])

    def matrix(name: str, index: int) -> NDArray[np.float32]:
        return np.ascontiguousarray(read(f"{name.format(index)}.weight").T)

    weights: Weights = {
        "embedding": read(f"{names.embedding}.weight"),
        "final_norm": read(f"{names.final_norm}.weight"),
    }
    if not options["tied"]:
        weights["output"] = read(f"{names.output}.weight")
    for index in range(options["blocks"]):
        block = block_name(index)
        weights[f"{block}.query_key_value"] = np.ascontiguousarray(project(index, "weight").T)
        if options["attention_bias"]:
            weights[f"{block}.query_key_value_bias"] = project(index, "bias")
        weights[f"{block}.attention_output"] = matrix(names.attention_output, index)
        weights[f"{block}.attention_norm"] = read(f"{names.attention_norm.format(index)}.weight")
        weights[f"{block}.feed_forward_norm"] = read(f"{names.feed_forward_norm.format(index)}.weight")
        weights[f"{block}.inner"] = np.concatenate([matrix(names.gate, index), matrix(names.value_up, index)], axis=1)
        weights[f"{block}.outer"] = matrix(names.down, index)
    return weights
