"""Implements verifiers of a tree of drafted tokens: at which node of it speculative decoding stops.

A drafter proposes a tree below the last token of the text, and one call of the target gives its distribution at every
node. A verifier accepts the tokens on the path to one node and draws one more token Y. It is lossless if the tokens of
the path and Y, continued by the target, have the target's own distribution, whatever the drafter.

A rule returns the exact probability of every node given the drafts, and what `TreeRule.residual` needs to compute the
distribution of Y there. So a test can enumerate the whole output, and `verify_tree` draws from it with two random
numbers: one for the node, one for Y.

All nodes at one depth have equally many children, as in `TokenTree.from_shape`.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models.decoding.prng import Words, uniforms
from models.decoding.verification import sample_probabilities
from models.token_tree import TokenTree


class Drafts(NamedTuple):
    """Holds the drafts of one tree per row; N nodes, of which I have children.

    Attributes:
      tokens: int32 `[B, N]`; that of the root does not count.
      is_real: bool `[B, N]`, whether the node was drafted; the root counts as drafted.
      base: float `[B, I, V]`, `models.decoding.child_drafting.Children.base` of the nodes with children, in order.
    """

    tokens: tf.Tensor
    is_real: tf.Tensor
    base: tf.Tensor


class TreeRule(ABC):
    """Decides about a tree of drafts; a set of pure functions with static shapes.

    Attributes:
      drafting: how the children of a node are drafted, one of `models.decoding.child_drafting.DRAFTINGS`.
      separate_chains: whether only the root may have more than one child.
      is_best: whether a first token is accepted with the largest probability that any rule has for such drafts.
    """

    drafting: str
    separate_chains = False
    is_best: bool = False

    @abstractmethod
    def stops(self, target: tf.Tensor, drafts: Drafts, tree: TokenTree) -> tuple[tf.Tensor, Any]:
        """Returns the probability of stopping at each node, `[B, N]`, and a nest of tensors `[B, N]` for `residual`.

        Args:
          target: the target's probabilities after each node, `[B, N, V]`.
          drafts: the drafts.
          tree: their topology.
        """

    def draw(self, target: tf.Tensor, drafts: Drafts, tree: TokenTree, uniform: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Draws a node with the probabilities of `stops`; returns its number, int32 `[B]`, and `stops`' entries there.

        This one draws from what `stops` computes, which `check_lossless` enumerates. A rule with a `draw` of its own
        needs a test that this has the same distribution.

        Args:
          target: as for `stops`.
          drafts: as for `stops`.
          tree: as for `stops`.
          uniform: float32 `[B]`, random numbers in [0, 1).
        """
        probability, state = self.stops(target, drafts, tree)
        bounds = tf.cumsum(probability, axis=1)
        threshold = uniform[:, tf.newaxis] * bounds[:, -1:]
        node = tf.minimum(tf.reduce_sum(tf.cast(bounds <= threshold, tf.int32), axis=1), len(tree) - 1)
        return node, take_node(state, node)

    @abstractmethod
    def residual(self, target: tf.Tensor, base: tf.Tensor, tokens: tf.Tensor, is_real: tf.Tensor, at: Any) -> tf.Tensor:
        """Returns the distribution of the token after one node of each row, as weights `[B, V]`; all 0 means `target`.

        Args:
          target: the target's probabilities there, `[B, V]`.
          base: the node's entry of `Drafts.base`, `[B, V]`.
          tokens: the node's children, int32 `[B, K]`.
          is_real: bool `[B, K]`, whether they were drafted; all False for a node without children.
          at: the node's entries, `[B]`, of what `stops` returned.
        """


class VerifiedTree(NamedTuple):
    """Holds the outcome of one tree per row.

    Attributes:
      node: int32 `[B]`, the last accepted node; 0 if no draft is accepted.
      token: int32 `[B]`, the token after it; -1 where the target leaves none.
    """

    node: tf.Tensor
    token: tf.Tensor


def verify_tree(
    rule: TreeRule, target: tf.Tensor, drafts: Drafts, tree: TokenTree, accept: tf.Tensor, words: Words
) -> VerifiedTree:
    """Draws at which node of each row's tree decoding stops, and the token after it.

    Args:
      rule: the rule.
      target: the target's probabilities after each node, float32 `[B, N, V]`.
      drafts: the drafts.
      tree: their topology.
      accept: int32 `[B]`, random word for the node.
      words: two int32 `[B]`, random words for the token.
    """
    node, at = rule.draw(target, drafts, tree, uniforms(accept))
    after = residual_at(rule, target, drafts, tree, at, node)
    return VerifiedTree(node, sample_probabilities(after, words))


def residual_at(
    rule: TreeRule, target: tf.Tensor, drafts: Drafts, tree: TokenTree, at: Any, node: tf.Tensor
) -> tf.Tensor:
    """Returns the weights `[B, V]` of the token after a node.

    Args:
      rule: the rule.
      target: as for `verify_tree`.
      drafts: as for `verify_tree`.
      tree: as for `verify_tree`.
      at: the node's entries of what `TreeRule.stops` returned, `[B]`.
      node: int32 `[B]`, the node.
    """
    children, inner = _child_table(tree), sum(len(below) > 0 for below in tree.children)
    own = tf.gather(tf.constant(children), node)
    base = tf.gather(drafts.base, tf.minimum(node, inner - 1), axis=1, batch_dims=1)
    tokens, is_real = (
        tf.gather(part, tf.maximum(own, 0), axis=1, batch_dims=1) for part in (drafts.tokens, drafts.is_real)
    )
    row = tf.gather(target, node, axis=1, batch_dims=1)
    weights = rule.residual(row, base, tokens, is_real & (own >= 0), at)
    return tf.where(tf.reduce_max(weights, axis=1, keepdims=True) > 0, weights, row)


def visit(accept: tf.Tensor, tree: TokenTree) -> tf.Tensor:
    """Returns the probability of stopping at each node `[B, N]`, if each is visited after all nodes below it.

    Args:
      accept: probability `[B, N]` of stopping at a node that is visited; 1 for the root.
      tree: the tree; siblings are visited in drafting order.
    """
    passed, stops = tf.ones_like(accept[:, 0]), [tf.zeros_like(accept[:, 0])] * len(tree)
    for node in tree.post_order:
        stops[node] = passed * accept[:, node]
        passed *= 1 - accept[:, node]
    return tf.stack(stops, axis=1)


def take_node(state: Any, node: tf.Tensor) -> Any:
    """Returns the entries `[B]` of one node of each row, of a nest of tensors `[B, N]`."""
    return tf.nest.map_structure(lambda values: tf.gather(values, node, axis=1, batch_dims=1), state)


def _child_table(tree: TokenTree) -> NDArray[np.int32]:
    """Returns the children of each node, int32 `[N, K]`; -1 where there is none."""
    table = np.full([len(tree), max(map(len, tree.children))], -1, np.int32)
    for row, children in zip(table, tree.children, strict=True):
        row[: len(children)] = children
    return table
