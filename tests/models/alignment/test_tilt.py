"""Tilts have the values of the oracle, are optimal, invert their KL and reward, and keep their edges."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from models.alignment import BestOfN, Outcomes, RewindAndRepeat, SoftBestOfN, optimality, tilt_to_kl, tilt_to_reward
from models.alignment.outcomes import kl_divergence
from models.alignment.tilt import largest_kl, tilt, tilted_logits
from tests.oracles.selection import rewarded

P, R = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 1.0, 2.0, 4.0])
FOUR = Outcomes(P, R)


def test_the_example_of_the_oracle():
    found = tilt_to_kl(FOUR, 0.4)
    assert found.reward_weight == pytest.approx(0.6477776544, abs=1e-10)
    np.testing.assert_allclose(found.distribution, [0.2184771, 0.25054367, 0.23943063, 0.2915486], atol=5e-9)
    assert found.kl == pytest.approx(0.4, abs=1e-14)
    assert found.reward == pytest.approx(1.8955993377, abs=1e-10)
    assert largest_kl(FOUR) == pytest.approx(2.9957, abs=5e-5)
    gained = tilt_to_kl(FOUR, 0.4 + 1e-5).reward - tilt_to_kl(FOUR, 0.4 - 1e-5).reward
    assert gained / 2e-5 == pytest.approx(1 / found.reward_weight, rel=1e-6)
    assert 1 / found.reward_weight == pytest.approx(1.54373957, abs=1e-8)


def test_a_general_optimiser_finds_no_better_policy():
    def policy(x):
        return np.exp(x - np.logaddexp.reduce(x))

    found = minimize(
        lambda x: -policy(x) @ R,
        np.log(P) + [0.1, -0.2, 0.3, 0.1],
        constraints={"type": "ineq", "fun": lambda x: 0.4 - kl_divergence(policy(x), P)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert -found.fun == pytest.approx(tilt_to_kl(FOUR, 0.4).reward, abs=1e-8)


@settings(max_examples=60)
@given(rewarded(least=2, most=20), st.floats(0, 1))
def test_a_budget_is_met_and_inverted_by_the_reward(case, share):
    outcomes = Outcomes(*case)
    budget = share * largest_kl(outcomes)
    found = tilt_to_kl(outcomes, budget)
    if len(outcomes.levels) > 1 and budget < largest_kl(outcomes) - 1e-12:
        assert found.kl == pytest.approx(budget, rel=1e-7, abs=1e-12)
    assert kl_divergence(found.distribution, outcomes.probabilities) == pytest.approx(found.kl, rel=1e-7, abs=1e-12)
    assert found.distribution @ outcomes.rewards == pytest.approx(found.reward, abs=1e-8)
    assert tilt_to_reward(outcomes, found.reward).kl == pytest.approx(found.kl, rel=1e-5, abs=1e-9)


@settings(max_examples=60)
@given(rewarded(least=2, most=12), st.floats(0.01, 2), st.integers(0, 1000))
def test_closeness_is_an_identity_for_every_policy(case, budget, seed):
    outcomes = Outcomes(*case)
    found = tilt_to_kl(outcomes, budget)
    policy = np.random.default_rng(seed).dirichlet(np.ones(len(case[0]))) * (case[0] > 0)
    policy /= policy.sum()
    kl, reward = kl_divergence(policy, outcomes.probabilities), float(policy @ outcomes.rewards)
    if math.isfinite(found.reward_weight) and np.all(found.distribution[policy > 0] > 0):
        direct = kl_divergence(policy, found.distribution)
        assert found.divergence(kl, reward) == pytest.approx(direct, rel=1e-9, abs=1e-9)
    result = optimality(outcomes, kl, reward)
    assert result.lost_reward >= 0 and result.wasted_kl >= 0 and result.divergence >= 0
    assert result.least_kl <= kl + 1e-9


def test_edges_of_the_budget():
    np.testing.assert_array_equal(tilt_to_kl(FOUR, 0).distribution, P)
    assert tilt_to_kl(FOUR, 0).reward_weight == 0
    for budget in (largest_kl(FOUR), 100.0):
        found = tilt_to_kl(FOUR, budget)
        np.testing.assert_array_equal(found.distribution, [0, 0, 0, 1])
        assert found.reward_weight == math.inf and found.reward == 4
        assert found.kl == pytest.approx(-math.log(0.05))
    near = tilt_to_kl(FOUR, largest_kl(FOUR) - 1e-9)
    assert near.kl == pytest.approx(largest_kl(FOUR) - 1e-9, abs=1e-12)


def test_a_constant_reward_leaves_the_reference_at_every_budget():
    constant = Outcomes([0.25, 0.75], [3, 3])
    for found in (tilt_to_kl(constant, 0.7), tilt_to_reward(constant, 3)):
        np.testing.assert_array_equal(found.distribution, [0.25, 0.75])
        assert found.kl == 0 and found.reward_weight == 0


def test_ties_at_the_top_are_shared_as_under_the_reference():
    found = tilt_to_kl(Outcomes([0.6, 0.3, 0.1], [0, 1, 1]), 5.0)
    np.testing.assert_allclose(found.distribution, [0, 0.75, 0.25])
    assert found.kl == pytest.approx(-math.log(0.4))


@pytest.mark.parametrize("budget", [1e-200, 1e-60, 1e-30, 1e-14, 1e-10, 1e-6])
def test_tiny_budgets_have_the_weight_of_the_quadratic(budget):
    variance, found = P @ R**2 - (P @ R) ** 2, tilt_to_kl(FOUR, budget)
    assert found.reward_weight == pytest.approx(math.sqrt(2 * budget / variance), rel=2e-3 if budget > 1e-8 else 1e-4)
    assert found.kl == pytest.approx(budget, rel=1e-6)


def test_rewards_of_any_unit_have_the_same_policy():
    for unit in (1e-200, 1e-9, 1e12, 1e200):
        found = tilt_to_kl(Outcomes(P, unit * R), 0.4)
        np.testing.assert_allclose(found.distribution, tilt_to_kl(FOUR, 0.4).distribution, rtol=1e-12)


def test_rewards_below_the_reference_have_negative_weight():
    mean = float(P @ R)
    found = tilt_to_reward(FOUR, 0.3)
    assert found.reward_weight < 0 and found.reward == pytest.approx(0.3)
    assert tilt_to_reward(FOUR, 0).reward_weight == -math.inf
    assert tilt_to_reward(FOUR, 0).kl == pytest.approx(math.log(2))
    assert tilt_to_reward(FOUR, mean).reward_weight == 0


def test_how_far_best_of_n_is_from_optimal():
    report = BestOfN(4).report(FOUR)
    found = optimality(FOUR, report.kl, report.reward)
    policy, best = BestOfN(4).distribution(FOUR), tilt_to_kl(FOUR, report.kl)
    assert found.best_reward == pytest.approx(best.reward)
    assert found.divergence == pytest.approx(kl_divergence(policy, best.distribution), abs=1e-12)
    assert found.divergence == pytest.approx(best.reward_weight * found.lost_reward, abs=1e-12)
    assert optimality(FOUR, report.kl, found.best_reward).wasted_kl == pytest.approx(0, abs=1e-9)
    assert optimality(FOUR, 4.0, 4.0).wasted_kl == pytest.approx(4 - largest_kl(FOUR))
    assert optimality(FOUR, 4.0, 3.0).divergence == math.inf


def refusal(outcomes, kl, reward):
    """Returns the message with which a policy is refused, or None."""
    try:
        optimality(outcomes, kl, reward)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("size", [1, 10, 1000])
@pytest.mark.parametrize("unit", [1.0, 1e-12, 1e9])
@pytest.mark.parametrize("policy", [BestOfN(4), SoftBestOfN(4, 0.5), RewindAndRepeat(4, 0.1), BestOfN(10**6)])
def test_a_policys_own_report_is_accepted_whatever_rounding_made_of_it(size, unit, policy):
    generator = np.random.default_rng(size)
    for rewards in (np.full(size, 0.1), generator.integers(-2, 3, size) / 10, generator.normal(size=size)):
        outcomes = Outcomes(generator.dirichlet(np.ones(size)), rewards)
        report = policy.report(outcomes)
        scaled = Outcomes(outcomes.probabilities, rewards * unit)
        assert refusal(scaled, report.kl, report.reward * unit) is None
        found = optimality(scaled, report.kl, report.reward * unit)
        assert found.lost_reward >= 0 and found.wasted_kl >= 0 and found.divergence >= 0


def test_rewards_beyond_the_range_by_more_than_rounding_are_refused():
    for reward in (4 + 1e-8, -1e-8):
        with pytest.raises(ValueError, match="must be a finite number >= 0 and <= 4"):
            optimality(FOUR, 5.0, reward)


def test_tilted_logits_are_the_optimal_policy_of_independent_tokens():
    """Two tokens: the tilt of the sum of rewards is the product of the tilts."""
    pairs = Outcomes(np.outer(P, P).ravel(), np.add.outer(R, R).ravel())
    whole, one = tilt_to_kl(pairs, 0.8), tilt_to_kl(FOUR, 0.4)
    logits = tilted_logits(np.log(P) + 3, R, one.reward_weight)
    softmax = np.exp(logits - np.logaddexp.reduce(logits))
    assert whole.reward_weight == pytest.approx(one.reward_weight, rel=1e-12)
    np.testing.assert_allclose(whole.distribution, np.outer(softmax, softmax).ravel(), rtol=1e-12)
    batch = tilted_logits(np.stack([np.log(P), [0, 0, -np.inf, 0]]), R, 2.0)
    assert batch.shape == (2, 4) and batch[1, 2] == -np.inf and batch[1, 3] == 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tilt(FOUR, math.inf), "reward_weight = inf: must be a finite number"),
        (lambda: tilt_to_kl(FOUR, -0.1), "kl = -0.1: must be a finite number >= 0"),
        (lambda: tilt_to_kl(FOUR, math.nan), "kl = nan: must be a finite number >= 0"),
        (lambda: tilt_to_reward(FOUR, 4.1), "reward = 4.1: must be a finite number >= 0 and <= 4"),
        (lambda: optimality(FOUR, 0.4, 2.5), "reward = 2.5: must be at most 1.89559934 at kl = 0.4"),
        (lambda: tilted_logits([0.0, 1.0], [1.0], 1.0), r"token_rewards has shape \[1\]: must have shape \[2\]"),
        (lambda: tilted_logits(1.0, [1.0], 1.0), r"logits has shape \[\]"),
        (lambda: tilt(Outcomes([0.5, 0.5], [0, 1e10]), 1e300), r"reward_weight = 1e\+300: times 1e\+10, the span"),
        (lambda: tilted_logits([np.nan, 0.0], [1.0, 2.0], 1.0), "logits holds NaN or inf"),
        (lambda: tilted_logits([np.inf, 0.0], [1.0, 2.0], 1.0), "logits holds NaN or inf"),
        (lambda: tilted_logits(["a", "b"], [1.0, 2.0], 1.0), "logits is not an array of numbers"),
        (lambda: tilted_logits([0.0], [np.nan], 1.0), r"token_rewards\[0\] = nan"),
    ],
)
def test_tilts_refuse_what_is_outside_its_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
