"""The results of prediction heads equal those of a slow oracle, and h_max its definition."""

import itertools

import numpy as np
import pytest

from experiments.head_evaluation import HeadEvaluation, HeadEvaluator, find_h_max, table
from models.heads import HeadedLanguageModel
from models.recurrent_lm import RecurrentLanguageModel
from tests.oracles import heads as oracle

MODEL = HeadedLanguageModel(RecurrentLanguageModel("cifg", 11, 4, 6, output_bias=True), 3)


def make_weights(model):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in model.shapes().items()}


def make_clients():
    """Returns the sequences of two clients, with padding at the end of a row, inside one, and a row of padding."""
    rows = np.random.default_rng(1).integers(1, 11, (5, 8)).astype(np.int32)
    rows[0, 4:] = rows[1, 3] = rows[4] = 0
    return [rows[:2], rows[2:]]


@pytest.mark.numerical
@pytest.mark.parametrize("is_frozen", [False, True], ids=["joint", "frozen"])
def test_loss_accuracy_and_entropy_of_each_head_equal_the_oracle(is_frozen):
    weights, clients = make_weights(MODEL), make_clients()
    base, heads = MODEL.split(weights)
    model = HeadedLanguageModel(MODEL.base, 3, base) if is_frozen else MODEL
    found = HeadEvaluator(model, clients)(heads if is_frozen else weights)
    exact = {name: weight.astype(np.float64) for name, weight in weights.items()}
    for client, rows in enumerate(clients):
        for head, each in enumerate(oracle.predictions(MODEL.base, exact, rows, 3)):
            assert found.tokens[head, client] == len(each)
            assert found.correct[head, client] == sum(int(np.argmax(z)) == target for z, target in each)
            # In float32; a target more or less is off by 0.1 or more.
            np.testing.assert_allclose(found.loss[head, client], -sum(z[target] for z, target in each), rtol=1e-4)
            entropy = -sum(float(np.sum(np.exp(z) * z)) for z, _ in each)
            np.testing.assert_allclose(found.entropy[head, client], entropy, rtol=1e-4)
    np.testing.assert_allclose(
        found.loss_per_token, oracle.loss_sum(MODEL.base, exact, np.concatenate(clients), 3) / found.tokens[0].sum(),
        rtol=1e-4,
    )  # fmt: skip


def test_h_max_is_the_largest_k_up_to_which_entropies_do_not_fall():
    for heads in range(1, 6):
        for entropies in itertools.product([0.5, 1.0, 2.0], repeat=heads):
            rising = [k for k in range(1, heads + 1) if all(entropies[i - 1] <= entropies[i] for i in range(1, k))]
            assert find_h_max(entropies) == max(rising)


def test_h_max_of_a_model_without_a_value_ends_there():
    assert find_h_max([1.0, float("nan"), 2.0]) == 1


def test_head_without_targets_has_no_means_and_ends_h_max():
    sums = np.array([[1.0, 2.0], [2.0, 2.0], [0.0, 0.0]])
    found = HeadEvaluation(sums, sums, sums, np.array([[2, 3], [1, 2], [0, 0]]))
    assert found.h_max == 2
    results = found.to_dict()
    assert results["heads"][2] == {"head": 3, "tokens": 0, "accuracy": None, "entropy": None, "loss": None}
    assert results["heads"][0]["accuracy"]["estimate"] == pytest.approx(3 / 5)
    lines = table(results, "some text").splitlines()
    assert lines[0].startswith("Prediction heads on some text;") and "h_max = 2" in lines[0]
    assert lines[4].startswith("| 1 | 5 | 0.600 [") and lines[6] == "| 3 | 0 |  |  |  |"


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="no sequence to evaluate the prediction heads on"):
        HeadEvaluator(MODEL, [])
