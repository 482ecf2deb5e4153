"""Decodes in blocks: a drafter proposes tokens, one call of the target decides about them.

A block begins with the last token of the text, which neither model has read. The drafter reads it and proposes
X_1 … X_G; the target reads all of them at once, and a method (`models.decoding.methods`) decides how many are accepted
and draws one more token Y. Y is the last token of the next block.

`Speculation.block` is one such step, on its own or in the loop of `models.decoding.loop`. A host program that decides
about tokens itself (a grammar, say) calls `draft` and `verify`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.choices import OFF, Processing
from models.decoding.draft_length import choose, initial_evidence, observe
from models.decoding.drafters import Drafter, widen
from models.decoding.history import block_histories, extend_history
from models.decoding.methods import Method
from models.decoding.numpy_ops import LEFT_OUT
from models.decoding.numpy_processing import History
from models.decoding.processing import apply_temperature, process
from models.language_model import LanguageModel, Weights
from models.tensors import to_tensors


class Request(NamedTuple):
    """Holds what a call of the decoder takes beside its state; all are run-time inputs of a graph.

    Attributes:
      seed: int32 `[2]`, seed of the random numbers.
      request: int32 `[B]`, number that identifies each row's request. Not the row's index in the batch.
      processing: the options for logits, scalars.
      bias: float32 `[V]` or `[B, V]`, added to the target's and the drafter's logits; -inf bans a token. () for none.
      costs: the times of a block, for automatic draft lengths; () for draft lengths that are all G.
      is_plain: bool scalar, from `is_plain`; requests that are plain take less time. () is never plain.
    """

    seed: Any
    request: Any
    processing: Processing
    bias: Any = ()
    costs: Any = ()
    is_plain: Any = ()


class State(NamedTuple):
    """Holds where the decoding of each row stands, between two blocks.

    Attributes:
      target: the target's state after all tokens but the last.
      drafter: the drafter's state after the same tokens.
      last: int32 `[B]`, the last token.
      position: int32 `[B]`, number of tokens, those of the prompt and the last one included.
      history: which tokens the text holds, for penalties; () without penalties.
      carry: what the method carries from block to block.
      evidence: how many drafted tokens were accepted so far, for automatic draft lengths; () without them.
    """

    target: Any
    drafter: Any
    last: Any
    position: Any
    history: Any
    carry: Any
    evidence: Any


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


class Block(NamedTuple):
    """Holds the tokens that one block adds to the text of each row.

    Attributes:
      tokens: int32 `[B, G+1]`, zeros after a row's last one.
      count: int32 `[B]`, 1 to G + 1: number of tokens; 0 for inactive rows, and where the target's logits are not
        finite or leave no token. Rules that look at the whole draft also end a row where such logits follow a token
        that they reject.
      drafted: int32 `[B]`, number of drafted tokens, of which `count` - 1 were accepted in active rows.
      log_probs: float32 `[B, G+1]`, log-probability of each token under the target's processed distribution.
      unprocessed_log_probs: float32 `[B, G+1]`, the same under the target's softmax before any processing.
    """

    tokens: Any
    count: Any
    drafted: Any
    log_probs: Any
    unprocessed_log_probs: Any


@dataclass(frozen=True, eq=False)
class Speculation:
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

    def initial_state(self, batch: int) -> State:
        """Returns the state before any token; `read` fills it."""
        size = self.model.vocabulary_size
        zeros = tf.zeros([batch], tf.int32)
        return State(
            target=self.model.initial_state(batch),
            drafter=() if self.drafter is None else self.drafter.initial_state(batch),
            last=zeros,
            position=zeros,
            history=History(tf.zeros([batch, size], tf.bool), tf.zeros([batch, size], tf.int32))
            if self.penalties
            else (),
            carry=self.method.initial_carry(batch, self.draft_length),
            evidence=initial_evidence(batch) if self.automatic else (),
        )

    def read(self, tokens: tf.Tensor, lengths: tf.Tensor, state: State) -> State:
        """Reads the next tokens of each row's prompt; the last token of the whole prompt goes into `begin`, not here.

        Args:
          tokens: int32 `[B, T]`, padded at the end.
          lengths: int32 `[B]`, 0 to T: the number of real tokens.
          state: the state before them.
        """
        _, target = self.model.prefill(to_tensors(self.weights), tokens, lengths, state.target)
        drafter = () if self.drafter is None else self.drafter.prefill(tokens, lengths, state.drafter)
        history = state.history
        if self.penalties:
            real = tf.sequence_mask(lengths, tokens.shape[1])
            history = history._replace(prompt=history.prompt | _holds(tokens, real, self.model.vocabulary_size))
        return state._replace(target=target, drafter=drafter, history=history, position=state.position + lengths)

    def begin(self, last: tf.Tensor, state: State) -> State:
        """Adds the last token of each row's prompt, int32 `[B]`, which the first block reads."""
        history = state.history
        if self.penalties:
            held = _holds(last[:, tf.newaxis], tf.ones_like(last[:, tf.newaxis], tf.bool), self.model.vocabulary_size)
            history = history._replace(prompt=history.prompt | held)
        return state._replace(last=last, history=history, position=state.position + 1)

    def words(self, request: Request, position: tf.Tensor, count: int) -> Any:
        """Returns the random words of blocks that begin at `position` (int32 `[B]`) and up to `count` - 1 later."""
        starts = position[:, tf.newaxis] + tf.range(count)
        return self.method.words(request.seed, request.request, starts, self.draft_length)

    def block(self, state: State, request: Request, words: Any, active: tf.Tensor) -> tuple[Block, State]:
        """Drafts and verifies one block per row.

        Args:
          state: the state before it.
          request: what to draw, and how.
          words: the block's random words, one entry `[B, ...]` of `words`.
          active: bool `[B]`; other rows add no token and keep their state.
        """
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
        """Returns whether each row can draft tokens in the next block, bool `[B]`.

        With automatic draft lengths, a row that cannot will not for the rest of its text.
        """
        if not self.automatic:
            return tf.fill([state.last.shape[0]], self.draft_length > 0)
        return choose(state.evidence, request.costs, self.draft_length) > 0

    def plain_block(self, state: State, request: Request, words: Any, active: tf.Tensor) -> tuple[Block, State]:
        """Does the same as `block` for rows that cannot draft, in the time of plain decoding.

        The drafter reads nothing: its state is of no use afterwards.
        """
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
            processed = self._process(logits, request, lambda: _extend(state.history, drafted))
            drawn = self.method.draw(processed, noise, place)
            proposes = (tf.reduce_max(logits, axis=-1) > LEFT_OUT) & (drawn.token >= 0)
            return proposes, drawn, after

        token, is_open, lengths = state.last, tf.ones([batch], tf.bool), tf.zeros_like(wanted)
        states: list[Any] = [state.drafter]
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
        decision = self.method.decide(
            processed, probabilities, draft.laws, draft.tokens, draft.lengths, draft.limits, draft.noise, state.carry
        )
        places, accepted = tf.range(read.shape[1]), decision.accepted[:, tf.newaxis]
        # A row of processed logits that leaves no token is NaN, and so is its softmax.
        is_sound = tf.math.is_finite(tf.reduce_sum(logits, axis=-1) + probabilities[..., 0])
        active &= tf.reduce_all(is_sound | (places > accepted), axis=1)
        is_added = (places <= accepted) & active[:, tf.newaxis]
        drafted = tf.pad(draft.tokens, [[0, 0], [0, 1]])
        tokens = tf.where(is_added, tf.where(places < accepted, drafted, decision.token[:, tf.newaxis]), 0)
        block = Block(
            tokens,
            tf.reduce_sum(tf.cast(is_added, tf.int32), axis=1),
            draft.lengths,
            *self._log_probs(logits, probabilities, tokens, is_added, request),
        )
        history = state.history
        if self.penalties:
            added = tf.unstack(tf.where(is_added, tokens, -1), axis=1)
            if isinstance(request.is_plain, tuple):
                history = _extend(history, added)
            else:
                history = tf.cond(request.is_plain, lambda: state.history, lambda: _extend(state.history, added))
        return block, self._advance(state, block, draft, trail, decision.carry, history, active)

    def _advance(
        self, state: State, block: Block, draft: Draft, trail: Any, carry: Any, history: Any, active: tf.Tensor
    ) -> State:
        """Returns the state after a block; inactive rows keep theirs."""
        count = block.count
        last = tf.gather(block.tokens, tf.maximum(count - 1, 0), axis=1, batch_dims=1)
        return State(
            target=self.model.rewind(trail, count),
            drafter=state.drafter
            if self.drafter is None or not draft.states
            else self.drafter.rewind(draft.states, count),
            last=tf.where(active, last, state.last),
            position=state.position + count,
            history=history,
            carry=tf.nest.map_structure(lambda new, old: tf.where(widen(active, new), new, old), carry, state.carry),
            evidence=observe(state.evidence, block.drafted, count, active) if self.automatic else (),
        )

    def _process(
        self, logits: tf.Tensor, request: Request, history: Callable[[], History], allowed: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Processes logits `[B, V]` or `[B, G+1, V]`, with the history that a function returns."""
        bias = None if isinstance(request.bias, tuple) else request.bias
        if bias is not None and bias.shape.rank == 2 and logits.shape.rank == 3:
            bias = bias[:, tf.newaxis]
        if allowed is not None:
            mask = tf.where(allowed, 0.0, LEFT_OUT)
            bias = mask if bias is None else tf.where(allowed, bias, LEFT_OUT)
        processing = request.processing

        def process_all() -> tf.Tensor:
            return process(logits, processing, history() if self.penalties else None, bias)

        if isinstance(request.is_plain, tuple) or allowed is not None:
            return process_all()
        return tf.cond(request.is_plain, lambda: apply_temperature(logits, processing.temperature), process_all)

    def _log_probs(
        self, logits: tf.Tensor, probabilities: tf.Tensor, tokens: tf.Tensor, is_added: tf.Tensor, request: Request
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the log-probabilities of the tokens before and after processing, processed first."""
        if not self.log_probs:
            return tf.zeros_like(tokens, tf.float32), tf.zeros_like(tokens, tf.float32)

        def of_tokens(values: tf.Tensor) -> tf.Tensor:
            return tf.gather(values, tokens, axis=2, batch_dims=2)

        def unprocessed() -> tf.Tensor:
            # Not the logarithm of the softmax, which may be 0: options may make a token likely that the model does not.
            shifted = logits - tf.reduce_max(logits, axis=-1, keepdims=True)
            total = tf.reduce_sum(tf.exp(shifted), axis=-1)
            return tf.where(is_added, of_tokens(shifted) - tf.math.log(total), 0.0)

        # A token of probability 0 is never added, so that this needs no pass over the vocabulary.
        processed = tf.math.log(tf.where(is_added, of_tokens(probabilities), 1.0))
        if isinstance(request.is_plain, tuple):
            return processed, unprocessed()
        is_unchanged = request.is_plain & tf.equal(request.processing.temperature, 1.0)
        return processed, tf.cond(is_unchanged, lambda: processed, unprocessed)


def _extend(history: History, tokens: Sequence[tf.Tensor]) -> History:
    """Adds tokens, each int32 `[B]`, to a history; negative ones add nothing."""
    for token in tokens:
        history = extend_history(history, token)
    return history


def _unless(condition: tf.Tensor | None, otherwise: Any, function: Callable[[], Any]) -> Any:
    """Returns what `function` returns or, under the condition, another nest of tensors without calling it."""
    return function() if condition is None else tf.cond(condition, lambda: otherwise, function)


def is_plain(processing: Processing, bias: tf.Tensor) -> tf.Tensor:
    """Returns whether only the temperature, which is above 0, changes the logits, bool scalar."""
    options = processing._asdict()
    temperature = tf.convert_to_tensor(options.pop("temperature"), tf.float32)
    changes = [tf.not_equal(value, getattr(OFF, name)) for name, value in options.items()]
    changes.append(tf.reduce_any(tf.not_equal(bias, 0.0)))
    return (temperature > 0) & ~tf.reduce_any(tf.stack(changes))


_BY_PLACE = ("tokens", "log_probs", "unprocessed_log_probs")


def _holds(tokens: tf.Tensor, is_real: tf.Tensor, size: int) -> tf.Tensor:
    """Returns which tokens of the vocabulary each row holds, bool `[B, V]`."""
    return tf.reduce_any(tf.one_hot(tf.where(is_real, tokens, -1), size, on_value=True, off_value=False), axis=1)
