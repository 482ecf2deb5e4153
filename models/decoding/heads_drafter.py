"""Drafts with a model's own prediction heads (blockwise parallel decoding): no second model is needed.

One call of the model verifies the drafted tokens and gives the hidden state from which its heads draft the next ones.
The token after the hidden state is the model's own, drawn from head 1. Head i, from 2, proposes the token i places
ahead, whatever the tokens between. That is a proper proposal: every decoding keeps the model's own distribution.

A rescorer, any other drafter, may refine the drafts: the score of a token is the head's logit plus α times the
rescorer's, among the head's likeliest tokens.

Reference: Stern et al. 2018, https://arxiv.org/abs/1811.03115; Kim et al. 2024, https://arxiv.org/abs/2404.09221.
"""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.choices import require_integer
from models.decoding.drafters import Drafter
from models.decoding.hidden_state import HiddenState, WithHidden
from models.language_model import Weights
from models.token_tree import TokenTree

_LEAST_LOGIT = -1e4


class _Block(NamedTuple):
    """Holds the state within a block.

    Attributes:
      logits: float32 `[B, D, V]`, the logits of the heads from 2, as many as a draft has tokens.
      place: int32 scalar, number of steps so far.
      rescorer: the rescorer's state or trail; () without one.
    """

    logits: Any
    place: Any
    rescorer: Any


class HeadsDrafter(Drafter):
    """Drafts with the prediction heads of the target itself.

    Between blocks its state is the rescorer's.

    With `alpha` = 0 the greedy drafts are those of the heads alone. Drawn drafts are not, unless `top_k` is the whole
    vocabulary: they come from the `top_k` likeliest tokens of each head. The text has the model's distribution anyway.

    Args:
      rescorer: what refines the drafts; None for none.
      top_k: number of likeliest tokens of each head among which the rescorer chooses, >= 1; ties with the last one
        stay. More than the vocabulary has count as all.
      alpha: weight of the rescorer's logits, >= 0.

    Raises:
      ValueError: a number is out of range.
    """

    def __init__(self, rescorer: Drafter | None = None, top_k: int = 16, alpha: float = 1.0) -> None:
        self.rescorer = rescorer
        self.top_k = require_integer("top_k_heads", top_k, 1)
        is_number = isinstance(alpha, Real) and not isinstance(alpha, bool)
        if not is_number or not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha = {alpha!r}: must be a number >= 0")
        self.alpha = float(alpha)
        self._model: WithHidden | None = None
        self._weights: Weights = {}
        self._heads = range(0)

    def bind(self, model: WithHidden, weights: Weights, depth: int) -> "HeadsDrafter":
        """Returns a drafter with the heads of a target.

        Args:
          model: the target.
          weights: its weights by name, those of the heads among them.
          depth: number of tokens that a draft may have, one after another.

        Raises:
          ValueError: the target has too few heads.
        """
        bound = HeadsDrafter(self.rescorer, self.top_k, self.alpha)
        bound._hold(model, weights, depth)
        return bound

    def _hold(self, model: WithHidden, weights: Weights, depth: int) -> None:
        heads = model.prediction_heads
        if depth >= heads:
            raise ValueError(
                f"draft_length = {depth}: the model's {heads} prediction heads draft at most {heads - 1} tokens; lower "
                "it"
            )
        self._model, self._weights, self._heads = model, weights, range(2, depth + 2)

    def initial_state(self, batch: int) -> Any:
        """Returns the rescorer's state before any token; see `Drafter.initial_state`."""
        return () if self.rescorer is None else self.rescorer.initial_state(batch)

    def prefill(self, tokens: tf.Tensor, lengths: tf.Tensor, state: Any) -> Any:
        """Lets the rescorer read the prompt; see `Drafter.prefill`."""
        return state if self.rescorer is None else self.rescorer.prefill(tokens, lengths, state)

    def begin(self, state: Any, target: Any) -> _Block:
        """Computes the logits of the heads that draft; see `Drafter.begin`."""
        if self._model is None or not isinstance(target, HiddenState):
            raise ValueError("HeadsDrafter: drafts for a model with prediction heads only; use it in a Generator")
        logits = self._model.head_logits(self._weights, target.hidden, self._heads)
        return _Block(logits, tf.constant(0), state)

    def step(self, tokens: tf.Tensor, state: _Block) -> tuple[tf.Tensor, _Block]:
        """Returns the next head's scores; see `Drafter.step`."""
        place = tf.minimum(state.place, state.logits.shape[1] - 1)
        scores = tf.gather(state.logits, place, axis=1)
        if self.rescorer is None:
            return scores, state._replace(place=state.place + 1)
        rescored, after = self.rescorer.step(tokens, state.rescorer)
        return self._refine(scores, rescored), _Block(state.logits, state.place + 1, after)

    def rewind(self, states: Sequence[_Block], kept: tf.Tensor) -> Any:
        """Returns the rescorer's state after `kept` steps; see `Drafter.rewind`."""
        return () if self.rescorer is None else self.rescorer.rewind([state.rescorer for state in states], kept)

    def step_level(self, tokens: tf.Tensor, trail: _Block, tree: TokenTree, level: range) -> tuple[tf.Tensor, _Block]:
        """Returns the same head's scores for all nodes of a depth; see `Drafter.step_level`."""
        depth = min(tree.levels.index(level), trail.logits.shape[1] - 1)
        scores = tf.repeat(trail.logits[:, depth : depth + 1], len(level), axis=1)
        if self.rescorer is None:
            return scores, trail
        rescored, after = self.rescorer.step_level(tokens, trail.rescorer, tree, level)
        return self._refine(scores, rescored), trail._replace(rescorer=after)

    def rewind_tree(self, trail: _Block, kept: tf.Tensor, tree: TokenTree) -> Any:
        """Returns the rescorer's state after the path to a node; see `Drafter.rewind_tree`."""
        return () if self.rescorer is None else self.rescorer.rewind_tree(trail.rescorer, kept, tree)

    def deploy(self, context: int | None, hold: Callable[[Any], Any], is_int8: bool) -> Drafter:
        """Returns a drafter whose rescorer is ready for a file; see `Drafter.deploy`."""
        rescorer = None if self.rescorer is None else self.rescorer.deploy(context, hold, is_int8)
        return HeadsDrafter(rescorer, self.top_k, self.alpha)

    def _refine(self, scores: tf.Tensor, rescored: tf.Tensor) -> tf.Tensor:
        """Returns the head's logits plus α times the rescorer's among the head's likeliest tokens, `[..., V]`."""
        bound = tf.math.top_k(scores, min(self.top_k, scores.shape[-1])).values[..., -1:]
        refined = scores + self.alpha * tf.maximum(rescored, _LEAST_LOGIT)
        return tf.where(scores >= bound, refined, float("-inf"))
