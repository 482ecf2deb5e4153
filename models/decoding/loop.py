"""Builds the decoding loop: a graph that adds one block of tokens after another, until each row ends.

A row ends at its maximum number of tokens, at the stop token, or with a stop sequence. If that falls inside a block,
the tokens of the block that come after are pending: a later call that continues from the returned state gives them
first. So a text does not depend on how it is divided among calls.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.block_decoder import Block, BlockDecoder, Request, State
from models.tensors import clip


class Pending(NamedTuple):
    """Holds tokens that are decided but not given out, and what a stop sequence may begin with.

    Attributes:
      tokens: int32 `[B, G+1]`, zeros after a row's last one.
      count: int32 `[B]`, 0 to G: number of tokens.
      log_probs: float32 `[B, G+1]`, as in `models.decoding.block_decoder.Block`.
      unprocessed_log_probs: float32 `[B, G+1]`, as there.
      tail: int32 `[B, S]`, the last tokens that were given out; -1 before the first.
    """

    tokens: Any
    count: Any
    log_probs: Any
    unprocessed_log_probs: Any
    tail: Any


class Progress(NamedTuple):
    """Holds all from which decoding continues.

    Attributes:
      state: the state after the last decided block.
      pending: tokens that come first.
    """

    state: State
    pending: Pending


class Ends(NamedTuple):
    """Says where rows end; all are run-time inputs of a graph.

    Attributes:
      max_new: int32 scalar, maximum number of tokens per row.
      stop: int32 scalar, id of the token after which a row ends (it is given out and counted); -1 for none.
      sequences: int32 `[R, S+1]`, sequences of tokens after which a row ends, padded with -1 in front. R may be 0.
    """

    max_new: Any
    stop: Any
    sequences: Any


class Counts(NamedTuple):
    """Counts what became of the drafts of each row.

    Attributes:
      calls: int32 `[B]`, number of calls of the target.
      decided: int32 `[B]`, number of tokens that these gave, those pending at the end included.
      drafted: int32 `[B, G]`, in how many blocks the token at each place was drafted.
      reached: int32 `[B, G]`, in how many of these all tokens before it were accepted.
      accepted: int32 `[B, G]`, in how many of these it was accepted too.
      compared: float64 `[B, 2]`, the sums of what `compare` of `generate` returned; () without it.
    """

    calls: Any
    decided: Any
    drafted: Any
    reached: Any
    accepted: Any
    compared: Any = ()


class Generated(NamedTuple):
    """Holds what `generate` gives out.

    Attributes:
      tokens: int32 `[B, N]`, zeros after the end of a row.
      lengths: int32 `[B]`, number of tokens of each row, the stop token included.
      log_probs: float32 `[B, N]`, log-probability of each token under the target's processed distribution.
      unprocessed_log_probs: float32 `[B, N]`, the same under the target's softmax before any processing.
      is_ended: bool `[B]`, whether the row ends with the stop token or a stop sequence.
      is_finite: bool `[B]`; False: the row ends early, because the target's logits were not finite or left no token.
      counts: what became of the drafts.
      progress: from which a later call continues.
    """

    tokens: Any
    lengths: Any
    log_probs: Any
    unprocessed_log_probs: Any
    is_ended: Any
    is_finite: Any
    counts: Counts
    progress: Progress


def begin(decoder: BlockDecoder, state: State, tail: int = 0) -> Progress:
    """Returns the progress before the first token.

    Args:
      decoder: the models and how they decode.
      state: the state after `BlockDecoder.begin`.
      tail: number of tokens S that a stop sequence may have, minus 1.
    """
    batch, width = state.last.shape[0], decoder.draft_length + 1
    zeros = tf.zeros([batch, width])
    tail_tokens = tf.fill([batch, tail], -1)
    pending = Pending(tf.zeros([batch, width], tf.int32), tf.zeros([batch], tf.int32), zeros, zeros, tail_tokens)
    return Progress(state, pending)


def repeat_rows(state: State, count: int) -> State:
    """Returns a state in which each row stands `count` times, one after the other: several texts with one beginning."""

    def repeat(part: tf.Tensor) -> tf.Tensor:
        # `tf.repeat` would leave the converter without a static shape.
        rows = tf.tile(part[:, tf.newaxis], [1, count, *[1] * (part.shape.rank - 1)])
        return tf.reshape(rows, [part.shape[0] * count, *part.shape[1:]])

    return state if count == 1 else tf.nest.map_structure(repeat, state)


def generate(
    decoder: BlockDecoder,
    progress: Progress,
    request: Request,
    ends: Ends,
    words: Any,
    compare: Callable[[Block], tf.Tensor] | None = None,
) -> Generated:
    """Gives out up to min(max_new, N) tokens per row, with static shapes and builtin TFLite ops only.

    The loop itself only records the blocks, since every op of it is paid for in every block. What the records amount
    to is computed after it.

    Args:
      decoder: the models and how they decode.
      progress: from which to continue.
      request: what to draw, and how.
      ends: where rows end.
      words: the random words of all blocks, from `BlockDecoder.words` with `progress.state.position` and N. They are
        computed by one call, so that its 200 or so small ops run once, not per block.
      compare: function from each block to float64 `[B, 2]`, which is summed over the blocks that drafted something.
    """
    start, pending = progress.state.position, progress.pending
    batch, longest = start.shape[0], tf.nest.flatten(words)[0].shape[1]
    limit = tf.minimum(ends.max_new, longest)

    def add_block(draw: _Draw, step: tf.Tensor, rows: _Rows, state: State) -> tuple[tf.Tensor, _Rows, State]:
        now = tf.minimum(state.position - start, longest - 1)
        of_block = tf.nest.map_structure(lambda part: tf.gather(part, now, axis=1, batch_dims=1), words)
        block, state = draw(state, request, of_block, ~rows.done)
        records = _record(rows.records, step, block, ~rows.done)
        compared = rows.compared
        if compare is not None:
            counts = ~rows.done & (block.drafted > 0) & (block.count > 0)
            compared += tf.where(counts[:, tf.newaxis], compare(block), tf.zeros_like(compared))
        is_end, tail = _find_ends(block.tokens, block.count, rows.tail, ends)
        given = rows.given + block.count
        done = rows.done | tf.reduce_any(is_end, axis=1) | (given >= limit) | tf.equal(block.count, 0)
        return step + 1, _Rows(done, given, tail, records, compared), state

    def drafts(step: tf.Tensor, rows: _Rows, state: State) -> tf.Tensor:
        return tf.reduce_any(~rows.done & decoder.drafts(state, request))

    def unfinished(step: tf.Tensor, rows: _Rows, state: State) -> tf.Tensor:
        return ~tf.reduce_all(rows.done)

    is_end, tail = _find_ends(pending.tokens, pending.count, pending.tail, ends)
    done = tf.reduce_any(is_end, axis=1) | (pending.count >= limit)
    width = decoder.draft_length + 1
    records = _Records(tf.zeros([batch, longest, width + 3], tf.int32), tf.zeros([batch, longest, 2 * width]))
    compared = () if compare is None else tf.zeros([batch, 2], tf.float64)
    variables = (tf.constant(0), _Rows(done, pending.count, tail, records, compared), progress.state)
    if decoder.automatic:
        variables = tf.while_loop(drafts, partial(add_block, decoder.block), variables)
        # No row that is left drafts any more.
        variables = tf.while_loop(unfinished, partial(add_block, decoder.plain_block), variables)
    else:
        variables = tf.while_loop(unfinished, partial(add_block, decoder.block), variables)
    _, rows, state = variables
    found = _sum_up(rows.records, pending, state, ends, limit)
    return found._replace(counts=found.counts._replace(compared=rows.compared))


_Draw = Callable[[State, Request, Any, tf.Tensor], tuple[Block, State]]


class _Rows(NamedTuple):
    """Holds how far each row is.

    Attributes:
      done: bool `[B]`, whether it has ended.
      given: int32 `[B]`, number of tokens, those pending from the call before included.
      tail: int32 `[B, S]`, as in `Pending`.
      records: what the blocks gave.
      compared: as in `Counts`, so far.
    """

    done: Any
    given: Any
    tail: Any
    records: "_Records"
    compared: Any


class _Records(NamedTuple):
    """Holds what the blocks of a call gave, in one tensor of each type, so that the loop writes twice per block.

    Attributes:
      integers: int32 `[B, N, G+4]`: G + 1 tokens, how many they are, how many were drafted, is the row active.
      log_probs: float32 `[B, N, 2(G+1)]`: log-probabilities, processed first.
    """

    integers: Any
    log_probs: Any


def _record(records: _Records, step: tf.Tensor, block: Block, active: tf.Tensor) -> _Records:
    """Writes one block of each row."""
    numbers = tf.stack([block.count, block.drafted, tf.cast(active, tf.int32)], axis=1)
    new = _Records(
        tf.concat([block.tokens, numbers], axis=1),
        tf.concat([block.log_probs, block.unprocessed_log_probs], axis=1),
    )
    is_now = tf.equal(tf.range(records.integers.shape[1]), step)[:, tf.newaxis]
    return _Records(*(tf.where(is_now, n[:, tf.newaxis], old) for n, old in zip(new, records, strict=True)))


def _find_ends(tokens: tf.Tensor, count: tf.Tensor, tail: tf.Tensor, ends: Ends) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns after which of the new tokens `[B, W]` a row may end, and the last tokens of each row after them.

    Args:
      tokens: int32 `[B, W]`, the new tokens.
      count: int32 `[B]`, how many of them are real.
      tail: int32 `[B, S]`, the tokens before them.
      ends: where rows end.
    """
    width, before = tokens.shape[1], tail.shape[1]
    is_end = tf.equal(tokens, ends.stop)
    if ends.sequences.shape[0]:
        recent = tf.concat([tail, tokens], axis=1)
        windows = tf.stack([recent[:, place : place + before + 1] for place in range(width)], axis=1)
        matches = tf.equal(windows[:, :, tf.newaxis], ends.sequences) | tf.equal(ends.sequences, -1)
        is_end |= tf.reduce_any(tf.reduce_all(matches, axis=-1), axis=-1)
        tail = tf.gather(recent, tf.range(before) + count[:, tf.newaxis], axis=1, batch_dims=1)
    return is_end & (tf.range(width) < count[:, tf.newaxis]), tail


def _sum_up(records: _Records, pending: Pending, state: State, ends: Ends, limit: tf.Tensor) -> Generated:
    """Returns what a call gives out, from the pending tokens of the call before and the records of the blocks."""
    longest, width = records.integers.shape[1], pending.tokens.shape[1]
    tokens, count, drafted, active = tf.split(records.integers, [width, 1, 1, 1], axis=2)
    count, drafted, active = count[..., 0], drafted[..., 0], active[..., 0] > 0

    # Lays out all decided tokens one after another. The pending ones are the first block.
    counts = tf.concat([pending.count[:, tf.newaxis], count], axis=1)
    block_ends = tf.cumsum(counts, axis=1)
    places = tf.range(longest + width)
    block = tf.minimum(_count_up_to(block_ends, longest + width), longest)
    place = places - tf.gather(block_ends - counts, block, axis=1, batch_dims=1)
    decided = block_ends[:, -1]
    is_decided = places < decided[:, tf.newaxis]
    source = block * width + clip(place, 0, width - 1)

    def lay_out(before: tf.Tensor, of_blocks: tf.Tensor) -> tf.Tensor:
        rows = tf.concat([before, tf.reshape(of_blocks, [before.shape[0], longest * width])], axis=1)
        return tf.where(is_decided, tf.gather(rows, source, axis=1, batch_dims=1), tf.zeros_like(rows[:, :1]))

    log_probs = tf.split(records.log_probs, 2, axis=2)
    lines = (
        lay_out(pending.tokens, tokens),
        lay_out(pending.log_probs, log_probs[0]),
        lay_out(pending.unprocessed_log_probs, log_probs[1]),
    )
    is_end, _ = _find_ends(lines[0], decided, pending.tail, ends)
    before_end = tf.equal(tf.cumsum(tf.cast(is_end, tf.int32), axis=1, exclusive=True), 0)
    lengths = tf.reduce_sum(tf.cast(before_end & is_decided & (places < limit), tf.int32), axis=1)

    def give(line: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.range(longest) < lengths[:, tf.newaxis], line[:, :longest], tf.zeros_like(line[:, :1]))

    left = tf.range(width) + lengths[:, tf.newaxis]

    def keep(line: tf.Tensor) -> tf.Tensor:
        kept = tf.gather(line, tf.minimum(left, longest + width - 1), axis=1, batch_dims=1)
        return tf.where(left < decided[:, tf.newaxis], kept, tf.zeros_like(line[:, :1]))

    recent = tf.concat([pending.tail, lines[0]], axis=1)
    tail = tf.gather(recent, tf.range(pending.tail.shape[1]) + lengths[:, tf.newaxis], axis=1, batch_dims=1)
    at = tf.range(width - 1)
    drafted_at = active[..., tf.newaxis] & (at < drafted[..., tf.newaxis])
    totals = [drafted_at, drafted_at & (at < count[..., tf.newaxis]), drafted_at & (at + 1 < count[..., tf.newaxis])]
    given = [give(line) for line in lines]
    return Generated(
        given[0],
        lengths,
        given[1],
        given[2],
        tf.reduce_any(is_end & tf.equal(places, lengths[:, tf.newaxis] - 1), axis=1),
        tf.reduce_all(~active | (count > 0), axis=1),
        Counts(_total(active), tf.reduce_sum(count, axis=1), *(_total(part) for part in totals)),
        Progress(state, Pending(keep(lines[0]), decided - lengths, keep(lines[1]), keep(lines[2]), tail)),
    )


def _count_up_to(ends: tf.Tensor, size: int) -> tf.Tensor:
    """Returns how many of `ends` `[B, E]`, each 0 to `size` - 1, are at most 0, 1, …, `size` - 1, int32 `[B, size]`."""
    batch = ends.shape[0]
    places = tf.reshape(ends + size * tf.range(batch)[:, tf.newaxis], [-1, 1])
    at_each = tf.scatter_nd(places, tf.ones_like(places[:, 0]), [batch * size])
    return tf.cumsum(tf.reshape(at_each, [batch, size]), axis=1)


def _total(flags: tf.Tensor) -> tf.Tensor:
    """Returns how many blocks have a flag, int32 `[B, ...]` from bool `[B, N, ...]`."""
    return tf.reduce_sum(tf.cast(flags, tf.int32), axis=1)
