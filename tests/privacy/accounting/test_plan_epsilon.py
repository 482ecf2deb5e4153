"""Tests of a plan's ε against published pairs, against other accountants and against our own quadrature."""

import dataclasses
import math
from importlib.metadata import version

import numpy as np
import pytest

from privacy import AdaptiveClip, Cyclic, FixedClip, FixedSize, Poisson, PrivacyPlan, accounting
from privacy.accounting import composition, costs, plan_epsilon
from privacy.noise import training as training_noise
from tests.oracles import accounting as oracle

# scipy 1.9 calls a function that is deprecated in NumPy 1.25.
pytestmark = pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")

STACK_OVERFLOW = 342_477


def plan(sampling, z, rounds, delta, population=60_000, clip=None):
    return PrivacyPlan(sampling, population, rounds, z, clip or FixedClip(1.0), delta)


DP_ACCOUNTING = version("dp-accounting")


# Computed outside this code with dp_accounting 0.4.3's own accountants under add-or-remove-one. The PLD's tolerance is
# the difference between the results at its two finest intervals.
@pytest.mark.parametrize(
    ("rate", "z", "rounds", "delta", "pld", "tolerance", "rdp", "order"),
    [
        (256 / 60_000, 1.1, 14_062, 1e-5, 2.381686, 1e-4, 2.596556, 8.1),
        (0.05, 2.0, 200, 1e-5, 1.560605, 1e-4, 1.721307, 10.6),
        (100 / STACK_OVERFLOW, 4.0, 1600, 1e-6, 0.009119, 1e-4, 0.029650, 256),
        (100 / STACK_OVERFLOW, 7.0, 1600, 1e-6, 0.004870, 1e-4, 0.013595, 512),
        (100 / STACK_OVERFLOW, 1.0, 1600, 1e-6, 0.060119, 4e-4, 0.677503, 16),
        (100 / STACK_OVERFLOW, 0.5, 1600, 1e-6, 2.630036, 2e-4, 3.930238, 4.1),
        (1000 / STACK_OVERFLOW, 1.0, 1600, 1e-6, 0.715803, 1e-4, 1.206058, 11),
        (1000 / STACK_OVERFLOW, 0.5, 1600, 1e-6, 7.681952, 1e-4, 9.103497, 2.7),
        (1000 / STACK_OVERFLOW, 4.0, 1600, 1e-6, 0.109782, 2e-4, 0.120449, 128),
    ],
)
def test_poisson_epsilon_equals_dp_accounting(rate, z, rounds, delta, pld, tolerance, rdp, order):
    spent = accounting.epsilon(plan(Poisson(rate), z, rounds, delta))
    assert spent.pld == pytest.approx(pld, abs=tolerance)
    # Later versions bound the divergence of fractional orders from above instead of computing it.
    assert rdp - 1e-6 <= spent.rdp <= rdp * (1 + (0 if DP_ACCOUNTING == "0.4.3" else 1e-3)) + 1e-6
    assert spent.rdp_order == pytest.approx(order)
    assert spent.relation == "add-or-remove-one"


@pytest.mark.parametrize(("z", "rdp", "order"), [(4.0, 0.144934, 63), (7.0, 0.065728, 128), (1.0, 4.107795, 4)])
def test_fixed_size_epsilon_is_replace_one_with_half_the_noise(z, rdp, order):
    # dp_accounting 0.4.3's RdpAccountant(REPLACE_ONE) with z / 2. With z it gives 0.033079 and 0.019582 for
    # the first two.
    spent = accounting.epsilon(plan(FixedSize(100), z, 1600, 1e-6, STACK_OVERFLOW))
    assert spent.pld is None
    assert spent.value == spent.rdp == pytest.approx(rdp, abs=1e-6)
    assert spent.rdp_order == order
    assert spent.relation == "replace-one"
    assert any("not available" in note for note in spent.notes)


@pytest.mark.parametrize(
    ("rounds", "pld", "rdp"), [(1, 1.060702, 1.143169), (4, 2.254085, 2.419102), (6, 2.818942, 3.021645)]
)
def test_cyclic_epsilon_counts_participations_without_amplification(rounds, pld, rdp):
    cohorts = 267
    spent = accounting.epsilon(plan(Cyclic(cohorts), 4.0, rounds * cohorts, 1e-6, STACK_OVERFLOW))
    assert spent.pld == pytest.approx(pld, abs=1e-6)
    assert spent.rdp == pytest.approx(rdp, abs=1e-6)
    assert spent.relation == "zero-out"


# One Gaussian per run, exact ε. CIFAR-10: google-research/federated, multi_epoch_dp_matrix_factorization,
# docstring of dp_ftrl/centralized/xm_experiment_definitions.py for z; ε from the exact curve (the
# docstring's own values are by RDP, see below). Stack Overflow: read off a figure in arXiv:2211.06530, to ±0.001.
@pytest.mark.parametrize(
    ("z", "delta", "eps", "tolerance"),
    [
        (0.3, 1e-5, 19.13, 5e-3),
        (0.4, 1e-5, 13.21, 5e-3),
        (0.5, 1e-5, 10.00, 5e-3),
        (0.75, 1e-5, 6.13, 5e-3),
        (1.0, 1e-5, 4.3771781, 1e-6),
        (2.0, 1e-5, 1.99, 5e-3),
        (2.2305, 1e-6, 2.0, 5e-3),
        (0.6006, 1e-6, 8.83, 5e-3),
        (0.341, 1e-6, 17.647601, 1e-5),
        (0.682, 1e-6, 7.601021, 1e-5),
    ],
)
def test_gaussian_epsilon_equals_published_pairs(z, delta, eps, tolerance):
    assert composition.gaussian_epsilon(z, delta) == pytest.approx(eps, abs=tolerance)


def test_rdp_epsilon_equals_published_dpsgd_values():
    # From the same docstring: DP-SGD with batches of 500 of 50,000 examples, 2,000 steps, δ = 1e-5, by RDP, "about"
    # these values.
    for z, eps in ((1.16, 2.17), (0.807, 4.75), (0.715, 6.64), (0.61, 10.8), (0.559, 14.2)):
        assert composition.rdp_epsilon(Poisson(0.01), 50_000, z, 2000, 1e-5)[0] == pytest.approx(eps, rel=6e-3)


def test_rdp_epsilon_equals_published_value_of_production_tree_run():
    # Gboard es-ES (arXiv:2305.18465): tree aggregation, z = 7, 2,000 rounds, at most 6 participations with 313 rounds
    # between them: ρ = 0.81 and ε = 8.90 at δ = 1e-10. The exact squared sensitivity of that pattern is 79, and one
    # Gaussian has the same RDP.
    assert 79 / (2 * 7**2) == pytest.approx(0.81, abs=5e-3)
    eps, _ = composition.rdp_epsilon(Cyclic(1), 10**6, 7 / math.sqrt(79), 1, 1e-10)
    assert eps == pytest.approx(8.90, abs=5e-3)


@pytest.mark.parametrize(("steps", "depth"), [(16, 5), (12, 4), (7, 3)])
def test_tree_oracle_with_one_participation_is_depth_of_deepest_tree(steps, depth):
    assert oracle.tree_sensitivity_squared(steps, 1, 1) == depth


def test_gaussian_of_tree_sensitivity_equals_tree_aggregation():
    # dp_accounting's SingleEpochTreeAggregationDpEvent([1600]) at z = 7, δ = 1e-6 has ε 2.281145 by RDP; its squared
    # sensitivity is 11.
    eps, _ = composition.rdp_epsilon(Cyclic(1), 10**6, 7 / math.sqrt(11), 1, 1e-6)
    assert eps == pytest.approx(2.281145, abs=1e-6)
    assert composition.gaussian_epsilon(7 / math.sqrt(11), 1e-6) == pytest.approx(2.124798, abs=1e-6)


@pytest.mark.parametrize(
    ("rate", "z", "rounds"), [(0.1, 1.0, 1), (0.3, 0.7, 1), (0.05, 0.8, 2), (0.2, 1.5, 3), (0.5, 2.0, 4)]
)
def test_pld_equals_quadrature_of_hockey_stick_divergence(rate, z, rounds):
    exact = oracle.epsilon(1e-5, rate, z, rounds)
    pld = composition.pld_epsilon(Poisson(rate), z, rounds, 1e-5)
    assert pld == pytest.approx(exact, rel=3e-4)
    assert pld is not None
    assert pld >= exact * (1 - 1e-4) - 1e-5  # never below the true value, up to the accuracy of the quadrature


def test_quadrature_differs_for_wrong_sampling_probability():
    exact = oracle.epsilon(1e-5, 0.1, 1.0, 2)
    assert composition.pld_epsilon(Poisson(0.11), 1.0, 2, 1e-5) != pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("z", [0.6, 1.0, 3.0])
def test_gaussian_epsilon_equals_quadrature(z):
    assert composition.gaussian_epsilon(z, 1e-5) == pytest.approx(oracle.epsilon(1e-5, 1.0, z, 1), abs=2e-5)


@pytest.mark.parametrize(("size", "z"), [(1000, 1.0), (1000, 4.0), (500, 1.0), (100, 0.7)])
def test_fixed_size_epsilon_bounds_replaced_client(size, z):
    eps, _ = composition.rdp_epsilon(FixedSize(size), 1000, z, 1, 1e-5)
    assert oracle.fixed_size_delta(eps, size / 1000, z) <= 1e-5
    if size == 1000:  # the whole population is the cohort, so without halving the bound would not hold
        wrong, _ = composition.rdp_epsilon(FixedSize(size), 1000, 2 * z, 1, 1e-5)
        assert oracle.fixed_size_delta(wrong, 1.0, z) > 1e-5


def test_rdp_is_at_least_pld_and_epsilon_falls_with_noise():
    previous = math.inf
    for z in (0.15, 0.3, 0.8, 2.0, 10.0, 300.0):
        spent = accounting.epsilon(plan(Poisson(0.02), z, 300, 1e-6))
        assert spent.pld is not None
        assert 0 < spent.pld <= spent.rdp
        assert spent.value < previous
        previous = spent.value


def test_poisson_with_probability_one_equals_gaussian_mechanism():
    assert accounting.epsilon(plan(Poisson(1.0), 10.0, 100, 1e-5)).pld == pytest.approx(4.3771781, abs=1e-6)


@pytest.mark.parametrize(
    ("sampling", "z", "rounds"),
    [
        (Poisson(1e-7), 0.01, 100_000),
        (Poisson(0.999), 0.05, 100_000),
        (Poisson(1e-4), 1e4, 100_000),
        (Poisson(0.3), 5.0, 1_000_000),
        (FixedSize(3), 0.05, 10_000),
        (Cyclic(7), 1e-3, 10_000),
    ],
)
def test_extreme_plans_have_an_epsilon(sampling, z, rounds):
    spent = accounting.epsilon(plan(sampling, z, rounds, 1e-7, 10**7))
    assert spent.value >= 0
    assert not math.isnan(spent.value)


def test_epsilon_is_infinite_without_noise_and_zero_without_rounds():
    noiseless = plan(Poisson(0.1), 0.0, 10, 1e-5)
    assert not noiseless.is_private
    spent = accounting.epsilon(noiseless)
    assert spent.value == spent.rdp == math.inf
    assert "NOT PRIVATE" in spent.notes[0]
    assert accounting.epsilon(noiseless, 0).value == 0
    assert accounting.epsilon(plan(Poisson(0.1), 1.0, 10, 1e-5), 0).value == 0
    assert list(accounting.epsilon_curve(noiseless, [0, 1, 2])) == [0, math.inf, math.inf]


def test_delta_below_rounding_has_no_pld_and_a_note():
    spent = accounting.epsilon(plan(Poisson(0.1), 1.0, 10, 1e-13))
    assert spent.pld is None
    assert any("PLD not available" in note for note in spent.notes)


@pytest.mark.parametrize("sampling", [Poisson(0.05), FixedSize(50), Cyclic(20)])
def test_curve_is_monotone_and_bounds_each_round(sampling):
    whole_plan = plan(sampling, 1.1, 60, 1e-4, 1000)
    rounds = [60, 0, 1, 5, 20, 21, 59, 5]
    curve = accounting.epsilon_curve(whole_plan, rounds)
    ordered = curve[np.argsort(rounds, kind="stable")]
    assert curve[1] == 0
    assert curve[3] == curve[7]
    assert (np.diff(ordered) >= 0).all()
    assert curve[0] == accounting.epsilon(whole_plan).value
    for place in (2, 4):
        single = accounting.epsilon(whole_plan, rounds[place]).value
        assert single * (1 - 1e-9) <= curve[place] <= single * 1.01
    assert accounting.epsilon_curve(whole_plan, []).shape == (0,)


def test_adaptive_clipping_costs_what_its_total_noise_costs():
    fixed, adaptive = (
        plan(Poisson(0.05), 1.0, 100, 1e-5, clip=clip) for clip in (FixedClip(1.0), AdaptiveClip(1.0, count_stddev=5.0))
    )
    assert accounting.epsilon(fixed) == accounting.epsilon(adaptive)


@pytest.mark.parametrize("target", [0.01, 0.5, 8.0, 300.0])
@pytest.mark.parametrize("sampling", [Poisson(256 / 60_000), FixedSize(256), Cyclic(30)])
def test_calibrated_noise_is_least_that_keeps_budget(sampling, target):
    kept = accounting.calibrate_noise(plan(sampling, 1.0, 2344, 1e-5), target)
    assert accounting.epsilon(kept).value <= target
    less = dataclasses.replace(kept, noise_multiplier=kept.noise_multiplier * 0.985)
    assert accounting.epsilon(less).value > target


def test_calibrated_noise_equals_dp_accounting():
    # dp_accounting 0.6.0's calibrate_dp_mechanism over PLDAccountant: z = 0.786059.
    kept = accounting.calibrate_noise(plan(Poisson(256 / 60_000), 9.0, 2344, 1e-5), 2.0)
    assert kept.noise_multiplier == pytest.approx(0.786059, rel=1e-3)


@pytest.mark.parametrize(
    ("sampling", "target"), [(Poisson(256 / 60_000), 0.5), (FixedSize(256), 8.0), (Cyclic(30), 8.0)]
)
def test_calibrated_rounds_are_largest_that_fit(sampling, target):
    kept = accounting.calibrate_rounds(plan(sampling, 1.1, 1, 1e-5), target)
    assert accounting.epsilon(kept).value <= target
    assert accounting.epsilon(dataclasses.replace(kept, rounds=kept.rounds + 1)).value > target


LITTLE_NOISE = plan(Poisson(1e-5), 0.2, 1, 1e8**-1.1, 10**8)


@pytest.mark.parametrize(("rounds", "accountant"), [(100, "PLD"), (104_367, "RDP"), (1_000_000, "RDP")])
def test_epsilon_is_smaller_of_both_bounds_and_names_it(rounds, accountant):
    """The grid is wide over so many rounds: at 1,000,000 rounds the PLD gives inf where Rényi DP gives 155."""
    spent = accounting.epsilon(LITTLE_NOISE, rounds)
    assert spent.pld is not None
    assert spent.value == min(spent.pld, spent.rdp) < 156
    assert spent.accountant == accountant == ("RDP" if spent.rdp < spent.pld else "PLD")
    assert accounting.epsilon_curve(LITTLE_NOISE, [rounds, 1])[0] == spent.value


def test_calibrated_rounds_are_verified_where_bounds_differ():
    kept = accounting.calibrate_rounds(LITTLE_NOISE, 75.0)
    assert accounting.epsilon(kept).value <= 75.0 < accounting.epsilon(kept, kept.rounds + 1).value


@pytest.mark.parametrize("error", [0.9, 1.2])
def test_calibrated_noise_is_verified_on_fine_grid(error, monkeypatch):
    coarse = plan_epsilon._coarse_epsilon
    monkeypatch.setattr(plan_epsilon, "_coarse_epsilon", lambda *arguments: error * coarse(*arguments))
    kept = accounting.calibrate_noise(plan(Cyclic(30), 1.0, 300, 1e-5), 2.0)
    less = dataclasses.replace(kept, noise_multiplier=kept.noise_multiplier * 0.985)
    assert accounting.epsilon(kept).value <= 2.0 < accounting.epsilon(less).value


@pytest.mark.parametrize("start", [1, 7, 500, 700, 999_999, 1_000_000])
@pytest.mark.parametrize("last", [0, 1, 499, 500, 999_999, 1_000_000])
def test_largest_fitting_finds_last_that_fits_from_any_start(start, last):
    probes = []

    def fits(rounds):
        probes.append(rounds)
        return rounds <= last

    assert plan_epsilon._largest_fitting(fits, start) == last
    assert last in probes or last == 0
    assert last + 1 in probes or last == 1_000_000
    assert len(probes) <= 45


@pytest.mark.parametrize("rounds", [1, 1000])
@pytest.mark.parametrize(
    ("rate", "z"), [(1e-9, 0.054), (1e-6, 0.057), (1e-3, 0.06), (0.1, 0.064), (1e-6, 5e7), (1e-3, 7e7), (0.1, 1e8)]
)
def test_noise_at_which_dp_accounting_fails_has_an_epsilon(rate, z, rounds):
    """Rounding makes dp-accounting refuse its own probabilities ("deltas are not in non-increasing order")."""
    spent = accounting.epsilon(plan(Poisson(rate), z, rounds, 1e-5))
    assert spent.pld is not None
    assert 0 <= spent.value <= composition.gaussian_epsilon(z / math.sqrt(rounds), 1e-5) * (1 + 1e-6) or math.isinf(
        spent.value
    )
    if rounds == 1:
        assert spent.value < math.inf


def test_epsilon_on_wider_grid_is_near_exact_value():
    assert accounting.epsilon(plan(Poisson(0.001), 0.06, 1, 1e-5)).value == pytest.approx(169.8184, rel=1e-4)


def test_delta_below_rounding_of_many_rounds_has_no_pld_and_a_note():
    spent = accounting.epsilon(plan(Poisson(0.01), 20.0, 1_000_000, 1e-10))
    assert spent.pld is None and spent.value == spent.rdp < math.inf
    assert "PLD not available below delta 1e-09 over 1,000,000 rounds (rounding)" in spent.notes


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_calibration_refuses_invalid_target(target):
    for calibrate in (accounting.calibrate_noise, accounting.calibrate_rounds):
        with pytest.raises(ValueError, match="epsilon must be a finite number above 0"):
            calibrate(plan(Poisson(0.1), 1.0, 10, 1e-5), target)


def test_calibration_refuses_target_out_of_reach():
    with pytest.raises(ValueError, match="does not allow one round"):
        accounting.calibrate_rounds(plan(Poisson(0.5), 0.5, 10, 1e-5), 0.1)
    with pytest.raises(ValueError, match="fits no finite epsilon"):
        accounting.calibrate_rounds(plan(Poisson(0.5), 0.0, 10, 1e-5), 0.1)
    with pytest.raises(ValueError, match="hardly any noise"):
        accounting.calibrate_noise(plan(Poisson(0.5), 1.0, 10, 1e-5), 501.0)
    with pytest.raises(ValueError, match="out of reach"):
        accounting.calibrate_noise(plan(Cyclic(1), 1.0, 10, 1e-11), 1e-9)


@pytest.mark.parametrize(
    "sampling", [Poisson(1e-6), Poisson(1e-4), Poisson(0.3), Poisson(1.0), FixedSize(100), Cyclic(10)]
)
@pytest.mark.parametrize("z", [1e-6, 1e-3, 1e4, 1e8])
def test_epsilon_exists_and_grows_with_rounds_over_whole_range_of_noise(sampling, z):
    """The library returns divergences near 0 that rounding has made negative.

    With Poisson(1e-6) a client is in the only round with a probability below δ, so that ε is 0 whatever the noise.
    """
    values = [accounting.epsilon(plan(sampling, z, rounds, 1e-5)).value for rounds in (1, 1000, 1_000_000)]
    assert 0 <= values[0] <= values[1] <= values[2] and (
        values[0] == 0
        if sampling == Poisson(1e-6)
        else values[0] > 1
        if z == 1e-6
        else z == 1e-3 or values[0] < math.inf
    )


@pytest.mark.parametrize("sampling", [Poisson(0.01), FixedSize(10), Cyclic(10)])
def test_failures_of_noise_are_counted_for_every_round(sampling, monkeypatch):
    """If a round's noise failed with probability 1e-17, the 1e-9 of δ = 1e-5 set aside would cover few rounds."""
    monkeypatch.setattr(training_noise, "FAILURE", 1e-17)
    one, many = (accounting.epsilon(plan(sampling, 5.0, rounds, 1e-5)) for rounds in (1, 100_000))
    assert one.value < math.inf and one.rdp < math.inf
    assert many.value == many.rdp == math.inf and many.pld in (None, math.inf)
    assert costs.epsilon([costs.Gaussian(5.0, 1)], 1e-5) < math.inf
    assert costs.epsilon([costs.Gaussian(5.0, 100_000)], 1e-5) == math.inf
    assert costs.epsilon([costs.Gaussian(50.0, 100_000, 0.01)], 1e-5) == math.inf
