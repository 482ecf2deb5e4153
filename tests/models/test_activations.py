import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.activations import DIFFERENTIABLE, scale_invariant_sigmoid, scale_invariant_tanh
from tests.oracles import cifg as oracle

pytestmark = pytest.mark.numerical

BOTH = pytest.mark.parametrize("activation", [scale_invariant_sigmoid, scale_invariant_tanh])
ROWS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
    # No magnitudes below 1e-150, because their squares in gradients leave the range of float64.
    elements=st.floats(-1e6, 1e6).map(lambda v: 0.0 if abs(v) < 1e-150 else v),
)


def gradient(activation, x, upstream):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(activation(x) * upstream)
    return tape.gradient(loss, x).numpy()


@pytest.mark.parametrize(
    ("activation", "reference"),
    [
        (scale_invariant_sigmoid, oracle.scale_invariant_sigmoid),
        (scale_invariant_tanh, oracle.scale_invariant_tanh),
    ],
)
@given(x=ROWS)
@settings(max_examples=50, deadline=None)
def test_activation_equals_the_oracle(activation, reference, x):
    np.testing.assert_array_equal(activation(tf.constant(x)), [reference(row) for row in x])


@BOTH
@given(x=ROWS, scale=st.floats(1e-100, 1e100))
@settings(max_examples=50, deadline=None)
def test_positive_scale_of_the_input_does_not_change_the_value(activation, x, scale):
    np.testing.assert_allclose(activation(tf.constant(scale * x)), activation(tf.constant(x)), rtol=1e-12, atol=1e-15)


@BOTH
@given(x=ROWS, exponent=st.integers(-100, 100))
@settings(max_examples=50, deadline=None)
def test_power_of_two_scale_does_not_change_a_bit(activation, x, exponent):
    np.testing.assert_array_equal(activation(tf.constant(x * 2.0**exponent)), activation(tf.constant(x)))


@BOTH
@given(x=ROWS, data=st.data())
@settings(max_examples=50, deadline=None)
def test_gradient_is_orthogonal_to_the_input(activation, x, data):
    upstream = data.draw(hnp.arrays(np.float64, x.shape, elements=st.floats(-1, 1)))
    terms = x * gradient(activation, x, upstream)
    assert np.all(np.isfinite(terms))
    np.testing.assert_allclose(terms.sum(-1), 0, atol=1e-12)


@pytest.mark.parametrize("activation", [tf.sigmoid, tf.tanh])
def test_sigmoid_and_tanh_are_not_scale_invariant(activation):
    x = np.array([[0.3, -0.2, 0.9]])
    assert np.abs(activation(7 * x) - activation(x)).max() > 0.1
    assert abs((x * gradient(activation, x, np.ones_like(x))).sum()) > 0.1


@BOTH
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
def test_zero_input_gives_zero_value_and_zero_gradient(activation, dtype):
    x = tf.zeros([2, 5], dtype)
    assert activation(x).dtype == dtype
    assert not np.any(activation(x))
    np.testing.assert_array_equal(gradient(activation, x, tf.ones_like(x)), np.zeros([2, 5]))


def test_sigmoid_of_negative_inputs_is_zero_with_zero_gradient():
    x = tf.constant([[-1.0, -2.0, -1e-30]])
    assert not np.any(scale_invariant_sigmoid(x))
    np.testing.assert_array_equal(gradient(scale_invariant_sigmoid, x, tf.ones_like(x)), np.zeros([1, 3]))


@BOTH
def test_tiny_inputs_give_the_value_of_larger_ones(activation):
    x = np.array([[3.0, -1.0, 2.0]], np.float32)
    np.testing.assert_allclose(activation(tf.constant(x * np.float32(1e-30))), activation(tf.constant(x)), rtol=1e-6)


def test_values_are_in_range_and_the_largest_entry_is_one():
    x = tf.constant(np.random.default_rng(0).normal(size=(100, 9)))
    gate, squashed = scale_invariant_sigmoid(x).numpy(), scale_invariant_tanh(x).numpy()
    assert gate.min() == 0
    assert np.all(gate.max(-1) == 1)
    assert np.all(np.abs(squashed).max(-1) == 1)
    np.testing.assert_array_equal(np.sign(squashed), np.sign(x))


@BOTH
def test_activation_of_an_example_does_not_depend_on_other_examples(activation):
    x = np.random.default_rng(1).normal(size=(3, 4))
    changed = x.copy()
    changed[1] *= -100
    np.testing.assert_array_equal(
        activation(tf.constant(x)).numpy()[[0, 2]], activation(tf.constant(changed)).numpy()[[0, 2]]
    )


KINDS = {"cifg": (tf.sigmoid, tf.tanh), "si-cifg": (scale_invariant_sigmoid, scale_invariant_tanh)}
WRITTEN_OUT = pytest.mark.parametrize(
    ("written", "activation"),
    [(DIFFERENTIABLE[kind][i], KINDS[kind][i]) for kind in KINDS for i in (0, 1)],
    ids=[f"{kind}-{name}" for kind in KINDS for name in ("gate", "squash")],
)


def by_hand(written, x, upstream):
    y, scale = written.value(tf.constant(x))
    return y.numpy(), written.gradient(tf.constant(upstream), y, scale).numpy()


@WRITTEN_OUT
@given(x=ROWS, data=st.data())
@settings(max_examples=50, deadline=None)
def test_handwritten_gradient_equals_autodiff(written, activation, x, data):
    upstream = data.draw(hnp.arrays(np.float64, x.shape, elements=st.floats(-1, 1)))
    value, slope = by_hand(written, x, upstream)
    np.testing.assert_array_equal(value, activation(tf.constant(x)))
    # Both gradients add terms of size upstream / scale, which may cancel: the error is bounded relative to that size,
    # and by what flushing of numbers below the smallest normal one may change.
    scale = written.value(tf.constant(x))[1]
    size = np.abs(upstream).sum(-1, keepdims=True) / (1.0 if scale is None else np.where(scale > 0, scale, np.inf))
    assert np.all(np.abs(slope - gradient(activation, x, upstream)) <= 1e-10 * size + 8 * np.finfo(np.float64).tiny)


@WRITTEN_OUT
@pytest.mark.parametrize(
    "row",
    [[2.0, 2.0, -1.0], [-2.0, 2.0, 1.0], [-2.0, -2.0, -2.0], [3.0, 3.0, 3.0], [0.0, 0.0, 0.0], [-1.0, 0.0, -0.5]],
    ids=["tie", "tie of signs", "all equal, below", "all equal", "zeros", "none above zero"],
)
def test_handwritten_gradient_shares_ties_as_autodiff_does(written, activation, row):
    x, upstream = np.array([row]), np.array([[0.3, -0.7, 0.11]])
    np.testing.assert_allclose(by_hand(written, x, upstream)[1], gradient(activation, x, upstream), atol=1e-12)


@WRITTEN_OUT
def test_comparison_rejects_a_wrong_sign_and_a_wrong_value(written, activation):
    x, upstream = np.array([[2.0, 1.0, -1.5]]), np.array([[0.3, -0.7, 0.11]])
    y, scale = written.value(tf.constant(x))
    want = gradient(activation, x, upstream)
    assert np.abs(written.gradient(-upstream, y, scale) - want).max() > 1e-2
    assert np.abs(written.gradient(upstream, 0.9 * y, scale) - want).max() > 1e-3


def test_largest_entry_is_exactly_one_or_zero():
    """The handwritten gradient finds the largest entries by their value 1; x / x is 1 in every floating-point type."""
    x = np.random.default_rng(2).normal(size=(2000, 3)) * 10.0 ** np.random.default_rng(3).uniform(-30, 30, (2000, 1))
    for written in DIFFERENTIABLE["si-cifg"]:
        for dtype in (np.float32, np.float64):
            y, _ = written.value(tf.constant(x.astype(dtype)))
            largest = np.abs(y).max(-1)
            assert np.all((largest == 1) | (largest == 0))
