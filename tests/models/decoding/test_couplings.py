"""Couplings draw from each party's own distribution and agree as often as their exact formulas say."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2

from models.decoding.couplings import (
    bound,
    darts,
    darts_agreement,
    exchange,
    race,
    race_agreement,
    round_to_grid,
    total_variation,
)

P, Q = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.3, 0.4, 0.2])
DRAWS = 60_000


def pairs(size):
    weights = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 1)), min_size=size, max_size=size)
    return (
        st.tuples(weights, weights)
        .filter(lambda pair: all(sum(part) > 0 for part in pair))
        .map(lambda pair: tuple(np.array(part) / sum(part) for part in pair))
    )


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


def assert_law(tokens, probabilities):
    """Pearson's test; a true law fails with probability 1e-5 (fixed seed)."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert not counts[probabilities == 0].any()
    expected = len(tokens) * probabilities[probabilities > 0]
    statistic = np.sum((counts[probabilities > 0] - expected) ** 2 / expected)
    assert statistic < chi2.ppf(1 - 1e-5, len(expected) - 1)


def assert_agrees(a, b, expected):
    """Exact binomial test; a true agreement fails with probability 1e-5 (fixed seed)."""
    assert binomtest(int(np.sum(a == b)), len(a), expected).pvalue > 1e-5


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


@pytest.mark.parametrize("error", [0.5, 0.01])
def test_exchange_draws_from_both_distributions_and_nearly_reaches_the_best_agreement(error):
    generator = np.random.default_rng(3)
    found = [exchange(P, Q, error, generator) for _ in range(DRAWS)]
    a, b = np.array([one.alice for one in found]), np.array([one.bob for one in found])
    assert_law(a, P)
    assert_law(b, Q)
    rounded = round_to_grid(P, int(np.ceil(4 / error))) / np.ceil(4 / error)
    least = 1 - total_variation(P, Q) - 2 * total_variation(P, rounded)
    assert least >= 1 - total_variation(P, Q) - error
    # The agreement is at least `least`: a true one falls below by 4.5 standard deviations with probability 4e-6.
    assert np.mean(a == b) > least - 4.5 * np.sqrt(0.25 / DRAWS)
    bits = np.mean([one.bits for one in found])
    assert bits <= 2.05 * (2 + np.ceil(np.log2(np.ceil(4 / error) + 1)))


@given(pair=pairs(6), grid=st.integers(1, 1000))
@settings(max_examples=100)
def test_rounding_to_a_grid_keeps_the_sum_and_moves_no_entry_by_a_whole_unit(pair, grid):
    counts = round_to_grid(pair[0], grid)
    assert counts.sum() == grid and (counts >= 0).all()
    assert np.max(np.abs(counts - grid * pair[0])) < 1 + 1e-9


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


@pytest.mark.parametrize("error", [0, 1, float("nan"), -0.1])
def test_exchange_refuses_errors_out_of_range(error):
    with pytest.raises(ValueError, match="error = .*: must be above 0 and below 1"):
        exchange(P, Q, error, np.random.default_rng(0))
