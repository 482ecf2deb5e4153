"""Blockwise decoding of models with equal logits: each block is that of the definition, whatever refines the drafts."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models import katz
from models.decoding.acceptance import Acceptance
from models.decoding.drafters import ModelDrafter
from models.decoding.heads_drafter import HeadsDrafter
from models.decoding.katz_drafter import KatzDrafter
from models.decoding.katz_tables import KatzTables
from models.decoding.lattice_drafter import LatticeDrafter
from models.decoding.loop import Ends, begin, generate
from tests.models.decoding.table_heads import TableHeads, decode, draw_heads, next_words, start
from tests.models.decoding.table_model import TableModel
from tests.oracles import blockwise, lattice

SIZE, HEADS, BLOCKS = 5, 4, 3
PROMPTS = [[1], *([a, b] for a in range(SIZE) for b in (a, 0)), [1, 2, 3]]


def learn(order):
    texts = np.minimum(1 + np.random.default_rng(order).geometric(0.4, (20, 12)), SIZE - 1)
    return katz.learn(texts, SIZE, order)


MODELS = {order: learn(order) for order in (1, 2, 3)}
TABLES = {order: KatzTables(model) for order, model in MODELS.items()}


def log_probs(order):
    histories = np.array([*np.ndindex(*[SIZE] * (order - 1))], np.int32)
    found = TABLES[order].log_probs(tf.constant(histories), tf.range(SIZE)[tf.newaxis])
    return found.numpy().reshape([SIZE] * order)


LOG_PROBS = {order: log_probs(order) for order in TABLES}


def after(order, text):
    """Returns ln P of each token after a text, float32 `[V]`."""
    padded = [0] * (order - 1) + list(text)
    return LOG_PROBS[order][tuple(padded[len(padded) - order + 1 :])]


def draw_rescorer(name, seed):
    """Returns a rescorer, and the logits that it gives after a text."""
    if name == "ngram":
        return KatzDrafter(MODELS[3]), lambda text: after(3, text)
    small: Any = TableModel(np.random.default_rng([seed, 1]).integers(0, 3, [SIZE] * 3))
    return ModelDrafter(small, {}), small.logits


def assert_blocks_are_those_of_the_definition(own, drafter, drafts, paths=1):
    found = decode(own, drafter, PROMPTS, BLOCKS, paths)
    for prompt, blocks in zip(PROMPTS, found, strict=True):
        assert blocks == blockwise.decode(prompt, own.greedy, own.heads, drafts, BLOCKS)
        text = list(prompt)
        for token in sum(blocks, []):
            assert token == own.greedy(text)
            text.append(token)


SEEDS = st.integers(0, 999)
ALPHAS = st.sampled_from([0.0, 0.5, 1.0, 2.0])  # of which sums of integers tie
WIDTHS = st.integers(1, SIZE)


@settings(max_examples=6, deadline=None, derandomize=True)
@example(rescorer="neural", top_k=4, alpha=0.5, seed=0)
@example(rescorer="ngram", top_k=3, alpha=2.0, seed=1)
@given(rescorer=st.sampled_from(["none", "neural", "ngram"]), top_k=WIDTHS, alpha=ALPHAS, seed=SEEDS)
def test_blocks_of_drafts_that_are_refined_token_by_token_are_those_of_the_definition(rescorer, top_k, alpha, seed):
    own = draw_heads(seed, SIZE, HEADS)
    if rescorer == "none":
        drafter = HeadsDrafter()

        def drafts(text, heads):
            return [[int(np.argmax(scores)) for scores in heads]]

    else:
        refining, logits = draw_rescorer(rescorer, seed)
        drafter = HeadsDrafter(refining, top_k, alpha)

        def drafts(text, heads):
            return [blockwise.rescored(text, heads, logits, top_k, alpha)]

    assert_blocks_are_those_of_the_definition(own, drafter, drafts)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(order=st.integers(0, 3), top_k=WIDTHS, paths=st.integers(1, 5), alpha=ALPHAS, seed=SEEDS)
def test_blocks_of_best_paths_are_those_of_the_definition(order, top_k, paths, alpha, seed):
    own = draw_heads(seed, SIZE, HEADS)

    def drafts(text, heads):
        tokens = np.argsort(-heads, axis=1, kind="stable")[:, :top_k]
        scores = np.take_along_axis(heads, tokens, axis=1)
        history = ([0] * order + text)[len(text) + 1 :] if order else []
        own_alpha = alpha if order else 0.0
        return lattice.rank(
            tokens, scores, history, own_alpha, lambda text, token: LOG_PROBS[order][(*text, token)], paths
        )[0]

    assert_blocks_are_those_of_the_definition(own, LatticeDrafter(TABLES.get(order), top_k, alpha), drafts, paths)


def test_without_weight_drafts_and_their_distributions_are_those_of_the_heads_to_the_bit():
    own = draw_heads(3, SIZE, HEADS)
    found = []
    for drafter in (HeadsDrafter(), HeadsDrafter(draw_rescorer("neural", 1)[0], SIZE, 0.0)):
        decoder, state, request = start(own, drafter, PROMPTS, temperature=0.7)
        for _ in range(2):
            words = next_words(decoder, state, request)
            draft = decoder.draft(state, request, words)
            found.append([draft.tokens, *draft.laws])
            _, state = decoder.block(state, request, words, tf.fill([len(PROMPTS)], True))
    for plain, weightless in zip(found[:2], found[2:], strict=True):
        for one, other in zip(plain, weightless, strict=True):
            np.testing.assert_array_equal(one, other)


def test_block_efficiency_of_heads_that_are_right_independently_is_its_closed_form():
    """Every block of 24 has another pattern of right and wrong heads, so that their shares are exact."""
    size, rates = 8, (Fraction(3, 4), Fraction(2, 3), Fraction(1, 2))
    # Two tokens occur one after another once in this text, so that each block begins after two others.
    cycle = [token for a in range(size) for token in (a, *(t for b in range(a + 1, size) for t in (a, b)))]
    cycle += cycle[:HEADS]
    ahead = {a * size + b: c for a, b, c in zip(cycle, cycle[1:], cycle[2:], strict=False)}
    table = np.zeros([size**2, size])
    table[list(ahead), list(ahead.values())] = 1
    patterns = [[p < 3, q < 2, r < 1] for p in range(4) for q in range(3) for r in range(2)]
    np.random.default_rng(0).shuffle(patterns)
    places, position = np.zeros([HEADS - 1, size**2], np.int64), 3
    for pattern in patterns:
        read = cycle[position - 3] * size + cycle[position - 2]
        for head, is_right in enumerate(pattern):
            # The two tokens before the one to predict, or two others after which another token follows.
            before, last = cycle[position + head - 2 : position + head]
            right = before * size + last
            places[head, read] = right if is_right else next(p for p in ahead if ahead[p] != ahead[right])
        position += 1 + [*pattern, False].index(False)
    own = TableHeads(table.reshape([size] * 3), places)
    closed_form = 1 + sum(math.prod(rates[: place + 1]) for place in range(HEADS - 1))
    count = int(len(patterns) * closed_form)
    decoder, state, request = start(own, HeadsDrafter(), [cycle[:3]])
    ends = Ends(tf.constant(count), tf.constant(-1), tf.zeros([0, 1], tf.int32))
    words = decoder.words(request, state.position, count)
    found = generate(decoder, begin(decoder, state), request, ends, words)
    assert found.tokens.numpy().tolist() == [cycle[3 : 3 + count]]
    acceptance = Acceptance.from_counts(found.counts._asdict())
    assert (acceptance.calls, acceptance.decided) == (len(patterns), count)
    assert acceptance.block_efficiency == closed_form == 2.5
    assert acceptance.conditional_rates == tuple(map(float, rates))
