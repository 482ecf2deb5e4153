"""Tests the distribution of training noise, and its coupling to exact noise.

Seeds are fixed; each p-value is below 1e-4 by chance with probability 1e-4.
"""

import math
from typing import Any

import mpmath
import numpy as np
import pytest
from scipy import stats

from privacy.noise.training import (
    DISTANCE,
    FAILURE,
    MAX_VALUES,
    RESERVED,
    exact_delta,
    secure_generator,
    standard_normal,
    with_failures,
)

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
EDGES = [-np.inf, -4.5, -3.5, *np.linspace(-3, 3, 41), 3.5, 4.5, np.inf]


def p_value(values):
    """Returns the p-value of a chi-squared test on intervals that include the tails."""
    seen, _ = np.histogram(values, EDGES)
    return stats.chisquare(seen, len(values) * np.diff(stats.norm.cdf(EDGES))).pvalue


@DTYPES
def test_standard_normal_fits_its_distribution(dtype):
    values = standard_normal(np.random.default_rng(5), 2_000_000, dtype)
    assert values.dtype == dtype
    assert p_value(values) > 1e-4
    # The test detects a stddev that is 1 % too large, and tails cut at 3.7.
    assert p_value(1.01 * values) < 1e-4
    assert p_value(values[abs(values) < 3.7]) < 1e-4


def test_standard_normal_numbers_of_a_pair_and_neighbours_are_uncorrelated():
    """Blocks hold 2^14 pairs; squares and signs are uncorrelated too."""
    values = standard_normal(np.random.default_rng(6), 2**21, np.float32).reshape(-1, 2, 2**14)
    first, second = values[:, 0].ravel(), values[:, 1].ravel()
    transforms: list[Any] = [np.asarray, np.square, np.sign]
    for transform in transforms:
        assert stats.pearsonr(transform(first), transform(second)).pvalue > 1e-4
        assert stats.pearsonr(transform(first[1:]), transform(second[:-1])).pvalue > 1e-4
    assert stats.pearsonr(first[1:], first[:-1]).pvalue > 1e-4


@DTYPES
@pytest.mark.parametrize("size", [0, 1, 2, 3, 2**15 - 1, 2**15 + 1])
def test_standard_normal_returns_the_size_asked_for_without_repetition(dtype, size):
    values = standard_normal(np.random.default_rng(7), size, dtype)
    assert values.shape == (size,)
    assert np.isfinite(values).all()
    assert len(set(values.tolist())) > 0.99 * size - 1


class Words(np.random.Generator):
    """A generator whose bit generator returns given words: first one for each pair, then the further ones."""

    def __init__(self, first, further):
        super().__init__(np.random.Philox(0))
        self._first, self._further = first, further

    @property
    def bit_generator(self):
        return self

    def random_raw(self, count):
        if self._first is not None:
            words, self._first = self._first, None
            return words
        assert count == np.size(self._further)
        return np.ravel(self._further)


def word(leading, angle):
    """Returns the 64-bit words that hold, as 32-bit numbers, all `leading` and then all `angle`."""
    return np.concatenate([leading, angle]).astype(np.uint32).view(np.uint64)


def exact_pair(leading, angle, further=None):
    """Returns R, R cos A and R sin A, computed with 330 digits at the middle of the interval that the bits leave."""
    with mpmath.workdps(330):
        share = mpmath.mpf(1) / 2 if further is None else mpmath.mpf(0)
        if further is not None:
            for place, bits in enumerate(further, 1):
                share += mpmath.mpf(int(bits)) / mpmath.mpf(2) ** (64 * place)
            share += mpmath.mpf(1) / mpmath.mpf(2) ** (64 * len(further) + 1)
        radius = mpmath.sqrt(-2 * mpmath.log((int(leading) + share) / 2**32))
        turn = mpmath.pi * int(np.int32(np.uint32(angle))) / mpmath.mpf(2) ** 31
        return float(radius), float(radius * mpmath.cos(turn)), float(radius * mpmath.sin(turn))


ANGLES = [0, 1, 2**29, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 123456789]
MIDDLE = [2**20, 2**20 + 1, 2**24 + 1, 2**31, 2**32 - 2**20, 2**32 - 1025]


@DTYPES
def test_standard_normal_stays_within_the_distance_whatever_bits_are_not_drawn(dtype):
    """For U away from 0 and 1, of which only 32 bits are drawn."""
    leading, angle = (np.array(x, np.uint32) for x in np.meshgrid(MIDDLE, ANGLES))
    values = standard_normal(Words(word(leading.ravel(), angle.ravel()), []), 2 * leading.size, dtype)
    for pair, first, turn in zip(values.reshape(2, -1).T, leading.ravel(), angle.ravel(), strict=True):
        radius, cosine, sine = exact_pair(first, turn)
        assert max(abs(pair[0] - cosine), abs(pair[1] - sine)) <= DISTANCE / 2 * (1 + radius)
        for low in (0, 1):  # the ends of the cell of U and A
            with mpmath.workdps(30):
                moved = mpmath.sqrt(-2 * mpmath.log((mpmath.mpf(int(first)) + low) / 2**32))
            assert abs(radius - float(moved)) <= DISTANCE / 4
    assert math.pi * 2.0**-31 < DISTANCE / 500  # a cell of the angle


@DTYPES
@pytest.mark.parametrize("leading", [0, 1, 77, 2**20 - 1, 2**32 - 1024, 2**32 - 1])
@pytest.mark.parametrize(
    "further", [[0] * 14, [2**64 - 1] * 14, [0, 0, 0, 1] + [0] * 10, [0] * 13 + [2**64 - 1], [2**63] + [0] * 13]
)
def test_standard_normal_uses_896_further_bits_near_0_and_1(dtype, leading, further):
    values = standard_normal(Words(word([leading], [5]), further), 2, dtype)
    radius, cosine, sine = exact_pair(leading, 5, further)
    assert max(abs(values[0] - cosine), abs(values[1] - sine)) <= DISTANCE / 2 * (1 + radius)


def test_standard_normal_does_not_cut_the_far_tail():
    """The squared norm of a pair exceeds 89, where 64 bits of U would end."""
    radius = standard_normal(Words(word([0], [0]), [0] * 14), 2, np.float64)[0]
    assert radius**2 > 1200
    radius = standard_normal(Words(word([0], [0]), [2**32, *[0] * 13]), 2, np.float64)[0]
    assert radius**2 == pytest.approx(2 * 64 * math.log(2))


def test_standard_normal_uses_each_word_for_one_pair_only():
    """Changing one bit of a word changes the two numbers of one pair and no others."""
    words = np.random.default_rng(3).integers(0, 2**64, 50, np.uint64)
    halves = words.view(np.uint32)
    before = standard_normal(Words(words, []), 100, np.float64).reshape(2, -1)
    for place in (0, 49, 50, 99):
        changed = halves.copy()
        changed[place] ^= 2**25
        after = standard_normal(Words(changed.view(np.uint64), []), 100, np.float64).reshape(2, -1)
        assert np.flatnonzero((after != before).any(axis=0)).tolist() == [place % 50]


def test_with_failures_is_infinite_once_failures_exceed_the_reserve():
    assert exact_delta(1e-5) == pytest.approx(1e-5, rel=2 * RESERVED) and exact_delta(1e-5) < 1e-5
    assert with_failures(8.0, 1e-9, 10**6) == 8.0
    assert with_failures(math.inf, 1e-5, 1) == math.inf
    # The limit is where (1 + e^ε) T η equals the reserve.
    delta, releases = 1e-5, 1000
    limit = math.log(RESERVED * delta / (releases * FAILURE))
    assert with_failures(limit - 1e-6, delta, releases) == limit - 1e-6
    assert with_failures(limit + 1e-6, delta, releases) == math.inf


def test_failure_probability_covers_radii_beyond_the_distance():
    """A radius is known to within the distance unless U, of 32 + 896 bits, is below 2^-878: then 50 bits are left."""
    assert MAX_VALUES / 2 * 2.0**-878 < FAILURE


def test_secure_generator_returns_different_generators():
    assert secure_generator().random() != secure_generator().random()
