"""Exported transformers equal the model, and their cache is neither overrun nor silently clamped."""

from typing import Any

import numpy as np
import pytest

from models import device
from models.decoding.numpy_ops import Choices
from models.export import export, ops
from models.parity import check_parity
from models.transformer.decoder import TransformerLanguageModel
from models.vocabulary import BOS
from tests.models import exported

VOCABULARY = exported.vocabulary()
SIZES: Any = {"embedding": 32, "blocks": 2, "heads": 4, "feed_forward": 48, "context": 64}
MODELS = {
    "llama": TransformerLanguageModel(
        VOCABULARY.size, normalization="rms", activation="swiglu", key_value_heads=2, attention_bias=True, **SIZES
    ),
    "scale-invariant": TransformerLanguageModel(
        VOCABULARY.size, attention="relu", norm_epsilon=0.0, degree_two_embedding=True, positions="learned", **SIZES
    ),
}
LIMITS = {"max_prompt": 8, "max_new_tokens": 21}


def make_weights(model):
    """Draws weights that give logits with a spread of several nats, like those of a trained model."""
    weights = model.init(0)
    return {**weights, "embedding": 4 * weights["embedding"]}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformer")
    paths = {}
    for name, precision in (
        ("llama", "float32"),
        ("llama", "float16"),
        ("llama", "int8"),
        ("scale-invariant", "float32"),
    ):
        paths[name, precision] = folder / f"{name}-{precision}.tflite"
        export(MODELS[name], make_weights(MODELS[name]), VOCABULARY, paths[name, precision], precision, **LIMITS)
    return paths


@pytest.mark.numerical
@pytest.mark.parametrize("name", MODELS)
def test_exports_pass_the_parity_check_with_builtin_ops_only(paths, name):
    files = [path for key, path in paths.items() if key[0] == name]
    for result in check_parity(MODELS[name], make_weights(MODELS[name]), files, sequences=12):
        assert result.passed, result
    for path in files:
        counts = ops(path.read_bytes())
        assert counts["DYNAMIC_UPDATE_SLICE"] and not [op for op in counts if op.startswith(("CUSTOM", "Flex"))]


@pytest.mark.numerical
def test_long_prompts_are_read_in_parts_with_the_logits_of_single_tokens(paths):
    loaded = device.load(paths["llama", "float32"])
    calls: list[str] = []

    def counted(name, function):
        def call(**inputs):
            calls.append(name)
            return function(**inputs)

        return call

    loaded._prefill, loaded._decode = counted("prefill", loaded._prefill), counted("decode", loaded._decode)
    prompt = [BOS, *VOCABULARY.encode("and the other and another, then this")][:21]
    assert len(prompt) == 21
    *_, (logits, state) = loaded.read(prompt)
    assert calls == ["prefill"] * 3
    calls.clear()
    *_, (stepwise, _) = loaded.read(prompt, by_prefill=1)
    assert calls == ["prefill"] + ["decode"] * 20
    np.testing.assert_allclose(logits, stepwise, atol=1e-3 * float(np.ptp(stepwise)))
    # After three parts of 8 tokens, the 29 positions have no room for a fourth with its padding.
    calls.clear()
    list(loaded.read([BOS] * 28))
    assert calls == ["prefill"] * 3 + ["decode"] * 4


def test_stream_and_text_refuse_more_tokens_than_the_file_has_room_for(paths):
    loaded = device.load(paths["llama", "float32"])
    assert loaded.facts.context == 29
    prompt = "and the other"
    tokens = len(loaded.encode(prompt))
    assert len("".join(loaded.stream(prompt, max_new_tokens=29 - tokens, stop_at_eos=False)))
    with pytest.raises(
        ValueError, match=f"prompt: {tokens} tokens and max_new_tokens = {30 - tokens} exceed the 29 tok"
    ):
        loaded.stream(prompt, max_new_tokens=30 - tokens)


def test_reading_beyond_the_cache_gives_nan_logits_and_drawing_from_them_is_refused(paths):
    loaded = device.load(paths["llama", "float32"])
    *_, (logits, state) = loaded.read([BOS] * 29)
    assert np.isfinite(logits).all()
    logits, _ = loaded._next(BOS, state)
    assert np.isnan(logits).all()


def test_graph_draws_as_many_tokens_as_the_file_was_exported_for(paths):
    loaded = device.load(paths["llama", "float32"])
    prompt, choices = [BOS] * 8, Choices(max_new_tokens=21, seed=3)
    assert loaded.draw_in_graph(prompt, choices)["tokens"].tolist() == list(loaded.draw(prompt, choices))


def test_export_refuses_more_tokens_than_the_context(tmp_path):
    model = MODELS["llama"]
    with pytest.raises(
        ValueError, match="max_prompt = 60 and max_new_tokens = 5 do not fit together in the model's con"
    ):
        export(model, model.init(0), VOCABULARY, tmp_path / "m.tflite", max_prompt=60, max_new_tokens=5)
