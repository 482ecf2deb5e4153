"""Outcomes join equal rewards, leave out what is never drawn, and refuse what is no distribution."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.alignment import Outcomes
from models.alignment.outcomes import kl_divergence, sum_divergence
from tests.oracles.selection import rewarded


@given(rewarded())
def test_levels_are_the_distinct_rewards_of_outcomes_that_are_drawn(case):
    p, rewards = case
    outcomes = Outcomes(p, rewards)
    expected: dict[float, float] = {}
    for reward, mass in zip(rewards, p, strict=True):
        expected[reward] = expected.get(reward, 0.0) + mass
    expected = {reward: expected[reward] for reward in sorted(expected) if expected[reward] > 0}
    assert list(outcomes.levels) == list(expected)
    np.testing.assert_allclose(outcomes.masses, list(expected.values()), rtol=1e-14)
    np.testing.assert_allclose(outcomes.at_most, np.cumsum(list(expected.values())), rtol=1e-14)
    np.testing.assert_allclose(outcomes.above, 1 - outcomes.at_most, atol=1e-14)
    np.testing.assert_allclose(outcomes.at_most - outcomes.below, outcomes.masses, atol=1e-14)


@given(rewarded())
def test_a_distribution_of_levels_is_shared_as_the_reference_and_gathered_again(case):
    p, rewards = case
    outcomes = Outcomes(p, rewards)
    np.testing.assert_allclose(outcomes.spread(outcomes.masses), p, atol=1e-15)
    np.testing.assert_allclose(outcomes.gather(p), outcomes.masses, rtol=1e-14)
    assert outcomes.win_rate(outcomes.masses) == pytest.approx(0.5, abs=1e-14)


def test_probability_above_a_level_keeps_its_digits():
    outcomes = Outcomes([1 - 1e-300, 1e-300], [0, 1])
    assert outcomes.above[0] == 1e-300


def test_outcomes_keep_their_rewards_when_the_caller_changes_the_array():
    rewards = np.array([0.0, 1.0])
    outcomes = Outcomes([0.5, 0.5], rewards)
    rewards[0] = 7.0
    assert list(outcomes.rewards) == list(outcomes.levels) == [0.0, 1.0]


@settings(max_examples=15)
@given(rewarded(least=2, most=8), st.floats(-12, 0))
def test_kl_divergence_keeps_its_digits_where_distributions_are_close(case, power):
    p = case[0][case[0] > 0]
    changes = 10.0**power * np.cos(np.arange(len(p)))
    log_ratios = changes - np.log(p @ np.exp(changes))
    with mpmath.workdps(60):
        weights = [mpmath.mpf(float(x)) for x in p]
        whole = sum(weights)
        changed = [w * mpmath.exp(mpmath.mpf(float(c))) for w, c in zip(weights, changes, strict=True)]
        z = sum(changed)
        exact = float(sum(q / z * mpmath.log(q / z / (w / whole)) for q, w in zip(changed, weights, strict=True)))
    found = sum_divergence(p * np.exp(log_ratios), p, log_ratios)
    assert found == pytest.approx(exact, rel=1e-6 if power < -8 else 1e-9, abs=1e-30)


def test_kl_divergence_is_infinite_only_where_the_reference_has_nothing():
    half = np.array([0.5, 0.5])
    assert kl_divergence(half, np.array([1.0, 0.0])) == np.inf
    assert kl_divergence(np.array([1.0, 0.0]), half) == pytest.approx(np.log(2))
    assert kl_divergence(np.array([0.5, 0.5]), np.array([1.0, 5e-324])) == pytest.approx(371.52689, abs=1e-5)


@pytest.mark.parametrize(
    ("probabilities", "rewards", "message"),
    [
        ([0.5, 0.6], [0, 1], "probabilities sums to 1.1: must sum to 1 within 1e-6; divide it by its sum"),
        ([1.5, -0.5], [0, 1], r"probabilities\[1\] = -0.5: must be a probability >= 0"),
        ([np.nan, 1], [0, 1], r"probabilities\[0\] = nan: must be a finite number"),
        ([0.5, 0.5], [0, np.nan], r"rewards\[1\] = nan: must be a finite number; leave that outcome out"),
        ([0.5, 0.5], [0, np.inf], r"rewards\[1\] = inf: must be a finite number"),
        ([0.5, 0.5], [0, 1, 2], r"rewards has shape \[3\]: must have shape \[2\]"),
        ([[0.5, 0.5]], [0, 1], r"probabilities has shape \[1, 2\]: must have shape \[K\], K >= 1"),
        ([0.5, 0.5], [-1e308, 1e308], r"rewards span from -1e\+308 to 1e\+308: divide them by a number"),
        ([0.5, 0.5], [0, 10**400], "rewards is not an array of numbers"),
        ([], [], r"probabilities has shape \[0\]: must have shape \[K\], K >= 1"),
        (["a"], [0], "probabilities is not an array of numbers"),
    ],
)
def test_outcomes_refuse_what_is_no_distribution_with_rewards(probabilities, rewards, message):
    with pytest.raises(ValueError, match=message):
        Outcomes(probabilities, rewards)
