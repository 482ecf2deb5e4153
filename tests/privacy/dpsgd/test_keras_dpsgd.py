"""Tests DP-SGD on Keras models: limiting cases, clipping, noise, the ledger, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from privacy import Budget, Releases
from privacy.accounting import costs
from privacy.dpsgd import KerasDPSGD
from privacy.dpsgd import keras_dpsgd as module
from privacy.dpsgd import step as private_step
from privacy.dpsgd.examples import checked_examples
from privacy.dpsgd.step import PrivateStep
from tests.oracles import per_example
from tests.privacy.dpsgd.keras_training import CROSS_ENTROPY, compiled, examples, settings, training_rounding
from tests.tolerance import rounding


@pytest.fixture
def seeded(monkeypatch):
    """Seeds sampling and noise with two seeds; calling the fixture seeds them anew."""

    def reset():
        monkeypatch.setattr(module, "secure_generator", lambda: np.random.default_rng(1))
        monkeypatch.setattr(private_step, "secure_generator", lambda: np.random.default_rng(2))

    reset()
    return reset


@pytest.mark.numerical
def test_fit_without_clip_and_noise_equals_sgd():
    x, y = examples()
    plain = compiled(layers.Dense(5, "tanh"), layers.Dense(3))
    private = keras.models.clone_model(plain)
    private.set_weights(plain.get_weights())
    private.compile(keras.optimizers.SGD(0.5, momentum=0.9), CROSS_ENTROPY)
    plain.compile(keras.optimizers.SGD(0.5, momentum=0.9), CROSS_ENTROPY)
    plain.fit(x, y, batch_size=20, epochs=4, verbose=0, shuffle=False)
    settings(epochs=4, clip_norm=float("inf"), noise_multiplier=0.0).fit(private, x, y)
    # Momentum 0.9 adds up to 1 + 0.9 + 0.81 + 0.73 of a step's gradient.
    within = training_rounding(plain, 4, 20, 0.5 * 3.44)
    for weight, expected in zip(private.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=0, atol=within)


class Weighted(keras.losses.Loss):
    """A custom loss that Keras cannot rebuild from its configuration."""

    def __init__(self, weight):
        super().__init__(name="weighted")
        self.weight = weight

    def call(self, y_true, y_pred):
        return self.weight * tf.reduce_mean(tf.square(y_true - y_pred), -1)


@pytest.mark.parametrize(
    ("loss", "dtype"), [(keras.losses.Huber(50.0), None), (Weighted(3.0), None), (Weighted(3.0), "float64")]
)
@pytest.mark.numerical
def test_fit_uses_the_loss_that_was_compiled(loss, dtype):
    x, _ = examples()
    y = 20 * x[:, :3]
    weights = []
    for train in (settings(clip_norm=float("inf"), noise_multiplier=0.0).fit, keras.Model.fit):
        model = compiled(layers.Dense(3, dtype=dtype), loss=loss, optimizer=keras.optimizers.SGD(1e-2))
        if train is keras.Model.fit:
            train(model, x, y, batch_size=20, verbose=0)
        else:
            train(model, x, y)
        weights.append(model.get_weights())
    # Errors of up to 60, three times that with the weight, times inputs of up to 3.
    within = training_rounding(model, 1, 20, 1e-2, largest=3 * 60 * 3)
    for private, plain in zip(*weights, strict=True):
        np.testing.assert_allclose(private, plain, rtol=0, atol=within)


@pytest.mark.numerical
def test_step_is_the_clipped_sum_divided_by_the_batch_size(seeded):
    x, y = examples()
    model = compiled(optimizer=keras.optimizers.SGD(1.0))
    before = model.get_weights()
    chosen = np.flatnonzero(np.random.default_rng(1).random(20) < 0.5)
    assert 0 < len(chosen) != 10
    expected = per_example.clipped_sum(per_example.gradients(model, CROSS_ENTROPY, x[chosen], y[chosen]), 0.2)
    stop = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: moved.append(model.get_weights()))
    moved: list[list[np.ndarray]] = []
    settings(batch_size=10, clip_norm=0.2, noise_multiplier=0.0).fit(model, x, y, callbacks=[stop])
    within = training_rounding(model, 1, 20, 1.0, largest=0.2)
    for start, after, step in zip(before, moved[0], expected, strict=True):
        np.testing.assert_allclose(start - after, step / 10, rtol=0, atol=within)


@pytest.mark.numerical
def test_fit_in_parts_equals_fit_at_once(seeded):
    x, y = examples(50)
    weights = []
    for at_once in (None, 7, 1):
        seeded()
        model = compiled(layers.Dense(5, "tanh"), layers.Dense(3))
        settings(records=50, batch_size=25, epochs=3, at_once=at_once).fit(model, x, y)
        weights.append(model.get_weights())
    within = training_rounding(model, 6, 50, 0.5)
    for in_parts in weights[1:]:
        for part, whole in zip(in_parts, weights[0], strict=True):
            np.testing.assert_allclose(part, whole, rtol=0, atol=within)


def step_of(model, x, y, clip=1.0, noise_multiplier=1.0, denominator=1.0):
    data = checked_examples(x, y)
    return PrivateStep(model, clip, noise_multiplier, denominator, data), data


def test_fit_draws_a_new_sample_for_each_step_by_the_public_number_of_records(monkeypatch):
    """With 50 rows and 100 public records, an epoch has 10 steps at a sampling probability of 0.1."""
    x, y = examples(50)
    samples: list[np.ndarray] = []
    run_step = PrivateStep.__call__
    monkeypatch.setattr(module, "secure_generator", lambda: np.random.default_rng(1))

    def record(self, data, rows, at_once):
        samples.append(rows)
        run_step(self, data, rows, at_once)

    monkeypatch.setattr(PrivateStep, "__call__", record)
    model = compiled()
    batch_logs: list[dict] = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: batch_logs.append(dict(logs or {})))
    private = settings(records=100, batch_size=10, epochs=3)
    private.fit(model, x, y, callbacks=[watch])
    generator = np.random.default_rng(1)
    expected = [np.flatnonzero(generator.random(50) < 0.1) for _ in range(30)]
    assert len(samples) == private.steps == 30 == int(model.optimizer.iterations.numpy())
    for sample, expected_sample in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(sample, expected_sample)
    assert batch_logs == [{}] * 30


def test_step_draws_independent_noise_for_all_weights():
    """Each correlation of 1200 pairs exceeds 0.17 by chance with probability below 1e-8."""
    model = compiled(layers.Dense(300), layers.Dense(300), optimizer=keras.optimizers.SGD(1.0))
    x, _ = examples()
    moves = []
    for _ in range(2):  # two trainings
        step, data = step_of(model, x, np.zeros(20, int))
        before = model.get_weights()
        step(data, np.zeros(0, int), None)
        moves += [(a - b).ravel() for a, b in zip(before, model.get_weights(), strict=True)]
        step.close()
    assert [move.std() for move in moves] == pytest.approx([1.0] * 8, rel=0.25)
    long = [move[:1200] for move in moves if len(move) >= 1200]
    assert len(long) == 4
    correlations = np.corrcoef(long) - np.eye(4)
    assert np.abs(correlations).max() < 0.17


def test_fit_draws_no_noise_before_it_records_in_the_ledger(tmp_path, monkeypatch):
    order: list[str] = []

    def note(name, function):
        def call(*arguments):
            order.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr(private_step._NoiseAhead, "_draw", note("noise", private_step._NoiseAhead._draw))
    with Releases.open(tmp_path / "ledger.jsonl", Budget(epsilon=1e6, delta=1e-5)) as ledger:
        monkeypatch.setattr(ledger, "record", note("ledger", ledger.record))
        settings(epochs=3).fit(compiled(), *examples(), ledger=ledger)
    assert order[0] == "ledger" and "noise" in order


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_progress_shows_validation_results_only(verbose, capsys):
    x, y = examples()
    settings(epochs=2).fit(compiled(), x, y, validation_data=(x, y), verbose=verbose)
    shown = capsys.readouterr().out
    assert ("val_loss" in shown) == bool(verbose)
    assert " loss:" not in shown and " accuracy:" not in shown


def test_fit_leaves_averaged_weights_if_the_optimizer_averages():
    x, y = examples()
    averaged = compiled(optimizer=keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5))
    plain = compiled()
    for model in (averaged, plain):
        settings(epochs=4, clip_norm=float("inf"), noise_multiplier=0.0).fit(model, x, y)
    assert not np.allclose(averaged.get_weights()[0], plain.get_weights()[0], atol=1e-3)


def test_fit_stops_within_an_epoch_if_a_callback_says_so():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 1

    model = compiled()
    settings(batch_size=2, epochs=3).fit(model, *examples(), callbacks=[Stop()])
    assert int(model.optimizer.iterations.numpy()) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"callbacks": keras.callbacks.History()}, "give a list of keras.callbacks.Callback"),
        ({"callbacks": ["x"]}, "give a list of keras.callbacks.Callback"),
        ({"validation_data": "ab"}, "validation_data is str: give"),
        ({"validation_data": (np.zeros((3, 4), np.float32), np.zeros(2, int))}, "validation_data: .*equally many rows"),
        ({"validation_data": (np.zeros((3, 5), np.float32), np.zeros(3, int))}, "validation_data: .*incompatible"),
        ({"validation_data": (np.zeros((3, 4), np.float32), np.full(3, 9))}, "validation_data: labels go from 9"),
    ],
)
def test_fit_checks_callbacks_and_validation_data_before_it_records_in_the_ledger(changes, message, tmp_path):
    with Releases.open(tmp_path / "ledger.jsonl", Budget(epsilon=1e6, delta=1e-5)) as ledger:
        with pytest.raises(ValueError, match=message) as error:
            settings().fit(compiled(), *examples(), ledger=ledger, **changes)
        assert ledger.releases == []
    assert "\n" not in str(error.value)


def test_step_is_traced_once_for_samples_of_all_sizes():
    x, y = examples()
    step, data = step_of(compiled(), x, y)
    for size in (0, 1, 5, 20, 3):
        step(data, np.arange(size), None)
        step(data, np.arange(size), 2)
    step.close()
    assert [each.experimental_get_tracing_count() for each in (step._step, step._add, step._end)] == [1, 1, 1]


def test_step_on_an_empty_sample_adds_noise_of_the_right_standard_deviation():
    """The standard deviation of 500 x 100 numbers is off by more than 2 % (6.3 standard errors) with p = 3e-10."""
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
            assert abs(move.std() / (2 * multiplier * clip / denominator) - 1) > 0.02  # a factor of two is detected
        # The steps' noise is independent: the correlation is then below 6.3 / sqrt(50,000).
        assert abs(np.corrcoef(moves[0].ravel(), moves[1].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_step_is_moved_by_one_example_by_at_most_the_clip_norm(size):
    x, y = examples(4)
    model = compiled(layers.Dense(5, "relu"), layers.Dense(3), optimizer=keras.optimizers.SGD(1.0))
    step, data = step_of(model, x * np.float32(size), y, 0.3, 0.0)
    for row in range(4):
        before = model.get_weights()
        step(data, np.array([row]), None)
        moved = np.sqrt(
            sum(np.square(a - b).astype(np.float64).sum() for a, b in zip(before, model.get_weights(), strict=True))
        )
        # Beside the clip norm, only the rounding of the weights themselves.
        assert moved <= 0.3 + rounding(2, np.sqrt(sum(np.square(a).sum() for a in before)))
        model.set_weights(before)
    step.close()


def test_fit_counts_gradients_that_are_not_finite_as_zero_and_warns():
    x, y = examples()
    x[3] = 3e38

    def fit_on(rows):
        model = compiled(layers.Dense(5, "relu"), layers.Dense(3))
        settings(clip_norm=1.0, noise_multiplier=0.0).fit(model, x[rows], y[rows])
        return model.get_weights()

    with pytest.warns(RuntimeWarning, match="1 gradients were not finite"):
        weights = fit_on(np.arange(20))
    within = training_rounding(compiled(layers.Dense(5, "relu"), layers.Dense(3)), 1, 20, 0.5)
    for weight, without in zip(weights, fit_on(np.delete(np.arange(20), 3)), strict=True):
        np.testing.assert_allclose(weight, without, rtol=0, atol=within)


def test_history_and_callbacks_get_validation_results_only():
    x, y = examples()
    epoch_logs: list[dict] = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epoch_logs.append(dict(logs)))
    stop = keras.callbacks.EarlyStopping("val_loss", min_delta=1e9, patience=1)
    history = settings(epochs=5).fit(compiled(), x, y, validation_data=(x, y), callbacks=[watch, stop])
    assert len(epoch_logs) == 2  # stopped early
    assert set(epoch_logs[0]) == {"val_loss", "val_accuracy"} == set(history.history)


def test_fit_records_its_guarantee_and_a_spent_budget_refuses_another_fit(tmp_path):
    x, y = examples()
    private = settings(batch_size=5, epochs=2, noise_multiplier=3.0)
    assert private.guarantee.costs == (costs.Gaussian(3.0, 8, 0.25),)
    assert private.guarantee.relation == "add-or-remove-one"
    assert "8 Poisson samples with probability 0.25" in str(private.guarantee)
    assert "not hardened" in str(private.guarantee)
    model = compiled()
    before = model.get_weights()
    with Releases.open(
        tmp_path / "ledger.jsonl", Budget(epsilon=1.2 * private.guarantee.epsilon, delta=1e-5)
    ) as ledger:
        private.fit(model, x, y, ledger=ledger)
        assert ledger.releases == [private.guarantee]
        after = model.get_weights()
        assert not np.array_equal(before[0], after[0])
        with pytest.raises(ValueError, match="budget"):
            private.fit(model, x, y, ledger=ledger)
    np.testing.assert_array_equal(model.get_weights()[0], after[0])


def test_for_budget_returns_the_noise_multiplier_of_dp_accounting():
    """For 10 epochs at 256 of 60,000 records and ε = 2, dp-accounting's own calibration gives 0.7861."""
    private = KerasDPSGD.for_budget(2.0, 1e-5, records=60_000, batch_size=256, epochs=10, clip_norm=1.0)
    assert 0.786 <= private.noise_multiplier <= 0.788
    assert 1.98 < private.guarantee.epsilon <= 2.0
    assert (private.steps, private.sampling_probability) == (2350, 256 / 60_000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"records": 0}, "records must be an integer of at least 1"),
        ({"batch_size": 21}, "batch_size 21 is above records 20"),
        ({"batch_size": 2.5}, "batch_size must be an integer"),
        ({"epochs": 0}, "epochs must be"),
        ({"clip_norm": 0.0}, "clip_norm must lie in"),
        ({"clip_norm": 1e-13}, "clip_norm must lie in"),
        ({"clip_norm": float("nan")}, "clip_norm must lie in"),
        ({"clip_norm": float("inf")}, "clip_norm is infinite and there is noise"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier must be"),
        ({"delta": 1.0}, "delta must lie in"),
        ({"delta": 0.05}, "delta must lie in"),
        ({"delta": 0.0}, "delta must lie in"),
        ({"at_once": 0}, "at_once must be"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        settings(**changes)
    assert "\n" not in str(error.value)


def test_guarantee_is_refused_without_noise():
    with pytest.raises(ValueError, match="not private"):
        settings(noise_multiplier=0.0).guarantee  # noqa: B018


def data_errors():
    x, y = examples()
    spoiled = x.copy()
    spoiled[[2, 5], 1] = np.nan
    return {
        "nan": ((spoiled, y), "x is not finite in 2 rows"),
        "labels": ((x, y + 1), "labels go from 1 to 3: 0 to 2 are needed"),
        "negative": ((x, y - 1), "labels go from -1 to 1: 0 to 2 are needed"),
        "rows": ((x, y[:-1]), "equally many rows"),
        "none": ((x[:0], y[:0]), "at least one"),
        "words": ((x, np.array(["a"] * 20)), "numbers are needed"),
    }


@pytest.mark.parametrize("name", data_errors())
def test_fit_refuses_invalid_data_in_one_line(name):
    (x, y), message = data_errors()[name]
    with pytest.raises(ValueError, match=message) as error:
        settings().fit(compiled(), x, y)
    assert "\n" not in str(error.value)


def test_fit_refuses_a_token_out_of_the_vocabulary_in_one_line():
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layers.Embedding(5, 2), layers.Dense(5)])
    model.compile("sgd", CROSS_ENTROPY)
    tokens = np.zeros((20, 3), int)
    tokens[17, 1] = 7
    with pytest.raises(ValueError, match=r"cannot take the data: .*7 is not in \[0, 5\)") as error:
        settings().fit(model, tokens, np.zeros((20, 3), int))
    assert "\n" not in str(error.value)


def test_fit_refuses_tensor_float_32(monkeypatch):
    model = compiled()  # before the patch, since Keras itself lists the devices
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    with pytest.raises(ValueError, match="TensorFloat-32 is on"):
        settings().fit(model, *examples())


def test_fit_accepts_lists_and_refuses_what_is_no_model():
    x, y = examples()
    settings().fit(compiled(), x.tolist(), y.tolist())
    with pytest.raises(ValueError, match="give a keras.Model"):
        settings().fit("model", x, y)
