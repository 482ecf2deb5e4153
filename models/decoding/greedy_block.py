"""Implements greedy block verification, which accepts as many tokens of each block as possible.

The rule alone is not lossless: it pays for the tokens that it gains with a changed target at the positions that its
block has left over. Suppose a block began after the text c, could draft G tokens, accepted tau of them and drew Y. At
each of the next G - tau - 1 positions the target becomes

    M_new(x | path) ∝ max(J_b(path, x) - J_s(path, x), 0),

where path is the text since c, and J_b and J_s are the joint probabilities of that text under the target that the block
used and under the drafter. The next blocks verify against M_new, and change it again in the same way.

`modify` computes the target of a block and `advance` what the next block has to know, the `Carry`:

    modified = modify(target, drafter, tokens, lengths, carry)
    verified = verify(greedy_block_rule, modified.target, drafter, tokens, lengths, words)
    carry = advance(modified, verified.accepted, verified.token)

All functions have static shapes and use builtin TFLite ops only.

Reference: Sun et al. 2024, https://arxiv.org/abs/2403.10444, appendix.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.verification import Stops, log_ratios, masses, scan_from_the_end
from models.decoding.verifier import Verifier


class Carry(NamedTuple):
    """Holds the changes of the target that earlier blocks have left; entry k is of the block k + 1 blocks ago.

    Attributes:
      share: float `[B, L]`, J_s / J_b of the text since that block's beginning, 0 to 1. It is below 1 for every text
        that can occur. 0 changes nothing.
      remaining: int32 `[B, L]`, at how many of the next positions the target is changed.
    """

    share: tf.Tensor
    remaining: tf.Tensor


class Modified(NamedTuple):
    """Holds the target of a block, and what `advance` needs.

    Attributes:
      target: float `[B, G+1, V]`, the target that verifies the block.
      original: float `[B, G+1, V]`, the target without changes.
      drafter: float `[B, G, V]`, the drafter's distributions; 0 where the drafter proposes nothing.
      tokens: int32 `[B, G]`, the draft.
      lengths: int32 `[B]`, number of real tokens of each row.
      limits: int32 `[B]`, number of tokens that each row could draft.
      shares: float `[B, L, G+1]`, the carried shares after each prefix of the draft.
      remaining: int32 `[B, L]`, as carried.
    """

    target: tf.Tensor
    original: tf.Tensor
    drafter: tf.Tensor
    tokens: tf.Tensor
    lengths: tf.Tensor
    limits: tf.Tensor
    shares: tf.Tensor
    remaining: tf.Tensor


def greedy_block_rule(target: tf.Tensor, drafter: tf.Tensor, tokens: tf.Tensor, lengths: tf.Tensor) -> Stops:
    """Accepts as many tokens of this block as possible.

    Lossless only with the target of `modify`. With rho_i the product of r_1 … r_i, it scans i from the last token to
    the first, and stops with probability min(1, A_i / B_i), where A_i and B_i are the masses of
    max(rho_i M_b - M_s, 0) and max(M_s - rho_i M_b, 0); at the last real token with probability min(1, rho_i). The
    expected tau of a block is the sum over all prefixes of min(J_b, J_s), which no rule exceeds.

    Args:
      target: as for `models.decoding.verification.token_rule`.
      drafter: as for `token_rule`.
      tokens: as for `token_rule`.
      lengths: as for `token_rule`.
    """
    log_ratio, _, lengths = log_ratios(target, drafter, tokens, lengths)
    log_rho = tf.pad(tf.cumsum(log_ratio, axis=1), [[0, 0], [1, 0]])
    # Both sides are divided by max(1, rho), which may be too large for a float.
    target_weight, drafter_weight = tf.exp(tf.minimum(log_rho, 0.0)), tf.exp(-tf.maximum(log_rho, 0.0))
    excess, deficit = masses(target, drafter, target_weight, drafter_weight)
    return scan_from_the_end(
        target_weight, tf.minimum(excess, deficit), deficit, target_weight, drafter_weight, lengths
    )


def initial_carry(batch: int, draft_length: int, dtype: Any = tf.float32) -> Carry:
    """Returns the carry before the first block: no changes.

    A block adds at least one token, so that no more than G - 1 blocks can reach a position.

    Args:
      batch: number of rows B.
      draft_length: number of drafted tokens G, >= 1.
      dtype: type of the probabilities.

    Raises:
      ValueError: the draft length is outside its range.
    """
    if isinstance(draft_length, bool) or not isinstance(draft_length, int) or draft_length < 1:
        raise ValueError(f"draft_length = {draft_length!r}: must be an integer >= 1 for greedy block verification")
    levels = max(draft_length - 1, 1)
    return Carry(tf.zeros([batch, levels], dtype), tf.zeros([batch, levels], tf.int32))


def modify(
    target: tf.Tensor,
    drafter: tf.Tensor,
    tokens: tf.Tensor,
    lengths: tf.Tensor,
    carry: Carry,
    limits: tf.Tensor | None = None,
) -> Modified:
    """Returns the target that a block must be verified against.

    Decoding is lossless under two conditions, since the change of a position depends on where the drafts of earlier
    blocks would have ended on this path:

    * Before a row's draft is drawn, it is fixed how many tokens it can have: G, or `limits`.
    * A draft ends before its limit only if the drafter proposes nothing there, which must depend on the text before
      that position alone. A rule that stops drafting by other means (after an unlikely token, say) is not allowed.

    Args:
      target: probabilities of the target, float `[B, G+1, V]`, without changes.
      drafter: probabilities with which the drafter sampled, float `[B, G, V]`. Unlike rules, `modify` reads a row's
        distribution after its last real token too, if that is at the limit: it must be the drafter's own after these
        tokens, or all 0 if the drafter proposes nothing.
      tokens: the draft, int32 `[B, G]`.
      lengths: int32 `[B]`, 0 to G, number of real tokens of each row.
      carry: what `advance` returned for the block before, or `initial_carry`.
      limits: int32 `[B]`, `lengths` to G, number of tokens that each row could draft. None means G.

    Raises:
      ValueError: the carry was made for another draft length, or the draft has no place for a token. If no row drafts,
        because the drafter proposes nothing, the target is unchanged and the next carry is `initial_carry`.
    """
    count, levels = tokens.shape[1], carry.share.shape[1]
    if count < 1:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)}: must have at least one place for a drafted token")
    if levels != max(count - 1, 1):
        raise ValueError(
            f"carry has {levels} levels: must be {max(count - 1, 1)} for drafts of {count} tokens; make it by "
            f"initial_carry(batch, {count})"
        )
    if limits is None:
        limits = tf.fill(tf.shape(lengths), count)
    proposes = (tf.range(count) < lengths[:, tf.newaxis]) | (lengths >= limits)[:, tf.newaxis]
    drafter = tf.where(proposes[..., tf.newaxis], drafter, tf.zeros_like(drafter))
    changed, shares = _change(target[:, :count], drafter, tokens, carry)
    changed = tf.concat([changed, target[:, count:]], axis=1)
    return Modified(changed, target, drafter, tokens, lengths, limits, shares, carry.remaining)


def advance(modified: Modified, accepted: tf.Tensor, token: tf.Tensor) -> Carry:
    """Returns what the next block must know.

    Args:
      modified: the block, from `modify`.
      accepted: int32 `[B]`, number of accepted tokens.
      token: int32 `[B]`, the token after them.
    """

    def at(values: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        return tf.gather(values, index, axis=1, batch_dims=1)

    # No change reaches beyond the draft, so it does not matter which row of the drafter is taken there.
    row = at(modified.drafter, tf.minimum(accepted, modified.drafter.shape[1] - 1))
    used = accepted[:, tf.newaxis]
    here = Carry(tf.gather(modified.shares, accepted, axis=2, batch_dims=1), modified.remaining - used)
    _, after = _change(at(modified.original, accepted)[:, tf.newaxis], row[:, tf.newaxis], token[:, tf.newaxis], here)
    newest = _share_of_block(modified, accepted, at(row, token), token)
    remaining = tf.concat([modified.limits[:, tf.newaxis], modified.remaining[:, :-1]], axis=1) - used - 1
    share = tf.concat([newest[:, tf.newaxis], after[:, :-1, 1]], axis=1)
    return Carry(tf.where(remaining > 0, share, tf.zeros_like(share)), tf.maximum(remaining, 0))


def _change(target: tf.Tensor, drafter: tf.Tensor, tokens: tf.Tensor, carry: Carry) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the changed target `[B, T, V]` and the shares `[B, L, T+1]` after each prefix of the T tokens.

    The oldest block's change comes first: a block's J_b is of the target that older blocks had changed.
    """
    count = tokens.shape[1]
    of_drafter = tf.gather(drafter, tokens, axis=2, batch_dims=2)
    shares: list[tf.Tensor] = []
    for level in reversed(range(carry.share.shape[1])):
        of_target = tf.gather(target, tokens, axis=2, batch_dims=2)
        share = [carry.share[:, level]]
        for place in range(count):
            # A share of 1 or more belongs to a text that the changed target never draws.
            grown = tf.math.divide_no_nan(share[-1] * of_drafter[:, place], of_target[:, place])
            share.append(tf.minimum(grown, 1.0))
        shares.insert(0, tf.stack(share, axis=1))
        is_left = tf.range(count) < carry.remaining[:, level, tf.newaxis]
        drafter_weight = tf.where(is_left, shares[0][:, :count], 0.0)
        ones = tf.ones_like(drafter_weight)
        mass, _ = masses(target, drafter, ones, drafter_weight)
        mass = mass[:, :count]
        changed = tf.math.divide_no_nan(
            tf.nn.relu(target - drafter_weight[..., tf.newaxis] * drafter), mass[..., tf.newaxis]
        )
        target = tf.where(((drafter_weight > 0) & (mass > 0))[..., tf.newaxis], changed, target)
    return target, tf.stack(shares, axis=1)


def _share_of_block(modified: Modified, accepted: tf.Tensor, of_drafter: tf.Tensor, token: tf.Tensor) -> tf.Tensor:
    """Returns J_s / J_b `[B]` of the accepted tokens and the token after them, whose drafter probability is given.

    It is 0 where the drafter proposes nothing after the accepted tokens: the block has left nothing over.
    """
    log_ratio, _, _ = log_ratios(modified.target, modified.drafter, modified.tokens, modified.lengths)
    log_rho = tf.gather(tf.pad(tf.cumsum(log_ratio, axis=1), [[0, 0], [1, 0]]), accepted, axis=1, batch_dims=1)
    of_target = tf.gather(tf.gather(modified.target, accepted, axis=1, batch_dims=1), token, axis=1, batch_dims=1)
    is_possible = (of_drafter > 0) & (of_target > 0)
    one = tf.ones_like(of_target)
    last = tf.math.log(tf.where(is_possible, of_target, one)) - tf.math.log(tf.where(is_possible, of_drafter, one))
    # Accepted tokens can be likelier under the drafter by a factor that no float holds; the whole text is not.
    return tf.where(is_possible, tf.exp(tf.minimum(-(log_rho + last), 0.0)), tf.zeros_like(one))


GREEDY_BLOCK = Verifier(greedy_block_rule, initial_carry, modify, advance)
"""The rule with its carry, for `models.decoding.check_lossless` and for loops."""
