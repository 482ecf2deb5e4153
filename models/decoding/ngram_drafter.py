"""Drafts with an n-gram model: the automaton of `models.ngram` in TensorFlow ops.

A step gathers the stored successors of at most n - 1 states, and writes one row of V probabilities. It needs neither a
hash table nor a search.
"""

from abc import abstractmethod
from typing import Any

import numpy as np
import tensorflow as tf

from models.decoding.drafters import Drafter
from models.ngram import NGramModel


class AutomatonDrafter(Drafter):
    """Drafts with an n-gram model that is an automaton, `models.ngram_automaton`.

    The state is int32 `[B]`: the longest stored context that each row ends with. The beginning of a text is the unknown
    context.
    """

    def initial_state(self, batch: int) -> tf.Tensor:
        """Returns the unknown context for each row; see `Drafter.initial_state`."""
        return tf.zeros([batch], tf.int32)

    def step(self, tokens: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
        """Reads one token per row; see `Drafter.step`."""
        state = self._advance(tokens, state)
        return self._log_probs(state), state

    def prefill(self, tokens: tf.Tensor, lengths: tf.Tensor, state: Any) -> Any:
        """Reads several tokens per row without computing probabilities; see `Drafter.prefill`."""

        def body(i: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, tf.where(i < lengths, self._advance(tf.gather(tokens, i, axis=1), state), state)

        return tf.while_loop(lambda i, _: i < tf.reduce_max(lengths), body, (tf.constant(0), state))[1]

    @abstractmethod
    def _advance(self, tokens: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """Returns the states after one more token per row."""

    @abstractmethod
    def _log_probs(self, state: tf.Tensor) -> tf.Tensor:
        """Returns the logarithms of the distributions after each context, float32 `[B, V]`."""


class NGramDrafter(AutomatonDrafter):
    """Drafts with an n-gram model of the target's vocabulary.

    Its logits are the logarithms of the model's probabilities, up to rounding in float32.

    Args:
      model: the n-gram model.
    """

    def __init__(self, model: NGramModel) -> None:
        self.model = model
        self._levels = model.order - 1
        self._width = max(1, model.max_successors)
        # A gather of places beyond the last entry would be an error; these are masked.
        padding = [(0, self._width)]
        self._tokens = np.pad(model.tokens, padding)
        self._following = np.pad(model.following, padding)
        # Converters to TFLite quantise float tables. Integers, here the bits of the floats, stay as they are.
        self._discounted = np.pad(_bits(model.discounted), padding)
        self._backoff = _bits(model.backoff)
        self._unigram = _bits(model.unigram)[np.newaxis]

    def _advance(self, tokens: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        after = tf.gather(self.model.first, tokens)
        if not self._levels:
            return after
        places, is_entry = self._entries(self._contexts(state))
        is_token = is_entry & (tf.gather(self._tokens, places) == tokens[:, tf.newaxis, tf.newaxis])
        # At most one entry of a context is the token, so that the sum is the state after it.
        found = tf.reduce_sum(tf.where(is_token, tf.gather(self._following, places), 0), axis=2)
        is_known = tf.reduce_any(is_token, axis=2)
        for level in reversed(range(self._levels)):  # of the contexts that know the token, the longest counts
            after = tf.where(is_known[:, level], found[:, level], after)
        return after

    def _log_probs(self, state: tf.Tensor) -> tf.Tensor:
        return tf.math.log(self._probabilities(state))

    def _probabilities(self, state: tf.Tensor) -> tf.Tensor:
        """Returns the distribution after each context, float32 `[B, V]`."""
        # The index is 0, but a converter must not know it: it would fold the table into floats and quantise them.
        unigram = tf.bitcast(tf.gather(self._unigram, tf.minimum(state, 0)), tf.float32)
        if not self._levels:
            return unigram
        batch, contexts = state.shape[0], self._contexts(state)
        backoff = tf.bitcast(tf.gather(self._backoff, contexts), tf.float32)
        factors = [tf.ones([batch])]  # of the entries of each context, and of the unigrams
        for level in range(self._levels):
            factors.append(factors[-1] * backoff[:, level])
        places, is_entry = self._entries(contexts)
        discounted = tf.bitcast(tf.gather(self._discounted, places), tf.float32)
        updates = tf.where(is_entry, tf.stack(factors[:-1], axis=1)[..., tf.newaxis] * discounted, 0.0)
        columns = tf.where(is_entry, tf.gather(self._tokens, places), 0)
        rows = tf.broadcast_to(tf.range(batch)[:, tf.newaxis, tf.newaxis], columns.shape)
        seen = tf.scatter_nd(tf.stack([rows, columns], axis=-1), updates, [batch, self.model.vocabulary_size])
        return factors[-1][:, tf.newaxis] * unigram + seen

    def _contexts(self, state: tf.Tensor) -> tf.Tensor:
        """Returns the states of the contexts that back each other off, int32 `[B, n - 1]`.

        They are in order of length, the longest first; zeros at the end stand for the unknown context.
        """
        contexts = [state]
        for _ in range(self._levels - 1):
            contexts.append(tf.gather(self.model.shorter, contexts[-1]))
        return tf.stack(contexts, axis=1)

    def _entries(self, contexts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns places of entries, int32 `[B, n - 1, S]`, and which of them are the contexts' own."""
        begins = tf.gather(self.model.begins, contexts)[..., tf.newaxis]
        ends = tf.gather(self.model.begins, contexts + 1)[..., tf.newaxis]
        places = begins + tf.range(self._width)
        return places, places < ends


def _bits(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).view(np.int32)
