"""Best-of-N of long texts has the values of the table and its limits; rates and cumulants are those of definitions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.alignment import Outcomes, best_of_n, tilt_to_kl
from models.alignment.asymptotics import (
    best_of_exponentially_many,
    rate_function,
    renyi_cross_entropy,
    scaled_cumulant,
    total_rewards,
)
from models.alignment.outcomes import kl_divergence
from models.alignment.tilt import tilt
from tests.oracles.selection import rewarded

P, R = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 1.0, 2.0, 4.0])
FOUR = Outcomes(P, R)
TABLE = {
    1: (1.07492, 0.04446, 0.07032, 0.1761, 0.17608),
    5: (1.49367, 0.22346, 0.22707, 0.4191, 0.08382),
    10: (1.64495, 0.29959, 0.30183, 0.6195, 0.06195),
    20: (1.74731, 0.34867, 0.35002, 0.8947, 0.04473),
    50: (1.82344, 0.37939, 0.38000, 1.3064, 0.02613),
    100: (1.85444, 0.38968, 0.39000, 1.6341, 0.01634),
    200: (1.87242, 0.39483, 0.39500, 1.9693, 0.00985),
    400: (1.88270, 0.39742, 0.39750, 2.3090, 0.00577),
}


@pytest.mark.parametrize("tokens", TABLE)
def test_best_of_exponentially_many_has_the_values_of_the_table(tokens):
    found = best_of_exponentially_many(FOUR, tokens, 0.4)
    values = found.reward, found.kl, found.kl_bound, found.kl_to_tilt, found.kl_to_tilt / tokens
    digits = np.array([5, 5, 5, 4, 5])
    assert np.all(np.abs(np.subtract(values, TABLE[tokens])) <= 0.501 * 10.0**-digits)


@pytest.mark.parametrize(("tokens", "delta"), [(1, 0.4), (3, 0.0), (4, 1.7), (2, 2.99)])
def test_short_texts_agree_with_enumeration(tokens, delta):
    texts = list(itertools.product(range(4), repeat=tokens))
    p = np.array([np.prod(P[list(text)]) for text in texts])
    outcomes = Outcomes(p / p.sum(), [R[list(text)].sum() for text in texts])
    found, n = best_of_exponentially_many(FOUR, tokens, delta), math.exp(tokens * delta)
    policy = best_of_n.level_distribution(outcomes, n)
    assert found.kl * tokens == pytest.approx(best_of_n.kl(outcomes, n), abs=1e-12)
    assert found.reward * tokens == pytest.approx(policy @ outcomes.levels, rel=1e-12)
    best = tilt_to_kl(outcomes, tokens * delta)
    assert found.kl_to_tilt == pytest.approx(kl_divergence(policy, outcomes.gather(best.distribution)), abs=1e-10)


def test_the_divergence_from_the_tilt_grows_as_half_the_logarithm_of_the_length():
    grown = [best_of_exponentially_many(FOUR, m, 0.4).kl_to_tilt for m in (100, 400)]
    assert grown[1] - grown[0] == pytest.approx(math.log(4) / 2, abs=0.03)


def test_counts_beyond_the_range_of_floats_are_computed():
    found = best_of_exponentially_many(FOUR, 400, 2.99)
    assert found.log_n == pytest.approx(1196)
    assert 3.9 < found.reward < 4 and 2.9 < found.kl < found.kl_bound <= 2.99


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_total_rewards_are_those_of_all_texts(tokens):
    outcomes = Outcomes([0.2, 0.5, 0.3], [-2, 1, 5])
    totals, logs = total_rewards(outcomes, tokens)
    expected: dict[float, float] = {}
    for text in itertools.product(range(3), repeat=tokens):
        total = float(outcomes.rewards[list(text)].sum())
        expected[total] = expected.get(total, 0.0) + np.prod(outcomes.probabilities[list(text)])
    assert list(totals) == sorted(expected)
    np.testing.assert_allclose(np.exp(logs), [expected[total] for total in totals], rtol=1e-13)


def test_total_rewards_far_below_the_range_of_floats_keep_their_logarithm():
    totals, logs = total_rewards(FOUR, 400)
    assert totals[-1] == 1600 and logs[-1] == pytest.approx(400 * math.log(0.05), rel=1e-13)
    assert np.logaddexp.reduce(logs) == pytest.approx(0, abs=1e-11)


def test_probabilities_of_mean_rewards_approach_the_rate():
    """At τ = 2.6 under the tilt: values of the oracle, in its digits."""
    tilted = Outcomes(tilt_to_kl(FOUR, 0.4).distribution, R)
    rate = rate_function(tilted, 2.6)
    assert rate == pytest.approx(0.1065995, abs=5e-8)
    for tokens, value in {50: 0.14668, 100: 0.12980, 200: 0.11985, 400: 0.11407, 800: 0.11076}.items():
        totals, logs = total_rewards(tilted, tokens)
        assert -np.logaddexp.reduce(logs[totals >= 2.6 * tokens - 1e-9]) / tokens == pytest.approx(value, abs=6e-6)


@settings(max_examples=40)
@given(rewarded(least=2, most=10), st.floats(0, 1), st.floats(-2, 2))
def test_the_rate_is_the_largest_of_all_linear_bounds(case, share, rho):
    outcomes = Outcomes(*case)
    tau = float(outcomes.levels[0] + share * (outcomes.levels[-1] - outcomes.levels[0]))
    tau = min(tau, float(outcomes.levels[-1]))
    rate = rate_function(outcomes, tau)
    assert rho * tau - scaled_cumulant(outcomes, rho) <= rate + 1e-7 * (1 + rate)


def test_edges_of_the_rate():
    assert rate_function(FOUR, float(P @ R)) == 0
    assert rate_function(FOUR, 4) == pytest.approx(-math.log(0.05))
    assert rate_function(FOUR, 0) == pytest.approx(math.log(2))
    assert rate_function(FOUR, 4.01) == rate_function(FOUR, -0.01) == math.inf


@given(st.integers(0, 10**6), st.floats(-3, 3))
def test_cumulants_of_log_probabilities_are_renyi_cross_entropies(seed, rho):
    generator = np.random.default_rng(seed)
    p, q = generator.dirichlet(np.ones(5)) + 1e-3, generator.dirichlet(np.ones(5)) + 1e-3
    p, q = p / p.sum(), q / q.sum()
    phi = tilt(Outcomes(p, np.log(q)), 0.7).distribution
    found = scaled_cumulant(Outcomes(phi, np.log(q)), rho)
    assert found == pytest.approx(-rho * renyi_cross_entropy(phi, q, 1 + rho), abs=1e-13)
    assert found == pytest.approx(math.log(phi @ q**rho), abs=1e-11)


def test_cross_entropy_of_order_one_is_shannons():
    q = np.array([0.1, 0.2, 0.3, 0.4])
    assert renyi_cross_entropy(P, q, 1) == pytest.approx(-P @ np.log(q))
    assert renyi_cross_entropy(P, q, 1 + 1e-7) == pytest.approx(-P @ np.log(q), rel=1e-6)
    for order in (1 + 1e-15, 1 - 1e-15, 1 + 1e-12, 1 + 9e-5):
        uniform = np.full(7, 1 / 7)
        assert renyi_cross_entropy(uniform, uniform, order) == pytest.approx(math.log(7), rel=1e-12)
    below, above = (renyi_cross_entropy(P, q, 1 + gap) for gap in (0.9999e-4, 1.0001e-4))
    assert below == pytest.approx(above, abs=1e-7)
    assert renyi_cross_entropy([0.5, 0.5], [1.0, 0.0], 1 - 1e-6) == math.inf
    assert renyi_cross_entropy([0.5, 0.5], [1.0, 0.0], 1) == math.inf
    assert renyi_cross_entropy([0.5, 0.5], [1.0, 0.0], 2) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: total_rewards(Outcomes(P, R / 3), 5), r"rewards has 0.333\d*: must be integers; multiply them"),
        (lambda: total_rewards(FOUR, 0), "tokens = 0: must be an integer >= 1"),
        (lambda: total_rewards(FOUR, 10**6), "tokens = 1000000: 1000000 × range 4 of rewards must be at most 1000000"),
        (lambda: best_of_exponentially_many(FOUR, 5, 3.0), "delta = 3.0: must be below 2.99573227, the largest KL"),
        (lambda: best_of_exponentially_many(FOUR, 5, -1.0), "delta = -1.0: must be a finite number >= 0"),
        (lambda: best_of_exponentially_many(Outcomes([0.5, 0.5], [1, 1]), 3, 0.0), "rewards are all equal"),
        (lambda: rate_function(FOUR, math.nan), "mean_reward = nan: must be a finite number"),
        (lambda: renyi_cross_entropy(P, [0.5, 0.5], 2), r"other has shape \[2\]: must have shape \[4\]"),
        (lambda: scaled_cumulant(FOUR, math.inf), "rho = inf: must be a finite number"),
    ],
)
def test_asymptotics_refuse_what_is_outside_its_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
