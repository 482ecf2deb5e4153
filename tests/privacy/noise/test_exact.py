"""Tests exact noise: each sampler against its distribution, and each distribution against its privacy guarantee.

Each goodness-of-fit test fails by chance with probability 1e-6. Seeds are fixed, so a test that passes always passes.
"""

import copy
import itertools
import math
import os
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.noise import exact
from privacy.noise.exact import EXPONENT_BITS
from privacy.noise.randomness import SecureRandomness, SeededRandomness
from tests.oracles import noise as oracle

ALPHA = 1e-6
DRAWS = 200_000
ONE = 2**EXPONENT_BITS


def count_values(values) -> Counter:
    return Counter(values.tolist() if values.ndim == 1 else zip(*values.tolist(), strict=True))


@pytest.mark.parametrize("bound", [1, 2, 3, 5, 64, 1000])
def test_uniform_fits_its_distribution(bound):
    values = exact.uniform(SeededRandomness(1), bound, DRAWS)
    assert oracle.fits(dict.fromkeys(range(bound), 1 / bound), count_values(values), ALPHA)


def test_uniform_with_many_bounds_up_to_the_largest_fits_its_distribution():
    bounds = np.array([1, 2, 3, 2**62 - 1, 2**62] * 10_000)
    values = exact.uniform(SeededRandomness(2), bounds, len(bounds))
    assert ((values >= 0) & (values < bounds)).all()
    assert oracle.fits({0: 1 / 3, 1: 1 / 3, 2: 1 / 3}, count_values(values[2::5]), ALPHA)
    assert abs(values[4::5].mean() / 2**62 - 0.5) < 5 / math.sqrt(12 * 10_000)


@pytest.mark.parametrize("numerator", [0, 1, 3, 7])
def test_bernoulli_and_bernoulli_exp_have_their_probabilities(numerator):
    source = SeededRandomness(3)
    for coins, p in (
        (exact.bernoulli(source, numerator, 7, DRAWS), numerator / 7),
        (exact.bernoulli_exp(source, numerator, 7, DRAWS), math.exp(-numerator / 7)),
    ):
        assert abs(coins.mean() - p) <= 5 * math.sqrt(p * (1 - p) / DRAWS)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 2.5])
def test_geometric_fits_its_distribution(epsilon):
    values = exact.geometric(SeededRandomness(4), round(epsilon * ONE), DRAWS)
    distribution = {v: math.exp(-v * epsilon) * -math.expm1(-epsilon) for v in range(200)}
    assert oracle.fits(distribution, count_values(values), ALPHA)


@pytest.mark.parametrize("scale", [1, 3, 20])
def test_laplace_fits_its_distribution(scale):
    assert oracle.fits(
        oracle.laplace_distribution(scale, 60 * scale),
        count_values(exact.laplace(SeededRandomness(5), scale, DRAWS)),
        ALPHA,
    )


@pytest.mark.parametrize("stddev", [1, 3, 20])
def test_gaussian_fits_its_distribution(stddev):
    distribution = oracle.gaussian_distribution(stddev, 30 * stddev)
    assert oracle.fits(distribution, count_values(exact.gaussian(SeededRandomness(6), stddev, DRAWS)), ALPHA)


SHAPES = [(0.5, 3, 1), (8.0, 40, 2), (4.0, 9, 9), (1.0, 4, 2), (1.0, 1, 0), (1.0, 1, 1), (3.0, 5, 1), (2.0, 4, 4)]


@pytest.mark.parametrize(("epsilon", "sensitivity", "core"), SHAPES)
def test_staircase_fits_its_distribution(epsilon, sensitivity, core):
    values = exact.staircase(SeededRandomness(7), round(epsilon * ONE), sensitivity, core, DRAWS)
    assert oracle.fits(
        oracle.staircase_distribution(epsilon, sensitivity, core, int(60 / epsilon)), count_values(values), ALPHA
    )


@pytest.mark.parametrize(("epsilon", "sensitivity", "core"), SHAPES)
def test_hourglass_fits_its_distribution_and_each_number_the_staircase(epsilon, sensitivity, core):
    values = exact.hourglass(SeededRandomness(8), round(epsilon * ONE), sensitivity, core, DRAWS)
    assert oracle.fits(
        oracle.hourglass_distribution(epsilon, sensitivity, core, int(30 / epsilon)), count_values(values), ALPHA
    )
    marginal = oracle.staircase_distribution(epsilon, sensitivity, core, int(60 / epsilon))
    for one in values:
        assert oracle.fits(marginal, count_values(one), ALPHA)


def test_place_in_level_reaches_every_pair_of_a_level_once():
    for sensitivity, core, level in itertools.product((1, 2, 5), (0, 1, 2), range(6)):
        if core > sensitivity:
            continue
        count = 2 * core + 1 if level == 0 else 4 * sensitivity * level + 4 * core + 2 - 2 * sensitivity
        places = exact._place_in_level(np.full(count, level), np.arange(count), sensitivity, core)
        pairs = set(zip(*places.tolist(), strict=True))
        assert len(pairs) == count
        for first, second in pairs:
            k, rest = divmod(first + second, sensitivity)
            assert rest == 0 and oracle.hourglass_level(k, first, sensitivity, core) == level


@pytest.mark.parametrize(("sensitivity", "core"), [(1, 0), (1, 1), (2, 1), (4, 2), (5, 2), (6, 1)])
def test_one_record_changes_the_level_by_at_most_one(sensitivity, core):
    """Enumerates the grid: the probabilities of neighbours differ by a factor of at most exp(ε)."""
    reach, largest = 8 * sensitivity, 0
    for first, second in itertools.product(range(-reach, reach + 1), repeat=2):
        if (first + second) % sensitivity:
            continue
        k = (first + second) // sensitivity
        level = oracle.hourglass_level(k, first, sensitivity, core)
        for x in range(sensitivity + 1):  # a record moves the pair by (x, sensitivity - x)
            largest = max(largest, abs(oracle.hourglass_level(k + 1, first + x, sensitivity, core) - level))
    assert largest == 1
    for x, move in itertools.product(range(-reach, reach + 1), range(sensitivity + 1)):
        here, there = (oracle.staircase_level(v, sensitivity, core) for v in (x, x + move))
        assert abs(here - there) <= 1


def test_hourglass_with_levels_of_half_the_width_is_not_private():
    """A planted fault: each level is only half as wide as one record can move the pair."""

    def level(k, first, sensitivity, core):
        level = abs(k)
        while 2 * abs(2 * first - k * sensitivity) > level * sensitivity + 4 * core:
            level += 2
        return level

    moves = itertools.product(range(-6, 7), range(-30, 31), range(6))
    assert max(abs(level(k + 1, z + x, 5, 2) - level(k, z, 5, 2)) for k, z, x in moves) > 1


ORDER = np.random.default_rng(0)


def biased_laplace(source, scale, size):
    """Draws with a planted fault: zero counts twice, as +0 and as -0."""
    magnitudes = np.abs(exact.laplace(source, scale, 3 * size))
    # As many zeros again as the sampler keeps.
    zeros = np.zeros((magnitudes == 0).sum(), np.int64)
    magnitudes = ORDER.permutation(np.concatenate([magnitudes, zeros]))[:size]
    return np.where(exact.bernoulli(source, 1, 2, size), -magnitudes, magnitudes)


def test_goodness_of_fit_rejects_a_biased_laplace_sampler():
    for scale in (1, 3, 20):
        distribution = oracle.laplace_distribution(scale, 60 * scale)
        assert not oracle.fits(distribution, count_values(biased_laplace(SeededRandomness(5), scale, DRAWS)), ALPHA)


def test_oracle_samplers_fit_the_same_distributions():
    below = np.random.default_rng(9).integers
    for distribution, sampler in (
        (oracle.laplace_distribution(3, 200), lambda: oracle.laplace(3, lambda n: int(below(n)))),
        (oracle.gaussian_distribution(3, 100), lambda: oracle.gaussian(3, lambda n: int(below(n)))),
    ):
        assert oracle.fits(distribution, Counter(sampler() for _ in range(5000)), ALPHA)


@pytest.mark.parametrize("scale", [1, 2**20, 2**56])
def test_secure_randomness_gives_the_right_moments_at_every_scale(scale):
    source, count = SecureRandomness(), 20_000
    for values, stddev, kurtosis in (
        (exact.laplace(source, scale, count), math.sqrt(1 / (2 * math.sinh(1 / (2 * scale)) ** 2)), 6),
        (exact.gaussian(source, scale, count), scale, 3),
    ):
        # Within 6 standard errors: fails by chance with probability below 1e-8.
        assert abs(values.mean()) < 6 * stddev / math.sqrt(count)
        assert abs(np.square(values / stddev).mean() - 1) < 6 * math.sqrt((kurtosis + 1) / count)


@given(st.integers(1, 2**56), st.integers(0, 2**32))
def test_samplers_return_int64_of_the_size_and_repeat_with_the_seed(scale, seed):
    for sampler in (exact.laplace, exact.gaussian):
        values = sampler(SeededRandomness(seed), scale, 3)
        assert values.shape == (3,) and values.dtype == np.int64
        assert np.array_equal(values, sampler(SeededRandomness(seed), scale, 3))
        assert sampler(SeededRandomness(seed), scale, 0).shape == (0,)


@pytest.mark.parametrize("scale", [0, -1, 2**56 + 1, 1.5, float("nan"), "3"])
def test_samplers_refuse_scales_out_of_range(scale):
    for sampler in (exact.laplace, exact.gaussian):
        with pytest.raises(ValueError, match="noise scale"):
            sampler(SeededRandomness(0), scale, 1)


def test_seeded_randomness_refuses_seeds_that_are_no_natural_numbers():
    for seed in (-1, 1.5, None):
        with pytest.raises(ValueError, match="seed must be an integer of at least 0"):
            SeededRandomness(seed)  # type: ignore[arg-type]


def test_secure_randomness_returns_no_word_twice():
    source = SecureRandomness()
    words = np.concatenate([source.words(size) for size in (1, 300, 300, 5, 2000, 1)])
    assert len(np.unique(words)) == len(words)


@pytest.mark.parametrize("sampler", [exact.laplace, exact.gaussian])
def test_samplers_at_a_large_scale_fit_the_continuous_distribution_and_use_every_bit(sampler):
    """At a scale of 2^32 steps, bins cannot tell discrete and continuous noise apart; the low bits must be uniform."""
    scale = 2**32
    values = sampler(SeededRandomness(10), scale, DRAWS)
    line = stats.laplace if sampler is exact.laplace else stats.norm
    edges = np.linspace(-4, 4, 81)
    cells = np.digitize(values / scale, edges)
    shares = np.diff(line.cdf([-np.inf, *edges, np.inf]))
    assert oracle.fits(dict(enumerate(shares)), count_values(cells), ALPHA)
    assert oracle.fits(dict.fromkeys(range(64), 1 / 64), count_values(values & 63), ALPHA)


def test_geometric_with_small_epsilon_fits_its_distribution():
    epsilon = 0.01
    values = exact.geometric(SeededRandomness(11), round(epsilon * ONE), DRAWS)
    distribution = {v: math.exp(-v * epsilon) * -math.expm1(-epsilon) for v in range(4000)}
    assert oracle.fits(distribution, count_values(values), ALPHA)


def test_secure_randomness_gives_other_words_in_a_fork_and_in_copies():
    source = SecureRandomness()
    source.words(1)
    copies = [copy.copy(source), copy.deepcopy(source), pickle.loads(pickle.dumps(source))]
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, source.words(1).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    child_word = int(np.frombuffer(os.read(read, 8), np.uint64)[0])
    os.close(read)
    os.close(write)
    words = [child_word, *(int(one.words(1)[0]) for one in (source, *copies))]
    assert len(set(words)) == 5


def test_samplers_accept_numpy_integers_as_scale():
    for sampler in (exact.laplace, exact.gaussian):
        assert sampler(SeededRandomness(0), np.int64(3), 50).shape == (50,)  # type: ignore[arg-type]
