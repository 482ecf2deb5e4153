"""Implements drafter-invariant decoding with several drafts: the target's token is drawn by a race with all of them.

Every position has K sets of noise, one for each of K chains of drafts. Chain k drafts its token by the drafter's race
with set k: `race(drafter's processed logits, noise[:, k, place])`. The target draws its own token by the race in which
token i has the largest noise of the chains that are alive, those whose drafts equal all tokens of the block so far:

    Y = argmax_i (log q_i + max over k alive of G^k_i)    (the smallest of the exponential numbers E^k_i / q_i).

Each chain whose draft equals Y stays alive; the block ends where none does. What holds:

* The text has the target's distribution. Which chains are alive at a place depends on the noise of earlier places only,
  and the largest of m Gumbel numbers is a Gumbel number shifted by log m, which changes no race. So Y is drawn from q
  given all that came before, also in later blocks, although noise belongs to positions: a block that ends at a place
  has used noise of later places for rejected drafts only, and nothing that was decided depends on them.
* Given the noise, Y depends on the target and on the set of chains that are alive, and on nothing else. With one chain
  that set is always the same, and the text is the one of decoding "invariant", whatever the drafter.
* With more chains the text does depend on the drafter, through which chains are alive, and on where blocks begin, since
  there all chains are alive again. Only the first token of a block does not depend on the drafter. Two drafters yield
  the same block as far as they leave the same chains alive. (The largest noise of all K chains, alive or not, would
  make the text independent of the drafter, and accept fewer tokens.)

Reference: Rowan, Phan and Khisti 2025, https://arxiv.org/abs/2506.05632.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.choices import require_integer
from models.decoding.numpy_ops import LARGEST_VOCABULARY, LEFT_OUT
from models.decoding.race import gumbels_of, race
from models.token_tree import TokenTree


class VerifiedList(NamedTuple):
    """Holds the outcome of one block per row.

    Attributes:
      accepted: int32 `[B]`, number of accepted tokens, 0 to G.
      tokens: int32 `[B, G+1]`: the accepted tokens and the one after them; what follows does not count.
      chain: int32 `[B]`, the first chain that begins with the accepted tokens.
    """

    accepted: tf.Tensor
    tokens: tf.Tensor
    chain: tf.Tensor


def list_gumbels(seed: Any, request: Any, positions: Any, num_drafts: int, size: int) -> tf.Tensor:
    """Returns the noise of all chains: one Gumbel number for every chain and token at every position.

    A number is a function of (seed, request, position, token id, chain) alone. Those of chain 0 are
    `models.decoding.race.gumbels`, and those of chain k are the numbers of the token ids from 2**18 k on.

    Args:
      seed: int32 `[2]`, any bits.
      request: int32 `[...]`, number that identifies the request.
      positions: int32 `[...]`, number of tokens before the one that is drawn; broadcasts with request.
      num_drafts: number of chains K, 1 to 4,096.
      size: number of tokens V, 1 to 2**18.

    Returns:
      float32 `[..., K, V]`.

    Raises:
      ValueError: `num_drafts` or `size` is not an integer in its range.
    """
    num_drafts = require_integer("num_drafts", num_drafts, 1, 4096)
    size = require_integer("size", size, 1, LARGEST_VOCABULARY)
    request, positions = (
        tf.convert_to_tensor(key, tf.int32)[..., tf.newaxis, tf.newaxis] for key in (request, positions)
    )
    tokens = tf.range(num_drafts)[:, tf.newaxis] * LARGEST_VOCABULARY + tf.range(size)
    return gumbels_of(seed, request, positions, tokens)


def verify_list(
    processed: tf.Tensor, tokens: tf.Tensor, is_real: tf.Tensor, noise: tf.Tensor, tree: TokenTree
) -> VerifiedList:
    """Draws the target's tokens along the drafts that equal them.

    Args:
      processed: the target's processed logits after each node, float32 `[B, N, V]`.
      tokens: int32 `[B, N]`, the drafts; that of the root does not count.
      is_real: bool `[B, N]`, whether the node was drafted.
      noise: the noise of the block's positions, float32 `[B, K, G+1, V]`: that of `list_gumbels` for positions
        `[B, G+1]`, with its axes of places and chains exchanged.
      tree: K separate chains of G drafts, `TokenTree.chains(K, G)`.

    Raises:
      ValueError: the tree is of another form, or the noise has not the shape that belongs to it.
    """
    if not tree.are_separate_chains:
        raise ValueError("tree: must be separate chains of equal length; give TokenTree.chains(num_drafts, length)")
    sizes = [len(tree.levels[1]), len(tree.levels), processed.shape[-1]]
    if not tf.TensorShape(noise.shape[1:]).is_compatible_with(sizes):
        raise ValueError(
            f"noise: has shape {tuple(noise.shape)}, must have [B, K, G + 1, V] with {sizes} after B; list_gumbels "
            "returns places before chains"
        )
    paths = tf.constant(tree.paths[tree.levels[-1].start :])
    is_alive, goes_on = tf.ones_like(noise[..., 0, 0], tf.bool), tf.ones_like(tokens[:, 0], tf.bool)
    chain, accepted, drawn = tf.zeros_like(tokens[:, 0]), tf.zeros_like(tokens[:, 0]), []
    for depth in range(len(tree.levels)):
        node = tf.gather(paths[:, depth], chain)
        drawn.append(race(tf.gather(processed, node, axis=1, batch_dims=1), _largest(noise[:, :, depth], is_alive)))
        if depth + 1 == len(tree.levels):
            break
        below = tree.levels[depth + 1]
        drafts, drafted = (part[:, below.start : below.stop] for part in (tokens, is_real))
        equals = is_alive & drafted & tf.equal(drafts, drawn[-1][:, tf.newaxis])
        goes_on &= tf.reduce_any(equals, axis=1)
        is_alive = tf.where(goes_on[:, tf.newaxis], equals, is_alive)
        chain = tf.argmax(tf.cast(is_alive, tf.int32), axis=1, output_type=tf.int32)
        accepted += tf.cast(goes_on, tf.int32)
    return VerifiedList(accepted, tf.stack(drawn, axis=1), chain)


def _largest(noise: tf.Tensor, is_alive: tf.Tensor) -> tf.Tensor:
    """Returns the largest number of each token `[B, V]` in noise `[B, K, V]` among the chains that are alive."""
    return tf.reduce_max(tf.where(is_alive[..., tf.newaxis], noise, LEFT_OUT), axis=1)
