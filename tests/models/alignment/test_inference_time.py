"""The policy that is optimal under best-of-n is better than all others that are tried, and has the known limits."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from models.alignment import Outcomes, align_for_best_of_n, inference_time
from models.alignment.outcomes import kl_divergence
from tests.oracles.selection import enumerate_best

QUANTILES = Outcomes(np.full(400, 1 / 400), np.arange(400))


def objective(outcomes, policy, n, beta):
    """Returns win rate between best-of-n of both, less the price of KL, from the definition."""
    reference = np.diff(outcomes.at_most**n, prepend=0)
    chosen = np.diff(np.cumsum(policy) ** n, prepend=0)
    beaten = np.cumsum(reference) - reference / 2
    return chosen @ beaten - beta * kl_divergence(policy, outcomes.masses)


@pytest.fixture(scope="module")
def four():
    return align_for_best_of_n(QUANTILES, 4, 0.3)


def test_four_samples_at_the_price_of_the_oracle(four):
    assert four.objective == pytest.approx(0.729, abs=5e-4)
    assert four.objective == pytest.approx(objective(QUANTILES, four.distribution, 4, 0.3), abs=1e-12)
    quantiles = (np.arange(400) + 0.5) / 400
    tilts = np.exp(np.linspace(0, 40, 400)[:, np.newaxis] * (quantiles - 1))
    best = max(objective(QUANTILES, tilt / tilt.sum(), 4, 0.3) for tilt in tilts)
    assert best == pytest.approx(0.658, abs=5e-4)


def test_no_random_perturbation_is_better(four):
    generator = np.random.default_rng(0)
    for scale in (1e-3, 0.05, 1.0):
        for _ in range(60):
            walk = np.cumsum(generator.normal(size=400)) / 20
            other = four.distribution * np.exp(scale * walk)
            assert objective(QUANTILES, other / other.sum(), 4, 0.3) <= four.objective + 1e-10


def test_the_policy_is_the_tilt_of_the_transformed_rewards(four):
    tilt = np.exp(four.rewards / 0.3)
    np.testing.assert_allclose(four.distribution, tilt / tilt.sum(), atol=1e-6)
    assert four.rewards[-1] == 0 and np.all(np.diff(four.rewards) >= 0)


@pytest.mark.parametrize(("n", "tolerance"), [(2, 3e-4), (4, 5e-4), (16, 5e-3)])
def test_the_fixed_point_solves_the_differential_equation(n, tolerance):
    """(log F')' = n² (u F)^(n - 1) / β with F(0) = 0, and F(1) = 1 by shooting for F'(0)."""
    beta, edges = 0.3, (np.arange(400) + 1) / 400

    def path(log_slope):
        def derivatives(u, state):
            return np.exp(min(state[1], 50.0)), n**2 * (u * min(state[0], 2.0)) ** (n - 1) / beta

        return solve_ivp(derivatives, (0, 1), (0.0, log_slope), t_eval=edges, rtol=1e-9, atol=1e-12).y[0]

    slope = brentq(lambda log_slope: min(path(log_slope)[-1], 2.0) - 1, -3.0 * n, 0.0, xtol=1e-9)
    found = np.cumsum(align_for_best_of_n(QUANTILES, n, beta).distribution)
    np.testing.assert_allclose(found, path(slope), atol=tolerance)  # of the grid


@pytest.mark.parametrize("beta", [0.05, 0.3, 5.0])
def test_for_one_sample_it_is_the_usual_tilt_of_the_quantile(beta):
    outcomes = Outcomes([0.2, 0.3, 0.1, 0.4], [0, 1, 1, 2])
    middle = np.array([0.1, 0.4, 0.4, 0.8])
    tilt = outcomes.probabilities * np.exp(middle / beta)
    found = align_for_best_of_n(outcomes, 1, beta)
    np.testing.assert_allclose(found.distribution, tilt / tilt.sum(), atol=1e-9)
    np.testing.assert_allclose(found.rewards, middle - 0.8, atol=1e-12)


def test_win_rate_is_that_of_all_draws():
    p, rewards = np.array([0.2, 0.5, 0.3]), [0, 1, 2]
    found = align_for_best_of_n(Outcomes(p, rewards), 3, 0.2)
    ours, theirs = (enumerate_best(q, rewards, 3) for q in (found.distribution, p))
    pairs = np.outer(ours, theirs)
    assert found.win_rate == pytest.approx(np.tril(pairs, -1).sum() + np.trace(pairs) / 2, abs=1e-13)
    assert found.kl == pytest.approx(kl_divergence(found.distribution, p), abs=1e-13)


def test_a_high_price_leaves_the_reference():
    found = align_for_best_of_n(QUANTILES, 8, 1e6)
    np.testing.assert_allclose(found.distribution, QUANTILES.masses, rtol=1e-5)


@pytest.mark.parametrize(
    ("n", "beta", "message"),
    [
        (0, 0.3, "n = 0: must be an integer >= 1"),
        (10**400, 0.3, "n = 10+: must be a finite number"),
        (2, 0.0, "beta = 0.0: must be a finite number > 0"),
        (2, np.nan, "beta = nan: must be a finite number > 0"),
    ],
)
def test_what_is_outside_its_range_is_refused(n, beta, message):
    with pytest.raises(ValueError, match=message):
        align_for_best_of_n(QUANTILES, n, beta)


def test_a_fixed_point_that_is_not_reached_is_refused(monkeypatch):
    monkeypatch.setattr(inference_time, "_ITERATIONS", 5)
    with pytest.raises(ValueError, match="beta = 0.3: no fixed point after 5 steps for n = 4; take a larger beta"):
        align_for_best_of_n(QUANTILES, 4, 0.3)
