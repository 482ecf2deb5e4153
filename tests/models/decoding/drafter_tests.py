"""Tests that every drafter must pass: its states do not depend on how tokens are read, rewound, batched or compiled."""

import numpy as np
import pytest
import tensorflow as tf

from models.token_tree import TokenTree
from tests.oracles.backends import run_everywhere

BATCH, PROMPT, DRAFT = 3, 7, 3
TREE = TokenTree.from_shape((2, 2))

SLOW_BATCHES = [pytest.param(batch, marks=pytest.mark.slow) for batch in (1, BATCH)]
"""Parameters of a subclass's own fixture `batch`, if its graphs take seconds to compile."""


class DrafterTests:
    """Holds the tests; a subclass gives the fixture `drafter` and `size`, the number of token ids.

    Attributes:
      size: number of token ids that the tests read; those from 1.
      within: largest difference of a logit by rounding.
    """

    size: int
    within = 1e-4

    def tokens(self, *shape, seed=0):
        return np.random.default_rng(seed).integers(1, self.size, shape).astype(np.int32)

    def close(self, found, expected):
        """Asserts that logits, which may be -inf, are equal up to rounding."""
        np.testing.assert_allclose(found, expected, rtol=0, atol=self.within)

    def stepped(self, drafter, texts, state=None):
        """Reads texts of any lengths token by token, one row at a time; returns the states, one per row."""
        states = []
        for text in texts:
            of_row = drafter.initial_state(1)
            for token in text:
                _, of_row = drafter.step(tf.constant([token]), of_row)
            states.append(of_row)
        return states

    def probe(self, drafter, states, seed=9):
        """Returns the logits after two more tokens, `[rows, 2, V]`; states is one per row."""
        found = []
        for of_row in states:
            logits = []
            for token in self.tokens(2, seed=seed):
                of_token, of_row = drafter.step(tf.constant([token]), of_row)
                logits.append(of_token[0].numpy())
            found.append(logits)
        return np.array(found)

    def rows(self, state):
        return [tf.nest.map_structure(lambda part, i=i: part[i : i + 1], state) for i in range(BATCH)]

    def test_logits_are_float32_of_every_token_and_never_nan(self, drafter):
        logits, state = drafter.step(tf.constant(self.tokens(BATCH)), drafter.initial_state(BATCH))
        assert logits.dtype == tf.float32 and logits.shape[0] == BATCH and logits.shape[1] >= self.size
        assert not np.isnan(logits).any() and (logits < np.inf).numpy().all()
        tf.nest.assert_same_structure(state, drafter.initial_state(BATCH))
        for new, old in zip(tf.nest.flatten(state), tf.nest.flatten(drafter.initial_state(BATCH)), strict=True):
            assert new.shape == old.shape and new.dtype == old.dtype

    def test_prefill_equals_reading_each_row_alone_token_by_token(self, drafter):
        prompt, lengths = self.tokens(BATCH, PROMPT), np.array([PROMPT, 2, 5], np.int32)
        state = drafter.prefill(tf.constant(prompt), tf.constant(lengths), drafter.initial_state(BATCH))
        expected = self.stepped(drafter, [row[:n] for row, n in zip(prompt, lengths, strict=True)])
        self.close(self.probe(drafter, self.rows(state)), self.probe(drafter, expected))

    def test_prefill_in_ragged_parts_equals_prefill_at_once(self, drafter):
        parts = [self.tokens(BATCH, width, seed=width) for width in (4, 3, 2)]
        lengths = [np.array(n, np.int32) for n in ([4, 0, 3], [1, 3, 0], [2, 0, 2])]
        state = drafter.initial_state(BATCH)
        for part, n in zip(parts, lengths, strict=True):
            state = drafter.prefill(tf.constant(part), tf.constant(n), state)
        texts = [np.concatenate([p[i, : n[i]] for p, n in zip(parts, lengths, strict=True)]) for i in range(BATCH)]
        self.close(self.probe(drafter, self.rows(state)), self.probe(drafter, self.stepped(drafter, texts)))

    def test_prefill_of_no_token_keeps_the_state(self, drafter):
        prompt, lengths = tf.constant(self.tokens(BATCH, 4)), tf.constant([4, 2, 0])
        before = drafter.prefill(prompt, lengths, drafter.initial_state(BATCH))
        for n in ([0, 0, 0], [0, 3, 0]):
            state = drafter.prefill(tf.constant(self.tokens(BATCH, 4, seed=3)), tf.constant(n), before)
            found, expected = (self.probe(drafter, self.rows(s)) for s in (state, before))
            kept = np.array(n) == 0
            self.close(found[kept], expected[kept])

    def test_rewind_equals_reading_only_the_kept_tokens(self, drafter):
        """Twice, because the second block is written where the first left tokens that were not kept."""
        prompt, lengths = self.tokens(BATCH, 4), np.array([4, 0, 3], np.int32)
        texts = [list(row[:n]) for row, n in zip(prompt, lengths, strict=True)]
        state = drafter.prefill(tf.constant(prompt), tf.constant(lengths), drafter.initial_state(BATCH))
        for block, kept in enumerate(([0, 2, 3], [3, 0, 1])):
            draft, states = self.tokens(DRAFT, BATCH, seed=20 + block), [state]
            for tokens in draft:
                states.append(drafter.step(tf.constant(tokens), states[-1])[1])
            state = drafter.rewind(states, tf.constant(kept))
            texts = [text + list(draft[:n, i]) for i, (text, n) in enumerate(zip(texts, kept, strict=True))]
            self.close(self.probe(drafter, self.rows(state)), self.probe(drafter, self.stepped(drafter, texts)))

    def begun(self, drafter):
        """Returns the state of all rows after prompts of different lengths, and tokens of a tree `[BATCH, N]`."""
        prompt, lengths = tf.constant(self.tokens(BATCH, 4, seed=30)), tf.constant([4, 0, 3])
        return drafter.prefill(prompt, lengths, drafter.initial_state(BATCH)), self.tokens(BATCH, len(TREE), seed=31)

    def by_step(self, drafter):
        """Reads the path to each node by `step`; returns logits `[BATCH, V]` and state after none and after each."""
        state, tokens = self.begun(drafter)
        after = [(None, state)]
        for node, parent in enumerate(TREE.parents):
            after.append(drafter.step(tf.constant(tokens[:, node]), after[parent + 1][1]))
        return after

    def by_level(self, drafter):
        """Reads the tree by `step_level`; returns logits `[BATCH, N, V]` and the trail."""
        trail, tokens = self.begun(drafter)
        logits = []
        for level in TREE.levels:
            of_level, trail = drafter.step_level(tf.constant(tokens[:, level.start : level.stop]), trail, TREE, level)
            logits.append(of_level)
        return tf.concat(logits, axis=1), trail

    def gone_on(self, drafter, state):
        """Returns the logits of all rows after two more tokens, `[BATCH, 2, V]`."""
        logits = []
        for tokens in self.tokens(2, BATCH, seed=32):
            of_tokens, state = drafter.step(tf.constant(tokens), state)
            logits.append(of_tokens)
        return np.stack(logits, axis=1)

    def test_step_level_reads_a_tree_as_step_reads_the_path_to_each_node(self, drafter):
        expected = np.stack([logits for logits, _ in self.by_step(drafter)[1:]], axis=1)
        self.close(self.by_level(drafter)[0], expected)

    def test_rewind_tree_goes_on_after_each_node_as_after_the_same_tokens(self, drafter):
        expected = np.stack([self.gone_on(drafter, state) for _, state in self.by_step(drafter)])
        _, trail = self.by_level(drafter)
        rows = np.arange(BATCH)
        for first in range(len(TREE) + 1):
            kept = (first + 3 * rows) % (len(TREE) + 1)
            found = self.gone_on(drafter, drafter.rewind_tree(trail, tf.constant(kept, tf.int32), TREE))
            self.close(found, expected[kept, rows])

    def test_a_row_does_not_depend_on_the_other_rows(self, drafter):
        tokens, other = self.tokens(BATCH, 4), self.tokens(BATCH, 4, seed=5)
        other[1] = tokens[1]
        found = []
        for batch in (tokens, other):
            state = drafter.prefill(tf.constant(batch), tf.constant([4, 3, 4]), drafter.initial_state(BATCH))
            found.append(drafter.step(tf.constant(batch[:, 3]), state)[0][1].numpy())
        np.testing.assert_array_equal(found[0], found[1])

    @pytest.fixture(params=[pytest.param(1, marks=pytest.mark.slow), BATCH])
    def batch(self, request):
        return request.param

    def test_graph_xla_and_tflite_equal_eager_mode(self, drafter, batch):
        def decode(prompt, lengths, draft, kept):
            state = drafter.prefill(prompt, lengths, drafter.initial_state(batch))
            states, logits = [state], []
            for place in range(2):
                of_place, state = drafter.step(draft[:, place], states[-1])
                logits.append(of_place)
                states.append(state)
            again, _ = drafter.step(draft[:, 0], drafter.rewind(states, kept))
            # So that differences of infinities are defined.
            return {"logits": tf.maximum(tf.stack([*logits, again], axis=1), -1000.0)}

        outputs = run_everywhere(
            decode,
            prompt=self.tokens(batch, PROMPT),
            lengths=np.array([5, 0, PROMPT], np.int32)[:batch],
            draft=self.tokens(batch, 2, seed=2),
            kept=np.array([1, 0, 2], np.int32)[:batch],
        )
        for output in outputs.values():
            self.close(output["logits"], outputs["eager"]["logits"])
