"""Reads a language model from a Hugging Face folder: `config.json`, `tokenizer.json` and `*.safetensors`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.pretrained.architecture import Names, Parts, llama_options, read_weights, require_architecture
from models.pretrained.tokenizer import PretrainedVocabulary

_BLOCK = "model.layers.{}"
_NAMES = Names(
    query=f"{_BLOCK}.self_attn.q_proj",
    key=f"{_BLOCK}.self_attn.k_proj",
    value=f"{_BLOCK}.self_attn.v_proj",
    attention_output=f"{_BLOCK}.self_attn.o_proj",
    attention_norm=f"{_BLOCK}.input_layernorm",
    feed_forward_norm=f"{_BLOCK}.post_attention_layernorm",
    gate=f"{_BLOCK}.mlp.gate_proj",
    value_up=f"{_BLOCK}.mlp.up_proj",
    down=f"{_BLOCK}.mlp.down_proj",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    output="lm_head",
)


def read(folder: Path) -> Parts:
    """Reads a folder as `save_pretrained` of Hugging Face transformers writes it.

    Raises:
      OSError: a file is missing or cannot be read.
      ValueError: a file is damaged, or has something that cannot be imported.
    """
    config = _read_json(folder / "config.json")
    architecture = require_architecture(config.get("model_type"), str(folder / "config.json"))
    tensors = _open_tensors(folder)
    options = _read_options(config, architecture, str(folder / "config.json"))
    used: set[str] = set()

    def read_tensor(name: str) -> NDArray[np.float32]:
        used.add(name)
        if name not in tensors:
            raise ValueError(f"{folder}: tensor {name} is missing: the checkpoint is damaged; download it again")
        return _to_float32(tensors[name], name, str(folder))

    weights = read_weights(options, _NAMES, read_tensor)
    # A tied checkpoint may hold the output layer too, and old ones the rotary frequencies, which are computed here.
    others = {name for name in tensors if name != "lm_head.weight" and not name.endswith("rotary_emb.inv_freq")}
    for name in sorted(others - used):
        raise ValueError(f"{folder}: the decoder has no place for tensor {name}; the checkpoint cannot be imported")
    rows = len(weights["embedding"])
    vocabulary = _read_vocabulary(folder, config, rows)
    return Parts(options, weights, rows, vocabulary, f"{architecture}, Hugging Face")


def _read_options(config: Mapping[str, Any], architecture: str, where: str) -> dict[str, Any]:
    def get(name: str) -> Any:
        if config.get(name) is None:
            raise ValueError(f"{where}: the field {name} is missing: the file is damaged; download it again")
        return config[name]

    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", rope.get("rope_type", "default")))
    if kind != "default":
        raise ValueError(f"{where}: scaling of the rotary positions ({kind}) cannot be imported")
    if config.get("use_sliding_window"):
        raise ValueError(f"{where}: a sliding window cannot be imported")
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            raise ValueError(f"{where}: {name} cannot be imported: the decoder has no such biases")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{where}: the activation {config['hidden_act']!r} cannot be imported; silu can")
    embedding, heads = int(get("hidden_size")), int(get("num_attention_heads"))
    if config.get("head_dim") not in (None, embedding // heads):
        raise ValueError(f"{where}: head_dim is not {embedding // heads}, hidden_size / heads; it cannot be imported")
    settings = {
        "embedding": embedding,
        "blocks": int(get("num_hidden_layers")),
        "heads": heads,
        "key_value_heads": int(config.get("num_key_value_heads") or heads),
        "feed_forward": int(get("intermediate_size")),
        "context": int(get("max_position_embeddings")),
        "norm_epsilon": float(get("rms_norm_eps")),
        "rotary_base": float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        "tied": bool(config.get("tie_word_embeddings", False)),
    }
    return llama_options(settings, architecture)


def _open_tensors(folder: Path) -> dict[str, Any]:
    """Returns the tensors of all files by name, in the form that `safetensors.deserialize` gives them."""
    from safetensors import deserialize

    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no *.safetensors in it: give the folder of a checkpoint in that format")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = set(_read_json(index).get("weight_map", {}).values())
        missing = sorted(names - {path.name for path in paths})
        if missing:
            raise FileNotFoundError(f"{folder}: {missing[0]} is missing: download the checkpoint again")
        paths = [path for path in paths if path.name in names]
    tensors: dict[str, Any] = {}
    for path in paths:
        try:
            tensors.update(deserialize(path.read_bytes()))
        except OSError:
            raise
        except Exception as error:  # SafetensorError, which is not exported by all versions
            raise ValueError(f"{path}: cut short or damaged ({error}); download it again") from None
    return tensors


def _to_float32(tensor: Mapping[str, Any], name: str, where: str) -> NDArray[np.float32]:
    data, shape = tensor["data"], tensor["shape"]
    match tensor["dtype"]:
        case "F32":
            values = np.frombuffer(data, "<f4")
        case "F16":
            values = np.frombuffer(data, "<f2").astype(np.float32)
        case "BF16":
            values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        case kind:
            raise ValueError(f"{where}: tensor {name} has type {kind}; F32, F16 and BF16 can be imported")
    return values.reshape(shape)


def _read_vocabulary(folder: Path, config: Mapping[str, Any], rows: int) -> PretrainedVocabulary:
    path = folder / "tokenizer.json"
    content = _read_json(path)
    settings = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    try:
        added = {entry["content"]: entry for entry in content["added_tokens"]}
        ids = {**content["model"]["vocab"], **{name: entry["id"] for name, entry in added.items()}}
    except (KeyError, TypeError):
        raise ValueError(f"{path}: not the file of a BPE tokenizer: it cannot be imported") from None
    if max(ids.values()) >= rows:
        raise ValueError(f"{path}: it has the id {max(ids.values())}, but the embedding has {rows} rows")

    def find(name: str) -> int | None:
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text is not None:
            return ids.get(text)
        value = config.get(f"{name}_token_id")
        return value[0] if isinstance(value, list) else value

    end = find("eos")
    if end is None:
        raise ValueError(f"{folder}: tokenizer_config.json and config.json name no end token: it cannot be imported")
    template = settings.get("chat_template")
    if (folder / "chat_template.jinja").exists():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not isinstance(template, str):
        template = None
    unknown = content["model"].get("unk_token")
    special = [entry["id"] for name, entry in added.items() if entry["special"] and name not in (template or "")]
    spare = [ids[unknown]] if unknown in ids else []
    spare += [token for token in range(rows) if token not in set(ids.values())] + special
    return PretrainedVocabulary.arrange(
        json.dumps(content, ensure_ascii=False),
        rows,
        begin=find("bos"),
        end=end,
        spare=spare,
        reads_begin=_reads_begin(content, settings),
        chat_template=template,
        where=str(path),
    )


def _reads_begin(content: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Returns whether the tokenizer puts its begin token before a text."""
    if "add_bos_token" in settings and settings["add_bos_token"] is not None:
        return bool(settings["add_bos_token"])
    begin = settings.get("bos_token")
    text = begin.get("content") if isinstance(begin, dict) else begin
    return text is not None and json.dumps(text) in json.dumps(content.get("post_processor"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object; download it again")
    return content
