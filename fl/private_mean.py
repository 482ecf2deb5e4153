"""The private mean of a bounded client metric in TFF: a loss, an accuracy, a share; with it the number of clients.

The pair (x - lower, upper - x) of each client is summed as whole numbers and noised once (Kulesza, Suresh and Wang
2024, arXiv:2312.06658; without TFF: `privacy.statistics.mean`). A client that sends no number counts as absent.
"""

import collections
from typing import Any, NamedTuple

import tensorflow_federated as tff
import numpy as np
import tensorflow as tf
import tensorflow_privacy as tfp

from fl import gaussian, metric_pairs
from privacy import checks
from privacy.accounting import costs


class Result(NamedTuple):
    """What is released.

    Attributes:
      mean: float32 in [lower, upper]; the middle where the noise left nobody.
      clients: float32, how many; may be below 0.
    """

    mean: Any
    clients: Any


class BoundedMeanQuery(tfp.SumAggregationDPQuery):
    """`tensorflow_privacy.DPQuery` for one float32 a client, with Gaussian noise; add-or-remove-one.

    A client moves the pair by at most one width in L2 norm, so that a sample costs one Gaussian of `noise_multiplier`,
    which is also the event that the query returns. Its noise is floating-point and not hardened; it follows from the
    seed and the number of the round, so that a round that is done again releases the same.

    Args:
      lower: public, finite; smaller values are raised to it.
      upper: public, finite, above `lower`.
      noise_multiplier: noise standard deviation / width, above 0.
      seed: int64 [2] from a secret and of no other use: of `privacy.ledger.Ledger.noise_stream`, which refuses a
        second use.

    Raises:
      ValueError: an argument is out of range.
    """

    _State = collections.namedtuple("_State", ["seed", "round"])

    def __init__(self, lower: float, upper: float, noise_multiplier: float, seed: Any) -> None:
        self._lower, self._upper = checks.bounds(lower, upper)
        self._multiplier = checks.positive("noise multiplier", noise_multiplier, "give noise / width")
        self._seed = np.asarray(seed, np.int64)
        if self._seed.shape != (2,):
            raise ValueError(f"seed has shape {list(self._seed.shape)}: int64 [2] is needed, as of Ledger.noise_stream")

    def initial_global_state(self) -> Any:
        """The seed, and round 0."""
        return self._State(tf.constant(self._seed), tf.constant(0, tf.int64))

    def derive_sample_params(self, global_state: Any) -> Any:
        """None are needed."""
        return ()

    def initial_sample_state(self, template: Any = None) -> Any:
        """No client yet: int64 [2]."""
        return tf.zeros([2], tf.int64)

    def preprocess_record(self, params: Any, record: Any) -> Any:
        """The client's pair, int64 [2]; see `fl.metric_pairs`."""
        return metric_pairs.pair(record, self._lower, self._upper)

    def get_noised_result(self, sample_state: Any, global_state: Any) -> Any:
        """(`Result`, the next global state, the event)."""
        seed = gaussian.stream(tf.stack([global_state.seed[0], global_state.seed[1] + global_state.round]), "mean")
        noise = metric_pairs.in_steps(gaussian.standard_normal(2, seed), self._multiplier)
        share, clients = metric_pairs.released(sample_state + noise)
        mean = self._lower + tf.cast(share, tf.float32) * (self._upper - self._lower)
        next_state = self._State(global_state.seed, global_state.round + 1)
        return Result(mean, tf.cast(clients, tf.float32)), next_state, costs.Gaussian(self._multiplier).dp_event()


def private_mean_factory(
    lower: float, upper: float, noise_multiplier: float, seed: Any
) -> tff.aggregators.UnweightedAggregationFactory:
    """The query as a TFF aggregator: `({float32}@CLIENTS -> <mean=float32, clients=float32>@SERVER)`.

    Arguments, noise and errors as of `BoundedMeanQuery`. Each round costs one Gaussian of `noise_multiplier` under
    add-or-remove-one, amplified by Poisson sampling where that is how its clients were drawn.
    """
    return tff.aggregators.DifferentiallyPrivateFactory(BoundedMeanQuery(lower, upper, noise_multiplier, seed))
