"""Tests of the estimate of the groups' variance: its value and its moments, by enumeration of all outcomes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.fairness import variance
from fl.fairness.groups import GroupSums, from_counts, from_rows
from tests.oracles import fairness as oracle

COUNTS, WEIGHTS = [2, 3, 4], np.array([0.5, 0.3, 0.2])


def estimate(sums: GroupSums, weights: np.ndarray, expected: np.ndarray | None = None) -> float:
    form = variance.build_form(sums.counts, weights, expected)
    return variance.estimate(form, sums, variance.overall_value(form, sums.sums))


def of_binary_sums(sums: np.ndarray) -> float:
    return estimate(from_counts(COUNTS, sums), WEIGHTS)


SCORES = st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=4), min_size=2, max_size=4)


@given(SCORES, st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_estimate_from_sums_is_that_of_all_pairs_of_rows(rows, weights):
    mass = np.array(weights[: len(rows)]) / sum(weights[: len(rows)])
    codes = np.repeat(np.arange(len(rows)), [len(group) for group in rows])
    sums = from_rows(np.concatenate(rows), codes, len(rows))
    assert estimate(sums, mass) == pytest.approx(oracle.variance_estimate(rows, mass), abs=1e-12)


@pytest.mark.parametrize("rates", [(0.3, 0.3, 0.3), (0.1, 0.6, 0.9)])
def test_estimate_has_no_bias_for_given_counts(rates):
    mean, _, _ = oracle.moments(COUNTS, rates, of_binary_sums)
    overall = WEIGHTS @ rates
    assert mean == pytest.approx(WEIGHTS @ (np.array(rates) - overall) ** 2, abs=1e-14)


@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_moments_of_equal_groups_are_those_of_all_outcomes(rate):
    """The third moment leaves out negative products of rows of two groups, which the oracle's matrix shows."""
    _, second, third = oracle.moments(COUNTS, [rate] * 3, of_binary_sums)
    form = variance.build_form(np.array(COUNTS, float), WEIGHTS, None)
    spread, skew = rate * (1 - rate), abs(1 - 2 * rate)
    computed = variance.null_moments(form, np.full(3, spread), skew)
    matrix = oracle.form_matrix(COUNTS, WEIGHTS)
    left_out = 4 * (skew * spread) ** 2 * (matrix[matrix < 0] ** 3).sum()
    assert computed.variance == pytest.approx(second, rel=1e-12)
    assert computed.third + left_out == pytest.approx(third, rel=1e-12)


def test_moments_of_many_groups_are_those_of_the_matrix():
    generator = np.random.default_rng(1)
    counts, weights = generator.integers(2, 6, 7), generator.dirichlet(np.ones(7))
    matrix = oracle.form_matrix(counts, weights)
    computed = variance.null_moments(variance.build_form(counts.astype(float), weights, None), np.full(7, 0.25), 0.0)
    assert computed.variance == pytest.approx(2 * 0.25**2 * np.trace(matrix @ matrix), rel=1e-12)
    assert computed.third == pytest.approx(8 * 0.25**3 * np.trace(matrix @ matrix @ matrix), rel=1e-12)


def test_pair_sum_of_a_poisson_number_of_rows_has_mean_and_variance_of_the_specification():
    """Var (P / λ²) = 2 (σ² + Δ²)² / λ² + 4 Δ² (σ² + Δ²) / λ = 0.6142 for λ = 0.7, L = 0.6, m = 0.3."""
    rate, rows, center = 0.6, 0.7, 0.3
    values = []
    for count, chance in enumerate(oracle.poisson(30, rows)):
        for total in range(count + 1):
            sums = GroupSums(np.array([count * 1.0]), np.array([total * 1.0]), np.array([total * 1.0]))
            pairs = (total - count * center) ** 2 - variance.centred_squares(sums, center)[0]
            values.append((pairs / rows**2, chance * oracle.binomial(count, total, rate)))
    mean = sum(value * p for value, p in values)
    assert mean == pytest.approx((rate - center) ** 2, rel=1e-9)
    assert sum((value - mean) ** 2 * p for value, p in values) == pytest.approx(0.6142040816, rel=1e-9)


def test_estimate_of_drawn_groups_has_little_bias():
    """Two groups with Poisson numbers of rows. Uncorrected, the error of m̂ would add a bias of first order."""
    weights, rate, expected = np.array([0.6, 0.4]), 0.3, np.array([3.6, 2.4])
    chances = [oracle.poisson(12, mean) for mean in expected]
    bias = 0.0
    for counts in itertools.product(range(13), repeat=2):
        if sum(counts):
            for sums, probability in oracle.outcomes(counts, [rate, rate]):
                value = estimate(GroupSums(np.array(counts, float), sums, sums), weights, expected)
                bias += chances[0][counts[0]] * chances[1][counts[1]] * probability * value
    first_order = rate * (1 - rate) * (weights**2 / expected).sum()
    assert abs(bias) < first_order / 5


def test_noise_variance_of_binary_rows_is_right_on_average():
    """2 Σ M_ij² E y_i² E y_j², y = X - m, with the true m: by enumeration, for groups that differ."""
    rates = np.array([0.1, 0.6, 0.9])
    center = float(WEIGHTS @ rates)
    form = variance.build_form(np.array(COUNTS, float), WEIGHTS, None)
    mean = 0.0
    for sums, probability in oracle.outcomes(COUNTS, rates):
        mean += probability * variance.noise_variance(form, from_counts(COUNTS, sums), center)
    seconds = np.repeat(rates * (1 - rates) + (rates - center) ** 2, COUNTS)
    assert mean == pytest.approx(2 * seconds @ oracle.form_matrix(COUNTS, WEIGHTS) ** 2 @ seconds, rel=1e-12)


def test_pair_squares_of_scores_are_on_average_the_products_of_variances():
    """Three rows with the values 0, 0.3 and 1, by enumeration; without fourth powers they are too large."""
    values, chances = np.array([0.0, 0.3, 1.0]), np.array([0.5, 0.3, 0.2])
    center = float(values @ chances)
    spread = float((values - center) ** 2 @ chances)
    exact = rough = 0.0
    for rows in itertools.product(range(3), repeat=3):
        chance = float(chances[list(rows)].prod())
        sums = from_rows(values[list(rows)], np.zeros(3, np.int64), 2)
        exact += chance * variance.pair_squares(sums, center)[0]
        rough += chance * variance.pair_squares(GroupSums(sums.counts, sums.sums, sums.squares), center)[0]
    assert exact == pytest.approx(6 * spread**2, rel=1e-12)
    assert rough > 1.3 * exact
