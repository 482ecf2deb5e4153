import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from models.decoding.ngram_drafter import NGramDrafter
from models.ngram import learn
from tests.models.decoding.drafter_tests import DrafterTests
from tests.oracles.backends import run_everywhere

SIZE = 9


def make_model(order=3, **limits):
    rng = np.random.default_rng(0)
    rows = np.minimum(1 + rng.geometric(0.3, (40, 12)), SIZE - 1)
    return learn(rows, SIZE, order, **limits)


class TestNGramDrafter(DrafterTests):
    size = SIZE

    @pytest.fixture(params=[pytest.param(1, marks=pytest.mark.slow), 3])
    def drafter(self, request):
        return NGramDrafter(make_model(request.param))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("limits", [{}, {"max_entries": 20}, {"max_successors": 2}, {"max_entries": 1}])
def test_logits_are_those_of_the_model_after_every_context(order, limits):
    model = make_model(order, **limits)
    drafter = NGramDrafter(model)
    texts = np.random.default_rng(1).integers(0, SIZE, (2, 30)).astype(np.int32)
    state = drafter.initial_state(2)
    for end in range(1, 31):
        logits, state = drafter.step(tf.constant(texts[:, end - 1]), state)
        expected = [np.log(model.probabilities(text[:end])) for text in texts]
        np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    "types", [pytest.param([], id="int8"), pytest.param([tf.float16], id="float16", marks=pytest.mark.slow)]
)
def test_quantising_conversion_keeps_every_bit_of_the_tables(types):
    """The converter rounds float constants to float16, or float tables that are gathered from to int8."""
    rng = np.random.default_rng(0)
    size = 2000
    model = learn(rng.zipf(1.3, (300, 40)).astype(np.int64) % size, size, 2)
    drafter = NGramDrafter(model)

    def draft(tokens):
        return {"logits": drafter.step(tokens, drafter.initial_state(4))[0]}

    tokens = np.array([1, 2, 3, 700], np.int32)
    concrete = tf.function(draft, autograph=False).get_concrete_function(tf.TensorSpec([4], tf.int32, "tokens"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = types
    interpreter = Interpreter(model_content=converter.convert(), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], tokens)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    expected = run_everywhere(draft, tokens=tokens)["TFLite"]["logits"]
    np.testing.assert_array_equal(found, expected)
