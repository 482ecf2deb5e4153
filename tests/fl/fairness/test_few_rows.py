"""Tests of the exact and the worst-case distribution of T where chance in a few rows decides it."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fl.fairness import few_rows, from_counts, variance, weighted_test
from fl.fairness.groups import GroupSums
from tests.fl.fairness.simulation import assert_rate, binary_sums
from tests.oracles import fairness as oracle


def exact_p(counts: list[int], weights: np.ndarray, ones: list[int]) -> float:
    """Returns the probability of at least the observed T over all divisions of the ones, by enumeration."""
    form = variance.build_form(np.array(counts, float), weights, None)

    def value(sums) -> float:
        groups = GroupSums(np.array(counts, float), np.array(sums, float), np.array(sums, float))
        return variance.estimate(form, groups, variance.overall_value(form, groups.sums))

    total = found = 0.0
    for sums in itertools.product(*(range(count + 1) for count in counts)):
        if sum(sums) == sum(ones):
            ways = math.prod(math.comb(count, one) for count, one in zip(counts, sums, strict=True))
            total += ways
            found += ways * (value(sums) >= value(ones) - 1e-12)
    return found / total


@pytest.mark.parametrize(
    ("counts", "weights", "ones"),
    [([2, 6, 9], [1, 1, 1], [2, 1, 2]), ([2, 30], [1, 1], [2, 8]), ([3, 3, 3], [1, 2, 3], [3, 0, 1])],
)
def test_p_value_is_that_of_all_divisions_of_the_ones(counts, weights, ones, monkeypatch):
    """9,999 divisions: the p-value lies within five standard errors of the enumeration."""
    monkeypatch.setattr(few_rows, "DIVISIONS", 9999)
    mass = np.array(weights) / sum(weights)
    expected = exact_p(counts, mass, ones)
    found = weighted_test(from_counts(counts, ones), alpha=0.5, weights=weights).p_value
    assert found == pytest.approx(expected, rel=0, abs=5 * np.sqrt(expected * (1 - expected) / 1e4) + 1e-4)


@pytest.mark.parametrize("method", ["shuffled", "drawn by group", "more rows than can be divided exactly"])
def test_divisions_have_the_mean_and_the_variance_of_the_enumeration(method, monkeypatch):
    counts, ones = np.array([2.0, 4.0, 6.0]), np.array([1.0, 1.0, 2.0])
    form = variance.build_form(counts, np.full(3, 1 / 3), None)
    monkeypatch.setattr(few_rows, "DIVISIONS", 9999)
    if method != "shuffled":
        monkeypatch.setattr(few_rows, "_MAX_LISTED", 0)
    if method.startswith("more"):
        monkeypatch.setattr(few_rows, "_MAX_ROWS", 0)
    values = few_rows.divide(form, GroupSums(counts, ones, ones))
    divided = (s for s in itertools.product(range(3), range(5), range(7)) if sum(s) == 4)
    chances, exact = [], []
    for sums in itertools.product(range(3), range(5), range(7)) if method.startswith("more") else divided:
        groups = GroupSums(counts, np.array(sums, float), np.array(sums, float))
        chances.append(np.prod([oracle.binomial(int(n), s, 1 / 3) for n, s in zip(counts, sums, strict=True)]))
        exact.append(variance.estimate(form, groups, variance.overall_value(form, groups.sums)))
    chance, outcome = np.array(chances) / sum(chances), np.array(exact)
    mean = chance @ outcome
    spread = chance @ (outcome - mean) ** 2
    assert values.mean() == pytest.approx(mean, rel=0, abs=5 * np.sqrt(spread / 9999))
    assert values.var() == pytest.approx(spread, rel=0.1)


# A group of few rows that counts as much as one of many, whose rate is that of all.
DOMINATED = [(2, 1, 0.35), (5, 1, 0.35), (20, 1, 0.2), (50, 1, 0.05), (2, 20, 0.3)]


def dominated(few: int, others: int) -> np.ndarray:
    return np.array([few, *[10**5] * others], float)


@pytest.mark.parametrize(("few", "others", "rate"), DOMINATED)
def test_level_holds_if_a_group_of_few_rows_dominates(few, others, rate):
    """The gamma distribution alone rejects in 0.123, 0.171, 0.079, 0.092 and 0.087 of the tests."""
    counts = dominated(few, others)
    weights = np.ones(len(counts))
    assert_rate(
        lambda rng: weighted_test(binary_sums(rng, counts, rate), alpha=0.8, weights=weights).rejects,
        0,
        0.05,
        1200,
        few,
    )


@pytest.mark.parametrize(("counts", "rate"), [(np.full(5, 3), 0.5), (np.full(100, 2), 0.05)])
def test_level_holds_for_few_rows_and_for_rare_losses(counts, rate):
    assert_rate(lambda rng: weighted_test(binary_sums(rng, counts, rate), alpha=0.9).rejects, 0.0, 0.05, 1500, 1)


@pytest.mark.parametrize("high", [0.15, 0.4, 0.9])
def test_bounds_hold_if_a_group_of_two_rows_differs(high):
    """Two rows of one group against a rate of 0.15 that is known: F_0 is half of the difference. Exact enumeration."""
    true = abs(high - 0.15) / 2
    missed = 0.0
    for ones in range(3):
        result = weighted_test(from_counts([2, 10**5], [ones, 15_000]), alpha=0.0, weights=[1, 1])
        missed += oracle.binomial(2, ones, high) * (not result.gap_low <= true <= result.gap_high)
    assert missed <= 0.05


def test_power_of_few_rows_is_a_lower_bound():
    counts, weights = np.array([40.0, 10**5]), [1, 1]
    sums = np.array([8.0, 2 * 10**4])
    stated: Any = weighted_test(GroupSums(counts, sums, sums), alpha=0.0, weights=weights, gap=0.35).power
    found = 0.0
    for ones in range(41):
        sums = np.array([ones, 2 * 10**4], float)
        result = weighted_test(GroupSums(counts, sums, sums), alpha=0.0, weights=weights)
        found += stats.binom.pmf(ones, 40, 0.9) * result.rejects
    assert 0 < stated <= found


def test_scores_of_two_rows_never_reject_by_their_own_spread():
    """Two rows that happen to be alike have no spread of their own; the worst case of scores stands in its place."""

    def rejects(rng: np.random.Generator) -> bool:
        few = rng.beta(2, 2, 2)
        powers = [np.array([(few**k).sum(), 1e5 * moment]) for k, moment in ((1, 0.5), (2, 0.3), (3, 0.2), (4, 1 / 7))]
        sums = GroupSums(np.array([2, 1e5]), powers[0], powers[1], 0.0, 1.0, powers[2], powers[3])
        return weighted_test(sums, alpha=0.5, weights=[1, 1]).rejects

    assert_rate(rejects, 0.0, 0.05, 1000, 1)


def test_many_rows_are_tested_as_before(monkeypatch):
    """Ordinary tables lose nothing: their p-value does not come from divisions."""
    monkeypatch.setattr(few_rows, "divide", lambda *arguments: pytest.fail("rows are not few"))
    assert weighted_test(from_counts([100, 100, 200], [20, 30, 90]), alpha=0.5).rejects


def test_smallest_p_value_is_one_over_the_divisions_and_a_level_below_never_rejects():
    result = weighted_test(from_counts([30, 30], [0, 30]), alpha=0.5, level=0.001)
    assert result.p_value == 1 / 200 and not result.rejects and result.critical_value == np.inf


@pytest.mark.parametrize("level", [0.05, 0.01])
def test_t_above_the_critical_value_rejects(level):
    for ones in range(21):
        result = weighted_test(from_counts([20, 2000], [ones, 600]), alpha=0.5, weights=[1, 1], level=level)
        assert result.rejects == (result.variance > result.critical_value)
