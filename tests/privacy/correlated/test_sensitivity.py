"""Tests of sensitivities under participation limits, against the enumeration of all patterns and published values."""

import math

import numpy as np
import pytest

from privacy.accounting.composition import gaussian_epsilon
from privacy.correlated import (
    BLT,
    Banded,
    Mechanism,
    Participation,
    Tree,
    Workload,
    least_loss,
    optimize_banded,
    optimize_blt,
)
from privacy.correlated.participation import worst_sum
from privacy.correlated.sensitivity import COLUMN_NORMS, EARLIEST, ROW_SUMS, of_matrix, of_toeplitz
from tests.oracles import participation as oracle

LIMITS = [(9, 2, 3), (10, 3, 9), (11, 4, 2), (8, 1, 8), (7, 9, 2), (10, 3, 2)]


@pytest.mark.parametrize(("rounds", "separation", "count"), LIMITS)
def test_worst_sum_is_the_largest_over_all_patterns(rounds, separation, count):
    values = np.random.default_rng(1).random((3, rounds))
    expected = [
        max(sum(row[list(pattern)]) for pattern in oracle.patterns(rounds, separation, count)) for row in values
    ]
    assert worst_sum(values, Participation(separation, count)) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize(("rounds", "separation", "count"), [limits for limits in LIMITS if limits[1] > 1])
@pytest.mark.parametrize("column", [(1.0, 0.5), (1.0, -0.7), (1.0,)])
def test_bands_up_to_the_separation_are_exact_by_column_norms(column, rounds, separation, count):
    result = of_toeplitz(np.array(column), rounds, Participation(separation, count))
    expected = oracle.sensitivity(oracle.toeplitz(np.array(column), rounds), separation, count)
    assert result.value == pytest.approx(expected, rel=1e-12, abs=0)
    assert (result.is_exact, result.method) == (True, COLUMN_NORMS)


@pytest.mark.parametrize(("rounds", "separation", "count"), LIMITS)
@pytest.mark.parametrize("column", [0.8 ** np.arange(11), 1 / np.sqrt(np.arange(1, 12)), np.ones(11), np.ones(4)])
def test_falling_coefficients_are_exact_at_the_earliest_rounds(column, rounds, separation, count):
    result = of_toeplitz(column, rounds, Participation(separation, count))
    expected = oracle.sensitivity(oracle.toeplitz(column, rounds), separation, count)
    assert result.value == pytest.approx(expected, rel=1e-12, abs=0)
    assert result.is_exact


def test_other_coefficients_get_an_upper_bound_that_says_so():
    generator = np.random.default_rng(2)
    for rounds, separation, count in LIMITS[:4]:
        column = generator.normal(size=rounds)
        result = of_toeplitz(column, rounds, Participation(separation, count))
        exact = oracle.sensitivity(oracle.toeplitz(column, rounds), separation, count)
        # Exact for one participation; otherwise up to sqrt(count) above, as |inner products| <= 1/2 sums of squares.
        assert exact * (1 - 1e-12) <= result.value
        assert (result.is_exact, result.method) == (False, ROW_SUMS)


def test_column_norms_alone_would_understate_a_band_longer_than_the_separation():
    column, limits = np.ones(3), Participation(2, 3)
    result = of_toeplitz(column, 9, limits)
    # Rounds 0, 2 and 4: the sum of the columns is 1 1 2 1 2 1 1, with squared norm 13; the column norms give 9.
    assert result.value == pytest.approx(math.sqrt(13), rel=1e-12, abs=0)
    assert result.method == EARLIEST
    assert worst_sum(np.full(9, 3.0), limits) == 9


def test_rising_coefficients_are_not_taken_for_falling_ones():
    column, limits = np.array([1.0, 0.0, 2.0, 0.0]), Participation(1, 2)
    result = of_toeplitz(column, 5, limits)
    # Rounds 0 and 2: 1 0 3 0 2, squared norm 14; the earliest rounds 0 and 1: 1 1 2 2, squared norm 10.
    assert result.value >= math.sqrt(14) * (1 - 1e-12) and not result.is_exact


def test_dense_matrix_with_orthogonal_columns_is_exact():
    matrix = np.kron(np.eye(3), np.array([[2.0, 1.0], [0.0, 3.0]]))
    # Columns 0 and 1 of a block are not orthogonal, so separation 2 keeps a pattern from having both.
    result = of_matrix(matrix, Participation(2, 3))
    assert result.value == pytest.approx(oracle.sensitivity(matrix, 2, 3), rel=1e-12, abs=0)
    assert (result.is_exact, result.method) == (True, COLUMN_NORMS)
    assert not of_matrix(matrix, Participation(1, 3)).is_exact


def test_two_conventions_of_separation_differ_by_one():
    assert Participation.by_rounds_between(313, 6) == Participation.by_round_distance(314, 6) == (314, 6)


# dp_findings §5: square-root Toeplitz matrix, as jax-privacy 2.0 computes it.
@pytest.mark.parametrize(
    ("rounds", "count", "separation", "value"),
    [
        (2052, 1, 2052, 1.8691842523),
        (2052, 6, 342, 6.0994237265),
        (1600, 1, 1600, 1.8478743785),
        (1600, 4, 400, 4.4522068132),
        (1600, 6, 256, 6.1354461042),
        (1000, 10, 100, 9.1540430002),
    ],
)
def test_square_root_matrix_equals_jax_privacy(rounds, count, separation, value):
    steps = np.arange(1, rounds)
    column = np.concatenate([[1.0], np.cumprod((2 * steps - 1) / (2 * steps))])
    assert of_toeplitz(column, rounds, Participation(separation, count)).value == pytest.approx(value, rel=1e-10, abs=0)


@pytest.mark.parametrize("restart_every", [None, 1, 4, 5])
@pytest.mark.parametrize(
    ("rounds", "between", "count"),
    [(12, 7, 2), (16, 8, 2), (13, 2, 3), (11, 3, 3), (11, 0, 11), (12, 1, 4), (9, 20, 2), (15, 4, 3), (8, 2, 4)]
    + [(16, 2, 6)],
)
def test_tree_sensitivity_is_the_largest_over_all_patterns(rounds, between, count, restart_every):
    limits = Participation.by_rounds_between(between, count)
    nodes = oracle.tree(rounds, restart_every)
    expected = max(np.sum(nodes[:, list(pattern)].sum(1) ** 2) for pattern in oracle.patterns(rounds, *limits))
    assert Tree(restart_every).sensitivity(rounds, limits).value ** 2 == pytest.approx(expected, rel=1e-12, abs=0)


def test_tree_sensitivity_of_many_participations():
    # The largest over all 85,625 patterns, by enumeration, which takes a minute.
    assert Tree().sensitivity(29, Participation.by_rounds_between(2, 10)).value ** 2 == pytest.approx(94, rel=1e-12)


# dp_findings §5: squared sensitivity of the tree; separation counted in rounds between, as in TensorFlow Privacy.
@pytest.mark.parametrize(
    ("rounds", "count", "between", "squared"),
    [(1600, 1, 1599, 11), (1600, 4, 399, 51), (1600, 6, 255, 82), (2052, 6, 341, 118)],
)
def test_tree_sensitivity_of_thousands_of_rounds(rounds, count, between, squared):
    limits = Participation.by_rounds_between(between, count)
    assert Tree().sensitivity(rounds, limits).value ** 2 == pytest.approx(squared, rel=1e-12, abs=0)


@pytest.mark.parametrize(("rounds", "squared"), [(4096, 4096 * 8191), (4095, 2 * (4**12 - 1) // 3 - 4095)])
def test_tree_sensitivity_of_a_client_in_all_rounds_is_that_of_full_nodes(rounds, squared):
    # A complete tree over n rounds has n / c nodes of c rounds for c = 1, 2, 4, ..., n: the sum of squares is
    # n (2 n - 1). 4095 rounds are complete trees over 2048, 1024, ..., 1.
    limits = Participation(1, rounds)
    assert Tree().sensitivity(rounds, limits).value ** 2 == pytest.approx(squared, rel=1e-12, abs=0)


def zcdp_epsilon(rho: float, delta: float) -> float:
    """Returns ε of ρ-zCDP by the conversion of Canonne, Kamath and Steinke 2020 (arXiv:2004.00010), on a grid."""
    orders = 1 + np.geomspace(1e-3, 1e4, 200_001)
    return float(np.min(rho * orders + np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)))


# Gboard's released accounting at δ = 1e-10 (anchors_fl_dp §E3); separations in rounds between.
def test_published_tree_run_has_rho_and_epsilon_of_its_notebook():
    sensitivity = Tree().sensitivity(2000, Participation.by_rounds_between(313, 6)).value
    rho = sensitivity**2 / (2 * 7.0**2)
    assert round(rho, 2) == 0.81
    assert round(zcdp_epsilon(rho, 1e-10), 2) == 8.90
    # The exact curve of the same Gaussian mechanism is smaller than the bound that follows from rho alone.
    assert round(gaussian_epsilon(7.0 / sensitivity, 1e-10), 2) == 8.53


@pytest.mark.parametrize(
    ("z", "bands", "between", "planned", "count", "rho", "epsilon"),
    [(1.411, 400, 484, 5, 3, 0.150684, 3.4240), (8.35, 1000, 1428, 1, 2, 0.0143426, 0.99355)]
    + [(8.35, 1000, 1132, 1, 2, 0.0143426, 0.99355)],
)
def test_published_banded_runs_have_rho_and_epsilon_of_their_notebook(z, bands, between, planned, count, rho, epsilon):
    # Own matrix with that many bands: a square root, columns scaled to one norm, so that `planned` participations have
    # sensitivity 1. The published matrices have columns of one norm, too.
    steps = np.arange(1, bands)
    column = np.concatenate([[1.0], np.cumprod((2 * steps - 1) / (2 * steps))])
    norms = np.sqrt(np.cumsum(column**2))[np.minimum(bands, np.arange(2000, 0, -1)) - 1]
    matrix = np.zeros((2000, 2000))
    for j in range(2000):
        length = min(bands, 2000 - j)
        matrix[j : j + length, j] = column[:length] / norms[j] / math.sqrt(planned)
    squares = np.sum(matrix**2, 0)
    sensitivity = math.sqrt(worst_sum(squares, Participation.by_rounds_between(between, count)))
    assert sensitivity**2 / (2 * z**2) == pytest.approx(rho, rel=4e-6, abs=0)
    assert gaussian_epsilon(z / sensitivity, 1e-10) == pytest.approx(epsilon, rel=2e-5, abs=0)


def test_later_rounds_never_lower_the_sensitivity():
    limits = Participation(3, 4)
    mechanisms: list[Mechanism] = [Tree(), Tree(4), Banded((1.0, 0.5)), BLT((0.9,), (0.5,))]
    for mechanism in mechanisms:
        values = [mechanism.sensitivity(rounds, limits).value for rounds in range(1, 14)]
        assert np.all(np.diff(values) >= -1e-12)


@pytest.mark.parametrize("mechanism", [Tree(), Tree(4), Banded((1.0, 0.5)), BLT((0.9,), (0.5,))])
def test_number_of_rounds_may_be_numpys(mechanism):
    rounds, limits = np.int64(13), Participation(3, 2)
    assert mechanism.sensitivity(rounds, limits) == mechanism.sensitivity(13, limits)
    assert mechanism.error(rounds) == mechanism.error(13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BLT((0.9,), (1.1,)), "weights have the sum 1.1: give at most 1"),
        (lambda: BLT((1.1,), (0.5,)), r"decays must lie in \[0, 1\], got 1.1"),
        (lambda: BLT((0.9,), (-0.1,)), "weights must be at least 0, got -0.1"),
        (lambda: BLT((0.9,), (math.nan,)), "weights must be at least 0, got nan"),
        (lambda: BLT((math.nan,), (0.5,)), "decays must lie in"),
        (lambda: BLT((0.9, 0.5), (0.5,)), "2 decays and 1 weights"),
        (lambda: Banded((2.0, 0.5)), "coefficients has 2 entries, the first .*2.0.*: give 1 to"),
        (lambda: Banded((1.0, math.inf)), "coefficients must be finite"),
        (lambda: Tree(0), "restart_every must be an integer of at least 1, got 0"),
        (lambda: Banded("123"), "coefficients must be a number, got '1': use privacy.correlated.optimize_banded"),  # type: ignore[arg-type]
        (lambda: Banded(1.0), "coefficients must be a list of numbers, got 1.0"),  # type: ignore[arg-type]
        (lambda: Banded((1.0, 1e200)), r"coefficients must be finite and in \[-1e6, 1e6\], got 1e\+200"),
        (lambda: BLT(0.5, 0.5), "decays must be a list of numbers, got 0.5"),  # type: ignore[arg-type]
        (lambda: Workload(3, learning_rates=5), "learning_rates must be a list of numbers, got 5"),  # type: ignore[arg-type]
        (lambda: Participation(5, 0), "max_participations must be an integer of at least 1, got 0"),
        (lambda: Participation(0, 3), "min_separation must be an integer of at least 1, got 0"),
        (lambda: Participation(2, 1.5), "max_participations must be an integer of at least 1, got 1.5"),  # type: ignore[arg-type]
        (lambda: Participation(2, 3).within(0), "rounds must be an integer of at least 1, got 0"),
        (lambda: least_loss(0, Participation(2, 3)), "rounds must be an integer of at least 1, got 0"),
        (lambda: Tree().sensitivity(0, Participation(2, 3)), "rounds must be an integer of at least 1, got 0"),
        (lambda: Banded((1.0, 0.5)).sensitivity(-1, Participation(2, 3)), "rounds must be an integer of at least 1"),
        (lambda: BLT((0.9,), (0.5,)).sensitivity(0, Participation(2, 3)), "rounds must be an integer of at least 1"),
        (lambda: Tree().error(0), "rounds must be an integer of at least 1, got 0"),
        (lambda: BLT((0.9,), (0.5,)).error("3"), "rounds must be an integer of at least 1, got '3'"),  # type: ignore[arg-type]
        (lambda: BLT((0.9,), (0.5,)).column(-1), "rounds must be an integer of at least 1, got -1"),
        (lambda: Participation(2, 3)._replace(min_separation=0), "min_separation must be an integer of at least 1"),
        (lambda: Workload(3, learning_rates=(1.0, 1e-300, 1.0)), r"learning_rates must lie in \[1e-50, 1e50\], got"),
        (lambda: optimize_blt([3], Workload(9), Participation(2, 3)), r"max_buffers must be an integer .* got \[3\]"),  # type: ignore[arg-type]
        (lambda: optimize_banded(3.0, Workload(9), Participation(2, 3)), "bands must be an integer .* got 3.0"),  # type: ignore[arg-type]
        (
            lambda: of_toeplitz(np.array([1.0, math.inf]), 9, Participation(2, 3)),
            "a coefficient is infinite or NaN: give finite numbers",
        ),
        (lambda: Participation.by_rounds_between(-1, 2), "between must be an integer of at least 0"),
    ],
)
def test_mechanism_outside_its_conditions_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
