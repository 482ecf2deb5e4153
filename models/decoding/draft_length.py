"""Chooses draft lengths by the times of a block and the acceptance seen so far, so that drafts that do not pay end.

A row's choice depends on the decisions of its earlier blocks and on the given times only. It never looks at the draft
that it is for, so that decoding stays lossless. A row for which no draft pays drafts nothing for the rest of its text:
without drafts there is no new evidence. So the drafter need not read on, and the rest takes the time of plain decoding.
"""

import tensorflow as tf

from models.decoding.choices import Costs

# Evidence is forgotten at this rate per block, so that lengths follow a text that changes.
_DECAY = 63 / 64
# What counts as evidence before there is any: eight drafted tokens, of which 5.5 were accepted. With fewer, a good
# drafter would be given up after three bad tokens at the beginning.
_PRIOR_TOKENS, _PRIOR_ACCEPTED = 8.0, 5.5


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
    """Returns the evidence after a block of `count` tokens (int32 `[B]`), of which `drafted` had been drafted.

    It stays as it is in rows that are not active or drafted nothing.
    """
    accepted = tf.minimum(count - 1, drafted)
    new = tf.cast(tf.stack([accepted, tf.cast(accepted < drafted, tf.int32)], axis=1), tf.float32)
    return tf.where((active & (drafted > 0))[:, tf.newaxis], evidence * _DECAY + new, evidence)
