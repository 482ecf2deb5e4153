from functools import partial

import numpy as np
import pytest

from fl.evaluation import Evaluator
from models.recurrent_lm import RecurrentLanguageModel
from tests.models import exported
from tests.tolerance import FUNCTION, condition, rounding

pytestmark = pytest.mark.numerical

MODEL = RecurrentLanguageModel("si-cifg", 50, 6, 9)


def sequences() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    clients = [generator.integers(1, 50, (rows, 8)).astype(np.int32) for rows in (3, 0, 140, 1)]
    clients[0][-1, 5:] = 0
    return clients


def sums(rows, weights):
    return [np.sum(MODEL.token_losses(weights, rows).numpy() * (rows[:, 1:] != 0), dtype=np.float64)]


def test_evaluator_sums_equal_model_losses():
    weights = MODEL.init(1)
    found = Evaluator(MODEL, sequences())(weights)
    for client, rows in enumerate(sequences()):
        real = rows[:, 1:] != 0
        losses = MODEL.token_losses(weights, rows).numpy() if len(rows) else np.zeros((0, 7))
        # The softmax over 50 tokens, the sum over a client's.
        operations = exported.operations(MODEL) + 50 + 2 * FUNCTION + real.size
        within = rounding(operations, condition(partial(sums, rows), weights)) if len(rows) else 0
        assert found.loss[client] == pytest.approx((losses * real).sum(), abs=within)
        assert found.tokens[client] == real.sum()
    assert found.loss_per_token == pytest.approx(found.loss.sum() / found.tokens.sum())


def test_evaluator_accuracy_counts_most_likely_token():
    weights = MODEL.init(2)
    rows = sequences()[2]
    logits, _ = MODEL.extend(weights, rows[:, :-1], MODEL.initial_state(len(rows)))
    most_likely = np.argmax(logits, -1)
    assert Evaluator(MODEL, [rows])(weights).correct[0] == (most_likely == rows[:, 1:]).sum()
    rows[:, 1] = most_likely[:, 0]  # makes the first prediction of every row correct
    found = Evaluator(MODEL, [rows])(weights)
    assert found.correct[0] >= len(rows) and 1 / 7 <= found.accuracy < 0.5


def test_evaluator_refuses_clients_without_sequences():
    with pytest.raises(ValueError, match="no sequence to evaluate on"):
        Evaluator(MODEL, [np.zeros((0, 8), np.int32)])
    with pytest.raises(ValueError, match="no sequence to evaluate on"):
        Evaluator(MODEL, [])
