"""Tests of Rényi DP: the search for the best order, and the bound without sampling."""

import math
import random

import pytest

from privacy import FixedClip, FixedSize, Poisson, PrivacyPlan, accounting
from privacy.accounting import composition
from privacy.noise.training import exact_delta
from privacy.sampling import Sampling

CLOSE = 1 + 1e-12  # sums of the same terms in another order


def least_over_all_orders(sampling: Sampling, population: int, z: float, rounds: int, delta: float) -> float:
    from dp_accounting.rdp import rdp_privacy_accountant as library

    divergences = [
        rounds * composition.one_round_rdp(sampling, population, z, order) for order in map(float, composition.ORDERS)
    ]
    return float(library.compute_epsilon(composition.ORDERS, divergences, exact_delta(delta))[0])


# In the first four the best order is 256, at the end of the exact bound on fixed-size sampling; in the last two ε is 0
# by the divergence at the least order.
@pytest.mark.parametrize(
    ("sampling", "population", "z", "delta"),
    [
        (FixedSize(1), 100, 99.37, 1.06e-11),
        (FixedSize(100), 10_000, 100.0, 1e-11),
        (FixedSize(10), 1000, 50.0, 1e-11),
        (FixedSize(10_000), 10**6, 200.0, 3e-11),
        (Poisson(0.001), 1000, 500.0, 3e-4),
        (Poisson(1e-4), 1000, 0.57, 6e-3),
    ],
)
def test_rdp_epsilon_is_least_over_all_orders_and_never_falls_with_rounds(sampling, population, z, delta):
    previous = 0.0
    for rounds in (7, 11, 22, 229, 23_004):
        eps, _ = composition.rdp_epsilon(sampling, population, z, rounds, delta)
        assert eps <= least_over_all_orders(sampling, population, z, rounds, delta) * CLOSE
        assert eps >= previous
        previous = eps


def test_rdp_epsilon_is_least_over_all_orders_for_random_plans():
    generator = random.Random(0)
    for case in range(3):
        share, z = 10 ** generator.uniform(-4, -0.1), 10 ** generator.uniform(-1, (1, 3, 7)[case % 3])
        sampling: Sampling = FixedSize(max(1, int(share * 10_000))) if case % 2 else Poisson(share)
        for _ in range(10):
            rounds, delta = int(10 ** generator.uniform(0, 6)), 10 ** generator.uniform(-14, -2)
            eps, _ = composition.rdp_epsilon(sampling, 10_000, z, rounds, delta)
            expected = least_over_all_orders(sampling, 10_000, z, rounds, delta)
            assert eps <= expected * CLOSE or expected > 500


def test_calibrated_rounds_of_fixed_size_cohorts_are_all_that_fit():
    plan = PrivacyPlan(FixedSize(1), 100, 1, 99.37, FixedClip(1.0), 1.06e-11)
    kept = accounting.calibrate_rounds(plan, 0.1)
    assert kept.rounds > 1000
    assert accounting.epsilon(kept).value <= 0.1 < accounting.epsilon(kept, kept.rounds + 1).value


@pytest.mark.parametrize("order", [1.5, 2.0, 63.0, 256.0, 512.0, 1024.0])
@pytest.mark.parametrize(
    ("sampling", "sensitivity"), [(Poisson(0.145), 1), (FixedSize(145), 2), (FixedSize(1000), 2), (Poisson(1.0), 1)]
)
@pytest.mark.parametrize("z", [1.0, 300.0, 3.18e6, 1e8])
def test_one_round_rdp_is_at_most_that_without_sampling(sampling, sensitivity, z, order):
    """Without sampling a client moves the sum by 1 clip norm (added), or by 2 clip norms (replaced)."""
    unsampled = order * sensitivity**2 / (2 * z**2)
    divergence = composition.one_round_rdp(sampling, 1000, z, order)
    assert 0 < divergence <= unsampled * CLOSE + 1e-15
    if sampling in (FixedSize(1000), Poisson(1.0)):
        assert divergence >= unsampled


def test_one_round_rdp_uses_half_the_noise_where_dp_accounting_fails(monkeypatch):
    """The fallback must not forget that a replaced client moves the sum by twice the clip norm."""
    import dp_accounting as dp

    def fail(*_):
        raise ValueError("rounding")

    monkeypatch.setattr(dp.rdp.RdpAccountant, "compose", fail)
    assert composition.one_round_rdp.__wrapped__(FixedSize(7), 10, 50.0, 3.0) == pytest.approx(3 * 4 / (2 * 50.0**2))
    assert composition.one_round_rdp.__wrapped__(Poisson(0.7), 10, 50.0, 3.0) == pytest.approx(3 / (2 * 50.0**2))


def test_fixed_size_epsilon_with_large_noise_is_that_without_sampling_and_falls_with_noise():
    """Rounding in dp-accounting made it 0.107 at z = 3.18e6, and larger with more noise."""
    rounds, delta = 333_129, 1e-5
    values = [composition.rdp_epsilon(FixedSize(145), 1000, z, rounds, delta)[0] for z in (3.18e4, 3.18e5, 3.18e6)]
    assert values == sorted(values, reverse=True)
    multiplier = 3.18e6 / 2 / math.sqrt(rounds)
    unsampled = min(
        order / (2 * multiplier**2) + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        for order in (256, 512, 1024)
    )
    assert values[-1] <= unsampled * 1.001
