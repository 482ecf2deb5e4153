"""Releases the private mean of a bounded metric of the clients (a loss, an accuracy, a share) and their number, in TFF.

The pairs (x - lower, upper - x) of all clients are summed as integers, and noise is added once (Kulesza, Suresh and
Wang 2024, arXiv:2312.06658; without TFF: `privacy.statistics.mean`). A client whose value is NaN counts as absent.
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
    """Holds the estimates that one round releases.

    Attributes:
      mean: float32 in [lower, upper]; the midpoint if the noise left neither entry of the sum above 0.
      clients: float32, estimated number of clients; the noise may make it negative.
    """

    mean: Any
    clients: Any


class BoundedMeanQuery(tfp.SumAggregationDPQuery):
    """Releases the mean of one float32 per client with Gaussian noise, as a `tensorflow_privacy.DPQuery`.

    Under add-or-remove-one, with the client as unit, one client changes the sum of the pairs by at most
    `upper - lower` in L2 norm. So each round costs one Gaussian mechanism with noise multiplier `noise_multiplier`, and
    the query returns the event of that mechanism. The noise is floating-point and not hardened against floating-point
    attacks. It follows from the seed and the number of the round, so that a repeated round releases the same values.

    Args:
      lower: public bound, finite; smaller values are raised to it.
      upper: public bound, finite, above `lower`; larger values are lowered to it.
      noise_multiplier: standard deviation of the noise / (upper - lower), > 0.
      seed: int64 [2], derived from a secret and used for nothing else. `privacy.ledger.Ledger.noise_stream` returns
        such a seed and refuses to return it for a second use.

    Raises:
      ValueError: an argument is out of range.
    """

    _State = collections.namedtuple("_State", ["seed", "round"])

    def __init__(self, lower: float, upper: float, noise_multiplier: float, seed: Any) -> None:
        self._lower, self._upper = checks.bounds(lower, upper)
        self._multiplier = checks.positive(
            "noise_multiplier", noise_multiplier, "give the standard deviation of the noise / (upper - lower)"
        )
        self._seed = np.asarray(seed, np.int64)
        if self._seed.shape != (2,):
            raise ValueError(f"seed has shape {list(self._seed.shape)}: give int64 [2], such as Ledger.noise_stream's")

    def initial_global_state(self) -> Any:
        """Returns the seed and round 0."""
        return self._State(tf.constant(self._seed), tf.constant(0, tf.int64))

    def derive_sample_params(self, global_state: Any) -> Any:
        """Returns no parameters, because the query needs none."""
        return ()

    def initial_sample_state(self, template: Any = None) -> Any:
        """Returns the sum over no client, int64 [2]."""
        return tf.zeros([2], tf.int64)

    def preprocess_record(self, params: Any, record: Any) -> Any:
        """Returns the client's pair, int64 [2]; see `fl.metric_pairs`."""
        return metric_pairs.pair(record, self._lower, self._upper)

    def get_noised_result(self, sample_state: Any, global_state: Any) -> Any:
        """Returns the `Result`, the next global state and the privacy event of one round."""
        seed = gaussian.stream(tf.stack([global_state.seed[0], global_state.seed[1] + global_state.round]), "mean")
        noise = metric_pairs.in_steps(gaussian.standard_normal(2, seed), self._multiplier)
        share, clients = metric_pairs.released(sample_state + noise)
        mean = self._lower + tf.cast(share, tf.float32) * (self._upper - self._lower)
        next_state = self._State(global_state.seed, global_state.round + 1)
        return Result(mean, tf.cast(clients, tf.float32)), next_state, costs.Gaussian(self._multiplier).dp_event()


def private_mean_factory(
    lower: float, upper: float, noise_multiplier: float, seed: Any
) -> tff.aggregators.UnweightedAggregationFactory:
    """Returns a TFF aggregator for a private mean: `({float32}@CLIENTS -> <mean=float32, clients=float32>@SERVER)`.

    The arguments, the noise and the errors are those of `BoundedMeanQuery`. Under add-or-remove-one each round costs
    one Gaussian mechanism of `noise_multiplier`; if its clients were drawn by Poisson sampling, amplification lowers
    that cost.
    """
    return tff.aggregators.DifferentiallyPrivateFactory(BoundedMeanQuery(lower, upper, noise_multiplier, seed))
