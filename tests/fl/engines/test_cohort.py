"""How clients come into shards; what shards compute is in `test_engines`."""

import numpy as np
import pytest
import tensorflow_federated as tff
from hypothesis import given
from hypothesis import strategies as st

from fl.aggregation import UniformMean
from fl.engines import cohort
from fl.local_training import Batches, LanguageModelling, LocalSGD
from tests.fl import bigram

LOCAL = LocalSGD(0.1, 4, 1, 5, 64)


def batches(counts: list[int]) -> list[Batches]:
    return [LOCAL.batches(np.full((count, 6), 1 + i % 6, np.int32), 0, i) for i, count in enumerate(counts)]


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 4), st.integers(1, 5))
def test_every_client_with_data_is_dealt_once_and_shards_are_balanced(counts, shards, at_once):
    clients = batches(counts)
    dealt = cohort.deal(clients, shards, at_once)
    assert len(dealt) == shards
    assert sorted(sum(dealt, [])) == [i for i, count in enumerate(counts) if count]
    load = [
        sum(max(counts[i] for i in shard[g : g + at_once]) for g in range(0, len(shard), at_once)) for shard in dealt
    ]
    assert max(load) - min(load) <= max(counts, default=0)
    assert dealt == cohort.deal(clients, shards, at_once)


def test_like_lengths_stand_together():
    dealt = cohort.deal(batches([1, 40, 2, 39, 3, 38]), 1, 3)
    assert [sorted(dealt[0][:3]), sorted(dealt[0][3:])] == [[1, 3, 5], [0, 2, 4]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shards": 0}, "shards is 0"),
        ({"users_at_once": 0}, "users_at_once is 0"),
        ({"users_at_once": 2}, "no user axis"),
    ],
)
def test_errors(settings, message):
    task = LanguageModelling(bigram.token_losses, 5)
    optimizer = tff.learning.optimizers.build_sgdm(1.0)
    with pytest.raises(ValueError, match=message):
        cohort.build(task, bigram.initial_weights(), LOCAL, UniformMean(), optimizer, **settings)
