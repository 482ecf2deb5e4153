import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cifg import LONGEST_UNROLLED
from models.presets import from_config
from models.recurrent_lm import RecurrentLanguageModel
from tests.models import exported
from tests.oracles import cifg as oracle
from tests.tolerance import FUNCTION, condition, rounding

pytestmark = pytest.mark.numerical

V, E, H = 11, 4, 6
CELLS = pytest.mark.parametrize("cell", ["cifg", "si-cifg"])


def make_model(cell="si-cifg", **options):
    return RecurrentLanguageModel(cell, V, E, H, **options)


def make_weights(model, seed=0, dtype=np.float64):
    """Draws all weights at random, because biases of zero could hide a fault."""
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(dtype) for n, s in model.shapes().items()}


def make_tokens(*shape, seed=1):
    return np.random.default_rng(seed).integers(0, V, shape).astype(np.int32)


def log_softmax(logits):
    return tf.nn.log_softmax(logits).numpy()


def assert_same_state(actual, expected, atol=1e-12):
    np.testing.assert_allclose(actual.output, expected.output, atol=atol)
    np.testing.assert_allclose(actual.cell, expected.cell, atol=atol)


def row(state, index):
    return type(state)(*(s[index : index + 1] for s in state))


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


@CELLS
def test_gradient_equals_central_differences_of_the_oracle(cell):
    model = make_model(cell, output_bias=True)
    weights, tokens = make_weights(model), make_tokens(2, 6)
    tensors = {n: tf.constant(w) for n, w in weights.items()}
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = tf.reduce_sum(model.token_losses(tensors, tokens))
    gradient = tape.gradient(loss, tensors)
    rng, step = np.random.default_rng(2), 1e-6
    for name, weight in weights.items():
        assert isinstance(gradient[name], tf.Tensor)  # dense, so that plain arithmetic can apply it
        direction = rng.normal(size=weight.shape)

        def total(sign, name=name, weight=weight, direction=direction):
            moved = {**weights, name: weight + sign * step * direction}
            return sum(oracle.token_losses(cell, moved, t).sum() for t in tokens)

        expected = (total(1) - total(-1)) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient[name] * direction), expected, rtol=1e-5, atol=1e-6)


def test_token_losses_of_extreme_logits_are_finite():
    model = make_model(output_bias=True)
    weights = make_weights(model, dtype=np.float32)
    weights["output_bias"][:] = [1e4, -1e4, *[0] * (V - 2)]
    losses = model.token_losses(weights, np.array([[2, 0, 1]], np.int32)).numpy()
    # The other logits' sizes are up to 20; a certain target costs nothing but the rounding of a softmax near 1.
    np.testing.assert_allclose(losses, [[0, 2e4]], rtol=1e-3, atol=rounding(2 * FUNCTION + V, 1.0))


@CELLS
@pytest.mark.parametrize("output_bias", [False, True])
@pytest.mark.parametrize("clients", [0, 3])
def test_loss_sum_and_correct_count_cover_only_targets_that_are_not_padding(cell, output_bias, clients):
    """The data has short rows, padding inside rows and, with a client axis (clients > 0), rows of padding."""
    model, rng = make_model(cell, output_bias=output_bias), np.random.default_rng(3)
    lead = [clients] * (clients > 0)
    weights = {n: tf.constant(rng.normal(size=(*lead, *s))) for n, s in model.shapes().items()}
    tokens = rng.integers(1, V, (*lead, 4, 7)).astype(np.int32)
    tokens[rng.random(tokens.shape) < 0.3] = 0
    tokens[..., 1, 3:] = 0
    rows = np.array([4, 2, 0][:clients], np.int32)
    counted = tokens[..., 1:] != 0
    if clients:
        counted &= (np.arange(4) < rows[:, np.newaxis])[..., np.newaxis]

    def gradients_of(function):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            total = function()
        return total, tape.gradient(total, weights)

    total, gradients = gradients_of(lambda: model.loss_sum(weights, tokens, *([rows] if clients else [])))
    masked, expected = gradients_of(lambda: tf.reduce_sum(model.token_losses(weights, tokens) * counted, [-2, -1]))
    np.testing.assert_allclose(total, masked, rtol=1e-11)
    for name, gradient in expected.items():
        np.testing.assert_allclose(tf.convert_to_tensor(gradients[name]), tf.convert_to_tensor(gradient), atol=1e-11)
    loss, correct = model.loss_and_correct(weights, tokens, *([rows] if clients else []))
    np.testing.assert_allclose(loss, masked, rtol=1e-11)
    right = []
    for client in range(clients or 1):
        own = {name: weight[client] if clients else weight for name, weight in weights.items()}
        its, its_counted = (tokens[client], counted[client]) if clients else (tokens, counted)
        zero = tf.nest.map_structure(lambda part: tf.cast(part, tf.float64), model.initial_state(4))
        logits, _ = model.extend(own, its[:, :-1], zero)
        right.append(((logits.numpy().argmax(-1) == its[:, 1:]) & its_counted).sum())
    np.testing.assert_array_equal(correct, right if clients else right[0])


@CELLS
def test_client_axis_equals_a_loop_over_clients(cell):
    model = make_model(cell, output_bias=True)
    clients = [make_weights(model, seed) for seed in range(3)]
    tokens = make_tokens(3, 2, 7)
    stacked = {n: tf.stack([w[n] for w in clients]) for n in clients[0]}

    def loss_and_gradient(weights, tokens):
        weights = {n: tf.convert_to_tensor(w) for n, w in weights.items()}
        with tf.GradientTape() as tape:
            tape.watch(weights)
            losses = model.token_losses(weights, tokens)
            loss = tf.reduce_sum(losses)
        return losses, tape.gradient(loss, weights)

    together, gradients = loss_and_gradient(stacked, tokens)
    assert together.shape == (3, 2, 6)
    for client, weights in enumerate(clients):
        alone, gradient = loss_and_gradient(weights, tokens[client])
        np.testing.assert_allclose(together[client], alone, atol=1e-12)
        for name in weights:
            np.testing.assert_allclose(gradients[name][client], gradient[name], atol=1e-12)


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
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_prefill_extend_and_rewind_agree_for_any_split_of_a_row(cell, data):
    """However a row is split, its logits are those of the whole row, and a state is that of the tokens it has read."""
    model = make_model(cell)
    weights = make_weights(model)
    batch, new = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    lengths = np.array(data.draw(st.lists(st.integers(1, 6), min_size=batch, max_size=batch)), np.int32)
    kept = np.array(data.draw(st.lists(st.integers(0, new), min_size=batch, max_size=batch)), np.int32)
    prompt, more = make_tokens(batch, 6), make_tokens(batch, new, seed=3)
    first, state = model.prefill(weights, prompt, lengths)
    logits, trail = model.extend(weights, more, state)
    rewound = model.rewind(trail, kept)
    assert logits.shape == (batch, new, V)
    for index in range(batch):
        whole = np.concatenate([prompt[index, : lengths[index]], more[index]])
        losses = model.token_losses(weights, whole[np.newaxis])[0, lengths[index] - 1 :]
        log_probabilities = log_softmax(np.concatenate([first[index : index + 1], logits[index, :-1]]))
        np.testing.assert_allclose(-log_probabilities[np.arange(new), more[index]], losses, atol=1e-12)
        remaining = whole[: lengths[index] + kept[index]]
        _, expected = model.prefill(weights, remaining[np.newaxis], np.array([len(remaining)], np.int32))
        assert_same_state(row(rewound, index), expected)


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
@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "XLA"])
def test_graph_and_xla_equal_eager_mode(cell, compiled):
    model = make_model(cell, layer_norm=True, output_bias=True)
    # In float64 rounding is so small that any other difference stands out.
    weights = {n: tf.constant(w) for n, w in make_weights(model).items()}
    tokens, lengths, kept = make_tokens(3, 5), tf.constant([1, 2, 4]), tf.constant([0, 1, 2])

    def train(weights, tokens):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            losses = model.token_losses(weights, tokens)
            loss = tf.reduce_sum(losses)
        return losses, tape.gradient(loss, weights)

    def decode(weights, tokens, lengths, kept):
        logits, state = model.prefill(weights, tokens, lengths)
        more, trail = model.extend(weights, tokens[:, :2], state)
        return logits, state, more, trail, model.rewind(trail, kept)

    cases: list[tuple[Callable, tuple]] = [(train, (tokens,)), (decode, (tokens[:, :4], lengths, kept))]
    for function, arguments in cases:
        expected = function(weights, *arguments)
        actual = tf.function(function, jit_compile=compiled)(weights, *map(tf.constant, arguments))
        tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10, rtol=1e-8), actual, expected)


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

    compiled = tf.function(gradient, jit_compile=True)(weights)
    for name, value in gradient(weights).items():
        np.testing.assert_allclose(compiled[name], value, atol=1e-10, rtol=1e-8)


@CELLS
def test_plain_sgd_learns_from_the_weights_of_init(cell):
    """Each row counts up from a random token, so that all other tokens can be predicted with certainty."""
    model = RecurrentLanguageModel(cell, 16, 16, 32)
    rng = np.random.default_rng(0)
    data = ((rng.integers(0, 16, (150, 16, 1)) + np.arange(11)) % 16).astype(np.int32)

    @tf.function
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


def test_config_is_json_and_rebuilds_the_same_model():
    model = make_model("cifg", layer_norm=True, output_bias=True)
    assert from_config(json.loads(json.dumps(model.config()))) == model


@pytest.mark.parametrize("name", ["vocabulary_size", "embedding", "units"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, float("nan")])
def test_model_refuses_sizes_that_are_not_positive_integers(name, value):
    with pytest.raises(ValueError, match=f"{name}: .* is not a positive integer"):
        dataclasses.replace(make_model(), **{name: value})


def test_model_refuses_an_unknown_cell():
    with pytest.raises(ValueError, match="cell: 'gru' is not one of"):
        make_model("gru")
