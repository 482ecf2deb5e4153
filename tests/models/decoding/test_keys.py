"""The keys of random numbers make decoding over several blocks lossless, and any reuse of a key shows in the law."""

import numpy as np
import pytest
import tensorflow as tf

from models.decoding import numpy_ops
from models.decoding.enumeration import joint_law, texts_up_to
from models.decoding.numpy_ops import Stream
from models.decoding.prng import block_keys, block_words, random_words
from models.decoding.verification import block_rule, token_rule
from tests.oracles import keyed_decoding

RULES = {"token": token_rule, "block": block_rule}
BLOCKS = 3


def own_keys(start, draft_length):
    """The keys as `block_words` uses them: the counter is (start, index + 1)."""
    return [(int(stream), (start, index + 1)) for stream, index in block_keys(draft_length)]


def position_only(start, draft_length):
    """Keys the words of a draft by the positions of its tokens."""
    drafts = [(int(Stream.DRAFT), (start + place, 0)) for place in range(draft_length)]
    return drafts + own_keys(start, draft_length)[draft_length:]


def residual_in_the_stream_of_drafts(start, draft_length):
    keys = own_keys(start, draft_length)
    return [*keys[:-2], (int(Stream.DRAFT), keys[-2][1]), keys[-1]]


def accept_key_that_never_changes(start, draft_length):
    keys = own_keys(start, draft_length)
    return [*keys[:-3], (int(Stream.ACCEPT), (0, 1)), *keys[-2:]]


def bonus_with_the_next_block_s_first_key(start, draft_length):
    return [*own_keys(start, draft_length)[:-1], own_keys(start + draft_length + 1, draft_length)[0]]


def same_keys_in_every_block(start, draft_length):
    return own_keys(0, draft_length)


FAULTS = (
    residual_in_the_stream_of_drafts,
    accept_key_that_never_changes,
    bonus_with_the_next_block_s_first_key,
    same_keys_in_every_block,
)


def draw_pairs():
    """Returns (V, G, target, drafter) of models whose contexts matter, one with zeros."""
    generator = np.random.default_rng(12)
    pairs = []
    for size, length, zeros in ((2, 2, False), (2, 3, False), (3, 2, False), (3, 2, True)):
        tables = []
        for _ in range(2):
            laws = generator.gamma(0.7, size=(len(list(texts_up_to(size, 2))), size)) + 1e-3
            if zeros:
                laws *= np.eye(size)[generator.integers(size, size=len(laws))] == 0
            tables.append(dict(zip(texts_up_to(size, 2), laws / laws.sum(axis=1, keepdims=True), strict=True)))
        pairs.append((size, length, *tables))
    return pairs


PAIRS = draw_pairs()


def error(key_map, rule, size, length, target, drafter):
    count = length + 2
    found = keyed_decoding.law(key_map, rule, target, drafter, size, length, BLOCKS, count)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    return np.max(np.abs(found - joint_law(target, size, count)))


@pytest.mark.numerical
@pytest.mark.parametrize("name", RULES)
def test_keys_give_the_law_of_the_target_over_several_blocks(name):
    for pair in PAIRS:
        assert error(own_keys, RULES[name], *pair) < 1e-12


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("key_map", FAULTS, ids=lambda fault: fault.__name__)
def test_keys_that_are_reused_are_found(key_map, name):
    assert max(error(key_map, RULES[name], *pair) for pair in PAIRS) > 5e-3


def test_keys_by_position_bias_the_block_rule_but_not_the_token_rule():
    """The token rule never looks at drafted tokens that it discards, so that the next block may draw them again."""
    assert max(error(position_only, block_rule, *pair) for pair in PAIRS) > 1e-2
    assert max(error(position_only, token_rule, *pair) for pair in PAIRS) < 1e-12


@pytest.mark.parametrize("draft_length", [0, 1, 4])
def test_words_of_a_block_are_those_of_its_keys(draft_length):
    generator = np.random.default_rng(3)
    seed = generator.integers(-(2**31), 2**31, 2, np.int32)
    request, start = generator.integers(0, 2**31 - 100, [2, 6], np.int32)
    words = block_words(seed, tf.constant(request), tf.constant(start), draft_length)
    columns = [[word[:, place] for word in words.draft] for place in range(draft_length)]
    columns += [[words.accept], list(words.residual), list(words.bonus)]
    keys = block_keys(draft_length)
    assert len(keys) == len(columns) == draft_length + 3
    for column, (stream, index) in zip(columns, keys, strict=True):
        expected = numpy_ops.random_words(seed, stream, request, start, np.full(6, index))
        for word, own in zip(column, expected, strict=False):
            np.testing.assert_array_equal(word, own)


def test_no_key_occurs_twice_in_a_request_nor_among_those_of_plain_sampling():
    keys = [key for start in range(200) for key in own_keys(start, 8)]
    keys += [(int(Stream.SAMPLE), (position, 0)) for position in range(200)]
    assert len(set(keys)) == len(keys)


def test_words_of_all_blocks_and_of_plain_sampling_differ():
    """64 random bits per number: among 2400 of them, two are equal by chance with probability 2e-13."""
    starts = tf.range(200)
    words = block_words([7, 8], tf.constant(5), starts, 8)
    pairs = [words.residual, words.bonus, random_words([7, 8], Stream.SAMPLE, 5, starts)]
    pairs += [tuple(word[:, place] for word in words.draft) for place in range(8)]
    numbers = [(first.numpy().astype(np.int64) << 32) + second.numpy() for first, second in pairs]
    assert len(np.unique(numbers)) == 200 * 11
    # Of the ACCEPT stream only the first word is used.
    assert not np.isin(words.accept, [first.numpy() for first, _ in pairs]).any()
