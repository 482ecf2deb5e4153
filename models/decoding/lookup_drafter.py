"""Drafts what followed the last tokens when they occurred before in the same row: prompt look-up.

It needs no model, and helps where a text repeats its prompt: summaries, edits, answers that quote.

Reference: Saxena 2023, "Prompt lookup decoding", https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from typing import Any

import tensorflow as tf

from models.decoding.choices import require_integer
from models.decoding.drafters import Drafter

_NONE = -1  # where a row has no token yet


class LookupDrafter(Drafter):
    """Proposes the token that followed the last tokens of the row when they occurred before.

    Of the last `longest` tokens, as many as possible must have occurred before, and at least `shortest`. Of several
    occurrences of these, the most recent one counts. The proposal is certain: its logit is 0 and the others are -inf.
    Without an occurrence, all logits are -inf, and the row's draft ends.

    The state is int32 `[B, context]`: the last tokens of each row, at its end; -1 stands for none.

    Args:
      vocabulary_size: number of token ids V, >= 1.
      context: number of tokens that are remembered, >= 2. Earlier tokens of a row are forgotten.
      longest: maximum number of last tokens to look up, 1 to context - 1.
      shortest: minimum number, 1 to `longest`.

    Raises:
      ValueError: an option is out of range.
    """

    may_pass = True

    def __init__(self, vocabulary_size: int, context: int, longest: int = 3, shortest: int = 1) -> None:
        self.vocabulary_size = require_integer("vocabulary_size", vocabulary_size, 1)
        self.context = require_integer("context", context, 2)
        self.longest = require_integer("longest", longest, 1, self.context - 1)
        self.shortest = require_integer("shortest", shortest, 1, self.longest)

    def initial_state(self, batch: int) -> tf.Tensor:
        """Returns rows without tokens; see `Drafter.initial_state`."""
        return tf.fill([batch, self.context], _NONE)

    def step(self, tokens: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
        """Reads one token per row; see `Drafter.step`."""
        state = tf.concat([state[:, 1:], tokens[:, tf.newaxis]], axis=1)
        proposed = self._look_up(state)
        return tf.where(tf.range(self.vocabulary_size) == proposed[:, tf.newaxis], 0.0, -float("inf")), state

    def prefill(self, tokens: tf.Tensor, lengths: tf.Tensor, state: Any) -> Any:
        """Reads several tokens per row at once; see `Drafter.prefill`."""
        joined = tf.concat([state, tokens], axis=1)
        return tf.gather(joined, lengths[:, tf.newaxis] + tf.range(self.context), axis=1, batch_dims=1)

    def _look_up(self, state: tf.Tensor) -> tf.Tensor:
        """Returns the proposed token of each row, int32 `[B]`; -1 for none."""
        # How many tokens before each place are those at the end of the row.
        matched = tf.zeros_like(state)
        unbroken = tf.ones_like(state)
        for distance in range(1, self.longest + 1):
            before = tf.pad(state[:, :-distance], [[0, 0], [distance, 0]], constant_values=_NONE)
            last = state[:, self.context - distance, tf.newaxis]
            unbroken *= tf.cast(before == last, tf.int32)
            matched += unbroken
        # More tokens first, then the later place.
        places = tf.range(self.context)
        best = tf.argmax(matched * self.context + places, axis=1, output_type=tf.int32)
        is_found = tf.gather(matched, best, axis=1, batch_dims=1) >= self.shortest
        return tf.where(is_found, tf.gather(state, best, axis=1, batch_dims=1), _NONE)
