"""Federated sums of groups equal those of the plain evaluation, client by client, and no token counts as a client."""

import numpy as np

from fl.evaluation import Evaluator
from fl.fairness.client_sums import contributions
from models.recurrent_lm import RecurrentLanguageModel

MODEL = RecurrentLanguageModel("si-cifg", 50, 6, 9)


def test_totals_are_the_sums_of_each_client_alone_whatever_the_shards(worker):
    from fl import group_sums

    generator = np.random.default_rng(0)
    lengths = (3, 0, 140, 1, 0, 70, 2)  # two clients without text; two with more than one batch
    sequences = [generator.integers(1, 50, (rows, 8)).astype(np.int32) for rows in lengths]
    sequences[0][-1, 5:] = 0
    codes, weights = np.array([2, 0, 1, 1, 3, 2, 0]), MODEL.init(2)
    # Makes the first predictions of two clients correct, so that scores differ.
    for client in (0, 5):
        logits, _ = MODEL.extend(weights, sequences[client][:, :-1], MODEL.initial_state(lengths[client]))
        sequences[client][:, 1] = np.argmax(logits, -1)[:, 0]
    found = Evaluator(MODEL, sequences)(weights)
    expected = np.zeros((5, 3), np.int64)
    np.add.at(expected, codes, contributions(found.correct.astype(np.int64), found.tokens))
    total = group_sums.build(MODEL, weights, 7, 5)
    for shards in (1, 3, 9):
        np.testing.assert_array_equal(total(sequences, codes, shards), expected)
    assert expected[2, 0] > 0 and not expected[3:].any()
