"""Defines a decoder in blocks: what a step of decoding takes and gives, and what all kinds of drafts share.

A block begins with the last token of the text, which neither model has read. A drafter proposes tokens after it, the
target reads them all in one call, and the decoder decides which of them to accept and draws one more token: the last
token of the next block. `models.decoding.speculation` drafts one line of tokens, `models.decoding.tree_speculation` a
tree of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.choices import OFF, Processing
from models.decoding.draft_length import initial_evidence, observe
from models.decoding.drafters import Drafter, widen
from models.decoding.history import extend_history
from models.decoding.numpy_ops import LEFT_OUT
from models.decoding.numpy_processing import History
from models.decoding.processing import process, process_plain
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
      is_plain: bool scalar, from `is_plain`; requests that are plain take less time. () is never plain. The tokens of
        a plain request do not enter the history, which no penalty of it reads: a text that a plain request has begun
        must go on with plain requests, as that of `models.decoding.generator.Generator.resume` does.
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


class Block(NamedTuple):
    """Holds the tokens that one block adds to the text of each row.

    Attributes:
      tokens: int32 `[B, G+1]`, zeros after a row's last one.
      count: int32 `[B]`, 1 to G + 1: number of tokens; 0 for inactive rows, and where the target's logits are not
        finite or leave no token. Rules that look at the whole draft also end a row where such logits follow a token
        that they reject.
      drafted: int32 `[B]`, number of drafted tokens, of a tree the depth of its deepest one; `count` - 1 of these were
        accepted in active rows.
      log_probs: float32 `[B, G+1]`, log-probability of each token under the target's processed distribution.
      unprocessed_log_probs: float32 `[B, G+1]`, the same under the target's softmax before any processing.
      first: the target's and the drafter's distributions of the first token, two float32 `[B, V]`, if several drafts of
        it are drawn independently; () otherwise.
    """

    tokens: Any
    count: Any
    drafted: Any
    log_probs: Any
    unprocessed_log_probs: Any
    first: Any = ()


class Outcome(NamedTuple):
    """Holds what was decided about one block per row.

    Attributes:
      logits: the target's logits `[B, G+1, V]` after the last token of the text and after each token of the draft.
      probabilities: float32 `[B, G+1, V]`, the softmax of these logits after processing.
      tokens: int32 `[B, G]`, the draft.
      lengths: int32 `[B]`, number of its real tokens.
      accepted: int32 `[B]`, number of accepted tokens.
      token: int32 `[B]`, the token after them.
      carry: what is carried to the next block.
    """

    logits: Any
    probabilities: Any
    tokens: Any
    lengths: Any
    accepted: Any
    token: Any
    carry: Any


class BlockDecoder(ABC):
    """Joins target and drafter into pure functions of a state and a request, with one block per step.

    The functions run in eager mode, `tf.function`, XLA and TFLite, with static shapes.

    Attributes:
      model: the target.
      weights: the target's weights by name, arrays, tensors or variables.
      drafter: what proposes tokens; None for none.
      draft_length: maximum number of drafted tokens G that a block accepts, >= 0.
      automatic: whether a row's draft length is chosen from 0 to G by `Request.costs`, block by block.
      penalties: whether states keep the history that penalties need.
      log_probs: whether blocks hold log-probabilities; zeros otherwise.
    """

    model: LanguageModel
    weights: Weights
    drafter: Drafter | None
    draft_length: int
    automatic: bool
    penalties: bool
    log_probs: bool

    @abstractmethod
    def initial_carry(self, batch: int) -> Any:
        """Returns what is carried from block to block, before the first one: a nest of tensors."""

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
            carry=self.initial_carry(batch),
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

    @abstractmethod
    def words(self, request: Request, position: tf.Tensor, count: int) -> Any:
        """Returns the random words of blocks that begin at `position` (int32 `[B]`) and up to `count` - 1 later."""

    @abstractmethod
    def block(self, state: State, request: Request, words: Any, active: tf.Tensor) -> tuple[Block, State]:
        """Drafts and verifies one block per row.

        Args:
          state: the state before it.
          request: what to draw, and how.
          words: the block's random words, one entry `[B, ...]` of `words`.
          active: bool `[B]`; other rows add no token and keep their state.
        """

    def drafts(self, state: State, request: Request) -> tf.Tensor:
        """Returns whether each row can draft tokens in the next block, bool `[B]`.

        With automatic draft lengths, a row that cannot will not for the rest of its text.
        """
        return tf.fill([state.last.shape[0]], self.draft_length > 0)

    def plain_block(self, state: State, request: Request, words: Any, active: tf.Tensor) -> tuple[Block, State]:
        """Does the same as `block` for rows that cannot draft.

        With automatic draft lengths it takes the time of plain decoding. The drafter reads nothing, so that its state
        is of no use afterwards.
        """
        return self.block(state, request, words, active)

    def _finish(
        self,
        state: State,
        request: Request,
        active: tf.Tensor,
        outcome: Outcome,
        rewind: Callable[[tf.Tensor], tuple[Any, Any]],
    ) -> tuple[Block, State]:
        """Returns the block of each row and the state after it; inactive rows keep theirs.

        Args:
          state: the state before the block.
          request: as for `block`.
          active: as for `block`.
          outcome: what was decided.
          rewind: function from the number of tokens that each row adds, 0 to G + 1, to target's and drafter's states.
        """
        logits, probabilities = outcome.logits, outcome.probabilities
        places, accepted = tf.range(outcome.tokens.shape[1] + 1), outcome.accepted[:, tf.newaxis]
        # A row of processed logits that leaves no token is NaN, and so is its softmax.
        is_sound = tf.math.is_finite(tf.reduce_sum(logits, axis=-1) + probabilities[..., 0])
        active &= tf.reduce_all(is_sound | (places > accepted), axis=1)
        is_added = (places <= accepted) & active[:, tf.newaxis]
        drafted = tf.pad(outcome.tokens, [[0, 0], [0, 1]])
        tokens = tf.where(is_added, tf.where(places < accepted, drafted, outcome.token[:, tf.newaxis]), 0)
        count = tf.reduce_sum(tf.cast(is_added, tf.int32), axis=1)
        log_probs = self._log_probs(logits, probabilities, tokens, is_added, request)
        block = Block(tokens, count, outcome.lengths, *log_probs)
        history = state.history
        if self.penalties:
            added = tf.unstack(tf.where(is_added, tokens, -1), axis=1)
            if isinstance(request.is_plain, tuple):
                history = extend_all(history, added)
            else:
                history = tf.cond(request.is_plain, lambda: state.history, lambda: extend_all(state.history, added))
        last = tf.gather(tokens, tf.maximum(count - 1, 0), axis=1, batch_dims=1)
        target, drafter = rewind(count)

        def keep(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
            return tf.where(widen(active, new), new, old)

        return block, State(
            target=target,
            drafter=drafter,
            last=tf.where(active, last, state.last),
            position=state.position + count,
            history=history,
            carry=tf.nest.map_structure(keep, outcome.carry, state.carry),
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
        return tf.cond(request.is_plain, lambda: process_plain(logits, processing.temperature), process_all)

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


def extend_all(history: History, tokens: Sequence[tf.Tensor]) -> History:
    """Adds tokens, each int32 `[B]`, to a history; negative ones add nothing."""
    for token in tokens:
        history = extend_history(history, token)
    return history


def is_plain(processing: Processing, bias: tf.Tensor) -> tf.Tensor:
    """Returns whether only the temperature changes the logits, bool scalar; at temperature 0 no filter can."""
    options = processing._asdict()
    temperature = tf.convert_to_tensor(options.pop("temperature"), tf.float32)
    changes = {name: tf.not_equal(value, getattr(OFF, name)) for name, value in options.items()}
    filters = tf.reduce_any(tf.stack([changes.pop(name) for name in ("top_k", "top_p", "min_p")]))
    changes["bias"] = tf.reduce_any(tf.not_equal(bias, 0.0))
    return ~(filters & (temperature > 0)) & ~tf.reduce_any(tf.stack(list(changes.values())))


def _holds(tokens: tf.Tensor, is_real: tf.Tensor, size: int) -> tf.Tensor:
    """Returns which tokens of the vocabulary each row holds, bool `[B, V]`."""
    return tf.reduce_any(tf.one_hot(tf.where(is_real, tokens, -1), size, on_value=True, off_value=False), axis=1)
