import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from models.decoding import numpy_ops as host
from models.decoding import processing, sampling
from models.decoding.numpy_ops import Stream
from models.decoding.prng import random_words
from tests.oracles import pearson
from tests.oracles import sampling as oracle
from tests.oracles.backends import run_everywhere

EXTREMES = [0, 1, 2**31 - 1, -(2**31), -2, -1]


def test_weights_are_exponentials():
    x = np.concatenate([np.linspace(-30.6, 0, 100_001), -(2.0 ** -np.arange(0, 40.0))]).astype(np.float32)
    drawn = host.weights(x)
    exact = np.exp(x.astype(np.float64)) * 2.0**44
    inside = x > -30.5
    assert np.all(drawn[~inside] == 0)
    # Rounded down to a whole number after a relative error of 2**-21.
    assert np.all(drawn[inside] <= exact[inside] * (1 + 2.0**-21))
    assert np.all(drawn[inside] >= exact[inside] * (1 - 2.0**-21) - 1)
    assert host.weights(np.zeros(1, np.float32)) == 2**44
    assert not host.weights(np.array([-np.inf, host.LEFT_OUT], np.float32)).any()


@given(st.integers(1, 2**62 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_scaling_is_exact(total, high, low):
    expected = total * (high * 2**31 + low) // 2**62
    assert int(host.scale(*(np.array([x], np.int64) for x in (total, high, low)))[0]) == expected
    words = [tf.constant(np.array([2 * x], np.uint32).view(np.int32)) for x in (high, low)]
    assert int(sampling._scale(tf.constant([total], tf.int64), *words)[0]) == expected


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 1000])
def test_extreme_words_and_impossible_tokens(size):
    rng = np.random.default_rng(size)
    processed = (5 * rng.standard_normal([4, size])).astype(np.float32)
    processed -= processed.max(axis=-1, keepdims=True)
    processed[rng.random([4, size]) < 0.5] = -np.inf
    processed[:, size // 2] = 0
    for word in EXTREMES:
        words = (np.full(4, word, np.int32), np.full(4, word, np.int32))
        drawn = host.sample(processed, words)
        assert np.all(np.isfinite(processed[np.arange(4), drawn]))
        np.testing.assert_array_equal(sampling.sample(tf.constant(processed), words), drawn)


def test_draws_are_those_of_the_oracle():
    rng = np.random.default_rng(3)
    compared = 0
    for i in range(300):
        logits = (2 * rng.standard_normal(70)).astype(np.float32)
        temperature, top_k = [(1.0, 0), (0.5, 7), (0.0, 0)][i % 3]
        words = rng.integers(-(2**31), 2**31, 2, np.int32)
        token, distance = oracle.invert(
            oracle.law(logits.tolist(), temperature, top_k),
            (int(words[0]) & 0xFFFFFFFF, int(words[1]) & 0xFFFFFFFF),
        )
        if distance > 1e-5:
            processed = host.process(logits, temperature, top_k)
            assert int(host.sample(processed, (words[0], words[1]))) == token
            compared += 1
    assert compared > 290


def test_every_backend_draws_the_tokens_of_numpy():
    rng = np.random.default_rng(4)
    logits = (3 * rng.standard_normal([100, 4000])).astype(np.float32)
    cases = [(1.0, 0), (0.7, 40), (0.0, 0), (1.3, 4000), (100.0, 0)]

    def draw(logits, seed, temperatures, top_ks):
        words = random_words(seed, Stream.SAMPLE, tf.range(100), 7)
        laws = [processing.process(logits, temperatures[i], top_ks[i]) for i in range(len(cases))]
        tokens = {f"token {i}": sampling.sample(law, words) for i, law in enumerate(laws)}
        return tokens | {f"weight {i}": sampling.weights(law) for i, law in enumerate(laws)}

    seed = host.seed_words(2**63 + 5)
    outputs = run_everywhere(
        draw,
        logits=logits,
        seed=seed,
        temperatures=np.array([t for t, _ in cases], np.float32),
        top_ks=np.array([k for _, k in cases], np.int32),
    )
    words = host.random_words(seed, Stream.SAMPLE, np.arange(100), 7)
    for i, (temperature, top_k) in enumerate(cases):
        law = host.process(logits, temperature, top_k)
        for output in outputs.values():
            np.testing.assert_array_equal(output[f"weight {i}"], host.weights(law))
            np.testing.assert_array_equal(output[f"token {i}"], host.sample(law, words))


def test_a_constant_temperature_draws_the_same():
    """Compilers rewrite arithmetic with constants; none of it may change a bit."""
    rng = np.random.default_rng(5)
    logits = (3 * rng.standard_normal([50, 500])).astype(np.float32)
    words = host.random_words(host.seed_words(1), Stream.SAMPLE, np.arange(50), 0)

    def draw(logits, first, second):
        law = processing.process(logits, 0.3, 20)
        return {"token": sampling.sample(law, (first, second)), "weight": sampling.weights(law)}

    law = host.process(logits, 0.3, 20)
    for output in run_everywhere(draw, logits=logits, first=words[0], second=words[1]).values():
        np.testing.assert_array_equal(output["weight"], host.weights(law))
        np.testing.assert_array_equal(output["token"], host.sample(law, words))


def goodness(sample_function, draws=200_000, size=40):
    """p-value that draws of (token, next token) follow the law; neighbouring positions must be
    independent."""
    rng = np.random.default_rng(6)
    logits = (1.5 * rng.standard_normal(size)).astype(np.float32)
    temperature, top_k = 0.8, 12
    words = host.random_words(host.seed_words(7), Stream.SAMPLE, 0, np.arange(draws))
    tokens = sample_function(np.broadcast_to(host.process(logits, temperature, top_k), [draws, size]), words)
    law = np.array(oracle.law(logits.tolist(), temperature, top_k))
    pairs = np.bincount(tokens[:-1:2] * size + tokens[1::2], minlength=size * size)
    expected = np.outer(law, law).ravel() * (draws // 2)
    possible = expected > 0
    if pairs[~possible].any():
        return 0.0
    groups = list((expected >= 10).nonzero()[0][:, np.newaxis])
    rare = (possible & (expected < 10)).nonzero()[0]
    if rare.size:
        groups.append(rare)
    sums = [np.array([values[group].sum() for group in groups]) for values in (pairs, expected)]
    return pearson.p_value(*sums)


def test_frequencies_follow_the_law():
    # One test with fixed seed at 1e-6; the planted bugs must fail it.
    assert goodness(host.sample) > 1e-6

    def exclusive(processed, words):
        """Comparison with the sum before the token: shifts every draw by one."""
        sums = np.cumsum(host.weights(processed), axis=-1)
        number = host.scale(sums[:, -1], *((w.view(np.uint32) >> 1).astype(np.int64) for w in words))
        return np.minimum((sums - sums[:, :1] <= number[:, np.newaxis]).sum(axis=-1), processed.shape[1] - 1)

    def repeated(processed, words):
        """Each word used for two positions."""
        return host.sample(processed, (np.repeat(words[0][::2], 2), np.repeat(words[1][::2], 2)))

    def unprocessed(processed, words):
        """Temperature forgotten."""
        return host.sample(processed * np.float32(0.8), words)

    assert all(goodness(planted) < 1e-6 for planted in (exclusive, repeated, unprocessed))


def test_vocabulary_too_large():
    with pytest.raises(ValueError, match="vocabulary of 262145 tokens is larger than 262144"):
        sampling.sample(tf.zeros([1, 2**18 + 1]), (tf.zeros([1], tf.int32), tf.zeros([1], tf.int32)))
