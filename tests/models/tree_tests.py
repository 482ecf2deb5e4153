"""Tests that every language model must pass that reads trees of tokens: a node's logits are those of its path alone."""

import numpy as np
import pytest
import tensorflow as tf

from models.token_tree import TokenTree
from tests.models.language_models import make_tokens, make_weights, start

# A node's number is its depth for few of the nodes, and of the siblings the first has no more children than the second.
TREE = TokenTree((-1, 0, 0, 1, 1, 2, 4))
LENGTHS = np.array([5, 3], np.int32)


class TreeTests:
    """Holds the tests; a subclass gives the fixture `model` (scope "class"), and `oracle_logits`."""

    def oracle_logits(self, model, weights, tokens):
        """Returns the logits after each token of one row, in NumPy float64: tokens [T] -> [T, V]."""
        raise NotImplementedError

    @pytest.fixture
    def expected(self, model):
        """Returns the oracle's logits `[2, N + 1, 4, V]`: for the path to each kept node, 0 for none, its last token's
        logits and those of the 3 tokens after it."""
        weights, prompt, tokens, probe = self.inputs(model)
        logits = []
        for row, length in enumerate(LENGTHS):
            for kept in range(len(TREE) + 1):
                path = tokens[row, np.flatnonzero(TREE.ancestors[kept - 1])] if kept else []
                text = np.array([*prompt[row, :length], *path, *probe[row]], np.int32)
                logits.append(self.oracle_logits(model, weights, text)[-4:])
        return np.reshape(logits, [2, len(TREE) + 1, 4, -1])

    def inputs(self, model):
        tokens = make_tokens(2, len(TREE), seed=2)
        return make_weights(model), make_tokens(2, 6), tokens, make_tokens(2, 3, seed=3)

    def read(self, model):
        weights, prompt, tokens, _ = self.inputs(model)
        _, state = model.prefill(weights, prompt, LENGTHS)
        return model.extend(weights, tokens, state, TREE)

    def read_by_level(self, model):
        weights, prompt, tokens, _ = self.inputs(model)
        _, trail = model.prefill(weights, prompt, LENGTHS)
        parts = []
        for level in TREE.levels:
            logits, trail = model.extend(weights, tokens[:, level.start : level.stop], trail, TREE, level)
            parts.append(logits)
        return np.concatenate(parts, axis=1), trail

    def check_logits(self, model, expected):
        logits, _ = self.read(model)
        np.testing.assert_allclose(logits, expected[:, 1:, 0], rtol=1e-10, atol=1e-10)

    def check_rewound(self, model, expected):
        """Compares for every kept node of both rows at once: rows are repeated with another `kept`."""
        weights, _, _, probe = self.inputs(model)
        _, trail = self.read(model)
        many = tf.nest.map_structure(lambda part: tf.repeat(part, len(TREE) + 1, axis=0), trail)
        kept = np.tile(np.arange(len(TREE) + 1, dtype=np.int32), 2)
        state = model.rewind(many, kept, TREE)
        logits, _ = model.extend(weights, np.repeat(probe, len(TREE) + 1, axis=0), state)
        np.testing.assert_allclose(np.reshape(logits, expected[:, :, 1:].shape), expected[:, :, 1:], rtol=0, atol=1e-10)

    def test_logits_of_each_node_are_those_of_its_path_alone(self, model, expected):
        self.check_logits(model, expected)

    def test_rewind_to_each_node_keeps_its_path(self, model, expected):
        self.check_rewound(model, expected)

    def test_levels_read_one_by_one_equal_the_whole_tree(self, model):
        logits, trail = self.read(model)
        by_level, of_levels = self.read_by_level(model)
        np.testing.assert_allclose(by_level, logits, rtol=1e-12, atol=1e-12)
        for kept in ([0, 7], [4, 2], [6, 1]):
            states = (model.rewind(each, np.array(kept, np.int32), TREE) for each in (trail, of_levels))
            one, other = (
                model.extend(make_weights(model), make_tokens(2, 3, seed=3), state)[0].numpy() for state in states
            )
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)

    def test_chain_equals_the_same_tokens_without_a_tree_bit_for_bit(self, model):
        chain, kept = TokenTree.chain(4), np.array([3, 0], np.int32)
        weights, tokens, state = make_weights(model, dtype=np.float32), make_tokens(2, 5), start(model, 2, np.float32)
        plain, of_chain = (model.extend_with_hidden(weights, tokens, state, tree) for tree in (None, chain))
        rewound, of_chain_rewound = model.rewind(plain[2], kept), model.rewind(of_chain[2], kept, chain)
        tf.nest.map_structure(np.testing.assert_array_equal, (of_chain, of_chain_rewound), (plain, rewound))

    def test_other_numbers_of_tokens_than_nodes_are_refused(self, model):
        with pytest.raises(ValueError, match="^tokens: 6 in a row for a tree of 7 nodes; give one for each node$"):
            model.extend(make_weights(model), make_tokens(2, 6), start(model, 2), TREE)
        with pytest.raises(ValueError, match="^tokens: 2 in a row for a level of 1 nodes; give one for each node$"):
            model.extend(make_weights(model), make_tokens(2, 2), start(model, 2), TREE, TREE.levels[0])
