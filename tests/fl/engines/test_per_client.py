"""The plain engine against the NumPy loops of `tests.oracles.fedavg` and against stock `tff.learning`."""

from collections import OrderedDict

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from fl.aggregation import DPMean, ExampleWeightedMean, UniformMean
from fl.engines.per_client import build_process
from fl.local_training import LocalSGD
from privacy.plan import FixedClip, PrivacyPlan
from privacy.sampling import Poisson
from tests.fl import bigram
from tests.oracles import fedavg

LOCAL = LocalSGD(learning_rate=0.8, batch_size=3, epochs=2, sequence_length=5, max_sequences=8)
NOISE_SEED = np.array([1, 2], np.int64)
PLAN = PrivacyPlan(Poisson(0.5), 12, 5, 0.0, FixedClip(0.7))

pytestmark = pytest.mark.usefixtures("worker")


def cohorts(rounds: int = 3) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(11)
    sizes = [[4, 1, 7], [9, 3, 2, 5], [1], [6, 6]][:rounds]
    return [
        [LOCAL.batches(bigram.random_sequences(generator, rows, 5), r, i) for i, rows in enumerate(cohort)]
        for r, cohort in enumerate(sizes)
    ]


def process(aggregator, optimizer=None) -> tff.templates.IterativeProcess:
    optimizer = optimizer or tff.learning.optimizers.build_sgdm(0.9, 0.5)
    return build_process(bigram.token_losses, bigram.initial_weights(), LOCAL, aggregator, optimizer)


def train(built, rounds):
    state = built.initialize()
    measured = None
    for cohort in rounds:
        state, measured = built.next(state, cohort, NOISE_SEED)
    return state, measured


@pytest.mark.parametrize(
    ("aggregator", "settings"),
    [
        (UniformMean(), {}),
        (ExampleWeightedMean(), {"weighting": "examples"}),
        (DPMean(PLAN), {"clip": 0.7, "denominator": 6.0}),
    ],
    ids=["uniform", "examples", "clipped"],
)
def test_rounds_equal_the_plain_loops(aggregator, settings):
    state, _ = train(process(aggregator), cohorts())
    table = bigram.initial_weights()["table"].astype(np.float64)
    want = fedavg.rounds(table, cohorts(), 0.8, 0.9, 0.5, **settings)
    np.testing.assert_allclose(state["weights"]["table"], want, atol=3e-6)
    assert np.abs(want - table).max() > 0.1


class _Bigram(tf.keras.layers.Layer):
    """The test's model for stock `tff.learning`."""

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


@pytest.mark.parametrize("weighted", [False, True])
def test_rounds_equal_stock_federated_averaging(weighted):
    build = (
        tff.learning.algorithms.build_weighted_fed_avg if weighted else tff.learning.algorithms.build_unweighted_fed_avg
    )
    stock = build(
        stock_model,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.8),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(0.9, 0.5),
    )
    # Whole batches without padding: stock Keras losses average over padded positions in their own way.
    generator = np.random.default_rng(3)
    rounds = [
        [generator.integers(1, bigram.VOCABULARY, (steps, 3, 6)).astype(np.int32) for steps in cohort]
        for cohort in ([2, 1, 3], [1, 4])
    ]
    stock_state = stock.initialize()
    for cohort in rounds:
        datasets = [tf.data.Dataset.from_tensor_slices((b[:, :, :-1], b[:, :, 1:])) for b in cohort]
        stock_state = stock.next(stock_state, datasets).state
    ours, _ = train(process(ExampleWeightedMean() if weighted else UniformMean()), rounds)
    trained = stock.get_model_weights(stock_state).trainable[0]
    np.testing.assert_allclose(ours["weights"]["table"], trained, atol=1e-6)
    assert np.abs(trained - bigram.initial_weights()["table"]).max() > 0.1


@pytest.mark.parametrize("name", ["sgdm", "adam", "yogi", "adagrad"])
def test_the_server_optimizer_sees_minus_the_mean_update(name):
    optimizer = getattr(tff.learning.optimizers, f"build_{name}")(0.1)
    state, _ = train(process(UniformMean(), optimizer), cohorts(1))
    plain, _ = train(process(UniformMean(), tff.learning.optimizers.build_sgdm(1.0)), cohorts(1))
    start = bigram.initial_weights()["table"]
    gradient = OrderedDict(table=start - plain["weights"]["table"])
    slots = optimizer.initialize(OrderedDict(table=tf.TensorSpec(start.shape, tf.float32)))
    _, want = optimizer.next(slots, OrderedDict(table=tf.constant(start)), gradient)
    np.testing.assert_allclose(state["weights"]["table"], want["table"], atol=2e-5)


def test_an_empty_round_is_a_noise_only_round():
    plan = PrivacyPlan(Poisson(0.5), 12, 5, 2.0, FixedClip(0.7))
    built = process(DPMean(plan), tff.learning.optimizers.build_sgdm(1.0))
    state, measured = train(built, [[]])
    moved = (state["weights"]["table"] - bigram.initial_weights()["table"]) * 6.0
    # 49 draws of N(0, 1.4^2): the standard deviation is within 1.4 * (1 +- 4 / sqrt(98)) with probability > 0.9999.
    assert 1.4 * 0.6 < moved.std() < 1.4 * 1.4
    assert measured["operator"]["clients"] == 0 and measured["operator"]["loss"] == 0
    again, _ = train(built, [[]])
    np.testing.assert_array_equal(state["weights"]["table"], again["weights"]["table"])


def test_empty_client_values_change_nothing():
    empty = np.zeros((0, 3, 6), np.int32)
    alone, seen = train(process(UniformMean()), cohorts(2))
    padded, seen_padded = train(process(UniformMean()), [cohort + [empty] * 3 for cohort in cohorts(2)])
    np.testing.assert_array_equal(alone["weights"]["table"], padded["weights"]["table"])
    assert seen["operator"] == seen_padded["operator"]


def test_what_is_measured():
    _, measured = train(process(UniformMean()), cohorts(1))
    batches = cohorts(1)[0]
    assert measured["operator"]["clients"] == 3
    assert measured["operator"]["tokens"] == sum(np.count_nonzero(b[:, :, 1:]) for b in batches)
    assert measured["operator"]["examples"] == sum(map(fedavg.examples, batches))
    assert 0 < measured["operator"]["loss"] < 10
    assert measured["released"]["finite"]


def test_the_average_is_a_running_mean_of_the_rounds_weights():
    optimizer = tff.learning.optimizers.build_sgdm(0.9, 0.5)
    built = build_process(bigram.token_losses, bigram.initial_weights(), LOCAL, UniformMean(), optimizer, 0.75)
    state = built.initialize()
    want = bigram.initial_weights()["table"]
    for cohort in cohorts():
        state, _ = built.next(state, cohort, NOISE_SEED)
        want = 0.75 * want + 0.25 * state["weights"]["table"]
        np.testing.assert_allclose(state["average"]["table"], want, atol=1e-6)
    plain, _ = train(process(UniformMean()), cohorts())
    np.testing.assert_array_equal(plain["average"]["table"], plain["weights"]["table"])
    with pytest.raises(ValueError, match="average_decay is 1.0"):
        build_process(bigram.token_losses, bigram.initial_weights(), LOCAL, UniformMean(), optimizer, 1.0)


def test_the_same_round_twice_is_the_same_to_the_bit():
    plan = PrivacyPlan(Poisson(0.5), 12, 5, 1.0, FixedClip(0.7))
    built = process(DPMean(plan))
    many = [cohorts(2)[0] * 8]
    first, _ = train(built, many)
    for _ in range(3):
        np.testing.assert_array_equal(first["weights"]["table"], train(built, many)[0]["weights"]["table"])
