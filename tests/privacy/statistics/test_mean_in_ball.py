"""Tests the private mean of vectors against closed forms of its error, and against an attack on its last bits.

Each Monte-Carlo comparison allows five standard errors of the mean squared error, so it fails by chance with
probability below 1e-6; seeds are fixed.
"""

import math

import numpy as np
import pytest

from privacy.noise import exact
from privacy.noise.randomness import SeededRandomness
from privacy.statistics.mean import sensitivity_over_stddev
from privacy.statistics.mean_in_ball import mean_in_ball


def test_mean_in_ball_has_the_error_of_its_noise_multiplier():
    generator = np.random.default_rng(5)
    directions = generator.normal(size=(2000, 9))
    vectors = directions / np.linalg.norm(directions, axis=1, keepdims=True) + np.eye(9)[0]
    vectors[:10] *= 1e200  # scaled down to the radius without overflow
    short = vectors * np.minimum(1, 2 / np.linalg.norm(vectors / 1e100, axis=1, keepdims=True) / 1e100)
    errors, counts = [], []
    source = SeededRandomness(6)
    for _ in range(300):
        mean = mean_in_ball(vectors, 2.0, 1.0, 1e-6, source)
        errors.append(np.sum(np.square(mean.value - short.mean(axis=0))))
        counts.append(mean.records)
    sigma = 1 / sensitivity_over_stddev(1.0, 1e-6)
    # The noise of the sum, and that of the count, which scales the mean.
    c = 2 / 9**0.25
    per_coordinate = (sigma * math.hypot(2, c)) ** 2 / 2000**2
    expected = per_coordinate * (9 + np.sum(np.square(short.mean(axis=0))) / c**2)
    assert np.mean(errors) == pytest.approx(expected, rel=0.15)
    assert np.mean(counts) == pytest.approx(2000, rel=0.01)
    assert mean.guarantee.epsilon == pytest.approx(1.0, rel=1e-6)
    assert np.linalg.norm(mean_in_ball(vectors[:1], 2.0, 1.0, 1e-6).value) <= 2.0000001


def test_mean_in_ball_is_moved_by_one_vector_of_any_size_by_at_most_its_radius(monkeypatch):
    monkeypatch.setattr(exact, "gaussian", lambda source, stddev, size: np.zeros(size, np.int64))
    zeros = np.zeros((99, 3))
    for vector in ([1e300] * 3, [1.7e308, -1.7e308, 0], [5e-324, 0, 0], [1e-10, 0, 0]):
        for radius in (1e-300, 1e-10, 1.0, 1e300):
            mean = mean_in_ball(np.vstack([zeros, [vector]]), radius, 1.0, 1e-6)
            moved = np.linalg.norm(mean.value / radius)
            assert moved <= 0.01 * (1 + 1e-9)
            assert vector[0] < radius or radius < 1e-200 or moved > 0.0099  # a long vector counts in full
    many = mean_in_ball([[1.7e308, 1.7e308]] * 50, 1.0, 1.0, 1e-6)
    np.testing.assert_allclose(many.value, np.sqrt([0.5, 0.5]), rtol=1e-6)


def test_mean_in_ball_has_independent_noise_in_each_coordinate_and_in_the_count():
    source = SeededRandomness(8)
    means = [mean_in_ball(np.zeros((1000, 3)), 1.0, 1.0, 1e-6, source) for _ in range(500)]
    columns = np.array([[*mean.value, mean.records] for mean in means])
    assert (np.abs(np.corrcoef(columns.T) - np.eye(4)) < 5 / math.sqrt(500)).all()
    c = 3**-0.25
    sigma = math.hypot(1, c) / sensitivity_over_stddev(1.0, 1e-6)
    assert columns[:, -1].std() == pytest.approx(sigma / c, rel=0.15)
    assert columns[:, 0].std() * 1000 == pytest.approx(sigma, rel=0.15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radius": 0}, "radius must lie"),
        ({"radius": float("inf")}, "radius must lie"),
        ({"radius": 5e-324}, "radius must lie"),
        ({"vectors": [[1.0, 2.0], [1.0]]}, "vectors is not a rectangular array|vectors has dtype"),
        ({"epsilon": 0}, "epsilon must be"),
        ({"delta": 0}, "delta must lie"),
        ({"delta": 1.0}, "delta must lie"),
        ({"vectors": [1.0, 2.0]}, r"vectors have shape \[2\]: \[n, d\] is needed"),
    ],
)
def test_mean_in_ball_refuses_bad_arguments(changes, message):
    arguments = {"vectors": [[0.5, 0.5]], "radius": 1.0, "epsilon": 1.0, "delta": 1e-6, **changes}
    with pytest.raises(ValueError, match=message):
        mean_in_ball(**arguments)
