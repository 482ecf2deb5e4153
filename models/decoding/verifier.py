"""Defines verifiers: a rule for one block, with what it carries from block to block.

Most rules carry nothing: `Verifier(block_rule)`. `models.decoding.greedy_block.GREEDY_BLOCK` changes the target of the
next blocks. A loop treats all alike:

    carry = verifier.initial_carry(batch, draft_length)
    for every block:
        modified = verifier.modify(target, drafter, tokens, lengths, carry)
        verified = verify(verifier.rule, modified.target, drafter, tokens, lengths, words)
        carry = verifier.advance(modified, verified.accepted, verified.token)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.verification import Rule


class Unmodified(NamedTuple):
    """Holds the target of a block that is verified against the model's own target.

    Attributes:
      target: float `[B, G+1, V]`.
    """

    target: tf.Tensor


def _no_carry(batch: int, draft_length: int, dtype: Any = tf.float32) -> Any:
    return ()


def _unmodified(
    target: tf.Tensor,
    drafter: tf.Tensor,
    tokens: tf.Tensor,
    lengths: tf.Tensor,
    carry: Any,
    limits: tf.Tensor | None = None,
) -> Any:
    return Unmodified(target)


def _no_advance(modified: Any, accepted: tf.Tensor, token: tf.Tensor) -> Any:
    return ()


@dataclass(frozen=True)
class Verifier:
    """Joins a rule with what it carries from block to block; by default nothing.

    The functions are pure, with static shapes. The last two axes of all arguments are those of
    `models.decoding.verification.token_rule`.

    Attributes:
      rule: decides about a block; gets the target of `modify`.
      initial_carry: function of (batch, draft length, dtype of the probabilities) that returns the carry before the
        first block: a nest of tensors with the batch axis first.
      modify: function of (target, drafter, tokens, lengths, carry, limits) that returns a NamedTuple of tensors
        with the batch axis first, among them the `target` that the block must be verified against. `limits` is int32
        `[B]`, the number of tokens that each row could draft, fixed before its draft was drawn; None if it is G.
      advance: function of (the object from `modify`, accepted, token) that returns the carry of the next block.
    """

    rule: Rule
    initial_carry: Callable[..., Any] = _no_carry
    modify: Callable[..., Any] = _unmodified
    advance: Callable[..., Any] = _no_advance


def as_verifier(verifier: Verifier | Rule) -> Verifier:
    """Returns a verifier as it is, and a plain rule as a verifier that carries nothing."""
    return verifier if isinstance(verifier, Verifier) else Verifier(verifier)
