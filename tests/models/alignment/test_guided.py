"""Guided selection approaches the target's tilt as fast as its bound says, and is not lossless."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.alignment import Candidates, Outcomes, SoftBestOfN, approximate_guided_rewards
from models.alignment.guided import approximate_guided_kl_bound
from models.alignment.outcomes import kl_divergence
from tests.oracles.selection import rewarded

DRAFTER, TARGET, REWARDS = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6]), np.array([0.0, 1.0, 0.4])


def guided(drafter, target, rewards, n, temperature):
    """Returns distribution of the selection, and the tilt of the target."""
    tilt = target * np.exp((rewards - rewards.max()) / temperature)
    values = approximate_guided_rewards(rewards, np.log(target), np.log(drafter), temperature)
    return SoftBestOfN(n, temperature).distribution(Outcomes(drafter, values)), tilt / tilt.sum()


@settings(max_examples=60)
@given(rewarded(least=2, most=12), rewarded(least=2, most=12), st.integers(1, 1000), st.floats(0.3, 30))
def test_divergence_from_the_tilt_is_within_the_bound(case, other, n, temperature):
    size = min(len(case[0]), len(other[0]))
    drafter, target = ((x[:size] + 1e-3) / np.sum(x[:size] + 1e-3) for x in (case[0], other[0]))
    rewards = case[1][:size] / 100
    selected, tilt = guided(drafter, target, rewards, n, temperature)
    chi_squared = float(np.sum(target**2 / drafter)) - 1
    bound = approximate_guided_kl_bound(n, max(chi_squared, 0.0), float(np.ptp(rewards)), temperature)
    assert kl_divergence(tilt, selected) <= bound + 1e-9


def test_guided_selection_is_not_lossless_but_approaches_the_tilt():
    divergences = [kl_divergence(*reversed(guided(DRAFTER, TARGET, REWARDS, n, 1.0))) for n in (1, 10, 1000)]
    assert divergences[0] > 0.1
    assert 1e-8 < divergences[2] < 1e-6 < divergences[1] < 1e-2


def test_bound_keeps_the_distance_of_the_models_where_rewards_do_not_matter():
    """A bound without χ² would promise a target's distribution from one sample of the drafter."""
    selected, tilt = guided(DRAFTER, TARGET, 0 * REWARDS, 1, 1.0)
    np.testing.assert_allclose(selected, DRAFTER)
    chi_squared = float(np.sum(TARGET**2 / DRAFTER)) - 1
    assert 0.1 < kl_divergence(tilt, selected) <= approximate_guided_kl_bound(1, chi_squared, 0.0, 1.0)
    assert approximate_guided_kl_bound(1, chi_squared, 0.0, 1.0) == pytest.approx(math.log1p(chi_squared))


def test_bound_of_one_sample_is_that_of_its_formula():
    for n in (1, 2, 7):
        expected = math.log(1 + (1.5 * math.exp(2 * 0.3 / 0.5) - 1) / n)
        assert approximate_guided_kl_bound(n, 0.5, 0.3, 0.5) == pytest.approx(expected, rel=1e-13)


def test_samples_that_the_target_cannot_produce_are_never_selected():
    guided_rewards = approximate_guided_rewards([9.0, 1.0, 2.0], [-np.inf, -2.0, -1.0], [-0.1, -1.0, -1.0], 0.5)
    np.testing.assert_allclose(guided_rewards[1:], [0.5, 2.0])
    candidates, policy = Candidates("abc", guided_rewards), SoftBestOfN(3, 0.5)
    assert {policy.select(candidates, seed) for seed in range(200)} == {1, 2}
    chosen = policy.distribution(Outcomes([0.8, 0.1, 0.1], guided_rewards))
    assert chosen[0] == pytest.approx(0.8**3)  # only where nothing else was drawn


def test_bound_of_a_wide_range_of_rewards_is_finite():
    assert approximate_guided_kl_bound(4, 1.0, 1000.0, 1.0) == pytest.approx(2000 + math.log(2) - math.log(4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: approximate_guided_rewards([0], [-1, -1], [-1], 1.0), r"target_log_probabilities has shape \[2\]"),
        (lambda: approximate_guided_rewards([0], [-1], [1], 1.0), r"drafter_log_probabilities\[0\] = 1.0"),
        (lambda: approximate_guided_rewards([0], [np.nan], [-1], 1.0), r"target_log_probabilities\[0\] = nan"),
        (lambda: approximate_guided_rewards([0], [-np.inf], [-1], 1.0), "target_log_probabilities are all -inf"),
        (lambda: approximate_guided_rewards([np.nan], [-1], [-1], 1.0), r"rewards\[0\] = nan"),
        (lambda: approximate_guided_rewards([0], [-1], [-1], 0), "temperature = 0: must be a finite number > 0"),
        (lambda: approximate_guided_kl_bound(0, 1, 1, 1), "n = 0: must be an integer >= 1"),
        (lambda: approximate_guided_kl_bound(1, -1, 1, 1), "chi_squared = -1: must be a finite number >= 0"),
    ],
)
def test_guided_selection_refuses_what_is_outside_its_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
