"""Figures against published pairs, other people's accountants and our own quadrature."""

import dataclasses
import math
from importlib.metadata import version

import numpy as np
import pytest

from privacy import AdaptiveClip, Cyclic, FixedClip, FixedSize, Poisson, PrivacyPlan, accounting
from privacy.accounting import composition, costs, plan_epsilon
from privacy.noise import training as training_noise
from tests.oracles import accounting as oracle

# scipy 1.9 asks NumPy 1.25 for a deprecated function; neither is ours.
pytestmark = pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")

STACK_OVERFLOW = 342_477


def plan(sampling, z, rounds, delta, population=60_000, clip=None):
    return PrivacyPlan(sampling, population, rounds, z, clip or FixedClip(1.0), delta)


DP_ACCOUNTING = version("dp-accounting")


# Computed with dp_accounting 0.4.3's own accountants at the interval given, outside this code
# (add-or-remove-one): the PLD tolerance is the difference its two finest intervals leave.
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
def test_poisson_goldens(rate, z, rounds, delta, pld, tolerance, rdp, order):
    spent = accounting.epsilon(plan(Poisson(rate), z, rounds, delta))
    assert spent.pld == pytest.approx(pld, abs=tolerance)
    # Later versions bound the divergence of fractional orders from above instead of computing it.
    assert rdp - 1e-6 <= spent.rdp <= rdp * (1 + (0 if DP_ACCOUNTING == "0.4.3" else 1e-3)) + 1e-6
    assert spent.rdp_order == pytest.approx(order)
    assert spent.relation == "add-or-remove-one"


@pytest.mark.parametrize(("z", "rdp", "order"), [(4.0, 0.144934, 63), (7.0, 0.065728, 128), (1.0, 4.107795, 4)])
def test_fixed_size_goldens_are_under_replace_one_with_half_the_noise(z, rdp, order):
    # dp_accounting 0.4.3's RdpAccountant(REPLACE_ONE) fed z / 2; fed z it says 0.033079 and 0.019582 for
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
def test_cyclic_goldens_count_participations_without_amplification(rounds, pld, rdp):
    cohorts = 267
    spent = accounting.epsilon(plan(Cyclic(cohorts), 4.0, rounds * cohorts, 1e-6, STACK_OVERFLOW))
    assert spent.pld == pytest.approx(pld, abs=1e-6)
    assert spent.rdp == pytest.approx(rdp, abs=1e-6)
    assert spent.relation == "zero-out"


# One Gaussian a run, exact ε. CIFAR-10: google-research/federated, multi_epoch_dp_matrix_factorization,
# docstring of dp_ftrl/centralized/xm_experiment_definitions.py for z; ε from the exact curve (the
# docstring's own are RDP's, below). Stack Overflow: figure of arXiv:2211.06530, read off at ±0.001.
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
def test_exact_gaussian_pairs(z, delta, eps, tolerance):
    assert composition.gaussian_epsilon(z, delta) == pytest.approx(eps, abs=tolerance)


def test_published_dpsgd_noise_gives_the_published_epsilons():
    # Same docstring: DP-SGD of batch 500 of 50,000 clients' examples, 2,000 steps, δ = 1e-5, RDP, "about"
    # these.
    for z, eps in ((1.16, 2.17), (0.807, 4.75), (0.715, 6.64), (0.61, 10.8), (0.559, 14.2)):
        assert composition.rdp_epsilon(Poisson(0.01), 50_000, z, 2000, 1e-5)[0] == pytest.approx(eps, rel=6e-3)


def test_zcdp_of_a_production_tree_run_converts_to_its_published_epsilon():
    # Gboard es-ES (arXiv:2305.18465): tree, z = 7, 2,000 rounds, at most 6 participations 313 rounds between:
    # ρ = 0.81 and ε = 8.90 at δ = 1e-10. The exact sensitivity² of that pattern is 79; one Gaussian has the
    # same RDP.
    assert 79 / (2 * 7**2) == pytest.approx(0.81, abs=5e-3)
    eps, _ = composition.rdp_epsilon(Cyclic(1), 10**6, 7 / math.sqrt(79), 1, 1e-10)
    assert eps == pytest.approx(8.90, abs=5e-3)


@pytest.mark.parametrize(("steps", "depth"), [(16, 5), (12, 4), (7, 3)])
def test_tree_oracle_on_one_participation_is_the_deepest_tree(steps, depth):
    assert oracle.tree_sensitivity_squared(steps, 1, 1) == depth


def test_tree_goldens_by_sensitivity():
    # dp_accounting's SingleEpochTreeAggregationDpEvent([1600]) at z = 7, δ = 1e-6: RDP ε 2.281145; sens² =
    # 11.
    eps, _ = composition.rdp_epsilon(Cyclic(1), 10**6, 7 / math.sqrt(11), 1, 1e-6)
    assert eps == pytest.approx(2.281145, abs=1e-6)
    assert composition.gaussian_epsilon(7 / math.sqrt(11), 1e-6) == pytest.approx(2.124798, abs=1e-6)


@pytest.mark.parametrize(
    ("rate", "z", "rounds"), [(0.1, 1.0, 1), (0.3, 0.7, 1), (0.05, 0.8, 2), (0.2, 1.5, 3), (0.5, 2.0, 4)]
)
def test_pld_equals_quadrature_of_the_hockey_stick(rate, z, rounds):
    exact = oracle.epsilon(1e-5, rate, z, rounds)
    figure = composition.pld_epsilon(Poisson(rate), z, rounds, 1e-5)
    assert figure == pytest.approx(exact, rel=3e-4)
    assert figure is not None
    assert figure >= exact * (1 - 1e-4) - 1e-5  # never below the truth, to the quadrature's accuracy


def test_quadrature_tells_a_wrong_sampling_rate():
    exact = oracle.epsilon(1e-5, 0.1, 1.0, 2)
    assert composition.pld_epsilon(Poisson(0.11), 1.0, 2, 1e-5) != pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("z", [0.6, 1.0, 3.0])
def test_gaussian_curve_equals_quadrature(z):
    assert composition.gaussian_epsilon(z, 1e-5) == pytest.approx(oracle.epsilon(1e-5, 1.0, z, 1), abs=2e-5)


@pytest.mark.parametrize(("size", "z"), [(1000, 1.0), (1000, 4.0), (500, 1.0), (100, 0.7)])
def test_fixed_size_bound_covers_a_replaced_client(size, z):
    eps, _ = composition.rdp_epsilon(FixedSize(size), 1000, z, 1, 1e-5)
    assert oracle.fixed_size_delta(eps, size / 1000, z) <= 1e-5
    if size == 1000:  # without halving the bound would not hold: the whole population is the cohort
        wrong, _ = composition.rdp_epsilon(FixedSize(size), 1000, 2 * z, 1, 1e-5)
        assert oracle.fixed_size_delta(wrong, 1.0, z) > 1e-5


def test_rdp_is_an_upper_bound_and_every_figure_falls_with_noise():
    previous = math.inf
    for z in (0.15, 0.3, 0.8, 2.0, 10.0, 300.0):
        spent = accounting.epsilon(plan(Poisson(0.02), z, 300, 1e-6))
        assert spent.pld is not None
        assert 0 < spent.pld <= spent.rdp
        assert spent.value < previous
        previous = spent.value


def test_rate_one_is_the_gaussian_mechanism():
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
def test_extreme_plans_are_answered(sampling, z, rounds):
    spent = accounting.epsilon(plan(sampling, z, rounds, 1e-7, 10**7))
    assert spent.value >= 0
    assert not math.isnan(spent.value)


def test_no_noise_is_not_private_and_no_round_costs_nothing():
    naked = plan(Poisson(0.1), 0.0, 10, 1e-5)
    assert not naked.is_private
    spent = accounting.epsilon(naked)
    assert spent.value == spent.rdp == math.inf
    assert "NOT PRIVATE" in spent.notes[0]
    assert accounting.epsilon(naked, 0).value == 0
    assert accounting.epsilon(plan(Poisson(0.1), 1.0, 10, 1e-5), 0).value == 0
    assert list(accounting.epsilon_curve(naked, [0, 1, 2])) == [0, math.inf, math.inf]


def test_a_delta_below_rounding_has_no_pld_and_says_so():
    spent = accounting.epsilon(plan(Poisson(0.1), 1.0, 10, 1e-13))
    assert spent.pld is None
    assert any("PLD not available" in note for note in spent.notes)


@pytest.mark.parametrize("sampling", [Poisson(0.05), FixedSize(50), Cyclic(20)])
def test_curve_is_monotone_bounds_each_round_and_ends_at_the_figure(sampling):
    promised = plan(sampling, 1.1, 60, 1e-4, 1000)
    rounds = [60, 0, 1, 5, 20, 21, 59, 5]
    curve = accounting.epsilon_curve(promised, rounds)
    ordered = curve[np.argsort(rounds, kind="stable")]
    assert curve[1] == 0
    assert curve[3] == curve[7]
    assert (np.diff(ordered) >= 0).all()
    assert curve[0] == accounting.epsilon(promised).value
    for place in (2, 4):
        single = accounting.epsilon(promised, rounds[place]).value
        assert single * (1 - 1e-9) <= curve[place] <= single * 1.01
    assert accounting.epsilon_curve(promised, []).shape == (0,)


def test_adaptive_clipping_costs_its_total_noise_and_nothing_else():
    fixed, adaptive = (
        plan(Poisson(0.05), 1.0, 100, 1e-5, clip=clip) for clip in (FixedClip(1.0), AdaptiveClip(1.0, count_stddev=5.0))
    )
    assert accounting.epsilon(fixed) == accounting.epsilon(adaptive)


@pytest.mark.parametrize("target", [0.01, 0.5, 8.0, 300.0])
@pytest.mark.parametrize("sampling", [Poisson(256 / 60_000), FixedSize(256), Cyclic(30)])
def test_calibrated_noise_keeps_the_budget_and_wastes_little(sampling, target):
    kept = accounting.calibrate_noise(plan(sampling, 1.0, 2344, 1e-5), target)
    assert accounting.epsilon(kept).value <= target
    less = dataclasses.replace(kept, noise_multiplier=kept.noise_multiplier * 0.985)
    assert accounting.epsilon(less).value > target


def test_calibrated_noise_golden():
    # dp_accounting 0.6.0's calibrate_dp_mechanism over PLDAccountant: z = 0.786059.
    kept = accounting.calibrate_noise(plan(Poisson(256 / 60_000), 9.0, 2344, 1e-5), 2.0)
    assert kept.noise_multiplier == pytest.approx(0.786059, rel=1e-3)


@pytest.mark.parametrize(
    ("sampling", "target"), [(Poisson(256 / 60_000), 0.5), (FixedSize(256), 8.0), (Cyclic(30), 8.0)]
)
def test_calibrated_rounds_are_the_most_that_fit(sampling, target):
    kept = accounting.calibrate_rounds(plan(sampling, 1.1, 1, 1e-5), target)
    assert accounting.epsilon(kept).value <= target
    assert accounting.epsilon(dataclasses.replace(kept, rounds=kept.rounds + 1)).value > target


LITTLE_NOISE = plan(Poisson(1e-5), 0.2, 1, 1e8**-1.1, 10**8)


@pytest.mark.parametrize(("rounds", "accountant"), [(100, "PLD"), (104_367, "RDP"), (1_000_000, "RDP")])
def test_epsilon_is_the_smaller_of_both_bounds_and_names_it(rounds, accountant):
    """The grid is wide over so many rounds: at 1,000,000 the PLD says inf where Rényi DP says 155."""
    spent = accounting.epsilon(LITTLE_NOISE, rounds)
    assert spent.pld is not None
    assert spent.value == min(spent.pld, spent.rdp) < 156
    assert spent.accountant == accountant == ("RDP" if spent.rdp < spent.pld else "PLD")
    assert accounting.epsilon_curve(LITTLE_NOISE, [rounds, 1])[0] == spent.value


def test_calibrated_rounds_are_verified_where_both_bounds_differ():
    kept = accounting.calibrate_rounds(LITTLE_NOISE, 75.0)
    assert accounting.epsilon(kept).value <= 75.0 < accounting.epsilon(kept, kept.rounds + 1).value


@pytest.mark.parametrize("error", [0.9, 1.2])
def test_calibrated_noise_is_verified_by_the_accounting_shown_where_the_coarse_one_is_off(error, monkeypatch):
    coarse = plan_epsilon._coarse
    monkeypatch.setattr(plan_epsilon, "_coarse", lambda *arguments: error * coarse(*arguments))
    kept = accounting.calibrate_noise(plan(Cyclic(30), 1.0, 300, 1e-5), 2.0)
    less = dataclasses.replace(kept, noise_multiplier=kept.noise_multiplier * 0.985)
    assert accounting.epsilon(kept).value <= 2.0 < accounting.epsilon(less).value


@pytest.mark.parametrize("start", [1, 7, 500, 700, 999_999, 1_000_000])
@pytest.mark.parametrize("last", [0, 1, 499, 500, 999_999, 1_000_000])
def test_a_search_for_rounds_ends_at_the_last_that_fits_wherever_it_starts(start, last):
    asked = []

    def fits(rounds):
        asked.append(rounds)
        return rounds <= last

    assert plan_epsilon._most(fits, start) == last
    assert last in asked or last == 0
    assert last + 1 in asked or last == 1_000_000
    assert len(asked) <= 45


@pytest.mark.parametrize("rounds", [1, 1000])
@pytest.mark.parametrize(
    ("rate", "z"), [(1e-9, 0.054), (1e-6, 0.057), (1e-3, 0.06), (0.1, 0.064), (1e-6, 5e7), (1e-3, 7e7), (0.1, 1e8)]
)
def test_noise_at_which_the_library_fails_has_an_epsilon(rate, z, rounds):
    """dp-accounting's rounding makes it refuse its own probabilities there ("not in non-increasing order")."""
    spent = accounting.epsilon(plan(Poisson(rate), z, rounds, 1e-5))
    assert spent.pld is not None
    assert 0 <= spent.value <= composition.gaussian_epsilon(z / math.sqrt(rounds), 1e-5) * (1 + 1e-6) or math.isinf(
        spent.value
    )
    if rounds == 1:
        assert spent.value < math.inf


def test_epsilon_on_a_wider_grid_is_near_that_of_the_grid_that_failed():
    assert accounting.epsilon(plan(Poisson(0.001), 0.06, 1, 1e-5)).value == pytest.approx(169.8184, rel=1e-4)


def test_a_delta_below_the_rounding_of_many_rounds_has_no_pld_and_says_so():
    spent = accounting.epsilon(plan(Poisson(0.01), 20.0, 1_000_000, 1e-10))
    assert spent.pld is None and spent.value == spent.rdp < math.inf
    assert "PLD not available below delta 1e-09 over 1,000,000 rounds (rounding)" in spent.notes


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_targets_that_are_no_budget_are_refused(target):
    for calibrate in (accounting.calibrate_noise, accounting.calibrate_rounds):
        with pytest.raises(ValueError, match="epsilon must be a finite number above 0"):
            calibrate(plan(Poisson(0.1), 1.0, 10, 1e-5), target)


def test_budgets_out_of_reach_are_refused():
    with pytest.raises(ValueError, match="does not allow one round"):
        accounting.calibrate_rounds(plan(Poisson(0.5), 0.5, 10, 1e-5), 0.1)
    with pytest.raises(ValueError, match="fits no finite epsilon"):
        accounting.calibrate_rounds(plan(Poisson(0.5), 0.0, 10, 1e-5), 0.1)
    with pytest.raises(ValueError, match="hardly any noise"):
        accounting.calibrate_noise(plan(Poisson(0.5), 1.0, 10, 1e-5), 501.0)
    with pytest.raises(ValueError, match="out of reach"):
        accounting.calibrate_noise(plan(Cyclic(1), 1.0, 10, 1e-11), 1e-9)


@pytest.mark.parametrize("sampling", [Poisson(1e-6), Poisson(0.3), Poisson(1.0), FixedSize(100), Cyclic(10)])
@pytest.mark.parametrize("z", [1e-6, 1e-3, 1e4, 1e8])
def test_the_whole_range_of_noise_has_figures(sampling, z):
    """Divergences near 0 come out of the library below 0 by a rounding."""
    found = [accounting.epsilon(plan(sampling, z, rounds, 1e-5)).value for rounds in (1, 1000, 1_000_000)]
    assert 0 <= found[0] <= found[1] <= found[2] and (found[0] > 1 if z == 1e-6 else z == 1e-3 or found[0] < math.inf)


@pytest.mark.parametrize("sampling", [Poisson(0.01), FixedSize(10), Cyclic(10)])
def test_failures_of_the_noise_are_counted_for_every_round(sampling, monkeypatch):
    """Were a round's noise to fail with probability 1e-17, 1e-9 of δ = 1e-5 would last for a few of them."""
    monkeypatch.setattr(training_noise, "FAILURE", 1e-17)
    one, many = (accounting.epsilon(plan(sampling, 5.0, rounds, 1e-5)) for rounds in (1, 100_000))
    assert one.value < math.inf and one.rdp < math.inf
    assert many.value == many.rdp == math.inf and many.pld in (None, math.inf)
    assert costs.epsilon([costs.Gaussian(5.0, 1)], 1e-5) < math.inf
    assert costs.epsilon([costs.Gaussian(5.0, 100_000)], 1e-5) == math.inf
    assert costs.epsilon([costs.Gaussian(50.0, 100_000, 0.01)], 1e-5) == math.inf
