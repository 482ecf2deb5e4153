"""The integral of soft best-of-n agrees with enumeration, with many digits, and with its limits."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from models.alignment import BestOfN, Outcomes, SoftBestOfN, soft_best_of_n
from models.alignment.outcomes import kl_divergence
from tests.oracles.selection import enumerate_selection, rewarded

FOUR = Outcomes([0.1, 0.2, 0.3, 0.4], [0, 1, 0.3, 2])


def precise(outcomes, n, temperature):
    """Returns the distribution over levels by adaptive quadrature in many digits."""
    with mpmath.workdps(20):
        logs = [mpmath.mpf(float(r)) / mpmath.mpf(temperature) for r in outcomes.levels - outcomes.levels[-1]]
        p = [mpmath.mpf(float(x)) for x in outcomes.masses]
        points = sorted({-float(log) + shift for log in logs for shift in (-45 - math.log(n), -math.log(n), 0, 5)})

        def chance(i):
            def integrand(t):
                mean = sum(x * mpmath.exp(-mpmath.exp(log + t)) for x, log in zip(p, logs, strict=True))
                return mpmath.exp(logs[i] + t - mpmath.exp(logs[i] + t)) * mean ** (n - 1)

            return float(n * p[i] * mpmath.quad(integrand, points))

        return [chance(i) for i in range(len(p))]


def test_the_example_of_the_oracle_by_enumeration():
    found = SoftBestOfN(3, 0.7).distribution(FOUR)
    np.testing.assert_allclose(
        found, enumerate_selection(SoftBestOfN(3, 0.7), FOUR.probabilities, FOUR.rewards), atol=1e-14
    )


def test_three_outcomes_agree_with_many_digits():
    outcomes = Outcomes([0.9, 0.0999, 0.0001], [0, 1, 3])
    found = SoftBestOfN(10**5, 0.04).distribution(outcomes)
    np.testing.assert_allclose(found, precise(outcomes, 10**5, 0.04), atol=1e-12)


@pytest.mark.parametrize("n", [2, 37, 10**5])
@pytest.mark.parametrize("rare", [0.3, 1e-4, 1e-9])
@pytest.mark.parametrize("log_w", [0.01, 3.0, 25.0, 700.0])
def test_two_outcomes_agree_with_the_sum_over_counts(n, rare, log_w):
    """With k rare samples of weight w, one of them is selected with chance k w / (k w + n - k)."""
    counts = np.arange(n + 1)
    chances = counts / (counts + (n - counts) * math.exp(-log_w))
    expected = binom.pmf(counts, n, rare) @ chances
    found = SoftBestOfN(n, 1 / log_w).distribution(Outcomes([1 - rare, rare], [0, 1]))
    assert found[1] == pytest.approx(expected, rel=2e-10)
    assert found.sum() == pytest.approx(1, abs=1e-12)


@settings(max_examples=60)
@given(rewarded(), st.integers(1, 10**5), st.floats(-3.5, 6).map(lambda power: 10**power))
def test_distributions_sum_to_one_and_keep_to_the_bounds_of_kl(case, n, temperature):
    p, rewards = case
    outcomes, policy = Outcomes(p, rewards / 250), SoftBestOfN(n, temperature)
    chosen = policy.distribution(outcomes)
    assert chosen.sum() == pytest.approx(1, abs=1e-11)
    report = policy.report(outcomes)
    assert report.kl <= min(report.kl_bound, BestOfN(n).report(outcomes).kl) + 1e-9
    tilt = outcomes.masses * np.exp((outcomes.levels - outcomes.levels[-1]) / temperature)
    if np.all(tilt > 0):
        tilt /= tilt.sum()
        chi_squared = np.sum(tilt**2 / outcomes.masses) - 1
        assert kl_divergence(tilt, outcomes.gather(chosen)) <= math.log1p(chi_squared / n) + 1e-9


def test_limits_of_the_temperature_are_best_of_n_and_the_reference():
    best = BestOfN(5).distribution(FOUR)
    np.testing.assert_allclose(SoftBestOfN(5, 1e-3).distribution(FOUR), best, atol=1e-11)
    np.testing.assert_allclose(SoftBestOfN(5, 1e12).distribution(FOUR), FOUR.probabilities, atol=1e-11)
    np.testing.assert_array_equal(SoftBestOfN(1, 1.0).distribution(FOUR), FOUR.probabilities)


def test_nodes_computed_in_parts_give_the_same_distribution(monkeypatch):
    outcomes = Outcomes(np.full(40, 1 / 40), np.arange(40) / 10)
    whole = SoftBestOfN(6, 0.7).distribution(outcomes)
    monkeypatch.setattr(soft_best_of_n, "_ELEMENTS_AT_ONCE", 40 * 7)
    np.testing.assert_allclose(SoftBestOfN(6, 0.7).distribution(outcomes), whole, rtol=1e-13)


def test_wide_gaps_between_rewards_keep_the_error():
    """The nodes leave the gaps out."""
    outcomes = Outcomes([0.5, 0.3, 0.15, 0.05], [0, 1, 40_000, 90_000])
    found = SoftBestOfN(6, 1.0).distribution(outcomes)
    pair = outcomes.at_most[1] ** 6  # only the two lowest were drawn: the softmax decides between them
    expected = BestOfN(6).distribution(outcomes)
    np.testing.assert_allclose(found[2:], expected[2:], atol=1e-10)
    near = SoftBestOfN(6, 1.0).distribution(Outcomes([0.625, 0.375], [0, 1]))
    np.testing.assert_allclose(found[:2], pair * near, atol=1e-10)


def test_rewards_that_span_too_many_temperatures_are_refused():
    with pytest.raises(ValueError, match="temperature = 1e-06: must be at least 2e-05 for these rewards; use BestOfN"):
        SoftBestOfN(3, 1e-6).distribution(FOUR)
    with pytest.raises(ValueError, match="temperature = 1e-320: must be at least"):
        SoftBestOfN(3, 1e-320).distribution(FOUR)
