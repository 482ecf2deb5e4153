"""Tests `DPLinearClassifier`: scikit-learn's checks, the guarantees of DPSGD-F, and error messages."""

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import check_estimator

from privacy import Budget, Releases
from privacy.accounting import costs
from privacy.linear.classifier import DPLinearClassifier
from privacy.linear.linear_dpsgd import LinearDPSGD


@pytest.fixture(scope="module")
def digits():
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(features))
    features, labels = features[order], labels[order]
    return features[:1437], labels[:1437], features[1437:], labels[1437:]


def classifier(**changes):
    return DPLinearClassifier(
        **{"classes": range(10), "random_state": 1, "steps": 40, "sampling_probability": 1.0, **changes}
    )


def test_classifier_passes_the_checks_of_scikit_learn():
    """With a large ε, since some checks require a score on thirty records."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            DPLinearClassifier(epsilon=50.0, sampling_probability=1.0, random_state=0), on_fail=None, on_skip=None
        )
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert not failed
    assert sum(result["status"] == "passed" for result in results) > 40


def test_preprocessing_improves_the_score_on_digits_at_small_epsilon(digits):
    """Compares means over 3 seeds, because the scores of single runs differ by 0.01."""
    x, y, test_x, test_y = digits
    scores = {}
    for preprocess in (False, True):
        runs = [
            classifier(epsilon=1.0, preprocess=preprocess, learning_rate=3.0, random_state=seed).fit(x, y)
            for seed in range(3)
        ]
        scores[preprocess] = np.mean([run.score(test_x, test_y) for run in runs])
        assert all(0.98 < run.guarantee_.epsilon <= 1.0 for run in runs)
    assert scores[True] > scores[False] + 0.01 and scores[False] > 0.8


@pytest.mark.parametrize("mu", [1.0, 1e5])
def test_preprocessing_solves_the_counter_example_that_plain_dpsgd_cannot(mu):
    """x = mu e1 ± e2 (arXiv:2307.11106, section 4): for large mu, DP-SGD stays at chance at any learning rate."""
    labels = np.random.default_rng(0).integers(0, 2, 5000)
    features = np.stack([np.full(5000, mu), 2.0 * labels - 1], axis=1)
    settings: dict[str, Any] = {"classes": [0, 1], "bound": float(np.hypot(mu, 1)), "steps": 50, "share": 0.3}
    assert classifier(**settings).fit(features, labels).score(features, labels) == 1.0
    plain = [
        classifier(**settings, preprocess=False, learning_rate=rate).fit(features, labels).score(features, labels)
        for rate in (1.0, 10.0, 100.0)
    ]
    assert max(plain) == 1.0 if mu == 1 else max(plain) < 0.6


def test_predictions_are_those_of_the_weights_on_mapped_features(digits):
    x, y, test_x, _ = digits
    for bound in (None, 80.0):
        model = classifier(bound=bound).fit(x, y)
        rows = test_x if bound else test_x / np.linalg.norm(test_x, axis=1, keepdims=True)
        logits = model.feature_map_(rows) @ model.weights_
        np.testing.assert_allclose(model.decision_function(test_x), logits)
        assert (model.predict(test_x) == model.predict_proba(test_x).argmax(axis=1)).all()
        # A row alone gets the same prediction as among the others.
        np.testing.assert_allclose(model.predict_proba(test_x[:1]), model.predict_proba(test_x)[:1])


def test_guarantee_covers_preprocessing_and_training(digits):
    x, y, _, _ = digits
    settings: tuple[dict[str, Any], ...] = (
        {},
        {"bound": 80.0},
        {"preprocess": False},
        {"sampling_probability": 0.2, "steps": 30},
    )
    for changes in settings:
        model = classifier(epsilon=2.0, delta=1e-6, **changes).fit(x, y)
        guarantee = model.guarantee_
        assert guarantee.delta == 1e-6 and 1.98 < guarantee.epsilon <= 2.0
        preprocessing, training = guarantee.costs
        assert (
            isinstance(training, costs.Gaussian)
            and training.count == model.steps
            and training.sampling_probability == model.sampling_probability
        )
        assert costs.epsilon([preprocessing], 1e-6) <= 0.2
        # The stages cost what was planned for them.
        spent = costs.epsilon(model.feature_map_.costs, 1e-6)
        assert 0.19 < spent <= 0.2 * (1 + 1e-9)
        text = str(guarantee)
        for part in ("unit record", "add-or-remove-one", "at delta 1e-06", "Poisson samples", "not hardened", "SEED"):
            assert part in text


def test_fit_differs_without_a_seed_and_repeats_with_one(digits):
    x, y, test_x, _ = digits
    first, second = (classifier(random_state=None).fit(x, y).weights_ for _ in range(2))
    assert not np.allclose(first, second)
    same, again = (classifier(random_state=3).fit(x, y).weights_ for _ in range(2))
    assert (same == again).all()


def test_fit_without_preprocessing_adds_noise_to_the_number_of_records(digits, monkeypatch):
    x, y, _, _ = digits
    batches = []
    train = LinearDPSGD.train

    def record(self, *arguments):
        batches.append(self.expected_batch)
        return train(self, *arguments)

    monkeypatch.setattr(LinearDPSGD, "train", record)
    runs = [classifier(preprocess=False, random_state=seed).fit(x, y) for seed in range(60)]
    counts = np.array([run.feature_map_.records for run in runs])
    assert batches == counts.tolist()
    (cost,) = runs[0].feature_map_.costs
    assert isinstance(cost, costs.Gaussian)
    # The standard deviation of 60 normal numbers is within half of the true one.
    assert counts.std() == pytest.approx(cost.noise_multiplier, rel=0.5)
    assert abs(counts.mean() - 1437) < 5 * cost.noise_multiplier / np.sqrt(60)


@pytest.mark.parametrize("bound", [None, 60.0])
@pytest.mark.parametrize("huge", [1e308, 3e38])
def test_fit_is_not_spoiled_by_one_huge_record(digits, bound, huge):
    x, y, test_x, test_y = digits
    rows = np.vstack([x, np.full((1, 64), huge)])
    model = classifier(epsilon=4.0, bound=bound).fit(rows, np.append(y, 0))
    assert model.score(test_x, test_y) > 0.8
    assert np.isfinite(model.predict_proba(rows[-1:])).all()


def test_fit_accepts_string_labels_two_classes_and_warns_without_classes(digits):
    x, y, test_x, test_y = digits
    names = np.array([f"digit {label}" for label in range(10)])
    model = classifier(classes=names).fit(x, names[y])
    assert model.score(test_x, names[test_y]) > 0.8 and model.classes_.tolist() == names.tolist()
    with pytest.warns(UserWarning, match="taken as public: give classes"):
        classifier(classes=None).fit(x, y)
    two = classifier(classes=[0, 1]).fit(x[y < 2], y[y < 2])
    assert two.decision_function(test_x).shape == (len(test_x),) and two.predict_proba(test_x).shape[1] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0}, "epsilon must be a finite number above 0, got 0"),
        ({"epsilon": float("nan")}, "epsilon must be"),
        ({"delta": 1}, "delta must lie in .0, 1., got 1"),
        ({"delta": 0}, "delta must lie"),
        ({"share": 1.0}, "share must lie"),
        ({"bound": -1.0}, "bound must be"),
        ({"bound": -1.0, "preprocess": False}, "bound must be"),
        ({"sampling_probability": 2.0}, "sampling_probability must"),
        ({"steps": 0}, "count must be|steps must be"),
        ({"clip_norm": 0}, "clip_norm must be"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"clip_norm": 10**400}, "clip_norm must be"),
        ({"momentum": "x"}, "momentum must be"),
        ({"momentum": 1.0}, "momentum must lie"),
        ({"preprocess": "no"}, "preprocess is 'no': give True or False"),
        ({"bound": 1e-40}, "bound must lie in"),
        ({"classes": [3]}, "one class only"),
        ({"classes": 10}, "classes is 10: give a list of all labels, of one type"),
        ({"classes": [0, None]}, "classes is .0, None.: give a list"),
        ({"classes": range(9)}, "y holds a label that is not in classes .0, 1, .*add it"),
        ({"random_state": -1}, "seed must be"),
    ],
)
def test_fit_refuses_bad_parameters_in_one_line(digits, changes, message):
    x, y, _, _ = digits
    with pytest.raises(ValueError, match=message) as error:
        classifier(**changes).fit(x, y)
    assert "\n" not in str(error.value)


def test_refused_fit_leaves_the_earlier_weights_and_their_guarantee(digits, tmp_path):
    x, y, _, _ = digits
    model = classifier(epsilon=8.0, clip_norm=np.float32(1)).fit(x, y)
    before = dict(vars(model))
    with Releases.open(tmp_path / "ledger", Budget(0.01, 1e-5)) as ledger, pytest.raises(ValueError, match="budget"):
        model.set_params(epsilon=0.1).fit(x, y, ledger)
    assert {**vars(model), "epsilon": 8.0} == before


def test_fit_refuses_invalid_data_in_one_line(digits):
    x, y, _, _ = digits
    for bad in (np.nan, np.inf):
        broken = x.copy()
        broken[3, 5] = bad
        with pytest.raises(ValueError, match="NaN|infinity") as error:
            classifier().fit(broken, y)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="one class only"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier(classes=None).fit(x, np.zeros(len(x), int))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        classifier().fit(x, y[:-1])
    with pytest.raises(ValueError, match="expecting 64 features"):
        classifier().fit(x, y).predict(x[:, :3])
