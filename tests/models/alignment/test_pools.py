"""Estimates from one pool equal the means over all subsets of it, and so are unbiased."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.alignment import BestOfN, Outcomes, best_of_n_rewards, pass_at_k


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_rewards_of_best_of_n_are_means_over_all_subsets(rewards):
    found = best_of_n_rewards(rewards)
    for n in range(1, len(rewards) + 1):
        expected = np.mean([max(subset) for subset in itertools.combinations(rewards, n)])
        assert found[n - 1] == pytest.approx(expected, abs=1e-13)


def test_rewards_of_best_of_n_are_unbiased():
    """Over all pools of four draws, weighted by their probability."""
    p, rewards = np.array([0.2, 0.5, 0.3]), np.array([1.0, 0.0, 4.0])
    mean = np.zeros(4)
    for drawn in itertools.product(range(3), repeat=4):
        mean += np.prod(p[list(drawn)]) * best_of_n_rewards(rewards[list(drawn)])
    exact = [BestOfN(n).report(Outcomes(p, rewards)).reward for n in range(1, 5)]
    np.testing.assert_allclose(mean, exact, rtol=1e-13)


def test_weights_of_large_pools_keep_their_digits():
    """Against binomial coefficients in exact integers."""
    size, n = 300, 150
    rewards = np.random.default_rng(0).normal(size=size)
    weights = [math.comb(i - 1, n - 1) / math.comb(size, n) for i in range(1, size + 1)]
    assert best_of_n_rewards(rewards)[n - 1] == pytest.approx(np.sort(rewards) @ weights, rel=1e-12)


@pytest.mark.parametrize(("samples", "correct"), [(1, 0), (1, 1), (5, 2), (9, 9), (200, 7), (200, 1)])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(samples, correct):
    expected = [1 - math.comb(samples - correct, k) / math.comb(samples, k) for k in range(1, samples + 1)]
    np.testing.assert_allclose(pass_at_k(samples, correct), expected, atol=1e-13)


def test_pass_at_k_is_best_of_k_of_zeros_and_ones():
    np.testing.assert_allclose(pass_at_k(12, 3), best_of_n_rewards([1] * 3 + [0] * 9), atol=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_of_n_rewards([]), r"rewards has shape \[0\]: must have shape \[K\], K >= 1"),
        (lambda: best_of_n_rewards([1, np.nan]), r"rewards\[1\] = nan: must be a finite number"),
        (lambda: pass_at_k(0, 0), "samples = 0: must be an integer from 1 to 10000000"),
        (lambda: pass_at_k(10**12, 1), "samples = 1000000000000: must be an integer from 1 to 10000000"),
        (lambda: pass_at_k(3, 4), "correct = 4: must be an integer from 0 to 3"),
        (lambda: pass_at_k(3, 1.0), "correct = 1.0: must be an integer from 0 to 3"),
    ],
)
def test_pools_refuse_what_is_outside_its_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
