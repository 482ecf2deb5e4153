"""Tests of plans: their formulas, and by simulation that the planned rows keep both errors."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fl.fairness import (
    attribute_specific_test,
    max_gap_test,
    plan_attribute_specific,
    plan_max_gap,
    plan_weighted,
    sampling_probabilities,
    weighted_test,
)
from fl.fairness.planner import renyi_entropy
from tests.fl.fairness.simulation import assert_rate, binary_sums, shifted

ZIPF = 1 / np.arange(1, 401)
RUNS = 300


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=8), st.integers(0, 1000))
def test_sampling_probabilities_minimise_the_variance_of_equal_groups(weights, seed):
    mass = np.array(weights) / sum(weights)
    best = sampling_probabilities(mass)
    least = (mass**2 / best**2).sum()
    assert least == pytest.approx(math.exp(renyi_entropy(mass)), rel=1e-9)
    other = best * np.exp(0.1 * np.random.default_rng(seed).normal(size=len(mass)))
    other /= other.sum()
    assert (mass**2 / other**2).sum() >= least * (1 - 1e-12)


def test_entropy_is_that_of_the_specification():
    assert math.exp(renyi_entropy(np.ones(50))) == pytest.approx(50)
    assert math.exp(renyi_entropy(ZIPF) / 2) == pytest.approx(13.3, abs=0.05)


def test_rows_grow_with_the_root_of_the_groups_or_with_the_groups_or_not_at_all():
    small, large = np.ones(10_000), np.ones(1_000_000)
    case = {"alpha": 0.9, "gap": 0.1, "error": 0.05}
    weighted = plan_weighted(large, **case).rows / plan_weighted(small, **case).rows
    largest = plan_max_gap(large, **case).rows / plan_max_gap(small, **case).rows
    assert weighted == pytest.approx(10, rel=0.1)
    assert 50 < largest <= 100
    assert plan_attribute_specific(**case).rows < plan_weighted(small, **case).rows


@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_weighted_plan_keeps_both_errors(rate):
    """A tenth of 400 groups has the gap, in either direction, so that the overall rate stays."""
    plan = plan_weighted(np.ones(400), alpha=0.9, gap=0.2, error=0.05, rate=rate)
    rates = shifted(400, 0.1, 0.2, rate)

    def rejects(rng: np.random.Generator, values: np.ndarray) -> bool:
        sums = binary_sums(rng, rng.multinomial(plan.rows, plan.probabilities), values)
        result = weighted_test(sums, alpha=0.9, weights=np.ones(400), probabilities=plan.probabilities)
        return result.rejects

    assert_rate(lambda rng: rejects(rng, np.full(400, rate)), 0.03, 0.065, RUNS, 1)
    assert_rate(lambda rng: rejects(rng, rates), 0.94, 1.0, RUNS, 2)


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_weighted_plan_keeps_its_power_for_unequal_weights(which):
    """The largest or the smallest groups of Zipf weights, with half of the weight, have the gap 0.45."""
    plan = plan_weighted(ZIPF, alpha=0.5, gap=0.45, error=0.05)
    half = int(np.searchsorted(np.cumsum(ZIPF) / ZIPF.sum(), 0.5)) + 1
    place = np.arange(400)
    chosen = place < half if which == "largest" else place >= half - 1
    rates = 0.5 + 0.45 * chosen * np.where(place % 2 == 0, 1, -1)

    def rejects(rng: np.random.Generator) -> bool:
        sums = binary_sums(rng, rng.multinomial(plan.rows, plan.probabilities), rates)
        return weighted_test(sums, alpha=0.5, weights=ZIPF, probabilities=plan.probabilities).rejects

    assert_rate(rejects, 0.94, 1.0, RUNS, 3)


def test_attribute_specific_plan_keeps_both_errors():
    plan = plan_attribute_specific(alpha=0.9, gap=0.2, error=0.05, rate=0.3)
    rates, counts = shifted(6400, 0.1, 0.2, 0.3), np.full(plan.draws, plan.rows_per_draw)

    def rejects(rng: np.random.Generator, values: np.ndarray) -> bool:
        return attribute_specific_test(
            binary_sums(rng, counts, values[rng.integers(6400, size=plan.draws)]), alpha=0.9
        ).rejects

    assert_rate(lambda rng: rejects(rng, np.full(6400, 0.3)), 0.03, 0.065, RUNS, 4)
    assert_rate(lambda rng: rejects(rng, rates), 0.94, 1.0, RUNS, 5)


def test_max_gap_plan_finds_the_same_alternative():
    plan = plan_max_gap(np.ones(100), alpha=0.9, gap=0.2, error=0.05, rate=0.3)
    rates, counts = shifted(100, 0.1, 0.2, 0.3), np.full(100, plan.rows_per_group)
    assert_rate(lambda rng: max_gap_test(binary_sums(rng, counts, rates)).rejects, 0.85, 1.0, RUNS, 6)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"alpha": 1.0}, r"alpha must lie in \[0, 1\), got 1.0"),
        ({"gap": 0}, r"gap must lie in \(0, 1\], got 0: give the smallest gap that would matter"),
        ({"error": 0.5}, r"error must lie in \(0, 0.5\), got 0.5: 0.05 is usual"),
        ({"rate": 1}, r"rate must lie in \(0, 1\), got 1: leave it at 0.5 if it is not known"),
        ({"weights": [1, 0]}, "1 group has a weight: at least two are needed"),
        ({"gap": 1e-9}, "gap 1e-09 is below 0.0001, for which no one has the rows: give a larger gap"),
        (
            {"gap": 1e-4, "alpha": 1 - 1e-9, "weights": [1, 1e-9]},
            r"more than 1.1e\+15 rows would be needed: plan for a larger gap or a larger error",
        ),
    ],
)
def test_bad_argument_is_refused(case, message):
    arguments = {"weights": [1, 1], "alpha": 0.5, "gap": 0.1, **case}
    with pytest.raises(ValueError, match=message):
        plan_weighted(arguments.pop("weights"), **arguments)


@pytest.mark.parametrize("planner", [plan_weighted, plan_max_gap])
def test_plan_for_alpha_beyond_every_weight_is_that_for_the_largest_gap(planner):
    """With 1 - α below every weight, F_α is the largest gap, as for 1 - α equal to the least weight."""
    weights = [0.5, 0.3, 0.2]
    near, least = (planner(weights, alpha=alpha, gap=0.1).rows for alpha in (0.999, 0.8))
    assert near == least


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_weighted_plan_counts_the_larger_spread_of_rows_in_the_worst_groups(rate):
    """400 equal weights, where Σ w^(2/3) = 400^(1/3) and all w / π are 1: the miss is the error, by hand."""
    plan = plan_weighted(np.ones(400), alpha=0.9, gap=0.2, error=0.05, rate=rate)
    spread, target = rate * (1 - rate), 0.1 * 0.2**2
    second = spread + 0.2 * abs(1 - 2 * rate)
    noise = 0.9 * spread**2 + 0.1 * second**2
    stddev = np.sqrt(2 * noise * 400 / plan.rows**2 + 4 * second * target / plan.rows)
    assert stats.norm.cdf((plan.threshold - target) / stddev) == pytest.approx(0.05, rel=0.01)
