"""Settings of a wrong type, out of range or not implemented are refused in one line that names file and field."""

import json
import re

import numpy as np
import pytest

from models.pretrained import checkpoint, gguf_file
from models.pretrained.fields import Fields
from tests.models.pretrained.checkpoints import write_folder, write_gguf

pytest.importorskip("gguf")

DAMAGED_GGUF = {
    "llama.block_count": (4294967295, "must be an integer from 1 to 99, not 4294967295"),
    "llama.embedding_length": (0, "must be an integer from 1"),
    "llama.context_length": (0, "must be an integer from 1"),
    "llama.attention.head_count": (0, "must be an integer from 1"),
    "llama.attention.head_count_kv": (0, "must be an integer from 1"),
    "llama.attention.layer_norm_rms_epsilon": (float("inf"), "must be a finite number, not inf"),
    "llama.rope.freq_base": ("large", "must be a finite number, not 'large'"),
    "llama.rope.scaling.type": (3, "must be a text, not 3"),
    "llama.rope.scaling.factor": ([2.0], "is a list"),
    "tokenizer.ggml.bos_token_id": ("1", "must be an integer from 0 to 2147483647, not '1'"),
    "tokenizer.ggml.eos_token_id": ("2", "must be an integer from 0 to 2147483647, not '2'"),
    "tokenizer.ggml.pre": ([1, 2], "is a list"),
    "tokenizer.ggml.model": (7, "must be a text, not 7"),
    "tokenizer.ggml.merges": ([1, 2], "must be a list of texts"),
    "tokenizer.ggml.tokens": ([1, 2], "must be a list of texts"),
    "tokenizer.ggml.token_type": (["a"], "must be a list of integers"),
    "tokenizer.ggml.add_bos_token": ("yes", "must be true or false, not 'yes'"),
    "tokenizer.chat_template": (5, "must be a text, not 5"),
}


@pytest.mark.parametrize("name", DAMAGED_GGUF)
def test_gguf_field_of_a_wrong_type_or_size_is_refused_by_name(name, tmp_path):
    value, message = DAMAGED_GGUF[name]
    write_gguf(tmp_path / "model.gguf", fields={name: value})
    assert refusal(tmp_path / "model.gguf").startswith(f"{tmp_path}/model.gguf: the field {name} {message}")


@pytest.mark.parametrize("name", ["attention.head_count", "attention.head_count_kv", "feed_forward_length"])
def test_gguf_field_with_one_value_per_block_is_refused_by_name(name, tmp_path):
    write_gguf(tmp_path / "model.gguf", fields={f"llama.{name}": [4, 4]})
    message = f"the field llama.{name} is a list, such as one value per block; only a single value can be imported"
    assert message in refusal(tmp_path / "model.gguf")


DAMAGED_CONFIG = [
    ({"hidden_size": [32]}, "hidden_size is a list"),
    ({"hidden_size": 32.7}, "hidden_size must be an integer from 1 to 2147483647, not 32.7"),
    ({"hidden_size": float("inf")}, "hidden_size must be an integer"),  # 1e999 in JSON is read as infinity
    ({"hidden_size": 10**400}, "hidden_size must be an integer from 1 to 2147483647, not a huge integer"),
    ({"hidden_size": True}, "hidden_size must be an integer from 1 to 2147483647, not True"),
    ({"num_attention_heads": 0}, "num_attention_heads must be an integer from 1"),
    ({"num_key_value_heads": 0}, "num_key_value_heads must be an integer from 1"),
    ({"num_hidden_layers": 100}, "num_hidden_layers must be an integer from 1 to 99, not 100"),
    ({"num_hidden_layers": -1}, "num_hidden_layers must be an integer from 1 to 99, not -1"),
    ({"rope_parameters": "default"}, "rope_parameters must be an object, not 'default'"),
    ({"rope_parameters": []}, r"rope_parameters must be an object, not \[\]"),
    ({"rope_scaling": ["linear"]}, "rope_scaling must be an object"),
    ({"rope_scaling": {"type": 3}}, "rope_scaling.type must be a text, not 3"),
    ({"rms_norm_eps": [1e-5]}, "rms_norm_eps is a list"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a finite number, not a huge integer"),
    ({"rope_theta": "1e4"}, "rope_theta must be a finite number, not '1e4'"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, not 'false'"),
]


@pytest.mark.parametrize(("config", "message"), DAMAGED_CONFIG)
def test_setting_of_a_wrong_type_or_size_is_refused_by_name(config, message, tmp_path):
    write_folder(tmp_path / "model", config=config)
    assert re.search(f"config.json: the field {message}", refusal(tmp_path / "model"))


@pytest.mark.parametrize("value", ["abc", [], ["abc"], {}, 2.0, True, -1])
def test_end_token_that_is_no_id_is_refused_by_name(value, tmp_path):
    write_folder(tmp_path / "model", config={"eos_token_id": value}, settings={"eos_token": None})
    assert "config.json: the field eos_token_id must be an integer" in refusal(tmp_path / "model")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the field weight_map is missing"),
        (3, "the field weight_map must be an object, not 3"),
        (["model-1.safetensors"], "the field weight_map must be an object"),
        ({"a": "model-1.safetensors", "b": 3}, "the field weight_map.b must be a text, not 3"),
        ({"a": ["model-1.safetensors"]}, "the field weight_map.a is a list"),
    ],
)
def test_index_of_files_that_is_damaged_is_refused_by_name(value, message, tmp_path):
    write_folder(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": value}))
    assert f"model.safetensors.index.json: {message}" in refusal(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["model"]["vocab"].update(the="7"), "the id of the token 'the' is '7', not an integer"),
        (lambda content: content["model"]["vocab"].update(the=-7), "the id of the token 'the' is -7, not an integer"),
        (lambda content: content["added_tokens"][0].pop("special"), "added_tokens: the field special is missing"),
        (lambda content: content["added_tokens"][0].update(id="0"), "added_tokens: the field id must be an integer"),
        (lambda content: content["added_tokens"].append(3), "not the file of a BPE tokenizer"),
        (lambda content: content.update(model=[]), "not the file of a BPE tokenizer"),
        (lambda content: content["model"].update(unk_token=["a"]), "the field unk_token is a list"),
    ],
)
def test_tokenizer_file_that_is_damaged_is_refused_by_name(change, message, tmp_path):
    write_folder(tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    assert f"{path}: {message}" in refusal(tmp_path / "model")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_token": ["a"]}, "eos_token is a list"),
        ({"eos_token": 2}, "eos_token must be a text, not 2"),
        ({"bos_token": {"content": 1}}, "bos_token.content must be a text, not 1"),
        ({"add_bos_token": "no"}, "add_bos_token must be true or false, not 'no'"),
        ({"chat_template": 5}, "chat_template must be a text, not 5"),
        ({"chat_template": ["a"]}, "chat_template must be a text or a list of objects, not 'a'"),
    ],
)
def test_setting_of_the_tokenizer_of_a_wrong_type_is_refused_by_name(settings, message, tmp_path):
    write_folder(tmp_path / "model", settings=settings)
    assert f"tokenizer_config.json: the field {message}" in refusal(tmp_path / "model")


def test_chat_template_that_is_not_utf_8_is_refused_by_name(tmp_path):
    write_folder(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_bytes(b"caf\xe9")
    assert "chat_template.jinja: not UTF-8 (byte 3): download it again" in refusal(tmp_path / "model")


@pytest.mark.parametrize("error", [TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError, RecursionError])
def test_error_that_no_reader_has_thought_of_is_one_line(error, tmp_path, monkeypatch):
    def read(path):
        raise error("a\nb")

    monkeypatch.setattr(gguf_file, "read", read)
    (tmp_path / "model.gguf").touch()
    assert f"model.gguf: the checkpoint is damaged ({error.__name__}: " in refusal(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope.scaling.factor": 2.0}, r"scaling of the rotary positions \(linear\) cannot be imported"),
        ({"rope.scale_linear": 2.0}, "scaling of the rotary positions .* cannot be imported"),
        ({"attention.scale": 0.5}, r"llama.attention.scale is not 1 / sqrt\(8\); it cannot be imported"),
        ({"rope.dimension_count": 4}, "llama.rope.dimension_count is not 8, embedding / heads"),
        ({"attention.value_length": 4}, "llama.attention.value_length is not 8, embedding / heads"),
    ],
)
def test_gguf_setting_that_is_not_implemented_is_refused(fields, message, tmp_path):
    write_gguf(tmp_path / "model.gguf", fields={f"llama.{name}": value for name, value in fields.items()})
    assert re.search(message, refusal(tmp_path / "model.gguf"))


def test_gguf_settings_that_say_what_the_decoder_does_are_imported(tmp_path):
    write_gguf(tmp_path / "plain.gguf")
    fields = {
        "llama.rope.scaling.factor": 1.0,
        "llama.attention.scale": float(np.float32(8**-0.5)),
        "llama.rope.dimension_count": 8,
        "llama.attention.value_length": 8,
    }
    write_gguf(tmp_path / "model.gguf", fields=fields)
    assert checkpoint.load(tmp_path / "model.gguf").model == checkpoint.load(tmp_path / "plain.gguf").model
    # llama.cpp does not scale if the type says so, whatever the factor.
    write_gguf(tmp_path / "none.gguf", fields={"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0})
    assert checkpoint.load(tmp_path / "none.gguf").model == checkpoint.load(tmp_path / "plain.gguf").model


def test_rotary_scaling_by_a_factor_without_type_is_refused(tmp_path):
    write_folder(tmp_path / "model", config={"rope_scaling": {"factor": 2.0}})
    assert "scaling of the rotary positions (linear) cannot be imported" in refusal(tmp_path / "model")


def test_fields_give_values_and_defaults():
    fields = Fields({"a.size": 3, "a.rate": 2, "a.none": None, "a.words": ["b"], "a.on": False}, "file", "a.")
    assert (fields.integer("size"), fields.number("rate"), fields.flag("on"), fields.text("none", "c")) == (
        3,
        2.0,
        False,
        "c",
    )
    assert (fields.integer("none", 4), fields.items("words", str), fields.optional_text("other")) == (4, ["b"], None)
    assert fields.has("size") and not fields.has("none") and not fields.has("other")


def refusal(path):
    """Loads a checkpoint that must be refused in one line; returns this line."""
    with pytest.raises(ValueError) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)
