"""prefill, extend and rewind run in TFLite with builtin ops only, and agree with TensorFlow up to rounding."""

import numpy as np
import pytest
import tensorflow as tf

from models.cifg import CIFGState
from models.recurrent_lm import RecurrentLanguageModel
from tests.models import exported
from tests.tolerance import condition, rounding

pytestmark = pytest.mark.numerical

V, E, H, B, T, G = 13, 4, 6, 2, 7, 3


def convert(path, model, weights):
    """Converts the model with TFLITE_BUILTINS alone, so that ops of any other set are an error."""
    module = tf.Module()
    module.held = {n: tf.Variable(w) for n, w in weights.items()}
    state = CIFGState(tf.TensorSpec([B, E], name="output"), tf.TensorSpec([B, H], name="cell"))
    trail = CIFGState(tf.TensorSpec([B, G + 1, E], name="output"), tf.TensorSpec([B, G + 1, H], name="cell"))

    @tf.function(autograph=False)
    def prefill(tokens, lengths):
        logits, state = model.prefill(module.held, tokens, lengths)
        return {"logits": logits, **state._asdict()}

    @tf.function(autograph=False)
    def extend(tokens, output, cell):
        logits, trail = model.extend(module.held, tokens, CIFGState(output, cell))
        return {"logits": logits, **trail._asdict()}

    @tf.function(autograph=False)
    def rewind(output, cell, kept):
        return model.rewind(CIFGState(output, cell), kept)._asdict()

    def ids(name, *shape):
        return tf.TensorSpec(shape, tf.int32, name)

    signatures = {
        "prefill": prefill.get_concrete_function(ids("tokens", B, T), ids("lengths", B)),
        "extend": extend.get_concrete_function(ids("tokens", B, G), *state),
        "rewind": rewind.get_concrete_function(*trail, ids("kept", B)),
    }
    tf.saved_model.save(module, str(path), signatures=signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(path), signature_keys=list(signatures))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return converter.convert()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("cell", ["cifg", "si-cifg"])
def test_prefill_extend_and_rewind_convert_to_builtin_ops_and_give_the_same_values(cell, layer_norm, tmp_path):
    model = RecurrentLanguageModel(cell, V, E, H, layer_norm=layer_norm, output_bias=True)
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in model.shapes().items()}
    interpreter = tf.lite.Interpreter(model_content=convert(tmp_path, model, weights))
    interpreter.allocate_tensors()
    run = {name: interpreter.get_signature_runner(name) for name in ("prefill", "extend", "rewind")}
    tokens, more = (rng.integers(0, V, (B, n)).astype(np.int32) for n in (T, G))
    lengths, kept = np.array([T, 3], np.int32), np.array([0, 2], np.int32)

    def all_steps(weights):
        logits, state = model.prefill(weights, tokens, lengths)
        return tf.nest.flatten([logits, state, model.extend(weights, more, state)])

    within = rounding(exported.operations(model), condition(all_steps, weights))

    def check(actual, logits, state):
        expected = state._asdict() if logits is None else {"logits": logits, **state._asdict()}
        assert set(actual) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(actual[name], value, atol=within)

    logits, state = model.prefill(weights, tokens, lengths)
    first = run["prefill"](tokens=tokens, lengths=lengths)
    check(first, logits, state)
    logits, trail = model.extend(weights, more, state)
    second = run["extend"](tokens=more, output=first["output"], cell=first["cell"])
    check(second, logits, trail)
    third = run["rewind"](output=second["output"], cell=second["cell"], kept=kept)
    check(third, None, model.rewind(trail, kept))
