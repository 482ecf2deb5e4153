"""Couplings draw from each party's own distribution and agree as often as their exact formulas say."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.stats import binomtest

from models.decoding import couplings
from models.decoding.couplings import (
    bound,
    consistent_levels,
    darts,
    darts_agreement,
    draw,
    keyed_consistent,
    keyed_darts,
    maximal,
    race,
    race_agreement,
    total_variation,
)
from models.decoding.numpy_ops import Stream, random_words, seed_words
from tests.oracles.distributions import assert_agrees, assert_law, pairs

P, Q = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.3, 0.4, 0.2])
DRAWS = 60_000
FULL = 0.97 * P + 0.03 * Q, 0.03 * P + 0.97 * Q  # without zeros


def assert_agrees_as_weighted_min_hash_must(a, b, p, q):
    """One-sided exact binomial tests against both ends; a true agreement fails with probability 1e-5 each."""
    equal = int(np.sum(a == b))
    assert binomtest(equal, len(a), bound(p, q), "less").pvalue > 1e-5
    assert binomtest(equal, len(a), 1 - total_variation(p, q), "greater").pvalue > 1e-5


def draw_consistently(weights, r, c, beta):
    """Returns tokens, and numbers that are equal exactly if token and interval are."""
    intervals, levels = consistent_levels(weights, r, c, beta)
    tokens = np.argmin(levels, axis=-1)
    return tokens, np.take_along_axis(intervals, tokens[:, np.newaxis], axis=-1)[:, 0] * 4 + tokens


@given(pair=pairs(5))
@settings(max_examples=200)
def test_agreements_are_ordered(pair):
    p, q = pair
    best = 1 - total_variation(p, q)
    assert bound(p, q) - 1e-12 <= darts_agreement(p, q) <= race_agreement(p, q) + 1e-12 <= best + 2e-12


@given(pair=pairs(2))
@settings(max_examples=50)
def test_two_tokens_agree_as_often_as_possible(pair):
    best = pytest.approx(1 - total_variation(*pair), abs=1e-12)
    assert race_agreement(*pair) == best
    assert darts_agreement(*pair) == best


def test_equal_distributions_always_agree_and_disjoint_ones_never():
    for agreement in (race_agreement, darts_agreement, bound):
        assert agreement(P, P) == pytest.approx(1, abs=1e-12)
        assert agreement(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 0


def test_race_draws_from_both_distributions_and_agrees_as_the_formula_says():
    exponentials = np.random.default_rng(1).exponential(size=(DRAWS, 4))
    a, b = race(P, exponentials), race(Q, exponentials)
    assert_law(a, P)
    assert_law(b, Q)
    assert_agrees(a, b, race_agreement(P, Q))


def test_darts_draw_from_both_distributions_and_agree_as_the_formula_says():
    generator = np.random.default_rng(2)
    tokens, heights = generator.integers(0, 4, (DRAWS, 120)), generator.random((DRAWS, 120))
    a, b = (darts(np.broadcast_to(x, (DRAWS, 4)), tokens, heights) for x in (P, Q))
    # A dart misses with probability 3/4, so that 120 miss with probability 1e-15.
    assert_law(a, P)
    assert_law(b, Q)
    assert_agrees(a, b, darts_agreement(P, Q))
    assert darts(P[np.newaxis], np.array([[3]]), np.array([[0.5]]))[0] == -1


def test_a_race_with_exponentials_of_its_own_fails_the_test_of_agreement():
    generator = np.random.default_rng(1)
    a, b = race(P, generator.exponential(size=(DRAWS, 4))), race(Q, generator.exponential(size=(DRAWS, 4)))
    with pytest.raises(AssertionError):
        assert_agrees(a, b, race_agreement(P, Q))


@pytest.mark.parametrize("size", [3, 4, 5])
def test_no_protocol_without_messages_beats_the_bound_on_the_worst_pairs(size):
    """P_i is uniform on all tokens but i. A value of the public random numbers fixes a token f(i) != i for each i."""
    family = [np.array([0.0 if j == i else 1 / (size - 1) for j in range(size)]) for i in range(size)]
    pairs_of_family = list(itertools.combinations(range(size), 2))
    best = max(
        sum(f[i] == f[j] for i, j in pairs_of_family) / len(pairs_of_family)
        for f in itertools.product(range(size), repeat=size)
        if all(f[i] != i for i in range(size))
    )
    for i, j in pairs_of_family:
        assert bound(family[i], family[j]) == pytest.approx(best, abs=1e-12)
        assert race_agreement(family[i], family[j]) == pytest.approx(best, abs=1e-12)


@given(pair=pairs(6))
@settings(max_examples=100)
def test_race_agreement_equals_the_double_sum(pair):
    p, q = pair
    expected = sum(1 / sum(max(p[j] / p[i], q[j] / q[i]) for j in range(6)) for i in range(6) if p[i] > 0 and q[i] > 0)
    assert race_agreement(p, q) == pytest.approx(expected, abs=1e-12)


def test_maximal_coupling_draws_from_both_distributions_and_agrees_as_often_as_possible():
    a, b = maximal(P, Q, np.random.default_rng(4), DRAWS)
    assert_law(a, P)
    assert_law(b, Q)
    assert_agrees(a, b, 1 - total_variation(P, Q))
    same, equal = maximal(P, P, np.random.default_rng(5), 1000)
    assert (same == equal).all()
    never = maximal(np.array([1.0, 0]), np.array([0, 1.0]), np.random.default_rng(6), 1000)
    assert (never[0] == 0).all() and (never[1] == 1).all()


def test_keyed_darts_draw_from_both_distributions_and_agree_as_the_formula_says():
    requests = np.arange(DRAWS)
    a, b = (keyed_darts(x, seed_words(3), requests, 5) for x in (P, Q))
    assert_law(a, P)
    assert_law(b, Q)
    assert_agrees(a, b, darts_agreement(P, Q))
    np.testing.assert_array_equal(keyed_darts(P, seed_words(3), requests[7:9], 5), a[7:9])
    # Planted: another seed, or another position, makes the parties draw independently.
    for seed, position in ((4, 5), (3, 6)):
        with pytest.raises(AssertionError):
            assert_agrees(a, keyed_darts(Q, seed_words(seed), requests, position), darts_agreement(P, Q))


def test_keyed_darts_equal_the_first_hit_among_the_darts_of_the_same_words():
    p = np.random.default_rng(8).dirichlet(np.full(300, 0.2))
    drawn = keyed_darts(p, seed_words(9), np.arange(5), 2)
    for request in range(5):
        first, second = random_words(seed_words(9), Stream.DARTS, request, 2, np.arange(5000))
        for high, low in zip(first.view(np.uint32).tolist(), second.view(np.uint32).tolist(), strict=True):
            token, height = divmod(((high << 32) + low) * 300, 1 << 64)
            if height / 2**64 < p[token]:
                break
        assert drawn[request] == token


def test_keyed_darts_of_many_tokens_draw_from_the_distribution():
    # 40 draws from 2**18 tokens, of which one has half of the mass: a count of 3 or fewer has probability 1e-8.
    p = np.full(1 << 18, 0.5 / ((1 << 18) - 1))
    p[12345] = 0.5
    drawn = keyed_darts(p, seed_words(10), np.arange(40), 0)
    assert 4 <= np.sum(drawn == 12345) <= 36 and len(np.unique(drawn)) == 41 - np.sum(drawn == 12345)


def test_keyed_darts_refuse_more_tokens_than_their_words_resolve():
    with pytest.raises(ValueError, match="16777217 tokens: weighted MinHash takes at most 2\\^24"):
        keyed_darts(np.zeros((1 << 24) + 1), seed_words(0), [0], 0)


def test_draw_never_gives_tokens_of_weight_0():
    assert set(draw(np.array([0.0, 2, 0, 1, 0]), np.random.default_rng(0), 1000).tolist()) == {1, 3}


def test_consistent_samples_have_the_law_and_agree_on_token_and_interval_as_the_jaccard_similarity():
    generator, (p, q) = np.random.default_rng(11), FULL
    (r, c, other), beta = generator.gamma(2, 1, (3, DRAWS, 4)), generator.random((DRAWS, 4))
    (a, a_samples), (b, b_samples) = draw_consistently(p, r, c, beta), draw_consistently(q, r, c, beta)
    assert_law(a, p)
    assert_law(b, q)
    assert_agrees(a_samples, b_samples, bound(p, q))
    assert_agrees_as_weighted_min_hash_must(a, b, p, q)
    # Planted: a party with another c. Planted: c with another distribution, which a party cannot see in the agreement.
    with pytest.raises(AssertionError):
        assert_agrees_as_weighted_min_hash_must(a, draw_consistently(q, r, other, beta)[0], p, q)
    with pytest.raises(AssertionError):
        assert_law(draw_consistently(p, r, generator.exponential(size=(DRAWS, 4)), beta)[0], p)


def test_keyed_consistent_samples_have_the_law_and_agree_as_weighted_min_hash_must(monkeypatch):
    requests = np.arange(DRAWS)
    a, b = (keyed_consistent(x, seed_words(3), requests, 5) for x in (P, Q))
    assert_law(a, P)
    assert_law(b, Q)
    assert_agrees_as_weighted_min_hash_must(a, b, P, Q)
    np.testing.assert_array_equal(keyed_consistent(P, seed_words(3), requests[7:9], 5), a[7:9])
    np.testing.assert_array_equal(keyed_consistent(np.append(P, 0), seed_words(3), requests[:99], 5), a[:99])
    # Planted: another seed or position, or a party whose c is made from the words of other tokens.
    for seed, position in ((4, 5), (3, 6)):
        with pytest.raises(AssertionError):
            assert_agrees_as_weighted_min_hash_must(a, keyed_consistent(Q, seed_words(seed), requests, position), P, Q)
    numbers = couplings._consistent_numbers

    def shifted(*arguments):
        r, c, beta = numbers(*arguments)
        return r, np.roll(c, 1, axis=-1), beta

    monkeypatch.setattr(couplings, "_consistent_numbers", shifted)
    with pytest.raises(AssertionError):
        assert_agrees_as_weighted_min_hash_must(a, keyed_consistent(Q, seed_words(3), requests, 5), P, Q)


def test_keyed_consistent_samples_equal_the_least_quotient_of_the_same_words_in_chunks_too(monkeypatch):
    p = np.random.default_rng(8).dirichlet(np.full(300, 0.2))
    drawn = keyed_consistent(p, seed_words(9), np.arange(5), 2)
    for request in range(5):
        words = random_words(seed_words(9), Stream.CONSISTENT, request, 2, np.arange(600))
        uniform = [(word.view(np.uint32) + 0.5) / 2**32 for word in words]
        quotients = []
        for token in range(300):
            first, second = (-math.log(u[2 * token]) for u in uniform)
            c = -sum(math.log(u[2 * token + 1]) for u in uniform)
            r, beta = first + second, first / (first + second)
            y = math.exp(r * (math.floor(math.log(p[token]) / r + beta) - beta)) if p[token] else 0
            quotients.append(c / (y * math.exp(r)) if y else math.inf)
        assert drawn[request] == np.argmin(quotients)
    monkeypatch.setattr(couplings, "_AT_ONCE", 64)
    np.testing.assert_array_equal(keyed_consistent(p, seed_words(9), np.arange(5), 2), drawn)
