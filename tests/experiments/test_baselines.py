import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.baselines import KneserNeyBigram, Unigram
from fl.clients import sequences
from tests.oracles import ngram

SIZE = 7
CLIENT = st.lists(st.integers(1, SIZE - 1), min_size=1, max_size=12)
CLIENTS = st.lists(CLIENT, min_size=1, max_size=4).filter(lambda clients: any(len(client) > 1 for client in clients))


def arrays(clients):
    return [np.array(client, np.uint16) for client in clients]


@given(clients=CLIENTS)
def test_probabilities_equal_brute_force_models(clients):
    bigram, oracle = KneserNeyBigram.fit(arrays(clients), SIZE), ngram.KneserNeyBigram(clients, SIZE)
    unigram, plain = Unigram.fit(arrays(clients), SIZE), ngram.Unigram(clients, SIZE)
    # Padding is never a target, so its losses are 0 and it is left out here.
    for context in range(SIZE):
        rows = np.array([[context, token] for token in range(1, SIZE)])
        probabilities = np.exp(-bigram.token_losses(rows)[:, 0])
        expected = [oracle.probability(context, token) for token in range(1, SIZE)]
        np.testing.assert_allclose(probabilities, expected, rtol=1e-12)
        np.testing.assert_allclose(
            np.exp(-unigram.token_losses(rows)[:, 0]),
            [plain.probability(token) for token in range(1, SIZE)],
            rtol=1e-12,
        )


@given(clients=CLIENTS)
def test_probabilities_sum_to_one_after_every_context(clients):
    bigram, unigram = KneserNeyBigram.fit(arrays(clients), SIZE), Unigram.fit(arrays(clients), SIZE)
    oracle = ngram.KneserNeyBigram(clients, SIZE)
    for context in range(SIZE):
        rows = np.array([[context, token] for token in range(1, SIZE)])
        seen = np.exp(-bigram.token_losses(rows)).sum()
        padding = bigram.backoff[context] * bigram.unigram[0]
        assert seen + padding == pytest.approx(1, abs=1e-12)
        assert sum(oracle.probability(context, token) for token in range(SIZE)) == pytest.approx(1, abs=1e-12)
    assert np.exp(unigram.log_probabilities).sum() == pytest.approx(1, abs=1e-12)


@given(clients=CLIENTS, tested=CLIENTS)
def test_bigram_losses_are_positive_and_equal_oracle(clients, tested):
    bigram, oracle = KneserNeyBigram.fit(arrays(clients), SIZE), ngram.KneserNeyBigram(clients, SIZE)
    for client in tested:
        losses = bigram.token_losses(np.array(client))
        assert losses.dtype == np.float64
        np.testing.assert_allclose(losses, oracle.loss(client), rtol=1e-12)
        assert (losses > 0).all()


def test_bigram_equals_hand_computed_kneser_ney():
    # The text 1 2 3 2 3 2 has the pairs (1,2) once, (2,3) twice and (3,2) twice, so D = 1 / (1 + 2·2) = 0.2.
    # Two different tokens come before 2 and one before 3, so D' = 1 / (1 + 2·1) = 1/3.
    model = KneserNeyBigram.fit([np.array([1, 2, 3, 2, 3, 2])], 4)
    lower_three = (1 - 1 / 3) / 3 + (1 / 3) * 2 / 3 / 4
    probability = (2 - 0.2) / 2 + 0.2 * 1 / 2 * lower_three
    assert model.token_losses(np.array([2, 3]))[0] == pytest.approx(-math.log(probability), rel=1e-12)
    # "San Francisco": a token that is frequent, but only after one context, is unlikely after a new context.
    text = [1, 5, 6, *[3, 4] * 50, 2, 5, 6, 1, 6, 2, 6]
    san = KneserNeyBigram.fit([np.array(text)], 8)
    after_new = san.token_losses(np.array([[7, 4], [7, 6]]))[:, 0]
    assert after_new[0] > after_new[1]
    plain = Unigram.fit([np.array(text)], 8).token_losses(np.array([[7, 4], [7, 6]]))[:, 0]
    assert plain[0] < plain[1]


@given(client=st.lists(st.integers(1, SIZE - 1), min_size=2, max_size=20), length=st.integers(1, 6))
def test_losses_do_not_depend_on_windows_and_padding(client, length):
    tokens = np.array(client, np.uint16)
    windows = sequences(tokens, length)
    kinds: tuple[Any, ...] = (Unigram, KneserNeyBigram)
    for kind in kinds:
        model = kind.fit([tokens], SIZE)
        of_windows = kind.fit([windows], SIZE)
        whole = model.token_losses(tokens)
        parts = of_windows.token_losses(windows)
        assert parts.shape == (len(windows), length)
        np.testing.assert_allclose(parts[windows[:, 1:] != 0], whole, rtol=1e-12)
        assert (parts[windows[:, 1:] == 0] == 0).all()


def test_bigram_learns_markov_chain_that_unigram_cannot():
    rng = np.random.default_rng(0)
    chain = [1]
    for _ in range(5000):
        chain.append(1 + (chain[-1] + int(rng.integers(2))) % 5)
    train, test = np.array(chain[:4000]), np.array(chain[4000:])
    # Each token has two equally likely followers, so the bigram's loss is log 2. All five tokens are equally frequent,
    # so the unigram's is log 5. The tolerance is five standard errors.
    bigram = KneserNeyBigram.fit([train], SIZE).token_losses(test)
    unigram = Unigram.fit([train], SIZE).token_losses(test)
    assert bigram.mean() == pytest.approx(math.log(2), abs=5 * bigram.std() / math.sqrt(len(bigram)) + 0.005)
    assert unigram.mean() == pytest.approx(math.log(5), abs=5 * unigram.std() / math.sqrt(len(unigram)) + 0.005)


@pytest.mark.parametrize("kind", [Unigram, KneserNeyBigram])
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "the rows have no target"),
        ([[1]], "the rows have no target"),
        ([[1, 0, 0]], "the rows have no target"),
        ([[1, 7]], "from 1 to 7"),
        ([[-1, 2]], "from -1 to 2"),
    ],
)
def test_fit_refuses_rows_without_targets_or_with_unknown_tokens(kind, rows, reason):
    with pytest.raises(ValueError, match=reason):
        kind.fit([np.array(row) for row in rows], SIZE)


@pytest.mark.parametrize("kind", [Unigram, KneserNeyBigram])
def test_token_losses_refuses_unknown_tokens(kind):
    with pytest.raises(ValueError, match="not all in the vocabulary of 7"):
        kind.fit([np.array([1, 2, 3])], SIZE).token_losses(np.array([1, 7]))
