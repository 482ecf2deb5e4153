"""Chooses draft lengths by the times of a block and the acceptance seen so far, so that speculation never costs time.

A row's choice depends on the decisions of its earlier blocks and on the given times only. It never looks at the draft
that it is for, so that decoding stays lossless.
"""

import tensorflow as tf

from models.decoding.choices import Costs

# Evidence is forgotten at this rate per block, so that a row that drafts nothing tries again after some 200 tokens.
_DECAY = 63 / 64
# What counts as evidence before there is any: two drafted tokens, of which 1.375 were accepted.
_PRIOR_TOKENS, _PRIOR_ACCEPTED = 2.0, 1.375


def initial_evidence(batch: int) -> tf.Tensor:
    """Returns the evidence before any block: accepted and rejected drafted tokens, float32 `[batch, 2]`."""
    return tf.zeros([batch, 2])


def choose(evidence: tf.Tensor, costs: Costs, longest: int) -> tf.Tensor:
    """Returns the draft length from 0 to `longest` with the largest expected number of tokens per time, int32 `[B]`.

    With probability a that a drafted token is accepted, k drafted tokens give 1 + a + ... + a**k tokens, and take the
    time `verify` + k `draft`. One token without a draft takes the time `nothing`.

    Args:
      evidence: float32 `[B, 2]`.
      costs: the times of a block.
      longest: the largest draft length G.
    """
    accepted, rejected = tf.unstack(evidence, axis=1)
    rate = (accepted + _PRIOR_ACCEPTED) / (accepted + rejected + _PRIOR_TOKENS)
    tokens = power = tf.ones_like(rate)
    speeds = [tokens / costs.nothing]
    for length in range(1, longest + 1):
        power *= rate
        tokens += power
        speeds.append(tokens / (costs.verify + length * costs.draft))
    return tf.argmax(tf.stack(speeds, axis=1), axis=1, output_type=tf.int32)


def observe(evidence: tf.Tensor, drafted: tf.Tensor, count: tf.Tensor, active: tf.Tensor) -> tf.Tensor:
    """Returns the evidence after a block of `count` tokens (int32 `[B]`), of which `drafted` had been drafted."""
    accepted = tf.minimum(count - 1, drafted)
    new = tf.cast(tf.stack([accepted, tf.cast(accepted < drafted, tf.int32)], axis=1), tf.float32)
    return tf.where(active[:, tf.newaxis], evidence * _DECAY + new, evidence)
