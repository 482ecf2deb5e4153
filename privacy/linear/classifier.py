"""Defines `DPLinearClassifier`: differentially private softmax regression with scikit-learn's interface."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from privacy import checks
from privacy.accounting import costs
from privacy.accounting.guarantee import Guarantee, describe_noise
from privacy.arrays import clip_rows, normalize_rows
from privacy.linear.features import FeatureMap, centre_of_ball, check_bound, fit_feature_map
from privacy.linear.linear_dpsgd import LinearDPSGD, softmax
from privacy.noise import exact
from privacy.noise.randomness import Randomness, SecureRandomness, SeededRandomness
from privacy.noise.training import secure_generator

if TYPE_CHECKING:
    from privacy.budget import Releases


class DPLinearClassifier(ClassifierMixin, BaseEstimator):
    """Trains softmax regression by DP-SGD, after private preprocessing of the features (DPSGD-F, arXiv:2307.11106).

    `fit` is (ε, δ)-DP under add-or-remove-one of a record (a row of X with its label). This ε covers all that
    `fit` releases: the number of records, the centre and radius of the features, and the training. The discrete
    Gaussian noise of the preprocessing is accounted for as continuous Gaussian noise. The set of classes is taken as
    public: give `classes`, or it is read off the labels, with a warning. Attributes with a trailing underscore exist
    after `fit`.

    Attributes:
      epsilon: ε of everything that `fit` releases together, above 0.
      delta: δ that ε is stated at, in (0, 1).
      preprocess: whether to centre and scale the features privately before the training.
      bound: public bound on the L2 norm of a feature vector, from 1e-18 to 1e18. It selects the theory's version of the
        preprocessing, which is accurate however far from the origin the features lie. None: the practical version,
        which scales each vector to L2 norm 1 before and after centring.
      share: share of ε for the preprocessing, in (0, 1); without preprocessing, for the number of records.
      steps, sampling_probability, clip_norm, learning_rate, momentum: see `privacy.linear.LinearDPSGD`. Its inputs are
        features of L2 norm at most 1 with a constant 1 appended.
      classes: all possible labels; None: those in y.
      random_state: None for secure randomness, or an integer seed that makes a run repeatable in tests. A run with a
        seed protects nobody.
      classes_: the labels, in the order of the columns of `predict_proba`.
      weights_: float [features + 1, classes], applied to `feature_map_(X)`; with `bound` None, the rows of X are scaled
        to L2 norm 1 first.
      guarantee_: `privacy.accounting.guarantee.Guarantee` of `fit`: ε with unit, relation, δ, sampler and noise.
      feature_map_: `privacy.linear.features.FeatureMap` of the preprocessing.
    """

    def __init__(
        self,
        epsilon: float = 1.0,
        delta: float = 1e-5,
        *,
        preprocess: bool = True,
        bound: float | None = None,
        share: float = 0.1,
        steps: int = 100,
        sampling_probability: float = 0.1,
        clip_norm: float = 1.0,
        learning_rate: float = 10.0,
        momentum: float = 0.9,
        classes: Any = None,
        random_state: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.preprocess = preprocess
        self.bound = bound
        self.share = share
        self.steps = steps
        self.sampling_probability = sampling_probability
        self.clip_norm = clip_norm
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.classes = classes
        self.random_state = random_state

    def fit(self, X: Any, y: Any, ledger: Releases | None = None) -> DPLinearClassifier:
        """Trains on features X [n, d] and labels y [n]. Each call costs ε again.

        Args:
          X: float32 or float64 features [n, d], finite.
          y: labels [n], each one of `classes`.
          ledger: ledger of a `privacy.Budget`; the release is recorded there before any noise is drawn.

        Raises:
          ValueError: a parameter or the data are invalid, or the budget does not allow the release.
        """
        epsilon = checks.positive("epsilon", self.epsilon, "give the privacy budget of this model")
        delta = checks.between("delta", self.delta, 0, 1, "1e-5 is usual, below 1 / records")
        share = checks.between("share", self.share, 0, 1, "0.1 is usual")
        # This checks the settings. The noise multiplier and the expected batch are placeholders: the first follows from
        # ε, the second from the private number of records.
        training = LinearDPSGD(
            self.steps, self.sampling_probability, 1.0, self.clip_norm, 1.0, self.learning_rate, self.momentum
        )
        if not isinstance(self.preprocess, (bool, np.bool_)):
            raise ValueError(f"preprocess is {self.preprocess!r}: give True or False")
        if self.bound is not None:
            check_bound(self.bound)
        X, y = _validate(self, X, y)
        check_classification_targets(y)
        classes, labels = self._index_labels(y)
        source: Randomness = SecureRandomness()
        generator = secure_generator()
        if self.random_state is not None:
            source = SeededRandomness(self.random_state)
            generator = np.random.default_rng(self.random_state)

        preprocessing_noise, training_noise = _calibrate(
            epsilon, delta, share, training.steps, training.sampling_probability
        )
        guarantee = Guarantee(
            f"linear classifier by {'DPSGD-F' if self.preprocess else 'DP-SGD'}, classes public",
            (
                costs.Gaussian(preprocessing_noise),
                costs.Gaussian(training_noise, training.steps, training.sampling_probability),
            ),
            "add-or-remove-one",
            delta,
            f"preprocessing: {describe_noise(source)}; training: floating-point Gaussian, not hardened against "
            "floating-point attacks",
            f"training: {training.steps} Poisson samples with probability {training.sampling_probability:g}; "
            "preprocessing: every record, once",
        )
        if ledger is not None:
            ledger.record(guarantee)

        rows = self._scale_rows(X)
        if not self.preprocess:
            bound = 1.0 if self.bound is None else self.bound
            feature_map = _count_records(len(rows), X.shape[1], bound, preprocessing_noise, source)
        elif self.bound is None:
            feature_map = centre_of_ball(rows, 1.0, preprocessing_noise, source)
        else:
            feature_map = fit_feature_map(rows, self.bound, preprocessing_noise, source)
        batch = max(training.sampling_probability * feature_map.records, 1.0)
        training = dataclasses.replace(training, noise_multiplier=training_noise, expected_batch=batch)
        weights = training.train(feature_map(rows, clip=True), labels, len(classes), generator)
        # Set together and last, so that a `fit` that raises leaves the results of an earlier `fit` consistent.
        self.classes_, self.feature_map_, self.weights_, self.guarantee_ = classes, feature_map, weights, guarantee
        return self

    def decision_function(self, X: Any) -> npt.NDArray[Any]:
        """Returns the logits [n, classes] of features [n, d]; with two classes, the second logit less the first."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> npt.NDArray[Any]:
        """Returns the class probabilities [n, classes] of features [n, d]."""
        return softmax(self._logits(X))

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Returns the most probable label of each row of X [n, d]."""
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]

    def _logits(self, X: Any) -> npt.NDArray[Any]:
        check_is_fitted(self)
        X = _validate(self, X, reset=False)
        return self.feature_map_(self._scale_rows(X)) @ self.weights_

    def _scale_rows(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return normalize_rows(X) if self.bound is None else clip_rows(X, self.bound)

    def _index_labels(self, y: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Returns the classes, sorted, and each label's position among them."""
        if self.classes is None:
            warnings.warn("classes is None, so the labels in y are taken as public: give classes", stacklevel=3)
            classes = np.unique(y)
        else:
            try:
                classes = np.unique(np.asarray(list(self.classes)))
            except TypeError:  # not a list, or labels that cannot be sorted
                raise ValueError(f"classes is {self.classes!r}: give a list of all labels, of one type") from None
        if len(classes) < 2:
            named = "classes" if self.classes is not None else "y"
            raise ValueError(f"{named} holds one class only, {classes.tolist()}: at least 2 classes are needed")
        positions = np.searchsorted(classes, y).clip(max=len(classes) - 1)
        if (classes[positions] != y).any():
            raise ValueError(
                f"y holds a label that is not in classes {classes.tolist()}: add it, or leave its rows out"
            )
        return classes, positions


@functools.lru_cache(maxsize=64)  # a search over other hyper-parameters repeats the same budgets
def _calibrate(
    epsilon: float, delta: float, share: float, steps: int, sampling_probability: float
) -> tuple[float, float]:
    """Returns the noise multipliers of the preprocessing and of the training.

    The preprocessing alone costs `share` * `epsilon`; both together cost `epsilon`.
    """
    preprocessing = costs.calibrate(lambda z: [costs.Gaussian(z)], share * epsilon, delta)
    training = costs.calibrate(
        lambda z: [costs.Gaussian(preprocessing), costs.Gaussian(z, steps, sampling_probability)], epsilon, delta
    )
    return preprocessing, training


def _validate(model: DPLinearClassifier, *data: Any, **options: Any) -> Any:
    """Runs scikit-learn's checks and puts their errors on one line."""
    try:
        return validate_data(model, *data, dtype=(np.float64, np.float32), **options)
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _count_records(count: int, size: int, bound: float, noise_multiplier: float, source: Randomness) -> FeatureMap:
    """Returns a map that only divides features by the bound. Its `records` is a private number of records."""
    steps = 2**20
    stddev = math.ceil(steps * noise_multiplier)
    records = (count * steps + int(exact.gaussian(source, stddev, 1)[0])) / steps
    return FeatureMap(np.zeros(size), bound, max(records, 1.0), (costs.Gaussian(stddev / steps),))
