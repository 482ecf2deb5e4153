"""Tests Keras models as tasks; tests/fl/engines/test_stock_equality.py compares whole rounds with stock TFF."""

import logging

import tensorflow_federated as tff
import keras
import numpy as np
import pytest
import tensorflow as tf

from fl import keras_models
from fl.aggregation import UniformMean
from fl.engines import cohort
from fl.keras_models import KerasTask, assign, initial_weights, language_modelling
from fl.local_training import Batches, LanguageModelling, LocalSGD, client_update
from tests.fl import stock
from tests.fl.stock import Stock
from tests.tolerance import condition, model_operations, rounding

pytestmark = pytest.mark.numerical

L = keras.layers
SCALAR = tf.TensorSpec([], tf.int32)
CROSS_ENTROPY = stock.cross_entropy()


def sequential(*layers, shape=(4,), batch=None, dtype=None):
    return keras.Sequential([keras.Input(shape, batch, dtype=dtype), *layers])


def calls_python():
    def by_numpy(x):
        return tf.ensure_shape(tf.numpy_function(np.abs, [x], tf.float32), x.shape)

    return sequential(L.Lambda(by_numpy), L.Dense(3))


def attention():
    """Returns a model in which the gradient of the keys' bias is zero in theory and consists of rounding errors."""
    inputs = keras.Input((30,))
    rows = L.Reshape((5, 6))(inputs)
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(L.MultiHeadAttention(2, 3)(rows, rows))))


def two_branches():
    """Returns a model whose variables are not created in the order of its list, and which uses one layer twice."""
    inputs = keras.Input((4,))
    late, shared = L.Dense(3, name="late"), L.Dense(4, activation="tanh", name="shared")
    once = shared(L.Dense(4, name="early")(inputs))
    return keras.Model(inputs, late(L.Add()([shared(once), L.LayerNormalization()(inputs)])))


def penalised():
    return sequential(L.Dense(5, activation="tanh", kernel_regularizer=keras.regularizers.L1(0.3)), L.Dense(3))


def data(model, rows, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, *model.input_shape[1:])).astype(np.float32), generator.integers(0, 3, rows)


def tensors(weights):
    return {name: tf.constant(value) for name, value in weights.items()}


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("make", [stock.DENSE, stock.CNN, two_branches, penalised])
def test_keras_task_loss_and_gradient_equal_keras_model(make, graph):
    model = make()
    task, weights = KerasTask(model, CROSS_ENTROPY, SCALAR), tensors(initial_weights(model))
    x, y = data(model, 5)

    def ours(weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = task.loss(weights, (x, y), tf.constant(5))
        return loss, tape.gradient(loss.total, weights)

    loss, gradient = (tf.function(ours, autograph=False) if graph else ours)(weights)
    with tf.GradientTape() as tape:
        want = tf.add_n([CROSS_ENTROPY(y, model(x, training=True)), *model.losses])
    assert float(loss.count) == 5

    def results(values):
        loss, gradient = ours(tensors(values))
        return [loss.total / 5, *(part / 5 for part in gradient.values())]

    # 5 rows; a convolution has 36 positions.
    within = rounding(model_operations(model, 5 * 36), condition(results, initial_weights(model)))
    np.testing.assert_allclose(loss.total / loss.count, want, atol=within)
    for name, part in zip(gradient, tape.gradient(want, model.trainable_variables), strict=True):
        np.testing.assert_allclose(gradient[name] / 5, part, atol=within)


@pytest.mark.parametrize("make", [stock.DENSE, two_branches, penalised, attention])
def test_keras_task_treats_stacked_clients_like_single_clients(make):
    model = make()
    task, weights = KerasTask(model, CROSS_ENTROPY, SCALAR), initial_weights(model)
    assert task.stacks
    generator = np.random.default_rng(1)
    clients = [
        {n: v + 0.1 * generator.normal(size=v.shape).astype(np.float32) for n, v in weights.items()} for _ in "abc"
    ]
    x, y = data(model, 3 * 4)
    x, y, rows = x.reshape(3, 4, -1), y.reshape(3, 4), np.array([4, 2, 0], np.int32)
    x[1, 2:], y[1, 2:], x[2], y[2] = 0, 0, 0, 0
    stacked = {name: tf.stack([client[name] for client in clients]) for name in weights}
    with tf.GradientTape() as tape:
        tape.watch(stacked)
        together = task.loss(stacked, (x, y), tf.constant(rows))
    gradient = tape.gradient(together.total, stacked)
    np.testing.assert_array_equal(together.count, rows)
    for user, real in enumerate(rows[:2]):

        def alone(values, user=user, real=real):
            own = tensors(values)
            with tf.GradientTape() as tape:
                tape.watch(own)
                loss = task.loss(own, (x[user, :real], y[user, :real]), tf.constant(real))
            return [loss.total, *tape.gradient(loss.total, own).values()]

        # 4 rows; attention has 5 positions.
        within = rounding(model_operations(model, 4 * 5), condition(alone, clients[user]))
        found = [together.total[user], *(part[user] for part in gradient.values())]
        for many, one in zip(found, alone(clients[user]), strict=True):
            np.testing.assert_allclose(many, one, atol=within)


def test_client_update_ignores_zero_rows_without_finite_gradient():
    """Padding is replaced by the client's own row, because x / |x| has no finite gradient at zero."""
    model = sequential(L.Lambda(lambda x: x / tf.norm(x, axis=-1, keepdims=True)), L.Dense(3))
    task, weights = KerasTask(model, CROSS_ENTROPY, SCALAR), initial_weights(model)
    x, y = data(model, 6)
    x, y = x.reshape(1, 2, 3, *x.shape[1:]), y.reshape(1, 2, 3)
    x[0, 0, 2] = 0
    together = client_update(task, weights, Batches((x, y), np.array([[2, 3]], np.int32)), LocalSGD(0.1))

    def alone(values):
        update = client_update(task, values, Batches((x[:, 0], y[:, 0]), np.array([2], np.int32)), LocalSGD(0.1))
        return [update.loss, *update.delta.values()]

    # 2 rows, and a subtraction of the weights that were received.
    within = rounding(model_operations(model, 2), condition(alone, weights)) + rounding(2, 2.0)
    found = [together.loss[0], *(delta[0] for delta in together.delta.values())]
    for many, one in zip(found, alone(weights), strict=True):
        np.testing.assert_allclose(many, one, atol=within)


def batch_mean(x):
    return x - tf.reduce_mean(x, axis=0)


@pytest.mark.parametrize(
    ("layer", "loss", "reason"),
    [
        (L.Dense(3), {"reduction": "sum"}, "reduction is 'sum'"),
        (L.Dense(3), {"ignore_class": 255}, "ignore_class"),
        (L.Lambda(batch_mean), {}, "padded to the length of others"),
        (L.Dense(3, activity_regularizer="l1"), {}, "padded to the length of others"),
        (L.Reshape((2, 2, 1)), {}, "Conv2D"),
    ],
    ids=["sum", "ignored class", "rows mixed", "activities", "not vectorised"],
)
def test_keras_task_logs_once_why_it_does_not_stack(layer, loss, reason, caplog):
    more = [L.Conv2D(2, 2), L.Flatten()] if isinstance(layer, L.Reshape) else []
    model = sequential(L.Dense(4), layer, *more, L.Dense(3))
    task = KerasTask(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True, **loss), SCALAR)
    with caplog.at_level(logging.WARNING):
        assert not task.stacks
        assert not task.stacks
    messages = [record.getMessage() for record in caplog.records if record.name == "fl.keras_models"]
    assert len(messages) == 1 and reason in messages[0] and "\n" not in messages[0]
    with pytest.raises(ValueError, match="takes no leading client axis"):
        cohort.build(
            task,
            initial_weights(model),
            LocalSGD(0.1),
            UniformMean(),
            tff.learning.optimizers.build_sgdm(),
            clients_at_once=2,
        )


@pytest.mark.parametrize("reduction", ["auto", "sum_over_batch_size", "sum"])
def test_keras_task_loss_follows_keras_reduction(reduction):
    model = sequential(L.Dense(2))
    task = KerasTask(model, keras.losses.MeanSquaredError(reduction=reduction), tf.TensorSpec([2], tf.float32))
    x, _ = data(model, 3)
    y = np.ones([3, 2], np.float32)
    loss = task.loss(tensors(initial_weights(model)), (x, y), tf.constant(3))
    squares = np.square(model(x) - y).mean(-1)
    want = squares.sum() if reduction == "sum" else squares.mean()
    # Products of 4 and a bias, whose difference to y (at most four times as large) is squared; a mean of 6.
    magnitude = 4 * float(np.square(np.abs(model(x)) + 1).sum())
    np.testing.assert_allclose(loss.total / loss.count, want, atol=rounding(4 + 1 + 2 + 6, magnitude))


def recurrent(length=5, masked=False):
    layers = [L.Embedding(11, 6, mask_zero=masked), L.SimpleRNN(7, return_sequences=True, unroll=True), L.Dense(11)]
    return sequential(*layers, shape=(length,), dtype="int32")


@pytest.mark.parametrize("masked", [False, True])
def test_language_modelling_ignores_padding(masked):
    model = recurrent(masked=masked)
    task, weights = language_modelling(model), tensors(initial_weights(model))
    assert isinstance(task, LanguageModelling) and task.sequence_length == 5
    assert task.stacks
    tokens = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0]], np.int32)
    logits = np.float64(model(tokens[:, :-1]))
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
    want = losses[tokens[:, 1:] != 0].sum()
    loss = task.loss(weights, tokens, tf.constant(2))
    assert float(loss.count) == 7
    of_weights = condition(lambda values: [task.loss(values, tokens, tf.constant(2)).total], initial_weights(model))
    within = rounding(model_operations(model, 7), of_weights)  # 7 tokens
    np.testing.assert_allclose(loss.total, want, atol=within)
    stacked = {name: tf.stack([value, value]) for name, value in weights.items()}
    both = task.loss(stacked, np.stack([tokens, np.zeros_like(tokens)]), tf.constant([2, 0]))
    np.testing.assert_allclose(both.total, [want, 0], atol=within)
    assert both.total[1] == 0


def test_language_modelling_does_not_stack_looping_layers(caplog):
    model = sequential(L.Embedding(11, 6), L.GRU(7, return_sequences=True), L.Dense(11), shape=(5,), dtype="int32")
    assert not language_modelling(model).stacks
    assert "unroll=True" in caplog.text


def test_keras_task_drops_keras_mask_as_stock_tff_does():
    model, generator = recurrent(masked=True), np.random.default_rng(0)
    # Under small weights, as Keras draws them, the mask may change the loss by less than 1e-3.
    model.set_weights([generator.normal(size=part.shape) for part in model.get_weights()])
    task = KerasTask(model, CROSS_ENTROPY, tf.TensorSpec([5], tf.int32))
    x, y = np.array([[1, 2, 0, 0, 0]], np.int32), np.array([[2, 3, 1, 1, 1]], np.int32)

    def results(values):
        return [task.loss(tensors(values), (x, y), tf.constant(1)).total]

    (loss,), of_weights = results(initial_weights(model)), condition(results, initial_weights(model))
    within = rounding(model_operations(model, 5), of_weights)  # 5 tokens
    np.testing.assert_allclose(loss, CROSS_ENTROPY(y, tf.identity(model(x))), atol=within)
    assert abs(float(loss) - float(CROSS_ENTROPY(y, model(x)))) > 1e-3


def test_assign_puts_weights_into_another_model():
    model, other = two_branches(), two_branches()
    weights = initial_weights(model)
    # The names do not depend on the numbers that Keras gives to layers, so a checkpoint fits a later process's model.
    assert list(weights) == sorted(weights) == list(initial_weights(other))
    assert "000_early/kernel" in weights
    assert list(initial_weights(stock.DENSE()))[0] == "000_dense/kernel" == list(initial_weights(stock.DENSE()))[0]
    assign(other, weights)
    x, _ = data(model, 3)
    np.testing.assert_array_equal(model(x), other(x))
    with pytest.raises(ValueError, match="names .* are not the model's"):
        assign(other, {"000_early/kernel": weights["000_early/kernel"]})
    with pytest.raises(ValueError, match=r"000_early/kernel has shape \(2,\)"):
        assign(other, {**weights, "000_early/kernel": np.zeros(2)})


class NoConfig(keras.layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.units = units()

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], self.units))

    def call(self, inputs):
        return inputs @ self.kernel


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


def built(model):
    model(tf.zeros([1, 4]))
    return model


def frozen():
    model = sequential(L.Dense(3), L.Dense(2))
    model.layers[0].trainable = False
    return model


def two_outputs():
    inputs = keras.Input((4,))
    return keras.Model(inputs, [L.Dense(2)(inputs), L.Dense(2)(inputs)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "model", "give a keras.Model"),
        (lambda: keras.Sequential([L.Dense(3)]), "is not built: begin it with a keras.Input"),
        (lambda: built(Subclassed()), "is subclassed: build it with keras.Sequential or from a keras.Input"),
        (two_outputs, "1 inputs and 2 outputs"),
        (
            lambda: sequential(L.Embedding(5, 3), shape=(None,)),
            r"input shape \(None, None\): give keras.Input every size",
        ),
        (lambda: sequential(L.Dense(3), L.BatchNormalization()), "not trained .*moving_mean.*use group"),
        (lambda: sequential(L.Dense(3, dtype="mixed_float16")), "half precision .*dtype='float32'"),
        (
            lambda: sequential(L.Embedding(9, 3), L.LSTM(3, stateful=True), batch=4, shape=(5,)),
            "keeps state from one batch",
        ),
        (
            lambda: sequential(L.Reshape((2, 2, 1)), L.RandomFlip(), L.Flatten(), L.Dense(3)),
            "avoid layers that create variables",
        ),
        (calls_python, "calls Python"),
        (
            lambda: sequential(L.StringLookup(vocabulary=["a"]), L.Embedding(3, 3), dtype="string"),
            "takes inputs of type string",
        ),
        (frozen, "weights that are not trained .*freeze no layer"),
        (lambda: sequential(L.Flatten()), "has no weights"),
        (lambda: sequential(L.Dense(3, dtype="float64")), "not float32 .*dtype='float32'"),
        (lambda: sequential(L.Dense(3), L.Dropout(0.5)), "draws random numbers .*remove its dropout and noise layers"),
        (lambda: sequential(L.GaussianNoise(0.5), L.Dense(3)), "draws random numbers"),
        (lambda: sequential(NoConfig(lambda: 3)), "cannot be cloned: give its layers a get_config"),
    ],
)
def test_unsuitable_keras_model_is_refused_with_fix(make, message):
    model = make()
    for use in (initial_weights, language_modelling, lambda model: KerasTask(model, CROSS_ENTROPY, SCALAR)):
        with pytest.raises(ValueError, match=message) as refused:
            use(model)
        assert "\n" not in str(refused.value)


def test_keras_task_and_language_modelling_refuse_invalid_arguments():
    model = sequential(L.Dense(3))
    with pytest.raises(ValueError, match="reduction 'none'"):
        KerasTask(model, keras.losses.MeanSquaredError(reduction="none"), SCALAR)
    with pytest.raises(ValueError, match="give an object of keras.losses"):
        KerasTask(model, keras.losses.mean_squared_error, SCALAR)
    with pytest.raises(ValueError, match="label is None: give the spec of one example's y"):
        KerasTask(model, keras.losses.MeanSquaredError(), None)
    for label in (tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.string)):
        with pytest.raises(ValueError, match="give numbers of a known shape"):
            KerasTask(model, keras.losses.MeanSquaredError(), label)
    with pytest.raises(ValueError, match="tokens .* -> logits"):
        language_modelling(model)
    penalised_rows = L.Embedding(11, 11, embeddings_regularizer="l2")
    with pytest.raises(ValueError, match="has regularisation losses, which belong to no token"):
        language_modelling(sequential(penalised_rows, shape=(5,), dtype="int32"))


def test_initial_weights_accepts_dropout_of_rate_zero():
    assert list(initial_weights(sequential(L.Dense(3), L.Dropout(0.0)))) == ["000_dense/kernel", "001_dense/bias"]


@pytest.mark.usefixtures("worker")
def test_cohort_engine_rounds_equal_default_stock_process():
    """The stock process is built as in TFF's documentation, without an aggregator."""
    net, optimizer = stock.of_keras(stock.DENSE), tff.learning.optimizers.build_sgdm(1.0)
    generator = np.random.default_rng(2)
    rounds = [
        [net.local.batches(net.examples(generator, rows), number, i) for i, rows in enumerate(cohort_rows)]
        for number, cohort_rows in enumerate(([5, 3], [8, 1, 4], [2]))
    ]
    want = Stock(net, optimizer, None).train(rounds)
    engine = cohort.build(net.task, net.weights, net.local, UniformMean(), optimizer, clients_at_once=2)

    def trained(weights):
        state = engine.process.initialize()
        state["weights"] = {name: np.asarray(weights[name]) for name in state["weights"]}
        for clients in rounds:
            state, _ = engine.process.next(state, engine.client_values(clients), np.array([0, 0], np.int64))
        return state["weights"]

    model = net.keras_model()
    keras_models.assign(model, trained(net.weights))
    # Three rounds of at most six steps.
    within = rounding(3 * 6 * net.operations, condition(lambda w: [*trained(w).values()], net.weights))
    for name, value in want.items():
        np.testing.assert_allclose(initial_weights(model)[name], value, atol=within)
        assert np.abs(value - net.weights[name]).max() > 0.1
