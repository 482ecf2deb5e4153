"""Tests private preprocessing. Statistical assertions allow five standard deviations, at fixed seeds."""

import itertools

import numpy as np
import pytest

from privacy.accounting import costs
from privacy.arrays import clip_rows, normalize_rows
from privacy.linear.features import _rotate, centre_of_ball, fit_feature_map
from privacy.noise.randomness import SecureRandomness, SeededRandomness
from privacy.statistics.quantile import PARTS
from privacy.statistics.quantile_search import geometric_grid, quantile_search
from tests.tolerance import rounding

pytestmark = pytest.mark.numerical


def blob(mu, count=5000, size=6, diameter=2.0, seed=1):
    """Draws points of a ball around mu times the first unit vector."""
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(count, size))
    points *= diameter / 2 * generator.uniform(size=(count, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
    points[:, 0] += mu
    return points


def test_quantile_search_with_negligible_noise_finds_the_quantiles():
    values = np.sort(np.random.default_rng(2).normal(size=(999, 3)), axis=0)
    grid = np.linspace(-4, 4, 2**14)
    for share in (0.1, 0.5, 0.95):
        quantiles, cost = quantile_search(values, share, grid, 1e-3, SeededRandomness(1))
        np.testing.assert_allclose(quantiles, np.quantile(values, share, axis=0), atol=0.03)
        assert cost.noise_multiplier == pytest.approx(1e-3, rel=1e-2)  # noise in integers, its stddev rounded up


def test_quantile_search_finds_shared_values_and_the_ends_of_the_grid():
    grid = np.linspace(0, 100, 1001)
    for place in (0.0, 42.0, 100.0):
        quantiles, _ = quantile_search(np.full((400, 2), place), 0.5, grid, 1.0, SeededRandomness(3))
        np.testing.assert_allclose(quantiles, place, atol=0.1 + 1e-9)
    quantiles, _ = quantile_search(np.zeros((0, 2)), 0.5, grid, 1.0, SeededRandomness(4))
    assert ((quantiles >= 0) & (quantiles <= 100)).all()


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([0] * 6 + [7] * 4, 0.5, 0),  # zero-inflated
        ([0] * 6 + [7] * 4, 0.65, 7),
        ([0] * 7 + [3] * 3, 0.6, 0),
        ([5] * 7 + [1, 2, 3], 0.4, 5),  # ratings
        ([1, 2, 3] + [8] * 7, 0.4, 8),  # capped at the grid's end
        ([0, 0, 1, 1, 1, 2, 3, 9], 0.5, 1),  # counts
    ],
)
def test_quantile_search_finds_the_value_that_many_records_share(values, share, expected):
    """On a coarse grid, where the next point would be a wrong rating; the margin is twenty standard deviations."""
    column = np.repeat(np.array(values, float), 500)[:, np.newaxis]
    quantiles, _ = quantile_search(column, share, np.arange(10.0), 1.0, SeededRandomness(6))
    assert quantiles[0] == expected


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_quantile_search_comparisons_move_by_at_most_their_sensitivity(share, monkeypatch):
    """Enumerates columns of up to 3 values below, at and above the middle point, and one value more."""
    balances, stddevs = [], []

    class Recorded:
        __array_ufunc__ = None  # makes NumPy leave the addition to __radd__

        def __radd__(self, balance):
            balances.append(int(balance[0]))
            return balance

    def gaussian(source, stddev, size):
        stddevs.append(stddev)
        return Recorded()

    def balance(column):
        quantile_search(np.array(column)[:, np.newaxis], share, np.array([0.0, 1.0]), 1.0, SeededRandomness(0))
        return balances[-1]

    monkeypatch.setattr("privacy.noise.exact.gaussian", gaussian)
    moved = 0
    for size in range(4):
        for column in itertools.combinations_with_replacement((-1.0, 0.0, 1.0), size):
            moved = max(moved, *(abs(balance(column) - balance((*column, new))) for new in (-1.0, 0.0, 1.0)))
    assert set(stddevs) == {moved}


@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.1])
@pytest.mark.parametrize("columns", [1, 25])
def test_quantile_search_noise_covers_all_turns_and_columns(columns, quantile, monkeypatch):
    """Over all turns, one record moves the comparisons by at most the sensitivity that the noise is scaled for."""
    stddevs = []

    def gaussian(source, stddev, size):
        stddevs.append(stddev)
        return np.zeros(size, np.int64)

    monkeypatch.setattr("privacy.noise.exact.gaussian", gaussian)
    values, grid = np.random.default_rng(5).uniform(size=(100, columns)), np.linspace(0, 1, 1024)
    _, cost = quantile_search(values, quantile, grid, 3.0, SeededRandomness(0))
    assert len(stddevs) == 10 and len(set(stddevs)) == 1
    # In each turn a record moves each column's balance by at most this.
    move_of_one = max(round(quantile * PARTS), PARTS - round(quantile * PARTS))
    move_of_all = np.sqrt(len(stddevs) * columns) * move_of_one
    assert stddevs[0] / move_of_all >= cost.noise_multiplier >= 3.0


@pytest.mark.parametrize("mu", [0.0, 1e2, 1e5])
def test_fit_feature_map_centre_errs_by_the_diameter_and_not_by_the_distance(mu):
    points = blob(mu)
    feature_map = fit_feature_map(points, 2 * mu + 10, 3.0, SeededRandomness(2))
    assert np.linalg.norm(feature_map.centre - points.mean(axis=0)) < 0.2
    assert feature_map.radius is not None and 0.5 < feature_map.radius < 2.5
    assert feature_map.records == pytest.approx(5000, rel=0.02)


def test_centre_of_ball_errs_by_the_distance():
    points = blob(1e5)
    feature_map = centre_of_ball(points, 2e5, 3.0, SeededRandomness(2))
    assert np.linalg.norm(feature_map.centre - points.mean(axis=0)) > 10


@pytest.mark.parametrize(("fit", "stages"), [(fit_feature_map, 4), (centre_of_ball, 1)])
def test_preprocessing_stages_together_cost_one_gaussian_of_the_multiplier(fit, stages):
    feature_map = fit(blob(1.0), 10, 3.0, SecureRandomness())
    gaussians = [cost for cost in feature_map.costs if isinstance(cost, costs.Gaussian)]
    assert len(gaussians) == len(feature_map.costs) == stages
    together = sum(cost.count / cost.noise_multiplier**2 for cost in gaussians) ** -0.5
    assert together == pytest.approx(3.0, rel=1e-3) and together >= 3.0 * (1 - 1e-12)
    expected = costs.epsilon([costs.Gaussian(3.0)], 1e-5)
    assert costs.epsilon(feature_map.costs, 1e-5) == pytest.approx(expected, rel=1e-3)


def test_centre_of_ball_divides_each_vector_by_its_own_distance():
    points = normalize_rows(blob(3.0))
    feature_map = centre_of_ball(points, 1.0, 3.0, SeededRandomness(3))
    assert feature_map.radius is None and feature_map.records == pytest.approx(5000, rel=0.02)
    assert np.linalg.norm(feature_map.centre - points.mean(axis=0)) < 0.02
    mapped = feature_map(points)
    np.testing.assert_allclose(np.linalg.norm(mapped[:, :-1], axis=1), 1)
    alone = feature_map(points[:1])
    np.testing.assert_array_equal(mapped[:1], alone)  # independent of the other records


def test_normalize_rows_scales_vectors_of_any_size_to_norm_one():
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [1e-320, 0.0], [1e308, 1e308]])
    lengths = np.linalg.norm(normalize_rows(vectors), axis=1)
    np.testing.assert_allclose(lengths, [1, 0, 1, 1], atol=1e-3)


def test_feature_map_is_affine_unless_it_clips():
    points = blob(5.0)
    feature_map = fit_feature_map(points, 20, 3.0, SeededRandomness(3))
    assert feature_map.radius is not None
    mapped = feature_map(points)
    assert mapped.shape == (5000, 7) and (mapped[:, -1] == 1).all()
    np.testing.assert_allclose(mapped[:, :-1] * feature_map.radius + feature_map.centre, points, atol=1e-9)
    clipped = feature_map(np.concatenate([points, [[1e300] * 6]]), clip=True)
    assert np.linalg.norm(clipped[:, :-1], axis=1).max() <= 1 + 1e-9
    single = feature_map(points.astype(np.float32))
    assert single.dtype == np.float32
    # The rounding of a point to float32, of the subtraction of the centre, and of the division by the radius.
    np.testing.assert_allclose(single, mapped, atol=rounding(6, 2 * np.abs(points).max() / feature_map.radius))


def test_fit_feature_map_of_one_record_or_none_is_finite():
    for count in (0, 1):
        result = fit_feature_map(blob(1.0, count=count), 10, 1.0, SeededRandomness(4))
        assert np.isfinite(result.centre).all() and result.records >= 1
        assert result.radius is not None and result.radius > 0


def test_geometric_grid_spans_the_range_with_the_ratio():
    grid = geometric_grid(0.01, 10.0)
    assert grid[0] == 0.01 and grid[-1] >= 10.0 and np.allclose(grid[1:] / grid[:-1], 1.05)


def test_fit_feature_map_refuses_bad_arguments():
    for bound, multiplier, message in ((0, 1, "bound must be"), (float("nan"), 1, "bound"), (1, 0, "noise_multiplier")):
        with pytest.raises(ValueError, match=message):
            fit_feature_map(np.ones((3, 2)), bound, multiplier, SeededRandomness(0))


def test_quantile_search_draws_independent_noise_for_each_column(monkeypatch):
    sizes = []

    def gaussian(source, stddev, size):
        sizes.append(size)
        return np.arange(size, dtype=np.int64) * 10**9 - 10**9

    monkeypatch.setattr("privacy.noise.exact.gaussian", gaussian)
    quantiles, _ = quantile_search(np.zeros((5, 3)), 0.5, np.linspace(-1, 1, 9), 1.0, SeededRandomness(0))
    assert set(sizes) == {3} and len(set(quantiles.tolist())) > 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 64, 200])
def test_rotate_gives_each_row_independently_of_the_others(dtype, size):
    """Otherwise one record more could change the comparisons of many."""
    vectors = clip_rows(np.random.default_rng(1).normal(size=(70, size)).astype(dtype), 5.0)
    _, whole = _rotate(vectors, 5.0)
    for count in range(1, 70):
        np.testing.assert_array_equal(_rotate(vectors[:count], 5.0)[1], whole[:count])
    norms = np.linalg.norm(whole, axis=1)
    np.testing.assert_allclose(norms, np.linalg.norm(vectors, axis=1), rtol=1e-3)


def test_fit_feature_map_is_moved_little_by_one_huge_record_and_refuses_invalid_features():
    points = np.vstack([blob(1.0, count=2000), [[1e308] * 6]])
    feature_map = fit_feature_map(points, 10, 3.0, SeededRandomness(5))
    assert np.linalg.norm(feature_map.centre - blob(1.0, count=2000).mean(axis=0)) < 0.3
    assert np.isfinite(feature_map(clip_rows(points, 10.0), clip=True)).all()
    for bad in (np.full((3, 2), np.nan), np.zeros((3, 0)), np.zeros(3)):
        with pytest.raises(ValueError, match="features have shape .*: finite numbers"):
            centre_of_ball(bad, 1.0, 1.0, SeededRandomness(0))
