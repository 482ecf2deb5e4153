"""Drafts several children of one text: ways to propose K next tokens, each with a distribution that it can state.

A verifier of trees needs the distribution that each child was drawn from, given its earlier siblings:

* "independent": every child is drawn from the drafter's distribution, so that siblings may be equal.
* "without-replacement": every child is drawn from the tokens that its earlier siblings left.
* "greedy": the first child is drawn from all tokens but the K - 1 likeliest, and these follow, for certain. Where the
  drafter gives the other tokens no probability, the first child is the next likeliest token, for certain too. With one
  child it is an ordinary draw. Reference: the idea is that of Hu et al. 2025, https://arxiv.org/abs/2502.18779.

In shapes, the leading axes are those of the nodes.
"""

from typing import NamedTuple

import tensorflow as tf

from models.decoding.sampling import distribution_of, sample_31, weights_31

DRAFTINGS = ("greedy", "independent", "without-replacement")


class Children(NamedTuple):
    """Holds the children of nodes.

    Attributes:
      tokens: int32 `[..., K]`, in drafting order.
      is_real: bool `[..., K]`; False for children that could not be drawn.
      base: float32 `[..., V]`, the distribution of the first child, from which `child_law` gives those of the others.
    """

    tokens: tf.Tensor
    is_real: tf.Tensor
    base: tf.Tensor


def draw_children(drafting: str, processed: tf.Tensor, order: tf.Tensor, words: tf.Tensor) -> Children:
    """Draws the children of each row.

    Args:
      drafting: one of `DRAFTINGS`.
      processed: the drafter's processed logits, float32 `[R, V]`; NaN in a row that proposes nothing.
      order: float32 `[R, V]`, larger for likelier tokens, as `split` takes it.
      words: random words, int32 `[R, K]`.
    """
    token_weights, certain = split(drafting, weights_31(processed), order, words.shape[1])
    left, tokens = token_weights, []
    for word in tf.unstack(words, axis=1)[: words.shape[1] - certain.shape[1]]:
        tokens.append(sample_31(left, word))
        if drafting == "without-replacement":
            left = _without(left, tokens[-1])
    children = tf.concat([tf.stack(tokens, axis=1), certain], axis=1)
    is_number = tf.equal(processed[:, :1], processed[:, :1])
    return Children(tf.maximum(children, 0), (children >= 0) & is_number, distribution_of(token_weights))


def split(drafting: str, token_weights: tf.Tensor, order: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Separates children that are drawn from those that are certain.

    Args:
      drafting: one of `DRAFTINGS`.
      token_weights: the drafter's probabilities or weights, `[..., V]`.
      order: float `[..., V]`, larger for likelier tokens. It must depend on the text and the drafter only.
      count: number of children K, >= 1, with "greedy" at most V.

    Returns:
      The weights of the first child, and the certain children, which come last: int32 `[..., K - 1]` with "greedy",
      `[..., 0]` otherwise.
    """
    if drafting != "greedy":
        return token_weights, tf.zeros_like(order[..., :0], tf.int32)
    likeliest = tf.math.top_k(order, count).indices
    certain, following = likeliest[..., :-1], likeliest[..., -1]
    drawn = token_weights
    for token in tf.unstack(certain, axis=-1):
        drawn = _without(drawn, token)
    is_empty = tf.equal(tf.reduce_max(drawn, axis=-1, keepdims=True), tf.zeros([], drawn.dtype))
    return tf.where(is_empty & _is(following, drawn), tf.ones_like(drawn), drawn), certain


def child_law(drafting: str, base: tf.Tensor, tokens: tf.Tensor, place: int) -> tf.Tensor | None:
    """Returns the distribution `[..., V]` of the child at `place`, 0 to K - 1, given its earlier siblings.

    Args:
      drafting: one of `DRAFTINGS`.
      base: `Children.base`, `[..., V]`.
      tokens: `Children.tokens`, `[..., K]`.
      place: which child.

    Returns:
      The probabilities; None for a child that is certain.
    """
    if place == 0 or drafting == "independent":
        return base
    if drafting == "greedy":
        return None
    for earlier in range(place):
        base = _without(base, tokens[..., earlier])
    return normalized(base)


def normalized(token_weights: tf.Tensor) -> tf.Tensor:
    """Divides weights `[..., V]`, at least 0, by their sum; a row of zeros stays."""
    total = tf.reduce_sum(token_weights, axis=-1, keepdims=True)
    return token_weights / tf.where(total > 0, total, tf.ones_like(total))


def _without(token_weights: tf.Tensor, token: tf.Tensor) -> tf.Tensor:
    return tf.where(_is(token, token_weights), tf.zeros_like(token_weights), token_weights)


def _is(token: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Returns where the token of each row stands in the vocabulary, bool `[..., V]` for tokens `[...]`."""
    return tf.equal(tf.range(like.shape[-1]), token[..., tf.newaxis])
