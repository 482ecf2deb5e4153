"""Children are drawn from the distributions that `child_law` states.

Tests of frequencies are Pearson's at significance level 1e-6, with fixed seeds.
"""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.child_drafting import DRAFTINGS, child_law, draw_children, split
from models.decoding.numpy_ops import LEFT_OUT
from models.decoding.prng import random_words
from tests.oracles import pearson

LOGITS = np.array([0.3, 1.2, -0.5, 0.8, -40.0], np.float32)  # the last token has weight 0
ROWS = 1 << 14


def draw(drafting, count, logits=LOGITS, rows=ROWS):
    words, _ = random_words([1, 2], 1, tf.range(rows)[:, tf.newaxis], 0, tf.range(count))
    processed = tf.constant(np.tile(logits - logits.max(), (rows, 1)))
    return draw_children(drafting, processed, processed, words)


def probability_of(drafting, base, tokens):
    """Returns the probability of drafting children in this order, from the stated distributions."""
    result = 1.0
    for place, token in enumerate(tokens):
        law = child_law(drafting, tf.constant(base), tf.constant(tokens), place)
        result *= 1.0 if law is None else float(law[token])
    return result


@pytest.mark.parametrize("drafting", DRAFTINGS)
def test_children_are_drawn_from_the_distributions_that_are_stated(drafting):
    found = draw(drafting, 3)
    assert np.all(found.is_real)
    base, drawn = found.base[0].numpy(), found.tokens.numpy()
    certain = drawn[0, 1:] if drafting == "greedy" else None
    texts = [
        text
        for text in itertools.product(range(len(LOGITS)), repeat=3)
        if certain is None or list(text[1:]) == list(certain)
    ]
    law = np.array([probability_of(drafting, base, text) for text in texts])
    assert law.sum() == pytest.approx(1, abs=1e-6)
    number = {text: i for i, text in enumerate(texts)}
    observed = np.bincount([number[tuple(row)] for row in drawn.tolist()], minlength=len(texts)).astype(float)
    assert not observed[law == 0].any()
    is_frequent = law * ROWS >= 10
    counts, expected = (np.append(x[is_frequent], x[~is_frequent].sum()) for x in (observed, law * ROWS))
    assert pearson.p_value(counts, np.maximum(expected, 1e-9)) > 1e-6


def test_words_that_siblings_share_are_seen():
    """Planted fault: all children of a node are drawn with one word."""
    words, _ = random_words([1, 2], 1, tf.range(ROWS)[:, tf.newaxis], 0, [0, 0])
    processed = tf.constant(np.tile(LOGITS - LOGITS.max(), (ROWS, 1)))
    drawn = draw_children("independent", processed, processed, words).tokens.numpy()
    assert np.all(drawn[:, 0] == drawn[:, 1])
    assert np.mean(draw("independent", 2).tokens[:, 0] == draw("independent", 2).tokens[:, 1]) < 0.5


def test_greedy_children_are_the_likeliest_after_one_that_is_drawn_from_the_others():
    found = draw("greedy", 3)
    np.testing.assert_array_equal(found.tokens[:, 1:], [[1, 3]] * ROWS)
    np.testing.assert_array_equal(found.base[0].numpy() > 0, [True, False, True, False, False])
    assert set(found.tokens[:, 0].numpy().tolist()) == {0, 2}


def test_first_greedy_child_is_the_next_likeliest_where_no_other_token_has_probability():
    logits = np.array([0.0, -50.0, -60.0, LEFT_OUT], np.float32)
    found = draw("greedy", 2, logits, 4)
    np.testing.assert_array_equal(found.tokens, [[1, 0]] * 4)
    np.testing.assert_array_equal(found.base, [[0, 1, 0, 0]] * 4)
    assert np.all(found.is_real)


def test_more_children_than_tokens_are_missing_without_replacement():
    logits = np.array([0.0, 0.5, -50.0], np.float32)
    found = draw("without-replacement", 3, logits, 8)
    np.testing.assert_array_equal(found.is_real, [[True, True, False]] * 8)


@pytest.mark.parametrize("drafting", DRAFTINGS)
def test_a_row_that_proposes_nothing_has_no_children(drafting):
    found = draw(drafting, 2, np.full(4, np.nan, np.float32), 3)
    assert not np.any(found.is_real)


def test_split_leaves_the_weights_of_drawn_children_alone():
    weights = tf.constant([[0.5, 0.2, 0.3]])
    for drafting in ("independent", "without-replacement"):
        left, certain = split(drafting, weights, weights, 2)
        np.testing.assert_array_equal(left, weights)
        assert certain.shape == (1, 0)
    left, certain = split("greedy", weights, weights, 2)
    np.testing.assert_array_equal(certain, [[0]])
    np.testing.assert_allclose(left, [[0, 0.2, 0.3]])
