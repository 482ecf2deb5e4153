import math

import numpy as np
import pytest
import tensorflow as tf

from fl.aggregation import Contribution, DPMean, ExampleWeightedMean, UniformMean
from fl.local_training import ClientUpdate
from privacy.plan import AdaptiveClip, FixedClip, PrivacyPlan
from privacy.sampling import Poisson

SEED = np.array([3, 4], np.int64)


def update(values, examples=2.0, loss=1.0) -> ClientUpdate:
    delta = {"a": tf.constant(values[:2], tf.float32), "b": tf.constant(values[2:], tf.float32)}
    return ClientUpdate(delta, tf.constant(examples), tf.constant(6.0), tf.constant(loss), tf.constant(examples))


def plan(noise=0.0, clip=None, rate=0.5, population=40) -> PrivacyPlan:
    return PrivacyPlan(Poisson(rate), population, 5, noise, clip or FixedClip(1.0))


def total(contributions: list[Contribution]) -> Contribution:
    return tf.nest.map_structure(lambda *parts: tf.add_n(parts), *contributions)


def state_of(aggregator) -> dict:
    return {name: tf.constant(value, tf.float32) for name, value in aggregator.initial_state().items()}


def run(aggregator, updates):
    state = state_of(aggregator)
    return aggregator.server(state, total([aggregator.client(state, u) for u in updates]), SEED)


def flat(update) -> np.ndarray:
    return np.concatenate([update["a"], update["b"]])


def test_uniform_mean():
    mean = run(UniformMean(), [update([1, 2, 3, 4], examples=1.0), update([3, 2, 1, 0], examples=9.0)])
    np.testing.assert_allclose(flat(mean.update), [2, 2, 2, 2])


def test_example_weighted_mean():
    mean = run(ExampleWeightedMean(), [update([1, 2, 3, 4], examples=1.0), update([3, 2, 1, 0], examples=3.0)])
    np.testing.assert_allclose(flat(mean.update), [2.5, 2, 1.5, 1])


@pytest.mark.parametrize("aggregator", [UniformMean(), ExampleWeightedMean(), DPMean(plan())])
def test_a_client_without_sequences_contributes_nothing(aggregator):
    contribution = aggregator.client(state_of(aggregator), update([0, 0, 0, 0], examples=0.0, loss=0.0))
    counts = contribution._replace(update=None, tokens=0, loss=0)
    assert all(float(value) == 0 for value in counts if value is not None)


@pytest.mark.parametrize("aggregator", [UniformMean(), ExampleWeightedMean(), DPMean(plan())])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_update_is_zeroed_and_counted(aggregator, bad):
    good = [update([0.1, 0.2, 0.3, 0.4]), update([0.3, 0.2, 0.1, 0.0])]
    state = state_of(aggregator)
    contribution = aggregator.client(state, update([bad, 1, 1, 1]))
    assert not flat(contribution.update).any()
    assert float(contribution.non_finite) == 1 and float(contribution.clients) == 1
    with_bad = run(aggregator, [*good, update([bad, 1, 1, 1])])
    np.testing.assert_allclose(flat(with_bad.update), flat(run(aggregator, good).update), atol=1e-7)


def test_a_non_finite_loss_counts_as_a_non_finite_update():
    contribution = UniformMean().client({}, update([1, 1, 1, 1], loss=math.nan))
    assert float(contribution.non_finite) == 1 and float(contribution.loss) == 0


def test_a_tiny_clip_norm_holds_where_squares_underflow():
    aggregator = DPMean(plan(clip=FixedClip(1e-24)))
    values = np.full(1000, 9e-21, np.float32)
    contribution = aggregator.client(state_of(aggregator), update(values))
    largest = float(np.abs(flat(contribution.update)).max())
    assert largest * np.sqrt(1000) <= 1e-24 * (1 + 1e-5) and float(contribution.within_clip) == -0.5


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 0.5, 0.50001, 1.0, 1e3, 1e18, 3e19, 1e38])
def test_a_client_moves_the_sum_by_at_most_the_clip_norm(scale):
    aggregator = DPMean(plan())
    direction = np.array([1, -1, 1, 1], np.float32)
    contribution = flat(aggregator.client(state_of(aggregator), update(scale * direction)).update)
    norm = np.linalg.norm(contribution.astype(np.float64))
    assert norm <= 1 + 1e-6
    if scale <= 0.5:  # within the clip norm: untouched, to the bit
        np.testing.assert_array_equal(contribution, np.float32(scale) * direction)
    elif scale < 1e37:
        assert norm == pytest.approx(1, abs=1e-6)
    else:  # the factor is below the smallest normal float32: nothing rather than too much
        assert norm <= 1


@pytest.mark.parametrize("aggregator", [DPMean(plan()), UniformMean(), ExampleWeightedMean()])
def test_clients_with_a_user_axis_are_each_treated_as_alone(aggregator):
    """Ordinary ones, some within the clip norm of 1 and some far above it."""
    generator = np.random.default_rng(1)
    each = [update(s * generator.normal(size=4), examples=s + 1) for s in (0.1, 0.3, 2.0, 9.0)]
    stacked = tf.nest.map_structure(lambda *parts: tf.stack(parts), *each)
    together = aggregator.client(state_of(aggregator), stacked)
    alone = total([aggregator.client(state_of(aggregator), one) for one in each])
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), together, alone)


def test_an_unusual_client_changes_nothing_for_those_beside_it():
    """Norms of huge or bad updates are taken with care; those of the others must not change by as much as rounding."""
    generator = np.random.default_rng(0)
    plain, other = generator.normal(size=(40, 4)).astype(np.float32), generator.normal(size=4).astype(np.float32)
    for value in plain:
        norm = float(np.sqrt(2 * (tf.nn.l2_loss(value[:2]) + tf.nn.l2_loss(value[2:]))))  # as usual clients' are
        aggregator = DPMean(plan(clip=FixedClip(norm)))

        def within(beside, value=value, aggregator=aggregator):
            both = tf.nest.map_structure(lambda *parts: tf.stack(parts), update(value), update(beside))
            return float(aggregator.client(state_of(aggregator), both).within_clip)

        quiet = within(1e-9 * other)  # far within the clip norm, and usual
        assert within(1e-24 * other) == quiet  # so small that its squares underflow


def test_the_clip_is_by_the_norm_over_all_tensors():
    aggregator = DPMean(plan())
    contribution = aggregator.client(state_of(aggregator), update([3, 0, 0, 4]))
    np.testing.assert_allclose(flat(contribution.update), [0.6, 0, 0, 0.8], rtol=1e-6)


def test_the_denominator_is_the_expected_cohort_whoever_came():
    for count in (0, 1, 30):
        mean = run(DPMean(plan()), [update([0, 0, 0, 0.5])] * count or [update([0, 0, 0, 0], examples=0.0)])
        np.testing.assert_allclose(flat(mean.update), [0, 0, 0, 0.5 * count / 20], rtol=1e-6)


def noise_of(aggregator, seed) -> np.ndarray:
    state = state_of(aggregator)
    empty = aggregator.client(state, update([0.0] * 4002, examples=0.0))
    return flat(aggregator.server(state, empty, np.array([seed, 1], np.int64)).update) * 20


def worst_moment(noise: np.ndarray, stddev: float) -> float:
    """Largest |z| of mean, variance and lag-one correlation for N(0, stddev^2)."""
    n = noise.size
    scaled = noise.astype(np.float64) / stddev
    products = scaled[:, 1:] * scaled[:, :-1]
    return max(
        abs(scaled.mean()) * np.sqrt(n),
        abs((scaled**2).mean() - 1) * np.sqrt(n / 2),
        abs(products.mean()) * np.sqrt(products.size),
    )


# Three standard normals beyond 5: probability below 2e-6.
def test_noise_is_gaussian_with_the_planned_standard_deviation():
    noise = np.stack([noise_of(DPMean(plan(noise=1.5, clip=FixedClip(0.4))), seed) for seed in range(25)])
    assert worst_moment(noise, 1.5 * 0.4) < 5


def test_the_noise_test_rejects_two_per_cent_less_noise_and_noise_shared_between_tensors():
    noise = np.stack([noise_of(DPMean(plan(noise=1.47, clip=FixedClip(0.4))), seed) for seed in range(25)])
    assert worst_moment(noise, 1.5 * 0.4) > 5
    shared = np.repeat(noise[:, ::2], 2, axis=1)
    assert worst_moment(shared, 1.47 * 0.4) > 5


def test_the_same_seed_gives_the_same_noise_and_another_seed_another():
    aggregator = DPMean(plan(noise=1.0))
    np.testing.assert_array_equal(noise_of(aggregator, 7), noise_of(aggregator, 7))
    assert abs(np.corrcoef(noise_of(aggregator, 7), noise_of(aggregator, 8))[0, 1]) < 0.1  # sd 0.016


def adaptive(noise=0.0, **settings) -> DPMean:
    return DPMean(plan(noise=noise, clip=AdaptiveClip(1.0, 0.5, 0.2, **settings)))


def test_the_adaptive_clip_moves_towards_the_quantile():
    small = [update([0.0, 0, 0, 0.01])] * 20
    large = [update([0.0, 0, 0, 100.0])] * 20
    assert float(run(adaptive(), small).state["clip"]) == pytest.approx(math.exp(-0.2 * 0.5), rel=1e-6)
    assert float(run(adaptive(), large).state["clip"]) == pytest.approx(math.exp(0.2 * 0.5), rel=1e-6)
    assert float(run(adaptive(), small[:10] + large[:10]).state["clip"]) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("quantile", [0.1, 0.9])
def test_the_adaptive_clip_follows_the_plans_quantile(quantile):
    aggregator = DPMean(plan(clip=AdaptiveClip(1.0, quantile, 0.2)))
    half = [update([0.0, 0, 0, 0.01])] * 10 + [update([0.0, 0, 0, 100.0])] * 10
    assert float(run(aggregator, half).state["clip"]) == pytest.approx(math.exp(-0.2 * (0.5 - quantile)), rel=1e-6)


def test_the_adaptive_count_has_sensitivity_one_half_and_its_own_noise():
    aggregator = adaptive(noise=1.0, count_stddev=3.0)
    state = state_of(aggregator)
    for value in (0.01, 100.0):
        assert abs(float(aggregator.client(state, update([0, 0, 0, value])).within_clip)) == 0.5
    empty = aggregator.client(state, update([0.0] * 4, examples=0.0))
    released = [aggregator.server(state, empty, np.array([s, 9], np.int64)).released for s in range(2000)]
    counts = (np.array([float(r["fraction_within_clip"]) for r in released]) - 0.5) * 20
    # 2,000 draws: relative error of the standard deviation 1.6 %; five of them.
    assert counts.std() == pytest.approx(3.0, rel=0.08)
    assert float(released[0]["noise_stddev"]) == pytest.approx((1 - 1 / 36) ** -0.5, rel=1e-6)


def test_a_private_mean_needs_a_clip():
    with pytest.raises(ValueError, match="needs a clip norm"):
        DPMean(PrivacyPlan(Poisson(0.5), 40, 5, 0.0, None))
