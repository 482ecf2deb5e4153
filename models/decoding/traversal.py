"""Implements the verification of draft trees from the leaves to the root, for children of any distributions."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import tensorflow as tf

from models.decoding.child_drafting import DRAFTINGS, child_law
from models.decoding.tree_rules import Drafts, TreeRule, visit
from models.decoding.verification import total
from models.token_tree import TokenTree


@dataclass(frozen=True)
class Traversal(TreeRule):
    """Visits the children of each node before the node itself, and stops at the first node that it accepts.

    Lossless. On a chain it is block verification. Of greedy drafting, in a tree of any depth, it accepts a first token
    with the largest probability that is possible.

    Every node carries the weight p of what is left of the target there, 1 at the root. With M the target's distribution
    after the node, its children X come in drafting order, each with the distribution D that it was drawn from given the
    earlier ones. A child gets the weight min(1, p M(X) / D(X)). If nothing below it and not the child itself is
    accepted, M becomes proportional to R = max(p M - D, 0), and p becomes Z / (Z + 1 - p) with Z the sum of R. After
    all its children, the node is accepted with probability p.

    Attributes:
      drafting: as in `TreeRule`.

    Raises:
      ValueError: `drafting` is none of these.

    Reference: Weng et al. 2025, https://arxiv.org/abs/2505.12398, for children that are drawn.
    """

    drafting: str = "greedy"
    is_best: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if self.drafting not in DRAFTINGS:
            raise ValueError(f"drafting = {self.drafting!r}: must be one of {', '.join(DRAFTINGS)}")
        object.__setattr__(self, "is_best", self.drafting == "greedy")

    def stops(self, target: tf.Tensor, drafts: Drafts, tree: TokenTree) -> tuple[tf.Tensor, Any]:
        """Returns probabilities and the weight p of each node, `[B, N]`; see `TreeRule.stops`."""
        root = tf.ones_like(target[:, :1, 0])
        weights, accept = [root], [root]
        for level, below in pairwise(tree.levels):
            here, children = slice(level.start, level.stop), slice(below.start, below.stop)
            shape = [-1, len(level), len(below) // len(level)]
            tokens, is_real = (tf.reshape(part[:, children], shape) for part in (drafts.tokens, drafts.is_real))
            of_children, after, _ = self._reject(target[:, here], drafts.base[:, here], tokens, is_real, weights[-1])
            weights.append(tf.reshape(of_children, [-1, len(below)]))
            if level.start:  # the root is accepted if nothing else is
                accept.append(after)
        accept.append(weights[-1])
        return visit(tf.concat(accept, axis=1), tree), tf.concat(weights, axis=1)

    def residual(self, target: tf.Tensor, base: tf.Tensor, tokens: tf.Tensor, is_real: tf.Tensor, at: Any) -> tf.Tensor:
        """Returns what is left of the target after all children; see `TreeRule.residual`."""
        return self._reject(target, base, tokens, is_real, at)[2]

    def _reject(
        self, target: tf.Tensor, base: tf.Tensor, tokens: tf.Tensor, is_real: tf.Tensor, weight: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns each child's weight `[..., K]` and, after the rejection of all, p `[...]` and M `[..., V]`.

        M is returned up to a factor. All arguments have the same leading axes.
        """
        # M = left · scale / p, so that no product over all tokens is computed twice.
        left, scale, of_children = target, weight, []
        for place in range(tokens.shape[-1]):
            token, law = tokens[..., place], child_law(self.drafting, base, tokens, place)
            remaining = scale[..., tf.newaxis] * left
            of_target = _at(remaining, token)
            of_drafter = tf.ones_like(of_target) if law is None else _at(law, token)
            is_drawn = is_real[..., place] & (of_drafter > 0)
            ratio = of_target / tf.where(is_drawn, of_drafter, 1.0)
            of_children.append(tf.where(is_drawn, tf.minimum(ratio, 1.0), 0.0))
            if law is None:
                is_token = tf.equal(tf.range(left.shape[-1]), token[..., tf.newaxis])
                rest = tf.where(is_token, 0.0, remaining)
            else:
                rest = tf.nn.relu(remaining - law)
            mass = total(rest)
            rejected = mass + (1 - weight)
            after = tf.where(rejected > 0, mass / tf.where(rejected > 0, rejected, 1.0), 1.0)
            left = tf.where(is_drawn[..., tf.newaxis], rest, left)
            scale = tf.where(is_drawn, after / tf.where(mass > 0, mass, 1.0), scale)
            weight = tf.where(is_drawn, after, weight)
        return tf.stack(of_children, axis=-1), weight, left


def _at(rows: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """Returns the entries `[...]` of rows `[..., V]` at tokens `[...]`."""
    return tf.gather(rows, tokens, axis=-1, batch_dims=tokens.shape.rank)
