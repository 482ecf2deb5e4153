"""DP-SGD on Keras models: its limits, its noise, what it refuses, and what it must never do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from privacy import Budget, costs, private_step
from privacy import dpsgd as module
from privacy.dpsgd import KerasDPSGD
from privacy.private_step import PrivateStep, checked_examples
from tests.oracles import per_example
from tests.privacy.drawn import drawn

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(*stack, loss=CROSS_ENTROPY, optimizer=None):
    model = drawn(keras.Sequential([keras.Input((4,)), *(stack or [layers.Dense(3)])]))
    model.compile(optimizer or keras.optimizers.SGD(0.5), loss, metrics=["accuracy"])
    return model


def examples(count=20, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 4)).astype(np.float32), generator.integers(0, 3, count)


def settings(**changed):
    plain = {"records": 20, "batch_size": 20, "epochs": 1, "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
    return KerasDPSGD(**{**plain, **changed})


@pytest.fixture
def seeded(monkeypatch):
    """Sampling and noise from seeds: the same at every call, each from its own."""

    def reset():
        monkeypatch.setattr(module, "secure_generator", lambda: np.random.default_rng(1))
        monkeypatch.setattr(private_step, "secure_generator", lambda: np.random.default_rng(2))

    reset()
    return reset


def test_without_clip_and_noise_it_is_sgd():
    x, y = examples()
    plain, private = compiled(layers.Dense(5, "tanh"), layers.Dense(3)), None
    private = keras.models.clone_model(plain)
    private.set_weights(plain.get_weights())
    private.compile(keras.optimizers.SGD(0.5, momentum=0.9), CROSS_ENTROPY)
    plain.compile(keras.optimizers.SGD(0.5, momentum=0.9), CROSS_ENTROPY)
    plain.fit(x, y, batch_size=20, epochs=4, verbose=0, shuffle=False)
    settings(epochs=4, clip=float("inf"), noise_multiplier=0.0).fit(private, x, y)
    for found, expected in zip(private.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_step_is_the_clipped_sum_over_the_batch_size(seeded):
    x, y = examples()
    model = compiled(optimizer=keras.optimizers.SGD(1.0))
    before = model.get_weights()
    chosen = np.flatnonzero(np.random.default_rng(1).random(20) < 0.5)
    assert 0 < len(chosen) != 10
    expected = per_example.clipped_sum(per_example.gradients(model, CROSS_ENTROPY, x[chosen], y[chosen]), 0.2)
    stop = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: moved.append(model.get_weights()))
    moved: list[list[np.ndarray]] = []
    settings(batch_size=10, clip=0.2, noise_multiplier=0.0).fit(model, x, y, callbacks=[stop])
    for start, after, step in zip(before, moved[0], expected, strict=True):
        np.testing.assert_allclose(start - after, step / 10, rtol=1e-4, atol=1e-6)


def test_parts_change_nothing(seeded):
    x, y = examples(50)
    found = []
    for at_once in (None, 7, 1):
        seeded()
        model = compiled(layers.Dense(5, "tanh"), layers.Dense(3))
        settings(records=50, batch_size=25, epochs=3, at_once=at_once).fit(model, x, y)
        found.append(model.get_weights())
    for parts in found[1:]:
        for part, whole in zip(parts, found[0], strict=True):
            np.testing.assert_allclose(part, whole, rtol=1e-5, atol=1e-5)


def step_of(model, x, y, clip=1.0, noise_multiplier=1.0, denominator=1.0):
    data = checked_examples(x, y)
    return PrivateStep(model, clip, noise_multiplier, denominator, data), data


def test_one_trace_for_all_sizes():
    x, y = examples()
    step, data = step_of(compiled(), x, y)
    for size in (0, 1, 5, 20, 3):
        step(data, np.arange(size), None)
        step(data, np.arange(size), 2)
    step.close()
    assert [each.experimental_get_tracing_count() for each in (step._step, step._add, step._end)] == [1, 1, 1]


def test_an_empty_sample_is_noise_of_the_right_size():
    """Of 500 x 100 numbers the standard deviation is within 2 % but with probability 3e-10 (6.3 of its own)."""
    model = keras.Sequential([keras.Input((500,)), layers.Dense(100, use_bias=False)])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    x, y = np.ones((1, 500), np.float32), np.ones((1, 100), np.float32)
    for clip, multiplier, denominator in ((1.0, 1.0, 1.0), (0.5, 3.0, 10.0)):
        step, data = step_of(model, x, y, clip, multiplier, denominator)
        moves = []
        for _ in range(2):
            before = model.get_weights()[0]
            step(data, np.zeros(0, int), None)
            moves.append(before - model.get_weights()[0])
        step.close()
        for move in moves:
            assert abs(move.std() / (multiplier * clip / denominator) - 1) < 0.02
            assert abs(move.std() / (2 * multiplier * clip / denominator) - 1) > 0.02  # what an error of two would give
        # Another noise at each step: of independent ones the correlation is below 6.3 / sqrt(50,000).
        assert abs(np.corrcoef(moves[0].ravel(), moves[1].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_one_example_moves_the_sum_by_at_most_the_clip_norm(size):
    x, y = examples(4)
    model = compiled(layers.Dense(5, "relu"), layers.Dense(3), optimizer=keras.optimizers.SGD(1.0))
    step, data = step_of(model, x * np.float32(size), y, 0.3, 0.0)
    for row in range(4):
        before = model.get_weights()
        step(data, np.array([row]), None)
        moved = np.sqrt(
            sum(np.square(a - b).astype(np.float64).sum() for a, b in zip(before, model.get_weights(), strict=True))
        )
        assert moved <= 0.3 * (1 + 1e-5)  # the weights' own rounding
        model.set_weights(before)
    step.close()


def test_a_gradient_that_is_not_finite_counts_as_zero_and_is_told():
    x, y = examples()
    x[3] = 3e38

    def fitted(rows):
        model = compiled(layers.Dense(5, "relu"), layers.Dense(3))
        settings(clip=1.0, noise_multiplier=0.0).fit(model, x[rows], y[rows])
        return model.get_weights()

    with pytest.warns(RuntimeWarning, match="1 gradients were not finite"):
        found = fitted(np.arange(20))
    for part, without in zip(found, fitted(np.delete(np.arange(20), 3)), strict=True):
        np.testing.assert_allclose(part, without, rtol=1e-6, atol=1e-7)


def test_history_and_callbacks_see_validation_alone():
    x, y = examples()
    seen: list[dict] = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(dict(logs)))
    stop = keras.callbacks.EarlyStopping("val_loss", min_delta=1e9, patience=1)
    history = settings(epochs=5).fit(compiled(), x, y, validation_data=(x, y), callbacks=[watch, stop])
    assert len(seen) == 2  # stopped early
    assert set(seen[0]) == {"val_loss", "val_accuracy"} == set(history.history)


def test_what_it_costs_is_on_the_ledger_first(tmp_path):
    x, y = examples()
    private = settings(batch_size=5, epochs=2, noise_multiplier=3.0)
    assert private.guarantee.costs == (costs.Gaussian(3.0, 8, 0.25),)
    assert private.guarantee.relation == "add-or-remove-one"
    assert "8 Poisson samples at rate 0.25" in str(private.guarantee)
    assert "not hardened" in str(private.guarantee)
    model = compiled()
    before = model.get_weights()
    with Budget(epsilon=1.2 * private.guarantee.epsilon, delta=1e-5).recording(tmp_path / "ledger.jsonl") as ledger:
        private.fit(model, x, y, ledger=ledger)
        assert ledger.releases == [private.guarantee]
        after = model.get_weights()
        assert not np.array_equal(before[0], after[0])
        with pytest.raises(ValueError, match="budget"):
            private.fit(model, x, y, ledger=ledger)
    np.testing.assert_array_equal(model.get_weights()[0], after[0])


def test_budget():
    """The noise of 10 epochs at 256 of 60,000 for ε = 2: 0.7861 by dp-accounting's own calibration."""
    found = KerasDPSGD.for_budget(2.0, 1e-5, records=60_000, batch_size=256, epochs=10, clip=1.0)
    assert 0.786 <= found.noise_multiplier <= 0.788
    assert 1.98 < found.guarantee.epsilon <= 2.0
    assert (found.steps, found.rate) == (2350, 256 / 60_000)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"records": 0}, "records must be a whole number of at least 1"),
        ({"batch_size": 21}, "batch size 21 is above the 20 records"),
        ({"batch_size": 2.5}, "batch size must be a whole number"),
        ({"epochs": 0}, "epochs must be"),
        ({"clip": 0.0}, "clip must be a number above 0"),
        ({"clip": float("nan")}, "clip must be a number above 0"),
        ({"clip": float("inf")}, "clip is infinite and there is noise"),
        ({"noise_multiplier": -1.0}, "noise multiplier must be"),
        ({"noise_multiplier": float("nan")}, "noise multiplier must be"),
        ({"delta": 1.0}, "delta must lie in"),
        ({"delta": 0.0}, "delta must lie in"),
        ({"at_once": 0}, "at_once must be"),
    ],
)
def test_settings_out_of_range(changed, line):
    with pytest.raises(ValueError, match=line) as error:
        settings(**changed)
    assert "\n" not in str(error.value)


def test_no_noise_no_guarantee():
    with pytest.raises(ValueError, match="not private"):
        settings(noise_multiplier=0.0).guarantee  # noqa: B018


class Centred(layers.Layer):
    """Takes the batch's mean off: examples do not stay apart."""

    def call(self, inputs):
        return inputs - tf.reduce_mean(inputs, 0, keepdims=True)


class Running(layers.Layer):
    """Keeps what it has seen."""

    def build(self, input_shape):
        self.seen = self.add_weight(name="seen", shape=(), trainable=False, initializer=keras.initializers.Zeros())
        self.built = True

    def call(self, inputs):
        self.seen.assign_add(tf.reduce_sum(inputs))
        return inputs


class Noisy(layers.Layer):
    """Weights and randomness in one layer."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(4,), initializer=keras.initializers.Ones())
        self.built = True

    def call(self, inputs):
        return tf.nn.dropout(inputs, 0.5) * self.scale


def borrowed():
    """A weight used outside its layer."""
    inputs = keras.Input((4,))
    dense = layers.Dense(4)
    hidden = dense(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Lambda(lambda value: tf.matmul(value, dense.kernel))(hidden)))
    model.compile("sgd", CROSS_ENTROPY)
    return model


def two_outputs():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [layers.Dense(3)(inputs), layers.Dense(3)(inputs)])
    model.compile("sgd", [CROSS_ENTROPY, CROSS_ENTROPY])
    return model


def uncompiled():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3)])


def frozen():
    model = compiled()
    model.trainable = False
    return model


MODELS = {
    "batch normalisation": (lambda: compiled(layers.BatchNormalization(), layers.Dense(3)), "mixes examples|keeps"),
    "centred": (lambda: compiled(layers.Dense(4), Centred(), layers.Dense(3)), "mixes examples"),
    "centred inputs": (lambda: compiled(Centred(), layers.Dense(3)), "mixes examples"),
    "running": (lambda: compiled(Running(), layers.Dense(3)), "without noise"),
    "noisy": (lambda: compiled(Noisy(), layers.Dense(3)), "does not follow from its layer's calls"),
    "borrowed": (borrowed, "does not follow from its layer's calls"),
    "regularised": (lambda: compiled(layers.Dense(3, kernel_regularizer="l2")), "regularisation"),
    "two outputs": (two_outputs, "several losses"),
    "uncompiled": (uncompiled, "not compiled"),
    "frozen": (frozen, "no weights to train"),
    "sum": (
        lambda: compiled(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")),
        "reduction 'sum'",
    ),
    "one loss": (lambda: compiled(loss=lambda y, outputs: tf.reduce_mean(outputs)), "one number|one for each"),
    "half": (lambda: compiled(layers.Dense(3, dtype="mixed_bfloat16")), "float32 is needed"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_cannot_be_private_are_refused(name, tmp_path):
    make, line = MODELS[name]
    model = make()
    before = model.get_weights()
    with Budget(epsilon=100.0, delta=1e-5).recording(tmp_path / "ledger.jsonl") as ledger:
        with pytest.raises(ValueError, match=line) as error:
            settings().fit(model, *examples(), ledger=ledger)
        assert ledger.releases == []
    assert "\n" not in str(error.value)
    for part, same in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(part, same)


@pytest.mark.parametrize("name", ["dropout", "group normalisation", "function", "string"])
def test_models_that_can(name):
    made = {
        "dropout": lambda: compiled(layers.Dense(8, "relu"), layers.Dropout(0.5), layers.Dense(3)),
        "group normalisation": lambda: compiled(layers.Dense(8), layers.GroupNormalization(2), layers.Dense(3)),
        "function": lambda: compiled(loss=lambda y, outputs: tf.reduce_sum(outputs**2, -1)),
        "string": lambda: compiled(layers.Dense(3, "softmax"), loss="sparse_categorical_crossentropy"),
    }
    settings().fit(made[name](), *examples())


def data_errors():
    x, y = examples()
    spoiled = x.copy()
    spoiled[[2, 5], 1] = np.nan
    return {
        "nan": ((spoiled, y), "x is not finite in 2 rows"),
        "labels": ((x, y + 1), "labels go from 1 to 3: 0 to 2 are needed"),
        "negative": ((x, y - 1), "labels go from -1 to 1: 0 to 2 are needed"),
        "rows": ((x, y[:-1]), "give as many rows"),
        "none": ((x[:0], y[:0]), "at least one"),
        "words": ((x, np.array(["a"] * 20)), "numbers are needed"),
    }


@pytest.mark.parametrize("name", data_errors())
def test_data_that_do_not_fit(name):
    (x, y), line = data_errors()[name]
    with pytest.raises(ValueError, match=line) as error:
        settings().fit(compiled(), x, y)
    assert "\n" not in str(error.value)


def test_a_token_out_of_the_vocabulary_is_one_line():
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layers.Embedding(5, 2), layers.Dense(5)])
    model.compile("sgd", CROSS_ENTROPY)
    tokens = np.full((20, 3), 7)
    with pytest.raises(ValueError, match="cannot take the data") as error:
        settings().fit(model, tokens, np.zeros((20, 3), int))
    assert "\n" not in str(error.value)
