"""Reads a language model from a GGUF file, the format of llama.cpp, with the `gguf` package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.pretrained import tokenizer_builders
from models.pretrained.architecture import Names, Parts, llama_options, read_weights, require_architecture
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
    def get(name: str) -> Any:
        key = f"{architecture}.{name}"
        if key not in fields:
            raise ValueError(f"{where}: the field {key} is missing: the file is damaged; download it again")
        return fields[key]

    scaling = fields.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" or f"{architecture}.rope.scale_linear" in fields:
        raise ValueError(f"{where}: scaling of the rotary positions ({scaling}) cannot be imported")
    for name, problem in (("attention.sliding_window", "a sliding window"), ("expert_count", "a mixture of experts")):
        if fields.get(f"{architecture}.{name}"):
            raise ValueError(f"{where}: {problem} cannot be imported")
    embedding, heads = int(get("embedding_length")), int(get("attention.head_count"))
    size = embedding // heads
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if fields.get(f"{architecture}.{name}", size) != size:
            raise ValueError(f"{where}: {architecture}.{name} is not {size}, embedding / heads; it cannot be imported")
    settings = {
        "embedding": embedding,
        "blocks": int(get("block_count")),
        "heads": heads,
        "key_value_heads": int(fields.get(f"{architecture}.attention.head_count_kv", heads)),
        "feed_forward": int(get("feed_forward_length")),
        "context": int(get("context_length")),
        "norm_epsilon": _to_float(get("attention.layer_norm_rms_epsilon")),
        "rotary_base": _to_float(fields.get(f"{architecture}.rope.freq_base", 10000.0)),
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
    def get(name: str) -> Any:
        if f"tokenizer.ggml.{name}" not in fields:
            raise ValueError(f"{where}: the field tokenizer.ggml.{name} is missing: the file holds no usable tokenizer")
        return fields[f"tokenizer.ggml.{name}"]

    tokens, kind = get("tokens"), get("model")
    types = fields.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if len(tokens) > rows:
        raise ValueError(f"{where}: {len(tokens)} tokens, but the embedding has {rows} rows: the file is damaged")
    if len(types) != len(tokens):
        raise ValueError(f"{where}: {len(tokens)} tokens, but {len(types)} types of tokens: the file is damaged")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind in (_UNKNOWN, _CONTROL)]
    whole = [token for token, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    rule = fields.get("tokenizer.ggml.pre", "")
    if kind == "gpt2":
        content = tokenizer_builders.byte_level(tokens, get("merges"), special, whole, rule, where)
    elif kind == "llama":
        add_space, scores = bool(fields.get("tokenizer.ggml.add_space_prefix", True)), get("scores")
        if len(scores) != len(tokens):
            raise ValueError(f"{where}: {len(tokens)} tokens, but {len(scores)} scores: the file is damaged")
        content = tokenizer_builders.sentence_piece(tokens, scores, special, whole, add_space)
    else:
        raise ValueError(f"{where}: a tokenizer of kind {kind!r} cannot be imported; those that can: gpt2, llama")
    template = fields.get("tokenizer.chat_template")
    controls = [i for i, kind in enumerate(types) if kind == _CONTROL and tokens[i] not in (template or "")]
    unused = [i for i, kind in enumerate(types) if kind in (_UNKNOWN, _UNUSED)]
    return PretrainedVocabulary.arrange(
        content,
        rows,
        begin=fields.get("tokenizer.ggml.bos_token_id"),
        end=int(get("eos_token_id")),
        spare=[*unused, *range(len(tokens), rows), *controls],
        # llama.cpp's rule for files that do not say it.
        reads_begin=bool(fields.get("tokenizer.ggml.add_bos_token", kind == "llama" or rule == "llama-bpe")),
        chat_template=template,
        where=where,
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
