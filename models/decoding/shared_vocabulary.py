"""Lets a model with another vocabulary than the target's draft for it.

Every vocabulary of this library maps an id to bytes that do not depend on its neighbours (`AnyVocabulary.pieces`). The
space before a word belongs to the word's piece. So two ids mean the same if their bytes are equal. How a text is
divided into pieces does depend on the text. A token of the target that the drafter lacks is read as the drafter would
divide the token's bytes alone, which may differ from how it divides the whole text. This costs accepted drafts only.

Reference: the intersection of vocabularies is algorithm 4, TLI, of Timor et al. 2025, "Accelerating LLM Inference with
Lossless Speculative Decoding Algorithms for Heterogeneous Vocabularies", https://arxiv.org/abs/2502.05202.
"""

from collections.abc import Callable, Sequence
from copy import copy
from numbers import Real
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models.decoding.drafters import Drafter
from models.tensors import clip
from models.vocabularies import AnyVocabulary
from models.vocabulary import EOS

_CHUNK = 16  # a prompt is read in parts of at most this many of the drafter's tokens


class SharedVocabularyDrafter(Drafter):
    """Drafts with a drafter of another vocabulary, as far as the two vocabularies have the same tokens.

    Tokens are shared if they have the same bytes. The logits of the shared tokens are the drafter's, and those of the
    others are -inf. If several ids have the same bytes, the last of them is shared: in sentencepiece's vocabularies the
    earlier ones are for bytes that no other piece covers. The end token has the meaning that the vocabulary's
    `document` gives it: a line break if every line ends with it, as in vocabularies that this library learns, or else
    the end of the text.

    What the target has read is read by the drafter as its own tokens, up to `max_pieces` for one of the target's. The
    begin of a text is read as the drafter's, and put before texts that begin without one if the drafter needs it. Other
    tokens without bytes are read as the end token. With equal vocabularies, this is the given drafter.

    A transformer needs a context for its own tokens, which may be more than the target's, rounded up to 16 for each
    prompt. Beyond it, reading is an error or no token is proposed.

    Attributes:
      overlap: share of the pieces of two bytes or more, in the vocabulary with fewer of them, that the other has too;
        the share of all pieces if one vocabulary has single bytes only.

    Args:
      drafter: the drafter with its own vocabulary.
      target_vocabulary: the target's vocabulary.
      drafter_vocabulary: the drafter's vocabulary.
      least_overlap: minimum of `overlap`, 0 to 1. A token that is not shared is never drafted, so that the accepted
        share is at most the target's probability of the shared tokens. The default 0.1 refuses vocabularies of other
        languages or scripts, which share little more than bytes, and accepts small vocabularies for large ones: those
        of 4,096 ids learned from Shakespeare's plays have 7 % of the 49,152 ids of SmolLM2, but 89 % of the tokens of
        a play. `coverage` computes the latter number for any text.
      max_pieces: maximum number of the drafter's tokens that one of the target's is read as, >= 1; of longer ones, the
        last are read.

    Raises:
      ValueError: an option is out of range, or the vocabularies have less in common than `least_overlap`.
    """

    def __init__(
        self,
        drafter: Drafter,
        target_vocabulary: AnyVocabulary,
        drafter_vocabulary: AnyVocabulary,
        least_overlap: float = 0.1,
        max_pieces: int = 8,
    ) -> None:
        is_number = isinstance(least_overlap, Real) and not isinstance(least_overlap, bool)
        if not is_number or not 0 <= least_overlap <= 1:
            raise ValueError(f"least_overlap = {least_overlap!r}: must be a number from 0 to 1")
        if isinstance(max_pieces, bool) or not isinstance(max_pieces, int | np.integer) or max_pieces < 1:
            raise ValueError(f"max_pieces = {max_pieces!r}: must be an integer >= 1")
        self.drafter: Drafter = drafter
        self._target = target_vocabulary
        self.is_same = target_vocabulary.digest == drafter_vocabulary.digest
        self.overlap = 1.0 if self.is_same else _overlap(target_vocabulary.pieces, drafter_vocabulary.pieces)
        if not self.overlap >= least_overlap:
            raise ValueError(
                f"the drafter's vocabulary ({drafter_vocabulary.size:,} ids) has {self.overlap:.1%} of the smaller "
                f"vocabulary in common with the target's ({target_vocabulary.size:,} ids), less than "
                f"least_overlap = {least_overlap:g}: few drafts would be accepted; use a drafter of a nearer vocabulary"
            )
        self._shared = _shared_ids(target_vocabulary, drafter_vocabulary)
        self._prefix = _begins(drafter_vocabulary) and not _begins(target_vocabulary)
        self._start = drafter_vocabulary.start
        read_as = _readings(target_vocabulary, drafter_vocabulary, int(max_pieces))
        self._counts = np.array([len(ids) for ids in read_as], np.int32)
        self._width = int(self._counts.max())
        self._pieces = np.zeros([len(read_as), self._width], np.int32)
        for row, ids in zip(self._pieces, read_as, strict=True):
            row[: len(ids)] = ids

    def coverage(self, text: str) -> float:
        """Returns the share of the target's tokens of `text` that can be drafted; NaN if there are none.

        Raises:
          ValueError: `text` holds a lone surrogate.
        """
        ids = self._target.encode(text)
        return 1.0 if self.is_same and ids else float(np.mean(self._shared[ids] >= 0)) if ids else float("nan")

    def initial_state(self, batch: int) -> Any:
        """Returns the drafter's state before a text; see `Drafter.initial_state`."""
        state = self.drafter.initial_state(batch)
        if self.is_same or not self._prefix:
            return state
        return self.drafter.prefill(tf.fill([batch, 1], self._start), tf.ones([batch], tf.int32), state)

    def step(self, tokens: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
        """Reads one of the target's tokens per row; see `Drafter.step`."""
        if self.is_same:
            return self.drafter.step(tokens, state)
        counts = tf.gather(self._counts, tokens)
        pieces = tf.gather(self._pieces, tokens)
        # Drafted tokens are one piece each, so that this loop usually ends at once.
        state = Drafter.prefill(self.drafter, pieces, counts - 1, state)
        logits, state = self.drafter.step(tf.gather(pieces, counts - 1, axis=1, batch_dims=1), state)
        drafted = tf.gather(logits, np.maximum(self._shared, 0), axis=1)
        is_proposed = (self._shared >= 0) & tf.equal(drafted, drafted)  # NaN: beyond a transformer's context
        return tf.where(is_proposed, drafted, -float("inf")), state

    def prefill(self, tokens: tf.Tensor, lengths: tf.Tensor, state: Any) -> Any:
        """Reads several of the target's tokens per row, in parts; see `Drafter.prefill`."""
        if self.is_same:
            return self.drafter.prefill(tokens, lengths, state)
        if not tokens.shape[1]:
            return state
        is_read = tf.range(tokens.shape[1]) < lengths[:, tf.newaxis]
        counts = tf.where(is_read, tf.gather(self._counts, tokens), 0)
        ends = tf.cumsum(counts, axis=1)
        totals = ends[:, -1]

        def body(begin: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
            places = begin + tf.range(_CHUNK)
            # Which token each place belongs to: as many end before it or at it.
            owner = tf.reduce_sum(tf.cast(ends[:, tf.newaxis] <= places[:, tf.newaxis], tf.int32), axis=2)
            owner = tf.minimum(owner, tokens.shape[1] - 1)
            within = places - tf.gather(ends - counts, owner, axis=1, batch_dims=1)
            of_owner = tf.gather(tokens, owner, axis=1, batch_dims=1)
            within = clip(within, 0, self._width - 1)  # places after the end are not read
            part = tf.gather(self._pieces.ravel(), of_owner * self._width + within)
            return begin + _CHUNK, self.drafter.prefill(part, clip(totals - begin, 0, _CHUNK), state)

        return tf.while_loop(lambda begin, _: begin < tf.reduce_max(totals), body, (tf.constant(0), state))[1]

    def rewind(self, states: Sequence[Any], kept: tf.Tensor) -> Any:
        """Returns the drafter's state after `kept` steps; see `Drafter.rewind`."""
        return self.drafter.rewind(states, kept)

    def deploy(self, context: int | None, hold: Callable[[Any], Any], is_int8: bool) -> Drafter:
        """Returns the same with the drafter deployed; see `Drafter.deploy`."""
        deployed = copy(self)
        # A row may have more of the drafter's tokens than of the target's, so that the given context says nothing.
        deployed.drafter = self.drafter.deploy(context if self.is_same else None, hold, is_int8)
        return deployed


def _by_piece(pieces: Sequence[bytes]) -> dict[bytes, int]:
    """Returns the id of each piece, the last of several."""
    return {piece: token for token, piece in enumerate(pieces) if piece}


def _overlap(target: Sequence[bytes], drafter: Sequence[bytes]) -> float:
    one, other = ({piece for piece in pieces if len(piece) > 1} for pieces in (target, drafter))
    if not one or not other:
        one, other = ({piece for piece in pieces if piece} for pieces in (target, drafter))
    return len(one & other) / max(1, min(len(one), len(other)))


def _ends_lines(vocabulary: AnyVocabulary) -> bool:
    """Returns whether models are trained with an end token after each line, and never see a line break."""
    return EOS in vocabulary.document("a\na")[1:]  # the first token may be the end token too


def _meanings(vocabulary: AnyVocabulary) -> list[bytes]:
    """Returns the bytes that each id stands for in a model's text."""
    meanings = list(vocabulary.pieces)
    if _ends_lines(vocabulary):
        meanings = [b"" if piece == b"\n" else piece for piece in meanings]
        meanings[EOS] = b"\n"
    return meanings


def _shared_ids(target: AnyVocabulary, drafter: AnyVocabulary) -> NDArray[np.int32]:
    """Returns the drafter's id of each of the target's, int32 `[V]`; -1 where none is shared."""
    shared, own = np.full(target.size, -1, np.int32), _by_piece(_meanings(drafter))
    for piece, token in _by_piece(_meanings(target)).items():
        shared[token] = own.get(piece, -1)
    if not _ends_lines(target) and not _ends_lines(drafter):
        shared[EOS] = EOS
    return shared


def _begins(vocabulary: AnyVocabulary) -> bool:
    """Returns whether every prompt begins with the start token."""
    return len(vocabulary.prompt("a")) > len(vocabulary.encode("a"))


def _readings(target: AnyVocabulary, drafter: AnyVocabulary, max_pieces: int) -> list[list[int]]:
    """Returns the drafter's ids, 1 to `max_pieces`, that each of the target's ids is read as."""
    own = _by_piece(_meanings(drafter))
    readings = []
    for piece in _meanings(target):
        ids = [own[piece]] if piece in own else _divide(piece, drafter, own)
        readings.append(ids[-max_pieces:] or [EOS])
    if target.start != EOS:
        readings[target.start] = [drafter.start]
    return readings


def _divide(piece: bytes, vocabulary: AnyVocabulary, own: dict[bytes, int]) -> list[int]:
    """Returns ids of `vocabulary` that have the bytes of `piece`; bytes that it lacks are left out."""
    if own.get(b"\n") == EOS and b"\n" in piece:
        first, *others = (_divide(line, vocabulary, own) for line in piece.split(b"\n"))
        return first + [token for ids in others for token in [EOS, *ids]]
    try:
        ids = vocabulary.encode(piece.decode())
    except UnicodeDecodeError:
        ids = []
    if vocabulary.decode_bytes(ids) == piece:
        return ids
    # It is a part of a character, or the tokenizer adds a space before a text: the fewest pieces.
    best: list[tuple[int, list[int]]] = [(0, [])]
    for end in range(1, len(piece) + 1):
        cost, known = best[end - 1]
        found = [(cost + len(piece) + 1, known)]
        for begin in range(end):
            token = own.get(piece[begin:end])
            if token is not None:
                found.append((best[begin][0] + 1, [*best[begin][1], token]))
        best.append(min(found, key=lambda option: option[0]))
    return best[-1][1]
