"""A language model that is a table: the logits of the next token for each pair of tokens before it."""

import numpy as np
import tensorflow as tf


class TableModel:
    """Implements what decoding needs of `models.language_model.LanguageModel`; its state is the last token.

    Its only weight is "table"; without weights it is the table that it was built with.
    """

    context = None

    def __init__(self, table):
        self.table = np.asarray(table, np.float32)
        self.vocabulary_size = self.table.shape[-1]

    def logits(self, text):
        """Returns the logits after a text of at least one token, the begin of which is token 0."""
        before = text[-2] if len(text) > 1 else 0
        return self.table[before, text[-1]]

    def initial_state(self, batch):
        return tf.zeros([batch], tf.int32)

    def prefill(self, weights, tokens, lengths, state=None):
        state = self.initial_state(tokens.shape[0]) if state is None else state
        logits, trail = self.extend(weights, tokens, state)
        last = tf.gather(logits, tf.maximum(lengths - 1, 0), axis=1, batch_dims=1)
        return last, self.rewind(trail, lengths)

    def extend(self, weights, tokens, state, tree=None, level=None):
        before, trail = self.tokens_before(tokens, state, tree, level)
        table = weights["table"] if weights else tf.constant(self.table)
        return tf.gather_nd(table, tf.stack([before, tokens], axis=-1)), trail

    def tokens_before(self, tokens, state, tree=None, level=None):
        """Returns the token before each of `tokens`, and the trail."""
        begun = level is None or level.start == 0
        trail = tf.concat([state[:, tf.newaxis] if begun else state, tokens], axis=1)
        parents = (
            None
            if tree is None
            else np.array(tree.parents if level is None else tree.parents[level.start : level.stop])
        )
        return trail[:, :-1] if parents is None else tf.gather(trail, parents + 1, axis=1), trail

    def rewind(self, trail, kept, tree=None):
        return tf.gather(trail, kept, axis=1, batch_dims=1)

    def select(self, states, kept):
        return tf.gather(tf.stack(states, axis=1), kept, axis=1, batch_dims=1)


def draw_table(seed, size, spread=2.0):
    return (spread * np.random.default_rng(seed).standard_normal([size, size, size])).astype(np.float32)
