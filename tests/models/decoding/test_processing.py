import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from models.decoding import numpy_ops
from models.decoding.numpy_ops import Choices
from models.decoding.processing import process
from tests.oracles import sampling as oracle
from tests.oracles.backends import run_everywhere

CASES = [(1.0, 0), (1.0, -3), (0.7, 10), (0.0, 0), (0.0, 3), (3.0, 1), (1e-6, 5), (1e6, 50), (1.0, 300), (1.0, 1000)]


def tensors(logits, temperature, top_k):
    """Calls `process` with temperature and top-k as tensors, as a graph with these inputs does."""
    return process(tf.constant(logits), tf.constant(temperature, tf.float32), tf.constant(top_k, tf.int32)).numpy()


def probabilities(processed):
    masses = np.exp(processed.astype(np.float64))
    return masses / masses.sum(axis=-1, keepdims=True)


@given(
    st.lists(
        st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0]) | st.floats(-20, 20, width=32, allow_subnormal=False),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.integers(0, 14),
)
def test_process_gives_the_distribution_of_the_oracle(logits, temperature, top_k):
    expected = oracle.distribution(logits, temperature, top_k)
    processed = numpy_ops.process(np.array(logits, np.float32), temperature, top_k)
    assert processed.max() == 0
    np.testing.assert_array_equal(processed > numpy_ops.LEFT_OUT, np.array(expected) > 0)
    np.testing.assert_allclose(probabilities(processed), expected, rtol=1e-5, atol=1e-12)


def test_process_gives_the_bits_of_numpy_in_every_backend():
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal([6, 300])).astype(np.float32)
    logits[1] = np.round(logits[1])  # many ties
    logits[2] = 0
    logits[3, :150] = np.nextafter(np.float32(1), np.float32(2))  # adjacent floats, which the bisection must separate
    logits[3, 150:] = 1
    logits[4] *= 1e-30

    def all_cases(logits, temperatures, top_ks):
        return {str(i): process(logits, temperatures[i], top_ks[i]) for i in range(len(CASES))}

    outputs = run_everywhere(
        all_cases,
        logits=logits,
        temperatures=np.array([t for t, _ in CASES], np.float32),
        top_ks=np.array([k for _, k in CASES], np.int32),
    )
    for i, (temperature, top_k) in enumerate(CASES):
        expected = numpy_ops.process(logits, temperature, top_k)
        for output in outputs.values():
            np.testing.assert_array_equal(output[str(i)], expected)


@pytest.mark.parametrize("top_k", [1, 2, 150, 151, 299])
def test_process_keeps_the_k_likeliest_tokens_and_ties_with_the_kth(top_k):
    rng = np.random.default_rng(top_k)
    distinct = rng.permutation(300).astype(np.float32)
    assert (tensors(distinct, 1.0, top_k) > numpy_ops.LEFT_OUT).sum() == top_k
    adjacent = np.where(np.arange(300) < 150, np.nextafter(np.float32(1), np.float32(2)), np.float32(1))
    assert (tensors(adjacent, 1.0, top_k) > numpy_ops.LEFT_OUT).sum() == (150 if top_k <= 150 else 300)


def test_process_keeps_the_first_likeliest_token_for_zero_negative_and_nan_temperature():
    logits = np.array([1.0, 4.0, 4.0, -1.0], np.float32)
    for temperature in (0.0, -1.0, float("nan")):
        np.testing.assert_array_equal(
            tensors(logits, temperature, 0), np.array([numpy_ops.LEFT_OUT, 0, numpy_ops.LEFT_OUT, numpy_ops.LEFT_OUT])
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", 1e-9),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_k", True),
        ("max_new_tokens", 0),
        ("max_new_tokens", 2**31),
        ("seed", -1),
        ("seed", 2**64),
        ("request", 2**31),
        ("stop", -2),
    ],
)
def test_choices_refuse_values_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"^{field} = {value!r}: must be ") as caught:
        Choices(**{field: value})
    assert "\n" not in str(caught.value)
