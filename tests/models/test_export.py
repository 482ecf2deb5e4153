import os
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from models import device, parity, tflite_file
from models import export as export_module
from models.decoding import host, prng
from models.decoding.host import Choices, Stream
from models.export import Decoder, convert, export, ops
from models.parity import check_parity
from models.presets import preset
from models.vocabulary import BOS
from tests.models import exported

MODEL = exported.model()
WEIGHTS = exported.weights(MODEL)
VOCABULARY = exported.vocabulary()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    paths = {precision: folder / f"{precision}.tflite" for precision in tflite_file.PRECISIONS}
    for precision, path in paths.items():
        export(MODEL, WEIGHTS, VOCABULARY, path, precision, max_prompt=16, max_tokens=48)
    return paths


@pytest.fixture(scope="module")
def float32_path(paths):
    return paths["float32"]


@pytest.mark.numerical
def test_parity(paths):
    results = check_parity(MODEL, WEIGHTS, list(paths.values()))
    for precision, result in zip(paths, results, strict=True):
        assert result.passed
        assert result.precision == result.to_dict()["precision"] == precision
        assert result.random_bits_equal
        assert result.sequences == result.equal_to_stream == 50
        assert result.bytes == os.path.getsize(result.path)
        low, high = result.tokens_per_second_range
        assert 0 < low <= result.tokens_per_second <= high
    float32, float16, int8 = results
    # Of 1,600 tokens rounding moves a draw across a boundary with probability 1e-4 each (see docs/export.md): more than
    # three of the sequences, with probability 2e-5.
    assert float32.equal_to_model >= 47
    within = exported.logit_rounding(MODEL, WEIGHTS, 8)
    assert float32.max_logit_error < within < float16.max_logit_error < int8.max_logit_error
    assert max(int8.bytes, float16.bytes) < float32.bytes


@pytest.mark.numerical
def test_every_architecture_exports(tmp_path):
    model = exported.model(cell="cifg", layer_norm=True, output_bias=True, units=20)
    weights = exported.weights(model, seed=1)
    export(model, weights, VOCABULARY, tmp_path / "m.tflite", max_prompt=4, max_tokens=8)
    (result,) = check_parity(model, weights, [tmp_path / "m.tflite"], sequences=6)
    assert result.passed and result.equal_to_model == 6


def test_only_builtin_ops(paths):
    for path in paths.values():
        found = ops(path.read_bytes())
        assert found["WHILE"] and found["FULLY_CONNECTED"]
        assert not [name for name in found if name.startswith("CUSTOM")]


def test_foreign_ops_are_seen_and_refused(tmp_path, monkeypatch):
    module = tf.Module()
    module.f = tf.function(lambda x: tf.math.cumprod(x), input_signature=[tf.TensorSpec([3], tf.float32)])
    tf.saved_model.save(module, tmp_path / "foreign", signatures=module.f)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "foreign"))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    content = converter.convert()
    assert ops(content) == Counter({"CUSTOM FlexCumprod": 1})
    monkeypatch.setattr(export_module, "convert", lambda *_: content)
    with pytest.raises(ValueError, match="needs ops that TFLite runtimes lack: CUSTOM FlexCumprod"):
        export(MODEL, WEIGHTS, VOCABULARY, tmp_path / "m.tflite")
    assert not (tmp_path / "m.tflite").exists()


def test_signatures_share_the_weights(float32_path):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(float32_path.read_bytes(), 0))
    sizes = [0 if buffer.data is None else len(buffer.data) for buffer in model.buffers]
    weights = sorted(value.nbytes for value in WEIGHTS.values())
    # Each weight once, and the table of the sampler, which is smaller than the larger matrices.
    assert [size for size in sorted(sizes) if size > host.TABLE_BITS.nbytes] == [
        size for size in weights if size > host.TABLE_BITS.nbytes
    ]
    assert sum(sizes) < sum(weights) + host.TABLE_BITS.nbytes + 4000


def test_in_int8_every_matrix_stands_once_too():
    """Half a megabyte, as the docs say, on every converter."""
    model = preset("tiny", 2000)
    flatbuffer = convert(Decoder(model, model.init(0), 64, 128), "int8")
    matrices = [shape for shape in model.shapes().values() if len(shape) == 2]
    found = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(flatbuffer, 0))
    sizes = sorted(len(buffer.data) for buffer in found.buffers if buffer.data is not None)
    least = min(rows * columns for rows, columns in matrices)
    assert [size for size in sizes if size >= least] == sorted(rows * columns for rows, columns in matrices)
    assert len(flatbuffer) < 500_000


class _WithoutLiteRT:
    """As if ai-edge-litert were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ai_edge_litert":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


# TensorFlow 2.18 and later say that theirs is deprecated for ai-edge-litert, which is what we use first.
@pytest.mark.filterwarnings("ignore:(?s).*tf.lite.Interpreter is deprecated")
@pytest.mark.numerical
def test_tensorflow_s_own_interpreter_gives_the_same_tokens(float32_path, monkeypatch):
    requests = [([BOS], Choices(max_tokens=20, seed=seed)) for seed in range(5)]
    pinned = device.load(float32_path)
    expected = [pinned.draw_in_graph(*request)["tokens"].tolist() for request in requests]
    assert len({tuple(tokens) for tokens in expected}) == 5
    for name in [name for name in sys.modules if name.partition(".")[0] == "ai_edge_litert"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_WithoutLiteRT(), *sys.meta_path])
    other = device.load(float32_path)
    assert device.runtime().startswith("tensorflow ")
    found = [other.draw_in_graph(*request)["tokens"].tolist() for request in requests]
    assert [list(other.draw(*request)) for request in requests] == found
    # Its kernels round otherwise: of 100 tokens one is another with probability 1e-4 each, in two texts with 5e-5.
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 4


class StaleState(Decoder):
    """Planted: the new state is thrown away."""

    def _step(self, token, state):
        logits, _ = super()._step(token, state)
        return logits, state


class SharedStream(Decoder):
    """Planted: text is drawn with the words that are for drafts."""

    def _generate(self, *arguments):
        def draft(seed, stream, request, positions):
            return prng.random_words(seed, Stream.DRAFT, request, positions)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export_module, "random_words", draft)
            return super()._generate(*arguments)


class OffByOne(Decoder):
    """Planted: positions count from 1."""

    def _generate(self, *arguments):
        def later(seed, stream, request, positions):
            return prng.random_words(seed, stream, request, positions + 1)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export_module, "random_words", later)
            return super()._generate(*arguments)


@pytest.mark.parametrize("planted", [StaleState, SharedStream, OffByOne])
def test_parity_fails_a_faulty_file(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "Decoder", planted)
    export(MODEL, WEIGHTS, VOCABULARY, tmp_path / "m.tflite", max_prompt=4, max_tokens=12)
    (result,) = check_parity(MODEL, WEIGHTS, [tmp_path / "m.tflite"], sequences=9)
    assert not result.passed
    assert result.random_bits_equal == (planted is StaleState)


def test_parity_fails_files_of_other_weights(paths):
    slightly, other = (
        {**WEIGHTS, "projection": 1.001 * WEIGHTS["projection"]},
        exported.weights(MODEL, seed=1),
    )
    (float32,) = check_parity(MODEL, slightly, [paths["float32"]], sequences=9)
    assert not float32.passed and float32.random_bits_equal
    assert not any(result.passed for result in check_parity(MODEL, other, list(paths.values()), sequences=9))


def test_equal_exports_are_equal_files(tmp_path):
    decoder = Decoder(MODEL, WEIGHTS, 4, 4)
    flatbuffer = convert(decoder, "float32")
    facts = tflite_file.Facts("float32", MODEL.config(), 4, 4, [], len(flatbuffer), "0")
    for name in ("a", "b"):
        tflite_file.write(tmp_path / name, flatbuffer, VOCABULARY, facts)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    path.write_text("before")
    facts = tflite_file.Facts("float32", {}, 4, 4, [], 4, "0")

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tflite_file.write(path, b"xxxxTFL3", VOCABULARY, facts)
    assert os.listdir(tmp_path) == ["m.tflite"] and path.read_text() == "before"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int4"}, "precision: 'int4' is not one of float32, float16, int8"),
        ({"max_prompt": 0}, "max_prompt: 0 is not a positive whole number"),
        ({"max_tokens": True}, "max_tokens: True is not a positive whole number"),
        (
            {"model": replace(MODEL, vocabulary_size=300)},
            "vocabulary of 269 tokens, but the model was built for 300",
        ),
        ({"weights": {**WEIGHTS, "bias": WEIGHTS["bias"] * np.nan}}, "weight 'bias' is not finite"),
        ({"path": "/nowhere/m.tflite"}, "/nowhere is not a folder"),
    ],
)
def test_bad_arguments(changes, message, tmp_path):
    arguments = {
        "model": MODEL,
        "weights": WEIGHTS,
        "vocabulary": VOCABULARY,
        "path": tmp_path / "m",
        **changes,
    }
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        export(**arguments)
    assert "\n" not in str(caught.value)


def test_parity_is_of_the_files_asked_for(float32_path):
    results = check_parity(MODEL, WEIGHTS, [float32_path, float32_path], sequences=3)
    assert [result.path for result in results] == [str(float32_path)] * 2
    assert parity.SEQUENCES == 50
