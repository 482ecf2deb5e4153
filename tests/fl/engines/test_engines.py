"""Compares every engine with the NumPy loops of `tests.oracles.fedavg` and with stock `tff.learning`."""

import dataclasses
from collections import OrderedDict
from functools import partial

import tensorflow_federated as tff
import numpy as np
import pytest
import tensorflow as tf

from fl.aggregation import DPMean, ExampleWeightedMean, UniformMean
from fl.engines import cohort, per_client
from fl.engines.averaging import Engine
from fl.exact_mean import STEPS, ExactDPMean
from fl.local_training import Batches, LanguageModelling, LocalSGD, client_update
from privacy.keys import RunKeys
from privacy.plan import FixedClip, PrivacyPlan, PrivateMetrics
from privacy.sampling import Poisson
from tests.fl import bigram
from tests.oracles import fedavg
from tests.tolerance import FUNCTION, rounding

LOCAL = LocalSGD(learning_rate=0.8, batch_size=3, epochs=2, sequence_length=5, max_sequences=8)
NOISE_SEED = np.array([1, 2], np.int64)
PLAN = PrivacyPlan(Poisson(0.5), 12, 5, 0.0, FixedClip(0.7))

TASK = LanguageModelling(bigram.token_losses, 5, stacks=True)
ENGINES = {
    "per client": per_client.build,
    "one after another": partial(cohort.build, shards=2),
    "three at once": partial(cohort.build, shards=2, clients_at_once=3),
    "all in one": partial(cohort.build, shards=1, clients_at_once=8),
}

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture(params=ENGINES)
def build(request):
    return ENGINES[request.param]


def cohorts(rounds: int = 3) -> list[list[Batches]]:
    generator = np.random.default_rng(11)
    sizes = [[4, 1, 7], [9, 3, 2, 5], [1], [6, 6]][:rounds]
    return [
        [LOCAL.batches(bigram.random_sequences(generator, rows, 5), r, i) for i, rows in enumerate(counts)]
        for r, counts in enumerate(sizes)
    ]


def make(build, aggregator, optimizer=None) -> Engine:
    optimizer = optimizer or tff.learning.optimizers.build_sgdm(0.9, 0.5)
    return build(TASK, bigram.initial_weights(), LOCAL, aggregator, optimizer)


def train(engine, rounds):
    state = engine.process.initialize()
    measured = None
    for clients in rounds:
        state, measured = engine.process.next(state, engine.client_values(clients), NOISE_SEED)
    return state, measured


def rounds_rounding(rounds: int) -> float:
    """Largest difference of the table after rounds of `cohorts` between two ways to compute them.

    A client adds the rounding of 6 steps on 3 sequences, of the norm of 49 entries and of the clip by it. The server's
    velocity halves from round to round, and a table that is off by e gives an update that is off by at most 2 e.
    """
    client = bigram.table_rounding(6, 0.8, 3 * 5) + rounding(bigram.VOCABULARY**2, 0.7)
    velocity = table = 0.0
    for _ in range(rounds):
        velocity = velocity / 2 + client + 2 * table
        table += 0.9 * velocity + rounding(2, 4.0)
    return table


def arrays(rounds: list[list[Batches]]) -> list[list[np.ndarray]]:
    return [[client.examples for client in clients] for clients in rounds]


@pytest.mark.parametrize(
    ("aggregator", "settings"),
    [
        (UniformMean(), {}),
        (ExampleWeightedMean(), {"weighting": "examples"}),
        (DPMean(PLAN), {"clip": 0.7, "denominator": 6.0}),
    ],
    ids=["uniform", "examples", "clipped"],
)
@pytest.mark.numerical
def test_engine_rounds_equal_numpy_loops(build, aggregator, settings):
    state, _ = train(make(build, aggregator), cohorts())
    table = bigram.initial_weights()["table"].astype(np.float64)
    want = fedavg.rounds(table, arrays(cohorts()), 0.8, 0.9, 0.5, **settings)
    np.testing.assert_allclose(state["weights"]["table"], want, atol=rounds_rounding(3))
    assert np.abs(want - table).max() > 0.1


EXACT = PrivacyPlan(Poisson(0.5), 12, 5, 0.7, FixedClip(0.7), noise="exact")


def test_cohort_engine_refuses_exact_noise_with_stacked_clients():
    with pytest.raises(ValueError, match="clients_at_once is 3 with exact noise: use 1"):
        make(ENGINES["three at once"], ExactDPMean(EXACT))


@pytest.mark.parametrize("build", [ENGINES["per client"], ENGINES["one after another"]])
def test_exact_client_sum_is_sum_of_single_client_integers(build):
    """The order of the clients does not change the sum, either."""
    aggregator, keys = ExactDPMean(EXACT), RunKeys.fixed(1)
    measured = None
    engine = make(build, aggregator)
    state = engine.process.initialize()
    for number, clients in enumerate(cohorts()):
        noise = engine.noise(keys, number)
        assert noise.shape == (bigram.VOCABULARY**2,)
        state, measured = engine.process.next(state, engine.client_values(clients), noise)
        total = engine.client_sum(state["weights"], state["aggregator"], engine.client_values(clients))
        other = engine.client_sum(state["weights"], state["aggregator"], engine.client_values(clients[::-1]))
        np.testing.assert_array_equal(total["update"]["table"], other["update"]["table"])
        if len(clients) > 1:
            parts = [
                engine.client_sum(state["weights"], state["aggregator"], engine.client_values(some))["update"]["table"]
                for some in (clients[:1], clients[1:])
            ]
            np.testing.assert_array_equal(total["update"]["table"], parts[0] + parts[1])
    table = bigram.initial_weights()["table"].astype(np.float64)
    noises = [
        aggregator.noise(keys, number, table.size).reshape(table.shape) * 0.7 / STEPS
        for number in range(len(cohorts()))
    ]
    want = fedavg.rounds(table, arrays(cohorts()), 0.8, 0.9, 0.5, clip=0.7, denominator=6.0, noises=noises)
    np.testing.assert_allclose(state["weights"]["table"], want, atol=rounds_rounding(3))
    assert measured is not None and measured["released"]["noise_stddev"] == pytest.approx(0.49)


class _Bigram(tf.keras.layers.Layer):
    """The bigram model for stock `tff.learning`."""

    def __init__(self):
        super().__init__()
        initial = tf.keras.initializers.Constant(bigram.initial_weights()["table"])
        self.table = self.add_weight(name="table", shape=(bigram.VOCABULARY,) * 2, initializer=initial)

    def call(self, tokens):
        return tf.gather(self.table, tokens)


def stock_model():
    tokens = tf.keras.Input([5], dtype=tf.int32)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    spec = (tf.TensorSpec([None, 5], tf.int32), tf.TensorSpec([None, 5], tf.int32))
    return tff.learning.models.from_keras_model(tf.keras.Model(tokens, _Bigram()(tokens)), loss, spec)


def test_engine_releases_metric_means_over_clients(build):
    metrics = PrivateMetrics(0.1, 5.0)
    aggregator = DPMean(dataclasses.replace(PLAN, noise_multiplier=1e-5, metrics=metrics))
    task = dataclasses.replace(TASK, loss_and_correct=bigram.loss_and_correct)
    still = dataclasses.replace(LOCAL, learning_rate=1e-9)
    engine = build(task, bigram.initial_weights(), still, aggregator, tff.learning.optimizers.build_sgdm(0.1))
    clients = cohorts(1)[0]
    _, measured = engine.process.next(engine.process.initialize(), engine.client_values(clients), NOISE_SEED)
    table = bigram.initial_weights()["table"].astype(np.float64)
    losses, accuracies = [], []
    for client in clients:
        before, after = (client.examples.reshape(-1, 6)[:, part] for part in (slice(0, -1), slice(1, None)))
        real = after != 0
        scores = table[before[real]]
        losses.append(np.mean(np.log(np.exp(scores).sum(-1)) - scores[np.arange(len(scores)), after[real]]))
        accuracies.append(np.mean(scores.argmax(-1) == after[real]))
    released = measured["released"]
    assert released["train_loss"] == pytest.approx(np.mean(losses), abs=1e-3)
    assert released["train_accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-3)
    assert released["train_clients"] == pytest.approx(3, abs=1e-3)


def test_engine_refuses_accuracy_that_task_does_not_measure(build):
    aggregator = DPMean(dataclasses.replace(PLAN, noise_multiplier=1.0, metrics=PrivateMetrics()))
    with pytest.raises(ValueError, match="this task does not measure it"):
        make(build, aggregator)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.numerical
def test_engine_rounds_equal_stock_federated_averaging(build, weighted):
    build_stock = (
        tff.learning.algorithms.build_weighted_fed_avg if weighted else tff.learning.algorithms.build_unweighted_fed_avg
    )
    stock = build_stock(
        stock_model,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.8),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(0.9, 0.5),
    )
    # The batches are full and without padding, because stock Keras losses include padded positions in their mean.
    generator = np.random.default_rng(3)
    rounds = [
        [generator.integers(1, bigram.VOCABULARY, (steps, 3, 6)).astype(np.int32) for steps in clients]
        for clients in ([2, 1, 3], [1, 4])
    ]
    stock_state = stock.initialize()
    for clients in rounds:
        datasets = [tf.data.Dataset.from_tensor_slices((b[:, :, :-1], b[:, :, 1:])) for b in clients]
        stock_state = stock.next(stock_state, datasets).state
    batches = [[Batches(b, np.full(len(b), 3, np.int32)) for b in clients] for clients in rounds]
    ours, _ = train(make(build, ExampleWeightedMean() if weighted else UniformMean()), batches)
    trained = stock.get_model_weights(stock_state).trainable[0]
    np.testing.assert_allclose(ours["weights"]["table"], trained, atol=rounds_rounding(2))
    assert np.abs(trained - bigram.initial_weights()["table"]).max() > 0.1


@pytest.mark.parametrize("name", ["sgdm", "adam", "yogi", "adagrad"])
def test_engine_gives_server_optimizer_minus_mean_update(build, name):
    optimizer = getattr(tff.learning.optimizers, f"build_{name}")(0.1)
    state, _ = train(make(build, UniformMean(), optimizer), cohorts(1))
    plain, _ = train(make(build, UniformMean(), tff.learning.optimizers.build_sgdm(1.0)), cohorts(1))
    start = bigram.initial_weights()["table"]
    gradient = OrderedDict(table=start - plain["weights"]["table"])
    slots = optimizer.initialize(OrderedDict(table=tf.TensorSpec(start.shape, tf.float32)))

    def stepped(off: float) -> np.ndarray:
        """With a gradient that is off by so much, where it is not 0."""
        gradients = OrderedDict(table=gradient["table"] + np.float32(off) * (gradient["table"] != 0))
        return optimizer.next(slots, OrderedDict(table=tf.constant(start)), gradients)[1]["table"].numpy()

    # The gradient is a difference of tables, of the mean of 3 updates; the step is a quotient, a root and a sum.
    off = rounding(3 + 2, 4.0)
    within = max(np.abs(stepped(sign * off) - stepped(0)).max() for sign in (-1, 1)) + rounding(FUNCTION, 4.0)
    np.testing.assert_allclose(state["weights"]["table"], stepped(0), atol=within)


def test_engine_round_without_clients_adds_noise_only(build):
    plan = PrivacyPlan(Poisson(0.5), 12, 5, 2.0, FixedClip(0.7))
    engine = make(build, DPMean(plan), tff.learning.optimizers.build_sgdm(1.0))
    state, measured = train(engine, [[]])
    moved = (state["weights"]["table"] - bigram.initial_weights()["table"]) * 6.0
    # The standard deviation of 49 draws of N(0, 1.4^2) is within 1.4 * (1 +- 4 / sqrt(98)) with probability > 0.9999.
    assert 1.4 * 0.6 < moved.std() < 1.4 * 1.4
    assert measured["operator"]["clients"] == 0 and measured["operator"]["loss"] == 0
    again, _ = train(engine, [[]])
    np.testing.assert_array_equal(state["weights"]["table"], again["weights"]["table"])


def test_engine_ignores_clients_without_data(build):
    empty = LOCAL.batches(np.zeros((0, 6), np.int32), 0, 0)
    alone, seen = train(make(build, UniformMean()), cohorts(2))
    padded, seen_padded = train(make(build, UniformMean()), [clients + [empty] * 3 for clients in cohorts(2)])
    np.testing.assert_array_equal(alone["weights"]["table"], padded["weights"]["table"])
    assert seen["operator"] == seen_padded["operator"]


@dataclasses.dataclass(frozen=True)
class Exploding(LanguageModelling):
    """Multiplies the bigram's loss by a factor for batches that begin with a given token."""

    factors: tuple[tuple[int, float], ...] = ()

    def loss(self, weights, batch, rows):
        plain = super().loss(weights, batch, rows)
        factor = tf.ones_like(plain.total)
        for token, value in self.factors:
            # Inside TFF, == would compare Python objects.
            factor = tf.where(tf.equal(batch[..., 0, 0], token), value, factor)
        return plain._replace(total=factor * plain.total)


@pytest.mark.numerical
def test_engine_sum_changes_by_at_most_clip_norm_without_one_client(build):
    """One client has an update of more than a thousand clip norms, another client one that is NaN."""
    generator = np.random.default_rng(4)
    clients = [
        LOCAL.batches(bigram.random_sequences(generator, rows, 5), 0, i) for i, rows in enumerate([4, 6, 3, 5, 2])
    ]
    huge, bad = (LOCAL.batches(np.full((3, 6), token, np.int32), 0, 9) for token in (1, 2))
    others = [
        Batches(np.where(c.examples > 2, c.examples, 3 * (c.examples > 0)).astype(np.int32), c.rows) for c in clients
    ]
    clients = [others[0], huge, others[1], bad, *others[2:]]
    task = Exploding(bigram.token_losses, 5, stacks=True, factors=((1, 1e4), (2, float("nan"))))
    weights = bigram.initial_weights()
    engine = build(task, weights, LOCAL, DPMean(PLAN), tff.learning.optimizers.build_sgdm(1.0))
    far = client_update(task, weights, huge, LOCAL).delta["table"]
    assert np.linalg.norm(far) > 1000 * 0.7

    def total(clients: list[Batches]) -> np.ndarray:
        state, measured = train(engine, [clients])
        assert measured["released"]["finite"]
        return (state["weights"]["table"] - weights["table"]).astype(np.float64) * 6.0

    everybody = total(clients)
    moved = [np.linalg.norm(everybody - total(clients[:i] + clients[i + 1 :])) for i in range(len(clients))]
    # A sum of 7 that is added to the table and read off it, in each of its entries; of clients trained together each
    # one's update, because one more or less changes their shapes.
    entry = 6.0 * rounding(len(clients) + 2, 4.0)
    if "clients_at_once" in getattr(build, "keywords", {}):
        entry += len(clients) * bigram.table_rounding(6, 0.8, 3 * 5)
    within = bigram.VOCABULARY * entry  # the L2 norm of 49
    assert max(moved) <= 0.7 + within
    assert moved[1] == pytest.approx(0.7, abs=within) and moved[3] < within < 0.01
    _, measured = train(engine, [clients])
    assert measured["operator"]["non_finite"] == 1 and measured["operator"]["clients"] == len(clients)


def test_engine_measures_clients_tokens_examples_and_loss(build):
    _, measured = train(make(build, UniformMean()), cohorts(1))
    batches = cohorts(1)[0]
    assert measured["operator"]["clients"] == 3
    assert measured["operator"]["tokens"] == sum(np.count_nonzero(b.examples[:, :, 1:]) for b in batches)
    assert measured["operator"]["examples"] == sum(fedavg.examples(b.examples) for b in batches)
    assert 0 < measured["operator"]["loss"] < 10
    assert measured["released"]["finite"]


def test_engine_average_is_running_mean_of_weights(build):
    optimizer = tff.learning.optimizers.build_sgdm(0.9, 0.5)
    engine = build(TASK, bigram.initial_weights(), LOCAL, UniformMean(), optimizer, 0.75)
    state = engine.process.initialize()
    want = bigram.initial_weights()["table"]
    for clients in cohorts():
        state, _ = engine.process.next(state, engine.client_values(clients), NOISE_SEED)
        want = 0.75 * want + 0.25 * state["weights"]["table"]
        np.testing.assert_allclose(state["average"]["table"], want, atol=rounding(3 * len(cohorts()), 4.0))
    plain, _ = train(make(build, UniformMean()), cohorts())
    np.testing.assert_array_equal(plain["average"]["table"], plain["weights"]["table"])
    with pytest.raises(ValueError, match="average_decay is 1.0"):
        build(TASK, bigram.initial_weights(), LOCAL, UniformMean(), optimizer, 1.0)


def test_engine_repeats_round_to_the_bit(build):
    plan = PrivacyPlan(Poisson(0.5), 12, 5, 1.0, FixedClip(0.7))
    engine = make(build, DPMean(plan))
    many = [cohorts(2)[0] * 8]
    first, _ = train(engine, many)
    for _ in range(3):
        np.testing.assert_array_equal(first["weights"]["table"], train(engine, many)[0]["weights"]["table"])


@pytest.mark.numerical
def test_engine_client_sum_and_server_step_make_round(build):
    engine = make(build, DPMean(PrivacyPlan(Poisson(0.5), 12, 5, 1.0, FixedClip(0.7))))
    state = engine.process.initialize()
    whole, _ = engine.process.next(state, engine.client_values(cohorts(1)[0]), NOISE_SEED)
    values = engine.client_values(cohorts(1)[0])
    totals = [engine.client_sum(state["weights"], state["aggregator"], [value]) for value in values]
    total = tf.nest.map_structure(lambda first, *rest: sum(rest, first), *totals)
    halves, _ = engine.server_step(state, total, NOISE_SEED)
    # A sum of three clients and the noise, and its addition to the table.
    np.testing.assert_allclose(halves["weights"]["table"], whole["weights"]["table"], atol=rounding(3 + 4, 4.0))


@pytest.mark.parametrize(("at_once", "padding"), [(1, 0.0), (4, 1 - 24 / 36)])
def test_cohort_engine_reports_share_of_padding(at_once, padding):
    """The longest of four stacked clients has steps of 4, 4 and 1 rows, so all four clients compute that many."""
    local = LocalSGD(0.1, 4, 1, 5, 64)
    clients = [local.batches(np.full((count, 6), 1, np.int32), 0, 0) for count in (9, 9, 5, 1)]
    optimizer = tff.learning.optimizers.build_sgdm(1.0)
    settings = {"shards": 1, "clients_at_once": at_once}
    engine = cohort.build(TASK, bigram.initial_weights(), local, UniformMean(), optimizer, **settings)
    assert train(engine, [clients])[1]["operator"]["padding"] == pytest.approx(padding)
