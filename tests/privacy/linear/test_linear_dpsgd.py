"""Tests `LinearDPSGD`: the closed form against per-example gradients, limiting cases, clipping and noise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import costs
from privacy.linear import linear_dpsgd as linear
from privacy.linear.linear_dpsgd import LinearDPSGD
from privacy.noise.training import secure_generator
from tests.oracles import dpsgd
from tests.tolerance import FUNCTION, rounding

pytestmark = pytest.mark.numerical


class Recorded(np.random.Generator):
    """A generator that records its uniform numbers, and the standard normal numbers that are drawn from it."""

    def __init__(self, seed: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self.uniforms: list[np.ndarray] = []
        self.normals: list[np.ndarray] = []

    def random(self, size):
        self.uniforms.append(super().random(size))
        return self.uniforms[-1]


@pytest.fixture(autouse=True, scope="module")
def _record_normals():
    standard_normal = linear.standard_normal

    def record(generator, size, dtype):
        values = standard_normal(generator, size, dtype)
        if isinstance(generator, Recorded):
            generator.normals.append(values)
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "standard_normal", record)
        yield


def problem(seed, count, size, classes):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, size)) * generator.exponential(size=(count, 1)), generator.integers(
        0, classes, count
    )


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 100),
    st.integers(0, 12),
    st.integers(1, 5),
    st.integers(2, 4),
    st.sampled_from([0.3, 1.0]),
    st.sampled_from([0.01, 1.0, math.inf]),
    st.sampled_from([0.0, 0.7]),
)
def test_train_equals_the_example_by_example_oracle(seed, count, size, classes, rate, clip, multiplier):
    multiplier = 0.0 if math.isinf(clip) else multiplier
    features, labels = problem(seed, count, size, classes)
    training = LinearDPSGD(4, rate, 3.5, clip, multiplier, 0.8, 0.6)
    recorded = Recorded(seed)
    weights = training.train(features, labels, classes, recorded)
    batches = [np.flatnonzero(u < rate) for u in recorded.uniforms] or [np.arange(count)] * 4
    expected = dpsgd.train(
        features,
        labels,
        classes,
        steps=4,
        batches=batches,
        denominator=3.5,
        clip=clip,
        learning_rate=0.8,
        momentum=0.6,
        noise=[multiplier * clip * normals.reshape(size, classes) for normals in recorded.normals] or None,
    )
    np.testing.assert_allclose(weights, expected, atol=1e-10)
    assert len(recorded.normals) == (4 if multiplier else 0)


def test_train_with_infinite_clip_norm_equals_gradient_descent():
    features, labels = problem(3, 40, 5, 3)
    plain = LinearDPSGD(50, 1.0, 40.0, math.inf, 0.0, 0.5, 0.0).train(features, labels, 3, np.random.default_rng(0))
    large = LinearDPSGD(50, 1.0, 40.0, 1e6, 0.0, 0.5 * 1e6, 0.0).train(features, labels, 3, np.random.default_rng(0))
    np.testing.assert_allclose(plain, large, rtol=1e-6)


def test_train_step_is_moved_by_one_record_by_at_most_the_clip_norm():
    """Also by a record that is 1000 times as long as the others."""
    features, labels = problem(4, 30, 4, 3)
    features[0] *= 1000
    step = LinearDPSGD(1, 1.0, 1.0, 0.5, 0.0, 1.0, 0.0)  # the weights after one step are -sum / clip_norm

    def total(keep):
        return 0.5 * step.train(features[keep], labels[keep], 3, np.random.default_rng(0))

    whole = total(np.arange(30))
    moves = [np.linalg.norm(whole - total(np.delete(np.arange(30), one))) for one in range(30)]
    assert max(moves) <= 0.5 * (1 + 1e-9) and max(moves) > 0.499


def test_train_draws_the_same_noise_for_any_number_of_records():
    features, labels = problem(5, 200, 3, 2)
    training = LinearDPSGD(3, 0.1, 20.0, 1.0, 2.0, 1.0)
    for part in (slice(0, 200), slice(0, 1), slice(0, 0)):  # without records, steps consist of noise
        recorded = Recorded(6)
        weights = training.train(features[part], labels[part], 2, recorded)
        assert np.isfinite(weights).all() and weights.any()
        assert [normals.shape for normals in recorded.normals] == [(6,)] * 3


@pytest.mark.parametrize("clip", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_has_the_standard_deviation_of_its_multiplier(clip, dtype):
    """Without records, the weights after one step are the noise divided by the batch and the clip norm."""
    no_data = np.zeros((0, 4000), dtype), np.zeros(0, int)
    weights = LinearDPSGD(1, 0.5, 2.5, clip, 3.0, 1.0).train(*no_data, 5, np.random.default_rng(9))
    assert np.std(-weights * 2.5 * clip) == pytest.approx(3.0 * clip, rel=0.035)  # 20,000 draws: seven standard errors


@pytest.mark.parametrize(("dtype", "huge"), [(np.float64, 1e308), (np.float32, 3e38), (np.float64, 1e-200)])
def test_train_clips_one_record_of_extreme_entries(dtype, huge):
    features = np.tile(np.array([[1.0, 0.0]], dtype), (50, 1))
    labels = np.arange(50) % 2
    training = LinearDPSGD(3, 1.0, 50.0, 1e-3, 0.0, 1.0, 0.0)
    extended = np.vstack([features, [[huge, huge]]]).astype(dtype), np.append(labels, 0)
    with_ = training.train(*extended, 2, secure_generator())
    without = training.train(features, labels, 2, secure_generator())
    assert np.isfinite(with_).all()
    # The record moves each of three steps by 1 / 50, and through the weights moves later steps a little more.
    assert np.linalg.norm(with_ - without) <= 3 * 1.1 / 50


def test_train_clips_by_the_whole_norm_in_any_memory_order():
    row = np.full((1, 2**14), 1.0, np.float32)
    row[0, 0] = 4096.0
    step = LinearDPSGD(1, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0)
    for features in (row, np.asfortranarray(row)):
        moved = step.train(features, np.zeros(1, int), 2, secure_generator())
        assert np.linalg.norm(moved.astype(np.float64)) <= 1 + 1e-6


def test_train_on_float32_returns_float32_weights_near_those_of_float64():
    features, labels = problem(8, 50, 4, 3)
    training = LinearDPSGD(5, 1.0, 50.0, 1.0, 0.0, 1.0)
    weights = training.train(features.astype(np.float32), labels, 3, np.random.default_rng(0))
    assert weights.dtype == np.float32
    # Five steps: products of 4, a softmax of 3, and twice that and a sum over 50 for a gradient of at most 1.
    within = rounding(5 * (3 * (4 + 2 * FUNCTION) + 50), 1.0)
    np.testing.assert_allclose(weights, training.train(features, labels, 3, np.random.default_rng(0)), atol=within)


def test_cost_is_the_sampled_gaussian_of_all_steps():
    assert LinearDPSGD(200, 0.05, 10.0, 1.0, 2.8, 1.0).cost() == costs.Gaussian(2.8, 200, 0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"sampling_probability": 0}, "sampling_probability must"),
        ({"sampling_probability": 1.5}, "sampling_probability must"),
        ({"expected_batch": 0}, "expected_batch must"),
        ({"clip_norm": 0}, "clip_norm must be a finite number above 0, got 0"),
        ({"clip_norm": math.nan}, "clip_norm must be a finite number above 0, got nan"),
        ({"clip_norm": math.inf}, "clip_norm is infinite and there is noise"),
        ({"noise_multiplier": -1}, "noise_multiplier must"),
        ({"noise_multiplier": math.nan}, "noise_multiplier must"),
        ({"learning_rate": 0}, "learning_rate must"),
        ({"momentum": 1}, "momentum must lie in"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    arguments = {
        "steps": 1,
        "sampling_probability": 0.5,
        "expected_batch": 1.0,
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "learning_rate": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        LinearDPSGD(**(arguments | changes))


@pytest.mark.parametrize(
    ("features", "labels", "classes", "message"),
    [
        (np.ones((2, 2)), [0, 1], 1, "classes must be an integer of at least 2, got 1: one class"),
        (np.ones((2, 2), int), [0, 1], 2, "dtype int64: floats"),
        (np.ones(2), [0, 1], 2, r"shape \[2\]"),
        (np.array([[1.0], [np.nan]]), [0, 1], 2, "features of 1 records are not finite"),
        (np.array([[1.0], [np.inf]]), [0, 1], 2, "features of 1 records are not finite"),
        (np.ones((2, 2)), [0, 2], 2, "labels go from 0 to 2: 0 to 1 are needed"),
        (np.ones((2, 2)), [-1, 1], 2, "labels go from -1 to 1"),
        (np.ones((2, 2)), [0, 1, 1], 2, "labels have shape"),
        (np.ones((2, 2)), [0.0, 1.0], 2, "labels have shape .*float64: one integer"),
    ],
)
def test_train_refuses_invalid_data_in_one_line(features, labels, classes, message):
    with pytest.raises(ValueError, match=message) as error:
        LinearDPSGD(1, 1.0, 1.0, 1.0, 0.0, 1.0).train(features, labels, classes, np.random.default_rng(0))
    assert "\n" not in str(error.value)
