from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.drafters import ModelDrafter
from models.decoding.rounded_weights import quantized
from models.recurrent_lm import RecurrentLanguageModel
from models.transformer.decoder import TransformerLanguageModel

V = 13
MODELS: list[Any] = [
    RecurrentLanguageModel("si-cifg", V, embedding=8, units=16, output_bias=True),
    TransformerLanguageModel(V, embedding=8, blocks=1, heads=2, feed_forward=16, positions="learned", tied=False),
]
MODEL = pytest.mark.parametrize("model", MODELS, ids=["recurrent", "transformer"])


def make_weights(model):
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in model.shapes().items()}
    weights["embedding"][2] = 0
    return weights


@MODEL
def test_each_column_or_row_holds_at_most_255_values_within_half_a_step(model):
    weights = make_weights(model)
    rounded = quantized(model, weights)
    assert rounded.keys() == weights.keys()
    for name, weight in weights.items():
        assert rounded[name].dtype == np.float32
        if weight.ndim == 1:
            np.testing.assert_array_equal(rounded[name], weight)
            continue
        axis = 1 if name in ("embedding", "output", "positions") else 0
        largest = np.abs(weight).max(axis=axis, keepdims=True).astype(np.float64)
        assert (np.abs(rounded[name] - weight) <= largest / 127 * (0.5 + 1e-4)).all()
        integers = rounded[name] / np.where(largest > 0, largest, 1) * 127
        np.testing.assert_allclose(integers, np.rint(integers), atol=1e-4)
        assert np.abs(rounded[name] - weight).max() > 1e-4


def train(model):
    """Trains on a cycle of tokens with some noise, by Adam without bias correction."""
    rng = np.random.default_rng(1)
    start = rng.integers(0, V, (48, 1))
    tokens = (1 + (start + 3 * np.arange(4)) % (V - 1)).astype(np.int32)
    tokens = np.where(rng.random(tokens.shape) < 0.1, rng.integers(1, V, tokens.shape), tokens).astype(np.int32)
    values = {name: tf.Variable(weight) for name, weight in model.init(0).items()}
    moments = {name: (tf.Variable(tf.zeros_like(v)), tf.Variable(tf.zeros_like(v))) for name, v in values.items()}

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model.token_losses(dict(values), tokens))
        for name, gradient in tape.gradient(loss, dict(values)).items():
            gradient = tf.convert_to_tensor(gradient)
            first, second = moments[name]
            first.assign(0.9 * first + 0.1 * gradient)
            second.assign(0.99 * second + 0.01 * gradient**2)
            values[name].assign_sub(0.05 * first / (tf.sqrt(second) + 1e-6))
        return loss

    losses = [float(step()) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    return {name: value.numpy() for name, value in values.items()}, tokens


@pytest.mark.parametrize("model", MODELS[:1], ids=["recurrent"])
def test_a_trained_model_and_its_quantized_self_accept_nearly_every_draft(model):
    weights, tokens = train(model)
    kept = []
    for own in (weights, quantized(model, weights), {n: w * (1 + 0.5 * (-1) ** len(n)) for n, w in weights.items()}):
        drafter = ModelDrafter(model, own)
        state, rows = drafter.initial_state(len(tokens)), []
        for place in range(tokens.shape[1]):
            logits, state = drafter.step(tf.constant(tokens[:, place]), state)
            rows.append(tf.nn.softmax(logits).numpy())
        kept.append(np.array(rows))
    # The probability that speculative decoding accepts a draft is the overlap of the two distributions.
    accepted = [np.minimum(kept[0], other).sum(axis=-1).mean() for other in kept]
    assert accepted[1] > 0.97
    assert accepted[2] < 0.95  # planted: other weights


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    weights = make_weights(MODELS[0])
    weights["projection"][1, 2] = value
    with pytest.raises(ValueError, match=r"weights\['projection'\] is not finite"):
        quantized(MODELS[0], weights)


def test_weights_of_another_model_are_refused():
    with pytest.raises(ValueError, match="weights are not those of the model"):
        quantized(MODELS[0], make_weights(MODELS[1]))
