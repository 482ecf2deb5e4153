"""Rounded Gaussian noise: exact in every number, by an independent library for arithmetic of any precision."""

import hashlib

import mpmath
import numpy as np
import pytest
from scipy import stats

from privacy.noise import rounded as rounded_noise
from privacy.noise.rounded import LARGEST_STDDEV, rounded_gaussian

KEY = bytes(range(32))


def bits(key, purpose, index, size):
    """The bits that a key stands for, by the definition: SHAKE-128 of length, key, purpose, 0 and index."""
    text = len(key).to_bytes(8, "big") + key + purpose + b"\0" + index.to_bytes(16, "big")
    return hashlib.shake_128(text).digest(size)


def exactly(key, count, stddev):
    """`count` pairs from 320 bits of U and of A, in 150 digits, without any floating-point number."""
    words = np.frombuffer(bits(key, b"words", 0, 16 * count), "<u8").reshape(2, count)
    found = []
    with mpmath.workdps(150):
        for pair in range(count):
            halves = [int.from_bytes(bits(key, name, pair, 32), "big") for name in (b"U", b"A")]
            u, a = (mpmath.mpf((int(words[i, pair]) << 256) + halves[i]) / mpmath.mpf(2) ** 320 for i in (0, 1))
            radius = mpmath.sqrt(-2 * mpmath.log(u))
            found.append([stddev * radius * f(2 * mpmath.pi * a) for f in (mpmath.cos, mpmath.sin)])
    return found


@pytest.mark.parametrize("stddev", [1.0, 2.0**24, 0.7 * 2.0**24, LARGEST_STDDEV])
def test_every_number_is_the_exact_one_rounded(stddev):
    count = 2000
    numbers = rounded_gaussian(KEY, stddev, 2 * count).reshape(2, count).T
    for pair, values in zip(numbers, exactly(KEY, count, stddev), strict=True):
        assert [int(number) for number in pair] == [int(mpmath.nint(value)) for value in values]


def test_numbers_in_doubt_are_taken_from_more_bits(monkeypatch):
    """At the largest deviation some are; were all in doubt, the numbers would be the same."""
    doubtful = []
    plain = rounded_noise._rounded

    def watched(words, stddev):
        numbers, doubt = plain(words, stddev)
        doubtful.append(doubt.mean())
        return numbers, doubt

    def all_in_doubt(words, stddev):
        numbers, doubt = plain(words, stddev)
        return np.zeros_like(numbers), np.ones_like(doubt)

    monkeypatch.setattr(rounded_noise, "_rounded", watched)
    rounded_gaussian(KEY, LARGEST_STDDEV, 40_000)
    assert 1e-4 < doubtful[0] < 0.1
    few = rounded_gaussian(KEY, LARGEST_STDDEV, 300)
    monkeypatch.setattr(rounded_noise, "_rounded", all_in_doubt)
    np.testing.assert_array_equal(rounded_gaussian(KEY, LARGEST_STDDEV, 300), few)


def test_every_further_bit_counts():
    """At a deviation of 2^120 the numbers are those of 320 bits of U and of A; more bits go on from the first ones."""
    words = np.frombuffer(bits(KEY, b"words", 0, 32), "<u8").reshape(2, 2)
    for pair, values in enumerate(exactly(KEY, 2, mpmath.mpf(2) ** 40)):
        found = rounded_noise._exactly(KEY, pair, words[:, pair], 2.0**40)
        assert found == [int(mpmath.nint(value)) for value in values]
    # What 64 bits alone cannot tell: numbers of 2^100 steps, to within what 320 bits leave open.
    with mpmath.workdps(150):
        for pair, values in enumerate(exactly(KEY, 2, mpmath.mpf(2) ** 100)):
            found = rounded_noise._exactly(KEY, pair, words[:, pair], 2.0**100)
            assert found == [int(mpmath.nint(value)) for value in values]
    assert bits(KEY, b"U", 0, 64)[:32] == bits(KEY, b"U", 0, 32)


def test_without_the_look_at_doubt_numbers_are_wrong(monkeypatch):
    """The planted fault: what floating point says is taken as it is."""
    right = rounded_gaussian(KEY, LARGEST_STDDEV, 400_000)

    def unchecked(words, stddev):
        leading = words[0].astype(np.float64) + 0.5
        radius = np.sqrt(-2 * np.log(leading * 2.0**-64))
        angle = words[1].view(np.int64) * (np.pi * 2.0**-63)
        values = np.rint(stddev * radius * np.stack([np.cos(angle), np.sin(angle)]))
        return values.astype(np.int64), np.zeros(len(leading), bool)

    monkeypatch.setattr(rounded_noise, "_rounded", unchecked)
    wrong = rounded_gaussian(KEY, LARGEST_STDDEV, 400_000)
    assert (wrong != right).any()


def test_the_distribution_is_the_rounded_gaussian():
    """Chi-squared at 1e-4, at a deviation of 1, where rounding shows; a discrete Gaussian is told apart."""
    numbers = rounded_gaussian(KEY, 1.0, 4_000_000)
    edges = np.arange(-4, 5)
    expected = np.diff(stats.norm.cdf([-np.inf, *(edges[:-1] + 0.5), np.inf]))
    seen = np.histogram(numbers, [-np.inf, *(edges[:-1] + 0.5), np.inf])[0]
    assert stats.chisquare(seen, len(numbers) * expected).pvalue > 1e-4
    weights = np.exp(-(np.arange(-30, 31) ** 2) / 2)
    discrete = weights / weights.sum()
    places = np.searchsorted(edges[:-1] + 0.5, np.arange(-30, 31))
    other = np.bincount(places, discrete, len(edges))
    assert stats.chisquare(seen, len(numbers) * other).pvalue < 1e-4


def test_keys_and_their_uses_give_unrelated_numbers():
    keys = [KEY, KEY[::-1], KEY + b"count", KEY + b"update"]
    drawn = [rounded_gaussian(key, 2.0**20, 20_000).astype(float) for key in keys]
    for one in range(4):
        for other in range(one):
            assert stats.pearsonr(drawn[one], drawn[other]).pvalue > 1e-5
    np.testing.assert_array_equal(drawn[0], rounded_gaussian(KEY, 2.0**20, 20_000))


@pytest.mark.parametrize("size", [0, 1, 2, 2**15 + 1])
def test_any_size(size):
    assert rounded_gaussian(KEY, 2.0**24, size).shape == (size,)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"key": b"short"}, "key has 5 bytes"),
        ({"stddev": 0.5}, r"noise stddev must lie in \[1, 2\^34\] grid steps, got 0.5"),
        ({"stddev": 2.0**35}, r"noise stddev must lie in \[1, 2\^34\]"),
        ({"stddev": float("nan")}, "noise stddev must be a finite number"),
        ({"size": -1}, "size must be"),
    ],
)
def test_bad_arguments_are_one_line(change, said):
    with pytest.raises(ValueError, match=said) as caught:
        rounded_gaussian(**({"key": KEY, "stddev": 2.0**24, "size": 1} | change))
    assert "\n" not in str(caught.value)
