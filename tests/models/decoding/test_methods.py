import numpy as np
import pytest
import tensorflow as tf

from models.decoding import numpy_ops
from models.decoding.greedy_block import GREEDY_BLOCK
from models.decoding.methods import METHODS, Invariant, Plain, Speculative, build_method
from models.decoding.numpy_ops import Stream
from models.decoding.verification import block_rule, token_rule

SEED = tf.constant([5, 6])
REQUEST = tf.constant([7, 8, 9])


def test_every_name_builds_its_method():
    assert isinstance(build_method("autoregressive"), Plain)
    assert isinstance(build_method("invariant"), Invariant)
    rules = {}
    for name in METHODS:
        method = build_method(name)
        if isinstance(method, Speculative):
            rules[name] = method.verifier
    assert set(rules) == {"speculative", "block", "greedy-block"}
    assert rules["speculative"].rule is token_rule and rules["block"].rule is block_rule
    assert rules["greedy-block"] is GREEDY_BLOCK


@pytest.mark.parametrize("name", ["", "Block", "greedy_block", "spec", None, 1])
def test_unknown_name_is_refused_in_one_line_with_the_choices(name):
    with pytest.raises(ValueError) as caught:
        build_method(name)
    assert str(caught.value) == f"decoding = {name!r}: must be one of {', '.join(METHODS)}"


def test_only_greedy_block_carries_something():
    carries = {name for name in METHODS if tf.nest.flatten(build_method(name).initial_carry(2, 3))}
    assert carries == {"greedy-block"}


def test_plain_decoding_takes_no_drafter():
    with pytest.raises(ValueError, match="^decoding = 'autoregressive': takes no drafter; choose another"):
        build_method("autoregressive").draw(tf.zeros([3, 4]), (), 0)


def test_plain_words_are_those_of_positions():
    starts = tf.constant([[4, 5], [6, 7], [0, 1]])
    words = build_method("autoregressive").words(SEED, REQUEST, starts, 0)
    expected = numpy_ops.random_words(SEED.numpy(), Stream.SAMPLE, REQUEST.numpy()[:, np.newaxis], starts.numpy())
    for word, own in zip(words, expected, strict=True):
        np.testing.assert_array_equal(word, own)


def test_invariant_noise_depends_on_the_position_only_and_not_on_the_block():
    method = build_method("invariant")

    def noise(start, draft_length):
        words = method.words(SEED, REQUEST, tf.fill([3, 1], start), draft_length)
        return method.noise(tf.nest.map_structure(lambda part: part[:, 0], words), draft_length, 5).numpy()

    np.testing.assert_array_equal(noise(4, 3)[:, 1:], noise(5, 2))
    np.testing.assert_array_equal(noise(4, 3)[:, :1], noise(4, 0))
    assert len(np.unique(noise(4, 3))) == 3 * 4 * 5


def test_drawn_law_is_the_one_that_the_token_was_drawn_with():
    """Weights of 31 bits round the softmax: rare tokens become impossible, and the law must say so."""
    processed = tf.constant([[0.0, -1.0, -25.0, -np.inf]])
    method = build_method("block")
    words = method.words(SEED, tf.constant([1]), tf.constant([[3]]), 1)
    drawn = method.draw(processed, tf.nest.map_structure(lambda part: part[:, 0], words), 0)
    weights = np.floor(np.float64(tf.nn.softmax(processed)[0]) * 2.0**31)
    np.testing.assert_allclose(drawn.law[0], weights / weights.sum(), rtol=1e-6)
    assert drawn.law[0, 2] == drawn.law[0, 3] == 0


def test_a_row_that_proposes_nothing_draws_minus_one():
    method = build_method("block")
    words = method.words(SEED, tf.constant([1]), tf.constant([[3]]), 1)
    nothing = tf.constant([[np.nan] * 4])
    drawn = method.draw(nothing, tf.nest.map_structure(lambda part: part[:, 0], words), 0)
    assert drawn.token[0] == -1 and not np.any(drawn.law)
