"""Lets a language model keep the last hidden state, which prediction heads draft from, in its decoding state."""

from typing import Any, NamedTuple

import tensorflow as tf

from models.heads import HeadedLanguageModel
from models.language_model import Array, Weights
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


class WithHidden(HeadedLanguageModel):
    """Is a model with prediction heads whose decoding state holds the hidden state that the heads read."""

    @classmethod
    def of(cls, model: HeadedLanguageModel) -> "WithHidden":
        """Returns the same model with such states, for the same weights."""
        return cls(model.base, model.prediction_heads, model.base_weights)

    def initial_state(self, batch: int) -> HiddenState:
        """Returns the state before any token; see `LanguageModel.initial_state`."""
        size = self.base.shapes()["embedding"][1]
        return HiddenState(self.base.initial_state(batch), tf.zeros([batch, size]))

    def prefill(
        self, weights: Weights, tokens: Array, lengths: Array, state: HiddenState | None = None
    ) -> tuple[tf.Tensor, HiddenState]:
        """Reads tokens int32 `[B, T]` and returns logits `[B, V]` and the state; see `LanguageModel.prefill`.

        A graph computes the logits only if they are used.
        """
        tokens = tf.convert_to_tensor(tokens)
        logits, trail = self.extend(weights, tokens, self.initial_state(tokens.shape[0]) if state is None else state)
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
        logits, _, trail = self.extend_with_hidden(weights, tokens, state, tree, level)
        return logits, trail

    def extend_with_hidden(
        self,
        weights: Weights,
        tokens: Array,
        state: HiddenState,
        tree: TokenTree | None = None,
        level: range | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, HiddenState]:
        """Does the same as `extend`, and returns the hidden states; see `LanguageModel.extend_with_hidden`."""
        logits, hidden, trail = super().extend_with_hidden(weights, tokens, state.model, tree, level)
        is_first = level is None or level.start == 0
        before = state.hidden[:, tf.newaxis] if is_first else state.hidden
        return logits, hidden, HiddenState(trail, tf.concat([before, hidden], axis=1))

    def rewind(self, trail: HiddenState, kept: Array, tree: TokenTree | None = None) -> HiddenState:
        """Returns the state after the kept tokens; see `LanguageModel.rewind`."""
        hidden = tf.gather(trail.hidden, kept, axis=1, batch_dims=1)
        return HiddenState(self.base.rewind(trail.model, kept, tree), hidden)
