import math

import numpy as np
import pytest

from experiments.intervals import bits_per_character, mean_interval, paired_interval


def test_the_estimate_is_the_mean_over_tokens_not_over_clients():
    found = mean_interval(np.array([3.0, 10.0]), np.array([1, 9]))
    assert found.estimate == pytest.approx(1.3)
    # Resamples of two clients: (a, a) 3, (a, b) 1.3 twice, (b, b) 10/9. The outer 2.5 % are the two ends.
    assert (found.low, found.high) == pytest.approx((10 / 9, 3))
    inner = mean_interval(np.array([3.0, 10.0]), np.array([1, 9]), confidence=0.4)
    assert (inner.low, inner.high) == pytest.approx((1.3, 1.3))


def draw(rng, clients=40):
    """Losses of two models on clients of unlike size and hardness; the true difference a token is -0.1."""
    tokens = rng.integers(5, 200, clients)
    hardness = rng.normal(4, 1, clients)
    gain = rng.normal(-0.1, 0.2, clients)
    noise = rng.normal(0, 1, (2, clients)) * np.sqrt(tokens) * 0.1
    return (hardness + gain) * tokens + noise[0], hardness * tokens + noise[1], tokens


def coverage(interval, trials=300):
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(trials):
        low, high = interval(*draw(rng))
        hits += low <= -0.1 <= high
    return hits / trials


def test_it_covers_the_truth_as_often_as_it_says():
    # A percentile bootstrap over 40 clients covers a little less than 95 %. 300 trials have a standard error
    # of 1.3 %: a law with coverage 93 % leaves this range with probability below 1e-3.
    assert 0.88 <= coverage(lambda a, b, n: paired_interval(a, b, n)[1:]) <= 0.98


def test_the_coverage_test_would_see_tokens_taken_for_independent():
    # The planted fault: an interval as if each token were its own client.
    def by_token(a, b, tokens):
        difference = (a - b) / tokens
        mean = (a - b).sum() / tokens.sum()
        error = 1.96 * difference.std() / math.sqrt(tokens.sum())
        return mean - error, mean + error

    assert coverage(by_token) < 0.5


def test_pairing_removes_what_makes_a_client_hard():
    a, b, tokens = draw(np.random.default_rng(2))
    paired = paired_interval(a, b, tokens)
    alone = mean_interval(a, tokens)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    assert paired.estimate == pytest.approx(alone.estimate - mean_interval(b, tokens).estimate)


def test_swapping_the_models_mirrors_the_interval():
    a, b, tokens = draw(np.random.default_rng(3))
    there, back = paired_interval(a, b, tokens), paired_interval(b, a, tokens)
    assert (back.estimate, back.low, back.high) == pytest.approx((-there.estimate, -there.high, -there.low))


def test_equal_models_differ_by_nothing():
    a, _, tokens = draw(np.random.default_rng(4))
    assert paired_interval(a, a, tokens) == (0, 0, 0)


def test_a_higher_confidence_is_wider_and_a_seed_repeats():
    a, b, tokens = draw(np.random.default_rng(5))
    wide, narrow = (
        paired_interval(a, b, tokens, confidence=0.99),
        paired_interval(a, b, tokens, confidence=0.8),
    )
    assert wide.low < narrow.low < narrow.high < wide.high
    assert paired_interval(a, b, tokens) == paired_interval(a, b, tokens)
    assert paired_interval(a, b, tokens) != paired_interval(a, b, tokens, seed=1)


def test_clients_without_a_token_change_nothing():
    a, b, tokens = draw(np.random.default_rng(6))
    padded = [np.append(values, [0, 0]) for values in (a, b, tokens)]
    assert paired_interval(*padded) == paired_interval(a, b, tokens)


def test_many_clients_fit_in_memory():
    rng = np.random.default_rng(7)
    tokens = rng.integers(1, 9, 20_000)
    found = mean_interval(rng.normal(2, 1, 20_000) * tokens, tokens)
    assert found.low < 2 < found.high


@pytest.mark.parametrize(
    ("loss", "units", "confidence", "reason"),
    [
        ([], [], 0.95, "no token"),
        ([0.0], [0], 0.95, "no token"),
        ([1.0, math.nan, math.inf], [1, 1, 1], 0.95, "losses of 2 clients are not finite"),
        ([1.0], [1, 2], 0.95, "not one of each a client"),
        ([[1.0]], [[1]], 0.95, "not one of each a client"),
        ([1.0], [1], 1.0, "confidence 1.0"),
        ([1.0], [1], math.nan, "confidence nan"),
    ],
)
def test_bad_losses_are_refused(loss, units, confidence, reason):
    with pytest.raises(ValueError, match=reason):
        mean_interval(np.array(loss), np.array(units), confidence=confidence)


def test_models_on_different_clients_do_not_pair():
    with pytest.raises(ValueError, match="not the same clients"):
        paired_interval(np.ones(2), np.ones(3), np.ones(3))


def test_bits_per_character():
    # One nat a token of two characters: 1 / ln 2 / 2 bits.
    assert bits_per_character(10.0, 20) == pytest.approx(0.7213475204444817)
    with pytest.raises(ValueError, match="nothing to divide by"):
        bits_per_character(1.0, 0)
