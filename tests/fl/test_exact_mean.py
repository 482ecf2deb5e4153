import math

import numpy as np
import pytest
import tensorflow as tf

from fl.aggregation import DPMean
from fl.exact_mean import COUNT_STEPS, STEPS, ExactDPMean
from privacy.keys import RunKeys
from privacy.noise.rounded import rounded_gaussian
from privacy.plan import AdaptiveClip, FixedClip, PrivacyPlan, PrivateMetrics
from privacy.sampling import Poisson
from tests.fl.test_aggregation import flat, measured, state_of, total, update
from tests.fl.test_clip_norm import dusty
from tests.tolerance import rounding

pytestmark = pytest.mark.numerical

KEYS = RunKeys.fixed(3)


def plan(noise=1.0, clip=None, metrics=None, kind="exact") -> PrivacyPlan:
    return PrivacyPlan(Poisson(0.5), 40, 5, noise, clip or FixedClip(1.0), metrics=metrics, noise=kind)


def contribution(values, aggregator=None, users=1):
    aggregator = aggregator or ExactDPMean(plan())
    client = update(values)
    if users > 1:
        nobody = update(np.zeros(len(values), np.float32), examples=0.0)
        client = tf.nest.map_structure(lambda one, none: tf.stack([one] + [none] * (users - 1)), client, nobody)
    return aggregator.client(state_of(aggregator), client)


def exact_norm(steps) -> int:
    """The sum of squares of integers, as a Python integer."""
    values, counts = np.unique(flat(steps), return_counts=True)
    return sum(int(value) ** 2 * int(count) for value, count in zip(values, counts, strict=True))


@pytest.mark.parametrize("users", [1, 3])
@pytest.mark.parametrize(
    "values",
    [
        [0.0] * 4,
        [1.0, 0, 0, 0],
        [0.3, -0.2, 0.1, 0.4],
        [1e30, -1e30, 1e30, 1e-30],
        [3.4e38] * 4,
        [1e-38] * 4,
        dusty(100_003),
        100 * dusty(100_003),
        *np.random.default_rng(0).normal(size=(20, 37)).astype(np.float32),
    ],
)
def test_the_integers_of_a_client_are_within_the_bound(values, users):
    found = contribution(values, users=users)
    assert all(value.dtype == tf.int64 for value in found.update.values())
    assert exact_norm(found.update) <= STEPS**2
    assert float(found.non_finite) == 0
    norm = float(np.linalg.norm(np.asarray(values, np.float64)))
    if norm < 1e37:  # else the factor is below the smallest normal float32: nothing rather than too much
        expected = np.asarray(values, np.float64) * min(1.0, 1 / norm if norm else 1.0) * STEPS
        assert np.abs(flat(found.update) - expected).max() <= 1 + 2e-6 * STEPS * min(1.0, norm)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_update_is_zeroed_and_counted(bad):
    found = contribution([bad, 1, 1, 1])
    assert not flat(found.update).any() and float(found.non_finite) == 1


def test_integers_beyond_the_bound_are_zeroed_and_counted(monkeypatch):
    """Were the clip wrong, as with the planted factor of 1.01, the integers would still be within their bound."""

    def too_much(self, state):
        return lambda norm: (1.01 * state["clip"] / tf.cast(norm, tf.float32), tf.zeros_like(state["clip"]))

    monkeypatch.setattr(DPMean, "_clip_factor", too_much)
    found = contribution([3.0, 0, 0, 4.0])
    assert not flat(found.update).any() and float(found.non_finite) == 1


def test_a_sum_is_the_same_in_any_order_and_grouping():
    generator = np.random.default_rng(1)
    clients = [update(generator.normal(size=50).astype(np.float32)) for _ in range(8)]
    aggregator = ExactDPMean(plan())
    state = state_of(aggregator)
    alone = total([aggregator.client(state, client) for client in clients])
    together = aggregator.client(state, tf.nest.map_structure(lambda *parts: tf.stack(parts), *clients[::-1]))
    np.testing.assert_array_equal(flat(alone.update), flat(together.update))


@pytest.mark.parametrize("clip", [FixedClip(0.7), AdaptiveClip(0.7, 0.5, 0.2, count_stddev=3.0)])
@pytest.mark.parametrize("metrics", [None, PrivateMetrics(0.1, 2.0)])
def test_what_is_released_follows_from_integers(clip, metrics):
    aggregator = ExactDPMean(plan(1.3, clip, metrics))
    promised = aggregator.plan
    clients = [measured(3.0, 3.0), measured(6.0, 1.0), measured(2.0, 6.0)]
    state = state_of(aggregator)
    summed = total([aggregator.client(state, client) for client in clients])
    noise = aggregator.noise(KEYS, 4, 4)
    assert noise.dtype == np.int64 and noise.shape == (aggregator.noise_size(4),)
    key = KEYS.noise_key(4)
    np.testing.assert_array_equal(
        noise[:4], rounded_gaussian(key + b"update", promised.value_noise_multiplier * STEPS, 4)
    )
    mean = aggregator.server(state, summed, noise)
    step = np.float64(np.float32(0.7)) / STEPS
    expected = (flat(summed.update) + noise[:4]) * step / promised.expected_cohort
    # An exact integer is rounded once and multiplied by the step over the expected cohort.
    np.testing.assert_allclose(flat(mean.update), expected, rtol=rounding(4, 1.0))
    if isinstance(clip, AdaptiveClip):
        of_count = rounded_gaussian(key + b"count", promised.count_stddev * 2 * COUNT_STEPS, 1)[0]
        fraction = (1.5 + of_count / (2 * COUNT_STEPS)) / promised.expected_cohort + 0.5
        assert float(mean.released["fraction_within_clip"]) == pytest.approx(fraction, rel=rounding(4, 1.0))
    if metrics is not None:
        of_metrics = rounded_gaussian(key + b"metrics", promised.metric_noise_multiplier * STEPS, 4)
        pairs = np.array(summed.pairs) + of_metrics.reshape(2, 2)
        # Integers that are rounded once, added and divided.
        within = rounding(4, np.abs(pairs).sum() / 2 / STEPS)
        assert float(mean.released["train_clients"]) == pytest.approx(pairs.sum() / 2 / STEPS, abs=within)


def test_it_agrees_with_floating_point_but_for_the_noise():
    """Without the noise both give the same mean, to a step of the grid for each client."""
    clients = [update(values) for values in np.random.default_rng(2).normal(size=(6, 30)).astype(np.float32)]
    exact, floating = ExactDPMean(plan()), DPMean(plan(0.0, kind="floating-point"))
    state = state_of(exact)
    summed = total([exact.client(state, client) for client in clients])
    mean = exact.server(state, summed, np.zeros(exact.noise_size(30), np.int64))
    other = floating.server(state, total([floating.client(state, c) for c in clients]), np.array([1, 2]))
    np.testing.assert_allclose(flat(mean.update), flat(other.update), atol=6 * 2 / STEPS / 20)


def test_rounds_have_noise_of_their_own_and_the_same_when_done_again():
    aggregator = ExactDPMean(plan())
    one, other = aggregator.noise(KEYS, 0, 1000), aggregator.noise(KEYS, 1, 1000)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.2
    np.testing.assert_array_equal(one, aggregator.noise(RunKeys.fixed(3), 0, 1000))
    assert (one != aggregator.noise(RunKeys.fixed(4), 0, 1000)).mean() > 0.99


def test_plans_and_aggregators_belong_together():
    with pytest.raises(ValueError, match="the plan's noise is 'floating-point' and this aggregator's is 'exact'"):
        ExactDPMean(plan(kind="floating-point"))
    with pytest.raises(ValueError, match="the plan's noise is 'exact' and this aggregator's is 'floating-point'"):
        DPMean(plan())
    with pytest.raises(ValueError, match="noise multiplier of the update is 1.95 times too large for exact noise"):
        ExactDPMean(plan(2000.0))
    with pytest.raises(ValueError, match="noise multiplier of the metrics is 1.24 times too large for exact noise"):
        ExactDPMean(plan(200.0, metrics=PrivateMetrics(0.05)))
    with pytest.raises(ValueError, match="clip count stddev is 1.19 times too large for exact noise"):
        ExactDPMean(plan(clip=AdaptiveClip(1.0, count_stddev=1e7)))
    with pytest.raises(ValueError, match="clip norm 1e-37 is too small for exact noise: take at least 1e-30"):
        ExactDPMean(plan(clip=FixedClip(1e-37)))
    with pytest.raises(ValueError, match="noise is 'exact' and the noise multiplier is 0"):
        plan(0.0)
    with pytest.raises(ValueError, match="noise is 'hard': give one of 'floating-point', 'exact'"):
        plan(kind="hard")
