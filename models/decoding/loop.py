"""Builds the decoding loop: a graph that adds one block of tokens after another, until each row ends.

A row ends at its maximum number of tokens, at the stop token, or with a stop sequence. If that falls inside a block,
the tokens of the block that come after are pending: a later call that continues from the returned state gives them
first. So a text does not depend on how it is divided among calls.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.speculation import Block, Request, Speculation, State


class Pending(NamedTuple):
    """Holds tokens that are decided but not given out, and what a stop sequence may begin with.

    Attributes:
      tokens: int32 `[B, G+1]`, zeros after a row's last one.
      count: int32 `[B]`, 0 to G: number of tokens.
      log_probs: float32 `[B, G+1]`, as in `models.decoding.speculation.Block`.
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
    """

    calls: Any
    decided: Any
    drafted: Any
    reached: Any
    accepted: Any


class Generated(NamedTuple):
    """Holds what `generate` gives out.

    Attributes:
      tokens: int32 `[B, N]`, zeros after the end of a row.
      lengths: int32 `[B]`, number of tokens of each row, the stop token included.
      log_probs: float32 `[B, N]`, log-probability of each token under the target's processed distribution.
      unprocessed_log_probs: float32 `[B, N]`, the same under the target's softmax before any processing.
      is_finite: bool `[B]`; False: the row ends early, because the target's logits were not finite or left no token.
      counts: what became of the drafts.
      progress: from which a later call continues.
    """

    tokens: Any
    lengths: Any
    log_probs: Any
    unprocessed_log_probs: Any
    is_finite: Any
    counts: Counts
    progress: Progress


def begin(speculation: Speculation, state: State, tail: int = 0) -> Progress:
    """Returns the progress before the first token.

    Args:
      speculation: the models and the method.
      state: the state after `Speculation.begin`.
      tail: number of tokens S that a stop sequence may have, minus 1.
    """
    batch, width = state.last.shape[0], speculation.draft_length + 1
    zeros = tf.zeros([batch, width])
    tail_tokens = tf.fill([batch, tail], -1)
    pending = Pending(tf.zeros([batch, width], tf.int32), tf.zeros([batch], tf.int32), zeros, zeros, tail_tokens)
    return Progress(state, pending)


def generate(speculation: Speculation, progress: Progress, request: Request, ends: Ends, words: Any) -> Generated:
    """Gives out up to min(max_new, N) tokens per row, with static shapes and builtin TFLite ops only.

    Args:
      speculation: the models and the method.
      progress: from which to continue.
      request: what to draw, and how.
      ends: where rows end.
      words: the random words of all blocks, from `Speculation.words` with `progress.state.position` and N. They are
        computed by one call, so that its 200 or so small ops run once, not per block.
    """
    start = progress.state.position
    batch, places, longest = start.shape[0], speculation.draft_length, tf.nest.flatten(words)[0].shape[1]
    limit = tf.minimum(ends.max_new, longest)

    def unfinished(done: tf.Tensor, *_: Any) -> tf.Tensor:
        return ~tf.reduce_all(done)

    def body(done: tf.Tensor, generated: Generated) -> tuple[Any, ...]:
        state = generated.progress.state
        now = tf.minimum(state.position - start, longest - 1)
        of_block = tf.nest.map_structure(lambda part: tf.gather(part, now, axis=1, batch_dims=1), words)
        block, state = speculation.block(state, request, of_block, ~done)
        counts = _count(generated.counts, block, ~done, places)
        failed = ~done & ~block.is_finite
        pending = generated.progress.pending._replace(
            tokens=block.tokens,
            count=block.count,
            log_probs=block.log_probs,
            unprocessed_log_probs=block.unprocessed_log_probs,
        )
        pending = _choose(done, generated.progress.pending, pending)
        generated = generated._replace(
            progress=Progress(state, pending), counts=counts, is_finite=generated.is_finite & ~failed
        )
        ended, generated = _give_out(generated, ends, limit, ~done)
        return done | ended | failed, generated

    zeros, by_place = tf.zeros([batch], tf.int32), tf.zeros([batch, places], tf.int32)
    empty = Generated(
        tokens=tf.zeros([batch, longest], tf.int32),
        lengths=zeros,
        log_probs=tf.zeros([batch, longest]),
        unprocessed_log_probs=tf.zeros([batch, longest]),
        is_finite=tf.ones([batch], tf.bool),
        counts=Counts(zeros, zeros, by_place, by_place, by_place),
        progress=progress,
    )
    return tf.while_loop(unfinished, body, _give_out(empty, ends, limit, tf.ones([batch], tf.bool)))[1]


def _give_out(generated: Generated, ends: Ends, limit: tf.Tensor, active: tf.Tensor) -> tuple[tf.Tensor, Generated]:
    """Moves pending tokens to the output up to the first end; returns which rows ended."""
    state, pending = generated.progress
    width, longest = pending.tokens.shape[1], generated.tokens.shape[1]
    places = tf.range(width)
    is_end = tf.equal(pending.tokens, ends.stop) | _ends_sequence(pending, ends.sequences)
    is_end &= places < pending.count[:, tf.newaxis]
    before_end = tf.equal(tf.cumsum(tf.cast(is_end, tf.int32), axis=1, exclusive=True), 0)
    room = limit - generated.lengths
    is_given = before_end & (places < tf.minimum(pending.count, room)[:, tf.newaxis]) & active[:, tf.newaxis]
    given = tf.reduce_sum(tf.cast(is_given, tf.int32), axis=1)
    lengths = generated.lengths + given
    ended = tf.reduce_any(is_end & is_given, axis=1) | (lengths >= limit)
    # Which pending token belongs at each place of the output.
    source = tf.range(longest) - generated.lengths[:, tf.newaxis]
    is_new = (source >= 0) & (source < given[:, tf.newaxis])
    source = tf.clip_by_value(source, 0, width - 1)

    def append(output: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        return tf.where(is_new, tf.gather(new, source, axis=1, batch_dims=1), output)

    left = tf.minimum(places + given[:, tf.newaxis], width - 1)
    is_left = places < (pending.count - given)[:, tf.newaxis]

    def shift(values: tf.Tensor) -> tf.Tensor:
        return tf.where(is_left, tf.gather(values, left, axis=1, batch_dims=1), tf.zeros_like(values))

    recent = tf.concat([pending.tail, pending.tokens], axis=1)
    kept = tf.range(pending.tail.shape[1]) + given[:, tf.newaxis]
    return ended, generated._replace(
        tokens=append(generated.tokens, pending.tokens),
        lengths=lengths,
        log_probs=append(generated.log_probs, pending.log_probs),
        unprocessed_log_probs=append(generated.unprocessed_log_probs, pending.unprocessed_log_probs),
        progress=Progress(
            state,
            Pending(
                shift(pending.tokens),
                pending.count - given,
                shift(pending.log_probs),
                shift(pending.unprocessed_log_probs),
                tf.gather(recent, kept, axis=1, batch_dims=1),
            ),
        ),
    )


def _ends_sequence(pending: Pending, sequences: tf.Tensor) -> tf.Tensor:
    """Returns whether a stop sequence ends with each pending token, bool `[B, G+1]`."""
    width, longest = pending.tokens.shape[1], pending.tail.shape[1] + 1
    if sequences.shape[0] == 0:
        return tf.zeros_like(pending.tokens, tf.bool)
    recent = tf.concat([pending.tail, pending.tokens], axis=1)
    windows = tf.stack([recent[:, place : place + longest] for place in range(width)], axis=1)
    matches = tf.equal(windows[:, :, tf.newaxis], sequences) | tf.equal(sequences, -1)
    return tf.reduce_any(tf.reduce_all(matches, axis=-1), axis=-1)


def _count(counts: Counts, block: Block, active: tf.Tensor, places: int) -> Counts:
    """Adds one block to the counts of the active rows."""
    place = tf.range(places)
    drafted = (place < block.drafted[:, tf.newaxis]) & active[:, tf.newaxis]
    reached = drafted & (place < block.count[:, tf.newaxis])
    accepted = drafted & (place < block.count[:, tf.newaxis] - 1)

    def add(count: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        return count + tf.cast(new, tf.int32)

    return Counts(
        add(counts.calls, active),
        counts.decided + tf.where(active, block.count, 0),
        add(counts.drafted, drafted),
        add(counts.reached, reached),
        add(counts.accepted, accepted),
    )


def _choose(keep: tf.Tensor, old: Pending, new: Pending) -> Pending:
    return Pending(
        *(
            tf.where(tf.reshape(keep, [-1] + [1] * (one.shape.rank - 1)), one, other)
            for one, other in zip(old, new, strict=True)
        )
    )
