"""Computes the exact distribution of what speculative decoding outputs over several blocks, for tiny models.

Every draft, every number of accepted tokens and every token after them is enumerated; nothing is sampled.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models.decoding.verification import Rule, residuals
from models.decoding.verifier import Verifier, as_verifier

Tokens = tuple[int, ...]
Table = dict[Tokens, NDArray[np.float64]]
"""The distribution of the next token after each text; a longer text is looked up by its last tokens."""

Limit = Callable[[int, Tokens], int]
"""Number of tokens, 0 to G, that a block can draft: a function of its number, from 0, and the text before it."""


class Output(NamedTuple):
    """Holds what was enumerated.

    Attributes:
      law: float64 `[V, ..., V]`, the probability of each sequence of the first tokens.
      accepted: float64 `[blocks]`, expected number of accepted tokens of each block. A text that has reached the end
        accepts nothing any more.
    """

    law: NDArray[np.float64]
    accepted: NDArray[np.float64]


@dataclass(frozen=True)
class _Texts:
    """Holds the distinct texts that decoding can have produced so far, one per row.

    Attributes:
      tokens: the text of each row.
      weight: float64 `[R]`, its probability.
      carry: what the verifier carries, a nest of arrays `[R, ...]`.
    """

    tokens: list[Tokens]
    weight: NDArray[np.float64]
    carry: Any


class Chain:
    """Looks up a model's tables by number: node 0 is the empty text."""

    def __init__(self, target: Table, drafter: Table, size: int) -> None:
        self.depth = max(len(text) for text in target)
        self.number = {text: number for number, text in enumerate(target)}
        self.target = np.array(list(target.values()))
        self.drafter = np.array([drafter[text] for text in target])
        self.child = np.array([[self.node((*text, token)) for token in range(size)] for text in target])

    def node(self, text: Tokens) -> int:
        return self.number[text if len(text) <= self.depth else text[-self.depth :]]


def enumerate_output(
    verifier: Verifier | Rule,
    target: Table,
    drafter: Table,
    size: int,
    draft_length: int,
    *,
    blocks: int = 1,
    tokens: int | None = None,
    dtype: Any = np.float64,
    limit: Limit | None = None,
) -> Output:
    """Returns the distribution of the first tokens after decoding some blocks.

    What is missing after the last block is completed by the target, with the changes that the verifier has made to it.

    Args:
      verifier: a verifier, or a rule that carries nothing.
      target: the target's distributions after all texts of up to some length >= 1.
      drafter: the drafter's distributions after the same texts; all 0 where it proposes nothing, and the draft ends.
      size: number of tokens V.
      draft_length: number of drafted tokens G, >= 1.
      blocks: number of blocks, >= 1.
      tokens: number of tokens, >= 1; None means G + `blocks`.
      dtype: NumPy type in which the verifier computes, float32 or float64.
      limit: how many tokens each block can draft; None means always G.
    """
    verifier = as_verifier(verifier)
    chain = Chain(target, drafter, size)
    count = draft_length + blocks if tokens is None else tokens
    law, accepted = np.zeros([size] * count), np.zeros(blocks)
    texts = _Texts([()], np.ones(1), _arrays(verifier.initial_carry(1, draft_length, tf.as_dtype(dtype))))
    step = _Step(verifier, chain, size, draft_length, dtype)
    for number in range(count - 1 + blocks):
        is_completion = number >= blocks
        limits = None
        if is_completion:
            limits = np.zeros(len(texts.tokens), np.int32)
        elif limit is not None:
            limits = np.array([limit(number, text) for text in texts.tokens], np.int32)
        grown, mean = step.run(texts, limits, only_target=is_completion)
        if not is_completion:
            accepted[number] = mean
        texts = _collect(grown, law, count)
        if not texts.tokens:
            break
    return Output(law, accepted)


@dataclass(frozen=True)
class _Step:
    """Extends texts by one block."""

    verifier: Verifier
    chain: Chain
    size: int
    draft_length: int
    dtype: Any

    def run(self, texts: _Texts, limits: NDArray[np.int32] | None, only_target: bool) -> tuple[_Texts, float]:
        """Returns all texts after the block, and the expected number of accepted tokens."""
        count = self.draft_length
        drafts = np.array([(0,) * count] if only_target else list(itertools.product(range(self.size), repeat=count)))
        row = np.repeat(np.arange(len(texts.tokens)), len(drafts))
        draft = np.tile(drafts, (len(texts.tokens), 1)).astype(np.int32)
        nodes = [np.array([self.chain.node(text) for text in texts.tokens])[row]]
        for place in range(count):
            nodes.append(self.chain.child[nodes[-1], draft[:, place]])
        along_target = self.chain.target[np.stack(nodes, 1)]
        along_drafter = self.chain.drafter[np.stack(nodes[:-1], 1)]
        proposes = along_drafter.any(axis=-1)
        probability = np.take_along_axis(along_drafter, draft[..., np.newaxis], 2)[..., 0]
        # A drafter that proposes nothing leaves token 0 in its place.
        drafted = np.where(proposes, probability, draft == 0)
        weight = texts.weight[row] * (1.0 if only_target else drafted.prod(axis=1))
        lengths = np.cumprod(proposes, axis=1).sum(axis=1).astype(np.int32)
        if limits is not None:
            lengths = np.minimum(lengths, limits[row])
        likely = weight > 0
        row, draft, weight, lengths = row[likely], draft[likely], weight[likely], lengths[likely]
        block = [tf.constant(x[likely], self.dtype) for x in (along_target, along_drafter)]
        carry = tf.nest.map_structure(lambda x: tf.constant(x[row]), texts.carry)
        tokens = tf.constant(draft)
        own_limits = None if limits is None else tf.constant(limits[row])
        modified = self.verifier.modify(*block, tokens, tf.constant(lengths), carry, own_limits)
        if only_target:
            stops, after = np.ones([len(row), 1]), modified.target[:, :1].numpy()
        else:
            found = self.verifier.rule(modified.target, block[1], tokens, tf.constant(lengths))
            stops, after = found.probability.numpy(), residuals(found, modified.target, block[1]).numpy()
        share = weight[:, np.newaxis, np.newaxis] * stops[..., np.newaxis].astype(np.float64) * after
        mean = float(np.sum(share.sum(axis=(0, 2)) * np.arange(share.shape[1])))
        which, tau, token = np.nonzero(share)
        ends = tf.nest.map_structure(lambda x: tf.gather(x, which), modified)
        advanced = self.verifier.advance(ends, tf.constant(tau, tf.int32), tf.constant(token, tf.int32))
        tokens_of = [
            (*texts.tokens[row[i]], *draft[i, :t].tolist(), v)
            for i, t, v in zip(which.tolist(), tau.tolist(), token.tolist(), strict=True)
        ]
        return _Texts(tokens_of, share[which, tau, token], _arrays(advanced)), mean


def _collect(texts: _Texts, law: NDArray[np.float64], count: int) -> _Texts:
    """Adds texts of `count` or more tokens to the law; returns the others, with equal texts of equal carries merged."""
    arrays = tf.nest.flatten(texts.carry)
    first: dict[Any, int] = {}
    weight = np.zeros(len(texts.tokens))
    for i, text in enumerate(texts.tokens):
        if len(text) >= count:
            law[text[:count]] += texts.weight[i]
        else:
            weight[first.setdefault((text, *(array[i].tobytes() for array in arrays)), i)] += texts.weight[i]
    kept = list(first.values())
    carry = tf.nest.map_structure(lambda x: x[kept], texts.carry)
    return _Texts([texts.tokens[i] for i in kept], weight[kept], carry)


def _arrays(carry: Any) -> Any:
    return tf.nest.map_structure(lambda x: x.numpy(), carry)


def texts_up_to(size: int, length: int) -> Iterator[Tokens]:
    """Yields all texts of 0 to `length` tokens."""
    for count in range(length + 1):
        yield from itertools.product(range(size), repeat=count)


def joint_law(table: Table, size: int, length: int) -> NDArray[np.float64]:
    """Returns the probability of each sequence of `length` tokens, `[V, ..., V]`."""
    depth = max(len(text) for text in table)
    law = np.ones([size] * length)
    for sequence in itertools.product(range(size), repeat=length):
        for place in range(length):
            law[sequence] *= table[sequence[max(0, place - depth) : place]][sequence[place]]
    return law
