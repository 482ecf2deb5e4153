"""Certain drafts: the tokens of a block have the target's distribution, and as many are accepted as can be."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.certain_paths import CertainPaths
from models.decoding.tree_rules import Drafts, residual_at, take_node
from models.token_tree import TokenTree

SIZE = 3
CASES = [(1, 3), (2, 2), (3, 2), (4, 3)]


def draw(seed, chains, length, double=True):
    """Returns a target's table by text, drafts with shared and equal beginnings, and the tree."""
    generator = np.random.default_rng(seed)
    table = {
        text: generator.dirichlet(np.ones(SIZE)) * (generator.random(SIZE) < 0.8) + 1e-9
        for depth in range(length + 1)
        for text in itertools.product(range(SIZE), repeat=depth)
    }
    table = {text: row / row.sum() for text, row in table.items()}
    paths = generator.integers(0, SIZE, [chains, length])
    lengths = generator.integers(0, length + 1, chains)
    return table, paths, lengths, TokenTree.chains(chains, length)


def law_of_a_block(rule, table, paths, lengths, tree):
    """Returns the probability of every block (accepted tokens and the one after them)."""
    chains, length = paths.shape
    tokens = np.concatenate([[0], paths.T.ravel()])[np.newaxis].astype(np.int32)
    is_real = np.concatenate([[True], (np.arange(length)[:, np.newaxis] < lengths).ravel()])[np.newaxis]
    texts = [()] + [tuple(paths[c, : d + 1].tolist()) for d in range(length) for c in range(chains)]
    target = np.array([[table[text] for text in texts]])
    drafts = Drafts(tf.constant(tokens), tf.constant(is_real), tf.zeros([1, len(tree), 1], tf.float64))
    stops, state = rule.stops(tf.constant(target), drafts, tree)
    law: dict[tuple[int, ...], float] = {}
    for node, text in enumerate(texts):
        if stops[0, node] > 0:
            at = tf.constant([node])
            weights = residual_at(rule, tf.constant(target), drafts, tree, take_node(state, at), at)[0].numpy()
            for token, share in enumerate(weights / weights.sum()):
                block = (*text, token)
                law[block] = law.get(block, 0.0) + float(stops[0, node]) * share
    return law


def continued(law, table, length):
    """Returns the probability of each text of `length` tokens, blocks being continued by the target."""
    found: dict[tuple[int, ...], float] = {}
    for block, chance in law.items():
        for rest in itertools.product(range(SIZE), repeat=length - len(block)):
            text, p = block, chance
            for token in rest:
                p *= table[text][token]
                text = (*text, token)
            found[text] = found.get(text, 0.0) + p
    return found


def target_law(table, length):
    found = {}
    for text in itertools.product(range(SIZE), repeat=length):
        found[text] = np.prod([table[text[:depth]][text[depth]] for depth in range(length)])
    return found


def largest_error(rule, seed, chains, length):
    table, paths, lengths, tree = draw(seed, chains, length)
    found = continued(law_of_a_block(rule, table, paths, lengths, tree), table, length + 1)
    expected = target_law(table, length + 1)
    return max(abs(found.get(text, 0.0) - chance) for text, chance in expected.items())


@pytest.mark.parametrize(("chains", "length"), CASES)
def test_every_text_has_the_targets_probability(chains, length):
    assert max(largest_error(CertainPaths(), seed, chains, length) for seed in range(4)) < 1e-12


def test_as_many_tokens_are_accepted_as_the_drafts_hold():
    """The target's own text is accepted as far as a draft begins with it."""
    table, paths, lengths, tree = draw(3, 4, 3)
    law = law_of_a_block(CertainPaths(), table, paths, lengths, tree)
    expected = 0.0
    for text, chance in target_law(table, 3).items():
        agreeing = [np.argmax([*(path[:n] != text[:n]), True]) for path, n in zip(paths, lengths, strict=True)]
        expected += chance * max(agreeing)
    assert sum(chance * (len(block) - 1) for block, chance in law.items()) == pytest.approx(expected, abs=1e-12)


class _RepeatedTwice(CertainPaths):
    """Leaves only the token of the chain itself out of the residual, as if chains shared no texts."""

    def residual(self, target, base, tokens, is_real, at):
        return super().residual(target, base, tokens, is_real, at[:1])


def test_other_chains_tokens_left_in_the_residual_are_caught():
    assert max(largest_error(_RepeatedTwice(), seed, 3, 2) for seed in range(4)) > 1e-3
