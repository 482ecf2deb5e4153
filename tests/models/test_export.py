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
from models.decoding import methods, numpy_ops, prng
from models.decoding.choices import Choices
from models.decoding.numpy_ops import Stream
from models.decoding.speculation import Speculation
from models.export import convert, export, ops
from models.parity import check_parity
from models.presets import preset
from models.signatures import Signatures
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
        export(MODEL, WEIGHTS, VOCABULARY, path, precision, max_prompt=16, max_new_tokens=48)
    return paths


@pytest.fixture(scope="module")
def float32_path(paths):
    return paths["float32"]


@pytest.mark.numerical
def test_exports_of_every_precision_pass_the_parity_check(paths):
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
def test_cifg_with_layer_norm_and_output_bias_passes_the_parity_check(tmp_path):
    model = exported.model(cell="cifg", layer_norm=True, output_bias=True, units=20)
    weights = exported.weights(model, seed=1)
    export(model, weights, VOCABULARY, tmp_path / "m.tflite", max_prompt=4, max_new_tokens=8)
    (result,) = check_parity(model, weights, [tmp_path / "m.tflite"], sequences=6)
    assert result.passed and result.equal_to_model == 6


def test_exported_files_hold_builtin_ops_only(paths):
    for path in paths.values():
        counts = ops(path.read_bytes())
        assert counts["WHILE"] and counts["FULLY_CONNECTED"]
        assert not [name for name in counts if name.startswith("CUSTOM")]


def test_export_refuses_a_graph_with_ops_that_are_not_builtin(tmp_path, monkeypatch):
    module = tf.Module()
    module.f = tf.function(
        lambda x: tf.math.cumprod(x), input_signature=[tf.TensorSpec([3], tf.float32)], autograph=False
    )
    tf.saved_model.save(module, tmp_path / "foreign", signatures=module.f)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "foreign"))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    content = converter.convert()
    assert ops(content) == Counter({"CUSTOM FlexCumprod": 1})
    monkeypatch.setattr(export_module, "convert", lambda *_: content)
    with pytest.raises(ValueError, match="needs ops that TFLite has not built in .CUSTOM FlexCumprod"):
        export(MODEL, WEIGHTS, VOCABULARY, tmp_path / "m.tflite")
    assert not (tmp_path / "m.tflite").exists()


def test_signatures_share_one_copy_of_the_weights(float32_path):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(float32_path.read_bytes(), 0))
    sizes = [0 if buffer.data is None else len(buffer.data) for buffer in model.buffers]
    weights = sorted(value.nbytes for value in WEIGHTS.values())
    # Each weight is stored once. Buffers up to the size of the sampler's table are bounded by the total only.
    assert [size for size in sorted(sizes) if size > numpy_ops.TABLE_BITS.nbytes] == [
        size for size in weights if size > numpy_ops.TABLE_BITS.nbytes
    ]
    # The history of tokens begins with 5 zero bytes per token of the vocabulary.
    assert sum(sizes) < sum(weights) + numpy_ops.TABLE_BITS.nbytes + 5 * VOCABULARY.size + 6000


def test_int8_file_stores_every_matrix_once():
    """The tiny preset with 2,000 tokens takes 0.56 MB at most with every converter; see docs/export.md."""
    model = preset("tiny", 2000)
    flatbuffer = convert(signatures := Signatures(model, model.init(0), 64, 128), signatures.functions, "int8")
    matrices = [shape for shape in model.shapes().values() if len(shape) == 2]
    content = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(flatbuffer, 0))
    sizes = sorted(len(buffer.data) for buffer in content.buffers if buffer.data is not None)
    smallest = min(rows * columns for rows, columns in matrices)
    assert [size for size in sizes if size >= smallest] == sorted(rows * columns for rows, columns in matrices)
    assert len(flatbuffer) < 560_000


class _WithoutLiteRT:
    """An import finder that acts as if ai-edge-litert were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ai_edge_litert":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


# TensorFlow 2.18 and later warn that their interpreter is deprecated in favour of ai-edge-litert, our first choice.
@pytest.mark.filterwarnings("ignore:(?s).*tf.lite.Interpreter is deprecated")
@pytest.mark.numerical
def test_interpreter_of_tensorflow_gives_the_same_tokens(float32_path, monkeypatch):
    requests = [([BOS], Choices(max_new_tokens=20, seed=seed)) for seed in range(5)]
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


def stale_state(patch):
    """Plants a fault: the target's new state is discarded."""
    block = Speculation.block

    def discard(self, state, *arguments):
        found, after = block(self, state, *arguments)
        return found, after._replace(target=state.target)

    patch.setattr(Speculation, "block", discard)


def shared_stream(patch):
    """Plants a fault: text is drawn with the random words of the stream for drafts."""

    def draft(seed, stream, request, positions):
        return prng.random_words(seed, Stream.DRAFT, request, positions)

    patch.setattr(methods, "random_words", draft)


def off_by_one(patch):
    """Plants a fault: positions are too large by 1."""

    def later(seed, stream, request, positions):
        return prng.random_words(seed, stream, request, positions + 1)

    patch.setattr(methods, "random_words", later)


@pytest.mark.parametrize("plant", [stale_state, shared_stream, off_by_one])
def test_parity_fails_a_file_with_a_planted_fault(plant, tmp_path, monkeypatch):
    plant(monkeypatch)
    export(MODEL, WEIGHTS, VOCABULARY, tmp_path / "m.tflite", max_prompt=4, max_new_tokens=12)
    (result,) = check_parity(MODEL, WEIGHTS, [tmp_path / "m.tflite"], sequences=9)
    assert not result.passed
    assert result.random_bits_equal == (plant is stale_state)


def test_parity_fails_files_of_other_weights(paths):
    slightly, other = (
        {**WEIGHTS, "projection": 1.001 * WEIGHTS["projection"]},
        exported.weights(MODEL, seed=1),
    )
    (float32,) = check_parity(MODEL, slightly, [paths["float32"]], sequences=9)
    assert not float32.passed and float32.random_bits_equal
    assert not any(result.passed for result in check_parity(MODEL, other, list(paths.values()), sequences=9))


def test_equal_exports_give_equal_files(tmp_path):
    flatbuffer = convert(signatures := Signatures(MODEL, WEIGHTS, 4, 4), signatures.functions, "float32")
    facts = tflite_file.Facts("float32", MODEL.config(), 4, 4, [], len(flatbuffer), "0")
    for name in ("a", "b"):
        tflite_file.write(tmp_path / name, flatbuffer, VOCABULARY, facts)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_write_leaves_the_old_file_if_it_fails(tmp_path, monkeypatch):
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
        ({"max_prompt": 0}, "max_prompt: 0 is not an integer from 1 to 65536"),
        ({"max_prompt": 10**12}, "max_prompt: 1000000000000 is not an integer from 1"),
        ({"max_new_tokens": True}, "max_new_tokens: True is not an integer from 1"),
        (
            {"model": replace(MODEL, vocabulary_size=300)},
            "vocabulary has 269 tokens, but the model was built for 300",
        ),
        ({"weights": {**WEIGHTS, "bias": WEIGHTS["bias"] * np.nan}}, "weight 'bias' is not finite"),
        ({"weights": {k: v for k, v in WEIGHTS.items() if k != "bias"}}, "weight 'bias' is missing: give the weights"),
        ({"weights": {**WEIGHTS, "biass": WEIGHTS["bias"]}}, "weight 'biass' is not one of the model's"),
        (
            {"weights": {**WEIGHTS, "bias": WEIGHTS["bias"][np.newaxis]}},
            r"weight 'bias' has shape \[1, .* without a client",
        ),
        ({"path": "/nowhere/m.tflite"}, "/nowhere is not a folder"),
    ],
)
def test_export_refuses_bad_arguments_in_one_line(changes, message, tmp_path):
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


def test_check_parity_gives_one_result_per_path(float32_path):
    results = check_parity(MODEL, WEIGHTS, [float32_path, float32_path], sequences=3)
    assert [result.path for result in results] == [str(float32_path)] * 2
    assert parity.SEQUENCES == 50
