"""The optimal curve has the values of the table, bounds all policies, and is reached by tilts of quantiles."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.alignment import Outcomes
from models.alignment.outcomes import kl_divergence
from models.alignment.policy import kl_bound
from models.alignment.quantile_tilt import best_win_rate, least_kl, rejection_win_rate, tilted_quantile
from tests.oracles.selection import rewarded


@pytest.mark.parametrize(
    ("n", "win_rate", "kl", "least", "rejection"),
    [
        (2, 0.66667, 0.19315, 0.17265, 0.40547),
        (4, 0.8, 0.63629, 0.61688, 0.91629),
        (16, 0.94118, 1.83509, 1.83321, 2.14007),
        (64, 0.98462, 3.17451, 3.17439, 3.48124),
        (1000, 0.999001, 5.90876, 5.90875, 6.21561),
    ],
)
def test_best_of_n_the_optimum_and_rejection_have_the_values_of_the_table(n, win_rate, kl, least, rejection):
    assert n / (n + 1) == pytest.approx(win_rate, abs=5e-6)
    assert kl_bound(n) == pytest.approx(kl, abs=5.01e-6)
    assert least_kl(n / (n + 1)) == pytest.approx(least, abs=5.01e-6)
    assert rejection_win_rate(math.log((n + 1) / 2)) == pytest.approx(n / (n + 1), abs=1e-15)
    assert math.log((n + 1) / 2) == pytest.approx(rejection, abs=6e-6)


def test_rejection_costs_at_most_one_minus_log_two_nats_more_than_best_of_n():
    assert math.log((1e6 + 1) / 2) - kl_bound(1e6) == pytest.approx(1 - math.log(2), abs=1e-5)


@pytest.mark.parametrize("strength", [1e-9, 1e-3, 0.0199999, 0.02, 0.3, 5.0, 39.9, 40.1, 800.0, 1e6, 1e12, 1e100])
def test_win_rate_and_kl_are_those_of_the_density(strength):
    with mpmath.workdps(150):
        b = mpmath.mpf(strength)
        win_rate = 1 / (1 - mpmath.exp(-b)) - 1 / b
        kl = b * win_rate - b - mpmath.log(-mpmath.expm1(-b)) + mpmath.log(b)
        found = tilted_quantile(strength)
    assert found[0] == pytest.approx(float(win_rate), rel=1e-13)
    assert found[1] == pytest.approx(float(kl), rel=1e-10)


@given(st.floats(0, 20))
def test_the_least_kl_inverts_the_best_win_rate(kl):
    win_rate = best_win_rate(kl)
    if win_rate <= 1 - 1e-9:
        assert least_kl(win_rate) == pytest.approx(kl, rel=1e-6, abs=1e-12)


def test_ends_of_the_curve():
    assert best_win_rate(0) == 0.5 and least_kl(0.5) == 0
    for kl in (36.0, 40.0, 100.0, 699.0, 1000.0):
        assert 1 - best_win_rate(kl) == pytest.approx(math.exp(-kl - 1), abs=1.2e-16)
    assert best_win_rate(15.0) == pytest.approx(1 - math.exp(-16), abs=1e-15)


@settings(max_examples=60)
@given(rewarded(least=2, most=20), st.floats(0.05, 30))
def test_no_tilt_of_finite_outcomes_exceeds_the_curve(case, strength):
    outcomes = Outcomes(*case)
    middle = outcomes.below + outcomes.masses / 2
    tilted = outcomes.masses * np.exp(strength * (middle - 1))
    tilted /= tilted.sum()
    assert outcomes.win_rate(tilted) <= best_win_rate(kl_divergence(tilted, outcomes.masses)) + 1e-7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tilted_quantile(-1.0), "strength = -1.0: must be a finite number >= 0"),
        (lambda: best_win_rate(np.nan), "kl = nan: must be a finite number >= 0"),
        (lambda: least_kl(1.0), "win_rate = 1.0: must be a finite number >= 0.5 and <= 0.999999999"),
        (lambda: least_kl(0.4), "win_rate = 0.4: must be"),
        (lambda: rejection_win_rate(-0.1), "kl = -0.1: must be a finite number >= 0"),
    ],
)
def test_the_curve_refuses_what_is_outside_its_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
