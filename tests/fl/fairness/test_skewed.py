"""Tests of the approximation by three moments against distributions that it contains."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fl.fairness.skewed import quantile, tail_probability
from fl.fairness.variance import Moments


@pytest.mark.parametrize("degrees", [1, 3, 100])
def test_sum_of_squares_has_a_chi_square_distribution(degrees):
    """Its moments are 2 k and 8 k: the limit for groups of many rows."""
    for value in (0.1, 1.0, 4.0, 9.0):
        tail = tail_probability(value * degrees - degrees, Moments(2 * degrees, 8 * degrees))
        assert tail == pytest.approx(stats.chi2.sf(value * degrees, degrees), rel=1e-9)


def test_no_skewness_is_normal_and_much_skewness_is_bounded_by_cantelli():
    assert tail_probability(3.0, Moments(4.0, 0.0)) == pytest.approx(stats.norm.sf(1.5))
    assert tail_probability(3.0, Moments(4.0, -1.0)) == pytest.approx(stats.norm.sf(1.5))
    # Two values with mean 0, 10 with probability 1/101 and -0.1 otherwise: Cantelli's inequality is an equality.
    moments = Moments(100 / 101 + 0.01 * 100 / 101, 1000 / 101 - 0.001 * 100 / 101)
    assert moments.third / moments.variance**1.5 > 4
    assert tail_probability(10.0, moments) == pytest.approx(1 / 101)
    assert tail_probability(-0.1, moments) == 1


@given(st.floats(0.001, 0.4), st.floats(0, 6), st.floats(0.01, 10))
def test_quantile_inverts_the_tail_probability(probability, skewness, stddev):
    moments = Moments(stddev**2, skewness * stddev**3)
    assert tail_probability(quantile(probability, moments), moments) == pytest.approx(probability, rel=1e-6)


def test_no_variance_never_rejects():
    assert tail_probability(1e-18, Moments(1e-40, 0.0)) == 1 and quantile(0.05, Moments(0.0, 0.0)) == 0
    assert math.isfinite(tail_probability(1e-3, Moments(1e-12, 1e-18)))
