"""Best-of-n's exact values, bounds and estimator agree with enumeration, tables of examples, and theorems."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from experiments.reproduce.best_of_n_theory import skewed
from models.alignment import BestOfN, Outcomes, best_of_n
from models.alignment.policy import kl_bound
from tests.oracles.selection import enumerate_best, rewarded, spread_kl

FOUR = Outcomes([0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3])
COUNTS = st.one_of(st.integers(1, 2048), st.floats(1, 1e6))


def uniform(size):
    return Outcomes(np.full(size, 1 / size), np.arange(size))


@pytest.mark.parametrize(
    ("n", "distribution", "kl", "bound", "estimate", "win_rate", "at_best"),
    [
        (2, [0.01, 0.08, 0.27, 0.64], 0.1760258740, 0.1931471806, 0.1880761964, 0.65, 0.1864380832),
        (3, [0.001, 0.026, 0.189, 0.784], 0.3826128535, 0.4319456220, 0.4044212639, 0.7175, 0.4002120519),
        (
            10,
            [1e-10, 5.9048e-6, 6.0407127e-3, 0.993953382],
            0.8810698249,
            1.4025850930,
            0.8866485547,
            0.7978822076,
            0.8854039632,
        ),
    ],
)
def test_four_outcomes_have_the_values_of_the_oracle(n, distribution, kl, bound, estimate, win_rate, at_best):
    np.testing.assert_allclose(best_of_n.level_distribution(FOUR, n), distribution, rtol=1e-8)
    assert best_of_n.kl(FOUR, n) == pytest.approx(kl, abs=1e-10)
    assert kl_bound(n) == pytest.approx(bound, abs=1e-10)
    assert best_of_n.expected_estimate(FOUR, n)[0] == pytest.approx(estimate, abs=1e-10)
    assert best_of_n.win_rate(FOUR, n) == pytest.approx(win_rate, abs=1e-10)
    assert best_of_n.kl_bounds(FOUR, n)[1] == pytest.approx(at_best, abs=1e-10)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_bounds_of_four_outcomes_are_those_of_their_formulas(n):
    hit = 1 - 0.6**n
    least = hit * math.log(hit / 0.4) + (1 - hit) * math.log((1 - hit) / 0.6)
    assert best_of_n.kl_bounds(FOUR, n)[0] == pytest.approx(least, rel=1e-12)
    squares = 0.01 + 0.04 + 0.09 + 0.16
    expected = max(0.5, n / (n + 1) - (n - 1) / 2 * squares), n / (n + 1)
    assert best_of_n.win_rate_bounds(FOUR, n) == pytest.approx(expected, rel=1e-12)
    assert best_of_n.kl_gap_bounds(FOUR, n)[1] == pytest.approx(2 * n * (n - 1) * squares, rel=1e-12)


@pytest.mark.parametrize("size", [7, 8, 9, 40])
def test_levels_computed_in_parts_have_the_same_distribution(size, monkeypatch):
    outcomes = uniform(size)
    monkeypatch.setattr(best_of_n, "AT_ONCE", 8)
    with np.errstate(all="ignore"):  # a level that is left out holds any number
        found = best_of_n.level_distribution(outcomes, 5)
    np.testing.assert_allclose(found, np.diff((np.arange(size + 1) / size) ** 5), rtol=1e-10)


def test_many_levels_have_the_distribution_of_powers():
    cumulative = np.arange(40_001) / 40_000
    found = best_of_n.level_distribution(uniform(40_000), 6)
    np.testing.assert_allclose(found, np.diff(cumulative**6), rtol=1e-7, atol=1e-20)


@pytest.mark.parametrize("n", [2, 16, 1000])
@pytest.mark.parametrize("rare", [1e-3, 1e-6, 1e-9, 1e-12, 1e-15, 1e-17, 1e-50])
def test_kl_of_a_rare_best_outcome_keeps_its_digits(rare, n):
    outcomes = Outcomes([1 - rare, rare], [0, 1])
    with mpmath.workdps(200):
        eps = mpmath.mpf(rare)
        missed = (1 - eps) ** n
        exact = float(missed * (n - 1) * mpmath.log(1 - eps) + (1 - missed) * mpmath.log((1 - missed) / eps))
    assert best_of_n.kl(outcomes, n) == pytest.approx(exact, rel=1e-11, abs=0)
    assert BestOfN(n).report(outcomes).kl == pytest.approx(exact, rel=1e-11, abs=0)


def test_three_of_four_outcomes_by_enumeration():
    found = enumerate_best(FOUR.probabilities, FOUR.rewards, 3)
    np.testing.assert_allclose(best_of_n.level_distribution(FOUR, 3), found, rtol=1e-13)
    assert best_of_n.kl(FOUR, 3) == pytest.approx(spread_kl(found, FOUR.probabilities), rel=1e-13)


@pytest.mark.parametrize(("n", "kl"), [(2, 0.130812), (4, 0.459356), (8, 0.667588), (16, 0.692963)])
def test_kl_of_two_equal_outcomes_saturates_while_the_bound_grows(n, kl):
    missed = 2.0**-n
    entropy = -missed * math.log(missed) - (1 - missed) * math.log1p(-missed)
    found = best_of_n.kl(uniform(2), n)
    assert found == pytest.approx(math.log(2) - entropy, abs=1e-15)
    assert found == pytest.approx(kl, abs=5e-7)


def test_kl_for_endlessly_many_samples_is_that_of_the_best_level():
    assert best_of_n.kl(uniform(2), 1e300) == pytest.approx(math.log(2), rel=1e-15)
    assert best_of_n.kl(FOUR, 1e300) == pytest.approx(-math.log(0.4), rel=1e-15)


@pytest.mark.parametrize(
    ("log_eps", "n", "value"),
    [
        (math.log(0.3), 5, 0.7447969699),
        (math.log(0.01), 50, 2.9280569067),
        (math.log(1e-4), 1000, 5.9087157112),
        (0.0, 7, 0.0),
        (-1e-300, 7, 0.0),
        (-1e-12, 2, 0.0),
        (-3.0, 1, 0.0),
        (-800.0, 16, kl_bound(16)),
        (-1e6, 10**5, kl_bound(10**5)),
    ],
)
def test_estimator_has_the_values_of_the_oracle(log_eps, n, value):
    assert best_of_n.kl_estimator([log_eps], n)[0] == pytest.approx(value, abs=1e-10)


def test_estimator_agrees_with_its_formula_in_many_digits():
    with mpmath.workdps(400):
        for log_eps in (-1e-9, -0.1, -0.5, -0.51, -2, -9, -30, -35, -45, -120):
            for n in (2, 3, 16, 1000, 10**5):
                eps, m = mpmath.exp(mpmath.mpf(log_eps)), mpmath.mpf(n)
                miss = (1 - eps) ** m
                value = miss * (mpmath.log(m) + (m - 1) * mpmath.log(1 - eps) - (m - 1) / m)
                value += (1 - miss) * mpmath.log((1 - miss) / eps)
                assert best_of_n.kl_estimator([log_eps], n)[0] == pytest.approx(float(value), rel=1e-13, abs=1e-14)


@pytest.mark.parametrize(("eps", "n"), [(0.3, 5), (0.01, 50), (0.7, 2)])
def test_estimator_is_the_kl_of_one_atom_above_a_continuum(eps, n):
    parts = 4000
    outcomes = Outcomes(np.append(np.full(parts, (1 - eps) / parts), eps), np.arange(parts + 1))
    assert best_of_n.kl(outcomes, n) == pytest.approx(best_of_n.kl_estimator([math.log(eps)], n)[0], abs=1e-5)


@given(st.floats(-50, 0), st.floats(0, 3), COUNTS)
def test_estimator_falls_as_the_probability_grows(log_eps, more, n):
    high, low = best_of_n.kl_estimator([log_eps - more, log_eps], n)
    assert low <= high + 1e-12


@settings(max_examples=200)
@given(rewarded(), COUNTS)
def test_inequalities_of_kl_gap_and_win_rate_hold(case, n):
    outcomes = Outcomes(*case)
    kl, bound, (least, most) = best_of_n.kl(outcomes, n), kl_bound(n), best_of_n.kl_bounds(outcomes, n)
    assert least - 1e-9 <= kl <= most + 1e-9
    assert most <= bound
    low, high = best_of_n.kl_gap_bounds(outcomes, n)
    assert low - 1e-9 <= bound - kl <= high + 1e-9
    low, high = best_of_n.win_rate_bounds(outcomes, n)
    assert low - 1e-12 <= best_of_n.win_rate(outcomes, n) <= high + 1e-12
    mean, deviation = best_of_n.expected_estimate(outcomes, n)
    assert kl - 1e-9 <= mean <= bound + 1e-12  # the left one is a conjecture
    assert deviation <= bound / 2 + 1e-12


@settings(max_examples=100)
@given(rewarded(), COUNTS)
def test_distribution_sums_to_one_and_joining_levels_lowers_the_kl(case, n):
    p, rewards = case
    outcomes = Outcomes(p, rewards)
    assert best_of_n.level_distribution(outcomes, n).sum() == pytest.approx(1, abs=1e-12)
    assert best_of_n.kl(Outcomes(p, np.floor(rewards)), n) <= best_of_n.kl(outcomes, n) + 1e-12
    assert best_of_n.kl(outcomes, 1) == pytest.approx(0, abs=1e-13)


def test_split_outcomes_of_equal_reward_change_nothing():
    """Else the KL of 100 copies of one outcome would look like that of 100 outcomes."""
    copies = Outcomes(np.append(np.full(100, 0.005), 0.5), np.append(np.zeros(100), 1.0))
    assert best_of_n.kl(copies, 4) == pytest.approx(best_of_n.kl(uniform(2), 4), rel=1e-13)
    assert best_of_n.win_rate(copies, 4) == pytest.approx(best_of_n.win_rate(uniform(2), 4), rel=1e-13)


UNIFORM_TABLE: dict[int, list[tuple[float, ...]]] = {
    10: [(1.361097, 1.378887), (2.302279, 2.302316), (2.302585, 2.302585)],
    100: [(1.402163, 1.402553), (3.574476, 3.589667), (4.604693, 4.604750), (4.605170, 4.605170)],
    1000: [(1.402581, 1.402585), (3.614754, 3.615131), (5.868100, 5.883078), (6.907258, 6.907317), (6.907755,)],
    10000: [
        (1.402585, 1.402585),
        (3.615166, 3.615170),
        (5.908339, 5.908716),
        (8.169788, 8.184745),
        (9.209841, 9.209900),
    ],
}


@pytest.mark.parametrize("size", UNIFORM_TABLE)
def test_uniform_outcomes_have_the_values_of_the_table(size):
    outcomes = uniform(size)
    for power, values in enumerate(UNIFORM_TABLE[size], start=1):
        found = best_of_n.kl(outcomes, 10**power), best_of_n.expected_estimate(outcomes, 10**power)[0]
        np.testing.assert_allclose(found[: len(values)], values, atol=5.01e-7)


def test_rare_good_outcomes_have_the_values_of_the_table():
    outcomes = Outcomes([1 - 1e-2 - 1e-4, 1e-2, 1e-4], [0, 1, 2])
    counts = (2, 10, 10**2, 10**3, 10**4, 10**5)
    kls = (0.003882, 0.13536, 2.279945, 4.728488, 6.85847, 9.209632)
    means = (0.013288, 0.144561, 2.292871, 4.728665, 6.867959, 9.209691)
    for n, kl, mean in zip(counts, kls, means, strict=True):
        assert best_of_n.kl(outcomes, n) == pytest.approx(kl, abs=5.01e-7)
        assert best_of_n.expected_estimate(outcomes, n)[0] == pytest.approx(mean, abs=5.01e-7)


@pytest.mark.parametrize(
    ("n", "mean", "deviation", "kl"),
    [(4, 0.63418, 0.0019, 0.62805), (32, 2.0216, 0.207, 2.0137), (256, 3.8388, 1.107, 3.8237)],
)
def test_estimates_of_a_skewed_model_spread_as_in_the_oracle(n, mean, deviation, kl):
    outcomes = skewed()
    found = *best_of_n.expected_estimate(outcomes, n), best_of_n.kl(outcomes, n)
    digits = (5, 4, 5) if n == 4 else (4, 3, 4)
    assert np.all(np.abs(np.subtract(found, (mean, deviation, kl))) <= 0.51 * 10.0 ** -np.array(digits))


def test_gap_expansion_is_the_gap_where_outcomes_are_unlikely():
    outcomes = uniform(100)
    gap = kl_bound(10) - best_of_n.kl(outcomes, 10)
    assert gap == pytest.approx(4.218e-4, abs=5e-8)
    assert best_of_n.kl_gap_expansion(outcomes, 10) == pytest.approx(gap, rel=1e-4)
    assert best_of_n.kl_gap_bounds(outcomes, 10)[1] == pytest.approx(1.8)
    uneven = Outcomes(np.arange(1, 400) / np.arange(1, 400).sum(), np.arange(399))
    gap = kl_bound(8) - best_of_n.kl(uneven, 8)
    assert best_of_n.kl_gap_expansion(uneven, 8) == pytest.approx(gap, rel=1e-3)
    assert best_of_n.kl_gap_expansion(uneven, 1) == 0
    closed = 10 * 9**2 / (24 * 8 * 100**2)
    assert closed == pytest.approx(4.219e-4, abs=5e-8)
    assert best_of_n.kl_gap_expansion(outcomes, 10) == pytest.approx(closed, rel=1e-3)


@given(rewarded())
def test_win_rate_of_two_samples_has_its_closed_form(case):
    outcomes = Outcomes(*case)
    assert best_of_n.win_rate(outcomes, 2) == pytest.approx(2 / 3 - np.sum(outcomes.masses**3) / 6, abs=1e-13)


@pytest.mark.parametrize("n", [np.int64(5_000_000_000), np.uint8(200), 10**200, 1e200])
def test_bounds_of_integers_of_every_kind_are_those_of_floats(n):
    for function in (best_of_n.kl_gap_bounds, best_of_n.win_rate_bounds, best_of_n.kl_bounds):
        assert function(FOUR, n) == function(FOUR, float(n))
    assert 0 <= best_of_n.kl_gap_bounds(FOUR, n)[1]
    assert best_of_n.kl_gap_expansion(FOUR, n) == pytest.approx(0.0)


def test_gap_grows_with_the_logarithm_once_the_best_is_likely():
    gaps = [best_of_n.kl_gap_bounds(FOUR, n)[0] for n in (1e3, 1e6)]
    assert gaps[1] - gaps[0] == pytest.approx(math.log(1e3), abs=1e-2)


def test_estimate_is_the_mean_over_draws_with_its_standard_error():
    logs = np.log([0.4, 0.3, 0.4, 0.1])
    each = best_of_n.kl_estimator(logs, 3)
    found = best_of_n.estimate_kl(logs, 3)
    assert found.kl == pytest.approx(each.mean())
    assert found.standard_error == pytest.approx(np.std(each, ddof=1) / 2)
    assert found.bound == kl_bound(3) and found.draws == 4
    many = best_of_n.estimate_kl(np.tile(logs, 10), 3)
    half = 1.959964 * many.standard_error
    assert many.interval == pytest.approx((many.kl - half, many.kl + half))
    assert math.isnan(best_of_n.estimate_kl([-1.0], 3).standard_error)


@pytest.mark.parametrize(("draws", "is_given"), [(1, False), (4, False), (31, False), (32, True)])
def test_few_draws_have_no_interval(draws, is_given):
    """With probabilities 0.9, 0.07 and 0.03 and n = 16, a normal interval of four draws covers in half of all cases."""
    assert (best_of_n.estimate_kl(np.full(draws, -1.0), 16).interval is not None) == is_given


def test_interval_ends_at_zero_and_at_the_bound_and_holds_the_estimate():
    bound = kl_bound(16)
    low = best_of_n.estimate_kl([0.0] * 31 + [-50.0], 16)
    assert low.interval is not None and low.interval[0] == 0.0 < low.kl < low.interval[1] < bound
    high = best_of_n.estimate_kl([0.0] + [-50.0] * 31, 16)
    assert high.interval is not None and 0.0 < high.interval[0] < high.kl < bound == high.interval[1]
    for log_eps in (0.0, -0.3, -50.0):
        for draws in (32, 39, 100):
            found = best_of_n.estimate_kl([log_eps] * draws, 16)
            assert found.interval is not None and found.interval[0] <= found.kl <= found.interval[1]


@pytest.mark.parametrize(("draws", "least"), [(32, 330), (200, 360)])
def test_intervals_cover_the_expected_estimate_as_often_as_they_say(draws, least):
    """Of 400 intervals over 200 draws at least 360 cover; fewer have a probability below 1e-3 at 94 %.

    Over 32 draws, the fewest with an interval, at least 330: fewer have a probability below 1e-5 at 90 %.
    """
    outcomes, n = Outcomes([0.9, 0.07, 0.03], [0, 1, 2]), 16
    chosen, mean = best_of_n.level_distribution(outcomes, n), best_of_n.expected_estimate(outcomes, n)[0]
    drawn = np.random.default_rng(2).choice(3, size=(400, draws), p=chosen)
    covered = [
        low <= mean <= high
        for low, high in (best_of_n.estimate_kl(np.log(outcomes.masses[row]), n).interval or (1, 0) for row in drawn)
    ]
    assert sum(covered) >= least


def test_draws_needed_are_those_of_the_proof():
    """Chernoff: for M values in [0, bound] of mean μ, a relative error e has chance at most 2 e^(-M e² μ / 3 bound)."""
    draws = best_of_n.draws_needed(16, 1.0, 0.3, 0.1)
    assert 2 * math.exp(-draws * 0.3**2 / (3 * kl_bound(16))) <= 0.1
    assert 2 * math.exp(-(draws - 1) * 0.3**2 / (3 * kl_bound(16))) > 0.1


def test_draws_needed_suffice_in_the_worst_case_and_grow_with_log_n():
    """The worst case takes the values 0 and the bound only; then the sum is binomial."""
    n, kl, share, delta = 16, 1.0, 0.3, 0.1
    draws = best_of_n.draws_needed(n, kl, share, delta)
    chance = kl / kl_bound(n)
    low, high = math.ceil(draws * chance * (1 - share)), math.floor(draws * chance * (1 + share))
    assert binom.cdf(low - 1, draws, chance) + binom.sf(high, draws, chance) <= delta
    assert best_of_n.draws_needed(16**2, 1.0, share, delta) < 2.6 * draws
    assert best_of_n.draws_needed(n, kl, share, delta**2) < 2 * draws


@pytest.mark.parametrize("n", [0, 0.5, -3, np.nan, np.inf, 10**400, "4"])
@pytest.mark.parametrize(
    "function",
    [
        best_of_n.kl,
        best_of_n.level_distribution,
        best_of_n.kl_bounds,
        best_of_n.kl_gap_bounds,
        best_of_n.kl_gap_expansion,
        best_of_n.win_rate,
        best_of_n.win_rate_bounds,
        best_of_n.expected_estimate,
        lambda _, n: best_of_n.kl_estimator([-1.0], n),
        lambda _, n: best_of_n.estimate_kl([-1.0], n),
        lambda _, n: kl_bound(n),
    ],
)
def test_impossible_numbers_of_samples_are_refused(function, n):
    with pytest.raises(ValueError, match=r"n = .*: must be a finite number >= 1"):
        function(FOUR, n)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: best_of_n.kl_estimator([0.1], 3),
            r"log_probability\[0\] = 0.1: must be the logarithm of a probability",
        ),
        (lambda: best_of_n.estimate_kl([], 3), r"log_probability has shape \[0\]"),
        (lambda: best_of_n.draws_needed(1, 0.1, 0.1), "n = 1: must be a finite number > 1"),
        (lambda: best_of_n.draws_needed(4, 5.0, 0.1), "kl = 5.0: must be a finite number > 0 and <= 0.636"),
        (lambda: best_of_n.draws_needed(4, 0.1, 1e-170), "relative_error = 1e-170: needs too many draws for kl = 0.1"),
        (lambda: best_of_n.draws_needed(4, 1e-310, 0.1), "relative_error = 0.1: needs too many draws for kl = 1e-310"),
        (lambda: best_of_n.draws_needed(4, 0.5, 2.0), "relative_error = 2.0: must be a finite number > 0 and <= 1"),
    ],
)
def test_estimators_refuse_what_is_outside_its_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
