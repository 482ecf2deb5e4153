import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from models.cifg import LONGEST_UNROLLED, CIFGState, Recurrence
from models.recurrent_lm import RecurrentLanguageModel
from tests.models import exported, language_models
from tests.models.language_models import LanguageModelTests, make_tokens, make_weights
from tests.models.tree_tests import TreeTests
from tests.oracles import cifg as oracle
from tests.tolerance import FUNCTION, condition, rounding

pytestmark = pytest.mark.numerical

V, E, H = language_models.VOCABULARY, 4, 6
MODELS = {
    "cifg": RecurrentLanguageModel("cifg", V, E, H),
    "si-cifg": RecurrentLanguageModel("si-cifg", V, E, H, output_bias=True),
    "cifg, layer norm": RecurrentLanguageModel("cifg", V, E, H, layer_norm=True, output_bias=True),
    "si-cifg, layer norm": RecurrentLanguageModel("si-cifg", V, E, H, layer_norm=True),
}
CELLS = pytest.mark.parametrize("cell", ["cifg", "si-cifg"])


def make_model(cell="si-cifg", **options):
    return RecurrentLanguageModel(cell, V, E, H, **options)


@pytest.fixture(params=list(MODELS), scope="class")
def model(request):
    return MODELS[request.param]


class TestRecurrent(LanguageModelTests, TreeTests):
    def oracle_logits(self, model, weights, tokens):
        return oracle.logits(model.cell, weights, tokens, model.layer_norm)

    def operations(self, model):
        return exported.operations(model)

    def test_nodes_read_one_after_the_other_are_caught(self, model, expected, monkeypatch):
        def one_after_the_other(recurrence, weights, inputs, before, tree, level):
            return recurrence.states(weights, inputs, CIFGState(*(part[0] for part in before)))

        monkeypatch.setattr(Recurrence, "tree_states", one_after_the_other)
        with pytest.raises(AssertionError):
            self.check_logits(model, expected)
        with pytest.raises(AssertionError):
            self.check_rewound(model, expected)


def assert_same_state(actual, expected, atol=1e-12):
    np.testing.assert_allclose(actual.output, expected.output, atol=atol)
    np.testing.assert_allclose(actual.cell, expected.cell, atol=atol)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("output_bias", [False, True])
@CELLS
def test_token_losses_equal_the_oracle(cell, layer_norm, output_bias):
    model = make_model(cell, layer_norm=layer_norm, output_bias=output_bias)
    weights, tokens = make_weights(model), make_tokens(3, 8)
    losses = model.token_losses(weights, tokens)
    assert losses.shape == (3, 7)
    for index in range(3):
        expected = oracle.token_losses(cell, weights, tokens[index], layer_norm)
        np.testing.assert_allclose(losses[index], expected, atol=1e-12)


@CELLS
def test_token_losses_of_a_long_row_equal_the_oracle(cell):
    model = make_model(cell)
    weights, tokens = make_weights(model), make_tokens(1, LONGEST_UNROLLED + 5)
    np.testing.assert_allclose(
        model.token_losses(weights, tokens)[0], oracle.token_losses(cell, weights, tokens[0]), atol=1e-9
    )


def test_token_losses_of_extreme_logits_are_finite():
    model = make_model(output_bias=True)
    weights = make_weights(model, dtype=np.float32)
    weights["output_bias"][:] = [1e4, -1e4, *[0] * (V - 2)]
    losses = model.token_losses(weights, np.array([[2, 0, 1]], np.int32)).numpy()
    # The other logits' sizes are up to 20; a certain target costs nothing but the rounding of a softmax near 1.
    np.testing.assert_allclose(losses, [[0, 2e4]], rtol=1e-3, atol=rounding(2 * FUNCTION + V, 1.0))


@CELLS
def test_prefill_gives_logits_and_state_after_the_last_token_of_each_row(cell):
    model = make_model(cell, output_bias=True)
    weights, tokens, lengths = make_weights(model), make_tokens(7, 7), np.arange(1, 8, dtype=np.int32)
    logits, state = model.prefill(weights, tokens, lengths)
    assert logits.shape == (7, V)
    for index, length in enumerate(lengths):
        real = tokens[index, :length]
        np.testing.assert_allclose(logits[index], oracle.logits(cell, weights, real)[-1], atol=1e-12)
        outputs, cells = oracle.states(cell, weights, weights["embedding"][real])
        np.testing.assert_allclose(state.output[index], outputs[-1], atol=1e-12)
        np.testing.assert_allclose(state.cell[index], cells[-1], atol=1e-12)


@CELLS
def test_extend_by_five_tokens_equals_five_extends_by_one_with_rewinds(cell):
    model = make_model(cell)
    weights, tokens = make_weights(model, dtype=np.float32), make_tokens(2, 5)
    state = model.initial_state(2)
    together, trail = model.extend(weights, tokens, state)
    operations, start = exported.operations(model), state
    of_logits = rounding(operations, condition(lambda w: [model.extend(w, tokens, start)[0]], weights))
    of_states = rounding(operations, condition(lambda w: [*model.extend(w, tokens, start)[1]], weights))
    for t in range(5):
        logits, step_trail = model.extend(weights, tokens[:, t : t + 1], state)
        state = model.rewind(step_trail, np.array([1, 1], np.int32))
        np.testing.assert_allclose(logits[:, 0], together[:, t], atol=of_logits)
        expected = model.rewind(trail, np.full(2, t + 1, np.int32))
        assert_same_state(state, expected, atol=of_states)
    assert_same_state(model.rewind(trail, np.zeros(2, np.int32)), model.initial_state(2))


@CELLS
def test_gradient_of_a_long_row_is_the_same_under_xla(cell):
    model = make_model(cell)
    weights = {n: tf.constant(w) for n, w in make_weights(model).items()}
    tokens = tf.constant(make_tokens(1, LONGEST_UNROLLED + 3))

    def gradient(weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = tf.reduce_mean(model.token_losses(weights, tokens))
        return tape.gradient(loss, weights)

    compiled = tf.function(gradient, jit_compile=True, autograph=False)(weights)
    for name, value in gradient(weights).items():
        np.testing.assert_allclose(compiled[name], value, atol=1e-10, rtol=1e-8)


@CELLS
def test_plain_sgd_learns_from_the_weights_of_init(cell):
    """Each row counts up from a random token, so that all other tokens can be predicted with certainty."""
    model = RecurrentLanguageModel(cell, 16, 16, 32)
    rng = np.random.default_rng(0)
    data = ((rng.integers(0, 16, (150, 16, 1)) + np.arange(11)) % 16).astype(np.int32)

    @tf.function(autograph=False)
    def update(weights, tokens):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = tf.reduce_mean(model.token_losses(weights, tokens))
        gradient = tape.gradient(loss, weights)
        return {n: w - gradient[n] for n, w in weights.items()}, loss

    weights = {n: tf.constant(w) for n, w in model.init(0).items()}
    losses = []
    for tokens in data:
        weights, loss = update(weights, tf.constant(tokens))
        losses.append(float(loss))
    assert losses[0] > 2.0
    assert losses[-1] < 0.2


def test_init_depends_on_the_seed_alone_and_has_the_stated_shapes_and_scales():
    model = RecurrentLanguageModel("si-cifg", 500, 40, 90, output_bias=True)
    weights, again, other = model.init(3), model.init(3), model.init(4)
    assert list(weights) == sorted(weights)
    assert {n: w.shape for n, w in weights.items()} == {
        "bias": (270,),
        "embedding": (500, 40),
        "input_kernel": (40, 270),
        "output_bias": (500,),
        "projection": (90, 40),
        "recurrent_kernel": (40, 270),
    }
    for name, weight in weights.items():
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, again[name])
    assert not weights["bias"].any()
    assert not weights["output_bias"].any()
    assert not np.array_equal(weights["embedding"], other["embedding"])
    # The standard deviation of n normal draws has relative error 1/sqrt(2n). The bound is 5 sigma, so that the test
    # fails by chance with probability below 1e-5.
    for name, fan_in in {
        "embedding": 40,
        "input_kernel": 40,
        "recurrent_kernel": 40,
        "projection": 90,
    }.items():
        relative = weights[name].std() * np.sqrt(fan_in) - 1
        assert abs(relative) < 5 / np.sqrt(2 * weights[name].size)


@pytest.mark.parametrize("name", ["vocabulary_size", "embedding", "units"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, float("nan")])
def test_model_refuses_sizes_that_are_not_positive_integers(name, value):
    with pytest.raises(ValueError, match=f"{name}: .* is not a positive integer"):
        dataclasses.replace(make_model(), **{name: value})


def test_model_refuses_an_unknown_cell():
    with pytest.raises(ValueError, match="cell: 'gru' is not one of"):
        make_model("gru")
