"""Compares the output layer with NumPy and with autodiff of the textbook formula, in float64."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from models import output_layer
from models.output_layer import PAD, cross_entropy, tied
from tests.tolerance import FUNCTION, rounding

pytestmark = pytest.mark.numerical

V, E = 9, 4


def textbook(outputs, table, bias, targets):
    """Computes the losses with TensorFlow's own operations, which autodiff differentiates."""
    logits = tf.matmul(outputs, table, transpose_b=True)
    if bias is not None:
        logits += bias
    return -tf.gather(tf.nn.log_softmax(logits), targets, batch_dims=targets.shape.rank)


def loss_sum(outputs, table, bias, targets):
    return output_layer.sums(outputs, table, bias, targets, with_correct=False)[0]


def loss_sum_with_correct(outputs, table, bias, targets):
    return output_layer.sums(outputs, table, bias, targets, with_correct=True)[0]


def textbook_sum(*arguments):
    losses, targets = textbook(*arguments), arguments[3]
    return tf.reduce_sum(losses * tf.cast(tf.not_equal(targets, PAD), losses.dtype))


def with_gradients(function, outputs, table, bias, targets, upstream):
    given_ = [tf.constant(outputs), tf.constant(table), *([] if bias is None else [tf.constant(bias)])]
    with tf.GradientTape() as tape:
        tape.watch(given_)
        losses = function(*given_[:2], given_[2] if bias is not None else None, tf.constant(targets))
        total = tf.reduce_sum(losses * upstream)
    return [losses, *tape.gradient(total, given_)]


def problem(seed=0, clients=(), rows=(2, 5), padding=0.3, bias=True, scale=1.0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(1, V, (*clients, *rows)).astype(np.int32)
    targets[rng.random(targets.shape) < padding] = PAD
    return (
        rng.normal(size=(*clients, *rows, E)) * scale,
        rng.normal(size=(*clients, V, E)) * scale,
        rng.normal(size=(*clients, V)) if bias else None,
        targets,
        rng.normal(size=targets.shape),
    )


def by_client(function, data):
    """Applies the function to each client's data alone and stacks the results; without a client axis, just once."""
    if data[1].ndim == 2:
        return with_gradients(function, *data)
    clients = [[None if part is None else part[client] for part in data] for client in range(len(data[1]))]
    return [np.stack(parts) for parts in zip(*(with_gradients(function, *each) for each in clients), strict=True)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("padding", [0.0, 0.3, 1.0], ids=["none", "some", "all"])
@pytest.mark.parametrize("clients", [(), (3,)], ids=["no client axis", "client axis"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(cross_entropy, textbook), (loss_sum, textbook_sum), (loss_sum_with_correct, textbook_sum)],
)
def test_losses_and_gradients_equal_autodiff_of_the_textbook_formula(ours, theirs, clients, padding, bias):
    data = problem(clients=clients, padding=padding, bias=bias)
    if ours in (loss_sum, loss_sum_with_correct):
        data = (*data[:4], np.random.default_rng(9).normal(size=clients))
    got = with_gradients(ours, *data)
    for a, b in zip(got, by_client(theirs, data), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    if ours in (loss_sum, loss_sum_with_correct) and padding == 1.0:
        assert not any(np.any(part) for part in got)


@given(st.integers(0, 10**6), st.integers(0, 6), st.sampled_from([1e-3, 1.0, 30.0]), st.booleans())
def test_cross_entropy_equals_the_textbook_formula_for_random_shapes_and_scales(seed, rows, scale, clients):
    data = problem(seed, clients=(2,) if clients else (), rows=(rows,), scale=scale)
    for a, b in zip(with_gradients(cross_entropy, *data), by_client(textbook, data), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10, rtol=1e-10)


def test_comparison_rejects_a_wrong_softmax_and_a_wrong_sign_at_the_target(monkeypatch):
    """The faults are a softmax of scaled logits, and a 1 that is added instead of subtracted at the target."""
    want = with_gradients(textbook, *problem())

    def error(plant):
        with monkeypatch.context() as patch:
            plant(patch)
            got = with_gradients(cross_entropy, *problem())
        return max(np.abs(a - b).max() for a, b in zip(got, want, strict=True))

    softmax, add = tf.nn.softmax, tf.tensor_scatter_nd_add
    assert error(lambda patch: None) < 1e-12
    assert error(lambda patch: patch.setattr(output_layer.tf.nn, "softmax", lambda x: softmax(1.001 * x))) > 1e-5
    assert error(lambda patch: patch.setattr(output_layer.tf, "tensor_scatter_nd_sub", add)) > 1e-2


@pytest.mark.parametrize("users", [(), (2,)], ids=["one", "users"])
def test_extreme_logits_have_accurate_losses_and_finite_gradients(users):
    """Logits of 1e4 and -1e4 in float32: the losses are 0, 2e4 and log V, but for the rounding of a softmax near 1."""
    outputs = np.zeros((*users, 4, E), np.float32)
    outputs[..., 0, 0] = outputs[..., 1, 0] = 1.0
    outputs[..., 2, 1] = 1.0
    table = np.zeros((*users, V, E), np.float32)
    table[..., 3, 0], table[..., 4, 0] = 1e4, -1e4
    table[..., :, 1] = 1e4  # all equal: the largest entry is shared by V
    targets = np.broadcast_to(np.array([3, 4, 5, 6], np.int32), (*users, 4))
    got = with_gradients(cross_entropy, outputs, table, None, targets, np.ones(targets.shape, np.float32))
    # A softmax (its exp, the sum over V, the quotient) and its logarithm, relative to it: absolute in the loss.
    relative = rounding(2 * FUNCTION + V, 1.0)
    losses = np.broadcast_to([0, 2e4, np.log(V), np.log(V)], targets.shape)
    np.testing.assert_allclose(got[0], losses, rtol=relative, atol=relative)
    assert np.all(got[0] >= 0)
    # Each error of 1 against a table of 1e4: the gradient in the outputs is of that size. V terms make each.
    want = np.zeros((*users, 4, E), np.float32)
    want[..., 1, 0] = 2e4
    np.testing.assert_allclose(got[1], want, atol=rounding(2 * FUNCTION + 2 * V, 2e4))
    assert np.all(np.isfinite(got[2]))


def test_loss_that_is_not_finite_affects_only_its_own_client():
    outputs, table, bias, targets, upstream = problem(clients=(3,), padding=0.0)
    table[1, 2, 0] = np.nan
    losses, d_outputs, d_table, d_bias = with_gradients(cross_entropy, outputs, table, bias, targets, upstream)
    for part in (losses, d_outputs, d_table, d_bias):
        finite = np.isfinite(part).reshape(3, -1).all(-1)
        assert list(finite) == [True, False, True]


@pytest.mark.parametrize("clients", [(), (2,)], ids=["no client axis", "client axis"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_sums_ignore_padding_that_is_not_finite(bad, clients):
    outputs, table, bias, targets, _ = problem(clients=clients)
    want = with_gradients(loss_sum, outputs, table, bias, targets, 1.0)
    outputs[targets == PAD] = bad
    got = with_gradients(loss_sum, outputs, table, bias, targets, 1.0)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_is_accurate_and_not_negative_from_certain_to_impossible_targets(dtype):
    """With two tokens whose logits differ by `gaps`, the loss is log(1 + exp(∓gap)), for gaps from 0 to 1e4."""
    gaps = np.array([0.0, 1e-3, 1.0, 5.0, 15.0, 80.0, 1e3, 1e4])
    outputs = np.ones((len(gaps), 1), dtype)
    for sign in (1, -1):
        table = np.zeros((len(gaps), 2, 1), dtype)
        table[:, 1, 0] = sign * gaps
        losses = cross_entropy(
            tf.constant(outputs[:, np.newaxis]),
            tf.constant(table),
            None,
            tf.constant(np.ones((len(gaps), 1), np.int32)),
        )
        want = np.logaddexp(0, -sign * gaps)
        # log of the largest share, as log(1 - x), loses what is below the type's epsilon.
        relative = rounding(2 * FUNCTION + 2, 1.0, dtype)
        np.testing.assert_allclose(losses[:, 0], want, rtol=relative, atol=relative)
        assert np.all(losses >= 0)


def test_a_loss_is_not_negative_where_the_softmax_rounds_above_one(monkeypatch):
    """Some kernels multiply by an approximate reciprocal of the sum, which may be too large."""
    softmax = tf.nn.softmax
    monkeypatch.setattr(output_layer.tf.nn, "softmax", lambda x: softmax(x) * np.float32(1 + 2.0**-20))
    table = tf.constant([[0.0], [100.0]])
    losses = cross_entropy(tf.ones([3, 1]), table, None, tf.constant([1, 0, 1]))
    np.testing.assert_array_equal(losses[::2], [0, 0])
    np.testing.assert_allclose(losses[1], 100, rtol=rounding(2 * FUNCTION + 2, 1.0))


@pytest.mark.parametrize("clients", [(), (3,)], ids=["no client axis", "client axis"])
def test_tied_adds_the_gradients_of_repeated_ids_to_the_gradient_of_the_table(clients):
    rng = np.random.default_rng(3)
    embedding = tf.constant(rng.normal(size=(*clients, V, E)))
    ids = rng.integers(0, V, (*clients, 2, 6)).astype(np.int32)
    ids[..., 1, :] = 4
    of_rows, of_table = rng.normal(size=(*ids.shape, E)), rng.normal(size=(*clients, V, E))
    with tf.GradientTape() as tape:
        tape.watch(embedding)
        rows, table = tied(embedding, tf.constant(ids))
        total = tf.reduce_sum(rows * of_rows) + tf.reduce_sum(table * of_table)
    gradient = tape.gradient(total, embedding)
    assert isinstance(gradient, tf.Tensor)
    want = of_table.copy()
    for index in np.ndindex(ids.shape):
        client = index[: len(clients)]
        np.testing.assert_array_equal(rows[index], embedding[(*client, ids[index])])
        want[(*client, ids[index])] += of_rows[index]
    np.testing.assert_array_equal(table, embedding)
    np.testing.assert_allclose(gradient, want, atol=1e-12)


@pytest.mark.parametrize("used", ["rows", "table"])
def test_tied_has_the_right_gradient_if_one_of_its_results_is_unused(used):
    embedding = tf.constant(np.random.default_rng(4).normal(size=(V, E)))
    with tf.GradientTape() as tape:
        tape.watch(embedding)
        rows, table = tied(embedding, tf.constant([2, 2]))
        total = tf.reduce_sum(rows if used == "rows" else table)
    want = np.zeros((V, E))
    want[2 if used == "rows" else slice(None)] = 2.0 if used == "rows" else 1.0
    np.testing.assert_array_equal(tape.gradient(total, embedding), want)


@pytest.mark.parametrize("clients", [(), (3,)], ids=["no client axis", "client axis"])
def test_sums_count_the_targets_with_the_largest_logit(clients):
    outputs, table, bias, targets, _ = problem(clients=clients)
    logits = outputs @ np.swapaxes(table[..., np.newaxis, :, :], -1, -2) + bias[..., np.newaxis, np.newaxis, :]
    targets = np.where(np.random.default_rng(1).random(targets.shape) < 0.5, logits.argmax(-1), targets).astype(
        np.int32
    )
    correct = (logits.argmax(-1) == targets) & (targets != PAD)
    assert 0 < correct.sum() < (targets != PAD).sum()
    outputs, table, bias, targets = (tf.constant(part) for part in (outputs, table, bias, targets))
    count = output_layer.sums(outputs, table, bias, targets, with_correct=True)[1]
    np.testing.assert_array_equal(count, correct.sum((-2, -1)))
