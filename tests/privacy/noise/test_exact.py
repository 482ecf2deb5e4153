"""Exact noise: each sampler against its law, each law against its promise.

Error probability of each goodness-of-fit test: 1e-6 (seeds are fixed, so a test that passes passes always).
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


def drawn(values) -> Counter:
    return Counter(values.tolist() if values.ndim == 1 else zip(*values.tolist(), strict=True))


@pytest.mark.parametrize("bound", [1, 2, 3, 5, 64, 1000])
def test_uniform(bound):
    values = exact.uniform(SeededRandomness(1), bound, DRAWS)
    assert oracle.fits(dict.fromkeys(range(bound), 1 / bound), drawn(values), ALPHA)


def test_uniform_of_many_bounds_at_once_and_of_the_largest():
    bounds = np.array([1, 2, 3, 2**62 - 1, 2**62] * 10_000)
    values = exact.uniform(SeededRandomness(2), bounds, len(bounds))
    assert ((values >= 0) & (values < bounds)).all()
    assert oracle.fits({0: 1 / 3, 1: 1 / 3, 2: 1 / 3}, drawn(values[2::5]), ALPHA)
    assert abs(values[4::5].mean() / 2**62 - 0.5) < 5 / math.sqrt(12 * 10_000)


@pytest.mark.parametrize("numerator", [0, 1, 3, 7])
def test_coins(numerator):
    source = SeededRandomness(3)
    for coins, p in (
        (exact.bernoulli(source, numerator, 7, DRAWS), numerator / 7),
        (exact.bernoulli_exp(source, numerator, 7, DRAWS), math.exp(-numerator / 7)),
    ):
        assert abs(coins.mean() - p) <= 5 * math.sqrt(p * (1 - p) / DRAWS)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 2.5])
def test_geometric(epsilon):
    values = exact.geometric(SeededRandomness(4), round(epsilon * ONE), DRAWS)
    law = {v: math.exp(-v * epsilon) * -math.expm1(-epsilon) for v in range(200)}
    assert oracle.fits(law, drawn(values), ALPHA)


@pytest.mark.parametrize("scale", [1, 3, 20])
def test_laplace(scale):
    assert oracle.fits(
        oracle.laplace_law(scale, 60 * scale), drawn(exact.laplace(SeededRandomness(5), scale, DRAWS)), ALPHA
    )


@pytest.mark.parametrize("stddev", [1, 3, 20])
def test_gaussian(stddev):
    law = oracle.gaussian_law(stddev, 30 * stddev)
    assert oracle.fits(law, drawn(exact.gaussian(SeededRandomness(6), stddev, DRAWS)), ALPHA)


SHAPES = [(0.5, 3, 1), (8.0, 40, 2), (4.0, 9, 9), (1.0, 4, 2), (1.0, 1, 0), (1.0, 1, 1), (3.0, 5, 1), (2.0, 4, 4)]


@pytest.mark.parametrize(("epsilon", "sensitivity", "core"), SHAPES)
def test_staircase(epsilon, sensitivity, core):
    values = exact.staircase(SeededRandomness(7), round(epsilon * ONE), sensitivity, core, DRAWS)
    assert oracle.fits(oracle.staircase_law(epsilon, sensitivity, core, int(60 / epsilon)), drawn(values), ALPHA)


@pytest.mark.parametrize(("epsilon", "sensitivity", "core"), SHAPES)
def test_hourglass_and_its_marginals(epsilon, sensitivity, core):
    values = exact.hourglass(SeededRandomness(8), round(epsilon * ONE), sensitivity, core, DRAWS)
    assert oracle.fits(oracle.hourglass_law(epsilon, sensitivity, core, int(30 / epsilon)), drawn(values), ALPHA)
    marginal = oracle.staircase_law(epsilon, sensitivity, core, int(60 / epsilon))
    for one in values:
        assert oracle.fits(marginal, drawn(one), ALPHA)


def test_every_place_of_a_level_is_reached_once():
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
def test_one_record_passes_at_most_one_level(sensitivity, core):
    """Privacy on the grid, by enumeration: the ratio of two neighbours' probabilities is exp(±ε) at most."""
    reach, most = 8 * sensitivity, 0
    for first, second in itertools.product(range(-reach, reach + 1), repeat=2):
        if (first + second) % sensitivity:
            continue
        k = (first + second) // sensitivity
        level = oracle.hourglass_level(k, first, sensitivity, core)
        for x in range(sensitivity + 1):  # a record moves the pair by (x, sensitivity - x)
            most = max(most, abs(oracle.hourglass_level(k + 1, first + x, sensitivity, core) - level))
    assert most == 1
    for x, move in itertools.product(range(-reach, reach + 1), range(sensitivity + 1)):
        here, there = (oracle.staircase_level(v, sensitivity, core) for v in (x, x + move))
        assert abs(here - there) <= 1


def test_an_hourglass_with_steps_of_half_the_width_is_not_private():
    """Planted bug: each level widens by half of what one record can move."""

    def level(k, first, sensitivity, core):
        found = abs(k)
        while 2 * abs(2 * first - k * sensitivity) > found * sensitivity + 4 * core:
            found += 2
        return found

    moves = itertools.product(range(-6, 7), range(-30, 31), range(6))
    assert max(abs(level(k + 1, z + x, 5, 2) - level(k, z, 5, 2)) for k, z, x in moves) > 1


SeededOrder = np.random.default_rng(0)


def biased_laplace(source, scale, size):
    """Planted bug: zero counts twice, as it does without the second look at its sign."""
    found = np.abs(exact.laplace(source, scale, 3 * size))
    # Zeros of either sign: as many again as the sampler keeps.
    zeros = np.zeros((found == 0).sum(), np.int64)
    found = SeededOrder.permutation(np.concatenate([found, zeros]))[:size]
    return np.where(exact.bernoulli(source, 1, 2, size), -found, found)


def test_a_biased_sampler_is_noticed():
    for scale in (1, 3, 20):
        law = oracle.laplace_law(scale, 60 * scale)
        assert not oracle.fits(law, drawn(biased_laplace(SeededRandomness(5), scale, DRAWS)), ALPHA)


def test_the_slow_samplers_have_the_same_laws():
    below = np.random.default_rng(9).integers
    for law, sampler in (
        (oracle.laplace_law(3, 200), lambda: oracle.laplace(3, lambda n: int(below(n)))),
        (oracle.gaussian_law(3, 100), lambda: oracle.gaussian(3, lambda n: int(below(n)))),
    ):
        assert oracle.fits(law, Counter(sampler() for _ in range(5000)), ALPHA)


@pytest.mark.parametrize("scale", [1, 2**20, 2**56])
def test_the_systems_randomness_at_every_scale(scale):
    source, count = SecureRandomness(), 20_000
    for values, stddev, kurtosis in (
        (exact.laplace(source, scale, count), math.sqrt(1 / (2 * math.sinh(1 / (2 * scale)) ** 2)), 6),
        (exact.gaussian(source, scale, count), scale, 3),
    ):
        # Within 6 standard errors: error probability below 1e-8.
        assert abs(values.mean()) < 6 * stddev / math.sqrt(count)
        assert abs(np.square(values / stddev).mean() - 1) < 6 * math.sqrt((kurtosis + 1) / count)


@given(st.integers(1, 2**56), st.integers(0, 2**32))
def test_shapes_and_dtypes(scale, seed):
    for sampler in (exact.laplace, exact.gaussian):
        values = sampler(SeededRandomness(seed), scale, 3)
        assert values.shape == (3,) and values.dtype == np.int64
        assert np.array_equal(values, sampler(SeededRandomness(seed), scale, 3))
        assert sampler(SeededRandomness(seed), scale, 0).shape == (0,)


@pytest.mark.parametrize("scale", [0, -1, 2**56 + 1, 1.5, float("nan"), "3"])
def test_bad_scales(scale):
    for sampler in (exact.laplace, exact.gaussian):
        with pytest.raises(ValueError, match="noise scale"):
            sampler(SeededRandomness(0), scale, 1)


def test_bad_seeds():
    for seed in (-1, 1.5, None):
        with pytest.raises(ValueError, match="seed must be an integer of at least 0"):
            SeededRandomness(seed)  # type: ignore[arg-type]


def test_words_are_never_given_out_twice():
    source = SecureRandomness()
    words = np.concatenate([source.words(size) for size in (1, 300, 300, 5, 2000, 1)])
    assert len(np.unique(words)) == len(words)


@pytest.mark.parametrize("sampler", [exact.laplace, exact.gaussian])
def test_at_a_large_scale_the_law_is_that_of_the_line_and_every_bit_is_used(sampler):
    """Binned, against the continuous law (which a scale of 2^32 steps cannot be told from); and the low bits alone."""
    scale = 2**32
    values = sampler(SeededRandomness(10), scale, DRAWS)
    line = stats.laplace if sampler is exact.laplace else stats.norm
    edges = np.linspace(-4, 4, 81)
    cells = np.digitize(values / scale, edges)
    shares = np.diff(line.cdf([-np.inf, *edges, np.inf]))
    assert oracle.fits(dict(enumerate(shares)), drawn(cells), ALPHA)
    assert oracle.fits(dict.fromkeys(range(64), 1 / 64), drawn(values & 63), ALPHA)


def test_small_epsilons_are_geometric_too():
    epsilon = 0.01
    values = exact.geometric(SeededRandomness(11), round(epsilon * ONE), DRAWS)
    law = {v: math.exp(-v * epsilon) * -math.expm1(-epsilon) for v in range(4000)}
    assert oracle.fits(law, drawn(values), ALPHA)


def test_a_fork_and_a_copy_have_bits_of_their_own():
    source = SecureRandomness()
    source.words(1)
    copies = [copy.copy(source), copy.deepcopy(source), pickle.loads(pickle.dumps(source))]
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, source.words(1).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = int(np.frombuffer(os.read(read, 8), np.uint64)[0])
    os.close(read)
    os.close(write)
    words = [theirs, *(int(one.words(1)[0]) for one in (source, *copies))]
    assert len(set(words)) == 5


def test_scales_of_numpys_own_kind():
    for sampler in (exact.laplace, exact.gaussian):
        assert sampler(SeededRandomness(0), np.int64(3), 50).shape == (50,)  # type: ignore[arg-type]
