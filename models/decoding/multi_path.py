"""Implements greedy multi-path block verification: the most promising of several drafts is verified as one block.

K chains are drafted independently from the drafter's distributions p. At every node the tokens have an order, by
ascending q / p with q the target's distribution, ties by token id. The chain that is last in the lexicographic order is
selected. With F the probability that one chain does not come after a text, and F⁻ that it comes before it, the selected
chain begins with the text with probability F^K - (F⁻)^K. So the next token of the selected chain is x with probability

    r(x) = p(x) h(α + (1 - α) c(x), α + (1 - α) c⁻(x)) / h(1, α),    h(u, v) = u^(K-1) + u^(K-2) v + … + v^(K-1),

where α = F⁻ / F at the node, and c and c⁻ are the sums of p over the tokens up to x and before x. Block verification
of the selected chain, with r in place of the drafter's distribution, is lossless.

Reference: greedy multi-path block verification, 2026, https://arxiv.org/abs/2602.16961.
"""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from models.decoding.choices import require_integer
from models.decoding.numpy_ops import BLOCK
from models.decoding.tree_rules import Drafts, TreeRule
from models.decoding.verification import block_rule, total
from models.token_tree import TokenTree


class MultiPath(TreeRule):
    """Selects the chain that is last in the order of tokens at each node, and verifies it as a block.

    Lossless. It needs separate chains of drafts, each drawn independently. With one chain it is block verification.
    More chains could accept fewer tokens, because only the selected chain counts and its tokens are drawn from r, which
    may be further from the target than p is. So the rule looks at the first K chains of each row only, with K from
    `best_num_drafts` at the root. K depends on the text alone, not on the drafts.
    """

    drafting = "independent"
    separate_chains = True

    def stops(self, target: tf.Tensor, drafts: Drafts, tree: TokenTree) -> tuple[tf.Tensor, Any]:
        """Returns probabilities, and t and d of the residual max(t q - d r, 0), α and K; see `TreeRule.stops`.

        Decoding stops at nodes of the selected chain only. Where the drafter ends a text, all chains with it end.
        """
        chains = len(tree.levels[1])
        paths = tf.constant(tree.paths[tree.levels[-1].start :])
        count = best_num_drafts(drafts.base[:, 0], target[:, 0], chains)
        # The first chain with the text that is selected so far, and which of those that count have this text.
        chain = tf.zeros_like(drafts.tokens[:, 0])
        is_alive = tf.sequence_mask(count, chains)
        alphas, laws = [tf.zeros_like(target[:, 0, 0])], []
        for depth, below in enumerate(tree.levels[1:]):
            node = tf.gather(paths[:, depth], chain)
            drafter, of_target = _at(drafts.base, node), _at(target, node)
            rank, before = _order(drafter, of_target)
            laws.append(_selected(drafter, before, alphas[-1], count, chains))
            tokens, is_real = (part[:, below.start : below.stop] for part in (drafts.tokens, drafts.is_real))
            place = tf.where(is_real, 1 + _at(rank, tokens), 0)
            place = tf.where(is_alive, place, -1)
            chain = tf.argmax(place, axis=1, output_type=tf.int32)
            is_alive = tf.equal(place, tf.reduce_max(place, axis=1, keepdims=True))
            token = _at(tokens, chain)
            low = alphas[-1] + (1 - alphas[-1]) * _at(before, token)
            alphas.append(tf.math.divide_no_nan(low, low + (1 - alphas[-1]) * _at(drafter, token)))
        path = tf.gather(paths, chain)
        lengths = tf.reduce_sum(tf.cast(_at(drafts.is_real, path)[:, 1:], tf.int32), axis=1)
        found = block_rule(_at(target, path), tf.stack(laws, axis=1), _at(drafts.tokens, path)[:, 1:], lengths)

        def of_nodes(by_depth: tf.Tensor) -> tf.Tensor:
            return tf.gather(by_depth, tree.depths, axis=1)

        is_selected = tf.equal(of_nodes(path), tf.range(len(tree)))
        weights = (found.target_weight, found.drafter_weight, tf.stack(alphas, axis=1))
        counts = tf.repeat(count[:, tf.newaxis], len(tree), axis=1)
        state = (*(of_nodes(part) for part in weights), counts)
        return tf.where(is_selected, of_nodes(found.probability), 0.0), state

    def residual(self, target: tf.Tensor, base: tf.Tensor, tokens: tf.Tensor, is_real: tf.Tensor, at: Any) -> tf.Tensor:
        """Returns max(t q - d r, 0); see `TreeRule.residual`."""
        target_weight, drafter_weight, alpha, count = at
        _, before = _order(base, target)
        law = _selected(base, before, alpha, count, tokens.shape[1])
        return tf.nn.relu(target_weight[:, tf.newaxis] * target - drafter_weight[:, tf.newaxis] * law)


def best_num_drafts(drafter: tf.Tensor, target: tf.Tensor, most: int) -> tf.Tensor:
    """Returns the number of chains K of which `MultiPath` accepts the first token most often, int32 `[R]`.

    That is the largest Σ min(q, r) at the root, the smallest K on ties. It can fall as K grows: for
    p = (0.4108, 0.5892) and q = (0.2748, 0.7252) it is 0.864, 0.894 and 0.726 for 1, 2 and 8 chains.

    Args:
      drafter: the drafter's distributions p at the root, `[R, V]`, float32 or float64.
      target: the target's distributions q there, `[R, V]`.
      most: largest number of chains, >= 1.

    Raises:
      ValueError: `most` is not an integer >= 1.
    """
    most = require_integer("most", most, 1)
    _, before = _order(drafter, target)
    accepted = [total(tf.minimum(target, drafter * series)) for series in _series(before + drafter, before, most)]
    return 1 + tf.argmax(tf.stack(accepted, axis=1), axis=1, output_type=tf.int32)


def _order(drafter: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns each token's rank by ascending q / p, int32 `[R, V]`, and the sum of p over the tokens before it."""
    is_drawn = drafter > 0
    ratio = tf.where(is_drawn, target / tf.where(is_drawn, drafter, 1.0), float("inf"))
    order = tf.argsort(ratio, axis=1, stable=True)
    rank = tf.argsort(order, axis=1)
    return rank, _at(_sums_before(_at(drafter, order)), rank)


def _selected(drafter: tf.Tensor, before: tf.Tensor, alpha: tf.Tensor, count: tf.Tensor, most: int) -> tf.Tensor:
    """Returns r `[R, V]`, the distribution of the next token of the chain selected from K, for α `[R]` and K `[R]`.

    F and F⁻ enter by their quotient alone, since powers of small F would be 0 in float32.
    """
    alpha = alpha[:, tf.newaxis]
    low = alpha + (1 - alpha) * before
    high = low + (1 - alpha) * drafter
    ratio, chosen = tf.ones_like(drafter), count[:, tf.newaxis]
    pairs = zip(_series(high, low, most), _series(tf.ones_like(alpha), alpha, most), strict=True)
    for number, (of_tokens, of_all) in enumerate(pairs, 1):
        ratio = tf.where(tf.equal(chosen, number), of_tokens / of_all, ratio)
    return drafter * ratio


def _series(u: tf.Tensor, v: tf.Tensor, most: int) -> Iterator[tf.Tensor]:
    """Yields h(u, v) = (u^K - v^K) / (u - v), without the division, for K from 1 to `most`."""
    series, power = tf.ones_like(u), tf.ones_like(v)
    yield series
    for _ in range(most - 1):
        power *= v
        series = series * u + power
        yield series


def _sums_before(values: tf.Tensor) -> tf.Tensor:
    """Returns the sum of the entries before each one, `[R, V]`, in two steps: one would lose digits."""
    size = values.shape[1]
    padded = tf.pad(values, [[0, 0], [0, -size % BLOCK]])
    blocks = tf.reshape(padded, [-1, padded.shape[1] // BLOCK, BLOCK])
    of_blocks = tf.cumsum(tf.reduce_sum(blocks, axis=2), axis=1, exclusive=True)
    sums = of_blocks[..., tf.newaxis] + tf.cumsum(blocks, axis=2, exclusive=True)
    return tf.reshape(sums, [-1, padded.shape[1]])[:, :size]


def _at(values: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns the entries `[R, ...]` of values `[R, N, ...]` at an index `[R]` or indices `[R, M]` of each row."""
    return tf.gather(values, index, axis=1, batch_dims=1)
