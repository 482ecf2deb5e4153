"""The race's noise has the bits of NumPy everywhere and follows the Gumbel distribution; its draws are exact."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import binomtest

from models.decoding import numpy_race, race
from models.decoding.choices import Processing
from models.decoding.couplings import race_agreement
from models.decoding.numpy_ops import LEFT_OUT, Stream, random_words, seed_words
from models.decoding.numpy_processing import process
from tests.oracles import pearson
from tests.oracles import race as oracle
from tests.oracles.backends import run_everywhere

LEVEL = 1e-6  # each statistical test fails by chance with this probability; seeds are fixed
MIDDLE = 1 << (numpy_race.SEGMENT_BITS - 1)


def test_gumbels_equal_those_of_the_oracle():
    rng = np.random.default_rng(0)
    for _ in range(30):
        seed, request, position = (int(rng.integers(2**bits)) for bits in (62, 31, 31))
        tokens = rng.integers(0, 2000, 5)
        noise = numpy_race.gumbels(seed_words(seed), request, position, 2000)
        for token in tokens:
            exact = oracle.gumbel(seed, int(Stream.RACE), request, position, int(token))
            assert abs(float(noise[token]) - exact) < 1.7e-6


def test_gumbels_and_tokens_have_the_bits_of_numpy_in_every_backend():
    rng = np.random.default_rng(1)
    seed, size = rng.integers(-(2**31), 2**31, 2, np.int32), 1500
    request, positions = rng.integers(0, 2**31, [3, 1], np.int32), rng.integers(0, 2**31, [3, 4], np.int32)
    logits = (3 * rng.standard_normal([3, 4, size])).astype(np.float32)

    def draw(seed, request, positions, logits):
        noise = race.gumbels(seed, request, positions, size)
        return {"noise": noise, "tokens": race.race(logits, noise)}

    noise = numpy_race.gumbels(seed, request, positions, size)
    assert noise.shape == (3, 4, size) and noise.dtype == np.float32
    for output in run_everywhere(draw, seed=seed, request=request, positions=positions, logits=logits).values():
        np.testing.assert_array_equal(output["noise"], noise)
        np.testing.assert_array_equal(output["tokens"], numpy_race.race(logits, noise))


def test_gumbels_of_some_tokens_are_those_of_all():
    tokens = np.array([0, 255, 256, 511, 512, 767, 768, 1023, 1024, 1500, 2999], np.int32)
    request, positions = np.array([[5], [2**31 - 1]], np.int32), np.array([[0, 3, 70_000]], np.int32)
    expected = numpy_race.gumbels([4, -9], request, positions, 3000)[..., tokens]
    request, positions = request[..., np.newaxis], positions[..., np.newaxis]
    np.testing.assert_array_equal(race.gumbels_of([4, -9], request, positions, tokens), expected)
    np.testing.assert_array_equal(numpy_race.gumbels_of(np.array([4, -9]), request, positions, tokens), expected)


@pytest.mark.slow
def test_gumbels_of_some_tokens_are_those_of_all_in_every_backend():
    rng = np.random.default_rng(8)
    seed, size = rng.integers(-(2**31), 2**31, 2, np.int32), 3000
    request, positions = rng.integers(0, 2**31, [2, 1], np.int32), rng.integers(0, 2**31, [2, 3], np.int32)
    tokens = np.concatenate([[0, 255, 256, 511, 512, 767, 768, 1023, 1024], rng.integers(0, size, 40)]).astype(np.int32)
    expected = numpy_race.gumbels(seed, request, positions, size)[..., tokens]

    def some(seed, request, positions, tokens):
        return {"g": race.gumbels_of(seed, request[..., tf.newaxis], positions[..., tf.newaxis], tokens)}

    alone = numpy_race.gumbels_of(seed, request[..., np.newaxis], positions[..., np.newaxis], tokens)
    np.testing.assert_array_equal(alone, expected)
    for output in run_everywhere(some, seed=seed, request=request, positions=positions, tokens=tokens).values():
        np.testing.assert_array_equal(output["g"], expected)


def test_lookup_of_rare_words_has_the_bits_of_numpy_in_every_backend():
    edges = [0, 1, 2, 2**24, 2**31 - 64, 2**31 - 65, 2**31 - 1, -1, -2, -(2**24) - 1, -(2**31) + 63, -(2**31)]
    powers = [sign * 2**bit + shift for bit in range(30) for sign in (1, -1) for shift in (-1, 0, 1)]
    own = np.array(edges + powers, np.int32)
    words = np.repeat(own, 3), np.tile(np.array([-(2**31), 0, 12345], np.int32), len(own))
    expected = numpy_race.from_words(words)
    assert np.isfinite(expected).all() and expected.min() > -3.2 and 23 < expected.max() < 23.6
    outputs = run_everywhere(lambda own, partner: {"g": race.from_words(own, partner)}, own=words[0], partner=words[1])
    for output in outputs.values():
        np.testing.assert_array_equal(output["g"], expected)
    for k, w, g in zip(words[0].view(np.uint32), words[1].view(np.uint32), expected, strict=True):
        assert abs(float(g) - float(oracle.gumbel_of_words(int(k), int(w)))) < (1.7e-6 if g < 16 else 2.6e-6)


def test_float64_reference_equals_the_oracle():
    rng = np.random.default_rng(3)
    own = np.concatenate([rng.integers(0, 2**32, 100), [0, 2**31 - 1, 2**31, 2**32 - 1]])
    for k in own.tolist():
        z = k + 0.25 if k < 2**31 else k + 0.25 - 2**32
        looked_up = np.array([z if z > 0 else -z * numpy_race.UPPER_SCALE])
        exact = float(oracle.gumbel_of_words(k, 2**30))
        assert numpy_race.exact_gumbel(looked_up)[0][0] == pytest.approx(exact, abs=1e-13)


def test_error_of_every_number_is_within_the_stated_one():
    """Bounds the error by its three parts: rounding before the table is read, the lines, and the last rounding.

    The lines are tried at 65 numbers in every segment, its ends among them. Between two of these the error of a line
    exceeds those at both by 1e-9 at most, since a segment spans 1/512 of its numbers' size.
    """
    segments = np.arange(len(numpy_race.MIDDLE_BITS), dtype=np.int64) + numpy_race.FIRST_SEGMENT
    middles, slopes = (bits.view(np.float32).astype(float) for bits in (numpy_race.MIDDLE_BITS, numpy_race.SLOPE_BITS))
    largest = {False: 0.0, True: 0.0}
    for within in [*range(0, 2 * MIDDLE, MIDDLE // 32), 2 * MIDDLE - 1]:
        numbers = (segments * 2 * MIDDLE + within).astype(np.int32).view(np.float32).astype(float)
        used = (numbers <= 2.0**31) | ((numbers >= 2.0**32) & (numbers <= 2.0**64))
        exact, derivative = numpy_race.exact_gumbel(np.where(used, numbers, 1))
        before = np.abs(derivative * numbers) * 2.0**-23  # two roundings to 24 bits
        after = np.spacing(np.abs(exact).astype(np.float32)) / 2
        errors = np.abs(middles + slopes * (within - MIDDLE) - exact) + before + after
        for rare in largest:
            largest[rare] = max(largest[rare], errors[used & ((exact > 16) == rare)].max())
    assert 1e-6 < largest[False] < 1.7e-6 - 1e-9 and largest[True] < 2.6e-6 - 1e-9


def test_products_of_the_table_are_exact_in_float32():
    fractions, _ = np.frexp(numpy_race.SLOPE_BITS.view(np.float32))
    assert (fractions * 2**11 == np.round(fractions * 2**11)).all()


@pytest.mark.parametrize("errors", list(itertools.product((-1e-12, 1e-12), repeat=2)))
def test_table_has_the_same_bits_for_a_log_with_relative_error_1e_12(monkeypatch, errors):
    expected = numpy_race.build_table()
    log, log1p = np.log, np.log1p
    rng = np.random.default_rng(4)

    def spoil(function: Callable, error: float) -> Callable:
        return lambda x: function(x) * (1 + error * np.where(rng.random(np.shape(x)) < 0.8, 1, -1))

    monkeypatch.setattr(np, "log", spoil(log, errors[0]))
    monkeypatch.setattr(np, "log1p", spoil(log1p, errors[1]))
    for bits, found in zip(expected, numpy_race.build_table(), strict=True):
        np.testing.assert_array_equal(found, bits)
    monkeypatch.setattr(np, "log", spoil(log, 1e-6))
    assert (numpy_race.build_table()[0] != expected[0]).any()


def test_gumbels_do_not_depend_on_the_size_or_the_batch():
    noise = numpy_race.gumbels(seed_words(5), np.array([[7], [8]]), np.arange(3), 40_000)
    np.testing.assert_array_equal(numpy_race.gumbels(seed_words(5), 8, 2, 700), noise[1, 2, :700])
    assert len(np.unique(noise)) > 0.99 * noise.size


def gumbel_goodness(noise):
    """Returns the p-value of Pearson's test of 64 equally likely cells of the Gumbel distribution."""
    cells = np.minimum((64 * np.exp(-np.exp(-noise.astype(np.float64)))).astype(int), 63)
    return pearson.p_value(np.bincount(cells, minlength=64), np.full(64, noise.size / 64))


def pair_goodness(first, second):
    """Returns the p-value of the hypothesis that two Gumbel numbers are independent, from 8 times 8 cells."""
    cells = [np.minimum((8 * np.exp(-np.exp(-x.astype(np.float64)))).astype(int), 7) for x in (first, second)]
    return pearson.p_value(np.bincount(8 * cells[0] + cells[1], minlength=64), np.full(64, first.size / 64))


def test_gumbels_follow_the_gumbel_distribution():
    noise = numpy_race.gumbels(seed_words(11), 0, np.arange(40), 10_240)
    assert gumbel_goodness(noise.ravel()) > LEVEL
    assert gumbel_goodness(noise.ravel() + np.float32(0.02)) < LEVEL
    # The extremes: of 400,000 numbers, how many exceed -ln(-ln(1 - 1e-3)) and fall below -ln(-ln(1e-3)).
    for share, found in ((1e-3, noise > -np.log(-np.log1p(-1e-3))), (1e-3, noise < -np.log(-np.log(1e-3)))):
        assert binomtest(int(found.sum()), noise.size, share).pvalue > LEVEL


def test_gumbels_of_partners_positions_requests_and_seeds_are_independent():
    noise = numpy_race.gumbels(seed_words(12), np.arange(2)[:, np.newaxis], np.arange(400), 512)
    other = numpy_race.gumbels(seed_words(13), 0, np.arange(400), 512)
    pairs = {
        "partners": (noise[..., :256], noise[..., 256:]),
        "tokens": (noise[..., :-1], noise[..., 1:]),
        "positions": (noise[:, :-1], noise[:, 1:]),
        "requests": (noise[0], noise[1]),
        "seeds": (noise[0], other),
    }
    for first, second in pairs.values():
        assert pair_goodness(first.ravel(), second.ravel()) > LEVEL
    # Planted: the first word is used for both tokens of a pair.
    own = random_words(seed_words(12), Stream.RACE, 0, 0, np.arange(50_000))[0]
    reused = [numpy_race.from_words((own, own)), numpy_race.from_words((own, ~own))]
    assert pair_goodness(reused[0], reused[1]) < LEVEL


def test_largest_of_2_to_18_numbers_is_tied_with_probability_below_1e_6():
    """Numbers z near the smallest of 2**18: its distribution is exponential with mean 2**14, and so is the next gap."""
    rng = np.random.default_rng(6)
    z = (rng.exponential(2.0**14, 4000) + 1).astype(np.float32)
    neighbours = (z.view(np.int32)[:, np.newaxis] + np.arange(200, dtype=np.int32)).view(np.float32)

    def tie_probability(numbers):
        bits = numbers.view(np.int32)
        segment = bits >> numpy_race.SEGMENT_BITS
        distance = bits - segment * 2 * MIDDLE - MIDDLE
        entry = segment - numpy_race.FIRST_SEGMENT
        slopes = numpy_race.SLOPE_BITS[entry].view(np.float32)
        g = numpy_race.MIDDLE_BITS[entry].view(np.float32) + slopes * distance.astype(np.float32)
        last = np.argmin(g == g[:, :1], axis=1)
        assert (last > 0).all()
        return np.mean(neighbours[np.arange(len(z)), last] - z) * 2.0**-14

    assert tie_probability(neighbours) < 1e-6
    # Planted: without the partner's word z is an integer plus 1/2, and 200 neighbours are not always enough.
    gap = np.floor(z.astype(np.float64)) + 1 - z
    assert np.mean(gap) * 2.0**-14 > 1e-5


def draws(logits, noise_of, requests=100_000):
    processed = np.broadcast_to(process(logits, Processing()), (requests, len(logits)))
    return numpy_race.race(processed, noise_of(np.arange(requests)))


def noise_by_request(requests, size=8, seed=21):
    # One block of words per request would cost 256 calls each: the first words of positions stand for requests.
    words = random_words(seed_words(seed), Stream.RACE, requests[:, np.newaxis], 3, np.arange(size))
    return numpy_race.from_words(words)


def law(tokens, logits):
    counts = np.bincount(tokens, minlength=len(logits))
    return pearson.p_value(counts, len(tokens) * np.array(oracle.probabilities(logits.tolist())))


def test_race_draws_every_token_with_its_probability():
    logits = np.array([0.3, -1, 2, 0.5, -2.5, 1, 0, 0.4], np.float32)
    np.testing.assert_array_equal(noise_by_request(np.array([9]))[0], numpy_race.gumbels(seed_words(21), 9, 3, 8))
    assert law(draws(logits, noise_by_request), logits) > LEVEL
    # Planted: uniform numbers instead of Gumbel numbers, and the same noise for groups of 50 requests.
    assert law(draws(logits, lambda r: np.exp(-np.exp(-noise_by_request(r)))), logits) < LEVEL
    assert law(draws(logits, lambda r: noise_by_request(r // 50)), logits) < LEVEL


def test_tokens_at_neighbouring_positions_are_independent():
    logits = np.array([0.3, -1, 2, 0.5], np.float32)
    p = np.array(oracle.probabilities(logits.tolist()))
    noise = numpy_race.gumbels(seed_words(22), np.arange(8)[:, np.newaxis], np.arange(500), 4)
    tokens = numpy_race.race(np.broadcast_to(logits, noise.shape), noise)
    pairs = np.bincount((4 * tokens[:, :-1:2] + tokens[:, 1::2]).ravel(), minlength=16)
    assert pearson.p_value(pairs, pairs.sum() * np.outer(p, p).ravel()) > LEVEL
    # Planted: the same noise at each position.
    same = np.bincount((4 * tokens + tokens).ravel(), minlength=16)
    assert pearson.p_value(same, same.sum() * np.outer(p, p).ravel()) < LEVEL


def test_two_races_with_the_same_noise_agree_as_the_formula_says():
    generator = np.random.default_rng(7)
    logits = [(1.5 * generator.standard_normal(8)).astype(np.float32) for _ in range(2)]
    p, q = (np.array(oracle.probabilities(x.tolist())) for x in logits)
    a, b = (draws(x, noise_by_request) for x in logits)
    expected = race_agreement(p, q)
    assert binomtest(int(np.sum(a == b)), len(a), expected).pvalue > LEVEL
    own_noise = draws(logits[1], lambda r: noise_by_request(r, seed=23))
    assert binomtest(int(np.sum(a == own_noise)), len(a), expected).pvalue < LEVEL


def test_race_never_draws_tokens_that_are_left_out():
    noise = noise_by_request(np.arange(20_000))
    one_hot = np.full(8, LEFT_OUT, np.float32)
    one_hot[5] = 0
    assert (numpy_race.race(one_hot, noise) == 5).all()
    kept = process(np.arange(8, dtype=np.float32) / 8, Processing(top_k=3))
    assert set(numpy_race.race(kept, noise).tolist()) == {5, 6, 7}
    assert numpy_race.race(np.zeros(4, np.float32), np.ones(4, np.float32)) == 0
