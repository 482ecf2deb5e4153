"""Reads a language model from a Hugging Face folder: `config.json`, `tokenizer.json` and `*.safetensors`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    own = Fields(config, where)
    rope, scaling = own.mapping("rope_parameters", {}), own.mapping("rope_scaling", {})
    for given in (scaling, rope):
        kind = given.text("rope_type", given.text("type", "default" if given.number("factor", 1.0) == 1 else "linear"))
        if kind != "default":
            raise ValueError(f"{where}: scaling of the rotary positions ({kind}) cannot be imported")
    if config.get("use_sliding_window"):
        raise ValueError(f"{where}: a sliding window cannot be imported")
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            raise ValueError(f"{where}: {name} cannot be imported: the decoder has no such biases")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{where}: the activation {config['hidden_act']!r} cannot be imported; silu can")
    embedding, heads = own.integer("hidden_size"), own.integer("num_attention_heads")
    if config.get("head_dim") not in (None, embedding // heads):
        raise ValueError(f"{where}: head_dim is not {embedding // heads}, hidden_size / heads; it cannot be imported")
    settings = {
        "embedding": embedding,
        "blocks": own.integer("num_hidden_layers", most=MAX_BLOCKS),
        "heads": heads,
        "key_value_heads": own.integer("num_key_value_heads", heads),
        "feed_forward": own.integer("intermediate_size"),
        "context": own.integer("max_position_embeddings"),
        "norm_epsilon": own.number("rms_norm_eps"),
        "rotary_base": own.number("rope_theta", rope.number("rope_theta", 10000.0)),
        "tied": own.flag("tie_word_embeddings", False),
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
        files = Fields(_read_json(index), str(index)).mapping("weight_map")
        names = {files.text(name.removeprefix(files.prefix)) for name in files.content}
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
    given = folder / "tokenizer_config.json"
    settings = Fields(_read_json(given) if given.exists() else {}, str(given))
    ids, special = _read_ids(content, rows, path)

    def find(name: str) -> int | None:
        text = _text_of(settings, f"{name}_token")
        return ids.get(text) if text is not None else _first_id(config, f"{name}_token_id", folder / "config.json")

    end = find("eos")
    if end is None:
        raise ValueError(f"{folder}: tokenizer_config.json and config.json name no end token: it cannot be imported")
    template = _read_template(folder, settings)
    unknown = Fields(content["model"], str(path)).optional_text("unk_token")
    used = set(ids.values())
    spare = [ids[unknown]] if unknown in ids else []
    spare += [token for token in range(rows) if token not in used]
    return PretrainedVocabulary.arrange(
        json.dumps(content, ensure_ascii=False),
        rows,
        begin=find("bos"),
        end=end,
        spare=spare + [ids[name] for name in special if name not in (template or "")],
        reads_begin=_reads_begin(content, settings),
        chat_template=template,
        where=str(path),
    )


def _read_ids(content: Mapping[str, Any], rows: int, path: Path) -> tuple[dict[str, int], list[str]]:
    """Returns the id of each token, and the special tokens."""
    try:
        added = [Fields(entry, f"{path}: added_tokens") for entry in content["added_tokens"]]
        ids = {**content["model"]["vocab"]}
        ids |= {entry.text("content"): entry.integer("id", least=0) for entry in added}
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"{path}: not the file of a BPE tokenizer: it cannot be imported") from None
    for token, value in ids.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{path}: the id of the token {token[:30]!r} is {value!r:.60}, not an integer: damaged")
        if value >= rows:
            raise ValueError(f"{path}: it has the id {value}, but the embedding has {rows} rows")
    return ids, [entry.text("content") for entry in added if entry.flag("special")]


def _text_of(settings: Fields, name: str) -> str | None:
    """Returns a token, which is given as a text or as an object with a text."""
    if isinstance(settings.get(name), dict):
        return settings.mapping(name).optional_text("content")
    return settings.optional_text(name)


def _first_id(config: Mapping[str, Any], name: str, path: Path) -> int | None:
    """Returns an id, or the first of several: that is the end of a turn in some checkpoints, of a text in others."""
    value = config.get(name)
    if isinstance(value, list):
        value = value[0] if value else "[]"
    return None if value is None else Fields({name: value}, str(path)).integer(name, least=0)


def _read_template(folder: Path, settings: Fields) -> str | None:
    """Returns the chat template, from `chat_template.jinja` or the settings; of several, the one named default."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 (byte {error.start}): download it again") from None
    templates = settings.get("chat_template")
    if not isinstance(templates, list):
        return settings.optional_text("chat_template")
    for entry in templates:
        if not isinstance(entry, dict):
            settings.refuse("chat_template", entry, "a text or a list of objects")
        if entry.get("name") == "default":
            return Fields(entry, f"{settings.where}: chat_template").text("template")
    return None


def _reads_begin(content: Mapping[str, Any], settings: Fields) -> bool:
    """Returns whether the tokenizer puts its begin token before a text."""
    if settings.has("add_bos_token"):
        return settings.flag("add_bos_token")
    text = _text_of(settings, "bos_token")
    return text is not None and json.dumps(text) in json.dumps(content.get("post_processor"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object; download it again")
    return content
