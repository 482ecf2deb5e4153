"""Builds the plain engine, in which one TFF client value is one client; `fl.engines.cohort` must give the same results.

Client data are dense tensors, never datasets: TFF serialises a dataset, parses it again on every call and leaks memory.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import tensorflow_federated as tff

from fl.aggregation import Aggregator, Contribution
from fl.engines import averaging
from fl.engines.averaging import Engine
from fl.local_training import Batches, LocalSGD, Task, Weights, client_update


def build(
    task: Task,
    initial_weights: Weights,
    local: LocalSGD,
    aggregator: Aggregator,
    server_optimizer: tff.learning.optimizers.Optimizer,
    average_decay: float = 0.0,
) -> Engine:
    """Builds federated averaging with SGD clients; a client value is <examples, rows> of `fl.local_training.Batches`.

    Args:
      task: the learning task.
      initial_weights: named float32 arrays.
      local: settings of local training.
      aggregator: an aggregator of `fl.aggregation`.
      server_optimizer: an optimizer of `tff.learning.optimizers`, for which minus the mean update is the gradient.
      average_decay: decay of the running average, see `fl.engines.averaging.build`.

    Returns:
      The engine.

    Raises:
      ValueError: average_decay is out of range, an initial weight is not a float32 array, or the task does not measure
        the accuracy that the aggregator needs.
    """
    averaging.check_accuracy(task, aggregator)

    def client_work(weights: Weights, state: dict[str, Any], value: Any) -> Contribution:
        update = client_update(task, weights, Batches(**value), local)
        return aggregator.client(state, update)

    value_type = averaging.batches_type(task, local.batch_size, client_axis=())
    return averaging.build(
        client_work, value_type, client_values, initial_weights, aggregator, server_optimizer, average_decay
    )


def client_values(batches: Sequence[Batches]) -> list[Any]:
    """Returns one client value for each client."""
    return [OrderedDict(client._asdict()) for client in batches]
