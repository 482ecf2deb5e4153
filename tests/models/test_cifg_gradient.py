"""Compares the recurrence's hand-written gradient with autodiff of `models.cifg.Recurrence.states`, in float64."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models import cifg_gradient
from models.activations import DIFFERENTIABLE, Differentiable
from models.cifg import ACTIVATIONS, Recurrence

pytestmark = pytest.mark.numerical

KINDS = ("cifg", "si-cifg")
E, H, R = 4, 6, 5


def make_weights(seed, projection=True, clients=()):
    rng = np.random.default_rng(seed)
    recurrent = R if projection else H
    weights = {
        "bias": rng.normal(size=(*clients, 3 * H)),
        "input_kernel": rng.normal(size=(*clients, E, 3 * H)),
        "recurrent_kernel": rng.normal(size=(*clients, recurrent, 3 * H)),
    }
    if projection:
        weights["projection"] = rng.normal(size=(*clients, H, R))
    return weights


def make_inputs(seed, steps, batch, clients=()):
    return np.random.default_rng(seed + 1).normal(size=(*clients, steps, batch, E))


def with_gradients(function, weights, inputs, upstream):
    """Returns outputs of the function, and gradients of sum(outputs * upstream) in every weight and the inputs."""
    tensors = {**{name: tf.constant(value) for name, value in weights.items()}, "inputs": tf.constant(inputs)}
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = function({name: tensors[name] for name in weights}, tensors["inputs"])
        total = tf.reduce_sum(outputs * upstream)
    # A gradient is zero where the result does not depend on the weight: over one step, on the recurrent kernel.
    gradients = tape.gradient(total, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return {"outputs": outputs, **gradients}


def both(recurrence, weights, inputs, seed=7):
    """Returns outputs and gradients with the hand-written gradient, and the same by autodiff."""
    outputs = (*inputs.shape[:-1], weights["projection"].shape[-1] if "projection" in weights else H)
    upstream = np.random.default_rng(seed).normal(size=outputs)
    by_hand = with_gradients(recurrence.outputs, weights, inputs, upstream)
    by_autodiff = with_gradients(lambda w, x: recurrence.states(w, x).output, weights, inputs, upstream)
    return by_hand, by_autodiff


def error(by_hand, by_autodiff):
    """Returns the largest difference of an entry, relative to the largest entry of its tensor (or to 1 if larger)."""
    assert by_hand.keys() == by_autodiff.keys()
    errors = []
    for name, want in by_autodiff.items():
        want = tf.convert_to_tensor(want).numpy()
        got = tf.convert_to_tensor(by_hand[name]).numpy()
        assert got.shape == want.shape and np.all(np.isfinite(got))
        errors.append(np.max(np.abs(got - want), initial=0) / max(1.0, np.max(np.abs(want), initial=0)))
    return max(errors)


@pytest.mark.parametrize("clients", [(), (3,)], ids=["no client axis", "client axis"])
@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_equal_autodiff_in_values_and_gradients(kind, layer_norm, projection, clients):
    weights, inputs = make_weights(0, projection, clients), make_inputs(0, 6, 3, clients)
    assert error(*both(Recurrence(kind, layer_norm), weights, inputs)) < 1e-10


@pytest.mark.parametrize("kind", sorted(set(ACTIVATIONS) - set(KINDS)))
def test_outputs_of_ablations_equal_autodiff(kind):
    assert error(*both(Recurrence(kind), make_weights(0), make_inputs(0, 6, 3))) < 1e-10


@given(
    kind=st.sampled_from(KINDS),
    layer_norm=st.booleans(),
    projection=st.booleans(),
    clients=st.sampled_from([(), (1,), (2,)]),
    steps=st.integers(1, 5),
    batch=st.integers(1, 3),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40)
def test_outputs_equal_autodiff_for_random_shapes_and_scales(
    kind, layer_norm, projection, clients, steps, batch, scale, seed
):
    weights = {name: scale * value for name, value in make_weights(seed, projection, clients).items()}
    by_hand, by_autodiff = both(Recurrence(kind, layer_norm), weights, make_inputs(seed, steps, batch, clients))
    assert error(by_hand, by_autodiff) < 1e-9  # some examples are badly conditioned and lose several digits


@pytest.mark.parametrize("clients", [(), (2,)], ids=["no client axis", "client axis"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_gives_the_recurrent_kernel_zero_gradient(kind, clients):
    by_hand, by_autodiff = both(Recurrence(kind), make_weights(1, clients=clients), make_inputs(1, 1, 3, clients))
    assert error(by_hand, by_autodiff) < 1e-10
    assert not np.any(by_hand["recurrent_kernel"])


@pytest.mark.parametrize("clients", [(), (2,)], ids=["no client axis", "client axis"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_equal_autodiff_if_the_graph_does_not_know_the_batch_size(kind, clients):
    """Batches of 3, 1 and 0 rows run through the same graph."""
    recurrence, weights = Recurrence(kind, True), make_weights(2, clients=clients)

    @tf.function(input_signature=[tf.TensorSpec([*clients, 4, None, E], tf.float64)], autograph=False)
    def traced(inputs):
        tensors = {name: tf.constant(value) for name, value in weights.items()}
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = recurrence.outputs(tensors, inputs)
            total = tf.reduce_sum(outputs)
        return {"outputs": outputs, **tape.gradient(total, tensors)}

    for batch in (3, 1, 0):
        inputs = make_inputs(2, 4, batch, clients)
        want = with_gradients(lambda w, x: recurrence.states(w, x).output, weights, inputs, 1.0)
        del want["inputs"]
        assert error(traced(tf.constant(inputs)), want) < 1e-10


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_ties_at_the_maximum_share_the_gradient_as_in_autodiff(kind, layer_norm):
    """Each unit has a twin with equal weights, so that every gate has two or more largest entries in every step."""
    weights, inputs = make_weights(3), make_inputs(3, 4, 3)
    for name in ("bias", "input_kernel", "recurrent_kernel"):
        gates = weights[name].reshape(*weights[name].shape[:-1], 3, H)
        gates[..., H // 2 :] = gates[..., : H // 2]
    assert error(*both(Recurrence(kind, layer_norm), weights, inputs)) < 1e-10


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_equal_autodiff_for_zero_inputs_closed_gates_and_zero_weights(kind, layer_norm):
    """0/0 counts as 0, in the gradient too."""
    recurrence, weights, inputs = Recurrence(kind, layer_norm), make_weights(4), make_inputs(4, 4, 3)
    weights["bias"] *= 0
    inputs[:, 0] = 0
    assert error(*both(recurrence, weights, inputs)) < 1e-10
    closed = {**weights, "bias": weights["bias"] - np.repeat([100.0, 100.0, 0.0], H)}
    assert error(*both(recurrence, closed, inputs)) < 1e-10
    nothing = {name: np.zeros_like(value) for name, value in weights.items()}
    assert error(*both(recurrence, nothing, inputs)) < 1e-10


def test_large_float32_weights_give_finite_outputs_and_gradients():
    for kind in KINDS:
        weights = {name: np.float32(1e4) * value.astype(np.float32) for name, value in make_weights(5).items()}
        by_hand, _ = both(Recurrence(kind, True), weights, make_inputs(5, 4, 3).astype(np.float32))
        assert all(np.all(np.isfinite(value)) for value in by_hand.values())


def flip_gradient(activation: Differentiable) -> Differentiable:
    return activation._replace(gradient=lambda *arguments: -activation.gradient(*arguments))


@pytest.mark.parametrize("which", [0, 1], ids=["gate", "squash"])
@pytest.mark.parametrize("kind", KINDS)
def test_comparison_rejects_an_activation_gradient_with_wrong_sign(kind, which, monkeypatch):
    wrong = list(DIFFERENTIABLE[kind])
    wrong[which] = flip_gradient(wrong[which])
    monkeypatch.setitem(DIFFERENTIABLE, kind, tuple(wrong))
    assert error(*both(Recurrence(kind), make_weights(0), make_inputs(0, 6, 3))) > 1e-2


@pytest.mark.parametrize("part", ["cell", "norm_scale"])
@pytest.mark.parametrize("kind", KINDS)
def test_comparison_rejects_a_step_with_wrong_cell_state_or_norm_scale(kind, part, monkeypatch):
    forward = cifg_gradient._Cell.forward

    def wrong(self, inputs, before):
        step = forward(self, inputs, before)
        return step._replace(**{part: 1.01 * getattr(step, part)})

    monkeypatch.setattr(cifg_gradient._Cell, "forward", wrong)
    assert error(*both(Recurrence(kind, True), make_weights(0), make_inputs(0, 6, 3))) > 1e-4


@pytest.mark.parametrize("shape", [(2, 5), (3, 2, 5)])
def test_transposed_equals_the_transpose_of_numpy(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(cifg_gradient.transposed(tf.constant(matrix)), np.swapaxes(matrix, -1, -2))
