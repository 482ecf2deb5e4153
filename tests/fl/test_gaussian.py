"""The sampler of training noise as TensorFlow operations: its structure exactly, its distribution by fixed seeds.

Each p-value is below 1e-4 with that probability.
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
    """What fl.aggregation added until then: (a + b) / √2 of two neighbouring outputs of TensorFlow's generator."""
    both = tf.random.stateless_normal([size, 2], seed, alg="philox")
    return tf.reduce_sum(both, axis=-1) * tf.constant(math.sqrt(0.5))


def int32(values):
    return np.array(values, np.uint32).view(np.int32)


def from_words(leading, angle, ends=(), further=()):
    return gaussian.from_words(
        tf.constant(int32([value ^ 2**31 for value in leading])),  # less 2^31, modulo 2^32
        tf.constant(int32(angle)),
        tf.constant(np.array(ends, np.int64).reshape(-1, 1)),
        tf.constant(np.array(further, np.uint64).view(np.int64).reshape(14, len(ends))),
    ).numpy()


def test_each_number_is_as_near_to_the_exact_one_as_promised():
    leading, angle = (x.ravel().tolist() for x in np.meshgrid(MIDDLE, ANGLES))
    pairs = from_words(leading, angle).reshape(2, -1).T
    for pair, first, turn in zip(pairs, leading, angle, strict=True):
        radius, cosine, sine = exact_pair(first, turn)
        assert max(abs(pair[0] - cosine), abs(pair[1] - sine)) <= DISTANCE / 2 * (1 + radius)


@pytest.mark.parametrize("leading", [0, 1, 77, 2**20 - 1, 2**32 - 1024, 2**32 - 1])
@pytest.mark.parametrize("further", [[0] * 14, [2**64 - 1] * 14, [0, 0, 0, 1] + [0] * 10, [2**63] + [0] * 13])
def test_at_the_ends_896_further_bits_count(leading, further):
    pair = from_words([leading], [5], [0], further)
    radius, cosine, sine = exact_pair(leading, 5, further)
    assert max(abs(pair[0] - cosine), abs(pair[1] - sine)) <= DISTANCE / 2 * (1 + radius)


def test_the_far_tail_is_not_cut():
    """The square of a pair's length passes 80, and 89, where 64 bits would end."""
    assert from_words([0], [0], [0], [0] * 14)[0] ** 2 > 1200


def test_numbers_are_those_of_the_words():
    """Every word is used once, and the further bits go to the radii at the ends: 0.02 % of them."""
    size = 200_001
    words = np.array(tf.random.stateless_uniform([(size + 1) // 2], SEED, None, None, tf.int64, "philox"))
    angle, leading = words.view(np.int32).reshape(-1, 2).T[::-1].view(np.uint32)
    ends = np.flatnonzero((leading ^ 2**31) + np.uint32(1024) < np.uint32(2**20 + 1024))
    assert 10 < len(ends) < 60  # 24 in the mean
    stream = gaussian.stream(SEED, "further bits")
    further = np.array(tf.random.stateless_uniform([14, len(ends)], stream, None, None, tf.int64, "philox"))
    drawn = np.array(gaussian.standard_normal(size, SEED))
    assert drawn.shape == (size,)
    values = np.append(drawn.astype(np.float64), np.nan).reshape(2, -1).T
    # To the bit; and, for some, what the words stand for.
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
def test_any_size(size):
    assert np.isfinite(gaussian.standard_normal(size, SEED)).sum() == size


def test_a_size_out_of_range_is_refused():
    with pytest.raises(ValueError, match="size is 2000000000000"):
        gaussian.standard_normal(2 * 10**12, SEED)


def test_it_is_standard_normal():
    values = np.array(gaussian.standard_normal(4_000_000, SEED))
    assert p_value(values) > 1e-4
    assert p_value(1.01 * values) < 1e-4
    for lag in (1, 2, 2_000_000):  # the last: the two of a pair
        assert stats.pearsonr(values[lag:], values[:-lag]).pvalue > 1e-4
        assert stats.pearsonr(values[lag:] ** 2, values[:-lag] ** 2).pvalue > 1e-4


def test_streams_are_apart():
    """The same seed, other names; another seed, the same name."""
    seeds = [gaussian.stream(SEED, "a"), gaussian.stream(SEED, "b"), gaussian.stream(SEED + 1, "a"), tf.constant(SEED)]
    drawn = np.array([gaussian.standard_normal(10_000, seed) for seed in seeds])
    for one, other in ((0, 1), (0, 2), (1, 2), (0, 3)):
        assert stats.pearsonr(drawn[one], drawn[other]).pvalue > 1e-4
    np.testing.assert_array_equal(drawn[0], gaussian.standard_normal(10_000, gaussian.stream(SEED, "a")))


THRESHOLDS = (4.0, 5.0, 5.5, 5.68)


def tail_p_values(draw, runs, size, thresholds=THRESHOLDS):
    """Two-sided Poisson p-values of how many numbers lie beyond each threshold, [4, thresholds].

    Of the numbers themselves; and of the sums over √2 of the two of a pair, of neighbours, and of a coordinate in two
    rounds one after the other: each is standard normal where the numbers are independent.
    """

    @tf.function(autograph=False)
    def counted(seed, before):
        values = draw(size, seed)
        pairs, neighbours = values[: size // 2] + values[size // 2 :], values[:-1] + values[1:]
        looked_at = [values, *(math.sqrt(0.5) * both for both in (pairs, neighbours, values + before))]
        counts = [[tf.reduce_sum(tf.cast(tf.abs(x) > t, tf.int64)) for t in thresholds] for x in looked_at]
        return tf.convert_to_tensor(counts), values

    keys, total = RunKeys.fixed(2), np.zeros([4, len(thresholds)], np.int64)
    before = draw(size, tf.constant(keys.noise_seed(0)))
    for run in range(1, runs + 1):
        counts, before = counted(tf.constant(keys.noise_seed(run)), before)
        total += np.array(counts)
    numbers = runs * np.array([[size], [size // 2], [size - 1], [size]])
    expected = numbers * 2 * stats.norm.sf(thresholds)
    return np.minimum(1, 2 * np.minimum(stats.poisson.cdf(total, expected), stats.poisson.sf(total - 1, expected)))


@pytest.mark.slow
def test_tails_and_pairs_and_rounds_over_a_thousand_million_numbers():
    """Sixteen p-values above 1e-5: a right sampler fails with probability below 2e-4."""
    assert (tail_p_values(gaussian.standard_normal, 250, 4_000_000) > 1e-5).all()


@pytest.mark.slow
def test_the_noise_of_version_0_1_has_an_end():
    """13 numbers beyond 5.68 are expected of 10^9, and none ever comes."""
    assert tail_p_values(released_in_version_0_1, 250, 4_000_000)[0, -1] < 1e-5


def test_the_test_of_tails_rejects_shared_radii_and_rounds_with_the_same_noise():
    """At lower thresholds, where a few million numbers are enough."""

    def shared(size, seed):
        half = gaussian.standard_normal(size // 2, seed)
        return tf.concat([half, half], 0)

    def again(size, seed):
        return gaussian.standard_normal(size, seed * 0)

    assert (tail_p_values(gaussian.standard_normal, 5, 200_000, (2.0, 3.0)) > 1e-5).all()
    assert tail_p_values(shared, 5, 200_000, (2.0, 3.0))[1].max() < 1e-5
    assert tail_p_values(again, 5, 200_000, (2.0, 3.0))[3].max() < 1e-5
