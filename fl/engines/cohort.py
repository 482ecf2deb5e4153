"""The cohort engine: one TFF client value is a *shard*, many clients whose updates are treated one by one inside.

A shard trains its clients one after another, or `clients_at_once` of them stacked on a leading axis (batched products:
faster where a client's step is bound by the dispatch of small operations, slower where it is bound by its products;
`fl.engines.calibration` measures which). What leaves a shard is the sum of its clients' contributions, each clipped,
zeroed and counted alone, so that the result is that of `fl.engines.per_client`. The number of shards is fixed and their
length is free: any cohort, an empty one too, is one call of one computation that was traced once.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import tensorflow_federated as tff
import numpy as np
import tensorflow as tf

from fl.aggregation import Aggregator, Contribution
from fl.engines import averaging
from fl.engines.averaging import Engine
from fl.exact_mean import ExactDPMean
from fl.local_training import Batches, ClientUpdate, LocalSGD, Task, Weights, client_update
from privacy import checks


def build(
    task: Task,
    initial_weights: Weights,
    local: LocalSGD,
    aggregator: Aggregator,
    server_optimizer: tff.learning.optimizers.Optimizer,
    average_decay: float = 0.0,
    *,
    shards: int = 2,
    clients_at_once: int = 1,
) -> Engine:
    """Federated averaging with SGD clients, many to a client value.

    A client value is <examples, rows, ends>: the batches of the shard's groups of U users one after another, [S, U, B,
    ...] and int32 [S, U] (without the axis U for `clients_at_once=1`), and the groups' ends in it, int32 [groups].

    Args:
      task: what is learned.
      initial_weights: named float32 arrays.
      local: what a client does.
      aggregator: of `fl.aggregation`.
      server_optimizer: of `tff.learning.optimizers`; sees minus the mean update as the gradient.
      average_decay: see `fl.engines.averaging.build`.
      shards: client values a round, those that run at once: the number of cores of all workers.
      clients_at_once: U, clients of a shard trained together; 1: one after another.

    Raises:
      ValueError: a number is out of range; clients_at_once is above 1 and the task does not stack, or the noise is
        exact; or the task does not measure the accuracy that the aggregator is to release.
    """
    for name, value in (("shards", shards), ("clients_at_once", clients_at_once)):
        checks.whole(name, value, 1, "give a whole number")
    averaging.check_accuracy(task, aggregator)
    if clients_at_once > 1 and isinstance(aggregator, ExactDPMean):
        raise ValueError(
            f"clients_at_once is {clients_at_once} with exact noise: use 1, for clients trained together share the "
            "shapes of their products, and one more or less changes the last bits of the others"
        )
    if clients_at_once > 1 and not task.stacks:
        raise ValueError(f"clients_at_once is {clients_at_once} and this task takes no user axis: use 1")

    def client_work(weights: Weights, state: dict[str, Any], shard: Any) -> Contribution:
        batches, ends = Batches(shard["examples"], shard["rows"]), shard["ends"]

        def train(first: Any, end: Any) -> list[Any]:
            update = client_update(task, weights, batches, local.learning_rate, (first, end))
            return tf.nest.flatten(aggregator.client(state, update))

        def group(index: Any, first: Any, *total: Any) -> tuple[Any, ...]:
            added = [sum_ + part for sum_, part in zip(total, train(first, ends[index]), strict=True)]
            return (index + 1, ends[index], *added)

        form = aggregator.client(state, _no_update(weights))
        zeros = [tf.zeros(part.shape, part.dtype) for part in tf.nest.flatten(form)]
        _, _, *total = tf.while_loop(
            lambda index, *_: index < tf.size(ends),
            group,
            [tf.constant(0), tf.constant(0), *zeros],
            parallel_iterations=1,
        )
        packed: Contribution = tf.nest.pack_sequence_as(form, total)
        return packed

    users = () if clients_at_once == 1 else (clients_at_once,)
    batches_type = averaging.batches_type(task, local.batch_size, users)
    value_type = tff.types.to_type(
        OrderedDict(
            examples=batches_type["examples"], rows=batches_type["rows"], ends=tff.TensorType(np.int32, (None,))
        )
    )
    empty = _empty_batches(task, local.batch_size)

    def client_values(batches: Sequence[Batches]) -> list[Any]:
        for client in batches:
            _check(client, task, local.batch_size)
        return [_shard([batches[i] for i in c], clients_at_once, empty) for c in deal(batches, shards, clients_at_once)]

    return averaging.build(
        client_work, value_type, client_values, initial_weights, aggregator, server_optimizer, average_decay
    )


def _check(client: Batches, task: Task, batch_size: int) -> None:
    """Raises ValueError if a client's batches are not of the task's examples."""
    steps = len(client.rows)
    wanted = [(spec.dtype.as_numpy_dtype, (steps, batch_size, *spec.shape)) for spec in tf.nest.flatten(task.example)]
    given = [(array.dtype, array.shape) for array in tf.nest.flatten(client.examples)]
    if [(np.dtype(dtype), shape) for dtype, shape in wanted] != given:
        raise ValueError(
            f"client batches are {_names(given)} and the task's examples need {_names(wanted)}: build them with the "
            "same LocalSGD, from arrays of the task's type"
        )
    if client.rows.dtype != np.int32 or not ((client.rows >= 1) & (client.rows <= batch_size)).all():
        raise ValueError(f"client rows are {client.rows}: int32 from 1 to the batch size, {batch_size}, are needed")


def _names(arrays: Sequence[tuple[Any, Any]]) -> str:
    return ", ".join(f"{np.dtype(dtype).name} {list(shape)}" for dtype, shape in arrays)


def deal(batches: Sequence[Batches], shards: int, clients_at_once: int) -> list[list[int]]:
    """Which clients come into which shard, as positions in `batches`: every one once.

    Clients of like length stand together in groups of `clients_at_once`; the longest group goes first, each to the
    shard with the least to do. Clients without a step are left out: they contribute nothing.

    Returns:
      For each shard its clients in order; every `clients_at_once` of them are a group (the last may be smaller).
    """
    work = [(-len(client.rows), -int(client.rows.sum()), index) for index, client in enumerate(batches)]
    order = [index for steps, _, index in sorted(work) if steps]
    dealt: list[list[int]] = [[] for _ in range(shards)]
    load = [0] * shards
    for begin in range(0, len(order), clients_at_once):
        group = order[begin : begin + clients_at_once]
        least = load.index(min(load))
        dealt[least] += group
        load[least] += max(int(batches[index].rows.sum()) for index in group)
    return dealt


def _shard(clients: list[Batches], clients_at_once: int, empty: Batches) -> Any:
    if clients_at_once == 1:
        groups = clients
    else:
        filled = clients + [empty] * (-len(clients) % clients_at_once)
        groups = [_stack(filled[i : i + clients_at_once]) for i in range(0, len(filled), clients_at_once)]
    if not groups:
        groups = [empty if clients_at_once == 1 else _stack([empty] * clients_at_once)]
    ends = np.cumsum([len(group.rows) for group in groups], dtype=np.int32)
    joined = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *groups)
    return OrderedDict(examples=joined.examples, rows=joined.rows, ends=ends[ends > 0])


def _stack(group: list[Batches]) -> Batches:
    """[steps, ...] of each user -> [most steps, U, ...]; zeros after a user's last step."""
    steps = max(len(user.rows) for user in group)

    def stacked(*arrays: np.ndarray) -> np.ndarray:
        out = np.zeros((steps, len(arrays), *arrays[0].shape[1:]), arrays[0].dtype)
        for user, array in enumerate(arrays):
            out[: len(array), user] = array
        return out

    joined: Batches = tf.nest.map_structure(stacked, *group)
    return joined


def _empty_batches(task: Task, batch_size: int) -> Batches:
    examples = tf.nest.map_structure(
        lambda spec: np.zeros((0, batch_size, *spec.shape), spec.dtype.as_numpy_dtype), task.example
    )
    return Batches(examples, np.zeros(0, np.int32))


def _no_update(weights: Weights) -> Any:
    """The update of no client, for the form of a contribution."""
    zero = tf.constant(0.0)
    return ClientUpdate({name: tf.zeros_like(value) for name, value in weights.items()}, *[zero] * 5)
