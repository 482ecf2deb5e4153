"""Tests of workloads, errors and optimisers, against dense matrices, finite differences and jax-privacy."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest

from privacy.correlated import BLT, Banded, Participation, Tree, Workload, least_loss, optimize_banded, optimize_blt
from privacy.correlated.toeplitz import Loss, divide, root_mean_square_error
from tests.oracles import participation as oracle

RATES = (1.0, 0.5, 2.0, 1.0, 0.25, 3.0, 1.0)
WORKLOADS = [
    Workload(7),
    Workload(7, momentum=0.9),
    Workload(7, momentum=0.5, weight_decay=0.2),
    Workload(7, learning_rates=RATES),
    Workload(7, 0.9, 0.1, RATES),
]


def run_server(workload: Workload, updates: np.ndarray) -> np.ndarray:
    """Returns the weights after each round of the server that `Workload` describes, step by step."""
    velocity, weights, trace = 0.0, 0.0, []
    for round_number, update in enumerate(updates):
        velocity = workload.momentum * velocity + update
        rate = 1.0 if workload.learning_rates is None else workload.learning_rates[round_number]
        weights = (1 - workload.weight_decay) * weights - rate * velocity
        trace.append(weights)
    return np.array(trace)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_workload_is_what_the_server_computes(workload):
    columns = [-run_server(workload, unit) for unit in np.eye(7)]
    assert workload.matrix() == pytest.approx(np.array(columns).T, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_error_is_the_norm_of_the_workload_times_the_inverse(workload):
    column = np.array([1.0, 0.6, 0.3, -0.2])
    decoder = workload.matrix() @ np.linalg.inv(oracle.toeplitz(column, 7))
    expected = np.linalg.norm(decoder) / math.sqrt(7)
    assert root_mean_square_error(column, workload) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("count", [3, 100])
def test_division_inverts_multiplication_for_few_and_many_coefficients(count):
    generator = np.random.default_rng(1)
    column = np.concatenate([[1.0], generator.normal(size=count - 1) / count])
    quotient = generator.normal(size=150)
    product = oracle.toeplitz(column, 150) @ quotient
    # Rounding of sums of 150 products of numbers up to about 3, amplified by an inverse of norm below 10.
    assert divide(product, column) == pytest.approx(quotient, rel=0, abs=1e-12)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_gradient_equals_finite_differences(workload):
    loss = Loss(workload, Participation(3, 2))
    column, step = np.array([1.0, 0.5, 0.3]), 1e-6
    _, gradient = loss(column)
    differences = [(loss(column + step * unit)[0] - loss(column - step * unit)[0]) / (2 * step) for unit in np.eye(3)]
    # Truncation of order step², and rounding 1e-16 / step.
    assert gradient == pytest.approx(differences, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("restart_every", [None, 1, 4, 5, 8])
def test_tree_error_is_that_of_the_best_estimates_from_below(restart_every):
    rounds, length = 13, restart_every or 13
    nodes = oracle.tree(rounds, restart_every)

    def least_variance(first: int, end: int) -> float:
        """Returns the variance of the best unbiased estimate of a block's sum from the nodes within the block."""
        inside = nodes[[set(np.flatnonzero(row)) <= set(range(first, end)) for row in nodes]]
        target = np.zeros(rounds)
        target[first:end] = 1
        weights = np.linalg.lstsq(inside.T, target, rcond=None)[0]  # the solution of least norm
        assert inside.T @ weights == pytest.approx(target, abs=1e-9)
        return float(weights @ weights)

    total = 0.0
    for prefix in range(1, rounds + 1):
        first = 0
        for tree in range(0, prefix, length):
            end = min(tree + length, prefix)
            for height in reversed(range(8)):
                if (end - tree) >> height & 1:
                    total += least_variance(first, first + 2**height)
                    first += 2**height
    assert Tree(restart_every).error(rounds) == pytest.approx(math.sqrt(total / rounds), rel=1e-9, abs=0)


def grid_loss(column: np.ndarray, workload: Workload, limits: Participation) -> float:
    sensitivity = oracle.sensitivity(oracle.toeplitz(column, workload.rounds), *limits)
    return sensitivity * root_mean_square_error(column, workload)


@pytest.mark.parametrize(
    "workload", [Workload(10), Workload(10, momentum=0.9), Workload(10, 0.9, 0.0, (*[1.0] * 6, 0.4, 0.3, 0.2, 0.1))]
)
def test_banded_optimum_beats_every_point_of_a_grid(workload):
    limits = Participation(3, 3)
    found = optimize_banded(3, workload, limits)
    loss = grid_loss(np.array(found.coefficients), workload, limits)
    grid = np.arange(-1.0, 2.01, 0.25)
    assert loss <= min(grid_loss(np.array([1.0, a, b]), workload, limits) for a, b in itertools.product(grid, grid))


def test_bands_beyond_the_separation_stay_falling_and_beat_every_falling_point_of_a_grid():
    workload, limits = Workload(8), Participation(2, 3)
    found = optimize_banded(3, workload, limits)
    assert found.sensitivity(8, limits).is_exact
    loss = grid_loss(np.array(found.coefficients), workload, limits)
    grid = [(a, a * b) for a, b in itertools.product(np.arange(0, 1.01, 0.1), repeat=2)]
    assert loss <= min(grid_loss(np.array([1.0, *point]), workload, limits) for point in grid) * (1 + 1e-9)


def test_blt_optimum_beats_every_point_of_a_grid():
    workload, limits = Workload(10), Participation(4, 2)
    found = optimize_blt(1, workload, limits)
    loss = found.sensitivity(10, limits).value * found.error(10)
    points = itertools.product(np.arange(0, 1.01, 0.1), np.arange(0.01, 1.0, 0.07))
    blts = [BLT((decay,), (weight,)) for decay, weight in points]
    assert loss <= min(blt.sensitivity(10, limits).value * blt.error(10) for blt in blts) * (1 + 1e-9)


def test_blt_of_one_buffer_equals_that_of_jax_privacy():
    # jax-privacy 2.0.0, buffered_toeplitz.optimize(n=500, min_sep=100, max_participations=5, error="mean", 1 buffer):
    # log of the squared loss times n, decay and weight.
    limits = Participation(100, 5)
    found = optimize_blt(1, Workload(500), limits)
    assert found.decays == pytest.approx((0.97276857,), rel=1e-6, abs=0)
    assert found.weights == pytest.approx((0.30194545,), rel=1e-5, abs=0)
    loss = 2 * math.log(found.sensitivity(500, limits).value * found.error(500)) + math.log(500)
    assert loss == pytest.approx(10.200276325993771, rel=1e-10, abs=0)


def test_banded_optimum_equals_that_of_jax_privacy():
    # jax-privacy 2.0.0, toeplitz.optimize_banded_toeplitz(100, 8): mean squared error at sensitivity 1, coefficients
    # up to a factor.
    limits = Participation(100, 1)
    found = optimize_banded(8, Workload(100), limits)
    assert (found.sensitivity(100, limits).value * found.error(100)) ** 2 == pytest.approx(9.76766273499948, rel=1e-8)
    theirs = [0.64414165, 0.39714823, 0.33192623, 0.29569514, 0.26975202, 0.24832728, 0.22852924, 0.20757161]
    assert found.coefficients == pytest.approx(np.array(theirs) / theirs[0], rel=1e-4, abs=0)


def test_more_buffers_and_more_bands_never_raise_the_loss():
    workload, limits = Workload(150), Participation(30, 5)

    def loss(mechanism: Banded | BLT) -> float:
        sensitivity = mechanism.sensitivity(150, limits)
        assert sensitivity.is_exact
        return sensitivity.value * mechanism.error(150)

    banded = [loss(optimize_banded(bands, workload, limits)) for bands in (1, 4, 30)]
    blts = [loss(optimize_blt(buffers, workload, limits)) for buffers in (1, 2)]
    assert banded == sorted(banded, reverse=True) and blts == sorted(blts, reverse=True)
    # With one band the noise is independent: sensitivity sqrt(5), error of a prefix sum of t rounds sqrt(t).
    assert banded[0] == pytest.approx(math.sqrt(5 * 151 / 2), rel=1e-12, abs=0)
    assert least_loss(150, limits) <= banded[-1] < blts[-1] < banded[1]


@pytest.mark.parametrize(("separation", "count"), [(1, 4), (4, 1), (2, 2), (3, 2), (3, 1)])
def test_lower_bound_holds_for_random_factorisations(separation, count):
    # It must hold for every C, so for matrices without structure, too. 7 rounds.
    limits = Participation(separation, count)
    bound = least_loss(7, limits)
    workload, generator = Workload(7).matrix(), np.random.default_rng(3)
    losses = []
    for scale in (0.1, 0.3, 1.0):
        for _ in range(20):
            matrix = np.eye(7) + scale * np.tril(generator.normal(size=(7, 7)))
            error = np.linalg.norm(workload @ np.linalg.inv(matrix)) / math.sqrt(7)
            losses.append(oracle.sensitivity(matrix, *limits) * error)
    assert bound <= min(losses)


def test_lower_bound_is_the_nuclear_norm_for_one_participation():
    workload = Workload(40).matrix()
    expected = np.linalg.svd(workload, compute_uv=False).sum() / 40
    assert least_loss(40, Participation(40, 1)) == pytest.approx(expected, rel=1e-12, abs=0)


def test_momentum_within_the_objective_lowers_the_error_of_the_weights_with_momentum():
    limits = Participation(10, 4)
    with_momentum = Workload(40, momentum=0.9)
    inside, outside = (optimize_banded(10, w, limits) for w in (with_momentum, Workload(40)))

    def error(mechanism: Banded) -> float:
        column = np.array(mechanism.coefficients)
        return mechanism.sensitivity(40, limits).value * root_mean_square_error(column, with_momentum)

    assert error(inside) < error(outside)
    assert inside.optimized_for == "prefix sums over 40 rounds with momentum 0.9"


@pytest.mark.parametrize(("rounds", "separation", "participations"), [(20, 5, 4), (32, 8, 4), (24, 6, 4)])
def test_bands_beyond_the_separation_are_left_out_where_they_gain_nothing(rounds, separation, participations):
    limits = Participation(separation, participations)
    found = optimize_banded(16, Workload(rounds), limits)
    assert found == optimize_banded(separation, Workload(rounds), limits) and found.bands == separation


def test_bands_beyond_the_separation_are_kept_where_they_lower_the_error():
    limits = Participation(2, 2)
    found, short = optimize_banded(8, Workload(30), limits), optimize_banded(2, Workload(30), limits)
    assert found.bands == 8
    errors = [each.sensitivity(30, limits).value * each.error(30) for each in (found, short)]
    assert errors[0] < 0.9 * errors[1]


def test_what_cannot_be_optimised_is_refused():
    limits = Participation(10, 4)
    with pytest.raises(ValueError, match="bands must be an integer of at least 1, got 0"):
        optimize_banded(0, Workload(40), limits)
    with pytest.raises(ValueError, match="max_buffers must be at most 16, got 17"):
        optimize_blt(17, Workload(40), limits)
    with pytest.raises(ValueError, match="a horizon of 5,000 rounds is too long to optimise for: give 4,096"):
        optimize_blt(2, Workload(5000), limits)
    with pytest.raises(ValueError, match="2 learning_rates for 3 rounds"):
        Workload(3, learning_rates=(1.0, 1.0))
    changes: list[tuple[str, Any]] = [("momentum", 1.0), ("momentum", "x"), ("weight_decay", math.nan), ("rounds", 0)]
    for name, value in changes:
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(Workload(3), **{name: value})
