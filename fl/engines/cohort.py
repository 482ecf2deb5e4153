"""Builds the cohort engine, in which one TFF client value is a *shard*: many clients, each treated alone.

A shard trains its clients one after another, or `clients_at_once` of them stacked on a leading client axis. Stacking is
faster if the dispatch of small operations limits a client's step, and slower if the matrix products do;
`fl.engines.calibration` measures which. A shard returns the sum of its clients' contributions, each clipped, zeroed and
counted alone, so that the result is that of `fl.engines.per_client`. The number of shards is fixed, and a shard may
hold any number of clients. So any cohort, even an empty one, takes one call of one computation that was traced once.
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
    """Builds federated averaging with SGD clients, many clients to one TFF client value.

    A client value is <examples, rows, ends>. The examples are the batches of the shard's groups of U clients, one group
    after another, [S, U, B, ...], and the rows are int32 [S, U]; both lack the axis U if `clients_at_once` is 1. The
    ends are the positions on the axis S at which the groups end, int32 [groups].

    Args:
      task: the learning task.
      initial_weights: named float32 arrays.
      local: settings of local training.
      aggregator: an aggregator of `fl.aggregation`.
      server_optimizer: an optimizer of `tff.learning.optimizers`, for which minus the mean update is the gradient.
      average_decay: decay of the running average, see `fl.engines.averaging.build`.
      shards: number of client values in a round, >= 1. They run at the same time, so use the number of cores of all
        workers.
      clients_at_once: U, the number of a shard's clients that are trained together, >= 1; 1: one after another.

    Returns:
      The engine.

    Raises:
      ValueError: a number is out of range; clients_at_once is above 1 although the task does not stack or the noise is
        exact; or the task does not measure the accuracy that the aggregator needs.
    """
    for name, value in (("shards", shards), ("clients_at_once", clients_at_once)):
        checks.whole(name, value, 1, "choose an integer")
    averaging.check_accuracy(task, aggregator)
    if clients_at_once > 1 and isinstance(aggregator, ExactDPMean):
        raise ValueError(
            f"clients_at_once is {clients_at_once} with exact noise: use 1, because the last bits of a client's update "
            "depend on which clients it is trained together with"
        )
    if clients_at_once > 1 and not task.stacks:
        raise ValueError(f"clients_at_once is {clients_at_once}, but this task takes no leading client axis: use 1")

    def client_work(weights: Weights, state: dict[str, Any], shard: Any) -> Contribution:
        batches, ends = Batches(shard["examples"], shard["rows"]), shard["ends"]

        def train(first: Any, end: Any) -> list[Any]:
            update = client_update(task, weights, batches, local, (first, end))
            return tf.nest.flatten(aggregator.client(state, update))

        def group(index: Any, first: Any, *total: Any) -> tuple[Any, ...]:
            sums = [sum_ + part for sum_, part in zip(total, train(first, ends[index]), strict=True)]
            return (index + 1, ends[index], *sums)

        structure = aggregator.client(state, _make_empty_update(weights))
        zeros = [tf.zeros(part.shape, part.dtype) for part in tf.nest.flatten(structure)]
        _, _, *total = tf.while_loop(
            lambda index, *_: index < tf.size(ends),
            group,
            [tf.constant(0), tf.constant(0), *zeros],
            parallel_iterations=1,
        )
        contribution: Contribution = tf.nest.pack_sequence_as(structure, total)
        return contribution

    client_axis = () if clients_at_once == 1 else (clients_at_once,)
    batches_type = averaging.batches_type(task, local.batch_size, client_axis)
    value_type = tff.types.to_type(
        OrderedDict(
            examples=batches_type["examples"], rows=batches_type["rows"], ends=tff.TensorType(np.int32, (None,))
        )
    )
    empty = _make_empty_batches(task, local.batch_size)

    def client_values(batches: Sequence[Batches]) -> list[Any]:
        for client in batches:
            _check_batches(client, task, local.batch_size)
        dealt = deal(batches, shards, clients_at_once)
        return [_build_shard([batches[i] for i in indices], clients_at_once, empty) for indices in dealt]

    return averaging.build(
        client_work, value_type, client_values, initial_weights, aggregator, server_optimizer, average_decay
    )


def _check_batches(client: Batches, task: Task, batch_size: int) -> None:
    """Raises ValueError if a client's batches do not hold examples of the task's shapes and dtypes."""
    steps = len(client.rows)
    expected = [(spec.dtype.as_numpy_dtype, (steps, batch_size, *spec.shape)) for spec in tf.nest.flatten(task.example)]
    actual = [(array.dtype, array.shape) for array in tf.nest.flatten(client.examples)]
    if [(np.dtype(dtype), shape) for dtype, shape in expected] != actual:
        raise ValueError(
            f"client batches are {_describe(actual)} but the task's examples need {_describe(expected)}: build them "
            "with the same LocalSGD, from arrays of the task's type"
        )
    if client.rows.dtype != np.int32 or not ((client.rows >= 1) & (client.rows <= batch_size)).all():
        raise ValueError(f"client rows are {client.rows}: give int32 from 1 to the batch size, {batch_size}")


def _describe(arrays: Sequence[tuple[Any, Any]]) -> str:
    return ", ".join(f"{np.dtype(dtype).name} {list(shape)}" for dtype, shape in arrays)


def deal(batches: Sequence[Batches], shards: int, clients_at_once: int) -> list[list[int]]:
    """Divides the clients, given by their positions in `batches`, among the shards.

    Clients of similar length form groups of `clients_at_once`. The groups are assigned in order of length, the longest
    first, each to the shard with the least work so far. Clients without a step are left out: they contribute nothing.

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


def _build_shard(clients: list[Batches], clients_at_once: int, empty: Batches) -> Any:
    """Joins the clients' batches to one TFF client value; see `build`."""
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
    """Stacks each client's [steps, ...] to [longest steps, U, ...], with zeros after a client's last step."""
    steps = max(len(client.rows) for client in group)

    def stack_arrays(*arrays: np.ndarray) -> np.ndarray:
        out = np.zeros((steps, len(arrays), *arrays[0].shape[1:]), arrays[0].dtype)
        for client, array in enumerate(arrays):
            out[: len(array), client] = array
        return out

    stacked: Batches = tf.nest.map_structure(stack_arrays, *group)
    return stacked


def _make_empty_batches(task: Task, batch_size: int) -> Batches:
    examples = tf.nest.map_structure(
        lambda spec: np.zeros((0, batch_size, *spec.shape), spec.dtype.as_numpy_dtype), task.example
    )
    return Batches(examples, np.zeros(0, np.int32))


def _make_empty_update(weights: Weights) -> Any:
    """Returns an update of zeros, from which the engine learns the structure of an aggregator's contribution."""
    zero = tf.constant(0.0)
    return ClientUpdate({name: tf.zeros_like(value) for name, value in weights.items()}, *[zero] * 5)
