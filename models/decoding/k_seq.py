"""Chooses one of several independent drafts of a token by K-SEQ, the rule of SpecTr.

K drafts X_1 … X_K of one token come from the drafter's distribution p. K-SEQ looks at them in order, accepts X with
probability min(1, q(X) / (ρ p(X))), and after K rejections draws from a residual, so that the emitted token has the
target's distribution q. The factor ρ in [1, K] balances the drafts. With

    β(ρ) = Σ min(p, q / ρ)    and    g(β) = 1 + (1 - β) + … + (1 - β)^(K-1)

a draft is accepted with probability β, one of them with probability β g(β), and the residual is q - g min(p, q / ρ).
This is nowhere negative if ρ is at least the root ρ* of g(β(ρ)) = ρ, and larger ρ accept less. So `solve` returns a ρ
at or just above the root: below it K-SEQ has, in general, another distribution than the target.

All functions have static shapes and use builtin TFLite ops only. Their time is linear in the number of tokens.

Reference: Sun et al. 2023, https://arxiv.org/abs/2310.15141, algorithm 3.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.exact import exact
from models.decoding.numpy_ops import BLOCK

_POINTS = 256


class Root(NamedTuple):
    """Holds what K-SEQ needs of a pair of distributions.

    Attributes:
      rho: float `[R]`, at or just above the root, in [1, K].
      beta: float `[R]`, β(ρ), probability that a draft is accepted.
      g: float `[R]`, g(β(ρ)), at most ρ.
    """

    rho: tf.Tensor
    beta: tf.Tensor
    g: tf.Tensor


class Choice(NamedTuple):
    """Holds the decision of K-SEQ about the drafts of each row.

    Attributes:
      accept: float `[R, K]`, probability of accepting each draft if those before it were rejected; 0 if not alive.
      residual: float `[R, V]`, weights of the token after all rejections, not normalised.
    """

    accept: tf.Tensor
    residual: tf.Tensor


def choose(drafter: tf.Tensor, target: tf.Tensor, drafts: tf.Tensor, alive: tf.Tensor) -> Choice:
    """Decides about the drafts that are alive.

    Args:
      drafter: probabilities p with which the drafts were drawn, independently, `[R, V]`, float32 or float64.
      target: probabilities q of the target, `[R, V]`.
      drafts: int32 `[R, K]`, the drafted tokens.
      alive: bool `[R, K]`, which of them count. A row without any has no accepted draft, and its residual is void.
    """
    count = tf.maximum(tf.reduce_sum(tf.cast(alive, tf.int32), axis=1), 1)
    rho, _, g = solve(drafter, target, count, drafts.shape[1])
    of_drafter = rho[:, tf.newaxis] * tf.gather(drafter, drafts, axis=1, batch_dims=1)
    of_target = tf.gather(target, drafts, axis=1, batch_dims=1)
    can_be_drawn = alive & (of_drafter > 0)
    accept = tf.minimum(of_target / tf.where(can_be_drawn, of_drafter, 1.0), 1.0)
    shared = tf.minimum(drafter, target * (1 / rho)[:, tf.newaxis])
    residual = tf.nn.relu(target - g[:, tf.newaxis] * shared)
    # It has no mass if p equals q: then it is never drawn from.
    has_mass = tf.reduce_max(residual, axis=1, keepdims=True) > 0
    return Choice(tf.where(can_be_drawn, accept, 0.0), tf.where(has_mass, residual, target))


def solve(drafter: tf.Tensor, target: tf.Tensor, count: tf.Tensor, most: int) -> Root:
    """Finds ρ at or just above the root of g(β(ρ)) = ρ.

    β is concave in 1 / ρ. So a line through β at two values of ρ lies above β at every larger ρ, and the root with the
    line in place of β is below ρ*: the secant method climbs to ρ* without passing it. The root with a line is found to
    2^-24 (float64: 2^-56) of [1, K] by cutting intervals into 256 parts. Every step goes a little further, by 2^-21
    (float64: 2^-50) of ρ at first and 1.5 times as much each time, and the method ends at the first ρ that is checked
    to be at or above the root: after 4 to 10 passes over the tokens for language models, at most 50 (100) for any pair.

    Args:
      drafter: as for `choose`.
      target: as for `choose`.
      count: int32 `[R]`, number of drafts K of each row, 1 to `most`.
      most: largest number of drafts of a row.

    Returns:
      The root. For one draft and for p = q it is exactly 1; for disjoint p and q, β is 0 and g is K.
    """
    is_double = drafter.dtype == tf.float64
    rounds, nudge = (7, tf.constant(2.0**-50, tf.float64)) if is_double else (3, exact(2.0**-21, drafter))
    largest = tf.cast(count, drafter.dtype)
    p, q = _blocks(drafter), _blocks(target)
    mass = _sum(p)
    terms = tf.cast(tf.range(most) < count[:, tf.newaxis], drafter.dtype)

    def series(beta: tf.Tensor) -> tf.Tensor:
        """Returns g(β) `[R, points]`."""
        total = tf.ones_like(beta) * terms[:, most - 1 :]
        for power in reversed(range(most - 1)):
            total = terms[:, power : power + 1] + (1 - beta) * total
        return total

    def climb(rho: tf.Tensor, beta: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
        """Returns the upper end of an interval with the root of g for the line through β with a slope in 1 / ρ."""
        share = tf.cast(tf.range(1, _POINTS + 1), rho.dtype) * (1 / _POINTS)
        constant, slope = (beta - slope / rho)[:, tf.newaxis], slope[:, tf.newaxis]
        low, width = rho, largest - rho
        for _ in range(rounds):
            points = low[:, tf.newaxis] + width[:, tf.newaxis] * share
            is_below = series(constant + slope / points) > points
            width *= 1 / _POINTS
            low += width * tf.minimum(tf.reduce_sum(tf.cast(is_below, rho.dtype), axis=1), _POINTS - 1.0)
        return low + width

    def step(rho: tf.Tensor, before: Root, nudge: tf.Tensor, _: tf.Tensor) -> Any:
        inverse = 1 / rho
        beta = tf.minimum(_sum(tf.minimum(p, q * inverse[:, tf.newaxis, tf.newaxis])) / mass, 1.0)
        g = series(beta[:, tf.newaxis])[:, 0]
        is_below = g > rho
        # At first there is no line but the constant β.
        slope = tf.math.divide_no_nan(before.beta - beta, 1 / before.rho - inverse)
        slope = tf.maximum(tf.minimum(slope, beta * rho), 0.0)
        higher = tf.minimum(climb(rho, beta, slope) * (1 + nudge), largest)
        return tf.where(is_below, higher, rho), Root(rho, beta, g), 1.5 * nudge, tf.reduce_any(is_below)

    ones = tf.ones_like(largest)
    start = (ones, Root(ones, ones, ones), nudge, tf.constant(True))
    return tf.while_loop(lambda rho, root, nudge, goes_on: goes_on, step, start)[1]


def _blocks(values: tf.Tensor) -> tf.Tensor:
    """Returns values `[R, V]` as `[R, blocks, BLOCK]`, with zeros at the end."""
    size = values.shape[1]
    if size % BLOCK:
        values = tf.pad(values, [[0, 0], [0, -size % BLOCK]])
    return tf.reshape(values, [-1, -(-size // BLOCK), BLOCK])


def _sum(blocks: tf.Tensor) -> tf.Tensor:
    """Sums each row in two steps: a backend that adds one term after another would lose digits."""
    return tf.reduce_sum(tf.reduce_sum(blocks, axis=2), axis=1)
