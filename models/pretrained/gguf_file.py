"""Reads a language model from a GGUF file, the format of llama.cpp, with the `gguf` package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.pretrained import tokenizer_builders
from models.pretrained.architecture import (
    MAX_BLOCKS,
    Names,
    Parts,
    llama_options,
    read_weights,
    require_architecture,
)
from models.pretrained.fields import Fields
from models.pretrained.tokenizer import PretrainedVocabulary

_NAMES = Names(
    query="blk.{}.attn_q",
    key="blk.{}.attn_k",
    value="blk.{}.attn_v",
    attention_output="blk.{}.attn_output",
    attention_norm="blk.{}.attn_norm",
    feed_forward_norm="blk.{}.ffn_norm",
    gate="blk.{}.ffn_gate",
    value_up="blk.{}.ffn_up",
    down="blk.{}.ffn_down",
    embedding="token_embd",
    final_norm="output_norm",
    output="output",
)
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
"""Types of tokens in the field `tokenizer.ggml.token_type`."""


def read(path: Path) -> Parts:
    """Reads a GGUF file.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is damaged or cut short, or has something that cannot be imported.
    """
    from gguf import GGUFReader, dequantize

    with open(path, "rb") as file:  # so that a missing file is an OSError of its own
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path}: not a GGUF file: give a .gguf file, or a folder with config.json")
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # the package raises errors of many kinds on damaged files
        raise ValueError(f"{path}: cut short or damaged ({_one_line(error)}); download it again") from None
    architecture = require_architecture(fields.get("general.architecture"), str(path))
    options = _read_options(fields, architecture, "output.weight" in tensors, str(path))
    _refuse_other_tensors(tensors, options, str(path))

    def read_tensor(name: str) -> NDArray[np.float32]:
        if name not in tensors:
            raise ValueError(f"{path}: tensor {name} is missing: the file is damaged; download it again")
        tensor = tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        except Exception as error:  # NotImplementedError for a quantisation, ValueError for a wrong shape
            raise ValueError(
                f"{path}: tensor {name} of type {tensor.tensor_type.name} cannot be read ({_one_line(error)})"
            ) from None
        return np.asarray(values, np.float32)

    weights = read_weights(options, _NAMES, read_tensor, _pair_halves if architecture == "llama" else _keep)
    vocabulary = _read_vocabulary(fields, len(weights["embedding"]), str(path))
    return Parts(options, weights, len(weights["embedding"]), vocabulary, f"{architecture}, GGUF")


def _read_options(fields: Mapping[str, Any], architecture: str, has_output: bool, where: str) -> dict[str, Any]:
    own = Fields(fields, where, f"{architecture}.")
    # llama.cpp takes a factor without a type as linear scaling, and rope.scale_linear as its old name.
    scaling = own.text("rope.scaling.type", "linear" if own.number("rope.scaling.factor", 1.0) != 1 else "none")
    if scaling != "none" or own.has("rope.scale_linear"):
        raise ValueError(f"{where}: scaling of the rotary positions ({scaling}) cannot be imported")
    for name, problem in (("attention.sliding_window", "a sliding window"), ("expert_count", "a mixture of experts")):
        if own.get(name):
            raise ValueError(f"{where}: {problem} cannot be imported")
    embedding, heads = own.integer("embedding_length"), own.integer("attention.head_count")
    size = embedding // heads
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if own.has(name) and own.get(name) != size:
            raise ValueError(f"{where}: {architecture}.{name} is not {size}, embedding / heads; it cannot be imported")
    scale = own.number("attention.scale", size**-0.5) if size else 0.0
    if not abs(scale * size**0.5 - 1) < 1e-4:  # a float32 in the file
        raise ValueError(f"{where}: {architecture}.attention.scale is not 1 / sqrt({size}); it cannot be imported")
    settings = {
        "embedding": embedding,
        "blocks": own.integer("block_count", most=MAX_BLOCKS),
        "heads": heads,
        "key_value_heads": own.integer("attention.head_count_kv", heads),
        "feed_forward": own.integer("feed_forward_length"),
        "context": own.integer("context_length"),
        "norm_epsilon": _to_float(own.number("attention.layer_norm_rms_epsilon")),
        "rotary_base": _to_float(own.number("rope.freq_base", 10000.0)),
        "tied": not has_output,
    }
    return llama_options(settings, architecture)


def _to_float(value: Any) -> float:
    """Returns the shortest decimal number that a float32 stands for: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _refuse_other_tensors(tensors: Mapping[str, Any], options: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for a tensor that the decoder has no place for, such as another bias or rotary factors."""
    names = _NAMES._asdict()
    known = {f"{name}.weight" for name in (names.pop("embedding"), names.pop("final_norm"), names.pop("output"))}
    for index in range(options["blocks"]):
        known |= {f"{name.format(index)}.weight" for name in names.values()}
        if options["attention_bias"]:
            known |= {f"{names[name].format(index)}.bias" for name in ("query", "key", "value")}
    for name in sorted(tensors.keys() - known):
        raise ValueError(f"{where}: the decoder has no place for tensor {name}; the checkpoint cannot be imported")


def _pair_halves(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Moves entries 2i and 2i + 1 of each head, which a Llama's GGUF file turns together, to i and i + D/2."""
    split = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(np.swapaxes(split, 1, 2)).reshape(rows.shape)


def _keep(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    return rows


def _read_vocabulary(fields: Mapping[str, Any], rows: int, where: str) -> PretrainedVocabulary:
    own = Fields(fields, where, "tokenizer.ggml.")
    tokens, kind, rule = own.items("tokens", str), own.text("model"), own.text("pre", "")
    types = own.items("token_type", int) if own.has("token_type") else [1] * len(tokens)
    if len(tokens) > rows:
        raise ValueError(f"{where}: {len(tokens)} tokens, but the embedding has {rows} rows: the file is damaged")
    if len(types) != len(tokens):
        raise ValueError(f"{where}: {len(tokens)} tokens, but {len(types)} types of tokens: the file is damaged")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind in (_UNKNOWN, _CONTROL)]
    whole = [token for token, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    if kind == "gpt2":
        content = tokenizer_builders.byte_level(tokens, own.items("merges", str), special, whole, rule, where)
    elif kind == "llama":
        add_space, scores = own.flag("add_space_prefix", True), own.items("scores", float)
        if len(scores) != len(tokens):
            raise ValueError(f"{where}: {len(tokens)} tokens, but {len(scores)} scores: the file is damaged")
        content = tokenizer_builders.sentence_piece(tokens, scores, special, whole, add_space)
    else:
        raise ValueError(f"{where}: a tokenizer of kind {kind!r} cannot be imported; those that can: gpt2, llama")
    template = Fields(fields, where).optional_text("tokenizer.chat_template")
    controls = [i for i, kind in enumerate(types) if kind == _CONTROL and tokens[i] not in (template or "")]
    unused = [i for i, kind in enumerate(types) if kind in (_UNKNOWN, _UNUSED)]
    return PretrainedVocabulary.arrange(
        content,
        rows,
        begin=own.integer("bos_token_id", least=0) if own.has("bos_token_id") else None,
        end=own.integer("eos_token_id", least=0),
        spare=[*unused, *range(len(tokens), rows), *controls],
        # llama.cpp's rule for files that do not say it.
        reads_begin=own.flag("add_bos_token", kind == "llama" or rule == "llama-bpe"),
        chat_template=template,
        where=where,
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
