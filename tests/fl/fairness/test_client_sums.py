"""A client counts once, whatever its tokens; its three numbers give count, sum and squares, and have the norm 1."""

import numpy as np
import pytest

from fl.fairness import from_counts, weighted_test
from fl.fairness.client_sums import (
    REPLACE_ONE,
    SENSITIVITY,
    STEPS,
    contributions,
    exact_sums,
    noise_stddevs,
    noisy_sums,
)
from tests.fl.fairness.simulation import assert_rate

TOKENS = np.array([0, 1, 1, 2, 7, 500, 12_345])
CORRECT = np.array([0, 0, 1, 1, 2, 123, 12_345])


def test_totals_are_clients_scores_and_squares_of_scores():
    values = contributions(CORRECT, TOKENS)
    scores = CORRECT[1:] / TOKENS[1:]
    assert not values[0].any(), "a client without tokens counts"
    each = exact_sums(values)
    np.testing.assert_array_equal(each.counts, [0, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(each.sums[1:], scores, atol=0.5 / STEPS)
    np.testing.assert_allclose(each.squares[1:], scores**2, atol=1 / STEPS)
    total = exact_sums(values.sum(0, keepdims=True))
    assert total.counts == 6 and total.sums == each.sums.sum() and total.squares == each.squares.sum()


def test_sensitivity_is_the_largest_norm_over_all_scores():
    step = np.arange(STEPS + 1)
    values = contributions(step, np.full_like(step, STEPS)).astype(float) * [1, np.sqrt(2), 1]
    norms = np.linalg.norm(values, axis=1) / SENSITIVITY
    assert norms[0] == norms[-1] == 1 and (norms <= 1).all()
    np.testing.assert_allclose(norms, (step / STEPS) ** 2 + (1 - step / STEPS) ** 2)
    # A client who leaves one group and one who joins another: the sums of two groups change.
    assert np.hypot(norms[0], norms[-1]) == pytest.approx(REPLACE_ONE)


def test_noise_has_the_sensitivity_of_the_scaled_sums():
    outer, middle = noise_stddevs(0.7)
    assert outer == pytest.approx(0.7 * SENSITIVITY) == pytest.approx(middle * np.sqrt(2))
    totals = contributions(CORRECT, TOKENS)
    sums = noisy_sums(totals, np.array([[STEPS**2, 0, -(STEPS**2)]] * 7), 0.7)
    np.testing.assert_allclose(sums.counts, exact_sums(totals).counts)
    np.testing.assert_allclose(sums.sums, exact_sums(totals).sums + 1)


def test_level_holds_for_clients_and_not_for_their_tokens():
    # Accuracies differ from client to client, so that the tokens of one client are alike. No group is worse off.
    codes, tokens = np.repeat(np.arange(12), 10), np.tile([20, 50, 100, 200, 30], 24)

    def rejects(generator: np.random.Generator, unit: str) -> bool:
        correct = generator.binomial(tokens, generator.beta(2.5, 7.5, len(tokens)))
        if unit == "token":
            sums = from_counts(np.bincount(codes, tokens), np.bincount(codes, correct))
        else:
            totals = np.zeros((12, 3), np.int64)
            np.add.at(totals, codes, contributions(correct, tokens))
            sums = exact_sums(totals)
        return weighted_test(sums, alpha=0.8).rejects

    assert_rate(lambda generator: rejects(generator, "client"), 0.02, 0.065, 1000, 1)
    assert_rate(lambda generator: rejects(generator, "token"), 0.9, 1.0, 300, 1)
