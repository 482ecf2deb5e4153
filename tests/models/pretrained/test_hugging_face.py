"""Settings that Hugging Face folders give in several places are read from where they are."""

import json
import sys

import numpy as np
import pytest

from models.pretrained import checkpoint, hugging_face
from models.vocabulary import BOS, EOS
from tests.models.pretrained.checkpoints import SIZES, SPECIAL, TEMPLATE, tokens, write_folder, write_safetensors
from tests.models.pretrained.test_checkpoint import assert_gives_the_logits

pytest.importorskip("safetensors")

OTHER = "<|im_start|>{{ messages[0]['content'] }}"


def read_vocabulary(folder, **arguments):
    write_folder(folder, **arguments)
    return hugging_face.read(folder).vocabulary


@pytest.mark.parametrize("tied", [True, False])
def test_output_layer_is_read_unless_the_embedding_is_tied(tied, tmp_path):
    weights = write_folder(tmp_path / "model", config={"tie_word_embeddings": tied})
    shape = (len(tokens()), SIZES["embedding"])
    output = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    tensor = {"dtype": "F32", "shape": list(shape), "data": output.tobytes()}
    write_safetensors(tmp_path / "model" / "model-3.safetensors", {"lm_head.weight": tensor})
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = "model-3.safetensors"
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    found = checkpoint.load(tmp_path / "model")
    assert found.model.tied == tied and ("output" in found.weights) != tied
    assert_gives_the_logits(found, weights if tied else {**weights, "lm_head.weight": output})


@pytest.mark.parametrize(
    ("config", "base"),
    [
        ({"rope_theta": 500.0}, 500.0),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}, 500.0),
        ({"rope_theta": None}, 10000.0),
    ],
)
def test_base_of_the_rotary_angles_is_read_from_either_place(config, base, tmp_path):
    write_folder(tmp_path / "model", config=config)
    assert checkpoint.load(tmp_path / "model").model.rotary_base == base


@pytest.mark.parametrize(("ids", "first"), [(2, 2), ([2, 0], 2), ([0, 2], 0)])
def test_end_token_is_the_first_of_several(ids, first, tmp_path):
    settings = {"eos_token": None, "chat_template": None}
    words = read_vocabulary(tmp_path / "model", config={"eos_token_id": ids}, settings=settings)
    assert words.rows(words.size)[EOS] == first


def test_begin_token_is_read_from_the_config_if_the_tokenizer_names_none(tmp_path):
    settings = {"bos_token": None, "chat_template": None}
    words = read_vocabulary(tmp_path / "model", config={"bos_token_id": 0}, settings=settings)
    assert words.rows(words.size)[BOS] == 0


def test_file_of_the_chat_template_replaces_that_of_the_settings(tmp_path):
    assert read_vocabulary(tmp_path / "without").chat_template == TEMPLATE
    write_folder(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(OTHER)
    assert hugging_face.read(tmp_path / "model").vocabulary.chat_template == OTHER


@pytest.mark.parametrize(("name", "expected"), [("default", OTHER), ("tool_use", None)])
def test_chat_template_of_several_is_the_default(name, expected, tmp_path):
    templates = [{"name": "rag", "template": "{{ 1 }}"}, {"name": name, "template": OTHER}]
    assert read_vocabulary(tmp_path / "model", settings={"chat_template": templates}).chat_template == expected


@pytest.mark.parametrize(
    ("token", "settings", "expected"),
    [
        (SPECIAL[1], {}, True),
        (SPECIAL[1], {"bos_token": {"content": SPECIAL[1]}}, True),
        (SPECIAL[0], {}, False),  # the post-processor puts another token there
        (None, {}, False),
        (SPECIAL[1], {"add_bos_token": False}, False),
        (None, {"add_bos_token": True}, True),
    ],
)
def test_prompts_begin_with_the_begin_token_if_the_post_processor_puts_it_there(token, settings, expected, tmp_path):
    write_folder(tmp_path / "model", settings=settings)
    if token is not None:
        path = tmp_path / "model" / "tokenizer.json"
        content = json.loads(path.read_text())
        piece = {"SpecialToken": {"id": token, "type_id": 0}}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [piece, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [SPECIAL.index(token)], "tokens": [token]}},
        }
        path.write_text(json.dumps(content))
    words = hugging_face.read(tmp_path / "model").vocabulary
    assert words.reads_begin == expected
    assert words.prompt("the") == [BOS] * expected + words.encode("the")


def test_reading_the_tokenizer_collects_the_ids_once_and_not_for_every_row(tmp_path):
    write_folder(tmp_path / "model", "qwen2")  # of 272 rows, 5 without a token
    calls = []

    def count(frame, event, function):
        if event == "c_call" and frame.f_code.co_filename == hugging_face.__file__ and function.__name__ == "values":
            calls.append(function)

    sys.setprofile(count)
    try:
        words = hugging_face.read(tmp_path / "model").vocabulary
    finally:
        sys.setprofile(None)
    assert words.size == 272 and 1 <= len(calls) < 10
