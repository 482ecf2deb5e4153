"""The plain engine: one TFF client value is one client. It is the law that `fl.engines.cohort` must follow.

Client data are dense tensors, never datasets: a dataset argument is serialised, parsed again on every call and leaks.
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
    """Federated averaging with SGD clients; a client value is <examples, rows> of `fl.local_training.Batches`.

    Args:
      task: what is learned.
      initial_weights: named float32 arrays.
      local: what a client does.
      aggregator: of `fl.aggregation`.
      server_optimizer: of `tff.learning.optimizers`; sees minus the mean update as the gradient.
      average_decay: see `fl.engines.averaging.build`.

    Raises:
      ValueError: average_decay is out of range, or the task does not measure the accuracy that the aggregator is to
        release.
    """
    averaging.check_accuracy(task, aggregator)

    def client_work(weights: Weights, state: dict[str, Any], value: Any) -> Contribution:
        update = client_update(task, weights, Batches(**value), local.learning_rate)
        return aggregator.client(state, update)

    value_type = averaging.batches_type(task, local.batch_size, users=())
    return averaging.build(
        client_work, value_type, client_values, initial_weights, aggregator, server_optimizer, average_decay
    )


def client_values(batches: Sequence[Batches]) -> list[Any]:
    """One value a client."""
    return [OrderedDict(client._asdict()) for client in batches]
