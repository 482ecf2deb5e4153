"""Imported weights give the logits of an independent computation; what cannot be imported is refused in one line."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from models.pretrained import checkpoint
from tests.models.pretrained import checkpoints
from tests.models.pretrained.checkpoints import SIZES, write_folder, write_gguf
from tests.oracles import transformer as oracle

pytest.importorskip("gguf")


def oracle_logits(weights, tokens):
    """Computes the logits from weights by their Hugging Face names, with the slow transformer of the tests."""
    model = SimpleNamespace(
        embedding=SIZES["embedding"],
        blocks=SIZES["blocks"],
        heads=SIZES["heads"],
        key_value_heads=SIZES["groups"],
        feed_forward=SIZES["inner"],
        normalization="rms",
        norm_epsilon=1e-5,
        attention="softmax",
        positions="rotary",
        rotary_base=1000.0,
        activation="swiglu",
        attention_bias=any(name.endswith("bias") for name in weights),
        tied="lm_head.weight" not in weights,
        degree_two_embedding=False,
    )
    wide = {name: weight.astype(np.float64) for name, weight in weights.items()}
    own = {"embedding": wide["model.embed_tokens.weight"], "final_norm": wide["model.norm.weight"]}
    if not model.tied:
        own["output"] = wide["lm_head.weight"]
    for index in range(SIZES["blocks"]):
        block, name = f"model.layers.{index}", f"block_{index:02d}"
        parts = [f"{block}.self_attn.{kind}_proj" for kind in "qkv"]
        own[f"{name}.query_key_value"] = np.concatenate([wide[f"{part}.weight"] for part in parts]).T
        if model.attention_bias:
            own[f"{name}.query_key_value_bias"] = np.concatenate([wide[f"{part}.bias"] for part in parts])
        own[f"{name}.attention_output"] = wide[f"{block}.self_attn.o_proj.weight"].T
        own[f"{name}.attention_norm"] = wide[f"{block}.input_layernorm.weight"]
        own[f"{name}.feed_forward_norm"] = wide[f"{block}.post_attention_layernorm.weight"]
        own[f"{name}.inner"] = np.concatenate([wide[f"{block}.mlp.{n}_proj.weight"] for n in ("gate", "up")]).T
        own[f"{name}.outer"] = wide[f"{block}.mlp.down_proj.weight"].T
    return oracle.logits(model, own, tokens)


def assert_gives_the_logits(found, weights):
    """Compares logits over made-up tokens; ids that the import swapped are swapped back."""
    own = np.random.default_rng(1).integers(0, found.model.vocabulary_size, 12)
    order = found.vocabulary.rows(found.model.vocabulary_size)
    logits = found.model.forward(found.weights, own[np.newaxis].astype(np.int32))[0].numpy()
    expected = oracle_logits(weights, order[own])
    np.testing.assert_allclose(logits, expected[:, order], atol=2e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_gguf_file_gives_the_logits_of_its_weights(architecture, tmp_path):
    weights = write_gguf(tmp_path / "model.gguf", architecture)
    found = checkpoint.load(tmp_path / "model.gguf")
    assert found.description == f"{architecture}, GGUF"
    assert found.model.context == SIZES["context"]
    assert_gives_the_logits(found, weights)


@pytest.mark.parametrize(("architecture", "dtype"), [("llama", "F32"), ("llama", "BF16"), ("qwen2", "F16")])
def test_hugging_face_folder_gives_the_logits_of_its_weights(architecture, dtype, tmp_path):
    weights = write_folder(tmp_path / "model", architecture, dtype)
    found = checkpoint.load(tmp_path / "model")
    assert found.description == f"{architecture}, Hugging Face"
    assert_gives_the_logits(found, weights)


def test_both_formats_of_one_model_give_equal_weights_and_tokens(tmp_path):
    write_gguf(tmp_path / "model.gguf")
    write_folder(tmp_path / "model")
    one, other = checkpoint.load(tmp_path / "model.gguf"), checkpoint.load(tmp_path / "model")
    assert one.model == other.model
    for name, weight in one.weights.items():
        np.testing.assert_array_equal(weight, other.weights[name])
    text = "the and in  12 naïve 😀"
    assert one.vocabulary.encode(text) == other.vocabulary.encode(text)


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantised_gguf_file_gives_weights_within_the_quantisation_step(name, tmp_path):
    import gguf

    kind = getattr(gguf.GGMLQuantizationType, name)
    weights = write_gguf(tmp_path / "model.gguf", "qwen2", types=kind)
    found = checkpoint.load(tmp_path / "model.gguf")
    expected = weights["model.layers.1.self_attn.o_proj.weight"].T
    step = {"F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2, "Q4_0": 0.2, "Q4_1": 0.2}[name]
    assert np.max(np.abs(found.weights["block_01.attention_output"] - expected)) < step * np.max(np.abs(expected))


def test_context_can_be_lowered_and_not_raised(tmp_path):
    write_gguf(tmp_path / "model.gguf")
    assert checkpoint.load(tmp_path / "model.gguf", 16).model.context == 16
    with pytest.raises(ValueError, match="context = 65: .* was trained for at most 64 tokens"):
        checkpoint.load(tmp_path / "model.gguf", 65)


def test_untied_output_layer_is_imported(tmp_path):
    rows = len(checkpoints.tokens())
    output = np.random.default_rng(5).normal(size=(rows, SIZES["embedding"])).astype(np.float32)
    weights = write_gguf(tmp_path / "model.gguf", extra={"output.weight": output})
    assert_gives_the_logits(checkpoint.load(tmp_path / "model.gguf"), {**weights, "lm_head.weight": output})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "gemma"}, "architecture 'gemma' cannot be imported; those that can: llama, qwen2"),
        ({"fields": {"llama.rope.scaling.type": "yarn"}}, r"scaling of the rotary positions \(yarn\) cannot be"),
        ({"fields": {"llama.attention.sliding_window": 8}}, "a sliding window cannot be imported"),
        ({"fields": {"llama.expert_count": 4}}, "a mixture of experts cannot be imported"),
        ({"fields": {"llama.attention.key_length": 16}}, "attention.key_length is not 8, embedding / heads"),
        ({"drop": ["blk.1.ffn_up.weight"]}, "tensor blk.1.ffn_up.weight is missing"),
        ({"extra": {"blk.0.attn_q.bias": np.zeros(32, np.float32)}}, "no place for tensor blk.0.attn_q.bias"),
        ({"extra": {"rope_freqs.weight": np.zeros(4, np.float32)}}, "no place for tensor rope_freqs.weight"),
        (
            {"drop": ["blk.0.attn_norm.weight"], "extra": {"blk.0.attn_norm.weight": np.ones(31, np.float32)}},
            r"block_00.attention_norm has shape \[31\], but its settings say \[32\]",
        ),
        (
            {"drop": ["output_norm.weight"], "extra": {"output_norm.weight": np.full(32, np.nan, np.float32)}},
            "weight final_norm is not finite",
        ),
    ],
)
def test_gguf_file_that_cannot_be_imported_is_refused_in_one_line(arguments, message, tmp_path):
    write_gguf(tmp_path / "model.gguf", **arguments)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.load(tmp_path / "model.gguf")
    assert "\n" not in str(error.value)
    assert "model.gguf" in str(error.value)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9])
def test_gguf_file_that_was_cut_short_is_refused_in_one_line(share, tmp_path):
    write_gguf(tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="cut short or damaged|not a GGUF file") as error:
        checkpoint.load(tmp_path / "model.gguf")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mistral"}, "architecture 'mistral' cannot be imported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"scaling of the rotary positions \(llama3\)"),
        ({"use_sliding_window": True}, "a sliding window cannot be imported"),
        ({"attention_bias": True}, "attention_bias cannot be imported"),
        ({"mlp_bias": True}, "mlp_bias cannot be imported"),
        ({"hidden_act": "gelu"}, "the activation 'gelu' cannot be imported"),
        ({"head_dim": 16}, "head_dim is not 8"),
        ({"num_hidden_layers": None}, "the field num_hidden_layers is missing"),
        ({"num_hidden_layers": 1}, "no place for tensor model.layers.1"),
        ({"num_hidden_layers": 3}, "tensor model.layers.2.self_attn.q_proj.weight is missing"),
        ({"intermediate_size": 47}, r"block_00.inner has shape \[32, 96\], but its settings say \[32, 94\]"),
    ],
)
def test_folder_that_cannot_be_imported_is_refused_in_one_line(config, message, tmp_path):
    write_folder(tmp_path / "model", config=config)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.load(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_folder_with_a_missing_or_damaged_file_is_refused_and_named(tmp_path):
    for name in ("config.json", "tokenizer.json", "model-1.safetensors"):
        folder = tmp_path / name
        write_folder(folder)
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=re.escape(str(path))) as error:
            checkpoint.load(folder)
        assert "\n" not in str(error.value)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=re.escape(name)):
            checkpoint.load(folder)
