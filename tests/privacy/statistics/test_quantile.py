"""Tests private quantiles. Each goodness-of-fit test fails by chance with probability 1e-6; seeds are fixed."""

import itertools
import logging
import math
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import dp_quantile
from privacy.noise.randomness import SeededRandomness
from privacy.statistics import quantile
from tests.oracles.noise import fits

ALPHA = 1e-6


def score(places, share, point):
    """Returns by how many records a point misses the quantile."""
    below, above = (sum(p < point for p in places), sum(p > point for p in places))
    return max(below - share * len(places), above - (1 - share) * len(places), 0)


def exponential_mechanism(places, share, points, epsilon, sensitivity=None):
    """Returns the distribution of the exponential mechanism, point by point."""
    sensitivity = max(share, 1 - share) if sensitivity is None else sensitivity
    weights = {}
    for point in range(points):
        weights[float(point)] = math.exp(-epsilon * score(places, share, point) / (2 * sensitivity))
    total = sum(weights.values())
    return {point: weight / total for point, weight in weights.items()}


CASES = [
    ([2, 2, 2, 2, 2], 0.5, 8, 1.0),
    ([0, 3, 3, 5, 9], 0.5, 10, 1.0),
    ([1, 4, 6, 7], 0.75, 9, 2.0),
    ([], 0.5, 5, 1.0),
    ([0, 0, 4], 0.0, 5, 3.0),
    ([0, 0, 4], 1.0, 5, 3.0),
]


@pytest.mark.parametrize(("places", "share", "points", "epsilon"), CASES)
def test_dp_quantile_fits_the_exponential_mechanism(places, share, points, epsilon):
    source = SeededRandomness(1)
    draws = Counter(dp_quantile(places, share, 0, points - 1, 1, epsilon, randomness=source).value for _ in range(5000))
    assert fits(exponential_mechanism(places, share, points, epsilon), draws, ALPHA)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_exponential_mechanism_is_private_by_enumeration(epsilon):
    """For all small data sets and neighbours, the probabilities of an outcome differ by a factor of at most exp(ε)."""
    points = 4
    for size in range(4):
        for places in itertools.combinations_with_replacement(range(points), size):
            for added, share in itertools.product(range(points), (0.25, 0.5, 1.0)):
                here = exponential_mechanism(places, share, points, epsilon)
                there = exponential_mechanism((*places, added), share, points, epsilon)
                assert all(abs(math.log(here[x] / there[x])) <= epsilon + 1e-9 for x in here)
            if places:
                for other in range(points):
                    replaced = (*places[1:], other)
                    here, there = (exponential_mechanism(p, 0.25, points, epsilon, 1.0) for p in (places, replaced))
                    assert all(abs(math.log(here[x] / there[x])) <= epsilon + 1e-9 for x in here)


POINTS = 4


def data_sets(largest):
    """Returns all data sets of up to `largest` records on the points."""
    sizes = range(largest + 1)
    return [places for size in sizes for places in itertools.combinations_with_replacement(range(POINTS), size)]


def neighbours(places, relation):
    """Returns all data sets with one record more, or with one record replaced."""
    if relation == "add-or-remove-one":
        rests = [places]
    else:
        rests = [places[:i] + places[i + 1 :] for i in range(len(places))]
    return [tuple(sorted((*rest, new))) for rest in rests for new in range(POINTS)]


def scores_and_probabilities(places, share, epsilon, relation):
    """Returns each point's score and exact probability, from the arguments with which `dp_quantile` chooses."""
    with mock.patch("privacy.statistics.quantile._choose", return_value=0) as choose:
        dp_quantile(places, share, 0, POINTS - 1, 1, epsilon, relation, randomness=SeededRandomness(0))
    _, sizes, scores, rate = choose.call_args.args
    scores = np.repeat(scores, sizes) / quantile.PARTS
    weights = np.exp(-rate * quantile.PARTS * scores)
    return scores, weights / weights.sum()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("relation", ["add-or-remove-one", "replace-one"])
def test_dp_quantile_scores_move_by_the_sensitivity_and_probabilities_by_at_most_exp_epsilon(share, relation):
    """Enumerates all data sets of up to 5 records on 4 points; the sensitivity is attained."""
    epsilon = 1.0
    results = {places: scores_and_probabilities(places, share, epsilon, relation) for places in data_sets(5)}
    moved = ratio = 0.0
    for places in data_sets(4):
        scores, probabilities = results[places]
        assert scores.min() == 0
        for other in neighbours(places, relation):
            moved = max(moved, np.abs(scores - results[other][0]).max())
            ratio = max(ratio, np.abs(np.log(probabilities / results[other][1])).max())
    assert moved == (1 if relation == "replace-one" else max(share, 1 - share))
    assert epsilon / 3 < ratio <= epsilon


GENERATOR = np.random.default_rng(6)
TIED = {
    "zero-inflated": (np.r_[np.zeros(60_000), GENERATOR.uniform(10_000, 20_000, 40_000)], 0.5, 20_000, 0.0),
    "zero-inflated, upper part": (np.r_[np.zeros(40_000), GENERATOR.uniform(10_000, 20_000, 60_000)], 0.3, 20_000, 0.0),
    "ratings": (np.r_[np.full(7000, 5), GENERATOR.integers(0, 5, 3000)], 0.4, 5, 5.0),
    "counts": (np.minimum(GENERATOR.geometric(0.7, 10_000) - 1, 100), 0.5, 100, 0.0),
    "capped": (np.minimum(GENERATOR.exponential(100, 10_000), 60), 0.7, 60, 60.0),
}


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("relation", ["add-or-remove-one", "replace-one"])
@pytest.mark.parametrize("kind", TIED)
def test_dp_quantile_of_tied_data_is_the_shared_value(kind, relation, epsilon):
    """Any other point is at least 400 records off, so that it is chosen with probability below 1e-4 at ε = 0.1."""
    values, share, upper, expected = TIED[kind]
    result = dp_quantile(values, share, 0, upper, 1, epsilon, relation, SeededRandomness(7))
    assert result.value == expected == np.quantile(values, share)


@pytest.mark.parametrize("kind", TIED)
def test_rank_slack_holds_on_tied_data(kind):
    """ε is so small that other points are chosen too; 95 % of the draws lie within the slack."""
    values, share, upper, _ = TIED[kind]
    values, source = np.sort(values[:: max(1, len(values) // 200)]), SeededRandomness(8)
    true = np.quantile(values, share, method="inverted_cdf")
    between = []
    for _ in range(100):
        result = dp_quantile(values, share, 0, upper, 1, 0.5, randomness=source)
        low, high = sorted([np.rint(true), result.value])
        between.append(((np.rint(values) > low) & (np.rint(values) < high)).sum())
    assert np.mean(np.array(between) > result.rank_slack) <= 0.05


def test_dp_quantile_under_replace_one_uses_a_sensitivity_of_one():
    source = SeededRandomness(2)
    places = [1, 4, 6, 7]
    draws = Counter(dp_quantile(places, 0.5, 0, 8, 1, 2.0, "replace-one", randomness=source).value for _ in range(5000))
    assert fits(exponential_mechanism(places, 0.5, 9, 2.0, sensitivity=1.0), draws, ALPHA)
    assert not fits(exponential_mechanism(places, 0.5, 9, 2.0), draws, ALPHA)  # that of add-or-remove-one


def test_choose_with_digits_has_the_same_distribution():
    sizes, scores = np.array([1, 3, 1, 5]), np.array([2, 0, 1, 7])
    total = sizes * np.exp(-0.7 * scores)
    chosen: Counter = Counter()
    for number in range(4096):
        index = quantile._choose_with_digits(number, 12, sizes, scores, 0.7, 40)
        chosen[index] += 1
    for index, share in enumerate(total / total.sum()):
        assert abs(chosen[index] / 4096 - share) <= 2 / 4096
    assert chosen[None] == 3  # one for each bound between two outcomes, where the bits are too few to decide


def test_choose_draws_more_bits_where_the_first_leave_it_open():
    sizes, scores = np.array([1, 1]), np.array([0, 0])
    bits = [2**61, 5, 2**61 - 1, 2**62 - 6]
    half = mock.Mock(side_effect=[np.array([word]) for word in bits])
    with mock.patch("privacy.noise.exact.uniform", half):
        assert quantile._choose(SeededRandomness(0), sizes, scores, 1.0) == 1
        assert quantile._choose(SeededRandomness(0), sizes, scores, 1.0) == 0


@pytest.mark.parametrize("exponent", [800, 2000])
def test_choose_is_exact_where_a_weight_underflows(exponent):
    """With bits of 0 the number drawn lies below every weight, so that the first outcome is chosen."""
    sizes, scores = np.array([1, 1]), np.array([exponent, 0])
    with mock.patch("privacy.noise.exact.uniform", return_value=np.array([0])):
        assert quantile._choose(SeededRandomness(0), sizes, scores, 1.0) == 0
    with mock.patch("privacy.noise.exact.uniform", return_value=np.array([1])):
        assert quantile._choose(SeededRandomness(0), sizes, scores, 1.0) == 1


@pytest.mark.parametrize("epsilon", [5e-324, 1e300, 1e308, 1.7e308])
def test_dp_quantile_of_extreme_epsilon_warns_of_nothing(epsilon):
    source = SeededRandomness(9)
    value = dp_quantile([3, 3, 9], 0.5, 0, 10, 1, epsilon, randomness=source).value
    assert value == 3 or epsilon < 1


@settings(max_examples=50)
@given(st.lists(st.integers(0, 30), max_size=12), st.floats(0, 1), st.integers(2, 31))
def test_compute_scores_gives_each_run_the_score_of_its_points(places, share, points):
    target = round(share * quantile.PARTS)
    places = np.minimum(np.array(places, np.int64), points - 1)
    starts, scores = quantile._compute_scores(places, target, points)
    ends = [*starts[1:], points]
    for start, end, of_run in zip(starts, ends, scores, strict=True):
        for point in range(start, end):
            assert of_run == quantile.PARTS * score(places, target / quantile.PARTS, point)


def test_dp_quantile_finds_a_value_that_all_records_share():
    """On the real line, where gaps between equal values have length zero, the exponential mechanism would miss it."""
    source = SeededRandomness(3)
    values = [dp_quantile([3.7] * 500, 0.5, 0, 1e6, 0.1, 1.0, randomness=source).value for _ in range(50)]
    np.testing.assert_allclose(values, 3.7, atol=1e-6)


def test_rank_slack_holds_on_distinct_values():
    generator = np.random.default_rng(4)
    values = np.sort(generator.normal(size=2000))
    source = SeededRandomness(5)
    for share in (0.1, 0.5, 0.9):
        ranks = []
        for _ in range(200):
            result = dp_quantile(values, share, -10, 10, 1e-4, 0.5, randomness=source)
            ranks.append(abs(np.searchsorted(values, result.value) - share * len(values)))
        assert result.rank_slack == pytest.approx(2 * max(share, 1 - share) * math.log(200_001 / 0.05) / 0.5, rel=1e-4)
        assert np.mean(np.array(ranks) > result.rank_slack) <= 0.05
        assert np.median(ranks) > 0.1


def test_dp_quantile_clamps_to_the_grid_skips_nan_and_states_its_guarantee(caplog):
    with caplog.at_level(logging.WARNING):
        result = dp_quantile([-np.inf, 0.5, np.nan, 1e308, np.inf], 0.5, -2, 2, 0.5, 1.0)
    assert "1 of 5 values are NaN" in caplog.text
    assert result.value in np.arange(-2, 2.5, 0.5)
    text = str(result.guarantee)
    assert "epsilon 1.000;" in text and "add-or-remove-one" in text and "0.5-quantile on 9 points of [-2, 2]" in text
    assert dp_quantile([0.0], 0.5, 0, 1, 1, 5.0, "replace-one").guarantee.relation == "replace-one"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantile": 1.5}, r"quantile must lie in \[0, 1\], got 1.5"),
        ({"quantile": float("nan")}, "quantile"),
        ({"lower": 2}, "lower 2 is not below upper 1: "),
        ({"lower": float("nan")}, "lower"),
        ({"upper": float("inf")}, "upper"),
        ({"resolution": 0}, "resolution must be"),
        ({"resolution": 3}, "makes 1.33 points"),
        ({"resolution": 1e-300}, "points of"),
        ({"epsilon": 0}, "epsilon must be"),
        ({"epsilon": float("nan")}, "epsilon must be"),
        ({"relation": "x"}, "use add-or-remove-one or replace-one"),
        ({"values": [[1.0]]}, r"shape \[1, 1\].*numbers \[n\] are needed"),
        ({"values": ["a"]}, "numbers are needed"),
    ],
)
def test_dp_quantile_refuses_bad_arguments_in_one_line(changes, message):
    arguments = {"values": [0.5], "quantile": 0.5, "lower": 0, "upper": 1, "resolution": 0.1, "epsilon": 1.0}
    with pytest.raises(ValueError, match=message) as error:
        dp_quantile(**(arguments | changes))
    assert "\n" not in str(error.value)
