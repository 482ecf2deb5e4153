"""Decodes with drafts of a model's own prediction heads (blockwise parallel decoding).

One call of the model verifies the drafted tokens and gives the hidden state from which its heads draft the next ones.
Head i draws the token i places ahead, whatever the tokens between: its distribution is a proper proposal, so that token
and block verification keep the model's own distribution. A rescorer, any drafter, may refine the drafts: the score of a
token is then the head's logit plus α times the rescorer's, among the head's likeliest tokens. The first token of a
block, that of head 1, is the model's own and is never rescored.

A block of a model with h heads has 1 to h tokens: up to h - 1 drafted ones and the model's own. The first block after a
prompt of one token drafts nothing, since no hidden state is known.

Reference: Stern et al. 2018, https://arxiv.org/abs/1811.03115; Kim et al. 2024, https://arxiv.org/abs/2404.09221.
"""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from models.decoding.block_decoder import Request, State, extend_all
from models.decoding.hidden_state import WithHidden
from models.decoding.numpy_ops import LEFT_OUT
from models.decoding.speculation import Draft, Speculation

_LEAST_SCORE = -1e4


@dataclass(frozen=True, eq=False)
class Blockwise(Speculation):
    """Joins a model with prediction heads, a method and perhaps a rescorer into pure functions of state and request.

    Attributes:
      model: the model with heads.
      drafter: the rescorer; None for none.
      draft_length: number of drafted tokens, 1 to h - 1.
      automatic: False.
      top_k: number of likeliest tokens of each head among which the rescorer chooses; ties with the last one stay.
      alpha: weight of the rescorer's logits, >= 0; 0 gives the drafts of no rescorer.

    Raises:
      ValueError: a number is out of range, or the model has no heads.
    """

    top_k: int = 16
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.model, WithHidden):
            raise ValueError("decoding = 'blockwise': the model has no prediction heads; train some with fedspeak pretrain")
        heads = self.model.headed.prediction_heads
        if not 1 <= self.draft_length < heads:
            raise ValueError(
                f"draft_length = {self.draft_length}: must be an integer from 1 to {heads - 1} for a model with {heads} "
                "heads"
            )
        if self.automatic:
            raise ValueError("draft_length = 'auto': decoding 'blockwise' drafts one length; give a number")
        if not 1 <= self.top_k <= self.model.vocabulary_size:
            raise ValueError(f"top_k_heads = {self.top_k}: must be from 1 to the {self.model.vocabulary_size} tokens")
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha = {self.alpha!r}: must be a number >= 0")

    def block(self, state: State, request: Request, words: Any, active: tf.Tensor) -> tuple[Any, State]:
        """Drafts and verifies one block per row; see `BlockDecoder.block`."""
        return self.verify(state, self.draft(state, request, words), request, active)

    def draft(self, state: State, request: Request, words: Any) -> Draft:
        """Drafts one block per row; arguments as for `block`."""
        noise = self.method.noise(words, self.draft_length, self.model.vocabulary_size)
        heads = self.model.head_logits(self.weights, state.target)
        token, states = state.last, [state.drafter]
        tokens: list[tf.Tensor] = []
        laws: list[Any] = []
        for place in range(self.draft_length):
            scores = heads[:, place + 1]
            if self.drafter is not None:
                rescored, after = self.drafter.step(token, states[-1])
                states.append(after)
                scores = self._refine(scores, rescored)
            drafted = list(tokens)
            processed = self._process(scores, request, lambda drafted=drafted: extend_all(state.history, drafted))
            drawn = self.method.draw(processed, noise, place)
            token = tf.maximum(drawn.token, 0)
            tokens.append(token)
            laws.append(drawn.law)
        if self.drafter is not None:
            # The rescorer reads the last token of the draft too, and nothing after it.
            states.append(self.drafter.step(token, states[-1])[1])
        is_sound = tf.reduce_all(tf.math.is_finite(heads[:, 1 : self.draft_length + 1]), axis=[1, 2])
        lengths = tf.where(state.target.is_known & is_sound, self.draft_length, 0)
        rescorer_states = states if self.drafter is not None else []
        return Draft(tf.stack(tokens, axis=1), lengths, lengths, laws, rescorer_states, noise)

    def _refine(self, scores: tf.Tensor, rescored: tf.Tensor) -> tf.Tensor:
        """Returns the head's logits plus α times the rescorer's among the head's likeliest tokens, `[B, V]`."""
        bound = tf.math.top_k(scores, self.top_k).values[:, -1:]
        refined = scores + self.alpha * tf.maximum(rescored, _LEAST_SCORE)
        return tf.where(scores >= bound, refined, LEFT_OUT)
