"""Implements verifiers of one drafted block of tokens: how many of them speculative decoding accepts.

A drafter proposes X_1 … X_G, and one call of the target gives its distribution at every prefix X^i of the draft.
A verifier accepts the first tau of them and draws one more token Y. It is lossless if the tokens X_1 … X_tau, Y,
continued by the target, have the target's own distribution, whatever the drafter.

Every rule here is a function of (target, drafter, tokens, lengths) that returns `Stops`: the exact probability of every
tau given the draft, and the distribution of Y at every tau. So a test can enumerate the whole law, and `verify` draws
from it with two random numbers. Draft lengths are ragged: row b has `lengths[b]` real tokens.

In symbols, M_b and M_s are the target's and the drafter's distributions as they are sampled from (after temperature and
top-k), r_i = M_b(X_i | X^(i-1)) / M_s(X_i | X^(i-1)), and a residual is proportional to max(t · M_b - d · M_s, 0).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.exact import exact
from models.decoding.numpy_ops import BLOCK
from models.decoding.prng import BlockWords, Words, uniforms
from models.decoding.sampling import sample_weights

_RESIDUAL_BITS = 40
"""Integer weights of a residual are its float32 weights times 2**40, so that sums over 2**18 tokens fit into int64."""


class Stops(NamedTuple):
    """Holds a rule's decision about a draft.

    Attributes:
      probability: float `[B, G+1]`, the probability that exactly i tokens are accepted; 0 beyond a row's real length.
      target_weight: float `[B, G+1]`, t of the residual after i tokens, in [0, 1].
      drafter_weight: float `[B, G+1]`, d of the residual after i tokens, in [0, 1]; 0 after a row's last real token.
    """

    probability: tf.Tensor
    target_weight: tf.Tensor
    drafter_weight: tf.Tensor


Rule = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], Stops]


class Verified(NamedTuple):
    """Holds the outcome of a block.

    Attributes:
      accepted: int32 `[B]`, number of accepted tokens, 0 to the row's length.
      token: int32 `[B]`, the token after them.
    """

    accepted: tf.Tensor
    token: tf.Tensor


def token_rule(target: tf.Tensor, drafter: tf.Tensor, tokens: tf.Tensor, lengths: tf.Tensor) -> Stops:
    """Accepts each token with probability min(1, r_i), and stops at the first rejection.

    Lossless. The expected tau is the sum over all prefixes x^i of the product of min(M_b, M_s) along the prefix.

    Args:
      target: probabilities of the target, float `[B, G+1, V]`; 0 for tokens that it never draws.
      drafter: probabilities with which the drafter sampled, float `[B, G, V]`. They must be those of the actual draw:
        after temperature and top-k, and 1 and 0 for a drafter that does not draw at random.
      tokens: the draft, int32 `[B, G]`.
      lengths: int32 `[B]`, 0 to G, number of real tokens of each row.

    Reference: Leviathan et al. 2023, https://arxiv.org/abs/2211.17192; Chen et al. 2023,
    https://arxiv.org/abs/2302.01318.
    """
    log_ratio, real, lengths = log_ratios(target, drafter, tokens, lengths)
    accept = tf.exp(tf.minimum(log_ratio, 0.0))
    survive = _products(accept)
    reject = tf.pad(tf.where(real, 1 - accept, 1.0), [[0, 0], [0, 1]], constant_values=1.0)
    ones = tf.ones_like(survive)
    return _with_ends(survive * reject, ones, ones, lengths)


def block_rule(target: tf.Tensor, drafter: tf.Tensor, tokens: tf.Tensor, lengths: tf.Tensor) -> Stops:
    """Decides about the block as a whole (block verification).

    Lossless, and no lossless rule without memory accepts more tokens in expectation (theorems 1 and 2 of the paper).
    With p_0 = 1 and p_i = min(1, p_(i-1) r_i), it scans i from the last token to the first, and stops at i with
    probability h_i = Z_i / (Z_i + 1 - p_i), where Z_i is the mass of the residual max(p_i M_b - M_s, 0); at the last
    real token with probability p_i.

    Args:
      target: as for `token_rule`.
      drafter: as for `token_rule`.
      tokens: as for `token_rule`.
      lengths: as for `token_rule`.

    Reference: Sun et al. 2024, https://arxiv.org/abs/2403.10444.
    """
    log_ratio, _, lengths = log_ratios(target, drafter, tokens, lengths)
    walk = tf.pad(tf.cumsum(log_ratio, axis=1), [[0, 0], [1, 0]])
    # p_i is a walk that is reflected at 0: its logarithm is the sum so far minus the largest sum so far.
    weight = tf.exp(walk - _running_maximum(walk))
    excess, _ = masses(target, drafter, weight, tf.ones_like(weight))
    return scan_from_the_end(weight, excess, excess + 1 - weight, weight, tf.ones_like(weight), lengths)


def residuals(stops: Stops, target: tf.Tensor, drafter: tf.Tensor) -> tf.Tensor:
    """Returns the probabilities `[B, G+1, V]` of the token Y after i accepted tokens, for every i.

    Where the residual has no mass, it is the target's distribution: such an i has probability 0, or M_b equals M_s.
    """
    drafter = tf.concat([drafter, tf.zeros_like(target[:, :1])], axis=1)
    weights = _residual(stops.target_weight, stops.drafter_weight, target, drafter)
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


def verify(
    rule: Rule,
    target: tf.Tensor,
    drafter: tf.Tensor,
    tokens: tf.Tensor,
    lengths: tf.Tensor,
    words: BlockWords,
) -> Verified:
    """Draws how many tokens of each row are accepted, and the token after them.

    Args:
      rule: `token_rule`, `block_rule`, or another lossless rule; `greedy_block_rule` with the target that
        `models.decoding.greedy_block.modify` returns.
      target: as for `token_rule`, float32.
      drafter: as for `token_rule`, float32.
      tokens: as for `token_rule`.
      lengths: as for `token_rule`.
      words: the random words of the block, from `models.decoding.prng.block_words`.
    """
    stops = rule(target, drafter, tokens, lengths)
    bounds = tf.cumsum(stops.probability, axis=1)
    threshold = uniforms(words.accept)[:, tf.newaxis] * bounds[:, -1:]
    accepted = tf.minimum(tf.reduce_sum(tf.cast(bounds <= threshold, tf.int32), axis=1), lengths)

    def at(values: Any, index: tf.Tensor) -> Any:
        return tf.gather(values, index, axis=1, batch_dims=1)

    # After the last token of the block the drafter's weight is 0, so that it does not matter which row is taken.
    drafter_row = at(drafter, tf.minimum(accepted, drafter.shape[1] - 1))
    weights = _residual(
        at(stops.target_weight, accepted), at(stops.drafter_weight, accepted), at(target, accepted), drafter_row
    )
    is_end = tf.equal(accepted, lengths)
    first, second = (
        tf.where(is_end, bonus, residual) for bonus, residual in zip(words.bonus, words.residual, strict=True)
    )
    return Verified(accepted, sample_probabilities(weights, (first, second)))


def sample_probabilities(weights: tf.Tensor, words: Words) -> tf.Tensor:
    """Draws one token per row, in proportion to float32 weights `[B, V]`, with 40 bits of accuracy."""
    largest = tf.reduce_max(weights, axis=-1, keepdims=True)
    scaled = weights * (exact(2.0**_RESIDUAL_BITS, words[0]) / tf.where(largest > 0, largest, 1.0))
    return sample_weights(tf.cast(tf.where(scaled > 0, scaled, 0.0), tf.int64), words)


def log_ratios(
    target: tf.Tensor, drafter: tf.Tensor, tokens: tf.Tensor, lengths: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns log r_i `[B, G]`, which tokens are real, and the lengths.

    A draft ends before a token that the drafter could not have drawn. Tokens after the end have log r_i = -inf.
    """
    count = tokens.shape[1]
    of_target = tf.gather(target[:, :count], tokens, axis=2, batch_dims=2)
    of_drafter = tf.gather(drafter, tokens, axis=2, batch_dims=2)
    impossible = tf.cast(of_drafter <= 0, tf.int32)
    real = tf.sequence_mask(lengths, count) & tf.equal(tf.cumsum(impossible, axis=1), 0)
    lengths = tf.reduce_sum(tf.cast(real, tf.int32), axis=1)
    possible = real & (of_target > 0)
    one = tf.ones_like(of_target)
    log_ratio = tf.math.log(tf.where(possible, of_target, one)) - tf.math.log(tf.where(possible, of_drafter, one))
    return tf.where(possible, log_ratio, tf.constant(-float("inf"), target.dtype)), real, lengths


def _running_maximum(walk: tf.Tensor) -> tf.Tensor:
    """Returns the maximum of each entry and those before it on the last axis; TFLite has no cumulative maximum."""
    size = walk.shape[-1]
    before = tf.linalg.band_part(tf.ones([size, size], tf.bool), -1, 0)
    never = tf.constant(-float("inf"), walk.dtype)
    return tf.reduce_max(tf.where(before, walk[:, tf.newaxis], never), axis=-1)


def _products(factors: tf.Tensor) -> tf.Tensor:
    """Returns 1 and the products of the first 1, 2, … entries of each row, `[B, G] -> [B, G+1]`.

    TFLite has no cumulative product, and a sum of logarithms is not finite where a factor is 0.
    """
    products = [tf.ones_like(factors[:, 0])]
    for factor in tf.unstack(factors, axis=1):
        products.append(products[-1] * factor)
    return tf.stack(products, axis=1)


def masses(
    target: tf.Tensor, drafter: tf.Tensor, target_weight: tf.Tensor, drafter_weight: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the masses `[B, G+1]` of max(t M_b - d M_s, 0) and of max(d M_s - t M_b, 0); 0 after the last token."""
    count = drafter.shape[1]
    weighted_target = target_weight[:, :count, tf.newaxis] * target[:, :count]
    difference = weighted_target - drafter_weight[:, :count, tf.newaxis] * drafter
    excess, deficit = tf.nn.relu(difference), tf.nn.relu(-difference)
    return tf.pad(total(excess), [[0, 0], [0, 1]]), tf.pad(total(deficit), [[0, 0], [0, 1]])


def total(terms: tf.Tensor) -> tf.Tensor:
    """Sums over the last axis in two steps: a backend that adds one term after another would lose digits."""
    *lead, size = terms.shape
    if size % BLOCK:
        terms = tf.pad(terms, [[0, 0]] * len(lead) + [[0, -size % BLOCK]])
    blocks = tf.reshape(terms, [-1, *lead[1:], -(-size // BLOCK), BLOCK])
    return tf.reduce_sum(tf.reduce_sum(blocks, axis=-1), axis=-1)


def scan_from_the_end(
    last: tf.Tensor,
    numerator: tf.Tensor,
    denominator: tf.Tensor,
    target_weight: tf.Tensor,
    drafter_weight: tf.Tensor,
    lengths: tf.Tensor,
) -> Stops:
    """Returns the stops of a scan from the last token to the first.

    The scan stops at i with probability numerator / denominator (1 where the denominator is 0, and at i = 0), and at
    the last real token with probability `last`. All are `[B, G+1]`.
    """
    index = tf.range(last.shape[1])
    stop = tf.where(denominator > 0, numerator / tf.where(denominator > 0, denominator, 1.0), 1.0)
    stop = tf.where(index == lengths[:, tf.newaxis], last, stop)
    stop = tf.where(index > lengths[:, tf.newaxis], 0.0, tf.where(index == 0, 1.0, stop))
    passed = tf.reverse(_products(tf.reverse(1 - stop[:, 1:], [1])), [1])
    return _with_ends(stop * passed, target_weight, drafter_weight, lengths)


def _with_ends(
    probability: tf.Tensor, target_weight: tf.Tensor, drafter_weight: tf.Tensor, lengths: tf.Tensor
) -> Stops:
    """Returns stops whose token after a row's last real one is drawn from the target alone."""
    index = tf.range(probability.shape[1])
    is_end = index >= lengths[:, tf.newaxis]
    probability = tf.where(index > lengths[:, tf.newaxis], 0.0, probability)
    return Stops(probability, tf.where(is_end, 1.0, target_weight), tf.where(is_end, 0.0, drafter_weight))


def _residual(target_weight: tf.Tensor, drafter_weight: tf.Tensor, target: tf.Tensor, drafter: tf.Tensor) -> tf.Tensor:
    """Returns max(t M_b - d M_s, 0) `[..., V]`, or M_b where that has no mass."""
    weights = tf.nn.relu(target_weight[..., tf.newaxis] * target - drafter_weight[..., tf.newaxis] * drafter)
    return tf.where(tf.reduce_max(weights, axis=-1, keepdims=True) > 0, weights, target)
