"""The exchange of few messages draws from both distributions and agrees as its exact formula says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoding.couplings import total_variation
from models.decoding.exchange import Messages, exchange, exchange_agreement, expected_bits, round_to_grid
from tests.oracles.distributions import assert_agrees, assert_law, pairs

P, Q = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.3, 0.4, 0.2])
UNEVEN = np.array([0.51, 0.29, 0.17, 0.03])  # error 0.5 makes a grid of 8, on which this is far from exact
DRAWS = 60_000


@pytest.mark.parametrize("p", [P, UNEVEN])
@pytest.mark.parametrize("max_exchanges", [1, 2, 20])
@pytest.mark.parametrize("error", [0.5, 0.01])
def test_exchange_draws_from_both_distributions_and_agrees_as_the_formula_says(p, max_exchanges, error):
    found = exchange(p, Q, error, np.random.default_rng(3), DRAWS, max_exchanges)
    assert_law(found.alice, p)
    assert_law(found.bob, Q)
    assert_agrees(found.alice, found.bob, exchange_agreement(p, Q, error))
    # A mean of bits is off by more than 5 standard errors with probability 6e-7.
    assert abs(found.bits.mean() - expected_bits(p, Q, error, max_exchanges)) < 5 * found.bits.std() / DRAWS**0.5


def test_bob_who_keeps_alices_token_too_often_fails_the_test():
    found = exchange(UNEVEN, Q, 0.5, np.random.default_rng(3), DRAWS)
    with pytest.raises(AssertionError):
        assert_law(np.where(np.arange(DRAWS) % 50 == 0, found.alice, found.bob), Q)
    with pytest.raises(AssertionError):
        assert_agrees(found.alice, found.bob, exchange_agreement(UNEVEN, Q, 0.5) + 0.02)


@given(pair=pairs(6), error=st.floats(0.001, 0.9))
@settings(max_examples=200)
def test_agreement_is_at_most_the_error_below_the_best(pair, error):
    p, q = pair
    best = 1 - total_variation(p, q)
    assert best - error - 1e-12 <= exchange_agreement(p, q, error) <= best + 1e-12


@given(pair=pairs(6), grid=st.integers(1, 1000))
@settings(max_examples=100)
def test_rounding_to_a_grid_keeps_the_sum_and_moves_no_entry_by_a_whole_unit(pair, grid):
    counts = round_to_grid(pair[0], grid)
    assert counts.sum() == grid and (counts >= 0).all()
    assert np.max(np.abs(counts - grid * pair[0])) < 1 + 1e-9


def test_no_draw_sends_more_bits_than_the_cap_allows():
    p = np.array([0.5, 0.5 - 1e-6, 1e-6])
    q = np.array([0.5 - 1e-6, 0.5, 1e-6])  # Bob's own draws are nearly always refused
    for max_exchanges in (1, 3, 20):
        found = exchange(p, q, 1e-4, np.random.default_rng(5), 2_000_000, max_exchanges)
        each, whole = 2 + 15 + 1, 3 * 15
        assert found.bits.max() <= max_exchanges * each + whole
        assert (found.bits == max_exchanges * each + whole).any()


@given(pair=pairs(6), error=st.floats(0.001, 0.9))
@settings(max_examples=200)
def test_mean_bits_are_at_most_two_rounds_and_one_probability(pair, error):
    p, q = pair
    messages = Messages.of(6, int(np.ceil(6 / error)))
    each = messages.token + messages.probability + 1
    assert each <= expected_bits(p, q, error) <= 2 * each + messages.probability
    # Planted: two rounds at most, so that the whole distribution is sent often.
    if 0.3 < total_variation(p, q) < 0.5 and error < 0.01:
        assert expected_bits(p, q, error, 2) > 2 * each


@pytest.mark.parametrize(
    ("size", "grid", "expected"),
    [(1, 2, (0, 2, 2)), (2, 3, (1, 2, 4)), (3, 4, (2, 3, 6)), (4, 255, (2, 8, 32)), (5, 256, (3, 9, 45))],
)
def test_messages_tell_all_tokens_and_probabilities_apart(size, grid, expected):
    messages = Messages.of(size, grid)
    assert messages == expected
    assert 2**messages.token >= size and 2**messages.probability >= grid + 1


def test_one_token_and_equal_distributions_need_one_round():
    found = exchange(np.ones(1), np.ones(1), 0.5, np.random.default_rng(0), 5)
    assert (found.alice == 0).all() and (found.bob == 0).all() and (found.bits == 3).all()
    halves = np.array([0.5, 0.5])
    assert exchange_agreement(halves, halves, 0.5) == 1
    found = exchange(halves, halves, 0.5, np.random.default_rng(0), 1000)
    assert (found.alice == found.bob).all() and len(set(found.bits.tolist())) == 1


@pytest.mark.parametrize("error", [0, 1, float("nan"), -0.1])
def test_exchange_refuses_errors_out_of_range(error):
    with pytest.raises(ValueError, match="error = .*: must be above 0 and below 1"):
        exchange(P, Q, error, np.random.default_rng(0), 1)


def test_exchange_refuses_grids_and_caps_out_of_range():
    with pytest.raises(ValueError, match=r"error = 1e-13: must be at least n / 2\^40 for n = 4 tokens"):
        exchange(P, Q, 1e-13, np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match="max_exchanges = 0: must be 1 or more"):
        exchange(P, Q, 0.1, np.random.default_rng(0), 1, 0)
