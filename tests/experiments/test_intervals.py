import math

import numpy as np
import pytest

from experiments.intervals import bits_per_character, mean_interval, paired_interval


def test_mean_interval_estimates_mean_over_tokens_not_clients():
    interval = mean_interval(np.array([3.0, 10.0]), np.array([1, 9]))
    assert interval.estimate == pytest.approx(1.3)
    # Two clients have the resamples (a, a) with mean 3, (a, b) and (b, a) with 1.3, and (b, b) with 10/9. Each of the
    # two ends has probability 1/4, so the outer 2.5 % on either side are the ends.
    assert (interval.low, interval.high) == pytest.approx((10 / 9, 3))
    inner = mean_interval(np.array([3.0, 10.0]), np.array([1, 9]), confidence=0.4)
    assert (inner.low, inner.high) == pytest.approx((1.3, 1.3))


def draw(rng, clients=40):
    """Draws the losses of two models on clients of different size and difficulty.

    The true mean difference is -0.1 per token.
    """
    tokens = rng.integers(5, 200, clients)
    difficulty = rng.normal(4, 1, clients)
    gain = rng.normal(-0.1, 0.2, clients)
    noise = rng.normal(0, 1, (2, clients)) * np.sqrt(tokens) * 0.1
    return (difficulty + gain) * tokens + noise[0], difficulty * tokens + noise[1], tokens


def coverage(interval, trials=300):
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(trials):
        low, high = interval(*draw(rng))
        hits += low <= -0.1 <= high
    return hits / trials


def test_paired_interval_has_about_its_nominal_coverage():
    # A percentile bootstrap over 40 clients covers a little less than 95 %. The share in 300 trials has a standard
    # error of 1.3 %, so with a true coverage of 93 % it leaves this range with a probability below 1e-3.
    assert 0.88 <= coverage(lambda a, b, n: paired_interval(a, b, n)[1:]) <= 0.98


def test_coverage_test_detects_interval_that_treats_tokens_as_independent():
    # This interval has a planted fault: it treats each token as a client of its own.
    def by_token(a, b, tokens):
        difference = (a - b) / tokens
        mean = (a - b).sum() / tokens.sum()
        error = 1.96 * difference.std() / math.sqrt(tokens.sum())
        return mean - error, mean + error

    assert coverage(by_token) < 0.5


def test_paired_interval_is_narrower_than_unpaired():
    a, b, tokens = draw(np.random.default_rng(2))
    paired = paired_interval(a, b, tokens)
    alone = mean_interval(a, tokens)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    assert paired.estimate == pytest.approx(alone.estimate - mean_interval(b, tokens).estimate)


def test_paired_interval_is_mirrored_when_models_are_swapped():
    a, b, tokens = draw(np.random.default_rng(3))
    there, back = paired_interval(a, b, tokens), paired_interval(b, a, tokens)
    assert (back.estimate, back.low, back.high) == pytest.approx((-there.estimate, -there.high, -there.low))


def test_paired_interval_of_equal_models_is_zero():
    a, _, tokens = draw(np.random.default_rng(4))
    assert paired_interval(a, a, tokens) == (0, 0, 0)


def test_higher_confidence_widens_interval_and_equal_seeds_repeat_it():
    a, b, tokens = draw(np.random.default_rng(5))
    wide, narrow = (
        paired_interval(a, b, tokens, confidence=0.99),
        paired_interval(a, b, tokens, confidence=0.8),
    )
    assert wide.low < narrow.low < narrow.high < wide.high
    assert paired_interval(a, b, tokens) == paired_interval(a, b, tokens)
    assert paired_interval(a, b, tokens) != paired_interval(a, b, tokens, seed=1)


def test_clients_without_tokens_do_not_change_interval():
    a, b, tokens = draw(np.random.default_rng(6))
    padded = [np.append(values, [0, 0]) for values in (a, b, tokens)]
    assert paired_interval(*padded) == paired_interval(a, b, tokens)


def test_mean_interval_of_20000_clients_covers_true_mean():
    rng = np.random.default_rng(7)
    tokens = rng.integers(1, 9, 20_000)
    interval = mean_interval(rng.normal(2, 1, 20_000) * tokens, tokens)
    assert interval.low < 2 < interval.high


@pytest.mark.parametrize(
    ("loss", "units", "confidence", "reason"),
    [
        ([], [], 0.95, "no client has a token"),
        ([0.0], [0], 0.95, "no client has a token"),
        ([1.0, math.nan, math.inf], [1, 1, 1], 0.95, "losses of 2 clients are not finite"),
        ([1.0], [1, 2], 0.95, "give one loss and one number of units per client"),
        ([[1.0]], [[1]], 0.95, "give one loss and one number of units per client"),
        ([1.0], [1], 1.0, "confidence 1.0"),
        ([1.0], [1], math.nan, "confidence nan"),
    ],
)
def test_mean_interval_refuses_invalid_input(loss, units, confidence, reason):
    with pytest.raises(ValueError, match=reason):
        mean_interval(np.array(loss), np.array(units), confidence=confidence)


def test_paired_interval_refuses_losses_on_different_clients():
    with pytest.raises(ValueError, match="on the same clients"):
        paired_interval(np.ones(2), np.ones(3), np.ones(3))


def test_bits_per_character_converts_nats_and_refuses_zero_characters():
    # 10 nats in 20 characters are half a nat per character, which is 1 / (2 ln 2) bits.
    assert bits_per_character(10.0, 20) == pytest.approx(0.7213475204444817)
    with pytest.raises(ValueError, match="need at least one"):
        bits_per_character(1.0, 0)
