"""Tests of the CVaR of gaps and of its bounds by the variance of the groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.fairness.gaps import cvar, cvar_gap, gap_bounds, least_equal_alpha
from tests.oracles import fairness as oracle

GAPS, WEIGHTS = [0.3, 0.1, 0.0, 0.05], [0.1, 0.2, 0.4, 0.3]

# Gaps from a few values, so that many are equal.
CASES = st.lists(st.tuples(st.integers(0, 4).map(lambda k: k / 4), st.integers(1, 9)), min_size=1, max_size=8).flatmap(
    lambda groups: st.tuples(st.just(groups), st.floats(0, 0.99))
)


@pytest.mark.parametrize(("alpha", "expected"), [(0, 0.065), (0.5, 0.12), (0.8, 0.2), (0.9, 0.3), (0.95, 0.3)])
def test_cvar_splits_the_gap_at_the_boundary(alpha, expected):
    """Expected values by hand: at α = 0.8, half of the worst 0.2 has the gap 0.3 and half of it 0.1."""
    assert cvar(GAPS, WEIGHTS, alpha) == pytest.approx(expected, rel=1e-12)


@given(CASES)
def test_cvar_is_the_minimum_of_rockafellar_and_uryasev_also_with_equal_gaps(case):
    groups, alpha = case
    gaps, weights = (np.array(column, float) for column in zip(*groups, strict=True))
    expected = oracle.cvar(gaps, weights / weights.sum(), alpha)
    assert cvar(gaps, weights, alpha) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_cvar_ignores_groups_without_weight():
    assert cvar([0.9, 0.2, 0.1], [0, 1, 1], 0.99) == pytest.approx(0.2)


def test_cvar_gap_measures_from_the_weighted_mean():
    assert cvar_gap([0.1, 0.5], [3, 1], 0) == pytest.approx(0.75 * 0.1 + 0.25 * 0.3)


@given(CASES)
def test_bounds_by_the_variance_contain_the_gap(case):
    groups, alpha = case
    gaps, weights = (np.array(column, float) for column in zip(*groups, strict=True))
    variance = float(weights / weights.sum() @ gaps**2)
    low, high = gap_bounds(variance, variance, alpha, largest_gap=1.0)
    assert low - 1e-12 <= cvar(gaps, weights, alpha) <= high + 1e-12


def test_bounds_are_reached():
    """A gap of 0.4 in the worst tenth: the upper bound. Gaps of 1 in a part of it, or equal gaps: the lower one."""
    assert gap_bounds(0.1 * 0.16, 0.1 * 0.16, 0.9, 1.0)[1] == pytest.approx(cvar([0.4, 0.0], [0.1, 0.9], 0.9))
    assert gap_bounds(0.005, 0.005, 0.9, 1.0)[0] == pytest.approx(cvar([1.0, 0.0], [0.005, 0.995], 0.9))
    assert gap_bounds(0.04, 0.04, 0.9, 1.0)[0] == pytest.approx(cvar([0.2, 0.2], [0.5, 0.5], 0.9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1], [1.0], 1.0), r"alpha must lie in \[0, 1\), got 1.0: 0.9 looks at the worst tenth of the weight"),
        (([0.1], [1.0], float("nan")), r"alpha must lie in \[0, 1\), got nan"),
        (([0.1], [1.0], -0.1), r"alpha must lie in \[0, 1\), got -0.1"),
        (([0.1, np.nan], [1, 1], 0.5), "gaps hold nan: leave out groups without a value"),
        (([0.1, 0.2], [1], 0.5), r"weights have shape \(1,\): give one number for each of the 2 groups"),
        (([0.1, 0.2], [1, -1], 0.5), "weights hold -1.0: each must be a finite number of at least 0"),
        (([0.1, 0.2], [0, 0], 0.5), "weights add up to 0: give at least one group a number above 0"),
        (([], [], 0.5), r"gaps have shape \(0,\): give one number for each group"),
    ],
)
def test_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cvar(*arguments)


@given(CASES)
def test_alpha_beyond_every_weight_is_that_of_the_least_weight(case):
    """Whatever the gaps: F_α is the same number, and the bounds for the smaller α hold it."""
    groups, _ = case
    gaps, weights = (np.array(column, float) for column in zip(*groups, strict=True))
    mass = weights / weights.sum()
    for alpha in (1 - mass.min() / 2, 1 - mass.min() / 50):
        reached = least_equal_alpha(alpha, float(mass.min()))
        assert reached == pytest.approx(1 - mass.min(), rel=1e-12) and reached <= alpha
        value = cvar(gaps, weights, alpha)
        assert value == pytest.approx(cvar(gaps, weights, reached), rel=1e-9) == gaps.max()
        variance = float(mass @ gaps**2)
        low, high = gap_bounds(variance, variance, reached, largest_gap=1.0)
        assert low - 1e-12 <= value <= high + 1e-12
    assert least_equal_alpha(0.3, float(mass.min()) / 2) == min(0.3, 1 - mass.min() / 2)
    assert least_equal_alpha(0.3, 0.0) == 0.3
