from decimal import Decimal, localcontext

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from models.decoding import numpy_ops, numpy_processing, processing, sampling
from models.decoding.choices import Processing
from models.decoding.numpy_ops import Stream
from models.decoding.prng import random_words
from tests.oracles import pearson
from tests.oracles import sampling as oracle
from tests.oracles.backends import everywhere, run_everywhere

EXTREMES = [0, 1, 2**31 - 1, -(2**31), -2, -1]


def test_weights_are_exponentials_within_the_stated_error():
    x = np.concatenate([np.linspace(-30.6, 0, 100_001), -(2.0 ** -np.arange(0, 40.0))]).astype(np.float32)
    drawn = numpy_ops.weights(x)
    exact = np.exp(x.astype(np.float64)) * 2.0**44
    inside = x > -30.5
    assert np.all(drawn[~inside] == 0)
    # The relative error is at most 2**-21, and then the weight is rounded down to an integer.
    assert np.all(drawn[inside] <= exact[inside] * (1 + 2.0**-21))
    assert np.all(drawn[inside] >= exact[inside] * (1 - 2.0**-21) - 1)
    assert numpy_ops.weights(np.zeros(1, np.float32)) == 2**44
    assert not numpy_ops.weights(np.array([-np.inf, numpy_ops.LEFT_OUT], np.float32)).any()


def test_table_of_exp_has_the_same_bits_for_every_exp_with_a_relative_error_of_1e_12():
    """Float64 has 1.1e-16, so that a machine's exp may be wrong by thousands of units in the last place."""
    with localcontext(prec=40):
        exact = [(Decimal(-i) / numpy_ops.ENTRIES_PER_NAT).exp() * 2**44 for i in range(len(numpy_ops.TABLE_BITS) - 1)]
        bounds = [[float(value * (1 + error)) for value in exact] for error in (Decimal("1e-12"), Decimal("-1e-12"))]
    table = numpy_ops.TABLE_BITS.view(np.float32)
    for bound in bounds:
        np.testing.assert_array_equal(np.array(bound).astype(np.float32), table[:-1])
    assert table[-1] == 0


@given(st.integers(1, 2**62 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_scale_is_exact_in_numpy_and_tensorflow(total, high, low):
    expected = total * (high * 2**31 + low) // 2**62
    assert int(numpy_ops.scale(*(np.array([x], np.int64) for x in (total, high, low)))[0]) == expected
    assert int(sampling.scale(*(tf.constant([x], tf.int64) for x in (total, high, low)))[0]) == expected


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 1000])
def test_sample_never_draws_impossible_tokens_from_extreme_words(size):
    rng = np.random.default_rng(size)
    processed = (5 * rng.standard_normal([4, size])).astype(np.float32)
    processed -= processed.max(axis=-1, keepdims=True)
    processed[rng.random([4, size]) < 0.5] = -np.inf
    processed[:, size // 2] = 0
    for word in EXTREMES:
        words = (np.full(4, word, np.int32), np.full(4, word, np.int32))
        drawn = numpy_ops.sample(processed, words)
        assert np.all(np.isfinite(processed[np.arange(4), drawn]))
        np.testing.assert_array_equal(sampling.sample(tf.constant(processed), words), drawn)


def test_sample_draws_the_tokens_of_the_oracle():
    rng = np.random.default_rng(3)
    compared = 0
    for i in range(300):
        logits = (2 * rng.standard_normal(70)).astype(np.float32)
        temperature, top_k = [(1.0, 0), (0.5, 7), (0.0, 0)][i % 3]
        words = rng.integers(-(2**31), 2**31, 2, np.int32)
        token, distance = oracle.invert(
            oracle.distribution(logits.tolist(), temperature, top_k),
            (int(words[0]) & 0xFFFFFFFF, int(words[1]) & 0xFFFFFFFF),
        )
        if distance > 1e-5:
            processed = numpy_processing.process(logits, Processing(temperature, top_k))
            assert int(numpy_ops.sample(processed, (words[0], words[1]))) == token
            compared += 1
    assert compared > 290


@pytest.mark.parametrize(
    ("rows", "size"), [(20, 1000), pytest.param(100, 4000, marks=pytest.mark.slow, id="many-rows-and-tokens")]
)
def test_sample_draws_the_tokens_of_numpy_in_every_backend(rows, size):
    rng = np.random.default_rng(4)
    logits = (3 * rng.standard_normal([rows, size])).astype(np.float32)
    seed = numpy_ops.seed_words(2**63 + 5)

    def draw(logits, seed, temperature, top_k):
        processed = processing.process(logits, Processing(temperature, top_k))
        token = sampling.sample(processed, random_words(seed, Stream.SAMPLE, tf.range(rows), 7))
        return {"token": token, "weight": sampling.weights(processed)}

    def inputs(temperature, top_k):
        options = {"temperature": np.array(temperature, np.float32), "top_k": np.array(top_k, np.int32)}
        return {"logits": logits, "seed": seed, **options}

    words = numpy_ops.random_words(seed, Stream.SAMPLE, np.arange(rows), 7)
    backends = everywhere(draw, **inputs(1.0, 0))
    for temperature, top_k in [(1.0, 0), (0.7, 40), (0.0, 0), (1.3, size), (100.0, 0)]:
        processed = numpy_processing.process(logits, Processing(temperature, top_k))
        for call in backends.values():
            output = call(**inputs(temperature, top_k))
            np.testing.assert_array_equal(output["weight"], numpy_ops.weights(processed))
            np.testing.assert_array_equal(output["token"], numpy_ops.sample(processed, words))


def test_sample_draws_the_tokens_of_numpy_if_temperature_and_top_k_are_constants():
    """Compilers rewrite arithmetic with constants, which must not change a bit."""
    rng = np.random.default_rng(5)
    logits = (3 * rng.standard_normal([50, 500])).astype(np.float32)
    words = numpy_ops.random_words(numpy_ops.seed_words(1), Stream.SAMPLE, np.arange(50), 0)

    def draw(logits, first, second):
        processed = processing.process(logits, Processing(0.3, 20))
        return {"token": sampling.sample(processed, (first, second)), "weight": sampling.weights(processed)}

    processed = numpy_processing.process(logits, Processing(0.3, 20))
    for output in run_everywhere(draw, logits=logits, first=words[0], second=words[1]).values():
        np.testing.assert_array_equal(output["weight"], numpy_ops.weights(processed))
        np.testing.assert_array_equal(output["token"], numpy_ops.sample(processed, words))


def goodness(sample_function, draws=100_000, size=40):
    """Returns the p-value of the hypothesis that tokens at adjacent positions are independent and follow the oracle."""
    rng = np.random.default_rng(6)
    logits = (1.5 * rng.standard_normal(size)).astype(np.float32)
    temperature, top_k = 0.8, 12
    words = numpy_ops.random_words(numpy_ops.seed_words(7), Stream.SAMPLE, 0, np.arange(draws))
    tokens = sample_function(
        np.broadcast_to(numpy_processing.process(logits, Processing(temperature, top_k)), [draws, size]), words
    )
    distribution = np.array(oracle.distribution(logits.tolist(), temperature, top_k))
    pairs = np.bincount(tokens[:-1:2] * size + tokens[1::2], minlength=size * size)
    expected = np.outer(distribution, distribution).ravel() * (draws // 2)
    possible = expected > 0
    if pairs[~possible].any():
        return 0.0
    groups = list((expected >= 10).nonzero()[0][:, np.newaxis])
    rare = (possible & (expected < 10)).nonzero()[0]
    if rare.size:
        groups.append(rare)
    sums = [np.array([values[group].sum() for group in groups]) for values in (pairs, expected)]
    return pearson.p_value(*sums)


def test_frequencies_of_samples_follow_the_distribution():
    # The seed is fixed and the significance level is 1e-6. The planted faults below must fail.
    assert goodness(numpy_ops.sample) > 1e-6

    def exclusive(processed, words):
        """Planted: compares with the sum before the token, which shifts every draw by one."""
        sums = np.cumsum(numpy_ops.weights(processed), axis=-1)
        number = numpy_ops.scale(sums[:, -1], *((w.view(np.uint32) >> 1).astype(np.int64) for w in words))
        return np.minimum((sums - sums[:, :1] <= number[:, np.newaxis]).sum(axis=-1), processed.shape[1] - 1)

    def repeated(processed, words):
        """Planted: uses each word for two positions."""
        return numpy_ops.sample(processed, (np.repeat(words[0][::2], 2), np.repeat(words[1][::2], 2)))

    def unprocessed(processed, words):
        """Planted: undoes the temperature of 0.8."""
        return numpy_ops.sample(processed * np.float32(0.8), words)

    assert all(goodness(planted) < 1e-6 for planted in (exclusive, repeated, unprocessed))


def test_sample_refuses_a_vocabulary_that_is_too_large():
    with pytest.raises(ValueError, match="vocabulary of 262145 tokens is larger than 262144"):
        sampling.sample(tf.zeros([1, 2**18 + 1]), (tf.zeros([1], tf.int32), tf.zeros([1], tf.int32)))
