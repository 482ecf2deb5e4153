"""Tests the TensorFlow sampler of training noise: its structure exactly, its distribution at fixed seeds.

With other seeds, a p-value of a correct sampler would be below 1e-4 with a probability of 1e-4.
"""

import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from fl import gaussian
from privacy.keys import RunKeys
from privacy.noise.training import DISTANCE
from tests.privacy.noise.test_training import ANGLES, MIDDLE, exact_pair, p_value

SEED = np.array([7, 8], np.int64)


def released_in_version_0_1(size, seed):
    """Returns the noise of version 0.1: (a + b) / √2 of two neighbouring outputs of TensorFlow's generator."""
    both = tf.random.stateless_normal([size, 2], seed, alg="philox")
    return tf.reduce_sum(both, axis=-1) * tf.constant(math.sqrt(0.5))


def int32(values):
    return np.array(values, np.uint32).view(np.int32)


def from_words(leading, angle, ends=(), further=()):
    return gaussian.from_words(
        tf.constant(int32([value ^ 2**31 for value in leading])),  # minus 2^31, modulo 2^32
        tf.constant(int32(angle)),
        tf.constant(np.array(ends, np.int64).reshape(-1, 1)),
        tf.constant(np.array(further, np.uint64).view(np.int64).reshape(14, len(ends))),
    ).numpy()


def test_from_words_is_within_distance_of_exact_normal():
    leading, angle = (x.ravel().tolist() for x in np.meshgrid(MIDDLE, ANGLES))
    pairs = from_words(leading, angle).reshape(2, -1).T
    for pair, first, turn in zip(pairs, leading, angle, strict=True):
        radius, cosine, sine = exact_pair(first, turn)
        assert max(abs(pair[0] - cosine), abs(pair[1] - sine)) <= DISTANCE / 2 * (1 + radius)


@pytest.mark.parametrize("leading", [0, 1, 77, 2**20 - 1, 2**32 - 1024, 2**32 - 1])
@pytest.mark.parametrize("further", [[0] * 14, [2**64 - 1] * 14, [0, 0, 0, 1] + [0] * 10, [2**63] + [0] * 13])
def test_from_words_uses_896_further_bits_at_ends(leading, further):
    pair = from_words([leading], [5], [0], further)
    radius, cosine, sine = exact_pair(leading, 5, further)
    assert max(abs(pair[0] - cosine), abs(pair[1] - sine)) <= DISTANCE / 2 * (1 + radius)


def test_from_words_reaches_far_tail():
    """The square of a pair's L2 norm exceeds 80, and also 89, where 64 bits would end."""
    assert from_words([0], [0], [0], [0] * 14)[0] ** 2 > 1200


def test_standard_normal_uses_each_word_once():
    """Every word is used once, and further bits go to the radii at the ends, which are 0.02 % of all."""
    size = 200_001
    words = np.array(tf.random.stateless_uniform([(size + 1) // 2], SEED, None, None, tf.int64, "philox"))
    angle, leading = words.view(np.int32).reshape(-1, 2).T[::-1].view(np.uint32)
    ends = np.flatnonzero((leading ^ 2**31) + np.uint32(1024) < np.uint32(2**20 + 1024))
    assert 10 < len(ends) < 60  # 24 are expected
    stream = gaussian.stream(SEED, "further bits")
    further = np.array(tf.random.stateless_uniform([14, len(ends)], stream, None, None, tf.int64, "philox"))
    drawn = np.array(gaussian.standard_normal(size, SEED))
    assert drawn.shape == (size,)
    values = np.append(drawn.astype(np.float64), np.nan).reshape(2, -1).T
    # The numbers equal those of `from_words` to the bit and, for a sample, the exact normal numbers of the words.
    places = np.sort(ends)
    again = gaussian.from_words(
        tf.constant(leading.view(np.int32)),
        tf.constant(angle.view(np.int32)),
        tf.constant(places[:, np.newaxis]),
        tf.constant(further),
    )
    np.testing.assert_array_equal(again[:size], drawn)
    chosen = [*range(0, 100_000, 1999), *ends]
    for place in chosen:
        at = np.flatnonzero(ends == place)
        bits = further[:, at[0]].view(np.uint64) if len(at) else None
        radius, cosine, sine = exact_pair(int(leading[place]) ^ 2**31, int(angle[place]), bits)
        assert np.nanmax(np.abs(values[place] - [cosine, sine])) <= DISTANCE / 2 * (1 + radius)


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_standard_normal_returns_given_size(size):
    assert np.isfinite(gaussian.standard_normal(size, SEED)).sum() == size


def test_standard_normal_refuses_size_out_of_range():
    with pytest.raises(ValueError, match="size is 2000000000000"):
        gaussian.standard_normal(2 * 10**12, SEED)


def test_standard_normal_has_normal_distribution():
    values = np.array(gaussian.standard_normal(4_000_000, SEED))
    assert p_value(values) > 1e-4
    assert p_value(1.01 * values) < 1e-4
    for lag in (1, 2, 2_000_000):  # the last lag joins the two numbers of a pair
        assert stats.pearsonr(values[lag:], values[:-lag]).pvalue > 1e-4
        assert stats.pearsonr(values[lag:] ** 2, values[:-lag] ** 2).pvalue > 1e-4


def test_streams_of_other_name_or_seed_are_uncorrelated():
    """Compares two names under one seed, two seeds under one name, and a stream with its seed itself."""
    seeds = [gaussian.stream(SEED, "a"), gaussian.stream(SEED, "b"), gaussian.stream(SEED + 1, "a"), tf.constant(SEED)]
    drawn = np.array([gaussian.standard_normal(10_000, seed) for seed in seeds])
    for one, other in ((0, 1), (0, 2), (1, 2), (0, 3)):
        assert stats.pearsonr(drawn[one], drawn[other]).pvalue > 1e-4
    np.testing.assert_array_equal(drawn[0], gaussian.standard_normal(10_000, gaussian.stream(SEED, "a")))


THRESHOLDS = (4.0, 5.0, 5.5, 5.68)


def tail_p_values(draw, runs, size, thresholds=THRESHOLDS):
    """Returns two-sided Poisson p-values of how many numbers lie beyond each threshold, [4, thresholds].

    The four rows are for the numbers themselves and for three sums divided by √2: of the two numbers of a pair, of
    neighbours, and of the same coordinate in two successive rounds. Each is standard normal if the numbers are
    independent.
    """

    @tf.function(autograph=False)
    def count_tails(seed, before):
        values = draw(size, seed)
        pairs, neighbours = values[: size // 2] + values[size // 2 :], values[:-1] + values[1:]
        statistics = [values, *(math.sqrt(0.5) * both for both in (pairs, neighbours, values + before))]
        counts = [[tf.reduce_sum(tf.cast(tf.abs(x) > t, tf.int64)) for t in thresholds] for x in statistics]
        return tf.convert_to_tensor(counts), values

    keys, total = RunKeys.fixed(2), np.zeros([4, len(thresholds)], np.int64)
    before = draw(size, tf.constant(keys.noise_seed(0)))
    for run in range(1, runs + 1):
        counts, before = count_tails(tf.constant(keys.noise_seed(run)), before)
        total += np.array(counts)
    numbers = runs * np.array([[size], [size // 2], [size - 1], [size]])
    expected = numbers * 2 * stats.norm.sf(thresholds)
    return np.minimum(1, 2 * np.minimum(stats.poisson.cdf(total, expected), stats.poisson.sf(total - 1, expected)))


@pytest.mark.slow
def test_standard_normal_has_gaussian_tails_in_billion_numbers():
    """All sixteen p-values must be above 1e-5: a correct sampler fails with a probability below 2e-4."""
    assert (tail_p_values(gaussian.standard_normal, 250, 4_000_000) > 1e-5).all()


@pytest.mark.slow
def test_tail_check_rejects_noise_of_version_0_1():
    """The generator of version 0.1 gives none beyond 5.68, where 13 of 10^9 numbers are expected."""
    assert tail_p_values(released_in_version_0_1, 250, 4_000_000)[0, -1] < 1e-5


def test_tail_check_rejects_shared_radii_and_repeated_rounds():
    """Uses lower thresholds, for which a few million numbers are enough."""

    def shared(size, seed):
        half = gaussian.standard_normal(size // 2, seed)
        return tf.concat([half, half], 0)

    def again(size, seed):
        return gaussian.standard_normal(size, seed * 0)

    assert (tail_p_values(gaussian.standard_normal, 5, 200_000, (2.0, 3.0)) > 1e-5).all()
    assert tail_p_values(shared, 5, 200_000, (2.0, 3.0))[1].max() < 1e-5
    assert tail_p_values(again, 5, 200_000, (2.0, 3.0))[3].max() < 1e-5
