import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.local_training import LocalSGD, client_update
from tests.fl import bigram
from tests.oracles import fedavg

LENGTH = 5


@given(
    st.integers(0, 12),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 8),
    st.integers(0, 99),
    st.integers(0, 99),
)
def test_batches_hold_each_chosen_sequence_once_an_epoch(rows, batch_size, epochs, most, seed, client):
    local = LocalSGD(0.1, batch_size, epochs, LENGTH, most)
    sequences = np.arange(1, rows * (LENGTH + 1) + 1, dtype=np.int32).reshape(rows, LENGTH + 1)
    batches = local.batches(sequences, seed, client)
    chosen = min(rows, most)
    assert batches.shape == (epochs * -(-chosen // batch_size), batch_size, LENGTH + 1)
    per_epoch = batches.reshape(epochs, -1, LENGTH + 1)
    for epoch in per_epoch:
        real = [tuple(row) for row in epoch if row.any()]
        assert len(set(real)) == len(real) == chosen
        assert set(real) == {tuple(row) for row in per_epoch[0] if row.any()}
        assert set(real) <= {tuple(row) for row in sequences}
    np.testing.assert_array_equal(batches, local.batches(sequences, seed, client))


def test_a_clients_batches_depend_on_round_and_client():
    local = LocalSGD(0.1, 4, 1, LENGTH, 8)
    sequences = bigram.random_sequences(np.random.default_rng(0), 30, LENGTH)
    first = local.batches(sequences, 1, 2)
    assert not np.array_equal(first, local.batches(sequences, 2, 2))
    assert not np.array_equal(first, local.batches(sequences, 1, 3))


def test_every_sequence_is_chosen_equally_often():
    # 3,000 draws of 8 of 30: each row's count is binomial(3000, 8/30), sd 24; beyond 5.5 sd with probability < 1e-5.
    local = LocalSGD(0.1, 8, 1, LENGTH, 8)
    sequences = np.repeat(np.arange(1, 31, dtype=np.int32)[:, None], LENGTH + 1, 1)
    counts = sum(np.bincount(local.batches(sequences, r, 0)[:, :, 0].ravel(), minlength=31)[1:] for r in range(3000))
    assert np.max(np.abs(counts - 800)) < 5.5 * np.sqrt(3000 * 8 / 30 * 22 / 30)


@pytest.mark.parametrize(("rows", "epochs"), [(0, 1), (1, 1), (7, 1), (7, 3)])
def test_client_update_equals_the_plain_loop(rows, epochs):
    local = LocalSGD(0.7, 3, epochs, LENGTH, 64)
    batches = local.batches(bigram.random_sequences(np.random.default_rng(rows), rows, LENGTH), 1, 1)
    weights = bigram.initial_weights()
    update = client_update(bigram.token_losses, weights, batches, 0.7)
    want = fedavg.client_delta(weights["table"].astype(np.float64), batches, 0.7)
    np.testing.assert_allclose(update.delta["table"], want, atol=2e-6)
    assert float(update.examples) == epochs * rows == fedavg.examples(batches)
    assert float(update.tokens) == np.count_nonzero(batches[:, :, 1:])


def test_loss_is_taken_before_each_step():
    local = LocalSGD(0.7, 2, 1, LENGTH, 64)
    batches = local.batches(bigram.random_sequences(np.random.default_rng(5), 5, LENGTH), 1, 1)
    table = bigram.initial_weights()["table"].astype(np.float64)
    want = 0.0
    for batch in batches:
        want += (fedavg.losses(table, batch) * (batch[:, 1:] != 0)).sum()
        table = fedavg.sgd_step(table, batch, 0.7)
    update = client_update(bigram.token_losses, bigram.initial_weights(), batches, 0.7)
    assert float(update.loss) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": 1.0, "batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 1.0, "epochs": -1}, "epochs is -1"),
        ({"learning_rate": 1.0, "sequence_length": 0}, "sequence_length is 0"),
        ({"learning_rate": 1.0, "max_sequences": 0}, "max_sequences is 0"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        LocalSGD(**settings)
