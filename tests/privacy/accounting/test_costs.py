"""Tests of the cost of single releases and of several together."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import costs, loss_grid
from privacy.accounting.costs import Account, Gaussian, Pure, calibrate, epsilon
from privacy.accounting.guarantee import EXACT, Guarantee, format_epsilon


@pytest.mark.parametrize(
    ("releases", "delta", "expected", "tolerance"),
    [
        # By dp-accounting 0.4.3's PLD at an interval of 1e-4, unless stated.
        ([Gaussian(1.0)], 1e-5, 4.3771781, 1e-6),  # exact curve
        ([Gaussian(10.0, 100)], 1e-5, 4.3771781, 1e-6),
        ([Gaussian(10.0, 50), Gaussian(20.0, 200)], 1e-5, 4.3771781, 1e-6),
        ([Gaussian(1.1, 14062, 256 / 60000)], 1e-5, 2.381686, 2e-3),
        ([Gaussian(2.0, 200, 0.05)], 1e-5, 1.560605, 1e-3),
        ([Gaussian(20.0), Pure(1 / 20), Gaussian(2.8, 200, 0.05)], 1e-5, 1.051233, 2e-3),
        ([Gaussian(2.8, 200, 0.05)], 1e-5, 1.016854, 1e-3),
        ([Pure(0.5), Pure(0.25)], 0, 0.75, 0),  # pure epsilons add up
        ([], 1e-6, 0.0, 0),
        ([], 0, 0.0, 0),
    ],
)
def test_epsilon_equals_known_values(releases, delta, expected, tolerance):
    assert epsilon(releases, delta) == pytest.approx(expected, rel=tolerance)
    assert epsilon(releases[::-1], delta) == pytest.approx(expected, rel=tolerance)


def test_pure_releases_compose_by_the_optimal_composition_theorem():
    """The optimal composition of k ε-DP releases (Kairouz, Oh and Viswanath 2015), by enumeration."""
    count, each, delta = 30, 0.1, 1e-6

    def delta_of(total):
        # Randomised response has losses (2 j - k) ε with binomial weights.
        p = math.exp(each) / (1 + math.exp(each))
        weights = {2 * j - count: math.comb(count, j) * p**j * (1 - p) ** (count - j) for j in range(count + 1)}
        return sum(w * max(0.0, -math.expm1(total - loss * each)) for loss, w in weights.items())

    spent = epsilon([Pure(each)] * count, delta)
    assert delta_of(spent) <= delta * (1 + 1e-6) and delta_of(spent * 0.99) > delta
    assert spent < count * each


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.01, 2), min_size=1, max_size=3), st.floats(0.5, 20), st.sampled_from([1e-9, 1e-5, 1e-2]))
def test_more_releases_cost_at_least_as_much_and_at_most_their_sum(pure, multiplier, delta):
    all_pure = [Pure(each) for each in pure]
    assert epsilon(all_pure, delta) <= math.fsum(pure) + 1e-12
    joint = epsilon([*all_pure, Gaussian(multiplier)], delta)
    alone = epsilon([Gaussian(multiplier)], delta)
    assert alone * (1 - 1e-3) - 1e-6 <= joint <= (alone + math.fsum(pure)) * (1 + 2e-3) + 1e-3


@pytest.mark.parametrize("order", [1.1, 2, 63])
@pytest.mark.parametrize("each", [1e-6, 0.1, 5.0, 800.0])
def test_renyi_divergence_of_pure_release_is_that_of_randomised_response(each, order):
    truth, lie = 1 / (1 + math.exp(-each)), math.exp(-each) / (1 + math.exp(-each))
    divergence = Pure(each).renyi(order)
    assert divergence <= each * (1 + 1e-9)
    if each < 10:  # else the powers overflow
        expected = math.log(truth**order * lie ** (1 - order) + lie**order * truth ** (1 - order)) / (order - 1)
        assert divergence == pytest.approx(expected, rel=1e-6, abs=1e-13)


def test_epsilon_is_least_of_three_bounds_and_names_it():
    cases: list[tuple[list[costs.Cost], float, str]] = [
        ([Gaussian(1.0)], 1e-5, "PLD"),
        ([Gaussian(2.0, 200, 0.05), Pure(0.1)], 1e-5, "PLD"),
        ([Gaussian(0.2, 1_000_000, 1e-5)], 1e-9, "RDP"),
        ([Pure(0.1)], 1e-15, "sum"),
        ([Pure(800.0)], 1e-5, "sum"),
    ]
    for releases, delta, accountant in cases:
        least = Account(delta).plus(releases).least
        assert least.accountant == accountant
        assert least.epsilon == epsilon(releases, delta) < math.inf
    assert 100 < epsilon([Gaussian(0.2, 1_000_000, 1e-5)], 1e-9) < 160


@pytest.mark.parametrize(
    "releases",
    [
        [Gaussian(0.003, 2350, 256 / 60_000)],
        [Gaussian(0.003), Pure(0.1)],
        [Gaussian(0.05, 10, 0.01), Pure(0.1)],
        [Gaussian(0.06, 1, 0.001)],
        [Gaussian(1e8, 1000, 0.1), Pure(1e-3)],
        [Gaussian(1.0, 10**9, 1e-6)],
        [Gaussian(1e8, 10**9, 0.5)],
    ],
)
def test_accounting_of_any_noise_uses_at_most_the_grid_points(releases, monkeypatch):
    """A fixed interval would need millions of grid points where the noise is small."""
    real_gaussian, grids = loss_grid.gaussian, []

    def gaussian(noise_multiplier, probability, interval):
        grids.append(loss_grid.largest_loss(noise_multiplier, probability) / interval)
        return real_gaussian(noise_multiplier, probability, interval)

    monkeypatch.setattr(loss_grid, "gaussian", gaussian)
    assert epsilon(releases, 1e-5) >= 0
    assert max(grids, default=0) <= loss_grid.FINE


def test_further_release_takes_one_convolution_and_equals_composing_all_at_once(monkeypatch):
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    real_compose, convolutions = PrivacyLossDistribution.compose, []

    def compose(*arguments):
        convolutions.append(arguments)
        return real_compose(*arguments)

    monkeypatch.setattr(PrivacyLossDistribution, "compose", compose)
    all_costs: list[costs.Cost] = [Gaussian(30.0 + i) if i % 2 else Pure(0.01 + i / 1000) for i in range(40)]
    account, spent = Account(1e-5), []
    for cost in all_costs:
        account = account.plus([cost])
        spent.append(account.least.epsilon)
    # All are composed anew only when the range of losses outgrows the grid; to do so each time would take 780.
    assert len(convolutions) <= 3 * len(all_costs)
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(epsilon(all_costs, 1e-5), rel=1e-4)
    convolutions.clear()
    longer = account.plus([Pure(0.001)])
    assert longer.least.epsilon > spent[-1] == account.least.epsilon
    assert len(convolutions) == 1
    assert account.plus([Pure(0.001)]).least == longer.least


def test_dp_event_is_that_of_dp_accounting():
    import dp_accounting as dp

    assert Gaussian(2.0).dp_event() == dp.GaussianDpEvent(2.0)
    sampled = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.05, dp.GaussianDpEvent(2.0)), 200)
    assert Gaussian(2.0, 200, 0.05).dp_event() == sampled
    accountant = dp.pld.PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(sampled)
    assert accountant.get_epsilon(1e-5) == pytest.approx(epsilon([Gaussian(2.0, 200, 0.05)], 1e-5), rel=1e-2)


def test_extreme_releases_have_a_bound_or_are_refused():
    assert epsilon([Pure(0.1)] * 200, 1e-14) == pytest.approx(20)
    assert epsilon([Pure(800.0)], 1e-5) == 800.0 and math.isinf(epsilon([Pure(800.0), Gaussian(1.0)], 1e-5))
    with pytest.raises(ValueError, match="delta 1e-14 is below 1e-12, too small for ε: give a larger one"):
        epsilon([Gaussian(1.0, 10, 0.1)], 1e-14)
    for target, delta in ((1.0, 0.1), (0.01, 0.01), (1e-5, 1e-5)):
        z = calibrate(lambda z: [Gaussian(z)], target, delta)
        assert epsilon([Gaussian(z)], delta) <= target
    assert format_epsilon(math.inf) == "inf"


def test_calibrate_keeps_budget_and_leaves_little():
    cases: list[tuple[float, Callable[[float], list[costs.Cost]]]] = [
        (1.0, lambda z: [Gaussian(20.0), Pure(0.05), Gaussian(z, 200, 0.05)]),
        (4.0, lambda z: [Gaussian(z, 40)]),
        (0.1, lambda z: [Gaussian(z)]),
    ]
    for target, build_costs in cases:
        z = calibrate(build_costs, target, 1e-5)
        assert 0.995 * target < epsilon(build_costs(z), 1e-5) <= target


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Pure(0), "epsilon must be"),
        (lambda: Pure(math.nan), "epsilon must be"),
        (lambda: Gaussian(0), "noise_multiplier must be"),
        (lambda: Gaussian(1, 0), "count must be"),
        (lambda: Gaussian(1, 1, 0), "sampling_probability must"),
        (lambda: Gaussian(1, 1, 1.1), "sampling_probability must"),
        (lambda: epsilon([Gaussian(1)], 0), "delta is 0 and a release has Gaussian noise"),
        (lambda: epsilon([Pure(1)], 1), "delta must lie"),
        (lambda: epsilon([Pure(1)], math.nan), "delta must lie"),
        (lambda: calibrate(lambda z: [Gaussian(z)], 0, 1e-5), "epsilon must be"),
        (lambda: calibrate(lambda z: [Pure(2.0), Gaussian(z)], 1, 1e-12), "out of reach: the other releases"),
        (lambda: calibrate(lambda z: [Gaussian(z)], 1e8, 1e-5), "asks for hardly any noise"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(act, message):
    with pytest.raises(ValueError, match=message) as error:
        act()
    assert "\n" not in str(error.value)


def test_format_epsilon_rounds_up():
    for value, text in (
        (0.12345, "0.124"),
        (1.0, "1.000"),
        (1.0011, "1.002"),
        (0.05, "0.0500"),
        (0, "0"),
        (12.34, "12.340"),
    ):
        assert format_epsilon(value) == text
        assert float(text) >= value
    guarantee = Guarantee("a sum", (Gaussian(1.0),), "replace-one", 1e-5, EXACT)
    assert str(guarantee).startswith(
        "epsilon 4.378 at delta 1e-05 (rho 0.500 of zCDP); unit record, replace-one; sampler: every record, once;"
    )
    assert str(guarantee).endswith("secure randomness, hardened against floating-point attacks")
    assert costs.epsilon(guarantee.costs, 1e-5) == guarantee.epsilon


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1 + 1e-12, "1.001"),  # was "1.000"
        (1.0000000000000002, "1.001"),
        (0.3, "0.300"),
        (0.1, "0.100"),
        (1e-12, "0.00000000000100"),
        (1e-13, "1e-13"),
        (1.0001e-13, "1.01e-13"),
        (1e-320, "1e-320"),
        (5e-324, "4.94e-324"),
        (1e6, "1000000.000"),
        (1234567.0, "1.24e+06"),
        (1e300, "1e+300"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
    ],
)
def test_format_epsilon_is_short_and_never_below_the_value(value, text):
    assert format_epsilon(value) == text
    assert float(text) >= value


@settings(max_examples=200, deadline=None)
@given(st.floats(5e-324, 1e308))
def test_format_epsilon_is_never_below_any_value(value):
    text = format_epsilon(value)
    assert float(text) >= value and len(text) <= 23


@pytest.mark.parametrize(
    ("epsilons", "total"),
    [([0.1] * 10, 1.0), ([0.1] * 3, 0.3), ([1.0, 1e-17], math.nextafter(1, 2)), ([1e-320, 1e-320], 2e-320), ([], 0.0)],
)
def test_add_up_sums_decimals_and_rounds_up(epsilons, total):
    assert costs.add_up(epsilons) == total == epsilon([Pure(each) for each in epsilons], 0)


@pytest.mark.parametrize("accountant", ["PLD", "RDP"])
def test_branches_of_an_account_cost_what_new_accounts_cost(accountant, monkeypatch):
    """A release that is probed and not taken must not change what its account or another branch costs."""
    if accountant == "RDP":
        monkeypatch.setattr(Account, "_pld_epsilon", lambda *_: math.inf)
    start: list[costs.Cost] = [Gaussian(8.0, 20, 0.05), Pure(0.01)]
    cheap, costly = Gaussian(50.0, 2, 0.05), Gaussian(0.8, 2, 0.5)
    account = Account(1e-5).plus(start)
    assert account.least.epsilon > 0
    for branch in ([cheap], [costly]):
        least, expected = account.plus(branch).least, Account(1e-5).plus([*start, *branch]).least
        assert least.accountant == expected.accountant == accountant
        assert least.epsilon == pytest.approx(expected.epsilon, rel=1e-4)  # the grids may differ
    further = account.plus([cheap]).plus([costly]).least
    assert further.epsilon == pytest.approx(epsilon([*start, cheap, costly], 1e-5), rel=1e-4)
