"""Tests that no record counts for more than the clip norm in the computed sum, however its outer products cancel.

The loss is linear in the outputs with the labels as coefficients. So the labels are the gradients at the outputs, and a
record's gradient is a linear function of them; its smallest singular vectors are the labels whose gradients cancel
most.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import models
from privacy.dpsgd import clip_bounds, ghost_norms
from privacy.dpsgd.examples import checked_examples
from privacy.dpsgd.step import PrivateStep
from tests.privacy.dpsgd.keras_training import randomise, settings
from tests.tolerance import model_operations, rounding

pytestmark = pytest.mark.numerical

CLIP = 1e-3
STEPS = 8


def linear_loss(y, outputs):
    return tf.reduce_sum(y * outputs, -1)


def norm(parts):
    return float(np.sqrt(sum(np.square(np.asarray(part, np.float64)).sum() for part in parts)))


def clipped_sum(model, x, y, clip=CLIP, denominator=1.0):
    """Returns the function of (x, y) that computes the sum of the clipped gradients."""
    model.compile(keras.optimizers.SGD(1.0), linear_loss)
    data = checked_examples(x, y)
    step = PrivateStep(model, clip, 0.0, denominator, data)
    step.close()
    function = tf.function(step._sum_clipped, data.signature(), autograph=False)
    return lambda *rows: [part.numpy() for part in function(*rows)]


def dense(size, steps, bias=False, dtype=None):
    return keras.Sequential(
        [keras.Input((steps, size), dtype=dtype), layers.Dense(size, use_bias=bias, kernel_initializer="zeros")]
    )


# Name → (model, inputs [1, ...]).
MODELS = {
    "dense": lambda: (dense(8, STEPS), np.full((1, STEPS, 8), 1.1, np.float32)),
    "dense with bias": lambda: (dense(8, STEPS, bias=True), np.full((1, STEPS, 8), 1.1, np.float32)),
    "two dense": lambda: (
        keras.Sequential([keras.Input((STEPS, 8)), layers.Dense(8), layers.Dense(8)]),
        np.full((1, STEPS, 8), 1.1, np.float32),
    ),
    "embedding": lambda: (
        keras.Sequential([keras.Input((STEPS,), dtype="int32"), layers.Embedding(12, 8)]),
        np.array([[3, 3, 3, 5, 5, 5, 5, 7]], np.int32),
    ),
    "lstm": lambda: (
        keras.Sequential([keras.Input((STEPS, 8)), layers.LSTM(8, return_sequences=True)]),
        np.full((1, STEPS, 8), 1.1, np.float32),
    ),
    "cifg": lambda: (
        keras.Sequential([keras.Input((STEPS, 8)), models.CIFG(8, projection=8, return_sequences=True)]),
        np.full((1, STEPS, 8), 1.1, np.float32),
    ),
    "tied output": lambda: (
        models.to_keras(models.RecurrentLanguageModel("cifg", 12, 8, 8), length=STEPS),
        np.array([[3, 3, 3, 5, 5, 5, 5, 7]], np.int32),
    ),
    "materialised": lambda: (
        keras.Sequential([keras.Input((64, 3)), layers.Conv1D(4, 3, padding="same")]),
        np.full((1, 64, 3), 1.1, np.float32),
    ),
}


def cancelling(sums, x, shape, generator):
    """Yields labels of several sizes whose gradients cancel: smallest singular vectors plus small random vectors."""
    size = int(np.prod(shape))
    columns = []
    for one in np.eye(size, dtype=np.float32):
        columns.append(np.concatenate([part.ravel() for part in sums(x, one.reshape(1, *shape))]).astype(np.float64))
    _, _, vectors = np.linalg.svd(np.array(columns).T, full_matrices=True)
    for smallest in vectors[-1], vectors[-2], generator.normal(size=4) @ vectors[-4:]:
        for share in (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
            labels = smallest + share * generator.normal(size=size)
            for scale in (1.0, 1e6):
                yield (scale * labels).astype(np.float32).reshape(1, *shape)


@pytest.mark.parametrize("name", MODELS)
def test_cancelling_record_counts_for_at_most_the_clip_norm(name):
    generator = np.random.default_rng(0)
    model, x = MODELS[name]()
    randomise(model)
    shape = model(x).shape[1:]
    plain = clipped_sum(model, x, np.zeros((1, *shape), np.float32), clip=float("inf"))
    clipped = clipped_sum(model, x, np.zeros((1, *shape), np.float32), denominator=3.0)
    labels = list(cancelling(plain, x, shape, generator))
    norms = np.array([3 * norm(clipped(x, y)) / CLIP for y in labels])
    assert norms.max() <= 1 + 1e-6
    # Ordinary records lose next to nothing to the bounds on rounding.
    for _ in range(10):
        y = generator.normal(size=(1, *shape)).astype(np.float32)
        expected = norm(plain(x, y))
        assert expected > CLIP
        assert 3 * norm(clipped(x, y)) > (1 - 1e-4) * CLIP
        small = (0.5 * CLIP / expected * y).astype(np.float32)
        relative = rounding(model_operations(model, int(np.prod(shape[:-1]))), 1.0)
        assert 3 * norm(clipped(x, small)) == pytest.approx(0.5 * CLIP, rel=relative)
    # Among others: the difference of two sums of 8 records over STEPS positions, which round independently.
    others = generator.normal(size=(7, *shape)).astype(np.float32)
    all_x, roundings = np.repeat(x, 8, axis=0), 2 * 8 * int(np.prod(shape[:-1])) * 2.0**-24
    without = clipped(all_x[:7], others)
    summation = 2 * roundings * 8 * clip_bounds._LARGEST_MASS
    assert summation < 0.1
    for y in labels[::3]:
        with_ = clipped(all_x, np.concatenate([others[:3], y, others[3:]]))
        moved = 3 * norm([a.astype(np.float64) - b for a, b in zip(with_, without, strict=True)]) / CLIP
        assert moved <= 1 + summation


def two_values(generator, count, steps):
    """Draws residuals [count, steps], half a and half -a (1 - d), on which float32 inner products err most."""
    a, d = 1 + generator.random((count, 1)), 10 ** generator.uniform(-3, -1, (count, 1))
    return np.concatenate([np.repeat(a, steps // 2, 1), np.repeat(-a * (1 - d), steps // 2, 1)], 1)


def largest_contribution(size, steps, count):
    """Returns the largest norm / clip norm of records with constant inputs and residuals that cancel."""
    generator = np.random.default_rng(0)
    x = np.repeat(np.repeat(0.5 + generator.random((count, 1, 1)), steps, 1), size, 2).astype(np.float32)
    y = np.repeat(two_values(generator, count, steps)[:, :, np.newaxis], size, 2).astype(np.float32)
    sums = clipped_sum(dense(size, steps), x[:1], y[:1])
    return max(norm(sums(x[i : i + 1], y[i : i + 1])) for i in range(count)) / CLIP


def test_constant_inputs_with_cancelling_residuals_count_for_at_most_the_clip_norm_over_256_features():
    assert largest_contribution(256, 16, 300) <= 1 + 1e-6


@pytest.mark.slow
def test_constant_inputs_with_cancelling_residuals_count_for_at_most_the_clip_norm_over_1024_features():
    assert largest_contribution(1024, 256, 12) <= 1 + 1e-6


def test_records_of_256_positions_lose_next_to_nothing_to_the_bounds_on_rounding():
    """The bound on a sum over 256 positions in float32 would cost an ordinary record 2e-4 of its gradient."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 4, 256, 256)).astype(np.float32)
    sums = clipped_sum(dense(256, 256), x, y)
    for row in range(4):
        assert norm(sums(x[row : row + 1], y[row : row + 1])) > (1 - 2e-5) * CLIP


def fixed_slack(groups):
    """Computes norms by float32 inner products, with a fixed slack of 4 units in the last place of the mass."""
    ((term,),) = groups
    gram = tf.matmul(term.left, term.left, transpose_b=True) * tf.matmul(term.right, term.right, transpose_b=True)
    masses = tf.sqrt(tf.reduce_sum(term.left**2, -1) * tf.reduce_sum(term.right**2, -1))
    squared = tf.maximum(tf.reduce_sum(gram, [1, 2]), 0.0) + 4 * 2.0**-23 * tf.reduce_sum(masses, 1) ** 2
    norms = tf.cast(tf.sqrt(squared), tf.float64)
    return clip_bounds.Bounds(norms, tf.zeros_like(norms), tf.zeros_like(norms))


def test_fixed_slack_lets_a_record_exceed_the_clip_norm(monkeypatch):
    monkeypatch.setattr(clip_bounds, "compute_bounds", fixed_slack)
    assert largest_contribution(256, 16, 300) > 1.1


def test_fit_moves_the_weights_by_at_most_the_clip_norm():
    """With the record of 300 whose gradient exceeds its norm by `fixed_slack` most."""
    residuals = two_values(np.random.default_rng(0), 300, 16).astype(np.float32)
    right = tf.repeat(residuals[..., np.newaxis], 256, 2)
    term = ghost_norms.Term(None, tf.fill([300, 16, 256], np.float32(1.1)), right)
    true = 1.1 * 256 * np.abs(residuals.astype(np.float64).sum(1))
    worst = int(np.argmax(true / fixed_slack([[term]]).norm.numpy()))
    x, y = np.full((1, 16, 256), 1.1, np.float32), right[worst : worst + 1].numpy()
    model = dense(256, 16)
    model.compile(keras.optimizers.SGD(1.0), linear_loss)
    settings(records=1, batch_size=1, clip_norm=CLIP, noise_multiplier=0.0, delta=0.5).fit(model, x, y)
    assert norm(model.get_weights()) <= CLIP * (1 + 1e-6)  # the weights were zero


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("clip", [1e-12, 1.0])
def test_records_with_entries_of_any_size_count_for_at_most_the_clip_norm(dtype, steps, clip):
    """Squares underflow and overflow, numbers are subnormal, and factors underflow."""
    limits = np.finfo(dtype)
    tiny, largest = float(limits.tiny), float(limits.max)
    sizes = [0.0, tiny / 8, tiny, tiny**0.7, tiny**0.5, 1e-15, 1.0, 1e15, largest**0.45, largest**0.5, largest / 64]
    x0 = np.ones((1, steps, 8), dtype)
    sums = clipped_sum(dense(8, steps, dtype=dtype), x0, x0, clip=clip)
    norms = []
    for left in sizes:
        for right in sizes:
            x, y = left * x0, right * x0
            for labels in (y, y * np.linspace(1, -1, steps).reshape(1, steps, 1).astype(dtype)):
                parts = [part.astype(np.longdouble) for part in sums(x, labels)]
                norms.append(float(np.sqrt(sum((part / clip) ** 2 for part in parts[0].ravel()))))
    assert max(norms) <= 1 + 1e-6
    assert max(norms) > 0.999


def test_records_whose_products_all_round_up_count_for_at_most_the_clip_norm():
    """Nothing cancels, but a sum of 128 equal products rounds in the same direction each time."""
    residuals = 1 + np.random.default_rng(0).random((60, 1, 1))
    x = np.ones((1, 128, 128), np.float32)
    sums = clipped_sum(dense(128, 128), x, x)
    norms = [norm(sums(x, (value * x).astype(np.float32))) / CLIP for value in residuals]
    assert 1 - 1e-4 < min(norms) < max(norms) <= 1


def test_records_whose_scaled_residuals_underflow_count_for_at_most_the_clip_norm():
    """Two residuals nearly cancel; next to a huge input one of them underflows and the other does not."""
    x0, clip = np.ones((1, 2, 8), np.float32), 1e-12
    y = (1e-5 * x0 * np.array([1, -0.93]).reshape(1, 2, 1)).astype(np.float32)
    sums = clipped_sum(dense(8, 2), x0, y, clip=clip)
    norms = [norm(sums((size * x0).astype(np.float32), y)) / clip for size in np.geomspace(1e24, 1e28, 200)]
    assert max(norms) <= 1 + 1e-6


def test_layers_of_float32_and_float64_are_clipped_together():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(4, dtype="float64")])
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(3, 8)).astype(np.float32), generator.normal(size=(3, 4))
    sums = clipped_sum(randomise(model), x, y)
    assert [part.dtype for part in sums(x, y)] == ["float32", "float32", "float64", "float64"]
    for row in range(3):
        assert (1 - 1e-5) * CLIP < norm(sums(x[row : row + 1], y[row : row + 1])) <= CLIP
