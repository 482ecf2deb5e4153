"""The output layer against NumPy and against autodiff of the textbook formula, in float64."""

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
    """By TensorFlow's own operations, which autodiff knows."""
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


def problem(seed=0, users=(), rows=(2, 5), padding=0.3, bias=True, scale=1.0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(1, V, (*users, *rows)).astype(np.int32)
    targets[rng.random(targets.shape) < padding] = PAD
    return (
        rng.normal(size=(*users, *rows, E)) * scale,
        rng.normal(size=(*users, V, E)) * scale,
        rng.normal(size=(*users, V)) if bias else None,
        targets,
        rng.normal(size=targets.shape),
    )


def by_user(function, data):
    """The same for each user of the data alone, stacked; without a user axis just the same."""
    if data[1].ndim == 2:
        return with_gradients(function, *data)
    users = [[None if part is None else part[user] for part in data] for user in range(len(data[1]))]
    return [np.stack(parts) for parts in zip(*(with_gradients(function, *each) for each in users), strict=True)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("padding", [0.0, 0.3, 1.0], ids=["none", "some", "all"])
@pytest.mark.parametrize("users", [(), (3,)], ids=["one", "users"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(cross_entropy, textbook), (loss_sum, textbook_sum), (loss_sum_with_correct, textbook_sum)],
)
def test_losses_and_gradients_equal_autodiff_of_the_textbook(ours, theirs, users, padding, bias):
    data = problem(users=users, padding=padding, bias=bias)
    if ours in (loss_sum, loss_sum_with_correct):
        data = (*data[:4], np.random.default_rng(9).normal(size=users))
    got = with_gradients(ours, *data)
    for a, b in zip(got, by_user(theirs, data), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    if ours in (loss_sum, loss_sum_with_correct) and padding == 1.0:
        assert not any(np.any(part) for part in got)


@given(st.integers(0, 10**6), st.integers(0, 6), st.sampled_from([1e-3, 1.0, 30.0]), st.booleans())
def test_the_law_holds_for_any_rows(seed, rows, scale, users):
    data = problem(seed, users=(2,) if users else (), rows=(rows,), scale=scale)
    for a, b in zip(with_gradients(cross_entropy, *data), by_user(textbook, data), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10, rtol=1e-10)


def test_a_planted_error_is_rejected(monkeypatch):
    """Of the softmax that the gradient is made of, and of the target's place in it."""
    want = with_gradients(textbook, *problem())

    def off(change):
        with monkeypatch.context() as patch:
            change(patch)
            got = with_gradients(cross_entropy, *problem())
        return max(np.abs(a - b).max() for a, b in zip(got, want, strict=True))

    softmax, add = tf.nn.softmax, tf.tensor_scatter_nd_add
    assert off(lambda patch: None) < 1e-12
    assert off(lambda patch: patch.setattr(output_layer.tf.nn, "softmax", lambda x: softmax(1.001 * x))) > 1e-5
    assert off(lambda patch: patch.setattr(output_layer.tf, "tensor_scatter_nd_sub", add)) > 1e-2


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


def test_a_loss_that_is_not_finite_stays_with_its_user():
    outputs, table, bias, targets, upstream = problem(users=(3,), padding=0.0)
    table[1, 2, 0] = np.nan
    losses, d_outputs, d_table, d_bias = with_gradients(cross_entropy, outputs, table, bias, targets, upstream)
    for part in (losses, d_outputs, d_table, d_bias):
        finite = np.isfinite(part).reshape(3, -1).all(-1)
        assert list(finite) == [True, False, True]


@pytest.mark.parametrize("users", [(), (2,)], ids=["one", "users"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_what_padding_gives_does_not_count_even_if_it_is_no_number(bad, users):
    outputs, table, bias, targets, _ = problem(users=users)
    want = with_gradients(loss_sum, outputs, table, bias, targets, 1.0)
    outputs[targets == PAD] = bad
    got = with_gradients(loss_sum, outputs, table, bias, targets, 1.0)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_certain_target_costs_nothing_and_an_impossible_one_its_distance(dtype):
    """The loss is never negative, and small ones keep their digits as far as the logits have them."""
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
    """As with kernels that multiply by an approximate reciprocal of the sum."""
    softmax = tf.nn.softmax
    monkeypatch.setattr(output_layer.tf.nn, "softmax", lambda x: softmax(x) * np.float32(1 + 2.0**-20))
    table = tf.constant([[0.0], [100.0]])
    losses = cross_entropy(tf.ones([3, 1]), table, None, tf.constant([1, 0, 1]))
    np.testing.assert_array_equal(losses[::2], [0, 0])
    np.testing.assert_allclose(losses[1], 100, rtol=rounding(2 * FUNCTION + 2, 1.0))


@pytest.mark.parametrize("users", [(), (3,)], ids=["one", "users"])
def test_tied_adds_the_gradients_of_repeated_ids_to_that_of_the_table(users):
    rng = np.random.default_rng(3)
    embedding = tf.constant(rng.normal(size=(*users, V, E)))
    ids = rng.integers(0, V, (*users, 2, 6)).astype(np.int32)
    ids[..., 1, :] = 4
    of_rows, of_table = rng.normal(size=(*ids.shape, E)), rng.normal(size=(*users, V, E))
    with tf.GradientTape() as tape:
        tape.watch(embedding)
        rows, table = tied(embedding, tf.constant(ids))
        total = tf.reduce_sum(rows * of_rows) + tf.reduce_sum(table * of_table)
    gradient = tape.gradient(total, embedding)
    assert isinstance(gradient, tf.Tensor)
    want = of_table.copy()
    for index in np.ndindex(ids.shape):
        user = index[: len(users)]
        np.testing.assert_array_equal(rows[index], embedding[(*user, ids[index])])
        want[(*user, ids[index])] += of_rows[index]
    np.testing.assert_array_equal(table, embedding)
    np.testing.assert_allclose(gradient, want, atol=1e-12)


@pytest.mark.parametrize("used", ["rows", "table"])
def test_tied_with_one_of_its_two_results_unused(used):
    embedding = tf.constant(np.random.default_rng(4).normal(size=(V, E)))
    with tf.GradientTape() as tape:
        tape.watch(embedding)
        rows, table = tied(embedding, tf.constant([2, 2]))
        total = tf.reduce_sum(rows if used == "rows" else table)
    want = np.zeros((V, E))
    want[2 if used == "rows" else slice(None)] = 2.0 if used == "rows" else 1.0
    np.testing.assert_array_equal(tape.gradient(total, embedding), want)


@pytest.mark.parametrize("users", [(), (3,)], ids=["one", "users"])
def test_correct_counts_the_targets_that_are_likeliest(users):
    outputs, table, bias, targets, _ = problem(users=users)
    logits = outputs @ np.swapaxes(table[..., np.newaxis, :, :], -1, -2) + bias[..., np.newaxis, np.newaxis, :]
    targets = np.where(np.random.default_rng(1).random(targets.shape) < 0.5, logits.argmax(-1), targets).astype(
        np.int32
    )
    right = (logits.argmax(-1) == targets) & (targets != PAD)
    assert 0 < right.sum() < (targets != PAD).sum()
    outputs, table, bias, targets = (tf.constant(part) for part in (outputs, table, bias, targets))
    found = output_layer.sums(outputs, table, bias, targets, with_correct=True)[1]
    np.testing.assert_array_equal(found, right.sum((-2, -1)))
