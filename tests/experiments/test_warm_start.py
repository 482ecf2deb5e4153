import numpy as np
import pytest

from experiments.config import WarmStartConfig
from experiments.warm_start import train_on_public_text
from fl.evaluation import Evaluator
from models.recurrent_lm import RecurrentLanguageModel

MODEL = RecurrentLanguageModel("si-cifg", 12, 6, 9)


def sequences() -> np.ndarray:
    """Returns sequences that run through the tokens 1 to 11 in a cycle, from random starts."""
    generator = np.random.default_rng(0)
    start = generator.integers(0, 11, (200, 1))
    return ((start + np.arange(9)) % 11 + 1).astype(np.int32)


def test_warm_start_learns_returns_best_epoch_and_is_repeatable():
    seen = []
    config = WarmStartConfig(epochs=6, learning_rate=0.02, batch_size=10)
    weights = train_on_public_text(MODEL, sequences(), config, 3, lambda epoch, loss: seen.append((epoch, loss)))
    evaluate = Evaluator(MODEL, [sequences()[::20]])
    assert [epoch for epoch, _ in seen] == list(range(1, len(seen) + 1))
    assert evaluate(weights).loss_per_token == pytest.approx(min(loss for _, loss in seen), rel=1e-6)
    assert min(loss for _, loss in seen) < 0.5 < evaluate(MODEL.init(3)).loss_per_token
    again = train_on_public_text(MODEL, sequences(), config, 3)
    assert all(np.array_equal(weights[name], again[name]) for name in weights)


def test_warm_start_without_epochs_returns_initial_weights():
    weights = train_on_public_text(MODEL, sequences(), WarmStartConfig(epochs=0), 3)
    assert all(np.array_equal(weights[name], value) for name, value in MODEL.init(3).items())


def test_output_bias_starts_at_public_log_frequencies():
    model = RecurrentLanguageModel("si-cifg", 12, 6, 9, output_bias=True)
    rows = np.array([[1, 2, 2, 0], [3, 2, 5, 0]], np.int32)
    bias = train_on_public_text(model, rows, WarmStartConfig(epochs=0), 3)["output_bias"]
    counts = np.full(12, 0.5)
    for token in (2, 2, 2, 5):
        counts[token] += 1
    np.testing.assert_allclose(bias, np.log(counts / counts.sum()), rtol=1e-6)


def test_warm_start_stops_early_when_held_out_loss_rises():
    noise = np.random.default_rng(1).integers(1, 12, (100, 9)).astype(np.int32)
    seen = []
    config = WarmStartConfig(epochs=50, learning_rate=0.05, batch_size=10)
    train_on_public_text(MODEL, noise, config, 0, lambda epoch, loss: seen.append(loss))
    assert len(seen) < 50 and min(seen) == min(seen[:-2])


def test_warm_start_refuses_too_little_public_text():
    with pytest.raises(ValueError, match="data.public has 39 sequences: 40 are needed"):
        train_on_public_text(MODEL, sequences()[:39], WarmStartConfig(epochs=1), 0)
