"""Tests of the largest gap, group by group against SciPy's exact binomial test."""

import numpy as np
import pytest
from scipy import stats

from fl.fairness import FairnessFrame, from_counts, max_gap_test, weighted_test
from tests.fl.fairness.simulation import assert_rate, binary_sums, shifted


def test_p_values_and_intervals_are_binomial():
    counts, sums = [30, 200, 5, 0, 8], [9, 20, 0, 0, 8]
    result = max_gap_test(from_counts(counts, sums), level=0.1)
    assert result.overall == pytest.approx(37 / 243)
    for i in (0, 1, 2, 4):
        one_sided = [
            stats.binomtest(sums[i], counts[i], result.overall, alternative=side).pvalue for side in ("less", "greater")
        ]
        assert result.p_values[i] == pytest.approx(min(2 * min(one_sided), 1))
        interval = stats.binomtest(sums[i], counts[i]).proportion_ci(1 - 0.1 / 4)
        assert result.low[i] + result.overall == pytest.approx(interval.low, abs=1e-9)
        assert result.high[i] + result.overall == pytest.approx(interval.high, abs=1e-9)
    assert np.isnan([result.gaps[3], result.low[3], result.high[3], result.p_values[3]]).all()
    assert result.p_value == pytest.approx(4 * result.p_values[4]) and result.worst == 4


def test_scores_are_bounded_by_hoeffding():
    result = max_gap_test(from_counts([50, 50], [20.0, 30.0], [10.0, 20.0]), level=0.05)
    half = (np.log(2 * 2 / 0.05) / 100) ** 0.5
    assert (result.high - result.gaps).tolist() == pytest.approx([half, half])
    assert (result.gaps - result.low).tolist() == pytest.approx([half, half])
    assert result.p_values.tolist() == pytest.approx([2 * np.exp(-1)] * 2)


def test_level_is_kept():
    assert_rate(lambda rng: max_gap_test(binary_sums(rng, np.full(50, 20), 0.3)).rejects, 0.0, 0.05, 500, 1)


@pytest.mark.parametrize(
    ("counts", "weights"),
    [([100_000, 2], [1, 1]), ([1000] * 20 + [2] * 3, [1] * 23), ([5] + [1000] * 10, [9] + [0.1] * 10)],
)
def test_level_and_coverage_hold_where_few_rows_make_the_overall_value(counts, weights):
    """With the error of the overall value neglected, false alarms were 1.0, 0.39 and 1.0."""
    sizes, shares = np.array(counts), np.array(weights) / np.sum(weights)

    def fails(generator: np.random.Generator) -> bool:
        result = max_gap_test(binary_sums(generator, sizes, 0.37), weights=weights)
        assert result.overall == pytest.approx(shares @ (result.gaps + result.overall))
        return result.rejects or bool(((result.low > 0) | (result.high < 0)).any())

    assert_rate(fails, 0.0, 0.05, 500, 3)


def test_groups_of_weight_zero_are_left_out():
    sums = from_counts([40, 40, 40], [10, 11, 40])
    result, without = max_gap_test(sums, weights=[1, 1, 0]), max_gap_test(from_counts([40, 40], [10, 11]))
    assert np.isnan([result.gaps[2], result.p_values[2], result.low[2]]).all() and result.worst < 2
    assert result.p_value == without.p_value and result.low[:2].tolist() == without.low.tolist()
    frame = FairnessFrame.from_counts([40, 40, 40], [10, 11, 40], weights={0: 1, 1: 1, 2: 0}, alpha=0.5)
    assert frame.difference() == pytest.approx(1 / 40)


def test_many_groups_hide_a_gap_that_the_variance_shows():
    """1,600 groups of 11 rows, a tenth of them with the gap 0.2 (specification: power 0.043 against 0.995)."""
    rates, counts = shifted(1600, 0.1, 0.2, 0.3), np.full(1600, 11)
    assert_rate(lambda rng: max_gap_test(binary_sums(rng, counts, rates)).rejects, 0.0, 0.2, 200, 2)
    assert_rate(lambda rng: weighted_test(binary_sums(rng, counts, rates), alpha=0.9).rejects, 0.98, 1.0, 200, 2)


def test_groups_without_any_row_are_refused():
    with pytest.raises(ValueError, match="no group that has a weight has a row"):
        max_gap_test(from_counts([3, 0], [1, 0]), weights=[0, 1])
