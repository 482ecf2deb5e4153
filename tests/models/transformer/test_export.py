"""Exported transformers equal the model, and their cache is neither overrun nor silently clamped."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from models import device, tflite_file
from models import export as export_module
from models.decoding.choices import Choices
from models.decoding.lookup_drafter import LookupDrafter
from models.export import export, ops
from models.parity import check_parity
from models.transformer.decoder import TransformerLanguageModel
from models.transformer.layers import rotary_table
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
LIMITS: dict[str, Any] = {"max_prompt": 8, "max_new_tokens": 15}


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
    assert calls == ["prefill"] * 3 + ["decode"]
    calls.clear()
    *_, (stepwise, _) = loaded.read(prompt, by_prefill=1)
    assert calls == ["prefill"] + ["decode"] * 20
    np.testing.assert_allclose(logits, stepwise, atol=1e-3 * float(np.ptp(stepwise)))
    # Of 21 tokens, in parts of 8, the first part is the short one. The padding of a short last part would not fit.
    long = [BOS, *np.random.default_rng(2).integers(3, VOCABULARY.size, 21).tolist()]
    calls.clear()
    *_, (logits, state) = loaded.read(long)
    assert calls == ["prefill"] * 3 + ["decode"]
    *_, (stepwise, after) = loaded.read(long, by_prefill=1)
    np.testing.assert_allclose(logits, stepwise, atol=1e-3 * float(np.ptp(stepwise)))
    assert state["state_4"] == after["state_4"] == 22
    next_logits, next_stepwise = (loaded._next(5, s)[0] for s in (state, after))
    np.testing.assert_allclose(next_logits, next_stepwise, atol=1e-3 * float(np.ptp(stepwise)))


def test_stream_and_text_refuse_more_tokens_than_the_file_has_room_for(paths):
    loaded = device.load(paths["llama", "float32"])
    assert loaded.facts.context == 23
    prompt = "and the other"
    tokens = len(loaded.encode(prompt))
    assert len("".join(loaded.stream(prompt, max_new_tokens=23 - tokens, stop_at_eos=False)))
    with pytest.raises(
        ValueError, match=f"prompt: {tokens} tokens and max_new_tokens = {24 - tokens} exceed the 23 tok"
    ):
        loaded.stream(prompt, max_new_tokens=24 - tokens)


def test_reading_beyond_the_cache_gives_nan_logits_and_drawing_from_them_is_refused(paths):
    loaded = device.load(paths["llama", "float32"])
    *_, (logits, state) = loaded.read([BOS] * 23)
    assert np.isfinite(logits).all()
    logits, _ = loaded._next(BOS, state)
    assert np.isnan(logits).all()


def uneven_weights(model):
    """Draws weights whose columns differ in magnitude up to a hundredfold, as in large trained models."""
    weights, generator = make_weights(model), np.random.default_rng(6)
    for name, weight in weights.items():
        if name.endswith(("query_key_value", "inner", "attention_output", "outer")):
            weights[name] = weight * np.exp(generator.uniform(-2.3, 2.3, weight.shape[-1])).astype(np.float32)
    return weights


@pytest.fixture(scope="module")
def int8_errors(tmp_path_factory):
    """Returns the mean error of the logits of int8 files, with the columns of the matrices equalised and without."""
    folder, model = tmp_path_factory.mktemp("int8"), MODELS["llama"]
    weights, tokens = uneven_weights(model), np.random.default_rng(7).integers(3, VOCABULARY.size, 22).tolist()
    expected = model.forward(weights, np.array([tokens], np.int32))[0].numpy()
    errors = {}
    for name in ("equalized", "plain"):
        with pytest.MonkeyPatch.context() as patch:
            if name == "plain":
                patch.setattr(TransformerLanguageModel, "equalized", lambda self, weights: weights)
            export(model, weights, VOCABULARY, folder / name, "int8", **LIMITS)
        found = np.stack([logits for logits, _ in device.load(folder / name).read(tokens, by_prefill=1)])
        errors[name] = float(np.sqrt(np.mean(np.square(found - expected))) / expected.std())
    return errors


def test_equalised_columns_halve_the_error_of_int8(int8_errors):
    assert int8_errors["equalized"] < 0.5 * int8_errors["plain"]


def test_equalized_weights_compute_the_same_with_columns_of_equal_magnitude():
    model = MODELS["llama"]
    weights = uneven_weights(model)
    equalized, tokens = model.equalized(weights), np.random.default_rng(3).integers(3, VOCABULARY.size, (2, 9))
    for name, axis in (("block_00.inner", 0), ("embedding", 1)):
        np.testing.assert_allclose(np.abs(equalized[name]).max(axis), 1, rtol=1e-6)
    found, expected = (model.prefill(w, tokens.astype(np.int32), [9, 4])[0].numpy() for w in (equalized, weights))
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.ptp(expected)))


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_rotary_angles_are_exact_in_small_files(precision, paths):
    """The tables of cosines and sines are integers in the file, which no converter shrinks."""
    content = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(paths["llama", precision].read_bytes(), 0))
    table = rotary_table(23, 8, 10000.0)[0].astype(np.float32)
    stored = [bytes(buffer.data) for buffer in content.buffers if buffer.data is not None]
    assert table.tobytes() in stored


def test_graph_draws_as_many_tokens_as_the_file_was_exported_for(paths):
    loaded = device.load(paths["llama", "float32"])
    prompt, choices = [BOS] * 8, Choices(max_new_tokens=15, seed=3)
    assert loaded.draw_in_graph(prompt, choices)["tokens"].tolist() == list(loaded.draw(prompt, choices))


def test_exported_cache_has_room_for_a_block_of_drafts_beyond_the_new_tokens(tmp_path, monkeypatch):
    """No graph is traced or converted: what the signatures and the file's facts are given decides."""
    given: list[Any] = []

    def signatures(model, *_):
        given.append(model)
        return SimpleNamespace(functions={})

    monkeypatch.setattr(export_module, "Signatures", signatures)
    monkeypatch.setattr(export_module, "convert", lambda *_: b"")
    monkeypatch.setattr(export_module, "ops", lambda _: {})
    monkeypatch.setattr(tflite_file, "write", lambda *arguments: given.append(arguments[-1]))
    model = MODELS["llama"]
    drafter = LookupDrafter(VOCABULARY.size, 64)
    arguments: dict[str, Any] = {"decodings": ("block",), "drafter": drafter, "draft_length": 5, **LIMITS}
    export(model, model.init(0), VOCABULARY, tmp_path / "m.tflite", **arguments)
    fitted, facts = given
    assert fitted.config()["cache_length"] == facts.config["cache_length"] == 8 + 15 + 5
    assert facts.draft_length == 5 and facts.context == 8 + 15
    with pytest.raises(ValueError, match="^max_prompt = 8, max_new_tokens = 52 and 5 drafted tokens do not fit toge"):
        export(model, model.init(0), VOCABULARY, tmp_path / "m.tflite", **{**arguments, "max_new_tokens": 52})


def test_export_refuses_more_tokens_than_the_context(tmp_path):
    model = MODELS["llama"]
    with pytest.raises(
        ValueError, match="max_prompt = 60 and max_new_tokens = 5 do not fit together in the model's con"
    ):
        export(model, model.init(0), VOCABULARY, tmp_path / "m.tflite", max_prompt=60, max_new_tokens=5)
