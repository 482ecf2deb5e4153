"""Lets a language model keep the last hidden state, which prediction heads draft from, in its decoding state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from models.heads import HeadedLanguageModel
from models.language_model import Array, Weights
from models.tensors import to_tensors
from models.token_tree import TokenTree


class HiddenState(NamedTuple):
    """Holds a model's state and the hidden state after the last token that it read.

    As the trail of `extend` it holds the hidden states before and after each token, with a time axis.

    Attributes:
      model: the model's own state or trail.
      hidden: float32 `[B, E]`, or `[B, G+1, E]` in a trail; zeros before any token.
    """

    model: Any
    hidden: Any


@dataclass(frozen=True)
class WithHidden:
    """Implements `models.language_model.LanguageModel` for decoding: a headed model whose states hold its hidden state.

    Attributes:
      headed: the model.
    """

    headed: HeadedLanguageModel

    @property
    def vocabulary_size(self) -> int:
        """Returns the number of token ids, V."""
        return self.headed.vocabulary_size

    @property
    def context(self) -> int | None:
        """Returns the maximum number of tokens of a row; None if there is no maximum."""
        return self.headed.context

    def fit(self, context: int) -> "WithHidden":
        """Returns this model with states for rows of at most `context` tokens; see `LanguageModel.fit`."""
        return WithHidden(self.headed.fit(context))

    def initial_state(self, batch: int) -> HiddenState:
        """Returns the state before any token."""
        size = self.headed.base.shapes()["embedding"][1]
        return HiddenState(self.headed.initial_state(batch), tf.zeros([batch, size]))

    def prefill(
        self, weights: Weights, tokens: Array, lengths: Array, state: HiddenState | None = None
    ) -> tuple[tf.Tensor, HiddenState]:
        """Reads tokens int32 `[B, T]` and returns logits `[B, V]` and the state; see `LanguageModel.prefill`.

        A graph computes no logits if its caller does not use them.
        """
        tokens = tf.convert_to_tensor(tokens)
        state = self.initial_state(tokens.shape[0]) if state is None else state
        logits, trail = self.extend(weights, tokens, state)
        last = tf.maximum(tf.convert_to_tensor(lengths) - 1, 0)
        return tf.gather(logits, last, axis=1, batch_dims=1), self.rewind(trail, lengths)

    def extend(
        self,
        weights: Weights,
        tokens: Array,
        state: HiddenState,
        tree: TokenTree | None = None,
        level: range | None = None,
    ) -> tuple[tf.Tensor, HiddenState]:
        """Reads tokens int32 `[B, G]` and returns logits `[B, G, V]` and the trail; see `LanguageModel.extend`."""
        begun = level is None or level.start == 0
        logits, hidden, trail = self.headed.extend_with_hidden(weights, tokens, state.model, tree, level)
        before = state.hidden[:, tf.newaxis] if begun else state.hidden
        return logits, HiddenState(trail, tf.concat([before, hidden], axis=1))

    def rewind(self, trail: HiddenState, kept: Array, tree: TokenTree | None = None) -> HiddenState:
        """Returns the state after the kept tokens; see `LanguageModel.rewind`."""
        hidden = tf.gather(trail.hidden, kept, axis=1, batch_dims=1)
        return HiddenState(self.headed.rewind(trail.model, kept, tree), hidden)

    def head_logits(self, weights: Weights, state: HiddenState) -> tf.Tensor:
        """Returns the logits `[B, h, V]` of all heads after the last token that was read."""
        return self.headed.head_logits(to_tensors(weights), state.hidden)
