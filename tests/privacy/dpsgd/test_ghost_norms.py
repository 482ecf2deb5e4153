"""Tests norms and clipped sums that are computed from factors against materialised gradients."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.dpsgd import clip_bounds, ghost_norms
from privacy.dpsgd.ghost_norms import Term
from tests.tolerance import rounding

pytestmark = pytest.mark.numerical


def materialise(term, count):
    """Computes each example's part of the gradient in float64."""
    parts = np.zeros((count, *term.weight.shape))
    for example in range(count):
        right = term.right[example].numpy().astype(np.float64)
        if term.left is None:
            parts[example] = right
        elif term.is_rows:
            np.add.at(parts[example], term.left[example].numpy(), right)
        else:
            parts[example] = term.left[example].numpy().astype(np.float64).T @ right
    return parts


def draw_terms(generator, kinds, count, size, width):
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
def test_norms_and_scaled_sums_equal_those_of_materialised_gradients(seed, kinds, count, size, width):
    generator = np.random.default_rng(seed)
    terms = [*draw_terms(generator, kinds, count, size, width), *draw_terms(generator, [("whole", 1)], count, 3, 2)]
    groups = ghost_norms.by_weight(terms)
    assert len(groups) == 2
    first = sum(materialise(term, count) for term in terms[:-1])
    second = materialise(terms[-1], count)
    squares = (first**2).sum((1, 2)) + (second**2).sum((1, 2))
    bounds = clip_bounds.compute_bounds(groups)
    np.testing.assert_allclose(bounds.norm, np.sqrt(squares), rtol=1e-9)
    assert (bounds.norm.numpy() >= np.sqrt(squares) * (1 - 1e-15)).all()
    factors = generator.random(count)
    sums = ghost_norms.scaled_sums(groups, tf.constant(factors))
    for part, whole in zip(sums, (first, second), strict=True):
        np.testing.assert_allclose(part, np.tensordot(factors, whole, 1), rtol=1e-9, atol=1e-9)


def test_compute_bounds_covers_the_rounding_of_outer_products_that_cancel():
    """Outer products of norm 1e6 cancel except for their rounding, which the sum may hold."""
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
    assert groups[0][0].left is not None  # not materialised
    norms = clip_bounds.compute_bounds(groups).norm.numpy()
    released = tf.matmul(term.left, term.right, transpose_a=True).numpy()
    assert (np.sqrt((released**2).sum((1, 2))) < norms).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scaled_sums_are_not_spoiled_by_an_example_with_factor_zero(bad):
    generator = np.random.default_rng(0)
    terms = draw_terms(generator, [("outer", 2), ("rows", 2)], 3, 4, 5)
    spoiled = [
        Term(
            term.weight,
            term.left if term.is_rows else tf.tensor_scatter_nd_update(term.left, [[1, 0, 0]], [bad]),
            tf.tensor_scatter_nd_update(term.right, [[1, 0, 0]], [bad]),
        )
        for term in terms
    ]
    factors = tf.constant([0.5, 0.0, 2.0], tf.float64)
    total = ghost_norms.scaled_sums(ghost_norms.by_weight(spoiled), factors)[0]
    # Three examples of four products each, of normal numbers.
    expected = ghost_norms.scaled_sums(ghost_norms.by_weight(terms), factors)[0]
    np.testing.assert_allclose(total, expected, rtol=0, atol=rounding(3 * 4, 3 * 4 * 9.0, np.float64))
    norms = clip_bounds.compute_bounds(ghost_norms.by_weight(spoiled)).norm.numpy()
    assert not np.isfinite(norms[1])
    assert np.isfinite(norms[[0, 2]]).all()
