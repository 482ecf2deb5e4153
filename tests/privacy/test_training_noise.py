"""The law of training noise. Fixed seeds; each p-value is below 1e-4 with that probability."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from privacy.training_noise import secure_generator, standard_normal

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
EDGES = [-np.inf, -4.5, -3.5, *np.linspace(-3, 3, 41), 3.5, 4.5, np.inf]


def p_value(values):
    """Of a chi-squared test on intervals, the tails among them."""
    seen, _ = np.histogram(values, EDGES)
    return stats.chisquare(seen, len(values) * np.diff(stats.norm.cdf(EDGES))).pvalue


@DTYPES
def test_it_is_standard_normal(dtype):
    values = standard_normal(np.random.default_rng(5), 2_000_000, dtype)
    assert values.dtype == dtype
    assert p_value(values) > 1e-4
    # What the test tells apart: one per cent more, and tails cut at 3.7.
    assert p_value(1.01 * values) < 1e-4
    assert p_value(values[abs(values) < 3.7]) < 1e-4


def test_the_two_of_a_pair_are_independent():
    """Of 2^14 pairs each; squares and signs too."""
    values = standard_normal(np.random.default_rng(6), 2**21, np.float32).reshape(-1, 2, 2**14)
    first, second = values[:, 0].ravel(), values[:, 1].ravel()
    transforms: list[Any] = [np.asarray, np.square, np.sign]
    for transform in transforms:
        assert stats.pearsonr(transform(first), transform(second)).pvalue > 1e-4
        assert stats.pearsonr(transform(first[1:]), transform(second[:-1])).pvalue > 1e-4
    assert stats.pearsonr(first[1:], first[:-1]).pvalue > 1e-4


@DTYPES
@pytest.mark.parametrize("size", [0, 1, 2, 3, 2**15 - 1, 2**15 + 1])
def test_any_size(dtype, size):
    values = standard_normal(np.random.default_rng(7), size, dtype)
    assert values.shape == (size,)
    assert np.isfinite(values).all()
    assert len(set(values.tolist())) > 0.99 * size - 1


def test_the_least_and_the_largest_bits_give_numbers():
    class Fixed:
        def __init__(self, word):
            self.word = word

        def random_raw(self, count):
            return np.full(count, self.word, np.uint64)

    class Generator:
        def __init__(self, word):
            self.bit_generator = Fixed(word)

    for word in (0, 2**64 - 1, 2**32 - 1, 2**63):
        generator: Any = Generator(word)
        values = standard_normal(generator, 4, np.float32)
        assert (abs(values) < 9.5).all()
    # Words of which only the lowest bits are set: far out, as far as 64 bits reach.
    assert abs(values_of(0)).max() > 9.4


def values_of(word):
    class Fixed:
        def random_raw(self, count):
            return np.full(count, word, np.uint64)

    class Generator:
        bit_generator = Fixed()

    generator: Any = Generator()
    return standard_normal(generator, 4, np.float32)


def test_the_far_tail_is_not_cut():
    """Radii from words below 2^12 alone: the law of all 64 bits of a word shows in them, and those that 32 bits never
    give (beyond 6.66) come."""
    generator = np.random.default_rng(8)

    class Far:
        def __init__(self):
            self.calls = 0

        def random_raw(self, count):
            self.calls += 1
            if self.calls % 2:  # the first 32 bits of a radius: small; of an angle: any
                small = generator.integers(0, 2**12, 2 * count, np.uint32)
                small[count:] = generator.integers(0, 2**32, count, np.uint32)
                return small.view(np.uint64)
            return generator.integers(0, 2**64, count, np.uint64)

    class Generator:
        bit_generator = Far()

    fake: Any = Generator()
    pairs = standard_normal(fake, 2**15, np.float32).reshape(2, -1)
    radius = np.hypot(*pairs.astype(np.float64))
    below = 2.0**32 * np.exp(-(radius**2) / 2)  # the word with all its bits, uniform from 0 to 2^12
    assert stats.kstest(below / 2**12, "uniform").pvalue > 1e-4
    assert below.min() < 1  # what 32 bits do not reach


def test_secure_generators_differ():
    assert secure_generator().random() != secure_generator().random()
