"""Greedy block verification with its carry is lossless over several blocks, also of ragged drafts; faults are found."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.enumeration import enumerate_output, joint_law, texts_up_to
from models.decoding.greedy_block import GREEDY_BLOCK, Carry, advance, greedy_block_rule, initial_carry, modify
from models.decoding.lossless import check_lossless, draw_pair
from models.decoding.prng import block_words
from models.decoding.verification import block_rule, token_rule, verify
from models.decoding.verifier import Verifier
from tests.oracles.backends import everywhere


@pytest.mark.numerical
@pytest.mark.parametrize(
    ("blocks", "dtype"), [pytest.param(2, np.float64, marks=pytest.mark.slow), (3, np.float64), (3, np.float32)]
)
def test_output_over_several_blocks_has_exactly_the_law_of_the_target(blocks, dtype):
    """With this seed there are models with V = 3 and G = 3, where two changes of different blocks meet."""
    found = check_lossless(GREEDY_BLOCK, blocks=blocks, models=12, seed=15, dtype=dtype)
    assert found.passed, found
    assert str(found).startswith("lossless: ") and f" over 12 pairs of models, {blocks} blocks each;" in str(found)


@pytest.mark.parametrize("blocks", [1, 2])
def test_rule_without_the_carry_is_not_lossless(blocks):
    found = check_lossless(greedy_block_rule, blocks=blocks, models=12)
    assert found.error > 1e-3
    assert "NOT lossless" in str(found)


def without_nesting(modified, accepted, token):
    """Forgets all blocks but the last."""
    carry = advance(modified, accepted, token)
    return carry._replace(share=carry.share * np.eye(1, carry.share.shape[1]))


def one_position_short(modified, accepted, token):
    carry = advance(modified, accepted, token)
    return carry._replace(remaining=tf.maximum(carry.remaining - 1, 0))


def one_position_late(modified, accepted, token):
    carry = advance(modified, accepted, token)
    return carry._replace(remaining=tf.where(carry.share > 0, carry.remaining + 1, carry.remaining))


def without_the_new_token(modified, accepted, token):
    """Leaves the token after the accepted ones out of the newest share."""
    carry = advance(modified, accepted, token)

    def at(values):
        row = tf.gather(values, tf.minimum(accepted, modified.tokens.shape[1] - 1), axis=1, batch_dims=1)
        return tf.gather(row, token, axis=1, batch_dims=1)

    ratio = tf.math.divide_no_nan(at(modified.target), at(modified.drafter))
    factor = tf.concat([ratio[:, tf.newaxis], tf.ones_like(carry.share[:, 1:])], axis=1)
    return carry._replace(share=tf.minimum(carry.share * factor, 1.0))


FAULTS = {
    fault.__name__: dataclasses.replace(GREEDY_BLOCK, advance=fault)
    for fault in (without_nesting, one_position_short, one_position_late, without_the_new_token)
}


@pytest.mark.parametrize("name", FAULTS)
def test_check_finds_a_planted_fault_of_the_carry(name):
    found = check_lossless(FAULTS[name], blocks=3, models=8)
    assert found.error > 1e-3, found


def test_changes_in_the_wrong_order_are_found():
    """With two tokens, or where no probability becomes 0, the order does not matter: this takes V = 3 and G = 3."""

    def newest_first(target, drafter, tokens, lengths, carry, limits):
        right = modify(target, drafter, tokens, lengths, carry, limits)
        backwards = Carry(carry.share[:, ::-1], carry.remaining[:, ::-1])
        return right._replace(target=modify(target, drafter, tokens, lengths, backwards, limits).target)

    wrong = dataclasses.replace(GREEDY_BLOCK, modify=newest_first)
    generator = np.random.default_rng(6)
    pairs = [pair for number in range(60) if (pair := draw_pair(generator, number)).size == pair.length == 3]
    assert max(error(wrong, pair, *pair.tables, None) for pair in pairs[:3]) > 1e-4
    assert max(error(GREEDY_BLOCK, pair, *pair.tables, None) for pair in pairs[:3]) < 1e-12


def test_toy_models_emit_the_numbers_of_tokens_of_the_reference():
    """M_b = (1/3, 2/3) and M_s = (2/3, 1/3) after every text, G = 2: tokens after 1, 2 and 3 blocks."""
    target = {text: np.array([1, 2]) / 3 for text in texts_up_to(2, 1)}
    drafter = {text: np.array([2, 1]) / 3 for text in texts_up_to(2, 1)}
    for verifier, expected in (
        (Verifier(token_rule), [19 / 9, 38 / 9, 57 / 9]),
        (Verifier(block_rule), [20 / 9, 40 / 9, 60 / 9]),
        (GREEDY_BLOCK, [21 / 9, 40 / 9, 59 / 9]),
    ):
        output = enumerate_output(verifier, target, drafter, 2, 2, blocks=3, tokens=9)
        np.testing.assert_allclose(np.cumsum(output.accepted + 1), expected, atol=1e-12)


def pairs_that_pass(count):
    """Yields pairs of models whose drafter proposes nothing after a third of the texts."""
    generator = np.random.default_rng(17)
    for number in range(count):
        pair = draw_pair(generator, number)
        target, drafter = pair.tables
        passing = {text: law * (generator.random() > 1 / 3) for text, law in drafter.items()}
        yield pair, target, passing


def error(verifier, pair, target, drafter, limit):
    output = enumerate_output(verifier, target, drafter, pair.size, pair.length, blocks=3, limit=limit)
    return np.max(np.abs(output.law - joint_law(target, pair.size, pair.length + 3)))


def draw_limit(length):
    """Returns a limit that depends on the block's number and on the text before it."""
    return lambda block, text: (3 * block + sum(text) + len(text)) % (length + 1)


@pytest.mark.numerical
@pytest.mark.parametrize("is_limited", [False, True])
def test_drafts_that_end_early_keep_the_law_of_the_target(is_limited):
    for pair, target, drafter in pairs_that_pass(12):
        limit = draw_limit(pair.length) if is_limited else None
        assert error(GREEDY_BLOCK, pair, target, drafter, limit) < 1e-12, pair.name


def test_limits_that_look_at_the_draft_bias_the_output():
    """Taking the draft's own length for the limit is the mistake that the two arguments are there to prevent."""

    def modify_wrongly(target, drafter, tokens, lengths, carry, limits=None):
        return modify(target, drafter, tokens, lengths, carry, lengths)

    wrong = dataclasses.replace(GREEDY_BLOCK, modify=modify_wrongly)
    worst = max(error(wrong, pair, target, drafter, None) for pair, target, drafter in pairs_that_pass(8))
    assert worst > 1e-3


def test_limits_that_modify_is_not_told_bias_the_output():
    def modify_wrongly(target, drafter, tokens, lengths, carry, limits=None):
        return modify(target, drafter, tokens, lengths, carry)

    wrong = dataclasses.replace(GREEDY_BLOCK, modify=modify_wrongly)
    worst = max(
        error(wrong, pair, target, drafter, draw_limit(pair.length)) for pair, target, drafter in pairs_that_pass(8)
    )
    assert worst > 1e-3


def test_modify_refuses_a_carry_of_another_draft_length():
    target, drafter = tf.fill([1, 4, 2], 0.5), tf.fill([1, 3, 2], 0.5)
    with pytest.raises(ValueError, match=r"carry has 3 levels: must be 2 for drafts of 3 tokens; make it by"):
        modify(target, drafter, tf.zeros([1, 3], tf.int32), tf.constant([3]), initial_carry(1, 4))


def test_drafts_without_a_place_for_a_token_are_refused():
    with pytest.raises(ValueError, match=r"tokens of shape \(1, 0\): must have at least one place"):
        modify(tf.fill([1, 1, 2], 0.5), tf.zeros([1, 0, 2]), tf.zeros([1, 0], tf.int32), [0], initial_carry(1, 2))


@pytest.mark.parametrize("draft_length", [0, -1, True, 2.0, float("nan")])
def test_initial_carry_refuses_a_draft_length_outside_its_range(draft_length):
    with pytest.raises(ValueError, match=rf"^draft_length = {draft_length}: must be an integer >= 1 for greedy"):
        initial_carry(1, draft_length)


def test_carry_is_empty_again_where_the_drafter_proposes_nothing():
    target, drafter = tf.fill([2, 4, 2], 0.5), tf.fill([2, 3, 2], 0.5)
    carry = Carry(tf.fill([2, 2], 0.4), tf.constant([[2, 1]] * 2))
    modified = modify(target, drafter, tf.zeros([2, 3], tf.int32), tf.constant([0, 3]), carry)
    np.testing.assert_array_equal(modified.target[0], target[0])
    after = advance(modified, tf.constant([0, 0]), tf.constant([1, 1]))
    np.testing.assert_array_equal(after.share[0], initial_carry(1, 3).share[0])
    assert np.all(after.share[1] > 0)


def test_initial_carry_leaves_the_target_as_it_is():
    generator = np.random.default_rng(1)
    target = tf.constant(generator.dirichlet(np.ones(5), (4, 4)), tf.float32)
    drafter = tf.constant(generator.dirichlet(np.ones(5), (4, 3)), tf.float32)
    tokens = tf.constant(generator.integers(0, 5, (4, 3)), tf.int32)
    modified = modify(target, drafter, tokens, tf.fill([4], 3), initial_carry(4, 3))
    np.testing.assert_array_equal(modified.target, target)


def test_extreme_probabilities_give_finite_targets_and_shares():
    """Ratios of 1e38 and 1e-38, zeros, and drafters that are certain, block after block."""
    levels = np.array([0, 1e-38, 1e-30, 0.5, 1], np.float32)
    batch, count, size = 64, 4, 3
    generator = np.random.default_rng(2)
    carry = initial_carry(batch, count)
    for start in range(6):
        raw = generator.choice(levels, (batch, 2 * count + 1, size)) + np.eye(size, dtype=np.float32)[0] * 1e-37
        law = raw / raw.sum(axis=-1, keepdims=True)
        target, drafter = tf.constant(law[:, : count + 1]), tf.constant(law[:, count + 1 :])
        tokens = tf.argmax(drafter, axis=-1, output_type=tf.int32)
        lengths = tf.fill([batch], count)
        modified = modify(target, drafter, tokens, lengths, carry)
        np.testing.assert_allclose(tf.reduce_sum(modified.target, axis=-1), np.ones((batch, count + 1)), atol=1e-6)
        words = block_words([5, 6], tf.range(batch), tf.fill([batch], start), count)
        found = verify(greedy_block_rule, modified.target, drafter, tokens, lengths, words)
        carry = advance(modified, found.accepted, found.token)
        assert np.all((carry.share >= 0) & (carry.share <= 1))


SIZE, LENGTH, BATCH, BLOCKS = 7, 3, 8, 6


def decode(seed, target, drafter):
    """Decodes some blocks of Markov chains in a `tf.while_loop`."""

    def body(block, last, position, carry, trace):
        words = block_words(seed, tf.range(BATCH), position, LENGTH)
        tokens, laws, rows = [last], [], [tf.gather(target, last)]
        for place in range(LENGTH):
            law = tf.gather(drafter, tokens[-1])
            bounds = tf.cumsum(law, axis=-1)
            number = tf.cast(tf.bitwise.right_shift(words.draft[0][:, place], 8), tf.float32) * 2.0**-24 + 0.5
            drawn = tf.reduce_sum(tf.cast(bounds < number[:, tf.newaxis], tf.int32), axis=-1)
            tokens.append(tf.minimum(drawn, SIZE - 1))
            laws.append(law)
            rows.append(tf.gather(target, tokens[-1]))
        draft, lengths = tf.stack(tokens[1:], axis=1), tf.fill([BATCH], LENGTH)
        modified = modify(tf.stack(rows, axis=1), tf.stack(laws, axis=1), draft, lengths, carry)
        found = verify(greedy_block_rule, modified.target, tf.stack(laws, axis=1), draft, lengths, words)
        carry = advance(modified, found.accepted, found.token)
        here = tf.range(BLOCKS) == block
        trace = tf.where(here[:, tf.newaxis, tf.newaxis], tf.stack([found.accepted, found.token], axis=1), trace)
        return block + 1, found.token, position + found.accepted + 1, carry, trace

    zeros = tf.zeros([BATCH], tf.int32)
    start = (tf.constant(0), zeros, zeros, initial_carry(BATCH, LENGTH), tf.zeros([BLOCKS, BATCH, 2], tf.int32))
    return {"trace": tf.while_loop(lambda block, *_: block < BLOCKS, body, start)[-1]}


@pytest.mark.slow
def test_loop_draws_the_same_tokens_in_every_backend():
    generator = np.random.default_rng(4)
    arguments = {
        "seed": np.array([1, 2], np.int32),
        "target": generator.dirichlet(np.ones(SIZE), SIZE).astype(np.float32),
        "drafter": generator.dirichlet(np.ones(SIZE), SIZE).astype(np.float32),
    }
    traces = {name: run(**arguments)["trace"] for name, run in everywhere(decode, **arguments).items()}
    assert len(np.unique(traces["eager"][..., 0])) == LENGTH + 1
    for name, trace in traces.items():
        np.testing.assert_array_equal(trace, traces["eager"], name)


def test_verifier_of_a_rule_carries_nothing():
    verifier = Verifier(token_rule)
    assert verifier.initial_carry(2, 3) == ()
    target = tf.fill([1, 2, 2], 0.5)
    modified = verifier.modify(target, target[:, :1], tf.zeros([1, 1], tf.int32), tf.constant([1]), ())
    assert modified.target is target
    assert verifier.advance(modified, tf.constant([0]), tf.constant([1])) == ()


@pytest.mark.slow
@pytest.mark.numerical
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_output_of_many_models_has_exactly_the_law_of_the_target(dtype):
    for blocks in (1, 2, 3):
        found = check_lossless(GREEDY_BLOCK, blocks=blocks, models=120, seed=1, dtype=dtype)
        assert found.passed, found
