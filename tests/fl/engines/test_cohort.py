"""Tests how clients are assigned to shards; `test_engines` tests what shards compute."""

import tensorflow_federated as tff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.aggregation import UniformMean
from fl.engines import cohort
from fl.engines.averaging import Engine
from fl.local_training import Batches, LanguageModelling, LocalSGD
from tests.fl import bigram

LOCAL = LocalSGD(0.1, 4, 1, 5, 64)


def batches(counts: list[int]) -> list[Batches]:
    return [LOCAL.batches(np.full((count, 6), 1 + i % 6, np.int32), 0, i) for i, count in enumerate(counts)]


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 4), st.integers(1, 5))
def test_deal_assigns_each_client_once_and_balances_shards(counts, shards, at_once):
    clients = batches(counts)
    dealt = cohort.deal(clients, shards, at_once)
    assert len(dealt) == shards
    assert sorted(sum(dealt, [])) == [i for i, count in enumerate(counts) if count]
    load = [
        sum(max(counts[i] for i in shard[g : g + at_once]) for g in range(0, len(shard), at_once)) for shard in dealt
    ]
    assert max(load) - min(load) <= max(counts, default=0)
    assert dealt == cohort.deal(clients, shards, at_once)


def test_deal_groups_clients_of_similar_length():
    dealt = cohort.deal(batches([1, 40, 2, 39, 3, 38]), 1, 3)
    assert [sorted(dealt[0][:3]), sorted(dealt[0][3:])] == [[1, 3, 5], [0, 2, 4]]


def build(**changes) -> Engine:
    arguments = {
        "task": LanguageModelling(bigram.token_losses, 5),
        "initial_weights": bigram.initial_weights(),
        "local": LOCAL,
        "aggregator": UniformMean(),
        "server_optimizer": tff.learning.optimizers.build_sgdm(1.0),
    }
    return cohort.build(**(arguments | changes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shards": 0}, "shards must be an integer of at least 1, got 0"),
        ({"clients_at_once": 0}, "clients_at_once must be an integer of at least 1, got 0"),
        ({"clients_at_once": 1.5}, "clients_at_once must be .*, got 1.5"),
        ({"clients_at_once": "8"}, "clients_at_once must be .*, got '8'"),
        ({"clients_at_once": 2}, "takes no leading client axis"),
        ({"average_decay": 1.0}, "average_decay is 1.0"),
        ({"initial_weights": {"table": np.zeros(3)}}, "initial weight table is float64: give a float32 array"),
        ({"initial_weights": {"table": [0.0]}}, "initial weight table is <class 'list'>: give a float32 array"),
    ],
)
def test_build_refuses_invalid_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize("clients_at_once", [1, 3])
def test_client_values_refuses_batches_of_other_shape_or_dtype(clients_at_once):
    engine = build(task=LanguageModelling(bigram.token_losses, 5, stacks=True), clients_at_once=clients_at_once)
    examples, rows = np.ones((2, 4, 6), np.int32), np.full(2, 4, np.int32)
    assert len(engine.client_values([Batches(examples, rows)])) == 2
    for batches, message in (
        (Batches(examples.astype(np.int64), rows), r"are int64 \[2, 4, 6\] .* need int32 \[2, 4, 6\]"),
        (Batches(np.ones((2, 4, 9), np.int32), rows), r"are int32 \[2, 4, 9\] .* need int32 \[2, 4, 6\]"),
        (Batches(examples[:, :3], rows), r"are int32 \[2, 3, 6\] .*the same LocalSGD"),
        (Batches(examples[:1], rows), r"are int32 \[1, 4, 6\] .* need int32 \[2, 4, 6\]"),
        (Batches((examples, examples), rows), r"are int32 .*, int32 .* need int32 \[2, 4, 6\]"),
        (Batches(examples, rows + 1), r"rows are \[5 5\]: give int32 from 1 to the batch size, 4"),
        (Batches(examples, rows.astype(np.int64)), "rows are .*: give int32 from 1"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.client_values([batches])
