import numpy as np
import pytest
from scipy.optimize import minimize

from experiments.display import ConsoleDisplay
from experiments.reproduce import excess_loss as study
from experiments.reproduce.excess_loss import Problem
from privacy.linear.features import FeatureMap


class Model:
    """A fake of a fitted `DPLinearClassifier` with given weights and no scaling of the features."""

    def __init__(self, weights, bias):
        self.weights_ = np.stack([np.zeros(len(weights) + 1), [*weights, bias]], axis=1)
        self.feature_map_ = FeatureMap(np.zeros(len(weights)), 1.0, 0.0, ())

    def decision_function(self, features):
        return features @ self.weights_[:-1, 1] + self.weights_[-1, 1]


@pytest.mark.parametrize("problem", [Problem(10.0, 1.0, 0.3, 200, 5), Problem(1.0, 0.01, 1.0, 200, 5)])
def test_least_loss_equals_numerical_minimum(problem):
    features, labels = problem.data()
    signs = 2 * labels - 1

    def loss(weights):
        return np.logaddexp(0, -signs * (features @ weights[:-1] + weights[-1])).mean()

    inside = {"type": "ineq", "fun": lambda weights: 1 - weights[:-1] @ weights[:-1]}
    options = {"ftol": 1e-14, "maxiter": 500}
    minimum = minimize(loss, np.full(6, 0.1), constraints=inside, method="SLSQP", options=options)
    assert minimum.fun == pytest.approx(problem.least(), rel=1e-6)
    assert problem.excess(Model(np.zeros(5), 0.0), features, labels) == pytest.approx(problem.nothing_learned())
    best = np.array([0.0, 7.0, 0.0, 0.0, 0.0])  # `excess` scales it down to L2 norm 1
    assert problem.excess(Model(best, 0.0), features, labels) == pytest.approx(0, abs=1e-12)


def test_problem_features_have_given_distance_and_diameter():
    problem = Problem(10.0, 0.5, 0.3, 400, 8)
    features, labels = problem.data()
    assert features.shape == (400, 8) and labels.mean() == 0.5
    centre = features.mean(axis=0)
    assert centre == pytest.approx([10.0, *[0.0] * 7], abs=1e-12)
    assert np.linalg.norm(features - centre, axis=1) == pytest.approx(np.full(400, 0.25))


def test_slope_equals_mean_exponent_over_seeds():
    sizes = [0.1, 1.0, 10.0]
    slope = study.slope(sizes, [[3 * size**1.5, 5 * size**0.5] for size in sizes])
    assert slope["mean"] == pytest.approx(1.0)
    # The standard error is 0.5, and the 97.5 % quantile of Student's t with one degree of freedom is 12.7062.
    assert slope["half"] == pytest.approx(12.7062 * 0.5, rel=1e-4)


def test_excess_loss_is_linear_in_the_diameter_and_flat_in_the_distance(monkeypatch):
    """DPSGD-F has the theorem's two slopes; DP-SGD learns nothing where the features are narrow or far away."""
    monkeypatch.setattr(study, "DIAMETERS", (0.01, 1.0))
    monkeypatch.setattr(study, "DISTANCES", (10.0, 1e4))
    monkeypatch.setattr(study, "SIGNALS", (0.003, 1.0))
    monkeypatch.setattr(study, "RATES", (1.0, 10.0))
    results = study.measure(3, ConsoleDisplay())
    slopes = results["slopes"]["DPSGD-F"]
    # The losses of the three seeds differ by a factor of up to ten, and the diameters by a factor of 100.
    assert abs(slopes["diameter"]["all"]["mean"] - 1) < 0.4 and abs(slopes["distance"]["all"]["mean"]) < 0.1
    assert slopes["diameter"]["learned"] == slopes["diameter"]["all"]
    assert results["slopes"]["DP-SGD"]["distance"]["learned"] is None
    narrow, far = results["by_diameter"][0], results["by_distance"][1]
    for row in (narrow, far):
        assert row["DP-SGD"]["mean"] > 0.8 * row["nothing"] > 20 * row["DPSGD-F"]["mean"]
    text = study.table(results)
    assert "| slope, all rows | – |" in text and text.count("| 10000 |") == 1
