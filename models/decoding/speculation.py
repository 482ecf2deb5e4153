"""Decodes with one line of drafted tokens per block.

The drafter reads the last token of the text and proposes X_1 … X_G; the target reads all of them at once, and a method
(`models.decoding.methods`) decides how many are accepted and draws one more token.

`Speculation.block` is one such step, on its own or in the loop of `models.decoding.loop`. A host program that decides
about tokens itself (a grammar, say) calls `draft` and `verify`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.block_decoder import Block, BlockDecoder, Outcome, Request, State, extend_all
from models.decoding.draft_length import choose
from models.decoding.drafters import Drafter
from models.decoding.history import block_histories
from models.decoding.methods import Method
from models.decoding.numpy_ops import LEFT_OUT
from models.language_model import LanguageModel, Weights
from models.tensors import to_tensors


class Draft(NamedTuple):
    """Holds the drafts of one block.

    Attributes:
      tokens: int32 `[B, G]`.
      lengths: int32 `[B]`, 0 to G: number of tokens of each row that are drafts; those after them are to be ignored.
      limits: int32 `[B]`, `lengths` to G: number of tokens that each row could draft, chosen before.
      laws: G times the probabilities that the tokens were drawn with.
      states: the drafter's states, before and after each token that it read.
      noise: the random numbers of the block.
    """

    tokens: Any
    lengths: Any
    limits: Any
    laws: list[Any]
    states: list[Any]
    noise: Any


@dataclass(frozen=True, eq=False)
class Speculation(BlockDecoder):
    """Joins target, drafter and method into pure functions of a state and a request.

    The functions run in eager mode, `tf.function`, XLA and TFLite, with static shapes.

    Attributes:
      model: the target.
      weights: the target's weights by name, arrays, tensors or variables.
      method: how blocks are drawn and decided.
      drafter: what proposes tokens; None only with a draft length of 0.
      draft_length: number of tokens G that the drafter proposes per block, >= 0.
      automatic: whether a row's draft length is chosen from 0 to G by `Request.costs`, block by block.
      penalties: whether states keep the history that penalties need.
      log_probs: whether blocks hold log-probabilities; zeros otherwise.

    Raises:
      ValueError: the draft length does not fit the drafter.
    """

    model: LanguageModel
    weights: Weights
    method: Method
    drafter: Drafter | None = None
    draft_length: int = 0
    automatic: bool = False
    penalties: bool = True
    log_probs: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.draft_length, bool) or not isinstance(self.draft_length, int) or self.draft_length < 0:
            raise ValueError(f"draft_length = {self.draft_length!r}: must be an integer >= 0")
        if (self.drafter is None) != (self.draft_length == 0):
            raise ValueError(f"draft_length = {self.draft_length}: must be above 0 with a drafter, and 0 without one")
        if self.automatic and self._carries:
            raise ValueError(
                "draft_length = 'auto': the decoding carries something from block to block and needs drafts of one "
                "length; give a number, or choose the decoding 'block'"
            )

    @property
    def _carries(self) -> bool:
        return bool(tf.nest.flatten(self.method.initial_carry(1, self.draft_length)))

    def initial_carry(self, batch: int) -> Any:
        """Returns what the method carries before the first block; see `BlockDecoder.initial_carry`."""
        return self.method.initial_carry(batch, self.draft_length)

    def words(self, request: Request, position: tf.Tensor, count: int) -> Any:
        """Returns the random words of blocks; see `BlockDecoder.words`."""
        starts = position[:, tf.newaxis] + tf.range(count)
        return self.method.words(request.seed, request.request, starts, self.draft_length)

    def block(self, state: State, request: Request, words: Any, active: tf.Tensor) -> tuple[Block, State]:
        """Drafts and verifies one block per row; see `BlockDecoder.block`."""
        draft = self.draft(state, request, words)
        if self.drafter is None or self._carries or not self.drafter.may_pass:
            return self.verify(state, draft, request, active)
        return tf.cond(
            tf.reduce_any(draft.lengths > 0),
            lambda: self.verify(state, draft, request, active),
            # The target reads one token per row, which takes less time than G + 1.
            lambda: self._verify_nothing(state, draft, request, active),
        )

    def drafts(self, state: State, request: Request) -> tf.Tensor:
        """Returns whether each row can draft tokens in the next block; see `BlockDecoder.drafts`."""
        if not self.automatic:
            return super().drafts(state, request)
        return choose(state.evidence, request.costs, self.draft_length) > 0

    def plain_block(self, state: State, request: Request, words: Any, active: tf.Tensor) -> tuple[Block, State]:
        """Does the same as `block`, in the time of plain decoding; see `BlockDecoder.plain_block`."""
        none = tf.zeros_like(state.last)
        noise = self.method.noise(words, 0, self.model.vocabulary_size)
        empty = Draft(none[:, tf.newaxis][:, :0], none, none, [], [], noise)
        return self._verify_nothing(state, empty, request, active)

    def _verify_nothing(self, state: State, draft: Draft, request: Request, active: tf.Tensor) -> tuple[Block, State]:
        """Returns a block of one token per row, which the target draws."""
        block, after = self.verify(state, draft._replace(tokens=draft.tokens[:, :0], laws=[]), request, active)
        unused = [[0, 0], [0, self.draft_length]]
        wide = {name: tf.pad(getattr(block, name), unused) for name in _BY_PLACE}
        return block._replace(**wide), after

    def draft(self, state: State, request: Request, words: Any) -> Draft:
        """Drafts one block per row; arguments as for `block`."""
        batch = state.last.shape[0]
        noise = self.method.noise(words, self.draft_length, self.model.vocabulary_size)
        drafter = self.drafter
        if drafter is None:
            zeros = tf.zeros([batch], tf.int32)
            return Draft(tf.zeros([batch, 0], tf.int32), zeros, zeros, [], [], noise)
        wanted = tf.fill([batch], self.draft_length)
        if self.automatic:
            wanted = choose(state.evidence, request.costs, self.draft_length)

        def draw(token: tf.Tensor, before: Any, drafted: list[tf.Tensor], place: int) -> tuple[Any, ...]:
            logits, after = drafter.step(token, before)
            processed = self._process(logits, request, lambda: extend_all(state.history, drafted))
            drawn = self.method.draw(processed, noise, place)
            proposes = (tf.reduce_max(logits, axis=-1) > LEFT_OUT) & (drawn.token >= 0)
            return proposes, drawn, after

        token, is_open, lengths = state.last, tf.ones([batch], tf.bool), tf.zeros_like(wanted)
        states: list[Any] = [drafter.begin(state.drafter, state.target)]
        laws: list[Any] = []
        tokens: list[tf.Tensor] = []
        found: Any = None
        for place in range(self.draft_length):
            step = partial(draw, token, states[-1], list(tokens), place)
            # The drafter reads the last token of the longest draft too, and nothing after it.
            is_beyond = place > tf.reduce_max(wanted) if self.automatic and place else None
            found = proposes, drawn, after = _unless(is_beyond, found, step)
            is_open &= proposes
            lengths += tf.cast(is_open & (place < wanted), tf.int32)
            token = tf.where(is_open, drawn.token, 0)
            states.append(after)
            laws.append(drawn.law)
            tokens.append(token)
        is_beyond = self.draft_length > tf.reduce_max(wanted) if self.automatic else None
        states.append(_unless(is_beyond, states[-1], lambda: drafter.step(token, states[-1])[1]))
        return Draft(tf.stack(tokens, axis=1), lengths, wanted, laws, states, noise)

    def verify(
        self, state: State, draft: Draft, request: Request, active: tf.Tensor, allowed: tf.Tensor | None = None
    ) -> tuple[Block, State]:
        """Decides about a draft.

        Args:
          state: the state before the block.
          draft: what `draft` returned for it.
          request: as for `block`.
          active: as for `block`.
          allowed: bool `[B, G+1, V]`, tokens that the host allows after each prefix of the draft; None allows all. The
            text then has the target's distribution under this mask, although the drafter does not know it.
        """
        read = tf.concat([state.last[:, tf.newaxis], draft.tokens], axis=1)
        logits, trail = self.model.extend(to_tensors(self.weights), read, state.target)
        processed = self._process(logits, request, lambda: block_histories(state.history, draft.tokens), allowed)
        probabilities = tf.nn.softmax(processed)
        accepted, token, carry = self.method.decide(
            processed, probabilities, draft.laws, draft.tokens, draft.lengths, draft.limits, draft.noise, state.carry
        )
        outcome = Outcome(logits, probabilities, draft.tokens, draft.lengths, accepted, token, carry)

        def rewind(count: tf.Tensor) -> tuple[Any, Any]:
            drafter = state.drafter
            if self.drafter is not None and draft.states:
                drafter = self.drafter.rewind(draft.states, count)
            return self.model.rewind(trail, count), drafter

        return self._finish(state, request, active, outcome, rewind)


def _unless(condition: tf.Tensor | None, otherwise: Any, function: Callable[[], Any]) -> Any:
    """Returns what `function` returns or, under the condition, another nest of tensors without calling it."""
    return function() if condition is None else tf.cond(condition, lambda: otherwise, function)


_BY_PLACE = ("tokens", "log_probs", "unprocessed_log_probs")
