"""The recurrence's gradient by hand against autodiff of `models.cifg.Recurrence.states`, in float64."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models import cifg_gradient
from models.activations import DIFFERENTIABLE, Differentiable
from models.cifg import Recurrence

pytestmark = pytest.mark.numerical

KINDS = ("cifg", "si-cifg")
E, H, R = 4, 6, 5


def make_weights(seed, projection=True, users=()):
    rng = np.random.default_rng(seed)
    recurrent = R if projection else H
    weights = {
        "bias": rng.normal(size=(*users, 3 * H)),
        "input_kernel": rng.normal(size=(*users, E, 3 * H)),
        "recurrent_kernel": rng.normal(size=(*users, recurrent, 3 * H)),
    }
    if projection:
        weights["projection"] = rng.normal(size=(*users, H, R))
    return weights


def make_inputs(seed, steps, batch, users=()):
    return np.random.default_rng(seed + 1).normal(size=(*users, steps, batch, E))


def with_gradients(function, weights, inputs, upstream):
    """The function's outputs, and the gradients of their product with `upstream` in every weight and the inputs."""
    tensors = {**{name: tf.constant(value) for name, value in weights.items()}, "inputs": tf.constant(inputs)}
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = function({name: tensors[name] for name in weights}, tensors["inputs"])
        total = tf.reduce_sum(outputs * upstream)
    # Zero where there is no way to a weight: over one step the recurrent kernel has none.
    gradients = tape.gradient(total, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return {"outputs": outputs, **gradients}


def both(recurrence, weights, inputs, seed=7):
    """By hand and by autodiff."""
    outputs = (*inputs.shape[:-1], weights["projection"].shape[-1] if "projection" in weights else H)
    upstream = np.random.default_rng(seed).normal(size=outputs)
    by_hand = with_gradients(recurrence.outputs, weights, inputs, upstream)
    by_law = with_gradients(lambda w, x: recurrence.states(w, x).output, weights, inputs, upstream)
    return by_hand, by_law


def error(by_hand, by_law):
    """The largest difference in any entry, relative to the largest entry of its tensor."""
    assert by_hand.keys() == by_law.keys()
    found = []
    for name, want in by_law.items():
        want = tf.convert_to_tensor(want).numpy()
        got = tf.convert_to_tensor(by_hand[name]).numpy()
        assert got.shape == want.shape and np.all(np.isfinite(got))
        found.append(np.max(np.abs(got - want), initial=0) / max(1.0, np.max(np.abs(want), initial=0)))
    return max(found)


@pytest.mark.parametrize("users", [(), (3,)], ids=["one", "users"])
@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_autodiff(kind, layer_norm, projection, users):
    weights, inputs = make_weights(0, projection, users), make_inputs(0, 6, 3, users)
    assert error(*both(Recurrence(kind, layer_norm), weights, inputs)) < 1e-10


@given(
    kind=st.sampled_from(KINDS),
    layer_norm=st.booleans(),
    projection=st.booleans(),
    users=st.sampled_from([(), (1,), (2,)]),
    steps=st.integers(1, 5),
    batch=st.integers(1, 3),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40)
def test_equals_autodiff_for_any_shape(kind, layer_norm, projection, users, steps, batch, scale, seed):
    weights = {name: scale * value for name, value in make_weights(seed, projection, users).items()}
    by_hand, by_law = both(Recurrence(kind, layer_norm), weights, make_inputs(seed, steps, batch, users))
    assert error(by_hand, by_law) < 1e-9  # some draws are badly conditioned: 10 digits of 16


@pytest.mark.parametrize("users", [(), (2,)], ids=["one", "users"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_gives_the_recurrent_kernel_no_gradient(kind, users):
    by_hand, by_law = both(Recurrence(kind), make_weights(1, users=users), make_inputs(1, 1, 3, users))
    assert error(by_hand, by_law) < 1e-10
    assert not np.any(by_hand["recurrent_kernel"])


@pytest.mark.parametrize("users", [(), (2,)], ids=["one", "users"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_whose_size_is_not_known_to_the_graph(kind, users):
    """Also no row at all."""
    recurrence, weights = Recurrence(kind, True), make_weights(2, users=users)

    @tf.function(input_signature=[tf.TensorSpec([*users, 4, None, E], tf.float64)])
    def traced(inputs):
        tensors = {name: tf.constant(value) for name, value in weights.items()}
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = recurrence.outputs(tensors, inputs)
            total = tf.reduce_sum(outputs)
        return {"outputs": outputs, **tape.gradient(total, tensors)}

    for batch in (3, 1, 0):
        inputs = make_inputs(2, 4, batch, users)
        want = with_gradients(lambda w, x: recurrence.states(w, x).output, weights, inputs, 1.0)
        del want["inputs"]
        assert error(traced(tf.constant(inputs)), want) < 1e-10


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_ties_at_the_maximum_share_as_in_autodiff(kind, layer_norm):
    """Equal columns make equal gates, for every gate and step: two or more largest entries in each."""
    weights, inputs = make_weights(3), make_inputs(3, 4, 3)
    for name in ("bias", "input_kernel", "recurrent_kernel"):
        gates = weights[name].reshape(*weights[name].shape[:-1], 3, H)
        gates[..., H // 2 :] = gates[..., : H // 2]
    assert error(*both(Recurrence(kind, layer_norm), weights, inputs)) < 1e-10


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_and_closed_gates(kind, layer_norm):
    """0/0 is 0, also in the gradient: a row without input, gates that are all negative, no weights at all."""
    recurrence, weights, inputs = Recurrence(kind, layer_norm), make_weights(4), make_inputs(4, 4, 3)
    weights["bias"] *= 0
    inputs[:, 0] = 0
    assert error(*both(recurrence, weights, inputs)) < 1e-10
    closed = {**weights, "bias": weights["bias"] - np.repeat([100.0, 100.0, 0.0], H)}
    assert error(*both(recurrence, closed, inputs)) < 1e-10
    nothing = {name: np.zeros_like(value) for name, value in weights.items()}
    assert error(*both(recurrence, nothing, inputs)) < 1e-10


def test_float32_saturates_without_nan():
    for kind in KINDS:
        weights = {name: np.float32(1e4) * value.astype(np.float32) for name, value in make_weights(5).items()}
        by_hand, _ = both(Recurrence(kind, True), weights, make_inputs(5, 4, 3).astype(np.float32))
        assert all(np.all(np.isfinite(value)) for value in by_hand.values())


def wrong_sign_of(activation: Differentiable) -> Differentiable:
    return activation._replace(gradient=lambda *arguments: -activation.gradient(*arguments))


@pytest.mark.parametrize("which", [0, 1], ids=["gate", "squash"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_wrong_sign_is_rejected(kind, which, monkeypatch):
    wrong = list(DIFFERENTIABLE[kind])
    wrong[which] = wrong_sign_of(wrong[which])
    monkeypatch.setitem(DIFFERENTIABLE, kind, tuple(wrong))
    assert error(*both(Recurrence(kind), make_weights(0), make_inputs(0, 6, 3))) > 1e-2


@pytest.mark.parametrize("part", ["cell", "norm_scale"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_forgets_or_scales_wrongly_is_rejected(kind, part, monkeypatch):
    forward = cifg_gradient._Cell.forward

    def wrong(self, inputs, before):
        step = forward(self, inputs, before)
        return step._replace(**{part: 1.01 * getattr(step, part)})

    monkeypatch.setattr(cifg_gradient._Cell, "forward", wrong)
    assert error(*both(Recurrence(kind, True), make_weights(0), make_inputs(0, 6, 3))) > 1e-4


@pytest.mark.parametrize("shape", [(2, 5), (3, 2, 5)])
def test_transposed_is_the_transpose(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(cifg_gradient.transposed(tf.constant(matrix)), np.swapaxes(matrix, -1, -2))
