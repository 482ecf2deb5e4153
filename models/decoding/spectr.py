"""Implements SpecTr: several independent drafts of a text, of which K-SEQ accepts one token after another."""

from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf

from models.decoding.k_seq import choose
from models.decoding.tree_rules import Drafts, TreeRule
from models.token_tree import TokenTree


class SpecTr(TreeRule):
    """Follows the drafts that begin with the tokens accepted so far, as long as K-SEQ accepts one more of their tokens.

    Lossless. It needs K separate chains of drafts, each drawn independently. The factor of K-SEQ is solved anew after
    every token, for the number of drafts that are left. `stops` solves it at all nodes, `draw` at one of each depth.

    One uniform number u serves all decisions of a block. A decision takes the interval [a, b) that holds u. The next
    one uses (u - a) / (b - a), which is uniform and independent of the decision. So the decisions have the distribution
    that numbers of their own would give them, up to the rounding of u. `check_lossless` enumerates `stops`. A test
    integrates the output of `draw` over u.

    Reference: Sun et al. 2023, https://arxiv.org/abs/2310.15141.
    """

    drafting = "independent"
    separate_chains = True

    def stops(self, target: tf.Tensor, drafts: Drafts, tree: TokenTree) -> tuple[tf.Tensor, Any]:
        """Returns probabilities and the number of drafts that go on after each node, `[B, N]`; see `TreeRule.stops`.

        Decoding never stops at a node whose text is that of an earlier node.
        """
        chains = len(tree.levels[1])
        # Probability of coming to each node, and which drafts have its text, [B, nodes at a depth, K].
        reach = tf.ones_like(target[:, :1, 0])
        agree = tf.ones_like(drafts.is_real[:, :1, tf.newaxis]) | tf.zeros([chains], tf.bool)
        stops, counts = [], []
        for level, below in pairwise(tree.levels):
            tokens, is_real = (part[:, below.start : below.stop] for part in (drafts.tokens, drafts.is_real))
            alive = agree & is_real[:, tf.newaxis]
            here = slice(level.start, level.stop)
            base, of_target = (tf.reshape(part[:, here], [-1, target.shape[2]]) for part in (drafts.base, target))
            offered = tf.reshape(tf.repeat(tokens[:, tf.newaxis], len(level), axis=1), [-1, chains])
            accept = choose(base, of_target, offered, tf.reshape(alive, [-1, chains])).accept
            first, none = _first_success(tf.reshape(accept, [-1, len(level), chains]))
            stops.append(reach * none)
            counts.append(tf.reduce_sum(tf.cast(alive, tf.int32), axis=2))
            chosen = tf.reduce_sum(reach[..., tf.newaxis] * first, axis=1)
            equal = tf.equal(tokens[:, tf.newaxis], tokens[..., tf.newaxis])
            agree = agree & equal & is_real[:, tf.newaxis] & is_real[..., tf.newaxis]
            is_repeated = tf.reduce_any(agree & np.tri(chains, k=-1, dtype=bool), axis=2)
            reach = tf.reduce_sum(tf.where(agree, chosen[:, tf.newaxis], 0.0), axis=2)
            reach = tf.where(is_repeated, 0.0, reach)
        counts.append(tf.zeros_like(drafts.tokens[:, tree.levels[-1].start :]))
        return tf.concat([*stops, reach], axis=1), tf.concat(counts, axis=1)

    def draw(self, target: tf.Tensor, drafts: Drafts, tree: TokenTree, uniform: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Draws a node by following one text from the root, with one K-SEQ for each depth; see `TreeRule.draw`."""
        chains = len(tree.levels[1])
        node = count = tf.zeros_like(drafts.tokens[:, 0])
        alive = tf.ones_like(drafts.is_real[:, :1]) & tf.ones([chains], tf.bool)
        goes_on, uniform = tf.ones_like(drafts.is_real[:, 0]), tf.cast(uniform, target.dtype)
        for below in tree.levels[1:]:
            tokens, is_real = (part[:, below.start : below.stop] for part in (drafts.tokens, drafts.is_real))
            alive &= is_real
            base, of_target = (tf.gather(part, node, axis=1, batch_dims=1) for part in (drafts.base, target))
            first, none = _first_success(choose(base, of_target, tokens, alive).accept)
            # The uniform number is used again for the next depth, from its place in the interval of this decision.
            bounds = tf.cumsum(tf.concat([none[:, tf.newaxis], first], axis=1), axis=1)
            # Rounding may leave the last bound below the number, which is then in the last interval that is not empty.
            is_passed = (bounds <= uniform[:, tf.newaxis]) & (bounds < bounds[:, -1:])
            decision = tf.reduce_sum(tf.cast(is_passed, tf.int32), axis=1)
            begin = tf.gather(tf.pad(bounds, [[0, 0], [1, 0]]), decision, axis=1, batch_dims=1)
            width = tf.gather(bounds, decision, axis=1, batch_dims=1) - begin
            uniform = (uniform - begin) / tf.where(width > 0, width, tf.ones_like(width))
            count = tf.where(goes_on, tf.reduce_sum(tf.cast(alive, tf.int32), axis=1), count)
            goes_on &= decision > 0
            token = tf.gather(tokens, tf.maximum(decision - 1, 0), axis=1, batch_dims=1)
            alive &= tf.equal(tokens, token[:, tf.newaxis])
            earliest = tf.argmax(tf.cast(alive, tf.float32), axis=1, output_type=tf.int32)
            node = tf.where(goes_on, below.start + earliest, node)
        return node, tf.where(goes_on, 0, count)

    def residual(self, target: tf.Tensor, base: tf.Tensor, tokens: tf.Tensor, is_real: tf.Tensor, at: Any) -> tf.Tensor:
        """Returns K-SEQ's residual; see `TreeRule.residual`."""
        alive = tf.sequence_mask(at, tokens.shape[1])
        weights = choose(base, target, tf.zeros_like(alive, tf.int32), alive).residual
        return tf.where(at[:, tf.newaxis] > 0, weights, target)


def _first_success(accept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the probability `[..., K]` that each of K trials is the first to succeed, and that none does."""
    passed, first = tf.ones_like(accept[..., 0]), []
    for chance in tf.unstack(accept, axis=-1):
        first.append(passed * chance)
        passed *= 1 - chance
    return tf.stack(first, axis=-1), passed
