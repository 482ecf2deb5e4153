"""The add-remove mean as a DPQuery and in TFF. Statistics at fixed seeds, within five standard errors."""

import math

import tensorflow_federated as tff
import dp_accounting
import numpy as np
import pytest
import tensorflow as tf

from fl import gaussian, metric_pairs
from fl.metric_pairs import STEPS
from fl.private_mean import BoundedMeanQuery, Result, private_mean_factory
from privacy.statistics.mean import STEPS as EXACT_STEPS
from privacy.statistics.mean import BoundedMean

SEED = np.array([3, 4], np.int64)


def sums(query, values):
    state = query.initial_sample_state()
    for value in values:
        state = query.accumulate_record((), state, tf.constant(value, tf.float32))
    return np.array(state)


def test_its_sums_are_those_of_the_exact_mean():
    values = np.random.default_rng(1).normal(3, 4, 200).astype(np.float32)
    found = sums(BoundedMeanQuery(-2.0, 10.0, 1.0, SEED), values)
    want = BoundedMean(-2.0, 10.0, 1.0).sums(values)[:, 0].astype(float) / EXACT_STEPS
    np.testing.assert_allclose(found / STEPS, want, atol=200 * 2.0**-23)
    assert found.sum() == 200 * STEPS


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, -5.0, 7.0, math.inf, -math.inf, math.nan, 1e38])
def test_one_client_moves_the_pair_by_at_most_one_width(value):
    pair = np.array(BoundedMeanQuery(0.0, 1.0, 1.0, SEED).preprocess_record((), tf.constant(value)))
    assert (pair >= 0).all() and pair.sum() == (0 if math.isnan(value) else STEPS)
    assert np.linalg.norm(pair) <= STEPS


def test_the_error_is_that_of_the_noise():
    query, multiplier, n, mu = BoundedMeanQuery(0.0, 1.0, 2.0, SEED), 2.0, 1000, 0.3
    state = tf.constant([round(mu * n) * STEPS, round((1 - mu) * n) * STEPS], tf.int64)

    @tf.function
    def releases():
        def result(number):
            return query.get_noised_result(state, query._State(tf.constant(SEED), number))[0]

        return tf.map_fn(result, tf.range(4000, dtype=tf.int64), fn_output_signature=Result(tf.float32, tf.float32))

    means, clients = releases()
    squares = n**2 * np.square(np.array(means, float) - mu)
    want = multiplier**2 * (mu**2 + (1 - mu) ** 2)
    assert abs(squares.mean() - want) < 5 * squares.std() / math.sqrt(4000) + 0.01 * want
    assert abs(np.mean(clients) - n) < 5 * np.std(clients) / math.sqrt(4000)
    assert np.std(clients) == pytest.approx(multiplier * math.sqrt(2), rel=0.06)


@pytest.mark.usefixtures("worker")
def test_in_tff():
    process = private_mean_factory(0.0, 10.0, 0.01, SEED).create(tff.TensorType(np.float32))
    state, results = process.initialize(), []
    for values in ([1.0, 2.0, 6.0, float("nan")], [1.0, 2.0, 6.0], [20.0] * 50, []):
        output = process.next(state, [np.float32(value) for value in values])
        state = output.state
        results.append((float(output.result.mean), float(output.result.clients)))
    assert results[0] == pytest.approx((3.0, 3.0), abs=0.3) and results[1] == pytest.approx((3.0, 3.0), abs=0.3)
    assert results[0] != results[1]  # other noise in each round
    assert results[2] == pytest.approx((10.0, 50.0), abs=0.1)
    assert 0 <= results[3][0] <= 10 and abs(results[3][1]) < 0.2
    event = dp_accounting.dp_event.DpEvent.from_named_tuple(state.dp_event)
    assert isinstance(event, dp_accounting.GaussianDpEvent) and event.noise_multiplier == pytest.approx(0.01)


def test_the_same_round_has_the_same_noise_and_another_has_not():
    query = BoundedMeanQuery(0.0, 1.0, 1.0, SEED)
    pair, first = tf.constant([50 * STEPS, 50 * STEPS], tf.int64), query.initial_global_state()
    result, second, _ = query.get_noised_result(pair, first)
    again, _, _ = query.get_noised_result(pair, first)
    later, _, _ = query.get_noised_result(pair, second)
    other, _, _ = BoundedMeanQuery(0.0, 1.0, 1.0, SEED + 1).get_noised_result(
        pair, BoundedMeanQuery(0.0, 1.0, 1.0, SEED + 1).initial_global_state()
    )
    assert float(result.mean) == float(again.mean)
    assert len({float(r.mean) for r in (result, later, other)}) == 3


def test_noise_is_not_that_of_a_training_round_with_the_same_seed():
    """Version 0.1's own example gave both the same seed: their difference then told what they hide."""
    query = BoundedMeanQuery(0.0, 1.0, 1.0, SEED)
    result, _, _ = query.get_noised_result(tf.constant([0, 0], tf.int64), query.initial_global_state())
    of_training = [gaussian.standard_normal(2, gaussian.stream(SEED, name)) for name in ("update", "count", "metrics")]
    for noise in [*of_training, gaussian.standard_normal(2, SEED)]:
        share, clients = metric_pairs.released(metric_pairs.in_steps(noise, 1.0))
        assert abs(float(clients) - float(result.clients)) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lower": 2.0}, "lower 2 is not below upper 1: exchange them"),
        ({"lower": math.nan}, "lower"),
        ({"upper": math.inf}, "upper"),
        ({"noise_multiplier": 0.0}, "noise multiplier must be"),
        ({"noise_multiplier": math.nan}, "noise multiplier must be"),
        ({"seed": [1]}, r"seed has shape \[1\]: int64 \[2\] is needed"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        private_mean_factory(**({"lower": 0.0, "upper": 1.0, "noise_multiplier": 1.0, "seed": SEED} | changes))
