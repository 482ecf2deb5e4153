"""The acceptances that TensorFlow computes are those of NumPy, and a generator sums them over its blocks."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.choices import Choices
from models.decoding.drafters import ModelDrafter
from models.decoding.first_acceptance import first_acceptance
from models.decoding.generator import Generator
from models.decoding.transport import k_seq_acceptance, optimal_acceptance
from models.recurrent_lm import RecurrentLanguageModel
from tests.models.decoding.test_transport import draw_pairs

SIZE = 6


@pytest.mark.parametrize("count", [1, 2, 5])
def test_acceptances_are_those_of_numpy(count):
    for p, q, _ in draw_pairs(24, 7):
        found = first_acceptance(tf.constant([q], tf.float64), tf.constant([p], tf.float64), count)[0]
        expected = k_seq_acceptance(p, q, count), optimal_acceptance(p, q, count)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_row_without_drafts_accepts_nothing():
    found = first_acceptance(tf.fill([2, 4], 0.25), tf.constant([[0.0] * 4, [0.25] * 4]), 3)
    np.testing.assert_allclose(found, [[0, 0], [1, 1]], atol=1e-12)


def constant_model(seed):
    """Returns a model whose distribution is the same after every text, and this distribution."""
    model: Any = RecurrentLanguageModel("si-cifg", SIZE, embedding=3, units=3, output_bias=True)
    weights = {name: np.zeros(shape, np.float32) for name, shape in model.shapes().items()}
    weights["output_bias"] = np.random.default_rng(seed).normal(0, 1.5, SIZE).astype(np.float32)
    exponentials = np.exp(weights["output_bias"].astype(np.float64))
    return model, weights, exponentials / exponentials.sum()


def generate(decoding, **sizes):
    model, weights, q = constant_model(0)
    drafter, drafter_weights, p = constant_model(1)
    generator = Generator(model, weights, decoding, ModelDrafter(drafter, drafter_weights), max_new_tokens=12, **sizes)
    found = generator([[1], [2, 3]], Choices(12, seed=1))
    again = generator.resume(found, Choices(4))
    return found, again, p, q


def test_generator_sums_the_acceptances_of_k_seq_and_the_best_rule_over_its_blocks():
    found, again, p, q = generate("spectr", draft_length=2, num_drafts=3)
    k_seq, best = k_seq_acceptance(p, q, 3), optimal_acceptance(p, q, 3)
    assert k_seq < 0.97 * best
    for part in (*found.acceptance, found.total, again.total):
        assert part.by_k_seq == pytest.approx(part.calls * k_seq, rel=1e-5, abs=0)
        assert part.by_best == pytest.approx(part.calls * best, rel=1e-5, abs=0)
    assert f"K-SEQ accepts {k_seq / best:.1%} of the optimum" in str(found.total)


@pytest.mark.parametrize(
    ("decoding", "sizes", "share"), [("tree", {"tree": (2, 1)}, 1.0), ("block", {"draft_length": 2}, None)]
)
def test_generator_knows_the_rules_that_are_the_best_for_their_drafts(decoding, sizes, share):
    found = generate(decoding, **sizes)[0]
    assert found.total.to_dict()["of_optimum"] == share
