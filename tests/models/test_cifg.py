import numpy as np
import pytest
import tensorflow as tf

from models.cifg import LONGEST_UNROLLED, CIFGState, Recurrence
from tests.oracles import cifg as oracle

pytestmark = pytest.mark.numerical

KINDS = ("cifg", "si-cifg")
B, T, E, H, R = 3, 6, 8, 10, 5
GATES = np.repeat([7, 0.1, 30], H)


def make_weights(seed=0, projection=True, dtype=np.float64):
    rng = np.random.default_rng(seed)
    recurrent = R if projection else H
    weights = {
        "bias": rng.normal(size=3 * H),
        "input_kernel": rng.normal(size=(E, 3 * H)),
        "recurrent_kernel": rng.normal(size=(recurrent, 3 * H)),
    }
    if projection:
        weights["projection"] = rng.normal(size=(H, R))
    return {name: value.astype(dtype) for name, value in weights.items()}


def make_inputs(seed=1, steps=T, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(steps, B, E)).astype(dtype)


def scaled(weights, factor):
    """Multiplies the gate weights by `factor`, one number or one per column, and leaves the projection as it is."""
    return {n: v if n == "projection" else v * factor for n, v in weights.items()}


def loss_gradient(kind, weights, layer_norm=False):
    gates = {n: tf.constant(v) for n, v in weights.items() if n != "projection"}
    rest = {n: v for n, v in weights.items() if n == "projection"}
    target = np.random.default_rng(2).normal(size=(B, R if rest else H))
    with tf.GradientTape() as tape:
        tape.watch(gates)
        states = Recurrence(kind, layer_norm).states({**gates, **rest}, tf.constant(make_inputs()))
        loss = tf.reduce_sum(tf.square(states.output[-1] - target))
    return gates, tape.gradient(loss, gates)


def norm(tensors):
    return np.sqrt(sum(np.sum(np.square(t)) for t in tensors.values()))


def inner(a, b):
    return sum(np.sum(np.asarray(a[n]) * np.asarray(b[n])) for n in a)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_states_equal_the_oracle_at_every_step(kind, projection, layer_norm):
    weights, inputs = make_weights(projection=projection), make_inputs()
    states = Recurrence(kind, layer_norm).states(weights, tf.constant(inputs))
    for row in range(B):
        outputs, cells = oracle.states(kind, weights, inputs[:, row], layer_norm=layer_norm)
        np.testing.assert_allclose(states.output[:, row], outputs, atol=1e-12)
        np.testing.assert_allclose(states.cell[:, row], cells, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_states_from_a_given_state_equal_the_oracle(kind):
    weights, inputs, rng = make_weights(), make_inputs(), np.random.default_rng(3)
    start = CIFGState(tf.constant(rng.normal(size=(B, R))), tf.constant(rng.normal(size=(B, H))))
    states = Recurrence(kind).states(weights, tf.constant(inputs), start)
    for row in range(B):
        outputs, cells = oracle.states(
            kind, weights, inputs[:, row], start.output[row].numpy(), start.cell[row].numpy()
        )
        np.testing.assert_allclose(states.output[:, row], outputs, atol=1e-12)
        np.testing.assert_allclose(states.cell[:, row], cells, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_long_sequence_in_a_loop_equals_the_oracle_and_the_unrolled_gradient(kind, monkeypatch):
    steps = LONGEST_UNROLLED + 3
    weights, inputs = make_weights(), make_inputs(steps=steps)
    mask = tf.constant(np.random.default_rng(4).random((steps, B)) < 0.8)
    states = Recurrence(kind).states(weights, tf.constant(inputs))
    outputs, _ = oracle.states(kind, weights, inputs[:, 1])
    np.testing.assert_allclose(states.output[:, 1], outputs, atol=1e-10)

    def result():
        x = tf.constant(inputs)
        with tf.GradientTape() as tape:
            tape.watch(x)
            states = Recurrence(kind).states(weights, x, mask=mask)
            loss = tf.reduce_sum(states.output * tf.cos(states.output)) + tf.reduce_sum(states.cell**2)
        return *states, tape.gradient(loss, x)

    looped = result()
    monkeypatch.setattr("models.cifg.LONGEST_UNROLLED", steps)
    for a, b in zip(looped, result(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("factor", [7.0, 1e-3, GATES], ids=["7", "1e-3", "per gate"])
def test_scaling_the_gates_changes_only_the_plain_cell(factor, projection, layer_norm):
    weights, inputs = make_weights(projection=projection), tf.constant(make_inputs())
    change = {}
    for kind in KINDS:
        recurrence = Recurrence(kind, layer_norm)
        before, after = recurrence.states(weights, inputs), recurrence.states(scaled(weights, factor), inputs)
        change[kind] = max(np.abs(a - b).max() for a, b in zip(before, after, strict=True))
    assert change["si-cifg"] < 1e-12
    assert change["cifg"] > 0.1


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("projection", [False, True])
def test_gradient_is_orthogonal_to_the_weights_only_in_the_scale_invariant_cell(projection, layer_norm):
    products = {k: inner(*loss_gradient(k, make_weights(projection=projection), layer_norm)) for k in KINDS}
    assert abs(products["si-cifg"]) < 1e-10
    assert abs(products["cifg"]) > 0.1


def test_gradient_shrinks_as_the_weights_grow_only_in_the_scale_invariant_cell():
    ratios = {}
    for kind in KINDS:
        weights = make_weights()
        _, gradient = loss_gradient(kind, weights)
        _, gradient_7 = loss_gradient(kind, scaled(weights, 7))
        ratios[kind] = 7 * norm(gradient_7) / norm(gradient)
    np.testing.assert_allclose(ratios["si-cifg"], 1, rtol=1e-12)
    assert abs(ratios["cifg"] - 1) > 0.1


def test_scaling_the_projection_changes_the_scale_invariant_cell():
    weights = make_weights()
    larger = {**weights, "projection": 7 * weights["projection"]}
    cells = [Recurrence("si-cifg").states(w, tf.constant(make_inputs())).cell for w in (weights, larger)]
    assert np.abs(cells[0] - cells[1]).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, -1.0], ids=["all zero", "all negative"])
def test_gates_without_positive_input_give_finite_values_and_gradients(kind, value):
    weights = {n: np.full_like(v, value if n == "bias" else 0) for n, v in make_weights().items()}
    states = Recurrence(kind).states(weights, tf.constant(make_inputs()))
    outputs, cells = oracle.states(kind, weights, make_inputs()[:, 0])
    np.testing.assert_allclose(states.output[:, 0], outputs, atol=1e-12)
    np.testing.assert_allclose(states.cell[:, 0], cells, atol=1e-12)
    assert all(np.all(np.isfinite(g)) for g in loss_gradient(kind, weights)[1].values())


@pytest.mark.parametrize("steps", [T, LONGEST_UNROLLED + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_client_axis_equals_a_loop_over_clients(kind, steps):
    clients = [make_weights(seed) for seed in range(3)]
    inputs = np.stack([make_inputs(10 + client, steps) for client in range(3)])
    mask = np.random.default_rng(5).random((3, steps, B)) < 0.7
    stacked = {n: tf.stack([w[n] for w in clients]) for n in clients[0]}
    together = Recurrence(kind).states(stacked, tf.constant(inputs), mask=tf.constant(mask))
    for client, weights in enumerate(clients):
        alone = Recurrence(kind).states(weights, tf.constant(inputs[client]), mask=tf.constant(mask[client]))
        np.testing.assert_allclose(together.output[client], alone.output, atol=1e-12)
        np.testing.assert_allclose(together.cell[client], alone.cell, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_step_keeps_the_state(kind):
    weights, inputs = make_weights(), make_inputs()
    mask = np.random.default_rng(6).random((T, B)) < 0.5
    states = Recurrence(kind).states(weights, tf.constant(inputs), mask=tf.constant(mask))
    for row in range(B):
        outputs, cells = oracle.states(kind, weights, inputs[mask[:, row], row])
        np.testing.assert_allclose(states.output.numpy()[mask[:, row], row], outputs, atol=1e-12)
        np.testing.assert_allclose(states.cell.numpy()[mask[:, row], row], cells, atol=1e-12)
        held = np.flatnonzero(~mask[1:, row]) + 1
        np.testing.assert_array_equal(states.cell.numpy()[held, row], states.cell.numpy()[held - 1, row])


@pytest.mark.parametrize("kind", KINDS)
def test_last_state_is_the_state_after_the_length_of_each_row(kind):
    weights, inputs = make_weights(), tf.constant(make_inputs())
    states = Recurrence(kind).states(weights, inputs)
    last = Recurrence(kind).last_state(weights, inputs, tf.constant([0, 2, T]))
    for row, length in ((1, 2), (2, T)):
        np.testing.assert_allclose(last.output[row], states.output[length - 1, row], atol=1e-12)
        np.testing.assert_allclose(last.cell[row], states.cell[length - 1, row], atol=1e-12)
    assert not np.any(last.output[0])
    assert not np.any(last.cell[0])


def test_inputs_of_all_steps_are_projected_by_one_product():
    weights = make_weights()
    graph = tf.function(lambda x: Recurrence("si-cifg").states(weights, x), autograph=False).get_concrete_function(
        tf.TensorSpec([T, B, E], tf.float64)
    )
    products = [op for op in graph.graph.get_operations() if "MatMul" in op.type]
    # One product for all inputs, and two for each step: recurrence and projection.
    assert len(products) == 1 + 2 * T
    assert [B * T, 3 * H] in [op.outputs[0].shape.as_list() for op in products]


def test_recurrence_refuses_an_unknown_kind():
    with pytest.raises(ValueError, match="cell: 'lstm' is not one of 'cifg', 'si-cifg'"):
        Recurrence("lstm")
