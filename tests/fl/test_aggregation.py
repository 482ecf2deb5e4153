import math

import numpy as np
import pytest
import tensorflow as tf

from fl import aggregation, gaussian
from fl.aggregation import Contribution, DPMean, ExampleWeightedMean, UniformMean
from fl.local_training import ClientUpdate
from privacy.plan import AdaptiveClip, FixedClip, PrivacyPlan, PrivateMetrics
from privacy.sampling import Poisson
from tests.tolerance import FUNCTION, rounding

pytestmark = pytest.mark.numerical

SEED = np.array([3, 4], np.int64)
# Relative distance of a clipped update from the clip norm: norms are taken in float64, so a factor and a product in
# float32, and the margin that covers them.
CLIPPED = rounding(2, 1.0) + aggregation._MARGIN


def update(values, examples=2.0, loss=1.0) -> ClientUpdate:
    delta = {"a": tf.constant(values[:2], tf.float32), "b": tf.constant(values[2:], tf.float32)}
    return ClientUpdate(delta, *map(tf.constant, (examples, 6.0, loss, examples, 0.0)))


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


def test_uniform_mean_counts_every_client_equally():
    mean = run(UniformMean(), [update([1, 2, 3, 4], examples=1.0), update([3, 2, 1, 0], examples=9.0)])
    np.testing.assert_allclose(flat(mean.update), [2, 2, 2, 2])


def test_example_weighted_mean_weighs_clients_by_examples():
    mean = run(ExampleWeightedMean(), [update([1, 2, 3, 4], examples=1.0), update([3, 2, 1, 0], examples=3.0)])
    np.testing.assert_allclose(flat(mean.update), [2.5, 2, 1.5, 1])


@pytest.mark.parametrize("aggregator", [UniformMean(), ExampleWeightedMean(), DPMean(plan())])
def test_aggregator_ignores_client_without_examples(aggregator):
    contribution = aggregator.client(state_of(aggregator), update([0, 0, 0, 0], examples=0.0, loss=0.0))
    counts = contribution._replace(update=None, tokens=0, loss=0, pairs=None)
    assert all(float(value) == 0 for value in counts if value is not None)


@pytest.mark.parametrize("aggregator", [UniformMean(), ExampleWeightedMean(), DPMean(plan())])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_aggregator_zeroes_and_counts_non_finite_update(aggregator, bad):
    good = [update([0.1, 0.2, 0.3, 0.4]), update([0.3, 0.2, 0.1, 0.0])]
    state = state_of(aggregator)
    contribution = aggregator.client(state, update([bad, 1, 1, 1]))
    assert not flat(contribution.update).any()
    assert float(contribution.non_finite) == 1 and float(contribution.clients) == 1
    with_bad = run(aggregator, [*good, update([bad, 1, 1, 1])])
    # A sum of two entries below 0.4, each times its weight or clip factor, over the number.
    np.testing.assert_allclose(flat(with_bad.update), flat(run(aggregator, good).update), atol=rounding(4, 0.8))


def test_uniform_mean_counts_non_finite_loss_as_non_finite_update():
    contribution = UniformMean().client({}, update([1, 1, 1, 1], loss=math.nan))
    assert float(contribution.non_finite) == 1 and float(contribution.loss) == 0


def test_dp_mean_clips_to_tiny_norm_whose_squares_underflow():
    aggregator = DPMean(plan(clip=FixedClip(1e-24)))
    values = np.full(1000, 9e-21, np.float32)
    contribution = aggregator.client(state_of(aggregator), update(values))
    largest = float(np.abs(flat(contribution.update)).max())
    assert largest * np.sqrt(1000) <= 1e-24 * (1 + 1e-5) and float(contribution.within_clip) == -0.5


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 0.5, 0.50001, 1.0, 1e3, 1e18, 3e19, 1e38])
def test_dp_mean_contribution_is_at_most_clip_norm(scale):
    aggregator = DPMean(plan())
    direction = np.array([1, -1, 1, 1], np.float32)
    contribution = flat(aggregator.client(state_of(aggregator), update(scale * direction)).update)
    norm = np.linalg.norm(contribution.astype(np.float64))
    assert norm <= 1 + 1e-6
    if scale < 0.5:  # within the clip norm: untouched, to the bit
        np.testing.assert_array_equal(contribution, np.float32(scale) * direction)
    elif scale < 1e37:
        assert norm == pytest.approx(1, abs=CLIPPED) and norm <= 1
    else:  # the factor is below the smallest normal float32, so the contribution may be zero, but not too large
        assert norm <= 1


@pytest.mark.parametrize("aggregator", [DPMean(plan()), UniformMean(), ExampleWeightedMean()])
def test_aggregator_treats_stacked_clients_like_single_clients(aggregator):
    """The updates have ordinary sizes, some within the clip norm of 1 and some far above it."""
    generator = np.random.default_rng(1)
    each = [update(s * generator.normal(size=4), examples=s + 1) for s in (0.1, 0.3, 2.0, 9.0)]
    stacked = tf.nest.map_structure(lambda *parts: tf.stack(parts), *each)
    together = aggregator.client(state_of(aggregator), stacked)
    alone = total([aggregator.client(state_of(aggregator), one) for one in each])
    # A sum of four clients' entries or counts, with the norm of four entries and the factor by it.
    sizes = tf.nest.map_structure(lambda part: np.abs(part).sum(), together)
    tf.nest.map_structure(
        lambda a, b, size: np.testing.assert_allclose(a, b, rtol=0, atol=rounding(4 + 4 + 2, 2 * float(size))),
        together,
        alone,
        sizes,
    )


def test_dp_mean_within_clip_does_not_depend_on_other_stacked_client():
    """An update whose squares underflow, beside it, must not change a client's norm even by a rounding error."""
    generator = np.random.default_rng(0)
    plain, other = generator.normal(size=(40, 4)).astype(np.float32), generator.normal(size=4).astype(np.float32)
    for value in plain:
        norm = float(np.sqrt(2 * (tf.nn.l2_loss(value[:2]) + tf.nn.l2_loss(value[2:]))))  # a norm in float32
        aggregator = DPMean(plan(clip=FixedClip(norm)))

        def within(beside, value=value, aggregator=aggregator):
            both = tf.nest.map_structure(lambda *parts: tf.stack(parts), update(value), update(beside))
            return float(aggregator.client(state_of(aggregator), both).within_clip)

        ordinary = within(1e-9 * other)  # far within the clip norm; its squares do not underflow
        assert within(1e-24 * other) == ordinary  # so small that its squares underflow in float32


def test_dp_mean_clips_by_norm_over_all_tensors():
    aggregator = DPMean(plan())
    contribution = aggregator.client(state_of(aggregator), update([3, 0, 0, 4]))
    np.testing.assert_allclose(flat(contribution.update), [0.6, 0, 0, 0.8], rtol=CLIPPED)


def test_dp_mean_divides_by_expected_cohort():
    for count in (0, 1, 30):
        mean = run(DPMean(plan()), [update([0, 0, 0, 0.5])] * count or [update([0, 0, 0, 0], examples=0.0)])
        np.testing.assert_allclose(flat(mean.update), [0, 0, 0, 0.5 * count / 20], rtol=rounding(30 + 2, 1.0))


def noise_of(aggregator, seed) -> np.ndarray:
    state = state_of(aggregator)
    empty = aggregator.client(state, update([0.0] * 4002, examples=0.0))
    return flat(aggregator.server(state, empty, np.array([seed, 1], np.int64)).update) * 20


def worst_moment(noise: np.ndarray, stddev: float) -> float:
    """Returns the largest |z| of mean, variance and lag-one correlation under N(0, stddev^2)."""
    n = noise.size
    scaled = noise.astype(np.float64) / stddev
    products = scaled[:, 1:] * scaled[:, :-1]
    return max(
        abs(scaled.mean()) * np.sqrt(n),
        abs((scaled**2).mean() - 1) * np.sqrt(n / 2),
        abs(products.mean()) * np.sqrt(products.size),
    )


# One of three standard normal numbers is beyond 5 with a probability below 2e-6.
def test_dp_mean_noise_is_gaussian_with_planned_stddev():
    noise = np.stack([noise_of(DPMean(plan(noise=1.5, clip=FixedClip(0.4))), seed) for seed in range(25)])
    assert worst_moment(noise, 1.5 * 0.4) < 5


def test_noise_check_rejects_smaller_noise_and_noise_shared_between_tensors():
    noise = np.stack([noise_of(DPMean(plan(noise=1.47, clip=FixedClip(0.4))), seed) for seed in range(25)])
    assert worst_moment(noise, 1.5 * 0.4) > 5
    shared = np.repeat(noise[:, ::2], 2, axis=1)
    assert worst_moment(shared, 1.47 * 0.4) > 5


def test_dp_mean_noise_follows_seed():
    aggregator = DPMean(plan(noise=1.0))
    np.testing.assert_array_equal(noise_of(aggregator, 7), noise_of(aggregator, 7))
    assert abs(np.corrcoef(noise_of(aggregator, 7), noise_of(aggregator, 8))[0, 1]) < 0.1  # sd 0.016


# Relative rounding of an adapted clip norm: a fraction of at most 1 from an exact count, its exponential, the product.
OF_THE_CLIP = rounding(3 + FUNCTION + 1, 1.0)


def adaptive(noise=0.0, **settings) -> DPMean:
    return DPMean(plan(noise=noise, clip=AdaptiveClip(1.0, 0.5, 0.2, **settings)))


def test_adaptive_clip_moves_towards_quantile():
    small = [update([0.0, 0, 0, 0.01])] * 20
    large = [update([0.0, 0, 0, 100.0])] * 20
    assert float(run(adaptive(), small).state["clip"]) == pytest.approx(math.exp(-0.2 * 0.5), rel=OF_THE_CLIP)
    assert float(run(adaptive(), large).state["clip"]) == pytest.approx(math.exp(0.2 * 0.5), rel=OF_THE_CLIP)
    assert float(run(adaptive(), small[:10] + large[:10]).state["clip"]) == pytest.approx(1.0, rel=OF_THE_CLIP)


def test_dp_mean_draws_update_count_and_metric_noise_from_separate_streams():
    """Each kind of noise is the stream of its name: noise that two of them shared would cancel in their difference."""
    promised = PrivacyPlan(
        Poisson(0.5), 40, 5, 1.0, AdaptiveClip(1.0, 0.5, 0.2, count_stddev=3.0), metrics=PrivateMetrics(0.1, 2.0)
    )
    aggregator = DPMean(promised)
    state = state_of(aggregator)
    absent = aggregator.client(state, update([0.0] * 4, examples=0.0)._replace(correct=tf.constant(0.0)))
    noised = aggregator._add_noise(state, absent, tf.constant(SEED))
    drawn = {
        name: np.array(gaussian.standard_normal(size, gaussian.stream(SEED, name)))
        for name, size in (("update", 4), ("count", 1), ("metrics", 4))
    }
    # A factor in float32 and a product.
    of_product = rounding(2, 1.0)
    np.testing.assert_allclose(flat(noised.update), promised.value_noise_multiplier * drawn["update"], rtol=of_product)
    assert float(noised.within_clip) == pytest.approx(3.0 * drawn["count"][0], rel=of_product)
    steps = np.rint(drawn["metrics"].astype(np.float64) * promised.metric_noise_multiplier * 2**24)
    np.testing.assert_array_equal(np.ravel(noised.pairs - absent.pairs), steps)


@pytest.mark.parametrize("quantile", [0.1, 0.9])
def test_adaptive_clip_uses_quantile_of_plan(quantile):
    aggregator = DPMean(plan(clip=AdaptiveClip(1.0, quantile, 0.2)))
    half = [update([0.0, 0, 0, 0.01])] * 10 + [update([0.0, 0, 0, 100.0])] * 10
    assert float(run(aggregator, half).state["clip"]) == pytest.approx(
        math.exp(-0.2 * (0.5 - quantile)), rel=OF_THE_CLIP
    )


def test_adaptive_count_has_sensitivity_one_half_and_planned_noise():
    aggregator = adaptive(noise=1.0, count_stddev=3.0)
    state = state_of(aggregator)
    for value in (0.01, 100.0):
        assert abs(float(aggregator.client(state, update([0, 0, 0, value])).within_clip)) == 0.5
    # An update that was replaced by zero is within any clip norm.
    assert float(aggregator.client(state, update([math.nan, 0, 0, 0])).within_clip) == 0.5
    empty = aggregator.client(state, update([0.0] * 4, examples=0.0))

    @tf.function(autograph=False)
    def release(seed):
        return aggregator.server(state, empty, seed).released

    released = [release(tf.constant([s, 9], tf.int64)) for s in range(2000)]
    counts = (np.array([float(r["fraction_within_clip"]) for r in released]) - 0.5) * 20
    # With 2,000 draws the standard deviation has a relative standard error of 1.6 %; five of them are allowed.
    assert counts.std() == pytest.approx(3.0, rel=0.08)
    assert float(released[0]["noise_stddev"]) == pytest.approx((1 - 1 / 36) ** -0.5, rel=1e-6)


def test_dp_mean_refuses_plan_without_clip():
    with pytest.raises(ValueError, match="needs a clip norm"):
        DPMean(PrivacyPlan(Poisson(0.5), 40, 5, 0.0, None))


def measured(loss, correct, tokens=6.0, examples=2.0):
    """Returns a small update with a sum of losses and a number of correct predictions."""
    return update([0.1, 0.1, 0.1, 0.1], examples, loss)._replace(
        tokens=tf.constant(tokens), correct=tf.constant(correct)
    )


def with_metrics(noise=1e-6, accuracy=True, clip=None):
    return DPMean(
        PrivacyPlan(
            Poisson(0.5), 40, 5, noise, clip or FixedClip(1.0), metrics=PrivateMetrics(0.1, 2.0, accuracy=accuracy)
        )
    )


def test_dp_mean_releases_means_of_bounded_client_metrics():
    clients = [measured(3.0, 3.0), measured(6.0, 6.0), measured(600.0, 0.0)]  # 0.5, 1 and (clipped to) 2 nats per token
    released = run(with_metrics(), clients).released
    assert float(released["train_loss"]) == pytest.approx(3.5 / 3, abs=1e-4)
    assert float(released["train_accuracy"]) == pytest.approx(0.5, abs=1e-4)
    assert float(released["train_clients"]) == pytest.approx(3, abs=1e-3)
    assert "train_accuracy" not in run(with_metrics(accuracy=False), clients).released
    assert "train_loss" not in run(DPMean(plan(1.0)), clients).released


@pytest.mark.parametrize(
    "absent",
    [
        measured(0.0, 0.0, tokens=0.0, examples=0.0),
        measured(math.nan, 6.0),
        measured(0.0, 0.0, tokens=0.0),
        measured(math.inf, 6.0, tokens=0.0),
    ],
)
def test_metrics_ignore_client_without_tokens_or_with_nan_loss(absent):
    released = run(with_metrics(), [measured(3.0, 3.0), absent]).released
    assert float(released["train_loss"]) == pytest.approx(0.5, abs=1e-4)
    assert float(released["train_accuracy"]) == pytest.approx(0.5, abs=1e-4)
    assert float(released["train_clients"]) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("loss", [0.0, 1.0, 12.0, 1e30, math.inf, -5.0])
@pytest.mark.parametrize("correct", [0.0, 2.0, 6.0, 100.0])
def test_metric_pair_norm_is_at_most_one(loss, correct):
    aggregator = with_metrics()
    pairs = np.array(aggregator.client(state_of(aggregator), measured(loss, correct)).pairs) / 2**24
    assert pairs.shape == (2, 2)
    assert (pairs >= 0).all() and (np.linalg.norm(pairs, axis=1) <= 1).all()


def test_metric_pairs_of_stacked_clients_equal_sum_of_single_clients():
    aggregator = with_metrics()
    clients = [measured(3.0, 3.0), measured(6.0, 1.0), measured(0.0, 0.0, tokens=0.0, examples=0.0)]
    together = aggregator.client(state_of(aggregator), tf.nest.map_structure(lambda *parts: tf.stack(parts), *clients))
    alone = total([aggregator.client(state_of(aggregator), client) for client in clients])
    np.testing.assert_array_equal(together.pairs, alone.pairs)


def test_metric_noise_has_planned_stddev():
    """Each standard deviation over 1000 seeds has a standard error of 2.2 %: 10 % fails with probability 2e-5."""
    aggregator = with_metrics(noise=1.0)
    state, contribution = state_of(aggregator), aggregator.client(state_of(with_metrics()), measured(3.0, 3.0))
    with_many = contribution._replace(pairs=contribution.pairs * 1000)

    @tf.function(autograph=False)
    def released(seed):
        return aggregator.server(state, with_many, seed)

    means = [released(tf.constant([5, seed], tf.int64)) for seed in range(1000)]
    releases, updates = [mean.released for mean in means], np.array([flat(mean.update) for mean in means])
    for name in ("train_clients", "train_accuracy", "train_loss"):
        # Nothing is shared with the update's noise: a correlation of 1000 pairs exceeds 0.18 with probability 1e-8.
        values = np.array([float(each[name]) for each in releases])
        assert max(abs(np.corrcoef(values, each)[0, 1]) for each in updates.T) < 0.18
    # The number of clients is the mean of the two pairs' sums, each with variance 2 z^2, so it has the deviation z.
    z = aggregator.plan.metric_noise_multiplier
    assert z == pytest.approx(math.sqrt(2 / 0.1))
    for name, mean, want in (
        ("train_clients", 1000, z),
        ("train_accuracy", 0.5, z * math.sqrt(0.5) / 1000),
        ("train_loss", 0.5, 2 * z * math.sqrt(0.25**2 + 0.75**2) / 1000),
    ):
        values = np.array([float(each[name]) for each in releases])
        assert abs(values.mean() - mean) < 5 * want / math.sqrt(1000)
        assert abs(values.std() / want - 1) < 0.1
        assert abs(values.std() / (2 * want) - 1) > 0.1


def test_released_number_of_clients_is_unbiased_without_clients():
    """Without clients its mean is zero: clamping either entry of a pair at zero would raise the mean."""
    aggregator = with_metrics(noise=1.0)
    state = state_of(aggregator)
    absent = aggregator.client(state, measured(0.0, 0.0, tokens=0.0, examples=0.0))

    @tf.function(autograph=False)
    def clients(seed):
        return aggregator.server(state, absent, seed).released["train_clients"]

    counts = [float(clients(tf.constant([6, seed], tf.int64))) for seed in range(1000)]
    assert abs(np.mean(counts)) < 5 * aggregator.plan.metric_noise_multiplier / math.sqrt(1000)


def test_metrics_leave_clipping_and_update_noise_unchanged():
    clients = [measured(3.0, 3.0)]
    adaptive_clip = AdaptiveClip(1.0, 0.5, 0.2, 5.0)
    without = run(DPMean(plan(1.0, adaptive_clip)), clients)
    measured_mean = run(with_metrics(1.0, clip=adaptive_clip), clients)
    assert float(measured_mean.state["clip"]) == float(without.state["clip"])
    plans = with_metrics(1.0, clip=adaptive_clip).plan, plan(1.0, adaptive_clip)
    noise = [flat(mean.update) * 20 - 0.1 for mean in (measured_mean, without)]
    # An update of 0.1 and noise, over 20, read off as the noise.
    multipliers = [each.value_noise_multiplier for each in plans]
    within = rounding(6, max(np.abs(part).max() for part in noise) + 0.2) / min(multipliers)
    np.testing.assert_allclose(noise[0] / multipliers[0], noise[1] / multipliers[1], rtol=0, atol=within)
