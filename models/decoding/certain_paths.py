"""Implements the verification of K drafts that are certain: none of them was drawn at random."""

from typing import Any

import numpy as np
import tensorflow as tf

from models.decoding.tree_rules import Drafts, TreeRule
from models.token_tree import TokenTree


class CertainPaths(TreeRule):
    """Draws the target's own tokens one after another, as long as a draft continues with them.

    Lossless for drafts that depend on the text alone; drafts may share prefixes and be equal. Of certain drafts no rule
    accepts more. At temperature 0 it accepts the longest beginning of a draft that is the target's likeliest text.
    """

    drafting = "certain"
    separate_chains = True
    is_best = True

    def stops(self, target: tf.Tensor, drafts: Drafts, tree: TokenTree) -> tuple[tf.Tensor, Any]:
        """Returns probabilities, and for each chain the token that it offers at a node, -1 for none.

        Of the chains with the same text up to a depth the first stands for all. See `TreeRule.stops`.
        """
        chains = len(tree.levels[1])
        earlier = np.tri(chains, k=-1, dtype=bool)
        # By chain: the probability of its text so far, and 1 if no earlier chain has the same text; by pair of chains,
        # whether they have the same text. Before the first level there is one text, that of the root.
        reach = first = tf.ones_like(target[:, :1, 0])
        agree = tf.ones_like(drafts.is_real[:, :1, tf.newaxis] & drafts.is_real[:, tf.newaxis, 1 : chains + 1])
        stops, offers = [], []
        for level, below in zip(tree.levels, tree.levels[1:], strict=False):
            parents = [tree.parents[node] - level.start for node in below]
            tokens, is_real = (part[:, below.start : below.stop] for part in (drafts.tokens, drafts.is_real))
            rows = tf.gather(target[:, level.start : level.stop], parents, axis=1)
            own = tf.gather(rows, tokens, axis=2, batch_dims=2)
            after = tf.where(is_real, tf.gather(reach, parents, axis=1) * own, 0.0)
            offered = agree & is_real[:, tf.newaxis]
            offers.append(tf.where(offered, tokens[:, tf.newaxis], -1))
            equal = tf.equal(tokens[:, tf.newaxis], tokens[..., tf.newaxis]) & is_real[..., tf.newaxis]
            same = tf.gather(offered, parents, axis=1) & equal
            is_first = is_real & ~tf.reduce_any(same & earlier, axis=2)
            leaving = tf.reduce_sum(tf.where(offered & is_first[:, tf.newaxis], after[:, tf.newaxis], 0.0), axis=2)
            stops.append(tf.nn.relu(reach - leaving) * first)
            reach, first, agree = after, tf.cast(is_first, after.dtype), same
        stops.append(reach * first)
        offers.append(-tf.ones_like(offers[-1]))
        return tf.concat(stops, axis=1), tuple(tf.unstack(tf.concat(offers, axis=1), axis=2))

    def residual(self, target: tf.Tensor, base: tf.Tensor, tokens: tf.Tensor, is_real: tf.Tensor, at: Any) -> tf.Tensor:
        """Returns the target's probabilities without the offered tokens; see `TreeRule.residual`."""
        for offered in at:
            is_offered = tf.equal(tf.range(target.shape[1]), offered[:, tf.newaxis])
            target = tf.where(is_offered, tf.zeros_like(target), target)
        return target
