from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.katz_tables import KatzTables
from models.katz import learn
from tests.oracles.backends import run_everywhere

SIZE = 60


def make_model(order, **limits):
    rows = np.minimum(1 + np.random.default_rng(order).geometric(0.08, (60, 20)), SIZE - 1)
    return learn(rows, SIZE, order, **limits)


def make_queries(order, seed=0):
    """Draws histories, of which some begin with padding, and candidates."""
    generator = np.random.default_rng(seed)
    histories = np.minimum(generator.geometric(0.08, (40, order - 1)), SIZE - 1)
    for row, begin in enumerate(generator.integers(0, 4, len(histories))):
        histories[row, :begin] = 0
    return histories.astype(np.int32), generator.integers(0, SIZE, (40, 9)).astype(np.int32)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_log_probs_are_those_of_the_reference(order):
    cases: tuple[dict[str, Any], ...] = ({}, {"max_entries": 50}, {"min_counts": [2] * (order - 1)}, {"max_entries": 1})
    for limits in cases:
        model = make_model(order, **limits)
        histories, tokens = make_queries(order)
        found = KatzTables(model).log_probs(tf.constant(histories), tf.constant(tokens))
        pairs = zip(histories.tolist(), tokens.tolist(), strict=True)
        expected = [[model.log_prob(history, token) for token in row] for history, row in pairs]
        # Of n + 1 logarithms, each is rounded by half of 2**-23; float32 keeps the sum within half a unit of 8 to 16.
        assert found.dtype == tf.float32 and np.min(expected) > -16
        np.testing.assert_allclose(found, expected, rtol=0, atol=(order + 1) * 2.0**-24 + 2.0**-21)


def test_axes_of_histories_and_candidates_broadcast():
    tables = KatzTables(make_model(3))
    histories, tokens = make_queries(3)
    alone = tables.log_probs(tf.constant(histories), tf.constant(np.tile(tokens[:1], (40, 1))))
    found = tables.log_probs(tf.constant(histories.reshape(4, 10, 2)), tf.constant(tokens[np.newaxis, :1]))
    np.testing.assert_array_equal(found, tf.reshape(alone, [4, 10, 9]))


@pytest.mark.parametrize("order", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_every_backend_gives_the_same_bits(order):
    tables = KatzTables(make_model(order))
    histories, tokens = make_queries(order)

    def look_up(histories, tokens):
        return {"found": tables.log_probs(histories, tokens)}

    outputs = run_everywhere(look_up, histories=histories, tokens=tokens)
    for output in outputs.values():
        np.testing.assert_array_equal(output["found"], outputs["eager"]["found"])


def test_tables_have_the_documented_size():
    model = make_model(3)
    tables, entries = KatzTables(model), len(model.tokens)
    others = 16 * (len(model.backoff) + SIZE)
    assert 16 * 16 / 15 * entries + 4 / 3 * entries <= tables.nbytes - others <= 20 * entries + 64


def test_tables_as_variables_give_the_same():
    tables = KatzTables(make_model(2))
    held = []

    def hold(array):
        held.append(tf.Variable(array, trainable=False))
        return held[-1]

    deployed = tables.deploy(hold)
    assert sum(4 * variable.shape[0] for variable in held) == tables.nbytes == deployed.nbytes
    queries = [tf.constant(part) for part in make_queries(2)]
    np.testing.assert_array_equal(deployed.log_probs(*queries), tables.log_probs(*queries))
