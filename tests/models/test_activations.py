import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.activations import scale_invariant_sigmoid, scale_invariant_tanh
from tests.oracles import cifg as oracle

BOTH = pytest.mark.parametrize("activation", [scale_invariant_sigmoid, scale_invariant_tanh])
ROWS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
    # Not below 1e-150: squares of such numbers, in gradients, leave the range of float64.
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
def test_equals_the_oracle(activation, reference, x):
    np.testing.assert_array_equal(activation(tf.constant(x)), [reference(row) for row in x])


@BOTH
@given(x=ROWS, scale=st.floats(1e-100, 1e100))
@settings(max_examples=50, deadline=None)
def test_any_positive_scale_leaves_the_value(activation, x, scale):
    np.testing.assert_allclose(activation(tf.constant(scale * x)), activation(tf.constant(x)), rtol=1e-12, atol=1e-15)


@BOTH
@given(x=ROWS, exponent=st.integers(-100, 100))
@settings(max_examples=50, deadline=None)
def test_a_power_of_two_leaves_every_bit(activation, x, exponent):
    np.testing.assert_array_equal(activation(tf.constant(x * 2.0**exponent)), activation(tf.constant(x)))


@BOTH
@given(x=ROWS, data=st.data())
@settings(max_examples=50, deadline=None)
def test_the_gradient_is_orthogonal_to_the_input(activation, x, data):
    upstream = data.draw(hnp.arrays(np.float64, x.shape, elements=st.floats(-1, 1)))
    terms = x * gradient(activation, x, upstream)
    assert np.all(np.isfinite(terms))
    np.testing.assert_allclose(terms.sum(-1), 0, atol=1e-12)


@pytest.mark.parametrize("activation", [tf.sigmoid, tf.tanh])
def test_the_standard_activations_have_none_of_this(activation):
    x = np.array([[0.3, -0.2, 0.9]])
    assert np.abs(activation(7 * x) - activation(x)).max() > 0.1
    assert abs((x * gradient(activation, x, np.ones_like(x))).sum()) > 0.1


@BOTH
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
def test_zero_over_zero_is_zero_with_a_finite_gradient(activation, dtype):
    x = tf.zeros([2, 5], dtype)
    assert activation(x).dtype == dtype
    assert not np.any(activation(x))
    np.testing.assert_array_equal(gradient(activation, x, tf.ones_like(x)), np.zeros([2, 5]))


def test_a_gate_with_only_negative_inputs_is_closed():
    x = tf.constant([[-1.0, -2.0, -1e-30]])
    assert not np.any(scale_invariant_sigmoid(x))
    np.testing.assert_array_equal(gradient(scale_invariant_sigmoid, x, tf.ones_like(x)), np.zeros([1, 3]))


@BOTH
def test_tiny_inputs_are_scaled_like_any_other(activation):
    x = np.array([[3.0, -1.0, 2.0]], np.float32)
    np.testing.assert_allclose(activation(tf.constant(x * np.float32(1e-30))), activation(tf.constant(x)), rtol=1e-6)


def test_the_ranges_and_the_largest_entry():
    x = tf.constant(np.random.default_rng(0).normal(size=(100, 9)))
    gate, squashed = scale_invariant_sigmoid(x).numpy(), scale_invariant_tanh(x).numpy()
    assert gate.min() == 0
    assert np.all(gate.max(-1) == 1)
    assert np.all(np.abs(squashed).max(-1) == 1)
    np.testing.assert_array_equal(np.sign(squashed), np.sign(x))


@BOTH
def test_no_example_depends_on_another(activation):
    x = np.random.default_rng(1).normal(size=(3, 4))
    changed = x.copy()
    changed[1] *= -100
    np.testing.assert_array_equal(
        activation(tf.constant(x)).numpy()[[0, 2]], activation(tf.constant(changed)).numpy()[[0, 2]]
    )
