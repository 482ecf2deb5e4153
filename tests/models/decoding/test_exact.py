"""Constants keep their bits in files with float16 weights, where plain ones do not."""

import tempfile

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from models.decoding import numpy_ops, numpy_race, race
from models.decoding.choices import Processing
from models.decoding.exact import exact
from models.decoding.numpy_processing import History, process
from models.decoding.prng import uniforms
from models.decoding.processing import process as process_in_graph

VALUES = (2.0**31, 2.0**-32, 1 - 2.0**-24, 1e-6, 2.0**62, -3.0)


def to_float16(function, **example):
    """Converts a function as `models.export` does for float16 weights, and returns its signature in the runtime."""
    specs = {name: tf.TensorSpec(value.shape, value.dtype, name) for name, value in example.items()}
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tf.Module(), folder, tf.function(function, autograph=False).get_concrete_function(**specs))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
        interpreter = Interpreter(model_content=converter.convert(), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter.get_signature_runner()


def test_exact_constants_keep_their_bits_and_plain_ones_do_not():
    def run(word, x):
        return {
            "of word": tf.stack([exact(value, word) for value in VALUES]),
            "of float": tf.stack([exact(value, x) for value in VALUES]),
            "plain": tf.stack([x[0] * 0 + value for value in VALUES]),
        }

    x, expected = np.ones(1, np.float32), np.array(VALUES, np.float32)
    found = [to_float16(run, word=np.zeros(1, np.int32), x=x)(word=np.array([w], np.int32), x=x) for w in (5, -7)]
    for outputs in found:
        np.testing.assert_array_equal(outputs["of word"], expected)
        np.testing.assert_array_equal(outputs["of float"], expected)
        assert np.sum(outputs["plain"] != expected) == 5
    np.testing.assert_array_equal(
        tf.function(run, jit_compile=True, autograph=False)(np.array([-1], np.int32), x)["of word"], expected
    )


def test_noise_and_processing_of_float16_files_have_the_bits_of_numpy():
    generator = np.random.default_rng(1)
    words = generator.integers(-(2**31), 2**31, 5000, np.int32)
    words[:4] = [-1, 0, 2**31 - 1, -(2**31)]
    logits = (3 * generator.standard_normal([1, 300])).astype(np.float32)
    history = History(np.arange(300) % 3 == 0, (np.arange(300) % 4).astype(np.int32))
    options = Processing(0.8, 0, 0.9, 0.01, 1.3, 0.37, -0.21)

    def run(words, logits, prompt, counts, **options):
        processed = process_in_graph(logits, Processing(top_k=0, **options), History(prompt, counts))
        return {
            "uniforms": uniforms(words),
            "gumbels": race.from_words(words, words[::-1]),
            "processed": processed,
        }

    numbers = {name: np.float32(value) for name, value in options._asdict().items() if name != "top_k"}
    inputs = {"words": words, "logits": logits, "prompt": history.prompt, "counts": history.counts, **numbers}
    inputs = {name: np.asarray(value) for name, value in inputs.items()}
    found = to_float16(run, **inputs)(**inputs)
    np.testing.assert_array_equal(found["uniforms"], numpy_ops.uniforms(words))
    np.testing.assert_array_equal(found["gumbels"], numpy_race.from_words((words, words[::-1])))
    kept = process(logits, options, History(history.prompt, history.counts))
    is_kept = kept > numpy_ops.LEFT_OUT
    np.testing.assert_array_equal(found["processed"] > -60000, is_kept)
    np.testing.assert_array_equal(found["processed"][is_kept], kept[is_kept])
