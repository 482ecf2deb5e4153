"""The list rule draws the target's texts and accepts as the closed form says; what depends on the drafter is as stated.

Each statistical test fails by chance with probability 1e-6; seeds are fixed.
"""

import functools
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from models.decoding import list_rule, race
from models.decoding.enumeration import Chain, joint_law
from models.decoding.list_rule import list_gumbels, verify_list
from models.decoding.numpy_ops import LEFT_OUT
from models.token_tree import TokenTree
from tests.oracles import pearson
from tests.oracles import tree_decoding as oracle

LEVEL = 1e-6
SIZE, LENGTH, REQUESTS, SEED = 3, 2, 20_000, (5, -6)
# Models for which the closed form accepts clearly more tokens with two chains than with one, and with three than with
# two: Pearson's statistic of a chain too few is expected to be above 700, where 28 is significant.
TARGET, NEAR = oracle.draw_models(np.random.default_rng(19), SIZE, LENGTH)
FAR = oracle.draw_models(np.random.default_rng(20), SIZE, LENGTH)[0]


class Block(NamedTuple):
    """Holds one block per row: what the rule returned, the drafts `[R, K, G]`, and the chains alive `[R, K, G + 1]`."""

    accepted: np.ndarray
    tokens: np.ndarray
    chain: np.ndarray
    drafts: np.ndarray
    is_alive: np.ndarray


@functools.cache
def noise_of(num_drafts):
    """Returns the noise of all requests at five positions, `[R, K, 5, V]`."""
    requests = tf.range(REQUESTS)[:, tf.newaxis]
    return np.moveaxis(list_gumbels(SEED, requests, tf.range(5), num_drafts, SIZE).numpy(), 1, 2)


def logits(laws):
    return np.where(laws > 0, np.log(np.where(laws > 0, laws, 1)), LEFT_OUT).astype(np.float32)


def decode_block(drafter, noise, start=0):
    """Drafts and verifies a block after the texts with the numbers `start`, `[R]` or one for all; see `Chain`."""
    models, (rows, num_drafts) = Chain(TARGET, drafter, SIZE), noise.shape[:2]
    texts, numbers = np.broadcast_to(np.asarray(start)[..., np.newaxis], (rows, num_drafts)), []
    drafts, of_drafter = [], logits(models.drafter)
    for place in range(LENGTH):
        drafts.append(race.race(of_drafter[texts], noise[:, :, place]).numpy())
        texts = models.child[texts, drafts[-1]]
        numbers.append(texts)
    root = np.broadcast_to(start, [rows])[:, np.newaxis]
    processed = tf.constant(logits(models.target)[np.concatenate([root, *numbers], axis=1)])
    tokens = tf.constant(np.concatenate([0 * root, *drafts], axis=1), tf.int32)
    is_real = tf.ones(tokens.shape, tf.bool)
    tree, of_block = TokenTree.chains(num_drafts, LENGTH), tf.constant(noise[:, :, : LENGTH + 1])
    found = verify_list(processed, tokens, is_real, of_block, tree)
    accepted, emitted, chain = (part.numpy() for part in found)
    equals = np.stack(drafts, axis=2) == emitted[:, np.newaxis, :LENGTH]
    is_alive = np.cumprod(np.insert(equals, 0, True, axis=2), axis=2).astype(bool)
    return Block(accepted, emitted, chain, np.stack(drafts, axis=2), is_alive)


def draw_texts(drafter, noise, length=3):
    """Returns the first tokens `[R, length]` of texts, block after block; noise belongs to positions."""
    models, rows = Chain(TARGET, drafter, SIZE), np.arange(len(noise))
    texts, ends = np.full([len(noise), length + LENGTH + 1], -1), np.zeros(len(noise), int)
    start = np.zeros(len(noise), int)
    for _ in range(length):
        positions = np.minimum(ends, length - 1)[:, np.newaxis] + np.arange(LENGTH + 1)
        block = decode_block(drafter, np.moveaxis(noise[rows[:, np.newaxis], :, positions], 1, 2), start)
        for place in range(LENGTH + 1):
            writes = (place <= block.accepted) & (ends < length)
            texts[rows[writes], ends[writes] + place] = block.tokens[writes, place]
            start = np.where(writes, models.child[start, block.tokens[:, place]], start)
        ends += np.where(ends < length, block.accepted + 1, 0)
    return texts[:, :length]


def text_goodness(noise):
    """Returns the p-value of Pearson's test of the first three tokens, drawn in one to three blocks."""
    texts = draw_texts(NEAR, noise)
    counts = np.bincount(np.ravel_multi_index(tuple(texts.T), [SIZE] * 3), minlength=SIZE**3)
    expected = joint_law(TARGET, SIZE, 3).ravel()
    if counts[expected == 0].any():
        return 0.0
    return pearson.p_value(counts[expected > 0], len(texts) * expected[expected > 0])


def acceptance_goodness(noise):
    """Returns the p-value of Pearson's test of the number of accepted tokens, 0 to 2."""
    num_drafts = noise.shape[1]
    one, two = (oracle.invariant_list(TARGET, NEAR, num_drafts, length).accepted for length in (1, 2))
    counts = np.bincount(decode_block(NEAR, noise).accepted, minlength=LENGTH + 1)
    # A block accepts at least `place` tokens with the probability by which one more place adds to the expectation.
    return pearson.p_value(counts, len(noise) * np.array([1 - one, one - (two - one), two - one]))


@pytest.mark.parametrize("num_drafts", [1, 2, 3])
def test_texts_of_several_blocks_have_the_distribution_of_the_target(num_drafts):
    assert text_goodness(noise_of(num_drafts)) > LEVEL


@pytest.mark.parametrize("num_drafts", [1, 2, 3])
def test_accepted_tokens_have_the_distribution_of_the_closed_form(num_drafts):
    assert acceptance_goodness(noise_of(num_drafts)) > LEVEL


def test_noise_of_one_position_for_all_is_found():
    noise = noise_of(2)
    assert text_goodness(np.repeat(noise[:, :, :1], 5, axis=2)) < LEVEL


def test_noise_of_one_chain_for_all_is_found():
    noise = noise_of(2)
    assert acceptance_goodness(np.repeat(noise[:, :1], 2, axis=1)) < LEVEL


def test_mean_noise_in_place_of_largest_is_found(monkeypatch):
    monkeypatch.setattr(list_rule, "_largest", lambda noise, is_alive: tf.reduce_mean(noise, axis=1))
    assert text_goodness(noise_of(2)) < LEVEL


def test_noise_of_chains_that_are_not_alive_is_found(monkeypatch):
    """The texts keep their distribution, and do not depend on the drafter, but fewer tokens are accepted."""
    right = decode_block(NEAR, noise_of(3)).accepted.mean()
    monkeypatch.setattr(list_rule, "_largest", lambda noise, is_alive: tf.reduce_max(noise, axis=1))
    assert text_goodness(noise_of(3)) > LEVEL
    np.testing.assert_array_equal(draw_texts(NEAR, noise_of(3)), draw_texts(FAR, noise_of(3)))
    assert acceptance_goodness(noise_of(3)) < LEVEL
    assert decode_block(NEAR, noise_of(3)).accepted.mean() < right


def test_texts_with_one_chain_are_those_of_the_race_whatever_the_drafter():
    near, far = (draw_texts(drafter, noise_of(1)) for drafter in (NEAR, FAR))
    np.testing.assert_array_equal(near, far)
    noise = race.gumbels(SEED, tf.range(REQUESTS), 0, SIZE)
    np.testing.assert_array_equal(near[:, 0], race.race(logits(TARGET[()]), noise))


def test_tokens_depend_on_the_drafter_through_the_chains_that_are_alive_only():
    near, far = (decode_block(drafter, noise_of(2)) for drafter in (NEAR, FAR))
    np.testing.assert_array_equal(near.tokens[:, 0], far.tokens[:, 0])
    same = np.cumprod((near.is_alive == far.is_alive).all(axis=1), axis=1).astype(bool)
    same &= near.is_alive.any(axis=1)  # the block goes on
    np.testing.assert_array_equal(near.tokens[same], far.tokens[same])
    both_go_on = near.is_alive.any(axis=1) & far.is_alive.any(axis=1) & (near.tokens[:, :1] == far.tokens[:, :1])
    differs = both_go_on[:, 1] & (near.tokens[:, 1] != far.tokens[:, 1])
    assert same[:, 1:].any(axis=0).all() and differs.any()


def test_chain_is_the_first_one_with_the_accepted_tokens_and_none_has_more():
    block = decode_block(NEAR, noise_of(3))
    matches = block.is_alive[:, :, 1:].sum(axis=2)
    np.testing.assert_array_equal(block.accepted, matches.max(axis=1))
    np.testing.assert_array_equal(block.chain, matches.argmax(axis=1))
    assert set(block.accepted.tolist()) == {0, 1, 2} and set(block.chain.tolist()) == {0, 1, 2}


def test_tokens_that_were_not_drafted_are_not_accepted():
    tree, processed = TokenTree.chains(2, 2), tf.zeros([1, 5, 4])
    noise = tf.one_hot([[[2, 3, 1], [2, 3, 1]]], 4)
    tokens = tf.constant([[0, 2, 2, 3, 3]])
    for missing, accepted, chain in (((), 2, 0), ((1,), 2, 1), ((3,), 2, 1), ((3, 4), 1, 0), ((1, 2), 0, 0)):
        is_real = tf.constant([[node not in missing for node in range(5)]])
        found = verify_list(processed, tokens, is_real, noise, tree)
        assert (found.accepted.numpy().tolist(), found.chain.numpy().tolist()) == ([accepted], [chain])
        assert found.tokens.numpy()[0, : accepted + 1].tolist() == [2, 3, 1][: accepted + 1]


def test_numbers_of_a_chain_depend_on_neither_the_vocabulary_nor_the_other_chains():
    noise = list_gumbels([4, -9], [[7], [8]], [0, 3, 70_000], 3, 600).numpy()
    assert noise.shape == (2, 3, 3, 600) and len(np.unique(noise)) > 0.99 * noise.size
    np.testing.assert_array_equal(list_gumbels([4, -9], 8, 3, 2, 300), noise[1, 1, :2, :300])
    np.testing.assert_array_equal(race.gumbels([4, -9], [[7], [8]], [0, 3, 70_000], 600), noise[:, :, 0])


@pytest.mark.parametrize(
    ("num_drafts", "size", "message"),
    [
        (0, 5, "num_drafts = 0: must be an integer from 1 to 4096"),
        (2, 2**18 + 1, "size = 262145: must be"),
        (2.0, 5, "num_drafts = 2.0: must be an integer from 1 to 4096"),
        (2, True, "size = True: must be an integer from 1 to 262144"),
        (2, "5", "size = '5': must be an integer"),
    ],
)
def test_noise_of_no_chains_or_too_many_tokens_is_rejected(num_drafts, size, message):
    with pytest.raises(ValueError, match=message):
        list_gumbels([1, 2], 0, 0, num_drafts, size)


@pytest.mark.parametrize(
    ("tree", "shape", "message"),
    [
        (
            TokenTree.chains(3, 1),
            (2, 2, 3, 4),
            r"^noise: has shape \(2, 2, 3, 4\), must have .* with \[3, 2, 4\] after B",
        ),
        (TokenTree.chains(2, 2), (2, 3, 2, 4), r"^noise: has shape .*; list_gumbels returns places before chains$"),
        (TokenTree.chains(2, 2), (2, 2, 3, 5), r"^noise: has shape .* with \[2, 3, 4\] after B"),
        (TokenTree.from_shape((2, 2)), (2, 4, 3, 4), "^tree: must be separate chains of equal length"),
        (TokenTree((-1, 0, 0, 1)), (2, 2, 3, 4), "^tree: must be separate chains of equal length"),
        (TokenTree((-1,)), (2, 1, 1, 4), "^tree: must be separate chains of equal length"),
    ],
)
def test_trees_and_noise_of_other_shapes_are_refused_in_one_line(tree, shape, message):
    nodes = [2, len(tree)]
    with pytest.raises(ValueError, match=message) as error:
        verify_list(tf.zeros([*nodes, 4]), tf.zeros(nodes, tf.int32), tf.ones(nodes, tf.bool), tf.zeros(shape), tree)
    assert "\n" not in str(error.value)
