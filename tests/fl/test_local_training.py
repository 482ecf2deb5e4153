import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from fl.local_training import Batches, LanguageModelling, LocalSGD, client_update
from tests.fl import bigram
from tests.oracles import fedavg

pytestmark = pytest.mark.numerical

LENGTH = 5
TASK = LanguageModelling(bigram.token_losses, LENGTH)


@given(
    st.integers(0, 12),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 8),
    st.integers(0, 99),
    st.integers(0, 99),
)
def test_batches_hold_each_chosen_sequence_once_per_epoch(rows, batch_size, epochs, limit, seed, client):
    local = LocalSGD(0.1, batch_size, epochs, LENGTH, limit)
    sequences = np.arange(1, rows * (LENGTH + 1) + 1, dtype=np.int32).reshape(rows, LENGTH + 1)
    batches, real_rows = local.batches(sequences, seed, client)
    chosen = min(rows, limit)
    np.testing.assert_array_equal(real_rows, batches.any(-1).sum(-1))
    assert batches.shape == (epochs * -(-chosen // batch_size), batch_size, LENGTH + 1)
    per_epoch = batches.reshape(epochs, -1, LENGTH + 1)
    for epoch in per_epoch:
        real = [tuple(row) for row in epoch if row.any()]
        assert len(set(real)) == len(real) == chosen
        assert set(real) == {tuple(row) for row in per_epoch[0] if row.any()}
        assert set(real) <= {tuple(row) for row in sequences}
    np.testing.assert_array_equal(batches, local.batches(sequences, seed, client).examples)


def test_batches_depend_on_round_and_client():
    local = LocalSGD(0.1, 4, 1, LENGTH, 8)
    sequences = bigram.random_sequences(np.random.default_rng(0), 30, LENGTH)
    first = local.batches(sequences, 1, 2).examples
    assert not np.array_equal(first, local.batches(sequences, 2, 2).examples)
    of_each = {local.batches(sequences, 1, client).examples.tobytes() for client in range(2000)}
    assert len(of_each) == 2000  # among 30! orders none repeats


def test_batches_use_random_streams_that_do_not_overlap(monkeypatch):
    """Philox counts up from its start counter, lowest word first, so the clients' start counters must be far apart."""
    starts, philox = [], np.random.Philox

    def recorded(key, counter):
        starts.append(sum(word << (64 * place) for place, word in enumerate(counter)))
        return philox(key=key, counter=counter)

    monkeypatch.setattr(np.random, "Philox", recorded)
    for client in range(100):
        LocalSGD(0.1, 4, 1, LENGTH, 8).batches(np.ones((3, LENGTH + 1), np.int32), 1, client)
    assert min(np.diff(sorted(starts))) >= 2**64


def test_batches_shuffle_each_epoch_anew():
    local = LocalSGD(0.1, 4, 3, LENGTH, 30)
    epochs = local.batches(bigram.random_sequences(np.random.default_rng(0), 30, LENGTH), 1, 2).examples
    assert len({epoch.tobytes() for epoch in epochs.reshape(3, -1)}) == 3


def test_batches_choose_sequences_uniformly():
    # In 3,000 draws of 8 of 30 rows, each row's count is binomial(3000, 8/30) with a standard deviation of 24; one of
    # them is beyond 5.5 standard deviations with a probability below 1e-5.
    local = LocalSGD(0.1, 8, 1, LENGTH, 8)
    sequences = np.repeat(np.arange(1, 31, dtype=np.int32)[:, None], LENGTH + 1, 1)
    drawn = (local.batches(sequences, r, 0).examples[:, :, 0].ravel() for r in range(3000))
    counts = sum(np.bincount(rows, minlength=31)[1:] for rows in drawn)
    assert np.max(np.abs(counts - 800)) < 5.5 * np.sqrt(3000 * 8 / 30 * 22 / 30)


@pytest.mark.parametrize(("rows", "epochs"), [(0, 1), (1, 1), (7, 1), (7, 3)])
def test_client_update_equals_numpy_loop(rows, epochs):
    local = LocalSGD(0.7, 3, epochs, LENGTH, 64)
    batches = local.batches(bigram.random_sequences(np.random.default_rng(rows), rows, LENGTH), 1, 1)
    weights = bigram.initial_weights()
    update = client_update(TASK, weights, batches, LocalSGD(0.7))
    want = fedavg.client_delta(weights["table"].astype(np.float64), batches.examples, 0.7)
    within = bigram.table_rounding(len(batches.rows), 0.7, 3 * LENGTH)
    np.testing.assert_allclose(update.delta["table"], want, atol=within)
    assert float(update.examples) == epochs * rows == fedavg.examples(batches.examples)
    assert float(update.tokens) == np.count_nonzero(batches.examples[:, :, 1:])


@pytest.mark.parametrize(
    "options",
    [
        {"proximal": 0.4},
        {"weight_decay": 0.3},
        {"proximal": 0.4, "weight_decay": 0.3},
        {"optimizer": "adam"},
        {"optimizer": "adam", "proximal": 0.4, "weight_decay": 0.3},
    ],
    ids=str,
)
def test_penalties_and_adam_equal_a_numpy_loop(options):
    """Also for clients trained together, and for clients that follow each other in a shard."""
    local = LocalSGD(0.05, 3, 2, LENGTH, 64, **options)
    generator = np.random.default_rng(2)
    clients = [local.batches(bigram.random_sequences(generator, n, LENGTH), 1, i) for i, n in enumerate((7, 2, 11))]
    weights = bigram.initial_weights()
    exact = weights["table"].astype(np.float64)
    want = [fedavg.client_delta(exact, client.examples, 0.05, **options) for client in clients]
    steps = max(len(client.rows) for client in clients)
    stacked = Batches(
        np.stack([np.pad(u.examples, ((0, steps - len(u.rows)), (0, 0), (0, 0))) for u in clients], 1),
        np.stack([np.pad(u.rows, (0, steps - len(u.rows))) for u in clients], 1),
    )
    together = client_update(TASK, weights, stacked, local).delta["table"]
    joined = Batches(*(np.concatenate(parts) for parts in zip(*clients, strict=True)))
    ends = np.cumsum([0, *(len(client.rows) for client in clients)])
    # Adam's step has the size of the learning rate whatever the gradient, so that rounding of a small one counts fully.
    within = 1e-4 if "optimizer" in options else 1e-6
    for index, expected in enumerate(want):
        assert np.abs(expected).max() > 0.01
        alone = client_update(TASK, weights, joined, local, (ends[index], ends[index + 1])).delta["table"]
        np.testing.assert_allclose(alone, expected, atol=within)
        np.testing.assert_allclose(together[index], expected, atol=within)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proximal": -1.0}, "proximal must be a finite number of at least 0, got -1"),
        ({"weight_decay": float("nan")}, "weight_decay must be a finite number of at least 0, got nan"),
        ({"optimizer": "adagrad"}, "optimizer is 'adagrad': choose sgd or adam"),
    ],
)
def test_penalties_and_optimizers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LocalSGD(0.1, **options)


def test_client_update_takes_loss_before_each_step():
    local = LocalSGD(0.7, 2, 1, LENGTH, 64)
    batches = local.batches(bigram.random_sequences(np.random.default_rng(5), 5, LENGTH), 1, 1)
    table = bigram.initial_weights()["table"].astype(np.float64)
    want = 0.0
    for batch in batches.examples:
        want += (fedavg.losses(table, batch) * (batch[:, 1:] != 0)).sum()
        table = fedavg.sgd_step(table, batch, 0.7)
    update = client_update(TASK, bigram.initial_weights(), batches, LocalSGD(0.7))
    within = bigram.loss_rounding(5 * LENGTH, bigram.table_rounding(len(batches.rows), 0.7, 2 * LENGTH))
    assert float(update.loss) == pytest.approx(want, abs=within)


@pytest.mark.parametrize("rows", [[4, 1, 7], [3, 3, 3], [0, 5, 2]])
def test_client_update_of_stacked_clients_equals_single_clients(rows):
    local = LocalSGD(0.7, 3, 2, LENGTH, 64)
    generator = np.random.default_rng(1)
    clients = [local.batches(bigram.random_sequences(generator, n, LENGTH), 1, i) for i, n in enumerate(rows)]
    steps = max(len(client.rows) for client in clients)
    stacked = Batches(
        np.stack([np.pad(u.examples, ((0, steps - len(u.rows)), (0, 0), (0, 0))) for u in clients], 1),
        np.stack([np.pad(u.rows, (0, steps - len(u.rows))) for u in clients], 1),
    )
    together = client_update(TASK, bigram.initial_weights(), stacked, LocalSGD(0.7))
    within = bigram.table_rounding(steps, 0.7, 3 * LENGTH)
    for index, client in enumerate(clients):
        alone = client_update(TASK, bigram.initial_weights(), client, LocalSGD(0.7))
        np.testing.assert_allclose(together.delta["table"][index], alone.delta["table"], atol=within)
        of_loss = bigram.loss_rounding(2 * rows[index] * LENGTH, within)
        for name, atol in (("examples", 0), ("tokens", 0), ("loss", of_loss)):
            assert abs(float(getattr(together, name)[index]) - float(getattr(alone, name))) <= atol


class NanOnPadding(LanguageModelling):
    """Gives NaN on padding, as a model whose weights have diverged may do."""

    def loss(self, weights, batch, rows):
        plain = super().loss(weights, batch, rows)
        padded = tf.equal(batch[..., 0, 0], 0)
        nan_or_zero = tf.where(padded, float("nan"), 0.0) * tf.reduce_sum(weights["table"], [-2, -1])
        return plain._replace(total=plain.total + nan_or_zero)


def test_client_update_does_not_depend_on_steps_of_other_clients():
    task = NanOnPadding(bigram.token_losses, LENGTH)
    local, generator = LocalSGD(0.7, 3, 1, LENGTH, 64), np.random.default_rng(1)
    short, long = (local.batches(bigram.random_sequences(generator, rows, LENGTH), 1, rows) for rows in (3, 9))
    stacked = Batches(
        np.stack([np.pad(short.examples, ((0, 2), (0, 0), (0, 0))), long.examples], 1),
        np.stack([np.pad(short.rows, (0, 2)), long.rows], 1),
    )
    together = client_update(task, bigram.initial_weights(), stacked, LocalSGD(0.7))
    within = bigram.table_rounding(len(long.rows), 0.7, 3 * LENGTH)
    for index, client in enumerate((short, long)):
        alone = client_update(task, bigram.initial_weights(), client, LocalSGD(0.7))
        np.testing.assert_allclose(together.delta["table"][index], alone.delta["table"], atol=within)
        of_loss = bigram.loss_rounding(client.rows.sum() * LENGTH, within)
        assert float(together.loss[index]) == pytest.approx(float(alone.loss), abs=of_loss)


def lines(generator, lengths):
    """Returns sequences of the given numbers of tokens, filled up with padding."""
    rows = bigram.random_sequences(generator, len(lengths), LENGTH)
    return np.where(np.arange(LENGTH + 1) <= np.reshape(lengths, (-1, 1)), rows, 0).astype(np.int32)


def nan_on_padding(weights, tokens):
    """Returns NaN or infinite losses if the input is padding."""
    return bigram.token_losses(weights, tokens) * tf.exp(1e4 * tf.cast(tf.equal(tokens[..., :-1], 0), tf.float32))


def test_client_update_does_not_depend_on_line_lengths_of_other_clients():
    """If stacked batches were cut to the longest line of all, a client's padding would depend on the others' lines."""
    task = LanguageModelling(nan_on_padding, LENGTH, stacks=True, lengths=(2,))
    generator = np.random.default_rng(8)
    short, long = (lines(generator, [length, length]) for length in (2, LENGTH))

    def update(*clients):
        return client_update(
            task,
            bigram.initial_weights(),
            Batches(np.stack(clients)[np.newaxis], np.full((1, len(clients)), 2, np.int32)),
            LocalSGD(0.7),
        ).delta["table"][0]

    np.testing.assert_array_equal(update(short, short), update(short, long))


@pytest.mark.parametrize("clients", [1, 3])
def test_client_update_with_cut_batches_equals_whole_batches(clients):
    generator, local = np.random.default_rng(6), LocalSGD(0.7, 2, 1, LENGTH, 64)
    clients = [local.batches(lines(generator, generator.integers(1, LENGTH + 1, 8)), 1, i) for i in range(clients)]
    batches = clients[0] if clients == 1 else Batches(*(np.stack(parts, 1) for parts in zip(*clients, strict=True)))
    cut = LanguageModelling(bigram.token_losses, LENGTH, stacks=True, lengths=(1, 2, 4))
    whole, shorter = (client_update(task, bigram.initial_weights(), batches, LocalSGD(0.7)) for task in (TASK, cut))
    # Four steps on two rows each; the loss, the coarsest of what is compared, is over all their tokens.
    of_table = bigram.table_rounding(4, 0.7, 2 * LENGTH)
    np.testing.assert_allclose(whole.delta["table"], shorter.delta["table"], atol=of_table)
    of_loss = bigram.loss_rounding(8 * LENGTH, of_table)
    for name in set(whole._fields) - {"delta"}:
        np.testing.assert_allclose(
            getattr(whole, name), getattr(shorter, name), rtol=0, atol=of_loss * (name == "loss")
        )


@pytest.mark.parametrize(
    ("longest", "which"), [([0, 0], 0), ([1, 0], 0), ([2, 1], 0), ([3, 1], 1), ([4, 4], 1), ([5, 1], 2)]
)
def test_forms_cut_batch_to_shortest_sufficient_length(longest, which):
    cut = LanguageModelling(bigram.token_losses, LENGTH, lengths=(2, 4))
    chosen, forms = cut.forms(tf.constant(lines(np.random.default_rng(7), longest)))
    assert int(chosen) == which
    assert [form.shape[-1] for form in forms] == [3, 5, 6]


@pytest.mark.parametrize("lengths", [(0, 2), (2, 5), (3, 2), (2, 2), (-1,)])
def test_language_modelling_refuses_lengths_out_of_order_or_range(lengths):
    with pytest.raises(ValueError, match=r"lengths is .* give increasing integers from 1 to below sequence_length, 5"):
        LanguageModelling(bigram.token_losses, LENGTH, lengths=lengths)


def test_client_update_trains_only_given_steps():
    local = LocalSGD(0.7, 2, 1, LENGTH, 64)
    batches = local.batches(bigram.random_sequences(np.random.default_rng(5), 9, LENGTH), 1, 1)
    part = client_update(TASK, bigram.initial_weights(), batches, LocalSGD(0.7), steps=(1, 4))
    alone = client_update(
        TASK, bigram.initial_weights(), Batches(batches.examples[1:4], batches.rows[1:4]), LocalSGD(0.7)
    )
    np.testing.assert_array_equal(part.delta["table"], alone.delta["table"])


def test_batches_shuffle_tuple_of_arrays_together():
    local = LocalSGD(0.1, 4, 2, LENGTH, 6)
    x, y = np.arange(1, 10, dtype=np.float32)[:, None] * np.ones([1, 3], np.float32), np.arange(1, 10, dtype=np.int32)
    (bx, by), rows = local.batches((x, y), 1, 2)
    assert bx.shape == (4, 4, 3) and by.shape == (4, 4) and rows.tolist() == [4, 2, 4, 2]
    np.testing.assert_array_equal(bx[..., 0], by)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": float("nan")}, "learning_rate must be .*, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be .*, got inf"),
        ({"learning_rate": 0.0}, "learning_rate must be .*, got 0.0"),
        ({"learning_rate": 1.0, "batch_size": 0}, "batch_size must be .*, got 0"),
        ({"learning_rate": 1.0, "epochs": -1}, "epochs must be .*, got -1"),
        ({"learning_rate": 1.0, "sequence_length": 0}, "sequence_length must be .*, got 0"),
        ({"learning_rate": 1.0, "max_sequences": 0}, "max_sequences must be .*, got 0"),
    ],
)
def test_local_sgd_refuses_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        LocalSGD(**settings)


def test_client_update_ignores_nan_on_own_padding():
    """Uses losses that are NaN on rows of padding only, and a stacked client with more rows."""

    def token_losses(weights, tokens):
        blank = tf.cast(tf.reduce_all(tf.equal(tokens, 0), -1, keepdims=True), tf.float32)
        return bigram.token_losses(weights, tokens) * tf.exp(1e4 * blank)

    task = LanguageModelling(token_losses, LENGTH)
    local = LocalSGD(0.7, 4, 1, LENGTH, 64)
    generator = np.random.default_rng(1)
    short, long = (local.batches(bigram.random_sequences(generator, n, LENGTH), 1, n) for n in (2, 4))
    stacked = Batches(np.stack([short.examples, long.examples], 1), np.stack([short.rows, long.rows], 1))
    together = client_update(task, bigram.initial_weights(), stacked, LocalSGD(0.7))
    alone = client_update(task, bigram.initial_weights(), short, LocalSGD(0.7))
    within = bigram.table_rounding(1, 0.7, 4 * LENGTH)
    np.testing.assert_allclose(together.delta["table"][0], alone.delta["table"], atol=within)
    assert float(together.loss[0]) == pytest.approx(float(alone.loss), abs=bigram.loss_rounding(2 * LENGTH))
