import numpy as np
import pytest

from experiments.config import PretrainingConfig
from experiments.pretraining import initial_weights, pretrain
from fl.evaluation import Evaluator
from models.recurrent_lm import RecurrentLanguageModel

MODEL = RecurrentLanguageModel("si-cifg", 12, 6, 9)


def sequences() -> np.ndarray:
    """Returns sequences that run through the tokens 1 to 11 in a cycle, from random starts."""
    generator = np.random.default_rng(0)
    start = generator.integers(0, 11, (200, 1))
    return ((start + np.arange(9)) % 11 + 1).astype(np.int32)


def test_pretraining_learns_returns_best_epoch_and_is_repeatable():
    seen = []
    config = PretrainingConfig(epochs=6, learning_rate=0.02, batch_size=10)
    weights = pretrain(
        MODEL, sequences(), config, MODEL.init(3), 3, lambda step, _, loss: seen.append((step // 19, loss))
    )
    evaluate = Evaluator(MODEL, [sequences()[::20]])
    assert [epoch for epoch, _ in seen] == list(range(1, len(seen) + 1))
    assert evaluate(weights).loss_per_token == pytest.approx(min(loss for _, loss in seen), rel=1e-6)
    assert min(loss for _, loss in seen) < 0.5 < evaluate(MODEL.init(3)).loss_per_token
    again = pretrain(MODEL, sequences(), config, MODEL.init(3), 3)
    assert all(np.array_equal(weights[name], again[name]) for name in weights)


def test_pretraining_without_epochs_returns_initial_weights():
    weights = pretrain(MODEL, sequences(), PretrainingConfig(epochs=0), MODEL.init(3), 3)
    assert all(np.array_equal(weights[name], value) for name, value in MODEL.init(3).items())


def test_output_bias_starts_at_public_log_frequencies():
    model = RecurrentLanguageModel("si-cifg", 12, 6, 9, output_bias=True)
    rows = np.array([[1, 2, 2, 0], [3, 2, 5, 0]], np.int32)
    bias = initial_weights(model, rows, 3)["output_bias"]
    counts = np.full(12, 0.5)
    for token in (2, 2, 2, 5):
        counts[token] += 1
    np.testing.assert_allclose(bias, np.log(counts / counts.sum()), rtol=1e-6)


def test_pretraining_stops_early_when_held_out_loss_rises():
    noise = np.random.default_rng(1).integers(1, 12, (100, 9)).astype(np.int32)
    seen = []
    config = PretrainingConfig(epochs=50, learning_rate=0.05, batch_size=10)
    pretrain(MODEL, noise, config, MODEL.init(0), 0, lambda step, steps, loss: seen.append(loss))
    assert len(seen) < 50 and min(seen) == min(seen[:-2])


def test_pretraining_refuses_too_little_public_text():
    with pytest.raises(ValueError, match="data.public has 39 sequences: 40 are needed"):
        pretrain(MODEL, sequences()[:39], PretrainingConfig(epochs=1), MODEL.init(0), 0)
