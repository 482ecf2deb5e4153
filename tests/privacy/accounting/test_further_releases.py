"""ε of rounds together with further Gaussian releases: closed forms, other accountants, and no release for free."""

import pytest

from privacy import Cyclic, FixedClip, FixedSize, Poisson, PrivacyPlan, accounting
from privacy.accounting import composition, costs
from privacy.noise import training as training_noise

# scipy 1.9 calls a function that is deprecated in NumPy 1.25.
pytestmark = pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")


def plan(sampling, z, rounds, delta):
    return PrivacyPlan(sampling, 60_000, rounds, z, FixedClip(1.0), delta)


def test_further_releases_without_sampling_equal_one_gaussian_mechanism():
    # 30 rounds in 3 cohorts: 10 participations. Noise multipliers add up as sums of 1 / z².
    for releases in ((5.0,), (5.0, 3.0)):
        whole = (10 / 4.0**2 + sum(z**-2 for z in releases)) ** -0.5
        found = accounting.epsilon(plan(Cyclic(3), 4.0, 30, 1e-5), None, releases)
        exact = training_noise.exact_delta(1e-5)
        assert found.pld is not None
        assert found.pld == pytest.approx(composition.gaussian_epsilon(whole, exact), rel=1e-9)
        assert found.pld <= found.rdp < 1.2 * found.pld


@pytest.mark.parametrize("release", [0.8, 3.0, 30.0])
def test_further_release_beside_sampled_rounds_equals_the_account_of_both(release):
    rounds, both = plan(Poisson(0.05), 1.0, 100, 1e-5), (costs.Gaussian(1.0, 100, 0.05), costs.Gaussian(release))
    found = accounting.epsilon(rounds, None, (release,))
    account = costs.Account(training_noise.exact_delta(1e-5))
    for cost in both:
        account = account.plus((cost,))
    assert found.value == pytest.approx(account.least.epsilon, rel=2e-3)
    assert accounting.epsilon(rounds).value < found.value
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant().compose(rounds.dp_event()).compose(both[1].dp_event())
    assert found.rdp == pytest.approx(accountant.get_epsilon(training_noise.exact_delta(1e-5)), rel=1e-3)


def test_further_release_alone_costs_its_own_epsilon_whatever_the_rounds_would():
    for sampling in (Poisson(0.05), Cyclic(3), FixedSize(50)):
        found = accounting.epsilon(plan(sampling, 1.0, 30, 1e-5), 0, (2.0,))
        alone = composition.gaussian_epsilon(2.0, training_noise.exact_delta(1e-5))
        assert alone * 0.999 <= found.value < alone * 1.2
    assert (
        accounting.epsilon(plan(FixedSize(50), 1.0, 30, 1e-5)).value
        < accounting.epsilon(plan(FixedSize(50), 1.0, 30, 1e-5), None, (2.0,)).value
    )
    with pytest.raises(ValueError, match="noise_multiplier must be a finite number above 0"):
        accounting.epsilon(plan(Cyclic(3), 1.0, 30, 1e-5), 0, (0.0,))
