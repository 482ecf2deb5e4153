"""Norms and clipped sums from factors against gradients that are made."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.dpsgd import clip_bounds, ghost_norms
from privacy.dpsgd.ghost_norms import Term
from tests.tolerance import rounding

pytestmark = pytest.mark.numerical


def made(term, count):
    """Each example's part of the gradient, in float64."""
    found = np.zeros((count, *term.weight.shape))
    for example in range(count):
        right = term.right[example].numpy().astype(np.float64)
        if term.left is None:
            found[example] = right
        elif term.is_rows:
            np.add.at(found[example], term.left[example].numpy(), right)
        else:
            found[example] = term.left[example].numpy().astype(np.float64).T @ right
    return found


def drawn(generator, kinds, count, size, width):
    weight = tf.Variable(tf.zeros([size, width], tf.float64))
    terms = []
    for kind, steps in kinds:
        right = tf.constant(generator.normal(size=(count, steps, width)))
        if kind == "outer":
            terms.append(Term(weight, tf.constant(generator.normal(size=(count, steps, size))), right))
        elif kind == "rows":
            terms.append(Term(weight, tf.constant(generator.integers(0, size, (count, steps)), tf.int32), right))
        else:
            terms.append(Term(weight, None, tf.constant(generator.normal(size=(count, size, width)))))
    return terms


KINDS = st.lists(st.tuples(st.sampled_from(["outer", "rows", "whole"]), st.integers(1, 6)), min_size=1, max_size=4)


@settings(max_examples=60)
@given(st.integers(0, 2**32), KINDS, st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))
def test_factors_give_what_gradients_give(seed, kinds, count, size, width):
    generator = np.random.default_rng(seed)
    terms = [*drawn(generator, kinds, count, size, width), *drawn(generator, [("whole", 1)], count, 3, 2)]
    groups = ghost_norms.by_weight(terms)
    assert len(groups) == 2
    first = sum(made(term, count) for term in terms[:-1])
    second = made(terms[-1], count)
    squares = (first**2).sum((1, 2)) + (second**2).sum((1, 2))
    bounds = clip_bounds.compute_bounds(groups)
    np.testing.assert_allclose(bounds.norm, np.sqrt(squares), rtol=1e-9)
    assert (bounds.norm.numpy() >= np.sqrt(squares) * (1 - 1e-15)).all()
    factors = generator.random(count)
    sums = ghost_norms.scaled_sums(groups, tf.constant(factors))
    for found, whole in zip(sums, (first, second), strict=True):
        np.testing.assert_allclose(found, np.tensordot(factors, whole, 1), rtol=1e-9, atol=1e-9)


def test_what_cancels_is_no_shorter_than_its_rounding():
    """Outer products of length 1e6 that cancel but for their rounding: the norm covers what the sum may hold."""
    generator = np.random.default_rng(0)
    weight = tf.Variable(tf.zeros([50, 50]))
    left = 1e3 * generator.normal(size=(200, 1, 50)).astype(np.float32)
    right = 1e3 * generator.normal(size=(200, 1, 50)).astype(np.float32)
    cancelling = generator.normal(size=(200, 1, 1)).astype(np.float32)
    term = Term(
        weight,
        tf.constant(np.concatenate([left, left * cancelling], 1)),
        tf.constant(np.concatenate([right * cancelling, -right], 1)),
    )
    groups = ghost_norms.by_weight([term])
    assert groups[0][0].left is not None  # by inner products
    norms = clip_bounds.compute_bounds(groups).norm.numpy()
    released = tf.matmul(term.left, term.right, transpose_a=True).numpy()
    assert (np.sqrt((released**2).sum((1, 2))) < norms).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_example_left_out_spoils_nothing(bad):
    generator = np.random.default_rng(0)
    terms = drawn(generator, [("outer", 2), ("rows", 2)], 3, 4, 5)
    spoiled = [
        Term(
            term.weight,
            term.left if term.is_rows else tf.tensor_scatter_nd_update(term.left, [[1, 0, 0]], [bad]),
            tf.tensor_scatter_nd_update(term.right, [[1, 0, 0]], [bad]),
        )
        for term in terms
    ]
    factors = tf.constant([0.5, 0.0, 2.0], tf.float64)
    found = ghost_norms.scaled_sums(ghost_norms.by_weight(spoiled), factors)[0]
    # Three examples of four products each, of normal numbers.
    expected = ghost_norms.scaled_sums(ghost_norms.by_weight(terms), factors)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding(3 * 4, 3 * 4 * 9.0, np.float64))
    norms = clip_bounds.compute_bounds(ghost_norms.by_weight(spoiled)).norm.numpy()
    assert not np.isfinite(norms[1])
    assert np.isfinite(norms[[0, 2]]).all()
