"""Tests that rounded Gaussian noise is exact in every number, by mpmath as an independent oracle."""

import hashlib

import mpmath
import numpy as np
import pytest
from scipy import stats

from privacy.noise import rounded as rounded_noise
from privacy.noise.rounded import LARGEST_STDDEV, rounded_gaussian

KEY = bytes(range(32))


def bits(key, purpose, index, size):
    """Returns the bits that a key stands for, by definition: SHAKE-128 of length, key, purpose, 0 and index."""
    text = len(key).to_bytes(8, "big") + key + purpose + b"\0" + index.to_bytes(16, "big")
    return hashlib.shake_128(text).digest(size)


def exact_pairs(key, count, stddev):
    """Returns `count` pairs from 320 bits of U and of A, in 150 digits, without floating-point arithmetic."""
    words = np.frombuffer(bits(key, b"words", 0, 16 * count), "<u8").reshape(2, count)
    pairs = []
    with mpmath.workdps(150):
        for pair in range(count):
            halves = [int.from_bytes(bits(key, name, pair, 32), "big") for name in (b"U", b"A")]
            u, a = (mpmath.mpf((int(words[i, pair]) << 256) + halves[i]) / mpmath.mpf(2) ** 320 for i in (0, 1))
            radius = mpmath.sqrt(-2 * mpmath.log(u))
            pairs.append([stddev * radius * f(2 * mpmath.pi * a) for f in (mpmath.cos, mpmath.sin)])
    return pairs


@pytest.mark.parametrize("stddev", [1.0, 2.0**24, 0.7 * 2.0**24, LARGEST_STDDEV])
def test_rounded_gaussian_returns_the_exact_numbers_rounded(stddev):
    count = 2000
    numbers = rounded_gaussian(KEY, stddev, 2 * count).reshape(2, count).T
    for pair, values in zip(numbers, exact_pairs(KEY, count, stddev), strict=True):
        assert [int(number) for number in pair] == [int(mpmath.nint(value)) for value in values]


def test_rounded_gaussian_computes_numbers_in_doubt_from_more_bits(monkeypatch):
    """At the largest stddev some numbers are in doubt; if all were, the numbers would be the same."""
    shares_in_doubt = []
    round_fast = rounded_noise._round_fast

    def record(words, stddev):
        numbers, doubt = round_fast(words, stddev)
        shares_in_doubt.append(doubt.mean())
        return numbers, doubt

    def doubt_all(words, stddev):
        numbers, doubt = round_fast(words, stddev)
        return np.zeros_like(numbers), np.ones_like(doubt)

    monkeypatch.setattr(rounded_noise, "_round_fast", record)
    rounded_gaussian(KEY, LARGEST_STDDEV, 40_000)
    assert 1e-4 < shares_in_doubt[0] < 0.1
    few = rounded_gaussian(KEY, LARGEST_STDDEV, 300)
    monkeypatch.setattr(rounded_noise, "_round_fast", doubt_all)
    np.testing.assert_array_equal(rounded_gaussian(KEY, LARGEST_STDDEV, 300), few)


def test_round_exactly_uses_every_further_bit():
    """At a stddev of 2^100 the numbers depend on 320 bits of U and of A; longer streams begin with the same bits."""
    words = np.frombuffer(bits(KEY, b"words", 0, 32), "<u8").reshape(2, 2)
    for pair, values in enumerate(exact_pairs(KEY, 2, mpmath.mpf(2) ** 40)):
        numbers = rounded_noise._round_exactly(KEY, pair, words[:, pair], 2.0**40)
        assert numbers == [int(mpmath.nint(value)) for value in values]
    # 64 bits alone cannot decide numbers of about 2^100 steps, but 320 bits can.
    with mpmath.workdps(150):
        for pair, values in enumerate(exact_pairs(KEY, 2, mpmath.mpf(2) ** 100)):
            numbers = rounded_noise._round_exactly(KEY, pair, words[:, pair], 2.0**100)
            assert numbers == [int(mpmath.nint(value)) for value in values]
    assert bits(KEY, b"U", 0, 64)[:32] == bits(KEY, b"U", 0, 32)


def test_rounding_without_regard_to_doubt_gives_wrong_numbers(monkeypatch):
    """A planted fault: floating-point results are rounded whatever their error."""
    right = rounded_gaussian(KEY, LARGEST_STDDEV, 400_000)

    def unchecked(words, stddev):
        leading = words[0].astype(np.float64) + 0.5
        radius = np.sqrt(-2 * np.log(leading * 2.0**-64))
        angle = words[1].view(np.int64) * (np.pi * 2.0**-63)
        values = np.rint(stddev * radius * np.stack([np.cos(angle), np.sin(angle)]))
        return values.astype(np.int64), np.zeros(len(leading), bool)

    monkeypatch.setattr(rounded_noise, "_round_fast", unchecked)
    wrong = rounded_gaussian(KEY, LARGEST_STDDEV, 400_000)
    assert (wrong != right).any()


def test_rounded_gaussian_fits_its_distribution_and_not_the_discrete_gaussian():
    """Applies a chi-squared test at level 1e-4 at a stddev of 1, where rounding shows."""
    numbers = rounded_gaussian(KEY, 1.0, 4_000_000)
    edges = np.arange(-4, 5)
    expected = np.diff(stats.norm.cdf([-np.inf, *(edges[:-1] + 0.5), np.inf]))
    seen = np.histogram(numbers, [-np.inf, *(edges[:-1] + 0.5), np.inf])[0]
    assert stats.chisquare(seen, len(numbers) * expected).pvalue > 1e-4
    weights = np.exp(-(np.arange(-30, 31) ** 2) / 2)
    discrete = weights / weights.sum()
    cells = np.searchsorted(edges[:-1] + 0.5, np.arange(-30, 31))
    other = np.bincount(cells, discrete, len(edges))
    assert stats.chisquare(seen, len(numbers) * other).pvalue < 1e-4


def test_rounded_gaussian_is_uncorrelated_between_keys_and_repeats_with_a_key():
    keys = [KEY, KEY[::-1], KEY + b"count", KEY + b"update"]
    samples = [rounded_gaussian(key, 2.0**20, 20_000).astype(float) for key in keys]
    for one in range(4):
        for other in range(one):
            assert stats.pearsonr(samples[one], samples[other]).pvalue > 1e-5
    np.testing.assert_array_equal(samples[0], rounded_gaussian(KEY, 2.0**20, 20_000))


@pytest.mark.parametrize("size", [0, 1, 2, 2**15 + 1])
def test_rounded_gaussian_returns_the_size_asked_for(size):
    assert rounded_gaussian(KEY, 2.0**24, size).shape == (size,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": b"short"}, "key has 5 bytes"),
        ({"stddev": 0.5}, r"^stddev must lie in \[1, 2\^34\] grid steps, got 0.5"),
        ({"stddev": 2.0**35}, r"^stddev must lie in \[1, 2\^34\]"),
        ({"stddev": float("nan")}, "^stddev must be a finite number"),
        ({"size": -1}, "size must be"),
    ],
)
def test_rounded_gaussian_refuses_bad_arguments_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        rounded_gaussian(**({"key": KEY, "stddev": 2.0**24, "size": 1} | changes))
    assert "\n" not in str(error.value)
