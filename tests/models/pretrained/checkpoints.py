"""Writes small checkpoints of made-up weights, as GGUF files and as Hugging Face folders."""

import json
import struct
from pathlib import Path

import numpy as np

from models.pretrained.tokenizer_builders import byte_level

MERGES = ["t h", "th e", "Ġ the", "Ġ a", "a n", "an d", "i n", "1 0"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A sentencepiece tokenizer's pieces in the order of their scores, as in Llama: what merges, then single characters.
PIECES = [
    "\u2581t",
    "he",
    "\u2581a",
    "th",
    "\u2581the",
    "an",
    "the",
    "in",
    "\u2581an",
    "and",
    "\u2581and",
    "\u2581\u2581",
    "aa",
    "aaaa",
]
PIECES += list("\u2581theandié日")
SIZES = {"embedding": 32, "blocks": 2, "heads": 4, "groups": 2, "inner": 48, "context": 64}


def byte_characters():
    """Returns the character of each byte in GPT-2's vocabulary, written out from its definition."""
    keep = (
        list(range(ord("!"), ord("~") + 1)) + list(range(ord("¡"), ord("¬") + 1)) + list(range(ord("®"), ord("ÿ") + 1))
    )
    characters, extra = {}, 0
    for byte in range(256):
        if byte in keep:
            characters[byte] = chr(byte)
        else:
            characters[byte] = chr(256 + extra)
            extra += 1
    return characters


def tokens(special_first=True):
    """Returns the tokens: three special ones (first, or last as in Qwen2), the bytes, and the merged pieces."""
    ordinary = list(byte_characters().values()) + [merge.replace(" ", "") for merge in MERGES]
    return SPECIAL + ordinary if special_first else ordinary + SPECIAL


def sentence_pieces():
    """Returns the tokens of a sentencepiece tokenizer, the types of tokens in a GGUF file, and the scores."""
    pieces = sorted(PIECES)  # not in the order of the scores
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(PIECES.index(piece)) for piece in pieces]
    return names, [2, 3, 3] + [6] * 256 + [1] * len(PIECES), scores


def make_weights(rows, seed=0, bias=False):
    """Draws weights by their Hugging Face names, as `[outputs, inputs]`, entries i and i + D/2 of a head paired."""
    rng = np.random.default_rng(seed)
    size, inner = SIZES["embedding"], SIZES["inner"]
    head = size // SIZES["heads"]

    def draw(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    weights = {"model.embed_tokens.weight": 3 * draw(rows, size), "model.norm.weight": 1 + 0.1 * draw(size)}
    for index in range(SIZES["blocks"]):
        block = f"model.layers.{index}"
        for name, outputs, inputs in (
            ("self_attn.q_proj", size, size),
            ("self_attn.k_proj", SIZES["groups"] * head, size),
            ("self_attn.v_proj", SIZES["groups"] * head, size),
            ("self_attn.o_proj", size, size),
            ("mlp.gate_proj", inner, size),
            ("mlp.up_proj", inner, size),
            ("mlp.down_proj", size, inner),
        ):
            weights[f"{block}.{name}.weight"] = draw(outputs, inputs)
            if bias and name[-6] in "qkv":
                weights[f"{block}.{name}.bias"] = draw(outputs)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{block}.{name}.weight"] = 1 + 0.1 * draw(size)
    return weights


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path, architecture="llama", types=None, fields=None, drop=(), extra=None, tokenizer="gpt2"):
    """Writes a GGUF file; returns the weights by their Hugging Face names.

    Args:
      types: the quantisation of matrices, a `gguf.GGMLQuantizationType`; None for float32.
      fields: metadata that replaces the ordinary; None removes a field.
      drop: GGUF names of tensors that are left out.
      extra: more tensors by GGUF name.
      tokenizer: "gpt2" for a byte-level tokenizer, "llama" for a sentencepiece tokenizer.
    """
    import gguf

    qwen = architecture == "qwen2"
    names = sentence_pieces()[0] if tokenizer == "llama" else tokens(special_first=not qwen)
    rows = len(names) + (5 if qwen else 0)
    weights = make_weights(rows, bias=qwen)
    writer = gguf.GGUFWriter(str(path), architecture)
    metadata = {
        "block_count": SIZES["blocks"],
        "context_length": SIZES["context"],
        "embedding_length": SIZES["embedding"],
        "feed_forward_length": SIZES["inner"],
        "attention.head_count": SIZES["heads"],
        "attention.head_count_kv": SIZES["groups"],
    }
    for name, value in metadata.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{architecture}.rope.freq_base", 1000.0)
    (_add_sentence_pieces if tokenizer == "llama" else _add_byte_level)(writer, names, qwen)
    for name, value in (fields or {}).items():
        if value is None:
            del writer.kv_data[0][name]
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
            adders[type(value)](name, value)
    head = SIZES["embedding"] // SIZES["heads"]
    for name, weight in weights.items():
        short = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm")
        for ours, theirs in GGUF_NAMES.items():
            short = short.replace(ours, theirs)
        short = short.replace("model.layers", "blk")
        if architecture == "llama" and ("attn_q." in short or "attn_k." in short):
            # llama.cpp turns neighbours together: entry 2i of a head is entry i here, and 2i + 1 is i + D/2.
            order = [h * head + i // 2 + (i % 2) * head // 2 for h in range(len(weight) // head) for i in range(head)]
            weight = weight[order]
        if short in drop:
            continue
        if types is not None and weight.ndim == 2 and weight.shape[1] % 32 == 0:  # the size of a block of weights
            writer.add_tensor(short, gguf.quantize(weight, types), raw_dtype=types)
        else:
            writer.add_tensor(short, weight)
    for name, weight in (extra or {}).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _add_byte_level(writer, names, qwen):
    first = names.index(SPECIAL[0])
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "qwen2" if qwen else "smollm")
    writer.add_array("tokenizer.ggml.tokens", names)
    writer.add_array("tokenizer.ggml.merges", MERGES)
    writer.add_array("tokenizer.ggml.token_type", [3 if name in SPECIAL else 1 for name in names])
    writer.add_uint32("tokenizer.ggml.bos_token_id", first if qwen else first + 1)
    writer.add_uint32("tokenizer.ggml.eos_token_id", first + 2)
    writer.add_string("tokenizer.chat_template", TEMPLATE)


def _add_sentence_pieces(writer, names, qwen):
    writer.add_string("tokenizer.ggml.model", "llama")
    writer.add_array("tokenizer.ggml.tokens", names)
    writer.add_array("tokenizer.ggml.token_type", sentence_pieces()[1])
    writer.add_array("tokenizer.ggml.scores", sentence_pieces()[2])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 1)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)


def write_folder(folder: Path, architecture="llama", dtype="F32", config=None, settings=None):
    """Writes a Hugging Face folder with two shards; returns the weights by name, as they are stored."""
    qwen = architecture == "qwen2"
    names = tokens(special_first=not qwen)
    rows = len(names) + (5 if qwen else 0)
    weights = make_weights(rows, bias=qwen)
    folder.mkdir()
    first = names.index(SPECIAL[0])
    content = {
        "model_type": architecture,
        "hidden_size": SIZES["embedding"],
        "intermediate_size": SIZES["inner"],
        "num_hidden_layers": SIZES["blocks"],
        "num_attention_heads": SIZES["heads"],
        "num_key_value_heads": SIZES["groups"],
        "max_position_embeddings": SIZES["context"],
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "vocab_size": rows,
        **(config or {}),
    }
    (folder / "config.json").write_text(json.dumps({name: v for name, v in content.items() if v is not None}))
    encoder = byte_level(names, MERGES, SPECIAL, [], "qwen2" if qwen else "smollm", "test")
    (folder / "tokenizer.json").write_text(encoder)
    given = {
        "bos_token": None if qwen else names[first + 1],
        "eos_token": names[first + 2],
        "chat_template": TEMPLATE,
        **(settings or {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(given))
    stored = {name: _store(weight, dtype) for name, weight in weights.items()}
    ordered = sorted(stored)
    parts = {"model-1.safetensors": ordered[::2], "model-2.safetensors": ordered[1::2]}
    for file, own in parts.items():
        write_safetensors(folder / file, {name: stored[name][0] for name in own})
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return {name: value for name, (_, value) in stored.items()}


def _store(weight, dtype):
    if dtype == "F32":
        data, value = weight.tobytes(), weight
    elif dtype == "F16":
        data, value = weight.astype(np.float16).tobytes(), weight.astype(np.float16).astype(np.float32)
    else:  # BF16: the upper half of a float32
        upper = (weight.view(np.uint32) >> 16).astype(np.uint16)
        data, value = upper.tobytes(), (upper.astype(np.uint32) << 16).view(np.float32)
    return {"dtype": dtype, "shape": list(weight.shape), "data": data}, value


def write_safetensors(path, tensors):
    """Writes the format by hand: the length of the header in 8 bytes, the header as JSON, and the tensors' bytes."""
    header, content = {}, b""
    for name, tensor in tensors.items():
        offsets = [len(content), len(content) + len(tensor["data"])]
        header[name] = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": offsets}
        content += tensor["data"]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
