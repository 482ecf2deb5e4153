"""The text of prediction heads over two blocks, with every draft and decision enumerated in the decoder itself.

What the decoder draws at random is put into its place: each row of a batch has one draft, one number of accepted tokens
and one token after them. The probability of a row is the product of those of its parts: of the drafted tokens, of
stopping there, of the token after them. Nothing is sampled.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models import katz
from models.decoding.block_decoder import Request
from models.decoding.certain_paths import CertainPaths
from models.decoding.choices import Processing
from models.decoding.drafters import ModelDrafter
from models.decoding.heads_drafter import HeadsDrafter
from models.decoding.katz_tables import KatzTables
from models.decoding.lattice_drafter import LatticeDrafter
from models.decoding.methods import Decision, Speculative
from models.decoding.verification import block_rule, residuals
from models.decoding.verifier import Verifier
from tests.models.decoding.table_heads import draw_heads, next_words, start
from tests.models.decoding.table_model import TableModel

PROMPT, BLOCKS = [1, 0, 1], 2
TOLERANCE = 1e-6  # probabilities are computed in float32


class Rows:
    """Holds the decision of each row, and what the decoder states about it.

    Attributes:
      drafts: int `[B, G]`, the tokens to draft; () where drafts are certain.
      nodes: int `[B]`, how many to accept, or the node of the tree to stop at.
      tokens: int `[B]`, the token after them.
      weights: float64 `[B]`, the probability of it all.
    """

    def __init__(self, drafts, nodes, tokens):
        self.drafts, self.nodes, self.tokens = drafts, nodes, tokens
        self.weights = np.ones(len(tokens))

    def multiply(self, values, indices):
        rows = np.asarray(values, np.float64)
        rows = rows / rows.sum(axis=1, keepdims=True)
        self.weights = self.weights * rows[np.arange(len(rows)), indices]


@dataclass(frozen=True)
class Given(Speculative):
    """Drafts and decides what its rows say."""

    rows: Any = None

    def draw(self, processed, noise, place):
        drawn, token = super().draw(processed, noise, place), self.rows.drafts[:, place]
        self.rows.multiply(tf.nn.softmax(processed), token)
        return drawn._replace(token=tf.constant(token, tf.int32))

    def decide(self, processed, target, laws, tokens, lengths, limits, noise, carry):
        rows, drafter = self.rows, tf.stack(laws, axis=1)
        found = block_rule(target, drafter, tokens, lengths)
        rows.multiply(found.probability, rows.nodes)
        # A row that cannot stop there has no residual.
        after = residuals(found, target, drafter).numpy()[np.arange(len(rows.nodes)), rows.nodes]
        rows.multiply(np.where(after.sum(axis=1, keepdims=True) > 0, after, 1.0), rows.tokens)
        return Decision(tf.constant(rows.nodes, tf.int32), tf.constant(rows.tokens, tf.int32), carry)


class GivenPath(CertainPaths):
    """Decides what its rows say."""

    def __init__(self, rows):
        self.rows = rows

    def stops(self, target, drafts, tree):
        found, state = super().stops(target, drafts, tree)
        self.rows.multiply(found, self.rows.nodes)
        return tf.one_hot(self.rows.nodes, len(tree)), state

    def residual(self, target, *others):
        after = super().residual(target, *others).numpy()
        self.rows.multiply(np.where(after.sum(axis=1, keepdims=True) > 0, after, target), self.rows.tokens)
        return tf.one_hot(self.rows.tokens, target.shape[1])


def enumerate_texts(own, drafter, paths=1):
    """Returns the texts after the prompt, with repetitions, and their probabilities."""
    decoder, state, _ = start(own, drafter, [PROMPT], paths)
    is_certain, drafted = isinstance(drafter, LatticeDrafter), len(own.places)
    drafts: list[tuple[int, ...]] = [()] if is_certain else list(itertools.product(range(own.size), repeat=drafted))
    nodes = range((paths if is_certain else 1) * drafted + 1)
    choices = [np.array(part) for part in zip(*itertools.product(drafts, nodes, range(own.size)), strict=True)]
    texts: list[tuple[int, ...]] = [()]
    weights = np.ones(1)
    for _ in range(BLOCKS):
        before = np.repeat(np.arange(len(texts)), len(choices[0]))
        rows = Rows(*(np.concatenate([part] * len(texts)) for part in choices))
        given: dict[str, Any] = (
            {"rule": GivenPath(rows)} if is_certain else {"method": Given(Verifier(block_rule), rows)}
        )
        state = tf.nest.map_structure(lambda part, which=before: tf.gather(part, which), state)
        request = Request(tf.constant([1, 2]), tf.zeros_like(state.last), Processing(temperature=1.0))
        words, active = next_words(decoder, state, request), tf.ones_like(state.last, tf.bool)
        block, state = replace(decoder, **given).block(state, request, words, active)
        weights = weights[before] * rows.weights
        likely = np.flatnonzero(weights)
        added = zip(before[likely], block.tokens.numpy()[likely], block.count.numpy()[likely], strict=True)
        texts = [(*texts[row], *tokens[:count].tolist()) for row, tokens, count in added]
        weights = weights[likely]
        state = tf.nest.map_structure(lambda part, which=likely: tf.gather(part, which), state)
    return texts, weights


def largest_error(own, drafter, paths=1):
    """Returns the largest difference of a probability of the first h + 1 tokens from the base model's."""
    length = len(own.places) + 2
    chances = np.exp(own.rows) / np.exp(own.rows).sum(axis=1, keepdims=True)

    def chance(text, begin):
        """Returns the base's probability of the tokens of a text from `begin` on."""
        return np.prod([chances[own.pair([*PROMPT, *text[:place]]), text[place]] for place in range(begin, length)])

    found = dict.fromkeys(itertools.product(range(own.size), repeat=length), 0.0)
    for text, weight in zip(*enumerate_texts(own, drafter, paths), strict=True):
        for rest in itertools.product(range(own.size), repeat=max(0, length - len(text))):
            found[(*text, *rest)[:length]] += weight * chance((*text, *rest), min(len(text), length))
    return max(abs(weight - chance(text, 0)) for text, weight in found.items())


def rescored(size, top_k):
    small: Any = TableModel(np.random.default_rng(8).integers(0, 3, [size] * 3))
    return HeadsDrafter(ModelDrafter(small, {}), top_k, 0.75)


def best_paths(size, top_k):
    texts = np.random.default_rng(1).integers(1, size, [20, 12])
    return LatticeDrafter(KatzTables(katz.learn(texts, size, 2)), top_k, 0.75)


CASES: list[Any] = [
    pytest.param(3, 3, HeadsDrafter(), 1, id="heads"),
    pytest.param(3, 4, HeadsDrafter(), 1, id="heads, h = 4"),
    pytest.param(2, 4, rescored(2, 2), 1, id="rescored"),
    pytest.param(3, 3, rescored(3, 2), 1, id="rescored, two of three tokens"),
    pytest.param(3, 4, best_paths(3, 2), 3, id="best paths"),
    pytest.param(3, 3, LatticeDrafter(None, 3), 2, id="best paths without a model"),
]


@pytest.mark.parametrize(("size", "heads", "drafter", "paths"), CASES)
def test_texts_of_two_blocks_have_exactly_the_base_models_probabilities(size, heads, drafter, paths):
    assert largest_error(draw_heads(0, size, heads), drafter, paths) < TOLERANCE


def test_drafts_that_state_another_distribution_than_they_are_drawn_from_are_caught(monkeypatch):
    monkeypatch.setattr(
        "models.decoding.methods.distribution_of", lambda weights: tf.ones_like(weights, tf.float32) / 3
    )
    assert largest_error(draw_heads(0, 3, 3), HeadsDrafter()) > 1000 * TOLERANCE


def test_offered_tokens_left_in_the_residual_are_caught(monkeypatch):
    monkeypatch.setattr(CertainPaths, "residual", lambda rule, target, *others: target)
    assert largest_error(draw_heads(0, 3, 4), best_paths(3, 2), 3) > 1000 * TOLERANCE
