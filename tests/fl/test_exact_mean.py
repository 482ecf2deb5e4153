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


def contribution(values, aggregator=None, clients=1):
    aggregator = aggregator or ExactDPMean(plan())
    client = update(values)
    if clients > 1:
        absent = update(np.zeros(len(values), np.float32), examples=0.0)
        client = tf.nest.map_structure(lambda one, none: tf.stack([one] + [none] * (clients - 1)), client, absent)
    return aggregator.client(state_of(aggregator), client)


def exact_norm(steps) -> int:
    """Returns the sum of squares of integers as a Python integer."""
    values, counts = np.unique(flat(steps), return_counts=True)
    return sum(int(value) ** 2 * int(count) for value, count in zip(values, counts, strict=True))


@pytest.mark.parametrize("clients", [1, 3])
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
def test_exact_contribution_norm_is_at_most_steps(values, clients):
    total = contribution(values, clients=clients)
    assert all(value.dtype == tf.int64 for value in total.update.values())
    assert exact_norm(total.update) <= STEPS**2
    assert float(total.non_finite) == 0
    norm = float(np.linalg.norm(np.asarray(values, np.float64)))
    if norm < 1e37:  # above, the factor is below the smallest normal float32 and the contribution may be zero
        expected = np.asarray(values, np.float64) * min(1.0, 1 / norm if norm else 1.0) * STEPS
        assert np.abs(flat(total.update) - expected).max() <= 1 + 2e-6 * STEPS * min(1.0, norm)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_exact_mean_zeroes_and_counts_non_finite_update(bad):
    total = contribution([bad, 1, 1, 1])
    assert not flat(total.update).any() and float(total.non_finite) == 1


def test_exact_mean_zeroes_and_counts_integers_beyond_bound(monkeypatch):
    """If the clip is wrong, as with the planted factor of 1.01, the integers must still be within their bound."""

    def clip_too_little(self, state):
        return lambda norm: (1.01 * state["clip"] / tf.cast(norm, tf.float32), tf.zeros_like(state["clip"]))

    monkeypatch.setattr(DPMean, "_build_clip_rule", clip_too_little)
    total = contribution([3.0, 0, 0, 4.0])
    assert not flat(total.update).any() and float(total.non_finite) == 1


def test_exact_sum_does_not_depend_on_order_or_grouping():
    generator = np.random.default_rng(1)
    clients = [update(generator.normal(size=50).astype(np.float32)) for _ in range(8)]
    aggregator = ExactDPMean(plan())
    state = state_of(aggregator)
    alone = total([aggregator.client(state, client) for client in clients])
    together = aggregator.client(state, tf.nest.map_structure(lambda *parts: tf.stack(parts), *clients[::-1]))
    np.testing.assert_array_equal(flat(alone.update), flat(together.update))


@pytest.mark.parametrize("clip", [FixedClip(0.7), AdaptiveClip(0.7, 0.5, 0.2, count_stddev=3.0)])
@pytest.mark.parametrize("metrics", [None, PrivateMetrics(0.1, 2.0)])
def test_exact_mean_releases_noisy_integer_sums(clip, metrics):
    aggregator = ExactDPMean(plan(1.3, clip, metrics))
    planned = aggregator.plan
    clients = [measured(3.0, 3.0), measured(6.0, 1.0), measured(2.0, 6.0)]
    state = state_of(aggregator)
    summed = total([aggregator.client(state, client) for client in clients])
    noise = aggregator.noise(KEYS, 4, 4)
    assert noise.dtype == np.int64 and noise.shape == (aggregator.noise_size(4),)
    key = KEYS.noise_key(4)
    np.testing.assert_array_equal(
        noise[:4], rounded_gaussian(key + b"update", planned.value_noise_multiplier * STEPS, 4)
    )
    mean = aggregator.server(state, summed, noise)
    step = np.float64(np.float32(0.7)) / STEPS
    expected = (flat(summed.update) + noise[:4]) * step / planned.expected_cohort
    # An exact integer is rounded once and multiplied by the step over the expected cohort.
    np.testing.assert_allclose(flat(mean.update), expected, rtol=rounding(4, 1.0))
    if isinstance(clip, AdaptiveClip):
        count_noise = rounded_gaussian(key + b"count", planned.count_stddev * 2 * COUNT_STEPS, 1)[0]
        fraction = (1.5 + count_noise / (2 * COUNT_STEPS)) / planned.expected_cohort + 0.5
        assert float(mean.released["fraction_within_clip"]) == pytest.approx(fraction, rel=rounding(4, 1.0))
    if metrics is not None:
        metric_noise = rounded_gaussian(key + b"metrics", planned.metric_noise_multiplier * STEPS, 4)
        pairs = np.array(summed.pairs) + metric_noise.reshape(2, 2)
        # Integers that are rounded once, added and divided.
        within = rounding(4, np.abs(pairs).sum() / 2 / STEPS)
        assert float(mean.released["train_clients"]) == pytest.approx(pairs.sum() / 2 / STEPS, abs=within)


def test_exact_mean_without_noise_equals_floating_point_mean():
    """Without noise both give the same mean, up to one grid step for each client."""
    clients = [update(values) for values in np.random.default_rng(2).normal(size=(6, 30)).astype(np.float32)]
    exact, floating = ExactDPMean(plan()), DPMean(plan(0.0, kind="floating-point"))
    state = state_of(exact)
    summed = total([exact.client(state, client) for client in clients])
    mean = exact.server(state, summed, np.zeros(exact.noise_size(30), np.int64))
    other = floating.server(state, total([floating.client(state, c) for c in clients]), np.array([1, 2]))
    np.testing.assert_allclose(flat(mean.update), flat(other.update), atol=6 * 2 / STEPS / 20)


def test_exact_noise_differs_between_rounds_and_repeats_for_same_key():
    aggregator = ExactDPMean(plan())
    one, other = aggregator.noise(KEYS, 0, 1000), aggregator.noise(KEYS, 1, 1000)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.2
    np.testing.assert_array_equal(one, aggregator.noise(RunKeys.fixed(3), 0, 1000))
    assert (one != aggregator.noise(RunKeys.fixed(4), 0, 1000)).mean() > 0.99


def test_exact_mean_refuses_unsuitable_plans():
    with pytest.raises(ValueError, match="the plan's noise is 'floating-point' and this aggregator's is 'exact'"):
        ExactDPMean(plan(kind="floating-point"))
    with pytest.raises(ValueError, match="the plan's noise is 'exact' and this aggregator's is 'floating-point'"):
        DPMean(plan())
    with pytest.raises(ValueError, match="value_noise_multiplier is 2000, and exact noise allows at most 1024: lower"):
        ExactDPMean(plan(2000.0))
    with pytest.raises(ValueError, match="metric_noise_multiplier is 1264.91, and exact noise allows at most 1024"):
        ExactDPMean(plan(200.0, metrics=PrivateMetrics(0.05)))
    with pytest.raises(ValueError, match=r"count_stddev is 1e\+07, and exact noise allows at most 8.38861e\+06"):
        ExactDPMean(plan(clip=AdaptiveClip(1.0, count_stddev=1e7)))
    with pytest.raises(ValueError, match="clip norm 1e-37 is too small for exact noise: take at least 1e-30"):
        ExactDPMean(plan(clip=FixedClip(1e-37)))
    with pytest.raises(ValueError, match="noise is 'exact' but noise_multiplier is 0"):
        plan(0.0)
    with pytest.raises(ValueError, match="noise is 'hard': give one of 'floating-point', 'exact'"):
        plan(kind="hard")
