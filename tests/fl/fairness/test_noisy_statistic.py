"""The test on noisy sums: no bias by the noise, exact moments, level and power in simulations, refusals."""

import itertools
import re

import numpy as np
import pytest
from scipy import stats

from fl.fairness import FairnessFrame, NoisySums, cvar_gap, noisy_test, report, variance
from fl.fairness.client_sums import contributions, noise_stddevs, noisy_sums
from fl.fairness.noisy_statistic import _noise, _null_moments, _sizes, centred_squares, estimate
from fl.fairness.variance import Form
from tests.fl.fairness.simulation import assert_rate, shifted

Z = 0.6


def _noisy(totals: np.ndarray, z: float = Z) -> NoisySums:
    squares, products, rests = totals
    return NoisySums(squares, products, rests, z)


def group_sums(scores: list[np.ndarray], noise: np.ndarray) -> NoisySums:
    """Returns the sums of scores by group with noise [groups, 3] in units of the scores."""
    exact = np.array([[(x**2).sum(), (x * (1 - x)).sum(), ((1 - x) ** 2).sum()] for x in scores])
    return _noisy((exact + noise).T)


def noises(nodes: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns points [n, groups, 3] and weights [n] whose mean is exact for polynomials of degree below 2 `nodes`."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.array(list(itertools.product(points, repeat=3 * groups))).reshape(-1, groups, 3)
    mass = np.array(list(itertools.product(weights / weights.sum(), repeat=3 * groups))).prod(1)
    return grid * Z * np.array([1, np.sqrt(0.5), 1]), mass


def known_center(form: Form, sums: NoisySums, center: float) -> float:
    """Returns T with a known overall value: products of different groups count, each product of a group not."""
    return estimate(form, sums, center) - float(form.per_row @ (sums.sums - center * sums.counts)) ** 2


@pytest.mark.parametrize("center", [0.5, 0.3, 0.05])
def test_mean_over_the_noise_is_the_statistic_without_noise(center):
    scores = [np.array([0.1, 0.4, 1.0]), np.array([0.0, 0.7])]
    form = Form(np.array([3.0, 2.0]), np.array([0.3, 0.2]), np.array([0.25, 0.15]))
    points, mass = noises(2, 2)
    found = mass @ [known_center(form, group_sums(scores, noise), center) for noise in points]
    pairs = [sum((a - center) * (b - center) for a, b in itertools.permutations(x, 2)) for x in scores]
    sums = [(x - center).sum() for x in scores]
    exact = form.within @ pairs - 2 * np.prod(form.per_row) * np.prod(sums)
    assert found == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("center", [0.5, 0.3, 0.05])
def test_noise_of_sizes_is_independent_of_that_of_the_statistic(center):
    def coefficients(value):
        return np.array([value(_noisy(unit[:, None]))[0] for unit in np.diag(Z * np.array([1, np.sqrt(0.5), 1]))])

    deviation = coefficients(lambda sums: sums.sums - center * sums.counts)
    squares = coefficients(lambda sums: centred_squares(sums, center))
    sizes = coefficients(lambda sums: _sizes(sums, center))
    assert abs(sizes @ deviation) < 1e-15 and abs(sizes @ squares) < 1e-15
    assert _noise(Z, center) == pytest.approx((deviation @ deviation, squares @ squares, deviation @ squares))
    # As many as there are clients, if all have the overall score.
    alike = group_sums([np.full(7, center)], np.zeros((1, 3)))
    assert _sizes(alike, center) == pytest.approx(7)


@pytest.mark.parametrize("center", [0.5, 0.2])
def test_null_moments_are_those_of_all_outcomes(center):
    counts = (2, 1)
    form = Form(np.array([2.0, 1.0]), np.array([0.3, 0.2]), np.array([0.25, 0.15]))
    points, mass = noises(4, 2)
    # T by group and outcome, in arrays over the noise; the same formula as in `known_center`.
    values, chances = [], []
    for outcome in itertools.product([0.0, 1.0], repeat=3):
        scores = np.split(np.array(outcome), [2])
        parts = [group_sums(scores, noise) for noise in points[:1]]
        exact = np.stack([parts[0].squares, parts[0].products, parts[0].rests], 1) - points[0]
        sums = _noisy(np.moveaxis(exact + points, 2, 0))
        deviations = sums.sums - center * sums.counts
        pair_sums = deviations**2 - centred_squares(sums, center) - _noise(Z, center)[0]
        cross = ((deviations * form.per_row) ** 2).sum(1) - (deviations @ form.per_row) ** 2
        values.append(pair_sums @ form.within + cross)
        chances.append(np.prod([center if x else 1 - center for x in outcome]) * mass)
    value, chance = np.concatenate(values), np.concatenate(chances)
    mean = chance @ value
    assert mean == pytest.approx(0, abs=1e-12)
    row = center * (1 - center)
    found = _null_moments(form, np.array(counts) * row, center, *_noise(Z, center))
    assert found.variance == pytest.approx(chance @ value**2, rel=1e-9)
    # The skewness of rows enters by 4 μ₃² Σ M_ij³, of which the code knows a bound.
    cubes, skewed = 2 * form.within[0] ** 3, row * (1 - 2 * center)
    by_bound = 4 * max(center, 1 - center) ** 2 * row**2 * cubes
    exact = 4 * skewed**2 * (cubes - 4 * np.prod(form.per_row) ** 3)
    assert chance @ value**3 == pytest.approx(found.third - by_bound + exact, rel=1e-9)


def draw(generator: np.random.Generator, counts: np.ndarray, rates: np.ndarray, z: float) -> NoisySums:
    """Draws clients with accuracies of their own and with few or many tokens, and the noise on their sums."""
    codes = np.repeat(np.arange(len(counts)), counts)
    tokens = generator.integers(5, 100, len(codes))
    correct = generator.binomial(tokens, generator.beta(20 * rates[codes], 20 * (1 - rates[codes])))
    totals = np.zeros((len(counts), 3), np.int64)
    np.add.at(totals, codes, contributions(correct, tokens))
    outer, middle = noise_stddevs(z)
    noise = np.rint(generator.normal(size=(len(counts), 3)) * [outer, middle, outer]).astype(np.int64)
    return noisy_sums(totals, noise, z)


@pytest.mark.parametrize(("groups", "clients", "z"), [(4, 100, 3.0), (40, 30, 1.0), (20, 15, 0.05)])
def test_level_if_groups_are_alike(groups, clients, z):
    counts = np.full(groups, clients)

    def rejects(generator: np.random.Generator) -> bool:
        return noisy_test(draw(generator, counts, np.full(groups, 0.25), z), alpha=0.8)[0].rejects

    assert_rate(rejects, 0.02, 0.06, 1000, groups)


def test_power_and_bounds_if_groups_differ():
    counts, rates = np.full(40, 50), shifted(40, 0.2, 0.08, 0.25)
    generator, z = np.random.default_rng(5), 1.0
    results = [noisy_test(draw(generator, counts, rates, z), alpha=0.8, gap=0.08)[0] for _ in range(300)]
    gap = cvar_gap(rates, counts, 0.8)
    assert np.mean([result.rejects for result in results]) > 0.95
    assert min(result.power or 0.0 for result in results) > 0.8
    assert np.mean([result.gap_low <= gap <= result.gap_high for result in results]) > 0.95
    # The variance of the groups, without the bias of the noise: within five standard errors and 5 % of the weights.
    values, truth = [result.variance for result in results], float(np.var(rates))
    assert np.mean(values) == pytest.approx(truth, abs=5 * np.std(values) / np.sqrt(300) + 0.05 * truth)


def test_small_and_empty_groups_are_not_tested_and_break_nothing():
    counts = np.array([60, 50, 0, 1, 3, 70])
    sums = draw(np.random.default_rng(3), counts, np.full(6, 0.3), 1.5)
    result, gaps = noisy_test(sums, alpha=0.5)
    assert result.groups == 3 and result.untested_groups == 3 and 0 <= result.untested_weight < 0.2
    np.testing.assert_array_equal(np.isnan(gaps.gaps), [False, False, True, True, True, False])
    assert (gaps.low <= gaps.gaps)[~np.isnan(gaps.gaps)].all() and 0 < gaps.p_value <= 1
    tiny = draw(np.random.default_rng(3), np.array([0, 2, 1, 60]), np.full(4, 0.3), 1.5)
    refusal = "noise_multiplier 1.5: 1 of 4 groups have clearly more clients than the noise"
    with pytest.raises(ValueError, match=re.escape(refusal)):
        noisy_test(tiny, alpha=0.5)
    with pytest.raises(ValueError, match=re.escape("alpha must lie in [0, 1)")):
        noisy_test(sums, alpha=1.0)


def test_moments_without_noise_are_those_of_the_test_without_noise():
    form = variance.build_form(np.array([4.0, 6.0, 9.0]), np.array([0.2, 0.3, 0.5]), None)
    rows = np.array([0.1, 0.2, 0.15])
    plain = variance.null_moments(form, rows, 0.7)
    found = _null_moments(form, form.counts * rows, 0.7, 0.0, 0.0, 0.0)
    assert found == pytest.approx(plain)


def draw_binary(generator: np.random.Generator, counts: np.ndarray, rates: np.ndarray, z: float) -> NoisySums:
    """Draws clients with a score of 0 or 1, and the noise on their sums."""
    right = generator.binomial(counts, rates)
    exact = np.stack([right, np.zeros(len(counts)), counts - right], 1)
    noise = generator.normal(size=exact.shape) * z * np.array([1, np.sqrt(0.5), 1])
    return _noisy((exact + noise).T, z)


@pytest.mark.parametrize(
    ("counts", "rate", "z"),
    [
        ((1000, *[12] * 10), 0.25, 1.0),
        ((100,) * 20, 0.02, 1.0),
        ((1000, *[30] * 20), 0.25, 0.5),
        ((40,) * 60, 0.5, 1.0),
    ],
)
def test_level_and_coverage_of_the_largest_gap(counts, rate, z):
    """Variances of groups taken from the noisy sums gave a level of 0.24 in the first two cases."""
    sizes = np.array(counts)

    def rejects(generator: np.random.Generator) -> bool:
        return noisy_test(draw_binary(generator, sizes, np.full(len(sizes), rate), z), alpha=0.8)[1].rejects

    assert_rate(rejects, 0.0, 0.05, 500, 1)
    # Half of the groups lie above and below: intervals hold the gap to the overall rate of the tested groups.
    rates = rate + min(rate, 0.2) * np.where(np.arange(len(sizes)) % 2 == 0, 1, -1)

    def misses(generator: np.random.Generator) -> bool:
        gaps = noisy_test(draw_binary(generator, sizes, rates, z), alpha=0.8)[1]
        used = ~np.isnan(gaps.gaps)
        true = rates[used] - sizes[used] @ rates[used] / sizes[used].sum()
        return bool(((true < gaps.low[used]) | (true > gaps.high[used])).any())

    assert_rate(misses, 0.0, 0.05, 300, 2)


def test_largest_gap_is_found_where_it_is_clear():
    rates = np.where(np.arange(20) == 7, 0.8, 0.3)
    gaps = noisy_test(draw_binary(np.random.default_rng(1), np.full(20, 150), rates, 1.0), alpha=0.9)[1]
    assert gaps.rejects and gaps.worst == 7 and gaps.low[7] > 0.2


def test_estimates_lie_in_their_intervals_and_reports_are_drawn_at_a_low_accuracy():
    sums = draw_binary(np.random.default_rng(2), np.full(20, 100), np.full(20, 0.02), 1.0)
    frame = FairnessFrame.from_noisy_sums(sums, names=[(i,) for i in range(20)], metric="accuracy", alpha=0.8)
    gaps = frame.tests[0].max_gap
    assert (sums.sums < 0).any() and (gaps.low <= gaps.gaps).all() and (gaps.gaps <= gaps.high).all()
    assert "<svg" in report.build(frame).to_html()


def test_power_counts_the_noise_on_the_sum_of_a_group():
    """20 groups of 40 clients with the score 0.5, without any spread: only the noise is left, z² / 2 on each sum."""
    z, counts = 2.0, np.full(20, 40.0)
    result, _ = noisy_test(_noisy(np.stack([counts / 4] * 3), z), alpha=0.5, gap=0.12)
    variance_of_gap = 0.5 * 0.12**2
    spread = result.null_stddev**2 + 4 * (z**2 / 2 / 40) / (20 * 40) * variance_of_gap
    expected = stats.norm.cdf((variance_of_gap - result.critical_value) / np.sqrt(spread))
    assert result.power == pytest.approx(expected, rel=1e-9) and 0.5 < expected < 1 - 1e-6
