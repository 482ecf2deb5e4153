"""The p best paths are those of all paths, ranked one by one, whatever ties there are."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoding.katz_tables import KatzTables
from models.decoding.p_best import find_best_paths, p_best_paths
from models.katz import learn
from tests.oracles.backends import run_everywhere
from tests.oracles.lattice import rank

SIZE = 7
BATCH = 2


def make_tables(order):
    rows = np.minimum(1 + np.random.default_rng(order).geometric(0.4, (20, 12)), SIZE - 1)
    return KatzTables(learn(rows, SIZE, order))


TABLES = {order: make_tables(order) for order in (1, 2, 3, 4)}


def all_log_probs(order):
    """Returns ln P of every token after every history, float32 with an axis for each token."""
    histories = np.array([*np.ndindex(*[SIZE] * (order - 1))], np.int32)
    found = TABLES[order].log_probs(tf.constant(histories), tf.range(SIZE)[tf.newaxis])
    return found.numpy().reshape([SIZE] * order)


LOG_PROBS = {order: all_log_probs(order) for order in TABLES}


def make_lattice(seed, positions, width, order, values):
    """Draws candidates, scores (integers below `values` have ties; 0 draws from a normal distribution), histories."""
    generator = np.random.default_rng(seed)
    shape = (BATCH, positions, width)
    tokens = [[generator.permutation(SIZE)[:width] for _ in range(positions)] for _ in range(BATCH)]
    scores = generator.integers(0, values, shape) if values else generator.normal(0, 3, shape)
    history = generator.integers(0, SIZE, (BATCH, order - 1))
    return np.array(tokens, np.int32), scores.astype(np.float32), history.astype(np.int32)


def of_one(order):
    """Returns ln P of a token, or of several, after one history, as a function for the reference and the oracle."""
    return lambda history, tokens: LOG_PROBS[order][tuple(history)][tokens]


def find_in_graph(tokens, scores, history, alpha, log_probs, paths):
    return find_best_paths(tf.constant(tokens), tf.constant(scores), tf.constant(history), alpha, log_probs, paths)


def assert_same_as_oracle(found, tokens, scores, history, alpha, order, paths):
    for row in range(BATCH):
        best, units = rank(tokens[row], scores[row], history[row].tolist(), alpha, of_one(order), paths)
        np.testing.assert_array_equal(found.tokens[row][: len(best)], best)
        np.testing.assert_array_equal(found.tokens[row][len(best) :], -1)
        largest = scores[row].max(axis=1).astype(np.float64).sum()
        expected = np.array(units) / 2**16 + largest
        np.testing.assert_allclose(found.scores[row][: len(best)], expected, rtol=1e-6, atol=1e-5)
        np.testing.assert_array_equal(found.scores[row][len(best) :], -np.inf)


CASES = [(1, 3, 1), (1, 3, 4), (3, 3, 1), (3, 3, 4), (3, 3, 30), (4, 2, 1), (4, 2, 5)]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("values", [0, 2])
@pytest.mark.parametrize("find", ["graph", "reference"])
def test_paths_are_the_best_of_all_paths(order, values, find):
    tables = TABLES[order]
    for seed, (positions, width, paths) in enumerate(CASES):
        tokens, scores, history = make_lattice(seed, positions, width, order, values)
        alpha = (0.0, 0.5, 2.0)[seed % 3]
        if find == "graph":
            found = find_in_graph(tokens, scores, history, alpha, tables.log_probs, paths)
        else:
            found = p_best_paths(tokens, scores, history, alpha, of_one(order), paths)
        assert found.tokens.shape == (BATCH, paths, positions) and found.scores.shape == (BATCH, paths)
        assert_same_as_oracle(found, tokens, scores, history, alpha, order, paths)
        assert (np.diff(np.maximum(found.scores, -1e30)) <= 0).all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    order=st.integers(1, 4),
    positions=st.integers(1, 5),
    width=st.integers(1, 4),
    paths=st.integers(1, 9),
    values=st.sampled_from([0, 2, 5]),
    alpha=st.sampled_from([0.0, 0.25, 1.0, 5.0]),
    seed=st.integers(0, 999),
)
def test_graph_equals_the_reference(order, positions, width, paths, values, alpha, seed):
    tables = TABLES[order]
    tokens, scores, history = make_lattice(seed, positions, width, order, values)
    found = find_in_graph(tokens, scores, history, alpha, tables.log_probs, paths)
    expected = p_best_paths(tokens, scores, history, alpha, of_one(order), paths)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("order", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_graph_xla_and_tflite_find_the_paths_of_eager_mode(order):
    tokens, scores, history = make_lattice(5, 4, 3, order, 3)

    def find(tokens, scores, history, alpha):
        return find_best_paths(tokens, scores, history, alpha, TABLES[order].log_probs, 6)._asdict()

    arguments = {"tokens": tokens, "scores": scores, "history": history, "alpha": np.float32(0.7)}
    outputs = run_everywhere(find, **arguments)
    for output in outputs.values():
        np.testing.assert_array_equal(output["tokens"], outputs["eager"]["tokens"])
        np.testing.assert_array_equal(output["scores"], outputs["eager"]["scores"])


def test_first_path_without_the_model_is_the_argmax_of_every_head_also_where_scores_nearly_tie():
    tokens, scores, history = make_lattice(3, 4, 5, 3, 2)
    scores[:] = np.where(scores == 0, np.float32(1), np.nextafter(np.float32(1), np.float32(2)))
    scores[0, 1] *= -1
    scores[1, 2, 1:] = -np.inf
    for log_probs, alpha in ((TABLES[3].log_probs, 0), (TABLES[3].log_probs, tf.constant(0.0)), (None, 1.0)):
        found = find_in_graph(tokens, scores, history, alpha, log_probs, 1).tokens.numpy()[:, 0]
        dense = np.full([*tokens.shape[:2], SIZE], -np.inf, np.float32)
        np.put_along_axis(dense, tokens, scores, axis=2)
        np.testing.assert_array_equal(found, dense.argmax(axis=2))


@pytest.mark.parametrize("find", [find_in_graph, p_best_paths])
def test_paths_with_several_hopeless_candidates_are_the_last_ones(find):
    """Each of these lacks more than can be added up in 32 bits."""
    tokens, scores, history = make_lattice(4, 5, 2, 1, 2)
    scores[:] = [0, -1e9]
    found = find(tokens, scores, history, 0, None, 2**5)
    for row in range(BATCH):
        best, _ = rank(tokens[row], scores[row], [], 0, None, 2**5)
        np.testing.assert_array_equal(found.tokens[row], best)


def test_scores_are_those_of_the_models_float64_probabilities():
    rows = np.minimum(1 + np.random.default_rng(3).geometric(0.4, (20, 12)), SIZE - 1)
    model = learn(rows, SIZE, 3)
    tokens, scores, history = make_lattice(1, 4, 3, 3, 0)
    found = find_in_graph(tokens, scores, history, 0.8, TABLES[3].log_probs, 3)
    for row in range(BATCH):
        for path, score in zip(found.tokens[row].numpy(), found.scores[row].numpy(), strict=True):
            text, total = history[row].tolist(), 0.0
            for candidates, of_heads, token in zip(tokens[row], scores[row], path, strict=True):
                total += of_heads[candidates == token].item() + 0.8 * model.log_prob(text, int(token))
                text.append(int(token))
            # Each position is rounded down by at most one unit, and to the nearest by half of one.
            assert abs(score - total) < 4 * 2 * 2.0**-16


@pytest.mark.parametrize("call", [find_best_paths, p_best_paths])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paths": 0}, "paths = 0: must be an integer >= 1"),
        ({"paths": 1.0}, "paths = 1.0: must be an integer >= 1"),
        ({"alpha": -0.5}, "alpha = -0.5: must be a finite number >= 0"),
        ({"alpha": float("nan")}, "alpha = nan: must be a finite number >= 0"),
        ({"alpha": float("inf")}, "alpha = inf: must be a finite number >= 0"),
        ({"alpha": True}, "alpha = True: must be a finite number >= 0"),
    ],
)
def test_options_out_of_range_are_refused(call, changes, message):
    tokens, scores, history = make_lattice(0, 2, 2, 2, 2)
    arguments = {"alpha": 1.0, "paths": 2, "log_probs": lambda history, tokens: None, **changes}
    with pytest.raises(ValueError, match=message):
        call(tokens=tokens, scores=scores, history=history, **arguments)
