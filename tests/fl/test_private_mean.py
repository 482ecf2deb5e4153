"""Tests the private mean as a DPQuery and in TFF; statistics at fixed seeds must be within five standard errors."""

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


def test_query_sums_equal_exact_bounded_mean_sums():
    values = np.random.default_rng(1).normal(3, 4, 200).astype(np.float32)
    found = sums(BoundedMeanQuery(-2.0, 10.0, 1.0, SEED), values)
    want = BoundedMean(-2.0, 10.0, 1.0).sums(values)[:, 0].astype(float) / EXACT_STEPS
    np.testing.assert_allclose(found / STEPS, want, atol=200 * 2.0**-23)
    assert found.sum() == 200 * STEPS


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, -5.0, 7.0, math.inf, -math.inf, math.nan, 1e38])
def test_query_record_has_norm_of_at_most_one_width(value):
    pair = np.array(BoundedMeanQuery(0.0, 1.0, 1.0, SEED).preprocess_record((), tf.constant(value)))
    assert (pair >= 0).all() and pair.sum() == (0 if math.isnan(value) else STEPS)
    assert np.linalg.norm(pair) <= STEPS


def test_query_error_matches_noise_variance():
    query, multiplier, n, mu = BoundedMeanQuery(0.0, 1.0, 2.0, SEED), 2.0, 1000, 0.3
    state = tf.constant([round(mu * n) * STEPS, round((1 - mu) * n) * STEPS], tf.int64)

    @tf.function(autograph=False)
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
def test_private_mean_factory_runs_in_tff():
    process = private_mean_factory(0.0, 10.0, 0.01, SEED).create(tff.TensorType(np.float32))
    state, results = process.initialize(), []
    for values in ([1.0, 2.0, 6.0, float("nan")], [1.0, 2.0, 6.0], [20.0] * 50, []):
        output = process.next(state, [np.float32(value) for value in values])
        state = output.state
        results.append((float(output.result.mean), float(output.result.clients)))
    assert results[0] == pytest.approx((3.0, 3.0), abs=0.3) and results[1] == pytest.approx((3.0, 3.0), abs=0.3)
    assert results[0] != results[1]  # each round has noise of its own
    assert results[2] == pytest.approx((10.0, 50.0), abs=0.1)
    assert 0 <= results[3][0] <= 10 and abs(results[3][1]) < 0.2
    event = dp_accounting.dp_event.DpEvent.from_named_tuple(state.dp_event)
    assert isinstance(event, dp_accounting.GaussianDpEvent) and event.noise_multiplier == pytest.approx(0.01)


def test_query_noise_follows_seed_and_round():
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


def test_query_noise_differs_from_training_noise_of_same_seed():
    """With the same noise, as in an example of version 0.1, the difference of both releases would leak their sums."""
    query = BoundedMeanQuery(0.0, 1.0, 1.0, SEED)
    result, _, _ = query.get_noised_result(tf.constant([0, 0], tf.int64), query.initial_global_state())
    training_noise = [
        gaussian.standard_normal(2, gaussian.stream(SEED, name)) for name in ("update", "count", "metrics")
    ]
    for noise in [*training_noise, gaussian.standard_normal(2, SEED)]:
        share, clients = metric_pairs.released(metric_pairs.in_steps(noise, 1.0))
        assert abs(float(clients) - float(result.clients)) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lower": 2.0}, "lower 2 is not below upper 1: exchange them"),
        ({"lower": math.nan}, "lower"),
        ({"upper": math.inf}, "upper"),
        ({"noise_multiplier": 0.0}, "noise_multiplier must be"),
        ({"noise_multiplier": math.nan}, "noise_multiplier must be"),
        ({"seed": [1]}, r"seed has shape \[1\]: give int64 \[2\]"),
    ],
)
def test_private_mean_factory_refuses_invalid_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        private_mean_factory(**({"lower": 0.0, "upper": 1.0, "noise_multiplier": 1.0, "seed": SEED} | changes))
