"""Tests with OpenDP as oracle: exact noise, ε from scale and sensitivity, and the mean as OpenDP's guide composes it.

OpenDP takes no seed, so its draws differ from run to run. Each comparison of samples fails by chance with probability
1e-6; the planted faults are missed with a smaller probability.
"""

import math

import numpy as np
import opendp.prelude as dp
import pytest
from scipy import stats

from experiments.reproduce.dp_mean import errors
from privacy import Budget, Releases
from privacy.accounting import costs
from privacy.accounting.composition import gaussian_epsilon
from privacy.noise import exact
from privacy.noise.randomness import SeededRandomness
from privacy.statistics.opendp_release import opendp_release

ALPHA = 1e-6
DRAWS = 40_000
RECORDS = [0.0] * 500 + [1.0] * 500

dp.enable_features("contrib")


def draw_by_opendp(make, metric, scale):
    """Draws noise by an OpenDP mechanism on integers."""
    space = dp.vector_domain(dp.atom_domain(T="i64")), metric
    return np.array(make(*space, scale=float(scale))([0] * DRAWS))


def opendp_laplace(scale):
    return draw_by_opendp(dp.m.make_laplace, dp.l1_distance(T="i64"), scale)


def opendp_gaussian(stddev):
    return draw_by_opendp(dp.m.make_gaussian, dp.l2_distance(T=float), stddev)


def agree(ours, theirs):
    """Returns whether two samples have one distribution, by Pearson's chi-square test at level ALPHA.

    All values that are drawn fewer than 20 times are one cell.
    """
    values = np.union1d(ours, theirs)
    counts = np.stack([np.bincount(np.searchsorted(values, part), minlength=len(values)) for part in (ours, theirs)])
    common = counts.sum(axis=0) >= 20
    cells = np.column_stack([counts[:, common], counts[:, ~common].sum(axis=1)])
    cells = cells[:, cells.sum(axis=0) > 0]
    return stats.chi2_contingency(cells, correction=False)[1] > ALPHA


@pytest.mark.parametrize("scale", [1, 20])
def test_laplace_agrees_with_opendp(scale):
    assert agree(exact.laplace(SeededRandomness(1), scale, DRAWS), opendp_laplace(scale))


@pytest.mark.parametrize("stddev", [1, 20])
def test_gaussian_agrees_with_opendp(stddev):
    assert agree(exact.gaussian(SeededRandomness(2), stddev, DRAWS), opendp_gaussian(stddev))


def test_comparison_with_opendp_detects_another_scale():
    """A planted fault: the scale is a tenth larger. The statistic is then 250 to 500 above its mean of about 100."""
    assert not agree(exact.laplace(SeededRandomness(3), 22, DRAWS), opendp_laplace(20))
    assert not agree(exact.gaussian(SeededRandomness(4), 22, DRAWS), opendp_gaussian(20))


@pytest.mark.parametrize(("scale", "sensitivity"), [(1, 1), (20, 3), (7, 100)])
def test_epsilon_of_laplace_agrees_with_opendp(scale, sensitivity):
    measurement = dp.m.make_laplace(dp.atom_domain(T="i64"), dp.absolute_distance(T="i64"), scale=float(scale))
    ours = costs.epsilon([costs.Pure(sensitivity / scale)], 0.0)
    assert measurement.map(sensitivity) == pytest.approx(ours, rel=1e-8)
    assert measurement.map(sensitivity + 1) > 1.005 * ours  # a planted fault: another sensitivity


@pytest.mark.parametrize(("stddev", "sensitivity"), [(1, 1), (20, 3), (7, 20)])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-9])
def test_epsilon_of_gaussian_is_at_most_that_of_opendp_and_near_it(stddev, sensitivity, delta):
    """OpenDP converts ρ of zCDP to the best (ε, δ) that ρ alone allows; fedspeak uses the Gaussian's exact curve."""
    space = dp.atom_domain(T="i64"), dp.absolute_distance(T="i64")
    measurement = dp.m.make_gaussian(*space, scale=float(stddev))
    assert measurement.map(sensitivity) == pytest.approx(sensitivity**2 / (2 * stddev**2), rel=1e-8)
    theirs = dp.c.make_zCDP_to_approxDP(measurement).map(sensitivity).epsilon(delta=delta)
    ours = gaussian_epsilon(stddev / sensitivity, delta)
    assert 0.8 * theirs < ours <= theirs
    assert gaussian_epsilon(stddev / (2 * sensitivity), delta) > theirs  # a planted fault: half the noise


def opendp_mean(epsilon):
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.symmetric_distance()
    total = space >> dp.t.then_clamp(bounds=(0.0, 1.0)) >> dp.t.then_sum() >> dp.m.then_laplace(2 / epsilon)
    count = space >> dp.t.then_count() >> dp.m.then_laplace(2 / epsilon)
    return dp.c.make_composition([total, count])


def test_error_of_sum_count_agrees_with_opendp_and_that_of_hourglass_is_smaller():
    measurement, trials = opendp_mean(1.0), 2000
    pairs = np.array([measurement(RECORDS) for _ in range(trials)])
    squares = np.square(1000 * (pairs[:, 0] / pairs[:, 1] - 0.5))
    spread = float(squares.std()) / math.sqrt(trials)
    ours = np.square(errors(1000, 1.0, 0.5, "sum-count", "add-or-remove-one", 100_000)).mean()
    # Both are about 10; half the noise would give 2.5. Fails by chance with probability 6e-7.
    assert abs(squares.mean() - ours) < 5 * spread < 4
    assert np.square(errors(1000, 1.0, 0.5, "hourglass", "add-or-remove-one", 100_000)).mean() < ours / 5


def test_opendp_release_is_recorded_and_limited_by_the_budget(tmp_path):
    with Releases.open(tmp_path / "ledger.jsonl", Budget(1.0)) as ledger:
        total, count = opendp_release(opendp_mean(0.75), RECORDS, ledger=ledger).value
        assert 0 < total < count < 2000
        assert ledger.spent == pytest.approx(0.75, rel=1e-6)
        assert "drawn by OpenDP" in str(ledger.releases[0])
        with pytest.raises(ValueError, match="with this release epsilon would be 1.25, above the budget of 1"):
            opendp_release(opendp_mean(0.5), RECORDS, ledger=ledger)


def test_opendp_release_under_replace_one_costs_twice_as_much():
    guarantee = opendp_release(opendp_mean(0.5), RECORDS, "replace-one").guarantee
    assert guarantee.epsilon == pytest.approx(1.0, rel=1e-6) and guarantee.relation == "replace-one"


def test_opendp_release_refuses_zcdp_measurements_and_measurements_of_aggregates():
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.symmetric_distance()
    gaussian = space >> dp.t.then_clamp(bounds=(0.0, 1.0)) >> dp.t.then_sum() >> dp.m.then_gaussian(1.0)
    with pytest.raises(ValueError, match="output measure ZeroConcentratedDivergence: use one of pure ε"):
        opendp_release(gaussian, RECORDS)
    with pytest.raises(ValueError, match="metric AbsoluteDistance, which counts no records under add-or-remove-one: "):
        opendp_release(dp.m.make_laplace(dp.atom_domain(T=int), dp.absolute_distance(T=int), scale=1.0), 3)


def test_opendp_release_refuses_a_fixed_number_of_records_under_add_or_remove_one():
    """Data sets of a fixed size are never at distance one, so OpenDP's map is meaningless there."""
    space = dp.vector_domain(dp.atom_domain(bounds=(0.0, 100.0), nan=False), size=5), dp.symmetric_distance()
    mean = space >> dp.t.then_mean() >> dp.m.then_laplace(0.001)
    with pytest.raises(ValueError, match="give relation replace-one"):
        opendp_release(mean, [1.0, 2.0, 3.0, 4.0, 5.0])
    release = opendp_release(mean, [1.0, 2.0, 3.0, 4.0, 5.0], "replace-one")
    assert release.guarantee.epsilon == pytest.approx(20_000, rel=1e-3)  # 100 / 5 / 0.001
