"""Tests of correlated noise round by round, against dense matrices and TensorFlow Privacy's tree."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_privacy as tfp
from tensorflow_privacy.privacy.dp_query import restart_query

from fl import gaussian
from fl.correlated_noise import build_stream
from privacy.correlated import BLT, Banded, Tree
from tests.oracles import participation as oracle

ROUNDS, SIZE = 13, 5
TOEPLITZ = [
    Banded((1.0,)),
    Banded((1.0, 0.6)),
    Banded((1.0, 0.5, -0.3, 0.25)),
    BLT((0.9,), (0.4,)),
    BLT((0.99, 0.5, 0.0), (0.3, 0.4, 0.2)),
]


def seeded(round_number):
    return lambda name: gaussian.standard_normal(SIZE, gaussian.stream(np.array([7, round_number], np.int64), name))


def run(mechanism, rounds=ROUNDS, draws=seeded):
    stream = build_stream(mechanism, rounds)
    history, noises = stream.initial(SIZE), []
    for number in range(rounds):
        noise, history = stream.following(history, draws(number))
        noises.append(noise.numpy())
    return np.array(noises), history


@pytest.mark.parametrize("mechanism", TOEPLITZ)
def test_noise_times_the_matrix_is_the_fresh_noise(mechanism):
    noises, _ = run(mechanism)
    fresh = np.array([seeded(number)("update").numpy() for number in range(ROUNDS)])
    encoded = oracle.toeplitz(mechanism.column(ROUNDS), ROUNDS) @ noises.astype(np.float64)
    # Up to 13 float32 products of numbers below 8, errors of earlier rounds included.
    assert encoded == pytest.approx(fresh, rel=0, abs=2e-5)


@pytest.mark.parametrize("mechanism", [*TOEPLITZ, Tree(), Tree(4)])
def test_history_has_the_number_of_vectors_that_the_mechanism_states(mechanism):
    _, history = run(mechanism)
    assert sum(value.shape[0] for value in history.values() if value.shape.rank == 2) == mechanism.vectors(ROUNDS)


@pytest.mark.parametrize("mechanism", [*TOEPLITZ, Tree(), Tree(4)])
def test_noise_after_a_resume_is_the_same_to_the_bit(mechanism):
    whole, _ = run(mechanism)
    stream = build_stream(mechanism, ROUNDS)
    history = stream.initial(SIZE)
    for number in range(6):
        _, history = stream.following(history, seeded(number))
    restored = {name: tf.constant(value.numpy()) for name, value in history.items()}
    for number in range(6, ROUNDS):
        noise, restored = stream.following(restored, seeded(number))
        np.testing.assert_array_equal(noise, whole[number])


@pytest.mark.parametrize("mechanism", [*TOEPLITZ, Tree(), Tree(4)])
@pytest.mark.parametrize("rounds", [7, 8])  # 2^m - 1 rounds fill a tree
def test_round_after_the_planned_ones_is_refused_in_every_graph(mechanism, rounds):
    stream = build_stream(mechanism, rounds)
    _, history = run(mechanism, rounds)
    message = f"the plan has {rounds} rounds and all are done: plan more rounds in a new run"

    def is_refused(call):
        try:
            call()
        except tf.errors.InvalidArgumentError as error:
            return message in str(error)
        return False

    assert is_refused(lambda: stream.following(history, seeded(rounds)))
    assert is_refused(lambda: tf.function(lambda history: stream.following(history, seeded(rounds))[0])(history))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        given = {name: tf.compat.v1.placeholder(value.dtype, value.shape) for name, value in history.items()}
        noise, _ = stream.following(given, seeded(rounds))
        values = {given[name]: value.numpy() for name, value in history.items()}
        assert is_refused(lambda: session.run(noise, values))


class Listed(tfp.tree_aggregation.ValueGenerator):
    """Returns the rows of a table one after another; the state is the number of the next row."""

    def __init__(self, table):
        self.table = tf.constant(table)

    def initialize(self):
        return tf.constant(0)

    def next(self, state):
        return self.table[state], state + 1


def tensorflow_privacys(table, restart_every):
    """Returns the noise that TensorFlow Privacy's tree adds to each of the rounds, [rounds, size]."""
    spec = tf.TensorSpec([SIZE])
    query = tfp.TreeResidualSumQuery(spec, Listed(table), lambda record, _: record, 1.0, use_efficient=True)
    if restart_every is not None:
        query = restart_query.RestartQuery(query, restart_query.PeriodicRoundRestartIndicator(restart_every))
    state, rows = query.initial_global_state(), []
    for _ in range(ROUNDS):
        noise, state, _ = query.get_noised_result(tf.zeros([SIZE]), state)
        rows.append(noise.numpy())
    return np.array(rows)


@pytest.mark.parametrize("restart_every", [None, 4, 5])
def test_tree_with_the_same_node_noise_equals_tensorflow_privacys(restart_every):
    table = np.random.default_rng(1).normal(size=(60, SIZE)).astype(np.float32)
    expected = tensorflow_privacys(table, restart_every)
    # TensorFlow Privacy draws the nodes of a round at the end of the round before; if a tree ends there, it has drawn
    # the nodes of one more round of the old tree in vain.
    rows = iter(table)
    length = restart_every or ROUNDS

    def draws(number):
        in_tree = number % length
        if number and in_tree == 0:
            for _ in range(1 + int(math.log2(length + 1 & -(length + 1)))):
                next(rows)
        return lambda name: tf.constant(next(rows))

    noises, _ = run(Tree(restart_every), draws=draws)
    assert noises == pytest.approx(expected, rel=0, abs=1e-6 * np.abs(expected).max())


def draw_wide(seed, name):
    return gaussian.standard_normal(4000, gaussian.stream(seed, name))


@pytest.mark.parametrize("mechanism", [Tree(), Tree(4), Banded((1.0, 0.6, 0.3)), BLT((0.9, 0.5), (0.4, 0.3))])
def test_error_of_prefix_sums_is_the_stated_one(mechanism):
    size = 4000
    stream = build_stream(mechanism, ROUNDS)
    history, total, squares = stream.initial(size), np.zeros(size), []
    for number in range(ROUNDS):
        seed = np.array([3, number], np.int64)
        noise, history = stream.following(history, functools.partial(draw_wide, seed))
        total += noise.numpy()
        squares.append(np.mean(total**2))
    # The mean of the 13 variances has a relative standard deviation below sqrt(2 / 4000) = 2.2 %: 6 of them, at half
    # that for the root. Without the variance reduction the tree's error is 18 % larger.
    assert math.sqrt(np.mean(squares)) == pytest.approx(mechanism.error(ROUNDS), rel=0.067)


def test_a_restarted_tree_does_not_use_noise_again():
    # 4 rounds a tree: in rounds 0 and 4 the noise is one fresh leaf each. If the second were that of the first tree, or
    # took back what is in the model, the difference would be 0, or the sum would not hold 2 leaves.
    noises, _ = run(Tree(4))
    leaves = [seeded(number)("update, tree level 0").numpy() for number in (0, 4)]
    np.testing.assert_array_equal(noises[[0, 4]], leaves)
    assert np.all(leaves[0] != leaves[1])
