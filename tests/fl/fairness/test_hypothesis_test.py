"""Tests of error probabilities and confidence by simulation, with fixed seeds.

Each comparison fails by chance with probability at most 1e-6 (`simulation.CHANCE`). The ranges allow for what the
approximations leave: at the level 0.05 the true level is between 0.03 and 0.065. Where few rows decide, it is at most
0.05 (`test_few_rows.py`).
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fl.fairness import (
    attribute_specific_test,
    cvar_gap,
    few_rows,
    from_counts,
    from_rows,
    holm,
    plan_weighted,
    variance,
    weighted_test,
)
from fl.fairness.groups import GroupSums
from tests.fl.fairness.simulation import CHANCE, assert_rate, binary_sums, shifted

ZIPF = 1 / np.arange(1, 401)
RUNS = 800


@pytest.mark.parametrize(
    ("counts", "rate", "most"),
    [
        (np.full(2, 60), 0.3, 0.065),  # one degree of freedom
        (np.full(5, 20), 0.2, 0.065),
        (np.full(200, 2), 0.15, 0.065),
        (np.arange(2, 102), 0.05, 0.065),
    ],
    ids=["two", "five", "pairs", "unequal"],
)
def test_level_of_the_test_for_given_counts(counts, rate, most):
    assert_rate(lambda rng: weighted_test(binary_sums(rng, counts, rate), alpha=0.9).rejects, 0.03, most, RUNS, 1)


@pytest.mark.parametrize("sums", [(140, 150, 190), (90, 100, 135), (150, 151, 152)])
def test_p_value_of_equally_many_rows_is_that_of_the_chi_square_test(sums):
    """The estimate is then the chi-square statistic of the table, up to scale and shift."""
    counts = np.full(3, 500)
    _, expected, _, _ = stats.chi2_contingency([sums, counts - sums])
    assert weighted_test(from_counts(counts, sums), alpha=0.5).p_value == pytest.approx(expected, rel=0.05)


def test_level_of_the_test_for_drawn_groups_of_which_most_have_no_row():
    plan = plan_weighted(ZIPF, alpha=0.5, gap=0.45)
    assert plan.rows < 400

    def rejects(rng: np.random.Generator) -> bool:
        counts = rng.multinomial(plan.rows, plan.probabilities)
        sums = binary_sums(rng, counts, 0.5)
        return weighted_test(sums, alpha=0.5, weights=ZIPF, probabilities=plan.probabilities).rejects

    assert_rate(rejects, 0.03, 0.065, RUNS, 2)


def test_level_of_the_test_where_rare_losses_hardly_ever_meet_in_a_group():
    """Skewness above 4: one row in two hundred has a loss, and each group has two rows."""
    counts = np.full(200, 2)
    assert_rate(lambda rng: weighted_test(binary_sums(rng, counts, 0.005), alpha=0.9).rejects, 0.0, 0.05, RUNS, 3)


def test_level_of_the_test_for_scores_whose_variances_differ_between_groups():
    counts = np.full(30, 12)

    def rejects(rng: np.random.Generator) -> bool:
        spread = np.where(np.arange(30) < 6, 0.5, 0.1)[:, np.newaxis]
        rows = 0.5 + spread * rng.uniform(-1, 1, (30, 12))
        return weighted_test(GroupSums(counts * 1.0, rows.sum(1), (rows**2).sum(1)), alpha=0.9).rejects

    assert_rate(rejects, 0.01, 0.065, RUNS, 4)


@pytest.mark.parametrize(("groups", "false_alarm", "miss"), [(100, 0.0037, 0.0210), (1600, 0.0020, 0.0050)])
def test_errors_at_the_threshold_halfway_are_those_of_the_specification(groups, false_alarm, miss):
    """3 √2 σ² √G / θ rows, rate 0.3, gap 0.2, α = 0.9; probabilities from 4,000 runs of another program, ± 0.005."""
    counts = np.full(groups, round(3 * 2**0.5 * 0.21 * groups**0.5 / 0.002 / groups))
    rates = shifted(groups, 0.1, 0.2, 0.3)
    results = {}
    for name, values in (("equal", np.full(groups, 0.3)), ("unequal", rates)):
        rng = np.random.default_rng(5)
        tests = (weighted_test(binary_sums(rng, counts, values), alpha=0.9, gap=0.2) for _ in range(RUNS))
        results[name] = sum(test.variance > 0.002 for test in tests)
    assert results["equal"] <= stats.binom.isf(1e-6, RUNS, false_alarm + 0.005)
    assert RUNS - results["unequal"] <= stats.binom.isf(1e-6, RUNS, miss + 0.005)
    assert weighted_test(binary_sums(rng, counts, rates), alpha=0.9, gap=0.2).threshold == pytest.approx(0.002)


@pytest.mark.parametrize("gap", [0.05, 0.12, 0.3])
def test_bounds_on_the_gap_hold_and_power_is_not_overstated(gap):
    rates, counts = shifted(40, 0.2, gap, 0.4), np.full(40, 30)
    true = cvar_gap(rates, counts, 0.8)
    stated: Any = weighted_test(binary_sums(np.random.default_rng(0), counts, 0.4), alpha=0.8, gap=true).power
    results = []

    def misses_above(rng: np.random.Generator) -> bool:
        results.append(weighted_test(binary_sums(rng, counts, rates), alpha=0.8))
        return results[-1].gap_high < true

    assert_rate(misses_above, 0.0, 0.05, RUNS, 6)
    assert sum(result.gap_low > true for result in results) <= stats.binom.isf(1e-6, RUNS, 0.05)
    assert sum(result.rejects for result in results) >= stats.binom.ppf(1e-6, RUNS, stated - 0.03)


def test_attribute_specific_test_keeps_its_level_and_its_bounds():
    """60 draws of 80 rows from 6,400 groups, a tenth of which has the gap 0.2: as in the specification's table."""
    rates, counts = shifted(6400, 0.1, 0.2, 0.3), np.full(60, 80)
    assert_rate(
        lambda rng: attribute_specific_test(binary_sums(rng, counts, 0.3), alpha=0.9).rejects, 0.03, 0.065, RUNS, 7
    )
    results = []

    def found(rng: np.random.Generator) -> bool:
        sums = binary_sums(rng, counts, rates[rng.integers(6400, size=60)])
        results.append(attribute_specific_test(sums, alpha=0.9, gap=0.2))
        return results[-1].variance > 0.002

    assert_rate(found, 0.867 - 0.02, 0.877 + 0.02, RUNS, 8)  # misses in 0.123 and 0.133 of the specification's runs
    true = cvar_gap(rates, np.ones(6400), 0.9)
    assert sum(result.gap_high < true for result in results) <= stats.binom.isf(1e-6, RUNS, 0.05)
    assert sum(result.gap_low > true for result in results) <= stats.binom.isf(1e-6, RUNS, 0.05)


def test_attribute_specific_estimate_is_the_mean_of_pairs_minus_the_mean_across_draws():
    sums, counts = np.array([1.0, 4.0, 0.0, 2.0]), np.array([3.0, 5.0, 2.0, 4.0])
    pairs = (sums * (sums - 1) / (counts * (counts - 1))).mean()
    means = sums / counts
    cross = (means.sum() ** 2 - (means**2).sum()) / 12
    assert attribute_specific_test(from_counts(counts, sums), alpha=0.5).variance == pytest.approx(pairs - cross)


def test_groups_with_one_row_are_left_out_and_counted():
    with_rest = weighted_test(from_counts([50, 50, 1, 0], [5, 16, 1, 0]), alpha=0.5, weights=[4, 4, 1, 1])
    without = weighted_test(from_counts([50, 50], [5, 16]), alpha=0.5)
    assert with_rest.untested_groups == 2
    assert with_rest.untested_weight == pytest.approx(0.2)
    assert dataclasses.replace(with_rest, untested_groups=0, untested_weight=0.0) == without


def test_results_are_in_the_unit_of_the_values():
    counts, sums = np.array([40.0, 50.0, 60.0]), np.array([4.0, 10.0, 30.0])
    ratio = weighted_test(from_counts(counts, sums, sums), alpha=0.5, gap=0.1)
    percent = weighted_test(from_counts(counts, 100 * sums, 1e4 * sums, bounds=(0, 100)), alpha=0.5, gap=10)
    assert percent.p_value == pytest.approx(ratio.p_value)
    for name, scale in (("overall", 100), ("gap_low", 100), ("gap_high", 100), ("variance", 1e4), ("threshold", 1e4)):
        assert getattr(percent, name) == pytest.approx(scale * getattr(ratio, name))


def test_rows_without_any_spread_do_not_reject():
    assert weighted_test(from_counts([5, 5], [0, 0]), alpha=0.5).p_value == 1
    assert weighted_test(GroupSums(*np.array([[5.0, 5], [1.5, 1.5], [0.45, 0.45]])), alpha=0.5).p_value == 1


@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.04, 0.3, 1.0]), min_size=1, max_size=6))
def test_holm_rejects_as_the_procedure_step_by_step(p_values):
    """The smallest p-value is compared with level / n, the next with level / (n - 1), until one fails."""
    adjusted = holm(p_values)
    for level in (0.005, 0.05, 0.2):
        rejected = set()
        for step, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
            if p_values[place] * (len(p_values) - step) > level:
                break
            rejected.add(place)
        assert set(np.flatnonzero(adjusted <= level).tolist()) == rejected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1}, r"alpha must lie in \[0, 1\), got 1"),
        ({"level": 0}, r"level must lie in \(0, 0.5\), got 0: 0.05 is usual"),
        ({"gap": float("nan")}, r"gap must lie in \(0, 1\], got nan"),
        ({"weights": [1, 0]}, "groups that have a weight and two rows or more: 1 of 2; at least two are needed"),
        ({"probabilities": [1, 1]}, "weights are missing: rows of drawn groups do not show"),
        (
            {"weights": [1, 1], "probabilities": [1, 0]},
            "probabilities must be above 0 for each group that has a weight",
        ),
        ({"weights": [1, 1], "probabilities": [1, 9]}, "probabilities do not fit the numbers of rows"),
    ],
)
def test_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        weighted_test(from_counts([50, 50], [5, 6]), **{"alpha": 0.5, **arguments})


def test_draw_with_one_row_is_refused():
    with pytest.raises(ValueError, match="draw 1 has fewer than two rows: collect more rows of its group"):
        attribute_specific_test(from_counts([2, 1, 2], [0, 0, 1]), alpha=0.5)


def test_alpha_beyond_every_weight_costs_nothing():
    sums, weights = from_counts([300, 300, 400], [60, 66, 100]), [0.3, 0.3, 0.4]
    near, least = (weighted_test(sums, alpha=alpha, weights=weights, gap=0.1) for alpha in (0.9999, 0.7))
    assert dataclasses.replace(near, alpha=0.7) == least
    assert least.power is not None and least.power > 0.5


def test_level_of_the_test_of_many_groups_is_close_to_the_stated_one():
    """60 groups of 40 rows, 20,000 tests. True levels below 0.038 and above 0.064 are excluded, each but for 1e-6.

    The critical value depends on the total alone, so that it is computed once for each total.
    """
    counts, runs = np.full(60, 40.0), 20_000
    form = variance.build_form(counts, counts / counts.sum(), None)
    sums = np.random.default_rng(12).binomial(40, 0.3, (runs, 60)).astype(float)
    values = few_rows.estimates(form, sums)
    totals, place = np.unique(sums.sum(1), return_inverse=True)
    first = [int(np.flatnonzero(place == i)[0]) for i in range(len(totals))]
    tests = [weighted_test(GroupSums(counts, sums[i], sums[i]), alpha=0.9) for i in first]
    np.testing.assert_allclose([test.variance for test in tests], values[first], rtol=0, atol=1e-12)
    hits = int((values > np.array([test.critical_value for test in tests])[place]).sum())
    least, most = stats.binom.ppf(CHANCE / 2, runs, 0.046), stats.binom.isf(CHANCE / 2, runs, 0.055)
    assert 0.038 < least / runs and most / runs < 0.064
    assert least <= hits <= most


def test_scores_near_0_and_1_are_found_as_losses_of_0_and_1_are():
    """300 groups of 2 rows, a tenth with a higher rate: the spread of each group alone said 4.5 times as much."""
    rates = np.where(np.arange(300) < 30, 0.6, 0.1)
    codes = np.repeat(np.arange(300), 2)

    def rejects(rng: np.random.Generator, jitter: float) -> bool:
        rows = np.abs((rng.random(600) < rates[codes]) - jitter * rng.random(600))
        return weighted_test(from_rows(rows, codes, 300), alpha=0.9).rejects

    assert_rate(lambda rng: rejects(rng, 0.0), 0.8, 1.0, 200, 1)
    assert_rate(lambda rng: rejects(rng, 0.01), 0.8, 1.0, 200, 1)


def test_power_of_drawn_groups_counts_the_chance_of_their_draw():
    """50 draws of 80 rows, half of them ones: the normal power by hand, with the spread of each of its three parts."""
    result = attribute_specific_test(from_counts(np.full(50, 80), np.full(50, 40)), alpha=0.9, gap=0.2)
    variance_of_gap = 0.1 * 0.2**2
    rows = 4 * 0.25 * np.sqrt(50 / 49) / (50 * 80) * variance_of_gap
    draws = 0.9 * 0.1 * 0.2**4 / 50
    spread = result.null_stddev**2 + rows + draws
    expected = stats.norm.cdf((variance_of_gap - result.critical_value) / np.sqrt(spread))
    assert result.power == pytest.approx(expected, rel=1e-9) and expected < 0.95


def test_scores_without_0_and_1_are_found_by_their_fourth_powers():
    """300 groups of 2 rows of 0.2, or 1 in one row of twenty: the spread of each group alone said ten times as much."""
    rates, codes = np.where(np.arange(300) < 30, 0.5, 0.05), np.repeat(np.arange(300), 2)

    def rejects(rng: np.random.Generator) -> bool:
        rows = np.where(rng.random(600) < rates[codes], 1.0, 0.2)
        return weighted_test(from_rows(rows, codes, 300), alpha=0.9).rejects

    assert_rate(rejects, 0.8, 1.0, 200, 1)
